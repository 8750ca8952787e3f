"""Where choices come from: Hypothesis, which shrinks them, or a seeded generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Source(Protocol):
    """Where choices come from."""

    def below(self, limit: int) -> int:
        """A number from 0 to `limit - 1`."""


class Seeded:
    """Choices of a seeded generator, which can be read and replayed.

    Args:
        seed: The seed.
        replayed: The first choices. Defaults to `()`.
        then: What follows on them: `"random"`, or `"zero"`.
    """

    def __init__(self, seed: int, replayed: Any = (), then: str = "random") -> None:
        self.random = np.random.default_rng(seed)
        self.replayed = list(replayed)
        self.then = then
        self.choices: list[int] = []

    def below(self, limit: int) -> int:
        """A number from 0 to `limit - 1`."""
        at = len(self.choices)
        if at < len(self.replayed):
            choice = min(self.replayed[at], limit - 1)
        else:
            choice = int(self.random.integers(limit)) if self.then == "random" else 0
        self.choices.append(choice)
        return choice


def shrink(seed: int, choices: list[int], fails: Callable[[Source], bool], tries: int) -> list[int]:
    """The simplest choices found that still fail: shorter, then with zeros.

    Args:
        seed: The seed of the source.
        choices: Choices that fail.
        fails: Whether the choices of a source fail.
        tries: How often to try.

    Returns:
        The choices, to be followed by zeros.
    """
    best = list(choices)

    def attempt(candidate: list[int]) -> bool:
        nonlocal best, tries
        if tries <= 0 or candidate == best:
            return False
        tries -= 1
        source = Seeded(seed, candidate, "zero")
        if not fails(source):
            return False
        best = source.choices if len(source.choices) <= len(candidate) else candidate
        return True

    for size in (16, 8, 4, 2, 1):
        at = 0
        while at < len(best):
            if not attempt(best[:at] + best[at + size :]):
                at += size
    for at in range(len(best) - 1, -1, -1):
        if at < len(best) and best[at]:
            attempt([*best[:at], 0, *best[at + 1 :]])
    for size in (4, 2, 1):
        at = 0
        while at < len(best):
            if not attempt(best[:at] + best[at + size :]):
                at += size
    return best
