"""The optimizer's state through a growth, and the learning rate after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net import keras_privates as privates
from keras_net2net.apply import changed_variables
from keras_net2net.errors import GrowthError
from keras_net2net.growth import draft_growth
from keras_net2net.slots import histories
from tests.helpers import BACKEND, array, randomize
from tests.operations.test_base import assert_explained
from tests.states import assert_state, state


def gradients(model: Any, x: Any, y: Any) -> list[np.ndarray]:
    """The gradients of the mean squared error for the model's trainable variables."""
    variables = model.trainable_variables
    x, y = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = keras.ops.mean((model(x, training=True) - y) ** 2)
        found = tape.gradient(loss, [v.value for v in variables])
        return [np.asarray(tf.convert_to_tensor(g)) for g in found]
    if BACKEND == "jax":
        import jax

        fixed = [v.value for v in model.non_trainable_variables]

        def loss_of(values):
            made, _ = model.stateless_call(values, fixed, x, training=True)
            return keras.ops.mean((made - y) ** 2)

        return [np.asarray(g) for g in jax.grad(loss_of)([v.value for v in variables])]
    import torch

    state = [array(v) for v in model.non_trainable_variables]
    loss = keras.ops.mean((model(x, training=True) - y) ** 2)
    found = torch.autograd.grad(loss, [v.value for v in variables])
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
    return [g.cpu().numpy() for g in found]


def batch(shape: tuple[int, ...], outputs: int = 2, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    sizes = [(n, *shape), (n, outputs)]
    return tuple(random.standard_normal(size).astype("float32") for size in sizes)


def mapped(model: Any, operations: Any, x: Any, y: Any) -> tuple[list[Any], list[Any], list[bool]]:
    """The old gradients, mapped as slots are, and those of the grown model, and if estimates."""
    variables = list(model.trainable_variables)
    old = gradients(model, x, y)
    draft = draft_growth(model, operations, 3)
    changed = histories(draft.plan(), changed_variables(draft.plan(), draft))
    n2n.grow(model, operations, seed=3)
    new = dict(zip(map(id, model.trainable_variables), gradients(model, x, y), strict=True))
    expected, found, estimates = [], [], []
    for variable, gradient in zip(variables, old, strict=True):
        history = changed.get(id(variable))
        expected.append(gradient if history is None else history.as_gradient(gradient))
        estimates.append(history is not None and history.estimated)
        found.append(new[id(variable)])
    return expected, found, estimates


def apart(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest gradient."""
    assert [a.shape for a in expected] == [b.shape for b in found]
    top = max(float(np.abs(a).max()) for a in found)
    return max(
        float(np.abs(a - b).max()) / top for a, b in zip(expected, found, strict=True)
    )


# -- the chain rule, against the gradients of the grown model ----------------------------------


def dense():
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="tanh", name="a"),
            layers.Dense(5, activation="relu", name="b"),
            layers.Dense(2, name="out"),
        ]
    )


def convolutional():
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="a")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Activation("relu")(x)
    x = layers.DepthwiseConv2D(2, name="depth")(x)
    x = layers.Concatenate()([x, layers.Conv2D(3, 2, padding="same", name="b")(x)])
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def normalized():
    x = inputs = keras.Input((3,))
    x = layers.Dense(4, name="a")(x)
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def residual():
    x = inputs = keras.Input((3,))
    x = layers.Dense(4, name="a")(x)
    y = layers.Dense(5, activation="tanh", name="b")(x)
    x = layers.Add()([x, layers.Dense(4, name="c")(y)])
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def attention():
    x = inputs = keras.Input((4, 3))
    x = layers.Dense(4, name="a")(x)
    x = layers.MultiHeadAttention(2, 3, value_dim=3, name="attention")(x, x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def recurrent():
    x = inputs = keras.Input((4, 3))
    x = layers.LSTM(4, name="a", return_sequences=True)(x)
    x = layers.GRU(3, name="b")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


FAMILIES = {f.__name__: f for f in (dense, convolutional, normalized, residual, attention, recurrent)}
# Whole multiples where a normalization or, on JAX, an attention asks for them.
FACTORS = {"normalized": 2, "attention": 2}


@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
def test_the_old_gradient_mapped_as_a_slot_is_that_of_the_grown_model(build):
    model = randomize(build())
    x, y = batch(model.input_shape[1:])
    factor = FACTORS.get(build.__name__, 1.5)
    expected, found, estimates = mapped(model, n2n.Wider(factor=factor, shares="even"), x, y)
    assert not any(estimates)
    assert apart(expected, found) < 1e-5
    if build is not attention:
        # Twice in a row, in one plan.
        more = [n2n.Wider(factor=factor, shares="even"), n2n.Wider("a", factor=2, shares="even")]
        expected, found, estimates = mapped(model, more, x, y)
        assert apart(expected, found) < 1e-5


def test_the_dimension_of_keys_scales_the_gradients_of_queries():
    model = randomize(attention())
    x, y = batch((4, 3))
    parts = {"heads": 3, "key_dim": 5, "value_dim": 5}
    expected, found, _ = mapped(model, n2n.Wider("attention", parts, shares="even"), x, y)
    assert apart(expected, found) < 1e-5


def test_fresh_units_and_inserted_layers_leave_the_old_gradients_as_they_are():
    model = randomize(dense())
    x, y = batch((3,))
    old = gradients(model, x, y)
    names = [v.path for v in model.trainable_variables]
    operations = [n2n.Wider("b", 8, new_units="fresh"), n2n.Deeper("b")]
    expected, found, estimates = mapped(model, operations, x, y)
    assert not any(estimates)
    for name, before, wanted, gradient in zip(names, old, expected, found, strict=True):
        cut = tuple(map(slice, before.shape))
        assert np.array_equal(wanted[cut], before)
        assert np.abs(gradient[cut] - before).max() < 1e-6, name
        rest = wanted.copy()
        rest[cut] = 0
        assert not rest.any()
        if name.split("/")[-2] == "b":  # nothing reads them yet
            assert np.abs(gradient - wanted).max() < 1e-6


@pytest.mark.parametrize("outputs, most", [(1, 1e-6), (8, 0.25)])
def test_how_far_off_the_mean_of_random_shares_is(outputs, most):
    """Exact where one weight reads a unit: then its share is that of all. Measured elsewhere."""
    x = inputs = keras.Input((6,))
    x = layers.Dense(16, activation="tanh", name="a")(x)
    model = randomize(keras.Model(inputs, layers.Dense(outputs, name="out")(x)))
    x, y = batch((6,), outputs, n=32)
    expected, found, estimates = mapped(model, n2n.Wider("a", 32), x, y)
    assert estimates == [True, True, False, False]
    assert apart(expected[2:], found[2:]) < 1e-6  # what reads copies is exact always
    error = np.linalg.norm(expected[0] - found[0]) / np.linalg.norm(found[0])
    assert error < most, error
    assert np.allclose(expected[0].sum(), found[0].sum(), rtol=0.2)
