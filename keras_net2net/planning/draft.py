"""The state of planning: a graph that operations edit, step by step.

A draft starts as the graph of a model. Each operation reads what inference finds
in it, and asks it to grow widths or to insert layers; the draft changes sizes and
wiring in the graph, and records what it did. The model itself is never touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from keras_net2net import (
    internals,
    rules,  # noqa: F401
)
from keras_net2net.errors import GrowthError
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.planning.changes import (
    Addition,
    AxisChange,
    NewUnits,
    VariableChange,
    VariableReplacement,
)
from keras_net2net.planning.plan import Insertion, LayerChange, Plan, Step, WidthChange
from keras_net2net.planning.remaps import Remap, appended, draw, draw_bound, remap_of
from keras_net2net.widths.expressions import EXPRESSIONS, Expression, Width, resolve, widths_of
from keras_net2net.widths.facts import MAKES, READS, Facts, FromEnd, Scaled, WeightAxis
from keras_net2net.widths.inference import infer
from keras_net2net.widths.inferred import Inferred
from keras_net2net.widths.reading import read


@dataclasses.dataclass(frozen=True)
class Start:
    """How units start that nothing in the model reads yet, as the new classes of a head.

    Args:
        zero: The widths of which what makes new units is zero; for the others, it holds
            the mean of the old ones.
        offsets: What is added to new entries of weights, by path.
    """

    zero: frozenset[Width]
    offsets: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def silent(self, axis: WeightAxis) -> bool:
        """Whether an axis of a weight is zero for them."""
        zero = any(width in self.zero for width in widths_of(axis.expression))
        return axis.role == READS or (axis.role == MAKES and zero)


@dataclasses.dataclass(eq=False)
class Inserted:
    """A layer that the plan inserts.

    Args:
        insertion: What the plan says of it.
        layer: A stand-in without weights.
        make: Makes the layer itself, with its weights. Defaults to `None`: it is built
            from its configuration, for the shape of its only input.
    """

    insertion: Insertion
    layer: Any
    make: Callable[[], Any] | None = None


class Placeholder:
    """What stands for a layer of which nothing is known but its name, until it is made.

    Inference has no rule for it, so that it fixes all widths that reach it.

    Args:
        name: The name of the layer.
        **penalties: Its regularizers, by the names of the attributes that hold them.
    """

    def __init__(self, name: str, **penalties: Any) -> None:
        self.name = name
        vars(self).update(penalties)


class Draft:
    """A plan in the making.

    Args:
        model: The model.
        seed: The seed of all that is drawn.
        stuck: Opened layers, by path, whose code couldn't have other sizes; with
            what it does, and how often it was tried.
        calibration: Data for operations that look at activations or gradients, or a
            function that returns it, called when it is wanted.
        loss_of: The compiled model whose loss counts. Defaults to `None`: the model.

    Attributes:
        training_data: The inputs that an operation has made the model's behaviour in
            training mode exact for, if one has; what it is compared on.
    """

    def __init__(
        self,
        model: Any,
        seed: int,
        stuck: Mapping[str, tuple[str, int]] | None = None,
        calibration: Any = None,
        loss_of: Any = None,
    ) -> None:
        self.model = model
        self.loss_of = model if loss_of is None else loss_of
        self.seed = seed
        self.stuck = dict(stuck or {})
        self.training_data: Any = None
        self._calibration = calibration
        self._called: list[Any] = []
        self.graph: Graph = read(model)
        self.settings: dict[int, dict[str, Any]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.inserted: dict[str, Inserted] = {}
        self.made: dict[str, Any] = {}  # what was inserted, once the plan is carried out
        self.steps: list[Step] = []
        self.parameters = int(model.count_params())
        self._before = self.parameters
        self._inference: Inferred | None = None
        self._heads: frozenset[int] = frozenset()

    @property
    def calibration(self) -> Any:
        """The data for operations that look at activations or gradients, or `None`."""
        if callable(self._calibration) and not self._called:
            self._called = [self._calibration()]
        return self._called[0] if self._called else self._calibration

    @property
    def calibration_label(self) -> str:
        """What the data is, for messages."""
        return str(getattr(self._calibration, "label", "the calibration data"))

    @property
    def inference(self) -> Inferred:
        """What is inferred of the graph as it stands."""
        if self._inference is None:
            self._inference = infer(self.graph, self.settings, self.shapes, self.stuck, self._heads)
        return self._inference

    @contextlib.contextmanager
    def open_heads(self, layers: Iterable[Any]) -> Iterator[None]:
        """Lets the units of layers grow that are outputs of the model, inside a `with`."""
        self._heads, self._inference = frozenset(map(id, layers)), None
        try:
            yield
        finally:
            self._heads, self._inference = frozenset(), None

    def plan(self) -> Plan:
        """The plan so far."""
        return Plan(self.model.name, self.seed, tuple(self.steps), self._before, self.parameters)

    # -- finding things ------------------------------------------------------

    def layers(self) -> list[Facts]:
        """What is known of the layers, nested ones included, in graph order."""
        return [
            facts
            for facts in self.inference.facts.values()
            if isinstance(facts.operation, keras.Layer)
            and facts.part_of is None
            and (facts.units or (facts.given is not None and not facts.opened))
        ]

    def names(self) -> set[str]:
        """The names of all operations, those of inserted layers included."""
        names = {call.operation.name for _, call in self.graph.all_calls()}
        return names | {path.rsplit("/", 1)[-1] for path in self.inserted}

    def calls_of(self, layer: Any) -> list[tuple[Graph, Call]]:
        """Each call of a layer, with the graph it stands in."""
        return [(g, call) for g, call in self.graph.all_calls() if call.operation is layer]

    def owners(self) -> dict[Width, list[str]]:
        """The paths of the layers that make each width."""
        found: dict[Width, list[str]] = {}
        for facts in self.inference.facts.values():
            for expression in facts.units.values() if facts.part_of is None else ():
                for width in widths_of(expression):
                    paths = found.setdefault(width, [])
                    if facts.path not in paths:
                        paths.append(facts.path)
        return found

    def path_to_obstacle(self, facts: Facts, width: Width) -> list[str]:
        """The operations between a layer and what fixes its width, both included."""
        goal = width.obstacle.where if width.obstacle else None
        readers: dict[int, list[Call]] = {}
        calls = [call for _, call in self.graph.all_calls()]
        for call in calls:
            for tensor in (*call.inputs, *call.outputs):
                if self._has_fixed(tensor, width):
                    readers.setdefault(id(tensor), []).append(call)
        start = [call for call in calls if call.operation is facts.operation]
        previous: dict[int, Call | None] = {id(call): None for call in start}
        queue = deque(start)
        while queue:
            call = queue.popleft()
            if call.path == goal:
                path: list[str] = []
                step: Call | None = call
                while step is not None:
                    path.append(step.path)
                    step = previous[id(step)]
                return path[::-1]
            for tensor in (*call.outputs, *call.inputs):
                for other in readers.get(id(tensor), ()):
                    if id(other) not in previous:
                        previous[id(other)] = call
                        queue.append(other)
        return [facts.path, *([goal] if goal and goal != facts.path else [])]

    def _has_fixed(self, tensor: Tensor, width: Width) -> bool:
        return any(
            w is width or (w.obstacle is not None and w.obstacle == width.obstacle)
            for axis in self.inference.axes.get(id(tensor), ())
            for w in widths_of(axis)
        )

    # -- editing ---------------------------------------------------------------

    def widen(
        self,
        sizes: Mapping[Width, int],
        how: NewUnits,
        asked: Mapping[Width, Iterable[str]],
        fills: Mapping[Width, str | None] | None = None,
        additions: Mapping[str, tuple[Addition, ...]] | None = None,
        start: Start | None = None,
    ) -> tuple[tuple[WidthChange, ...], tuple[LayerChange, ...]]:
        """Grows widths, and all that is made of them.

        Args:
            sizes: The new size of each width.
            how: How the new units start.
            asked: The paths of the layers that were named, for each width.
            fills: For the widths that a normalization sees together, what their new
                units hold, as in `draw_bound`.
            additions: What is added to weights, by path.
            start: For units that nothing may read yet, how they start; they are put behind
                the old ones, and copy none of them. Defaults to `None`: `how` says it.

        Returns:
            The widths and the layers that change.
        """
        fills = fills or {}
        remaps = {}
        for width, size in sizes.items():
            old = int(width.size or 0)
            remaps[width] = (
                appended(old, size)
                if start is not None
                else draw_bound(self.seed, width.name, old, size, fills[width])
                if width in fills
                else draw(self.seed, width.name, old, size)
            )
        return self.remap(remaps, asked, how, fills, additions, start)

    def remap(
        self,
        remaps: Mapping[Width, Remap],
        asked: Mapping[Width, Iterable[str]],
        how: NewUnits | None = None,
        fills: Mapping[Width, str | None] | None = None,
        additions: Mapping[str, tuple[Addition, ...]] | None = None,
        start: Start | None = None,
    ) -> tuple[tuple[WidthChange, ...], tuple[LayerChange, ...]]:
        """Gives widths other units, and with them all that is made of them.

        Args:
            remaps: The remap of each width.
            asked: The paths of the layers that were named, for each width.
            how: How new units start. Defaults to `None`: as copies.
            fills: As for `widen`.
            additions: What is added to weights, by path.
            start: As for `widen`.

        Returns:
            The widths and the layers that change.
        """
        owners = self.owners()
        widths = tuple(
            WidthChange(
                width.name,
                int(width.size or 0),
                remap.size,
                tuple(owners.get(width, [width.name])),
                tuple(asked.get(width, ())),
            )
            for width, remap in remaps.items()
        )
        evaluate = _Evaluator(remaps, fills or {})
        layers = []
        for facts in self.inference.facts.values():
            change = self._layer_change(facts, evaluate, how or NewUnits(), additions or {}, start)
            if change is not None:
                if not facts.passing:
                    layers.append(change)
                changed = self.settings.setdefault(id(facts.operation), {})
                for key, _, new in change.config:
                    if key in facts.arguments:
                        facts.arguments[key][0].set_argument(key, new)
                    else:
                        changed[key] = new
        for g in self.graph.subgraphs():
            for tensor in _tensors(g):
                axes = self.inference.axes.get(id(tensor))
                if axes is not None:
                    tensor.shape = tuple(map(evaluate.size, axes, tensor.shape))
        self._inference = None
        return widths, tuple(layers)

    def _layer_change(
        self,
        facts: Facts,
        evaluate: _Evaluator,
        how: NewUnits,
        additions: Mapping[str, tuple[Addition, ...]],
        start: Start | None,
    ) -> LayerChange | None:
        variables = []
        for name, axes in facts.weights.items():
            remaps = [evaluate(axis.expression) for axis in axes]
            path = f"{facts.path}/{name}"
            added = additions.get(path, ())
            if all(remap is None for remap in remaps) and not added:
                continue
            offset = 0.0 if start is None else start.offsets.get(f"{facts.path}/{name}", 0.0)
            changes = tuple(
                None
                if remap is None
                else AxisChange(axis.role, remap, evaluate.silent(axis))
                if start is None
                else AxisChange(
                    axis.role,
                    remap,
                    silent=start.silent(axis),
                    offset=offset,
                )
                for axis, remap in zip(axes, remaps, strict=True)
            )
            scale = evaluate.scale(facts.scales[name]) if name in facts.scales else 1.0
            old = tuple(axis.expression.size or 0 for axis in axes)
            change = VariableChange(path, changes, how, scale, old, added)
            variables.append(change)
            self.shapes[change.name] = change.new_shape(old)
            if name not in internals.recurrent_states(facts.operation):
                self.parameters += _count(self.shapes[change.name]) - _count(old)
        config = []
        for key, expressions in facts.config.items():
            before = self.setting(facts.operation, key)
            after = evaluate.value(expressions, before)
            if isinstance(before, float) and abs(after - before) < 1e-12 * abs(before):
                continue
            if after != before:
                config.append((key, before, after))
        for name, (call, expressions) in facts.arguments.items():
            before = call.argument(name)
            after = evaluate.value(expressions, before)
            if after != before:
                config.append((name, before, after))
        if not variables and not config:
            return None
        kind = type(facts.operation).__name__
        return LayerChange(facts.path, kind, tuple(config), tuple(variables))

    def resize(
        self, facts: Facts, weights: Mapping[str, Mapping[int, Remap]], config: Mapping[str, Any]
    ) -> LayerChange:
        """Changes axes of weights that no width lies on, such as the space of a kernel.

        Args:
            facts: The layer.
            weights: For each of its weights that changes, the remaps of axes.
            config: The settings that change, with their new values.

        Returns:
            The change.
        """
        variables = []
        for name, remaps in weights.items():
            axes = facts.weights[name]
            changes = tuple(
                AxisChange(axis.role, remaps[at]) if at in remaps else None
                for at, axis in enumerate(axes)
            )
            change = VariableChange(f"{facts.path}/{name}", changes)
            old = [axis.expression.size or 0 for axis in axes]
            self.shapes[change.name] = change.new_shape(old)
            self.parameters += _count(self.shapes[change.name]) - _count(old)
            variables.append(change)
        changed = tuple(
            (key, self.setting(facts.operation, key), value) for key, value in config.items()
        )
        self.settings.setdefault(id(facts.operation), {}).update(config)
        self._inference = None
        kind = type(facts.operation).__name__
        return LayerChange(facts.path, kind, changed, tuple(variables))

    def setting(self, operation: Any, key: str) -> Any:
        """An attribute of a layer, as it is in the plan so far."""
        changed = self.settings.get(id(operation), {})
        return changed[key] if key in changed else getattr(operation, key)

    def insert(self, g: Graph, after: Tensor, chain: list[Inserted]) -> Tensor:
        """Inserts layers, one after the other, behind a tensor.

        Args:
            g: The graph that the tensor belongs to.
            after: The tensor.
            chain: The layers, none of which changes the shape.

        Returns:
            The tensor that the last of them makes.
        """
        calls = []
        x = after
        for inserted in chain:
            y = Tensor(x.shape, x.dtype)
            calls.append(Call(inserted.layer, inserted.insertion.path, (x,), {}, [y]))
            x = y
        self.insert_calls(g, after, calls, x, chain)
        return x

    def insert_calls(
        self, g: Graph, after: Tensor, calls: list[Call], last: Tensor, made: list[Inserted]
    ) -> None:
        """Inserts a part of a graph behind a tensor: whatever read the tensor reads `last`.

        Args:
            g: The graph that the tensor belongs to.
            after: The tensor.
            calls: The calls, in the order in which they run, of layers that are inserted.
            last: The tensor that the last of them makes, of the shape of `after`.
            made: The layers that they call.
        """
        self.check_open(g, made[0].insertion.path)
        for inserted in made:
            if inserted.insertion.path not in self.inserted:
                self._enter(inserted)
        g.insert_after(after, calls, last)
        self._inference = None

    def insert_before(
        self, g: Graph, call: Call, inserted: Inserted, shape: tuple[int | None, ...]
    ) -> Tensor:
        """Inserts a layer before a call, which then reads what the layer makes.

        Args:
            g: The graph that the call stands in.
            call: The call, of one tensor. Other calls that read it don't change.
            inserted: The layer.
            shape: The shape of what it makes.

        Returns:
            The tensor that it makes.
        """
        self.check_open(g, inserted.insertion.path)
        x = call.inputs[0]
        y = Tensor(shape, call.outputs[0].dtype)
        new = Call(inserted.layer, inserted.insertion.path, (x,), {}, [y])
        if inserted.insertion.path not in self.inserted:
            self._enter(inserted)
        g.insert_before(call, x, new, y)
        self._inference = None
        return y

    def replace(
        self, facts: Facts, config: Mapping[str, Any], variables: Iterable[VariableReplacement]
    ) -> LayerChange:
        """Gives a layer other settings, and weights that are computed from its old ones.

        Args:
            facts: What is known of the layer.
            config: The attributes that change, with their new values.
            variables: The weights that change.

        Returns:
            The change.
        """
        variables = tuple(variables)
        settings = self.settings.setdefault(id(facts.operation), {})
        changed = []
        for key, value in config.items():
            before = self.setting(facts.operation, key)
            if value != before:
                changed.append((key, before, value))
                settings[key] = value
        for change in variables:
            old = [axis.expression.size or 0 for axis in facts.weights[change.label]]
            self.shapes[change.name] = change.shape
            self.parameters += _count(change.shape) - _count(old)
        self._inference = None
        kind = type(facts.operation).__name__
        return LayerChange(facts.path, kind, tuple(changed), variables)

    def _enter(self, inserted: Inserted) -> None:
        """Notes a layer that is inserted."""
        path = inserted.insertion.path
        self.inserted[path] = inserted
        for weight in inserted.insertion.weights:
            self.shapes[f"{path}/{weight.name}"] = weight.shape
            self.parameters += _count(weight.shape)

    def check_open(self, g: Graph, path: str) -> None:
        """Checks that a layer can be inserted into a graph.

        Raises:
            GrowthError: If the graph is what code does.
        """
        if g.opened:
            raise GrowthError(
                (
                    f"No layer can be inserted into {g.path or g.model.name!r} "
                    f"({type(g.model).__name__})"
                ),
                "its own code decides which layers it calls",
                "Insert layers into Sequential or Functional models, or widen it",
                received=f"an insertion of {path!r}",
            )


class _Evaluator:
    """Evaluates width expressions under given remaps, each expression once."""

    def __init__(self, remaps: Mapping[Width, Remap], fills: Mapping[Width, str | None]) -> None:
        self._remaps = remaps
        self._fills = {width: fill for width, fill in fills.items() if fill is not None}
        self._known: dict[Expression, Remap | None] = {}

    def __call__(self, expression: Expression) -> Remap | None:
        expression = resolve(expression)
        if expression not in self._known:
            self._known[expression] = remap_of(expression, self._remaps)
        return self._known[expression]

    def silent(self, axis: WeightAxis) -> bool:
        """Whether an axis of a weight is zero for units that fill."""
        if not self._fills:
            return False
        modes = {self._fills[w] for w in widths_of(axis.expression) if w in self._fills}
        return any(axis.silent_for("mean" if mode == "mean" else "zero") for mode in modes)

    def scale(self, scaled: Scaled) -> float:
        """What a number is multiplied by."""
        remap = self(scaled.expression)
        if remap is None:
            return 1.0
        base = remap.kept if scaled.by == "kept" else remap.old_size / remap.size
        return float(base**scaled.power)

    def size(self, expression: Expression, old: int | None) -> int | None:
        """The size of an axis after the growth."""
        if expression.size is None:  # units beside a number of steps that isn't known, say
            return old
        remap = self(expression)
        return old if remap is None else remap.size

    def value(self, expressions: Any, old: Any) -> Any:
        """A config value after the growth, in the form of the old one."""
        if isinstance(expressions, (tuple, list)):
            values = [self.value(e, o) for e, o in zip(expressions, old, strict=True)]
            return values if isinstance(old, list) else tuple(values)
        if isinstance(expressions, slice):
            return slice(
                self.value(expressions.start, old.start),
                self.value(expressions.stop, old.stop),
                old.step,
            )
        if isinstance(expressions, FromEnd):
            return -(self.size(expressions.expression, -old) or 0)
        if isinstance(expressions, Scaled):
            return old * self.scale(expressions)
        return self.size(expressions, old) if isinstance(expressions, EXPRESSIONS) else expressions


def _tensors(g: Graph) -> Iterable[Tensor]:
    yield from g.flat_inputs
    for call in g.calls:
        yield from call.outputs


def _count(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def stand_in(layer_class: Any, config: Mapping[str, Any]) -> Any:
    """A layer without weights, for inference to ask its rule about."""
    return layer_class.from_config(dict(config))
