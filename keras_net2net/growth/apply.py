"""Carrying out a plan on a live model, in place.

A layer that grows stays the same object, and so do its variables: it is given
its new sizes, its variables their new values, and its own `build` runs again to
derive the rest. The symbolic tensors of the graph are relabelled with their new
shapes; only insertions need the graph to be wired anew.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.growth.transaction import Transaction
from keras_net2net.planning.blueprint import Blueprint
from keras_net2net.planning.making import grown_values
from keras_net2net.planning.plan import LayerChange
from keras_net2net.widths.expressions import is_axes, resolve
from keras_net2net.widths.facts import Facts
from keras_net2net.widths.registry import rule_for

T = TypeVar("T")


def apply(blueprint: Blueprint, transaction: Transaction) -> dict[str, Any]:
    """Changes a model as its blueprint says.

    Args:
        blueprint: The plan, and what it takes to carry it out.
        transaction: Remembers all that is changed.

    Returns:
        What was inserted, by path.
    """
    graph, seed = blueprint.graph, blueprint.plan.seed
    changes: dict[str, list[LayerChange]] = {}
    for step in blueprint.plan.steps:
        for change in step.layers:
            changes.setdefault(change.path, []).append(change)
    # What is known of the planned graph: its shapes are the new ones.
    known = {facts.path: facts for facts in blueprint.facts}
    growing = [path for path in changes if path not in blueprint.makers]
    with internals.variable_scope(graph.model):
        old = (_values(known[path].operation, changes[path]) for path in growing)
        work = ((values, changes[path], seed) for path, values in zip(growing, old))  # noqa: B905
        for path, values in zip(growing, ahead(grown_values, work), strict=True):
            grow_layer(known[path], changes[path], values, transaction)
        made = {path: make() for path, make in blueprint.makers.items()}
    relabel(graph, blueprint.facts, transaction)
    inserted = {id(blueprint.stand_ins[path]): layer for path, layer in made.items()}
    for inner in graph.subgraphs():
        if inner.edited:
            rewire(inner, inserted, transaction)
    models = containers(graph)
    transaction.remember(*models)
    internals.containers_changed(models)
    return made


def containers(graph: Graph) -> list[Any]:
    """All models and graphs that hold layers of this one, the innermost first."""
    found: list[Any] = []
    for inner in reversed(list(graph.subgraphs())):
        if inner.opened:
            found += [inner.model] if isinstance(inner.model, keras.Model) else []
            continue
        function = internals.function_of(inner.model)
        found += [function] if function is inner.model else [function, inner.model]
    return found


def _values(layer: Any, steps: list[LayerChange]) -> dict[str, np.ndarray]:
    """The present values of the variables that change, by name."""
    names = {change.label for step in steps for change in step.variables}
    return {
        name: internals.read_variable(variable)
        for name, variable in (internals.named_variables(layer) if names else {}).items()
        if name in names
    }


def ahead(function: Callable[..., T], work: Iterable[tuple], depth: int = 4) -> Iterator[T]:
    """Maps a function over arguments in threads, in order, a few results ahead.

    NumPy lets go of the interpreter while it computes, so that the values of one
    layer are computed while those of another become variables. Only a few are
    held at a time: all at once would double the memory.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting: deque[Future[T]] = deque()
        for arguments in work:
            waiting.append(pool.submit(function, *arguments))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def grow_layer(
    facts: Facts,
    steps: list[LayerChange],
    values: Mapping[str, np.ndarray],
    transaction: Transaction,
) -> None:
    """Gives a layer its new sizes and weights; the object and its variables stay.

    Args:
        facts: What is known of the layer in the planned graph.
        steps: The changes of the layer, in their order.
        values: The new values of its weights, by name.
        transaction: Remembers the layer.
    """
    layer = facts.operation
    transaction.remember(layer)
    for step in steps:
        for key, _, value in step.config:
            if key in facts.arguments:
                _set_argument(facts.arguments[key][0], key, value, transaction)
            else:
                internals.set_setting(layer, key, value)
    if not isinstance(layer, keras.Layer):
        return
    variables = internals.named_variables(layer)
    for name, value in values.items():
        transaction.remember(variables[name])
        internals.set_variable(variables[name], value)
    shapes = new_build_shapes(facts)
    if shapes is not None:
        _build_again(layer, shapes, variables)


def _set_argument(call: Call, name: str, value: Any, transaction: Transaction) -> None:
    """Gives a recorded call another argument."""
    recorded = call.node.arguments
    transaction.remember(recorded)
    made = dataclasses.replace(call, args=recorded.args, kwargs=recorded.kwargs)
    made.set_argument(name, value)
    internals.set_arguments(call.node, made.args, made.kwargs)


def _build_again(layer: Any, shapes: dict[str, Any], variables: Mapping[str, Any]) -> None:
    """Lets a layer derive the rest from its new shapes.

    One that holds nothing but layers might make these anew, so it is only told the
    shapes. The same holds for one without a rule: nobody knows what its `build` does.
    """
    holds_layers = internals.sublayers(layer) and not internals.own_variables(layer)
    if holds_layers or rule_for(layer) is None:
        internals.set_build_shapes(layer, shapes)
    else:
        internals.rebuild(layer, shapes, lambda *_, name, **__: variables[name])


def new_build_shapes(facts: Facts) -> dict[str, Any] | None:
    """The shapes to build a layer with, for its inputs' planned shapes.

    Returns:
        The arguments of `build`, or `None` for a layer that wasn't built by shapes.
    """
    built_with = internals.build_shapes(facts.operation)
    if not built_with or facts.given is None:
        return None
    args, kwargs = facts.given
    if len(built_with) == 1:
        named = dict.fromkeys(built_with, args[0] if args else next(iter(kwargs.values())))
    else:
        names = facts.operation.call_signature_parameters
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        named = {key: given.get(key.removesuffix("_shape")) for key in built_with}
    return {key: _shapes_like(named[key], old) for key, old in built_with.items()}


def _shapes_like(given: Any, old: Any) -> Any:
    """The shapes of tensors; a batch size keeps what the build has seen of it."""
    if is_axes(given):
        shape = tuple(resolve(axis).size for axis in given)
        if isinstance(old, (tuple, list)) and len(old) == len(shape) and shape:
            return (old[0], *shape[1:])
        return shape
    if isinstance(given, dict):
        return {key: _shapes_like(x, (old or {}).get(key)) for key, x in given.items()}
    if isinstance(given, (list, tuple)):
        inside = old if isinstance(old, (list, tuple)) and len(old) == len(given) else None
        return [_shapes_like(x, inside and inside[i]) for i, x in enumerate(given)]
    return old


def relabel(graph: Graph, layers: Iterable[Facts], transaction: Transaction) -> None:
    """Gives the symbolic tensors of a graph, and what records shapes, their new sizes.

    The obvious way is to call all layers anew. Then the tensors would be others, and
    models that a user has made from the old ones would lose the grown model's graph; and
    each call takes its time. Shapes are all that changes where nothing is inserted.
    """
    for inner in graph.subgraphs():
        tensors = [*inner.flat_inputs, *(t for call in inner.calls for t in call.outputs)]
        for tensor in tensors:
            symbolic = tensor.keras_tensor
            if symbolic is None or tuple(symbolic.shape) == tensor.shape:
                continue
            transaction.remember(symbolic)
            internals.set_shape(symbolic, tensor.shape)
        for tensor in inner.flat_inputs:
            symbolic = tensor.keras_tensor
            layer = None if symbolic is None else internals.input_layer(symbolic)
            if layer is not None and tuple(layer.batch_shape) != tensor.shape:
                transaction.remember(layer)
                internals.set_input_shape(layer, tensor.shape)
    for facts in layers:
        layer = facts.operation
        if not isinstance(layer, keras.Layer) or not layer.built:
            continue
        shapes = new_build_shapes(facts)
        if shapes is not None and _differ(shapes, internals.build_shapes(layer)):
            transaction.remember(layer)
            # `build` derives more than weights: up to Keras 3.10 at least, what the -1 of a
            # `Reshape` stands for.
            _build_again(layer, shapes, internals.named_variables(layer))


def _differ(new: Any, old: Any) -> bool:
    """Whether shapes differ beyond the batch size, which a build may have seen or not."""
    flat_new, flat_old = ([shape[1:] for shape in _shapes(shapes)] for shapes in (new, old))
    return len(flat_new) == len(flat_old) and flat_new != flat_old


def _shapes(shapes: Any) -> list[tuple]:
    if isinstance(shapes, dict):
        return [shape for value in shapes.values() for shape in _shapes(value)]
    if isinstance(shapes, (list, tuple)):
        if all(size is None or isinstance(size, int) for size in shapes):
            return [tuple(shapes)]
        return [shape for value in shapes for shape in _shapes(value)]
    return []


def rewire(graph: Graph, inserted: dict[int, Any], transaction: Transaction) -> None:
    """Records all calls of an edited graph anew, and gives the graph to its model.

    The inputs keep their symbolic tensors; every other tensor is a new one, so
    that another model made of the same tensors keeps computing what it did.

    Args:
        graph: The edited graph.
        inserted: The layers to insert, by the `id` of their stand-ins.
        transaction: Remembers what is changed.
    """
    function: Any = internals.function_of(graph.model)
    known = {id(tensor): tensor.keras_tensor for tensor in graph.flat_inputs}
    input_layers = map(internals.input_layer, known.values())
    called = [call.operation for call in graph.calls if call.node is not None]
    transaction.remember(function, graph.model, *filter(None, input_layers), *called)
    for call in graph.calls:
        args, kwargs = keras.tree.map_structure(
            lambda x: known[id(x)] if isinstance(x, Tensor) else x, (call.args, call.kwargs)
        )
        outputs = [_new_tensor(tensor) for tensor in call.outputs]
        known.update(zip(map(id, call.outputs), outputs, strict=True))
        operation = inserted.get(id(call.operation), call.operation)
        internals.record_call(operation, args, kwargs, outputs, call.node)
    internals.set_graph(function, keras.tree.map_structure(lambda t: known[id(t)], graph.outputs))
    internals.track_layers(
        function, [op for op in function.operations if isinstance(op, keras.Layer)]
    )
    if function is not graph.model:
        internals.insert_into_sequential(graph.model, function)


def _new_tensor(tensor: Tensor) -> Any:
    """Keras's tensor for one of a graph: like the one that it had, if it had one."""
    if tensor.keras_tensor is None:
        return keras.KerasTensor(tensor.shape, dtype=tensor.dtype)
    return internals.new_tensor(tensor.keras_tensor, tensor.shape, True)
