"""Widths, and the expressions that say how an axis is made of them.

A *width* is a set of units that must be remapped together, such as the 64
filters of a convolution. Every axis of every tensor carries a *width
expression*:

- `Width`: the axis is these units;
- `Fixed`: the axis has this size whatever grows (batch, space, model inputs);
- `Concat`: the axis is a concatenation of expressions;
- `Product`: the axis is the outer product of expressions in C order, as
  `Flatten` makes it: height x width x channels.

Two axes that must agree are *unified*, as types are in type inference. After
that, `resolve` gives each expression in its canonical form. Nothing here knows
Keras or holds an array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """Why a width can't change: the operation in the way, and what it does.

    Args:
        where: The path of the operation, e.g. `"predictions"`.
        why: What forbids the change, e.g. `"is an output of the model"`.
    """

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where} {self.why}"


@dataclasses.dataclass(frozen=True)
class Fixed:
    """An axis of a size that no growth changes; `None` is an unknown size."""

    size: int | None
    obstacle: Obstacle | None = dataclasses.field(default=None, compare=False)

    def __repr__(self) -> str:
        return str(self.size)


class Width:
    """A set of units that are remapped together.

    Args:
        name: Stable name: the path of the layer that makes the units first.
        size: The number of units.
    """

    __slots__ = ("bound", "name", "obstacle", "order", "size")

    def __init__(self, name: str, size: int, order: int = 0) -> None:
        self.name = name
        self.size: int | None = size
        self.order = order
        self.bound: Expression | None = None  # what this width turned out to be
        self.obstacle: Obstacle | None = None

    def __repr__(self) -> str:
        return f"{self.name}[{self.size}]"


@dataclasses.dataclass(frozen=True)
class Concat:
    """Expressions one after the other along an axis."""

    parts: tuple[Expression, ...]

    @property
    def size(self) -> int | None:
        """The sum of the parts' sizes, `None` if one is unknown."""
        sizes = [part.size for part in self.parts]
        return None if None in sizes else sum(s for s in sizes if s is not None)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.parts)) + ")"


@dataclasses.dataclass(frozen=True)
class Product:
    """The outer product of expressions, the last one varying fastest."""

    factors: tuple[Expression, ...]

    @property
    def size(self) -> int | None:
        """The product of the factors' sizes, `None` if one is unknown."""
        sizes = [factor.size for factor in self.factors]
        return None if None in sizes else math.prod(s for s in sizes if s is not None)

    def __repr__(self) -> str:
        return " x ".join(map(repr, self.factors))


Expression = Width | Fixed | Concat | Product
Axes = tuple[Expression, ...]
EXPRESSIONS = (Width, Fixed, Concat, Product)


def is_axes(x: Any) -> TypeGuard[Axes]:
    """Whether something is the expressions of a tensor's axes."""
    return isinstance(x, tuple) and all(isinstance(axis, EXPRESSIONS) for axis in x)


def concat(parts: Iterable[Expression]) -> Expression:
    """Joins expressions: flat, with neighbouring fixed parts made one."""
    flat: list[Expression] = []
    for part in map(resolve, parts):
        for piece in part.parts if isinstance(part, Concat) else (part,):
            if piece.size == 0:
                continue
            last = flat[-1] if flat else None
            if isinstance(last, Fixed) and isinstance(piece, Fixed):
                known = last.size is not None and piece.size is not None
                size = last.size + piece.size if known else None  # type: ignore[operator]
                flat[-1] = Fixed(size, last.obstacle or piece.obstacle)
            else:
                flat.append(piece)
    if not flat:
        return Fixed(0)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def product(factors: Iterable[Expression]) -> Expression:
    """Multiplies expressions: flat, with neighbouring fixed factors made one."""
    flat: list[Expression] = []
    for factor in map(resolve, factors):
        for piece in factor.factors if isinstance(factor, Product) else (factor,):
            if isinstance(piece, Fixed) and piece.size == 1:
                continue
            last = flat[-1] if flat else None
            if isinstance(last, Fixed) and isinstance(piece, Fixed):
                known = last.size is not None and piece.size is not None
                size = last.size * piece.size if known else None  # type: ignore[operator]
                flat[-1] = Fixed(size, last.obstacle or piece.obstacle)
            else:
                flat.append(piece)
    if not flat:
        return Fixed(1)
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def resolve(expression: Expression) -> Expression:
    """The canonical form of an expression: bindings followed, structure flat."""
    if isinstance(expression, Width):
        root = expression
        while isinstance(root.bound, Width):
            root = root.bound
        while isinstance(expression, Width) and expression is not root:
            expression.bound, expression = root, expression.bound
        return root if root.bound is None else resolve(root.bound)
    if isinstance(expression, Concat):
        return concat(expression.parts)
    if isinstance(expression, Product):
        return product(expression.factors)
    return expression


def widths_of(expression: Expression) -> Iterator[Width]:
    """The distinct widths in an expression, from left to right."""
    seen = set()
    stack = [resolve(expression)]
    while stack:
        piece = stack.pop()
        if isinstance(piece, Width):
            if id(piece) not in seen:
                seen.add(id(piece))
                yield piece
        elif isinstance(piece, Concat):
            stack.extend(reversed(piece.parts))
        elif isinstance(piece, Product):
            stack.extend(reversed(piece.factors))


def common_factor(
    expression: Expression, factor_of: Callable[[Width], float | None]
) -> float | None:
    """By what the number of units changes, if it is the same for all of them.

    Args:
        expression: What an axis is made of.
        factor_of: Tells the factor of a width, or `None` if its units don't share one.

    Returns:
        The factor, or `None`.
    """
    expression = resolve(expression)
    if isinstance(expression, Width):
        return factor_of(expression)
    if isinstance(expression, Concat):
        factors = {common_factor(part, factor_of) for part in expression.parts}
        return factors.pop() if len(factors) == 1 else None
    whole: float = 1
    for part in expression.factors if isinstance(expression, Product) else ():
        factor = common_factor(part, factor_of)
        if factor is None:
            return None
        whole *= factor
    return whole


def fix(expression: Expression, obstacle: Obstacle) -> None:
    """Forbids every width in `expression` to change; the first reason stays."""
    for width in widths_of(expression):
        if width.obstacle is None:
            width.obstacle = obstacle


def unify(a: Expression, b: Expression, obstacle: Obstacle) -> None:
    """Makes two expressions the same, for axes that must agree.

    Widths are merged, or bound to what they meet: a width that meets a
    concatenation is split into its parts, one that meets a product into its
    factors, one that meets a fixed size becomes fixed. What can't be made the
    same is fixed on both sides, which is always safe.

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
    if width in widths_of(expression):
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
    # A product whose first factor is fixed is that many copies of the rest.
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
