"""Preprocessing layers inside a model."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from keras_net2net.inference import RuleCall, follows
from keras_net2net.rules.registry import register_rule
from keras_net2net.widths import Axes


@register_rule(layers.Rescaling)
def rescaling(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes units through where it scales by numbers; fixes them where by arrays."""
    if np.ndim(call.layer.scale) or np.ndim(call.layer.offset):
        call.fix(x, "scales by constants that belong to its units")
    return x


@register_rule(layers.Normalization)
def normalization(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Units follow with the statistics that were adapted; given constants fix them."""
    layer = call.layer
    kept = [x[axis] for axis in sorted(axis % len(x) for axis in layer.axis)]
    if layer.input_mean is not None:
        call.fix(kept, "normalizes with constants that belong to its units")
    else:
        call.weight("mean", *(follows(axis) for axis in kept))
        call.weight("variance", *(follows(axis) for axis in kept))
        call.weight("count")
    return x
