"""Convolutions: plain, transposed, depthwise, separable, grouped, in both data formats."""

from __future__ import annotations

import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.formats import check_channels_first
from tests.support.helpers import (
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

LINE, IMAGE, VOLUME = (6, 2), (5, 6, 2), (3, 4, 3, 2)

CASES = {
    "Conv1D valid": lambda: sandwich(LINE, layers.Conv1D(4, 3)),
    "Conv1D same, strided": lambda: sandwich(LINE, layers.Conv1D(4, 3, strides=2, padding="same")),
    "Conv1D causal, dilated": lambda: sandwich(
        LINE, layers.Conv1D(4, 2, padding="causal", dilation_rate=2, activation="relu")
    ),
    "Conv2D valid": lambda: sandwich(IMAGE, layers.Conv2D(4, 3, activation="relu")),
    "Conv2D same, even kernel": lambda: sandwich(IMAGE, layers.Conv2D(4, (2, 4), padding="same")),
    "Conv2D strided, no bias": lambda: sandwich(
        IMAGE, layers.Conv2D(4, 3, strides=(2, 1), use_bias=False)
    ),
    "Conv2D dilated": lambda: sandwich(IMAGE, layers.Conv2D(4, 2, dilation_rate=2)),
    "Conv3D": lambda: sandwich(VOLUME, layers.Conv3D(4, 2, activation="tanh")),
    "Conv1DTranspose": lambda: sandwich(LINE, layers.Conv1DTranspose(4, 3, strides=2)),
    "Conv2DTranspose": lambda: sandwich(
        IMAGE, layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")
    ),
    "Conv2DTranspose, no bias": lambda: sandwich(
        IMAGE, layers.Conv2DTranspose(4, 2, use_bias=False)
    ),
    "Conv3DTranspose": lambda: sandwich(VOLUME, layers.Conv3DTranspose(4, 2)),
    "DepthwiseConv1D": lambda: sandwich(LINE, layers.DepthwiseConv1D(3, activation="relu")),
    "DepthwiseConv1D, multiplier 2": lambda: sandwich(
        LINE, layers.DepthwiseConv1D(3, depth_multiplier=2)
    ),
    "DepthwiseConv2D": lambda: sandwich(IMAGE, layers.DepthwiseConv2D(3, padding="same")),
    "DepthwiseConv2D, multiplier 2": lambda: sandwich(
        IMAGE, layers.DepthwiseConv2D(2, strides=2, depth_multiplier=2, activation="relu")
    ),
    "DepthwiseConv2D, multiplier 3, no bias, twice": lambda: sandwich(
        IMAGE,
        layers.DepthwiseConv2D(2, depth_multiplier=3, use_bias=False),
        layers.DepthwiseConv2D(2, depth_multiplier=2),
    ),
    "SeparableConv1D": lambda: sandwich(LINE, layers.SeparableConv1D(4, 3)),
    "SeparableConv1D, multiplier 2": lambda: sandwich(
        LINE, layers.SeparableConv1D(4, 3, depth_multiplier=2, use_bias=False)
    ),
    "SeparableConv2D": lambda: sandwich(IMAGE, layers.SeparableConv2D(4, 3, activation="relu")),
    "SeparableConv2D, multiplier 2": lambda: sandwich(
        IMAGE, layers.SeparableConv2D(4, 3, padding="same", depth_multiplier=2)
    ),
    "Conv1D with a group for each channel": lambda: sandwich(LINE, layers.Conv1D(4, 3, groups=4)),
    "Conv2D with a group for each channel": lambda: sandwich(
        IMAGE, layers.Conv2D(4, 3, groups=4, use_bias=False)
    ),
    "Conv2D with two filters for each channel": lambda: sandwich(
        IMAGE, layers.Conv2D(8, 3, groups=4, activation="relu")
    ),
}


@pytest.mark.parametrize("build", few(CASES))
def test_the_function_stays(build, tmp_path):
    check_growth(build, path=tmp_path)


def test_all_of_them_train_after_growth():
    check_growth(
        lambda: sandwich(
            IMAGE,
            layers.Conv2D(4, 2, activation="relu"),
            layers.Conv2DTranspose(4, 2),
            layers.DepthwiseConv2D(2, depth_multiplier=2),
            layers.SeparableConv2D(4, 2),
            layers.Conv2D(8, 2, groups=4),
        ),
        train=True,
    )


FIRST = {
    "Conv1D": lambda f: ((2, 6), [layers.Conv1D(4, 3, **f)]),
    "Conv2D": lambda f: ((2, 5, 6), [layers.Conv2D(4, 3, strides=2, activation="relu", **f)]),
    "Conv3D": lambda f: ((2, 3, 4, 3), [layers.Conv3D(4, 2, **f)]),
    "Conv2DTranspose": lambda f: ((2, 5, 6), [layers.Conv2DTranspose(4, 3, strides=2, **f)]),
    "DepthwiseConv2D": lambda f: ((2, 5, 6), [layers.DepthwiseConv2D(3, depth_multiplier=2, **f)]),
    "SeparableConv2D": lambda f: ((2, 5, 6), [layers.SeparableConv2D(4, 3, **f)]),
    "a group for each channel": lambda f: ((2, 5, 6), [layers.Conv2D(8, 3, groups=4, **f)]),
}


@pytest.mark.parametrize("parts", few(FIRST, 2))
def test_the_function_stays_with_the_channels_first(parts):
    check_channels_first(parts)


def test_groups_of_several_channels_are_fixed_with_a_reason():
    model = randomize(
        sandwich(IMAGE, layers.Conv2D(4, 3, name="conv"), layers.Conv2D(6, 3, groups=2, name="it"))
    )
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match="in 2 groups") as error:
        n2n.grow(model, n2n.Wider("conv", units=6))
    assert "path: conv -> it" in str(error.value)
    with pytest.raises(n2n.errors.FixedWidthError, match="makes its channels in 2 groups"):
        n2n.grow(model, n2n.Wider("it", units=8))
    assert_untouched(model, weights)
    x = data_for(model)
    before = outputs(model, x)
    report = n2n.grow(model, n2n.Wider(factor=1.5), seed=0)
    assert {skip.path for skip in report.plan.steps[0].skipped} == {"conv", "it", "after"}
    assert_same(outputs(model, x), before)


def test_a_depthwise_like_grouped_convolution_keeps_a_group_for_each_channel():
    model = randomize(sandwich(IMAGE, layers.Conv2D(8, 3, groups=4, name="it")))
    n2n.grow(model, n2n.Wider("before", units=7), seed=0)
    layer = model.get_layer("it")
    assert (layer.groups, layer.filters) == (7, 14)
    assert tuple(layer.kernel.shape) == (3, 3, 1, 14)


def test_a_depthwise_convolution_ties_the_channels_before_and_after():
    model = randomize(
        sandwich(
            IMAGE,
            layers.DepthwiseConv2D(3, padding="same", name="it"),
            layers.Conv2D(4, 1, name="conv"),
        )
    )
    widths = n2n.plan(model, n2n.Wider("before", units=6)).steps[0].widths
    assert [(width.name, width.new) for width in widths] == [("before", 6)]
    with pytest.raises(n2n.errors.FixedWidthError, match="makes no units of its own") as error:
        n2n.plan(model, n2n.Wider("it", units=6))
    assert "'before'" in str(error.value)
