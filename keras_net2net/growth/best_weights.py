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
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.growth.transaction import Transaction
from keras_net2net.planning.plan import Plan
from keras_net2net.widths.inference import infer
from keras_net2net.widths.reading import read

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

    def grow(self, model: Any, plan: Plan, stuck: Any) -> None:
        """Replays a growth on them.

        Args:
            model: The grown model.
            plan: What has been done to it.
            stuck: See `Draft`.
        """
        if not self._held:
            return
        names = _names(model, stuck)
        for callback, variables in self._held:
            known = {
                names.get(id(variable), f"{number}:"): value
                for number, (variable, value) in enumerate(
                    zip(variables, callback.best_weights, strict=True)
                )
            }
            kept = {id(variable): f"{number}:" for number, variable in enumerate(variables)}
            grown = plan.apply_to(known, partial=True)
            callback.best_weights = [
                _value(variable, grown, names.get(id(variable), kept.get(id(variable), "")))
                for variable in callback.model.weights
            ]


def _names(model: Any, stuck: Any) -> dict[int, str]:
    """How a plan names the variables of a model, by the `id` of the variable."""
    names: dict[int, str] = {}
    for facts in infer(read(model), {}, {}, stuck).facts.values():
        if isinstance(facts.operation, keras.Layer):
            for name, variable in internals.named_variables(facts.operation).items():
                names.setdefault(id(variable), f"{facts.path}/{name}")
    return names


def _value(variable: Any, grown: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The best value of a variable; the present one, if it had none."""
    return grown[name] if name in grown else keras.ops.convert_to_numpy(variable).copy()
