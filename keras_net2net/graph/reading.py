"""Reading the graph of a live model, nested models and the inside of composite layers included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.graph.opening import Opened, open_function, open_layer
from keras_net2net.graph.structure import Call, Graph, Tensor

Opens = Callable[[Any], bool]  # whether only what is inside a layer tells what it does


def check_is_model(model: Any) -> None:
    """Checks that a model was given.

    Raises:
        GrowthError: If it is something else.
    """
    if not isinstance(model, keras.Model):
        raise GrowthError(
            "Only a `keras.Model` can grow",
            "layers are found through the graph of a model",
            "Pass the model that you train",
            received=f"{model!r} (of type {type(model).__name__})",
        )


def read(model: Any, opens: Opens) -> Graph:
    """Reads the graph of a built model.

    Args:
        model: The model: Sequential, Functional, or a subclass with a `call` of its
            own, which is opened.
        opens: Tells of a layer whether it is opened, too.

    Returns:
        Its graph; each nested model is read once, however often it is called.

    Raises:
        GrowthError: If the model isn't built, or does something that can't be seen.
    """
    check_is_model(model)
    if internals.function_of(model) is not None:
        return _Reader(opens).model(model, "")
    if internals.has_no_call(model):
        return _read_parts(model, opens)
    shapes = None if isinstance(model, keras.Sequential) else internals.build_shapes(model)
    if not shapes or not model.built:
        raise _not_built(model)
    return _read_subclass(model, shapes, opens)


def _read_parts(model: Any, opens: Opens) -> Graph:
    """Reads the models that one without a `call` holds: an encoder and a decoder, say.

    How its `train_step` puts them together isn't seen; so what goes into each of them and
    what comes out stays as it is, as with any model.
    """
    parts = internals.held_models(model)
    if not parts:
        raise GrowthError(
            f"The model {model.name!r} can't grow",
            f"{type(model).__name__} has no `call`, and holds no built Sequential or "
            "Functional model that could",
            "Write a `call`, or grow the models that it uses one by one",
            received="a subclassed model",
        )
    reader = _Reader(opens)
    graph = Graph(model, "", [], [], [], opened=True)
    for part in parts:
        inner = reader.model(part, part.name)

        def outside(x: Tensor) -> Tensor:
            return Tensor(x.shape, x.dtype)

        given = keras.tree.map_structure(outside, inner.inputs)
        made = [outside(x) for x in inner.flat_outputs]
        graph.calls.append(Call(part, part.name, (given,), {}, made, inner))
        graph.inputs.append(given)
        graph.outputs += made
    return graph


def read_layer(layer: Any, path: str, args: Any, kwargs: Any, opens: Opens) -> Graph:
    """Opens a layer, and reads what is inside.

    Args:
        layer: The layer.
        path: Its path.
        args: Symbolic arguments for its `call`.
        kwargs: Symbolic keyword arguments, likewise.
        opens: Tells of a layer in it whether it is opened, too.

    Returns:
        The graph inside it. Raises whatever its code raises.
    """
    reader = _Reader(opens)
    flat = keras.tree.flatten((args, kwargs))
    outside = [reader.tensor_of(x, {}) for x in flat if isinstance(x, keras.KerasTensor)]
    return reader.opened(layer, path, args, kwargs, outside)


def read_function(function: Any, sizes: Any, dtype: str, path: str, opens: Opens) -> Graph | None:
    """The graph of what a function of one tensor does, if that can be seen."""
    record = open_function(function, sizes, dtype)
    if record is None:
        return None
    reader = _Reader(opens)
    known: dict[int, Tensor] = {}
    graph = Graph(
        function, path, [reader.tensor_of(record.inputs[0], known)], None, [], opened=True
    )
    reader.add_calls(graph, record.nodes, known)
    graph.outputs = reader.tensor_of(record.outputs, known)
    return graph


def _not_built(model: Any) -> GrowthError:
    return GrowthError(
        f"The model {model.name!r} can't grow yet",
        "it isn't built, so that its layers have no weights and no shapes",
        (
            "Start it with a `keras.Input`, or call `model.build(input_shape)` or the model first"
            if isinstance(model, keras.Sequential)
            else "Call the model on a batch of data first"
        ),
        received=f"an unbuilt {type(model).__name__}",
    )


def _read_subclass(model: Any, shapes: dict[str, Any], opens: Opens) -> Graph:
    """Reads a subclassed model, for inputs of the shapes that it was built with.

    Their dtype isn't recorded anywhere: tables are looked up with floats as well,
    but not all code takes them for indices.
    """
    problem: Exception | None = None
    for dtype in ("float32", "int32"):
        args, kwargs = _symbolic_arguments(shapes, dtype)
        reader = _Reader(opens)
        outside = [reader.tensor_of(x, {}) for x in keras.tree.flatten((args, kwargs))]
        try:
            graph = reader.opened(model, "", args, kwargs, outside)
        except Exception as error:
            problem = error
            continue
        inside = {id(source): x for source, x in zip(graph.sources, graph.flat_inputs, strict=True)}
        flat = [inside[id(tensor)] for tensor in outside]
        graph.inputs = keras.tree.pack_sequence_as(args[0] if args else kwargs, flat)
        return graph
    raise GrowthError(
        f"The model {model.name!r} can't grow",
        f"what the `call` of {type(model).__name__} does can't be seen: {problem}",
        "Write it with Keras layers and `keras.ops` alone, or build it from `keras.Input`s as "
        "`keras.Model(inputs, outputs)`",
        received="a subclassed model",
    ) from problem


def symbolic_inputs(model: Any) -> tuple[list[Any], dict[str, Any]]:
    """Symbolic arguments for a subclassed model, of the shapes that it was built with."""
    return _symbolic_arguments(internals.build_shapes(model) or {}, "float32")


def symbolic_arguments(call: Call) -> tuple[list[Any], dict[str, Any]]:
    """New symbolic tensors in the place of those that a call is given."""
    made: dict[int, Any] = {}

    def symbol(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return made.setdefault(id(x), keras.KerasTensor(x.shape, dtype=x.dtype))

    args, kwargs = keras.tree.map_structure(symbol, (list(call.args), dict(call.kwargs)))
    return args, kwargs


def _symbolic_arguments(shapes: dict[str, Any], dtype: str) -> tuple[list[Any], dict[str, Any]]:
    given = {key: _symbolic(shape, dtype) for key, shape in shapes.items()}
    if len(given) == 1:
        return list(given.values()), {}
    return [], {key.removesuffix("_shape"): x for key, x in given.items()}


def _symbolic(shape: Any, dtype: str) -> Any:
    """Symbolic tensors for (nested) shapes."""
    if isinstance(shape, dict):
        return {key: _symbolic(item, dtype) for key, item in shape.items()}
    if all(size is None or isinstance(size, int) for size in shape):
        return keras.KerasTensor(tuple(shape), dtype=dtype)
    return [_symbolic(item, dtype) for item in shape]


class _Reader:
    """Reads graphs, each model once."""

    def __init__(self, opens: Opens) -> None:
        self._opens = opens
        self._seen: dict[int, Graph] = {}

    def tensor_of(self, x: Any, known: dict[int, Tensor]) -> Any:
        """The `Tensor` of a symbolic tensor; anything else as it is."""
        if not isinstance(x, keras.KerasTensor):
            return x
        if id(x) not in known:
            known[id(x)] = Tensor(tuple(x.shape), x.dtype, x)
        return known[id(x)]

    def model(self, model: Any, path: str) -> Graph:
        """The graph of a Sequential or Functional model."""
        if id(model) in self._seen:
            return self._seen[id(model)]
        function = internals.function_of(model)
        known: dict[int, Tensor] = {}

        def tensor_of(x: Any) -> Any:
            return self.tensor_of(x, known)

        nested_inputs, nested_outputs = internals.structures_of(function)
        graph = Graph(model, path, keras.tree.map_structure(tensor_of, nested_inputs), None, [])
        self._seen[id(model)] = graph
        self.add_calls(graph, internals.nodes_of(function), known)
        graph.outputs = keras.tree.map_structure(tensor_of, nested_outputs)
        return graph

    def opened(self, layer: Any, path: str, args: Any, kwargs: Any, outside: list[Tensor]) -> Graph:
        """The graph inside a layer; raises whatever its code raises."""
        graphs = []
        for record in open_layer(layer, args, kwargs):
            graphs.append(self._of_record(layer, path, record, outside))
        graphs[0].training = graphs[1] if len(graphs) > 1 else None
        return graphs[0]

    def _of_record(self, layer: Any, path: str, record: Opened, outside: list[Tensor]) -> Graph:
        known: dict[int, Tensor] = {}
        given = {id(t): t for t in outside if id(t.keras_tensor) in record.inputs}
        sources = list(given.values())  # one for each tensor, even where it is used twice
        inputs = [self.tensor_of(record.inputs[id(t.keras_tensor)], known) for t in sources]
        graph = Graph(layer, path, inputs, None, [], opened=True, sources=sources)
        graph.adds_loss = record.adds_loss
        for node in record.nodes:
            for x in (*node.input_tensors, *node.outputs):
                if id(x) in record.variables:
                    owner, below, variable = record.variables[id(x)]
                    owner_path = (path + below).removeprefix("/")
                    self.tensor_of(x, known).variable = (owner, owner_path, variable)
        self.add_calls(graph, record.nodes, known)
        graph.outputs = keras.tree.map_structure(lambda x: self.tensor_of(x, known), record.outputs)
        for tensor in known.values():
            tensor.keras_tensor = None  # a record isn't part of any model
        return graph

    def add_calls(self, graph: Graph, nodes: list[Any], known: dict[int, Tensor]) -> None:
        """Adds the calls of nodes to a graph."""

        def tensor_of(x: Any) -> Any:
            return self.tensor_of(x, known)

        done = set(known)
        for node in nodes:
            operation = node.operation
            if node.is_input or any(id(x) in done for x in node.outputs):
                continue
            path = f"{graph.path}/{operation.name}" if graph.path else operation.name
            given = node.arguments
            simple = len(given.args) == 1 and not given.kwargs
            if simple and isinstance(given.args[0], keras.KerasTensor):
                args: tuple = (tensor_of(given.args[0]),)
                kwargs: dict = {}
            else:
                args, kwargs = keras.tree.map_structure(tensor_of, (given.args, given.kwargs))
            outputs = [tensor_of(x) for x in node.outputs]
            call = Call(
                operation, path, args, kwargs, outputs, None, None if graph.opened else node
            )
            if isinstance(operation, keras.Model) and internals.function_of(operation) is not None:
                call.inner = self.model(operation, path)
            elif isinstance(operation, keras.Layer) and self._opens(operation):
                self._open(call, given)
            graph.calls.append(call)

    def _open(self, call: Call, given: Any) -> None:
        """Looks inside a layer without a rule, or says why that isn't possible."""
        try:
            call.inner = self.opened(
                call.operation, call.path, given.args, given.kwargs, call.inputs
            )
        except Exception as error:
            call.closed = " ".join(str(error).split())[:200]
            return
        sizes = [len(t.shape) for t in keras.tree.flatten(call.inner.outputs)]
        if sizes != [len(t.shape) for t in call.outputs]:
            call.inner, call.closed = None, "its outputs aren't those that it declares"
