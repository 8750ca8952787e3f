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

Where copies are merged again, all of this runs backwards. The unit that stays is read
with all their shares, so that what makes it gets the sum of their gradients; what reads
it sees what it saw. Of a mean of squares that is the square of the sum of roots: exact
where the copies' gradients are multiples of each other, as those of copies with even
shares are, and a bound from above elsewhere.

A growth that changes the function, or the loss, changes the gradients as well. What is
carried then is what was known of those before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.growth.apply import ahead
from keras_net2net.planning.changes import (
    AxisChange,
    NewUnits,
    VariableChange,
    VariableReplacement,
    even_shares,
    merged,
)
from keras_net2net.planning.plan import Plan, Step
from keras_net2net.planning.remaps import COPY, REMOVED, Remap
from keras_net2net.widths.facts import READS

# Why slots are estimates, and what a user should know of it.
ESTIMATES = {
    "shares": "for what makes copies with random shares the optimizer's state is an estimate, by "
    "the mean of these shares (exact with shares='even')",
    "merged": "for units that take over copies the optimizer's second moments are those of "
    "gradients in step: exact where the copies were read with even shares",
    "filled": "a normalization takes a part of the gradient from units that fill it, which isn't "
    "known: what makes the other units keeps the moments that it would have without",
    "normalized": "an inserted BatchNormalization takes the mean and the scale of a batch out of "
    "the gradients of what it reads: the optimizer's state of that is carried as it was before",
    "function": "what the model computes changes, or its loss, and with it the gradients: the "
    "optimizer's state is carried as it was before",
}


class Shares:
    """The shares with which the units of one step are read.

    Args:
        step: The step.
        seed: The seed of the growth.
    """

    def __init__(self, step: Step, seed: int) -> None:
        # Whether the loss of each batch is what it was.
        self.exact = step.exact and not step.outputs
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
    """

    changes: tuple[tuple[VariableChange | VariableReplacement, Shares], ...]
    seed: int

    @property
    def replaced(self) -> bool:
        """Whether it was replaced by another weight, whose gradients have no past."""
        return any(isinstance(change, VariableReplacement) for change, _ in self.changes)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether something of this shape can be grown as the variable is."""
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
        """Grows what goes with a power of the gradient, of a variable that isn't replaced.

        Args:
            value: The old value.
            power: 1 for gradients, 2 for their squares, 0 for updates.
            start: What it starts at, and what it is the sum with.

        Returns:
            The new value, in float32 or more.
        """
        new = value if value.dtype in (np.float32, np.float64) else value.astype(np.float32)
        if start:
            new = new - new.dtype.type(start)
        for change, shares in self.changes:
            if isinstance(change, VariableReplacement):
                raise TypeError(f"The gradient of {change.name!r} can't be had from the old one.")
            for at in reversed(range(new.ndim)):
                axis = change.axes[at]
                if axis is not None:
                    new = _gathered(new, at, axis, power)
            for at, axis in enumerate(change.axes):
                factor = None if axis is None else shares.along(axis, change.how)
                if factor is not None and not np.all(factor == 1):
                    shape = [1] * new.ndim
                    shape[at] = -1
                    factor = np.where(factor > 0, factor**power, 0)
                    # What was gathered is a copy, which can be changed in place.
                    new *= factor.astype(new.dtype).reshape(shape)
            if change.scale != 1 and power:
                new *= new.dtype.type(change.scale**-power)
        return new + new.dtype.type(start) if start else new

    @property
    def estimates(self) -> frozenset[str]:
        """Why the gradient of what was there before is an estimate only, as in `ESTIMATES`."""
        found: set[str] = set()
        for change, shares in self.changes:
            reasons: set[str] = set()
            if isinstance(change, VariableChange):
                for axis in change.axes:
                    if axis is not None and axis.role != READS:
                        reasons |= _estimates(axis, change.how)
            if not shares.exact:  # new classes hold the mean of others as well
                reasons = reasons - {"filled"} | {"function"}
            found |= reasons
        return frozenset(found)


def _gathered(value: np.ndarray, at: int, axis: AxisChange, power: int) -> np.ndarray:
    """Gathers a slot along one axis, and adds up what makes units that are merged."""
    remap = axis.remap
    if axis.role == READS or remap.into is None or not power:
        return np.take(value, remap.index, axis=at)
    if power == 1:
        return merged(value, at, remap)
    return merged(np.maximum(value, 0) ** (1 / power), at, remap) ** power


def _estimates(axis: AxisChange, how: NewUnits) -> set[str]:
    """Why the gradient of what makes or follows units is an estimate, along one axis."""
    remap, found = axis.remap, set()
    if how.shares == "random" and how.copies(remap).any():
        found.add("shares")
    if remap.fill is not None and not axis.silent and np.any(remap.fill > COPY):
        found.add("filled")  # with the mean of other units, whose gradient that is
    if remap.into is not None:
        counts = np.bincount(remap.into[remap.into != REMOVED], minlength=remap.size)
        if np.any(counts > 1):
            found.add("merged")
        # A normalization divides its own part of the gradient evenly.
        if remap.left is not None and (remap.kept != 1 or len(set(counts.tolist())) > 1):
            found.add("filled")
    return found


def histories(plan: Plan, variables: Mapping[str, Any]) -> dict[int, History]:
    """What a plan does to the variables of a model.

    Args:
        plan: The plan.
        variables: The variables that it changes, by their paths in the plan.

    Returns:
        The history of each, by the variable's `id`.
    """
    found: dict[int, list[tuple[VariableChange | VariableReplacement, Shares]]] = {}
    for step in plan.steps:
        shares = Shares(step, plan.seed)
        for layer in step.layers:
            for change in layer.variables:
                variable = variables.get(change.name)
                if variable is not None:
                    found.setdefault(id(variable), []).append((change, shares))
    return {key: History(tuple(changes), plan.seed) for key, changes in found.items()}


@dataclasses.dataclass
class Lost:
    """The paths of slots that start again.

    Args:
        unknown: Those of which it isn't known what they hold.
        replaced: Those of weights that were replaced by others.
    """

    unknown: list[str] = dataclasses.field(default_factory=list)
    replaced: list[str] = dataclasses.field(default_factory=list)


def carry(
    optimizer: Any,
    before: list[internals.Slot],
    changed: Mapping[int, History],
    plan: Plan,
    variables: Mapping[str, Any],
    lost: Lost,
) -> None:
    """Gives an optimizer's new slots the values of the old ones, grown.

    Args:
        optimizer: The optimizer, built for the grown model.
        before: The slots that it had.
        changed: The histories of the variables that grow, by `id`.
        plan: What was done.
        variables: The variables that the plan changed or inserted, by their paths in it.
        lost: Takes the paths of the slots that start again.
    """
    after = {(id(slot.owner), slot.name): slot.variable for slot in internals.slots_of(optimizer)}
    work, targets = [], []
    for slot in before:
        target = after.get((id(slot.owner), slot.name))
        if target is None:
            if slot.owner is None:
                lost.unknown.append(slot.variable.path)
            continue  # frozen, or of another optimizer since
        history = None if slot.owner is None else changed.get(id(slot.owner))
        power = None if slot.kind is None else slot.kind.power
        if history is None:
            if tuple(target.shape) == tuple(slot.variable.shape):
                target.assign(slot.variable)
            else:
                lost.unknown.append(slot.variable.path)
        elif history.replaced and power != internals.WEIGHT:
            lost.replaced.append(slot.variable.path)
        elif slot.kind is None or (
            power != internals.DERIVED and not history.fits(slot.variable.shape)
        ):
            lost.unknown.append(slot.variable.path)
        elif power != internals.DERIVED:
            start = getattr(optimizer, slot.kind.start) if slot.kind.start else 0.0
            work.append((history, slot.variable, power, float(start)))
            targets.append(target)
    read = ((one, internals.read_variable(old), *kind) for one, old, *kind in work)
    for target, value in zip(targets, ahead(_grown, read), strict=True):
        target.assign(value)
    _derive(before, after, plan, variables)
    _factor(optimizer, changed)


def _derive(
    before: list[internals.Slot],
    after: Mapping[tuple[int, str], Any],
    plan: Plan,
    variables: Mapping[str, Any],
) -> None:
    """Gives inserted weights that are computed from others averages computed from theirs."""
    weights = [weight for step in plan.steps for one in step.insertions for weight in one.weights]
    if all(weight.source is None for weight in weights):
        return
    paths = {id(variable): path for path, variable in variables.items()}
    old: dict[str, dict[str, np.ndarray]] = {}
    for slot in before:
        if (
            slot.kind is not None
            and slot.kind.power == internals.WEIGHT
            and id(slot.owner) in paths
        ):
            value = internals.read_variable(slot.variable)
            old.setdefault(slot.name, {})[paths[id(slot.owner)]] = value
    for name, averages in old.items():
        for path, value in plan.apply_to(averages, partial=True).items():
            target = after.get((id(variables.get(path)), name))
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
