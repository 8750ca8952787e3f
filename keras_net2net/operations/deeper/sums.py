"""The sums that end residual blocks, and the blocks that repeat along a stream.

A residual block ends with a sum whose one input is the block's own, handed on as it is.
Blocks that follow each other along one stream are a run. Where the kinds of its blocks
repeat with a period, as attention and MLP do in a transformer, the period is one block.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.internals.activations import activation_of
from keras_net2net.operations.blocks import between
from keras_net2net.operations.deeper.silence import Silencer
from keras_net2net.operations.families import KERNELS
from keras_net2net.widths.inferred import Inferred
from keras_net2net.widths.treatments import Joins


@dataclasses.dataclass(eq=False)
class Sum:
    """A sum at the end of a block.

    Args:
        call: The sum.
        start: The tensor at which its branches part.
        carried: Whether one of them hands that tensor on as it is.
    """

    call: Call
    start: Tensor
    carried: bool

    @property
    def end(self) -> Tensor:
        """What it makes."""
        return self.call.outputs[0]


class Ancestry:
    """Which tensors of a graph depend on which.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: list[Tensor] = []
        self._needed: dict[int, int] = {}  # bits: the tensor's own, and those it depends on
        for tensor in graph.flat_inputs:
            self._enter(tensor, 0)
        for call in graph.calls:
            needed = 0
            for x in call.inputs:
                needed |= self._needed.get(id(x), 0)
            for x in call.outputs:
                self._enter(x, needed)

    def _enter(self, tensor: Tensor, needed: int) -> None:
        self._needed[id(tensor)] = needed | 1 << len(self.tensors)
        self.tensors.append(tensor)

    def depends(self, tensor: Tensor, on: Tensor) -> bool:
        """Whether a tensor depends on another one."""
        needed, given = self._needed.get(id(tensor), 0), self._needed.get(id(on), 0)
        return tensor is not on and bool(given) and needed & given == given

    def fork(self, tensors: list[Tensor]) -> Tensor | None:
        """The last tensor that all of these depend on."""
        common = -1
        for tensor in tensors:
            common &= self._needed.get(id(tensor), 0)
        return self.tensors[common.bit_length() - 1] if common else None


def sums_of(state: Inferred, graph: Graph) -> list[Sum]:
    """The sums of a graph that join branches of one tensor."""
    ancestry = Ancestry(graph)
    return [one for call in graph.calls if (one := _as_sum(state, ancestry, call)) is not None]


def _as_sum(state: Inferred, ancestry: Ancestry, call: Call) -> Sum | None:
    opened = call.inner is not None and call.inner.opened
    if len(call.inputs) < 2 or len(call.outputs) != 1:
        return None
    if not opened and not adds_or_subtracts(state, call):
        return None
    for terms in (call.inputs, [] if opened else _terms(state, ancestry.graph, call)):
        for i, x in enumerate(terms):
            start = _unchanged(state, ancestry.graph, x)
            others = terms[:i] + terms[i + 1 :]
            if x.shape != call.outputs[0].shape:
                continue
            if not all(ancestry.depends(y, start) for y in others):
                continue
            if not opened or _adds(state, ancestry.graph, start, call):
                return Sum(call, start, True)
    fork = None if opened else ancestry.fork(call.inputs)
    return None if fork is None else Sum(call, fork, False)


def adds_or_subtracts(state: Inferred, call: Call) -> bool:
    """Whether a call is a sum of tensors, or a difference."""
    return state.treated_by(call).treatment.joins in (Joins.SUM, Joins.DIFFERENCE)


def _terms(state: Inferred, graph: Graph, call: Call) -> list[Tensor]:
    """What is added, where a sum adds to one that nothing else reads: `(x + f(x)) + g(x)`."""
    found: list[Tensor] = []
    for x in call.inputs:
        before = graph.maker(x)
        adds = before is not None and state.treated_by(before).treatment.joins == Joins.SUM
        if before is not None and adds and graph.only_reader(x) is call:
            found += _terms(state, graph, before)
        else:
            found.append(x)
    return found


def _adds(state: Inferred, graph: Graph, start: Tensor, call: Call) -> bool:
    """Whether a layer of several inputs adds them in its own way, such as `x + scale * y`."""
    calls = between(graph, start, call.outputs[0])
    return Silencer(state, calls, start, None).identity(call.outputs[0]) is not None


def _unchanged(state: Inferred, graph: Graph, tensor: Tensor) -> Tensor:
    """The tensor that is handed on as it is."""
    while True:
        call = graph.maker(tensor)
        if call is None or call.inner is not None or len(call.inputs) != 1:
            return tensor
        if not state.treated_by(call).treatment.is_unchanged:
            return tensor
        tensor = call.inputs[0]


def _finishes(state: Inferred, call: Call) -> bool:
    """Whether a call may be what ends a block behind its sum: an activation, a normalization."""
    if len(call.inputs) != 1 or call.inner is not None:
        return False
    if call.inputs[0].shape != call.outputs[0].shape:
        return False
    treatment = state.treated_by(call).treatment
    known = treatment.is_unchanged or treatment.normalizes
    return known or activation_of(call.operation) is not None


def sum_at(state: Inferred, graph: Graph, tensor: Tensor, sums: dict[int, Sum]) -> Sum | None:
    """The sum that a tensor is the end of the block of."""
    while True:
        call = graph.maker(tensor)
        if call is None:
            return None
        if id(call) in sums:
            return sums[id(call)]
        if not _finishes(state, call) or graph.only_reader(call.inputs[0]) is not call:
            return None
        tensor = call.inputs[0]


def sum_behind(state: Inferred, graph: Graph, call: Call, sums: dict[int, Sum]) -> Sum | None:
    """The sum that a layer is the last one before."""
    family = isinstance(call.operation, KERNELS)
    tensor = call.outputs[0]
    while True:
        reader = graph.only_reader(tensor)
        if reader is None:
            return None
        if id(reader) in sums:
            found = sums[id(reader)]
            layer = isinstance(reader.operation, keras.Layer)
            return found if found.carried and not (family and layer) else None
        known = _finishes(state, reader) or _single_passing(reader)
        if not known:
            return None
        tensor = reader.outputs[0]


def _single_passing(call: Call) -> bool:
    """Whether a call is of a layer such as LayerScale, written by others."""
    same = len(call.inputs) == 1 and call.inputs[0].shape == call.outputs[0].shape
    return same and call.inner is not None and call.inner.opened


def run_of(state: Inferred, graph: Graph, end: Sum, sums: dict[int, Sum]) -> list[Sum]:
    """The blocks that follow each other along a stream, one of which is given."""
    if not end.carried:
        return [end]
    before: dict[int, Sum] = {}
    behind: dict[int, Sum] = {}
    for one in sums.values():
        if not one.carried:
            continue
        previous = sum_at(state, graph, one.start, sums)
        if previous is not None and previous.carried and previous is not one:
            before[id(one)] = previous
            behind[id(previous)] = one
    run = [end]
    while id(run[0]) in before and before[id(run[0])] not in run:
        run.insert(0, before[id(run[0])])
    while id(run[-1]) in behind and behind[id(run[-1])] not in run:
        run.append(behind[id(run[-1])])
    return run


def period_of(state: Inferred, graph: Graph, run: list[Sum], at: int) -> int:
    """How many sums of a run, up to one of them, are a block: those that repeat."""
    kinds = [_kind(graph, one) for one in run]
    for period in range(1, at + 2):
        mine = kinds[at - period + 1 : at + 1]
        previous = kinds[at - 2 * period + 1 : at - period + 1] if at + 1 >= 2 * period else []
        following = kinds[at + 1 : at + 1 + period]
        if mine in (previous, following):
            return period if (at + 1) % period == 0 else 1
    # Nothing repeats: a transformer of one block ends with what doesn't attend.
    attends = [
        any(_attends(state, call) for call in between(graph, one.start, one.end)) for one in run
    ]
    whole = at == len(run) - 1 and all(attends[:at]) and not attends[at]
    return at + 1 if whole else 1


def _attends(state: Inferred, call: Call) -> bool:
    inside = [one for graph in call.insides for one in graph.calls]
    return any(_attends(state, one) for one in inside) or state.treated_by(call).treatment.attends


def _kind(graph: Graph, one: Sum) -> tuple[Any, ...]:
    """What a block is made of: the classes of its layers, and the shapes of their weights."""
    return tuple(
        (
            type(call.operation).__name__.lower(),
            tuple(tuple(v.shape) for v in getattr(call.operation, "weights", ())),
        )
        for call in between(graph, one.start, one.end)
    )
