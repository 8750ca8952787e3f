"""Units that matter least: by their weights, or to those that read them on data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.operations.blocks import find_block
from keras_net2net.operations.data import inputs_of
from keras_net2net.operations.narrower.duplicates import Held, units_along, units_first
from keras_net2net.planning.changes import Addition
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.remaps import REMOVED, Remap, remap_of, removal
from keras_net2net.widths.expressions import Expression, Width, is_axes, resolve, widths_of
from keras_net2net.widths.facts import MAKES, READS, Facts

# Layers whose bias is added to a sum over what they read.
_SUMS = (layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D)


# -- by their weights -----------------------------------------------------------------


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
            elif axis.role == MAKES:
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


# -- by their activations -------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
    """A weight that reads the input of its layer, and what it saw there.

    Args:
        held: The weight.
        axis: The axis that reads.
        mean: The mean of each position along that axis.
        variance: Its variance.
        offset: The path and axes of what can take up a mean, and the factor for it.
    """

    held: Held
    axis: int
    mean: np.ndarray
    variance: np.ndarray
    offset: tuple[str, tuple[Expression, ...], tuple[int, ...], float] | None

    @property
    def expression(self) -> Expression:
        return self.held.axes[self.axis].expression

    def cost(self, remaps: Mapping[Width, Remap], width: Width) -> np.ndarray:
        """What each position's removal changes, as an expected square."""
        value = without(self.held, remaps, width)
        rows = np.moveaxis(value, self.axis, 0).reshape(len(self.mean), -1)
        moment = self.variance if self.offset else self.variance + np.square(self.mean)
        return np.asarray(moment * np.square(rows, dtype=np.float64).sum(axis=1))


class Activations:
    """The activations of a model on its calibration data, where weights read them.

    Args:
        draft: The draft; its model runs once.
        weights: Its weights.
    """

    def __init__(self, draft: Draft, weights: list[Held]) -> None:
        self._draft = draft
        self._biases = {(id(h.facts), h.name): h for h in weights}
        readers = [held for held in weights if any(a.role == READS for a in held.axes)]
        seen = {id(held.facts): held.facts.operation for held in readers}
        with internals.recorded_inputs(seen.values()) as record, keras.StatelessScope():
            draft.model(inputs_of(draft.calibration), training=False)
        self._readers = [
            reader
            for held in readers
            for reader in self._of(held, record.get(id(held.facts.operation), []))
        ]

    def _of(self, held: Held, inputs: list[np.ndarray]) -> list[_Reader]:
        args, kwargs = held.facts.given or ((), {})
        given = args[0] if args else next(iter(kwargs.values()), None)
        if not inputs or not is_axes(given):
            return []
        found = []
        for at, axis in enumerate(held.axes):
            if axis.role != READS:
                continue
            wanted = resolve(axis.expression)
            along = [i for i, one in enumerate(given) if resolve(one) == wanted and i]
            if not along or any(x.ndim != len(given) for x in inputs):
                continue
            flat = [np.moveaxis(x, along[-1], 0).reshape(x.shape[along[-1]], -1) for x in inputs]
            whole = np.concatenate(flat, axis=1).astype(np.float64)
            if len(whole) == held.value.shape[at]:
                offset = self._offset(held, at)
                found.append(_Reader(held, at, whole.mean(1), whole.var(1), offset))
        return found

    def _offset(self, held: Held, at: int) -> Any:
        """Where the mean of what a weight reads can go."""
        facts = held.facts
        makes = [i for i, axis in enumerate(held.axes) if axis.role == MAKES]
        rest = [a for i, a in enumerate(held.axes) if i not in (*makes, at)]
        summed = all(not any(True for _ in widths_of(axis.expression)) for axis in rest)
        if not isinstance(facts.operation, _SUMS) or held.name != "kernel" or not summed:
            return None
        shape = tuple(held.value.shape[i] for i in makes)
        bias = self._biases.get((id(facts), "bias"))
        if bias is not None:
            same = tuple(n for n in bias.value.shape if n != 1) == tuple(n for n in shape if n != 1)
            return self._place(bias, 1.0) if same else None
        calls = self._draft.calls_of(facts.operation)
        if len(calls) != 1 or isinstance(facts.operation, layers.EinsumDense):
            return None
        normalization = find_block(*calls[0]).normalization
        mean = self._biases.get((id(self._facts_of(normalization)), "moving_mean"))
        # What the layer no longer adds, its normalization needn't take away.
        return None if mean is None else self._place(mean, -1.0)

    def _facts_of(self, operation: Any) -> Facts | None:
        return self._draft.inference.facts.get(id(operation))

    def _place(self, held: Held, factor: float) -> Any:
        path = f"{held.facts.path}/{held.name}"
        axes = tuple(axis.expression for axis in held.axes)
        return path, axes, held.value.shape, factor

    def scores(self, width: Width, remaps: Mapping[Width, Remap]) -> np.ndarray | None:
        """What each unit's removal changes in what reads it, or `None` if nothing shows it."""
        total = np.zeros(int(width.size or 0))
        shown = False
        for reader in self._readers:
            if width not in widths_of(reader.expression):
                continue
            units = units_along(reader.expression, width)
            if units is None:
                continue
            here = units >= 0
            np.add.at(total, units[here], reader.cost(remaps, width)[here])
            shown = True
        return total if shown else None

    def means_to_biases(self, remaps: Mapping[Width, Remap]) -> dict[str, tuple[Addition, ...]]:
        """What is added to biases for the means of the units that are removed."""
        added: dict[str, np.ndarray] = {}
        for reader in self._readers:
            remap = remap_of(reader.expression, remaps)
            if reader.offset is None or remap is None or remap.into is None:
                continue
            path, axes, shape, factor = reader.offset
            gone = np.where(remap.into == REMOVED, reader.mean, 0.0)
            value = np.tensordot(gone, reader.held.value.astype(np.float64), (0, reader.axis))
            left = [a for i, a in enumerate(reader.held.axes) if i != reader.axis]
            value = value.sum(axis=tuple(i for i, axis in enumerate(left) if axis.role != MAKES))
            value = factor * value.reshape(shape)
            for at, expression in enumerate(axes):
                own = remap_of(expression, remaps)
                if own is not None:
                    value = np.take(value, own.index, axis=at)
            added[path] = added.get(path, 0.0) + value
        return {
            path: (Addition(0, np.arange(len(value)), value.astype(np.float32)),)
            for path, value in added.items()
        }
