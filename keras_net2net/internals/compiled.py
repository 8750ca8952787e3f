"""What a model was compiled with: losses and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def compiled_parts(model: Any) -> list[tuple[Any, int | None]]:
    """The losses and metrics that a model uses, with the position of the output of each.

    `compile` keeps them in `_compile_metrics` and `_compile_loss`, as the user gave them,
    and for each output once they have seen one. What was given by name is there only
    then. The position is `None` where one serves all outputs, or where it isn't known.
    """
    parts: list[tuple[Any, int | None]] = []
    metrics = getattr(model, "_compile_metrics", None)
    loss = getattr(model, "_compile_loss", None)
    if metrics is not None and metrics.built:
        for held in (metrics._flat_metrics, metrics._flat_weighted_metrics):
            for output, one in enumerate(held):
                parts += [(metric, output) for metric in (one.metrics if one is not None else ())]
    given = [] if metrics is None else [metrics._user_metrics, metrics._user_weighted_metrics]
    given += [] if loss is None else [loss._user_loss]
    names = list(getattr(metrics or loss, "output_names", None) or ["the only one"])
    for user in given:
        for part, at in _by_output(user, names):
            flat = keras.tree.flatten(part)
            parts += [(one, at) for one in flat if isinstance(one, (keras.Metric, keras.Loss))]
    if getattr(model, "compiled", False):
        parts += [(metric, None) for metric in model.metrics if metric is not metrics]
    found: dict[int, tuple[Any, int | None]] = {}
    for one, at in parts:
        found.setdefault(id(one), (one, at))
    return list(found.values())


def _by_output(user: Any, names: Sequence[str]) -> list[tuple[Any, int | None]]:
    """The parts of what a user gave to `compile`, with the output that each is for."""
    if len(names) == 1:
        return [(user, 0)]
    if isinstance(user, dict):
        return [(part, names.index(k) if k in names else None) for k, part in user.items()]
    if isinstance(user, (list, tuple)) and len(user) == len(names):
        return [(part, output) for output, part in enumerate(user)]
    return [(user, None)]


def become(thing: Any, twin: Any) -> None:
    """Gives a loss or metric all that a new one of its class holds, and keeps its name.

    A metric can't change the shape of its state, and `compile` keeps the object in
    several places, among them the configuration that is saved.
    """
    name = thing.name
    attributes = vars(thing)
    attributes.clear()
    attributes.update(vars(twin))
    thing.name = name
