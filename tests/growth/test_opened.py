"""Opened layers whose code can't have other sizes stay as they are, and say why."""

from __future__ import annotations

import math

import keras
import pytest
from keras import layers, ops

import keras_net2net as n2n
from tests.support.helpers import (
    assert_same,
    assert_untouched,
    both_modes,
    data_for,
    outputs,
    randomize,
    skipped,
    snapshot,
)


@keras.saving.register_keras_serializable("tests")
class Mean(keras.Layer):
    """Divides by a size that it counts itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(4, name="inner")
        self.outer = layers.Dense(3, name="outer")

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.outer.build((*input_shape[:-1], 4))

    def call(self, x):
        return self.outer(self.inner(x) / float(self.inner.units))


@keras.saving.register_keras_serializable("tests")
class Attention(keras.Layer):
    """Attention written by hand, with one attribute for the size of a head."""

    def __init__(self, heads, units, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.units, self.size = heads, units, units // heads
        self.parts = [layers.Dense(units, name=name) for name in "qkv"]
        self.last = None

    def build(self, input_shape):
        for part in self.parts:
            part.build(input_shape)
        self.last = layers.Dense(input_shape[-1], name="last")
        self.last.build((*input_shape[:-1], self.units))

    def call(self, x):
        steps = x.shape[1]

        def heads(y):
            y = ops.reshape(y, (-1, steps, self.heads, self.size))
            return ops.transpose(y, (0, 2, 1, 3))

        q, k, v = (heads(part(x)) for part in self.parts)
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / math.sqrt(self.size)
        y = ops.transpose(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
        return self.last(ops.reshape(y, (-1, steps, self.units)))

    def get_config(self):
        return {**super().get_config(), "heads": self.heads, "units": self.units}


def around(layer):
    x = inputs = keras.Input((5, 6))
    x = layers.Dense(7, name="before")(x)
    return randomize(keras.Model(inputs, layers.Dense(2, name="after")(layer(x))))


def test_the_layer_stays_and_the_rest_grows_where_all_that_can_is_meant():
    model = around(Mean(name="mean"))
    x = data_for(model)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.Wider(factor=2), seed=0)
    assert model.get_layer("before").units == 14
    assert model.get_layer("mean").inner.units == 4
    assert skipped(report.plan) == {"mean/inner", "mean/outer", "after"}
    reasons = {skip.path: skip.reason for skip in report.plan.steps[0].skipped}
    assert (
        "uses a number that depends on the sizes: [4.0] before, [8.0] now" in reasons["mean/inner"]
    )
    assert_same(both_modes(model, x), before)


def test_named_outright_it_is_an_error_and_nothing_has_changed():
    model = around(Mean(name="mean"))
    weights, x = snapshot(model), data_for(model)
    before = outputs(model, x)
    with pytest.raises(n2n.errors.FixedWidthError, match="depends on the sizes") as error:
        n2n.grow(model, n2n.Wider("mean/inner", 8))
    assert "mean (Mean) can't have other sizes inside" in str(error.value)
    assert_untouched(model, weights)
    assert model.get_layer("mean").inner.units == 4
    assert_same(outputs(model, x), before, 0)


def test_attention_by_hand_gets_more_heads_and_its_attributes_follow(tmp_path):
    model = around(Attention(2, 8, name="attention"))
    x = data_for(model)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.Wider(factor=2), seed=0)
    layer = model.get_layer("attention")
    assert (layer.heads, layer.units, layer.size) == (4, 16, 4)
    assert layer.get_config()["heads"] == 4
    assert not report.notes
    assert_same(both_modes(model, x), before)
    model.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    assert_same(outputs(loaded, x), outputs(model, x), 1e-7)


def test_a_size_that_its_one_attribute_can_not_express_is_refused():
    model = around(Attention(2, 8, name="attention"))
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match="its code fails at these sizes"):
        n2n.grow(model, n2n.Wider("attention/v", 16))
    assert_untouched(model, weights)
    assert model.get_layer("attention").units == 8
