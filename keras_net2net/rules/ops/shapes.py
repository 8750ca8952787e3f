"""Operations of `keras.ops` that change shapes, and move units to other places.

An operation that is given a size gets the grown one, where it holds it as an
attribute. A place among the arguments of a call follows the units as well, but for
what a layer's own code passes: that stays, and fixes the units that it counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keras import ops

from keras_net2net.rules.kinds import broadcast, cut, has_units, named, positions, tensors_in, use
from keras_net2net.rules.merging import join
from keras_net2net.widths.expressions import EXPRESSIONS, Axes, Expression, Fixed, concat, product
from keras_net2net.widths.facts import FromEnd
from keras_net2net.widths.registry import Refusal, Rule, refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import BENDS, MOVES, PASSES
from keras_net2net.widths.unification import regroup

BATCH = "puts the batch and the other axes on one"
CUTS = "cuts this axis at a place that doesn't line up with its parts"
REORDERS = "reverses or moves what is along this axis"


@register_rule(ops.reshape)
def reshape(call: RuleCall, x: Axes) -> Axes:
    """Regroups units; those of a split axis become factors."""
    call.treat(MOVES)
    shape, target = call.output_shapes[0], call.setting("newshape")
    # From the last axis of unknown size on, both shapes are known. What is in front of
    # that can't be told apart; mostly it is the batch alone.
    front = max((at + 1 for at, size in enumerate(shape) if size is None), default=0)
    known = max((at + 1 for at, axis in enumerate(x) if axis.size is None), default=0)
    whole = math.prod(axis.size or 0 for axis in x[known:])
    while front < len(shape) and whole % (math.prod(map(int, shape[front:])) or whole + 1):  # type: ignore[arg-type]
        front += 1
    size = math.prod(size or 0 for size in shape[front:])
    start, taken = len(x), 1
    while start > known and (taken < size or taken % size):
        start -= 1
        taken *= x[start].size or 0
    more = [taken // size] if size and taken % size == 0 and taken != size else []
    groups = regroup(x[start:], [*more, *shape[front:]])
    if groups is None or not isinstance(target, (tuple, list)) or len(target) != len(shape):
        return Refusal("regroups axes whose units don't line up with the new shape")(call, x)[0]
    if start != front or more or start > 1:
        call.fix([*x[:start], *groups[: len(more)]], BATCH)
        before: Sequence[Expression] = [Fixed(size, call.obstacle(BATCH)) for size in shape[:front]]
    else:
        before = [x[0] if size is None else Fixed(size) for size in shape[:front]]
    axes = (*before, *groups[len(more) :])
    call.configure(
        "newshape",
        tuple(old if old in (-1, None) else axis for old, axis in zip(target, axes, strict=True)),
    )
    return axes


@register_rule(ops.expand_dims)
def expand_dims(call: RuleCall, x: Axes) -> Axes:
    """Passes units through; the new axis has size 1."""
    axis = call.layer.axis
    axes = list(x)
    for at in positions(axis, len(x) + (len(axis) if isinstance(axis, (list, tuple)) else 1)):
        axes.insert(at, Fixed(1))
    call.treat(MOVES)
    return tuple(axes)


@register_rule(ops.squeeze)
def squeeze(call: RuleCall, x: Axes) -> Axes:
    """Passes units through; an axis that it drops is fixed."""
    axis = call.layer.axis
    dropped = (
        [at for at, e in enumerate(x) if e.size == 1] if axis is None else positions(axis, len(x))
    )
    call.treat(MOVES)
    return use(call, x, dropped, "drops this axis", keep=False)


def _moved(order: Callable[[Any, list[int]], Iterable[int]]) -> Rule:
    """Makes the rule of operations that put axes into another order.

    Args:
        order: Tells where they come from, given the operation and the positions as they are.

    Returns:
        The rule.
    """

    def rule(call: RuleCall, x: Axes) -> Axes:
        call.treat(MOVES)
        return tuple(x[at] for at in order(call.layer, list(range(len(x)))))

    rule.__doc__ = "Moves units to other axes."
    return rule


def _moveaxis(operation: Any, places: list[int]) -> list[int]:
    sources = [places[axis] for axis in operation.source]
    order = [at for at in places if at not in sources]
    targets = [places[axis] for axis in operation.destination]
    for target, source in sorted(zip(targets, sources, strict=True)):
        order.insert(target, source)
    return order


def _swapaxes(operation: Any, places: list[int]) -> list[int]:
    first, second = operation.axis1, operation.axis2
    places[first], places[second] = places[second], places[first]
    return places


register_rule(ops.transpose)(_moved(lambda one, places: one.axes or reversed(places)))
register_rule(ops.moveaxis)(_moved(_moveaxis))
register_rule(ops.swapaxes)(_moved(_swapaxes))


@register_rule(ops.flip, ops.roll)
def reorder(call: RuleCall, x: Axes) -> Axes:
    """Passes units through on other axes than those that are reordered."""
    call.treat(PASSES)
    return use(call, x, positions(call.layer.axis, len(x)), REORDERS)


@register_rule(*named("fliplr flipud"))
def flip_one(call: RuleCall, x: Axes) -> Axes:
    """Passes units through on other axes than the one that is reordered."""
    call.treat(PASSES)
    return use(call, x, [1 if type(call.layer).__name__ == "Fliplr" else 0], REORDERS)


@register_rule(ops.rot90)
def rot90(call: RuleCall, array: Axes) -> Axes:
    """Passes units through on other axes than the two that it turns."""
    call.treat(PASSES)
    return use(call, array, positions(list(call.layer.axes), len(array)), REORDERS)


@register_rule(ops.broadcast_to)
def broadcast_to(call: RuleCall, x: Axes) -> Axes:
    """Passes units through; the shape that it is given follows them."""
    call.treat(PASSES)
    shape = call.output_shapes[0]
    axes: list[Expression] = [Fixed(size) for size in shape]
    for at in range(-len(x), 0):
        if x[at].size == shape[at]:
            axes[at] = x[at]
        else:
            call.fix(x[at], "repeats this axis")
    target = call.setting("shape")
    if isinstance(target, (tuple, list)):
        call.configure("shape", tuple(axes) if isinstance(target, tuple) else axes)
    else:
        call.fix(x, "is given a shape that isn't made of numbers")
    return tuple(axes)


@register_rule(ops.repeat)
def repeat(call: RuleCall, x: Axes) -> Axes:
    """Multiplies units by one number of repeats; several numbers fix them."""
    call.treat(PASSES)
    axis, repeats = call.layer.axis, call.layer.repeats
    if isinstance(repeats, (list, tuple)) and len(repeats) == 1:
        (repeats,) = repeats
    if axis is None or not isinstance(repeats, int):
        return use(call, x, positions(axis, len(x)), "repeats what is along this axis")
    axes = list(x)
    axes[axis] = product([x[axis], Fixed(repeats)])
    return tuple(axes)


@register_rule(ops.tile)
def tile(call: RuleCall, x: Axes) -> Axes:
    """Multiplies a number of repeats by the units."""
    call.treat(PASSES)
    repeats = call.layer.repeats
    numbers = [repeats] if isinstance(repeats, int) else list(repeats)
    rank = max(len(x), len(numbers))
    numbers = [1] * (rank - len(numbers)) + numbers
    axes = [*(Fixed(1) for _ in range(rank - len(x))), *x]
    return tuple(product([Fixed(n), axis]) for n, axis in zip(numbers, axes, strict=True))


@register_rule(ops.pad)
def pad(call: RuleCall, x: Axes, constant_values: Any = None, **kwargs: Any) -> Axes:
    """Puts constants around units; what depends on the units at the border fixes them."""
    layer = call.layer
    widths = layer.pad_width if len(layer.pad_width) > 1 else [layer.pad_width[0]] * len(x)
    constant = layer.mode == "constant" and not tensors_in([constant_values])
    padded = [at for at, width in enumerate(widths) if any(width)]
    if not constant:
        return use(call, x, padded, "continues what is along this axis beyond its ends")
    return tuple(
        concat([Fixed(before), axis, Fixed(after)]) if at in padded else axis
        for at, (axis, (before, after)) in enumerate(zip(x, widths, strict=True))
    )


@register_rule(ops.concatenate)
def concatenate(call: RuleCall, xs: list[Axes]) -> Axes:
    """Puts units one after the other; ties those on the other axes."""
    return _join(call, xs, call.layer.axis)


@register_rule(ops.append)
def append(call: RuleCall, x1: Axes, x2: Axes) -> Axes:
    """Puts units one after the other; ties those on the other axes."""
    axis = call.layer.axis
    return Refusal(BATCH)(call, x1, x2)[0] if axis is None else _join(call, [x1, x2], axis)


STACKS = {"Vstack": 0, "Hstack": 1, "Dstack": 2}


@register_rule(*named("vstack hstack dstack"))
def stack_along(call: RuleCall, xs: list[Axes]) -> Axes:
    """Puts units one after the other; ties those on the other axes."""
    parts = tensors_in(xs)
    if len(parts[0]) == 2 and type(call.layer).__name__ == "Dstack":
        parts = [(*part, Fixed(1)) for part in parts]
    return _join(call, parts, STACKS[type(call.layer).__name__])


def _join(call: RuleCall, xs: Sequence[Any], axis: int) -> Axes:
    parts = tensors_in(xs)
    if len({len(part) for part in parts}) > 1 or len(parts) != len(xs) or len(parts[0]) <= axis:
        return Refusal("joins tensors of different ranks")(call, xs)[0]
    return join(call, parts, axis)


@register_rule(ops.stack)
def stack(call: RuleCall, xs: list[Axes]) -> Axes:
    """Ties the units of all inputs; they are put along a new axis."""
    at = call.layer.axis % (len(call.output_shapes[0]))
    rows = [(*part[:at], Fixed(1), *part[at:]) for part in tensors_in(xs)]
    return _join(call, rows, at)


@register_rule(ops.unstack)
def unstack(call: RuleCall, x: Axes) -> list[Axes]:
    """Passes units through on other axes than the one that it takes apart."""
    kept = use(call, x, positions(call.layer.axis, len(x)), "takes this axis apart", keep=False)
    call.treat(PASSES)
    return [kept] * len(call.output_shapes)


@register_rule(ops.split)
def split(call: RuleCall, x: Axes) -> list[Axes]:
    """Cuts units at the places it is given, which follow them; equal parts are tied."""
    call.treat(PASSES)
    return _split(call, x, call.layer.axis)


@register_rule(*named("array_split"))
def array_split(call: RuleCall, x: Axes) -> list[Axes]:
    """Cuts units into parts that are tied, where all are equal; else fixes them."""
    call.treat(PASSES)
    axis = call.layer.axis % len(x)
    if len({shape[axis] for shape in call.output_shapes}) > 1:
        return _fixed_parts(call, x, axis, "cuts this axis into parts that aren't equal")
    return _split(call, x, axis)


SPLITS = {"Hsplit": 1, "Vsplit": 0, "Dsplit": 2}


@register_rule(*named("hsplit vsplit dsplit"))
def split_along(call: RuleCall, x: Axes) -> list[Axes]:
    """Cuts units at the places it is given, which follow them; equal parts are tied."""
    call.treat(PASSES)
    return _split(call, x, SPLITS[type(call.layer).__name__] if len(x) > 1 else 0)


def _split(call: RuleCall, x: Axes, axis: int) -> list[Axes]:
    axis %= len(x)
    where = call.setting("indices_or_sections")
    sizes = [shape[axis] for shape in call.output_shapes]
    if x[axis].size is None or sum(size or 0 for size in sizes) != x[axis].size:
        return _fixed_parts(call, x, axis, CUTS)
    parts = cut(call, x[axis], [size or 0 for size in sizes], CUTS)
    if isinstance(where, int):
        for part in parts[1:]:  # they must stay equal
            call.unify(parts[0], part, "cuts this axis into equal parts")
    elif isinstance(where, (tuple, list)):
        ends = [concat(parts[: at + 1]) for at in range(len(where))]
        if [end.size for end in ends] != list(where):
            return _fixed_parts(call, x, axis, CUTS)
        call.configure("indices_or_sections", type(where)(ends))
    else:
        return _fixed_parts(call, x, axis, CUTS)
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


def _fixed_parts(call: RuleCall, x: Axes, axis: int, why: str) -> list[Axes]:
    call.fix(x[axis], why)
    return [
        (*x[:axis], Fixed(shape[axis], call.obstacle(why)), *x[axis + 1 :])
        for shape in call.output_shapes
    ]


@register_rule(ops.get_item)
def get_item(call: RuleCall, x: Axes, key: Any) -> Axes:
    """Cuts units at places that follow them; inside a layer's code they stay."""
    call.treat(BENDS)
    keys = list(key) if isinstance(key, (tuple, list)) else [key]
    if not all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in keys):
        return Refusal("picks places that aren't known")(call, x)[0]
    given = len(keys)
    if not any(part is Ellipsis for part in keys):
        keys.append(Ellipsis)
    rest = list(x)
    axes: list[Expression] = []
    places: list[Any] = []
    counted: list[Expression] = []
    for at, part in enumerate(keys):
        places.append(part)
        if part is None:
            axes.append(Fixed(1))
        elif part is Ellipsis:
            needed = sum(later is not None for later in keys[at + 1 :])
            axes += rest[: len(rest) - needed]
            rest = rest[len(rest) - needed :]
        elif isinstance(part, int):
            call.fix(rest.pop(0), "picks one place along this axis")
        else:
            taken, places[-1], before = _slice(call, rest.pop(0), part)
            axes.append(taken)
            counted += before
    moved = tuple(places[:given]) if isinstance(key, (tuple, list)) else places[0]
    if has_units(tuple(counted)) and not call.configure_argument("key", moved):
        call.fix(counted, STAYS)
    whole = all(any(axis is given for given in x) for axis in axes if has_units((axis,)))
    call.treat(PASSES if whole else BENDS)
    return tuple(axes)


STAYS = "cuts this axis at a place that stays"


def _slice(
    call: RuleCall, axis: Expression, key: slice
) -> tuple[Expression, slice, list[Expression]]:
    """The part of an axis that a slice takes, and the slice as it follows the units.

    A start that is counted from the front stays right while nothing in front of it
    grows, one that is counted from the end while nothing from there on grows: those
    units come last.
    """
    if (key.start, key.stop, key.step) in ((None, None, None), (None, None, 1)):
        return axis, key, []
    if axis.size is None:
        return axis, key, []
    start, stop, step = key.indices(axis.size)
    if step != 1 or start >= stop:
        call.fix(axis, "picks places along this axis")
        return Fixed(len(range(start, stop, step)), call.obstacle(STAYS)), key, []
    before, taken, after = cut(call, axis, [start, stop - start, axis.size - stop], CUTS)
    counted: list[Expression] = []
    first, last = key.start, key.stop
    if first is not None:
        counted += [before] if first >= 0 else [taken, after]
        first = before if first >= 0 else FromEnd(concat([taken, after]))
    if last is not None:
        counted += [before, taken] if last >= 0 else [after]
        last = concat([before, taken]) if last >= 0 else FromEnd(after)
    return taken, slice(first, last, key.step), counted


@register_rule(ops.slice)
def slice_(call: RuleCall, inputs: Axes, start_indices: Any, shape: Any = None) -> Axes:
    """Cuts units at places that follow them; inside a layer's code they stay."""
    # Up to Keras 3.10 at least, the shape is an argument.
    target = call.setting("shape") if shape is None else shape
    known = isinstance(start_indices, (tuple, list))
    axes: list[Expression] = []
    places: list[Any] = []
    for at, (axis, size) in enumerate(zip(inputs, call.output_shapes[0], strict=True)):
        start = start_indices[at] if known else None
        places.append(start)
        if axis.size is None or size is None:
            axes.append(Fixed(size))
        elif not isinstance(start, int) or start < 0:
            call.fix(axis, "cuts this axis at a place that isn't known")
            axes.append(Fixed(size, call.obstacle(STAYS)))
        else:
            parts = cut(call, axis, [start, size, axis.size - start - size], CUTS)
            places[-1] = parts[0]
            axes.append(parts[1])
    counted = [place for place in places if isinstance(place, EXPRESSIONS)]
    moved = tuple(places)
    if has_units(tuple(counted)) and not call.configure_argument("start_indices", moved):
        call.fix(counted, STAYS)
    sizes = type(target)(
        old if old in (-1, None) else axis for old, axis in zip(target, axes, strict=True)
    )
    if shape is None:
        call.configure("shape", sizes)
    elif has_units(tuple(axes)) and not call.configure_argument("shape", sizes):
        call.fix(axes, STAYS)
    return tuple(axes)


@register_rule(ops.slice_update)
def slice_update(call: RuleCall, inputs: Axes, start_indices: Any, updates: Any) -> Axes:
    """Ties units that are replaced as a whole; fixes those of which it replaces some."""
    why = "replaces some of what is along this axis"
    (given,) = tensors_in([updates])
    for axis, update in zip(inputs, given, strict=True):
        if axis.size == update.size:
            call.unify(axis, update, why)
        else:
            call.fix([axis, update], why)
    return inputs


@register_rule(ops.take)
def take(call: RuleCall, x: Axes, indices: Any) -> Axes:
    """Passes units through on other axes than the one that it looks up."""
    call.treat(PASSES)
    why = "looks up places along this axis"
    places: Axes = next(iter(tensors_in([indices])), ())
    axis = call.layer.axis
    if axis is None:
        call.fix(x, why)
        return places
    axis %= len(x)
    call.fix(x[axis], why)
    return (*x[:axis], *places, *x[axis + 1 :])


@register_rule(ops.take_along_axis)
def take_along_axis(call: RuleCall, x: Axes, indices: Any) -> Axes:
    """Ties units of the values and the places; fixes those on the axis that it looks up."""
    axis = call.layer.axis
    (places,) = tensors_in([indices])
    if axis is None or len(places) != len(x):
        return Refusal("looks up places along all axes")(call, x, indices)[0]
    axis %= len(x)
    call.fix([x[axis], places[axis]], "looks up places along this axis")
    others = [(*part[:axis], Fixed(1), *part[axis + 1 :]) for part in (x, places)]
    axes = list(broadcast(call, others))
    axes[axis] = Fixed(call.output_shapes[0][axis])
    return tuple(axes)


@register_rule(*named("rearrange"))
def rearrange(call: RuleCall, tensor: Axes, pattern: str, **lengths: int) -> Axes:
    """Splits, moves and multiplies units; factors of a given length are fixed."""
    given, wanted = (re.findall(r"\w+|\(.*?\)", side) for side in pattern.split("->"))
    named: dict[str, Expression] = {}
    for name, axis in zip(given, tensor, strict=True):
        names = re.findall(r"\w+", name)
        if len(names) == 1 and "(" not in name:
            named[name] = axis
            continue
        known = math.prod(lengths.get(part, 1) for part in names)
        whole = None if axis.size is None else axis.size // known  # of the one that isn't given
        groups = regroup([axis], [lengths.get(part, whole) for part in names])
        if groups is None:
            return Refusal("splits an axis whose units don't line up")(call, tensor)[0]
        named.update(zip(names, groups, strict=True))
        call.fix(
            [named[part] for part in names if part in lengths], "is given the length of this axis"
        )
    result: list[Expression] = []
    for name in wanted:
        factors = [named[part] for part in re.findall(r"\w+", name)]
        if len(factors) > 1 and any(factor.size is None for factor in factors):
            call.fix(factors, BATCH)
        result.append(product(factors))
    return tuple(result)


refuse(BATCH, ops.ravel)
