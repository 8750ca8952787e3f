"""Rescaling and Normalization inside a model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.helpers import assert_same, check_growth, data_for, outputs, randomize, sandwich


def on_the_input(layer):
    def build():
        inputs = keras.Input((3, 5))
        x = layers.Dense(4, activation="tanh", name="before")(layer()(inputs))
        return keras.Model(inputs, layers.Dense(3, name="after")(x))

    return build


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


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
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
    with pytest.raises(n2n.FixedWidthError, match="constants that belong to its units"):
        n2n.plan(model, n2n.Wider("before", units=6))
