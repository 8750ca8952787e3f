"""Making a part of a graph start as the identity: which of its weights have to be zero.

A residual block is `x + f(x)`: with the last weights of `f` at zero it passes `x` on,
and learns at once, since the gradient of these weights isn't zero. So the input is
followed backwards from the output, along the sums that carry it; all else that is
added to it on the way must be silent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_net2net import internals
from keras_net2net.graph.structure import Call, Graph, Tensor
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
        return len(self.projections), sum(int(np.prod(v.shape)) for v in self.zeros.values())

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
        self._uses: dict[int, int] = {}
        self._count(calls)

    def _count(self, calls: Iterable[Call]) -> None:
        for call in calls:
            self._uses[id(call.operation)] = self._uses.get(id(call.operation), 0) + 1
            if call.inner is not None:
                self._count(call.inner.calls)

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
        if id(tensor) in frame.entries and frame.outer is not None:
            return self._equal(frame.entries[id(tensor)], frame.outer, chosen)
        call = frame.makers.get(id(tensor))
        if call is None:
            return None
        if call.inner is not None:
            both = Solution()
            for inner in call.insides:
                at = inner.flat_outputs[call.outputs.index(tensor)]
                more = self._equal(at, _enter(call, inner, frame), chosen | both.zeros)
                if more is None:
                    return None
                both = both.join(more)
            return both
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
        for i, carrier in enumerate(inputs):
            if carrier.shape != tensor.shape:
                continue
            if joins == Joins.DIFFERENCE and i > 0:
                break
            found = self._equal(carrier, frame, chosen)
            if found is None:
                continue
            for branch in inputs[:i] + inputs[i + 1 :]:
                found = found.join(self._silent(call, branch, frame, chosen | found.zeros))
            if frame is self.root or not found.projections:
                options.append(found)
        return min(options, key=lambda one: one.cost, default=None)

    def _silent(self, call: Call, branch: Tensor, frame: Frame, chosen: Zeros) -> Solution:
        zeros = self._zero(branch, frame, chosen)
        return Solution(projections=[(call, branch)]) if zeros is None else Solution(zeros)

    # -- what is silent -----------------------------------------------------------

    def _zero(self, tensor: Tensor, frame: Frame, chosen: Zeros) -> Zeros | None:
        if tensor.variable is not None:
            owner, _, variable = tensor.variable
            return self._zeros([(variable, owner)])
        if id(tensor) in frame.entries and frame.outer is not None:
            return self._zero(frame.entries[id(tensor)], frame.outer, chosen)
        call = frame.makers.get(id(tensor))
        if call is None:
            return None
        if call.inner is not None:
            found: Zeros = {}
            for inner in call.insides:
                at = inner.flat_outputs[call.outputs.index(tensor)]
                more = self._zero(at, _enter(call, inner, frame), chosen | found)
                if more is None:
                    return None
                found |= more
            return found
        treated = self._state.treated_by(call)
        treatment = treated.treatment
        if treatment.joins in (Joins.PRODUCT, Joins.CONTRACTION, Joins.QUOTIENT):
            factors = call.inputs[:1] if treatment.joins == Joins.QUOTIENT else call.inputs
            options = [self._zero(x, frame, chosen) for x in factors]
            found_options = [one for one in options if one is not None]
            return min(found_options, key=lambda one: _size(one, chosen), default=None)
        if treatment.joins is not None:
            return self._all(call, frame, chosen)
        if treatment.makes or treatment.weighs:
            return self._made(call, treated)
        if treatment.shifts:
            return self._shifted(call, treated, frame, chosen)
        if treatment.keeps >= Keeps.SLOPE and not (
            treatment.stops or treatment.blurs or treatment.attends
        ):
            return self._all(call, frame, chosen)
        return None

    def _all(self, call: Call, frame: Frame, chosen: Zeros) -> Zeros | None:
        found: Zeros = {}
        if not call.inputs:
            return None
        for x in call.inputs:
            more = self._zero(x, frame, chosen | found)
            if more is None:
                return None
            found |= more
        return found

    def _made(self, call: Call, treated: Treated) -> Zeros | None:
        """The weights in which the output is linear, if what follows them passes slopes on."""
        again = self._uses.get(id(call.operation), 0) != 1
        if treated.treatment.after < Keeps.SLOPE or len(call.outputs) > 1 or again:
            return None
        return self._zeros(_variables(treated))

    def _shifted(self, call: Call, treated: Treated, frame: Frame, chosen: Zeros) -> Zeros | None:
        """A BatchNormalization without gamma makes zero of zero, if its mean is zero as well."""
        before = self._all(call, frame, chosen)
        if before is None or self._uses.get(id(call.operation), 0) != 1:
            return None
        return before | {id(v): v for v, _ in _variables(treated)}

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


def _enter(call: Call, inner: Graph, frame: Frame) -> Frame:
    pairs = call.entries(inner)
    entries = {id(inside): outside for inside, outside in pairs if outside is not None}
    return Frame(inner.calls, entries, frame)


def _size(zeros: Zeros, chosen: Zeros) -> int:
    return sum(int(np.prod(v.shape)) for key, v in zeros.items() if key not in chosen)
