"""Rescaling and Normalization inside a model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.rules.preprocessing import OCCUR
from keras_net2net.widths.registry import state_of
from tests.support.helpers import (
    BACKEND,
    assert_same,
    assert_untouched,
    check_growth,
    data_for,
    few,
    outputs,
    randomize,
    sandwich,
    snapshot,
)


def of_integers(layer):
    """A layer that gives each number a class, and what reads the classes."""

    def build():
        inputs = keras.Input((3, 5))
        x = layers.Dense(4, activation="tanh", name="before")(inputs)
        x = keras.ops.cast(layer()(keras.ops.cast(4.0 * x, "int32")), "float32")
        return keras.Model(inputs, layers.Dense(3, name="after")(x))

    return build


def on_the_input(layer):
    def build():
        inputs = keras.Input((3, 5))
        x = layers.Dense(4, activation="tanh", name="before")(layer()(inputs))
        return keras.Model(inputs, layers.Dense(3, name="after")(x))

    return build


def classes(**kwargs):
    return layers.Discretization([-0.5, 0.0, 0.5], dtype="float32", **kwargs)


CASES = {
    "Rescaling": lambda: sandwich((5,), layers.Rescaling(0.5, 0.1)),
    "Rescaling the input by channel": on_the_input(
        lambda: layers.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0], 0.1)
    ),
    "Normalization of the input by constants": on_the_input(
        lambda: layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0, 5.0], variance=[1.0] * 5)
    ),
    "Normalization of the input": on_the_input(lambda: layers.Normalization()),
    "Normalization": lambda: sandwich((3, 5), layers.Normalization()),
    "Normalization by two axes": lambda: sandwich((3, 5), layers.Normalization(axis=(1, -1))),
    "Normalization by no axis": lambda: sandwich((3, 5), layers.Normalization(axis=None)),
    "Normalization over units": lambda: sandwich((3, 5), layers.Normalization(axis=1)),
}


@pytest.mark.parametrize("build", few(CASES))
def test_the_function_stays(build, tmp_path):
    check_growth(build, path=tmp_path)


def test_all_of_them_train_after_growth():
    check_growth(
        lambda: sandwich((3, 5), layers.Rescaling(0.5, 0.1), layers.Normalization()), train=True
    )


def test_adapted_statistics_follow_the_units():
    layer = layers.Normalization(name="it")
    model = randomize(sandwich((3, 5), layer))
    layer.adapt(np.random.default_rng(0).normal(2.0, 3.0, (20, 3, 4)))
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.Wider("before", units=7), seed=0)
    assert tuple(layer.mean.shape) == (1, 1, 7)
    assert_same(outputs(model, x), before)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Rescaling([1.0, 2.0, 3.0, 4.0], name="it"),
        lambda: layers.Rescaling(1.0, [1.0, 2.0, 3.0, 4.0], name="it"),
        lambda: layers.Normalization(
            mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 2.0, 3.0, 4.0], name="it"
        ),
    ],
    ids=["scale", "offset", "mean"],
)
def test_constants_of_hidden_units_fix_them(layer):
    model = sandwich((5,), layer())
    with pytest.raises(n2n.errors.FixedWidthError, match="constants that belong to its units"):
        n2n.plan(model, n2n.Wider("before", units=6))


@pytest.mark.parametrize(
    "build",
    [lambda: sandwich((3, 5), classes()), of_integers(lambda: layers.Hashing(5))],
    ids=["Discretization", "Hashing"],
)
def test_the_class_of_each_number_stays(build, tmp_path):
    if BACKEND == "jax" and any(isinstance(layer, layers.Hashing) for layer in build().layers):
        pytest.skip("JAX doesn't compile it")
    check_growth(build, path=tmp_path, train=False)  # there is no gradient through a class


REFUSED = {
    "CategoryEncoding": lambda: layers.CategoryEncoding(5),
    "Discretization, one-hot": lambda: classes(output_mode="one_hot"),
    "Hashing, one-hot": lambda: layers.Hashing(5, output_mode="one_hot"),
    "HashedCrossing": lambda: layers.HashedCrossing(5),
    "IntegerLookup": lambda: layers.IntegerLookup(vocabulary=[1, 2, 3]),
    "Masking": lambda: layers.Masking(),
    "MelSpectrogram": lambda: layers.MelSpectrogram(4, 2, 2),
    "STFTSpectrogram": lambda: layers.STFTSpectrogram(frame_length=2, frame_step=1, fft_length=2),
}


@pytest.mark.pure
@pytest.mark.parametrize("name", REFUSED)
def test_what_takes_units_together_is_refused(name):
    kind = name.split(",")[0]
    if not hasattr(layers, kind):
        pytest.skip("this Keras doesn't have it")
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    if kind in ("CategoryEncoding", "Hashing", "HashedCrossing", "IntegerLookup"):
        x = keras.ops.cast(x, "int32")
    layer = REFUSED[name]()
    try:
        x = layer([x, x]) if kind == "HashedCrossing" else layer(x)
    except ModuleNotFoundError:
        pytest.skip("it needs TensorFlow")
    model = keras.Model(inputs, x)
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match=rf"\({kind}\)") as error:
        n2n.grow(model, n2n.Wider("before", units=6))
    assert (OCCUR if "," in name else state_of(type(layer)).summary) in str(error.value)
    assert_untouched(model, weights)
