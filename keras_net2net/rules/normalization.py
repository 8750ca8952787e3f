"""Normalizations: those that keep units apart, and those over the units.

A normalization over the units sees them together. It computes the same if all are
copied equally often, or if what is added holds the mean of the others (which layer
normalization subtracts) or zero (which a sum of squares doesn't see), with gamma
and epsilon scaled by how many units there are in the mean.

Source: Wang et al.: LEMON (ICLR 2024, arXiv:2310.07999), section 4.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.widths.expressions import Axes, product
from keras_net2net.widths.facts import Scaled, follows
from keras_net2net.widths.registry import refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import (
    KEEPS_ZERO,
    NORMALIZES,
    RESCALES,
    SHIFTS,
    STANDARDIZES,
)
from keras_net2net.widths.unification import regroup


@register_rule(layers.BatchNormalization)
def batch_normalization(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Units follow with scale, offset and statistics."""
    layer = call.layer
    # The statistics of a batch are taken over the other axes, where copies would weigh.
    others = [units for i, units in enumerate(x) if i != layer.axis % len(x)]
    call.fix(others, "takes statistics over this axis")
    units = follows(x[layer.axis])
    if layer.center:
        call.weight("beta", units)
    if layer.scale:
        call.weight("gamma", units)
    call.weight("moving_mean", units)
    call.weight("moving_variance", units)
    if getattr(layer, "renorm", False):
        for name in ("moving_stddev", "renorm_mean", "renorm_stddev"):
            call.weight(name, units)
    if layer.scale:
        call.treat(STANDARDIZES, weights=_learned(layer))
    else:
        call.treat(SHIFTS, weights=["moving_mean", *_learned(layer)])
    return x


def _learned(layer: Any) -> list[str]:
    """The scale and the offset of a normalization, of those that it has."""
    return ["gamma"] * bool(layer.scale) + ["beta"] * bool(layer.center)


def _axes(layer: Any, rank: int) -> list[int]:
    axis = layer.axis
    return sorted(at % rank for at in (axis if isinstance(axis, (list, tuple)) else [axis]))


@register_rule(layers.LayerNormalization)
def layer_normalization(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Units follow in whole multiples, or at any size where their mean can fill up."""
    layer = call.layer
    if getattr(layer, "rms_scaling", False):
        return None  # divides by the variance, not by its root
    axes = _axes(layer, len(x))
    whole = product([x[at] for at in axes])
    single = len(axes) == 1
    scale = Scaled(whole, 0.5) if single else None
    if layer.scale:
        call.weight("gamma", *(follows(x[at]) for at in axes), scale=scale)
    if layer.center:
        call.weight("beta", *(follows(x[at], silent=True) for at in axes))
    if single:
        call.configure("epsilon", Scaled(whole, 1.0))
    call.normalize(whole, "mean" if single and layer.scale else None)
    others = [axis for at, axis in enumerate(x) if at not in axes]
    # Without a scale, the offset alone doesn't make what comes out.
    call.treat(NORMALIZES, others, weights=_learned(layer) if layer.scale else ())
    return x


@register_rule(layers.RMSNormalization)
def rms_normalization(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Units follow in whole multiples, or at any size where zeros can fill up."""
    axes = _axes(call.layer, len(x))
    whole = product([x[at] for at in axes])
    single = len(axes) == 1
    scale = Scaled(whole, 0.5) if single else None
    call.weight("scale", *(follows(x[at]) for at in axes), scale=scale)
    if single:
        call.configure("epsilon", Scaled(whole, 1.0))
    call.normalize(whole, "zero" if single else None)
    call.treat(RESCALES)
    return x


@register_rule(layers.GroupNormalization)
def group_normalization(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Units follow in whole multiples within each group; alone in its group, each follows."""
    layer = call.layer
    units = x[layer.axis]
    groups = call.setting("groups")
    if layer.scale:
        call.weight("gamma", follows(units))
    if layer.center:
        call.weight("beta", follows(units))
    # The statistics of a group are taken over space as well.
    others = [axis for i, axis in enumerate(x) if i not in (0, layer.axis % len(x))]
    call.fix(others, "takes statistics over this axis")
    call.treat(STANDARDIZES, weights=_learned(layer) if layer.scale else ())
    if groups in (-1, units.size):
        call.configure("groups", -1 if groups == -1 else units)
        return x
    parts = regroup([units], [groups, (units.size or groups) // groups])
    if parts is None:
        return None
    call.fix(parts[0], f"divides its channels into {groups} groups")
    call.normalize(parts[1], None)
    return x


@register_rule(layers.UnitNormalization)
def unit_normalization(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Units follow where zeros can fill up: copies would add to the norm."""
    for at in _axes(call.layer, len(x)):
        call.normalize(x[at], "zero", copies=False)
    call.treat(KEEPS_ZERO)
    return x


refuse(
    "divides by the largest singular value of its kernel, which copies change",
    layers.SpectralNormalization,
)
