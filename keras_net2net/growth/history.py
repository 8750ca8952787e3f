"""What a growth did to each variable, and how that is replayed on what goes with it.

On what is a weight itself, such as an average of weights, the changes are replayed as
they are. On what goes with gradients, as the slots of optimizers do, it is the chain rule
that is replayed.

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
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.graph.structure import Shape
from keras_net2net.planning.blueprint import Blueprint
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
        self._step = step
        self._seed = seed

    @functools.cached_property
    def _means(self) -> dict[str, np.ndarray]:
        """By the name of the width: the mean over all weights that read it."""
        sums: dict[str, list[Any]] = {}
        for layer in self._step.layers:
            for change in layer.variables:
                if isinstance(change, VariableReplacement):
                    continue
                for at, axis in enumerate(change.axes):
                    if axis is not None and axis.role == READS and change.how.shares == "random":
                        found = change.mean_shares(at, self._seed)
                        if found is not None:
                            _collect(axis.remap, *found, sums)
        return {name: total / weight for name, (total, weight) in sums.items()}

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

    def old_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape before, of a variable that has this one now."""
        old = list(shape)
        for at in range(len(old)):
            axes = [change.axes[at] for change, _ in self.changes]
            old[at] = next((axis.remap.old_size for axis in axes if axis is not None), old[at])
        return old

    def as_mask(self, mask: np.ndarray) -> np.ndarray:
        """What becomes of a choice among the entries; none of the new ones belong to it."""
        for change, _ in self.changes:
            if isinstance(change, VariableReplacement):  # each entry is made of many old ones
                mask = np.full(change.shape, mask.all())
            for at, axis in enumerate(change.axes):
                if axis is not None:
                    mask = np.take(mask, axis.remap.index, axis=at)
                    np.moveaxis(mask, at, 0)[axis.remap.new] = False
        return mask

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


@dataclasses.dataclass(frozen=True, eq=False)
class Growth:
    """A growth that was carried out, stage by stage: what all that follows it looks at.

    Args:
        stages: For each stage, its blueprint, and what was inserted, by path.
    """

    stages: tuple[tuple[Blueprint, dict[str, Any]], ...] = ()

    def then(self, blueprint: Blueprint, made: dict[str, Any]) -> Growth:
        """The same with one more stage."""
        return Growth((*self.stages, (blueprint, made)))

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan of all stages."""
        return Plan.joined([blueprint.plan for blueprint, _ in self.stages])

    @property
    def output_shapes(self) -> list[Shape]:
        """The shapes of all outputs of the grown model."""
        return [tensor.shape for tensor in self.stages[-1][0].graph.flat_outputs]

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """The variables of all layers, those of inserted ones included, by path in the plan."""
        return {
            f"{path}/{name}": variable
            for blueprint, made in self.stages
            # What was inserted takes the place of what stood for it.
            for path, layer in ({f.path: f.operation for f in blueprint.facts} | made).items()
            if isinstance(layer, keras.Layer)
            for name, variable in internals.named_variables(layer).items()
        }

    @functools.cached_property
    def paths(self) -> dict[int, str]:
        """The path of each variable, by its `id`: the first, where layers share it."""
        return {id(variable): path for path, variable in reversed(self.variables.items())}

    @functools.cached_property
    def histories(self) -> dict[int, History]:
        """What was done to each variable that has changed, by its `id`."""
        found: dict[int, list[tuple[VariableChange | VariableReplacement, Shares]]] = {}
        for step in self.plan.steps:
            shares = Shares(step, self.plan.seed)
            for layer in step.layers:
                for change in layer.variables:
                    variable = self.variables.get(change.name)
                    if variable is not None:
                        found.setdefault(id(variable), []).append((change, shares))
        return {key: History(tuple(changes), self.plan.seed) for key, changes in found.items()}

    def history_of(self, variable: Any) -> History:
        """What was done to a variable, be it nothing."""
        return self.histories.get(id(variable), History((), 0))


class Follower(Protocol):
    """What has to follow a growth; it is made before the growth."""

    def follow(self, growth: Growth) -> tuple[str, ...]:
        """Brings it up to date with a growth, and returns what a user should know."""
