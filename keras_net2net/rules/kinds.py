"""The few kinds that most rules are of, as functions and factories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net.inference import KEEPS_ZERO, PASSES, RuleCall
from keras_net2net.widths import EXPRESSIONS, Axes, Expression, Fixed, widths_of


def passes(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """Passes units through, as they are."""
    call.treat(PASSES)
    return x


def keeps_zero(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """Passes units through: every element alone, at its place."""
    call.treat(KEEPS_ZERO)
    return x


def elementwise(call: RuleCall, *args: Any, **kwargs: Any) -> Axes:
    """Ties the units of all inputs; an axis of size 1 is broadcast and ties nothing."""
    # Some operations hold an argument that may be an array: the limits of `clip`, say.
    held = [value for key, value in vars(call.layer).items() if not key.startswith("_")]
    given = (*args, *kwargs.values())
    call.treat(_treatment(type(call.layer).__name__.lower(), given))
    return broadcast(call, _tensors((*given, *held)))


def _treatment(name: str, given: Sequence[Any]) -> str | None:
    """What an elementwise operation does to the value of a unit."""
    tensors = [x for x in _tensors(given) if has_units(x)]
    alone = len(tensors) == 1 and all(x is tensors[0] or np.ndim(x) == 0 for x in given)
    if name in ("add", "subtract"):
        return PASSES if len(tensors) == len(given) else None
    if name in ("negative", "cast", "stopgradient", "copy"):
        return PASSES
    if name in ("multiply", "divide", "truedivide"):
        return PASSES if alone and given[0] is tensors[0] else KEEPS_ZERO
    return KEEPS_ZERO if name in ZERO_OF_ZERO else None


ZERO_OF_ZERO = frozenset(
    [
        "relu",
        "relu6",
        "hardtanh",
        "tanh",
        "softsign",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "hardsilu",
        "leakyrelu",
        "softshrink",
        "hardshrink",
        "tanhshrink",
        "abs",
        "absolute",
        "square",
        "sqrt",
        "sin",
        "tan",
        "arcsin",
        "arctan",
        "sinh",
        "arcsinh",
        "arctanh",
        "expm1",
        "log1p",
        "erf",
        "sign",
        "maximum",
        "minimum",
    ]
)


def has_units(x: Axes) -> bool:
    """Whether units lie on one of the axes."""
    return any(True for axis in x for _ in widths_of(axis))


def broadcast(call: RuleCall, tensors: Sequence[Axes]) -> Axes:
    """Unifies the axes of tensors that are broadcast against each other.

    An axis of size 1 is repeated along the other and constrains nothing; should
    units lie on it, they can't become two, so they are fixed.
    """
    rank = max(len(x) for x in tensors)
    result: list[Expression] = []
    for axis in range(-rank, 0):
        column = [x[axis] for x in tensors if len(x) >= -axis]
        repeated = [e for e in column if e.size == 1]
        full = [e for e in column if e.size != 1]
        if full:
            call.fix(repeated, "repeats its only unit along another axis")
            if isinstance(full[0], Fixed) and full[0].size is None:
                full.sort(key=lambda e: e.size is None)  # a known size says more
        for other in full[1:]:
            call.unify(full[0], other)
        if not full:
            # Units of a width of one may only grow where nothing is repeated.
            widths = [e for e in repeated if not isinstance(e, Fixed)]
            for other in widths[1:]:
                call.unify(widths[0], other)
            result.append(widths[0] if widths else repeated[0])
        else:
            result.append(full[0])
    return tuple(result)


def _tensors(values: Iterable[Any]) -> list[Axes]:
    """The axes of all tensors among arguments; constants have fixed axes."""
    found: list[Axes] = []
    for value in values:
        if isinstance(value, tuple) and all(isinstance(x, EXPRESSIONS) for x in value):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            inside = _tensors(value)
            # A list of numbers is a constant, a list of tensors several arguments.
            constant = np.asarray(value).dtype.kind in "biuf" if value and not inside else False
            found.extend([tuple(map(Fixed, np.shape(value)))] if constant else inside)
        elif isinstance(value, (np.ndarray, keras.Variable)) or keras.ops.is_tensor(value):
            found.append(tuple(Fixed(int(size)) for size in value.shape))
    return found


def channel_axis(call: RuleCall, rank: int) -> int:
    """The index of the channels in a tensor, by the layer's data format."""
    return 1 if getattr(call.layer, "data_format", None) == "channels_first" else rank - 1


def with_space(call: RuleCall, x: Axes, what: str, channels: Expression | None = None) -> Axes:
    """The output of a layer that works along space and keeps, or replaces, the channels.

    Args:
        call: The call.
        x: The axes of the input.
        what: What the layer does along space, should units lie there.
        channels: The output's channels. Defaults to those of the input.

    Returns:
        The axes of the output, with its spatial sizes.
    """
    shape = call.output_shapes[0]
    at = channel_axis(call, len(x))
    call.fix([e for i, e in enumerate(x) if i not in (0, at)], what)
    axes: list[Expression] = [Fixed(size, call.obstacle("determines this size")) for size in shape]
    axes[0] = x[0]
    axes[at] = x[at] if channels is None else channels
    return tuple(axes)
