"""What an operation does to the value of a unit: the words in which rules say it.

It is said once, with `RuleCall.treat`, and asked for by all that looks at a graph: what
units hold that fill an axis (`fills`), who may hold the shares of copies (`sharing`), how
the units of a head stand in the outputs (`heads`), and which weights have to be zero for
a residual block to start as the identity. An operation that says nothing is taken to make
anything of its units, which is always safe.
"""

from __future__ import annotations

import dataclasses
import enum


class Keeps(enum.IntEnum):
    """What is left of the value of a unit; each kind keeps what those before it keep."""

    NOTHING = 0
    ZERO = 1  # zero stays zero
    SLOPE = 2  # and on both sides of it the function is steep, so that weights learn from zero
    LINEAR = 3  # and each unit alone is treated linearly
    VALUES = 4  # and the values stay, at other places maybe, at inference
    ALL = 5  # and the places stay, too


class Joins(enum.Enum):
    """How an operation puts together several tensors, or the values of one."""

    SUM = "adds them"
    DIFFERENCE = "subtracts the others from the first"
    AVERAGE = "averages them"
    CONCATENATION = "puts one after the other"
    PRODUCT = "multiplies them element by element"
    QUOTIENT = "divides the first by the others"
    CONTRACTION = "sums products of them over an axis"


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What an operation does to the value of a unit.

    Args:
        keeps: What is left of the values that it is given. Defaults to nothing.
        joins: How it puts several tensors together. Defaults to `None`: each tensor that
            holds units is treated as `keeps` says, or there is one.
        factor: What it multiplies differences between units by, if that is a number.
        makes: Whether it makes its units by weights, in which they are linear.
        weighs: Whether it has weights for each unit, and is linear in them.
        after: What the activation keeps that follows on these weights.
        adds: Whether it adds the same to each unit.
        shifts: Whether zero stays zero once the weights that it adds are zero.
        centers: Whether it makes zero of the mean of all units.
        normalizes: Whether it is a normalization.
        squashes: Whether it makes a probability of each, by a sigmoid.
        attends: Whether it weighs places by what is at the others, as attention does.
        stops: Whether it hands no gradient back.
        drops: Whether it drops some values in training, and enlarges the others.
        spreads: Whether it multiplies them in training by random numbers of any size.
        blurs: Whether it adds noise in training.
    """

    keeps: Keeps = Keeps.NOTHING
    joins: Joins | None = None
    factor: float | None = None
    makes: bool = False
    weighs: bool = False
    after: Keeps = Keeps.LINEAR
    adds: bool = False
    shifts: bool = False
    centers: bool = False
    normalizes: bool = False
    squashes: bool = False
    attends: bool = False
    stops: bool = False
    drops: bool = False
    spreads: bool = False
    blurs: bool = False

    def but(self, **changes: object) -> Treatment:
        """The same but for some of it: `PASSES.but(factor=2.0)`."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def then(self, activation: Treatment) -> Treatment:
        """What is made by weights, and goes through an activation."""
        after = min(self.after, activation.keeps)
        return self.but(after=after, squashes=activation.squashes)

    @property
    def is_linear(self) -> bool:
        """Whether it treats each unit alone, and linearly."""
        return self.keeps >= Keeps.LINEAR

    @property
    def is_unchanged(self) -> bool:
        """Whether values are what they were, at inference and, but for dropout, in training."""
        return self.keeps == Keeps.ALL and not self.blurs

    @property
    def is_linear_in_weights(self) -> bool:
        """Whether its output is linear in its weights."""
        return (self.makes or self.weighs) and self.after >= Keeps.LINEAR


ANYTHING = Treatment()
UNCHANGED = Treatment(Keeps.ALL, factor=1.0)  # leaves values as they are
MOVES = Treatment(Keeps.VALUES, factor=1.0)  # moves values to other places, or copies them
PASSES = Treatment(Keeps.LINEAR)  # passes each unit through, alone and linearly
BENDS = Treatment(Keeps.SLOPE)  # makes zero of zero, and is steep there on both sides
KEEPS_ZERO = Treatment(Keeps.ZERO)  # makes zero of zero
ADDS = Treatment(adds=True)  # passes units through linearly, and adds the same to each
MAKES_UNITS = Treatment(makes=True)  # makes units, linear in its weights
MAKES_ZERO = MAKES_UNITS.then(KEEPS_ZERO)  # makes units that are zero where their weights are
SCALES = Treatment(weighs=True)  # has weights for each unit alone, and is linear in them
STANDARDIZES = SCALES.but(normalizes=True)  # the same, behind a normalization of each unit alone
NORMALIZES = STANDARDIZES.but(centers=True)  # makes zero of the mean, and is linear in its weights
# Makes zero of zero, and is linear in its weights.
RESCALES = STANDARDIZES.but(keeps=Keeps.ZERO)
SHIFTS = Treatment(shifts=True, normalizes=True)  # adds a weight to each unit
SQUASHES = Treatment(squashes=True, factor=1.0)  # makes a probability of each logit
COMPETES = Treatment(attends=True, factor=1.0)  # makes parts of a whole of logits
CONTRACTS = KEEPS_ZERO.but(joins=Joins.CONTRACTION)  # sums products


@dataclasses.dataclass(frozen=True)
class Content:
    """What a tensor holds for units that fill a width.

    Args:
        mean: Where their makers hold the mean of the others: `"mean"`, `"zero"`, or
            `None` for anything else.
        zero: Where their makers are zero: `"zero"`, or `None`.
    """

    mean: str | None = None
    zero: str | None = None

    def join(self, other: Content) -> Content:
        """What two tensors have in common."""
        return Content(
            self.mean if self.mean == other.mean else None,
            self.zero if self.zero == other.zero else None,
        )

    def after(self, treatment: Treatment) -> Content:
        """What an operation makes of it."""
        if treatment.makes:
            zero = "zero" if treatment.after >= Keeps.ZERO else None
            return Content("mean" if treatment.after >= Keeps.LINEAR else None, zero)
        if treatment.centers:
            return Content("zero", "zero")
        if treatment.is_linear:
            return self
        if treatment.adds:
            return Content("mean" if self.mean == "mean" else None)
        if treatment.keeps >= Keeps.ZERO:
            return Content("zero" if self.mean == "zero" else None, self.zero)
        return Content()


UNKNOWN = Content()
MADE = Content("mean", "zero")
