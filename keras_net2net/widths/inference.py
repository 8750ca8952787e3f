"""Width inference: which axes of which tensors and weights must change together.

A forward pass through the graph asks the rule of each operation how its inputs'
width expressions relate to its outputs' and to its weights' axes. Widths that
must agree are unified on the way. What has no rule fixes the widths that reach
it, which is harmless until someone asks to change one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.graph.opening import fails_at_other_sizes
from keras_net2net.graph.reading import read_function
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.widths.expressions import (
    Axes,
    Expression,
    Fixed,
    Obstacle,
    Width,
    fix,
    is_axes,
    widths_of,
)
from keras_net2net.widths.facts import Facts
from keras_net2net.widths.heads import release_heads
from keras_net2net.widths.inferred import Inferred, fixed_axes
from keras_net2net.widths.registry import needs_opening, rule_for, settings_of
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.sharing import check_variables, share_demands, share_parts
from keras_net2net.widths.treatments import ANYTHING, Content
from keras_net2net.widths.unification import unify


def infer(
    graph: Graph,
    settings: Mapping[int, Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    stuck: Mapping[str, tuple[str, int]] | None = None,
    heads: Collection[int] = (),
) -> Inferred:
    """Infers the width expressions of a graph.

    Args:
        graph: The graph.
        settings: Attributes that a plan has changed so far, by `id` of layer.
        shapes: Shapes of weights that a plan has changed so far, by path.
        stuck: Opened layers whose code can't have other sizes, as in `Draft`.
        heads: The layers, by `id`, whose units may grow although they are outputs.

    Returns:
        What was found out.
    """
    state = Inferred(graph, settings, shapes, stuck or {}, heads)
    _Pass(state).whole()
    released = release_heads(state) if heads else set()
    _fix_outputs(state, released)
    # Who holds the shares can only be told once all widths are known, and which are fixed.
    share_parts(state)
    if state.variables:  # most models have neither, and both look at every call
        check_variables(state)
    if state.demands:
        share_demands(state)
    return state


def _fix_outputs(state: Inferred, released: set[Width]) -> None:
    """Fixes the widths of the outputs, but for the heads that may grow."""
    makers = {id(t): call.path for call in state.graph.calls for t in call.outputs}
    for tensor in state.graph.flat_outputs:
        where = makers.get(id(tensor), "the output")
        for width in (w for axis in state.of(tensor) for w in widths_of(axis)):
            if width not in released:
                fix(width, Obstacle(where, "is an output of the model"))


class _Pass:
    """The pass through a graph, in the order in which it runs.

    Args:
        state: What it finds out.
    """

    def __init__(self, state: Inferred) -> None:
        self.state = state
        self._done: set[int] = set()
        self._followed: list[Graph] = []

    def whole(self) -> None:
        """Goes through the graph of a model."""
        graph = self.state.graph
        for tensor in graph.flat_inputs:
            name = getattr(tensor.keras_tensor, "name", "the input")
            self.state.axes[id(tensor)] = fixed_axes(
                tensor.shape, Obstacle(str(name), "is an input of the model")
            )
        self._infer(graph)
        if graph.training is not None:
            self._infer_training(
                graph, graph.training, Obstacle("the model", "differs in training")
            )

    def follow(self, function: Any, axes: Axes, dtype: str, path: str) -> Axes | None:
        """See `RuleCall.follow`."""
        sizes = [axis.size for axis in axes]
        graph = read_function(function, sizes, dtype, path, needs_opening)
        if graph is None:
            return None
        (tensor,) = graph.flat_inputs
        self.state.axes[id(tensor)] = _inside(axes, tensor.shape, path)
        self._followed.append(graph)  # tensors are known by their `id`
        self._infer(graph)
        made = self.state.of(*graph.flat_outputs)
        return tuple(old if old.size is None else new for old, new in zip(axes, made, strict=True))

    def _infer(self, graph: Graph) -> None:
        if id(graph) in self._done:
            return
        self._done.add(id(graph))
        for call in graph.calls:
            self._infer_call(call)

    def _infer_call(self, call: Call) -> None:
        if call.inner is not None:
            self._infer_nested(call, call.inner)
            return
        facts = self.state.facts_of(call.operation, call.path)
        facts.calls += 1
        facts.passing = call.node is None and not isinstance(call.operation, keras.Layer)
        rule = rule_for(call.operation)
        args, kwargs = self._arguments(call)
        facts.given = facts.given or (args, kwargs)
        site = RuleCall(self.state, call, facts, self.follow)
        if rule is None:
            facts.has_rule = False
            outputs = None
            why = "has no rule that says what happens to units"
            if call.closed:
                why += f", and its code can't be followed ({call.closed})"
        else:
            outputs = rule(site, *args, **kwargs)
            why = "does something to this axis that its rule doesn't cover"
            if outputs is not None and not self.state.weights_covered(facts):
                outputs = None
                why = "holds weights that its rule doesn't cover"
                site.treat(ANYTHING)
            ranks = [len(axes) for axes in _flatten(outputs) if axes is not None]
            if outputs is not None and ranks != [len(t.shape) for t in call.outputs]:
                outputs = None
                why = "has outputs of other ranks than its rule says"
        if outputs is None:
            for tensor in call.inputs:
                site.fix(self.state.of(tensor), why)
            for expression in (*facts.units.values(), *_weight_axes(facts)):
                site.fix(expression, why)
        self._set_outputs(call, site, outputs)
        self._check_penalty(call, site)

    def _check_penalty(self, call: Call, site: RuleCall) -> None:
        """Fixes the units that a user's activity regularizer can't take more of.

        What a penalty is of more units, nobody promises; but a layer whose regularizer
        fails can't be called at all.
        """
        penalty = getattr(call.operation, "activity_regularizer", None)
        if penalty is None or internals.is_keras_regularizer(penalty):
            return
        for tensor in call.outputs:
            axes = self.state.of(tensor)
            if not self.state.holds_units(tensor):
                continue
            sizes = [None if isinstance(axis, Fixed) else axis.size for axis in axes]
            problem = fails_at_other_sizes(penalty, tensor.shape, sizes, tensor.dtype)
            if problem is not None:
                kind = getattr(penalty, "__name__", type(penalty).__name__)
                site.fix(axes, f"has the activity regularizer {kind!r}, which fails: {problem}")

    def _arguments(self, call: Call) -> tuple[Any, Any]:
        """The arguments of a call, with axes in the place of tensors."""
        if not call.kwargs and all(type(x) is Tensor for x in call.args):
            return tuple(map(self.state.of, call.args)), {}  # most calls; `tree` takes its time
        return keras.tree.map_structure(self._replace, (call.args, call.kwargs))

    def _replace(self, x: Any) -> Any:
        return self.state.of(x) if isinstance(x, Tensor) else x

    def _set_outputs(self, call: Call, site: RuleCall, outputs: Any) -> None:
        content = site.made
        self.state.treated[id(call.outputs[0])] = site.treated
        flat = _flatten(outputs)
        if len(flat) != len(call.outputs):
            flat = [None] * len(call.outputs)
        for tensor, axes in zip(call.outputs, flat, strict=True):
            if axes is None or len(axes) != len(tensor.shape):
                axes = fixed_axes(tensor.shape, site.obstacle("has no rule for its output"))
            checked = []
            for expression, size in zip(axes, tensor.shape, strict=True):
                expression = self.state.canonical(expression)
                if expression.size != size:
                    # A rule that is wrong about a size must not change anything.
                    site.fix(expression, "makes an axis of a size that its rule doesn't explain")
                    expression = Fixed(size, site.obstacle("determines this size"))
                checked.append(expression)
            self.state.axes[id(tensor)] = tuple(checked)
            if any(not isinstance(axis, Fixed) for axis in checked):
                self.state.contents[id(tensor)] = content

    def _infer_nested(self, call: Call, inner: Graph) -> None:
        obstacle = Obstacle(call.path, "is called more than once")
        for graph in call.insides:
            for tensor, source in call.entries(graph):
                self._enter(tensor, source, obstacle)
            if graph is inner:
                self._infer(inner)
            else:
                differs = Obstacle(call.path, "does something else in training mode")
                self._infer_training(inner, graph, differs)
        for tensor, source in zip(call.outputs, inner.flat_outputs, strict=True):
            axes = []
            for expression, size in zip(self.state.of(source), tensor.shape, strict=True):
                if expression.size != size:
                    fix(expression, obstacle)
                    expression = Fixed(size, obstacle)
                axes.append(expression)
            self.state.axes[id(tensor)] = tuple(axes)
            if id(source) in self.state.contents:
                self.state.contents[id(tensor)] = self.state.contents[id(source)]
        if inner.opened:
            facts = self.state.facts_of(call.operation, call.path)
            facts.opened = True
            facts.calls += 1
            args, kwargs = self._arguments(call)
            facts.given = facts.given or (args, kwargs)
            self._expose(facts, inner)
            settings = settings_of(call.operation)
            if settings is not None:
                settings(
                    RuleCall(self.state, call, facts, self.follow),
                    *map(self.state.of, call.outputs),
                )
            if call.path in self.state.stuck:
                self._fix_stuck(call, facts)

    def _fix_stuck(self, call: Call, facts: Facts) -> None:
        """Fixes what an opened layer makes, or all that it works on if that isn't enough."""
        reason, tried = self.state.stuck[call.path]
        why = f"({type(call.operation).__name__}) can't have other sizes inside: {reason}"
        below = [one for one in self.state.facts.values() if one.path.startswith(f"{call.path}/")]
        expressions = [units for one in (facts, *below) for units in one.units.values()]
        if tried > 1:
            expressions += [
                axis for x in (*call.inputs, *call.outputs) for axis in self.state.of(x)
            ]
        for expression in expressions:
            fix(expression, Obstacle(call.path, why))

    def _enter(self, tensor: Tensor, source: Tensor | None, obstacle: Obstacle) -> None:
        """Gives an input of a nested graph the axes of the tensor that it stands for."""
        if source is None:
            self.state.axes.setdefault(id(tensor), fixed_axes(tensor.shape, obstacle))
            return
        outside = self.state.of(source)
        known = self.state.axes.get(id(tensor))
        if len(outside) != len(tensor.shape):  # Keras adds or drops a last axis of 1
            for expression in outside:
                fix(expression, obstacle)
            self.state.axes.setdefault(id(tensor), fixed_axes(tensor.shape, obstacle))
        elif known is None:
            self.state.axes[id(tensor)] = _inside(outside, tensor.shape, obstacle.where)
            if id(source) in self.state.contents:
                self.state.contents[id(tensor)] = self.state.contents[id(source)]
        else:
            for old, new in zip(known, outside, strict=True):
                unify(old, new, obstacle)
            self.state.contents[id(tensor)] = self.state.contents.get(id(tensor), Content()).join(
                self.state.contents.get(id(source), Content())
            )

    def _infer_training(self, graph: Graph, training: Graph, obstacle: Obstacle) -> None:
        """Ties what a layer does in training mode to what it does at inference."""
        for tensor in training.flat_inputs:
            if id(tensor) not in self.state.axes:
                self.state.axes[id(tensor)] = fixed_axes(tensor.shape)
        self._infer(training)
        for one, other in zip(graph.flat_outputs, training.flat_outputs, strict=True):
            for a, b in zip(self.state.of(one), self.state.of(other), strict=True):
                unify(a, b, obstacle)

    def _expose(self, facts: Facts, inner: Graph) -> None:
        """Says which units an opened layer makes with a weight of its own."""
        mine = [f"{facts.path}/{name}[" for name in facts.weights]
        for tensor in inner.flat_outputs[:1]:
            for width in widths_of(self.state.of(tensor)[-1]) if tensor.shape else ():
                if any(width.name.startswith(name) for name in mine):
                    facts.units.setdefault("units", width)


def _inside(axes: Axes, shape: Sequence[int | None], where: str) -> Axes:
    """The axes of a tensor in a nested graph, in which numbers may stand for unknown sizes.

    Such a number can't be told from one that units are a part of, so these are fixed.
    """
    result: list[Expression] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis.size is None and size is not None:
            fix(axis, Obstacle(where, "is given units beside an unknown number of others"))
            result.append(Fixed(size))
        else:
            result.append(axis)
    return tuple(result)


def _weight_axes(facts: Facts) -> list[Expression]:
    return [axis.expression for axes in facts.weights.values() for axis in axes]


def _flatten(outputs: Any) -> list[Axes | None]:
    """Flattens what a rule returns; a tuple of expressions is one tensor."""
    if outputs is None:
        return []
    if is_axes(outputs):
        return [outputs]
    if isinstance(outputs, dict):
        return [axes for key in sorted(outputs) for axes in _flatten(outputs[key])]
    return [axes for part in outputs for axes in _flatten(part)]
