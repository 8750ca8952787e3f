"""Layers that move units to other axes, or space around them."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.rules.kinds import of_all_ranks, with_space
from keras_net2net.widths.expressions import Axes, Expression, Fixed, product
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import MOVES, PASSES
from keras_net2net.widths.unification import regroup


@register_rule(layers.Flatten)
def flatten(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Multiplies units by the space around them."""
    rest = x[1:]
    if call.layer.data_format == "channels_first" and len(x) > 1:
        rest = (*x[2:], x[1])  # Keras moves the channels to the end first
    call.treat(MOVES)
    return (x[0], product(rest))


@register_rule(layers.Reshape)
def reshape(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Regroups units; those of a split axis become factors."""
    call.treat(MOVES)
    shape = call.output_shapes[0]
    groups = regroup(x[1:], list(shape[1:]))
    if groups is None:
        return None
    target = call.setting("target_shape")
    call.configure(
        "target_shape",
        tuple(-1 if old == -1 else axis for old, axis in zip(target, groups, strict=True)),
    )
    return (x[0], *groups)


@register_rule(layers.Permute)
def permute(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Moves units to other axes."""
    call.treat(MOVES)
    return (x[0], *(x[axis] for axis in call.layer.dims))


@register_rule(layers.RepeatVector)
def repeat_vector(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes units through."""
    repeated: Expression = Fixed(call.layer.n)
    call.treat(MOVES)
    return (x[0], repeated, x[1])


@register_rule(*of_all_ranks("ZeroPadding Cropping UpSampling"))
def spatial(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes channels through."""
    # Padding puts zeros beside the values, and two dimensions may be interpolated.
    plain = (*of_all_ranks("Cropping"), layers.UpSampling1D, layers.UpSampling3D)
    call.treat(MOVES if isinstance(call.layer, plain) else PASSES)
    return with_space(call, x, "pads, crops or repeats along this axis")
