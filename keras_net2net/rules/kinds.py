"""The few kinds that most rules are of, as functions and factories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import keras
import numpy as np

from keras_net2net.graph.opening import settings_text
from keras_net2net.widths.expressions import (
    Axes,
    Expression,
    Fixed,
    Obstacle,
    is_axes,
    split_part,
    widths_of,
)
from keras_net2net.widths.facts import ADDS, KEEPS_ZERO, PASSES
from keras_net2net.widths.registry import Refusal, Rule
from keras_net2net.widths.rule_call import RuleCall


def passes(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """Passes units through, as they are."""
    call.treat(PASSES)
    return x


def keeps_zero(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """Passes units through: every element alone, at its place."""
    call.treat(KEEPS_ZERO)
    return x


NUMBERS = "combines it with numbers of this size that no layer makes: constant or random ones"


def elementwise(call: RuleCall, *args: Any, **kwargs: Any) -> Axes:
    """Ties the units of all inputs; an axis of size 1 is broadcast and ties nothing."""
    # Some operations hold an argument that may be an array: the limits of `clip`, say.
    held = [value for key, value in vars(call.layer).items() if not key.startswith("_")]
    given = (*args, *kwargs.values())
    name = type(call.layer).__name__.lower()
    call.treat(treatment(name, given, lambda: zero_of_zero(call.layer, args, kwargs)))
    return broadcast(call, tensors_in((*given, *held), call.obstacle(NUMBERS)))


def treatment(name: str, given: Sequence[Any], zero: Callable[[], bool]) -> str | None:
    """What an operation on single elements does to the value of a unit.

    Args:
        name: The name of the operation, in lower case.
        given: Its arguments, with axes in the place of tensors.
        zero: Tells whether it makes zero of zeros.

    Returns:
        A treatment, as in `RuleCall.treat`.
    """
    tensors = [x for x in tensors_in(given) if has_units(x)]
    if name in ("add", "subtract", "average"):
        if len(tensors) == len(given):
            return PASSES
        if not scales(given):
            return None
        nothing = all(x is tensors[0] or (np.isscalar(x) and x == 0) for x in given)
        return PASSES if nothing else ADDS  # Python's `sum` starts from zero
    if name in ("negative", "cast", "stopgradient", "copy"):
        return PASSES
    if name == "multiply":
        return PASSES if scales(given) else KEEPS_ZERO
    if name in ("divide", "truedivide"):
        if len(tensors) != 1 or given[0] is not tensors[0]:
            return None  # by zero
        return PASSES if scales(given) else KEEPS_ZERO
    return KEEPS_ZERO if zero() else None


def zero_of_zero(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether a function of single elements makes zero of zeros: it is tried.

    Args:
        function: The function, or operation.
        args: Its arguments, with axes in the place of tensors.
        kwargs: Its keyword arguments, likewise.

    Returns:
        Whether it does; false where that depends on tensors without units.
    """
    given = (*args, *(kwargs or {}).values())
    if any(is_axes(x) and not has_units(x) for x in given) or len(tensors_in(given)) != sum(
        map(is_axes, given)
    ):
        return False
    numbers = ["0" if is_axes(x) else repr(x) for x in (*args, *(kwargs or {}).items())]
    plain = isinstance(function, FunctionType)
    who = (function,) if plain else (type(function), settings_text(function))
    key = (*who, *numbers)
    if key not in _ZEROS:

        def zeros(x: Any) -> Any:
            return keras.ops.zeros((1,)) if is_axes(x) else x

        call = function if plain else function.call
        try:
            with keras.StatelessScope():
                made = call(*map(zeros, args), **{k: zeros(x) for k, x in (kwargs or {}).items()})
            _ZEROS[key] = bool(np.all(keras.ops.convert_to_numpy(made) == 0))
        except Exception:  # whatever it needs, it isn't a zero
            _ZEROS[key] = False
    return _ZEROS[key]


_ZEROS: dict[tuple[Any, ...], bool] = {}


def scales(given: Sequence[Any]) -> bool:
    """Whether one of several arguments holds units, and the others one number for all of them."""
    tensors = [x for x in tensors_in(given) if has_units(x)]
    return len(tensors) == 1 and all(x is tensors[0] or _alike(x, tensors[0]) for x in given)


def _alike(value: Any, x: Axes) -> bool:
    """Whether a value is one number for all units of a tensor that it is broadcast against."""
    parts = tensors_in([value])
    if not parts:
        return np.ndim(value) == 0
    return all(
        len(part) < place or part[-place].size == 1
        for part in parts
        for place, axis in enumerate(reversed(x), start=1)
        if has_units((axis,))
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


def tensors_in(values: Iterable[Any], obstacle: Obstacle | None = None) -> list[Axes]:
    """The axes of all tensors among arguments; constants have fixed axes, by that obstacle."""
    found: list[Axes] = []
    for value in values:
        if is_axes(value):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            inside = tensors_in(value, obstacle)
            # A list of numbers is a constant, a list of tensors several arguments.
            constant = np.asarray(value).dtype.kind in "biuf" if value and not inside else False
            found.extend([_constant(np.shape(value), obstacle)] if constant else inside)
        elif isinstance(value, (np.ndarray, keras.Variable)) or keras.ops.is_tensor(value):
            found.append(_constant(value.shape, obstacle))
    return found


def _constant(shape: Iterable[int], obstacle: Obstacle | None) -> Axes:
    return tuple(Fixed(int(size), obstacle) for size in shape)


def channel_axis(call: RuleCall, rank: int) -> int:
    """The index of the channels in a tensor, by the layer's data format."""
    # An operation that was given none holds `None`, and takes that of the configuration.
    given = getattr(call.layer, "data_format", "channels_last")
    form = given or keras.config.image_data_format()
    return 1 if form == "channels_first" else rank - 1


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


def positions(axis: Any, rank: int) -> list[int]:
    """The positions, counted from the front, that an `axis` argument names."""
    if axis is None:
        return list(range(rank))
    given = axis if isinstance(axis, (list, tuple)) else (axis,)
    return sorted({int(at) % rank for at in given})


def use(call: RuleCall, x: Axes, used: Iterable[int], why: str, keep: bool = True) -> Axes:
    """The output of an operation that uses whole axes and passes the others through.

    Args:
        call: The call.
        x: The axes of the input.
        used: The positions of the axes that it uses; units there are fixed.
        why: What it does along them.
        keep: Whether the used axes stay, with whatever size, or go.

    Returns:
        The axes of the output.
    """
    used = set(used)
    call.fix([x[at] for at in used], why)
    if not keep:
        return tuple(axis for at, axis in enumerate(x) if at not in used)
    shape = call.output_shapes[0]
    if len(shape) != len(x):
        return Refusal(why)(call, x)[0]
    obstacle = call.obstacle(why)
    return tuple(
        Fixed(size, obstacle) if at in used else axis
        for at, (axis, size) in enumerate(zip(x, shape, strict=True))
    )


def along(why: str, key: str = "axis") -> Rule:
    """Makes the rule of operations that use the axes named by an attribute.

    Args:
        why: What they do along them, e.g. `"adds up along this axis"`.
        key: The attribute that names the axes. Defaults to `"axis"`.

    Returns:
        The rule.
    """

    def rule(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
        return use(call, x, positions(getattr(call.layer, key), len(x)), why)

    rule.__doc__ = f"Passes units through, but for an axis that is used: it {why}."
    return rule


def along_last(count: int, why: str) -> Rule:
    """Makes the rule of operations that use the last axes, whatever becomes of these.

    Args:
        count: How many axes they use.
        why: What they do along them.

    Returns:
        The rule.
    """

    def rule(call: RuleCall, x: Any, *args: Any, **kwargs: Any) -> list[Axes]:
        parts = tensors_in([x])
        obstacle = call.obstacle(why)
        for part in parts:
            call.fix(part[-count:], why)
        before = broadcast(call, [part[:-count] for part in parts]) if len(parts[0]) > count else ()
        return [
            (*before, *(Fixed(size, obstacle) for size in shape[len(before) :]))
            for shape in call.output_shapes
        ]

    axes = "the last axis is" if count == 1 else f"the last {count} axes are"
    rule.__doc__ = f"Passes units through on other axes; {axes} used: it {why}."
    return rule


def cut(call: RuleCall, axis: Expression, sizes: Sequence[int], why: str) -> list[Expression]:
    """Cuts an axis into parts of the given sizes; where that can't be, fixes it.

    Args:
        call: The call.
        axis: The axis; its size is the sum of `sizes`.
        sizes: The sizes of the parts.
        why: Why it is fixed if units of one part can't be told from those of another.

    Returns:
        The expressions of the parts.
    """
    parts: list[Expression] = []
    rest = axis
    for at, size in enumerate(sizes):
        if size == 0:
            parts.append(Fixed(0))
            continue
        if not any(sizes[at + 1 :]):
            parts.append(rest)
            rest = Fixed(0)
            continue
        halves = split_part(rest, size)
        if halves is None:
            call.fix(axis, why)
            obstacle = call.obstacle(why)
            return [Fixed(size, obstacle) for size in sizes]
        parts.append(halves[0])
        rest = halves[1]
    return parts
