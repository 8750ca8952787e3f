"""The errors that a growth can end in; all of them are `ValueError`s.

`CheckError`, an `AssertionError`, says that a check of `keras_net2net.testing` failed.

A message has four parts, in this order: what can't be done to which layer,
why (with the obstacle and the path to it), what was received, and what to do
instead. `explain` puts the parts together, so that every message has them.
"""

from __future__ import annotations


class GrowthError(ValueError):
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
        message: The message.
        path: The path of the layer, `""` for the model itself.
        reason: What its code does.
    """

    def __init__(self, message: str, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason


class VerificationError(GrowthError):
    """The grown model doesn't compute what the model computed before."""


class LogError(GrowthError):
    """A growth log can't be read, or isn't of this model."""


class CheckError(AssertionError):
    """A check of `keras_net2net.testing` failed: a rule is wrong, or a model can't be grown."""


def explain(problem: str, why: str, received: str, instead: str) -> str:
    """Builds a message of four parts.

    Args:
        problem: What can't be done, to which layer.
        why: The obstacle, and the path to it.
        received: What the caller passed.
        instead: What to do instead.

    Returns:
        The message.
    """
    sentences = (f"{problem}: {why}", f"Received: {received}", instead)
    return " ".join(s if s.endswith((".", "?", "!")) else f"{s}." for s in sentences)
