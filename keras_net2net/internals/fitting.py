"""A running `fit`: its data, and its callbacks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_net2net.internals.optimizers import optimizer_parts


def fit_batches(model: Any, samples: int, most: int = 8) -> list[Any]:
    """The first batches of the `fit` that a callback is called from, as its steps get them.

    `fit` keeps its data in a local variable, `epoch_iterator`, on all backends, and tells
    callbacks nothing of it: the frames of the callers are looked through. The iterator
    itself isn't touched, so that no batch is lost: what feeds it is asked again. (A
    shuffled `tf.data.Dataset` then goes on in another random order.)

    Args:
        model: The model.
        samples: The number of samples after which there are enough batches.
        most: The largest number of batches. Defaults to `8`.

    Returns:
        The batches, each `(x, y, ...)`; none if they can't be had.
    """
    iterator = _epoch_iterator(model)
    if iterator is None:
        return []
    found: list[Any] = []
    seen = 0
    try:
        for batch in _first_batches(iterator.data_adapter):
            batch = tuple(batch) if isinstance(batch, list) else batch  # as Keras takes it
            found.append(keras.tree.map_structure(np.asarray, batch))
            seen += len(keras.tree.flatten(found[-1])[0])
            if seen >= samples or len(found) == most:
                break
    except Exception:  # data that can't be asked twice: there is none to be had
        return []
    return found


def _epoch_iterator(model: Any) -> Any | None:
    frame: Any = sys._getframe(1)
    while frame is not None:
        known = frame.f_locals if frame.f_code.co_name == "fit" else {}
        if known.get("self") is model and "epoch_iterator" in known:
            return known["epoch_iterator"]
        frame = frame.f_back
    return None


def _first_batches(adapter: Any) -> Iterator[Any]:
    """The first batches of an adapter of Keras, without taking them from it."""
    kept = getattr(adapter, "_first_batches", None)
    if kept is not None:  # a generator's, which Keras took from it to see their shapes
        yield from kept
        return
    inputs = getattr(adapter, "_inputs", None)
    if inputs is not None:  # arrays
        size = adapter.batch_size
        for at in range(0, adapter.num_batches * size, size):
            yield keras.tree.map_structure(lambda x, at=at: x[at : at + size], inputs)
        return
    indexed = getattr(adapter, "py_dataset", None)
    if indexed is not None:
        for at in range(indexed.num_batches or 8):
            yield adapter._standardize_batch(indexed[at])
        return
    loader = getattr(adapter, "_dataloader", None)
    if loader is not None:  # its order is drawn from PyTorch's global state
        import torch

        state = torch.get_rng_state()
        try:
            yield from loader
        finally:
            torch.set_rng_state(state)
        return
    yield from adapter._dataset  # of TensorFlow or Grain: each iteration starts again


def running_lists() -> Iterator[Any]:
    """The `CallbackList`s that are calling their callbacks, the innermost first.

    Keras tells a callback its model, and nothing of the other callbacks: only the
    `CallbackList` that is calling knows them, and it is nowhere but on the stack. The
    locals of no other frame are read, for reading them keeps alive what they hold.
    """
    of_lists = vars(sys.modules[keras.callbacks.CallbackList.__module__])
    frame: Any = sys._getframe(1)
    while frame is not None:
        holder = frame.f_locals.get("self") if frame.f_globals is of_lists else None
        if isinstance(holder, keras.callbacks.CallbackList):
            yield holder
        frame = frame.f_back


def running_callbacks() -> list[Any]:
    """The callbacks of the `fit` that runs, in order, if one of them is calling."""
    found: dict[int, Any] = {}
    for holder in running_lists():
        # Further out stands the list that holds this one, or that of a `fit` around it.
        found = {id(one): one for one in flat_callbacks(holder)} | found
    return list(found.values())


def callbacks_beside(callback: Any) -> list[Any]:
    """The callbacks of the one list that is just now telling `callback` its model."""
    for holder in running_lists():
        if any(one is callback for one in holder.callbacks):
            return list(holder.callbacks)
    return []


def flat_callbacks(holder: Any) -> list[Any]:
    """The callbacks of a `CallbackList`, with those of lists in it in their place."""
    return [
        one
        for callback in holder.callbacks
        for one in (
            flat_callbacks(callback)
            if isinstance(callback, keras.callbacks.CallbackList)
            else [callback]
        )
    ]


def has_swapped(callback: Any) -> bool:
    """Whether a `SwapEMAWeights` has put the averages into its model; only it knows."""
    return isinstance(callback, keras.callbacks.SwapEMAWeights) and callback._ema_weights_in_model


def set_swapped(callback: Any, swapped: bool) -> None:
    """Tells a `SwapEMAWeights` whether the averages are in its model."""
    callback._ema_weights_in_model = swapped


def swap_averages(optimizer: Any) -> None:
    """Exchanges a model's weights and their averages, bit for bit.

    `SwapEMAWeights` does so by sums and differences on TensorFlow, which round.
    """
    for part in optimizer_parts(optimizer):
        if not part.built or not getattr(part, "use_ema", False):
            continue
        pairs = zip(part._trainable_variables, part._model_variables_moving_average, strict=True)
        for variable, average in pairs:
            if average is not None:
                held = keras.ops.copy(variable.value)
                variable.assign(average.value)
                average.assign(held)


def write_growth(callback: Any, epoch: int, parameters: int, headline: str | None) -> None:
    """Writes the size of a model, and a growth, where a `TensorBoard` writes its training.

    Its writer has no public name, and a second one would write a file of its own.
    """
    with callback._train_writer.as_default():
        callback.summary.scalar("params", parameters, step=epoch)
        if headline is not None:
            callback.summary.text("growth", headline, step=epoch)


def is_better_upwards(model: Any, monitor: str) -> bool | None:
    """Whether a metric is better the larger it is; `None` if nobody knows.

    Keras's own callbacks ask the metric for its `_direction`, which has no public name.
    """
    name = monitor.removeprefix("val_")
    if name == "loss":
        return False
    metrics = list(model.metrics)
    while metrics:
        metric = metrics.pop()
        held = getattr(metric, "metrics", None)
        if isinstance(held, (list, tuple)):
            metrics += held
        elif metric.name == name and getattr(metric, "_direction", None) in ("up", "down"):
            return bool(metric._direction == "up")
    return None
