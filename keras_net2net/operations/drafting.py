"""From the operations that a user asks for to a draft of what they do to a model."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.operations.base import Operation, as_operations
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.remaps import generator


def draft_growth(
    model: Any,
    operations: Any,
    seed: int | None,
    stuck: Mapping[str, tuple[str, int]] | None = None,
    calibration: Any = None,
    loss_of: Any = None,
) -> Draft:
    """Drafts a growth, one operation after the other.

    Args:
        model: The model.
        operations: An operation, or a list of operations, of one stage.
        seed: The seed of all that is drawn; `None` becomes a random one.
        stuck: As for `Draft`.
        calibration: As for `Draft`.
        loss_of: As for `Draft`.

    Returns:
        The draft, with the steps of all operations.
    """
    wanted = as_operations(operations)
    draft = Draft(model, as_seed(seed, model), stuck, calibration, loss_of)
    for operation in wanted:
        draft.add(operation.steps(draft))
    return draft


def stages(operations: Any) -> list[list[Operation]]:
    """Operations in groups, each planned on the model as the groups before have left it.

    Most are planned together. One that looks at weights or activations needs those of
    a model that all operations before it have already been done to; and what one inserts
    that copies whole parts of a model is known to those behind it only once it is there.
    """
    groups: list[list[Operation]] = []
    for operation in as_operations(operations):
        if not groups or operation.looks_at_model or groups[-1][-1].ends_stage:
            groups.append([])
        groups[-1].append(operation)
    return groups


def by_path(model: Any, operations: Any) -> list[Operation]:
    """The same operations, with paths in the place of layer objects of a model."""
    draft = Draft(model, 0)
    return [operation.by_path(draft) for operation in as_operations(operations)]


def as_seed(seed: int | None, model: Any) -> int:
    """Checks a seed; `None` becomes a random one.

    Processes that train a model together have to draw the same: theirs comes from what
    all of them share, how far the model and its training are.
    """
    if seed is None and internals.process_count(model) > 1:
        optimizer = getattr(model, "optimizer", None)
        steps = 0 if optimizer is None else internals.steps_done(optimizer)
        shapes = [tuple(variable.shape) for variable in model.variables]
        return int(generator(0, "seed", steps, shapes).integers(2**32))
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise GrowthError(
            "The seed can't be used",
            "it is an integer",
            "Pass an integer",
            received=f"seed={seed!r}",
        )
    return int(seed)
