"""The state of optimizers through a growth: the chain rule, replayed on every slot.

Gradients scale the other way round from weights. A copy that is read with the share
a passes on a times the gradient that its unit passed on, so that the weights that
make the copy get a times the old gradient. What reads it sees the unit itself: its
gradient is the old one, unchanged, although the weight was divided. So a mean of
gradients is gathered as the weights are, and multiplied by a along the axes that
make or follow units; a mean of their squares by the square of a. What a growth adds
that is no copy has no past: it starts where the optimizer starts.

With even shares this is exact. With random ones, each weight that reads a copy has a
share of its own, and what the copy passes on isn't a multiple of what its unit did.
Then a is the mean of the shares with which it is read: exact where one weight reads
it, and an estimate elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net import keras_privates as privates
from keras_net2net.apply import ahead
from keras_net2net.plan import Plan, Step
from keras_net2net.remaps import Remap
from keras_net2net.weights import (
    READS,
    AxisChange,
    NewUnits,
    VariableChange,
    VariableReplacement,
    even_shares,
)


class Shares:
    """The shares with which the units of one step are read.

    Args:
        step: The step.
        seed: The seed of the growth.
    """

    def __init__(self, step: Step, seed: int) -> None:
        sums: dict[str, list[Any]] = {}
        for layer in step.layers:
            for change in layer.variables:
                if isinstance(change, VariableReplacement):
                    continue
                for at, axis in enumerate(change.axes):
                    if axis is not None and axis.role == READS and change.how.shares == "random":
                        found = change.mean_shares(at, seed)
                        if found is not None:
                            _collect(axis.remap, *found, sums)
        # By the name of the width: the mean over all weights that read it.
        self._means = {name: total / weight for name, (total, weight) in sums.items()}

    def along(self, change: AxisChange, how: NewUnits) -> np.ndarray:
        """What the gradient of a weight is multiplied by, along one of its axes.

        Args:
            change: What happens along the axis.
            how: How new units start.

        Returns:
            One number for each unit: its share where the axis makes or follows units,
            one where it reads them, and zero for units that are no copies.
        """
        kept = even_shares(change.remap, how) > 0
        if change.role == READS:
            return kept.astype(float)
        return self._of(change.remap, how) * kept

    def _of(self, remap: Remap, how: NewUnits) -> np.ndarray:
        if remap.parts:
            parts = [self._of(part, how) for part in remap.parts]
            return np.outer(*parts).ravel() if remap.crossed else np.concatenate(parts)
        mean = self._means.get(remap.name) if how.shares == "random" else None
        return even_shares(remap, how) if mean is None else mean


def _collect(remap: Remap, shares: np.ndarray, weight: float, sums: dict[str, list[Any]]) -> None:
    """Adds the shares of an axis to those of the widths that it is made of."""
    if remap.crossed:
        outer, inner = remap.parts
        table = shares.reshape(outer.size, inner.size)
        # The copies that another width makes of one of its units belong together.
        _collect(outer, table.sum(axis=1) / inner.old_size, weight * inner.old_size, sums)
        _collect(inner, table.sum(axis=0) / outer.old_size, weight * outer.old_size, sums)
    elif remap.parts:
        ends = np.cumsum([part.size for part in remap.parts])
        for part, piece in zip(remap.parts, np.split(shares, ends[:-1]), strict=True):
            _collect(part, piece, weight, sums)
    elif remap.name:
        held = sums.setdefault(remap.name, [0.0, 0.0])
        held[0] = held[0] + weight * shares
        held[1] += weight


@dataclasses.dataclass(frozen=True)
class History:
    """What a plan does to one variable: its changes, in their order.

    Args:
        changes: The changes, each with the shares of its step.
        seed: The seed of the growth.
        replaced: Whether it was replaced by another one, which has no past.
    """

    changes: tuple[tuple[VariableChange, Shares], ...]
    seed: int
    replaced: bool = False

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether something of this shape can be grown as the variable is."""
        if self.replaced:
            return False
        for change, _ in self.changes:
            if len(shape) != len(change.axes):
                return False
            for size, axis in zip(shape, change.axes, strict=True):
                if axis is not None and axis.remap.old_size != size:
                    return False
            shape = change.new_shape(shape)
        return True

    def as_weight(self, value: np.ndarray) -> np.ndarray:
        """Grows what is a weight itself, such as an average of weights."""
        for change, _ in self.changes:
            value = change.apply(value, self.seed)
        return value

    def as_gradient(self, value: np.ndarray, power: int = 1, start: float = 0.0) -> np.ndarray:
        """Grows what goes with a power of the gradient.

        Args:
            value: The old value.
            power: 1 for gradients, 2 for their squares, 0 for updates.
            start: What it starts at, and what it is the sum with.

        Returns:
            The new value, in float32 or more.
        """
        new = value if value.dtype in (np.float32, np.float64) else value.astype(np.float32)
        for change, shares in self.changes:
            for at in reversed(range(new.ndim)):
                axis = change.axes[at]
                if axis is not None:
                    new = np.take(new, axis.remap.index, axis=at)
            # What was gathered is a copy, which can be changed in place.
            if start:
                new -= new.dtype.type(start)
            for at, axis in enumerate(change.axes):
                factor = None if axis is None else shares.along(axis, change.how)
                if factor is not None and not np.all(factor == 1):
                    shape = [1] * new.ndim
                    shape[at] = -1
                    factor = np.where(factor > 0, factor**power, 0)
                    new *= factor.astype(new.dtype).reshape(shape)
            if change.scale != 1 and power:
                new *= new.dtype.type(change.scale**-power)
            if start:
                new += new.dtype.type(start)
        return new

    @property
    def estimated(self) -> bool:
        """Whether a copy's gradient is an estimate only: with random shares, say."""
        for change, _ in self.changes:
            for axis in change.axes:
                if axis is None:
                    continue
                copies = axis.role != READS and change.how.copies(axis.remap).any()
                uneven = change.how.shares == "random" or change.how.noise > 0
                if (copies and uneven) or axis.remap.fills.any():
                    return True
        return False


def histories(plan: Plan, variables: Mapping[str, Any]) -> dict[int, History]:
    """What a plan does to the variables of a model.

    Args:
        plan: The plan.
        variables: The variables that it changes, by their paths in the plan.

    Returns:
        The history of each, by the variable's `id`.
    """
    found: dict[int, list[tuple[VariableChange, Shares]]] = {}
    replaced: set[int] = set()
    for step in plan.steps:
        shares = Shares(step, plan.seed)
        for layer in step.layers:
            for change in layer.variables:
                variable = variables.get(change.name)
                if variable is None:
                    continue
                changes = found.setdefault(id(variable), [])
                if isinstance(change, VariableReplacement):
                    replaced.add(id(variable))
                else:
                    changes.append((change, shares))
    return {
        key: History(tuple(changes), plan.seed, key in replaced) for key, changes in found.items()
    }


def carry(optimizer: Any, before: list[privates.Slot], changed: Mapping[int, History]) -> list[str]:
    """Gives an optimizer's new slots the values of the old ones, grown.

    Args:
        optimizer: The optimizer, built for the grown model.
        before: The slots that it had.
        changed: The histories of the variables that grow, by `id`.

    Returns:
        The paths of the slots that start again, since it isn't known what they hold.
    """
    after = {(id(slot.owner), slot.name): slot.variable for slot in privates.slots_of(optimizer)}
    lost: list[str] = []
    work, targets = [], []
    for slot in before:
        target = after.get((id(slot.owner), slot.name))
        if target is None:
            if slot.owner is None:
                lost.append(slot.variable.path)
            continue  # frozen, or of another optimizer since
        history = None if slot.owner is None else changed.get(id(slot.owner))
        if history is None:
            if tuple(target.shape) == tuple(slot.variable.shape):
                target.assign(slot.variable)
            else:
                lost.append(slot.variable.path)
        elif slot.kind is None or (
            slot.kind.power != privates.DERIVED and not history.fits(slot.variable.shape)
        ):
            lost.append(slot.variable.path)
        elif slot.kind.power != privates.DERIVED:
            start = getattr(optimizer, slot.kind.start) if slot.kind.start else 0.0
            work.append((history, slot.variable, slot.kind.power, float(start)))
            targets.append(target)
    read = ((one, privates.read_variable(old), *kind) for one, old, *kind in work)
    for target, value in zip(targets, ahead(_grown, read), strict=True):
        target.assign(value)
    _factor(optimizer, changed)
    return lost


def _grown(history: History, value: np.ndarray, power: Any, start: float) -> np.ndarray:
    if power == privates.WEIGHT:
        return history.as_weight(value)
    return history.as_gradient(value, power, start)


def _factor(optimizer: Any, changed: Mapping[int, History]) -> None:
    """Factors the second moments of Adafactor anew, where they have grown.

    It keeps their means over the last two axes, and their product beside these.
    """
    by_owner: dict[int, dict[str, Any]] = {}
    for slot in privates.slots_of(optimizer):
        if id(slot.owner) in changed:
            by_owner.setdefault(id(slot.owner), {})[slot.name] = slot.variable
    for slots in by_owner.values():
        if {"_r", "_c", "_v"} <= set(slots):
            moments = privates.read_variable(slots["_v"])
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
    for slot in privates.slots_of(optimizer):
        slots.setdefault(id(slot.owner), {"owner": slot.owner})[slot.name] = slot.variable
    l1 = optimizer.l1_regularization_strength
    l2 = optimizer.l2_regularization_strength + optimizer.beta / (2 * rate)
    for held in slots.values():
        weight, squares, linear = (
            privates.read_variable(held[name]).astype("float64")
            for name in ("owner", "_accumulators", "_linears")
        )
        quadratic = squares**-optimizer.learning_rate_power / rate + 2 * l2
        settled = np.where(
            weight == 0, np.clip(linear, -l1, l1), -weight * quadratic - np.sign(weight) * l1
        )
        held["_linears"].assign(settled.astype("float32"))
