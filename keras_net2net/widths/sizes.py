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

    A concatenation changes all its free parts in proportion; where the last units
    don't divide, the first parts that fit take them, or give them up.

    Args:
        expression: The expression; at least one width in it is free.
        units: The size wanted, above the present one or below it.

    Returns:
        The sizes, or `None` where there are none; then the nearest sizes that
        are possible come with it.
    """
    now = {width: int(width.size or 0) for width in growable(expression)}
    start = evaluate(expression, now)
    sign = 1 if units > start else -1
    steps = {w: sign * (evaluate(expression, {**now, w: n + sign}) - start) for w, n in now.items()}
    total = sum(steps[width] * size for width, size in now.items())
    more = abs(units - start)
    changed = {w: max(1, n + sign * (more * n // total)) for w, n in now.items()}
    sums = _sums(steps, more + min(steps.values()))
    for base in (changed, now):
        sizes, missing = dict(base), sign * (units - evaluate(expression, base))
        while missing > 0:
            # A unit can only go while another one of its width stays.
            left = {w: missing - step for w, step in steps.items() if sign > 0 or sizes[w] > 1}
            fits = [w for w, rest in left.items() if rest >= 0 and sums[rest]]
            if not fits:
                break
            sizes[fits[0]] += sign
            missing = left[fits[0]]
        if evaluate(expression, sizes) == units:
            return {width: size for width, size in sizes.items() if size != now[width]}, []
    least = evaluate(expression, dict.fromkeys(now, 1))
    possible = [start + sign * n for n, can in enumerate(sums) if n and can]
    possible = sorted(size for size in possible if size >= least) or [least]
    below = [size for size in possible if size < units][-1:]
    return None, below + [size for size in possible if size > units][:1]


def _sums(steps: Mapping[Width, int], most: int) -> list[bool]:
    """For each number up to `most`, whether it is a sum of steps."""
    sums = [True] + [False] * most
    for number in range(1, most + 1):
        sums[number] = any(step <= number and sums[number - step] for step in steps.values())
    return sums
