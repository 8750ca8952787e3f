"""BatchNormalization on any axis; the normalizations over units are refused."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.helpers import (
    assert_same,
    assert_untouched,
    both_modes,
    check_growth,
    data_for,
    outputs,
    randomize,
    sandwich,
    snapshot,
)
from tests.rules.formats import check_channels_first

BN = layers.BatchNormalization


def frozen() -> BN:
    layer = BN()
    layer.trainable = False
    return layer


CASES = {
    "on vectors": lambda: sandwich((5,), BN()),
    "on a sequence": lambda: sandwich((3, 5), BN(epsilon=0.1)),
    "on an image": lambda: sandwich((3, 2, 5), layers.Conv2D(4, 2), BN(), layers.ReLU()),
    "by a positive axis": lambda: sandwich((3, 5), BN(axis=2)),
    "without scale": lambda: sandwich((5,), BN(scale=False)),
    "without offset": lambda: sandwich((5,), BN(center=False)),
    "without either": lambda: sandwich((5,), BN(center=False, scale=False)),
    "frozen": lambda: sandwich((5,), frozen()),
    "on flattened space": lambda: sandwich((3, 2, 5), layers.Flatten(), BN()),
    "on units that moved": lambda: sandwich(
        (3, 5), layers.Permute((2, 1)), BN(axis=1), layers.Flatten()
    ),
    "twice": lambda: sandwich((3, 5), BN(), layers.Dense(4, activation="relu"), BN()),
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_the_function_stays(build, tmp_path):
    check_growth(build, path=tmp_path)


def test_a_normalized_model_trains_after_growth():
    check_growth(
        lambda: sandwich((3, 5), BN(), layers.Conv1D(4, 2, use_bias=False), BN(scale=False)),
        train=True,
    )


@pytest.mark.skipif(
    "renorm" not in inspect.signature(BN.__init__).parameters, reason="new in a later Keras"
)
def test_the_function_stays_with_renormalization(tmp_path):
    check_growth(lambda: sandwich((5,), BN(renorm=True)), path=tmp_path)


def test_the_function_stays_with_the_channels_first():
    def parts(chosen):
        axis = 1 if chosen["data_format"] == "channels_first" else -1
        return (2, 5, 6), [BN(axis=axis), layers.Conv2D(4, 3, **chosen), BN(axis=axis)]

    check_channels_first(parts)


def test_all_four_vectors_are_gathered_by_one_index():
    model = randomize(sandwich((5,), BN(name="it")))
    layer = model.get_layer("it")
    old = {v.name: np.array(v) for v in layer.weights}
    planned = n2n.plan(model, n2n.Wider("before", units=7), seed=3)
    (change,) = [one for one in planned.steps[0].layers if one.path == "it"]
    index = change.variables[0].axes[0].remap.index
    n2n.grow(model, n2n.Wider("before", units=7), seed=3)
    assert {v.name for v in layer.weights} == {"gamma", "beta", "moving_mean", "moving_variance"}
    for v in layer.weights:
        np.testing.assert_array_equal(np.array(v), old[v.name][index])


def test_moving_statistics_keep_moving_as_they_would_have():
    teacher = randomize(sandwich((3, 5), BN(name="it", momentum=0.5)))
    x = data_for(teacher)
    student = n2n.net2wider(teacher, {"before": 6}, seed=0)
    for _ in range(3):
        teacher(x, training=True)
        student(x, training=True)
    assert_same(outputs(student, x), outputs(teacher, x))


def test_statistics_over_units_are_refused():
    # Over time, say: in training mode the batch's statistics are taken over time's other axes, and
    # copies would weigh there.
    model = randomize(sandwich((3, 5), BN(axis=1, name="it")))
    weights = snapshot(model)
    with pytest.raises(n2n.FixedWidthError, match=r"it .BatchNormalization.") as error:
        n2n.grow(model, n2n.Wider("before", units=6))
    assert "path: before -> it" in str(error.value)
    assert_untouched(model, weights)


OVER_UNITS = {
    "LayerNormalization": lambda: layers.LayerNormalization(name="it"),
    "RMSNormalization": lambda: layers.RMSNormalization(name="it"),
    "GroupNormalization": lambda: layers.GroupNormalization(2, name="it"),
    "UnitNormalization": lambda: layers.UnitNormalization(name="it"),
}


@pytest.mark.parametrize("layer", OVER_UNITS.values(), ids=OVER_UNITS)
def test_a_normalization_over_units_is_refused_and_other_layers_grow(layer):
    def build():
        return sandwich((3, 5), layer(), layers.Dense(4, activation="relu", name="free"))

    model = randomize(build())
    x = data_for(model)
    weights, before = snapshot(model), both_modes(model, x)
    with pytest.raises(n2n.FixedWidthError, match="has no rule") as error:
        n2n.grow(model, n2n.Wider("before", units=6))
    assert "path: before -> it" in str(error.value)
    assert "register_rule" in str(error.value)
    assert_untouched(model, weights)
    n2n.grow(model, n2n.Wider(factor=2), seed=0)
    assert (model.get_layer("before").units, model.get_layer("free").units) == (4, 8)
    assert_same(both_modes(model, x), before)


def test_a_subclass_that_adds_nothing_has_the_rule():
    class Mine(keras.layers.BatchNormalization):
        pass

    check_growth(lambda: sandwich((5,), Mine()), custom=(Mine,))
