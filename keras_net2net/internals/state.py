"""The state that a rollback restores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_net2net.internals.optimizers import optimizer_parts
from keras_net2net.internals.variables import read_variable


def values_of(model: Any) -> list[tuple[Any, np.ndarray]]:
    """All variables of a model and its optimizer, and copies of their values.

    Training writes into the values that a growth leaves alone. An optimizer that holds
    others may not list their variables as its own.
    """
    found = {id(variable): variable for variable in model.variables}
    for part in optimizer_parts(model.optimizer) if model.optimizer is not None else ():
        found.update((id(variable), variable) for variable in part.variables)
    return [(variable, np.array(read_variable(variable))) for variable in found.values()]


def set_values(values: Iterable[tuple[Any, np.ndarray]]) -> None:
    """Gives variables their values back."""
    for variable, value in values:
        variable.assign(value)


def state_parts(thing: Any) -> list[Any]:
    """The objects whose attributes are the state of `thing`, itself first.

    Trackers (of layers and optimizers) keep sets of ids beside the lists.
    """
    tracker = getattr(thing, "_tracker", None)
    return [thing] if tracker is None else [thing, tracker]
