"""The state of planning: a graph that operations edit, step by step.

A draft starts as the graph of a model. Each operation reads what inference finds
in it, and asks it to grow widths or to insert layers; the draft changes sizes and
wiring in the graph, and records what it did. The model itself is never touched.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_net2net import (
    internals,
    rules,  # noqa: F401 - it fills the rule book
)
from keras_net2net.errors import GrowthError
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.planning.blueprint import Blueprint
from keras_net2net.planning.changes import (
    Addition,
    AxisChange,
    NewUnits,
    VariableChange,
    VariableReplacement,
)
from keras_net2net.planning.evaluating import Evaluator, Start
from keras_net2net.planning.making import Inserted, build_inserted
from keras_net2net.planning.plan import Insertion, LayerChange, Plan, Step, WidthChange
from keras_net2net.planning.remaps import Remap, appended, draw, draw_bound
from keras_net2net.widths.expressions import Width, is_axes, resolve, widths_of
from keras_net2net.widths.facts import Facts
from keras_net2net.widths.inference import infer
from keras_net2net.widths.inferred import Inferred
from keras_net2net.widths.reading import read


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
        self._training_data: Any = None
        self._calibration = calibration
        self._called: list[Any] = []
        self.graph: Graph = read(model)
        self.settings: dict[int, dict[str, Any]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.inserted: dict[str, Inserted] = {}
        self._steps: list[Step] = []
        self._parameters = self._before = int(model.count_params())
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

    # -- the plan ------------------------------------------------------------

    def add(self, steps: Iterable[Step]) -> None:
        """Adds what an operation has done to the plan."""
        self._steps += steps

    def exact_on(self, data: Any) -> None:
        """Notes the inputs that the model's behaviour in training mode was made exact for."""
        self._training_data = data

    def plan(self) -> Plan:
        """The plan so far."""
        return Plan(self.model.name, self.seed, tuple(self._steps), self._before, self._parameters)

    def finish(self) -> Blueprint:
        """The plan with all that it takes to carry it out."""
        plan = self.plan()
        facts = tuple(self.inference.facts.values())
        return Blueprint(
            plan,
            self.graph,
            facts,
            {path: new.layer for path, new in self.inserted.items()},
            dict(self._makers(plan, {one.path: one for one in facts})),
            self._training_data,
        )

    def _makers(
        self, plan: Plan, facts: Mapping[str, Facts]
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        """What makes each layer that is inserted, with all that later steps do to it."""
        for path, new in self.inserted.items():
            if new.make is None:
                shape = _shapes(facts[path].given[0][0])
                changes = plan.changes_of(path)
                make = functools.partial(build_inserted, new.insertion, shape, changes, self.seed)
            yield path, new.make or make

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
        queue = deque((one, [one.path]) for one in calls if one.operation is facts.operation)
        seen = {id(call) for call, _ in queue}
        while queue:
            call, path = queue.popleft()
            if call.path == goal:
                return path
            for tensor in (*call.outputs, *call.inputs):
                for other in readers.get(id(tensor), ()):
                    if id(other) not in seen:
                        seen.add(id(other))
                        queue.append((other, [*path, other.path]))
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
        evaluate = Evaluator(remaps, how or NewUnits(), fills or {}, additions or {}, start)
        inferred = self.inference
        layers = []
        for facts in inferred.facts.values():
            found = [evaluate.variable(facts, name) for name in facts.weights]
            variables = [change for change in found if change is not None]
            settings = self._settings(facts, evaluate)
            if variables or settings:
                change = self._change(facts, variables, settings)
                if not facts.passing:
                    layers.append(change)
        for graph in self.graph.subgraphs():
            for tensor in (*graph.flat_inputs, *(x for one in graph.calls for x in one.outputs)):
                axes = inferred.axes.get(id(tensor))
                if axes is not None:
                    tensor.shape = tuple(map(evaluate.size, axes, tensor.shape))
        return widths, tuple(layers)

    def _settings(self, facts: Facts, evaluate: Evaluator) -> list[tuple[str, Any, Any]]:
        """The settings of a layer, and the arguments of its call, that change."""
        settings = [
            *((key, self.setting(facts.operation, key), new) for key, new in facts.config.items()),
            *((key, call.argument(key), new) for key, (call, new) in facts.arguments.items()),
        ]
        changed = []
        for key, before, expressions in settings:
            after = evaluate.value(expressions, before)
            rounding = isinstance(before, float) and abs(after - before) < 1e-12 * abs(before)
            if after != before and not rounding:
                changed.append((key, before, after))
        return changed

    def _change(
        self,
        facts: Facts,
        variables: Sequence[VariableChange | VariableReplacement],
        settings: Sequence[tuple[str, Any, Any]],
    ) -> LayerChange:
        """Changes a layer of the draft: its weights' shapes, its settings and arguments."""
        for change in variables:
            old = tuple(axis.expression.size or 0 for axis in facts.weights[change.label])
            self.shapes[change.name] = change.new_shape(old)
            if change.label not in internals.recurrent_states(facts.operation):
                self._parameters += math.prod(self.shapes[change.name]) - math.prod(old)
        held = self.settings.setdefault(id(facts.operation), {})
        for key, _, new in settings:
            if key in facts.arguments:
                facts.arguments[key][0].set_argument(key, new)
            else:
                held[key] = new
        self._inference = None
        kind = type(facts.operation).__name__
        return LayerChange(facts.path, kind, tuple(settings), tuple(variables))

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
            axes = enumerate(facts.weights[name])
            changes = [
                AxisChange(axis.role, remaps[at]) if at in remaps else None for at, axis in axes
            ]
            variables.append(VariableChange(f"{facts.path}/{name}", tuple(changes)))
        return self.replace(facts, config, variables)

    def setting(self, operation: Any, key: str) -> Any:
        """An attribute of a layer, as it is in the plan so far."""
        changed = self.settings.get(id(operation), {})
        return changed[key] if key in changed else getattr(operation, key)

    def insert(
        self,
        g: Graph,
        after: Tensor,
        calls: list[Call],
        last: Tensor,
        made: list[Inserted],
        reader: Call | None = None,
    ) -> None:
        """Inserts a part of a graph behind a tensor: what read the tensor reads `last`.

        Args:
            g: The graph that the tensor belongs to.
            after: The tensor.
            calls: The calls, in the order in which they run, of layers that are inserted.
            last: The tensor that the last of them makes.
            made: The layers that they call.
            reader: The only call that is to read `last`; there is one new call then.
                Defaults to `None`: all calls do, and `last` has the shape of `after`.
        """
        for inserted in made:
            if inserted.path not in self.inserted:
                self.inserted[inserted.path] = inserted
                for weight in inserted.insertion.weights:
                    self.shapes[f"{inserted.path}/{weight.name}"] = weight.shape
                self.count(inserted.insertion)
        g.insert(after, calls, last, reader)
        self._inference = None

    def replace(
        self,
        facts: Facts,
        config: Mapping[str, Any],
        variables: Sequence[VariableChange | VariableReplacement],
    ) -> LayerChange:
        """Gives a layer other settings, and weights that are computed from its old ones.

        Args:
            facts: What is known of the layer.
            config: The attributes that change, with their new values.
            variables: The changes of its weights.

        Returns:
            The change.
        """
        held = {key: self.setting(facts.operation, key) for key in config}
        settings = [(key, held[key], new) for key, new in config.items() if new != held[key]]
        return self._change(facts, variables, settings)

    def count(self, insertion: Insertion) -> None:
        """Counts the parameters of a layer that is inserted, be it inside another one."""
        self._parameters += sum(math.prod(weight.shape) for weight in insertion.weights)

    def check_open(self, g: Graph, path: str) -> None:
        """Checks that a layer can be inserted into a graph.

        Raises:
            GrowthError: If the graph is what code does.
        """
        if g.opened:
            raise GrowthError(
                f"No layer can be inserted into {g.path or g.model.name!r} "
                f"({type(g.model).__name__})",
                "its own code decides which layers it calls",
                "Insert layers into Sequential or Functional models, or widen it",
                received=f"an insertion of {path!r}",
            )


def _shapes(given: Any) -> Any:
    """The shapes of what a layer is called with, a tensor or several."""
    if is_axes(given):
        return tuple(resolve(axis).size for axis in given)
    return [_shapes(one) for one in given]
