"""Opened layers after a growth: their attributes, and a second look inside.

Nobody wrote down which attributes of a composite layer hold which sizes. So a twin
is built from the layer's own configuration, with those entries changed that may
mean a size that grew: the change is certain if the twin's weights have just the
shapes of the grown ones, and if nothing less gives them. What its constructor
derives from them is taken from the twin. Then the layer is opened again: what its
code does now must be what was planned.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import CodeError
from keras_net2net.graph.reading import symbolic_arguments, symbolic_inputs
from keras_net2net.graph.structure import Call, Graph
from keras_net2net.growth.history import Growth
from keras_net2net.growth.transaction import Transaction
from keras_net2net.planning.plan import LayerChange, Step
from keras_net2net.widths.reading import read, read_layer

Sizes = set[tuple[int, int]]

_MOST_TRIALS = 64
_PLAIN = (bool, int, float, str)


class OpenedLayers:
    """The layers and models that were opened: their attributes follow each stage.

    Args:
        transaction: Remembers what is changed.
    """

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def follow(self, growth: Growth) -> tuple[str, ...]:
        """Brings the attributes of opened layers up to date, and looks inside again.

        The next stage is planned on what their code does, so that they follow each stage.

        Args:
            growth: The growth so far.

        Returns:
            Notes on layers whose configuration can't say what they are now.

        Raises:
            CodeError: If the code of a layer does something else at its new sizes.
        """
        blueprint, _ = growth.stages[-1]
        graph, steps = blueprint.graph, blueprint.plan.steps
        calls = {id(call.inner): call for _, call in graph.all_calls() if call.inner is not None}
        opened: dict[int, Graph] = {}
        for one in reversed(list(graph.subgraphs())):  # the inner ones first, each layer once
            if one.opened and (id(one) in calls or one is graph):
                opened.setdefault(id(one.model), one)
        if not opened or not any(step.layers for step in steps):
            return ()  # nothing has other sizes
        ruled = {id(f.operation) for f in blueprint.facts if f.has_rule and not f.opened}
        notes = []
        for one in opened.values():
            below = [_changes_below(one, step.layers) for step in steps]
            sizes = [_sizes(*pair) for pair in zip(below, steps, strict=True)]
            grown = any(change.variables for layers in below for change in layers)
            call = calls.get(id(one))
            if grown and not _update(one, call, sizes, ruled, self._transaction):
                notes.append(
                    f"{one.model.name!r} ({type(one.model).__name__}) can't be rebuilt from its "
                    "configuration: to load it elsewhere, build the model as it was at first, grow "
                    "it by `report.operations` with the seed `report.plan.seed`, and load its "
                    "weights (`save_weights`)"
                )
        _compare(graph, read(graph.model))
        return tuple(notes)


def _changes_below(graph: Graph, layers: Iterable[LayerChange]) -> list[LayerChange]:
    """The changes of a layer and of all in it."""
    below = f"{graph.path}/" if graph.path else ""
    return [one for one in layers if one.path == graph.path or one.path.startswith(below)]


def _sizes(layers: list[LayerChange], step: Step) -> Sizes:
    """The sizes that grow in a step, with what they become."""
    sizes = {(width.old, width.new) for width in step.widths}
    for layer in layers:
        for change in layer.variables:
            for axis in change.axes:
                if axis is not None:
                    sizes.add((axis.remap.old_size, axis.remap.size))
        for _, old, new in layer.config:
            if type(old) is int and type(new) is int:
                sizes.add((old, new))
    return sizes


def _update(
    graph: Graph,
    call: Call | None,
    steps: list[Sizes],
    ruled: set[int],
    transaction: Transaction,
) -> bool:
    """Updates one layer's attributes; whether its configuration says what it is now."""
    layer = graph.model
    try:
        config = layer.get_config()
        twin_inputs = symbolic_inputs(layer) if call is None else symbolic_arguments(call)
    except Exception:
        return False
    shapes = [tuple(variable.shape) for variable in layer.weights]
    sizes = {key: _reachable(value, steps) for key, value in config.items()}
    choices = {key: values for key, values in sizes.items() if values}
    trials = sorted(
        itertools.islice(_assignments(config, choices), _MOST_TRIALS), key=lambda trial: len(trial)
    )
    for one in (*internals.all_layers(layer), internals.recorded_arguments(layer)):
        if one is not None:
            transaction.remember(one)
    for trial in trials:
        twin = _twin(layer, {**config, **trial}, twin_inputs)
        if twin is None or [tuple(v.shape) for v in twin.weights] != shapes:
            continue
        attempt = Transaction()
        same = _take_over(layer, twin, trial, ruled, attempt)
        try:
            _compare(graph, read_layer(layer, graph.path, *twin_inputs))
            return same and all(layer.get_config()[key] == value for key, value in trial.items())
        except Exception:
            attempt.roll_back()
    return False


def _take_over(
    layer: Any,
    twin: Any,
    trial: dict[str, Any],
    ruled: set[int],
    attempt: Transaction,
) -> bool:
    """Gives a layer what its twin's constructor derived from the sizes.

    A layer inside that has a rule has all from the plans, of this growth and of earlier
    ones: the epsilon of a normalization, say, which the code of the layer around it may
    leave at its default.

    Returns:
        Whether the twin's layers with a rule are configured like these.
    """
    same = True
    for mine, other in zip(internals.all_layers(layer), internals.all_layers(twin), strict=False):
        if type(mine) is not type(other):
            break
        attempt.remember(mine)
        if id(mine) in ruled:
            same &= _plain_config(mine) == _plain_config(other)
        else:
            _take_attributes(mine, other)
    recorded = internals.recorded_arguments(layer)
    if recorded is not None:
        attempt.remember(recorded)
        known = {key: value for key, value in trial.items() if key in recorded.config}
        recorded.config = {**recorded.config, **known}
    return same


def _take_attributes(layer: Any, twin: Any) -> None:
    for key, value in vars(twin).items():
        if key in _base() or not _is_plain(value):
            continue
        old = vars(layer).get(key)
        if type(old) is type(value) and old != value:
            setattr(layer, key, value)


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or a list or dict of these."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


@functools.cache
def _base() -> frozenset[str]:
    """What every layer or model holds, whatever its sizes: whether it is compiled, say."""
    # Without names of their own, these would move on the numbers in the user's names.
    layer, model = keras.Layer(name="base"), keras.Model(name="base")
    return frozenset([*vars(layer), *vars(model), "built", "_path", "name", "_parent_path"])


def _plain_config(layer: Any) -> dict[str, Any]:
    """What a layer's configuration says, but for its name and for objects."""
    config = layer.get_config()
    return {k: v for k, v in config.items() if isinstance(v, _PLAIN) and k != "name"}


def _assignments(
    config: Mapping[str, Any], choices: Mapping[str, list[Any]]
) -> Iterable[dict[str, Any]]:
    keys = list(choices)
    for values in itertools.product(*([config[key], *choices[key]] for key in keys)):
        yield {key: value for key, value in zip(keys, values, strict=True) if value != config[key]}


def _reachable(value: Any, steps: list[Sizes]) -> list[Any]:
    """The sizes that a configured number, or list of numbers, may have become."""
    if isinstance(value, (list, tuple)) and value and all(type(x) is int for x in value):
        options = [[x, *_reachable(x, steps)] for x in value]
        found = itertools.islice(itertools.product(*options), _MOST_TRIALS)
        return [type(value)(one) for one in found if list(one) != list(value)]
    if type(value) is not int:
        return []
    sizes = {value}
    for grown in steps:
        sizes |= {new for old, new in grown if old in sizes}
    return sorted(sizes - {value})


def _twin(layer: Any, config: dict[str, Any], inputs: tuple[list[Any], dict[str, Any]]) -> Any:
    """A layer of the same class from another configuration, built; `None` if there is none."""
    try:
        twin = type(layer).from_config(config)
        if not (isinstance(layer, keras.Model) and internals.has_no_call(layer)):
            twin(*inputs[0], **inputs[1])
        return twin
    except Exception:
        shapes = internals.build_shapes(layer) or {}
    try:  # its own shapes were brought up to date
        twin = type(layer).from_config(config)
        twin.build(**shapes)
    except Exception:
        return None
    return twin


def _compare(planned: Graph, found: Graph) -> None:
    """Compares the planned graph of each opened layer with what its code does now."""
    before = {call.path: call.inner for _, call in planned.all_calls()}
    for _, call in found.all_calls():
        inner = before.get(call.path)
        if call.closed and inner is not None:
            raise _differs(inner, f"its code fails at these sizes: {call.closed}")
    pairs = itertools.zip_longest(planned.subgraphs(), found.subgraphs())
    for one, other in pairs:
        if one is None or other is None or one.model is not other.model:
            raise _differs(planned, "other layers than before are called")
        if not one.opened:
            continue
        if len(one.calls) != len(other.calls):
            raise _differs(one, "its code takes other steps than before")
        for call, again in zip(one.calls, other.calls, strict=True):
            if type(call.operation) is not type(again.operation):
                raise _differs(one, f"its code does {again.path} instead of {call.path}")
            shapes = [[t.shape for t in c.outputs] for c in (call, again)]
            if shapes[0] != shapes[1]:
                raise _differs(
                    one,
                    f"{call.path} ({type(call.operation).__name__}) makes the shape {shapes[1]}, "
                    f"and {shapes[0]} is what the growth needs",
                )
            if _numbers(call) != _numbers(again):
                raise _differs(
                    one,
                    f"{call.path} ({type(call.operation).__name__}) uses a number that depends on "
                    f"the sizes: {_shown(call)} before, {_shown(again)} now",
                )


def _numbers(call: Call) -> list[Any]:
    """The numbers that an operation computes with; sizes and axes show in the shapes."""
    if isinstance(call.operation, keras.Layer):
        return []
    kind = type(call.operation).__module__
    settings = [v for k, v in vars(call.operation).items() if not k.startswith("_")]
    values = keras.tree.flatten((call.args, call.kwargs, settings))
    numbers = [float(x) for x in values if isinstance(x, float)]
    if type(call.operation).__name__ in _ARITHMETIC and kind.startswith("keras."):
        numbers += [float(x) for x in values if type(x) is int]
    for x in values:
        if isinstance(x, np.ndarray) or keras.ops.is_tensor(x):
            numbers += np.ravel(keras.ops.convert_to_numpy(x)).tolist()
    return numbers


def _shown(call: Call) -> str:
    numbers = _numbers(call)
    return f"{numbers[:4]}"[:-1] + (", ...]" if len(numbers) > 4 else "]")


_ARITHMETIC = frozenset(
    ["Add", "Subtract", "Multiply", "Divide", "TrueDivide", "FloorDivide", "Mod", "Power"]
)


def _differs(graph: Graph, why: str) -> CodeError:
    kind = type(graph.model).__name__
    return CodeError(
        f"The layer {graph.path or graph.model.name!r} ({kind}) can't have the new sizes",
        why,
        f"Take sizes from tensors or from sublayers in {kind}.call, or register a rule for it "
        "with `keras_net2net.rules.register_rule`",
        received=f"a {'model' if isinstance(graph.model, keras.Model) else 'layer'} whose own code "
        "was looked into",
        path=graph.path,
        reason=why,
    )
