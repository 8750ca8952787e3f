"""Convolutions: the units are the channels."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.rules.activations import activate_made
from keras_net2net.rules.kinds import channel_axis, with_space
from keras_net2net.widths.expressions import Axes, Expression, Fixed, product
from keras_net2net.widths.facts import follows, makes, reads
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import MAKES_UNITS, SCALES, Treatment

SLIDES = "slides a kernel along this axis"


def _finish(
    call: RuleCall, x: Axes, units: Expression, treatment: Treatment = MAKES_UNITS
) -> Axes | None:
    output = with_space(call, x, SLIDES, units)
    layer = call.layer
    # The activation takes the last axis for the one that softmax runs over.
    return activate_made(call, output, layer.activation, x[:1], layer.use_bias, treatment)


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Makes `filters`; reads channels. Grouped: units follow with one channel to a group."""
    layer = call.layer
    channels = x[channel_axis(call, len(x))]
    if layer.groups > 1:
        return _grouped(call, x, channels)
    units = call.units("filters")
    call.weight("kernel", *call.setting("kernel_size"), reads(channels), makes(units))
    if layer.use_bias:
        call.weight("bias", makes(units))
    return _finish(call, x, units)


def _grouped(call: RuleCall, x: Axes, channels: Expression) -> Axes | None:
    """A grouped convolution: with one input channel to a group, its units follow."""
    layer = call.layer
    groups, filters = call.setting("groups"), call.setting("filters")
    if channels.size != groups:
        call.fix(channels, f"reads its channels in {groups} groups of several")
        units: Expression = call.units("filters")
        call.fix(units, f"makes its channels in {groups} groups, each of which reads several")
    else:
        units = product([channels, Fixed(filters // groups)])
        call.configure("groups", channels)
        call.configure("filters", units)
    per_group = (channels.size or groups) // groups
    call.weight("kernel", *call.setting("kernel_size"), per_group, follows(units))
    if layer.use_bias:
        call.weight("bias", follows(units))
    return _finish(call, x, units, SCALES)


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Makes `filters`; reads channels."""
    layer = call.layer
    if getattr(layer, "groups", 1) != 1:
        return None
    units = call.units("filters")
    channels = x[channel_axis(call, len(x))]
    call.weight("kernel", *call.setting("kernel_size"), makes(units), reads(channels))
    if layer.use_bias:
        call.weight("bias", makes(units))
    return _finish(call, x, units)


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Channels follow, each with its own kernels."""
    layer = call.layer
    channels = x[channel_axis(call, len(x))]
    multiplier = layer.depth_multiplier
    units = product([channels, Fixed(multiplier)])
    call.weight("kernel", *call.setting("kernel_size"), follows(channels), multiplier)
    if layer.use_bias:
        call.weight("bias", follows(units))
    return _finish(call, x, units, SCALES)


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Makes `filters`; the depthwise part follows the channels that the pointwise part reads."""
    layer = call.layer
    units = call.units("filters")
    channels = x[channel_axis(call, len(x))]
    multiplier = layer.depth_multiplier
    ones = (1,) * len(layer.kernel_size)
    call.weight("depthwise_kernel", *call.setting("kernel_size"), follows(channels), multiplier)
    middle = product([channels, Fixed(multiplier)])
    call.weight("pointwise_kernel", *ones, reads(middle), makes(units))
    if layer.use_bias:
        call.weight("bias", makes(units))
    return _finish(call, x, units)
