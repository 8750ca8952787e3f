"""Checks that a model computes after growths what it computed before."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.errors import CheckError
from keras_net2net.growth.grow import grow
from keras_net2net.growth.report import GrowthReport


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
        report = grow_checked(model, operations, number)
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

    function = internals.function_of(model)
    nested = model.inputs if function is None else internals.structures_of(function)[0]
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
    return [as_array(y).astype("float64") for y in keras.tree.flatten(made)]


def _compiled(model: Any, x: Any, modes: Sequence[bool]) -> Any:
    """All calls in one program: operation by operation, JAX compiles for longer at each shape."""
    import jax

    given = [{"training": mode} if internals.takes_training(model) else {} for mode in modes]

    def call(trainable: list[Any], rest: list[Any]) -> Any:
        return [model.stateless_call(trainable, rest, x, **kwargs)[0] for kwargs in given]

    variables = (model.trainable_variables, model.non_trainable_variables)
    return jax.jit(call)(*([variable.value for variable in part] for part in variables))


def as_array(x: Any) -> np.ndarray:
    """A tensor or variable as an array that nothing else writes to."""
    return np.array(keras.ops.convert_to_numpy(x))


def _is_random(model: Any, x: Any) -> bool:
    """Whether what a model computes in training mode depends on the states of random seeds."""
    seeds = [v for v in model.non_trainable_variables if "int" in v.dtype]
    if not seeds:
        return False
    first = outputs(model, x, (True,))
    for seed in seeds:
        seed.assign(as_array(seed) + 1)
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
    differences = ", ".join(
        f"by up to {largest_difference(new[i : i + each], old[i : i + each]):.2e} {mode}"
        for i, mode in zip((0, each)[:modes], ("at inference", "in training mode"), strict=False)
    )
    raise CheckError(
        "The outputs aren't what they were",
        f"they differ {differences}, at outputs of up to {scale:.2f}, where "
        f"{tolerance * scale:.1e} is allowed",
        "Check the role of each axis of each weight: what makes units is copied, what reads "
        "them is shared among copies, what follows them goes with them; and fix the axes that "
        "the layer sees as a whole (`call.fix`)",
        received=f"the outputs {when}",
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
            for node in internals.nodes_of_layer(layer)
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
    with failing("The grown configuration builds no model", instead, received):
        native = type(model).from_config(model.get_config())
    ours, theirs = shapes_of(model), shapes_of(native)
    for path in ours:
        if ours[path] != theirs.get(path):
            raise CheckError(
                f"The grown layer {path!r} isn't what its configuration says",
                f"its shapes (of tensors, weights and inputs) are {ours[path]}, and a layer "
                f"built from its configuration has {theirs.get(path)}",
                instead,
                received=received,
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
    before = [as_array(weight) for weight in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.1), loss=["mse"] * len(y))
    loss = model.train_on_batch(x, y if len(y) > 1 else y[0])
    after = [as_array(weight) for weight in model.trainable_variables]
    moved = any(not np.array_equal(a, b) for a, b in zip(after, before, strict=True))
    if np.all(np.isfinite(loss)) and moved:
        return
    raise CheckError(
        f"The grown model {model.name!r} can't be trained",
        "the loss isn't finite" if moved else "a step of training moves no weight",
        "Look at what its layers do in training mode",
        received=f"a loss of {loss}",
    )


@contextlib.contextmanager
def failing(problem: str, instead: str, received: str) -> Iterator[None]:
    """Makes whatever goes wrong inside a `CheckError`: the parts of its message but the reason."""
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckError(problem, why, instead, received=received) from error


def grow_checked(model: Any, operations: Any, seed: int) -> GrowthReport:
    """Grows a model; whatever goes wrong is a `CheckError`."""
    instead = "Check the sizes and config keys that the rules name"
    with failing(f"The model {model.name!r} can't grow", instead, f"{operations!r}"):
        return grow(model, operations, seed=seed, verify=False)


def _check_size(model: Any, report: GrowthReport) -> None:
    if report.parameters_before < report.parameters_after == model.count_params():
        return
    raise CheckError(
        f"The model {model.name!r} isn't as large as planned",
        f"it has {model.count_params()} parameters, had {report.parameters_before}, and "
        f"{report.parameters_after} were planned",
        "Please report the model",
        received=f"{report.operations!r}",
    )


def _check_saving(model: Any, x: Any, tolerance: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grown.keras"
        model.save(path)
        instead = (
            "Name every config key that holds a size in the rule, and return all arguments from "
            "the layer's `get_config`"
        )
        problem = f"The grown model {model.name!r} can't be loaded"
        with failing(problem, instead, "the model as it was saved"):
            loaded = keras.models.load_model(path)
    check_same(outputs(loaded, x), outputs(model, x), tolerance, "of the saved and loaded model")
