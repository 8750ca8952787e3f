"""What new units hold that a normalization sees together with the old ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from keras_net2net.widths.expressions import Expression, Width, common_factor, resolve, widths_of
from keras_net2net.widths.facts import Normalized
from keras_net2net.widths.inferred import Inferred


def fills_for(
    inference: Inferred, sizes: Mapping[Width, int]
) -> tuple[dict[Width, str | None], dict[Width, str]]:
    """Decides how widths grow that normalizations see.

    Args:
        inference: What is known of the graph.
        sizes: The new size of each width that grows.

    Returns:
        For each such width, what its new units hold, as in `draw_bound`; and for
        those that can't have their size, why.
    """
    allowed: dict[Width, list[str | None]] = {}
    problems: dict[Width, str] = {}
    for norm in inference.normalized:
        expression = resolve(norm.expression)
        for width in widths_of(expression):
            if width not in sizes:
                continue
            options = _options(norm, expression, width, sizes)
            known = allowed.get(width)
            allowed[width] = options if known is None else [o for o in known if o in options]
            if not allowed[width]:
                problems.setdefault(width, _problem(norm, width))
    fills = {width: options[0] for width, options in allowed.items() if options}
    return fills, problems


def _options(
    norm: Normalized, expression: Expression, width: Width, sizes: Mapping[Width, int]
) -> list[str | None]:
    """What the new units of a width may hold for one normalization, the best first."""
    options: list[str | None] = []
    if norm.copies and common_factor(expression, _copies(sizes)) is not None:
        options.append(None)
    if expression is width:  # of a part of the units, the mean would be another one
        if norm.fill == "mean" and norm.content.mean == "mean":
            options.append("mean")
        if norm.fill == "zero" and norm.content.zero == "zero":
            options += ["zero", "only zero"] if norm.copies else ["only zero"]
    return options


def _copies(sizes: Mapping[Width, int]) -> Callable[[Width], int | None]:
    """Tells how often each unit of a width is copied, if all are copied equally often."""

    def ratio(width: Width) -> int | None:
        old = int(width.size or 1)
        new = sizes.get(width, old)
        return new // old if new % old == 0 else None

    return ratio


def _problem(norm: Normalized, width: Width) -> str:
    size = int(width.size or 0)
    alone = resolve(norm.expression) is width
    if norm.copies and alone:
        sizes = f"{2 * size}, {3 * size}, ..."
        possible = f"only whole multiples of its {size} units ({sizes}) preserve it"
    elif norm.copies:
        possible = "all the units that it sees have to grow by the same whole multiple"
    else:
        possible = "copies would add to the norm"
    why = ""
    if alone and norm.fill is not None:
        why = ", since what it normalizes isn't a sum of what layers make of it without activation"
    return f"{norm.obstacle}, and {possible}{why}"
