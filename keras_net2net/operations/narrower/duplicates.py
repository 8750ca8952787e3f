"""Which units can go without a trace: copies of others, and those that only fill.

Two units are copies if swapping them changes nothing: what makes and follows them is
the same, up to how the weights that read other copies share them. So copies are found
as equal states of an automaton are: all units of a width start as one class, and each
weight splits the classes whose units it tells apart, with what reads a class added up,
until no weight does.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.planning.remaps import REMOVED, Remap, generator, removal
from keras_net2net.widths.expressions import (
    Concat,
    Expression,
    Product,
    Width,
    common_factor,
    resolve,
    widths_of,
)
from keras_net2net.widths.facts import READS, Facts, Normalized, WeightAxis
from keras_net2net.widths.inferred import Inferred

# Relative to the largest weight: what adding up shares may have rounded away.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5}


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """A weight of a live layer, with what its axes are."""

    facts: Facts
    name: str
    axes: tuple[WeightAxis, ...]
    value: np.ndarray

    @property
    def tolerance(self) -> float:
        """The largest difference between weights that are the same."""
        largest = float(np.max(np.abs(self.value), initial=0.0))
        return TOLERANCES.get(str(self.value.dtype), 1e-5) * max(largest, 1e-30)


def weights_of(inference: Inferred) -> list[Held]:
    """All weights of a model that rules speak of."""
    found = []
    for facts in inference.facts.values():
        if not isinstance(facts.operation, keras.Layer) or not facts.weights:
            continue
        variables = internals.named_variables(facts.operation)
        for name, axes in facts.weights.items():
            value = internals.read_variable(variables[name])
            if value.dtype not in (np.float32, np.float64):
                value = value.astype(np.float32)
            found.append(Held(facts, name, axes, value))
    return found


# -- where units stand along an axis -------------------------------------------------


def units_along(expression: Expression, width: Width) -> np.ndarray | None:
    """For each position along an axis: which unit of a width it holds, -1 for none.

    Returns:
        The units. `None` where the width is multiplied with itself.
    """
    expression = resolve(expression)
    if expression is width:
        return np.arange(int(width.size or 0))
    if isinstance(expression, Concat):
        parts = [units_along(part, width) for part in expression.parts]
        found = [part for part in parts if part is not None]
        return np.concatenate(found) if len(found) == len(parts) else None
    if isinstance(expression, Product):
        units = np.full(1, -1)
        for factor in expression.factors:
            more = units_along(factor, width)
            if more is None or (more.max() >= 0 and units.max() >= 0):
                return None
            units = np.maximum.outer(units, more).ravel()
        return units
    return np.full(int(expression.size or 0), -1)


def labels_along(expression: Expression, classes: Mapping[Width, np.ndarray]) -> np.ndarray:
    """The class of each position along an axis: all that tells it apart from others."""
    expression = resolve(expression)
    if isinstance(expression, Width) and expression in classes:
        return classes[expression]
    if isinstance(expression, Concat):
        labels, count = [], 0
        for part in expression.parts:
            labels.append(labels_along(part, classes) + count)
            count = int(labels[-1].max(initial=count - 1)) + 1
        return np.concatenate(labels)
    if isinstance(expression, Product):
        whole = np.zeros(1, int)
        for factor in expression.factors:
            found = labels_along(factor, classes)
            whole = np.add.outer(whole * (int(found.max()) + 1), found).ravel()
        return whole
    return np.arange(int(expression.size or 0))


def units_first(value: np.ndarray, axis: int, expression: Expression, width: Width) -> Any:
    """A weight as one row for each unit of a width, or `None` where it can't be."""
    units = units_along(expression, width)
    if units is None:
        return None
    size = int(width.size or 0)
    rest = labels_along(expression, {width: np.zeros(size, int)})
    here = np.flatnonzero(units >= 0)
    order = here[np.lexsort((rest[here], units[here]))]
    return np.take(value, order, axis=axis).swapaxes(0, axis).reshape(size, -1)


# -- duplicates ------------------------------------------------------------------------


def duplicates(weights: Sequence[Held]) -> dict[Width, np.ndarray]:
    """Finds the units that compute the same.

    Args:
        weights: All weights of the model.

    Returns:
        For each width the class of each of its units. Units of a class are copies of
        each other: at every input, in both modes.
    """
    classes: dict[Width, np.ndarray] = {}
    told: set[Width] = set()
    for held in weights:
        for axis in held.axes:
            for width in widths_of(axis.expression):
                classes.setdefault(width, np.zeros(int(width.size or 0), int))
                if axis.role != READS and units_along(axis.expression, width) is not None:
                    told.add(width)
    for width in classes:
        # What can't change may hold more than its weights say.
        if width.obstacle is not None or width not in told:
            classes[width] = np.arange(int(width.size or 0))
    count = -1
    while count != (count := sum(int(labels.max()) + 1 for labels in classes.values())):
        for held in weights:
            value = _collapsed(held, classes)
            for at, axis in enumerate(held.axes):
                if axis.role == READS:
                    continue
                for width in widths_of(axis.expression):
                    if int(classes[width].max()) + 1 == len(classes[width]):
                        continue
                    rows = units_first(value, at, axis.expression, width)
                    if rows is None:
                        classes[width] = np.arange(len(classes[width]))
                    else:
                        classes[width] = _split(classes[width], rows, held.tolerance)
    return classes


def _collapsed(held: Held, classes: Mapping[Width, np.ndarray]) -> np.ndarray:
    """A weight with what reads copies added up."""
    value = held.value
    for at, axis in enumerate(held.axes):
        if axis.role != READS:
            continue
        labels = labels_along(axis.expression, classes)
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) > 0])
        if len(starts) < len(labels):
            value = np.add.reduceat(np.take(value, order, axis=at), starts, axis=at)
    return value


def _split(labels: np.ndarray, rows: np.ndarray, tolerance: float) -> np.ndarray:
    """Splits classes whose units have different rows; classes are numbered by first unit."""
    weights = generator(0, "split", rows.shape[1]).standard_normal(rows.shape[1])
    order = np.lexsort((rows @ (weights / max(1.0, float(np.linalg.norm(weights)))), labels))
    leader = np.empty(len(labels), int)
    first = order[0]
    for unit in order:
        same = labels[unit] == labels[first]
        if not same or np.max(np.abs(rows[unit] - rows[first]), initial=0.0) > tolerance:
            first = unit
        leader[unit] = first
    return _numbered(leader)


def _numbered(labels: np.ndarray) -> np.ndarray:
    """The same classes, numbered in the order of their first units."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), int)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


@dataclasses.dataclass(frozen=True, eq=False)
class Removable:
    """The units of a width that can go without a trace.

    Args:
        labels: The class of each unit.
        fills: The units that only fill a normalization: with the mean, or with zero.
        together: Whether a normalization sees the units, so that as many of each class
            must stay.
        whole: Whether all of each class must stay, but for those that fill.
    """

    labels: np.ndarray
    fills: np.ndarray
    together: bool
    whole: bool = False

    @property
    def _counts(self) -> np.ndarray:
        return np.bincount(self.labels[~self.fills], minlength=int(self.labels.max()) + 1)

    def sizes(self) -> list[int]:
        """The sizes that are possible, in ascending order, the present one included."""
        counts = self._counts[self._counts > 0]
        if not self.together:
            return list(range(len(counts), len(self.labels) + 1))
        step = int(np.gcd.reduce(counts))
        rest = int(self.fills.sum())
        parts = [step] if self.whole else range(1, step + 1)
        each = int(counts.sum()) // step
        return sorted({each * part + more for part in parts for more in range(rest + 1)})

    def remap(self, size: int) -> Remap:
        """The remap to one of the possible sizes."""
        if not self.together:
            kept = _first_of_each(self.labels, size)
            return removal(np.flatnonzero(kept), _taken_over(self.labels, kept))
        counts = self._counts
        step = int(np.gcd.reduce(counts[counts > 0]))
        each, rest = int(counts.sum()) // step, int(self.fills.sum())
        parts: Sequence[int] = [step] if self.whole else range(step, 0, -1)
        part = next(part for part in parts if 0 <= size - each * part <= rest)
        most = counts * part // step
        kept = np.zeros(len(self.labels), bool)
        taken = np.zeros(len(counts), int)
        left = size - each * part
        for unit, label in enumerate(self.labels):
            if self.fills[unit]:
                kept[unit], left = left > 0, left - 1
            elif taken[label] < most[label]:
                kept[unit] = True
                taken[label] += 1
        labels = np.where(self.fills, len(counts), self.labels)
        return removal(np.flatnonzero(kept), _taken_over(labels, kept), part / step)


def _first_of_each(labels: np.ndarray, size: int) -> np.ndarray:
    """Takes the last units of the largest classes away until `size` are left."""
    kept = np.ones(len(labels), bool)
    members = [list(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    queue = [(-len(units), label) for label, units in enumerate(members)]
    heapq.heapify(queue)
    for _ in range(len(labels) - size):
        count, label = heapq.heappop(queue)
        kept[members[label].pop()] = False
        heapq.heappush(queue, (count + 1, label))
    return kept


def _taken_over(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """For each unit the one that takes over: itself, or one of its class that stays, in turn."""
    into = np.full(len(labels), REMOVED)
    for label in range(int(labels.max()) + 1):
        units = np.flatnonzero(labels == label)
        stay, gone = units[kept[units]], units[~kept[units]]
        if len(stay):
            into[gone] = np.resize(stay, len(gone))
    into[kept] = np.flatnonzero(kept)
    return into


def removable(
    inference: Inferred, weights: Sequence[Held], widths: Iterable[Width]
) -> dict[Width, Removable]:
    """What can be removed of widths without a trace."""
    classes = duplicates(weights)
    found = {}
    for width in widths:
        labels = classes.get(width, np.arange(int(width.size or 0)))
        norms = [n for n in inference.normalized if width in widths_of(resolve(n.expression))]
        fills = np.zeros(len(labels), bool)
        if norms and all(resolve(norm.expression) is width for norm in norms):
            fills = _fills(weights, classes, width, norms)
        whole = not all(norm.copies for norm in norms)
        found[width] = Removable(labels, fills, bool(norms), whole)
    return found


def _fills(
    weights: Sequence[Held],
    classes: Mapping[Width, np.ndarray],
    width: Width,
    norms: Sequence[Normalized],
) -> np.ndarray:
    """The units of a width that hold the mean of all, or zero, and that nothing sees."""
    size = int(width.size or 0)
    none = np.zeros(size, bool)
    kinds = {
        norm.fill
        if (norm.content.mean == "mean" if norm.fill == "mean" else norm.content.zero == "zero")
        else None
        for norm in norms
    }
    if len(kinds) != 1 or None in kinds:
        return none
    kind = str(kinds.pop())
    fills = np.ones(size, bool)
    made = False
    for held in weights:
        value = _collapsed(held, classes)
        for at, axis in enumerate(held.axes):
            if width not in widths_of(axis.expression):
                continue
            silent = axis.silent_for(kind)
            if axis.role == "follows" and not silent:
                continue
            if axis.role == READS and not silent:
                continue
            # What reads is looked at as it is; what makes, with what it reads added up.
            whole = held.value if axis.role == READS else value
            rows = units_first(whole, at, axis.expression, width)
            if rows is None:
                return none
            made = made or axis.role == "makes"
            center = rows.mean(axis=0) if kind == "mean" and not silent else 0.0
            off = np.max(np.abs(rows - center), axis=1, initial=0.0)
            fills &= off <= held.tolerance
    return none if not made or fills.all() else fills


def unequal(inference: Inferred, remaps: Mapping[Width, Remap]) -> dict[Width, str]:
    """Widths that would have to shrink together with others that a normalization sees."""
    problems: dict[Width, str] = {}

    def left(width: Width) -> float | None:
        remap = remaps.get(width)
        return 1.0 if remap is None else remap.left

    for norm in inference.normalized:
        expression = resolve(norm.expression)
        if isinstance(expression, Width) or common_factor(expression, left) is not None:
            continue
        for width in widths_of(expression):
            if width in remaps:
                problems[width] = (
                    f"{norm.obstacle}, and all the units that it sees have to shrink by the same "
                    "whole part"
                )
    return problems
