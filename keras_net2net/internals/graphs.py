"""Graphs: reading the nodes of a model, and changing them in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

# `map_graph` sorts the nodes between inputs and outputs by depth. A `Function`
# stores what it returns, and has no way to take a changed graph.
from keras.src.ops.function import map_graph

# `Node` records one call of a layer. There is no public way to make a node
# without running shape inference again, which is the slow part of retracing.
from keras.src.ops.node import Node

from keras_net2net.internals.tracking import keras_untracked, unwrapped


def set_shape(tensor: Any, shape: Sequence[int | None]) -> None:
    """Relabels a symbolic tensor."""
    tensor._shape = tuple(shape)


def function_of(model: Any) -> Any | None:
    """The `keras.Function` that holds a model's graph, or `None`.

    A Functional model is one itself. A Sequential keeps one in `_functional`,
    which has no public name.
    """
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, keras.Function) else None


def nodes_of(function: Any) -> list[Any]:
    """The nodes of a graph in the order in which Keras runs them.

    `Function` offers its operations, but not its nodes: which call of a shared
    layer belongs to the graph, and on what, is only in `_nodes_by_depth`.
    """
    by_depth = function._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def nodes_of_layer(layer: Any) -> list[Any]:
    """The nodes that record the calls of a layer; Keras offers `layer.output` for one alone."""
    return list(layer._inbound_nodes)


def structures_of(function: Any) -> tuple[Any, Any]:
    """The nested inputs and outputs of a graph, as they were given.

    `inputs` and `outputs` are flat in public; a call needs the structure.
    """
    return function._inputs_struct, function._outputs_struct


def nodes_between(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """The nodes from symbolic inputs to symbolic outputs, in the order in which they run."""
    by_depth = map_graph(list(inputs), list(outputs))[1]
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def set_arguments(node: Any, args: tuple, kwargs: dict) -> None:
    """Gives a recorded call other arguments, of which the tensors are the same."""
    node.arguments.args, node.arguments.kwargs = args, kwargs
    node.arguments._flat_arguments = keras.tree.flatten((args, kwargs))


def new_tensor(like: Any, shape: Sequence[int | None], same_name: bool) -> Any:
    """A symbolic tensor of another shape, with the dtype (and name) of `like`."""
    return keras.KerasTensor(
        tuple(shape), dtype=like.dtype, sparse=like.sparse, name=like.name if same_name else None
    )


def input_layer(tensor: Any) -> Any | None:
    """The `InputLayer` that a symbolic tensor comes from, or `None`.

    A tensor's history is the only link from a model's input to the layer that
    declares its shape.
    """
    operation = tensor._keras_history.operation
    return operation if isinstance(operation, keras.layers.InputLayer) else None


def maker_of(tensor: Any) -> Any:
    """The layer or operation that made a symbolic tensor, which only its history tells."""
    return tensor._keras_history.operation


def record_call(
    operation: Any, args: tuple, kwargs: dict, outputs: list[Any], replaces: Any | None
) -> Any:
    """Records a call of `operation`, in the place of an older call where there is one.

    Taking the old node's place in `_inbound_nodes` keeps `layer.output` right,
    the numbering of nodes stable, and the number of nodes from growing.
    """
    node = Node(operation, call_args=args, call_kwargs=kwargs, outputs=outputs)
    if replaces is not None:
        nodes = operation._inbound_nodes
        nodes.pop()
        at = nodes.index(replaces)
        nodes[at] = node
        for i, tensor in enumerate(node.outputs):
            tensor._keras_history = type(tensor._keras_history)(operation, at, i)
        for tensor in replaces.input_tensors:
            history = getattr(tensor, "_keras_history", None)
            if history is not None and history.operation is not None:
                calls = history.operation._outbound_nodes
                if replaces in calls:
                    calls.remove(replaces)
    return node


def set_graph(function: Any, outputs: Any) -> None:
    """Gives a `Function` new outputs, and with them a new graph.

    `Function.__init__` would do it, but on a live model it wipes the compile
    state; so the attributes that it sets from the graph are set here.
    """
    nodes, nodes_by_depth, operations, operations_by_depth = map_graph(
        function._inputs, keras.tree.flatten(outputs)
    )
    with keras_untracked():
        function._outputs_struct = keras.tree.map_structure(lambda x: x, outputs)
        function._outputs = keras.tree.flatten(outputs)
        function._nodes = nodes
        function._nodes_by_depth = nodes_by_depth
        function._operations = operations
        function._operations_by_depth = operations_by_depth


def track_layers(model: Any, layers: Sequence[Any]) -> None:
    """Makes `layers` the first of the layers that a model tracks, in this order.

    A model's weights, and so the order in which an optimizer's slots are saved,
    follow `_layers`. A loaded model has its layers in the order of its graph, so
    an inserted layer must stand there too, not at the end.
    """
    rest = [layer for layer in model._layers if all(layer is not other for other in layers)]
    _set_layers(model, [*layers, *rest])


def _set_layers(model: Any, layers: Sequence[Any]) -> None:
    model._tracker.stored_ids["layers"].update(map(id, layers))
    held = model._layers
    if unwrapped(held) is held:
        list.__setitem__(held, slice(None), layers)  # the list itself is the tracker's, too
    else:
        # Up to Keras 3.10 at least, a Functional model has a list of its own. TensorFlow
        # wraps it, and refuses to save a wrapper whose list has changed: it gets a new one.
        with keras_untracked():
            model._layers = list(layers)


def insert_into_sequential(model: Any, function: Any) -> None:
    """Puts the layers of a Sequential's graph into its list of layers, in order.

    `add` would append at the end and rebuild everything with random weights.
    """
    layers = [op for op in function.operations if isinstance(op, keras.Layer)]
    if not isinstance(model._layers[0], keras.layers.InputLayer):
        layers = [op for op in layers if not isinstance(op, keras.layers.InputLayer)]
    _set_layers(model, layers)


def set_input_shape(operation: Any, shape: Sequence[int | None]) -> None:
    """Changes the shape that an `InputLayer` declares (`batch_shape` is read-only)."""
    operation._batch_shape = tuple(shape)
