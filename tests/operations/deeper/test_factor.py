"""Factoring a layer through a bottleneck: exact at full rank, and honest below."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError, SizeError
from keras_net2net.operations.deeper.factor import factors
from tests.operations.deeper.test_deeper import assert_reloads, conv, model_of, names
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_native,
    assert_same,
    both_modes,
    cases,
    data_for,
    outputs,
    randomize,
    train_a_step,
)
from tests.support.messages import refused


def factored(model: keras.Model, name: str, rank: int | None = None) -> n2n.GrowthReport:
    """Factors a layer exactly; the model computes the same in both modes."""
    x = data_for(model)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.Deeper(name, form="factor", rank=rank), seed=0)
    assert_same(both_modes(model, x), before)
    assert report.plan.exact
    assert report.parameters_after == model.count_params()
    assert "exactly" in str(report.notes)
    assert_native(model)
    return report


def test_the_factors_of_a_matrix_by_hand():
    # 3 e1 f1' + 2 e2 f2': through one unit, the second is lost.
    matrix = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    first, second, error = factors(matrix, 1)
    assert np.allclose(first @ second, [[3, 0, 0], [0, 0, 0]])
    assert error == pytest.approx(2 / 3)
    first, second, error = factors(matrix, 2)
    assert np.allclose(first @ second, matrix)
    assert error == 0.0
    assert np.allclose(np.linalg.norm(first, axis=0), np.linalg.norm(second, axis=1))


def test_a_unit_that_is_not_needed_can_still_learn():
    first, second, error = factors(np.outer([1.0, 2.0, 3.0], [1.0, 1.0]), 2)
    assert np.allclose(first @ second, np.outer([1, 2, 3], [1, 1]))
    assert error == 0.0
    assert np.linalg.norm(first[:, 1]) > 0.1  # so that what reads it has a gradient
    first, second, error = factors(np.zeros((3, 2)), 2)
    assert np.linalg.norm(first, axis=0) == pytest.approx(1.0)
    assert not second.any()
    assert error == 0.0


LAYERS = {
    "Dense": ((5,), layers.Dense(4, activation="tanh", name="it")),
    "Dense on steps": ((6, 3), layers.Dense(4, use_bias=False, name="it")),
    "Conv2D": ((5, 5, 2), layers.Conv2D(4, 3, activation="silu", name="it")),
    "Conv2D, strided, same, even": (
        (5, 6, 2),
        layers.Conv2D(4, (2, 3), strides=2, padding="same", name="it"),
    ),
    "Conv1D, causal, dilated": (
        (7, 2),
        layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="gelu", name="it"),
    ),
    "Conv3D": ((3, 4, 3, 2), layers.Conv3D(3, 2, name="it")),
}


@pytest.mark.parametrize(("shape", "layer"), cases(LAYERS, 4).values(), ids=cases(LAYERS, 4))
def test_a_layer_is_factored_exactly(shape, layer):
    model = model_of(shape, type(layer).from_config(layer.get_config()))
    factored(model, "it")
    assert names(model)[:2] == ["it_factor_1", "it"]
    first, second = model.get_layer("it_factor_1"), model.get_layer("it")
    assert not first.use_bias
    assert first.activation is keras.activations.linear
    assert second.activation is keras.activations.get(layer.activation)
    if not isinstance(layer, layers.Dense):
        assert (first.kernel_size, first.strides) == (layer.kernel_size, layer.strides)
        assert (first.padding, first.dilation_rate) == (layer.padding, layer.dilation_rate)
        assert set(second.kernel_size) == set(second.strides) == {1}
    train_a_step(model, data_for(model))


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's CPU convolves channels last")
def test_channels_first_are_factored():
    model = model_of((2, 5, 4), conv("it", data_format="channels_first", activation="relu"))
    factored(model, "it")
    assert model.get_layer("it_factor_1").output.shape == (None, 4, 5, 4)


def low_rank() -> keras.Model:
    model = model_of((6,), layers.Dense(5, activation="tanh", name="it"))
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 5))
    model.get_layer("it").kernel.assign(kernel.astype("float32"))
    return model


def test_a_kernel_of_low_rank_is_factored_exactly_and_becomes_smaller():
    model = low_rank()
    report = factored(model, "it", 2)
    assert report.parameters_after < report.parameters_before
    assert model.get_layer("it_factor_1").units == 2


def test_a_lower_rank_is_said_to_be_inexact_with_its_error():
    model = low_rank()
    kernel = array(model.get_layer("it").kernel)
    values = np.linalg.svd(kernel, compute_uv=False)
    operation = n2n.Deeper("it", form="factor", rank=1)
    assert not operation.exact
    report = n2n.grow(model, operation, seed=0)
    assert not report.plan.exact
    assert f"a relative error of {values[1] / values[0]:.1e} of its kernel" in str(report.notes)
    assert report.difference > 1e-3
    product = array(model.get_layer("it_factor_1").kernel) @ array(model.get_layer("it").kernel)
    assert np.linalg.norm(product - kernel, 2) == pytest.approx(values[1], rel=1e-3)


def test_a_shared_layer_is_factored_at_all_its_calls():
    fc = layers.Dense(4, activation="tanh", name="fc")
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    x = layers.Concatenate(name="both")([fc(a), fc(b), a])
    model = randomize(keras.Model([a, b], layers.Dense(3, name="out")(x)))
    factored(model, "fc")
    assert len(model.get_layer("fc_factor_1")._inbound_nodes) == 2


def test_a_layer_of_a_nested_sequential_model_is_factored(tmp_path):
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, activation="tanh", name="fc")], name="inner"
    )
    model = model_of((4,), inner, layers.Dense(4, name="mix"))
    report = factored(model, "inner/fc")
    assert report.plan.steps[0].insertions[0].path == "inner/fc_factor_1"
    assert names(inner) == ["fc_factor_1", "fc"]
    factored(model, "mix")
    assert_reloads(model, data_for(model), tmp_path)


def test_factored_layers_are_factored_and_widened_again():
    model = model_of((5, 5, 2), conv("it", activation="silu"))
    factored(model, "it")
    factored(model, "it")
    assert names(model)[:3] == ["it_factor_1", "it_factor_2", "it"]
    x = data_for(model)
    before = both_modes(model, x)
    operations = [n2n.Deeper("it_factor_1", form="factor"), n2n.Wider(["it", "it_factor_1"], 7)]
    n2n.grow(model, operations, seed=0)
    assert_same(both_modes(model, x), before)
    assert model.get_layer("it").filters == 7


def test_a_plan_factors_a_checkpoint_by_its_own_kernel():
    model = model_of((5,), layers.Dense(4, activation="tanh", name="it"))
    plan = n2n.plan(model, n2n.Deeper("it", form="factor"), seed=0)
    assert plan == n2n.plan(model, n2n.Deeper("it", form="factor"), seed=0)
    rng = np.random.default_rng(3)
    other = {
        "it/kernel": rng.standard_normal((5, 4)).astype("float32"),
        "it/bias": rng.standard_normal(4).astype("float32"),
    }
    new = plan.apply_to(other)
    assert set(new) == {"it/kernel", "it/bias", "it_factor_1/kernel"}
    assert np.allclose(new["it_factor_1/kernel"] @ new["it/kernel"], other["it/kernel"], atol=1e-6)
    assert new["it/kernel"].dtype == np.float32
    ours = {f"it/{w.name}": array(w) for w in model.get_layer("it").weights}
    n2n.grow(model, n2n.Deeper("it", form="factor"), seed=0)
    new = plan.apply_to(ours)
    assert np.array_equal(new["it/kernel"], array(model.get_layer("it").kernel))
    assert np.array_equal(new["it_factor_1/kernel"], array(model.get_layer("it_factor_1").kernel))


def test_a_layer_is_factored_while_fit_runs():
    model = model_of((5,), layers.Dense(4, activation="tanh", name="it"))
    model.compile("adam", "mse", **EAGERLY)
    growth = n2n.GrowthScheduler({1: n2n.Deeper("it", form="factor")}, seed=0, verbose=0)
    x = data_for(model, batch=8)
    model.fit(x, np.zeros((8, 3)), epochs=2, verbose=0, callbacks=[growth])
    assert growth.history[0].difference < 1e-6


def test_the_moments_of_a_factored_kernel_start_again():
    model = model_of((5,), layers.Dense(4, activation="tanh", name="it"))
    model.compile(keras.optimizers.Adam(use_ema=True), "mse", **EAGERLY)
    x = data_for(model, batch=8)
    model.train_on_batch(x, np.zeros((8, 3)))
    operation = n2n.Deeper("it", form="factor")
    with pytest.warns(UserWarning, match="it_kernel_momentum.* start again"):
        n2n.grow(model, operation, seed=0, optimizer_state="carry")
    model.train_on_batch(x, np.zeros((8, 3)))
    assert np.isfinite(model.evaluate(x, np.zeros((8, 3)), verbose=0))


def test_mixed_precision_is_factored():
    policy = "mixed_float16"
    model = model_of((5,), layers.Dense(4, activation="tanh", dtype=policy, name="it"))
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.Deeper("it", form="factor"), seed=0)
    assert_same(outputs(model, x), before, 5e-3)
    first = model.get_layer("it_factor_1")
    assert first.dtype_policy.name == policy
    assert first.output.dtype == "float16"


def test_a_rank_that_there_is_not_is_an_error():
    model = model_of((5,), layers.Dense(4, name="it"))
    refused(
        model,
        n2n.Deeper("it", form="factor", rank=5),
        SizeError,
        "'it' (Dense, 4 units) can't be factored through 5 units",
        "its kernel of shape (5, 4) has a rank of at most 4",
        "`rank=4` at most",
    )
    with pytest.raises(SizeError):
        n2n.Deeper("it", form="factor", rank=0)


def test_a_layer_without_factors_is_an_error():
    model = model_of(
        (4, 4, 4),
        conv("grouped", groups=2),
        layers.BatchNormalization(name="bn"),
        layers.DepthwiseConv2D(2, name="depthwise"),
    )
    for name, why in (
        ("grouped", "its 2 groups have a matrix each"),
        ("bn", "BatchNormalization has no kernel that is a matrix"),
        ("depthwise", "DepthwiseConv2D has no kernel that is a matrix"),
    ):
        refused(model, n2n.Deeper(name, form="factor"), GrowthError, f"'{name}'", why)


def test_what_a_layer_calls_in_its_own_code_has_no_place_for_a_factor():
    class Holder(keras.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(4, name="dense")

        def call(self, x):
            return keras.ops.relu(self.dense(x))

    model = keras.Sequential([keras.Input((3,)), Holder(name="holder"), layers.Dense(2)])
    with pytest.raises(n2n.GrowthError, match="its own code decides"):
        n2n.grow(model, n2n.Deeper("holder/dense", form="factor"), seed=0)
