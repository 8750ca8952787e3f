"""What the tests share: random weights, outputs, and the battery that every rule passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net import testing
from keras_net2net.testing import check_native as assert_native
from keras_net2net.testing import check_training as train_a_step
from keras_net2net.testing import flat_layers, randomize, shapes_of
from keras_net2net.testing import largest_difference as max_difference
from tests.support.backend import BACKEND

__all__ = [
    "BACKEND",
    "assert_native",
    "flat_layers",
    "max_difference",
    "randomize",
    "shapes_of",
    "train_a_step",
]

# What the battery does for cases that differ in little; JAX compiles all of it for seconds.
QUICK: dict[str, Any] = {"policies": (), "save": False, "train": False}

# How a model is compiled where that is no matter: TensorFlow traces each step for long.
EAGERLY: dict[str, Any] = {"jit_compile": False, "run_eagerly": BACKEND == "tensorflow"}


@contextlib.contextmanager
def precision(policy: str):
    """A dtype policy; JAX has no float64 unless it is told to."""
    before = keras.config.dtype_policy().name
    floats = keras.config.floatx()
    with contextlib.ExitStack() as stack:
        if policy == "float64" and BACKEND == "jax":
            import jax

            jax.config.update("jax_enable_x64", True)
            stack.callback(jax.config.update, "jax_enable_x64", False)
        keras.config.set_dtype_policy(policy)
        if policy == "float64":
            keras.config.set_floatx("float64")
        try:
            yield
        finally:
            keras.config.set_floatx(floats)
            keras.config.set_dtype_policy(before)


def cases(known: dict[str, Any], most: int = 2) -> dict[str, Any]:
    """All cases on PyTorch, which is fast; the first few elsewhere: the rules are the same code."""
    if BACKEND == "jax":  # it compiles for longest
        most = -(-most // 2)
    return known if BACKEND == "torch" else dict(list(known.items())[:most])


def long_elsewhere(test: Any) -> Any:
    """Puts a test among the long ones, but not on PyTorch: what it is about is no backend's."""
    return test if BACKEND == "torch" else pytest.mark.long(test)


def few(known: dict[str, Any] | Iterable[Any], most: int = 4) -> list[Any]:
    """All cases on PyTorch; elsewhere the first few, and the others among the long tests.

    They differ in the rule, and a rule computes with arrays of numpy. JAX, which compiles for
    longest, gets half of them.
    """
    most = -(-most // 2) if BACKEND == "jax" else most
    known = known if isinstance(known, dict) else {str(case): case for case in known}
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else [case]),
            id=name,
            marks=[pytest.mark.long] if BACKEND != "torch" and number >= most else [],
        )
        for number, (name, case) in enumerate(known.items())
    ]


def array(x: Any) -> np.ndarray:
    """A backend tensor or variable as a numpy array that nothing else writes to."""
    return np.array(keras.ops.convert_to_numpy(x))


def data_for(model: Any, seed: int = 0, batch: int = 4) -> Any:
    """Random inputs, nested as the model takes them; integers index a table of at least five."""
    return testing.random_inputs(model, seed, batch)


def outputs(model: Any, x: Any, training: bool = False) -> list[np.ndarray]:
    """The outputs, flat, in float64. In training mode, too, the model's state stays as it was."""
    return testing.outputs(model, x, (training,))


def both_modes(model: Any, x: Any) -> list[np.ndarray]:
    """The outputs at inference, then those in training mode."""
    return testing.outputs(model, x, (False, True))


def assert_same(new: list[np.ndarray], old: list[np.ndarray], tolerance: float = 1e-6) -> None:
    """Outputs agree to `tolerance`, relative to outputs of order one."""
    assert [a.shape for a in new] == [b.shape for b in old]
    testing.check_same(new, old, tolerance, "before and after")


def snapshot(model: Any) -> list[np.ndarray]:
    """The values of all weights."""
    return [array(weight) for weight in model.weights]


def assert_untouched(model: Any, before: list[np.ndarray]) -> None:
    """All weights are bit-equal to what they were."""
    after = snapshot(model)
    assert [a.tobytes() for a in after] == [b.tobytes() for b in before]
    assert [a.shape for a in after] == [b.shape for b in before]


def skipped(plan: Any) -> set[str]:
    """The paths of the layers that a plan leaves as they are."""
    return {skip.path for step in plan.steps for skip in step.skipped}


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
        path: Anything, if the grown model is to be saved and loaded.
        train: Whether to train it. On JAX, which compiles the step for seconds, it is one model for
            each family of layers.
        custom: Layer classes of the test's own, for loading.
    """
    everything = [n2n.Wider(factor=1.5, **kind) for kind in KINDS]
    with keras.saving.custom_object_scope({cls.__name__: cls for cls in custom}):
        one, all_of_them = testing.check_model(
            build,
            [n2n.Wider(single, factor=1.5), everything],
            tolerance=tolerance,
            save=path is not None,
            train=train,
        )
    assert any(single in width.asked for width in one.plan.steps[0].widths)
    for step in all_of_them.plan.steps:
        assert {skip.path for skip in step.skipped} == set(fixed)


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
