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

import numpy as np

from keras_net2net.widths import Concat, Expression, Fixed, Width, resolve, widths_of


def generator(seed: int, *names: object) -> np.random.Generator:
    """A random generator that depends on the seed and on `names` alone."""
    text = "\x1f".join(map(str, (seed, *names)))
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


@dataclasses.dataclass(frozen=True, eq=False)
class Remap:
    """Where each new unit of an axis comes from.

    Args:
        index: Integer array, shape `(new,)`: the old unit that each unit copies.
        new: Boolean array, shape `(new,)`: true for the units that are added,
            false for those that were there before.
        old_size: The number of units before.
    """

    index: np.ndarray
    new: np.ndarray
    old_size: int

    @property
    def size(self) -> int:
        """The number of units after."""
        return len(self.index)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remap):
            return NotImplemented
        return (
            self.old_size == other.old_size
            and np.array_equal(self.index, other.index)
            and np.array_equal(self.new, other.new)
        )

    def __hash__(self) -> int:
        return hash((self.old_size, self.index.tobytes()))

    def __repr__(self) -> str:
        return f"{self.old_size} -> {self.size}"


def identity(size: int) -> Remap:
    """The remap that changes nothing."""
    return Remap(np.arange(size), np.zeros(size, bool), size)


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
    return Remap(index, np.arange(new) >= old, old)


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
        offsets = np.cumsum([0, *(part.old_size for part in parts)])
        return Remap(
            np.concatenate([part.index + at for part, at in zip(parts, offsets, strict=False)]),
            np.concatenate([part.new for part in parts]),
            int(offsets[-1]),
        )
    result = identity(1)
    for factor in expression.factors:
        inner = _evaluate(factor, remaps)
        result = Remap(
            np.add.outer(result.index * inner.old_size, inner.index).ravel(),
            np.logical_or.outer(result.new, inner.new).ravel(),
            result.old_size * inner.old_size,
        )
    return result


def size_of(expression: Expression, remaps: Mapping[Width, Remap]) -> int | None:
    """The size of an axis once the widths have been remapped."""
    remap = remap_of(expression, remaps)
    return resolve(expression).size if remap is None else remap.size
