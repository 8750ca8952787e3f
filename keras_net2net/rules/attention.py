"""Attention: heads, key and value dimensions, and the stream that it reads and makes.

Copies of a head compute the same, and the projection of the output shares what
reads them. The units of keys and queries are summed over in the scores: there the
queries hold the shares, and the factor `1 / sqrt(key_dim)` stays what it was by a
factor in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keras import layers

from keras_net2net import internals
from keras_net2net.widths.expressions import Axes, Expression, is_axes, product
from keras_net2net.widths.facts import Scaled, reads
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import MAKES_UNITS, PASSES

ATTENDS = PASSES.but(attends=True)


@register_rule(layers.MultiHeadAttention)
def multi_head_attention(
    call: RuleCall, query: Axes, value: Axes, key: Axes | None = None, *rest: Any, **kwargs: Any
) -> Any:
    """Makes heads, key and value dimensions, and the units of its output; reads its inputs."""
    parts = internals.attention_of(call.layer)
    _fix_masks(call, rest, kwargs)
    projected = call.apply(parts.query, query)
    keys = call.apply(parts.key, value if key is None else key)
    values = call.apply(parts.value, value)
    if projected is None or keys is None or values is None or len(query) != len(value):
        return None
    axes = parts.axes or range(1, len(query) - 1)
    _attend(call, query, key or value, value, axes, _is_causal(rest, kwargs))
    for other in (keys, values):
        call.unify(projected[-2], other[-2], "has as many heads")
    call.unify(projected[-1], keys[-1], "compares keys and queries")
    if internals.attention_has_one_size() and projected[-1].size == values[-1].size:
        # Its attention computes with one size for both, whatever the layer could do.
        call.unify(projected[-1], values[-1], "has keys and values of one size on JAX")
    attended = (*projected[:-1], values[-1])
    output = _project(call, parts, attended, query)
    if output is None:
        return None
    _keep_scale(call, parts, projected[-1])
    for name, expression in (
        ("heads", projected[-2]),
        ("key_dim", projected[-1]),
        ("value_dim", values[-1]),
    ):
        call.expose(name, expression)
        call.configure("_num_heads" if name == "heads" else f"_{name}", expression)
    if parts.output_shape is None:
        call.unify(output[-1], query[-1], "makes as many units as it is queried with")
    else:
        made = len(parts.output_shape)
        call.configure("_output_shape", tuple(output[-made:]))
    call.treat(MAKES_UNITS.but(attends=True), query[:-1], part=parts.output)
    if len(call.output_shapes) == 1:
        return output
    scores = (query[0], projected[-2], *query[1:-1], *value[1:-1])
    return [output, scores]


@register_rule(layers.GroupQueryAttention)
def grouped_query_attention(
    call: RuleCall, query: Axes, value: Axes, key: Axes | None = None, *rest: Any, **kwargs: Any
) -> Any:
    """Makes query heads for each of its key and value heads; reads its inputs."""
    parts = internals.attention_of(call.layer)
    _fix_masks(call, rest, kwargs)
    projected = call.apply(parts.query, query)
    keys = call.apply(parts.key, value if key is None else key)
    values = call.apply(parts.value, value)
    if projected is None or keys is None or values is None:
        return None
    _attend(call, query, key or value, value, parts.axes, _is_causal(rest, kwargs))
    call.unify(keys[-2], values[-2], "has as many heads")
    repeats = call.new_units("num_repeats", call.setting("num_repeats"))
    # Each key and value head serves so many query heads, which follow one another.
    heads = product([values[-2], repeats])
    call.unify(projected[-2], heads, "repeats its key and value heads")
    call.unify(projected[-1], keys[-1], "compares keys and queries")
    call.unify(projected[-1], values[-1], "has one dimension for keys and values")
    attended = (*projected[:-2], heads, values[-1])
    output = _project(call, parts, attended, query)
    if output is None:
        return None
    _keep_scale(call, parts, projected[-1])
    for name, expression in (
        ("num_query_heads", heads),
        ("num_key_value_heads", values[-2]),
        ("head_dim", projected[-1]),
    ):
        call.expose(name, expression)
        call.configure(name, expression)
    call.configure("num_repeats", repeats)
    call.unify(output[-1], query[-1], "makes as many units as it is queried with")
    call.configure("feature_dim", output[-1])
    call.treat(MAKES_UNITS.but(attends=True), query[:-1], part=parts.output)
    if len(call.output_shapes) == 1:
        return output
    return [output, (query[0], heads, query[1], value[1])]


def _project(
    call: RuleCall, parts: internals.Attention, attended: Axes, query: Axes
) -> Axes | None:
    """The output's projection of what was attended to, behind a gate where there is one."""
    if parts.gate is not None:
        factor = call.apply(parts.gate, query)
        if factor is None:
            return None
        for one, other in zip(attended[-2:], factor[-2:], strict=True):
            call.unify(one, other, "multiplies by its gate")
    output: Axes | None = call.apply(parts.output, attended)
    return output


def _keep_scale(call: RuleCall, parts: internals.Attention, size: Expression) -> None:
    """Lets queries hold the shares of copies, and make up for the layer's scaling factor."""
    call.share_part(parts.query, size, Scaled(size, -0.5, "size"))
    call.configure(parts.scale, Scaled(size, 0.5, "size"))


@register_rule(layers.Attention)
def attention(call: RuleCall, inputs: list[Axes], mask: Any = None, **kwargs: Any) -> Any:
    """Passes the units of the values; sums over those of queries and keys."""
    layer = call.layer
    query, value = inputs[0], inputs[1]
    key = inputs[2] if len(inputs) > 2 else value
    _fix_masks(call, (mask,), kwargs)
    _attend(call, query, key, value, [1], _is_causal((), kwargs))
    if layer.use_scale:
        call.weight("scale")
    call.unify(query[-1], key[-1], "compares keys and queries")
    if layer.score_mode == "concat":
        if layer.use_scale or hasattr(layer, "concat_score_weight"):
            call.weight("concat_score_weight")
        call.fix(query[-1], "sums over these units after a nonlinear function")
    else:
        call.share(query[-1], *((0, 2) if len(inputs) > 2 else (0,)))
    call.treat(ATTENDS)
    output = (*query[:-1], value[-1])
    if len(call.output_shapes) == 1:
        return output
    return [output, (query[0], query[1], value[1])]


@register_rule(layers.AdditiveAttention)
def additive_attention(call: RuleCall, inputs: list[Axes], mask: Any = None, **kwargs: Any) -> Any:
    """Passes the units of the values; a scale reads those of queries and keys."""
    query, value = inputs[0], inputs[1]
    key = inputs[2] if len(inputs) > 2 else value
    _fix_masks(call, (mask,), kwargs)
    _attend(call, query, key, value, [1], _is_causal((), kwargs))
    call.unify(query[-1], key[-1], "compares keys and queries")
    if call.layer.use_scale:
        call.weight("scale", reads(query[-1]))
    else:
        call.fix(query[-1], "sums over these units after a nonlinear function")
    call.treat(ATTENDS)
    output = (*query[:-1], value[-1])
    if len(call.output_shapes) == 1:
        return output
    return [output, (query[0], query[1], value[1])]


def _attend(
    call: RuleCall, query: Axes, key: Axes, value: Axes, axes: Iterable[int], causal: bool
) -> None:
    """Fixes the places that are attended to; ties the axes beside them."""
    for at in range(1, len(value) - 1):
        if at in axes:
            call.fix([key[at], value[at]], "attends to the places along this axis")
            if causal:
                call.fix(query[at], "masks by the places along this axis")
        else:
            call.unify(query[at], value[at], "attends along other axes")
            call.unify(key[at], value[at], "attends along other axes")


def _is_causal(rest: Iterable[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the mask may depend on places; a flag without a name may mean that."""
    return bool(kwargs.get("use_causal_mask")) or any(flag is True for flag in rest)


def _fix_masks(call: RuleCall, rest: Any, kwargs: dict[str, Any]) -> None:
    for mask in (*rest, *kwargs.values()):
        for x in mask if isinstance(mask, list) else [mask]:
            if is_axes(x):
                fixed: list[Expression] = list(x)
                call.fix(fixed, "masks with this axis")
