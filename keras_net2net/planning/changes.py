"""New weights from old ones: gather along every axis, share along those that read.

This is all of widening, for every architecture. It works on anything that has
the shape of the weight, given the axes' remaps and roles; it knows no layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from keras_net2net.planning.remaps import COPY, REMOVED, ByValue, Remap, generator
from keras_net2net.widths.facts import MAKES, READS

_CHUNK = 2**18  # weights that are shared at a time: what is in between stays in the cache
_MANY = 256  # the mean of so many random shares is that of even ones, to about a percent


@dataclasses.dataclass(frozen=True)
class NewUnits:
    """How new units start; the same for all the weights of one growth.

    Args:
        kind: `"replicate"`, `"fresh"` or `"random"`; or `"zero"`: what they read and what
            reads them is zero, for an `Addition` to set.
        shares: `"random"` or `"even"`: how copies share what reads them.
        noise: Standard deviation of the noise on the copies' incoming weights,
            relative to that of the weights. Defaults to `0.0`.
    """

    kind: str = "replicate"
    shares: str = "random"
    noise: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether the grown model computes what the old one did."""
        return self.kind != "random" and not self.noise

    def copies(self, remap: Remap) -> np.ndarray:
        """The added units of a remap that are copies, as a boolean array."""
        added = remap.new & ~remap.fills
        return added if self.kind == "replicate" else added & ~remap.free


@dataclasses.dataclass(frozen=True)
class AxisChange:
    """What happens along one axis of a variable.

    Args:
        role: `"makes"`, `"reads"` or `"follows"`.
        remap: The remap of the axis.
        silent: Whether units that fill the axis are zero here, whatever they hold
            elsewhere: what reads units that hold something, or an offset.
        offset: What is added to units that fill the axis. Defaults to `0.0`.
    """

    role: str
    remap: Remap
    silent: bool = False
    offset: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Addition(ByValue):
    """Numbers that were worked out for some units, and are added to their weights.

    Args:
        axis: The axis of the units.
        at: Integer array: the units, as they are numbered after the change.
        values: What is added, the axis of the units first.
    """

    axis: int
    at: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class VariableChange:
    """What happens to one variable.

    Args:
        name: The variable's path in the model, e.g. `"conv1/kernel"`. It seeds
            what is drawn for this variable.
        axes: One `AxisChange` for each axis, `None` where the axis stays.
        how: How the new units start.
        scale: What the grown variable is multiplied by.
        shape: Its shape before. Defaults to `None`: it isn't known.
        additions: What is added to it then.
    """

    name: str
    axes: tuple[AxisChange | None, ...]
    how: NewUnits = NewUnits()
    scale: float = 1.0
    shape: tuple[int, ...] | None = None
    additions: tuple[Addition, ...] = ()

    @property
    def label(self) -> str:
        """The variable's name within its layer."""
        return self.name.rsplit("/", 1)[-1]

    def new_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The variable's shape after the change."""
        return tuple(
            size if axis is None else axis.remap.size
            for size, axis in zip(shape, self.axes, strict=True)
        )

    def apply(self, value: np.ndarray, seed: int) -> np.ndarray:
        """Grows one array.

        Args:
            value: The old value, with the old shape.
            seed: The seed of the growth.

        Returns:
            The new value, in the dtype of the old one.
        """
        dtype = value.dtype
        # The sum of shares must be exact to the variable's own precision, so
        # anything narrower than float32 is computed in float32.
        old = value if dtype in (np.float32, np.float64) else value.astype(np.float32)
        new = old
        changing = [(at, axis) for at, axis in enumerate(self.axes) if axis is not None]
        # The last axis first: its gather touches the smallest array.
        for at, axis in reversed(changing):
            before = new
            if axis.role == READS and axis.remap.into is not None:
                new = merged(before, at, axis.remap)
                continue
            new = np.take(before, axis.remap.index, axis=at)
            units, source = np.moveaxis(new, at, 0), np.moveaxis(before, at, 0)
            _fill(units, source, axis, factor=self.scale != 1.0)
        if new is old:
            new = old.copy()
        if self.scale != 1.0:
            new *= new.dtype.type(self.scale)
        # What makes new units comes first: what reads them is silenced where it must be.
        for role, start in ((MAKES, self._start_incoming), (READS, self._start_outgoing)):
            for at, axis in changing:
                if axis.role == role:
                    start(np.moveaxis(new, at, 0), old, at, axis.remap, seed)
        for addition in self.additions:
            np.moveaxis(new, addition.axis, 0)[addition.at] += addition.values
        return new.astype(dtype, copy=False)

    def _start_incoming(
        self, units: np.ndarray, old: np.ndarray, at: int, remap: Remap, seed: int
    ) -> None:
        """Sets the incoming weights of the new units, where they aren't mere copies."""
        copies = self.how.kind == "replicate"
        if self.how.kind == "zero":
            units[remap.free] = 0
        elif old.ndim == 1 or (copies and not self.how.noise) or not remap.free.any():
            return
        elif copies:
            drawn = self._drawn("incoming", units, at, remap, seed)
            units[remap.free] += self.how.noise * old.std() * drawn
        else:
            drawn = self._drawn("incoming", units, at, remap, seed)
            units[remap.free] = _as_large(drawn, old, at, remap)

    def _start_outgoing(
        self, units: np.ndarray, old: np.ndarray, at: int, remap: Remap, seed: int
    ) -> None:
        """Sets the weights that read the new units."""
        copies = self.how.copies(remap)
        if copies.any():
            share(units, remap, copies, self.how.shares, seed, (self.name, at), self._common(at))
        if self.how.kind == "replicate" or not remap.free.any():
            return
        if self.how.kind == "random":
            drawn = self._drawn("outgoing", units, at, remap, seed)
            units[remap.free] = _as_large(drawn, old, at, remap)
        else:
            self._silence(units, at, remap)

    def _drawn(self, key: str, units: np.ndarray, at: int, remap: Remap, seed: int) -> np.ndarray:
        """Random weights for the new units of an axis."""
        rng = generator(seed, key, self.name, at, remap.old_size, remap.size)
        shape = (int(remap.free.sum()), *units.shape[1:])
        return rng.standard_normal(shape, dtype=np.float32)

    def _common(self, axis: int) -> list[bool]:
        """For each other axis, whether one share serves all of it.

        Where a second axis is read as well, its shares must not vary along the
        first one, or the sum over both would no longer be one.
        """
        return [
            change is not None and change.role == READS and other < axis
            for other, change in enumerate(self.axes)
            if other != axis
        ]

    def mean_shares(self, axis: int, seed: int) -> tuple[np.ndarray, int] | None:
        """The share with which each unit is read, in the mean over what reads it.

        Args:
            axis: An axis that reads units.
            seed: The seed of the growth.

        Returns:
            The shares of the axis's new units, zero for those that are no copies, and
            over how many weights of each the mean is; `None` if that isn't known.
        """
        change = self.axes[axis]
        if change is None or self.shape is None:
            return None
        common = self._common(axis)
        shape = list(self.new_shape(self.shape))
        del shape[axis]
        rest = [1 if one else size for one, size in zip(common, shape, strict=True)]
        many = math.prod(rest)
        even = even_shares(change.remap, self.how)
        if self.how.shares == "even" or many > _MANY:
            return even, many
        units = np.ones((change.remap.size, *rest), np.float32)
        copies = self.how.copies(change.remap)
        share(units, change.remap, copies, "random", seed, (self.name, axis), common)
        return units.reshape(len(units), -1).mean(axis=1, dtype=float) * (even > 0), many

    def _silence(self, units: np.ndarray, axis: int, remap: Remap) -> None:
        """Zeroes what reads fresh units, but for what fresh units read of each other.

        A fresh unit that reads fresh units stays random: nothing that was there
        before sees it, and a zero there would have no gradient at first.
        """
        others = [change for i, change in enumerate(self.axes) if i != axis]
        keep = np.zeros(units.shape[1:], bool)
        for i, change in enumerate(others):
            if change is not None and change.role == MAKES:
                shape = [1] * len(others)
                shape[i] = -1
                keep = keep | change.remap.free.reshape(shape)
        added = remap.free
        units[added] = np.where(keep, units[added], 0)


def merged(old: np.ndarray, axis: int, remap: Remap) -> np.ndarray:
    """Adds what belongs to removed units to what belongs to the units that take over."""
    into = np.asarray(remap.into)
    new = np.take(old, remap.index, axis=axis)
    units, source = np.moveaxis(new, axis, 0), np.moveaxis(old, axis, 0)
    moved = (into != REMOVED) & (remap.index[into] != np.arange(remap.old_size))
    for unit in np.flatnonzero(moved):
        units[into[unit]] += source[unit]
    return new


@dataclasses.dataclass(frozen=True)
class VariableReplacement:
    """A variable that is replaced by what is computed from its old value.

    Args:
        name: The variable's path in the model, e.g. `"conv1/kernel"`.
        shape: Its shape afterwards.
        compute: What makes the new value from the old one: a function that is a value
            as well, so that plans can be compared.
    """

    name: str
    shape: tuple[int, ...]
    compute: Callable[[np.ndarray], np.ndarray]

    @property
    def axes(self) -> tuple[AxisChange | None, ...]:
        """No axis is remapped: the new value isn't one of the old units' copies."""
        return (None,) * len(self.shape)

    @property
    def label(self) -> str:
        """The variable's name within its layer."""
        return self.name.rsplit("/", 1)[-1]

    def new_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The variable's shape after the change, whatever it was."""
        return self.shape

    def apply(self, value: np.ndarray, seed: int) -> np.ndarray:
        """Replaces one array, in its dtype; nothing is drawn."""
        return self.compute(value).astype(value.dtype, copy=False)


def _fill(units: np.ndarray, old: np.ndarray, change: AxisChange, *, factor: bool) -> None:
    """Sets the units that fill an axis: the means of groups of old units, or zeros.

    What reads such units keeps copies, unless it has to be silent: where they hold
    nothing, what reads them is free, and a copy has a gradient from the start. So does
    the factor of a normalization: were it zero as well, such a unit would never learn.
    """
    fill, groups = change.remap.fill, change.remap.groups
    if fill is None or groups is None:
        return
    if change.silent:
        units[fill != COPY] = 0
    elif change.role != READS:
        if not factor:
            units[fill < COPY] = 0
        for group in np.unique(fill[fill > COPY]):
            units[fill == group] = old[groups == group].mean(axis=0)
    if change.offset:
        units[fill != COPY] += units.dtype.type(change.offset)


def share(
    units: np.ndarray,
    remap: Remap,
    new: np.ndarray,
    shares: str,
    seed: int,
    key: tuple[object, ...],
    common: Sequence[bool],
) -> None:
    """Divides among copies, in place, what reads them: shares that sum to one.

    With `"even"` each copy gets 1/count, as in the paper. With `"random"` each
    copy *and each outgoing weight* gets a share of its own. Both are exact; the
    second separates the copies, also under Adam, whose update ignores scale.

    Args:
        units: The gathered weights, the reading axis first. Changed in place.
        remap: The remap of the reading axis.
        new: Boolean array: the copies among its units that are to get a share.
        shares: `"random"` or `"even"`.
        seed: The seed of the growth.
        key: What seeds the draw beside the seed: the variable and the axis.
        common: For each other axis, whether one share serves all of it.
    """
    rng = generator(seed, "shares", *key, remap.old_size, remap.size)
    rest = [1 if one else size for one, size in zip(common, units.shape[1:], strict=True)]
    added = np.flatnonzero(new)
    originals = np.empty(remap.old_size, int)
    originals[remap.index[~remap.new]] = np.flatnonzero(~remap.new)
    sources = remap.index[added]
    left = np.bincount(sources, minlength=remap.old_size)  # copies still to be given a share
    rows = max(1, _CHUNK // max(1, math.prod(units.shape[1:])))
    for turn in _turns(sources):
        for at in range(0, len(turn), rows):
            copies = turn[at : at + rows]
            of = sources[copies]
            # Each copy in turn splits its part off what the original still holds; the
            # original keeps the difference, so that the sum is right to the last bit.
            count = left[of].reshape(-1, *(1,) * len(rest)).astype(units.dtype)
            if shares == "even":
                part = 1 / (count + 1)
            else:
                part = _uniform(rng, (len(copies), *rest))
                part /= part + count
            whole = units[originals[of]]
            given = whole * part
            units[_index(added[copies])] = given
            whole -= given
            units[originals[of]] = whole
        left[sources[turn]] -= 1


def even_shares(remap: Remap, how: NewUnits) -> np.ndarray:
    """1/count for each unit and its copies, and zero for the other added units."""
    kept = ~remap.new | how.copies(remap)
    counts = np.bincount(remap.index[kept], minlength=remap.old_size)
    return np.where(kept, 1 / np.maximum(counts[remap.index], 1), 0.0)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers from 1/2 to 3/2, in steps of 2**-16: fast, and fine enough for shares."""
    raw = np.frombuffer(rng.bytes(2 * math.prod(shape)), "<u2").reshape(shape)
    numbers = raw.astype(np.float32)
    numbers *= np.float32(2**-16)
    numbers += np.float32(0.5)
    return numbers


def _index(positions: np.ndarray) -> np.ndarray | slice:
    """Positions as a slice where they follow each other, which is faster."""
    if len(positions) and np.all(np.diff(positions) == 1):
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


def _turns(sources: np.ndarray) -> list[np.ndarray]:
    """Groups positions so that no source comes twice in a group, in their order."""
    order = np.argsort(sources, kind="stable")
    ranked = sources[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else ranked
    rank = np.empty(len(ranked), int)
    rank[order] = np.arange(len(ranked)) - np.repeat(starts, np.diff(np.r_[starts, len(ranked)]))
    return [np.flatnonzero(rank == turn) for turn in range(int(rank.max(initial=-1)) + 1)]


def _norms(units: np.ndarray) -> np.ndarray:
    """The Euclidean norm of each unit's weights."""
    return np.sqrt(np.square(units.reshape(len(units), -1)).sum(axis=1))


def _as_large(drawn: np.ndarray, old: np.ndarray, at: int, remap: Remap) -> np.ndarray:
    """Scales the weights of each new unit to the norm of those of the unit that it is put by."""
    norms = _norms(np.moveaxis(old, at, 0))[remap.index[remap.free]]
    shape = (-1,) + (1,) * (drawn.ndim - 1)
    return drawn * (norms / np.maximum(_norms(drawn), 1e-30)).reshape(shape)
