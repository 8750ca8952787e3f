"""All that a failed growth must leave as it was, as plain values that can be compared."""

from __future__ import annotations

import collections
import gc
import json
from collections.abc import Iterator
from typing import Any

import keras

from tests.support.helpers import array


def bits(variable: Any) -> tuple[str, tuple[int, ...], bytes]:
    """The value of a variable, bit for bit, with its dtype and shape."""
    value = array(variable)
    return str(value.dtype), value.shape, value.tobytes()


def variables(owner: Any) -> list[tuple[int, str, Any]]:
    """The variables of a model or optimizer: identity, path and value."""
    return [(id(variable), variable.path, bits(variable)) for variable in owner.variables]


def operations(model: Any) -> Iterator[Any]:
    """The model, and every layer and operation in it, nested models opened."""
    seen: set[int] = set()
    stack = [model]
    while stack:
        operation = stack.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        yield operation
        function = getattr(operation, "_functional", operation)
        stack += getattr(function, "_operations", [])
        stack += getattr(operation, "_layers", [])


def state(model: Any) -> dict[str, Any]:
    """What a model is: weights, layers, symbolic graph, compile state, optimizer."""
    found: dict[str, Any] = {
        "weights": variables(model),
        "layers": [id(layer) for layer in model.layers],
        "config": _config(model),
        "inputs": [(id(tensor), tuple(tensor.shape)) for tensor in model.inputs],
        "outputs": [(id(tensor), tuple(tensor.shape)) for tensor in model.outputs],
        "operations": {id(operation): _operation(operation) for operation in operations(model)},
        "functions": {
            name: id(getattr(model, name, None))
            for name in ("train_function", "test_function", "predict_function")
        },
    }
    if hasattr(model, "named_parameters"):  # on PyTorch
        found["parameters"] = sorted((name, id(p)) for name, p in model.named_parameters())
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        found["optimizer"] = (id(optimizer), variables(optimizer), _config(optimizer))
        found["slots"] = {
            name: [id(slot) for slot in value] if isinstance(value, list) else id(value)
            for name, value in vars(optimizer).items()
        }
        found["compiled"] = _config_of_compile(model)
    return found


def _operation(operation: Any) -> tuple[Any, ...]:
    nodes = [
        (
            id(node),
            [(id(x), tuple(x.shape), id(x._keras_history.operation)) for x in node.outputs],
            [(id(x), tuple(x.shape)) for x in node.input_tensors],
        )
        for node in operation._inbound_nodes
    ]
    readers = [id(node) for node in operation._outbound_nodes]
    if not isinstance(operation, keras.Layer):
        return operation.name, nodes, readers
    spec = [repr(spec) for spec in keras.tree.flatten(operation.input_spec)]
    attributes = {name: _plain(value) for name, value in vars(operation).items()}
    attributes.pop("_called", None)  # the probe of a growth calls the model
    return operation.name, nodes, readers, spec, _config(operation), attributes


def _plain(value: Any) -> Any:
    """The identity of an attribute, and the contents of a container."""
    if isinstance(value, (int, float, str, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return id(value)


def _config(thing: Any) -> str:
    return json.dumps(thing.get_config(), sort_keys=True, default=repr)


def _config_of_compile(model: Any) -> tuple[Any, ...]:
    return (
        model.jit_compile,
        model.run_eagerly,
        model.steps_per_execution,
        model.loss,
        [id(metric) for metric in model.metrics],
        json.dumps(model.get_compile_config(), sort_keys=True, default=repr),
    )


def differences(first: Any, second: Any, path: str = "state") -> list[str]:
    """Where two states differ, for the message of a failed test."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        pairs = [(f"{path}[{key}]", first[key], second[key]) for key in first]
    elif (
        isinstance(first, (list, tuple))
        and isinstance(second, (list, tuple))
        and len(first) == len(second)
    ):
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(first, second, strict=True))]
    else:
        return [] if first == second else [f"{path}: {first!r:.200} -> {second!r:.200}"]
    return [line for name, a, b in pairs for line in differences(a, b, name)]


def assert_state(model: Any, before: dict[str, Any]) -> None:
    """The model is what it was, bit for bit and object for object."""
    found = differences(before, state(model))
    assert not found, "\n".join(found[:10])


def alive(*kinds: type) -> list[int]:
    """How many objects of each class are alive."""
    gc.collect()
    # Not `isinstance`: some objects of the backends answer to it with a warning.
    types = collections.Counter(map(type, gc.get_objects()))
    return [sum(types[t] for t in types if issubclass(t, kind)) for kind in kinds]
