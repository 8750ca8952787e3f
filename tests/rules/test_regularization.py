"""Dropout and noise, at a rate of zero where outputs are compared."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.helpers import (
    array,
    assert_same,
    check_growth,
    data_for,
    few,
    outputs,
    randomize,
    sandwich,
)

LINE, IMAGE, VOLUME = (4, 2), (4, 3, 2), (2, 3, 2, 2)

CASES = {
    "Dropout": lambda: sandwich((5,), layers.Dropout(0.0)),
    "Dropout, one draw for all time": lambda: sandwich(
        LINE, layers.Dropout(0.0, noise_shape=(None, 1, 4))
    ),
    "SpatialDropout1D": lambda: sandwich(LINE, layers.SpatialDropout1D(0.0)),
    "SpatialDropout2D": lambda: sandwich(IMAGE, layers.SpatialDropout2D(0.0)),
    "SpatialDropout3D": lambda: sandwich(VOLUME, layers.SpatialDropout3D(0.0)),
    "AlphaDropout": lambda: sandwich((5,), layers.AlphaDropout(0.0)),
    "GaussianDropout": lambda: sandwich((5,), layers.GaussianDropout(0.0)),
    "GaussianNoise": lambda: sandwich((5,), layers.GaussianNoise(0.0)),
    "ActivityRegularization": lambda: sandwich((5,), layers.ActivityRegularization(l2=0.01)),
}


@pytest.mark.parametrize("build", few(CASES))
def test_the_function_stays(build, tmp_path):
    check_growth(build, path=tmp_path)


def test_all_of_them_train_after_growth():
    check_growth(
        lambda: sandwich(
            LINE,
            layers.Dropout(0.0, noise_shape=(None, 1, 4)),
            layers.SpatialDropout1D(0.0),
            layers.GaussianNoise(0.0),
            layers.ActivityRegularization(l1=0.01),
        ),
        train=True,
    )


DROPS = {
    "Dropout": lambda: layers.Dropout(0.5, name="it"),
    "Dropout with a noise shape": lambda: layers.Dropout(0.5, noise_shape=(None, 1, 4), name="it"),
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5, name="it"),
    "AlphaDropout": lambda: layers.AlphaDropout(0.5, noise_shape=(None, 4, 4), name="it"),
    "GaussianDropout": lambda: layers.GaussianDropout(0.5, name="it"),
    "GaussianNoise": lambda: layers.GaussianNoise(0.5, name="it"),
}


@pytest.mark.parametrize("layer", DROPS.values(), ids=DROPS)
def test_a_grown_model_still_drops_at_random_in_training(layer):
    model = randomize(sandwich(LINE, layer()))
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.Wider("before", units=6), seed=0)
    assert_same(outputs(model, x), before)
    hidden = keras.Model(model.input, model.get_layer("it").output)
    drawn = array(hidden(x, training=True))
    assert drawn.shape == (4, 4, 6)
    assert not np.array_equal(drawn, array(hidden(x, training=True)))
