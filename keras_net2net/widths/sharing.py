"""Who holds the shares of copies, where no weight reads the units.

Copies are summed where units are contracted. Mostly a weight reads them there,
and is shared among them. But the scores of an attention sum over the units of two
tensors, and a tied table both makes units and reads them. Then what *makes* the
units of one of the two can hold the shares, if nothing else sees these units, and
all between there and the sum is linear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from keras_net2net.graph.structure import Call, Tensor
from keras_net2net.widths.expressions import Expression, Obstacle, fix, resolve, widths_of
from keras_net2net.widths.facts import (
    FOLLOWS,
    MAKES,
    MAKES_UNITS,
    NORMALIZES,
    PASSES,
    READS,
    RESCALES,
    Facts,
    Place,
)

if TYPE_CHECKING:
    from keras_net2net.widths.inference import Inference


def share_demands(inference: Inference) -> None:
    """Finds, for each sum over units that no weight reads, what can hold the shares.

    Args:
        inference: The inference; roles of weights change, or widths become fixed.
    """
    paths = _Paths(inference)
    for call, facts, expression, tensors in inference.demands:
        wanted = resolve(expression)
        if not any(True for _ in widths_of(wanted)):
            continue
        for position in tensors:
            places = paths.makers(call.inputs[position], wanted, call)
            if places is not None:
                _share(places)
                break
        else:
            kind = type(facts.operation).__name__
            why = f"({kind}) sums over these units, and nothing before it can hold each copy's part"
            fix(wanted, Obstacle(facts.path, why))


def check_variables(inference: Inference) -> None:
    """Fixes units that a variable reads which is used for something else, too.

    A variable that holds the shares of copies must reach the sum that it was given
    them for, linearly: a square, or a normalization, or a table that is looked up as
    well, would see the shares.

    Args:
        inference: The inference; widths become fixed.
    """
    held: dict[int, set[Place]] = {}
    calls = [call for _, call in inference.graph.all_calls()]
    for tensor in {id(x): x for call in calls for x in call.inputs}.values():
        if tensor.variable is not None:
            held[id(tensor)] = inference.read_in(tensor)
    for graph in inference.graph.subgraphs():
        for tensor in graph.flat_outputs:
            if tensor.variable is not None:
                held[id(tensor)] = inference.read_in(tensor)
    changed = True
    while changed:
        changed = False
        for call in calls:
            for target, places in _handed_on(inference, call, held):
                known = held.setdefault(id(target), set())
                changed = changed or not places <= known
                known |= places


def _handed_on(
    inference: Inference, call: Call, held: Mapping[int, set[Place]]
) -> Iterator[tuple[Tensor, set[Place]]]:
    """The tensors that still hold shares after a call; fixes units where that can't be."""
    inner = call.inner
    if inner is not None and inner.opened:
        for graph in filter(None, (inner, inner.training)):
            for inside, outside in zip(graph.flat_inputs, graph.sources, strict=True):
                yield inside, held.get(id(outside), set())
            for inside, outside in zip(graph.flat_outputs, call.outputs, strict=True):
                yield outside, held.get(id(inside), set())
        return
    for tensor in call.inputs:
        for place in held.get(id(tensor), ()):
            if inference.is_read_by(place, call):
                continue
            facts, name, at = place
            if _is_linear(inference, call, tensor, place, held):
                for output in call.outputs:
                    yield output, {place}
                continue
            kind = type(facts.operation).__name__
            why = f"({kind}) uses its weight {name!r} in another way than to sum over these units"
            fix(facts.weights[name][at].expression, Obstacle(facts.path, why))


def _is_linear(
    inference: Inference,
    call: Call,
    tensor: Tensor,
    place: Place,
    held: Mapping[int, set[Place]],
) -> bool:
    """Whether a call is linear in what a tensor holds along the axis of a variable."""
    facts, name, at = place
    units = facts.weights[name][at].expression

    def shared(x: Tensor) -> bool:
        """Whether a tensor holds shares of the same units."""
        places = held.get(id(x), ())
        return any(resolve(f.weights[n][i].expression) == resolve(units) for f, n, i in places)

    kind = type(call.operation).__name__
    if inference.treatments.get(id(call)) == PASSES and kind not in _PRODUCTS:
        return all(map(shared, call.inputs))
    others = [x for x in call.inputs if x is not tensor]
    if len(others) + 1 != len(call.inputs) or any(map(shared, others)):
        return False
    if kind in ("Divide", "TrueDivide"):
        return call.inputs[0] is tensor and call.args[:1] == (tensor,)
    return kind == "Multiply"


_PRODUCTS = ("Multiply", "Divide", "TrueDivide")  # linear in one of several tensors


def _share(places: Iterable[Place]) -> None:
    for facts, name, at in places:
        axes = list(facts.weights[name])
        axes[at] = dataclasses.replace(axes[at], role=READS)
        facts.weights[name] = tuple(axes)


class _Paths:
    """Ways back from a tensor to the weights that make its units."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._made: dict[int, Call] = {}
        self._read: dict[int, list[Call]] = {}
        self._entered: dict[int, tuple[Tensor, Call]] = {}
        self._outputs: set[int] = set()
        self._parts: dict[str, list[Facts]] = {}
        for graph, call in inference.graph.all_calls():
            for tensor in call.outputs:
                self._made[id(tensor)] = call
            for tensor in call.inputs:
                self._read.setdefault(id(tensor), []).append(call)
            if call.inner is not None and call.inner.opened and call.inner.training is None:
                for inside, outside in zip(call.inner.flat_inputs, call.inner.sources, strict=True):
                    self._entered[id(inside)] = (outside, call)
            if graph.training is not None:
                self._outputs.update(id(tensor) for tensor in graph.flat_inputs)
        for graph in inference.graph.subgraphs():
            if not graph.opened or graph is inference.graph:
                self._outputs.update(map(id, graph.flat_outputs))
        for facts in inference.facts.values():
            if facts.part_of is not None:
                self._parts.setdefault(facts.part_of, []).append(facts)

    def makers(self, tensor: Tensor, wanted: Expression, reader: Call) -> list[Place] | None:
        """The axes of weights that make the units of a tensor, if they may hold shares.

        Args:
            tensor: The tensor.
            wanted: Its units.
            reader: The only call that may read it.

        Returns:
            The axes, or `None`.
        """
        if self._read.get(id(tensor), []) != [reader] or id(tensor) in self._outputs:
            return None
        if id(tensor) in self._entered:
            outside, call = self._entered[id(tensor)]
            return self.makers(outside, wanted, call)
        maker = self._made.get(id(tensor))
        if maker is None:
            return None
        if maker.inner is None:
            return self._of_call(maker, wanted)
        if not maker.inner.opened or maker.inner.training is not None:
            return None
        inside = maker.inner.flat_outputs[maker.outputs.index(tensor)]
        if self._read.get(id(inside)):
            return None
        self._read[id(inside)] = [maker]
        found = self.makers(inside, wanted, maker)
        del self._read[id(inside)]
        return found

    def _of_call(self, call: Call, wanted: Expression) -> list[Place] | None:
        treatment = self._inference.treatments.get(id(call))
        facts = self._inference.facts[id(call.operation)]
        if treatment == PASSES:
            places: list[Place] = []
            for tensor in call.inputs:
                if not self._holds(tensor, wanted):
                    continue
                found = self.makers(tensor, wanted, call)
                if found is None:
                    return None
                places += found
            return places or None
        if type(call.operation).__name__ == "Multiply":  # linear in each alone
            tries = (self.makers(x, wanted, call) for x in call.inputs if self._holds(x, wanted))
            return next(filter(None, tries), None)
        if treatment not in (MAKES_UNITS, NORMALIZES, RESCALES) or facts.calls != 1:
            return None
        if treatment == NORMALIZES and "gamma" not in facts.weights:
            return None
        return self._of_weights([facts, *self._parts.get(facts.path, [])], wanted)

    def _holds(self, tensor: Tensor, wanted: Expression) -> bool:
        widths = set(map(id, widths_of(wanted)))
        return any(
            id(width) in widths for axis in self._inference.of(tensor) for width in widths_of(axis)
        )

    def _of_weights(self, all_facts: list[Facts], wanted: Expression) -> list[Place] | None:
        places: list[Place] = []
        for facts in all_facts:
            for name, axes in facts.weights.items():
                if self._inference.is_tensor(facts, name):
                    return None
                for at, axis in enumerate(axes):
                    if axis.role in (MAKES, FOLLOWS) and resolve(axis.expression) == wanted:
                        places.append((facts, name, at))
        return places or None
