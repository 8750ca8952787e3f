"""Who holds the shares of copies, where no weight reads the units.

Copies are summed where units are contracted. Mostly a weight reads them there,
and is shared among them. But the scores of an attention sum over the units of two
tensors, and a tied table both makes units and reads them. Then what *makes* the
units of one of the two can hold the shares, if nothing else sees these units, and
all between there and the sum is linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from keras_net2net.graph.structure import Call, Tensor
from keras_net2net.widths.expressions import Expression, Obstacle, fix, resolve, widths_of
from keras_net2net.widths.facts import (
    FOLLOWS,
    MAKES,
    READS,
    Facts,
    Treated,
    VariableAxis,
)
from keras_net2net.widths.inferred import Inferred
from keras_net2net.widths.treatments import Joins


def share_parts(state: Inferred) -> None:
    """Lets what makes units in layers inside others hold the shares, as their rules said.

    Last of all: a layer that is called again must first find its roles as it left them.

    Args:
        state: What was inferred; roles of weights change.
    """
    for facts, expression, scale in state.parts_that_share:
        for one in _makers(facts, resolve(expression)):
            one.change(role=READS)
            if scale is not None:
                facts.scales[one.name] = scale


def _makers(facts: Facts, wanted: Expression) -> list[VariableAxis]:
    """The axes of a layer's weights that make units, or hold something for each of them."""
    return [
        one
        for one in facts.axes
        if one.axis.role in (MAKES, FOLLOWS) and resolve(one.axis.expression) == wanted
    ]


def share_demands(state: Inferred) -> None:
    """Finds, for each sum over units that no weight reads, what can hold the shares.

    Args:
        state: What was inferred; roles of weights change, or widths become fixed.
    """
    paths = _Paths(state)
    for call, facts, expression, tensors in state.demands:
        wanted = resolve(expression)
        if not any(True for _ in widths_of(wanted)):
            continue
        for position in tensors:
            places = paths.makers(call.inputs[position], wanted, call)
            if places is not None:
                for place in places:
                    place.change(role=READS)
                break
        else:
            kind = type(facts.operation).__name__
            why = f"({kind}) sums over these units, and nothing before it can hold each copy's part"
            fix(wanted, Obstacle(facts.path, why))


def check_variables(state: Inferred) -> None:
    """Fixes units that a variable reads which is used for something else, too.

    A variable that holds the shares of copies must reach the sum that it was given
    them for, linearly: a square, or a normalization, or a table that is looked up as
    well, would see the shares.

    Args:
        state: What was inferred; widths become fixed.
    """
    held: dict[int, set[VariableAxis]] = {}
    calls = [call for _, call in state.graph.all_calls()]
    for tensor in {id(x): x for call in calls for x in call.inputs}.values():
        if tensor.variable is not None:
            held[id(tensor)] = state.read_in(tensor)
    for graph in state.graph.subgraphs():
        for tensor in graph.flat_outputs:
            if tensor.variable is not None:
                held[id(tensor)] = state.read_in(tensor)
    changed = True
    while changed:
        changed = False
        for call in calls:
            for target, places in _handed_on(state, call, held):
                known = held.setdefault(id(target), set())
                changed = changed or not places <= known
                known |= places


def _handed_on(
    state: Inferred, call: Call, held: Mapping[int, set[VariableAxis]]
) -> Iterator[tuple[Tensor, set[VariableAxis]]]:
    """The tensors that still hold shares after a call; fixes units where that can't be."""
    if call.inner is not None and call.inner.opened:
        for graph in call.insides:
            for inside, outside in call.entries(graph):
                yield inside, held.get(id(outside), set())
            for inside, outside in zip(graph.flat_outputs, call.outputs, strict=True):
                yield outside, held.get(id(inside), set())
        return
    for tensor in call.inputs:
        for place in held.get(id(tensor), ()):
            if (id(call), place) in state.reading:
                continue
            if _is_linear(state, call, tensor, place, held):
                for output in call.outputs:
                    yield output, {place}
                continue
            kind = type(place.facts.operation).__name__
            why = "in another way than to sum over these units"
            why = f"({kind}) uses its weight {place.name!r} {why}"
            fix(place.axis.expression, Obstacle(place.facts.path, why))


def _is_linear(
    state: Inferred,
    call: Call,
    tensor: Tensor,
    place: VariableAxis,
    held: Mapping[int, set[VariableAxis]],
) -> bool:
    """Whether a call is linear in what a tensor holds along the axis of a variable."""
    units = resolve(place.axis.expression)

    def shared(x: Tensor) -> bool:
        """Whether a tensor holds shares of the same units."""
        return any(resolve(one.axis.expression) == units for one in held.get(id(x), ()))

    treatment = state.treated_by(call).treatment
    if treatment.joins not in (Joins.PRODUCT, Joins.QUOTIENT) and treatment.is_linear:
        return all(map(shared, call.inputs))
    # A product is linear in one of several tensors, if it alone holds shares.
    others = [x for x in call.inputs if x is not tensor]
    if len(others) + 1 != len(call.inputs) or any(map(shared, others)):
        return False
    if treatment.joins == Joins.QUOTIENT:
        return call.inputs[0] is tensor
    return treatment.joins == Joins.PRODUCT


class _Paths:
    """Ways back from a tensor to the weights that make its units."""

    def __init__(self, state: Inferred) -> None:
        self._state = state
        self._made: dict[int, Call] = {}
        self._read: dict[int, list[Call]] = {}
        self._entered: dict[int, tuple[Tensor, Call]] = {}
        self._outputs: set[int] = set()
        for graph, call in state.graph.all_calls():
            for tensor in call.outputs:
                self._made[id(tensor)] = call
            for tensor in call.inputs:
                self._read.setdefault(id(tensor), []).append(call)
            if call.inner is not None and call.inner.opened and call.inner.training is None:
                for inside, outside in call.entries(call.inner):
                    if outside is not None:
                        self._entered[id(inside)] = (outside, call)
            if graph.training is not None:
                self._outputs.update(id(tensor) for tensor in graph.flat_inputs)
        for graph in state.graph.subgraphs():
            if not graph.opened or graph is state.graph:
                self._outputs.update(map(id, graph.flat_outputs))

    def makers(self, tensor: Tensor, wanted: Expression, reader: Call) -> list[VariableAxis] | None:
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

    def _of_call(self, call: Call, wanted: Expression) -> list[VariableAxis] | None:
        treated = self._state.treated_by(call)
        inputs = [x for x in call.inputs if self._holds(x, wanted)]
        if treated.treatment.is_linear:
            found = [self.makers(x, wanted, call) for x in inputs]
            return None if None in found else [x for one in found for x in one or ()] or None
        if treated.treatment.joins == Joins.PRODUCT:  # linear in each alone
            return next(filter(None, (self.makers(x, wanted, call) for x in inputs)), None)
        if not treated.treatment.is_linear_in_weights:
            return None
        return self._of_weights(treated, wanted)

    def _holds(self, tensor: Tensor, wanted: Expression) -> bool:
        widths = set(map(id, widths_of(wanted)))
        return any(
            id(width) in widths for axis in self._state.of(tensor) for width in widths_of(axis)
        )

    def _of_weights(self, treated: Treated, wanted: Expression) -> list[VariableAxis] | None:
        """The axes of a layer's weights, if all in which it is linear have these units.

        One that hasn't, as a bias that is the same for all of them, would be added to
        each copy as a whole.
        """
        tensors = {one.facts for one, _ in self._state.variables.values()}
        found: list[VariableAxis] = []
        for facts, name in treated.weights:
            mine = [one for one in _makers(facts, wanted) if one.name == name]
            if not mine or facts.calls != 1 or facts in tensors:
                return None
            found += mine
        return found or None
