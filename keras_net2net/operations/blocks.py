"""Parts of a graph: the block that a layer begins, and what lies between two tensors.

A block is a layer with its normalization and its activation.
The same block can be written as `Conv2D(activation="relu")`, as `Conv2D` and
`ReLU`, or as `Conv2D`, `BatchNormalization` and `Activation`; all are read off
the graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import layers

from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.internals.activations import (
    ACTIVATION_LAYERS,
    Activation,
    activation_name,
    describe,
    function_of,
)
from keras_net2net.operations.families import channel_axis


@dataclasses.dataclass(eq=False)
class Block:
    """A layer with what follows it up to its activation.

    Args:
        graph: The graph that it stands in.
        call: The call of the layer.
        normalization: The `BatchNormalization` between layer and activation.
        activation: The activation: a function, or the operation of a call.
        inline: Whether the layer itself holds the activation.
        end: The tensor that the block makes.
    """

    graph: Graph
    call: Call
    normalization: Any | None
    activation: Any
    inline: bool
    end: Tensor

    @property
    def function(self) -> Any:
        """The activation as a function or layer, also where the graph calls `keras.ops`."""
        if self.inline or self.activation is None or isinstance(self.activation, keras.Layer):
            return self.activation
        return function_of(self.activation)

    @property
    def normalization_name(self) -> str:
        """The name of its normalization."""
        return str(getattr(self.normalization, "name", ""))

    def describe(self) -> Activation | None:
        """What is known of the block's activation."""
        return describe(self.function)

    @property
    def activation_label(self) -> str:
        """The activation for a message."""
        name = activation_name(self.activation)
        if name is None and self.activation is not None:
            inner = getattr(self.activation, "activation", None)
            name = activation_name(inner) if inner is not None else None
            kind = type(self.activation).__name__
            name = name or getattr(self.activation, "__name__", kind)
        return str(name)


def find_block(graph: Graph, call: Call) -> Block:
    """The block that starts with a call of a Dense or convolution layer."""
    end = call.outputs[0]
    function = getattr(call.operation, "activation", None)
    if activation_name(function) != "linear":
        return Block(graph, call, None, function, True, end)
    normalization = None
    following = graph.only_reader(end)
    if following is not None and _normalizes_channels(following, call):
        normalization = following.operation
        end = following.outputs[0]
        following = graph.only_reader(end)
    if following is not None and _is_activation(following):
        return Block(graph, call, normalization, following.operation, False, following.outputs[0])
    return Block(graph, call, normalization, None, False, end)


def _normalizes_channels(following: Call, call: Call) -> bool:
    made = call.outputs[0]
    return isinstance(
        following.operation, layers.BatchNormalization
    ) and following.operation.axis % len(made.shape) == channel_axis(call.operation, made)


def _is_activation(call: Call) -> bool:
    if isinstance(call.operation, ACTIVATION_LAYERS):
        return True
    return len(call.inputs) == 1 and function_of(call.operation) is not None


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
