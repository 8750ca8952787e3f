"""Variables: which are a layer's own, their names, and new values of other shapes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def own_variables(layer: Any) -> list[Any]:
    """The variables of a layer itself, without its sublayers and random seeds.

    `layer.variables` mixes them all; a rule speaks of the layer's own.
    """
    seen: dict[int, Any] = {}
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        seen.setdefault(id(variable), variable)
    return list(seen.values())


def own_trainable(layer: Any) -> list[Any]:
    """The variables of a layer itself that are trained while it is trainable."""
    return list(layer._trainable_variables)


def named_variables(layer: Any) -> dict[str, Any]:
    """The variables of a layer itself by name, and the states that a recurrent one keeps.

    Variables that share a name get a number.
    """
    named: dict[str, Any] = {}
    for variable in own_variables(layer):
        name, number = variable.name, 1
        while name in named:
            number += 1
            name = f"{variable.name}_{number}"
        named[name] = variable
    return {**named, **recurrent_states(layer)}


def recurrent_states(layer: Any) -> dict[str, Any]:
    """The states that a recurrent layer keeps from batch to batch.

    They are all called `rnn_state`, and aren't tracked: no weights, no parameters.
    """
    states = getattr(layer, "states", None)
    if states is None or not (isinstance(layer, keras.layers.RNN) or hasattr(layer, "cell")):
        return {}
    flat = enumerate(keras.tree.flatten(states))
    return {f"state_{i}": state for i, state in flat if isinstance(state, keras.Variable)}


def set_variable(variable: Any, value: Any) -> None:
    """Gives a variable a value of another shape.

    `assign` wants the old shape. `_initialize` is what a new variable runs on
    each backend, with the layout that a distribution gave it, so the variable
    keeps its identity, name, regularizer and constraint.
    """
    value = variable._convert_to_tensor(value, dtype=variable._dtype)
    trainable = variable._trainable
    if keras.backend.backend() == "tensorflow":
        # Its variables are watched, or not, as they were made: one that is frozen now
        # must have a gradient once it no longer is.
        variable._trainable = bool(variable._value.trainable)
    try:
        variable._initialize(value)
    finally:
        variable._trainable = trainable
    if keras.backend.backend() == "tensorflow" and hasattr(variable._value, "values"):
        # Under `tf.distribute` all workers are given the first one's value when a variable
        # is made. What is each worker's own, as moving statistics are, has to stay so.
        variable._value.assign(value)
    variable._shape = tuple(value.shape)
    variable._ndim = len(variable._shape)


def read_variable(variable: Any) -> np.ndarray:
    """The value of a variable as an array, without a copy where the backend allows it.

    `variable.numpy()` always copies, and under mixed precision may cast.
    """
    value = variable._value
    if keras.backend.backend() == "torch":
        value = value.detach()
        return (
            value.cpu().numpy() if value.dtype.itemsize != 2 else keras.ops.convert_to_numpy(value)
        )
    if keras.backend.backend() == "tensorflow" and hasattr(value, "read_value"):
        value = value.read_value()
    return np.asarray(value)
