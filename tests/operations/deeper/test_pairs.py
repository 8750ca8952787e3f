"""DeeperPairs: further pairs of 1xn and nx1 convolutions, as in the paper's Inception."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError, NotIdentityError
from tests.operations.deeper.test_deeper import assert_reloads, names
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_native,
    assert_same,
    both_modes,
    data_for,
    long_elsewhere,
    outputs,
    randomize,
    train_a_step,
)
from tests.support.messages import assert_explained, refused


def unit(x, filters, size, name, activation="relu", norm=True, **kwargs):
    """A convolution as InceptionV3 has it: no bias, a normalization without scale."""
    kwargs = {"padding": "same", "use_bias": not norm, **kwargs}
    x = layers.Conv2D(filters, size, name=name, **kwargs)(x)
    if norm:
        x = layers.BatchNormalization(scale=False, name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_act")(x)


def inception(activation: str = "relu", norm: bool = True) -> keras.Model:
    """A small module: one branch with a pair, one with two, and one whose 1xn and nx1 fork."""
    start = inputs = keras.Input((6, 6, 3))
    one = unit(start, 4, 1, "in1", norm=norm)
    one = unit(one, 3, (1, 3), "a", activation, norm=norm)
    one = unit(one, 5, (3, 1), "b", activation, norm=norm)
    two = unit(start, 3, 1, "in2", norm=norm)
    for name, size in (("c", (5, 1)), ("d", (1, 5)), ("e", (5, 1)), ("f", (1, 5))):
        two = unit(two, 4, size, name, norm=norm)
    fork = [unit(start, 2, (1, 3), "g", norm=norm), unit(start, 2, (3, 1), "h", norm=norm)]
    x = layers.Concatenate(name="mixed")([one, two, *fork])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="out")(x), name="net"))


PAIR_B = ["b_pair_1_1x3", "b_pair_1_1x3_bn", "b_pair_1_1x3_relu"]
PAIR_B += ["b_pair_1_3x1", "b_pair_1_3x1_bn", "b_pair_1_3x1_relu"]


def test_every_pair_is_followed_by_more_pairs(tmp_path):
    model = inception()
    x = data_for(model, batch=8)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.DeeperPairs(count=2, calibration=x), seed=0, verify=x)
    assert_same(both_modes(model, x), before, 1e-5)
    assert report.training_difference < 1e-5
    assert_native(model)
    (step,) = report.plan.steps
    inserted = [i for i in step.insertions if i.layer_class is layers.Conv2D]
    kernels = [(i.path, i.config["kernel_size"], i.config["filters"]) for i in inserted]
    assert sorted(kernels, key=lambda one: (one[0][0], one[0][7])) == [
        ("b_pair_1_1x3", (1, 3), 5),
        ("b_pair_1_3x1", (3, 1), 5),
        ("b_pair_2_1x3", (1, 3), 5),
        ("b_pair_2_3x1", (3, 1), 5),
        ("d_pair_1_5x1", (5, 1), 4),
        ("d_pair_1_1x5", (1, 5), 4),
        ("d_pair_2_5x1", (5, 1), 4),
        ("d_pair_2_1x5", (1, 5), 4),
        ("f_pair_1_5x1", (5, 1), 4),
        ("f_pair_1_1x5", (1, 5), 4),
        ("f_pair_2_5x1", (5, 1), 4),
        ("f_pair_2_1x5", (1, 5), 4),
    ]
    behind = [i for i in step.insertions if i.path.startswith("b_")]
    assert [i.path for i in behind[:6]] == PAIR_B
    assert [i.after for i in behind[:7]] == ["b", *PAIR_B]
    assert_reloads(model, x, tmp_path)
    if BACKEND != "jax":  # which compiles the step for long
        train_a_step(model, x)


def test_kernels_are_identities_and_normalizations_undo_themselves():
    model = inception()
    x = data_for(model, batch=8)
    y = keras.Model(model.input, model.get_layer("b_act").output)
    seen = outputs(y, x, training=True)[0]
    n2n.grow(model, n2n.DeeperPairs("b", calibration=x), seed=0)
    kernel = array(model.get_layer("b_pair_1_1x3").kernel)
    assert np.array_equal(kernel[0, 1], np.eye(5))
    assert not kernel[0, [0, 2]].any()
    for name in ("b_pair_1_1x3_bn", "b_pair_1_3x1_bn"):
        norm = model.get_layer(name)
        assert norm.scale
        assert not model.get_layer(name.removesuffix("_bn")).use_bias
        mean, variance = seen.mean((0, 1, 2)), seen.var((0, 1, 2))
        assert np.allclose(array(norm.beta), mean, atol=1e-5)
        assert np.allclose(array(norm.gamma), np.sqrt(variance + norm.epsilon), atol=1e-5)


def test_pairs_are_named_by_one_of_the_two():
    for wanted in ("a", "b", ["a", "b"], "b*"):
        model = inception()
        report = n2n.grow(model, n2n.DeeperPairs(wanted), seed=0)
        assert [i.path for i in report.plan.steps[0].insertions] == PAIR_B
    model = inception()
    report = n2n.grow(model, n2n.DeeperPairs(model.get_layer("d")), seed=0)
    assert "d_pair_1_5x1" in names(model)
    assert "b_pair_1_1x3" not in names(model)
    assert "set by what 'd_bn' says of its input" in str(report.notes)


def test_inserted_pairs_are_pairs_themselves():
    model = inception()
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.DeeperPairs("b"), seed=0)
    plan = n2n.plan(model, n2n.DeeperPairs("b_pair_1_3x1"))
    assert plan.steps[0].insertions[0].path == "b_pair_2_1x3"
    n2n.grow(model, n2n.DeeperPairs(batch_norm=False), seed=0)
    assert_same(outputs(model, x), before, 1e-5)
    assert "b_pair_2_1x3" in names(model)
    assert "b_pair_3_1x3" in names(model)
    assert "b_pair_3_1x3_bn" not in names(model)


def test_pairs_without_normalizations_are_exact_in_both_modes():
    model = inception(norm=False)
    x = data_for(model)
    before = both_modes(model, x)
    operations = [n2n.Wider("b", 7), n2n.DeeperPairs("b", 2), n2n.Wider("b_pair_1_1x3", 9)]
    report = n2n.grow(model, operations, seed=0)
    assert_same(both_modes(model, x), before)
    assert report.training_difference is None
    assert model.get_layer("b_pair_2_1x3").filters == 7


def test_strides_and_padding_of_a_pair_are_no_hindrance():
    x = inputs = keras.Input((9, 9, 2))
    x = layers.Conv2D(3, (1, 4), strides=2, padding="valid", activation="relu", name="a")(x)
    x = layers.Conv2D(3, (4, 1), strides=(2, 1), activation="relu", name="b")(x)
    x = layers.Flatten(name="flat")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x)))
    given = data_for(model)
    before = both_modes(model, given)
    n2n.grow(model, n2n.DeeperPairs(), seed=0)
    assert_same(both_modes(model, given), before)
    assert names(model)[:4] == ["a", "b", "b_pair_1_1x4", "b_pair_1_4x1"]


@long_elsewhere
def test_a_teacher_stays_and_a_running_fit_gives_the_data():
    teacher = inception()
    count = len(teacher.layers)
    student = n2n.clone_and_grow(teacher, n2n.DeeperPairs("b"), seed=0)
    assert len(teacher.layers) == count < len(student.layers)
    teacher.compile("sgd", "mse", **EAGERLY)
    growth = n2n.GrowthScheduler({0: n2n.DeeperPairs("b")}, seed=0, verbose=0)
    x = data_for(teacher, batch=8)
    teacher.fit(x, np.zeros((8, 3)), verbose=0, callbacks=[growth])
    assert "the first batches of this `fit`" in str(growth.history[0].notes)
    assert growth.history[0].training_difference < 1e-5


def test_what_is_no_pair_is_an_error():
    model = inception()
    why = "it isn't one of a Conv2D of a kernel 1xn (n > 1) and one of nx1 that reads its block"
    for name in ("in1", "g", "h"):
        refused(model, n2n.DeeperPairs(name), GrowthError, f"after '{name}' (Conv2D", why)
    refused(model, n2n.DeeperPairs("in*"), GrowthError, "No pair of 'net'", "Use `Deeper`")


def test_a_pair_that_has_no_identity_is_skipped_unless_it_was_named():
    model = inception("tanh")
    plan = n2n.plan(model, n2n.DeeperPairs())
    (skip,) = plan.steps[0].skipped
    assert skip.path == "b"
    assert "'tanh' isn't idempotent" in skip.reason
    refused(model, n2n.DeeperPairs("a"), NotIdentityError, "after 'b' (Conv2D", "'tanh'")


def test_arguments_are_checked_and_kept():
    operation = n2n.DeeperPairs(["a", "d"], 2, batch_norm=False, calibration=np.ones((1, 6, 6, 3)))
    config = operation.get_config()
    assert config == {"layers": ["a", "d"], "count": 2, "batch_norm": False}
    assert n2n.DeeperPairs.from_config(config) == operation
    with pytest.raises(GrowthError) as caught:
        n2n.DeeperPairs(batch_norm="yes")
    assert_explained(caught.value, "`batch_norm` can't be 'yes'")
    with pytest.raises(GrowthError) as caught:
        n2n.DeeperPairs(count=0)
    assert_explained(caught.value, "`count` can't be 0")


@pytest.mark.long
@pytest.mark.skipif(BACKEND != "torch", reason="it is about many layers, and fastest there")
def test_every_pair_of_inception_v3_is_deepened_by_two_more():
    """The paper's experiment."""
    model = keras.applications.InceptionV3(
        weights=None, input_shape=(75, 75, 3), classes=10, classifier_activation=None
    )
    randomize(model)
    x = data_for(model, batch=8)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.DeeperPairs(count=2), seed=0, verify=x, calibration=x)
    assert_same(both_modes(model, x), before, 1e-4)  # rounding in 146 convolutions
    inserted = [i for i in report.plan.steps[0].insertions if i.layer_class is layers.Conv2D]
    assert len(inserted) == 13 * 2 * 2  # 3 pairs in each of 4 modules, and one in the next
    assert {i.config["kernel_size"] for i in inserted} == {(1, 7), (7, 1)}
    assert_native(model)
