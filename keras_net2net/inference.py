"""Width inference: which axes of which tensors and weights must change together.

A forward pass through the graph asks the rule of each operation how its inputs'
width expressions relate to its outputs' and to its weights' axes. Widths that
must agree are unified on the way. What has no rule fixes the widths that reach
it, which is harmless until someone asks to change one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_net2net import keras_privates as privates
from keras_net2net.graph import Call, Graph, Tensor
from keras_net2net.rules.registry import rule_for
from keras_net2net.weights import FOLLOWS, MAKES, READS
from keras_net2net.widths import (
    EXPRESSIONS,
    Axes,
    Expression,
    Fixed,
    Obstacle,
    Width,
    fix,
    resolve,
    unify,
)


@dataclasses.dataclass(frozen=True)
class WeightAxis:
    """One axis of a weight: its width expression, and what the axis does with the units."""

    expression: Expression
    role: str


def makes(expression: Expression) -> WeightAxis:
    """The axis makes these units, as a kernel's last axis or a bias does."""
    return WeightAxis(expression, MAKES)


def reads(expression: Expression) -> WeightAxis:
    """The axis reads these units, as a kernel's input axis does."""
    return WeightAxis(expression, READS)


def follows(expression: Expression) -> WeightAxis:
    """The axis holds something for each of these units, as BatchNormalization does."""
    return WeightAxis(expression, FOLLOWS)


@dataclasses.dataclass(eq=False)
class Facts:
    """What inference found out about one layer or operation.

    Args:
        operation: The Keras object.
        path: Its path in the model.
        units: The expression of each size that the layer counts, by config key;
            the first is the one that `Wider` means.
        config: The expressions (nested, with plain numbers between) of each
            config key that follows from widths.
        weights: The axes of each weight.
        has_rule: Whether a rule was found.
    """

    operation: Any
    path: str
    units: dict[str, Expression] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: dict[str, tuple[WeightAxis, ...]] = dataclasses.field(default_factory=dict)
    has_rule: bool = True


class RuleCall:
    """What a rule uses to say what a layer does; one for each call of a layer.

    Args:
        inference: The inference under way.
        call: The call.
        facts: What is known of the layer; shared by all its calls.
    """

    def __init__(self, inference: Inference, call: Call, facts: Facts) -> None:
        self._inference = inference
        self._call = call
        self._facts = facts
        self.layer = facts.operation

    @property
    def output_shapes(self) -> list[tuple[int | None, ...]]:
        """The shapes of the outputs of this call, flat."""
        return [tensor.shape for tensor in self._call.outputs]

    def setting(self, key: str) -> Any:
        """The layer's attribute `key`, as it is in the plan so far.

        Sizes must be read through this, since an earlier operation of the same
        plan may have changed them.
        """
        changed = self._inference.settings.get(id(self.layer), {})
        return changed[key] if key in changed else getattr(self.layer, key)

    def units(self, key: str) -> Expression:
        """The units that the layer makes, as many as its attribute `key` says.

        Args:
            key: The config key and attribute, such as `"units"` or `"filters"`.

        Returns:
            The same expression at every call of the layer.
        """
        if key not in self._facts.units:
            name = self._facts.path if not self._facts.units else f"{self._facts.path}:{key}"
            self._facts.units[key] = self._inference.new_width(name, self.setting(key))
            self._facts.config[key] = self._facts.units[key]
        return self._facts.units[key]

    def configure(self, key: str, value: Any) -> None:
        """Says that a config key follows from widths.

        Args:
            key: The config key and attribute, such as `"target_shape"`.
            value: An expression, or a tuple of expressions and plain numbers.
        """
        self._facts.config[key] = value

    def weight(self, name: str, *axes: WeightAxis | Expression | int) -> None:
        """Says what the axes of a weight are.

        Args:
            name: The name of the variable.
            *axes: For each axis `makes(...)`, `reads(...)` or `follows(...)`, or
                its size where it never changes.
        """
        typed = tuple(
            axis
            if isinstance(axis, WeightAxis)
            else follows(Fixed(axis) if isinstance(axis, int) else axis)
            for axis in axes
        )
        known = self._facts.weights.setdefault(name, typed)
        for old, new in zip(known, typed, strict=True):
            self.unify(old.expression, new.expression, "is called more than once")

    def unify(self, a: Expression, b: Expression, why: str = "needs both sizes to agree") -> None:
        """Makes two axes agree; a width that meets a fixed size becomes fixed."""
        unify(a, b, self.obstacle(why))

    def fix(self, expressions: Expression | Sequence[Expression], why: str) -> None:
        """Forbids the widths of one axis, or of several, to change.

        Args:
            expressions: One expression, or several.
            why: What the layer does with the axis, to complete the sentence
                `"the layer ..."`, e.g. `"normalizes over the units"`.
        """
        for expression in [expressions] if isinstance(expressions, EXPRESSIONS) else expressions:
            fix(expression, self.obstacle(why))

    def obstacle(self, why: str) -> Obstacle:
        """The reason given to widths that this layer fixes."""
        return Obstacle(self._facts.path, f"({type(self.layer).__name__}) {why}")

    def apply(self, operation: Any, axes: Axes) -> Axes | None:
        """Applies the rule of a stateless layer that this one holds, as an activation."""
        rule = rule_for(operation)
        if rule is None:
            return None
        if isinstance(operation, keras.Layer) and (operation.weights or not operation.built):
            return None  # one that isn't built yet may get weights
        inner = RuleCall(self._inference, self._call, Facts(operation, self._facts.path))
        return rule(inner, axes)


class Inference:
    """The width expressions of a graph.

    Args:
        graph: The graph.
        settings: Attributes that a plan has changed so far, by `id` of layer.
        shapes: Shapes of weights that a plan has changed so far, by path.

    Attributes:
        axes: The width expressions of each tensor, by `id` of `Tensor`.
        facts: What is known of each layer, by `id`, in the order of the graph.
    """

    def __init__(
        self,
        graph: Graph,
        settings: Mapping[int, Mapping[str, Any]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.graph = graph
        self.settings = settings
        self.shapes = shapes
        self.axes: dict[int, Axes] = {}
        self.facts: dict[int, Facts] = {}
        self._widths = 0
        self._inferred: set[int] = set()
        for tensor in graph.flat_inputs:
            name = getattr(tensor.keras_tensor, "name", "the input")
            self.axes[id(tensor)] = fixed_axes(
                tensor.shape, Obstacle(str(name), "is an input of the model")
            )
        self._infer(graph)
        producers = {id(t): call.path for call in graph.calls for t in call.outputs}
        for tensor in graph.flat_outputs:
            where = producers.get(id(tensor), "the output")
            for expression in self.axes[id(tensor)]:
                fix(expression, Obstacle(where, "is an output of the model"))

    def new_width(self, name: str, size: int) -> Width:
        """A width that nothing else is tied to yet."""
        self._widths += 1
        return Width(name, size, self._widths)

    def of(self, tensor: Tensor) -> Axes:
        """The resolved expressions of a tensor's axes."""
        return tuple(resolve(axis) for axis in self.axes[id(tensor)])

    def _infer(self, graph: Graph) -> None:
        if id(graph) in self._inferred:
            return
        self._inferred.add(id(graph))
        for call in graph.calls:
            self._infer_call(call)

    def _infer_call(self, call: Call) -> None:
        if call.inner is not None:
            self._infer_nested(call, call.inner)
            return
        facts = self.facts.get(id(call.operation))
        if facts is None:
            facts = Facts(call.operation, call.path)
            self.facts[id(call.operation)] = facts
        rule = rule_for(call.operation)
        site = RuleCall(self, call, facts)
        if rule is None:
            facts.has_rule = False
            outputs = None
            why = "has no rule that says what happens to units"
        else:
            args, kwargs = keras.tree.map_structure(self._replace, (call.args, call.kwargs))
            outputs = rule(site, *args, **kwargs)
            why = "does something to this axis that its rule doesn't cover"
            if outputs is not None and not self._weights_covered(facts):
                outputs = None
                why = "holds weights that its rule doesn't cover"
        if outputs is None:
            for tensor in call.inputs:
                site.fix(self.axes[id(tensor)], why)
            for expression in (*facts.units.values(), *_weight_axes(facts)):
                site.fix(expression, why)
        self._set_outputs(call, site, outputs)

    def _replace(self, x: Any) -> Any:
        return self.of(x) if isinstance(x, Tensor) else x

    def _weights_covered(self, facts: Facts) -> bool:
        """Whether the rule's weights are the layer's, and have the sizes it says.

        Nothing is guessed: what a subclass, LoRA or quantization adds to a layer
        makes its rule unfit.
        """
        layer = facts.operation
        if not isinstance(layer, keras.Layer) or not layer.built:
            return True
        own = privates.own_variables(layer)
        variables = {variable.name: variable for variable in own}
        if set(variables) != set(facts.weights) or len(variables) != len(own):
            return False
        return all(
            self.shapes.get(f"{facts.path}/{name}", tuple(variable.shape))
            == tuple(axis.expression.size for axis in facts.weights[name])
            for name, variable in variables.items()
        )

    def _set_outputs(self, call: Call, site: RuleCall, outputs: Any) -> None:
        flat = _flatten(outputs)
        if len(flat) != len(call.outputs):
            flat = [None] * len(call.outputs)
        for tensor, axes in zip(call.outputs, flat, strict=True):
            if axes is None or len(axes) != len(tensor.shape):
                axes = fixed_axes(tensor.shape, site.obstacle("has no rule for its output"))
            checked = []
            for expression, size in zip(axes, tensor.shape, strict=True):
                expression = resolve(expression)
                if expression.size != size:
                    # A rule that is wrong about a size must not change anything.
                    site.fix(expression, "makes an axis of a size that its rule doesn't explain")
                    expression = Fixed(size, site.obstacle("determines this size"))
                checked.append(expression)
            self.axes[id(tensor)] = tuple(checked)

    def _infer_nested(self, call: Call, inner: Graph) -> None:
        given = _match_inputs(call, inner)
        obstacle = Obstacle(call.path, "is called more than once")
        for tensor, source in zip(inner.flat_inputs, given, strict=True):
            if source is None:
                self.axes.setdefault(id(tensor), fixed_axes(tensor.shape, obstacle))
                continue
            outside = self.of(source)
            known = self.axes.get(id(tensor))
            if len(outside) != len(tensor.shape):  # Keras adds or drops a last axis of 1
                for expression in outside:
                    fix(expression, obstacle)
                self.axes.setdefault(id(tensor), fixed_axes(tensor.shape, obstacle))
            elif known is None:
                self.axes[id(tensor)] = outside
            else:
                for old, new in zip(known, outside, strict=True):
                    unify(old, new, obstacle)
        self._infer(inner)
        for tensor, source in zip(call.outputs, inner.flat_outputs, strict=True):
            axes = []
            for expression, size in zip(self.of(source), tensor.shape, strict=True):
                if expression.size != size:
                    fix(expression, obstacle)
                    expression = Fixed(size, obstacle)
                axes.append(expression)
            self.axes[id(tensor)] = tuple(axes)


def fixed_axes(shape: Sequence[int | None], obstacle: Obstacle | None = None) -> Axes:
    """Expressions for a tensor whose axes never change."""
    return tuple(Fixed(size, obstacle) for size in shape)


def _weight_axes(facts: Facts) -> list[Expression]:
    return [axis.expression for axes in facts.weights.values() for axis in axes]


def _flatten(outputs: Any) -> list[Axes | None]:
    """Flattens what a rule returns; a tuple of expressions is one tensor."""
    if outputs is None:
        return []
    if isinstance(outputs, tuple) and all(isinstance(x, EXPRESSIONS) for x in outputs):
        return [outputs]
    if isinstance(outputs, dict):
        return [axes for key in sorted(outputs) for axes in _flatten(outputs[key])]
    return [axes for part in outputs for axes in _flatten(part)]


def _match_inputs(call: Call, inner: Graph) -> list[Tensor | None]:
    """The tensors given to a nested model, in the order of its own inputs."""
    given = call.args[0] if call.args else next(iter(call.kwargs.values()))
    if isinstance(given, dict) and not isinstance(inner.inputs, dict):
        return [given[tensor.keras_tensor.name] for tensor in inner.flat_inputs]
    flat = keras.tree.flatten(given)
    return [x if isinstance(x, Tensor) else None for x in flat]
