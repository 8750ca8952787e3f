"""BatchNormalization on any axis, and the normalizations over the units."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.formats import check_channels_first
from tests.support.helpers import (
    array,
    assert_native,
    assert_same,
    assert_untouched,
    both_modes,
    check_growth,
    data_for,
    few,
    outputs,
    randomize,
    sandwich,
    skipped,
    snapshot,
)

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


@pytest.mark.parametrize("build", few(CASES))
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
    with pytest.raises(n2n.errors.FixedWidthError, match=r"it .BatchNormalization.") as error:
        n2n.grow(model, n2n.Wider("before", units=6))
    assert "path: before -> it" in str(error.value)
    assert_untouched(model, weights)


def stream(norm, units=6, activation=None):
    """A residual stream that a normalization reads, as in a transformer."""
    x = inputs = keras.Input((3, 5))
    x = layers.Dense(units, activation=activation, name="before")(x)
    h = norm(name="first")(x)
    h = layers.Dense(7, activation="gelu", name="inner")(h)
    x = layers.Add()([x, layers.Dense(units, name="again")(h)])
    x = norm(name="last")(x)
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


OVER_UNITS = {
    "LayerNormalization": layers.LayerNormalization,
    "RMSNormalization": layers.RMSNormalization,
}


@pytest.mark.parametrize("kind", [{}, {"shares": "even"}, {"new_units": "fresh"}], ids=repr)
@pytest.mark.parametrize("units", few([7, 12, 9, 13, 17, 24], 2))
@pytest.mark.parametrize("norm", OVER_UNITS.values(), ids=OVER_UNITS)
def test_a_stream_that_is_normalized_grows_to_any_size(norm, units, kind):
    model = randomize(stream(norm))
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("before", units, **kind), seed=0, verify=False)
    assert model.get_layer("again").units == units
    assert_same(both_modes(model, x), before)
    n2n.grow(model, n2n.Wider("before", units + 5, **kind), seed=1, verify=False)
    assert_same(both_modes(model, x), before)
    assert_native(model)


def test_what_fills_a_stream_has_the_mean_of_the_others_and_scales_gamma_and_epsilon():
    model = randomize(stream(layers.LayerNormalization, units=6))
    kernel, bias = map(array, model.get_layer("before").weights)
    gamma, beta = map(array, model.get_layer("first").weights)
    n2n.grow(model, n2n.Wider("before", 8), seed=0)
    grown, offset = map(array, model.get_layer("before").weights)
    np.testing.assert_allclose(grown[:, :6], kernel, rtol=0)
    for new in (6, 7):
        np.testing.assert_allclose(grown[:, new], kernel.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(offset[new], bias.mean(), rtol=1e-6)
    scaled, shifted = map(array, model.get_layer("first").weights)
    np.testing.assert_allclose(scaled[:6], gamma * np.sqrt(6 / 8), rtol=1e-6)
    np.testing.assert_allclose(shifted, [*beta, 0, 0], rtol=1e-6)
    assert model.get_layer("first").epsilon == pytest.approx(1e-3 * 6 / 8)


def test_what_fills_has_a_gradient_at_once():
    # What reads the normalized units is free where they are zero, so it isn't left at zero.
    model = randomize(stream(layers.LayerNormalization, units=6))
    n2n.grow(model, n2n.Wider("before", 8), seed=0)
    assert np.abs(array(model.get_layer("inner").kernel)[6:]).min() > 0


@pytest.mark.parametrize("norm", OVER_UNITS.values(), ids=OVER_UNITS)
def test_a_stream_that_is_not_linear_grows_by_whole_multiples_and_the_error_says_which(norm):
    model = randomize(stream(norm, activation="sigmoid"))
    x = data_for(model)
    weights, before = snapshot(model), both_modes(model, x)
    with pytest.raises(
        n2n.errors.SizeError, match=r"whole multiples of its 6 units .12, 18"
    ) as error:
        n2n.grow(model, n2n.Wider("before", 9))
    assert "first (" in str(error.value)
    assert_untouched(model, weights)
    plan = n2n.plan(model, n2n.Wider(factor=1.5))
    assert skipped(plan) == {"before", "again", "after"}
    n2n.grow(model, n2n.Wider("before", 18), seed=0, verify=False)
    assert_same(both_modes(model, x), before, 5e-6)  # of units that hardly differ
    assert_native(model)


POST_NORM = {
    "after a convolution": lambda: [layers.Conv1D(6, 2, activation="tanh", name="before")],
    "after BatchNormalization": lambda: [
        layers.Dense(6, name="before"),
        layers.BatchNormalization(),
    ],
}


@pytest.mark.parametrize("below", POST_NORM.values(), ids=POST_NORM)
@pytest.mark.parametrize(
    "norm",
    [
        lambda: layers.LayerNormalization(),
        lambda: layers.LayerNormalization(axis=[1, 2]),
        lambda: layers.LayerNormalization(scale=False, center=False),
        lambda: layers.RMSNormalization(),
        lambda: layers.GroupNormalization(3),
        lambda: layers.GroupNormalization(1),
    ],
    ids=["layer", "all axes", "without weights", "RMS", "groups", "one group"],
)
def test_copying_all_units_equally_often_preserves_a_normalization(norm, below):
    model = keras.Sequential([keras.Input((4, 5)), *below(), norm(), layers.Dense(3)])
    randomize(model)
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("before", factor=3), seed=0, verify=False)
    assert_same(both_modes(model, x), before)
    assert_native(model)


def test_groups_that_hold_one_channel_each_follow():
    check_growth(lambda: sandwich((3, 5), layers.GroupNormalization(-1)))
    check_growth(lambda: sandwich((3, 5), layers.GroupNormalization(4)))


def test_a_unit_norm_takes_new_units_that_are_zero():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, activation="relu", name="before"),
            layers.UnitNormalization(),
            layers.Dense(3),
        ]
    )
    randomize(model)
    x = data_for(model)
    before = both_modes(model, x)
    for units in (9, 18):
        n2n.grow(model, n2n.Wider("before", units), seed=0, verify=False)
        assert_same(both_modes(model, x), before)
    model = randomize(sandwich((5,), layers.Softmax(), layers.UnitNormalization(name="it")))
    with pytest.raises(n2n.errors.FixedWidthError, match="softmax"):
        n2n.grow(model, n2n.Wider("before", 9))


def test_a_subclass_that_adds_nothing_has_the_rule():
    class Mine(keras.layers.BatchNormalization):
        pass

    check_growth(lambda: sandwich((5,), Mine()), custom=(Mine,))
