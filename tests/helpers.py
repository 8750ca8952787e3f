"""What the tests share: random weights, outputs, and the battery that every rule passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_net2net as n2n

BACKEND = keras.backend.backend()

if BACKEND == "jax":
    import jax

    # The tests compile for hundreds of shapes, and run each once.
    jax.config.update("jax_disable_most_optimizations", True)


def array(x: Any) -> np.ndarray:
    """A backend tensor or variable as a numpy array that nothing else writes to."""
    return np.array(keras.ops.convert_to_numpy(x))


def randomize(model: Any, seed: int = 0) -> Any:
    """Gives every weight a random value of a size that keeps activations of order one.

    BatchNormalization gets real statistics: random means, positive variances, gamma and beta.
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
        variable.assign(value.astype("float32"))
    for _, layer in flat_layers(model):
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()  # it keeps values made from its weights
    return model


def data_for(model: Any, seed: int = 0, batch: int = 4) -> Any:
    """Random inputs, nested as the model takes them; integers index a table of at least five."""
    random = np.random.default_rng(seed)

    def make(tensor: Any) -> np.ndarray:
        shape = [batch, *(4 if size is None else size for size in tensor.shape[1:])]
        if "int" in tensor.dtype:
            return random.integers(0, 5, shape).astype(tensor.dtype)
        return random.standard_normal(shape).astype("float32")

    return keras.tree.map_structure(
        make, model._inputs_struct if _is_graph(model) else model.inputs[0]
    )


def _is_graph(model: Any) -> bool:
    return isinstance(model, keras.Function)


def outputs(model: Any, x: Any, training: bool = False) -> list[np.ndarray]:
    """The outputs, flat, in float64. In training mode, too, the model's state stays as it was."""
    return _outputs(model, x, (training,))


def both_modes(model: Any, x: Any) -> list[np.ndarray]:
    """The outputs at inference, then those in training mode."""
    return _outputs(model, x, (False, True))


def _outputs(model: Any, x: Any, modes: tuple[bool, ...]) -> list[np.ndarray]:
    if BACKEND == "jax":
        made = _compiled(model, x, modes)
    else:
        # Of all variables: SpectralNormalization assigns its kernel in training mode.
        state = [(variable, array(variable)) for variable in model.variables if any(modes)]
        made = [model(x, training=training) for training in modes]
        for variable, value in state:
            variable.assign(value)
    return [array(y).astype("float64") for y in keras.tree.flatten(made)]


def _compiled(model: Any, x: Any, modes: tuple[bool, ...]) -> Any:
    """All calls in one program: operation by operation, JAX compiles for longer at each shape."""

    def call(trainable: list[Any], rest: list[Any]) -> Any:
        return [model.stateless_call(trainable, rest, x, training=mode)[0] for mode in modes]

    variables = (model.trainable_variables, model.non_trainable_variables)
    return jax.jit(call)(*([variable.value for variable in part] for part in variables))


def max_difference(first: Iterable[Any], second: Iterable[Any]) -> float:
    """The largest absolute difference between two lists of arrays; NaN if there is one."""
    largest = 0.0
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape
        largest = float(np.maximum(largest, np.max(np.abs(a - b), initial=0.0)))
    return largest


def assert_same(new: list[np.ndarray], old: list[np.ndarray], tolerance: float = 1e-6) -> None:
    """Outputs agree to `tolerance`, relative to outputs of order one."""
    scale = max(1.0, *(float(np.max(np.abs(y), initial=0.0)) for y in old))
    difference = max_difference(new, old)
    assert difference <= tolerance * scale, f"{difference:.2e} at outputs up to {scale:.2f}"


def snapshot(model: Any) -> list[np.ndarray]:
    """The values of all weights."""
    return [array(weight) for weight in model.weights]


def assert_untouched(model: Any, before: list[np.ndarray]) -> None:
    """All weights are bit-equal to what they were."""
    after = snapshot(model)
    assert [a.tobytes() for a in after] == [b.tobytes() for b in before]
    assert [a.shape for a in after] == [b.shape for b in before]


def flat_layers(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All layers by their path, nested models included."""
    for layer in model.layers:
        yield path + layer.name, layer
        if isinstance(layer, keras.Model):
            yield from flat_layers(layer, f"{path}{layer.name}/")


def shapes_of(model: Any) -> dict[str, Any]:
    """The shapes of all symbolic tensors, weights and inputs, by layer."""
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


def assert_native(model: Any) -> Any:
    """Every shape is that of the same model built natively at its present sizes."""
    native = type(model).from_config(model.get_config())
    assert shapes_of(model) == shapes_of(native)
    return native


def skipped(plan: Any) -> set[str]:
    """The paths of the layers that a plan leaves as they are."""
    return {skip.path for step in plan.steps for skip in step.skipped}


def train_a_step(model: Any, x: Any) -> None:
    """One step of training runs, and moves the weights."""
    y = [np.zeros_like(out, "float32") for out in outputs(model, x)]
    before = snapshot(model)
    model.compile(keras.optimizers.SGD(0.1), loss=["mse"] * len(y))
    loss = model.train_on_batch(x, y if len(y) > 1 else y[0])
    assert np.all(np.isfinite(loss))
    moved = [a for a, b in zip(snapshot(model), before, strict=True) if a.tobytes() != b.tobytes()]
    assert moved


KINDS = ({}, {"shares": "even"}, {"new_units": "fresh"})


def check_growth(
    build: Callable[[], Any],
    *,
    single: str = "before",
    fixed: Iterable[str] = ("after",),
    tolerance: float = 1e-6,
    path: Path | None = None,
    train: bool = BACKEND != "jax",
    custom: tuple[type, ...] = (),
) -> None:
    """The battery that every rule passes: the function stays, at inference and in training mode.

    One layer grows, then all of them with each kind of new units and shares. After each growth, all
    shapes are those of a native model. The grown model is saved and loaded, and trained.

    Args:
        build: Makes the model, whose dropout has rate zero.
        single: The layer that grows alone, at first.
        fixed: The paths of the layers that can't grow; all others must.
        tolerance: The largest difference for outputs of order one.
        path: A directory to save the grown model in.
        train: Whether to train it. On JAX, which compiles the step for seconds, it is one model for
            each family of layers.
        custom: Layer classes of the test's own, for loading.
    """
    with keras.saving.custom_object_scope({cls.__name__: cls for cls in custom}):
        _check_growth(build, single, set(fixed), tolerance, path, train)


def _check_growth(
    build: Callable[[], Any],
    single: str,
    fixed: set[str],
    tolerance: float,
    path: Path | None,
    train: bool,
) -> None:
    model = randomize(build())
    x = data_for(model)
    before = both_modes(model, x)
    everything = [n2n.Wider(factor=1.5, **kind) for kind in KINDS]
    for number, operations in enumerate(([n2n.Wider(single, factor=1.5)], everything)):
        report = n2n.grow(model, operations, seed=number, verify=False)
        assert report.parameters_before < report.parameters_after == model.count_params()
        if operations is everything:
            for step in report.plan.steps:
                assert {skip.path for skip in step.skipped} == fixed
        else:
            assert any(single in width.asked for width in report.plan.steps[0].widths)
        assert_native(model)
        assert_same(both_modes(model, x), before, tolerance)
    if path is not None:
        model.save(path / "grown.keras")
        loaded = keras.models.load_model(path / "grown.keras")
        assert_same(outputs(loaded, x), outputs(model, x), 1e-7)
    if train:
        train_a_step(model, x)


@keras.saving.register_keras_serializable("tests")
class Closed(keras.Layer):
    """Scales its input by another library: what it does can't be seen."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("this function takes numbers alone")
        return x * self.scale


def sandwich(shape: tuple[int, ...], *middle: Any, units: int = 4, dtype: str = "float32") -> Any:
    """Layers between two Dense layers, which work on the last axis of any rank."""
    x = inputs = keras.Input(shape, dtype=dtype)
    x = layers.Dense(units, activation="tanh", name="before")(x)
    for layer in middle:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def channels_first(shape: tuple[int, ...], *middle: Any) -> Any:
    """Layers between two convolutions with the channels first; `shape` has them first, too."""
    conv = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[len(shape) - 2]
    x = inputs = keras.Input(shape)
    x = conv(4, 1, activation="tanh", data_format="channels_first", name="before")(x)
    for layer in middle:
        x = layer(x)
    if len(x.shape) == len(inputs.shape):
        x = conv(3, 1, data_format="channels_first", name="after")(x)
    else:
        x = layers.Dense(3, name="after")(x)
    return keras.Model(inputs, x)
