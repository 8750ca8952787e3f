"""Normalizations that keep units apart.

Those that normalize over the units (layer, group, RMS and unit normalization)
have no rule here: plain copies would change what they compute.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.inference import RuleCall, follows
from keras_net2net.rules.registry import register_rule
from keras_net2net.widths import Axes


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
    return x
