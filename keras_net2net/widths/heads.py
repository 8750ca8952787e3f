"""The units of a head: outputs of the model that new classes may join.

The outputs of a model are fixed, and so are the units that a softmax runs over. For the
classes of a head just these two are lifted, where nothing but the model's outputs sees
the probabilities. What else fixes the units still does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.internals.activations import activation_name
from keras_net2net.widths.expressions import Expression, Obstacle, Width, fix, widths_of
from keras_net2net.widths.facts import READS, HeadOutput, Shown
from keras_net2net.widths.inferred import Inferred

# Layers that leave the values of logits as they are at inference, or move them.
_MOVES = (
    layers.Reshape,
    layers.Flatten,
    layers.Permute,
    layers.Concatenate,
    layers.Identity,
    layers.RepeatVector,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.UpSampling1D,
    layers.UpSampling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)
_AVERAGES = tuple(_MOVES[-3:])  # fine for logits, but not for parts of a whole
_MOVING_OPERATIONS = frozenset(
    [
        "cast",
        "concatenate",
        "copy",
        "expanddims",
        "moveaxis",
        "reshape",
        "squeeze",
        "stopgradient",
        "swapaxes",
        "transpose",
    ]
)


def release_heads(state: Inferred) -> set[Width]:
    """Finds the units of the heads that may grow although they are outputs.

    Args:
        state: What was inferred, all but for its outputs; widths become fixed.

    Returns:
        The widths that being an output doesn't fix.
    """
    wanted = {
        width
        for facts in state.facts.values()
        if id(facts.operation) in state.heads
        for units in facts.units.values()
        for width in widths_of(units)
    }

    def has(expression: Expression) -> bool:
        return any(width in wanted for width in widths_of(expression))

    for competitions in state.competitions.values():
        for one in competitions:
            if len(competitions) > 1 or not has(one.expression):
                fix(one.expression, one.obstacle)
    for norm in state.normalized:
        if has(norm.expression):
            fix(norm.expression, norm.obstacle)
    for call, _, expression, _ in state.demands:
        if has(expression):
            fix(expression, Obstacle(call.path, "sums over these units"))
    walk = _Walk(state, wanted)
    walk.graph(state.graph)
    outputs = state.graph.flat_outputs
    state.head_outputs = [
        HeadOutput(position, at, walk.shown.get(id(tensor), Shown("mixed")))
        for position, tensor in enumerate(outputs)
        for at, axis in enumerate(state.of(tensor))
        if has(axis)
    ]
    return wanted


class _Walk:
    """A pass through the graph, in the order in which it runs."""

    def __init__(self, state: Inferred, wanted: set[Width]) -> None:
        self._state = state
        self._wanted = wanted
        self.shown: dict[int, Shown] = {}

    def graph(self, graph: Graph) -> None:
        for call in graph.calls:
            if call.inner is not None:
                self._nested(call, call.inner)
            else:
                self._call(call)

    def _nested(self, call: Call, inner: Graph) -> None:
        for inside, outside in call.entries(inner):
            if id(outside) in self.shown:
                known, new = self.shown.get(id(inside)), self.shown[id(outside)]
                self.shown[id(inside)] = new if known in (None, new) else Shown("mixed")
        self.graph(inner)
        for outside, inside in zip(call.outputs, inner.flat_outputs, strict=True):
            if id(inside) in self.shown:
                self.shown[id(outside)] = self.shown[id(inside)]

    def _holds(self, tensor: Tensor) -> bool:
        return any(
            width in self._wanted for axis in self._state.of(tensor) for width in widths_of(axis)
        )

    def _call(self, call: Call) -> None:
        given = [self.shown.get(id(x), Shown()) for x in call.inputs if self._holds(x)]
        self._check_readers(call, given)
        made = [tensor for tensor in call.outputs if self._holds(tensor)]
        if not made:
            return
        shown = self._after(call, given)
        for tensor in made:
            self.shown[id(tensor)] = shown

    def _check_readers(self, call: Call, given: list[Shown]) -> None:
        """Fixes units that a weight reads where they are parts of a whole."""
        if all(one.kind == "values" for one in given):
            return
        facts = self._state.facts[id(call.operation)]
        for axes in facts.weights.values():
            for axis in axes:
                if axis.role == READS:
                    why = "reads probabilities, of which new classes take a part"
                    for width in widths_of(axis.expression):
                        if width in self._wanted:
                            fix(width, Obstacle(call.path, why))

    def _after(self, call: Call, given: list[Shown]) -> Shown:
        """How a call shows units, given how its inputs do."""
        shown = _joined(call, given) if given else Shown()
        if given:
            factor = _factor(call)
            averaged = isinstance(call.operation, _AVERAGES)
            if (factor is None or averaged) and shown.kind != "values":
                return Shown("mixed")
            if not shown.squashed:
                scale = shown.scale
                known = scale is not None and factor is not None
                product = scale * factor if known else None  # type: ignore[operator]
                shown = dataclasses.replace(shown, scale=product)
        name = _own_activation(call.operation)
        competitions = self._state.competitions.get(id(call), [])
        for one in competitions:
            if any(width in self._wanted for width in widths_of(one.expression)):
                if shown.kind != "values" or shown.squashed:
                    return Shown("mixed")
                return dataclasses.replace(shown, kind=one.kind, over=(one.expression,))
        if name == "linear" or competitions:
            return shown
        if name == "sigmoid" and not shown.squashed:
            return dataclasses.replace(shown, squashed=True)
        return dataclasses.replace(shown, scale=None, squashed=False)


def _joined(call: Call, given: list[Shown]) -> Shown:
    """How units stand in several tensors that are put together."""
    first = given[0]
    if len(given) == 1:
        return first
    name = type(call.operation).__name__.lower()
    if any(one.kind != first.kind or one.squashed != first.squashed for one in given):
        return Shown("mixed")
    scale = first.scale if all(one.scale == first.scale for one in given) else None
    if name == "concatenate":
        over = tuple(dict.fromkeys(e for one in given for e in one.over))
        return dataclasses.replace(first, over=over, scale=scale)
    if first.kind != "values":
        return Shown("mixed")
    return dataclasses.replace(first, scale=scale if name == "add" else None)


def _own_activation(operation: Any) -> str | None:
    """The name of the activation that an operation is, or has inside."""
    function = getattr(operation, "activation", None)
    if type(operation).__name__ == "Sigmoid":
        return "sigmoid"
    if isinstance(function, layers.Layer):
        return None
    return activation_name(function)


def _factor(call: Call) -> float | None:
    """What a call multiplies differences between logits by, before its own activation."""
    operation = call.operation
    if isinstance(operation, layers.Rescaling):
        plain = np.ndim(operation.scale) == 0 and np.ndim(operation.offset) == 0
        return float(operation.scale) if plain and not float(operation.offset) else None
    if isinstance(operation, (layers.Activation, layers.Softmax)):
        return 1.0
    if isinstance(operation, layers.Add):
        return 1.0
    if isinstance(operation, _MOVES):
        return 1.0
    if not internals.is_keras_operation(operation):
        return None
    name = type(operation).__name__.lower()
    if name in ("softmax", "logsoftmax", "sigmoid", "add") or name in _MOVING_OPERATIONS:
        return 1.0 if name != "add" or len(call.inputs) == len(call.args) else None
    others = [x for x in call.args if not isinstance(x, Tensor)]
    if name in ("multiply", "divide", "truedivide") and len(call.inputs) == len(others) == 1:
        try:
            number = float(np.asarray(others[0]))
        except (TypeError, ValueError):
            return None
        if name == "multiply":
            return number
        return 1.0 / number if number and isinstance(call.args[0], Tensor) else None
    return None
