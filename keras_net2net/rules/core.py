"""Dense, Embedding and the layers that do nothing to units."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.inference import RuleCall, makes, reads
from keras_net2net.rules.activations import activate
from keras_net2net.rules.kinds import same
from keras_net2net.rules.registry import register_rule
from keras_net2net.widths import Axes


@register_rule(layers.Dense)
def dense(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Makes `units`; reads those on the last axis."""
    units = call.units("units")
    call.weight("kernel", reads(x[-1]), makes(units))
    if call.layer.use_bias:
        call.weight("bias", makes(units))
    return activate(call, (*x[:-1], units), call.layer.activation)


@register_rule(layers.Embedding)
def embedding(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Makes `output_dim` units for each entry of its table."""
    units = call.units("output_dim")
    call.fix(x, "looks up the values on this axis in a table")
    call.weight("embeddings", call.layer.input_dim, makes(units))
    return (*x, units)


register_rule(layers.Identity)(same)
