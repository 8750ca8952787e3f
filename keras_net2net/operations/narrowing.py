"""Which units can go: copies of each other, and those that matter least.

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
from keras_net2net.planning.remaps import REMOVED, Remap, generator, remap_of, removal
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


# -- the places of units along an axis ----------------------------------------------


def places(expression: Expression, width: Width) -> tuple[np.ndarray, np.ndarray] | None:
    """For each position along an axis: which unit of a width it holds, and what else tells it.

    Returns:
        The units, -1 for positions of others, and numbers for all the rest that tells
        positions apart. `None` where the width is multiplied with itself.
    """
    expression = resolve(expression)
    if isinstance(expression, Width) and expression is width:
        size = int(width.size or 0)
        return np.arange(size), np.zeros(size, int)
    if isinstance(expression, Concat):
        units, rest, count = [], [], 0
        for part in expression.parts:
            found = places(part, width)
            if found is None:
                return None
            units.append(found[0])
            rest.append(found[1] + count)
            count += int(found[1].max(initial=-1)) + 1
        return np.concatenate(units), np.concatenate(rest)
    if isinstance(expression, Product):
        unit, other = np.full(1, -1), np.zeros(1, int)
        for factor in expression.factors:
            found = places(factor, width)
            if found is None or (found[0].max() >= 0 and unit.max() >= 0):
                return None
            unit = np.maximum.outer(unit, found[0]).ravel()
            other = np.add.outer(other * (int(found[1].max()) + 1), found[1]).ravel()
        return unit, other
    size = int(expression.size or 0)
    return np.full(size, -1), np.arange(size)


def units_first(value: np.ndarray, axis: int, expression: Expression, width: Width) -> Any:
    """A weight as one row for each unit of a width, or `None` where it can't be."""
    found = places(expression, width)
    if found is None:
        return None
    units, rest = found
    here = np.flatnonzero(units >= 0)
    order = here[np.lexsort((rest[here], units[here]))]
    return np.take(value, order, axis=axis).swapaxes(0, axis).reshape(int(width.size or 0), -1)


def _labels(expression: Expression, classes: Mapping[Width, np.ndarray]) -> np.ndarray:
    """The class of each position along an axis."""
    expression = resolve(expression)
    if isinstance(expression, Width) and expression in classes:
        return classes[expression]
    if isinstance(expression, Concat):
        labels, count = [], 0
        for part in expression.parts:
            labels.append(_labels(part, classes) + count)
            count = int(labels[-1].max()) + 1
        return np.concatenate(labels)
    if isinstance(expression, Product):
        whole = np.zeros(1, int)
        for factor in expression.factors:
            found = _labels(factor, classes)
            whole = np.add.outer(whole * (int(found.max()) + 1), found).ravel()
        return whole
    return np.arange(int(expression.size or 0))


# -- copies ----------------------------------------------------------------------------


def copies(weights: Sequence[Held]) -> dict[Width, np.ndarray]:
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
                if axis.role != READS and places(axis.expression, width) is not None:
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
        labels = _labels(axis.expression, classes)
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
class Copies:
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
) -> dict[Width, Copies]:
    """What can be removed of widths without a trace."""
    classes = copies(weights)
    found = {}
    for width in widths:
        labels = classes.get(width, np.arange(int(width.size or 0)))
        norms = [n for n in inference.normalized if width in widths_of(resolve(n.expression))]
        fills = np.zeros(len(labels), bool)
        if norms and all(resolve(norm.expression) is width for norm in norms):
            fills = _fills(weights, classes, width, norms)
        whole = not all(norm.copies for norm in norms)
        found[width] = Copies(labels, fills, bool(norms), whole)
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


# -- units that matter least ---------------------------------------------------------------


def without(held: Held, remaps: Mapping[Width, Remap], width: Width) -> np.ndarray:
    """A weight without the units of other widths that are removed."""
    value = held.value
    for at, axis in enumerate(held.axes):
        others = {other: remap for other, remap in remaps.items() if other is not width}
        remap = remap_of(axis.expression, others)
        if remap is not None and width not in widths_of(axis.expression):
            value = np.take(value, remap.index, axis=at)
    return value


def norms(weights: Sequence[Held], width: Width, remaps: Mapping[Width, Remap]) -> np.ndarray:
    """How much units matter by their weights: norm in x scale x norm out.

    The norms are Euclidean, over all weights that make or read a unit. The scale is the
    root mean square of what normalizations with one gamma per unit multiply it by:
    `|gamma| / sqrt(variance + epsilon)` for batch normalization, `|gamma|` for others.

    Args:
        weights: All weights of the model.
        width: The units.
        remaps: What was removed of other widths before; it doesn't count.

    Returns:
        A number for each unit.
    """
    size = int(width.size or 0)
    into, out, scales = np.zeros(size), np.zeros(size), []
    for held in weights:
        for at, axis in enumerate(held.axes):
            if width not in widths_of(axis.expression):
                continue
            rows = units_first(without(held, remaps, width), at, axis.expression, width)
            if rows is None:
                continue
            squares = np.square(rows, dtype=np.float64)
            if axis.role == READS:
                out += squares.sum(axis=1)
            elif axis.role == "makes":
                into += squares.sum(axis=1)
            elif held.name in ("gamma", "scale"):
                scales.append(squares.mean(axis=1) / _variance(held, weights, width))
    scale = np.mean(scales, axis=0) if scales else np.ones(size)
    parts = [part if part.any() else np.ones(size) for part in (into, out)]
    return np.asarray(np.sqrt(parts[0] * scale * parts[1]))


def _variance(gamma: Held, weights: Sequence[Held], width: Width) -> Any:
    """The variance that a batch normalization divides by, 1 for other normalizations."""
    for held in weights:
        if held.facts is gamma.facts and held.name == "moving_variance":
            rows = units_first(held.value, 0, held.axes[0].expression, width)
            return rows.mean(axis=1) + gamma.facts.operation.epsilon
    return 1.0


def largest(scores: np.ndarray, size: int) -> Remap:
    """The remap that keeps the units with the largest scores; the first of equal ones."""
    kept = np.sort(np.argsort(-scores, kind="stable")[:size])
    into = np.full(len(scores), REMOVED)
    into[kept] = kept
    return removal(kept, into)
