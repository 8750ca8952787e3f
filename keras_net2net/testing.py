"""The battery that every built-in rule passes, for rules of your own as well.

A rule is a claim: if units are copied, and the weights shared as it says, then the
layer and all around it compute what they did. `check_rule` tests the claim on
numbers. It needs nothing beside Keras and NumPy, and no test framework.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net import keras_privates as privates
from keras_net2net.draft import Draft
from keras_net2net.errors import CheckError, FixedWidthError, SizeError, explain
from keras_net2net.growth import grow, plan
from keras_net2net.operations.wider import Wider
from keras_net2net.report import GrowthReport
from keras_net2net.verify import TOLERANCES

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
    >>> @n2n.register_rule(Center)
    ... def center(call, x):
    ...     call.weight("center", n2n.follows(x[-1]))
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


def check_model(
    build: Callable[[], Any],
    growths: Iterable[Any],
    *,
    inputs: Any = None,
    tolerance: float = 1e-6,
    native: bool = True,
    save: bool = True,
    train: bool = True,
) -> list[GrowthReport]:
    """Checks that a model computes the same after each of several growths.

    Args:
        build: Makes the model. Its weights then get random values.
        growths: What is done to it, one growth after the other: each an operation,
            or a list of operations.
        inputs: A batch for the model. Defaults to `None`: random numbers.
        tolerance: Float, the largest difference for outputs of order one. Defaults
            to `1e-6`.
        native: Whether to compare all shapes with those of a model that is built
            from the grown configuration. Defaults to `True`.
        save: Whether to save and load the grown model. Defaults to `True`.
        train: Whether to train it for a step. Defaults to `True`.

    Returns:
        The report of each growth.

    Raises:
        CheckError: If something isn't as it should be. It is an `AssertionError`.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> def build():
    ...     inputs = keras.Input((5,))
    ...     hidden = keras.layers.Dense(4, activation="relu", name="hidden")(inputs)
    ...     return keras.Model(inputs, keras.layers.Dense(2)(hidden))
    >>> reports = n2n.testing.check_model(build, [n2n.Wider("hidden", 6), n2n.Wider(factor=2)])
    >>> [report.parameters_after for report in reports]
    [50, 98]
    """
    model = randomize(build())
    x = random_inputs(model) if inputs is None else inputs
    modes = (False,) if _is_random(model, x) else (False, True)
    before = outputs(model, x, modes)
    reports = []
    for number, operations in enumerate(growths):
        report = _grow(model, operations, number)
        reports.append(report)
        _check_size(model, report)
        if native:
            check_native(model)
        check_same(outputs(model, x, modes), before, tolerance, f"after {operations!r}", len(modes))
    if save:
        _check_saving(model, x, tolerance)
    if train:
        check_training(model, x)
    return reports


def randomize(model: Any, seed: int = 0) -> Any:
    """Gives every weight a random value of a size that keeps activations of order one.

    Fresh weights hide mistakes: biases are zero, and a BatchNormalization passes its
    input through. Here it gets means, positive variances, a gamma and a beta.

    Args:
        model: The model; it is changed.
        seed: Integer. Defaults to `0`.

    Returns:
        The model.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> bool(n2n.testing.randomize(model).get_weights()[1].any())
    True
    """
    random = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if "int" in variable.dtype:  # counters and the states of random seeds
            continue
        if "variance" in variable.name or "stddev" in variable.name:
            value = random.uniform(0.5, 2.0, shape)
        elif variable.name == "gamma":
            value = random.choice([-1, 1], shape) * random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1 and variable.name != "alpha":
            value = random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        else:
            value = 0.5 * random.standard_normal(shape)
        variable.assign(np.asarray(value, "float32"))
    for _, layer in flat_layers(model):
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()  # it keeps values made from its weights
    return model


def random_inputs(model: Any, seed: int = 0, batch: int = 4) -> Any:
    """Random inputs, nested as a model takes them; integers are below 5.

    Args:
        model: A Sequential or Functional model.
        seed: Integer. Defaults to `0`.
        batch: Integer, the size of the batch. Defaults to `4`.

    Returns:
        Arrays, with 4 in the place of other unknown sizes.
    """
    random = np.random.default_rng(seed)

    def make(tensor: Any) -> np.ndarray:
        first = batch if tensor.shape[0] is None else tensor.shape[0]
        shape = [first, *(4 if size is None else size for size in tensor.shape[1:])]
        if "int" in tensor.dtype:
            return random.integers(0, 5, shape).astype(tensor.dtype)
        return random.standard_normal(shape).astype("float32")

    function = privates.function_of(model)
    nested = model.inputs if function is None else privates.structures_of(function)[0]
    return keras.tree.map_structure(make, nested)


def outputs(model: Any, x: Any, modes: Sequence[bool] = (False,)) -> list[np.ndarray]:
    """The outputs of a model, flat, in float64; its state stays as it is.

    Args:
        model: The model.
        x: Its inputs.
        modes: For each call of it, whether it is in training mode. Defaults to one
            call at inference.

    Returns:
        The outputs of all calls, one after the other.
    """
    if keras.backend.backend() == "jax":
        made = _compiled(model, x, modes)
    else:
        made = []
        for mode in modes:
            with keras.StatelessScope():
                made.append(model(x, training=mode))
    return [_array(y).astype("float64") for y in keras.tree.flatten(made)]


def _compiled(model: Any, x: Any, modes: Sequence[bool]) -> Any:
    """All calls in one program: operation by operation, JAX compiles for longer at each shape."""
    import jax

    given = [{"training": mode} if privates.takes_training(model) else {} for mode in modes]

    def call(trainable: list[Any], rest: list[Any]) -> Any:
        return [model.stateless_call(trainable, rest, x, **kwargs)[0] for kwargs in given]

    variables = (model.trainable_variables, model.non_trainable_variables)
    return jax.jit(call)(*([variable.value for variable in part] for part in variables))


def _array(x: Any) -> np.ndarray:
    """A tensor or variable as an array that nothing else writes to."""
    return np.array(keras.ops.convert_to_numpy(x))


def _is_random(model: Any, x: Any) -> bool:
    """Whether what a model computes in training mode depends on the states of random seeds."""
    seeds = [v for v in model.non_trainable_variables if "int" in v.dtype]
    if not seeds:
        return False
    first = outputs(model, x, (True,))
    for seed in seeds:
        seed.assign(_array(seed) + 1)
    second = outputs(model, x, (True,))
    return any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def largest_difference(first: Iterable[np.ndarray], second: Iterable[np.ndarray]) -> float:
    """The largest absolute difference between two lists of arrays; NaN if there is one.

    Example:

    >>> import numpy as np
    >>> import keras_net2net as n2n
    >>> n2n.testing.largest_difference([np.array([1.0, 2.0])], [np.array([1.5, 2.0])])
    0.5
    """
    largest = 0.0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            return float("nan")
        largest = float(np.maximum(largest, np.max(np.abs(a - b), initial=0.0)))
    return largest


def check_same(
    new: Sequence[np.ndarray],
    old: Sequence[np.ndarray],
    tolerance: float,
    when: str,
    modes: int = 1,
) -> None:
    """Checks that outputs agree, relative to outputs of order one.

    Args:
        new: The outputs now.
        old: The outputs before.
        tolerance: Float, the largest difference.
        when: What happened between the two, for the message.
        modes: Integer, how many modes the outputs are of: inference, or training as
            well. Defaults to `1`.

    Raises:
        CheckError: If they differ.
    """
    scale = max(1.0, *(float(np.max(np.abs(y), initial=0.0)) for y in old))
    if largest_difference(new, old) <= tolerance * scale:
        return
    each = len(old) // modes
    worst = {
        mode: largest_difference(new[i * each : (i + 1) * each], old[i * each : (i + 1) * each])
        for i, mode in zip(range(modes), ("at inference", "in training mode"), strict=False)
    }
    differences = ", ".join(f"by up to {worst[mode]:.2e} {mode}" for mode in worst)
    raise CheckError(
        explain(
            "The outputs aren't what they were",
            f"they differ {differences}, at outputs of up to {scale:.2f}, where "
            f"{tolerance * scale:.1e} is allowed",
            f"the outputs {when}",
            "Check the role of each axis of each weight: what makes units is copied, what reads "
            "them is shared among copies, what follows them goes with them; and fix the axes that "
            "the layer sees as a whole (`call.fix`)",
        )
    )


def flat_layers(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All layers of a model by their path, nested models included."""
    for layer in model.layers:
        yield path + layer.name, layer
        if isinstance(layer, keras.Model):
            yield from flat_layers(layer, f"{path}{layer.name}/")


def shapes_of(model: Any) -> dict[str, Any]:
    """The shapes of all symbolic tensors, weights and inputs of a model, by layer."""
    found: dict[str, Any] = {
        "": [tuple(t.shape) for t in (*model.inputs, *model.outputs)],
    }
    for path, layer in flat_layers(model):
        tensors = [
            tuple(tensor.shape)
            for node in layer._inbound_nodes
            for tensor in (*node.input_tensors, *node.outputs)
        ]
        specs = [
            (spec.ndim, spec.shape, spec.axes)
            for spec in keras.tree.flatten(layer.input_spec)
            if spec is not None
        ]
        found[path] = (
            sorted(set(tensors), key=repr),
            [(_own_name(weight), tuple(weight.shape)) for weight in layer.weights],
            specs if not isinstance(layer, keras.Model) else None,
        )
    return found


def _own_name(weight: Any) -> str:
    """The name of a weight; Keras numbers those without one over all models."""
    return re.sub(r"^variable(_\d+)?$", "variable", weight.name)


def check_native(model: Any) -> Any:
    """Checks that every shape is that of the model that its configuration builds.

    Args:
        model: A Sequential or Functional model.

    Returns:
        The model that was built for this.

    Raises:
        CheckError: If a shape isn't.
    """
    received = f"the configuration of {model.name!r}"
    instead = "Name every config key that holds a size: `call.units(key)`, `call.configure(key, e)`"
    try:
        native = type(model).from_config(model.get_config())
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckError(
            explain("The grown configuration builds no model", why, received, instead)
        ) from error
    ours, theirs = shapes_of(model), shapes_of(native)
    for path in ours:
        if ours[path] != theirs.get(path):
            raise CheckError(
                explain(
                    f"The grown layer {path!r} isn't what its configuration says",
                    f"its shapes (of tensors, weights and inputs) are {ours[path]}, and a layer "
                    f"built from its configuration has {theirs.get(path)}",
                    received,
                    instead,
                )
            )
    return native


def check_training(model: Any, x: Any) -> None:
    """Checks that one step of training runs, and moves weights.

    Args:
        model: The model; it is compiled and trained.
        x: Its inputs.

    Raises:
        CheckError: If the loss isn't finite, or no weight moves.
    """
    y = [np.zeros_like(out, "float32") for out in outputs(model, x)]
    before = [_array(weight) for weight in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.1), loss=["mse"] * len(y))
    loss = model.train_on_batch(x, y if len(y) > 1 else y[0])
    after = [_array(weight) for weight in model.trainable_variables]
    moved = any(not np.array_equal(a, b) for a, b in zip(after, before, strict=True))
    if np.all(np.isfinite(loss)) and moved:
        return
    raise CheckError(
        explain(
            f"The grown model {model.name!r} can't be trained",
            "the loss isn't finite" if moved else "a step of training moves no weight",
            f"a loss of {loss}",
            "Look at what its layers do in training mode",
        )
    )


def _grow(model: Any, operations: Any, seed: int) -> GrowthReport:
    try:
        return grow(model, operations, seed=seed, verify=False)
    except Exception as error:
        raise CheckError(
            explain(
                f"The model {model.name!r} can't grow",
                f"{type(error).__name__}: {error}",
                f"{operations!r}",
                "Check the sizes and config keys that the rules name",
            )
        ) from error


def _check_size(model: Any, report: GrowthReport) -> None:
    if report.parameters_before < report.parameters_after == model.count_params():
        return
    raise CheckError(
        explain(
            f"The model {model.name!r} isn't as large as planned",
            f"it has {model.count_params()} parameters, had {report.parameters_before}, and "
            f"{report.parameters_after} were planned",
            f"{report.operations!r}",
            "Please report the model",
        )
    )


def _check_saving(model: Any, x: Any, tolerance: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grown.keras"
        model.save(path)
        try:
            loaded = keras.models.load_model(path)
        except Exception as error:
            raise CheckError(
                explain(
                    f"The grown model {model.name!r} can't be loaded",
                    f"{type(error).__name__}: {error}",
                    "the model as it was saved",
                    "Name every config key that holds a size in the rule, and return all arguments "
                    "from the layer's `get_config`",
                )
            ) from error
    check_same(outputs(loaded, x), outputs(model, x), tolerance, "of the saved and loaded model")


@contextlib.contextmanager
def custom_objects(*given: Any) -> Iterator[None]:
    """Lets the classes of layers, and of those in them, be found when a model is loaded."""
    found: dict[str, type] = {}
    stack = list(given)
    while stack:
        layer = stack.pop()
        if not privates.is_keras_layer(layer):
            found[type(layer).__name__] = type(layer)
        stack += privates.sublayers(layer)
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
        try:
            config = given.get_config()
            if keras.config.dtype_policy().name != "float32":
                config.pop("dtype", None)  # that of the layer in hand; the present one is meant
            return type(given).from_config({**config, "name": first.name, **settings})
        except Exception as error:
            raise CheckError(
                explain(
                    f"The layer {first.name!r} can't be made from its configuration",
                    f"{type(error).__name__}: {error}",
                    f"a {type(first).__name__}",
                    "Return all arguments from its `get_config`",
                )
            ) from error

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

    @property
    def numbered(self) -> list[str]:
        """What follows the names of the layers before."""
        return _numbers(self.shapes)

    def model(self) -> Any:
        """The model."""
        layer = self.make(**dict(self.settings))
        inputs, given = [], []
        for shape, number in zip(self.shapes, self.numbered, strict=True):
            x = source = self._input(shape, layer)
            if "int" not in self.dtype:
                axis = self._axis(layer, len(shape) + 1)
                dense = layers.Dense(
                    shape[axis], activation=self.activation, name=f"before{number}"
                )
                x = _move(dense(source), -1, axis)
            inputs.append(source)
            given.append(x)
        results = keras.tree.flatten(self.call(layer, given if len(given) > 1 else given[0]))
        axis = self._axis(layer, len(self.shapes[0]) + 1)
        made = []
        for x, number in zip(results, _numbers(results), strict=True):
            last = _move(x, axis, -1) if -axis < len(x.shape) else x
            made.append(layers.Dense(3, name=f"after{number}")(last))
        return keras.Model(
            inputs if len(inputs) > 1 else inputs[0], made, name=f"{layer.name}_in_{self.policy}"
        )

    def _input(self, shape: tuple[int | None, ...], layer: Any) -> Any:
        if "int" in self.dtype:
            return keras.Input(shape, dtype=self.dtype)
        axis = self._axis(layer, len(shape) + 1)
        space = [size for i, size in enumerate(shape) if i != axis % len(shape)]
        return keras.Input((*space, 5), dtype=self.dtype)

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
    try:
        draft = Draft(model, 0)
        normalizes = bool(draft.inference.normalized)
    except Exception as error:
        raise CheckError(
            explain(
                "The rule can't be applied",
                f"{type(error).__name__}: {error}",
                f"a model of {', '.join(repr(layer.name) for layer in model.layers)}",
                "A rule takes the call, then what the layer is called with, axes for tensors",
            )
        ) from error
    entries = []
    if "int" not in bench.dtype:
        entries = [_Entry(f"input{number}", f"before{number}") for number in bench.numbered]
    around = {entry.path for entry in entries} | {f"after{n}" for n in _numbers(model.outputs)}
    for facts in draft.layers():
        if facts.path in around or facts.part_of is not None:
            continue
        inside = facts.path.partition("/")[2]
        for key in facts.units:
            entries.append(_Entry(f"{inside}:{key}" if inside else key, facts.path, key))
    return model, entries, normalizes


def _growths(model: Any, entries: list[_Entry], fixed: set[str]) -> tuple[list[str], list[Any]]:
    """What can grow, and the growths of the battery; an error if not all that should can."""
    unknown = fixed - {entry.label for entry in entries}
    if unknown:
        labels = ", ".join(repr(entry.label) for entry in entries) or "nothing"
        raise CheckError(
            explain(
                f"There is no {min(unknown)!r} that could be fixed",
                f"what may grow is {labels}",
                f"fixed={sorted(fixed)}",
                "Name one of these",
            )
        )
    grown: list[str] = []
    growths: list[Any] = []
    largest = FACTORS[0]
    for entry in entries:
        factor, problem = _factor(model, entry)
        if (factor is None) != (entry.label in fixed):
            raise CheckError(_unexpected(entry, problem))
        if factor is not None:
            grown.append(entry.label)
            growths.append(entry.wider(factor))
            largest = max(largest, factor)
    if growths:
        kinds: list[dict[str, Any]] = [{"shares": "even"}, {"new_units": "fresh"}]
        growths.append([Wider(factor=largest, **kind) for kind in kinds])
    return grown, growths


def _factor(model: Any, entry: _Entry) -> tuple[float | None, str]:
    """The first factor that is possible, or why none is."""
    problem = ""
    for factor in FACTORS:
        try:
            plan(model, entry.wider(factor), seed=0)
        except FixedWidthError as error:
            return None, str(error)
        except SizeError as error:
            problem = str(error)
        else:
            return factor, ""
    return None, problem


def _unexpected(entry: _Entry, problem: str) -> str:
    if problem:
        return explain(
            f"The rule doesn't let {entry.label!r} grow",
            problem.partition(" Received: ")[0].removesuffix("."),
            f"the layer at {entry.path!r}",
            "Cover all weights in the rule, and return the axes of each output; or say "
            f"`fixed=[{entry.label!r}]` if there can't be more of these",
        )
    return explain(
        f"The rule lets {entry.label!r} grow",
        "it was said to be fixed",
        f"the layer at {entry.path!r}",
        "Fix the axis in the rule (`call.fix`), or take it from `fixed`",
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
    pair = [
        bench,
        dataclasses.replace(bench, shapes=shapes, settings=(("data_format", other),)),
    ]
    models = [randomize(one.model()) for one in pair]
    same = [w.shape for w in models[0].weights] == [w.shape for w in models[1].weights]
    runs = keras.backend.backend() != "tensorflow"
    x = random_inputs(models[1])
    before = outputs(models[1], x) if runs else []
    for model in models:
        for number, operations in enumerate(growths):
            _grow(model, operations, number)
    check_native(models[1])
    if same:
        weights = [list(map(_array, model.weights)) for model in models]
        check_same(weights[1], weights[0], 0.0, "and weights with the other data format")
    if runs:
        check_same(outputs(models[1], x), before, tolerance, f"with data_format={other!r}")
