"""Activations: which act on each element alone, and which over an axis.

The properties of an activation function that growth needs stand in one table:
whether it acts per element, its range, and where it is the identity. Inserting
it after a block is exact where the block's range lies within what the function
leaves alone; `f(f(x)) = f(x)` is the case of a function after itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_net2net.facts import ADDS, KEEPS_ZERO, MAKES_UNITS, MAKES_ZERO, PASSES, follows
from keras_net2net.rule_call import RuleCall
from keras_net2net.rules.kinds import keeps_zero, zero_of_zero
from keras_net2net.rules.registry import register_rule
from keras_net2net.widths import Axes, Expression, Fixed

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
    "sigmoid": Activation((0.0, 1.0)),
    "hard_sigmoid": Activation((0.0, 1.0)),
    "sparse_sigmoid": Activation((0.0, 1.0)),
    "tanh": Activation((-1.0, 1.0)),
    "softsign": Activation((-1.0, 1.0)),
    "softplus": Activation(POSITIVE),
    "exponential": Activation(POSITIVE),
    "squareplus": Activation(POSITIVE),
    "sparse_plus": Activation(POSITIVE),
    "log_sigmoid": Activation((-math.inf, 0.0)),
    "elu": Activation(),
    "selu": Activation(),
    "celu": Activation(),
    "gelu": Activation(),
    "silu": Activation(),
    "hard_silu": Activation(),
    "mish": Activation(),
    "leaky_relu": Activation(),
    "soft_shrink": Activation(),
    "hard_shrink": Activation(),
    "tanh_shrink": Activation(),
    "threshold": Activation(),
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
        if function is getattr(keras.activations, name, None):
            return name
        if function is getattr(keras.ops, name, None):
            return name
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


def activate(call: RuleCall, x: Axes, function: Any) -> Axes | None:
    """Applies an activation to the output of a layer that has one inside.

    Args:
        call: The call.
        x: The axes before the activation.
        function: The activation function, or layer.

    Returns:
        The axes after it, or `None` if it is unknown what it does.
    """
    if isinstance(function, keras.Layer):
        return call.apply(function, x)
    name = activation_name(function)
    if name in ELEMENTWISE:
        zero = zero_of_zero(function, [x])
        call.treat(PASSES if name == "linear" else KEEPS_ZERO if zero else None)
        return x
    if name in OVER_AN_AXIS:
        why = f"normalizes over its units with {name}"
        if name == "sparsemax":  # a new class may take all from some of the old ones
            call.fix(x[-1], why)
        else:
            call.compete(x[-1], str(name), why)
        return x
    followed = call.follow(function, x)
    if followed is not None:
        call.treat(None)
        return followed
    label = getattr(function, "__name__", type(function).__name__)
    call.fix(x, f"has the activation {label!r}, of which it isn't known that it acts per element")
    return x


def activate_made(
    call: RuleCall, x: Axes, function: Any, beside: Sequence[Expression], bias: bool
) -> Axes | None:
    """Applies the activation of a layer that makes units, linear in its weights before it.

    Args:
        call: The call.
        x: The axes before the activation.
        function: The activation function, or layer.
        beside: The axes, of those that the layer is given, that it passes through.
        bias: Whether it adds something to the units on these.

    Returns:
        The axes after it, or `None` if it is unknown what it does.
    """
    output = activate(call, x, function)
    made = {PASSES: MAKES_UNITS, KEEPS_ZERO: MAKES_ZERO}
    others = {PASSES: ADDS} if bias else {PASSES: PASSES, KEEPS_ZERO: KEEPS_ZERO}
    done = call.treatment or ""
    call.treat(made.get(done), beside, others.get(done))
    return output


@register_rule(layers.Activation)
def activation(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Passes units through where the function acts per element; softmax and its like fix them."""
    return activate(call, x, call.layer.activation)


@register_rule(layers.Softmax)
def softmax(call: RuleCall, x: Axes, mask: Any = None, **kwargs: Any) -> Axes:
    """Fixes the units that it normalizes over, and passes the others through."""
    axis = call.layer.axis
    for at in axis if isinstance(axis, (list, tuple)) else (axis,):
        call.compete(x[at], "softmax", "normalizes over its units with softmax")
    return x


@register_rule(layers.PReLU)
def prelu(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes units through; each keeps its slope, on all axes that aren't shared."""
    shared = call.layer.shared_axes or ()
    alpha = [Fixed(1) if i in shared else axis for i, axis in enumerate(x) if i > 0]
    call.weight("alpha", *(follows(axis) for axis in alpha))
    call.treat(KEEPS_ZERO)
    return x


register_rule(layers.LeakyReLU, layers.ELU)(keeps_zero)


@register_rule(layers.ReLU)
def relu(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes units through: every element alone, at its place."""
    call.treat(KEEPS_ZERO if float(call.layer.threshold) == 0.0 else None)
    return x
