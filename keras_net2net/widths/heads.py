"""The units of a head: outputs of the model that new classes may join.

The outputs of a model are fixed, and so are the units that a softmax runs over. For the
classes of a head just these two are lifted, where nothing but the model's outputs sees
the probabilities. What else fixes the units still does.
"""

from __future__ import annotations

import dataclasses
import math

from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.widths.expressions import Expression, Obstacle, Width, fix, widths_of
from keras_net2net.widths.facts import READS, HeadOutput, Shown
from keras_net2net.widths.inferred import Inferred
from keras_net2net.widths.treatments import Joins, Keeps, Treatment


def release_heads(state: Inferred) -> set[Width]:
    """Finds the units of the heads that may grow although they are outputs.

    Args:
        state: What was inferred, all but for its outputs; widths become fixed.

    Returns:
        The widths that being an output doesn't fix.
    """
    wanted = {
        width
        for facts in state.facts.values()
        if id(facts.operation) in state.heads
        for units in facts.units.values()
        for width in widths_of(units)
    }

    def has(expression: Expression) -> bool:
        return any(width in wanted for width in widths_of(expression))

    for competitions in state.competitions.values():
        for one in competitions:
            if len(competitions) > 1 or not has(one.expression):
                fix(one.expression, one.obstacle)
    for norm in state.normalized:
        if has(norm.expression):
            fix(norm.expression, norm.obstacle)
    for call, _, expression, _ in state.demands:
        if has(expression):
            fix(expression, Obstacle(call.path, "sums over these units"))
    walk = _Walk(state, wanted)
    walk.graph(state.graph)
    outputs = state.graph.flat_outputs
    state.head_outputs = [
        HeadOutput(position, at, walk.shown.get(id(tensor), Shown("mixed")))
        for position, tensor in enumerate(outputs)
        for at, axis in enumerate(state.of(tensor))
        if has(axis)
    ]
    return wanted


class _Walk:
    """A pass through the graph, in the order in which it runs."""

    def __init__(self, state: Inferred, wanted: set[Width]) -> None:
        self._state = state
        self._wanted = wanted
        self.shown: dict[int, Shown] = {}

    def graph(self, graph: Graph) -> None:
        for call in graph.calls:
            if call.inner is not None:
                self._nested(call, call.inner)
            else:
                self._call(call)

    def _nested(self, call: Call, inner: Graph) -> None:
        for inside, outside in call.entries(inner):
            if id(outside) in self.shown:
                known, new = self.shown.get(id(inside)), self.shown[id(outside)]
                self.shown[id(inside)] = new if known in (None, new) else Shown("mixed")
        self.graph(inner)
        for outside, inside in zip(call.outputs, inner.flat_outputs, strict=True):
            if id(inside) in self.shown:
                self.shown[id(outside)] = self.shown[id(inside)]

    def _holds(self, tensor: Tensor) -> bool:
        return any(
            width in self._wanted for axis in self._state.of(tensor) for width in widths_of(axis)
        )

    def _call(self, call: Call) -> None:
        given = [self.shown.get(id(x), Shown()) for x in call.inputs if self._holds(x)]
        self._check_readers(call, given)
        made = [tensor for tensor in call.outputs if self._holds(tensor)]
        if not made:
            return
        shown = self._after(call, given)
        for tensor in made:
            self.shown[id(tensor)] = shown

    def _check_readers(self, call: Call, given: list[Shown]) -> None:
        """Fixes units that a weight reads where they are parts of a whole."""
        if all(one.kind == "values" for one in given):
            return
        facts = self._state.facts[id(call.operation)]
        for axes in facts.weights.values():
            for axis in axes:
                if axis.role == READS:
                    why = "reads probabilities, of which new classes take a part"
                    for width in widths_of(axis.expression):
                        if width in self._wanted:
                            fix(width, Obstacle(call.path, why))

    def _after(self, call: Call, given: list[Shown]) -> Shown:
        """How a call shows units, given how its inputs do."""
        treatment = self._state.treated_by(call).treatment
        shown = _joined(treatment, given) if given else Shown()
        if shown.kind != "values" and not _keeps_parts(treatment):
            return Shown("mixed")
        if given and not shown.squashed:
            factors = (shown.scale, treatment.factor)
            product = None if None in factors else math.prod(factors)  # type: ignore[arg-type]
            shown = dataclasses.replace(shown, scale=product)
        competitions = self._state.competitions.get(id(call), [])
        for one in competitions:
            if any(width in self._wanted for width in widths_of(one.expression)):
                if shown.kind != "values" or shown.squashed:
                    return Shown("mixed")
                return dataclasses.replace(shown, kind=one.kind, over=(one.expression,))
        if treatment.squashes and not shown.squashed:
            return dataclasses.replace(shown, squashed=True)
        made = treatment.makes and treatment.after >= Keeps.LINEAR
        known = treatment.factor is not None and not treatment.squashes
        if competitions or made or known or treatment.is_linear:
            return shown
        return dataclasses.replace(shown, scale=None, squashed=False)


def _joined(treatment: Treatment, given: list[Shown]) -> Shown:
    """How units stand in several tensors that are put together."""
    first = given[0]
    if len(given) == 1:
        return first
    if any(one.kind != first.kind or one.squashed != first.squashed for one in given):
        return Shown("mixed")
    scale = first.scale if all(one.scale == first.scale for one in given) else None
    if treatment.joins == Joins.CONCATENATION:
        over = tuple(dict.fromkeys(e for one in given for e in one.over))
        return dataclasses.replace(first, over=over, scale=scale)
    if first.kind != "values":
        return Shown("mixed")
    return dataclasses.replace(first, scale=scale if treatment.joins == Joins.SUM else None)


def _keeps_parts(treatment: Treatment) -> bool:
    """Whether parts of a whole stay what they are, up to a factor: not so their averages."""
    known = treatment.factor is not None and not treatment.squashes
    return known and treatment.joins != Joins.AVERAGE
