"""The networks of keras.applications grow in every hidden layer."""

from __future__ import annotations

import numpy as np
import pytest

import keras_net2net as n2n
from benchmarks.applications import networks, random_network, relative_difference, run_network
from tests.support.helpers import BACKEND, assert_native, assert_untouched, flat_layers, snapshot

# One of each family, and a layer amid it.
NETWORKS = {
    "ConvNeXtTiny": "convnext_tiny_stage_2_block_3_pointwise_conv_1",
    "DenseNet121": "conv3_block2_1_conv",
    "EfficientNetB0": "block4b_expand_conv",
    "EfficientNetV2B0": "block4b_expand_conv",
    "InceptionResNetV2": "conv2d_100",
    "InceptionV3": "conv2d_20",
    "MobileNet": "conv_pw_7",
    "MobileNetV2": "block_5_expand",
    "MobileNetV3Small": "expanded_conv_6_squeeze_excite_conv_1",
    "NASNetMobile": "separable_conv_1_normal_left1_3",
    "ResNet50": "conv3_block2_2_conv",
    "ResNet50V2": "conv3_block2_2_conv",
    "VGG16": "block3_conv2",
    "Xception": "block5_sepconv2",
}
FAMILIES = (
    *("ConvNeXt", "DenseNet", "EfficientNetB", "EfficientNetV2", "InceptionResNet", "Inception"),
    *("MobileNetV2", "MobileNetV3", "MobileNet", "NASNet", "ResNet", "VGG", "Xception"),
)
# PyTorch, the fastest, runs all but NASNet, which Keras doesn't offer there.
ELSEWHERE = ("MobileNet", "MobileNetV3Small", "ConvNeXtTiny", "NASNetMobile")
HERE = [name for name in NETWORKS if BACKEND == "torch" or name in ELSEWHERE]
QUICK = ("MobileNet",)  # the others take several seconds
# Layers that normalize over units which aren't sums of linear ones take whole multiples only.
FACTORS = {"ConvNeXtTiny": 2.0}
RELATIVE = 1e-5


def sizes(model):
    """The sizes of all layers that make units; grouped convolutions follow their channels."""
    return {
        path: size
        for path, layer in flat_layers(model)
        if (size := getattr(layer, "filters", None) or getattr(layer, "units", None))
        and getattr(layer, "groups", 1) == 1
    }


def test_there_is_one_of_each_family():
    for name in networks():
        family = next(family for family in FAMILIES if name.startswith(family))
        assert any(tested.startswith(family) for tested in NETWORKS), family


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in HERE],
)
def test_a_network_grows_in_every_hidden_layer_in_place_and_as_a_student(name):
    if name.startswith("NASNet") and BACKEND == "torch":
        pytest.skip("Keras doesn't offer it on PyTorch")
    model, x = random_network(name)
    before, weights, old = run_network(model, x), snapshot(model), sizes(model)
    assert 0.1 < np.abs(before[0]).max() < 20
    assert relative_difference(before[:1], before[1:]) > 0.01  # it tells the images apart

    factor = FACTORS.get(name, 1.5)
    everything = n2n.Wider(factor=factor)
    student = n2n.clone_and_grow(model, everything, seed=1, verify=False)
    assert relative_difference(run_network(student, x), before) < RELATIVE
    assert_untouched(model, weights)
    assert not {id(v) for v in model.weights} & {id(v) for v in student.weights}

    n2n.grow(model, n2n.Wider(NETWORKS[name], factor=1.5), seed=0, verify=False)
    assert sizes(model)[NETWORKS[name]] == np.floor(1.5 * old[NETWORKS[name]] + 0.5)
    assert relative_difference(run_network(model, x), before) < RELATIVE

    now = sizes(model)
    report = n2n.grow(model, everything, seed=1, verify=False)
    (head,) = report.plan.steps[0].skipped
    assert head.reason.endswith("is an output of the model")
    expected = {path: int(np.floor(factor * size + 0.5)) for path, size in now.items()}
    expected[head.path] = now[head.path]
    assert sizes(model) == expected
    assert model.count_params() == report.parameters_after
    assert relative_difference(run_network(model, x), before) < RELATIVE
    assert_native(model)
