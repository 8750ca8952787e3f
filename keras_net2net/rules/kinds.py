"""The few kinds that most rules are of, as functions and factories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_net2net.graph.opening import settings_text
from keras_net2net.widths.expressions import Axes, Expression, Fixed, Obstacle, is_axes, widths_of
from keras_net2net.widths.registry import Refusal, Rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import (
    ADDS,
    ANYTHING,
    BENDS,
    KEEPS_ZERO,
    MOVES,
    PASSES,
    SQUASHES,
    UNCHANGED,
    Joins,
    Treatment,
)
from keras_net2net.widths.unification import split_part


def named(names: str, where: Any = ops) -> list[Any]:
    """The layers or operations of these names; some are newer than the oldest Keras supported.

    Args:
        names: The names, with blanks between them.
        where: The module that holds them. Defaults to `keras.ops`.

    Returns:
        Those that there are.
    """
    return [getattr(where, name) for name in names.split() if hasattr(where, name)]


def of_all_ranks(names: str) -> list[Any]:
    """The layers of these names for one, two and three dimensions of space."""
    return named(" ".join(f"{name}{rank}D" for name in names.split() for rank in (1, 2, 3)), layers)


def passes(treatment: Treatment = UNCHANGED) -> Rule:
    """Makes the rule of layers that pass units through, as they are but for training.

    Args:
        treatment: What they do to values. Defaults to leaving them as they are.

    Returns:
        The rule.
    """

    def rule(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
        call.treat(treatment)
        return x

    rule.__doc__ = "Passes units through, as they are."
    return rule


NUMBERS = "combines it with numbers of this size that no layer makes: constant or random ones"


def elementwise(call: RuleCall, *args: Any, **kwargs: Any) -> Axes:
    """Ties the units of all inputs; an axis of size 1 is broadcast and ties nothing."""
    # Some operations hold an argument that may be an array: the limits of `clip`, say.
    held = [value for key, value in vars(call.layer).items() if not key.startswith("_")]
    given = (*args, *kwargs.values())
    name = type(call.layer).__name__.lower()
    call.treat(of_elements(name, given) or tried(call.layer, args, kwargs))
    return broadcast(call, tensors_in((*given, *held), call.obstacle(NUMBERS)))


def of_elements(name: str, given: Sequence[Any]) -> Treatment | None:
    """What an operation on single elements does to the value of a unit, by its name.

    Args:
        name: The name of the operation, in lower case.
        given: Its arguments, with axes in the place of tensors.

    Returns:
        The treatment; `None` where it has to be tried.
    """
    if name in _ALONE:
        return _ALONE[name]
    if name not in _JOINS:
        return None
    joins, factor = _JOINS[name]
    tensors = [x for x in tensors_in(given) if has_units(x)]
    first, number, alike = is_axes(given[0]), _number(given), scales(given)
    if joins in (Joins.PRODUCT, Joins.QUOTIENT):
        base = PASSES if alike else KEEPS_ZERO
        if joins == Joins.QUOTIENT:
            if not first:
                return ANYTHING
            if not all(x is given[0] for x in tensors):
                base = ANYTHING  # by zero
            number = 1.0 / number if number else None
        return base.but(joins=joins, factor=number)
    if number == 0:  # Python's `sum` starts from zero
        return UNCHANGED if first or joins == Joins.SUM else PASSES
    base = PASSES if len(tensors) == len(given) else ADDS if alike else ANYTHING
    return base.but(joins=joins, factor=factor) if all(map(is_axes, given)) else base


# What each does to a value, where trying it with numbers doesn't tell.
_ALONE = {
    "negative": PASSES,
    "cast": MOVES,
    "copy": UNCHANGED,
    "stopgradient": UNCHANGED.but(stops=True),
    "sigmoid": SQUASHES,
}
_JOINS: dict[str, tuple[Joins, float | None]] = {
    "add": (Joins.SUM, 1.0),
    "subtract": (Joins.DIFFERENCE, None),
    "average": (Joins.AVERAGE, None),
    "multiply": (Joins.PRODUCT, None),
    "divide": (Joins.QUOTIENT, None),
    "truedivide": (Joins.QUOTIENT, None),
}


def _number(given: Sequence[Any]) -> float | None:
    """The number with which an operation combines one tensor, if it does."""
    numbers = [x for x in given if not is_axes(x)]
    if len(given) != 2 or len(numbers) != 1:
        return None
    return float(numbers[0]) if isinstance(numbers[0], (int, float, np.number)) else None


def tried(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Treatment:
    """What a function of single elements does to values around zero: it is tried.

    Behind one that isn't steep there, as a ReLU, weights that are all zero would never
    learn.

    Args:
        function: The function, or operation.
        args: Its arguments, with axes in the place of tensors.
        kwargs: Its keyword arguments, likewise.

    Returns:
        Whether it makes zero of zeros, and whether it is steep; nothing where that depends
        on tensors without units.
    """
    given = (*args, *(kwargs or {}).values())
    tensors = [x for x in given if is_axes(x)]
    if len(tensors_in(given)) != len(tensors):
        return ANYTHING
    if len(tensors) > 1 and not all(map(has_units, tensors)):
        return ANYTHING
    numbers = ["0" if is_axes(x) else repr(x) for x in (*args, *(kwargs or {}).items())]
    plain = isinstance(function, FunctionType)
    who = (function,) if plain else (type(function), settings_text(function))
    key = (*who, *numbers)
    if key not in _TRIED:
        _TRIED[key] = _try(function if plain else function.call, args, kwargs or {})
        if len(tensors) > 1 and _TRIED[key] == BENDS:
            _TRIED[key] = KEEPS_ZERO  # steep along both at once says nothing
    return _TRIED[key]


_TRIED: dict[tuple[Any, ...], Treatment] = {}


def _try(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Treatment:
    def numbers(x: Any) -> Any:
        return keras.ops.convert_to_tensor(_AROUND_ZERO) if is_axes(x) else x

    try:
        with keras.StatelessScope():
            made = function(*map(numbers, args), **{k: numbers(x) for k, x in kwargs.items()})
        found = np.abs(keras.ops.convert_to_numpy(made))
    except Exception:  # whatever it needs, it isn't a zero
        return ANYTHING
    if found.shape != _AROUND_ZERO.shape or found[1] != 0:
        return ANYTHING
    return BENDS if found[::2].min() > 1e-4 else KEEPS_ZERO


_AROUND_ZERO = np.array([-1e-2, 0.0, 1e-2], "float32")


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
