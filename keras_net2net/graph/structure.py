"""A model's graph as a value that operations can read and edit.

Planning works on this graph alone: it changes shapes, configurations and wiring here, and
the model is untouched until the plan is applied.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import keras

Shape = tuple[int | None, ...]


@dataclasses.dataclass(eq=False)
class Tensor:
    """One symbolic tensor.

    Args:
        shape: Its shape as planned.
        dtype: Its dtype.
        keras_tensor: Keras's own tensor, if it is one of a model's graph.
        variable: The variable that it stands for inside an opened layer, with the
            layer that owns it and the path of that layer.
    """

    shape: Shape
    dtype: str
    keras_tensor: Any = None
    variable: tuple[Any, str, Any] | None = None

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
        inner: The operation's own graph, where it is a nested model or an opened layer.
        node: The Keras node this call was read from, if any.
        closed: Why a layer without a rule could not be opened, if it is one.
    """

    operation: Any
    path: str
    args: tuple
    kwargs: dict
    outputs: list[Tensor]
    inner: Graph | None = None
    node: Any = None
    closed: str | None = None

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        if not self.kwargs and all(type(x) is Tensor for x in self.args):
            return list(self.args)  # as most calls are; `flatten` takes its time
        flat = keras.tree.flatten((self.args, self.kwargs))
        return [x for x in flat if isinstance(x, Tensor)]

    @property
    def insides(self) -> list[Graph]:
        """Its own graph, and what that does in training mode, where that differs."""
        return [] if self.inner is None else [*filter(None, (self.inner, self.inner.training))]

    def entries(self, inside: Graph) -> list[tuple[Tensor, Tensor | None]]:
        """The inputs of one of `insides`, each with the tensor outside that it stands for."""
        inner: Any = self.inner
        given = inner.sources if inner.opened else self._given(inner)
        return list(zip(inside.flat_inputs, given, strict=True))

    def _given(self, model: Graph) -> list[Tensor | None]:
        """What a nested model is given, in the order of its own inputs."""
        given = self.args[0] if self.args else next(iter(self.kwargs.values()))
        if isinstance(given, dict) and not isinstance(model.inputs, dict):
            return [given[tensor.keras_tensor.name] for tensor in model.flat_inputs]
        return [x if isinstance(x, Tensor) else None for x in keras.tree.flatten(given)]

    def argument(self, name: str) -> Any:
        """The argument of this name."""
        return self.kwargs[name] if name in self.kwargs else self.args[self._at(name)]

    def set_argument(self, name: str, value: Any) -> None:
        """Gives the call another argument; the node that it was read from isn't changed."""
        if name in self.kwargs:
            self.kwargs = {**self.kwargs, name: value}
        else:
            at = self._at(name)
            self.args = (*self.args[:at], value, *self.args[at + 1 :])

    def _at(self, name: str) -> int:
        return list(inspect.signature(self.operation.call).parameters).index(name)

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
        opened: Whether this is the inside of a layer or of a subclassed model, that
            is, what its own code does, which nobody can rewire.
        sources: The tensors outside that the inputs of an opened layer stand for.
        training: What an opened layer does in training mode, where that differs.
        adds_loss: Whether the code of an opened layer adds to the loss.
    """

    model: Any
    path: str
    inputs: Any
    outputs: Any
    calls: list[Call]
    edited: bool = False
    opened: bool = False
    sources: list[Tensor] = dataclasses.field(default_factory=list)
    training: Graph | None = None
    adds_loss: bool = False
    _readers: dict[int, list[Call]] = dataclasses.field(default_factory=dict)
    _makers: dict[int, Call] = dataclasses.field(default_factory=dict)

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
            if graph.training is not None:
                stack.append(graph.training)
            stack.extend(call.inner for call in reversed(graph.calls) if call.inner is not None)

    def all_calls(self) -> Iterator[tuple[Graph, Call]]:
        """Every call of this graph and the nested ones."""
        for graph in self.subgraphs():
            for call in graph.calls:
                yield graph, call

    def consumers(self, tensor: Tensor) -> list[Call]:
        """The calls of this graph that read a tensor, in no particular order."""
        self._index()
        return list(self._readers.get(id(tensor), ()))

    def maker(self, tensor: Tensor) -> Call | None:
        """The call of this graph that makes a tensor."""
        self._index()
        return self._makers.get(id(tensor))

    def only_reader(self, tensor: Tensor) -> Call | None:
        """The call that reads a tensor, if nothing else does, and it is no output."""
        readers = self.consumers(tensor)
        if len(readers) != 1 or any(x is tensor for x in self.flat_outputs):
            return None
        return readers[0]

    def _index(self) -> None:
        """Notes who reads and who makes each tensor; from then on `insert` keeps it."""
        if not self._makers:
            for call in self.calls:
                self._enter(call)

    def _enter(self, call: Call) -> None:
        for tensor in {id(x) for x in call.inputs}:
            self._readers.setdefault(tensor, []).append(call)
        self._makers.update((id(x), call) for x in call.outputs)

    def insert(
        self, tensor: Tensor, calls: list[Call], last: Tensor, reader: Call | None = None
    ) -> None:
        """Puts `calls` behind `tensor`: what read it reads `last` instead.

        Args:
            tensor: The tensor.
            calls: The new calls, in the order in which they run.
            last: The tensor that the last of them makes.
            reader: The only call that is to read it. Defaults to `None`: all that read
                `tensor` do, and the output of the graph that it may be.
        """

        def rewire(x: Any) -> Any:
            return last if x is tensor else x

        self._index()
        readers = self._readers.pop(id(tensor), [])
        kept = [] if reader is None else [one for one in readers if one is not reader]
        self._readers[id(tensor)] = kept
        for call in readers if reader is None else [reader]:
            call.args, call.kwargs = keras.tree.map_structure(rewire, (call.args, call.kwargs))
            if call.inner is not None:  # an opened layer knows what its inputs stand for
                call.inner.sources = [rewire(source) for source in call.inner.sources]
            self._readers.setdefault(id(last), []).append(call)
        maker = self._makers.get(id(tensor))
        at = 0 if maker is None else self.calls.index(maker) + 1
        if reader is None:
            self.outputs = keras.tree.map_structure(rewire, self.outputs)
        else:
            at = self.calls.index(reader)
        self.calls[at:at] = calls
        for call in calls:
            self._enter(call)
        self.edited = True
