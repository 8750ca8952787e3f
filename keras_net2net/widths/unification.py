"""Unification: making the expressions of two axes agree, as types are in type inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from keras_net2net.widths.expressions import (
    Concat,
    Expression,
    Fixed,
    Obstacle,
    Product,
    Width,
    concat,
    fix,
    product,
    resolve,
    widths_of,
)


def unify(a: Expression, b: Expression, obstacle: Obstacle) -> None:
    """Makes two expressions the same, for axes that must agree.

    Widths are merged, or bound to what they meet: a width that meets a
    concatenation is split into its parts, one that meets a product into its
    factors, one that meets a fixed size becomes fixed. What can't be made the
    same is fixed on both sides, which is always safe.

    The obvious way, to compare sizes and give both axes one remap, fails: 4 + 4 units that
    meet 8 are two sets that follow different owners, and flattened channels repeat theirs
    at every place. So structure has to meet structure.

    Args:
        a: Expression of one axis.
        b: Expression of the other axis, of the same size.
        obstacle: What to blame when a width becomes fixed here.
    """
    a, b = resolve(a), resolve(b)
    if a is b or a == b:
        return
    if isinstance(a, Fixed):
        fix(b, a.obstacle or obstacle)
    elif isinstance(b, Fixed):
        fix(a, b.obstacle or obstacle)
    elif a.size is None or a.size != b.size:
        fix(a, obstacle)
        fix(b, obstacle)
    elif isinstance(a, Width) and isinstance(b, Width):
        # The one that was made first stays: names and draws must not depend on which of two
        # branches a merge lists first.
        first, second = sorted((a, b), key=lambda width: width.order)
        first.obstacle = first.obstacle or second.obstacle
        second.bound = first
    elif isinstance(a, Width):
        _bind(a, b, obstacle)
    elif isinstance(b, Width):
        _bind(b, a, obstacle)
    elif isinstance(a, Product) and isinstance(b, Product):
        _unify_sequences(list(a.factors), list(b.factors), split_factor, obstacle)
    else:
        _unify_sequences(_parts(a), _parts(b), split_part, obstacle)


def _parts(expression: Expression) -> list[Expression]:
    return list(expression.parts) if isinstance(expression, Concat) else [expression]


def _bind(width: Width, expression: Expression, obstacle: Obstacle) -> None:
    """Lets `width` be `expression`, unless one of them is fixed or holds the other."""
    if width in widths_of(expression):  # it would be a part of itself, without end
        fix(expression, obstacle)
    elif width.obstacle is not None:
        fix(expression, width.obstacle)
        width.bound = expression
    else:
        width.bound = expression


Splitter = Callable[[Expression, int], "tuple[Expression, Expression] | None"]


def _unify_sequences(
    left: list[Expression], right: list[Expression], split: Splitter, obstacle: Obstacle
) -> None:
    """Unifies two concatenations (or products), splitting where they don't line up."""
    left, right = left[::-1], right[::-1]
    while left and right:
        p, q = resolve(left.pop()), resolve(right.pop())
        if p.size == q.size:
            unify(p, q, obstacle)
            continue
        swap = (p.size or 0) < (q.size or 0)
        big, small = (q, p) if swap else (p, q)
        # Taken for a factor, it would be split off as "one times the rest" for ever.
        if small.size == 1 and split is split_factor:
            fix(small, obstacle)  # one unit that nothing on the other side would follow
            (right if swap else left).append(big)
            continue
        halves = split(big, small.size) if small.size and big.size else None
        if halves is None:
            for rest in (p, q, *left, *right):
                fix(rest, obstacle)
            return
        unify(halves[0], small, obstacle)
        (right if swap else left).append(halves[1])
    for rest in (*left, *right):
        fix(rest, obstacle)  # of size 1: there is nothing on the other side that would grow too


def split_part(expression: Expression, size: int) -> tuple[Expression, Expression] | None:
    """Cuts an expression after its first `size` units, or says that it can't."""
    expression = resolve(expression)
    total = expression.size
    if total is None or not 0 < size < total:
        return None
    if isinstance(expression, Fixed):
        return Fixed(size, expression.obstacle), Fixed(total - size, expression.obstacle)
    if isinstance(expression, Width):
        # The whole is bound to its parts, so that all axes it lies on are cut at one place.
        first = Width(f"{expression.name}:{0}+{size}", size, expression.order)
        second = Width(f"{expression.name}:{size}+{total - size}", total - size, expression.order)
        first.obstacle = second.obstacle = expression.obstacle
        expression.bound = Concat((first, second))
        return first, second
    if isinstance(expression, Concat):
        before: list[Expression] = []
        for i, part in enumerate(expression.parts):
            room = size - sum(p.size or 0 for p in before)
            if part.size is not None and part.size <= room:
                before.append(part)
                continue
            if room == 0:
                return concat(before), concat(expression.parts[i:])
            halves = split_part(part, room)
            if halves is None:
                return None
            return concat([*before, halves[0]]), concat([halves[1], *expression.parts[i + 1 :]])
        return None
    # A product whose first factor is fixed is that many copies of the rest. One whose first
    # factor is a width can't be cut: behind a growth, the cut would lie inside of new units.
    first_factor, rest = expression.factors[0], product(expression.factors[1:])
    if isinstance(first_factor, Fixed) and rest.size and size % rest.size == 0:
        copies = size // rest.size
        remaining = total // rest.size - copies
        return product([Fixed(copies), rest]), product([Fixed(remaining), rest])
    return None


def split_factor(expression: Expression, size: int) -> tuple[Expression, Expression] | None:
    """Factors an expression into `size` times the rest, or says that it can't."""
    expression = resolve(expression)
    total = expression.size
    if total is None or size < 1 or total % size:
        return None
    if isinstance(expression, Fixed):
        return Fixed(size, expression.obstacle), Fixed(total // size, expression.obstacle)
    if isinstance(expression, Width):
        first = Width(f"{expression.name}/{0}", size, expression.order)
        second = Width(f"{expression.name}/{1}", total // size, expression.order)
        first.obstacle = second.obstacle = expression.obstacle
        expression.bound = Product((first, second))
        return first, second
    return None


def regroup(axes: Iterable[Expression], sizes: list[int | None]) -> list[Expression] | None:
    """Regroups the product of `axes` into axes of the given sizes, as a reshape does.

    Args:
        axes: The expressions that are multiplied together, in C order.
        sizes: The sizes wanted; their product is that of `axes`. One may be unknown,
            if so is one that it is made of.

    Returns:
        One expression for each size, or `None` where a factor can't be split so
        that the sizes line up.
    """
    axes = list(axes)
    if sizes.count(None) == 1:
        return _regroup_around(axes, sizes)
    whole = product(axes)
    factors = list(whole.factors) if isinstance(whole, Product) else [whole]
    factors = [f for f in factors if f.size != 1 or not isinstance(f, Fixed)][::-1]
    result: list[list[Expression]] = []
    for wanted in sizes:
        if wanted is None:
            return None
        taken: list[Expression] = []
        if wanted == 1 and factors and factors[-1].size == 1:
            taken.append(factors.pop())  # a width of one unit, which may grow
        room = wanted
        while room > 1:
            if not factors:
                return None
            factor = factors.pop()
            if factor.size is None:
                return None
            if room % factor.size == 0:
                taken.append(factor)
                room //= factor.size
                continue
            # A split by what both have in common: 6 into 4 x 3 needs 2 x 3 first. A factor
            # that shares nothing with the room spans two axes, which can't be told apart.
            halves = (
                split_factor(factor, math.gcd(room, factor.size)) if factor.size > room else None
            )
            if halves is None or (halves[0].size or 0) <= 1:
                return None
            factors.append(halves[1])
            factors.append(halves[0])
        result.append(taken)
    if any(f.size != 1 for f in factors) or (factors and not result):
        return None
    if factors:
        result[-1] += factors[::-1]
    return [product(taken) for taken in result]


def _regroup_around(axes: list[Expression], sizes: list[int | None]) -> list[Expression] | None:
    """Regroups axes into sizes of which one is unknown: those on both sides of it must stay."""
    at = sizes.index(None)
    last = len(axes) - (len(sizes) - at - 1)
    if last < at:
        return None
    stay = [*axes[:at], *axes[last:]]
    if [axis.size for axis in stay] != [*sizes[:at], *sizes[at + 1 :]]:
        return None
    if any(True for axis in axes[at:last] for _ in widths_of(axis)):
        return None
    return [*axes[:at], Fixed(None), *axes[last:]]
