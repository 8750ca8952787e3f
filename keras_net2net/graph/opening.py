"""Opening layers: the graph inside a composite layer or a subclassed model.

`layer.call(...)`, not `layer(...)`, on symbolic tensors lets each sublayer and
each operation inside record itself. So a layer that is written with Keras's
layers and operations needs no rule of its own: what it does with units follows
from what is inside. What a `call` does beside that (loops over lists, attributes,
helper methods) doesn't matter; what it does with another library can't be seen,
and then the layer stays closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_net2net import internals

# What stands for unknown sizes: code inside may do arithmetic on them. The first
# that the layer accepts is taken; primes are rarely taken for something else.
UNKNOWN = (13, 7, 32, 8)


@dataclasses.dataclass
class Opened:
    """The inside of a layer, as recorded.

    Args:
        inputs: The symbolic tensors in the place of those that were given, by `id`.
        outputs: The symbolic outputs, nested as the layer returns them.
        nodes: The nodes in the order in which they run.
        variables: The variables that symbolic tensors stand for, by `id` of tensor:
            the layer that owns it, its path below the opened layer, the variable.
        adds_loss: Whether its code adds to the loss.
    """

    inputs: dict[int, Any]
    outputs: Any
    nodes: list[Any]
    variables: dict[int, tuple[Any, str, Any]]
    adds_loss: bool = False


def open_layer(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Opened]:
    """Records what is inside a layer, at inference and in training mode.

    Args:
        layer: A built layer, or a subclassed model.
        args: Its arguments, with symbolic tensors.
        kwargs: Its keyword arguments, likewise.

    Returns:
        One record where both modes do the same, else two.

    Raises:
        Exception: Whatever the layer's `call` raises on symbolic tensors.
    """
    modes: list[dict[str, Any]] = [{}]
    if internals.takes_training(layer):
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        args = args[: internals.position_of_training(layer)]
        modes = [{"training": False}, {"training": True}]
    records: list[Opened] = []
    for mode in modes:
        record = _open(layer, args, {**kwargs, **mode})
        if not records or _steps(record) != _steps(records[0]):
            records.append(record)
    return records


def _steps(record: Opened) -> list[Any]:
    """What a record does, to compare it with another one."""
    names = {key: id(variable) for key, (_, _, variable) in record.variables.items()}
    for tensor in (*record.inputs.values(), *(t for node in record.nodes for t in node.outputs)):
        names.setdefault(id(tensor), len(names))

    def name(x: Any) -> Any:
        return names.get(id(x), -1) if isinstance(x, keras.KerasTensor) else None

    steps: list[Any] = []
    for node in record.nodes:
        if node.is_input:
            continue
        operation = node.operation
        layer = isinstance(operation, keras.Layer)
        who = id(operation) if layer else (type(operation), settings_text(operation))
        numbers = [x for x in keras.tree.flatten(_arguments(node)) if not _is_symbolic(x)]
        steps.append((who, [name(x) for x in node.input_tensors], repr(numbers)))
    return [*steps, [name(x) for x in keras.tree.flatten(record.outputs)]]


def _arguments(node: Any) -> Any:
    """What an operation is called with; of a layer, only tensors count."""
    if isinstance(node.operation, keras.Layer):
        return []
    return node.arguments.args, node.arguments.kwargs


def settings_text(operation: Any) -> str:
    """What an operation was made with, to compare it with others of its kind."""
    return repr({k: v for k, v in vars(operation).items() if not k.startswith("_") and k != "name"})


def _open(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Opened:
    problem: Exception | None = None
    tensors = [x for x in keras.tree.flatten((list(args), dict(kwargs))) if _is_symbolic(x)]
    sizes = UNKNOWN if any(None in x.shape for x in tensors) else UNKNOWN[:1]
    for owned in (_all_variables(layer), _own_variables(layer), []):
        for size in sizes:
            try:
                return _record(layer, args, kwargs, size, owned)
            except Exception as error:
                # Which symbolic stand-ins the code accepts can only be tried.
                problem = error
    raise problem or ValueError("nothing to open")


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, keras.KerasTensor)


def _record(
    layer: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    unknown: int,
    owned: list[tuple[Any, str, Any]],
) -> Opened:
    inputs: dict[int, Any] = {}

    def stand_in(x: Any) -> Any:
        if not _is_symbolic(x):
            return x
        if id(x) not in inputs:
            shape = tuple(unknown if size is None else size for size in x.shape)
            inputs[id(x)] = keras.Input(batch_shape=shape, dtype=x.dtype)
        return inputs[id(x)]

    variables = {}
    symbols = {}
    for owner, path, variable in owned:
        tensor = keras.Input(batch_shape=tuple(variable.shape), dtype=variable.dtype)
        variables[id(tensor)] = (owner, path, variable)
        symbols[id(variable)] = tensor
    # What the code assigns while it is looked at must not stay.
    with (
        keras.StatelessScope(),
        internals.unrecorded(layer),
        internals.specs_by_call(layer),
        internals.losses_counted(layer) as losses,
        _symbolic_variables(owned, symbols),
    ):
        inside = keras.tree.map_structure(stand_in, (list(args), dict(kwargs)))
        outputs = layer.call(*inside[0], **inside[1])
        flat = keras.tree.flatten(outputs)
        if not flat or not all(map(_is_symbolic, flat)):
            raise TypeError(f"`call` of {type(layer).__name__} returns something else than tensors")
        nodes = internals.nodes_between([*inputs.values(), *symbols.values()], flat)
    return Opened(inputs, outputs, nodes, variables, bool(losses))


def fails_at_other_sizes(
    function: Any, shape: Sequence[int | None], sizes: Sequence[int | None], dtype: str
) -> str | None:
    """Whether a function of one tensor takes it as it is, but not with larger axes.

    Args:
        function: The function.
        shape: The shape of the tensor.
        sizes: The sizes of the axes that become larger; `None` for the others.
        dtype: Its dtype.

    Returns:
        What it says of a larger tensor; `None` if it takes it, or neither of the two.
    """
    now = [1 if size is None else size for size in shape]
    more = [size if old is None else size + 2 for size, old in zip(now, sizes, strict=True)]
    for given in (now, more):
        try:
            with keras.StatelessScope():
                function(keras.ops.zeros(given, dtype))
        except Exception as error:  # whatever it needs
            return None if given is now else " ".join(str(error).split())[:100]
    return None


def open_function(function: Any, sizes: Sequence[int | None], dtype: str) -> Opened | None:
    """Records what a function of one tensor does.

    Args:
        function: The function.
        sizes: The shape of its argument.
        dtype: Its dtype.

    Returns:
        The record; `None` if it can't be seen, doesn't keep the shape, or computes
        with numbers that depend on it.
    """
    records = []
    for more in (0, 2):
        shape = tuple((UNKNOWN[0] if size is None else size) + more for size in sizes)
        given = keras.Input(batch_shape=shape, dtype=dtype)
        try:
            with keras.StatelessScope():
                made = function(given)
            nodes = internals.nodes_between([given], [made])
        except Exception:
            return None  # whatever it needs, it isn't a symbolic tensor
        if tuple(made.shape) != shape:
            return None
        records.append(Opened({0: given}, made, nodes, {}))
    return records[0] if _steps(records[0]) == _steps(records[1]) else None


def _own_variables(layer: Any) -> list[tuple[Any, str, Any]]:
    return [(layer, "", variable) for variable in internals.own_variables(layer)]


def _all_variables(layer: Any) -> list[tuple[Any, str, Any]]:
    """The variables of a layer and of the layers in it: a table may be used from outside."""
    found = _own_variables(layer)
    seen = {id(layer)}
    stack = [(layer, "")]
    while stack:
        outer, path = stack.pop()
        for inner in internals.sublayers(outer):
            if id(inner) in seen:
                continue
            seen.add(id(inner))
            below = f"{path}/{inner.name}"
            found += [(inner, below, variable) for variable in internals.own_variables(inner)]
            stack.append((inner, below))
    return found


@contextlib.contextmanager
def _symbolic_variables(
    owned: list[tuple[Any, str, Any]], symbols: Mapping[int, Any]
) -> Iterator[None]:
    """Lets attributes that hold variables hold symbolic tensors for a while.

    Otherwise an operation on a variable alone, such as its transpose, would be
    computed at once, and nothing would tell whose numbers these are.
    """
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    for owner in {id(owner): owner for owner, _, _ in owned}.values():
        attributes = vars(owner)
        for key, value in list(attributes.items()):
            if isinstance(value, keras.Variable) and id(value) in symbols:
                swapped.append((attributes, key, value))
    try:
        for attributes, key, value in swapped:
            attributes[key] = symbols[id(value)]
        yield
    finally:
        for attributes, key, value in swapped:
            attributes[key] = value
