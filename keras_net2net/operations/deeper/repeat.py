"""Repeating a part of a graph: copying it, and making it start as the identity."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import keras
from keras import layers

from keras_net2net.errors import GrowthError, NotIdentityError
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.internals.activations import Activation, activation_of, describe
from keras_net2net.operations.blocks import between
from keras_net2net.operations.deeper.building import Builder, Namer, new_layer
from keras_net2net.operations.deeper.silence import Silencer, Solution
from keras_net2net.operations.families import CONVOLUTIONS, bn_axis
from keras_net2net.operations.select import Output, not_rewired
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import InitialWeight, Insertion
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


def part_between(state: Inferred, start: Output, end: Output) -> Part:
    """The part between two tensors of a graph, and how it becomes the identity.

    Raises:
        GrowthError: If there is no way from one to the other, or it can't be repeated.
    """
    graph = start.graph
    if graph.opened:
        raise not_rewired(graph)
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


def repeat(
    draft: Draft, part: Part, after: Tensor, ends: dict[int, Tensor]
) -> tuple[Tensor, list[Insertion]]:
    """Copies a part behind a tensor, so that it starts as the identity.

    Args:
        draft: The draft.
        part: The part.
        after: The tensor, which has the values of the part's end.
        ends: For tensors behind which something was inserted, by `id`, what it makes.

    Returns:
        The tensor that the copy makes, and what was inserted.
    """
    namer = Namer(draft)
    originals = list({id(call.operation): call for call in part.calls}.values())
    bases = [namer.base(call.operation.name) for call in originals]
    bases = [
        base if bases.count(base) == 1 else call.operation.name
        for base, call in zip(bases, originals, strict=True)
    ]
    number = namer.number(bases)
    label = f"{namer.base(part.last.rsplit('/', 1)[-1])}_deeper_{number}"
    builder = Builder(draft, part.graph)
    if part.wrapped is not None or part.solution.projections or len(part.calls) > 1:
        builder.branch(namer.reserve(f"{label}_block"))
    made = {
        id(call.operation): builder.copied(call, namer.take(base, number), part.solution.zeros)
        for base, call in zip(bases, originals, strict=True)
    }
    known: dict[int, Tensor] = {id(part.start): after}
    projected: dict[int, Tensor] = {}

    def project(x: Tensor) -> Tensor:
        return _to_zero(builder, part, namer.reserve(f"{label}_projection"), x)

    def swap(silenced: set[int], x: Any) -> Any:
        """What a copied call reads in the place of a tensor."""
        if not isinstance(x, Tensor):
            return x
        new = known.get(id(x)) or ends.get(id(x), x)
        if id(x) not in silenced:
            return new
        if id(x) not in projected:
            projected[id(x)] = project(new)
        return projected[id(x)]

    for call in part.calls:
        silenced = {id(x) for c, x in part.solution.projections if c is call}
        args, kwargs = keras.tree.map_structure(
            functools.partial(swap, silenced), (call.args, call.kwargs)
        )
        new = builder.call(made[id(call.operation)], args, kwargs, call.outputs)
        for old, output in zip(call.outputs, new.outputs, strict=True):
            known[id(old)] = output
            if old is part.wrapped:
                output = project(output) if part.solution.projections else output
                known[id(old)] = builder.add(namer.reserve(f"{label}_add"), after, output)
    return builder.finish(after, known[id(part.end)])


def _to_zero(builder: Builder, part: Part, name: str, x: Tensor) -> Tensor:
    """A projection of a tensor that starts at zero, of the family of the last one of a part."""
    like = next((c.operation for c in reversed(part.calls) if _projects(c, x)), None)
    units = x.shape[bn_axis(like)]
    if units is None or not x.dtype.startswith(("float", "bfloat")):
        path = builder.made[-1].path
        raise NotIdentityError(
            f"Nothing can start as the identity behind {path!r}",
            f"its branch makes {x}, which no projection can make zero",
            "Name another part",
            received=f"a part with the layer {path!r}",
        )
    config: dict[str, Any] = {"dtype": x.dtype if like is None else like.dtype_policy}
    cls: Any = layers.Dense
    space: tuple[int, ...] = ()
    if isinstance(like, CONVOLUTIONS):
        cls = next(base for base in CONVOLUTIONS if isinstance(like, base))
        space = (1,) * len(like.kernel_size)
        config |= {"kernel_size": 1, "data_format": like.data_format}
    config["units" if cls is layers.Dense else "filters"] = units
    weights = [InitialWeight("kernel", (*space, units, units)), InitialWeight("bias", (units,))]
    return builder.put(new_layer(builder.path(name), cls, cls(**config).get_config(), weights), x)


def _projects(call: Call, x: Tensor) -> bool:
    layer = call.operation
    if isinstance(layer, CONVOLUTIONS):
        return len(x.shape) == len(layer.kernel_size) + 2
    return isinstance(layer, layers.Dense)


def values_of(state: Inferred, graph: Graph, tensor: Tensor) -> Activation | None:
    """What is known of the values of a tensor: those of the activation that makes it."""
    call = graph.maker(tensor)
    if call is None:
        return None
    treatment = state.treated_by(call).treatment
    if treatment.is_unchanged and call.inputs:
        known = values_of(state, graph, call.inputs[0])
        bounded = known is not None and max(map(abs, known.values)) < math.inf
        return None if treatment.spreads or (bounded and treatment.drops) else known
    activation = activation_of(call.operation)
    if activation is None and (treatment.makes or treatment.weighs):
        activation = getattr(call.operation, "activation", None)
    return None if activation is None else describe(activation)
