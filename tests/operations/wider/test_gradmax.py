"""GradMax: new units with the largest first gradient, and the function stays."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError
from keras_net2net.internals.gradients import gradients
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_native,
    assert_same,
    both_modes,
    data_for,
    outputs,
    randomize,
)
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state


def dense(activation="tanh", loss="mse", **kwargs) -> keras.Model:
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, activation=activation, name="fc", **kwargs)(x)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="out")(x)))
    model.compile(keras.optimizers.SGD(0.01), loss, **EAGERLY)
    return model


def convolutional(activation="tanh", normalization=False, **kwargs) -> keras.Model:
    x = inputs = keras.Input((6, 7, 2))
    x = layers.Conv2D(4, 3, name="conv", **kwargs)(x)
    if normalization:
        x = layers.BatchNormalization(name="bn")(x)
    x = layers.Activation(activation)(x)
    x = layers.Conv2D(3, (2, 3), strides=(1, 2), padding="same", activation="elu", name="next")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="out")(x)))
    model.compile(keras.optimizers.SGD(0.01), "mse", **EAGERLY)
    return model


def batch(model, size: int = 8):
    x = data_for(model, batch=size)
    y = np.random.default_rng(5).standard_normal((size, 3)).astype("float32")
    return x, y


def grow(model, name, units, kind="gradmax", data=None):
    calibration = data or batch(model)
    operation = n2n.Wider(name, units, new_units=kind)
    return n2n.grow(model, operation, seed=0, calibration=calibration)


def gradients_of(model, x, y) -> dict[str, np.ndarray]:
    """The gradients of the loss, by the backend's own training step with a rate of one."""
    before = {weight.path: array(weight) for weight in model.trainable_variables}
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile(keras.optimizers.SGD(1.0), "mse", **EAGERLY)
    twin.train_on_batch(x, y)
    return {
        path: before[path] - array(weight)
        for path, weight in zip(before, twin.trainable_variables, strict=True)
    }


def test_gradients_are_those_of_calculus():
    x = np.array([1.0, 2.0, -3.0], "float32")
    unused = np.ones(2, "float32")
    found = gradients(lambda tensors: keras.ops.sum(tensors[0] ** 3), [x, unused])
    assert np.allclose(found[0], 3 * x**2)
    assert np.array_equal(found[1], [0, 0])


def test_the_first_gradient_is_the_sum_of_the_largest_squared_singular_values():
    # Two linear layers and a mean squared error, worked out with NumPy alone.
    model = dense("linear")
    x, y = batch(model)
    w1, b1, w2, b2 = (array(w).astype("float64") for w in model.weights)
    delta = 2 * ((x @ w1 + b1) @ w2 + b2 - y) / y.size
    values = np.linalg.svd(x.T @ delta, compute_uv=False)
    norm = np.linalg.norm(w2, axis=1).mean()
    before = both_modes(model, x)
    report = grow(model, "fc", 6)
    assert_same(both_modes(model, x), before)
    kernel, bias, reads = (array(w) for w in model.weights[:3])
    assert not kernel[:, 4:].any()
    assert not bias[4:].any()
    assert np.allclose(np.linalg.norm(reads[4:], axis=1), norm, rtol=1e-5)
    assert np.abs(reads[4] @ reads[5]) < 1e-5  # two directions, at a right angle
    first = gradients_of(model, x, y)["fc/kernel"][:, 4:]
    assert np.square(first).sum() == pytest.approx(norm**2 * np.square(values[:2]).sum(), rel=1e-4)
    assert report.plan.exact
    assert report.difference < 1e-6


@pytest.mark.parametrize("build", [dense, convolutional])
def test_the_first_gradient_is_larger_than_that_of_random_weights_of_the_same_norm(build):
    model = build()
    name = model.layers[1].name
    following = model.layers[-1] if build is dense else model.get_layer("next")
    x, y = batch(model)
    grow(model, name, 5)
    path = f"{name}/kernel"
    largest = np.square(gradients_of(model, x, y)[path][..., 4:]).sum()
    weights = [array(w) for w in following.weights]
    norm = np.linalg.norm(weights[0][..., 4, :])
    random = np.random.default_rng(0)
    for _ in range(3 if BACKEND == "torch" else 1):
        drawn = random.standard_normal(weights[0][..., 4, :].shape)
        kernel = weights[0].copy()
        kernel[..., 4, :] = drawn * norm / np.linalg.norm(drawn)
        following.set_weights([kernel, *weights[1:]])
        assert np.square(gradients_of(model, x, y)[path][..., 4:]).sum() < largest


@pytest.mark.parametrize(("activation", "normalization"), [("relu", False), ("relu", True)])
def test_behind_relu_and_batch_normalization_what_reads_new_units_is_zero(
    activation, normalization
):
    model = convolutional(activation, normalization, strides=2, padding="same")
    x, y = batch(model)
    before = both_modes(model, x)
    operation = n2n.Wider("conv", 7, new_units="gradmax")
    report = n2n.grow(model, operation, seed=0, calibration=(x, y))
    assert_same(both_modes(model, x), before)
    assert any("aren't read at first" in note for note in report.notes)
    assert not array(model.get_layer("next").kernel)[:, :, 4:].any()
    kernel = array(model.get_layer("conv").kernel).reshape(-1, 7)
    norms = np.linalg.norm(kernel, axis=0)
    assert np.allclose(norms[4:], norms[:4].mean(), rtol=1e-5)
    first = gradients_of(model, x, y)["next/kernel"][:, :, 4:]
    squares = np.square(first).sum(axis=(0, 1, 3))
    assert squares.min() > 0
    if normalization:
        made = keras.Model(model.inputs, model.get_layer("conv").output)
        made = outputs(made, x)[0].reshape(-1, 7)
        normalizes = model.get_layer("bn")
        assert np.allclose(array(normalizes.moving_mean)[4:], made.mean(0)[4:], atol=1e-5)
        assert np.allclose(array(normalizes.moving_variance)[4:], made.var(0)[4:], rtol=1e-4)
        return
    # Turned round, each new unit has a smaller gradient.
    conv = model.get_layer("conv")
    turned = array(conv.kernel)
    turned[..., 4:] *= -1
    conv.set_weights([turned, array(conv.bias)])
    other = gradients_of(model, x, y)["next/kernel"][:, :, 4:]
    assert np.all(np.square(other).sum(axis=(0, 1, 3)) < squares)


def test_what_new_units_read_behind_relu_are_singular_vectors():
    # Worked out with NumPy alone, for Dense layers.
    model = dense("relu")
    x, y = batch(model)
    w1, b1, w2, b2 = (array(w).astype("float64") for w in model.weights)
    delta = 2 * (np.maximum(x @ w1 + b1, 0) @ w2 + b2 - y) / y.size
    left = np.linalg.svd(x.T @ delta)[0]
    grow(model, "fc", 6)
    kernel = array(model.weights[0])[:, 4:]
    norm = np.linalg.norm(w1, axis=0).mean()
    for unit in range(2):
        cosine = left[:, unit] @ kernel[:, unit] / norm
        assert abs(cosine) == pytest.approx(1.0, abs=1e-5)


def test_more_units_than_directions_are_random_and_say_so():
    model = dense("tanh")
    report = grow(model, "fc", 12)
    assert any("3 directions, the other 5 new units are random" in note for note in report.notes)
    assert_native(model)


def test_several_readers_count_together():
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, activation="tanh", name="fc")(x)
    ends = layers.Concatenate()([layers.Dense(2, name="left")(x), layers.Dense(1, name="right")(x)])
    model = randomize(keras.Model(inputs, ends))
    model.compile("sgd", "mse", **EAGERLY)
    x, _ = batch(model)
    before = both_modes(model, x)
    grow(model, "fc", 6)
    assert_same(both_modes(model, x), before)
    assert array(model.get_layer("left").kernel)[4:].all()
    assert array(model.get_layer("right").kernel)[4:].all()


def test_layers_one_after_the_other_grow_together_and_with_others():
    x = inputs = keras.Input((5,))
    for name, activation in (("a", "tanh"), ("b", "relu"), ("c", "tanh")):
        x = layers.Dense(4, activation=activation, name=name)(x)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="out")(x)))
    model.compile("sgd", "mse", **EAGERLY)
    x, y = batch(model)
    before = both_modes(model, x)
    wider = n2n.Wider(factor=1.5, new_units="gradmax")
    n2n.grow(model, [n2n.Wider("b", 5), wider, n2n.Wider("c", 8)], seed=0, calibration=(x, y))
    assert_same(both_modes(model, x), before)
    assert [layer.units for layer in model.layers[1:]] == [6, 8, 8, 3]
    assert_native(model)
    model.train_on_batch(x, y)


def test_the_plan_holds_what_was_chosen(tmp_path):
    model = dense("tanh")
    x, y = batch(model)
    weights = {weight.path: array(weight) for weight in model.weights}
    plan = n2n.plan(model, n2n.Wider("fc", 6, new_units="gradmax"), seed=0, calibration=(x, y))
    report = grow(model, "fc", 6)
    assert plan == report.plan
    for path, value in plan.apply_to(weights).items():
        grown = next(w for w in model.weights if w.path == path)
        assert np.array_equal(value, array(grown))
    model.save(tmp_path / "model.keras")
    assert_same(outputs(keras.models.load_model(tmp_path / "model.keras"), x), outputs(model, x))


def test_it_runs_inside_fit():
    model = dense("tanh")
    x, y = batch(model)
    growth = n2n.GrowthScheduler(
        {1: n2n.Wider("fc", 6, new_units="gradmax")}, seed=0, verbose=0, calibration=(x, y)
    )
    model.fit(x, y, epochs=2, batch_size=4, verbose=0, callbacks=[growth])
    assert growth.history[0].difference < 1e-6
    assert array(model.get_layer("fc").kernel)[:, 4:].any()


def test_a_student_is_chosen_by_the_loss_of_its_teacher():
    teacher = dense("tanh")
    x, y = batch(teacher)
    operation = n2n.Wider(teacher.get_layer("fc"), 6, new_units="gradmax")
    before = state(teacher)
    student = n2n.clone_and_grow(teacher, operation, seed=0, calibration=(x, y))
    assert_state(teacher, before)
    assert not student.compiled
    wide = [n2n.Wider("fc", 5, new_units="fresh"), operation]
    assert n2n.plan(teacher, wide, seed=0, calibration=(x, y)).parameters_after == 57
    grow(teacher, "fc", 6)
    for one, other in zip(student.weights, teacher.weights, strict=True):
        assert np.array_equal(array(one), array(other))


def test_classes_and_dropout():
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, activation="gelu", name="fc")(layers.Dropout(0.2)(x))
    outs = layers.Dense(3, activation="softmax", name="out")(x)
    model = randomize(keras.Model(inputs, outs))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **EAGERLY)
    x = data_for(model, batch=8)
    y = np.arange(8) % 3
    seeds = [array(v) for v in model.non_trainable_variables]
    n2n.grow(model, n2n.Wider("fc", 6, new_units="gradmax"), seed=0, calibration=(x, y))
    assert array(model.get_layer("out").kernel)[4:].all()
    after = [array(v) for v in model.non_trainable_variables]
    assert all(np.array_equal(a, b) for a, b in zip(seeds, after, strict=True))


def refused(model, operation, *content, calibration=None):
    before = state(model)
    with pytest.raises(GrowthError) as caught:
        n2n.grow(model, operation, seed=0, calibration=calibration)
    assert_explained(caught.value, *content)
    assert_state(model, before)


def test_what_it_needs_and_where_it_can_not_be():
    wider = n2n.Wider("fc", 6, new_units="gradmax")
    model = dense()
    x, y = batch(model)
    refused(model, wider, "data with targets", calibration=x)
    refused(model, wider, "data with targets")
    raw = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="fc"), layers.Dense(3)])
    refused(raw, wider, "isn't compiled", calibration=(x, y))

    def between(*middle, maker=None):
        stack = [maker or layers.Dense(4, name="fc"), *middle, layers.Dense(3)]
        model = keras.Sequential([keras.Input((5,)), *stack])
        model.compile("sgd", "mse", **EAGERLY)
        return model

    refused(between(layers.Dropout(0.5, name="drop")), wider, "'drop'", calibration=(x, y))
    refused(between(layers.PReLU()), wider, "PReLU", calibration=(x, y))
    refused(between(layers.LayerNormalization()), wider, "LayerNorm", calibration=(x, y))
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, name="fc")(x)
    tied = layers.Add()([x, layers.Dense(4, name="other")(x)])
    model = keras.Model(inputs, layers.Dense(3)(tied))
    model.compile("sgd", "mse", **EAGERLY)
    refused(model, wider, "tied to those of 'other'", calibration=batch(model))
    # Without names, such layers are left out.
    both = between(layers.Dropout(0.5), layers.Dense(4, name="last"))
    report = n2n.grow(
        both, n2n.Wider(factor=2, new_units="gradmax"), seed=0, calibration=batch(both)
    )
    assert [w.name for w in report.plan.steps[0].widths] == ["last"]


@pytest.mark.skipif(BACKEND == "tensorflow", reason="no such convolutions on a CPU")
def test_channels_may_come_first():
    x = inputs = keras.Input((2, 6, 6))
    x = layers.Conv2D(4, 3, activation="relu", data_format="channels_first", name="conv")(x)
    x = layers.Conv2D(3, 2, data_format="channels_first", name="next")(x)
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    model = randomize(keras.Model(inputs, layers.Dense(3)(x)))
    model.compile("sgd", "mse", **EAGERLY)
    x, y = batch(model)
    before = both_modes(model, x)
    grow(model, "conv", 6)
    assert_same(both_modes(model, x), before)
    assert gradients_of(model, x, y)["next/kernel"][:, :, 4:].any()
