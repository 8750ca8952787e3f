"""Making a part of a graph start as the identity: which of its weights have to be zero.

A residual block is `x + f(x)`: with the last weights of `f` at zero it passes `x` on,
and learns at once, since the gradient of these weights isn't zero. So the input is
followed backwards from the output, along the sums that carry it; all else that is
added to it on the way must be silent.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np

from keras_net2net import internals
from keras_net2net.graph.structure import Call, Tensor
from keras_net2net.internals.activations import Activation, activation_of, describe
from keras_net2net.widths.facts import Treated
from keras_net2net.widths.inferred import Inferred
from keras_net2net.widths.treatments import Joins, Keeps, Treatment

Zeros = dict[int, Any]  # variables that start at zero, by `id`


@dataclasses.dataclass(eq=False)
class Frame:
    """A graph that is looked at, and where the tensors come from that enter it.

    Args:
        calls: The calls in it.
        entries: For its inputs, by `id`, the tensors outside that they stand for.
        outer: The frame outside. Defaults to `None`: it is the outermost.
    """

    calls: Sequence[Call]
    entries: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    outer: Frame | None = None

    def __post_init__(self) -> None:
        self.makers = {id(t): call for call in self.calls for t in call.outputs}

    def elsewhere(self, tensor: Tensor) -> list[tuple[Tensor, Frame]]:
        """What a tensor is that comes from outside, or from inside of a call; else nothing."""
        if id(tensor) in self.entries and self.outer is not None:
            return [(self.entries[id(tensor)], self.outer)]
        call = self.makers.get(id(tensor))
        if call is None:
            return []
        found = []
        for inner in call.insides:
            pairs = call.entries(inner)
            entries = {id(inside): outside for inside, outside in pairs if outside is not None}
            at = inner.flat_outputs[call.outputs.index(tensor)]
            found.append((at, Frame(inner.calls, entries, self)))
        return found


@dataclasses.dataclass
class Solution:
    """How a part becomes the identity.

    Args:
        zeros: The weights that start at zero.
        projections: Branches that nothing in them can silence: a projection that
            starts at zero is put behind each, as the call and the tensor that it reads.
        randomly: The layers on the way of the input that drop some of it in training.
    """

    zeros: Zeros = dataclasses.field(default_factory=dict)
    projections: list[tuple[Call, Tensor]] = dataclasses.field(default_factory=list)
    randomly: list[str] = dataclasses.field(default_factory=list)

    @property
    def cost(self) -> tuple[int, int]:
        """To compare solutions: projections first, then weights."""
        return len(self.projections), _size(self.zeros)

    def join(self, other: Solution) -> Solution:
        """Both."""
        return Solution(
            self.zeros | other.zeros,
            self.projections + other.projections,
            self.randomly + other.randomly,
        )


class Silencer:
    """Finds the weights of a part of a graph that have to be zero.

    Args:
        state: What was inferred of the graph.
        calls: The calls of the part.
        start: The tensor that it begins at.
        values: What is known of the values of the tensor behind which the part is
            repeated: what an activation may leave alone.
    """

    def __init__(
        self, state: Inferred, calls: Sequence[Call], start: Tensor, values: Activation | None
    ) -> None:
        self._state = state
        self.root = Frame(calls)
        self.start = start
        self.values = values
        self._uses = collections.Counter(_operations(calls))

    def identity(self, end: Tensor) -> Solution | None:
        """What makes a tensor of the part equal to its start; `None` if nothing does."""
        return self._equal(end, self.root, {})

    def silence(self, tensor: Tensor) -> Zeros | None:
        """The weights whose zeros make a tensor of the part zero; `None` if none do."""
        return self._zero(tensor, self.root, {})

    def carries(self, call: Call) -> bool:
        """Whether a call gives what it is given, as long as that is the start."""
        if len(call.inputs) != 1 or len(call.outputs) != 1 or call.inner is not None:
            return False
        if self._treatment(call).is_unchanged:
            return True
        activation = activation_of(call.operation)
        known = None if activation is None else describe(activation)
        return known is not None and known.leaves_alone(self.values or Activation())

    def _treatment(self, call: Call) -> Treatment:
        return self._state.treated_by(call).treatment

    # -- what carries the start ---------------------------------------------------

    def _equal(self, tensor: Tensor, frame: Frame, chosen: Zeros) -> Solution | None:
        if tensor is self.start:
            return Solution()
        if elsewhere := frame.elsewhere(tensor):
            both = Solution()
            for one, at in elsewhere:
                more = self._equal(one, at, chosen | both.zeros)
                if more is None:
                    return None
                both = both.join(more)
            return both
        call = frame.makers.get(id(tensor))
        if call is None:
            return None
        if self.carries(call):
            found = self._equal(call.inputs[0], frame, chosen)
            if found is not None and self._treatment(call).drops:
                found = found.join(Solution(randomly=[call.path]))
            return found
        joins = self._treatment(call).joins
        if joins not in (Joins.SUM, Joins.DIFFERENCE):
            return None
        options = []
        inputs = call.inputs
        for i, carrier in enumerate(inputs[:1] if joins == Joins.DIFFERENCE else inputs):
            found = self._equal(carrier, frame, chosen) if carrier.shape == tensor.shape else None
            if found is None:
                continue
            for branch in inputs[:i] + inputs[i + 1 :]:
                zeros = self._zero(branch, frame, chosen | found.zeros)
                unsilenced = [(call, branch)] if zeros is None else []
                found = found.join(Solution(zeros or {}, unsilenced))
            if frame is self.root or not found.projections:
                options.append(found)
        return min(options, key=lambda one: one.cost, default=None)

    # -- what is silent -----------------------------------------------------------

    def _zero(self, tensor: Tensor, frame: Frame, chosen: Zeros) -> Zeros | None:
        if tensor.variable is not None:
            owner, _, variable = tensor.variable
            return self._zeros([(variable, owner)])
        if elsewhere := frame.elsewhere(tensor):
            return self._all(elsewhere, chosen)
        call = frame.makers.get(id(tensor))
        if call is None:
            return None
        treated = self._state.treated_by(call)
        treatment = treated.treatment
        inputs = [(x, frame) for x in call.inputs]
        once = self._uses[id(call.operation)] == 1
        if treatment.joins in (Joins.PRODUCT, Joins.CONTRACTION, Joins.QUOTIENT):
            factors = inputs[:1] if treatment.joins == Joins.QUOTIENT else inputs
            options = [self._zero(*factor, chosen) for factor in factors]
            found_options = [one for one in options if one is not None]
            return min(found_options, key=lambda one: _size(one, chosen), default=None)
        if treatment.joins is not None:
            return self._all(inputs, chosen)
        if treatment.makes or treatment.weighs:
            # The output is linear in these weights, if what follows them passes slopes on.
            linear = treatment.after >= Keeps.SLOPE and len(call.outputs) == 1 and once
            return self._zeros(_variables(treated)) if linear else None
        if treatment.shifts:
            # A BatchNormalization without gamma makes zero of zero, if its mean is zero as well.
            before = self._all(inputs, chosen) if once else None
            return None if before is None else before | {id(v): v for v, _ in _variables(treated)}
        passes = treatment.keeps >= Keeps.SLOPE
        passes = passes and not (treatment.stops or treatment.blurs or treatment.attends)
        return self._all(inputs, chosen) if passes else None

    def _all(self, tensors: list[tuple[Tensor, Frame]], chosen: Zeros) -> Zeros | None:
        """The weights whose zeros make all of these zero."""
        found: Zeros = {}
        for one in tensors:
            more = self._zero(*one, chosen | found)
            if more is None:
                return None
            found |= more
        return found if tensors else None

    def _zeros(self, pairs: list[tuple[Any, Any]]) -> Zeros | None:
        """Variables, each with its layer, if they can learn from zero."""
        for variable, layer in pairs:
            if self._uses.get(id(layer), 1) > 1:  # a layer called twice can't
                return None
            if "float" not in variable.dtype or (not variable.trainable and layer.trainable):
                return None
        return {id(variable): variable for variable, _ in pairs} or None


def _variables(treated: Treated) -> list[tuple[Any, Any]]:
    """The variables for which a treatment goes, each with its layer."""
    return [
        (internals.named_variables(facts.operation)[name], facts.operation)
        for facts, name in treated.weights
    ]


def _operations(calls: Sequence[Call]) -> Iterator[int]:
    for call in calls:
        yield id(call.operation)
        yield from _operations(call.inner.calls if call.inner is not None else ())


def _size(zeros: Zeros, chosen: Container[int] = ()) -> int:
    return sum(int(np.prod(v.shape)) for key, v in zeros.items() if key not in chosen)
