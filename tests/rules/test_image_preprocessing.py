"""Layers that prepare images, inside a model: each channel alone, or refused."""

from __future__ import annotations

import keras
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.widths.registry import Refusal, rules
from tests.support.formats import check_channels_first
from tests.support.helpers import (
    BACKEND,
    assert_untouched,
    check_growth,
    few,
    randomize,
    sandwich,
    snapshot,
)

IMAGE = (6, 8, 2)
RANGE = {"value_range": (-1.0, 1.0)}

# What is drawn at random has a seed, so that the outputs in training mode can be compared.
CASES = {
    "AutoContrast": lambda: layers.AutoContrast(**RANGE),
    "CenterCrop": lambda: layers.CenterCrop(4, 5),
    "ContrastLimitedAdaptiveHistogramEqualization": lambda: (
        layers.ContrastLimitedAdaptiveHistogramEqualization(tile_grid_size=(2, 2), **RANGE)
    ),
    "RandomBrightness": lambda: layers.RandomBrightness(0.3, **RANGE, seed=1),
    "RandomContrast": lambda: layers.RandomContrast(0.3, **RANGE, seed=1),
    "RandomCrop": lambda: layers.RandomCrop(4, 5, seed=1),
    "RandomErasing": lambda: layers.RandomErasing(1.0, fill_value=0.5, **RANGE, seed=1),
    "RandomFlip": lambda: layers.RandomFlip(seed=1),
    "RandomGaussianBlur": lambda: layers.RandomGaussianBlur(1.0, 3, 1.0, **RANGE, seed=1),
    "RandomInvert": lambda: layers.RandomInvert(1.0, **RANGE, seed=1),
    "RandomPerspective": lambda: layers.RandomPerspective(1.0, 0.5, seed=1),
    "RandomPosterization": lambda: layers.RandomPosterization(4, **RANGE, seed=1),
    "RandomRotation": lambda: layers.RandomRotation(0.3, seed=1),
    "RandomSharpness": lambda: layers.RandomSharpness(0.5, **RANGE, seed=1),
    "RandomShear": lambda: layers.RandomShear((0.1, 0.3), (0.1, 0.3), seed=1),
    "RandomTranslation": lambda: layers.RandomTranslation(0.3, 0.3, seed=1),
    "RandomZoom": lambda: layers.RandomZoom(0.3, seed=1),
    "Resizing": lambda: layers.Resizing(5, 7),
    "Solarization": lambda: layers.Solarization(0.3, 0.5, **RANGE, seed=1),
}
REFUSED = {
    "AugMix": lambda: layers.AugMix(**RANGE),
    "CutMix": lambda: layers.CutMix(),
    "MaxNumBoundingBoxes": lambda: layers.MaxNumBoundingBoxes(3),
    "MixUp": lambda: layers.MixUp(),
    "RandAugment": lambda: layers.RandAugment(**RANGE),
    "RandomColorDegeneration": lambda: layers.RandomColorDegeneration(0.5, **RANGE),
    "RandomColorJitter": lambda: layers.RandomColorJitter(**RANGE, saturation_factor=0.5),
    "RandomElasticTransform": lambda: layers.RandomElasticTransform(1.0, 0.5, **RANGE),
    "RandomGrayscale": lambda: layers.RandomGrayscale(),
    "RandomHue": lambda: layers.RandomHue(0.5, **RANGE),
    "RandomSaturation": lambda: layers.RandomSaturation(0.5, **RANGE),
}


def registered(refused):
    return {
        name
        for name, rule in rules()
        if getattr(rule, "__module__", "").startswith("keras_net2net")
        and "image_preprocessing" in getattr(getattr(layers, name, None), "__module__", "")
        and isinstance(rule, Refusal) == refused
    }


def test_every_layer_for_images_has_an_example():
    assert registered(refused=False) <= set(CASES)
    # `Equalization` returns its own symbolic input, of which Keras makes no graph.
    assert registered(refused=True) <= {*REFUSED, "Equalization"}


@pytest.mark.parametrize("name", few(list(CASES)))
def test_the_function_stays(name, tmp_path):
    if not hasattr(layers, name) or not hasattr(layers, "ReversibleEmbedding"):
        pytest.skip("this Keras doesn't have it, or doesn't run all that it has")
    if name == "RandomCrop" and BACKEND == "jax":
        pytest.skip("JAX doesn't compile it")
    check_growth(lambda: sandwich(IMAGE, CASES[name]()), path=tmp_path, train=False)


@pytest.mark.pure
@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_channels_is_refused(name):
    if not hasattr(layers, name) or not hasattr(layers, "ReversibleEmbedding"):
        pytest.skip("this Keras doesn't have it, or doesn't run all that it has")
    inputs = keras.Input(IMAGE)
    x = layers.Dense(3, activation="tanh", name="before")(inputs)
    try:
        x = REFUSED[name]()(x)
    except (TypeError, ValueError, KeyError, IndexError):
        x = REFUSED[name]()({"images": x})["images"]
    model = randomize(keras.Model(inputs, layers.Dense(3, name="after")(x)))
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match=rf"\({name}\)") as error:
        n2n.grow(model, n2n.Wider("before", units=6))
    assert dict(rules())[name].why in str(error.value)
    assert_untouched(model, weights)


def test_resizing_keeps_the_channels_first():
    check_channels_first(lambda f: ((2, 6, 8), [layers.Resizing(5, 7, **f)]))


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: layers.AutoContrast(data_format="channels_first"), "the channels are one"),
        (lambda: layers.RandomErasing(1.0), "random pixels"),
    ],
    ids=["AutoContrast with the channels first", "RandomErasing with random pixels"],
)
def test_settings_that_mix_channels_are_refused(layer, why):
    if not hasattr(layers, "RandomErasing"):
        pytest.skip("this Keras doesn't have it")
    with pytest.raises(n2n.errors.FixedWidthError, match=why):
        n2n.plan(sandwich(IMAGE, layer()), n2n.Wider("before", units=6))
