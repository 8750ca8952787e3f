"""The errors that a growth can end in; all of them are `ValueError`s.

`CheckError`, an `AssertionError`, says that a check of `keras_net2net.testing` failed.

A message has four parts, in this order: what can't be done to which layer,
why (with the obstacle and the path to it), what was received, and what to do
instead. An error is raised with the parts that are known there; what was received is known
at the door, where `receiving` adds it.
"""

from __future__ import annotations

import contextlib
import numbers
import operator
from collections.abc import Iterator, Sequence
from typing import Any


class Explained(Exception):
    """An error of four parts.

    Args:
        problem: What can't be done, to which layer; or the whole message, if it stands alone.
        why: The obstacle, and the path to it.
        instead: What to do instead.
        received: What the caller passed. Defaults to `None`: `receiving` says it.

    Attributes:
        problem, why, instead, received: The same.
    """

    def __init__(
        self,
        problem: str,
        why: str | None = None,
        instead: str | None = None,
        *,
        received: str | None = None,
    ) -> None:
        super().__init__(problem, why, instead)
        self.problem = problem
        self.why = why
        self.instead = instead
        self.received = received

    def __str__(self) -> str:
        """The message: the parts that there are, as sentences."""
        sentences = [self.problem if self.why is None else f"{self.problem}: {self.why}"]
        if self.received is not None:
            sentences.append(f"Received: {self.received}")
        if self.instead is not None:
            sentences.append(self.instead)
        return " ".join(s if s.endswith((".", "?", "!")) else f"{s}." for s in sentences)


class GrowthError(Explained, ValueError):
    """A growth could not be planned or done; the model is as it was before."""


class UnknownLayerError(GrowthError):
    """A name or pattern matches no layer of the model."""


class FixedWidthError(GrowthError):
    """The width of a layer can't change: something that reads it forbids it."""


class SizeError(GrowthError):
    """The size that was asked for isn't possible."""


class ConflictError(GrowthError):
    """Two requests ask for different sizes of widths that are tied together."""


class NotIdentityError(GrowthError):
    """A layer can't be inserted as an identity, e.g. after a sigmoid."""


class CodeError(GrowthError):
    """The code of an opened layer can't have the new sizes.

    Args:
        *parts: As for `GrowthError`.
        path: The path of the layer, `""` for the model itself.
        reason: What its code does.
        **received: As for `GrowthError`.
    """

    def __init__(self, *parts: str, path: str = "", reason: str = "", **received: str) -> None:
        super().__init__(*parts, **received)
        self.path = path
        self.reason = reason


class VerificationError(GrowthError):
    """The grown model doesn't compute what the model computed before."""


class LogError(GrowthError):
    """A growth log can't be read, or isn't of this model."""


class CheckError(Explained, AssertionError):
    """A check of `keras_net2net.testing` failed: a rule is wrong, or a model can't be grown."""


@contextlib.contextmanager
def receiving(what: str) -> Iterator[None]:
    """Says what was received in the errors that are raised inside, if they don't.

    Args:
        what: What the caller passed.
    """
    try:
        yield
    except Explained as error:
        if error.received is None:
            error.received = what
        raise


def real_number(value: Any) -> float | None:
    """A number as Python's own `int` or `float`, or `None` if it isn't a real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def whole_number(value: Any, what: str, least: int = 1, kind: str = "a number of units") -> int:
    """Checks that a number is a whole one, of at least `least`.

    Args:
        value: The number; an integer of NumPy is one, too.
        what: What the number is for.
        least: The smallest that is possible. Defaults to `1`.
        kind: What it is a number of, for the error message.

    Returns:
        The number as an `int`.

    Raises:
        SizeError: If it isn't one.
    """
    try:
        number = operator.index(value)
        if isinstance(value, bool):
            raise TypeError
    except TypeError:
        number = least - 1
    if number < least:
        raise SizeError(
            f"{what} can't be {value!r}",
            f"it is {kind}, which is a whole number of at least {least}",
            "Pass an integer",
        )
    return number


def check_choice(name: str, value: Any, allowed: Sequence[str], instead: str | None = None) -> None:
    """Checks that an argument is one of a few.

    Args:
        name: The argument's name.
        value: What was passed for it.
        allowed: What it may be.
        instead: What to pass. Defaults to `None`: the first that is allowed.

    Raises:
        GrowthError: If it isn't one of them.
    """
    if value not in allowed:
        raise GrowthError(
            f"`{name}` can't be {value!r}",
            f"it is one of {', '.join(map(repr, allowed))}",
            f"Pass `{name}={(instead or allowed[0])!r}`",
        )
