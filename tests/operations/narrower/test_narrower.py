"""Narrower: duplicates go without a trace, others with the least change."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import ConflictError, FixedWidthError, GrowthError, SizeError
from keras_net2net.operations.narrower.duplicates import duplicates, weights_of
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_native,
    assert_same,
    both_modes,
    cases,
    data_for,
    max_difference,
    outputs,
    randomize,
    snapshot,
    train_a_step,
)
from tests.support.messages import assert_explained
from tests.support.random_models import Builder, Seeded, double_precision
from tests.support.states import assert_state, state


def mlp() -> keras.Model:
    x = inputs = keras.Input((5,))
    x = layers.Dense(6, activation="relu", name="a")(x)
    x = layers.Dense(4, activation="tanh", name="b")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x), name="mlp")


def convolutional() -> keras.Model:
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = shortcut = layers.ReLU()(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    x = layers.BatchNormalization(name="bn2")(x)
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(layers.Flatten()(x)))


def transformer(normalization=layers.LayerNormalization) -> keras.Model:
    x = inputs = keras.Input((5, 4))
    x = shortcut = layers.Dense(6, name="stem")(x)
    x = normalization(name="norm")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = shortcut = layers.Add()([x, shortcut])
    x = normalization(name="norm2")(x)
    x = layers.Dense(8, activation="gelu", name="up")(x)
    x = layers.Dense(6, name="down")(x)
    x = normalization(name="norm3")(layers.Add()([x, shortcut]))
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


def rms() -> keras.Model:
    return transformer(layers.RMSNormalization)


def recurrent() -> keras.Model:
    x = inputs = keras.Input((4, 3))
    x = layers.LSTM(4, name="lstm", return_sequences=True)(x)
    x = layers.Bidirectional(layers.GRU(3, name="gru"), name="both")(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


MODELS = {
    "mlp": mlp,
    "convolutional": convolutional,
    "transformer": transformer,
    "rms": rms,
    "recurrent": recurrent,
}


def narrow(model, *args, **kwargs) -> n2n.GrowthReport:
    calibration = kwargs.pop("calibration", None)
    return n2n.grow(model, n2n.Narrower(*args, **kwargs), seed=0, calibration=calibration)


def refused(model, operation, kind, *content, calibration=None) -> None:
    before = state(model)
    with pytest.raises(kind) as caught:
        n2n.grow(model, operation, seed=0, calibration=calibration)
    assert type(caught.value) is kind
    assert_state(model, before)
    assert assert_explained(caught.value, *content)["received"] == repr(operation)


# -- duplicates ------------------------------------------------------------------------


@pytest.mark.parametrize("shares", ["random", "even"])
@pytest.mark.parametrize("name", cases(MODELS, 3))
def test_wider_then_narrower_gives_the_first_weights_back(name, shares):
    model = randomize(MODELS[name]())
    x = data_for(model)
    before, weights, size = both_modes(model, x), snapshot(model), model.count_params()
    n2n.grow(model, n2n.Wider(factor=1.5, shares=shares), seed=1)
    wide = both_modes(model, x)
    report = narrow(model)
    assert report.plan.exact
    assert report.difference < 1e-5
    assert report.parameters_after == model.count_params() == size
    assert_same(both_modes(model, x), wide)
    assert_same(both_modes(model, x), before)
    assert max_difference(snapshot(model), weights) < 1e-6
    assert_native(model)


def test_even_shares_of_two_copies_come_back_bit_for_bit():
    model = randomize(mlp())
    weights = snapshot(model)
    n2n.grow(model, n2n.Wider(factor=2, shares="even"), seed=0)
    narrow(model)
    assert [a.tobytes() for a in snapshot(model)] == [b.tobytes() for b in weights]


def by_hand() -> keras.Model:
    """Units 0 and 2 are copies, and so are 1 and 3, but for what they read."""
    model = mlp()
    kernel = np.arange(30, dtype="float32").reshape(5, 6)
    kernel[:, 2] = kernel[:, 0]
    kernel[:, 3] = kernel[:, 1]
    bias = np.array([1, 2, 1, 3, 5, 6], "float32")
    reads = np.arange(24, dtype="float32").reshape(6, 4)
    rest = [array(w) for w in model.weights[3:]]
    model.set_weights([kernel, bias, reads, *rest])
    return model


def test_what_reads_copies_is_added_up():
    model = by_hand()
    old = snapshot(model)
    report = narrow(model, "a")
    kernel, bias, reads = snapshot(model)[:3]
    kept = [0, 1, 3, 4, 5]  # units 1 and 3 have other biases
    assert np.array_equal(kernel, old[0][:, kept])
    assert np.array_equal(bias, old[1][kept])
    assert np.array_equal(reads[0], old[2][0] + old[2][2])
    assert np.array_equal(reads[1:], old[2][[1, 3, 4, 5]])
    assert [(w.name, w.old, w.new) for w in report.plan.steps[0].widths] == [("a", 6, 5)]
    assert "narrow a: 6 -> 5" in report.plan.summary()


def test_the_plan_replays_on_arrays():
    model = by_hand()
    weights = {w.path.removeprefix("mlp/"): array(w) for w in model.weights}
    report = narrow(model, "a")
    for path, value in report.plan.apply_to(weights).items():
        assert np.array_equal(value, array(next(w for w in model.weights if w.path.endswith(path))))
    assert n2n.plan(by_hand(), n2n.Narrower("a"), seed=0) == report.plan


def test_copies_are_found_behind_copies_that_share_at_random():
    model = randomize(mlp())
    n2n.grow(model, n2n.Wider(factor=2), seed=0)
    from keras_net2net.planning.draft import Draft

    found = duplicates(weights_of(Draft(model, 0).inference))
    classes = {width.name: labels.tolist() for width, labels in found.items()}
    assert classes["a"][:6] == list(range(6))
    assert sorted(classes["a"]) == sorted([*range(6)] * 2)
    assert sorted(classes["b"]) == sorted([*range(4)] * 2)
    assert classes["out"] == [0, 1]


def test_some_duplicates_may_stay():
    model = randomize(mlp())
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("a", 15), seed=0)
    narrow(model, "a", 9)
    assert model.get_layer("a").units == 9
    narrow(model, "a", factor=0.8)
    assert model.get_layer("a").units == 7
    assert_same(both_modes(model, x), before)


def test_a_normalized_stream_shrinks_to_the_sizes_that_its_statistics_allow():
    model = randomize(transformer())
    x = data_for(model)
    before = both_modes(model, x)
    epsilon = model.get_layer("norm").epsilon
    n2n.grow(model, n2n.Wider("stem", 15), seed=0)  # two of each, and three that fill
    refused(model, n2n.Narrower("stem", 11), SizeError, "a normalization over the units", "6, 7, 8")
    narrow(model, "stem", 14)
    assert_same(both_modes(model, x), before)
    narrow(model, "stem", 8)
    assert_same(both_modes(model, x), before)
    narrow(model, "stem")
    assert_same(both_modes(model, x), before)
    assert model.get_layer("norm").epsilon == pytest.approx(epsilon)
    assert model.get_layer("down").units == 6


def test_heads_and_key_dimensions_shrink_each_for_themselves():
    model = randomize(transformer())
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("attention", factor={"num_heads": 2, "key_dim": 2}), seed=0)
    narrow(model, "attention", {"key_dim": 3})
    assert (model.get_layer("attention")._num_heads, model.get_layer("attention")._key_dim) == (
        4,
        3,
    )
    narrow(model, "attention", {"heads": 2})
    assert_same(both_modes(model, x), before)
    assert_native(model)


def test_the_parts_of_a_concatenation_shrink():
    def build():
        x = inputs = keras.Input((3,))
        parts = [layers.Dense(4, "relu", name=n)(x) for n in ("left", "right")]
        x = layers.BatchNormalization()(layers.Concatenate()(parts))
        return keras.Model(inputs, layers.Dense(2, name="out")(x))

    model = randomize(build())
    weights = snapshot(model)
    n2n.grow(model, n2n.Wider({"left": 6, "right": 7}), seed=0)
    narrow(model, "left")
    assert (model.get_layer("left").units, model.get_layer("right").units) == (4, 7)
    narrow(model)
    assert max_difference(snapshot(model), weights) < 1e-6


def test_a_model_without_duplicates_stays_as_it_is():
    model = randomize(mlp())
    before = state(model)
    report = narrow(model)
    assert_state(model, before)
    assert report.plan.empty
    assert {skip.reason for skip in report.plan.steps[0].skipped} >= {"has no duplicates"}


def test_units_that_are_added_to_something_else_are_no_copies():
    x = inputs = keras.Input((4,))
    same = layers.Dense(4, kernel_initializer="ones", name="same")(x)
    x = layers.Add()([same, inputs])
    model = keras.Model(inputs, layers.Dense(2)(x))
    refused(model, n2n.Narrower("same"), FixedWidthError, "can't be narrowed", "is an input")


# -- by norm and by activation -------------------------------------------------------------


def test_the_norm_keeps_the_units_with_the_largest_product_of_norms():
    model = mlp()
    kernel = np.zeros((5, 6), "float32")
    kernel[0] = [1, 2, 3, 4, 5, 6]
    reads = np.zeros((6, 4), "float32")
    reads[:, 1] = [9, 8, 1, 5, 0, 1]  # products 9, 16, 3, 20, 0, 6
    model.set_weights([kernel, np.zeros(6), reads, *[array(w) for w in model.weights[3:]]])
    report = narrow(model, "a", 3, keep="norm")
    assert array(model.weights[0])[0].tolist() == [1, 2, 4]
    assert array(model.weights[2])[:, 1].tolist() == [9, 8, 5]
    assert not report.plan.exact
    assert "not exact" in report.plan.summary()
    assert any("not exact" in note for note in report.notes)


def test_the_norm_counts_the_scale_of_a_batch_normalization():
    x = inputs = keras.Input((2,))
    x = layers.Dense(3, use_bias=False, name="a")(x)
    x = layers.BatchNormalization(name="bn", epsilon=0.0)(x)
    model = keras.Model(inputs, layers.Dense(1, name="out")(x))
    ones = np.ones((2, 3), "float32")
    variance = np.array([4, 1, 16], "float32")
    gamma = np.array([6, -4, 1], "float32")  # gamma / deviation: 3, -4, 1/4
    model.get_layer("a").set_weights([ones])
    model.get_layer("bn").set_weights([gamma, np.zeros(3), np.zeros(3), variance])
    model.get_layer("out").set_weights([np.ones((3, 1)), np.zeros(1)])
    narrow(model, "a", 1, keep="norm")
    assert array(model.get_layer("bn").gamma).tolist() == [-4]


def test_fresh_units_go_by_norm_without_a_trace():
    model = randomize(mlp())
    weights = snapshot(model)
    n2n.grow(model, n2n.Wider(factor=1.5, new_units="fresh"), seed=0)
    report = narrow(model, {"a": 6, "b": 4}, keep="norm")
    assert report.difference < 1e-6
    assert [a.tobytes() for a in snapshot(model)] == [b.tobytes() for b in weights]


def test_the_activation_keeps_what_varies_and_the_mean_of_the_rest():
    # Of three linear units one is constant: its removal changes nothing.
    x = inputs = keras.Input((2,))
    x = layers.Dense(3, name="a")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x)))
    kernel = np.array([[1, 0, 0], [0, 0, 1]], "float32")
    bias = np.array([0, 100, 0], "float32")
    reads = np.array([[1, 1], [50, 70], [2, 3]], "float32")
    model.set_weights([kernel, bias, reads, np.array([1, 2], "float32")])
    x = data_for(model, batch=16)
    before = outputs(model, x)
    report = narrow(model, "a", 2, keep="activation", calibration=x)
    assert array(model.weights[0]).tolist() == [[1, 0], [0, 1]]
    assert array(model.weights[3]).tolist() == [5001, 7002]
    assert_same(outputs(model, x), before, 1e-5)
    assert report.difference < 0.01
    # Of the others, the one with the smaller variance times squared weight goes.
    data = np.stack([3 * np.ones(8), np.arange(8)], axis=1).astype("float32")
    narrow(model, "a", 1, keep="activation", calibration=(data, None))
    assert array(model.weights[0]).tolist() == [[0], [1]]
    assert array(model.weights[3]).tolist() == [5004, 7005]


def test_means_go_into_the_batch_normalization_behind_a_layer_without_bias():
    x = inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 1, activation="relu", name="a")(x)
    x = layers.Conv2D(4, 1, use_bias=False, name="b")(x)
    x = layers.BatchNormalization(name="bn")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2)(x)))
    kernel, bias = (array(w) for w in model.get_layer("a").weights)
    kernel[..., 1] = 0
    bias[1] = 2.0  # a constant
    model.get_layer("a").set_weights([kernel, bias])
    reads, mean = array(model.get_layer("b").kernel), array(model.get_layer("bn").moving_mean)
    data = data_for(model, batch=8)
    before = both_modes(model, data)
    narrow(model, "a", 2, keep="activation", calibration=data)
    after = array(model.get_layer("bn").moving_mean)
    assert np.max(np.abs(after - (mean - 2.0 * reads[0, 0, 1]))) < 1e-6
    assert_same(both_modes(model, data), before, 1e-4)  # of a variance, training rounds more


@pytest.mark.parametrize("name", cases(MODELS, 2))
def test_activations_choose_better_than_nothing_and_every_model_still_runs(name):
    model = randomize(MODELS[name]())
    x = data_for(model, batch=8)
    before = outputs(model, x)
    report = n2n.grow(
        model, n2n.Narrower(factor=0.7, keep="activation"), calibration=x, verify=x, seed=0
    )
    assert report.difference == pytest.approx(max_difference(outputs(model, x), before), rel=1e-3)
    assert report.difference > 0
    assert_native(model)
    train_a_step(model, x)


def test_units_whose_readers_show_nothing_are_chosen_by_norm():
    model = randomize(MODELS["recurrent"]())
    report = narrow(model, "lstm", 2, keep="activation", calibration=data_for(model))
    if BACKEND != "torch":  # the loop of the layer that reads them may be compiled
        return
    assert model.get_layer("lstm").units == 2
    assert any("not exact" in note for note in report.notes)


def test_activation_needs_data():
    refused(
        randomize(mlp()),
        n2n.Narrower("a", 3, keep="activation"),
        GrowthError,
        "needs data",
        "calibration=x",
    )


# -- in training, in files, in lists -------------------------------------------------------


def test_it_runs_inside_fit_and_starts_the_optimizer_again(tmp_path):
    model = randomize(mlp())
    model.compile("adam", "mse", **EAGERLY)
    x = data_for(model, batch=8)
    y = np.zeros((8, 2), "float32")
    scheduler = n2n.GrowthScheduler(
        {
            1: n2n.Wider("a", 9),
            2: n2n.Narrower("b", 3, keep="norm"),
            3: n2n.Narrower("b", 2, keep="activation"),
        },
        seed=0,
        verbose=0,
        calibration=x,
    )
    model.fit(x, y, epochs=4, batch_size=4, verbose=0, callbacks=[scheduler])
    assert (model.get_layer("a").units, model.get_layer("b").units) == (9, 2)
    assert [report.plan.exact for report in scheduler.history] == [True, False, False]
    shapes = {tuple(v.shape) for v in model.optimizer.variables}
    assert (9, 2) in shapes
    assert (9, 4) not in shapes
    assert int(array(model.optimizer.iterations)) == 8
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(outputs(loaded, x), outputs(model, x))


def test_a_list_looks_at_the_model_as_it_then_is():
    model = randomize(mlp())
    x = data_for(model)
    before, weights = both_modes(model, x), snapshot(model)
    report = n2n.grow(model, [n2n.Wider(factor=1.5), n2n.Deeper("a"), n2n.Narrower()], seed=0)
    assert [type(op).__name__ for op in report.operations] == ["Wider", "Deeper", "Narrower"]
    assert_same(both_modes(model, x), before)
    assert model.get_layer("b").units == 4
    teacher = randomize(mlp())
    n2n.grow(teacher, n2n.Wider("a", 9), seed=0)
    untouched = state(teacher)
    student = n2n.clone_and_grow(teacher, n2n.Narrower(teacher.get_layer("a")), seed=0)
    assert_state(teacher, untouched)
    least = n2n.Narrower("b", 2, keep="activation")
    assert n2n.clone_and_grow(teacher, least, calibration=x).get_layer("b").units == 2
    assert max_difference(snapshot(student), weights) < 1e-6


def test_it_is_written_as_a_config():
    operation = n2n.Narrower({"a": 3, "b": {"heads": 2}}, keep="norm", round_to=2)
    again = n2n.Narrower.from_config(json.loads(json.dumps(operation.get_config())))
    assert again == operation
    assert operation.looks_at_model
    assert not operation.exact
    assert repr(n2n.Narrower("a")) == "Narrower('a')"
    assert repr(n2n.Narrower("a", 3, keep="norm")) == "Narrower('a', units=3, keep='norm')"


def test_mixed_precision_keeps_its_policy():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = randomize(mlp())
        x = data_for(model)
        old = outputs(model, x)
        n2n.grow(model, [n2n.Wider(factor=1.5), n2n.Narrower()], seed=0)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("a").units == 6
    assert_same(outputs(model, x), old, 0.1)


# -- sizes and errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"factor": 0.5}, 3),
        ({"factor": 0.75}, 5),  # 4.5: half goes up
        ({"factor": 0.99}, 5),
        ({"factor": 0.01}, 1),
        ({"factor": 0.5, "round_to": 4}, 4),
        ({"units": 3, "round_to": 2}, 4),
        ({"units": 1}, 1),
    ],
)
def test_the_new_size_is_what_was_asked_for_rounded_as_documented(arguments, size):
    plan = n2n.plan(mlp(), n2n.Narrower("a", keep="norm", **arguments), seed=0)
    assert [(w.old, w.new) for w in plan.steps[0].widths] == [(6, size)]


def test_contradictions_are_errors():
    for arguments, content in (
        ({"keep": "best"}, "`keep` can't be 'best'"),
        ({"layers": "a", "keep": "norm"}, "The new size isn't clear"),
        ({"layers": "a", "units": 2, "factor": 0.5}, "The new size isn't clear"),
        ({"units": 2}, "One number of units doesn't fit"),
        ({"factor": 1.5}, "`factor` can't be 1.5"),
        ({"factor": 0.0}, "`factor` can't be 0.0"),
        ({"layers": "a", "units": 0}, "`units` can't be 0"),
    ):
        with pytest.raises(GrowthError) as caught:
            n2n.Narrower(**arguments)
        assert_explained(caught.value, content)


def test_what_can_not_be_is_refused_and_changes_nothing():
    model = randomize(mlp())
    n2n.grow(model, n2n.Wider("a", 8), seed=0)
    refused(model, n2n.Narrower("a", 5), SizeError, "only 2 of its 8 units are duplicates", "norm")
    refused(model, n2n.Narrower("b", 3), SizeError, "none of its 4 units is a duplicate")
    refused(model, n2n.Narrower("a", 9), SizeError, "it has 8, and narrowing only removes units")
    refused(model, n2n.Narrower("out", 1), FixedWidthError, "is an output of the model", "Narrow")
    refused(
        randomize(convolutional()),
        n2n.Narrower({"stem": 2, "conv": 3}, keep="norm"),
        ConflictError,
        "tied",
    )


def test_a_pattern_skips_what_has_too_few_duplicates():
    model = randomize(mlp())
    n2n.grow(model, n2n.Wider("a", 12), seed=0)
    plan = n2n.plan(model, n2n.Narrower("*", factor=0.5), seed=0)
    assert [w.name for w in plan.steps[0].widths] == ["a"]
    reasons = {skip.path: skip.reason for skip in plan.steps[0].skipped}
    assert reasons["b"] == "none of its 4 units is a duplicate"


@pytest.mark.parametrize("seed", range(12 if BACKEND == "torch" else 2))
def test_random_models_come_back_from_a_widening(seed):
    with double_precision():
        model, symbols = Builder(Seeded(seed)).model()
        randomize(model)
        x = keras.tree.map_structure(_random_data, symbols)
        before, size = both_modes(model, x), model.count_params()
        try:
            n2n.grow(model, n2n.Wider(factor=1.5), seed=seed, verify=False)
        except FixedWidthError:
            return
        narrow(model)
        assert_same(both_modes(model, x), before, 1e-9)
    assert model.count_params() == size


def _random_data(tensor) -> np.ndarray:
    random = np.random.default_rng(0)
    shape = [4, *(4 if size is None else size for size in tensor.shape[1:])]
    if "int" in tensor.dtype:
        return random.integers(0, 6, shape).astype(tensor.dtype)
    return random.standard_normal(shape).astype(tensor.dtype)
