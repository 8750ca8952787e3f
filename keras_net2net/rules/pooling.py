"""Pooling: along space, each channel alone."""

from __future__ import annotations

from typing import Any

from keras_net2net.rules.kinds import channel_axis, of_all_ranks, with_space
from keras_net2net.widths.expressions import Axes
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import BENDS, PASSES, Joins, Treatment

POOLS = "pools along this axis"


def pooled(call: RuleCall) -> Treatment:
    """What pooling does to values: their largest one keeps the slope."""
    return PASSES if "Average" in type(call.layer).__name__ else BENDS


# The adaptive ones are new in Keras 3.13.
@register_rule(*of_all_ranks("MaxPooling AveragePooling AdaptiveMaxPooling AdaptiveAveragePooling"))
def pooling(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes channels through."""
    call.treat(pooled(call))
    return with_space(call, x, POOLS)


@register_rule(*of_all_ranks("GlobalMaxPooling GlobalAveragePooling"))
def global_pooling(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Passes channels through."""
    known = pooled(call)
    call.treat(known.but(joins=Joins.AVERAGE, factor=1.0) if known.is_linear else known)
    if call.layer.keepdims:
        return with_space(call, x, POOLS)
    at = channel_axis(call, len(x))
    call.fix([e for i, e in enumerate(x) if i not in (0, at)], POOLS)
    return (x[0], x[at])
