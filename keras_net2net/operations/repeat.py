"""Repeating a part of a graph: finding it, copying it, and making it start as the identity."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net import keras_privates as privates
from keras_net2net.copies import check_copy, copy_layer
from keras_net2net.draft import Draft, Inserted, Placeholder
from keras_net2net.errors import GrowthError, NotIdentityError, UnknownLayerError, explain
from keras_net2net.graph import Call, Graph, Tensor
from keras_net2net.operations.silence import (
    RANDOM,
    UNCHANGED,
    Silencer,
    Solution,
    Zeros,
    activation_of,
    kind_of,
)
from keras_net2net.plan import InitialWeight, Insertion
from keras_net2net.remaps import generator
from keras_net2net.rules.activations import Activation, describe

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


# -- finding -------------------------------------------------------------------------


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
        layer = privates.input_layer(self.tensor.keras_tensor)
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
            explain(
                "A part of the model is named by layers",
                "it is named by strings, layers or symbolic tensors",
                received,
                "Pass names such as 'block1_out', layers, or tensors such as `layer.output`",
            )
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
            explain(
                f"{_named(item)} doesn't tell which tensor is meant",
                f"there are {len(found)} that it could be, made by {paths}",
                received,
                "Use a path, or pass the tensor itself, such as `layer.get_output_at(1)`",
            )
        )
    return found[0]


def not_rewired(graph: Graph, received: str) -> GrowthError:
    """The error for the inside of a layer or model whose own code decides what it calls."""
    kind = type(graph.model).__name__
    what = f"the layer {graph.path!r}" if graph.path else f"the model {graph.model.name!r}"
    return GrowthError(
        explain(
            f"Nothing can be inserted into {what} ({kind})",
            "its own code decides which layers it calls",
            received,
            "Name a layer outside of it, or the whole layer"
            if graph.path
            else "Build the model from `keras.Input`s as `keras.Model(inputs, outputs)`",
        )
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
    return privates.input_layer(place.tensor.keras_tensor)


def _named(item: Any) -> str:
    return repr(item if isinstance(item, str) else getattr(item, "name", item))


def _unknown(draft: Draft, item: Any, places: list[Place], received: str) -> UnknownLayerError:
    names = sorted({one.path for one in places})
    close = difflib.get_close_matches(item, names, n=3) if isinstance(item, str) else []
    return UnknownLayerError(
        explain(
            f"{_named(item)} is no layer of the model {draft.model.name!r}",
            "none of its layers and tensors has that name"
            if isinstance(item, str)
            else "the model doesn't call it",
            received,
            f"Did you mean {' or '.join(map(repr, close))}?"
            if close
            else "Use a name from `[layer.name for layer in model.layers]`",
        )
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


def values_of(graph: Graph, tensor: Tensor) -> Activation | None:
    """What is known of the values of a tensor: those of the activation that makes it."""
    while True:
        call = graph.maker(tensor)
        if call is None:
            return None
        kind = kind_of(call.operation)
        if kind in UNCHANGED and call.inputs:
            tensor = call.inputs[0]
            known = values_of(graph, tensor)
            bounded = known is not None and max(map(abs, known.values)) < np.inf
            may_leave = kind == "gaussiandropout" or (bounded and kind in RANDOM)
            return None if may_leave else known
        activation = activation_of(call.operation)
        if activation is None and kind is not None:
            activation = getattr(call.operation, "activation", None)
        return None if activation is None else describe(activation)


# -- the part ------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Part:
    """A part of a graph, and how a copy of it behind its end is the identity.

    Args:
        graph: The graph.
        start: The tensor that it begins at.
        end: The one that it ends with.
        calls: Its calls, as they were when it was found.
        solution: What of it starts at zero.
        wrapped: Where the copy has no skip of its own: the tensor that its input is
            added to.
        first: What to call the start.
        last: What to call the end.
    """

    graph: Graph
    start: Tensor
    end: Tensor
    calls: list[Call]
    solution: Solution
    wrapped: Tensor | None
    first: str
    last: str


def part_between(graph: Graph, start: Place, end: Place, received: str) -> Part:
    """The part between two tensors of a graph, and how it becomes the identity.

    Raises:
        GrowthError: If there is no way from one to the other, or it can't be repeated.
    """
    if graph.opened:
        raise not_rewired(graph, received)
    calls = between(graph, start.tensor, end.tensor)
    if not calls:
        back = between(graph, end.tensor, start.tensor)
        raise GrowthError(
            explain(
                f"There is no part from {start.path!r} to {end.path!r}",
                f"what {end.path!r} makes doesn't depend on what {start.path!r} makes",
                received,
                f"Swap them: `between=({end.path!r}, {start.path!r})`"
                if back
                else "Name a layer, and one that comes behind it",
            )
        )
    calls = [dataclasses.replace(call) for call in calls]
    silencer = Silencer(calls, start.tensor, values_of(graph, end.tensor))
    if not any(
        call.operation.weights for call in calls if isinstance(call.operation, layers.Layer)
    ):
        raise GrowthError(
            explain(
                f"The part from {start.path!r} to {end.path!r} can't be repeated",
                "nothing in it has weights that could learn",
                received,
                "Name layers with layers between them that have weights",
            )
        )
    solution = silencer.identity(end.tensor)
    wrapped = None
    if solution is None:
        solution, wrapped = _wrapped(silencer, end.tensor)
    return Part(graph, start.tensor, end.tensor, calls, solution, wrapped, start.path, end.path)


def _wrapped(silencer: Silencer, end: Tensor) -> tuple[Solution, Tensor]:
    """How the input can be added to a part without a skip: the weights, and where.

    In front of the activation at its end, if that leaves the input alone.
    """
    tensor = end
    while True:
        zeros = silencer.silence(tensor)
        if zeros is not None:
            return Solution(zeros), tensor
        call = silencer.root.makers.get(id(tensor))
        if call is None or not silencer.carries(call):
            # Nothing can be zero here, so that a projection is put behind it.
            return Solution(projections=[(call, end)] if call else []), end
        tensor = call.inputs[0]


def same_shape(start: Tensor, end: Tensor) -> bool:
    """Whether what a part makes can be its input again."""
    return start.shape == end.shape and start.dtype == end.dtype


# -- making new layers ---------------------------------------------------------------


class Namer:
    """Gives new layers stable and readable names: `conv2_deeper_1`, then `conv2_deeper_2`."""

    def __init__(self, draft: Draft) -> None:
        self._taken = {call.operation.name for _, call in draft.graph.all_calls()}
        self._taken |= {path.rsplit("/", 1)[-1] for path in draft.inserted}

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
        make = functools.partial(_make, insertion, shape)
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
        weights = [weight for one in insertions for weight in one.weights]
        self.draft.parameters += sum(int(np.prod(weight.shape)) for weight in weights)
        return Repeated(end, [insertion, *insertions])


@dataclasses.dataclass(eq=False)
class Repeated:
    """What was inserted: the tensor that it makes, and the layers."""

    end: Tensor
    insertions: list[Insertion]


def _make(insertion: Insertion, shape: Any) -> Any:
    layer = insertion.layer_class.from_config(dict(insertion.config))
    precise = getattr(layer, "variable_dtype", "float32") == "float64"
    values = {w.name: w.array("float64" if precise else "float32") for w in insertion.weights}
    privates.build_with_values(layer, {"input_shape": shape}, values.get)
    return layer


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
        for name, variable in privates.named_variables(one).items():
            free, number = path + name, 1
            while free in taken:
                number += 1
                free = f"{path}{name}_{number}"
            taken.add(free)
            names.setdefault(id(variable), free)
        stack += [(inner, f"{path}{inner.name}/") for inner in reversed(privates.sublayers(one))]
    return [(names.get(id(v), v.name), v) for v in layer.weights]


def _value_of(variable: Any) -> np.ndarray:
    """The value, which training goes on to change, as it is now."""
    return np.array(privates.read_variable(variable))


def _penalties(thing: Any) -> dict[str, Any]:
    """The regularizers of a layer and of those in it, or of a configuration."""
    if isinstance(thing, dict):
        held = [thing]
    else:
        held = [vars(one) for one in privates.all_layers(thing)] if _is_layer(thing) else []
    return {
        key: value
        for one in held
        for key, value in one.items()
        if key.endswith("regularizer") and value is not None
    }


def _is_layer(thing: Any) -> bool:
    return isinstance(thing, keras.Layer)


# -- copying -------------------------------------------------------------------------


def repeat(draft: Draft, part: Part, after: Tensor, ends: dict[int, Tensor]) -> Repeated:
    """Copies a part behind a tensor, so that it starts as the identity.

    Args:
        draft: The draft.
        part: The part.
        after: The tensor, which has the values of the part's end.
        ends: For tensors behind which something was inserted, by `id`, what it makes.

    Returns:
        What was inserted.
    """
    namer = Namer(draft)
    originals = list({id(call.operation): call for call in part.calls}.values())
    bases = [base_name(call.operation.name) for call in originals]
    bases = [
        base if bases.count(base) == 1 else call.operation.name
        for base, call in zip(bases, originals, strict=True)
    ]
    number = namer.number(bases)
    label = f"{base_name(part.last.rsplit('/', 1)[-1])}_deeper_{number}"
    builder = Builder(draft, part.graph)
    branches = part.wrapped is not None or part.solution.projections or len(part.calls) > 1
    if branches and privates.function_of(part.graph.model) is not part.graph.model:
        builder.inside = namer.reserve(f"{label}_block")
    made = {
        id(call.operation): builder.copied(call, namer.take(base, number), part.solution.zeros)
        for base, call in zip(bases, originals, strict=True)
    }
    known: dict[int, Tensor] = {id(part.start): after}
    projected: dict[int, Tensor] = {}

    def project(x: Tensor, silent: Tensor) -> Tensor:
        if id(x) not in projected:
            projected[id(x)] = _project(builder, namer, part, label, silent)
        return projected[id(x)]

    for call in part.calls:
        silenced = {id(x) for c, x in part.solution.projections if c is call}
        swap = functools.partial(_swap, known=known, ends=ends, silenced=silenced, project=project)
        args, kwargs = keras.tree.map_structure(swap, (call.args, call.kwargs))
        new = builder.call(made[id(call.operation)], args, kwargs, call.outputs)
        for old, output in zip(call.outputs, new.outputs, strict=True):
            known[id(old)] = output
            if old is part.wrapped:
                if part.solution.projections:
                    output = _project(builder, namer, part, label, output)
                known[id(old)] = builder.add(namer.reserve(f"{label}_add"), after, output)
    return builder.finish(after, known[id(part.end)])


def _swap(
    x: Any,
    known: dict[int, Tensor],
    ends: dict[int, Tensor],
    silenced: set[int],
    project: Callable[[Tensor, Tensor], Tensor],
) -> Any:
    """What a copied call reads in the place of a tensor."""
    if not isinstance(x, Tensor):
        return x
    new = known.get(id(x)) or ends.get(id(x), x)
    return project(x, new) if id(x) in silenced else new


def _project(builder: Builder, namer: Namer, part: Part, label: str, x: Tensor) -> Tensor:
    """A projection of a tensor that starts at zero."""
    like = next((c.operation for c in reversed(part.calls) if _projects(c, x)), None)
    name = namer.reserve(f"{label}_projection")
    return project_to_zero(builder, like, name, x)


def _projects(call: Call, x: Tensor) -> bool:
    layer = call.operation
    if isinstance(layer, CONVOLUTIONS):
        return len(x.shape) == len(layer.kernel_size) + 2
    return isinstance(layer, layers.Dense)


def project_to_zero(builder: Builder, like: Any, name: str, x: Tensor) -> Tensor:
    """A layer of the family of another one that makes as many units, all zero at first."""
    first = getattr(like, "data_format", None) == "channels_first"
    units = x.shape[1 if first else -1]
    if units is None or not x.dtype.startswith(("float", "bfloat")):
        raise NotIdentityError(
            explain(
                f"Nothing can start as the identity behind {builder.made[-1].insertion.path!r}",
                f"its branch makes {x}, which no projection can make zero",
                f"a part with the layer {builder.made[-1].insertion.path!r}",
                "Name another part",
            )
        )
    policy = x.dtype if like is None else like.dtype_policy
    config: dict[str, Any] = {"name": name, "dtype": policy}
    if isinstance(like, CONVOLUTIONS):
        cls = type(like)
        for base in CONVOLUTIONS:
            cls = base if isinstance(like, base) else cls
        config |= {"filters": units, "kernel_size": 1, "data_format": like.data_format}
        shape: tuple[int, ...] = (*(1 for _ in like.kernel_size), units, units)
    else:
        cls = layers.Dense
        config |= {"units": units}
        shape = (units, units)
    weights = [InitialWeight("kernel", shape), InitialWeight("bias", (units,))]
    layer = builder.fresh(cls, cls(**config).get_config(), weights, x.shape)
    return builder.call(layer, (x,), {}, [x]).outputs[0]
