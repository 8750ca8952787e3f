"""A model's graph as a value that operations can read and edit.

`read` takes it from a live Keras model, nested models included. Planning works
on this graph alone: it changes shapes, configurations and wiring here, and the
model is untouched until the plan is applied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from keras_net2net import keras_privates as privates
from keras_net2net.errors import GrowthError, explain

Shape = tuple[int | None, ...]


@dataclasses.dataclass(eq=False)
class Tensor:
    """One symbolic tensor: its shape as planned, and Keras's own tensor, if any."""

    shape: Shape
    dtype: str
    keras_tensor: Any = None

    def __repr__(self) -> str:
        return f"Tensor{self.shape}"


# What a tensor is inside nested arguments; Keras's `tree` sees it as a leaf.
@dataclasses.dataclass(eq=False)
class Call:
    """One call of an operation.

    Args:
        operation: The Keras layer or operation.
        path: Where the operation stands: `"encoder/conv1"`.
        args: The positional arguments, with `Tensor`s for symbolic tensors.
        kwargs: The keyword arguments, likewise.
        outputs: The output tensors, flat.
        inner: The operation's own graph, where it is a nested model.
        node: The Keras node this call was read from, if any.
    """

    operation: Any
    path: str
    args: tuple
    kwargs: dict
    outputs: list[Tensor]
    inner: Graph | None = None
    node: Any = None

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        flat = keras.tree.flatten((self.args, self.kwargs))
        return [x for x in flat if isinstance(x, Tensor)]

    def __repr__(self) -> str:
        return f"{self.path}{self.inputs} -> {self.outputs}"


@dataclasses.dataclass(eq=False)
class Graph:
    """The calls of a model in the order in which they run.

    Args:
        model: The Keras model.
        path: Where the model stands: `""` for the model itself.
        inputs: The input tensors, nested as the model takes them.
        outputs: The output tensors, nested as the model returns them.
        calls: The calls, without those of input layers.
        edited: Whether calls were inserted since the graph was read.
    """

    model: Any
    path: str
    inputs: Any
    outputs: Any
    calls: list[Call]
    edited: bool = False

    @property
    def flat_inputs(self) -> list[Tensor]:
        """The input tensors, in order."""
        return keras.tree.flatten(self.inputs)

    @property
    def flat_outputs(self) -> list[Tensor]:
        """The output tensors, in order."""
        return keras.tree.flatten(self.outputs)

    def subgraphs(self) -> Iterator[Graph]:
        """This graph and all nested ones, each once, outermost first."""
        seen: set[int] = set()
        stack = [self]
        while stack:
            graph = stack.pop()
            if id(graph) in seen:
                continue
            seen.add(id(graph))
            yield graph
            stack.extend(call.inner for call in reversed(graph.calls) if call.inner is not None)

    def all_calls(self) -> Iterator[tuple[Graph, Call]]:
        """Every call of this graph and the nested ones."""
        for graph in self.subgraphs():
            for call in graph.calls:
                yield graph, call

    def consumers(self, tensor: Tensor) -> list[Call]:
        """The calls of this graph that read a tensor."""
        return [call for call in self.calls if any(x is tensor for x in call.inputs)]

    def insert_after(self, tensor: Tensor, calls: list[Call], last: Tensor) -> None:
        """Puts `calls` behind `tensor`: all that read it read `last` instead."""
        inserted = {id(call) for call in calls}

        def rewire(x: Any) -> Any:
            return last if x is tensor else x

        for call in self.calls:
            if any(x is tensor for x in call.inputs):
                call.args, call.kwargs = keras.tree.map_structure(rewire, (call.args, call.kwargs))
        self.outputs = keras.tree.map_structure(rewire, self.outputs)
        at = next(
            (i + 1 for i, call in enumerate(self.calls) if any(x is tensor for x in call.outputs)),
            0,
        )
        self.calls[at:at] = [call for call in calls if id(call) in inserted]
        self.edited = True


def read(model: Any) -> Graph:
    """Reads the graph of a built Sequential or Functional model.

    Args:
        model: The model.

    Returns:
        Its graph; each nested model is read once, however often it is called.

    Raises:
        GrowthError: If the model isn't built, or isn't a graph of layers.
    """
    if not isinstance(model, keras.Model):
        raise GrowthError(
            explain(
                "Only a `keras.Model` can grow",
                "layers are found through the graph of a model",
                f"{model!r} (of type {type(model).__name__})",
                "Pass the model that you train",
            )
        )
    if privates.function_of(model) is None:
        raise GrowthError(_why_no_graph(model))
    return _read(model, "", {})


def _why_no_graph(model: Any) -> str:
    if isinstance(model, keras.Sequential):
        return explain(
            f"The model {model.name!r} can't grow yet",
            "it isn't built, so that its layers have no weights and no shapes",
            f"an unbuilt {type(model).__name__}",
            "Start it with a `keras.Input`, or call `model.build(input_shape)` or the model first",
        )
    return explain(
        f"The model {model.name!r} can't grow",
        f"the class {type(model).__name__} writes its own `call`, so that there is no graph of "
        "layers to follow the units through",
        f"a subclassed model, {'built' if model.built else 'not built'}",
        "Build it from `keras.Input`s as `keras.Model(inputs, outputs)`; a subclass that is "
        "constructed with inputs and outputs, and has its own `train_step`, grows as well",
    )


def _read(model: Any, path: str, seen: dict[int, Graph]) -> Graph:
    if id(model) in seen:
        return seen[id(model)]
    function = privates.function_of(model)
    tensors: dict[int, Tensor] = {}

    def tensor_of(x: Any) -> Any:
        if not isinstance(x, keras.KerasTensor):
            return x
        if id(x) not in tensors:
            tensors[id(x)] = Tensor(tuple(x.shape), x.dtype, x)
        return tensors[id(x)]

    nested_inputs, nested_outputs = privates.structures_of(function)
    inputs = keras.tree.map_structure(tensor_of, nested_inputs)
    graph = Graph(model, path, inputs, None, [])
    seen[id(model)] = graph
    for node in privates.nodes_of(function):
        operation = node.operation
        if node.is_input or any(id(x) in tensors for x in node.outputs):
            continue
        call_path = f"{path}/{operation.name}" if path else operation.name
        flat = node.arguments
        if len(flat.args) == 1 and not flat.kwargs and isinstance(flat.args[0], keras.KerasTensor):
            args: tuple = (tensor_of(flat.args[0]),)
            kwargs: dict = {}
        else:
            args, kwargs = keras.tree.map_structure(tensor_of, (flat.args, flat.kwargs))
        inner = None
        if isinstance(operation, keras.Model) and privates.function_of(operation) is not None:
            inner = _read(operation, call_path, seen)
        outputs = [tensor_of(x) for x in node.outputs]
        graph.calls.append(Call(operation, call_path, args, kwargs, outputs, inner, node))
    graph.outputs = keras.tree.map_structure(tensor_of, nested_outputs)
    return graph
