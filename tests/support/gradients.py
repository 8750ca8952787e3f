"""Gradients before and after a growth: the oracle for what the slots of optimizers become."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_net2net as n2n
from keras_net2net.growth.history import Growth
from keras_net2net.operations.drafting import draft_growth
from tests.support.helpers import BACKEND, array


def squares(made: Any, y: Any) -> Any:
    """The mean squared error."""
    return keras.ops.mean((made - y) ** 2)


def entropy(made: Any, y: Any) -> Any:
    """The cross entropy of probabilities, for the class whose target is largest."""
    wanted = keras.ops.argmax(y, axis=-1)
    found = keras.ops.take_along_axis(made, wanted[:, None], axis=-1)
    return -keras.ops.mean(keras.ops.log(found))


def gradients(model: Any, x: Any, y: Any, measure: Any = squares) -> list[np.ndarray]:
    """The gradients of a loss, the mean squared error, for the model's trainable variables."""
    variables = model.trainable_variables
    x, y = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = measure(model(x, training=True), y)
        found = tape.gradient(loss, [v.value for v in variables])
        return [np.asarray(tf.convert_to_tensor(g)) for g in found]
    if BACKEND == "jax":
        import jax

        fixed = [v.value for v in model.non_trainable_variables]

        def loss_of(values):
            made, _ = model.stateless_call(values, fixed, x, training=True)
            return measure(made, y)

        found = jax.jit(jax.grad(loss_of))([v.value for v in variables])
        return [np.asarray(g) for g in found]
    import torch

    kept = [array(v) for v in model.non_trainable_variables]
    loss = measure(model(x, training=True), y)
    found = torch.autograd.grad(loss, [v.value for v in variables])
    for variable, value in zip(model.non_trainable_variables, kept, strict=True):
        variable.assign(value)
    return [g.cpu().numpy() for g in found]


def batch(shape: tuple[int, ...], outputs: int = 2, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    sizes = [(n, *shape), (n, outputs)]
    return tuple(random.standard_normal(size).astype("float32") for size in sizes)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """The gradient of one weight: the old one, mapped as slots are, and the new one.

    Args:
        name: The weight's path.
        first: The old gradient, mapped as a mean of gradients is.
        second: Its square, mapped as a mean of squares is.
        found: The gradient of the new model.
        past: Which entries were there before, or copy such.
        reasons: Why it is an estimate.
    """

    name: str
    first: np.ndarray
    second: np.ndarray
    found: np.ndarray
    past: np.ndarray
    reasons: frozenset[str]


def mapped(
    model: Any, operations: Any, x: Any, y: Any, measure: Any = squares, calibration: Any = None
) -> list[Mapped]:
    """Grows a model, and maps its old gradients; but for weights that others replace."""
    variables = list(model.trainable_variables)
    old = gradients(model, x, y, measure)
    draft = draft_growth(model, operations, 3, calibration=calibration)
    growth = Growth().then(draft.finish(), {})
    n2n.grow(model, operations, seed=3, calibration=calibration)
    new = zip(model.trainable_variables, gradients(model, x, y, measure), strict=True)
    found = {id(variable): gradient for variable, gradient in new}
    made = []
    for variable, one in zip(variables, old, strict=True):
        history = growth.history_of(variable)
        if not history.replaced:
            past = history.as_gradient(np.ones_like(one)) != 0
            first, second = history.as_gradient(one), history.as_gradient(one**2, 2)
            reasons = history.estimates
            made.append(Mapped(variable.path, first, second, found[id(variable)], past, reasons))
    return made


def apart(pairs: list[Mapped]) -> float:
    """The largest difference where there is a past, relative to the largest gradient."""
    top = max(float(np.abs(one.found).max()) for one in pairs)
    assert all(one.first.shape == one.found.shape for one in pairs)
    return max(float(np.abs((one.first - one.found) * one.past).max()) / top for one in pairs)


# -- models ------------------------------------------------------------------------------------


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


def spatial():
    x = inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(3, 3, padding="same", name="separable")(x)
    x = layers.PReLU(shared_axes=[1, 2], name="prelu")(x)
    x = layers.Conv2DTranspose(3, 3, strides=2, padding="same", name="transposed")(x)
    x = layers.Conv2D(3, 3, strides=2, padding="same", name="strided")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))


def pairs():
    x = inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(4, (1, 3), padding="same", activation="relu", name="across")(x)
    x = layers.Conv2D(4, (3, 1), padding="same", activation="relu", name="down")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))


def smooth():
    x = inputs = keras.Input((3,))
    x = layers.Dense(4, activation="tanh", name="a")(x)
    x = layers.Dense(4, activation="tanh", name="b")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def batches():
    x = inputs = keras.Input((3,))
    x = layers.Dense(4, name="a")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def roots():
    x = inputs = keras.Input((3,))
    x = layers.Dense(4, name="a")(x)
    x = layers.RMSNormalization(name="norm")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def both_ways():
    x = inputs = keras.Input((4, 3))
    x = layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True), name="a")(x)
    x = layers.GRU(3, reset_after=False, return_sequences=True, name="b")(x)
    x = layers.LSTM(3, name="c")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def films():
    x = inputs = keras.Input((3, 4, 4, 2))
    x = layers.ConvLSTM2D(3, 2, name="a")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))


def grouped():
    x = inputs = keras.Input((4, 3))
    x = layers.Dense(4, name="a")(x)
    x = layers.GroupQueryAttention(2, 4, 2, name="attention")(x, x)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.GlobalAveragePooling1D()(x)))


def classifier():
    x = inputs = keras.Input((3,))
    x = layers.Dense(4, activation="tanh", name="a")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="out")(x))
