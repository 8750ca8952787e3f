"""Width inference: which axes of which tensors and weights must change together.

A forward pass through the graph asks the rule of each operation how its inputs'
width expressions relate to its outputs' and to its weights' axes. Widths that
must agree are unified on the way. What has no rule fixes the widths that reach
it, which is harmless until someone asks to change one of them.
"""

from __future__ import annotations

import dataclasses
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
    resolve,
    unify,
    widths_of,
)
from keras_net2net.widths.facts import (
    FOLLOWS,
    MADE,
    MAKES,
    READS,
    Competition,
    Content,
    Facts,
    HeadOutput,
    Normalized,
    Place,
    Scaled,
    follows,
)
from keras_net2net.widths.registry import rule_for, settings_of
from keras_net2net.widths.rule_call import RuleCall


class Inference:
    """The width expressions of a graph.

    Args:
        graph: The graph.
        settings: Attributes that a plan has changed so far, by `id` of layer.
        shapes: Shapes of weights that a plan has changed so far, by path.
        stuck: Opened layers whose code can't have other sizes, as in `Draft`.
        heads: The layers, by `id`, whose units may grow although they are outputs.

    Attributes:
        axes: The width expressions of each tensor, by `id` of `Tensor`.
        facts: What is known of each layer, by `id`, in the order of the graph.
        normalized: The units that normalizations see together.
        head_outputs: What becomes of the units of `heads` in the outputs of the model.
    """

    def __init__(
        self,
        graph: Graph,
        settings: Mapping[int, Mapping[str, Any]],
        shapes: Mapping[str, tuple[int, ...]],
        stuck: Mapping[str, tuple[str, int]] | None = None,
        heads: Collection[int] = (),
    ) -> None:
        self.graph = graph
        self.settings = settings
        self.shapes = shapes
        self.stuck = stuck or {}
        self.heads = heads
        self.head_outputs: list[HeadOutput] = []
        self.competitions: dict[int, list[Competition]] = {}
        self.axes: dict[int, Axes] = {}
        self.facts: dict[int, Facts] = {}
        self.normalized: list[Normalized] = []
        self._contents: dict[int, Content] = {}
        self.treatments: dict[int, str | None] = {}
        self._variables: dict[int, tuple[Facts, str, int, Width]] = {}
        self.demands: list[tuple[Call, Facts, Expression, tuple[int, ...]]] = []
        self._parts_that_share: dict[int, tuple[Facts, Expression, Scaled | None]] = {}
        self._followed: list[Graph] = []
        self._paths: set[str] = set()
        self._widths = 0
        self._inferred: set[int] = set()
        self._reading: set[tuple[int, int, str, int]] = set()  # calls, and what reads in them
        for tensor in graph.flat_inputs:
            name = getattr(tensor.keras_tensor, "name", "the input")
            self.axes[id(tensor)] = fixed_axes(
                tensor.shape, Obstacle(str(name), "is an input of the model")
            )
        self._infer(graph)
        if graph.training is not None:
            self._infer_training(
                graph, graph.training, Obstacle("the model", "differs in training")
            )
        kept: set[Width] = set()
        if heads:
            from keras_net2net.widths.heads import release_heads

            kept = release_heads(self)
        producers = {id(t): call.path for call in graph.calls for t in call.outputs}
        for tensor in graph.flat_outputs:
            where = producers.get(id(tensor), "the output")
            for expression in self.of(tensor):
                for width in widths_of(expression):
                    if width not in kept:
                        fix(width, Obstacle(where, "is an output of the model"))
        self._give_shares_to_parts()
        from keras_net2net.widths.sharing import check_variables, share_demands

        if self._variables:
            check_variables(self)
        if self.demands:
            share_demands(self)

    def new_width(self, name: str, size: int) -> Width:
        """A width that nothing else is tied to yet."""
        self._widths += 1
        return Width(name, size, self._widths)

    def of(self, tensor: Tensor) -> Axes:
        """The resolved expressions of a tensor's axes."""
        axes = self.axes.get(id(tensor))
        if axes is None and tensor.variable is not None:
            axes = self.axes[id(tensor)] = self._axes_of_variable(*tensor.variable)
            self._contents[id(tensor)] = MADE
        return tuple(map(self._canonical, self.axes[id(tensor)] if axes is None else axes))

    def _canonical(self, axis: Expression) -> Expression:
        """The canonical form, but for the axis of a variable, which must be known again."""
        return axis if id(axis) in self._variables else resolve(axis)

    def content_of(self, call: Call) -> Content:
        """What the inputs of a call hold for units that fill, as far as they agree."""
        found: Content | None = None
        for tensor in call.inputs:
            content = self._contents.get(id(tensor))
            if content is None:
                if tensor.variable is None and not any(
                    True for axis in self.of(tensor) for _ in widths_of(axis)
                ):
                    continue
                content = MADE if tensor.variable is not None else Content()
            found = content if found is None else found.join(content)
        return Content() if found is None else found

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

    def _axes_of_variable(self, owner: Any, path: str, variable: Any) -> Axes:
        """The axes of a variable that is used as a tensor."""
        facts = self.facts_of(owner, path)
        name = next(n for n, v in internals.named_variables(owner).items() if v is variable)
        shape = self.shapes.get(f"{facts.path}/{name}", tuple(variable.shape))
        if name not in facts.weights:
            facts.weights[name] = tuple(
                follows(
                    Fixed(size)
                    if size == 1
                    else self.new_width(f"{facts.path}/{name}[{axis}]", size)
                )
                for axis, size in enumerate(shape)
            )
        axes: list[Expression] = []
        for i, axis in enumerate(facts.weights[name]):
            if isinstance(resolve(axis.expression), Fixed):
                axes.append(resolve(axis.expression))
                continue
            alias = Width(f"{facts.path}/{name}[{i}]", axis.expression.size or 0)
            alias.bound = axis.expression
            self._variables[id(alias)] = (facts, name, i, alias)
            axes.append(alias)
        return tuple(axes)

    def give_role(self, call: Call, expression: Expression, role: str, content: Content) -> bool:
        """See `RuleCall.role`."""
        if id(expression) not in self._variables:
            return False
        facts, name, at, _ = self._variables[id(expression)]
        axes = list(facts.weights[name])
        if axes[at].role not in (FOLLOWS, role):
            return False
        if role == READS and axes[at].role == READS:
            content = content.join(axes[at].content)
        axes[at] = dataclasses.replace(axes[at], role=role, content=content)
        facts.weights[name] = tuple(axes)
        if role == READS:
            self._reading.add((id(call), id(facts), name, at))
        return True

    def read_in(self, tensor: Tensor) -> set[Place]:
        """The axes of a variable that a symbolic tensor stands for that read units."""
        places = (self._variables.get(id(axis)) for axis in self.of(tensor))
        return {
            (facts, name, at)
            for facts, name, at, _ in filter(None, places)
            if facts.weights[name][at].role == READS
        }

    def is_read_by(self, place: Place, call: Call) -> bool:
        """Whether a call sums over units with this axis of a variable."""
        facts, name, at = place
        return (id(call), id(facts), name, at) in self._reading

    def is_tensor(self, facts: Facts, name: str) -> bool:
        """Whether a weight is used as a tensor, too."""
        return any(f is facts and n == name for f, n, _, _ in self._variables.values())

    def share_part(self, facts: Facts, expression: Expression, scale: Scaled | None) -> None:
        """See `RuleCall.share_part`."""
        self._parts_that_share[id(facts)] = (facts, expression, scale)

    def _give_shares_to_parts(self) -> None:
        for facts, expression, scale in self._parts_that_share.values():
            wanted = resolve(expression)
            for name, axes in facts.weights.items():
                mine = [
                    axis.role in (MAKES, FOLLOWS) and resolve(axis.expression) == wanted
                    for axis in axes
                ]
                if not any(mine):
                    continue
                facts.weights[name] = tuple(
                    dataclasses.replace(axis, role=READS) if one else axis
                    for axis, one in zip(axes, mine, strict=True)
                )
                if scale is not None:
                    facts.scales[name] = scale

    def compete(self, call: Call, expression: Expression, kind: str, obstacle: Obstacle) -> bool:
        """See `RuleCall.compete`; whether it is seen to later."""
        if self.heads:
            found = Competition(expression, kind, obstacle)
            self.competitions.setdefault(id(call), []).append(found)
        return bool(self.heads)

    def demand(
        self, call: Call, facts: Facts, expression: Expression, tensors: tuple[int, ...]
    ) -> None:
        """See `RuleCall.share`."""
        self.demands.append((call, facts, expression, tensors))

    def follow(self, function: Any, axes: Axes, dtype: str, path: str) -> Axes | None:
        """See `RuleCall.follow`."""
        graph = read_function(function, [axis.size for axis in axes], dtype, path)
        if graph is None:
            return None
        (tensor,) = graph.flat_inputs
        self.axes[id(tensor)] = _inside(axes, tensor.shape, path)
        self._followed.append(graph)  # tensors are known by their `id`
        self._infer(graph)
        (made,) = graph.flat_outputs
        return tuple(
            old if old.size is None else new for old, new in zip(axes, self.of(made), strict=True)
        )

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
        facts = self.facts_of(call.operation, call.path)
        facts.calls += 1
        facts.passing = call.node is None and not isinstance(call.operation, keras.Layer)
        rule = rule_for(call.operation)
        args, kwargs = self._arguments(call)
        facts.given = facts.given or (args, kwargs)
        site = RuleCall(self, call, facts)
        if rule is None:
            facts.has_rule = False
            outputs = None
            why = "has no rule that says what happens to units"
            if call.closed:
                why += f", and its code can't be followed ({call.closed})"
        else:
            outputs = rule(site, *args, **kwargs)
            why = "does something to this axis that its rule doesn't cover"
            if outputs is not None and not self.weights_covered(facts):
                outputs = None
                why = "holds weights that its rule doesn't cover"
            ranks = [len(axes) for axes in _flatten(outputs) if axes is not None]
            if outputs is not None and ranks != [len(t.shape) for t in call.outputs]:
                outputs = None
                why = "has outputs of other ranks than its rule says"
        if outputs is None:
            for tensor in call.inputs:
                site.fix(self.of(tensor), why)
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
            axes = self.of(tensor)
            if not any(True for axis in axes for _ in widths_of(axis)):
                continue
            sizes = [None if isinstance(axis, Fixed) else axis.size for axis in axes]
            problem = fails_at_other_sizes(penalty, tensor.shape, sizes, tensor.dtype)
            if problem is not None:
                kind = getattr(penalty, "__name__", type(penalty).__name__)
                site.fix(axes, f"has the activity regularizer {kind!r}, which fails: {problem}")

    def _arguments(self, call: Call) -> tuple[Any, Any]:
        """The arguments of a call, with axes in the place of tensors."""
        if not call.kwargs and all(type(x) is Tensor for x in call.args):
            return tuple(map(self.of, call.args)), {}  # most calls; `tree` takes its time
        return keras.tree.map_structure(self._replace, (call.args, call.kwargs))

    def _replace(self, x: Any) -> Any:
        return self.of(x) if isinstance(x, Tensor) else x

    def weights_covered(self, facts: Facts) -> bool:
        """Whether the rule's weights are the layer's, and have the sizes it says.

        Nothing is guessed: what a subclass, LoRA or quantization adds to a layer
        makes its rule unfit.
        """
        layer = facts.operation
        if not isinstance(layer, keras.Layer) or not layer.built:
            return True
        variables = internals.named_variables(layer)
        if set(variables) != set(facts.weights):
            return False
        return all(
            self.shapes.get(f"{facts.path}/{name}", tuple(variable.shape))
            == tuple(axis.expression.size for axis in facts.weights[name])
            for name, variable in variables.items()
        )

    def _set_outputs(self, call: Call, site: RuleCall, outputs: Any) -> None:
        content = site.made
        self.treatments[id(call)] = site.treatment
        flat = _flatten(outputs)
        if len(flat) != len(call.outputs):
            flat = [None] * len(call.outputs)
        for tensor, axes in zip(call.outputs, flat, strict=True):
            if axes is None or len(axes) != len(tensor.shape):
                axes = fixed_axes(tensor.shape, site.obstacle("has no rule for its output"))
            checked = []
            for expression, size in zip(axes, tensor.shape, strict=True):
                expression = self._canonical(expression)
                if expression.size != size:
                    # A rule that is wrong about a size must not change anything.
                    site.fix(expression, "makes an axis of a size that its rule doesn't explain")
                    expression = Fixed(size, site.obstacle("determines this size"))
                checked.append(expression)
            self.axes[id(tensor)] = tuple(checked)
            if any(not isinstance(axis, Fixed) for axis in checked):
                self._contents[id(tensor)] = content

    def _infer_nested(self, call: Call, inner: Graph) -> None:
        given = inner.sources if inner.opened else match_inputs(call, inner)
        obstacle = Obstacle(call.path, "is called more than once")
        for tensor, source in zip(inner.flat_inputs, given, strict=True):
            self._enter(tensor, source, obstacle)
        self._infer(inner)
        if inner.training is not None:
            for tensor, source in zip(inner.training.flat_inputs, given, strict=True):
                self._enter(tensor, source, obstacle)
            differs = Obstacle(call.path, "does something else in training mode")
            self._infer_training(inner, inner.training, differs)
        for tensor, source in zip(call.outputs, inner.flat_outputs, strict=True):
            axes = []
            for expression, size in zip(self.of(source), tensor.shape, strict=True):
                if expression.size != size:
                    fix(expression, obstacle)
                    expression = Fixed(size, obstacle)
                axes.append(expression)
            self.axes[id(tensor)] = tuple(axes)
            if id(source) in self._contents:
                self._contents[id(tensor)] = self._contents[id(source)]
        if inner.opened:
            facts = self.facts_of(call.operation, call.path)
            facts.opened = True
            facts.calls += 1
            args, kwargs = self._arguments(call)
            facts.given = facts.given or (args, kwargs)
            self._expose(facts, inner)
            settings = settings_of(call.operation)
            if settings is not None:
                settings(RuleCall(self, call, facts), *map(self.of, call.outputs))
            if call.path in self.stuck:
                self._fix_stuck(call, facts)

    def _fix_stuck(self, call: Call, facts: Facts) -> None:
        """Fixes what an opened layer makes, or all that it works on if that isn't enough."""
        reason, tried = self.stuck[call.path]
        why = f"({type(call.operation).__name__}) can't have other sizes inside: {reason}"
        below = [one for one in self.facts.values() if one.path.startswith(f"{call.path}/")]
        expressions = [units for one in (facts, *below) for units in one.units.values()]
        if tried > 1:
            expressions += [axis for x in (*call.inputs, *call.outputs) for axis in self.of(x)]
        for expression in expressions:
            fix(expression, Obstacle(call.path, why))

    def _enter(self, tensor: Tensor, source: Tensor | None, obstacle: Obstacle) -> None:
        """Gives an input of a nested graph the axes of the tensor that it stands for."""
        if source is None:
            self.axes.setdefault(id(tensor), fixed_axes(tensor.shape, obstacle))
            return
        outside = self.of(source)
        known = self.axes.get(id(tensor))
        if len(outside) != len(tensor.shape):  # Keras adds or drops a last axis of 1
            for expression in outside:
                fix(expression, obstacle)
            self.axes.setdefault(id(tensor), fixed_axes(tensor.shape, obstacle))
        elif known is None:
            self.axes[id(tensor)] = _inside(outside, tensor.shape, obstacle.where)
            if id(source) in self._contents:
                self._contents[id(tensor)] = self._contents[id(source)]
        else:
            for old, new in zip(known, outside, strict=True):
                unify(old, new, obstacle)
            self._contents[id(tensor)] = self._contents.get(id(tensor), Content()).join(
                self._contents.get(id(source), Content())
            )

    def _infer_training(self, graph: Graph, training: Graph, obstacle: Obstacle) -> None:
        """Ties what a layer does in training mode to what it does at inference."""
        for tensor in training.flat_inputs:
            if id(tensor) not in self.axes:
                self.axes[id(tensor)] = fixed_axes(tensor.shape)
        self._infer(training)
        for one, other in zip(graph.flat_outputs, training.flat_outputs, strict=True):
            for a, b in zip(self.of(one), self.of(other), strict=True):
                unify(a, b, obstacle)

    def _expose(self, facts: Facts, inner: Graph) -> None:
        """Says which units an opened layer makes with a weight of its own."""
        mine = [f"{facts.path}/{name}[" for name in facts.weights]
        for tensor in inner.flat_outputs[:1]:
            for width in widths_of(self.of(tensor)[-1]) if tensor.shape else ():
                if any(width.name.startswith(name) for name in mine):
                    facts.units.setdefault("units", width)


def fixed_axes(shape: Sequence[int | None], obstacle: Obstacle | None = None) -> Axes:
    """Expressions for a tensor whose axes never change."""
    return tuple(Fixed(size, obstacle) for size in shape)


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


def match_inputs(call: Call, inner: Graph) -> list[Tensor | None]:
    """The tensors given to a nested model, in the order of its own inputs."""
    given = call.args[0] if call.args else next(iter(call.kwargs.values()))
    if isinstance(given, dict) and not isinstance(inner.inputs, dict):
        return [given[tensor.keras_tensor.name] for tensor in inner.flat_inputs]
    flat = keras.tree.flatten(given)
    return [x if isinstance(x, Tensor) else None for x in flat]
