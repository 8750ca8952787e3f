"""Residual blocks: which part of a graph is one, and what is inserted for a plain layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_net2net.errors import GrowthError, NotIdentityError
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.internals.activations import activation_of, is_linear
from keras_net2net.operations.blocks import Block, find_block
from keras_net2net.operations.deeper.building import Builder, Namer, new_layer, resized
from keras_net2net.operations.deeper.identities import (
    activation_layer,
    fresh_normalization,
    kernel_config,
    zero_bias,
)
from keras_net2net.operations.deeper.repeat import Part, part_between, repeat, same_shape
from keras_net2net.operations.deeper.silence import Silencer
from keras_net2net.operations.deeper.sums import (
    adds_or_subtracts,
    period_of,
    run_of,
    sum_at,
    sum_behind,
    sums_of,
)
from keras_net2net.operations.families import KERNELS, bn_axis, size_key
from keras_net2net.operations.select import Output, each_of, find_output, is_pattern, outputs_like
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.making import Inserted
from keras_net2net.planning.plan import InitialWeight, Insertion, Step
from keras_net2net.planning.remaps import generator
from keras_net2net.widths.inferred import Inferred


def blocks_behind(draft: Draft, wanted: Any) -> list[Part | Block]:
    """What is to be inserted behind the layers that are named."""
    found = [target for item in each_of(wanted) for target in _targets(draft, item)]
    return list({_identity_of(target): target for target in found}.values())


def _identity_of(target: Part | Block) -> tuple[int, int]:
    start = target.start if isinstance(target, Part) else target.call.outputs[0]
    return id(start), id(target.end)


def block_between(draft: Draft, pair: tuple[Any, Any]) -> Part:
    """The part between two tensors that are named, of which a copy is to be inserted."""
    start, end = (find_output(draft, item) for item in pair)
    if start.graph is not end.graph:
        raise GrowthError(
            f"The part from {start.path!r} to {end.path!r} can't be repeated",
            "the two are in different models",
            "Name two layers of one model, both nested or both not",
        )
    part = part_between(draft.inference, start, end)
    if not same_shape(start.tensor, end.tensor):
        raise _other_shape(draft.inference, part)
    return part


# -- blocks ----------------------------------------------------------------------------


def _targets(draft: Draft, item: Any) -> list[Part | Block]:
    """What is to be inserted behind the layers that an item names."""
    state = draft.inference
    if not is_pattern(item):
        output = find_output(draft, item)
        return [_block_part(state, output) or _plain(state, output)]
    outputs = outputs_like(draft, item)
    parts = [_block_part(state, output, only_ends=True) for output in outputs]
    found: list[Part | Block] = [part for part in parts if part is not None]
    if not found:
        found = [_plain(state, one) for one in outputs if isinstance(one.operation, KERNELS)]
    if not found:
        raise _no_block(state, outputs[0])
    return found


def _block_part(state: Inferred, output: Output, only_ends: bool = False) -> Part | None:
    """The block that a layer ends, if there is one."""
    graph, call = output.graph, output.call
    if call is None:
        return None
    part = _composite(state, output)
    if part is not None:
        return part
    sums = {id(one.call): one for one in sums_of(state, graph)}
    tensor = output.tensor
    end = sum_at(state, graph, tensor, sums)
    if end is None and not only_ends:
        end = sum_behind(state, graph, call, sums)
        tensor = tensor if end is None else end.end
    if end is None or (only_ends and not (end.carried and end.start.shape == tensor.shape)):
        return None
    following = graph.only_reader(tensor)
    while following is not None and activation_of(following.operation) is not None:
        tensor = following.outputs[0]
        following = graph.only_reader(tensor)
    run = run_of(state, graph, end, sums)
    at = run.index(end)
    start = run[at - period_of(state, graph, run, at) + 1].start
    part = part_between(state, Output.of(graph, start), Output.of(graph, tensor))
    if not same_shape(start, tensor):
        raise _other_shape(state, part)
    return part


def _composite(state: Inferred, output: Output) -> Part | None:
    """A layer or nested model that holds a whole block."""
    call = output.call
    if call is None or call.inner is None or not call.inputs or len(call.outputs) != 1:
        return None
    start = call.inputs[0]
    if not same_shape(start, output.tensor):
        return None
    solution = Silencer(state, [call], start, None).identity(output.tensor)
    sums = any(adds_or_subtracts(state, one) for one in call.inner.calls)
    if solution is None and not sums and not isinstance(call.operation, keras.Model):
        return None  # such as LayerScale: a part of a block
    return part_between(state, Output.of(output.graph, start), output)


# -- a block made for a plain layer -----------------------------------------------------


def _plain(state: Inferred, output: Output) -> Block:
    call = output.call
    if call is None or not isinstance(call.operation, KERNELS):
        raise _no_block(state, output)
    return find_block(output.graph, call)


def _fresh(
    draft: Draft, block: Block, operation: Any, after: Tensor
) -> tuple[Tensor, list[Insertion]]:
    """Inserts `x + V f(W x)`, with V = 0."""
    layer = block.call.operation
    _check_end(block)
    namer = Namer(draft)
    name = namer.take(namer.base(layer.name))
    builder = Builder(draft, block.graph)
    builder.branch(namer.reserve(f"{name}_block"))
    axis = bn_axis(layer)
    units = int(after.shape[axis] or 0)  # its kernel says how many
    hidden = operation.units or units
    inner = _kernel(layer, builder.path(name), units, hidden, draft.seed)
    x = builder.put(inner, after, resized(after, axis, hidden))
    if block.normalization is not None if operation.batch_norm is None else operation.batch_norm:
        path = builder.path(namer.reserve(f"{name}_bn"))
        x = builder.put(fresh_normalization(layer, block, path, x), x)
    own = operation.activation
    function = block.function if own is None else keras.activations.get(own)
    if function is not None and not is_linear(function):
        path = builder.path(namer.reserve(f"{name}_activation"))
        x = builder.put(activation_layer(function, path, x), x)
    path = builder.path(namer.reserve(f"{name}_projection"))
    y = builder.put(_kernel(layer, path, hidden, units, None), x, after)
    return builder.finish(after, builder.add(namer.reserve(f"{name}_add"), after, y))


def _check_end(block: Block) -> None:
    """Checks that no activation of an output of the model would stand before a sum."""
    if block.activation is None or is_linear(block.activation):
        return
    if any(block.end is x for x in block.graph.flat_outputs):
        raise NotIdentityError(
            f"No residual block can be inserted after {block.call.path!r} "
            f"({type(block.call.operation).__name__})",
            f"it is an output of the model, and the sum would no longer be what its activation "
            f"{block.activation_label!r} makes",
            "Name a layer in front of it",
        )


def _kernel(layer: Any, path: str, given: int, units: int, seed: int | None) -> Inserted:
    """A layer of the family, random (He et al. 2015) with a seed, zero without one."""
    config = {**kernel_config(layer), size_key(layer): units}
    kernel = (*getattr(layer, "kernel_size", ()), given, units)
    value: float | np.ndarray = 0.0
    if seed is not None:
        normal = generator(seed, path, "kernel").standard_normal(kernel)
        value = normal * np.sqrt(2.0 / np.prod(kernel[:-1]))
    weights = [InitialWeight("kernel", kernel, value), *zero_bias(config, units)]
    cls = next(base for base in KERNELS if isinstance(layer, base))
    cls = type(layer) if type(layer).__init__ is cls.__init__ else cls
    return new_layer(path, cls, config, weights)


def can_branch(blocks: list[Block]) -> bool:
    """Whether `x + V f(W x)` can be inserted behind a layer, for all of its calls."""
    return (
        len(blocks) == 1
        and not blocks[0].graph.opened
        and isinstance(blocks[0].call.operation, KERNELS)
        and not any(blocks[0].end is x for x in blocks[0].graph.flat_outputs)
    )


# -- inserting -------------------------------------------------------------------------


def insert_blocks(
    operation: Any,
    draft: Draft,
    target: Part | Block,
    ends: dict[int, Tensor],
    notes: tuple[str, ...] = (),
) -> Step:
    """Inserts residual blocks behind a part or a layer.

    Args:
        operation: The operation, which says how many blocks, and what they are like: its
            `batch_norm`, `activation` and `units`, where `None` stands for what the layer has.
        draft: The draft.
        target: The part that is copied, or the layer's block.
        ends: For tensors behind which something was inserted, by `id`, what it makes.
        notes: What a user should know of the choice. Defaults to nothing.

    Returns:
        What was done.
    """
    insertions: list[Insertion] = []
    end = target.end
    wanted = ("batch_norm", "activation", "units")
    given = [f"`{key}`" for key in wanted if getattr(operation, key) is not None]
    if isinstance(target, Part) and given:
        raise GrowthError(
            f"{' and '.join(given)} can't be chosen for the block that ends with {target.last!r}",
            "the new block is a copy of that one",
            "Leave it out; widen the copy with `Wider` afterwards",
        )
    for _ in range(operation.count):
        after = ends.get(id(end), end)
        if isinstance(target, Part):
            ends[id(end)], made = repeat(draft, target, after, ends)
        else:
            ends[id(end)], made = _fresh(draft, target, operation, after)
        insertions += made
    notes = (*notes, *_notes(target, draft, insertions))
    return Step(operation, insertions=tuple(insertions), notes=notes)


def _notes(target: Part | Block, draft: Draft, insertions: list[Any]) -> tuple[str, ...]:
    if isinstance(target, Block):
        zero = [one.path for one in insertions if one.path.endswith("_projection")]
        return (
            f"residual block behind {target.call.path!r}: x + V f(W x); all weights of "
            f"{', '.join(zero)} start at zero",
        )
    zero = [
        f"{one.path}/{weight.name}"
        for one in insertions
        for weight in one.weights
        if isinstance(weight.value, float) and weight.value == 0.0
    ]
    layers_copied = len({call.path for call in target.calls})
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
    copied = {id(call.operation) for call in target.calls}
    made = {id(call.outputs[0]) for call in target.calls}
    elsewhere = [
        call.path
        for _, call in draft.graph.all_calls()
        if (call.inner is None or not call.inner.opened)
        and isinstance(call.operation, keras.Layer)
        and id(call.operation) in copied
        and id(call.outputs[0]) not in made
    ]
    if elsewhere:
        names = ", ".join(map(repr, dict.fromkeys(elsewhere)))
        notes.append(f"{names}: called outside of the block, too; the copy is a layer of its own")
    return tuple(notes)


# -- errors ----------------------------------------------------------------------------


def _other_shape(state: Inferred, part: Part) -> GrowthError:
    return NotIdentityError(
        f"The part from {part.first!r} to {part.last!r} can't be repeated",
        f"it makes the shape {part.end.shape} of the shape {part.start.shape}, as a block with "
        "strides or with a projection for its shortcut does, so that it can't be the identity",
        _nearest(state, part.graph, part.calls[-1]),
    )


def _nearest(state: Inferred, graph: Graph, call: Call | None) -> str:
    """What to say of the nearest block that can be repeated."""
    good = [one for one in sums_of(state, graph) if one.carried]
    if not good:
        return "Name two tensors of one shape: `between=(a, b)`"
    order = {id(x): i for i, one in enumerate(graph.calls) for x in one.outputs}
    here = order.get(id(call.outputs[0]), 0) if call is not None else 0
    nearest = min(good, key=lambda one: abs(order[id(one.end)] - here))
    return f"Name the nearest block that hands its input on, which ends with {nearest.call.path!r}"


def _no_block(state: Inferred, output: Output) -> GrowthError:
    call = output.call
    kind = type(call.operation).__name__ if call is not None else "InputLayer"
    if call is not None and call.inner is not None and not call.inner.opened:
        inside = call.inner.calls[-1].path if call.inner.calls else call.path
        why = f"it is a model of its own, with the shapes {call.inputs} and {call.outputs}"
        more = f"Name a layer inside it, such as {inside!r}"
    else:
        why = "it isn't the end of a residual block, and no Dense or convolution layer either"
        more = _nearest(state, output.graph, call)
    problem = f"No residual block can be inserted after {output.path!r} ({kind})"
    return GrowthError(problem, why, more)
