"""Carrying out a plan on a live model, in place.

A layer that grows stays the same object, and so do its variables: it is given
its new sizes, its variables their new values, and its own `build` runs again to
derive the rest. The symbolic tensors of the graph are relabelled with their new
shapes; only insertions need the graph to be wired anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import keras
import numpy as np

from keras_net2net import keras_privates as privates
from keras_net2net.draft import Draft
from keras_net2net.graph import Call, Graph, Shape, Tensor
from keras_net2net.plan import LayerChange, Plan
from keras_net2net.transaction import Transaction
from keras_net2net.weights import VariableChange

T = TypeVar("T")


def apply_plan(plan: Plan, draft: Draft, transaction: Transaction) -> list[Any]:
    """Changes the model of a draft as its plan says.

    Args:
        plan: The plan.
        draft: The draft that the plan was made with; it knows the graph.
        transaction: Remembers all that is changed.

    Returns:
        The variables of the inserted layers.
    """
    changes: dict[str, list[LayerChange]] = {}
    for step in plan.steps:
        for change in step.layers:
            changes.setdefault(change.path, []).append(change)
    calls: dict[str, Call] = {}
    for _, call in draft.graph.all_calls():
        calls.setdefault(call.path, call)
    growing = [path for path in changes if path not in draft.inserted]
    inserted = {}
    with privates.variable_scope(draft.model):
        old = (_values(calls[path].operation, changes[path]) for path in growing)
        work = ((values, changes[path], plan.seed) for path, values in zip(growing, old))  # noqa: B905
        for path, values in zip(growing, _ahead(grown_values, work), strict=True):
            grow_layer(calls[path], changes[path], values, transaction)
        for path, new in draft.inserted.items():
            steps = changes.get(path, [])
            initial = {weight.name: weight.array() for weight in new.insertion.weights}
            values = grown_values(initial, steps, plan.seed)
            config = dict(new.insertion.config)
            for change in steps:
                config.update({key: after for key, _, after in change.config})
            layer = new.insertion.layer_class.from_config(config)
            shapes = {"input_shape": calls[path].inputs[0].shape}
            privates.build_with_values(layer, shapes, values.get)
            inserted[id(new.layer)] = layer
    relabel(draft.graph, calls.values(), transaction)
    for graph in draft.graph.subgraphs():
        if graph.edited:
            rewire(graph, inserted, transaction)
    models = containers(draft.graph)
    for model in models:
        transaction.remember(model)
    privates.containers_changed(models)
    return [variable for layer in inserted.values() for variable in layer.trainable_variables]


def containers(graph: Graph) -> list[Any]:
    """All models and graphs that hold layers of this one, the innermost first."""
    found: list[Any] = []
    for inner in reversed(list(graph.subgraphs())):
        function = privates.function_of(inner.model)
        found += [function] if function is inner.model else [function, inner.model]
    return found


def _values(layer: Any, steps: list[LayerChange]) -> dict[str, np.ndarray]:
    """The present values of the variables that change, by name."""
    names = {_name(change) for step in steps for change in step.variables}
    return {
        variable.name: privates.read_variable(variable)
        for variable in (privates.own_variables(layer) if names else ())
        if variable.name in names
    }


def _name(change: VariableChange) -> str:
    return change.name.rsplit("/", 1)[-1]


def grown_values(
    values: Mapping[str, np.ndarray], steps: list[LayerChange], seed: int
) -> dict[str, np.ndarray]:
    """The values of a layer's weights after all its changes, one after the other."""
    grown = dict(values)
    for step in steps:
        for change in step.variables:
            grown[_name(change)] = change.apply(grown[_name(change)], seed)
    return grown


def _ahead(function: Callable[..., T], work: Iterable[tuple], depth: int = 4) -> Iterator[T]:
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
    call: Call,
    steps: list[LayerChange],
    values: Mapping[str, np.ndarray],
    transaction: Transaction,
) -> None:
    """Gives a layer its new sizes and weights; the object and its variables stay.

    Args:
        call: A call of the layer, with the planned shapes of its inputs.
        steps: The changes of the layer, in their order.
        values: The new values of its weights, by name.
        transaction: Remembers the layer.
    """
    layer = call.operation
    transaction.remember(layer)
    for step in steps:
        for key, _, value in step.config:
            setattr(layer, key, value)
    if not isinstance(layer, keras.Layer):
        return
    variables = {variable.name: variable for variable in privates.own_variables(layer)}
    for name, value in values.items():
        transaction.remember(variables[name])
        privates.set_variable(variables[name], value)
    shapes = new_build_shapes(call)
    if shapes is not None:
        privates.rebuild(layer, shapes, lambda *_, name, **__: variables[name])


def new_build_shapes(call: Call) -> dict[str, Any] | None:
    """The shapes to build a layer with, for its inputs' planned shapes.

    Returns:
        The arguments of `build`, or `None` for a layer that wasn't built by shapes.
    """
    built_with = privates.build_shapes(call.operation)
    if not built_with:
        return None
    if len(built_with) == 1:
        (key,) = built_with
        given = call.args[0] if call.args else next(iter(call.kwargs.values()))
        return {key: keras.tree.map_structure(_shape_of, given)}
    named = dict(zip(call.operation.call_signature_parameters, call.args, strict=False))
    named.update(call.kwargs)
    return {
        key: keras.tree.map_structure(_shape_of, named.get(key.removesuffix("_shape")))
        if named.get(key.removesuffix("_shape")) is not None
        else old
        for key, old in built_with.items()
    }


def _shape_of(x: Any) -> Shape | None:
    return x.shape if isinstance(x, Tensor) else None


def relabel(graph: Graph, calls: Iterable[Call], transaction: Transaction) -> None:
    """Gives the symbolic tensors of a graph, and what records shapes, their new sizes."""
    moved = False
    for inner in graph.subgraphs():
        tensors = [*inner.flat_inputs, *(t for call in inner.calls for t in call.outputs)]
        for tensor in tensors:
            symbolic = tensor.keras_tensor
            if symbolic is None or tuple(symbolic.shape) == tensor.shape:
                continue
            moved = True
            transaction.remember(symbolic)
            privates.set_shape(symbolic, tensor.shape)
        for tensor in inner.flat_inputs:
            layer = privates.input_layer(tensor.keras_tensor)
            if layer is not None and tuple(layer.batch_shape) != tensor.shape:
                transaction.remember(layer)
                privates.set_input_shape(layer, tensor.shape)
    if not moved:
        return
    for call in calls:
        layer = call.operation
        if call.node is None or not isinstance(layer, keras.Layer):
            continue
        shapes = new_build_shapes(call) if privates.build_shapes(layer) else None
        if shapes is not None and _differ(shapes, privates.build_shapes(layer)):
            transaction.remember(layer)
            privates.set_build_shapes(layer, shapes)


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
    function: Any = privates.function_of(graph.model)
    known = {id(tensor): tensor.keras_tensor for tensor in graph.flat_inputs}
    likes = {id(t): t.keras_tensor for call in graph.calls for t in call.outputs}
    transaction.remember(function)
    transaction.remember(graph.model)
    for tensor in known.values():
        layer = privates.input_layer(tensor)
        if layer is not None:
            transaction.remember(layer)
    for call in graph.calls:
        if call.node is not None:
            transaction.remember(call.operation)
    new_layers = []
    for call in graph.calls:
        args, kwargs = keras.tree.map_structure(
            lambda x: known[id(x)] if isinstance(x, Tensor) else x, (call.args, call.kwargs)
        )
        operation = inserted.get(id(call.operation), call.operation)
        outputs = []
        for tensor in call.outputs:
            like = likes[id(tensor)]
            if like is None:
                like = known[id(call.inputs[0])]
            outputs.append(privates.new_tensor(like, tensor.shape, call.node is not None))
        for tensor, symbolic in zip(call.outputs, outputs, strict=True):
            known[id(tensor)] = symbolic
        privates.record_call(operation, args, kwargs, outputs, call.node)
        if operation is not call.operation and operation not in new_layers:
            new_layers.append(operation)
    outputs = keras.tree.map_structure(lambda t: known[id(t)], graph.outputs)
    privates.set_graph(function, outputs)
    privates.track_layers(
        function, [op for op in function.operations if isinstance(op, keras.Layer)]
    )
    if function is not graph.model:
        privates.insert_into_sequential(graph.model, function)
