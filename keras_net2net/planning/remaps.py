"""Remaps: which old unit each new unit copies, along a width and along an axis.

A remap is an index array g: new unit j copies old unit g(j), as in Net2WiderNet
(Chen et al., ICLR 2016, section 2.2). A remap of a width is drawn once; the
remap of an axis follows from it by the axis's width expression.

Everything random is drawn by numpy from the seed and a name, so that a seed
gives the same student on every backend and machine, and one more operation in
a list doesn't change what the others draw.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_net2net.widths.expressions import Concat, Expression, Fixed, Width, resolve, widths_of


def generator(seed: int, *names: object) -> np.random.Generator:
    """A random generator that depends on the seed and on `names` alone."""
    text = "\x1f".join(map(str, (seed, *names)))
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


REMOVED = -1  # what `Remap.into` holds for units that nothing takes over
COPY, ZERO = -1, -2  # what `Remap.fill` holds beside the numbers of groups


class ByValue:
    """Lets dataclasses that hold arrays be compared, array by array."""

    def _values(self) -> list[Any]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return [getattr(self, field.name) for field in fields if field.compare]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(map(_same, self._values(), other._values()))

    def __hash__(self) -> int:
        return hash(tuple(x for x in self._values() if not isinstance(x, np.ndarray)))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)


@dataclasses.dataclass(frozen=True, eq=False)
class Remap(ByValue):
    """Where each new unit of an axis comes from.

    Args:
        index: Integer array, shape `(new,)`: the old unit that each unit copies.
        new: Boolean array, shape `(new,)`: true for the units that are added,
            false for those that were there before.
        old_size: The number of units before.
        bound: Boolean array, shape `(new,)`: true for added units that must start
            as they are here, whatever kind of new units is asked for, since a
            normalization sees them together with the others. Defaults to `None`:
            none of them.
        fill: Integer array, shape `(new,)`: for added units that copy no unit but
            fill the axis, the group of old units whose mean they hold, or `ZERO`;
            `COPY` for all other units. Defaults to `None`: no unit fills.
        groups: Integer array, shape `(old,)`: the group of each old unit, where
            units fill. Defaults to `None`.
        into: Integer array, shape `(old,)`, where units are removed: the new unit
            that takes over what reads each old one, or `REMOVED` where nothing
            does. Defaults to `None`: no unit is removed.
        left: Where units are removed that a normalization sees: the part that is
            left of those that don't fill. Defaults to `None`: the normalization
            stays as it is.
        name: The width that it is a remap of. Defaults to `""`: none, or several.
        parts: The remaps that it is made of, if it is made of several.
        crossed: Whether these are two that are multiplied; else they are joined.
    """

    index: np.ndarray
    new: np.ndarray
    old_size: int
    bound: np.ndarray | None = None
    fill: np.ndarray | None = None
    groups: np.ndarray | None = None
    into: np.ndarray | None = None
    left: float | None = None
    name: str = dataclasses.field(default="", compare=False)
    parts: tuple[Remap, ...] = dataclasses.field(default=(), compare=False)
    crossed: bool = dataclasses.field(default=False, compare=False)

    @property
    def size(self) -> int:
        """The number of units after."""
        return len(self.index)

    @property
    def free(self) -> np.ndarray:
        """The added units that may start in any way: as copies, fresh or random."""
        return self.new if self.bound is None else self.new & ~self.bound

    @property
    def fills(self) -> np.ndarray:
        """The units that fill."""
        return np.zeros(self.size, bool) if self.fill is None else self.fill != COPY

    @property
    def kept(self) -> float:
        """The sum of squares that is left, as units that don't fill go or come, per unit."""
        if self.into is not None:
            return 1.0 if self.left is None else self.left * self.old_size / self.size
        return 1.0 - float(np.mean(self.fills))

    def __repr__(self) -> str:
        return f"{self.old_size} -> {self.size}"


def identity(size: int) -> Remap:
    """The remap that changes nothing."""
    return Remap(np.arange(size), np.zeros(size, bool), size)


def removal(kept: np.ndarray, into: np.ndarray, left: float | None = None) -> Remap:
    """The remap that removes units.

    Args:
        kept: The old units that stay, in their order.
        into: For each old unit, the old unit that takes over what reads it, itself for
            those that stay, or `REMOVED`.
        left: See `Remap`. Defaults to `None`.

    Returns:
        The remap.

    Example:

    >>> import numpy as np
    >>> removal(np.array([0, 2]), np.array([0, 2, 2, -1])).into.tolist()
    [0, 1, 1, -1]
    """
    place = np.full(len(into), REMOVED)
    place[kept] = np.arange(len(kept))
    moved = np.where(into == REMOVED, REMOVED, place[into])
    return Remap(kept, np.zeros(len(kept), bool), len(into), into=moved, left=left)


def draw(seed: int, name: str, old: int, new: int) -> Remap:
    """Draws the random mapping g of Net2WiderNet for one width.

    The first `old` units stay. The others are a random sample of them, drawn
    without replacement for as long as there are units left, so that the numbers
    of copies differ by one at most; a whole multiple copies all equally often.

    Args:
        seed: The seed of the growth.
        name: The width's name.
        old: The number of units before.
        new: The number of units after.

    Returns:
        The remap.
    """
    rng = generator(seed, "remap", name, old, new)
    extra = new - old
    rounds = [rng.permutation(old) for _ in range(-(-extra // old))]
    index = np.concatenate([np.arange(old), *rounds])[:new]
    return Remap(index, np.arange(new) >= old, old, name=name)


def draw_bound(seed: int, name: str, old: int, new: int, fill: str | None) -> Remap:
    """Draws a mapping for units that a normalization sees together.

    Each old unit is copied equally often. What is missing then fills: with the
    mean of the old units, which layer normalization subtracts, or with zeros.

    Args:
        seed: The seed of the growth.
        name: The width's name.
        old: The number of units before.
        new: The number of units after.
        fill: `"mean"` or `"zero"`; `None` where `new` is a multiple of `old`.
            With `"only zero"` nothing is copied: all new units are zero.

    Returns:
        The remap. A unit that fills has an index, too: what reads it may copy
        what reads that unit.

    Source: Wang et al.: LEMON (ICLR 2024, arXiv:2310.07999), section 4.
    """
    remap = draw(seed, name, old, new)
    if fill is None:
        return dataclasses.replace(remap, bound=remap.new)
    copies = old if fill == "only zero" else new // old * old
    labels = np.full(new, COPY)
    labels[copies:] = 0 if fill == "mean" else ZERO
    return dataclasses.replace(remap, bound=remap.new, fill=labels, groups=np.zeros(old, int))


def padded(old: int, before: int, after: int) -> Remap:
    """The remap of an axis that gets zeros before and after what is there.

    Args:
        old: The number of entries before.
        before: The number of zeros in front of them.
        after: The number of zeros behind them.

    Returns:
        The remap.
    """
    place = np.arange(-before, old + after)
    new = (place < 0) | (place >= old)
    index = np.clip(place, 0, old - 1)
    fill = np.where(new, ZERO, COPY)
    return Remap(index, new, old, bound=new, fill=fill, groups=np.zeros(old, int))


def appended(old: int, new: int) -> Remap:
    """The remap of an axis that gets units behind the old ones, which hold their mean."""
    added = np.arange(new) >= old
    fill = np.where(added, 0, COPY)
    index = np.where(added, 0, np.arange(new))
    return Remap(index, added, old, bound=added, fill=fill, groups=np.zeros(old, int))


def remap_of(expression: Expression, remaps: Mapping[Width, Remap]) -> Remap | None:
    """Evaluates a width expression: the remap of an axis.

    Args:
        expression: The axis's expression.
        remaps: The remap of each width that grows.

    Returns:
        The axis's remap, or `None` where the axis doesn't change.
    """
    expression = resolve(expression)
    if not any(width in remaps for width in widths_of(expression)):
        return None
    return _evaluate(expression, remaps)


def _evaluate(expression: Expression, remaps: Mapping[Width, Remap]) -> Remap:
    expression = resolve(expression)
    if isinstance(expression, Width) and expression in remaps:
        return remaps[expression]
    if isinstance(expression, (Width, Fixed)):
        if expression.size is None:
            raise ValueError("An axis of unknown size can't be remapped.")
        return identity(expression.size)
    if isinstance(expression, Concat):
        parts = [_evaluate(part, remaps) for part in expression.parts]
        return _joined(parts)
    result = identity(1)
    for factor in expression.factors:
        result = _multiplied(result, _evaluate(factor, remaps))
    return result


def _joined(parts: list[Remap]) -> Remap:
    """The remap of a concatenation."""
    offsets = np.cumsum([0, *(part.old_size for part in parts)])
    joined = Remap(
        np.concatenate([part.index + at for part, at in zip(parts, offsets, strict=False)]),
        np.concatenate([part.new for part in parts]),
        int(offsets[-1]),
        into=_joined_into(parts),
        parts=tuple(parts),
    )
    if all(part.bound is None for part in parts):
        return joined
    fills, groups, count = [], [], 0
    for part in parts:
        fill = np.full(part.size, COPY) if part.fill is None else part.fill
        group = np.zeros(part.old_size, int) if part.groups is None else part.groups
        fills.append(np.where(fill >= 0, fill + count, fill))
        groups.append(group + count)
        count += int(group.max(initial=0)) + 1
    return dataclasses.replace(
        joined,
        bound=np.concatenate([part.new & ~part.free for part in parts]),
        fill=np.concatenate(fills),
        groups=np.concatenate(groups),
    )


def _into(remap: Remap) -> np.ndarray:
    return np.arange(remap.old_size) if remap.into is None else remap.into


def _joined_into(parts: list[Remap]) -> np.ndarray | None:
    """Where the removed units of a concatenation go."""
    if all(part.into is None for part in parts):
        return None
    offsets = np.cumsum([0, *(part.size for part in parts)])
    moved = [(_into(part), at) for part, at in zip(parts, offsets, strict=False)]
    return np.concatenate([np.where(into == REMOVED, REMOVED, into + at) for into, at in moved])


def _multiplied_into(outer: Remap, inner: Remap) -> np.ndarray | None:
    """Where the removed units of an outer product go."""
    if outer.into is None and inner.into is None:
        return None
    first, second = _into(outer)[:, None], _into(inner)[None, :]
    gone = (first == REMOVED) | (second == REMOVED)
    return np.where(gone, REMOVED, first * inner.size + second).ravel()


def _multiplied(outer: Remap, inner: Remap) -> Remap:
    """The remap of the outer product of two axes."""
    result = Remap(
        np.add.outer(outer.index * inner.old_size, inner.index).ravel(),
        np.logical_or.outer(outer.new, inner.new).ravel(),
        outer.old_size * inner.old_size,
        into=_multiplied_into(outer, inner),
        parts=(outer, inner),
        crossed=True,
    )
    if outer.bound is None and inner.bound is None:
        return result
    bound = np.logical_or.outer(outer.new & ~outer.free, inner.new & ~inner.free).ravel()
    result = dataclasses.replace(result, bound=bound)
    if outer.fill is None and inner.fill is None:
        return result
    if outer.fill is not None and inner.fill is not None:
        raise ValueError("Units that fill an axis can't be multiplied with others that do.")
    # The axis repeats the inner units with a period, once for each outer unit. So a group of
    # inner units is one group in each period, and one of outer units one at each place of it:
    # a mean over all of the axis would mix what belongs to different units of the other factor.
    left, right = (one.index if one.fill is None else one.fill for one in (outer, inner))
    labels = np.asarray(inner.fill if outer.fill is None else outer.fill[:, None])
    fill = np.where(labels >= 0, np.add.outer(left * inner.old_size, right), labels)
    left, right = (
        np.arange(one.old_size) if one.groups is None else one.groups for one in (outer, inner)
    )
    groups = np.add.outer(left * inner.old_size, right)
    return dataclasses.replace(result, fill=fill.ravel(), groups=groups.ravel())
