"""Repeating a part of a graph: copying it, and making it start as the identity."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_net2net import internals
from keras_net2net.errors import GrowthError, NotIdentityError
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.operations.deeper.building import Builder, Namer, Repeated, base_name
from keras_net2net.operations.deeper.identities import CONVOLUTIONS, bn_axis
from keras_net2net.operations.deeper.places import Place, between, not_rewired, values_of
from keras_net2net.operations.deeper.silence import Silencer, Solution
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import InitialWeight
from keras_net2net.widths.inferred import Inferred


@dataclasses.dataclass(eq=False)
class Part:
    """A part of a graph, and how a copy of it behind its end is the identity.

    Args:
        graph: The graph.
        start: The tensor that it begins at.
        end: The one that it ends with.
        calls: Its calls, as they were when it was found.
        solution: What of it starts at zero.
        wrapped: Where the copy has no skip of its own: the tensor that its input is
            added to.
        first: What to call the start.
        last: What to call the end.
    """

    graph: Graph
    start: Tensor
    end: Tensor
    calls: list[Call]
    solution: Solution
    wrapped: Tensor | None
    first: str
    last: str


def part_between(state: Inferred, graph: Graph, start: Place, end: Place, received: str) -> Part:
    """The part between two tensors of a graph, and how it becomes the identity.

    Raises:
        GrowthError: If there is no way from one to the other, or it can't be repeated.
    """
    if graph.opened:
        raise not_rewired(graph, received)
    calls = between(graph, start.tensor, end.tensor)
    if not calls:
        back = between(graph, end.tensor, start.tensor)
        raise GrowthError(
            f"There is no part from {start.path!r} to {end.path!r}",
            f"what {end.path!r} makes doesn't depend on what {start.path!r} makes",
            (
                f"Swap them: `between=({end.path!r}, {start.path!r})`"
                if back
                else "Name a layer, and one that comes behind it"
            ),
            received=received,
        )
    calls = [dataclasses.replace(call) for call in calls]
    silencer = Silencer(state, calls, start.tensor, values_of(state, graph, end.tensor))
    if not any(
        call.operation.weights for call in calls if isinstance(call.operation, layers.Layer)
    ):
        raise GrowthError(
            f"The part from {start.path!r} to {end.path!r} can't be repeated",
            "nothing in it has weights that could learn",
            "Name layers with layers between them that have weights",
            received=received,
        )
    solution = silencer.identity(end.tensor)
    wrapped = None
    if solution is None:
        solution, wrapped = _wrapped(silencer, end.tensor)
    return Part(graph, start.tensor, end.tensor, calls, solution, wrapped, start.path, end.path)


def _wrapped(silencer: Silencer, end: Tensor) -> tuple[Solution, Tensor]:
    """How the input can be added to a part without a skip: the weights, and where.

    In front of the activation at its end, if that leaves the input alone.
    """
    tensor = end
    while True:
        zeros = silencer.silence(tensor)
        if zeros is not None:
            return Solution(zeros), tensor
        call = silencer.root.makers.get(id(tensor))
        if call is None or not silencer.carries(call):
            # Nothing can be zero here, so that a projection is put behind it.
            return Solution(projections=[(silencer.root.makers[id(end)], end)]), end
        tensor = call.inputs[0]


def same_shape(start: Tensor, end: Tensor) -> bool:
    """Whether what a part makes can be its input again."""
    return start.shape == end.shape and start.dtype == end.dtype


def repeat(draft: Draft, part: Part, after: Tensor, ends: dict[int, Tensor]) -> Repeated:
    """Copies a part behind a tensor, so that it starts as the identity.

    Args:
        draft: The draft.
        part: The part.
        after: The tensor, which has the values of the part's end.
        ends: For tensors behind which something was inserted, by `id`, what it makes.

    Returns:
        What was inserted.
    """
    namer = Namer(draft)
    originals = list({id(call.operation): call for call in part.calls}.values())
    bases = [base_name(call.operation.name) for call in originals]
    bases = [
        base if bases.count(base) == 1 else call.operation.name
        for base, call in zip(bases, originals, strict=True)
    ]
    number = namer.number(bases)
    label = f"{base_name(part.last.rsplit('/', 1)[-1])}_deeper_{number}"
    builder = Builder(draft, part.graph)
    branches = part.wrapped is not None or part.solution.projections or len(part.calls) > 1
    if branches and internals.function_of(part.graph.model) is not part.graph.model:
        builder.inside = namer.reserve(f"{label}_block")
    made = {
        id(call.operation): builder.copied(call, namer.take(base, number), part.solution.zeros)
        for base, call in zip(bases, originals, strict=True)
    }
    known: dict[int, Tensor] = {id(part.start): after}
    projected: dict[int, Tensor] = {}

    def project(x: Tensor, silent: Tensor) -> Tensor:
        if id(x) not in projected:
            projected[id(x)] = _project(builder, namer, part, label, silent)
        return projected[id(x)]

    for call in part.calls:
        silenced = {id(x) for c, x in part.solution.projections if c is call}
        swap = functools.partial(_swap, known=known, ends=ends, silenced=silenced, project=project)
        args, kwargs = keras.tree.map_structure(swap, (call.args, call.kwargs))
        new = builder.call(made[id(call.operation)], args, kwargs, call.outputs)
        for old, output in zip(call.outputs, new.outputs, strict=True):
            known[id(old)] = output
            if old is part.wrapped:
                if part.solution.projections:
                    output = _project(builder, namer, part, label, output)
                known[id(old)] = builder.add(namer.reserve(f"{label}_add"), after, output)
    return builder.finish(after, known[id(part.end)])


def _swap(
    x: Any,
    known: dict[int, Tensor],
    ends: dict[int, Tensor],
    silenced: set[int],
    project: Callable[[Tensor, Tensor], Tensor],
) -> Any:
    """What a copied call reads in the place of a tensor."""
    if not isinstance(x, Tensor):
        return x
    new = known.get(id(x)) or ends.get(id(x), x)
    return project(x, new) if id(x) in silenced else new


def _project(builder: Builder, namer: Namer, part: Part, label: str, x: Tensor) -> Tensor:
    """A projection of a tensor that starts at zero."""
    like = next((c.operation for c in reversed(part.calls) if _projects(c, x)), None)
    name = namer.reserve(f"{label}_projection")
    return project_to_zero(builder, like, name, x)


def _projects(call: Call, x: Tensor) -> bool:
    layer = call.operation
    if isinstance(layer, CONVOLUTIONS):
        return len(x.shape) == len(layer.kernel_size) + 2
    return isinstance(layer, layers.Dense)


def project_to_zero(builder: Builder, like: Any, name: str, x: Tensor) -> Tensor:
    """A layer of the family of another one that makes as many units, all zero at first."""
    units = x.shape[bn_axis(like)]
    if units is None or not x.dtype.startswith(("float", "bfloat")):
        raise NotIdentityError(
            f"Nothing can start as the identity behind {builder.made[-1].insertion.path!r}",
            f"its branch makes {x}, which no projection can make zero",
            "Name another part",
            received=f"a part with the layer {builder.made[-1].insertion.path!r}",
        )
    policy = x.dtype if like is None else like.dtype_policy
    config: dict[str, Any] = {"name": name, "dtype": policy}
    if isinstance(like, CONVOLUTIONS):
        cls = type(like)
        for base in CONVOLUTIONS:
            cls = base if isinstance(like, base) else cls
        config |= {"filters": units, "kernel_size": 1, "data_format": like.data_format}
        shape: tuple[int, ...] = (*(1 for _ in like.kernel_size), units, units)
    else:
        cls = layers.Dense
        config |= {"units": units}
        shape = (units, units)
    weights = [InitialWeight("kernel", shape), InitialWeight("bias", (units,))]
    layer = builder.fresh(cls, cls(**config).get_config(), weights, x.shape)
    return builder.call(layer, (x,), {}, [x]).outputs[0]
