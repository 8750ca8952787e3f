"""Finding tensors of a graph by what a user names, and what lies between two of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import GrowthError, UnknownLayerError
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.internals.activations import Activation, activation_of, describe
from keras_net2net.planning.draft import Draft
from keras_net2net.widths.inferred import Inferred


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A tensor of a graph, and the call that makes it; `None` for an input of the graph."""

    graph: Graph
    call: Call | None
    tensor: Tensor

    @property
    def path(self) -> str:
        """What to call it."""
        if self.call is not None:
            return self.call.path
        layer = internals.input_layer(self.tensor.keras_tensor)
        return getattr(layer, "name", "the input")


def find_place(draft: Draft, item: Any, received: str) -> Place:
    """The output of a layer that is named, or a tensor.

    Args:
        draft: The draft.
        item: A name, a path, a layer, or a symbolic tensor of the model.
        received: What the caller passed, for the error message.

    Returns:
        The place.

    Raises:
        GrowthError: If there is none, or more than one.
    """
    places = list(_places(draft.graph))
    if isinstance(item, keras.KerasTensor):
        found = [one for one in places if one.tensor.keras_tensor is item]
    elif isinstance(item, keras.Operation):
        found = [one for one in places if _operation_at(one) is item]
    elif isinstance(item, str):
        found = [one for one in places if one.path == item]
        found = found or [one for one in places if one.path.rsplit("/", 1)[-1] == item]
    else:
        raise UnknownLayerError(
            "A part of the model is named by layers",
            "it is named by strings, layers or symbolic tensors",
            "Pass names such as 'block1_out', layers, or tensors such as `layer.output`",
            received=received,
        )
    if not found:
        raise _unknown(draft, item, places, received)
    closed = [one for one in found if one.graph.opened]
    if len(closed) == len(found):
        raise not_rewired(closed[0].graph, received)
    found = [one for one in found if not one.graph.opened]
    if len(found) > 1:
        paths = ", ".join(repr(path) for path in dict.fromkeys(one.path for one in found))
        raise UnknownLayerError(
            f"{_named(item)} doesn't tell which tensor is meant",
            f"there are {len(found)} that it could be, made by {paths}",
            "Use a path, or pass the tensor itself, such as `layer.get_output_at(1)`",
            received=received,
        )
    return found[0]


def not_rewired(graph: Graph, received: str) -> GrowthError:
    """The error for the inside of a layer or model whose own code decides what it calls."""
    kind = type(graph.model).__name__
    what = f"the layer {graph.path!r}" if graph.path else f"the model {graph.model.name!r}"
    return GrowthError(
        f"Nothing can be inserted into {what} ({kind})",
        "its own code decides which layers it calls",
        (
            "Name a layer outside of it, or the whole layer"
            if graph.path
            else "Build the model from `keras.Input`s as `keras.Model(inputs, outputs)`"
        ),
        received=received,
    )


def _places(graph: Graph) -> Iterable[Place]:
    for g in graph.subgraphs():
        if not g.opened:
            for tensor in g.flat_inputs:
                yield Place(g, None, tensor)
        for call in g.calls:
            for tensor in call.outputs:
                yield Place(g, call, tensor)


def _operation_at(place: Place) -> Any:
    if place.call is not None:
        return place.call.operation
    return internals.input_layer(place.tensor.keras_tensor)


def _named(item: Any) -> str:
    return repr(item if isinstance(item, str) else getattr(item, "name", item))


def _unknown(draft: Draft, item: Any, places: list[Place], received: str) -> UnknownLayerError:
    names = sorted({one.path for one in places})
    close = difflib.get_close_matches(item, names, n=3) if isinstance(item, str) else []
    return UnknownLayerError(
        f"{_named(item)} is no layer of the model {draft.model.name!r}",
        (
            "none of its layers and tensors has that name"
            if isinstance(item, str)
            else "the model doesn't call it"
        ),
        (
            f"Did you mean {' or '.join(map(repr, close))}?"
            if close
            else "Use a name from `[layer.name for layer in model.layers]`"
        ),
        received=received,
    )


def between(graph: Graph, start: Tensor, end: Tensor) -> list[Call]:
    """The calls on the ways from one tensor to another, in the order in which they run."""
    behind = {id(start)}
    following = []
    for call in graph.calls:
        if any(id(x) in behind for x in call.inputs):
            behind.update(id(x) for x in call.outputs)
            following.append(call)
    needed = {id(end)}
    found = []
    for call in reversed(following):
        if any(id(x) in needed for x in call.outputs) and all(x is not start for x in call.outputs):
            needed.update(id(x) for x in call.inputs)
            found.append(call)
    return found[::-1] if id(end) in behind and start is not end else []


def values_of(state: Inferred, graph: Graph, tensor: Tensor) -> Activation | None:
    """What is known of the values of a tensor: those of the activation that makes it."""
    call = graph.maker(tensor)
    if call is None:
        return None
    treatment = state.treated_by(call).treatment
    if treatment.is_unchanged and call.inputs:
        known = values_of(state, graph, call.inputs[0])
        bounded = known is not None and max(map(abs, known.values)) < np.inf
        return None if treatment.spreads or (bounded and treatment.drops) else known
    activation = activation_of(call.operation)
    if activation is None and (treatment.makes or treatment.weighs):
        activation = getattr(call.operation, "activation", None)
    return None if activation is None else describe(activation)
