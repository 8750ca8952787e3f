"""Compiled losses and metrics, once an output of the model has become larger.

Most of them take outputs of any size. Some hold the number of classes: in their
configuration, as `MeanIoU` does, or only in the shape of a state that they make when they
first see an output, as `F1Score` does. These stay the same objects, and become what their
configuration with the new number makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.graph.structure import Shape
from keras_net2net.growth.history import Growth
from keras_net2net.growth.transaction import Transaction

# Config keys that hold a number of classes, and those that hold a number for each class.
COUNTS = ("num_classes", "num_labels", "n_classes", "n_labels", "classes")
FOR_EACH = ("alpha", "class_weight", "class_weights", "label_weights")

Sizes = Mapping[int, tuple[int, int]]


class CompiledParts:
    """What a model was compiled with: losses, metrics, and the functions that Keras made.

    Args:
        model: The model.
        transaction: Remembers what is changed.
    """

    def __init__(self, model: Any, transaction: Transaction) -> None:
        self._model = model
        self._transaction = transaction

    def follow(self, growth: Growth) -> tuple[str, ...]:
        """Lets losses and metrics follow outputs that are larger, and functions be made anew."""
        sizes: dict[int, tuple[int, int]] = {}
        for change in growth.plan.outputs:
            first = sizes.get(change.output, (change.remap.old_size, 0))[0]
            sizes[change.output] = (first, change.remap.size)
        notes = [] if not sizes else self._updated(sizes, growth.output_shapes)
        internals.forget_functions(self._model)
        return tuple(notes)

    def _updated(self, sizes: Sizes, shapes: Sequence[Shape]) -> list[str]:
        notes = []
        with internals.variable_scope(self._model):
            for thing, output in internals.compiled_parts(self._model):
                concerned = {at: pair for at, pair in sizes.items() if output in (at, None)}
                example = shapes[min(concerned or sizes)]
                notes.append(_update(thing, concerned, example, self._transaction))
        return [note for note in notes if note is not None]


def _update(thing: Any, sizes: Sizes, shape: Shape, transaction: Transaction) -> str | None:
    """Brings one loss or metric up to date, and says what was done."""
    try:
        config = thing.get_config()
    except Exception:
        config = {}
    kind = type(thing).__name__
    name = f"{thing.name!r} ({kind})"
    pairs = sorted(set(sizes.values()))
    changed = _changed(config, pairs)
    state = [tuple(v.shape) for v in getattr(thing, "variables", ())]
    sized = any(old in shape for shape in state for old, _ in pairs)
    if not changed and not sized:
        return None
    try:
        twin = type(thing).from_config({**config, **changed})
    except Exception:
        twin = None
    # A state that is made when a metric first sees an output has the size of that output.
    late = twin is not None and bool(state) and len(twin.variables) < len(state)
    if twin is None or not (changed or late):
        # Of Keras's own, all that count classes say so; the size may be that of thresholds.
        own = type(thing).__module__.startswith("keras.")
        return None if own else _unknown(name)
    if late:
        _show(twin, shape)
    transaction.remember(thing)
    internals.become(thing, twin)
    what = ", ".join(f"{key}={_short(value)}" for key, value in changed.items())
    if isinstance(thing, keras.Metric):
        made = f" with {what}" if what else ""
        return f"the metric {name} was made anew{made}, and counts from zero"
    return f"the loss {name} goes on with {what}: new classes get the mean of the others"


def _show(metric: Any, shape: Shape) -> None:
    """Lets a metric make its state: on JAX, it can't do so in a compiled step."""
    zeros = keras.ops.zeros([size or 1 for size in shape])
    metric.update_state(zeros, zeros)
    metric.reset_state()


def _unknown(name: str) -> str:
    return (
        f"{name} holds something of the size of the old output, and its configuration doesn't say "
        "whether it counts classes: compile the model again if it does"
    )


def _changed(config: Mapping[str, Any], pairs: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """The entries of a configuration that follow from the number of classes."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        for old, new in pairs:
            if key in COUNTS and type(value) is int and value == old:
                changed[key] = new
            elif key in FOR_EACH and isinstance(value, (list, tuple)) and len(value) == old:
                mean = float(np.mean(value))
                changed[key] = [*value, *([mean] * (new - old))]
    return changed


def _short(value: Any) -> Any:
    return f"{len(value)} numbers" if isinstance(value, list) else value
