"""The battery for a rule: a bench of small models around one layer, and what they go through."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import layers

from keras_net2net import internals
from keras_net2net.errors import CheckError, FixedWidthError, GrowthError, SizeError
from keras_net2net.growth.grow import plan
from keras_net2net.growth.probe import TOLERANCES
from keras_net2net.operations.wider.wider import Wider
from keras_net2net.testing.models import (
    as_array,
    check_model,
    check_native,
    check_same,
    failing,
    grow_checked,
    outputs,
    random_inputs,
    randomize,
)
from keras_net2net.widths.inference import infer
from keras_net2net.widths.reading import read

FACTORS = (1.5, 2.0)  # the second where only whole multiples are possible
POLICIES = ("mixed_float16", "mixed_bfloat16")


def check_rule(
    layer: Any,
    input_shape: Any,
    *,
    call: Callable[[Any, Any], Any] | None = None,
    dtype: str = "float32",
    axis: int | None = None,
    fixed: Iterable[str] = (),
    tolerance: float = 1e-6,
    policies: Sequence[str] = POLICIES,
    data_formats: bool = True,
    save: bool = True,
    train: bool = True,
) -> tuple[str, ...]:
    """Checks that a layer computes the same after growth: that its rule is right.

    The layer is put between two `Dense` layers that make and read units, all
    weights get random values, and then units are added: those that go in, those
    that the layer makes (each size that it counts, alone), and all of them twice
    in a row, with random shares, even shares and fresh units. After each growth

    - the outputs are those from before, as largest absolute difference, at
      inference and in training mode (layers that draw random numbers there are
      compared at inference);
    - all shapes are those of a model that is built from the grown configuration.

    Then the grown model is saved and loaded, and trained for a step. The same is
    done under mixed precision, and, where the layer has a `data_format`, with the
    other one.

    Args:
        layer: The layer, not built; or a function, or class, that makes it.
        input_shape: Tuple, the shape of its input without the batch; or a list of
            these for several inputs. `None` stands for sizes that are unknown.
        call: How the layer is called, as a function of the layer and of its
            symbolic input (or list of inputs), such as
            `lambda layer, x: layer(x, x)`. Each output that it returns is read along
            its axis of units; what else grows has to be reshaped into that. Defaults
            to `None`: `layer(x)`.
        dtype: The dtype of the input. An integer one goes straight into the layer,
            as indices below 5. Defaults to `"float32"`.
        axis: Integer, the axis of the input that holds the units, the batch
            counted. Defaults to `None`: the channels by the layer's `data_format`,
            or the last axis.
        fixed: What the rule is meant to forbid: `"input"` (or `"input_1"`, for the
            second of several) for what goes in, and the names of sizes that the
            layer counts. All else must grow, and these must not.
        tolerance: Float, the largest difference for outputs of order one. Defaults
            to `1e-6`.
        policies: The dtype policies to repeat it under. Defaults to
            `("mixed_float16", "mixed_bfloat16")`.
        data_formats: Whether to repeat it in the other data format. TensorFlow
            can't run all layers with the channels first on a CPU: there only the
            grown weights are compared with those of the other format. Defaults to
            `True`.
        save: Whether to save and load the grown model. Defaults to `True`.
        train: Whether to train it. Defaults to `True`.

    Returns:
        The names of what grew, such as `("input", "units")`.

    Raises:
        CheckError: If something isn't as it should be. It is an `AssertionError`.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> class Center(keras.Layer):
    ...     def build(self, input_shape):
    ...         self.center = self.add_weight(shape=(input_shape[-1],), name="center")
    ...     def call(self, x):
    ...         return x - self.center
    >>> @n2n.rules.register_rule(Center)
    ... def center(call, x):
    ...     call.weight("center", n2n.rules.follows(x[-1]))
    ...     return x
    >>> n2n.testing.check_rule(Center(), (3, 4))
    ('input',)
    """
    with custom_objects(layer if isinstance(layer, keras.Layer) else layer()):
        bench = _Bench(
            _maker(layer),
            input_shape if isinstance(input_shape, list) else [input_shape],
            call or (lambda layer, x: layer(x)),
            dtype,
            axis,
        )
        model, entries, normalizes = _entries(bench)
        grown, growths = _growths(model, entries, set(fixed))
        check_model(bench.model, growths, tolerance=tolerance, save=save, train=train)
        if normalizes:  # what may fill a normalization depends on what lies before it
            linear = dataclasses.replace(bench, activation=None)
            _, others = _growths(linear.model(), entries, set(fixed))
            check_model(linear.model, others, tolerance=tolerance, save=save, train=False)
        for policy in policies:
            with _policy(policy):
                check_model(
                    dataclasses.replace(bench, policy=policy).model,
                    growths[-1:],
                    tolerance=TOLERANCES[policy.removeprefix("mixed_")],
                    save=False,
                    train=False,
                )
        if data_formats:
            _check_formats(bench, growths[-1:], tolerance)
    return tuple(grown)


@contextlib.contextmanager
def custom_objects(*given: Any) -> Iterator[None]:
    """Lets the classes of layers, and of those in them, be found when a model is loaded."""
    found: dict[str, type] = {}
    stack = list(given)
    while stack:
        layer = stack.pop()
        if not internals.is_keras_layer(layer):
            found[type(layer).__name__] = type(layer)
        stack += internals.sublayers(layer)
    with keras.saving.custom_object_scope(found):
        yield


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _maker(layer: Any) -> Callable[..., Any]:
    """A function that makes equal layers of one name, with other settings if these are given."""
    first = layer if isinstance(layer, keras.Layer) else layer()

    def make(**settings: Any) -> Any:
        given = first if isinstance(layer, keras.Layer) else layer()
        problem = f"The layer {first.name!r} can't be made from its configuration"
        instead = "Return all arguments from its `get_config`"
        with failing(problem, instead, f"a {type(first).__name__}"):
            config = given.get_config()
            if keras.config.dtype_policy().name != "float32":
                config.pop("dtype", None)  # that of the layer in hand; the present one is meant
            return type(given).from_config({**config, "name": first.name, **settings})

    return make


@dataclasses.dataclass(frozen=True)
class _Bench:
    """A layer between layers that make units and layers that read them.

    Args:
        make: Makes the layer.
        shapes: The shapes of its inputs.
        call: Calls it.
        dtype: The dtype of its inputs.
        axis: The axis of its units.
        activation: The activation of the layers before it.
        policy: The name of the dtype policy, in the model's name.
        settings: What is changed in the layer's configuration.
    """

    make: Callable[..., Any]
    shapes: list[tuple[int | None, ...]]
    call: Callable[[Any, Any], Any]
    dtype: str
    axis: int | None
    activation: str | None = "tanh"
    policy: str = "float32"
    settings: tuple[tuple[str, Any], ...] = ()

    def model(self) -> Any:
        """The model."""
        layer = self.make(**dict(self.settings))
        inputs, given = [], []
        for shape, number in zip(self.shapes, _numbers(self.shapes), strict=True):
            axis, space = self._axis(layer, len(shape) + 1), list(shape)
            if "int" in self.dtype:
                given.append(keras.Input(shape, dtype=self.dtype))
                inputs.append(given[-1])
                continue
            dense = layers.Dense(space.pop(axis), self.activation, name=f"before{number}")
            inputs.append(keras.Input((*space, 5), dtype=self.dtype))
            given.append(_move(dense(inputs[-1]), -1, axis))
        results = keras.tree.flatten(self.call(layer, given if len(given) > 1 else given[0]))
        axis = self._axis(layer, len(self.shapes[0]) + 1)
        made = []
        for x, number in zip(results, _numbers(results), strict=True):
            last = _move(x, axis, -1) if -axis < len(x.shape) else x
            made.append(layers.Dense(3, name=f"after{number}")(last))
        return keras.Model(
            inputs if len(inputs) > 1 else inputs[0], made, name=f"{layer.name}_in_{self.policy}"
        )

    def _axis(self, layer: Any, rank: int) -> int:
        """The axis of the units, counted from the end."""
        if self.axis is not None:
            return self.axis % rank - rank
        first = getattr(layer, "data_format", None) == "channels_first"
        return -1 - _space(layer, rank) if first else -1


def _numbers(things: Sequence[Any]) -> list[str]:
    """What follows the names of layers around: nothing for a single one."""
    return [""] if len(things) == 1 else [f"_{i}" for i in range(len(things))]


def _space(layer: Any, rank: int) -> int:
    """How many spatial axes a layer has that has a data format."""
    return len(layer.kernel_size) if hasattr(layer, "kernel_size") else rank - 2


def _move(x: Any, source: int, target: int) -> Any:
    """Moves an axis, by a layer."""
    rank = len(x.shape)
    order = list(range(1, rank))
    moved = order.pop(source % rank - 1)
    order.insert(target % rank - 1, moved)
    return x if order == sorted(order) else layers.Permute(order)(x)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Units that may grow: those that a layer makes, or one of the sizes that it counts.

    Args:
        label: How the user calls them.
        path: The path of the layer.
        key: The size that it counts, or `None` for its units.
    """

    label: str
    path: str
    key: str | None = None

    def wider(self, factor: float) -> Wider:
        """The operation that makes more of them."""
        return Wider(self.path, factor=factor if self.key is None else {self.key: factor})


def _entries(bench: _Bench) -> tuple[Any, list[_Entry], bool]:
    """The model, what may grow in it, and whether a normalization sees units."""
    model = bench.model()
    received = f"a model of {', '.join(repr(layer.name) for layer in model.layers)}"
    instead = "A rule takes the call, then what the layer is called with, axes for tensors"
    with failing("The rule can't be applied", instead, received):
        inference = infer(read(model), {}, {})
    entries = []
    if "int" not in bench.dtype:
        entries = [_Entry(f"input{number}", f"before{number}") for number in _numbers(bench.shapes)]
    around = {entry.path for entry in entries} | {f"after{n}" for n in _numbers(model.outputs)}
    for facts in inference.facts.values():
        if facts.path in around or facts.part_of is not None:
            continue
        if not isinstance(facts.operation, keras.Layer):
            continue
        inside = facts.path.partition("/")[2]
        for key in facts.units:
            entries.append(_Entry(f"{inside}:{key}" if inside else key, facts.path, key))
    return model, entries, bool(inference.normalized)


def _growths(model: Any, entries: list[_Entry], fixed: set[str]) -> tuple[list[str], list[Any]]:
    """What can grow, and the growths of the battery; an error if not all that should can."""
    unknown = fixed - {entry.label for entry in entries}
    if unknown:
        labels = ", ".join(repr(entry.label) for entry in entries) or "nothing"
        raise CheckError(
            f"There is no {min(unknown)!r} that could be fixed",
            f"what may grow is {labels}",
            "Name one of these",
            received=f"fixed={sorted(fixed)}",
        )
    grown: list[str] = []
    growths: list[Any] = []
    largest = FACTORS[0]
    for entry in entries:
        factor, obstacle = _factor(model, entry)
        if (factor is None) != (entry.label in fixed):
            raise _unexpected(entry, obstacle)
        if factor is not None:
            grown.append(entry.label)
            growths.append(entry.wider(factor))
            largest = max(largest, factor)
    if growths:
        kinds: list[dict[str, Any]] = [{"shares": "even"}, {"new_units": "fresh"}]
        growths.append([Wider(factor=largest, **kind) for kind in kinds])
    return grown, growths


def _factor(model: Any, entry: _Entry) -> tuple[float | None, GrowthError | None]:
    """The first factor that is possible, or why none is."""
    obstacle: GrowthError | None = None
    for factor in FACTORS:
        try:
            plan(model, entry.wider(factor), seed=0)
            return factor, None
        except (FixedWidthError, SizeError) as error:
            obstacle = error
    return None, obstacle


def _unexpected(entry: _Entry, obstacle: GrowthError | None) -> CheckError:
    if obstacle is not None:
        return CheckError(
            f"The rule doesn't let {entry.label!r} grow",
            f"{obstacle.problem}: {obstacle.why}",
            "Cover all weights in the rule, and return the axes of each output; or say "
            f"`fixed=[{entry.label!r}]` if there can't be more of these",
            received=f"the layer at {entry.path!r}",
        )
    return CheckError(
        f"The rule lets {entry.label!r} grow",
        "it was said to be fixed",
        "Fix the axis in the rule (`call.fix`), or take it from `fixed`",
        received=f"the layer at {entry.path!r}",
    )


def _check_formats(bench: _Bench, growths: list[Any], tolerance: float) -> None:
    """Grows the layer in the other data format: to the same weights."""
    given = bench.make()
    config = given.get_config()
    if config.get("data_format") not in ("channels_first", "channels_last") or not growths:
        return
    first = config["data_format"] == "channels_first"
    other = "channels_last" if first else "channels_first"

    def moved(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        units = -1 - _space(given, len(shape) + 1)
        sizes = list(shape)
        if first:
            sizes.append(sizes.pop(units))
        else:
            sizes.insert(len(sizes) + units, sizes.pop())
        return tuple(sizes)

    shapes = [moved(shape) for shape in bench.shapes]
    theirs = dataclasses.replace(bench, shapes=shapes, settings=(("data_format", other),))
    models = [randomize(one.model()) for one in (bench, theirs)]
    same = [w.shape for w in models[0].weights] == [w.shape for w in models[1].weights]
    runs = keras.backend.backend() != "tensorflow"
    x = random_inputs(models[1])
    before = outputs(models[1], x) if runs else []
    for model in models:
        for number, operations in enumerate(growths):
            grow_checked(model, operations, number)
    check_native(models[1])
    if same:
        weights = [list(map(as_array, model.weights)) for model in models]
        check_same(weights[1], weights[0], 0.0, "and weights with the other data format")
    if runs:
        check_same(outputs(models[1], x), before, tolerance, f"with data_format={other!r}")
