"""Flatten, Reshape, Permute, RepeatVector; padding, cropping, upsampling."""

from __future__ import annotations

import keras
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.formats import check_channels_first
from tests.support.helpers import (
    assert_native,
    assert_same,
    both_modes,
    check_growth,
    data_for,
    few,
    randomize,
    sandwich,
)

LINE, IMAGE, VOLUME = (4, 2), (3, 4, 2), (2, 3, 2, 2)

CASES = {
    "Flatten after an image": lambda: sandwich(IMAGE, layers.Conv2D(4, 2), layers.Flatten()),
    "Flatten of vectors": lambda: sandwich((5,), layers.Flatten()),
    "Flatten twice": lambda: sandwich(LINE, layers.Flatten(), layers.Dense(4), layers.Flatten()),
    "Reshape that merges": lambda: sandwich(IMAGE, layers.Reshape((12, 4))),
    "Reshape that merges units": lambda: sandwich(IMAGE, layers.Reshape((3, 16))),
    "Reshape that merges all, by -1": lambda: sandwich(IMAGE, layers.Reshape((-1,))),
    "Reshape by -1 in front": lambda: sandwich(IMAGE, layers.Reshape((-1, 4))),
    "Reshape by -1 at the end": lambda: sandwich(IMAGE, layers.Reshape((12, -1))),
    "Reshape that adds axes": lambda: sandwich((5,), layers.Reshape((1, 1, 4))),
    "Reshape that splits space": lambda: sandwich(LINE, layers.Reshape((2, 2, 4))),
    "Reshape that splits units": lambda: sandwich(
        (5,), layers.Reshape((2, 2)), layers.Dense(4, activation="relu"), layers.Flatten()
    ),
    "Reshape that splits units, by -1": lambda: sandwich(
        LINE, layers.Reshape((4, 2, -1)), layers.Flatten()
    ),
    "Reshape there and back": lambda: sandwich(
        IMAGE, layers.Reshape((48,)), layers.Reshape((3, 4, 4)), layers.Conv2D(4, 2)
    ),
    "Permute": lambda: sandwich(LINE, layers.Permute((2, 1)), layers.Flatten()),
    "Permute an image": lambda: sandwich(IMAGE, layers.Permute((3, 1, 2)), layers.Flatten()),
    "Permute space": lambda: sandwich(IMAGE, layers.Permute((2, 1, 3))),
    "RepeatVector": lambda: sandwich((5,), layers.RepeatVector(3)),
    "ZeroPadding1D": lambda: sandwich(LINE, layers.ZeroPadding1D((1, 2))),
    "ZeroPadding2D": lambda: sandwich(IMAGE, layers.ZeroPadding2D(((1, 0), (0, 2)))),
    "ZeroPadding3D": lambda: sandwich(VOLUME, layers.ZeroPadding3D(1)),
    "Cropping1D": lambda: sandwich(LINE, layers.Cropping1D(1)),
    "Cropping2D": lambda: sandwich(IMAGE, layers.Cropping2D(((1, 0), (1, 1)))),
    "Cropping3D": lambda: sandwich(VOLUME, layers.Cropping3D((0, 1, 0))),
    "UpSampling1D": lambda: sandwich(LINE, layers.UpSampling1D(2)),
    "UpSampling2D": lambda: sandwich(IMAGE, layers.UpSampling2D((1, 2))),
    "UpSampling2D, bilinear": lambda: sandwich(
        IMAGE, layers.UpSampling2D(2, interpolation="bilinear")
    ),
    "UpSampling3D": lambda: sandwich(VOLUME, layers.UpSampling3D(2)),
}


@pytest.mark.parametrize("build", few(CASES))
def test_the_function_stays(build, tmp_path):
    check_growth(build, path=tmp_path)


def test_all_of_them_train_after_growth():
    check_growth(
        lambda: sandwich(
            IMAGE,
            layers.ZeroPadding2D(1),
            layers.Cropping2D(1),
            layers.UpSampling2D((1, 2)),
            layers.Reshape((-1, 4)),
            layers.Permute((2, 1)),
            layers.Flatten(),
            layers.RepeatVector(2),
        ),
        train=True,
    )


FIRST = {
    "Flatten": lambda f: ((2, 3, 4), [layers.Flatten(**f)]),
    "ZeroPadding2D": lambda f: ((2, 3, 4), [layers.ZeroPadding2D(1, **f)]),
    "Cropping2D": lambda f: ((2, 3, 4), [layers.Cropping2D(((1, 0), (1, 1)), **f)]),
    "UpSampling2D": lambda f: ((2, 3, 4), [layers.UpSampling2D(2, **f)]),
    "UpSampling3D": lambda f: ((2, 2, 3, 2), [layers.UpSampling3D((1, 2, 1), **f)]),
}


@pytest.mark.parametrize("parts", few(FIRST, 2))
def test_the_function_stays_with_the_channels_first(parts):
    check_channels_first(parts)


def test_a_target_shape_keeps_its_form():
    model = randomize(sandwich((3, 4, 2), layers.Reshape((-1, 4), name="it")))
    n2n.grow(model, n2n.Wider("before", units=6), seed=0)
    assert model.get_layer("it").target_shape == (-1, 6)
    model = randomize(sandwich((3, 4, 2), layers.Reshape((6, 8), name="it")))
    n2n.grow(model, n2n.Wider("before", units=6), seed=0)
    assert model.get_layer("it").target_shape == (6, 12)
    assert model.get_layer("it").get_config()["target_shape"] == (6, 12)


def test_split_units_grow_in_their_factors():
    def build():
        middle = [layers.Reshape((2, 3), name="split"), layers.Flatten()]
        return sandwich((5,), *middle, units=6)

    model = randomize(build())
    x = data_for(model)
    before = both_modes(model, x)
    with pytest.raises(n2n.errors.SizeError, match="can't be widened to 7 units"):
        n2n.grow(model, n2n.Wider("before", units=7))
    n2n.grow(model, n2n.Wider("before", units=12), seed=0)
    assert model.get_layer("before").units == 12
    assert_native(model)
    assert_same(both_modes(model, x), before)


def test_units_that_do_not_line_up_with_a_reshape_are_fixed():
    model = sandwich((3, 2), layers.Reshape((2, 6), name="it"), layers.Flatten())
    with pytest.raises(n2n.errors.FixedWidthError, match="its rule doesn't cover") as error:
        n2n.plan(model, n2n.Wider("before", units=6))
    assert "path: before -> it" in str(error.value)


def test_a_sequence_of_unknown_length_grows(tmp_path):
    def build():
        inputs = keras.Input((None, 5))
        x = layers.Dense(4, name="before")(inputs)
        x = layers.Conv1D(4, 3, padding="same", activation="relu")(x)
        x = layers.ZeroPadding1D(1)(x)
        x = layers.BatchNormalization()(x)
        return keras.Model(inputs, layers.Dense(3, name="after")(x))

    check_growth(build, path=tmp_path)
