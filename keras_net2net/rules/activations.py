"""Activations: which act on each element alone, and which over an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_net2net.internals.activations import ELEMENTWISE, OVER_AN_AXIS, activation_name
from keras_net2net.rules.kinds import tried
from keras_net2net.widths.expressions import Axes, Expression, Fixed
from keras_net2net.widths.facts import follows
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import (
    ADDS,
    ANYTHING,
    COMPETES,
    KEEPS_ZERO,
    MAKES_UNITS,
    SQUASHES,
    UNCHANGED,
    Treatment,
)


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
        known = {"linear": UNCHANGED, "sigmoid": SQUASHES}
        call.treat(known.get(str(name)) or tried(function, [x]))
        return x
    if name in OVER_AN_AXIS:
        why = f"normalizes over its units with {name}"
        if name == "sparsemax":  # a new class may take all from some of the old ones
            call.fix(x[-1], why)
        else:
            call.compete(x[-1], str(name), why)
            call.treat(COMPETES)
        return x
    call.treat(ANYTHING)
    followed = call.follow(function, x)
    if followed is not None:
        return followed
    label = getattr(function, "__name__", type(function).__name__)
    call.fix(x, f"has the activation {label!r}, of which it isn't known that it acts per element")
    return x


def activate_made(
    call: RuleCall,
    x: Axes,
    function: Any,
    beside: Sequence[Expression],
    bias: bool,
    made: Treatment = MAKES_UNITS,
    weights: Sequence[str] | None = None,
) -> Axes | None:
    """Applies the activation of a layer that makes units, linear in its weights before it.

    Args:
        call: The call.
        x: The axes before the activation.
        function: The activation function, or layer.
        beside: The axes, of those that the layer is given, that it passes through.
        bias: Whether it adds something to the units on these.
        made: What it does in front of the activation. Defaults to making units.
        weights: As for `RuleCall.treat`.

    Returns:
        The axes after it, or `None` if it is unknown what it does.
    """
    output = activate(call, x, function)
    done = call.treatment
    others = done if not bias else ADDS if done.is_linear else ANYTHING
    call.treat(made.then(done), beside, others, weights=weights)
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
    call.treat(COMPETES)
    return x


@register_rule(layers.PReLU)
def prelu(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes units through; each keeps its slope, on all axes that aren't shared."""
    shared = call.layer.shared_axes or ()
    alpha = [Fixed(1) if i in shared else axis for i, axis in enumerate(x) if i > 0]
    call.weight("alpha", *(follows(axis) for axis in alpha))
    call.treat(KEEPS_ZERO)
    return x


@register_rule(layers.ReLU, layers.LeakyReLU, layers.ELU)
def relu(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes units through: every element alone, at its place."""
    call.treat(tried(call.layer, [x]))
    return x
