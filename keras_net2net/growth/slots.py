"""The slots of optimizers: those of the grown variables get the values of the old ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.growth.apply import ahead
from keras_net2net.growth.history import Growth, History

# Why slots start again.
REPLACED = "others have replaced these weights, and not all of it follows"
UNKNOWN = "it isn't known what they hold"


def carry(optimizer: Any, before: list[internals.Slot], growth: Growth) -> list[tuple[str, str]]:
    """Gives an optimizer's new slots the values of the old ones, grown.

    Args:
        optimizer: The optimizer, built for the grown model.
        before: The slots that it had.
        growth: What was done.

    Returns:
        The paths of the slots that start again, each with the reason.
    """
    after = {(id(slot.owner), slot.name): slot.variable for slot in internals.slots_of(optimizer)}
    work, targets, lost = [], [], []
    for slot in before:
        target: Any = after.get((id(slot.owner), slot.name))
        if target is None and slot.owner is not None:
            continue  # frozen, or of another optimizer since
        history = None if slot.owner is None else growth.histories.get(id(slot.owner))
        reason = _obstacle(slot, history, target)
        if reason is not None:
            lost.append((slot.variable.path, reason))
        elif history is None:
            target.assign(slot.variable)
        elif slot.kind is not None and slot.kind.power != internals.DERIVED:
            start = getattr(optimizer, slot.kind.start) if slot.kind.start else 0.0
            work.append((history, slot.variable, slot.kind.power, float(start)))
            targets.append(target)
    read = ((one, internals.read_variable(old), *kind) for one, old, *kind in work)
    for target, value in zip(targets, ahead(_grown, read), strict=True):
        target.assign(value)
    _derive(before, after, growth)
    _factor(optimizer, growth.histories)
    return lost


def _obstacle(slot: internals.Slot, history: History | None, target: Any) -> str | None:
    """Why the value of a slot can't be carried, if it can't."""
    if target is None:
        return UNKNOWN
    if history is None:
        return None if tuple(target.shape) == tuple(slot.variable.shape) else UNKNOWN
    power = None if slot.kind is None else slot.kind.power
    if history.replaced and power != internals.WEIGHT:
        return REPLACED
    if power is None or (power != internals.DERIVED and not history.fits(slot.variable.shape)):
        return UNKNOWN
    return None


def _derive(
    before: list[internals.Slot], after: Mapping[tuple[int, str], Any], growth: Growth
) -> None:
    """Gives inserted weights that are computed from others averages computed from theirs."""
    inserted = [one for step in growth.plan.steps for one in step.insertions]
    if all(weight.source is None for one in inserted for weight in one.weights):
        return
    old: dict[str, dict[str, np.ndarray]] = {}
    for slot in before:
        path = growth.paths.get(id(slot.owner))
        if path and slot.kind is not None and slot.kind.power == internals.WEIGHT:
            old.setdefault(slot.name, {})[path] = internals.read_variable(slot.variable)
    for name, averages in old.items():
        for path, value in growth.plan.apply_to(averages, partial=True).items():
            target = after.get((id(growth.variables.get(path)), name))
            if path not in averages and target is not None:
                target.assign(value)


def _grown(history: History, value: np.ndarray, power: Any, start: float) -> np.ndarray:
    if power == internals.WEIGHT:
        return history.as_weight(value)
    return history.as_gradient(value, power, start)


def _factor(optimizer: Any, changed: Mapping[int, History]) -> None:
    """Factors the second moments of Adafactor anew, where they have grown.

    It keeps their means over the last two axes, and their product beside these.
    """
    by_owner: dict[int, dict[str, Any]] = {}
    for slot in internals.slots_of(optimizer):
        if id(slot.owner) in changed:
            by_owner.setdefault(id(slot.owner), {})[slot.name] = slot.variable
    for slots in by_owner.values():
        if {"_r", "_c", "_v"} <= set(slots):
            moments = internals.read_variable(slots["_v"])
            slots["_r"].assign(moments.mean(axis=-1))
            slots["_c"].assign(moments.mean(axis=-2))


def settle(optimizer: Any) -> None:
    """Fits the slots that an optimizer computes its weights from to the grown weights.

    FTRL makes each weight anew at every step, from the sum of the gradients and that of
    their squares. Were these zero, or the learning rate another, the weights would be.
    """
    if not isinstance(optimizer, keras.optimizers.Ftrl) or not optimizer.built:
        return
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    if not rate > 0:
        return
    slots: dict[int, dict[str, Any]] = {}
    for slot in internals.slots_of(optimizer):
        slots.setdefault(id(slot.owner), {"owner": slot.owner})[slot.name] = slot.variable
    l1 = optimizer.l1_regularization_strength
    l2 = optimizer.l2_regularization_strength + optimizer.beta / (2 * rate)
    for held in slots.values():
        weight, squares, linear = (
            internals.read_variable(held[name]).astype("float64")
            for name in ("owner", "_accumulators", "_linears")
        )
        quadratic = squares**-optimizer.learning_rate_power / rate + 2 * l2
        settled = np.where(
            weight == 0, np.clip(linear, -l1, l1), -weight * quadratic - np.sign(weight) * l1
        )
        held["_linears"].assign(settled.astype("float32"))
