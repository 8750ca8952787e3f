"""Widths, and the expressions that say how an axis is made of them.

A *width* is a set of units that must be remapped together, such as the 64
filters of a convolution. Every axis of every tensor carries a *width
expression*:

- `Width`: the axis is these units;
- `Fixed`: the axis has this size whatever grows (batch, space, model inputs);
- `Concat`: the axis is a concatenation of expressions;
- `Product`: the axis is the outer product of expressions in C order, as
  `Flatten` makes it: height x width x channels.

`unification` makes two of them agree. After that, `resolve` gives each expression in its
canonical form. Nothing here knows Keras or holds an array.
"""

from __future__ import annotations

import dataclasses
import math
import operator
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
    pieces = [
        piece
        for part in map(resolve, parts)
        for piece in (part.parts if isinstance(part, Concat) else (part,))
        if piece.size != 0
    ]
    flat = _merged(pieces, operator.add)
    return Concat(flat) if len(flat) > 1 else flat[0] if flat else Fixed(0)


def product(factors: Iterable[Expression]) -> Expression:
    """Multiplies expressions: flat, with neighbouring fixed factors made one."""
    # A width of one unit stays a factor: it may grow.
    pieces = [
        piece
        for factor in map(resolve, factors)
        for piece in (factor.factors if isinstance(factor, Product) else (factor,))
        if not (isinstance(piece, Fixed) and piece.size == 1)
    ]
    flat = _merged(pieces, operator.mul)
    return Product(flat) if len(flat) > 1 else flat[0] if flat else Fixed(1)


def _merged(pieces: list[Expression], combine: Callable[[int, int], int]) -> tuple[Expression, ...]:
    """Makes one of fixed pieces that are neighbours.

    Without that, what is the same axis would have several forms, and two forms that don't
    line up are fixed where they meet.
    """
    flat: list[Expression] = []
    for piece in pieces:
        last = flat[-1] if flat else None
        if isinstance(last, Fixed) and isinstance(piece, Fixed):
            known = last.size is not None and piece.size is not None
            size = combine(last.size, piece.size) if known else None  # type: ignore[arg-type]
            flat[-1] = Fixed(size, last.obstacle or piece.obstacle)
        else:
            flat.append(piece)
    return tuple(flat)


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
