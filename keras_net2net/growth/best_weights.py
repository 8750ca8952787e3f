"""The other callbacks of a `fit`: what they hold of a model grows with it.

`EarlyStopping` holds the best weights, which are restored once the model may have
grown: the plan is replayed on them. `SwapEMAWeights` puts the averages of the
optimizer into the model and its weights into the optimizer: they change places
while the model grows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.growth.history import Growth
from keras_net2net.growth.transaction import Transaction

# How `EarlyStopping` names them, and so those who write a callback like it.
_BEST = ("best_weights", "best", "best_epoch")


def callbacks_of(given: Any = None) -> list[Any]:
    """The callbacks of a `fit`, in the order in which they are called.

    Args:
        given: A callback, a list of callbacks or a `keras.callbacks.CallbackList`.
            Defaults to `None`: those of the running `fit`, if one of them is calling.

    Returns:
        The callbacks; those in a `CallbackList` stand for it.

    Raises:
        GrowthError: If something given is no callback.
    """
    if given is None:
        return internals.running_callbacks()
    found = []
    for one in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(one, keras.callbacks.CallbackList):
            found += callbacks_of(list(one.callbacks))
        elif isinstance(one, (list, tuple)):
            found += callbacks_of(one)
        elif isinstance(one, keras.callbacks.Callback):
            found.append(one)
        else:
            raise GrowthError(
                "The callbacks can't be looked at",
                "a callback, a list of callbacks or a `CallbackList` is needed",
                "Pass the callbacks of your training loop, or `None` for those of a `fit`",
                received=f"{one!r} (of type {type(one).__name__})",
            )
    return found


def concerned(callbacks: Sequence[Any], model: Any) -> list[Any]:
    """Those callbacks whose model is, holds or is part of the one that grows."""
    known = set(map(id, model.weights))
    return [
        callback
        for callback in callbacks
        if any(id(w) in known for w in getattr(getattr(callback, "model", None), "weights", ()))
    ]


@contextlib.contextmanager
def own_weights(callbacks: Sequence[Any]) -> Iterator[None]:
    """Lets models have their own weights, where a callback has put averages into them."""
    swapped = [callback for callback in callbacks if internals.has_swapped(callback)]
    for callback in swapped:
        internals.swap_averages(callback.model.optimizer)
        internals.set_swapped(callback, False)
    try:
        yield
    finally:
        for callback in reversed(swapped):
            internals.swap_averages(callback.model.optimizer)
            internals.set_swapped(callback, True)


class BestWeights:
    """The best weights that callbacks hold; made before the model grows.

    Args:
        callbacks: The callbacks.
        transaction: Remembers what they hold.
    """

    def __init__(self, callbacks: Sequence[Any], transaction: Transaction) -> None:
        self._held = []
        for callback in callbacks:
            held = {name: vars(callback)[name] for name in _BEST if name in vars(callback)}
            if "best_weights" not in held:
                continue
            # As a whole: a best value belongs to the weights that reached it.
            transaction.on_roll_back(functools.partial(vars(callback).update, held))
            variables = list(callback.model.weights)
            if held["best_weights"] is not None and len(held["best_weights"]) == len(variables):
                self._held.append((callback, variables))

    def follow(self, growth: Growth) -> tuple[str, ...]:
        """Replays a growth on them; where there is no best value, the present one is it."""
        for callback, variables in self._held:
            # What the growth doesn't know, such as a head around the model, keeps its value.
            names = {id(v): f"{number}:" for number, v in enumerate(variables)} | growth.paths
            pairs = zip(variables, callback.best_weights, strict=True)
            best = growth.plan.apply_to({names[id(v)]: value for v, value in pairs}, partial=True)
            callback.best_weights = [
                best[names[id(v)]]
                if names.get(id(v)) in best
                else keras.ops.convert_to_numpy(v).copy()
                for v in callback.model.weights
            ]
        return ()
