"""Residual blocks: which part of a graph is one, and what is inserted for a plain layer."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.errors import GrowthError, NotIdentityError, UnknownLayerError
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.internals.activations import activation_of
from keras_net2net.operations.deeper.blocks import Block, find_block
from keras_net2net.operations.deeper.building import Builder, Namer, Repeated, base_name
from keras_net2net.operations.deeper.identities import (
    KERNELS,
    activation_layer,
    bn_axis,
    is_linear,
    kernel_config,
    normalization_like,
)
from keras_net2net.operations.deeper.places import Place, find_place, not_rewired
from keras_net2net.operations.deeper.repeat import Part, part_between, repeat, same_shape
from keras_net2net.operations.deeper.silence import Silencer
from keras_net2net.operations.deeper.sums import (
    Sum,
    adds_or_subtracts,
    period_of,
    run_of,
    sum_at,
    sum_behind,
    sums_of,
)
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import InitialWeight, Step
from keras_net2net.planning.remaps import generator
from keras_net2net.widths.inferred import Inferred

if TYPE_CHECKING:
    from keras_net2net.operations.deeper.deeper import Deeper


def draft_residual(operation: Deeper, draft: Draft) -> list[Step]:
    """Inserts residual blocks behind layers, or repeats the part between two tensors."""
    received = repr(operation)
    targets: list[Part | Block]
    if operation.between is not None:
        targets = [_between(draft, operation.between, received)]
    else:
        found = [
            target
            for item in _items(operation.layers, received)
            for target in _targets(draft, item, received)
        ]
        targets = list({_identity_of(target): target for target in found}.values())
    ends: dict[int, Tensor] = {}
    return [_insert(operation, draft, target, ends) for target in targets]


def _items(wanted: Any, received: str) -> list[Any]:
    if isinstance(wanted, (list, tuple)):
        if not wanted:
            raise UnknownLayerError(
                "No layer was named",
                "the list is empty",
                "Name a layer",
                received=received,
            )
        return list(wanted)
    return [wanted]


def _identity_of(target: Part | Block) -> tuple[int, int]:
    start = target.start if isinstance(target, Part) else target.call.outputs[0]
    return id(start), id(target.end)


def _between(draft: Draft, pair: tuple[Any, Any], received: str) -> Part:
    start, end = (find_place(draft, item, received) for item in pair)
    if start.graph is not end.graph:
        raise GrowthError(
            f"The part from {start.path!r} to {end.path!r} can't be repeated",
            "the two are in different models",
            "Name two layers of one model, both nested or both not",
            received=received,
        )
    part = part_between(draft.inference, start.graph, start, end, received)
    if not same_shape(start.tensor, end.tensor):
        raise _other_shape(draft, part, received)
    return part


# -- blocks ----------------------------------------------------------------------------


def _targets(draft: Draft, item: Any, received: str) -> list[Part | Block]:
    """What is to be inserted behind the layers that an item names."""
    if isinstance(item, str) and any(character in item for character in "*?["):
        return _of_pattern(draft, item, received)
    place = find_place(draft, item, received)
    if place.call is None:
        raise _no_block(draft, place, received)
    found = _block_part(draft, place, received)
    if found is not None:
        return [found]
    return [_plain(draft, place, received)]


def _of_pattern(draft: Draft, pattern: str, received: str) -> list[Part | Block]:
    places = [
        Place(graph, call, call.outputs[0])
        for graph in draft.graph.subgraphs()
        for call in graph.calls
        if fnmatch.fnmatchcase(call.path, pattern)
        or fnmatch.fnmatchcase(call.operation.name, pattern)
    ]
    if not places:
        raise UnknownLayerError(
            f"The pattern {pattern!r} matches no layer of the model {draft.model.name!r}",
            "none of its layers is called like that",
            "Use a name from `[layer.name for layer in model.layers]`",
            received=received,
        )
    rewired = [place for place in places if not place.graph.opened]
    if not rewired:
        raise not_rewired(places[0].graph, received)
    found: list[Part | Block] = []
    for place in rewired:
        part = _block_part(draft, place, received, only_ends=True)
        if part is not None:
            found.append(part)
    if not found:
        family = [p for p in rewired if p.call and isinstance(p.call.operation, KERNELS)]
        found = [_plain(draft, place, received) for place in family]
    if not found:
        raise _no_block(draft, rewired[0], received)
    return found


def _block_part(draft: Draft, place: Place, received: str, only_ends: bool = False) -> Part | None:
    """The block that a layer ends, if there is one."""
    graph, call, state = place.graph, place.call, draft.inference
    if call is None:
        return None
    if call.inner is not None:
        part = _composite(state, place, received)
        if part is not None:
            return part
    sums = {id(one.call): one for one in sums_of(state, graph)}
    tensor = place.tensor
    end = sum_at(state, graph, tensor, sums)
    if end is None:
        end = None if only_ends else sum_behind(state, graph, call, sums)
        if end is None:
            return None
        tensor = end.end
    if only_ends and not (end.carried and end.start.shape == tensor.shape):
        return None
    following = graph.only_reader(tensor)
    while following is not None and activation_of(following.operation) is not None:
        tensor = following.outputs[0]
        following = graph.only_reader(tensor)
    run = run_of(state, graph, end, sums)
    at = run.index(end)
    start = run[at - period_of(state, graph, run, at) + 1].start
    part = part_between(
        state, graph, Place(graph, graph.maker(start), start), _place(graph, tensor), received
    )
    if not same_shape(start, tensor):
        raise _other_shape(draft, part, received, sums)
    return part


def _place(graph: Graph, tensor: Tensor) -> Place:
    return Place(graph, graph.maker(tensor), tensor)


def _composite(state: Inferred, place: Place, received: str) -> Part | None:
    """A layer or nested model that holds a whole block."""
    call = place.call
    if call is None or call.inner is None or not call.inputs:
        return None
    start = call.inputs[0]
    if not same_shape(start, place.tensor) or len(call.outputs) != 1:
        return None
    solution = Silencer(state, [call], start, None).identity(place.tensor)
    sums = any(adds_or_subtracts(state, one) for one in call.inner.calls)
    if solution is None and not sums and not isinstance(call.operation, keras.Model):
        return None  # such as LayerScale: a part of a block
    return part_between(state, place.graph, _place(place.graph, start), place, received)


# -- a block made for a plain layer -----------------------------------------------------


def _plain(draft: Draft, place: Place, received: str) -> Block:
    call = place.call
    if place.graph.opened:
        raise not_rewired(place.graph, received)
    if call is None or not isinstance(call.operation, KERNELS):
        raise _no_block(draft, place, received)
    return find_block(place.graph, call)


def _fresh(operation: Deeper, draft: Draft, block: Block, after: Tensor, name: str) -> Repeated:
    """Inserts `x + V f(W x)`, with V = 0."""
    layer = block.call.operation
    axis = bn_axis(layer)
    units = int(after.shape[axis] or 0)  # its kernel says how many
    hidden = operation.units or units
    function = block.function if operation.activation is None else operation.activation
    if isinstance(function, str):
        function = keras.activations.get(function)
    if any(block.end is x for x in block.graph.flat_outputs) and not (
        block.activation is None or is_linear(block.activation)
    ):
        raise NotIdentityError(
            (
                f"No residual block can be inserted after {block.call.path!r} "
                f"({type(layer).__name__})"
            ),
            (
                f"it is an output of the model, and the sum would no longer be what its "
                f"activation {block.activation_label!r} makes"
            ),
            "Name a layer in front of it",
            received=repr(operation),
        )
    namer = Namer(draft)
    name = namer.take(name, namer.number([name]))
    builder = Builder(draft, block.graph)
    if internals.function_of(block.graph.model) is not block.graph.model:
        builder.inside = namer.reserve(f"{name}_block")
    inner = _kernel(builder, layer, name, units, hidden, after.shape, draft.seed)
    shape = list(after.shape)
    shape[axis] = hidden
    like = Tensor(tuple(shape), after.dtype)
    x = builder.call(inner, (after,), {}, [like]).outputs[0]
    normalized = block.normalization is not None
    if operation.batch_norm is not None:
        normalized = operation.batch_norm
    if normalized:
        x = _normalize(builder, block, namer.reserve(f"{name}_bn"), x, hidden)
    if function is not None and not is_linear(function):
        made = activation_layer(function, namer.reserve(f"{name}_activation"))
        config = dict(made.insertion.config)
        config.pop("trainable", None)
        weights = _activation_weights(made.insertion.layer_class, config, like)
        x = builder.call(
            builder.fresh(made.insertion.layer_class, config, weights, x.shape), (x,), {}, [x]
        ).outputs[0]
    outer = _kernel(
        builder, layer, namer.reserve(f"{name}_projection"), hidden, units, x.shape, None
    )
    y = builder.call(outer, (x,), {}, [after]).outputs[0]
    return builder.finish(after, builder.add(namer.reserve(f"{name}_add"), after, y))


def _activation_weights(
    layer_class: Any, config: dict[str, Any], like: Tensor
) -> list[InitialWeight]:
    """A PReLU has weights: as many slopes as units, a quarter each at first."""
    if not issubclass(layer_class, layers.PReLU):
        return []
    shared = config.get("shared_axes") or ()
    shape = tuple(1 if i in shared else int(n or 1) for i, n in enumerate(like.shape) if i > 0)
    return [InitialWeight("alpha", shape, 0.25)]


def _kernel(
    builder: Builder,
    layer: Any,
    name: str,
    given: int,
    units: int,
    shape: Any,
    seed: int | None,
) -> Any:
    """A layer of the family, random (He et al. 2015) with a seed, zero without one."""
    config = {**kernel_config(layer), "name": name}
    kernel: tuple[int, ...] = (given, units)
    if isinstance(layer, layers.Dense):
        config["units"] = units
    else:
        config["filters"] = units
        kernel = (*layer.kernel_size, given, units)
    value: float | np.ndarray = 0.0
    if seed is not None:
        normal = generator(seed, builder.path(name), "kernel").standard_normal(kernel)
        value = normal * np.sqrt(2.0 / np.prod(kernel[:-1]))
    weights = [InitialWeight("kernel", kernel, value)]
    if config.get("use_bias", True):
        weights.append(InitialWeight("bias", (units,)))
    cls = next(base for base in KERNELS if isinstance(layer, base))
    cls = type(layer) if type(layer).__init__ is cls.__init__ else cls
    return builder.fresh(cls, config, weights, shape)


def _normalize(builder: Builder, block: Block, name: str, x: Tensor, units: int) -> Tensor:
    cls, config = normalization_like(block.call.operation, block)
    config["name"] = name
    weights = [
        InitialWeight("moving_mean", (units,)),
        InitialWeight("moving_variance", (units,), 1.0),
    ]
    if config["scale"]:
        weights.append(InitialWeight("gamma", (units,), 1.0))
    if config["center"]:
        weights.append(InitialWeight("beta", (units,)))
    layer = builder.fresh(cls, config, weights, x.shape)
    return builder.call(layer, (x,), {}, [x]).outputs[0]


def can_branch(blocks: list[Block]) -> bool:
    """Whether `x + V f(W x)` can be inserted behind a layer, for all of its calls."""
    return (
        len(blocks) == 1
        and not blocks[0].graph.opened
        and isinstance(blocks[0].call.operation, KERNELS)
        and not any(blocks[0].end is x for x in blocks[0].graph.flat_outputs)
    )


def insert_block(operation: Deeper, draft: Draft, block: Block) -> Step:
    """Inserts `x + V f(W x)` behind a layer."""
    return _insert(operation, draft, block, {})


# -- inserting -------------------------------------------------------------------------


def _insert(operation: Deeper, draft: Draft, target: Part | Block, ends: dict[int, Tensor]) -> Step:
    insertions = []
    end = target.end
    if isinstance(target, Part):
        _check_options(operation, target)
    for _ in range(operation.count):
        after = ends.get(id(end), end)
        if isinstance(target, Part):
            repeated = repeat(draft, target, after, ends)
        else:
            name = base_name(target.call.operation.name)
            repeated = _fresh(operation, draft, target, after, name)
        insertions += repeated.insertions
        ends[id(end)] = repeated.end
    return Step(operation, insertions=tuple(insertions), notes=_notes(target, draft, insertions))


def _check_options(operation: Deeper, part: Part) -> None:
    given = [
        f"`{key}`"
        for key in ("batch_norm", "activation", "units")
        if getattr(operation, key) is not None
    ]
    if given:
        raise GrowthError(
            f"{' and '.join(given)} can't be chosen for the block that ends with {part.last!r}",
            "the new block is a copy of that one",
            "Leave it out; widen the copy with `Wider` afterwards",
            received=repr(operation),
        )


def _notes(target: Part | Block, draft: Draft, insertions: list[Any]) -> tuple[str, ...]:
    if isinstance(target, Block):
        zero = [one.path for one in insertions if one.path.endswith("_projection")]
        return (
            f"residual block behind {target.call.path!r}: x + V f(W x); all weights of "
            f"{', '.join(zero)} start at zero",
        )
    paths = [call.path for call in target.calls]
    zero = [
        f"{one.path}/{weight.name}"
        for one in insertions
        for weight in one.weights
        if isinstance(weight.value, float) and weight.value == 0.0
    ]
    layers_copied = len(dict.fromkeys(paths))
    notes = [
        f"copied the block from {target.first!r} to {target.last!r} ({layers_copied} "
        f"{'layer' if layers_copied == 1 else 'layers and operations'}); these start at zero: "
        f"{', '.join(zero)}"
    ]
    if target.wrapped is not None:
        notes.append(
            f"the part from {target.first!r} to {target.last!r} has no skip of its own: its copy "
            "is added to what it is given"
        )
    if target.solution.randomly:
        notes.append(
            f"copies of {', '.join(target.solution.randomly)} stand outside of the branches: in "
            "training mode they drop some of what they are given"
        )
    calls = [call.operation for call in target.calls]
    elsewhere = [
        call.path
        for graph in draft.graph.subgraphs()
        for call in graph.calls
        if call.inner is None or not call.inner.opened
        if isinstance(call.operation, keras.Layer)
        and any(call.operation is one for one in calls)
        and all(call.outputs[0] is not one.outputs[0] for one in target.calls)
    ]
    if elsewhere:
        names = ", ".join(map(repr, dict.fromkeys(elsewhere)))
        notes.append(f"{names}: called outside of the block, too; the copy is a layer of its own")
    return tuple(notes)


# -- errors ----------------------------------------------------------------------------


def _other_shape(
    draft: Draft, part: Part, received: str, sums: dict[int, Sum] | None = None
) -> GrowthError:
    known = list((sums or {id(s.call): s for s in sums_of(draft.inference, part.graph)}).values())
    return NotIdentityError(
        f"The part from {part.first!r} to {part.last!r} can't be repeated",
        (
            f"it makes the shape {part.end.shape} of the shape {part.start.shape}, as a block with "
            "strides or with a projection for its shortcut does, so that it can't be the identity"
        ),
        _nearest(part.graph, known, part.calls[-1]),
        received=received,
    )


def _nearest(graph: Graph, sums: list[Sum], call: Call | None) -> str:
    """What to say of the nearest block that can be repeated."""
    good = [one for one in sums if one.carried]
    if not good:
        return "Name two tensors of one shape: `between=(a, b)`"
    order = {id(x): i for i, one in enumerate(graph.calls) for x in one.outputs}
    here = order.get(id(call.outputs[0]), 0) if call is not None else 0
    nearest = min(good, key=lambda one: abs(order[id(one.end)] - here))
    return f"Name the nearest block that hands its input on, which ends with {nearest.call.path!r}"


def _no_block(draft: Draft, place: Place, received: str) -> GrowthError:
    call = place.call
    kind = type(call.operation).__name__ if call is not None else "InputLayer"
    if call is not None and call.inner is not None and not call.inner.opened:
        inside = call.inner.calls[-1].path if call.inner.calls else call.path
        why = f"it is a model of its own, with the shapes {call.inputs} and {call.outputs}"
        more = f"Name a layer inside it, such as {inside!r}"
    else:
        why = "it isn't the end of a residual block, and no Dense or convolution layer either"
        more = _nearest(place.graph, sums_of(draft.inference, place.graph), call)
    return GrowthError(
        f"No residual block can be inserted after {place.path!r} ({kind})",
        why,
        more,
        received=received,
    )
