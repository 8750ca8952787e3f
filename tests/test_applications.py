"""The networks of keras.applications grow in every hidden layer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.helpers import (
    BACKEND,
    array,
    assert_native,
    assert_untouched,
    data_for,
    flat_layers,
    max_difference,
    outputs,
    randomize,
    skipped,
    snapshot,
)

# The smallest images that each of them takes, and a layer amid it.
NETWORKS = {
    "VGG16": (32, "block3_conv2"),
    "ResNet50": (32, "conv3_block2_2_conv"),
    "ResNet50V2": (32, "conv3_block2_2_conv"),
    "InceptionV3": (75, "conv2d_20"),
    "DenseNet121": (32, "conv3_block2_1_conv"),
    "MobileNetV2": (32, "block_5_expand"),
    "EfficientNetB0": (32, "block4b_expand_conv"),
    "Xception": (71, "block5_sepconv2"),
}
QUICK = ("VGG16", "MobileNetV2")  # the others take ten seconds and more
RELATIVE = 1e-5


def network(name):
    """A network with random weights and statistics, and images that it tells apart."""
    keras.utils.clear_session(free_memory=False)  # InceptionV3's layers are named by numbers
    size, _ = NETWORKS[name]
    make = getattr(keras.applications, name)
    model = randomize(make(weights=None, input_shape=(size, size, 3), classes=5))
    images = data_for(model, batch=16)
    if name == "EfficientNetB0":
        images *= 100.0  # it rescales pixels of up to 255
    calibrate(model, images)
    return model, images[:2]


def calibrate(model, images):
    """Keeps the image in sight: through a hundred layers, random numbers alone would drown it.

    The statistics of each BatchNormalization become those of what it sees, moved at random. Its
    variance only up: networks at the edge of chaos make much of rounding, grown or not.
    """
    random = np.random.default_rng(1)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    for variable in model.trainable_variables:
        if variable.name == "bias":
            variable.assign(0.1 * array(variable))
        elif len(variable.shape) > 1 and not norms:
            variable.assign(np.sqrt(2.0) * array(variable))
    update_statistics(model, images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, variance = array(norm.moving_mean), array(norm.moving_variance)
        moved = mean + 0.1 * np.sqrt(variance) * random.standard_normal(mean.shape)
        norm.moving_mean.assign(moved.astype("float32"))
        norm.moving_variance.assign(
            (variance * random.uniform(1.0, 2.0, mean.shape)).astype("float32")
        )


def update_statistics(model, x):
    """Runs the model in training mode, for its moving statistics."""
    if BACKEND != "jax":
        model(x, training=True)
        return
    import jax

    def call(trainable, rest):
        return model.stateless_call(trainable, rest, x, training=True)[1]

    variables = (model.trainable_variables, model.non_trainable_variables)
    updated = jax.jit(call)(*([variable.value for variable in part] for part in variables))
    for variable, value in zip(model.non_trainable_variables, updated, strict=True):
        variable.assign(value)


def logits(model, x):
    """The outputs before the last softmax, which would hide differences."""
    last = model.layers[-1]
    activation, last.activation = last.activation, keras.activations.linear
    try:
        return outputs(model, x)
    finally:
        last.activation = activation


def relative_difference(new, old):
    return max_difference(new, old) / float(np.max(np.abs(old)))


def sizes(model):
    """The sizes of all layers that make units."""
    return {
        path: size
        for path, layer in flat_layers(model)
        if (size := getattr(layer, "filters", None) or getattr(layer, "units", None))
    }


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS],
)
def test_a_network_grows_in_every_hidden_layer(name):
    model, x = network(name)
    single = NETWORKS[name][1]
    before, old = logits(model, x), sizes(model)
    assert 0.1 < np.abs(before[0]).max() < 10
    assert relative_difference(before[0][:1], before[0][1:]) > 0.01  # it tells the images apart

    n2n.grow(model, n2n.Wider(single, factor=1.5), seed=0, verify=False)
    assert sizes(model)[single] == np.floor(1.5 * old[single] + 0.5)
    assert relative_difference(logits(model, x), before) < RELATIVE

    now = sizes(model)
    report = n2n.grow(model, n2n.Wider(factor=1.5), seed=1, verify=False)
    assert skipped(report.plan) == {"predictions"}
    expected = {path: int(np.floor(1.5 * size + 0.5)) for path, size in now.items()}
    assert sizes(model) == expected | {"predictions": 5}
    assert model.count_params() == report.parameters_after
    assert relative_difference(logits(model, x), before) < RELATIVE
    assert_native(model)


@pytest.mark.slow
def test_a_student_of_resnet_shares_nothing_with_its_teacher():
    teacher, x = network("ResNet50")
    before, weights = logits(teacher, x), snapshot(teacher)
    student = n2n.clone_and_grow(teacher, n2n.Wider(factor=1.5), seed=0, verify=False)
    assert relative_difference(logits(student, x), before) < RELATIVE
    assert student.count_params() > 2 * teacher.count_params()
    assert_untouched(teacher, weights)
    assert not {id(v) for v in teacher.weights} & {id(v) for v in student.weights}
