"""What inference has found out so far: a state, which the pass and the rules write to."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.widths.expressions import (
    Axes,
    Expression,
    Fixed,
    Obstacle,
    Width,
    resolve,
    widths_of,
)
from keras_net2net.widths.facts import (
    READS,
    Competition,
    Facts,
    HeadOutput,
    Normalized,
    Scaled,
    Treated,
    VariableAxis,
    follows,
)
from keras_net2net.widths.treatments import MADE, Content


@dataclasses.dataclass(eq=False)
class Inferred:
    """The width expressions of a graph, and what goes with them.

    Args:
        graph: The graph.
        settings: Attributes that a plan has changed so far, by `id` of layer.
        shapes: Shapes of weights that a plan has changed so far, by path.
        stuck: Opened layers whose code can't have other sizes, as in `Draft`.
        heads: The layers, by `id`, whose units may grow although they are outputs.
        axes: The width expressions of each tensor, by `id` of `Tensor`.
        facts: What is known of each layer, by `id`, in the order of the graph.
        contents: What each tensor holds for units that fill, by `id`.
        treated: What each call does to the value of a unit, by `id` of its first output.
        normalized: The units that normalizations see together.
        competitions: The units that share what they get among each other, by `id` of call.
        demands: The sums over units that no weight reads, and the inputs that may hold
            the shares of copies.
        parts_that_share: Layers inside others whose makers of some units hold the shares,
            and what their weights are multiplied by.
        variables: The axes of tensors that are axes of variables, by `id` of expression.
        reading: The axes of variables that read units, each with the `id` of the call.
        head_outputs: What becomes of the units of `heads` in the outputs of the model.
    """

    graph: Graph
    settings: Mapping[int, Mapping[str, Any]]
    shapes: Mapping[str, tuple[int, ...]]
    stuck: Mapping[str, tuple[str, int]]
    heads: Collection[int]
    axes: dict[int, Axes] = dataclasses.field(default_factory=dict)
    facts: dict[int, Facts] = dataclasses.field(default_factory=dict)
    contents: dict[int, Content] = dataclasses.field(default_factory=dict)
    treated: dict[int, Treated] = dataclasses.field(default_factory=dict)
    normalized: list[Normalized] = dataclasses.field(default_factory=list)
    competitions: dict[int, list[Competition]] = dataclasses.field(default_factory=dict)
    demands: list[tuple[Call, Facts, Expression, tuple[int, ...]]] = dataclasses.field(
        default_factory=list
    )
    parts_that_share: list[tuple[Facts, Expression, Scaled | None]] = dataclasses.field(
        default_factory=list
    )
    variables: dict[int, tuple[VariableAxis, Width]] = dataclasses.field(default_factory=dict)
    reading: set[tuple[int, VariableAxis]] = dataclasses.field(default_factory=set)
    head_outputs: list[HeadOutput] = dataclasses.field(default_factory=list)
    _widths: int = 0
    _paths: set[str] = dataclasses.field(default_factory=set)

    def new_width(self, name: str, size: int) -> Width:
        """A width that nothing else is tied to yet."""
        self._widths += 1
        return Width(name, size, self._widths)

    def of(self, tensor: Tensor) -> Axes:
        """The resolved expressions of a tensor's axes."""
        axes = self.axes.get(id(tensor))
        if axes is None and tensor.variable is not None:
            axes = self.axes[id(tensor)] = self._axes_of_variable(*tensor.variable)
            self.contents[id(tensor)] = MADE
        return tuple(map(self.canonical, self.axes[id(tensor)] if axes is None else axes))

    def canonical(self, axis: Expression) -> Expression:
        """The canonical form, but for the axis of a variable, which must be known again."""
        return axis if id(axis) in self.variables else resolve(axis)

    def holds_units(self, tensor: Tensor) -> bool:
        """Whether units lie on one of a tensor's axes."""
        return any(True for axis in self.of(tensor) for _ in widths_of(axis))

    def content_of(self, call: Call) -> Content:
        """What the inputs of a call hold for units that fill, as far as they agree."""
        found: Content | None = None
        for tensor in call.inputs:
            content = self.contents.get(id(tensor))
            if content is None:
                if tensor.variable is None and not self.holds_units(tensor):
                    continue
                content = MADE if tensor.variable is not None else Content()
            found = content if found is None else found.join(content)
        return Content() if found is None else found

    def treated_by(self, call: Call) -> Treated:
        """What a call does to the value of a unit; its copies do the same."""
        return self.treated.get(id(call.outputs[0]), Treated())

    def facts_of(self, operation: Any, path: str) -> Facts:
        """What is known of a layer, under a path that no other has."""
        facts = self.facts.get(id(operation))
        if facts is None:
            unique, number = path, 1
            while unique in self._paths:
                number += 1
                unique = f"{path}_{number}"
            self._paths.add(unique)
            facts = self.facts[id(operation)] = Facts(operation, unique)
        return facts

    def shape_of(self, facts: Facts, name: str, variable: Any = None) -> tuple[int, ...]:
        """The shape of a weight, as it is in the plan so far."""
        planned = self.shapes.get(f"{facts.path}/{name}")
        if planned is not None:  # a layer that the plan inserts has no variables yet
            return planned
        if variable is None:
            variable = internals.named_variables(facts.operation)[name]
        return tuple(variable.shape)

    def weights_covered(self, facts: Facts) -> bool:
        """Whether the rule's weights are the layer's, and have the sizes it says.

        Nothing is guessed: what a subclass, LoRA or quantization adds to a layer
        makes its rule unfit.
        """
        layer = facts.operation
        if not isinstance(layer, keras.Layer) or not layer.built:
            return True
        variables = internals.named_variables(layer)
        return set(variables) == set(facts.weights) and all(
            self.shape_of(facts, name, variable)
            == tuple(axis.expression.size for axis in facts.weights[name])
            for name, variable in variables.items()
        )

    def _axes_of_variable(self, owner: Any, path: str, variable: Any) -> Axes:
        """The axes of a variable that is used as a tensor.

        An axis stands for itself until a call gives it a role; so it isn't resolved,
        which would lose whose it is.
        """
        facts = self.facts_of(owner, path)
        name = next(n for n, v in internals.named_variables(owner).items() if v is variable)
        if name not in facts.weights:
            facts.weights[name] = tuple(
                follows(
                    Fixed(size)
                    if size == 1
                    else self.new_width(f"{facts.path}/{name}[{axis}]", size)
                )
                for axis, size in enumerate(self.shape_of(facts, name, variable))
            )
        axes: list[Expression] = []
        for i, axis in enumerate(facts.weights[name]):
            if isinstance(resolve(axis.expression), Fixed):
                axes.append(resolve(axis.expression))
                continue
            alias = Width(f"{facts.path}/{name}[{i}]", axis.expression.size or 0)
            alias.bound = axis.expression
            self.variables[id(alias)] = VariableAxis(facts, name, i), alias
            axes.append(alias)
        return tuple(axes)

    def read_in(self, tensor: Tensor) -> set[VariableAxis]:
        """The axes of a variable that a symbolic tensor stands for that read units."""
        known = (self.variables.get(id(axis)) for axis in self.of(tensor))
        return {place for place, _ in filter(None, known) if place.axis.role == READS}


def fixed_axes(shape: Sequence[int | None], obstacle: Obstacle | None = None) -> Axes:
    """Expressions for a tensor whose axes never change."""
    return tuple(Fixed(size, obstacle) for size in shape)
