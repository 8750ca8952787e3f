"""Making the new layers of a part that is inserted, and wiring them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.graph.copying import check_copy, copy_layer
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.operations.deeper.silence import Zeros
from keras_net2net.planning.blueprint import build_inserted
from keras_net2net.planning.draft import Draft, Inserted, Placeholder
from keras_net2net.planning.plan import InitialWeight, Insertion
from keras_net2net.planning.remaps import generator


class Namer:
    """Gives new layers stable and readable names: `conv2_deeper_1`, then `conv2_deeper_2`."""

    def __init__(self, draft: Draft) -> None:
        self._taken = draft.names()

    def number(self, bases: Iterable[str]) -> int:
        """The first number that is free for all names."""
        number = 1
        while any(f"{base}_deeper_{number}" in self._taken for base in bases):
            number += 1
        return number

    def take(self, base: str, number: int) -> str:
        """A free name, with this number or one that follows it."""
        while f"{base}_deeper_{number}" in self._taken:
            number += 1
        return self.reserve(f"{base}_deeper_{number}")

    def reserve(self, name: str) -> str:
        """A free name that begins like this."""
        free, number = name, 1
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free


def base_name(name: str) -> str:
    """The name of a layer without the number of an earlier growth."""
    return re.sub(r"_deeper_\d+$", "", name)


@dataclasses.dataclass(eq=False)
class Builder:
    """Collects the calls of new layers that are inserted behind a tensor.

    Args:
        draft: The draft.
        graph: The graph that they are inserted into.
        inside: The name of the model around them, should there be one.
    """

    draft: Draft
    graph: Graph
    inside: str = ""
    calls: list[Call] = dataclasses.field(default_factory=list)
    made: list[Inserted] = dataclasses.field(default_factory=list)

    def path(self, name: str) -> str:
        """The path of a new layer."""
        return "/".join(filter(None, (self.graph.path, self.inside, name)))

    def call(self, inserted: Inserted, args: tuple, kwargs: dict, like: list[Tensor]) -> Call:
        """Adds a call of a new layer, which makes tensors like these."""
        outputs = [Tensor(x.shape, x.dtype) for x in like]
        call = Call(inserted.layer, inserted.insertion.path, args, kwargs, outputs)
        self.calls.append(call)
        if inserted not in self.made:
            after = self._after(call)
            inserted.insertion = dataclasses.replace(inserted.insertion, after=after)
            self.made.append(inserted)
        return call

    def _after(self, call: Call) -> str:
        for x in call.inputs:
            for one in (*self.calls, *self.graph.calls):
                if any(x is made for made in one.outputs):
                    return one.path
        return ""

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

    def fresh(
        self, layer_class: Any, config: dict[str, Any], weights: list[InitialWeight], shape: Any
    ) -> Inserted:
        """A new layer, for an input of a shape."""
        name = config["name"]
        config = {**config, "trainable": True} if weights else config
        insertion = Insertion(self.path(name), "", layer_class, config, tuple(weights))
        make = functools.partial(build_inserted, insertion, shape)
        return Inserted(insertion, Placeholder(name, **_penalties(config)), make)

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Adds two tensors."""
        config = layers.Add(name=name, dtype=x.dtype).get_config()
        layer = self.fresh(layers.Add, config, [], [x.shape, y.shape])
        return self.call(layer, ([x, y],), {}, [x]).outputs[0]

    def finish(self, after: Tensor, last: Tensor) -> Repeated:
        """Puts all behind a tensor.

        A Sequential can't branch: there the part becomes a model of its own in it.
        """
        insertions = [inserted.insertion for inserted in self.made]
        if not self.inside:
            self.draft.insert_calls(self.graph, after, self.calls, last, self.made)
            return Repeated(last, insertions)
        path = "/".join(filter(None, (self.graph.path, self.inside)))
        config = {"name": self.inside}
        insertion = Insertion(path, insertions[0].after, keras.Model, config, ())
        make = functools.partial(_make_model, self.inside, after, last, self.calls, self.made)
        wrapper = Inserted(insertion, Placeholder(self.inside), make)
        end = Tensor(last.shape, last.dtype)
        call = Call(wrapper.layer, path, (after,), {}, [end])
        self.draft.insert_calls(self.graph, after, [call], end, [wrapper])
        for one in insertions:
            self.draft.count(one)
        return Repeated(end, [insertion, *insertions])


@dataclasses.dataclass(eq=False)
class Repeated:
    """What was inserted: the tensor that it makes, and the layers."""

    end: Tensor
    insertions: list[Insertion]


def _make_model(
    name: str, given: Tensor, last: Tensor, calls: list[Call], made: list[Inserted]
) -> Any:
    inputs = keras.Input(batch_shape=given.shape, dtype=given.dtype, name=f"{name}_input")
    known: dict[int, Any] = {id(given): inputs}
    by_stand_in: dict[int, Callable[[], Any]] = {
        id(one.layer): one.make for one in made if one.make
    }
    layers_made: dict[int, Any] = {}
    for call in calls:
        key = id(call.operation)
        if key not in layers_made:
            layers_made[key] = by_stand_in[key]()
        args, kwargs = keras.tree.map_structure(
            lambda x: known[id(x)] if isinstance(x, Tensor) else x, (call.args, call.kwargs)
        )
        outputs = keras.tree.flatten(layers_made[key](*args, **kwargs))
        known.update(zip(map(id, call.outputs), outputs, strict=True))
    return keras.Model(inputs, known[id(last)], name=name)


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


def _penalties(thing: Any) -> dict[str, Any]:
    """The regularizers of a layer and of those in it, or of a configuration."""
    if isinstance(thing, dict):
        held = [thing]
    else:
        held = [vars(one) for one in internals.all_layers(thing)] if _is_layer(thing) else []
    return {
        key: value
        for one in held
        for key, value in one.items()
        if key.endswith("regularizer") and value is not None
    }


def _is_layer(thing: Any) -> bool:
    return isinstance(thing, keras.Layer)
