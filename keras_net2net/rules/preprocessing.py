"""Preprocessing layers inside a model."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from keras_net2net.rules.kinds import named
from keras_net2net.widths.expressions import Axes
from keras_net2net.widths.facts import follows
from keras_net2net.widths.registry import Refusal, opened, refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import ADDS, PASSES


@register_rule(layers.Rescaling)
def rescaling(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes units through where it scales by numbers; fixes them where by arrays."""
    if np.ndim(call.layer.scale) or np.ndim(call.layer.offset):
        call.fix(x, "scales by constants that belong to its units")
    elif float(call.layer.offset):
        call.treat(ADDS)
    else:
        call.treat(PASSES.but(factor=float(call.layer.scale)))
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


@register_rule(layers.Discretization, layers.Hashing)
def categories(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes | list[Axes]:
    """Passes units through where each becomes one integer; other outputs fix them."""
    if call.layer.output_mode != "int" or getattr(call.layer, "sparse", False):
        return Refusal(OCCUR)(call, x)
    return x


OCCUR = "marks or counts which values occur along an axis"

refuse(OCCUR, layers.CategoryEncoding)
refuse("crosses the values of several features", layers.HashedCrossing)
refuse("looks up values in a vocabulary", layers.IntegerLookup, layers.StringLookup)
refuse("splits texts into words", layers.TextVectorization)
refuse("transforms this axis into frequencies", *named("MelSpectrogram STFTSpectrogram", layers))
opened("Runs its layers one after the other.", *named("Pipeline", layers))
