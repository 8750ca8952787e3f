"""Sums over an axis that two tensors share: `matmul`, `einsum`, and their like.

One of the two is mostly a weight, which then reads the units. Where both are
computed, as in the scores of an attention, what makes one of them holds the shares
of copies, if it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_net2net import internals
from keras_net2net.rules.convolutional import SLIDES
from keras_net2net.rules.kinds import broadcast, channel_axis, with_space
from keras_net2net.widths.expressions import Axes, Expression, Fixed, is_axes, product, resolve
from keras_net2net.widths.facts import MAKES, READS
from keras_net2net.widths.registry import refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import CONTRACTS, MAKES_UNITS, PASSES, Joins


def axes_of(value: Any) -> Axes:
    """The axes of an argument: a tensor's, or those of a constant."""
    if is_axes(value):
        return value
    shape = value.shape if hasattr(value, "shape") else np.shape(value)
    return tuple(Fixed(int(size)) for size in shape)


def contract(call: RuleCall, pairs: list[tuple[Expression, Expression]], tensors: int) -> None:
    """Ties axes that are summed over, and finds who reads them.

    Args:
        call: The call.
        pairs: The axes of the first and of the second tensor that are summed over.
        tensors: The number of tensors among the arguments.
    """
    for first, second in pairs:
        call.unify(first, second, "sums over this axis of two tensors")
        if isinstance(resolve(first), Fixed) or call.role(second, READS):
            continue
        if not call.role(first, READS):
            call.share(first, *range(tensors))


def _make(call: RuleCall, *axes: Expression, beside: Sequence[Expression] = ()) -> None:
    """Says what the units of the output are, and that a variable makes those on its axes.

    Args:
        call: The call.
        *axes: Those of the output's axes that one of the two tensors has alone.
        beside: Its other axes.
    """
    made = [call.role(axis, MAKES) for axis in axes]
    passed = [axis for axis, one in zip(axes, made, strict=True) if not one]
    treatment = MAKES_UNITS.but(joins=Joins.CONTRACTION) if any(made) else CONTRACTS
    call.treat(treatment, [*passed, *beside], CONTRACTS)


def _count(*values: Any) -> int:
    return sum(map(is_axes, values))


@register_rule(ops.matmul)
def matmul(call: RuleCall, x1: Any, x2: Any) -> Axes:
    """Sums over the last axis of one, the last but one of the other; passes the others."""
    a, b = axes_of(x1), axes_of(x2)
    row = len(b) == 1
    contract(call, [(a[-1], b[0] if row else b[-2])], _count(x1, x2))
    left: Axes = () if len(a) == 1 else (a[-2],)
    right: Axes = () if row else (b[-1],)
    batches = [batch for batch in (a[:-2], b[:-2]) if batch]
    batch = broadcast(call, batches) if batches else ()
    _make(call, *left, *right, beside=batch)
    return (*batch, *left, *right)


def _sum_over(
    call: RuleCall, x1: Any, x2: Any, first: Sequence[int], second: Sequence[int]
) -> Axes:
    """Sums over pairs of axes; all others are the output's."""
    a, b = axes_of(x1), axes_of(x2)
    first, second = [at % len(a) for at in first], [at % len(b) for at in second]
    contract(call, [(a[i], b[j]) for i, j in zip(first, second, strict=True)], _count(x1, x2))
    kept = [axis for i, axis in enumerate(a) if i not in first]
    kept += [axis for j, axis in enumerate(b) if j not in second]
    _make(call, *kept)
    return tuple(kept)


@register_rule(ops.dot)
def dot(call: RuleCall, x1: Any, x2: Any) -> Axes:
    """Sums over the last axis of one, the last but one of the other; passes the others."""
    a, b = axes_of(x1), axes_of(x2)
    return _sum_over(call, x1, x2, [-1], [max(-2, -len(b))]) if a and b else a or b


@register_rule(ops.inner)
def inner(call: RuleCall, x1: Any, x2: Any) -> Axes:
    """Sums over the last axes; passes the others."""
    return _sum_over(call, x1, x2, [-1], [-1])


@register_rule(ops.tensordot)
def tensordot(call: RuleCall, x1: Any, x2: Any) -> Axes:
    """Sums over the axes that are named; passes the others."""
    axes = call.layer.axes
    if isinstance(axes, int):
        return _sum_over(call, x1, x2, range(-axes, 0), range(axes))
    first, second = ([at] if isinstance(at, int) else list(at) for at in axes)
    return _sum_over(call, x1, x2, first, second)


@register_rule(ops.einsum)
def einsum(call: RuleCall, *operands: Any) -> Axes | None:
    """Ties axes of the same letter, sums over those that the output lacks."""
    if len(operands) not in (1, 2):
        return None
    call.treat(CONTRACTS)
    axes = [axes_of(operand) for operand in operands]
    terms = parse_einsum(call.layer.subscripts, [len(x) for x in axes])
    if terms is None:
        return None
    inputs, output = terms
    if any(len(set(term)) != len(term) for term in (*inputs, output)):
        return None  # a diagonal
    if len(axes) == 1:
        call.fix(
            [a for a, letter in zip(axes[0], inputs[0], strict=True) if letter not in output],
            "sums over this axis",
        )
        known = dict(zip(inputs[0], axes[0], strict=True))
        return tuple(known[letter] for letter in output)
    first, second = (dict(zip(t, x, strict=True)) for t, x in zip(inputs, axes, strict=True))
    summed = [letter for letter in first if letter in second and letter not in output]
    contract(call, [(first[x], second[x]) for x in summed], _count(*operands))
    for one, other in ((first, second), (second, first)):
        alone = [axis for x, axis in one.items() if x not in other and x not in output]
        call.fix(alone, "sums over this axis")
    both = [letter for letter in output if letter in first and letter in second]
    tied = {x: broadcast(call, [(first[x],), (second[x],)])[0] for x in both}
    alone = [a for one in (first, second) for x, a in one.items() if x in output and x not in tied]
    _make(call, *alone, beside=list(tied.values()))
    known = {**first, **second, **tied}
    return tuple(known[letter] for letter in output)


def parse_einsum(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]] | None:
    """The letters of each operand and of the output; an ellipsis becomes numbers.

    Args:
        equation: The equation, with or without an output.
        ranks: The ranks of the operands.

    Returns:
        The letters, one for each axis, or `None` for an equation that doesn't fit.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    inputs = []
    for term, rank in zip(terms, ranks, strict=True):
        before, dots, after = term.partition("...")
        extra = rank - len(before) - len(after)
        if extra < 0 or (extra and not dots):
            return None
        inputs.append([*before, *(str(i) for i in range(-extra, 0)), *after])
    if not arrow:
        letters = "".join(terms).replace(".", "")
        right = "..." if "..." in left else ""
        right += "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    before, dots, after = right.partition("...")
    most = max((term for term in inputs), key=lambda t: sum(x[0] == "-" for x in t))
    numbers = [x for x in most if x[0] == "-"] if dots else []
    return inputs, [*before, *numbers, *after]


def _read(call: RuleCall, channels: Expression, axis: Expression, tensors: int) -> None:
    """Lets an axis of a kernel read channels; a group of them is fixed."""
    if channels.size != axis.size:
        call.fix([channels, axis], "reads its channels in groups")
        return
    contract(call, [(channels, axis)], tensors)


@register_rule(ops.conv)
def conv(call: RuleCall, x: Any, kernel: Any) -> Axes:
    """Reads channels with one axis of the kernel, and makes those of another."""
    a, k = axes_of(x), axes_of(kernel)
    _read(call, a[channel_axis(call, len(a))], k[-2], _count(x, kernel))
    if a[channel_axis(call, len(a))].size != k[-2].size:
        call.fix(k[-1], "makes its channels in groups")
    _make(call, k[-1], beside=a[:1])
    return with_space(call, a, SLIDES, k[-1])


@register_rule(ops.conv_transpose)
def conv_transpose(call: RuleCall, x: Any, kernel: Any) -> Axes:
    """Reads channels with one axis of the kernel, and makes those of another."""
    a, k = axes_of(x), axes_of(kernel)
    _read(call, a[channel_axis(call, len(a))], k[-1], _count(x, kernel))
    _make(call, k[-2], beside=a[:1])
    return with_space(call, a, SLIDES, k[-2])


@register_rule(ops.depthwise_conv)
def depthwise_conv(call: RuleCall, x: Any, kernel: Any) -> Axes:
    """Channels follow, each with its own kernels."""
    a, k = axes_of(x), axes_of(kernel)
    channels = a[channel_axis(call, len(a))]
    call.unify(channels, k[-2], "has kernels for each channel")
    call.fix(k[-1], "makes as many channels of each")
    return with_space(call, a, SLIDES, product([channels, Fixed(k[-1].size)]))


@register_rule(ops.separable_conv)
def separable_conv(call: RuleCall, x: Any, depthwise: Any, pointwise: Any) -> Axes:
    """Makes the channels of its pointwise kernel, which reads those of the depthwise one."""
    a, d, p = axes_of(x), axes_of(depthwise), axes_of(pointwise)
    channels = a[channel_axis(call, len(a))]
    call.unify(channels, d[-2], "has kernels for each channel")
    call.fix(d[-1], "makes as many channels of each")
    _read(call, product([channels, Fixed(d[-1].size)]), p[-2], 0)
    _make(call, p[-1])
    return with_space(call, a, SLIDES, p[-1])


@register_rule(ops.batch_normalization)
def batch_normalization(call: RuleCall, x: Any, *vectors: Any, **kwargs: Any) -> Axes:
    """Units follow with what normalizes them."""
    a = axes_of(x)
    for vector in (*vectors, *kwargs.values()):
        if vector is not None:
            call.unify(a[call.layer.axis], axes_of(vector)[0], "normalizes with one number a unit")
    return a


@register_rule(ops.dot_product_attention)
def dot_product_attention(
    call: RuleCall, query: Any, key: Any, value: Any, *rest: Any, scale: Any = None, **kwargs: Any
) -> Axes:
    """Ties heads; sums over the units of queries and keys; passes those of the values."""
    q, k, v = axes_of(query), axes_of(key), axes_of(value)
    scale = rest[2] if len(rest) > 2 else scale
    call.fix([k[-3], v[-3]], "attends to the places along this axis")
    if getattr(call.layer, "is_causal", False):
        call.fix(q[-3], "masks by the places along this axis")
    masks = [x for x in (*rest[:2], kwargs.get("bias"), kwargs.get("mask")) if x is not None]
    for mask in masks:
        call.fix(list(axes_of(mask)), "masks with this axis")
    call.unify(k[-2], v[-2], "has as many heads")
    if q[-2].size == k[-2].size:
        call.unify(q[-2], k[-2], "has as many heads")
    else:
        call.fix([q[-2], k[-2]], "repeats its key and value heads")
    call.unify(q[-1], k[-1], "compares keys and queries")
    if internals.attention_has_one_size():
        call.unify(k[-1], v[-1], "has keys and values of one size on JAX")
    if scale is None:
        call.fix(q[-1], "scales its scores by the number of these units")
    else:
        call.share(q[-1], 0, 1)
    call.treat(PASSES.but(attends=True))
    return (*q[:-1], v[-1])


refuse("sums over all units of both tensors", ops.vdot)
