"""What is known of Keras's own activations: names, ranges, and where each is the identity.

The properties of an activation function that growth needs stand in one table:
whether it acts per element, its range, and where it is the identity. Inserting
it after a block is exact where the block's range lies within what the function
leaves alone; `f(f(x)) = f(x)` is the case of a function after itself.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
from keras import layers

from keras_net2net.internals.operations import is_keras_operation
from keras_net2net.internals.variables import read_variable

ACTIVATION_LAYERS = (
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ELU,
    layers.Softmax,
)
Interval = tuple[float, float]
REALS: Interval = (-math.inf, math.inf)
NOTHING: Interval = (math.inf, -math.inf)


@dataclasses.dataclass(frozen=True)
class Activation:
    """What is known of an activation function that acts per element.

    Args:
        values: The interval that its values lie in.
        identity: The interval in which it returns its argument; empty for most.
    """

    values: Interval = REALS
    identity: Interval = NOTHING

    def leaves_alone(self, other: Activation) -> bool:
        """Whether this function after `other` changes nothing."""
        low, high = other.values
        return self.identity[0] <= low and high <= self.identity[1]


POSITIVE: Interval = (0.0, math.inf)
ELEMENTWISE: dict[str, Activation] = {
    "linear": Activation(REALS, REALS),
    "relu": Activation(POSITIVE, POSITIVE),
    "relu6": Activation((0.0, 6.0), (0.0, 6.0)),
    "hard_tanh": Activation((-1.0, 1.0), (-1.0, 1.0)),
    **dict.fromkeys(("sigmoid", "hard_sigmoid", "sparse_sigmoid"), Activation((0.0, 1.0))),
    **dict.fromkeys(("tanh", "softsign"), Activation((-1.0, 1.0))),
    **dict.fromkeys(("softplus", "exponential", "squareplus", "sparse_plus"), Activation(POSITIVE)),
    "log_sigmoid": Activation((-math.inf, 0.0)),
    **dict.fromkeys(("elu", "selu", "celu", "gelu", "silu", "hard_silu", "mish"), Activation()),
    **dict.fromkeys(("leaky_relu", "soft_shrink", "hard_shrink", "tanh_shrink"), Activation()),
    "threshold": Activation(),
}
Piece = tuple[float, float, Any, Any]  # from, to, slope, value at zero of its line
STRAIGHT: dict[str, list[Piece]] = {
    "linear": [(-math.inf, math.inf, 1.0, 0.0)],
    "relu": [(0.0, math.inf, 1.0, 0.0)],
    "relu6": [(0.0, 6.0, 1.0, 0.0), (6.0, math.inf, 0.0, 6.0)],
    "hard_tanh": [(-math.inf, -1.0, 0.0, -1.0), (-1.0, 1.0, 1.0, 0.0), (1.0, math.inf, 0.0, 1.0)],
    "hard_sigmoid": [(-3.0, 3.0, 1 / 6, 0.5), (3.0, math.inf, 0.0, 1.0)],
}
OVER_AN_AXIS = ("softmax", "log_softmax", "sparsemax")


def activation_name(function: Any) -> str | None:
    """The name of one of Keras's own activation functions, or `None`.

    The function itself is compared, not its name: a user's function called
    `relu` may do anything.
    """
    if function is None:
        return "linear"
    for name in (*ELEMENTWISE, *OVER_AN_AXIS):
        if any(function is getattr(home, name, None) for home in (keras.activations, keras.ops)):
            return name
    return None


def activation_of(operation: Any) -> Any | None:
    """The activation that an operation computes, as a function or layer; `None` if it is none."""
    if isinstance(operation, layers.Activation):
        return operation.activation
    if isinstance(operation, (layers.ReLU, layers.LeakyReLU, layers.ELU)):
        return operation
    return function_of(operation)


def function_of(operation: Any) -> Any | None:
    """The activation function that an operation of `keras.ops` is a call of, or `None`."""
    if not is_keras_operation(operation):
        return None
    kind = type(operation).__name__.replace("_", "").lower()
    for name in (*ELEMENTWISE, *OVER_AN_AXIS):
        if name.replace("_", "") == kind:
            return getattr(keras.activations, name, None)
    return None


def describe(operation: Any) -> Activation | None:
    """What is known of an activation given as a function or as a layer."""
    if isinstance(operation, layers.Activation):
        return describe(operation.activation)
    if isinstance(operation, layers.ReLU):
        return _describe_relu(operation)
    if isinstance(operation, keras.Layer):
        return Activation() if type(operation) in (layers.LeakyReLU, layers.ELU) else None
    name = activation_name(operation)
    return None if name is None else ELEMENTWISE.get(name)


def _describe_relu(layer: layers.ReLU) -> Activation:
    """`ReLU` with its parameters: a clipped ramp that may be shifted or leak."""
    high = math.inf if layer.max_value is None else float(layer.max_value)
    if layer.negative_slope:
        return Activation((-math.inf, high))
    threshold = float(layer.threshold)
    if threshold == 0.0:
        return Activation((0.0, high), (0.0, high))
    return Activation((min(0.0, threshold), high))


def straight_lines(function: Any, units: int) -> list[Piece] | None:
    """The straight lines that an activation is made of, or `None`; elsewhere it is zero."""
    if isinstance(function, layers.Activation):
        return straight_lines(function.activation, units)
    if type(function) is layers.ReLU:
        high = math.inf if function.max_value is None else float(function.max_value)
        slope, threshold = float(function.negative_slope), float(function.threshold)
        middle: list[Piece] = [(-math.inf, threshold, slope, -slope * threshold)]
        middle.append((threshold, high, 1.0, 0.0))
        return middle if high == math.inf else [*middle, (high, math.inf, 0.0, high)]
    if type(function) is layers.LeakyReLU:
        return [(-math.inf, 0.0, float(function.negative_slope), 0.0), (0.0, math.inf, 1.0, 0.0)]
    if type(function) is layers.PReLU and function.built:
        alpha = read_variable(function.alpha).astype("float64")
        if alpha.size != units:  # slopes of every place, not of every channel
            return None
        return [(-math.inf, 0.0, alpha.reshape(-1), 0.0), (0.0, math.inf, 1.0, 0.0)]
    if isinstance(function, keras.Layer):
        return None
    return STRAIGHT.get(activation_name(function) or "")


def is_linear(activation: Any) -> bool:
    """Whether an activation is the linear one."""
    function = activation.activation if isinstance(activation, layers.Activation) else activation
    return not isinstance(function, keras.Layer) and activation_name(function) == "linear"


def activation_label(activation: Any) -> str:
    """A short name for an activation, fit for a layer's name."""
    function = getattr(activation, "activation", activation)
    if isinstance(function, str):
        return function
    name = None if isinstance(function, keras.Layer) else activation_name(function)
    return name or type(function).__name__.lower()
