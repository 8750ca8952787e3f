"""Which widths to grow, and to what, for an axis to have a given size."""

from __future__ import annotations

from collections.abc import Mapping

from keras_net2net.widths.expressions import Concat, Expression, Product, Width, resolve


def evaluate(expression: Expression, sizes: Mapping[Width, int]) -> int:
    """The size of an expression with other sizes for some widths."""
    expression = resolve(expression)
    if isinstance(expression, Concat):
        return sum(evaluate(part, sizes) for part in expression.parts)
    if isinstance(expression, Product):
        total = 1
        for factor in expression.factors:
            total *= evaluate(factor, sizes)
        return total
    if isinstance(expression, Width) and expression in sizes:
        return sizes[expression]
    return int(expression.size or 0)


def growable(expression: Expression) -> list[Width]:
    """The widths that grow when an axis is asked to, from left to right.

    All free parts of a concatenation do. Of a product only the last free factor
    does: growing two of them would grow the axis by the product of their factors.
    """
    expression = resolve(expression)
    if isinstance(expression, Width):
        return [expression] if expression.obstacle is None else []
    if isinstance(expression, Concat):
        found = [width for part in expression.parts for width in growable(part)]
        return list(dict.fromkeys(found))
    if isinstance(expression, Product):
        return next(filter(None, map(growable, reversed(expression.factors))), [])
    return []


def sizes_for(expression: Expression, units: int) -> tuple[dict[Width, int] | None, list[int]]:
    """Finds sizes of the free widths with which an expression has `units` units.

    A concatenation grows all its free parts in proportion; where the last units
    don't divide, the first parts that fit take them.

    Args:
        expression: The expression; at least one width in it is free.
        units: The size wanted, above the present one.

    Returns:
        The sizes, or `None` where there are none; then the nearest sizes that
        are possible come with it.
    """
    now = {width: int(width.size or 0) for width in growable(expression)}
    start = evaluate(expression, now)
    steps = {w: evaluate(expression, {**now, w: size + 1}) - start for w, size in now.items()}
    total = sum(steps[width] * size for width, size in now.items())
    grown = {width: size + (units - start) * size // total for width, size in now.items()}
    sums = _sums(steps, units - start + min(steps.values()))
    for base in (grown, now):
        sizes, missing = dict(base), units - evaluate(expression, base)
        while missing > 0 and (width := sums[missing]) is not None:
            sizes[width] += 1
            missing -= steps[width]
        if evaluate(expression, sizes) == units:
            return {width: size for width, size in sizes.items() if size > now[width]}, []
    possible = [start + more for more, width in enumerate(sums) if width is not None]
    below = [size for size in possible if size < units][-1:]
    return None, below + [size for size in possible if size > units][:1]


def smaller_sizes_for(
    expression: Expression, units: int
) -> tuple[dict[Width, int] | None, list[int]]:
    """Finds smaller sizes of the free widths with which an expression has `units` units.

    Args:
        expression: The expression; at least one width in it is free.
        units: The size wanted, below the present one.

    Returns:
        As `sizes_for`.
    """
    now = {width: int(width.size or 0) for width in growable(expression)}
    start = evaluate(expression, now)
    steps = {w: start - evaluate(expression, {**now, w: size - 1}) for w, size in now.items()}
    total = sum(steps[width] * size for width, size in now.items())
    shrunk = {w: max(1, size - (start - units) * size // total) for w, size in now.items()}
    sums = _sums(steps, start - units + min(steps.values()))
    for base in (shrunk, now):
        sizes, missing = dict(base), evaluate(expression, base) - units
        while missing > 0:
            rest = {w: missing - step for w, step in steps.items() if sizes[w] > 1}
            fits = [w for w, left in rest.items() if left == 0 or (left > 0 and sums[left])]
            if not fits:
                break
            sizes[fits[0]] -= 1
            missing = rest[fits[0]]
        if evaluate(expression, sizes) == units:
            return {width: size for width, size in sizes.items() if size < now[width]}, []
    least = evaluate(expression, dict.fromkeys(now, 1))
    possible = [start - less for less, width in enumerate(sums) if width is not None]
    possible = [size for size in possible if size >= least] or [least]
    above = [size for size in possible if size > units][-1:]
    return None, [size for size in possible if size < units][:1] + above


def _sums(steps: Mapping[Width, int], most: int) -> list[Width | None]:
    """For each number up to `most`, a width whose step is the last of a sum of steps to it."""
    sums: list[Width | None] = [None] * (most + 1)
    for number in range(1, most + 1):
        for width, step in steps.items():
            if step == number or (step < number and sums[number - step] is not None):
                sums[number] = width
                break
    return sums
