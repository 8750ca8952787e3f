"""Recurrent layers, convolutional ones among them, and the wrappers around layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.testing import check_rule
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    QUICK,
    array,
    assert_native,
    assert_same,
    both_modes,
    cases,
    data_for,
    few,
    long_elsewhere,
    outputs,
    randomize,
)

CELLS = {
    "simple": lambda: layers.SimpleRNN(4),
    "LSTM": lambda: layers.LSTM(4),
    "LSTM of its cell": lambda: layers.RNN(layers.LSTMCell(4)),
    "GRU": lambda: layers.GRU(4),
    "GRU that resets before": lambda: layers.GRU(4, reset_after=False),
    "GRU without bias": lambda: layers.GRU(4, use_bias=False),
    "LSTM without bias": lambda: layers.LSTM(4, use_bias=False),
    "at each step": lambda: layers.LSTM(4, return_sequences=True),
    "backwards": lambda: layers.GRU(4, go_backwards=True, return_sequences=True),
    "other activations": lambda: layers.LSTM(4, "relu", recurrent_activation="hard_sigmoid"),
    "unrolled": lambda: layers.GRU(4, unroll=True),
    "with dropout": lambda: layers.LSTM(4, dropout=0.3, recurrent_dropout=0.3),
}


@pytest.mark.parametrize("make", cases(CELLS).values(), ids=cases(CELLS))
def test_a_recurrent_layer_grows(make):
    assert check_rule(make, (3, 5), **QUICK) == ("input", "units")


@pytest.mark.parametrize("make", few({"LSTM": layers.LSTM, "GRU": layers.GRU}, 1))
def test_a_grown_recurrent_layer_is_saved_and_trained_in_any_precision(make):
    light = {} if BACKEND == "torch" else {"policies": ("mixed_bfloat16",), "data_formats": False}
    if make is layers.GRU and BACKEND == "jax":
        light = QUICK
    assert check_rule(lambda: make(4), (3, 5), **light)


def test_the_states_that_are_returned_have_the_units():
    def call(layer, x):
        return layer(x)

    grown = check_rule(lambda: layers.LSTM(4, return_state=True), (3, 5), call=call, **QUICK)
    assert grown == ("input", "units")
    assert check_rule(
        lambda: layers.GRU(4, return_state=True, return_sequences=True), (3, 5), **QUICK
    )


def test_states_that_are_given_are_tied_to_the_units():
    inputs = keras.Input((3, 5))
    first = layers.LSTM(4, return_state=True, return_sequences=True)
    second = layers.LSTM(4, name="second")
    x, *state = first(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(3)(second(x, initial_state=state))))
    x = data_for(model)
    before = both_modes(model, x)
    for kind in ({}, {"shares": "even"}, {"new_units": "fresh"}):
        n2n.grow(model, n2n.Wider("second", factor=1.5, **kind), seed=0, verify=False)
        assert_same(both_modes(model, x), before)
    assert first.units == second.units == 14
    assert_native(model)


def test_an_encoder_hands_its_states_to_a_decoder():
    source, target = keras.Input((None, 4)), keras.Input((None, 5))
    _, *state = layers.GRU(4, return_state=True, name="encoder")(source)
    x = layers.GRU(4, return_sequences=True, name="decoder")(target, initial_state=state)
    model = randomize(keras.Model([source, target], layers.Dense(3)(x)))
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("decoder", 6), seed=0, verify=False)
    assert model.get_layer("encoder").units == 6
    assert_same(both_modes(model, x), before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LSTM(4, name="it"),
        lambda: layers.GRU(4, name="it", return_sequences=True),
        lambda: layers.Bidirectional(layers.GRU(4), name="it"),
        lambda: layers.TimeDistributed(layers.Dense(4), name="it"),
    ],
    ids=["LSTM", "GRU", "Bidirectional", "TimeDistributed"],
)
def test_steps_that_are_masked_stay_so(make):
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(5, 4, mask_zero=True, name="tokens"),
            make(),
            layers.Dense(3),
        ]
    )
    randomize(model)
    x = np.array([[1, 2, 0, 0], [3, 4, 1, 0], [2, 2, 2, 2]], "int32")
    before = both_modes(model, x)
    n2n.grow(model, [n2n.Wider("tokens", 6), n2n.Wider("it", factor=1.5)], seed=0, verify=False)
    assert_same(both_modes(model, x), before)
    assert model.get_layer("tokens").output_dim == 6


def test_masked_sequences_of_numbers():
    model = keras.Sequential(
        [keras.Input((4, 2)), layers.Masking(), layers.LSTM(4, name="it"), layers.Dense(3)]
    )
    randomize(model)
    x = data_for(model)
    x[:, 2:] = 0
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("it", 6), seed=0, verify=False)
    assert_same(both_modes(model, x), before)


@pytest.mark.parametrize("make", [layers.LSTM, layers.GRU], ids=["LSTM", "GRU"])
def test_a_state_that_is_carried_on_grows_along(make):
    def build():
        inputs = keras.Input(batch_shape=(2, 3, 5))
        x = layers.Dense(4, name="before")(inputs)
        x = make(4, stateful=True, name="it")(x)
        return randomize(keras.Model(inputs, layers.Dense(3)(x)))

    random = np.random.default_rng(0)
    x = [random.standard_normal((2, 3, 5)).astype("float32") for _ in range(4)]
    undisturbed, model = build(), build()
    expected = [array(undisturbed(batch)) for batch in x]
    found = [array(model(x[0])), array(model(x[1]))]
    n2n.grow(model, n2n.Wider({"it": 6, "before": 7}), seed=0)
    found += [array(model(x[2])), array(model(x[3]))]
    assert_same(found, expected)
    assert np.abs(expected[2] - array(build()(x[2]))).max() > 1e-3  # the state matters
    states = keras.tree.flatten(model.get_layer("it").states)
    assert {tuple(state.shape) for state in states} == {(2, 6)}
    model.get_layer("it").reset_state()
    assert_same([array(model(x[0]))], expected[:1])


MODES = ["concat", "sum", "mul", "ave", None]


@pytest.mark.parametrize("mode", MODES if BACKEND == "torch" else MODES[:1], ids=str)
def test_both_directions_grow(mode):
    def make():
        return layers.Bidirectional(layers.GRU(4, return_sequences=True), merge_mode=mode)

    assert check_rule(make, (3, 5), **QUICK) == ("input", "units")


def test_both_directions_have_the_units_that_are_asked_for():
    layer = layers.Bidirectional(layers.GRU(4), name="it")
    model = randomize(keras.Sequential([keras.Input((3, 5)), layer, layers.Dense(3)]))
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("it", 7), seed=0, verify=False)
    assert (layer.forward_layer.units, layer.backward_layer.units) == (7, 7)
    assert_same(both_modes(model, x), before)
    assert_native(model)


def test_both_directions_may_be_layers_of_their_own():
    def make():
        backward = layers.GRU(4, go_backwards=True, activation="relu", name="second")
        return layers.Bidirectional(layers.GRU(4, name="first"), backward_layer=backward)

    assert check_rule(make, (3, 5), **QUICK) == ("input", "units")


@long_elsewhere
def test_both_directions_return_their_states():
    def make():
        return layers.Bidirectional(layers.LSTM(3, return_state=True))

    assert check_rule(make, (3, 5), **QUICK) == ("input", "units")


@long_elsewhere
def test_cells_are_stacked():
    def make():
        return layers.RNN(
            layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(4)]),
            return_sequences=True,
            name="it",
        )

    assert check_rule(make, (3, 5), **QUICK) == ("input", "units", "units_0", "units_1")
    if BACKEND == "torch":
        assert check_rule(lambda: layers.Bidirectional(make()), (3, 5), **QUICK)
    model = randomize(keras.Sequential([keras.Input((3, 5)), make(), layers.Dense(2)]))
    n2n.grow(model, n2n.Wider("it", units={"units_0": 5}), seed=0)
    assert [cell.units for cell in model.layers[0].cell.cells] == [5, 4]


def test_a_gate_keeps_its_place_in_the_kernel():
    model = keras.Sequential([keras.Input((3, 5)), layers.LSTM(2, name="it"), layers.Dense(3)])
    randomize(model)
    layer = model.get_layer("it")
    old = [array(w) for w in layer.weights]
    n2n.grow(model, n2n.Wider("it", 4, shares="even"), seed=0)
    new = [array(w) for w in layer.weights]
    index = [int(np.abs(old[0][:, :2] - new[0][:, [j]]).sum(0).argmin()) for j in range(4)]
    assert sorted(index) == [0, 0, 1, 1]
    for gate in range(4):
        then, now = slice(2 * gate, 2 * gate + 2), slice(4 * gate, 4 * gate + 4)
        np.testing.assert_array_equal(new[0][:, now], old[0][:, then][:, index])
        np.testing.assert_array_equal(new[2][now], old[2][then][index])
        recurrent = old[1][:, then][index][:, index] / 2  # read by both copies of a unit
        np.testing.assert_allclose(new[1][:, now], recurrent, rtol=1e-6)


CONVOLUTIONS = {
    "1D": (lambda **how: layers.ConvLSTM1D(3, 2, **how), (2, 4, 4)),
    "2D": (lambda **how: layers.ConvLSTM2D(3, 2, **how), (2, 3, 4, 4)),
    "3D": (lambda **how: layers.ConvLSTM3D(3, 2, **how), (2, 3, 2, 3, 4)),
}


@pytest.mark.parametrize("sequences", [False, True], ids=["last", "at each step"])
@pytest.mark.parametrize(
    ("make", "shape"), cases(CONVOLUTIONS, 1).values(), ids=cases(CONVOLUTIONS, 1)
)
def test_a_recurrent_convolution_grows_in_both_data_formats(make, shape, sequences):
    how = {"return_sequences": sequences, "padding": "same"}
    assert check_rule(lambda: make(**how), shape, **QUICK) == ("input", "filters")


@pytest.mark.skipif(BACKEND == "tensorflow", reason="has no such kernels on a CPU")
def test_a_recurrent_convolution_may_have_its_channels_first():
    def make():
        return layers.ConvLSTM1D(3, 2, data_format="channels_first", return_sequences=True)

    quick = {**QUICK, "data_formats": False}
    assert check_rule(make, (2, 4, 5), **quick) == ("input", "filters")


INSIDE = {
    "Dense": (lambda: layers.Dense(4), (3, 5), ("input", "units")),
    "Conv1D": (lambda: layers.Conv1D(4, 2), (2, 3, 5), ("input", "filters")),
    "BatchNormalization": (layers.BatchNormalization, (3, 5), ("input",)),
    "LayerNormalization": (layers.LayerNormalization, (3, 5), ("input",)),
    "Flatten": (layers.Flatten, (2, 3, 5), ("input",)),
    "GlobalMaxPooling1D": (layers.GlobalMaxPooling1D, (2, 3, 5), ("input",)),
    "LSTM": (lambda: layers.LSTM(4), (2, 3, 5), ("input", "units")),
}


@pytest.mark.parametrize(("inner", "shape", "grown"), cases(INSIDE).values(), ids=cases(INSIDE))
def test_a_layer_at_each_step_grows(inner, shape, grown):
    assert check_rule(lambda: layers.TimeDistributed(inner()), shape, **QUICK) == grown


def _frames():
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(3, 2, activation="relu", name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.Flatten(),
            layers.Dense(4, name="fc"),
        ]
    )


def _branches():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 1, name="conv")(inputs)
    x = layers.Add()([x, layers.Conv2D(3, 3, padding="same", name="other")(x)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, "tanh", name="fc")(x))


@pytest.mark.parametrize("inner", [_frames, _branches])
@pytest.mark.parametrize("steps", few({"fixed": 3, "any number of steps": None}, 1))
def test_a_model_at_each_step_grows_layer_by_layer(inner, steps, tmp_path):
    inputs = keras.Input((steps, 4, 4, 2))
    x = layers.TimeDistributed(inner(), name="it")(inputs)
    x = layers.GRU(3, name="gru")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x)))
    x = np.random.default_rng(0).standard_normal((2, steps or 5, 4, 4, 2)).astype("float32")
    before = outputs(model, x)
    report = n2n.grow(model, n2n.Wider(factor=1.5), seed=0)
    grown = {layer.path for layer in report.plan.steps[0].layers}
    assert {"it/conv", "it/fc", "gru"} <= grown
    assert_same(outputs(model, x), before)
    model.save(tmp_path / "grown.keras")
    assert_same(outputs(keras.models.load_model(tmp_path / "grown.keras"), x), before)
    student = n2n.clone_and_grow(model, n2n.Wider({"it/fc": 9}), seed=0)
    assert_same(outputs(student, x), before)


def test_a_model_at_each_step_of_each_step_grows():
    inputs = keras.Input((2, 3, 5))
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4, "relu", name="inner")])
    x = layers.Dense(5, name="before")(inputs)
    x = layers.TimeDistributed(layers.TimeDistributed(inner, name="steps"), name="it")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x)))
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 5)).astype("float32")
    before = outputs(model, x)
    report = n2n.grow(model, n2n.Wider(factor=2), seed=0)
    assert len(report.plan.steps[0].layers) == 3  # and `out` stays
    assert_same(outputs(model, x), before)


def test_no_layer_is_inserted_into_a_model_at_each_step():
    inputs = keras.Input((3, 4, 4, 2))
    model = keras.Model(
        inputs, layers.Dense(2)(layers.TimeDistributed(_frames(), name="it")(inputs))
    )
    with pytest.raises(n2n.GrowthError, match="its own code decides which layers it calls"):
        n2n.plan(model, n2n.Deeper("it/conv"))


@long_elsewhere
def test_a_recurrent_stack_trains_on_after_it_grew():
    model = keras.Sequential(
        [
            keras.Input((3, 5)),
            layers.LSTM(4, return_sequences=True, name="first"),
            layers.GRU(3, name="second"),
            layers.Dense(2),
        ]
    )
    model.compile("adam", "mse", **EAGERLY)
    x = np.random.default_rng(0).standard_normal((8, 3, 5)).astype("float32")
    y = x.sum(1)[:, :2]
    model.fit(x, y, verbose=0)
    before = outputs(model, x)
    n2n.grow(model, n2n.Wider(factor=2), seed=0)
    assert_same(outputs(model, x), before)
    loss = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
