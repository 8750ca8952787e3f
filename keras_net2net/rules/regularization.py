"""Dropout and noise: each unit alone, so that they follow whatever comes in."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.rules.kinds import of_all_ranks, passes
from keras_net2net.widths.expressions import Axes
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import UNCHANGED

DROPS = UNCHANGED.but(drops=True)
BLURS = UNCHANGED.but(blurs=True)

register_rule(layers.ActivityRegularization)(passes())
register_rule(*of_all_ranks("SpatialDropout"))(passes(DROPS))
register_rule(layers.GaussianDropout)(passes(UNCHANGED.but(drops=True, spreads=True)))
register_rule(layers.GaussianNoise)(passes(BLURS))


@register_rule(layers.Dropout, layers.AlphaDropout)
def dropout(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes | None:
    """Passes units through; a `noise_shape` follows them."""
    shape = call.setting("noise_shape")
    if shape is not None:
        if len(shape) != len(x):
            return None
        call.configure(
            "noise_shape",
            tuple(
                axis if size is not None and size == axis.size != 1 else size
                for size, axis in zip(shape, x, strict=True)
            ),
        )
    call.treat(DROPS if isinstance(call.layer, layers.Dropout) else BLURS)
    return x
