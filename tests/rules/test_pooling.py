"""Pooling and global pooling."""

from __future__ import annotations

import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.formats import check_channels_first
from tests.support.helpers import check_growth, few, sandwich

LINE, IMAGE, VOLUME = (4, 2), (4, 3, 2), (2, 3, 2, 2)

CASES = {
    "MaxPooling1D": lambda: sandwich(LINE, layers.MaxPooling1D(2)),
    "MaxPooling2D, same": lambda: sandwich(IMAGE, layers.MaxPooling2D(2, padding="same")),
    "MaxPooling3D": lambda: sandwich(VOLUME, layers.MaxPooling3D(2)),
    "AveragePooling1D, same": lambda: sandwich(LINE, layers.AveragePooling1D(3, padding="same")),
    "AveragePooling2D, strided": lambda: sandwich(IMAGE, layers.AveragePooling2D(2, strides=1)),
    "AveragePooling3D": lambda: sandwich(VOLUME, layers.AveragePooling3D(2)),
    "GlobalMaxPooling1D": lambda: sandwich(LINE, layers.GlobalMaxPooling1D()),
    "GlobalMaxPooling2D, keepdims": lambda: sandwich(
        IMAGE, layers.GlobalMaxPooling2D(keepdims=True)
    ),
    "GlobalMaxPooling3D": lambda: sandwich(VOLUME, layers.GlobalMaxPooling3D()),
    "GlobalAveragePooling1D, keepdims": lambda: sandwich(
        LINE, layers.GlobalAveragePooling1D(keepdims=True)
    ),
    "GlobalAveragePooling2D": lambda: sandwich(IMAGE, layers.GlobalAveragePooling2D()),
    "GlobalAveragePooling3D, keepdims": lambda: sandwich(
        VOLUME, layers.GlobalAveragePooling3D(keepdims=True)
    ),
}


@pytest.mark.parametrize("build", few(CASES))
def test_the_function_stays(build, tmp_path):
    check_growth(build, path=tmp_path)


def test_all_of_them_train_after_growth():
    check_growth(
        lambda: sandwich(
            IMAGE,
            layers.MaxPooling2D(2, strides=1),
            layers.AveragePooling2D(2, strides=1, padding="same"),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.GlobalMaxPooling2D(),
        ),
        train=True,
    )


@pytest.mark.skipif(not hasattr(layers, "AdaptiveMaxPooling2D"), reason="new in a later Keras")
def test_the_function_stays_with_adaptive_pooling(tmp_path):
    check_growth(lambda: sandwich(IMAGE, layers.AdaptiveMaxPooling2D(2)), path=tmp_path)
    check_growth(lambda: sandwich(LINE, layers.AdaptiveAveragePooling1D(2)), path=tmp_path)


FIRST = {
    "MaxPooling2D": lambda f: ((2, 4, 3), [layers.MaxPooling2D(2, **f)]),
    "AveragePooling1D": lambda f: ((2, 4), [layers.AveragePooling1D(2, **f)]),
    "GlobalMaxPooling2D": lambda f: ((2, 4, 3), [layers.GlobalMaxPooling2D(**f)]),
    "GlobalAveragePooling2D, keepdims": lambda f: (
        (2, 4, 3),
        [layers.GlobalAveragePooling2D(keepdims=True, **f)],
    ),
}


@pytest.mark.parametrize("parts", few(FIRST, 2))
def test_the_function_stays_with_the_channels_first(parts):
    check_channels_first(parts)


def test_units_that_lie_where_a_layer_pools_are_fixed():
    model = sandwich(LINE, layers.Permute((2, 1), name="turn"), layers.MaxPooling1D(2, name="pool"))
    with pytest.raises(n2n.errors.FixedWidthError, match="pools along this axis") as error:
        n2n.plan(model, n2n.Wider("before", units=6))
    assert "path: before -> turn -> pool" in str(error.value)
