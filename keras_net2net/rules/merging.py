"""Layers that merge branches."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.rules.kinds import broadcast, has_units, of_elements
from keras_net2net.widths.expressions import Axes, Expression, Fixed, concat
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import ANYTHING, CONTRACTS, KEEPS_ZERO, PASSES, Joins


@register_rule(
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
def merge(call: RuleCall, inputs: list[Axes], **kwargs: Any) -> Axes:
    """Ties the units of all inputs; an axis of size 1 is broadcast and ties nothing."""
    ranks = {len(x) for x in inputs}
    if len(ranks) > 1:
        # Keras puts the missing axes behind the batch, not in front of it.
        rank = max(ranks)
        inputs = [(*x[:1], *(Fixed(1),) * (rank - len(x)), *x[1:]) for x in inputs]
    limit = KEEPS_ZERO if all(map(has_units, inputs)) else ANYTHING  # of zeros
    call.treat(of_elements(type(call.layer).__name__.lower(), inputs) or limit)
    return broadcast(call, inputs)


@register_rule(layers.Concatenate)
def concatenate(call: RuleCall, inputs: list[Axes], **kwargs: Any) -> Axes:
    """Puts units one after the other; ties those on the other axes."""
    return join(call, inputs, call.layer.axis)


def join(call: RuleCall, inputs: list[Axes], axis: int) -> Axes:
    """The axes of tensors put one after the other along `axis`."""
    axis %= len(inputs[0])
    base = PASSES if all(map(has_units, inputs)) else ANYTHING
    call.treat(base.but(joins=Joins.CONCATENATION, factor=1.0))
    result: list[Expression] = []
    for i, column in enumerate(zip(*inputs, strict=True)):
        if i == axis:
            result.append(concat(column))
            continue
        known = sorted(column, key=lambda e: e.size is None)
        for other in known[1:]:
            call.unify(known[0], other)
        result.append(known[0])
    return tuple(result)


@register_rule(layers.Dot)
def dot(call: RuleCall, inputs: list[Axes], **kwargs: Any) -> Axes:
    """Passes the units of both sides through; fixes those that it multiplies and sums."""
    first, second = inputs
    call.treat(CONTRACTS)
    axes = call.layer.axes
    pair = (axes, axes) if isinstance(axes, int) else tuple(axes)
    at, of = pair[0] % len(first), pair[1] % len(second)
    call.fix([first[at], second[of]], "sums the products along this axis")
    call.unify(first[0], second[0])
    result = (*first[:at], *first[at + 1 :], *(e for i, e in enumerate(second) if i not in (0, of)))
    return result if len(result) > 1 else (*result, Fixed(1))
