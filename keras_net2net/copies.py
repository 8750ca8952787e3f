"""Copying a model: the same graph over new layers with the same weights.

`keras.models.clone_model` starts every weight at random first, keeps the compile
state, and gives up the class of some models; a copy made from the graph doesn't.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_net2net import keras_privates as privates
from keras_net2net.errors import GrowthError, explain
from keras_net2net.freezing import carry_over
from keras_net2net.graph import Graph, Tensor, symbolic_inputs


def copy_model(graph: Graph) -> Any:
    """Copies a model.

    Args:
        graph: Its graph.

    Returns:
        The copy, of the same class and name. What is shared within the original, as
        a layer that is called twice, is shared within the copy.
    """
    copy = _Copy().model(graph)
    carry_over(graph.model, copy)
    return copy


class _Copy:
    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def model(self, graph: Graph) -> Any:
        """The copy of a model, nested models included."""
        original = graph.model
        if id(original) not in self._made:
            if graph.opened:
                return self._subclass(graph)
            if isinstance(original, keras.Sequential):
                copy = self._sequential(graph)
            else:
                copy = self._functional(graph)
            self._attributes(original, copy)
            copy.trainable = original.trainable
            for call in graph.calls:
                if isinstance(call.operation, keras.Layer):
                    self._made[id(call.operation)].trainable = call.operation.trainable
            self._made[id(original)] = copy
        return self._made[id(original)]

    def _subclass(self, graph: Graph) -> Any:
        """The copy of a model whose code is its own: made from its configuration."""
        original = graph.model
        copy = _copy_of(original)
        args, kwargs = symbolic_inputs(original)
        copy(*args, **kwargs)
        copy.set_weights(original.get_weights())
        copy.trainable = original.trainable
        return copy

    def _attributes(self, original: Any, copy: Any) -> None:
        """Copies what the user's class, or the user, keeps on the model for its own steps."""
        for name, value in privates.own_attributes(original).items():
            if hasattr(copy, name):
                continue
            if id(value) in self._made:
                setattr(copy, name, self._made[id(value)])
            elif isinstance(value, keras.Metric):
                setattr(copy, name, type(value).from_config(value.get_config()))
            elif isinstance(value, (bool, int, float, str, bytes, tuple, type(None))):
                setattr(copy, name, value)

    def _sequential(self, graph: Graph) -> Any:
        inputs = [self._input(tensor) for tensor in graph.flat_inputs]
        layers = [self._operation_of(call) for call in graph.calls]
        copy = privates.new_sequential(graph.model, [*inputs, *layers])
        self._fill(graph)
        return copy

    def _functional(self, graph: Graph) -> Any:
        known = {id(tensor): self._input(tensor).output for tensor in graph.flat_inputs}

        def swap(x: Any) -> Any:
            return known[id(x)] if isinstance(x, Tensor) else x

        for call in graph.calls:
            args, kwargs = keras.tree.map_structure(swap, (call.args, call.kwargs))
            outputs = keras.tree.flatten(self._operation_of(call)(*args, **kwargs))
            known.update(zip(map(id, call.outputs), outputs, strict=True))
        self._fill(graph)
        inputs, outputs = keras.tree.map_structure(swap, (graph.inputs, graph.outputs))
        return privates.new_functional(graph.model, inputs, outputs)

    def _input(self, tensor: Tensor) -> Any:
        original: Any = privates.input_layer(tensor.keras_tensor)
        return type(original).from_config(original.get_config())

    def _operation_of(self, call: Any) -> Any:
        if call.inner is not None and not call.inner.opened:
            return self.model(call.inner)
        original = call.operation
        if id(original) not in self._made:
            copy = _copy_of(original)
            if self._is_plain(original):
                values = {v.name: privates.read_variable(v) for v in original.weights}
                shapes = privates.build_shapes(original) or {}
                given = privates.build_with_values(copy, shapes, values.get)
                if not given or len(values) < len(original.weights):  # without names, or the same
                    copy.set_weights(original.get_weights())
            self._made[id(original)] = copy
        return self._made[id(original)]

    def _is_plain(self, operation: Any) -> bool:
        """Whether a layer's weights are all its own, and built from shapes."""
        return (
            isinstance(operation, keras.Layer)
            and bool(operation.weights)
            and bool(privates.build_shapes(operation))
            and not privates.sublayers(operation)
        )

    def _fill(self, graph: Graph) -> None:
        """Copies the weights of the layers that were built by being called."""
        for call in graph.calls:
            layer = call.operation
            composite = isinstance(layer, keras.Layer) and not self._is_plain(layer)
            if (call.inner is None or call.inner.opened) and composite and layer.weights:
                self._made[id(layer)].set_weights(layer.get_weights())


def _copy_of(original: Any) -> Any:
    """A layer or operation with the same settings, and no weights yet."""
    if isinstance(original, keras.layers.Lambda):
        return privates.new_lambda(original)
    try:
        return type(original).from_config(original.get_config())
    except Exception as error:
        raise GrowthError(
            explain(
                f"The layer {original.name!r} ({type(original).__name__}) can't be copied",
                f"its class isn't made from its own `get_config()`: {error}",
                f"a model with the layer {original.name!r}",
                "Give it a `get_config` and a `from_config` that fit its constructor, or grow the "
                "model in place",
            )
        ) from error
