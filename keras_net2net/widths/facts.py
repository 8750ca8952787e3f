"""What inference finds out: about a layer, the axes of its weights, and its units."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from keras_net2net.graph.structure import Call
from keras_net2net.widths.expressions import Expression, Fixed, Obstacle
from keras_net2net.widths.treatments import ANYTHING, UNKNOWN, Content, Treatment

# What an axis of a weight does with units.
MAKES = "makes"  # the axis makes units: a kernel's output axis, a bias
READS = "reads"  # the axis reads units: a kernel's input axis
FOLLOWS = "follows"  # the axis holds something per unit: BatchNormalization, PReLU


@dataclasses.dataclass(frozen=True)
class WeightAxis:
    """One axis of a weight: its width expression, and what the axis does with the units.

    Args:
        expression: The width expression.
        role: `"makes"`, `"reads"` or `"follows"`.
        silent: Whether it is zero for units that fill the axis.
        content: For an axis that reads, what it reads of such units.
    """

    expression: Expression
    role: str
    silent: bool = False
    content: Content = UNKNOWN

    def silent_for(self, fill: str) -> bool:
        """Whether it has to be zero for units that fill a width with `"mean"` or `"zero"`."""
        held = self.content.mean if fill == "mean" else self.content.zero
        return self.silent or (self.role == READS and held != "zero")


def makes(expression: Expression) -> WeightAxis:
    """The axis makes these units, as a kernel's last axis or a bias does."""
    return WeightAxis(expression, MAKES)


def reads(expression: Expression) -> WeightAxis:
    """The axis reads these units, as a kernel's input axis does."""
    return WeightAxis(expression, READS)


def follows(expression: Expression, *, silent: bool = False) -> WeightAxis:
    """The axis holds something for each of these units, as BatchNormalization does.

    Args:
        expression: The units.
        silent: Whether units that only fill the axis get a zero, as the offset of a
            normalization over the units does. Defaults to `False`.

    Example:

    >>> import keras_net2net as n2n
    >>> def scale(call, x):
    ...     call.weight("gamma", n2n.rules.follows(x[-1]))
    ...     return x
    """
    return WeightAxis(expression, FOLLOWS, silent)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A number that follows from how much an axis grows.

    Args:
        expression: The axis.
        power: The exponent.
        by: `"kept"`: of the part of the new units that isn't there to fill; or
            `"size"`: of the old size over the new one.
    """

    expression: Expression
    power: float
    by: str = "kept"


@dataclasses.dataclass(frozen=True)
class FromEnd:
    """A place that is counted from the end of an axis, as a negative number.

    Args:
        expression: What lies behind the place.
    """

    expression: Expression


@dataclasses.dataclass(frozen=True)
class Normalized:
    """Units that a normalization sees together.

    Args:
        expression: The axis.
        fill: What added units may hold beside copies: `"mean"`, `"zero"`, or
            `None`: there may be copies only.
        copies: Whether copying all units equally often preserves it.
        content: What the tensor that is normalized holds.
        obstacle: The normalization.
    """

    expression: Expression
    fill: str | None
    copies: bool
    content: Content
    obstacle: Obstacle


@dataclasses.dataclass(frozen=True)
class Competition:
    """Units that share what they get among each other, as in a softmax.

    Args:
        expression: The units.
        kind: `"softmax"` or `"log_softmax"`.
        obstacle: What does it.
    """

    expression: Expression
    kind: str
    obstacle: Obstacle


@dataclasses.dataclass(frozen=True)
class Shown:
    """How the units of a head stand in a tensor.

    Args:
        kind: `"values"`: each as a function of itself alone; `"softmax"` or
            `"log_softmax"`: as parts of a whole; `"mixed"`: otherwise.
        over: The axes that a softmax ran over.
        scale: What differences between logits were multiplied by since the head made
            them, before they were normalized or squashed; `None` if that isn't known.
        squashed: Whether a sigmoid made them probabilities.
    """

    kind: str = "values"
    over: tuple[Expression, ...] = ()
    scale: float | None = 1.0
    squashed: bool = False


@dataclasses.dataclass(frozen=True)
class HeadOutput:
    """An output of the model that holds the units of a head.

    Args:
        output: The position of the output among the flat outputs.
        axis: The position of the axis.
        shown: How the units stand in it.
    """

    output: int
    axis: int
    shown: Shown


@dataclasses.dataclass(eq=False)
class Facts:
    """What inference found out about one layer or operation.

    Args:
        operation: The Keras object.
        path: Its path in the model.
        units: The expression of each size that the layer counts, by config key;
            the first is the one that `Wider` means.
        config: The expressions (nested, with plain numbers between) of each
            config key that follows from widths.
        arguments: The same for arguments of its only call, by name.
        weights: The axes of each weight.
        scales: What a weight is multiplied by at a growth.
        has_rule: Whether a rule was found.
        given: The arguments of its first call, with axes in the place of tensors.
        part_of: The path of the layer whose rule speaks for this one, too.
        calls: How often it is called.
        opened: Whether it has no rule, and was opened.
        passing: Whether it is an operation inside an opened layer, which the layer's
            code makes anew at each call.
    """

    operation: Any
    path: str
    units: dict[str, Expression] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    arguments: dict[str, tuple[Call, Any]] = dataclasses.field(default_factory=dict)
    weights: dict[str, tuple[WeightAxis, ...]] = dataclasses.field(default_factory=dict)
    scales: dict[str, Scaled] = dataclasses.field(default_factory=dict)
    has_rule: bool = True
    given: Any = None
    part_of: str | None = None
    calls: int = 0
    opened: bool = False
    passing: bool = False

    @property
    def main(self) -> Expression:
        """The first of the sizes that the layer counts."""
        return next(iter(self.units.values()), Fixed(0))

    @property
    def axes(self) -> list[VariableAxis]:
        """All axes of all its weights."""
        return [VariableAxis(self, n, i) for n, w in self.weights.items() for i in range(len(w))]


class VariableAxis(NamedTuple):
    """One axis of a weight of a layer."""

    facts: Facts
    name: str
    at: int

    @property
    def axis(self) -> WeightAxis:
        """What is known of it."""
        return self.facts.weights[self.name][self.at]

    def change(self, **changes: Any) -> None:
        """Says something else of it: its role, or what it reads of units that fill."""
        axes = list(self.facts.weights[self.name])
        axes[self.at] = dataclasses.replace(axes[self.at], **changes)
        self.facts.weights[self.name] = tuple(axes)


@dataclasses.dataclass(frozen=True)
class Treated:
    """What a call does to the value of a unit.

    Args:
        treatment: What its rule said. Defaults to nothing: it may do anything.
        weights: The weights, each with its layer, in which its output is linear; or which
            it adds, if that is what the treatment says.
    """

    treatment: Treatment = ANYTHING
    weights: tuple[tuple[Facts, str], ...] = ()
