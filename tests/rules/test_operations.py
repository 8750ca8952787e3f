"""The operations of `keras.ops` between symbolic tensors."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from tests.support.helpers import (
    assert_same,
    assert_untouched,
    both_modes,
    check_growth,
    data_for,
    few,
    randomize,
    snapshot,
)

CONSTANT = np.array([0.5, -1.0, 2.0, 0.25], "float32")


def graph(function, shape=(3, 5)):
    """What `function` makes of two tied branches, before the last layer."""

    def build():
        inputs = keras.Input(shape)
        x = layers.Dense(4, activation="tanh", name="before")(inputs)
        y = layers.Dense(4, name="right")(inputs)
        return keras.Model(inputs, layers.Dense(3, name="after")(function(x, y)))

    return build


CASES = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x * y": lambda x, y: x * y,
    "x / (2 + |y|)": lambda x, y: x / (2.0 + abs(y)),
    "1 - x ** 2 + -y": lambda x, y: 1.0 - x**2 + -y,
    "relu(x) + y": lambda x, y: ops.relu(x) + y,
    "silu, gelu, leaky": lambda x, y: ops.silu(x) + ops.gelu(y) * ops.leaky_relu(x, 0.1),
    "where(x > y, x, 2 * y)": lambda x, y: ops.where(x > y, x, 2.0 * y),
    "clip(maximum(x, y), -1, 1)": lambda x, y: ops.clip(ops.maximum(x, y), -1.0, 1.0),
    "threshold(x, 0.1, 0.2)": lambda x, y: ops.threshold(x, 0.1, 0.2) + y,
    "exp(x) * sqrt(|y|)": lambda x, y: ops.exp(x) * ops.sqrt(ops.abs(y) + 1.0),
    "cast": lambda x, y: x + y * ops.cast(ops.greater(x, 0.0), "float32"),
    "add by keyword": lambda x, y: ops.add(x1=x, x2=y),
    "a constant for each time": lambda x, y: x * y + np.ones((3, 1), "float32"),
    "concatenate units": lambda x, y: ops.concatenate([x, y], axis=-1),
    "concatenate time": lambda x, y: ops.concatenate([x, y], axis=1),
    "mean over time": lambda x, y: ops.mean(x + y, axis=1),
    "max over time, kept": lambda x, y: x * ops.max(y, axis=1, keepdims=True),
    "variance over time": lambda x, y: x * ops.var(y, axis=-2, keepdims=True),
    "softmax over time": lambda x, y: ops.softmax(x, axis=1) * y,
    "matmul, shared by what makes one side": lambda x, y: ops.matmul(
        x, ops.transpose(y, (0, 2, 1))
    ),
    "sum over units, shared by what makes them": lambda x, y: x + ops.sum(y, -1, keepdims=True),
    "sum of products of units": lambda x, y: x + ops.sum(ops.tanh(x) * y, -1, keepdims=True),
    "sum over all": lambda x, y: x * ops.sum(y),
    "transpose": lambda x, y: layers.Flatten()(ops.transpose(x + y, (0, 2, 1))),
}


@pytest.mark.parametrize("function", few(CASES))
def test_the_function_stays(function, tmp_path):
    check_growth(graph(function), path=tmp_path)


def test_a_model_of_operations_trains_after_growth():
    check_growth(graph(lambda x, y: ops.concatenate([ops.relu(x) * y, x + 2.0 * y])), train=True)


def test_the_mean_over_space_is_a_pooling(tmp_path):
    def build():
        inputs = keras.Input((3, 2, 5))
        x = layers.Conv2D(4, 1, activation="tanh", name="before")(inputs)
        return keras.Model(inputs, layers.Dense(3, name="after")(ops.mean(x, axis=(1, 2))))

    check_growth(build, path=tmp_path)


REFUSED = {
    "sum over units": (lambda x, y: x + ops.sum(ops.tanh(y), -1, keepdims=True), "sums over these"),
    "sum of squares": (lambda x, y: x + ops.sum(y * y, -1, keepdims=True), "sums over these"),
    "sum of units that are used again": (lambda x, y: y * ops.sum(y, -1)[..., None], "sums over"),
    "product over units": (lambda x, y: x + ops.prod(y, -1, keepdims=True), "reduces this axis"),
    "softmax over units": (lambda x, y: ops.softmax(x + y), "normalizes over its units"),
    "log_softmax over all": (lambda x, y: ops.log_softmax(x + y, axis=(1, 2)), "normalizes over"),
    "an array": (lambda x, y: x + y + CONSTANT, "fixed"),
    "an array as a limit": (lambda x, y: ops.clip(x + y, -(CONSTANT**2), 1.0), "fixed"),
    "cumsum over units": (lambda x, y: ops.cumsum(x + y, axis=-1), "adds or multiplies up"),
    "every second unit": (lambda x, y: (x + y)[..., ::2], "picks places along this axis"),
    "matmul": (
        lambda x, y: ops.matmul(ops.tanh(x), ops.transpose(ops.tanh(y), (0, 2, 1))),
        "sums over these units",
    ),
}


@pytest.mark.pure
@pytest.mark.parametrize(("function", "why"), REFUSED.values(), ids=REFUSED)
def test_what_mixes_units_is_refused(function, why):
    model = randomize(graph(function)())
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match=why):
        n2n.grow(model, n2n.Wider("right", units=6))
    assert_untouched(model, weights)


def test_the_path_to_an_operation_is_told():
    model = graph(lambda x, y: layers.ReLU(name="relu")(ops.flip(layers.ReLU(name="near")(y), 2)))()
    with pytest.raises(n2n.errors.FixedWidthError, match="path: right -> near -> flip"):
        n2n.plan(model, n2n.Wider("right", units=6))


def by_hand(x, y):
    centred = y - ops.mean(y, axis=-1, keepdims=True)
    return x + centred / ops.sqrt(ops.mean(ops.square(centred), axis=-1, keepdims=True) + 1e-3)


MEANS = {
    "a layer normalization by hand": by_hand,
    "mean over all": lambda x, y: x * ops.mean(y),
    "max over units": lambda x, y: x + ops.max(y, axis=-1, keepdims=True),
    "variance over units": lambda x, y: x + ops.var(y, axis=-1, keepdims=True),
}


@pytest.mark.parametrize("kind", [{}, {"new_units": "fresh"}], ids=repr)
@pytest.mark.parametrize("function", few(MEANS, 2))
def test_means_and_limits_over_units_stay_where_all_are_copied_equally_often(function, kind):
    model = randomize(graph(function)())
    x, weights = data_for(model), snapshot(model)
    before = both_modes(model, x)
    with pytest.raises(n2n.errors.SizeError, match="whole multiple"):
        n2n.grow(model, n2n.Wider("right", units=6, **kind))
    assert_untouched(model, weights)
    n2n.grow(model, n2n.Wider("right", units=12, **kind), seed=0, verify=False)
    assert_same(both_modes(model, x), before)
