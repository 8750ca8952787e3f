"""Random operations on the layers that a model has."""

from __future__ import annotations

from typing import Any

from keras import layers

import keras_net2net as n2n
from keras_net2net.planning.draft import Draft
from keras_net2net.widths.expressions import widths_of
from tests.support.random_models.sources import Source

HAVE_IDENTITY = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
IDEMPOTENT = ("relu", "linear")


def random_operation(source: Source, model: Any) -> Any:
    """One operation, or a list of two, on layers that the model has."""
    if source.below(6) == 5:
        return [_operation(source, model), _operation(source, model)]
    return _operation(source, model)


def _operation(source: Source, model: Any) -> Any:
    def pick(*values: Any) -> Any:
        return values[source.below(len(values))]

    facts = list(Draft(model, 0).layers())
    if not facts:
        return n2n.Wider(factor=1.5)
    # Mostly layers whose units can grow, sometimes any that makes units, or any at all.
    free = [one for one in facts if any(w.obstacle is None for w in widths_of(one.main))]
    makers = [one for one in facts if one.units]
    wanted = source.below(16)
    kind = source.below(18)
    if wanted < 14 and kind in (10, 11):  # what has an identity, mostly
        known = [one for one in free if isinstance(one.operation, HAVE_IDENTITY)]
        named = [one for one in known if one.operation.activation.__name__ in IDEMPOTENT]
        free = (known if wanted < 2 else named) or known or free
    chosen = pick(*((free if wanted < 14 else makers if wanted < 15 else facts) or facts))
    path = chosen.path
    how = {"new_units": pick("replicate", "fresh"), "shares": pick("random", "even")}
    now = chosen.main.size or 1
    if kind in (0, 1):
        return n2n.Wider(path, factor=pick(1.5, 2, 1.2, 3), **how)
    if kind in (2, 3):
        return n2n.Wider(path, units=now + pick(1, 2, 3, now), round_to=pick(1, 1, 2, 4), **how)
    if kind in (4, 5, 6):
        return n2n.Wider(factor=pick(1.5, 2), **how)
    if kind == 7:
        return n2n.Wider(
            pick("*", f"*{path[-2:]}", "*", f"*{path[:3]}*", "*dense*"), factor=pick(1.5, 2), **how
        )
    if kind == 8 and chosen.units:
        parts = [
            part
            for part, units in chosen.units.items()
            if any(width.obstacle is None for width in widths_of(units))
        ]
        part = pick(*(parts or chosen.units))
        size = chosen.units[part].size or 1
        return n2n.Wider(path, units={part: size * 2 if pick(0, 1) else size + 1}, **how)
    if kind == 9:
        return n2n.Wider({path: now * 2}, **how)
    if kind == 10:
        return n2n.Deeper(path, count=pick(1, 2), batch_norm=pick(None, False, True))
    if kind == 11:
        return n2n.Deeper(path, units=now + pick(0, 1, 3), activation=pick(None, "linear"))
    if kind == 12:
        return n2n.Deeper(path, form=pick("prelu", "auto", "factor"))
    if kind in (13, 14):
        named = pick(*(call.path for call in Draft(model, 0).graph.calls), path)
        return n2n.Deeper(named, count=pick(1, 1, 2), form="residual")
    if kind == 15:
        return n2n.LargerKernel(pick(path, None, None), kernel_size=pick(2, 3, 4, 5))
    if kind == 16:
        return n2n.Narrower(pick(path, None, None))
    return n2n.NewClasses(
        pick(*(one.path for one in facts)), pick(1, 3), start=pick("zeros", "mean", "suppressed")
    )
