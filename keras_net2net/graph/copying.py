"""Copying a model: the same graph over new layers with the same weights.

`keras.models.clone_model` starts every weight at random first, keeps the compile
state, and gives up the class of some models; a copy made from the graph doesn't.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.graph.reading import symbolic_arguments, symbolic_inputs
from keras_net2net.graph.structure import Call, Graph, Tensor


def copy_graph(graph: Graph) -> Any:
    """Copies a model, all but for what growth keeps about its variables.

    Args:
        graph: Its graph.

    Returns:
        The copy, of the same class and name. What is shared within the original, as
        a layer that is called twice, is shared within the copy.
    """
    return _Copy().model(graph)


def copy_layer(call: Call, name: str, values: Sequence[np.ndarray], seed: int) -> Any:
    """Copies the layer or operation of one call, with other weights.

    Args:
        call: The call.
        name: The name of the copy.
        values: Its weights, in the order of the original's.
        seed: What takes the place of a random seed that the original was given, so that
            the two don't draw the same.

    Returns:
        The copy, built. It learns, also where the original is frozen.
    """
    original = call.operation
    given = False
    if call.inner is not None and not call.inner.opened:
        copy = _Copy().model(call.inner)
        internals.set_setting(copy, "name", name)
    else:
        copy = _copy_of(original, seed)
        internals.set_setting(copy, "name", name)
        if not isinstance(copy, keras.Layer):
            return copy
        if _is_plain(original):
            named = {v.name: value for v, value in zip(original.weights, values, strict=True)}
            shapes = internals.build_shapes(original) or {}
            given = internals.build_with_values(copy, shapes, named.get)
            given = given and len(named) == len(values)
        else:
            args, kwargs = symbolic_arguments(call)
            internals.name_like(copy, original)
            with internals.unrecorded(copy):
                copy(*args, **kwargs)
        internals.name_like(copy, original)
    if not given and values:
        _set_weights(original, copy, values)
    if not original.trainable:
        copy.trainable = True
    return copy


def check_copy(call: Call) -> None:
    """Checks that the layer of a call is made from its own configuration.

    Raises:
        GrowthError: If it isn't.
    """
    if call.inner is None or call.inner.opened:
        _copy_of(call.operation)


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
        if not internals.has_no_call(original):
            args, kwargs = symbolic_inputs(original)
            copy(*args, **kwargs)
        _set_weights(original, copy, original.get_weights())
        _carry_states(original, copy)
        copy.trainable = original.trainable
        return copy

    def _attributes(self, original: Any, copy: Any) -> None:
        """Copies what the user's class, or the user, keeps on the model for its own steps."""
        for name, value in internals.own_attributes(original).items():
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
        copy = internals.new_sequential(graph.model, [*inputs, *layers])
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
        return internals.new_functional(graph.model, inputs, outputs)

    def _input(self, tensor: Tensor) -> Any:
        original: Any = internals.input_layer(tensor.keras_tensor)
        return type(original).from_config(original.get_config())

    def _operation_of(self, call: Any) -> Any:
        if call.inner is not None and not call.inner.opened:
            return self.model(call.inner)
        original = call.operation
        if id(original) not in self._made:
            copy = _copy_of(original)
            if _is_plain(original):
                # Arrays of their own: JAX would go on with the memory of the original.
                values = {v.name: np.array(internals.read_variable(v)) for v in original.weights}
                shapes = internals.build_shapes(original) or {}
                given = internals.build_with_values(copy, shapes, values.get)
                if not given or len(values) < len(original.weights):  # without names, or the same
                    _set_weights(original, copy, original.get_weights())
            self._made[id(original)] = copy
        return self._made[id(original)]

    def _fill(self, graph: Graph) -> None:
        """Copies the weights of the layers that were built by being called."""
        for call in graph.calls:
            layer = call.operation
            composite = isinstance(layer, keras.Layer) and not _is_plain(layer)
            if (call.inner is None or call.inner.opened) and composite and layer.weights:
                _set_weights(layer, self._made[id(layer)], layer.get_weights())
            if isinstance(layer, keras.Layer) and (call.inner is None or call.inner.opened):
                _carry_states(layer, self._made[id(layer)])


def _set_weights(original: Any, copy: Any, values: Sequence[np.ndarray]) -> None:
    """Gives the copy of a layer or model its weights."""
    if [tuple(w.shape) for w in copy.weights] != [tuple(value.shape) for value in values]:
        raise GrowthError(
            f"{original.name!r} ({type(original).__name__}) can't be copied",
            "its configuration doesn't say which sizes its layers have",
            "Make its constructor's arguments say all sizes, or grow the model in place",
            received=f"weights of shapes {_shapes(original)}, and {_shapes(copy)} as configured",
        )
    copy.set_weights(list(values))


def _shapes(layer: Any) -> str:
    shapes = [tuple(weight.shape) for weight in layer.weights]
    return f"{shapes[:4]}"[:-1] + (", ...]" if len(shapes) > 4 else "]")


def _carry_states(original: Any, copy: Any) -> None:
    """Gives a copy the states that recurrent layers carry from batch to batch."""
    both = zip(internals.all_layers(original), internals.all_layers(copy), strict=True)
    for old, new in both:
        states = internals.recurrent_states(new)
        for name, state in internals.recurrent_states(old).items():
            states[name].assign(np.array(internals.read_variable(state)))


def _is_plain(operation: Any) -> bool:
    """Whether a layer's weights are all its own, and built from shapes."""
    return (
        isinstance(operation, keras.Layer)
        and bool(operation.weights)
        and bool(internals.build_shapes(operation))
        and not internals.sublayers(operation)
    )


def _copy_of(original: Any, seed: int | None = None) -> Any:
    """A layer or operation with the same settings, and no weights yet."""
    if isinstance(original, keras.layers.Lambda):
        return internals.new_lambda(original)
    try:
        config = original.get_config()
        if seed is not None and isinstance(config.get("seed"), int):
            config["seed"] = seed
        return type(original).from_config(config)
    except Exception as error:
        raise GrowthError(
            f"The layer {original.name!r} ({type(original).__name__}) can't be copied",
            f"its class isn't made from its own `get_config()`: {error}",
            "Give it a `get_config` and a `from_config` that fit its constructor, or grow the "
            "model in place",
            received=f"a model with the layer {original.name!r}",
        ) from error
