"""Inserting new layers: their names, the layers themselves, and how they are wired."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.graph.copying import check_copy, copy_layer
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.operations.deeper.silence import Zeros
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.making import Inserted, Placeholder, build_inserted
from keras_net2net.planning.plan import InitialWeight, Insertion
from keras_net2net.planning.remaps import generator


class Namer:
    """Gives new layers stable and readable names: `conv2_deeper_1`, then `conv2_deeper_2`.

    Args:
        draft: The draft; what is named isn't in it before it is inserted.
        word: What stands before the number. Defaults to `"deeper"`.
    """

    def __init__(self, draft: Draft, word: str = "deeper") -> None:
        self._taken = draft.names()
        self._word = word

    def base(self, name: str) -> str:
        """The name of a layer without the number of an earlier growth."""
        return re.sub(rf"_{self._word}_\d+(_\d+x\d+)?$", "", name)

    def _named(self, base: str, number: int) -> str:
        return f"{base}_{self._word}_{number}"

    def number(self, bases: Sequence[str], first: int = 1) -> int:
        """The first number that is free for all names."""
        return next(
            number
            for number in itertools.count(first)
            if self._taken.isdisjoint(self._named(base, number) for base in bases)
        )

    def take(self, base: str, number: int = 1) -> str:
        """A free name, with this number or one that follows it."""
        return self.reserve(self._named(base, self.number([base], number)))

    def stem(self, name: str) -> str:
        """A name with a number that no other name begins with, for a layer and its followers."""
        stems = (self._named(self.base(name), number) for number in itertools.count(1))
        taken = [f"{one}_" for one in self._taken]
        return next(stem for stem in stems if not any(x.startswith(f"{stem}_") for x in taken))

    def reserve(self, name: str) -> str:
        """A free name that begins like this."""
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        free = next(one for one in names if one not in self._taken)
        self._taken.add(free)
        return free


def new_layer(
    path: str, cls: Any, config: dict[str, Any], weights: Iterable[InitialWeight] = ()
) -> Inserted:
    """A layer to insert; what it stands behind is filled in by the `Builder`."""
    config = {**config, "name": path.rsplit("/", 1)[-1], "trainable": True}
    return Inserted(Insertion(path, "", cls, config, tuple(weights)), cls.from_config(config))


def resized(x: Tensor, axis: int, size: int) -> Tensor:
    """A tensor like another one, with another size along an axis."""
    shape = list(x.shape)
    shape[axis] = size
    return Tensor(tuple(shape), x.dtype)


@dataclasses.dataclass(eq=False)
class Builder:
    """Collects the calls of new layers that are inserted behind a tensor.

    Args:
        draft: The draft.
        graph: The graph that they are inserted into.
        inside: The name of the model around them, should there be one.
        behind: What the plan says that the first of them stands behind. Defaults to
            `""`: what makes the tensor that it reads.
    """

    draft: Draft
    graph: Graph
    inside: str = ""
    behind: str = ""
    calls: list[Call] = dataclasses.field(default_factory=list)
    made: list[Inserted] = dataclasses.field(default_factory=list)

    def path(self, name: str) -> str:
        """The path of a new layer."""
        return "/".join(filter(None, (self.graph.path, self.inside, name)))

    def put(self, inserted: Inserted, x: Tensor, like: Tensor | None = None) -> Tensor:
        """What a new layer makes of a tensor, of the same shape or that of another one."""
        return self.call(inserted, (x,), {}, [like or x]).outputs[0]

    def call(self, inserted: Inserted, args: tuple, kwargs: dict, like: list[Tensor]) -> Call:
        """Adds a call of a new layer, which makes tensors like these."""
        self.draft.check_open(self.graph, inserted.path)
        outputs = [Tensor(x.shape, x.dtype) for x in like]
        call = Call(inserted.layer, inserted.path, args, kwargs, outputs)
        if not inserted.insertion.after:
            after = (not self.calls and self.behind) or self._maker(call)
            inserted.insertion = dataclasses.replace(inserted.insertion, after=after)
        self.calls.append(call)
        if inserted not in self.made:
            self.made.append(inserted)
        return call

    def _maker(self, call: Call) -> str:
        """The path of what makes the first input of a call that isn't one of the graph's."""
        for x in call.inputs:
            for one in (*self.calls, *self.graph.calls):
                if any(x is made for made in one.outputs):
                    return one.path
        return str(getattr(internals.input_layer(call.inputs[0].keras_tensor), "name", ""))

    def copied(self, call: Call, name: str, zeros: Zeros) -> Inserted:
        """A copy of the layer of a call, some of its weights zero."""
        check_copy(call)
        path = self.path(name)
        original = call.operation
        config: dict[str, Any] = {"name": name}
        named: list[tuple[str, Any]] = []
        if isinstance(original, keras.Layer):
            named = _named_weights(original)
        if call.inner is None or call.inner.opened:
            config = {**original.get_config(), "name": name}
        held = [None if id(v) in zeros else _value_of(v) for _, v in named]
        weights = tuple(
            InitialWeight(below, tuple(v.shape), 0.0 if value is None else value)
            for (below, v), value in zip(named, held, strict=True)
        )
        values = [
            np.zeros(weight.shape, "float32") if value is None else value
            for weight, value in zip(weights, held, strict=True)
        ]
        seed = int(generator(self.draft.seed, path, "seed").integers(2**31 - 1))
        make = functools.partial(copy_layer, call, name, values, seed)
        holder = Placeholder(name, **_penalties(original))
        return Inserted(Insertion(path, "", type(original), config, weights), holder, make)

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Adds two tensors."""
        config = layers.Add(name=name, dtype=x.dtype).get_config()
        layer = new_layer(self.path(name), layers.Add, config)
        return self.call(layer, ([x, y],), {}, [x]).outputs[0]

    def branch(self, name: str) -> None:
        """Lets what is inserted branch: a Sequential can't, but a model of this name in it."""
        if internals.function_of(self.graph.model) is not self.graph.model:
            self.inside = name

    def finish(
        self, after: Tensor, last: Tensor, reader: Call | None = None
    ) -> tuple[Tensor, list[Insertion]]:
        """Puts all behind a tensor, for all that read it or for one call.

        Args:
            after: The tensor.
            last: What the last of the new calls makes.
            reader: The only call that is to read it. Defaults to `None`: all do.

        Returns:
            The tensor that is read in its place, and what was inserted.
        """
        insertions = [inserted.insertion for inserted in self.made]
        if not self.inside:
            self.draft.insert(self.graph, after, self.calls, last, self.made, reader)
            return last, insertions
        path = "/".join(filter(None, (self.graph.path, self.inside)))
        insertion = Insertion(path, insertions[0].after, keras.Model, {"name": self.inside}, ())
        make = functools.partial(_make_model, self.inside, after, last, self.calls, self.made)
        wrapper = Inserted(insertion, Placeholder(self.inside), make)
        end = Tensor(last.shape, last.dtype)
        call = Call(wrapper.layer, path, (after,), {}, [end])
        self.draft.insert(self.graph, after, [call], end, [wrapper])
        for one in insertions:
            self.draft.count(one)
        return end, [insertion, *insertions]


def _make_model(
    name: str, given: Tensor, last: Tensor, calls: list[Call], made: list[Inserted]
) -> Any:
    inputs = keras.Input(batch_shape=given.shape, dtype=given.dtype, name=f"{name}_input")
    known: dict[int, Any] = {id(given): inputs}
    by_stand_in = {id(one.layer): one for one in made}
    layers_made: dict[int, Any] = {}
    for call in calls:
        key = id(call.operation)
        args, kwargs = keras.tree.map_structure(
            lambda x: known[id(x)] if isinstance(x, Tensor) else x, (call.args, call.kwargs)
        )
        if key not in layers_made:
            new = by_stand_in[key]
            layers_made[key] = new.make() if new.make else _built(new.insertion, call)
        outputs = keras.tree.flatten(layers_made[key](*args, **kwargs))
        known.update(zip(map(id, call.outputs), outputs, strict=True))
    return keras.Model(inputs, known[id(last)], name=name)


def _built(insertion: Insertion, call: Call) -> Any:
    return build_inserted(insertion, keras.tree.map_structure(lambda x: x.shape, call.args[0]))


def _named_weights(layer: Any) -> list[tuple[str, Any]]:
    """The weights of a layer, in its order, by their paths below it."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    stack = [(layer, "")]
    while stack:
        one, path = stack.pop()
        for name, variable in internals.named_variables(one).items():
            free, number = path + name, 1
            while free in taken:
                number += 1
                free = f"{path}{name}_{number}"
            taken.add(free)
            names.setdefault(id(variable), free)
        stack += [(inner, f"{path}{inner.name}/") for inner in reversed(internals.sublayers(one))]
    return [(names.get(id(v), v.name), v) for v in layer.weights]


def _value_of(variable: Any) -> np.ndarray:
    """The value, which training goes on to change, as it is now."""
    return np.array(internals.read_variable(variable))


def _penalties(operation: Any) -> dict[str, Any]:
    """The regularizers of a layer and of those in it."""
    held = internals.all_layers(operation) if isinstance(operation, keras.Layer) else []
    return {
        key: value
        for one in held
        for key, value in vars(one).items()
        if key.endswith("regularizer") and value is not None
    }
