"""Calibrated normalizations: moments by hand, and exact in training mode on the data."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.operations.deeper.moments import Moments, after_activation, pooled
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_native,
    assert_same,
    both_modes,
    outputs,
    randomize,
    train_a_step,
)
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state


def data(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def block(x, name: str, activation="relu", norm=None, **kwargs):
    """A convolution, its normalization, and its activation."""
    x = layers.Conv2D(4, 3, padding="same", name=name, **kwargs)(x)
    x = (norm or layers.BatchNormalization(name=f"{name}_bn"))(x)
    return layers.Activation(activation, name=f"{name}_act")(x) if activation else x


def conv_net(norm=None, activation="relu", scale: bool = True) -> keras.Model:
    x = inputs = keras.Input((5, 5, 2))
    x = block(x, "a", activation, norm)
    x = block(x, "b", norm=layers.BatchNormalization(scale=scale, name="b_bn"))
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="out")(x), name="net"))


def dense_net() -> keras.Model:
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, activation="relu", name="it")(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="out")(x), name="net"))


def grown_exactly(model, operation, x, tolerance: float = 1e-6, **kwargs) -> n2n.GrowthReport:
    """Grows a model, and checks that it computes the same on the data, in both modes."""
    before = both_modes(model, x)
    report = n2n.grow(model, operation, seed=0, verify=x, **kwargs)
    assert_same(both_modes(model, x), before, tolerance)
    assert report.training_difference is not None
    assert report.training_difference <= max(tolerance, 1e-6) * 10
    assert_native(model)
    return report


# -- numbers by hand -----------------------------------------------------------------


def test_the_numbers_are_those_of_the_activations():
    model = dense_net()
    x = data(16, 5)
    y = outputs(keras.Model(model.input, model.get_layer("it").output), x)[0]
    report = grown_exactly(model, n2n.Deeper("it", batch_norm=True, calibration=x), x)
    norm = model.get_layer("it_deeper_1_bn")
    mean, variance = y.mean(0), y.var(0)
    assert np.allclose(array(norm.moving_mean), mean, atol=1e-6)
    assert np.allclose(array(norm.moving_variance), variance, atol=1e-6)
    assert np.allclose(array(norm.beta), mean, atol=1e-6)
    assert np.allclose(array(norm.gamma), np.sqrt(variance + norm.epsilon), atol=1e-6)
    assert "exact at inference, and in training mode on that data" in str(report.notes)
    assert "its calibration data" in str(report.notes)
    assert f"({report.training_difference:.1e} in training mode)" in report.headline()


def quadrature(function, mean, deviation):
    """The moments by a fine sum over the density."""
    t = np.linspace(-10, 10, 200001)[:, None]
    weights = np.exp(-0.5 * t**2)
    weights /= weights.sum()
    y = function(np.asarray(mean) + np.asarray(deviation) * t)
    first = (weights * y).sum(0)
    return first, (weights * np.square(y - first)).sum(0)


ACTIVATIONS = {
    "linear": (None, lambda x: x),
    "relu": ("relu", lambda x: np.maximum(x, 0)),
    "relu6": ("relu6", lambda x: np.clip(x, 0, 6)),
    "hard_tanh": ("hard_tanh", lambda x: np.clip(x, -1, 1)),
    "hard_sigmoid": ("hard_sigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    "tanh": ("tanh", np.tanh),
    "silu": ("silu", lambda x: x / (1 + np.exp(-x))),
    "Activation": (layers.Activation("relu"), lambda x: np.maximum(x, 0)),
    "ReLU": (
        layers.ReLU(max_value=1.5, negative_slope=0.25, threshold=0.5),
        lambda x: np.where(x >= 1.5, 1.5, np.where(x >= 0.5, x, 0.25 * (x - 0.5))),
    ),
    "LeakyReLU": (layers.LeakyReLU(0.3), lambda x: np.where(x > 0, x, 0.3 * x)),
    "ELU": (layers.ELU(), lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)),
}


@pytest.mark.parametrize(("function", "expected"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_moments_after_an_activation_are_those_of_a_gaussian_through_it(function, expected):
    mean, deviation = np.array([-1.0, 0.0, 0.7, 5.5]), np.array([0.5, 1.0, 2.0, 1.0])
    found = after_activation(function, mean, deviation)
    first, second = quadrature(expected, mean, deviation)
    assert np.allclose(found.mean, first, atol=1e-4)
    assert np.allclose(found.variance, second, atol=1e-4)


def test_the_moments_after_relu_by_hand():
    found = after_activation("relu", np.zeros(1), np.ones(1))
    assert found.mean[0] == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert found.variance[0] == pytest.approx(0.5 - 1 / (2 * math.pi))


def test_a_channel_that_is_constant_has_no_variance():
    found = after_activation("relu", np.array([-1.0, 0.0, 2.0]), np.zeros(3))
    assert np.allclose(found.mean, [0, 0, 2])
    assert np.allclose(found.variance, 0)


def test_slopes_of_every_channel_count_and_those_of_every_place_are_not_guessed():
    for shared, known in (([1, 2], True), (None, False)):
        layer = layers.PReLU(shared_axes=shared)
        layer.build((None, 3, 3, 2))
        layer.alpha.assign(0.5 * np.ones(layer.alpha.shape))
        found = after_activation(layer, np.zeros(2), np.ones(2))
        assert (found is not None) == known
        if known:
            first, second = quadrature(lambda x: np.where(x > 0, x, 0.5 * x), [0, 0], [1, 1])
            assert np.allclose(found.mean, first, atol=1e-4)
            assert np.allclose(found.variance, second, atol=1e-4)


def test_nothing_is_guessed_of_an_unknown_activation():
    assert after_activation(lambda x: x, np.zeros(2), np.ones(2)) is None
    assert after_activation("softmax", np.zeros(2), np.ones(2)) is None


def test_moments_of_parts_are_pooled():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((n, 3)) + n for n in (4, 9, 2)]
    found = pooled([Moments(part.mean(0), part.var(0), len(part)) for part in parts])
    whole = np.concatenate(parts)
    assert np.allclose(found.mean, whole.mean(0))
    assert np.allclose(found.variance, whole.var(0))


# -- with data -------------------------------------------------------------------------


def test_calibrated_layers_change_nothing_in_both_modes(tmp_path):
    model = conv_net(scale=False)  # the block's own normalization could not undo itself
    x = data(8, 5, 5, 2)
    grown_exactly(model, n2n.Deeper(["a", "b"], count=2, calibration=x), x)
    assert model.get_layer("b_deeper_2_bn").scale
    grown_exactly(model, n2n.Deeper("a", calibration=x), x)  # once more
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(both_modes(loaded, x), both_modes(model, x))
    train_a_step(model, x)


def test_the_data_of_the_growth_serves_as_well():
    model = conv_net()
    x = data(8, 5, 5, 2)
    report = grown_exactly(model, n2n.Deeper("a"), x, calibration=(x, data(8, 3)))
    assert "the calibration data" in str(report.notes)
    model = conv_net()
    asked = []
    grown_exactly(model, n2n.Deeper("a"), x, calibration=lambda: asked.append(1) or x)
    assert asked


def test_wider_and_deeper_compose_with_data():
    model = conv_net()
    x = data(8, 5, 5, 2)
    operations = [
        n2n.Wider("a", 6),
        n2n.Deeper("a", calibration=x),
        n2n.Wider("a_deeper_1", 7),
        n2n.Deeper("b", units=6, calibration=x),
    ]
    before = both_modes(model, x)
    plan = n2n.plan(model, operations, seed=0)
    report = n2n.grow(model, operations, seed=0)
    assert report.plan == plan
    assert_same(both_modes(model, x), before)
    assert model.get_layer("a_deeper_1_bn").gamma.shape == (7,)
    assert model.get_layer("b_deeper_1_bn").gamma.shape == (6,)


def test_a_teacher_stays_as_it_is():
    teacher = conv_net()
    x = data(8, 5, 5, 2)
    before, outputs_before = state(teacher), both_modes(teacher, x)
    student = n2n.clone_and_grow(teacher, n2n.Deeper(teacher.get_layer("a"), calibration=x), seed=0)
    assert_state(teacher, before)
    assert "call" not in vars(teacher)
    assert_same(both_modes(student, x), outputs_before)
    other = n2n.clone_and_grow(teacher, n2n.Deeper("a"), seed=0, calibration=x)
    assert_same(both_modes(other, x), outputs_before)


def test_a_nested_model_that_is_called_twice_is_measured_at_both_calls():
    y = start = keras.Input((4,))
    y = layers.Dense(3, name="fc")(y)
    y = layers.BatchNormalization(name="bn")(y)
    inner = keras.Model(start, layers.ReLU(name="act")(y), name="inner")
    a, b = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    x = layers.Concatenate()([inner(a), inner(b)])
    model = randomize(keras.Model([a, b], layers.Dense(2, name="out")(x), name="net"))
    given = [data(16, 4), 2 + data(16, 4, seed=2)]
    before = outputs(model, given)
    seen = []
    for one in given:  # in training mode each call is normalized by itself
        seen.append(outputs(inner, one, training=True)[0])
    n2n.grow(model, n2n.Deeper("inner/fc", calibration=given), seed=0)
    assert_same(outputs(model, given), before)
    norm = inner.get_layer("fc_deeper_1_bn")
    both = np.concatenate(seen)
    assert np.allclose(array(norm.moving_mean), both.mean(0), atol=1e-5)
    assert np.allclose(array(norm.moving_variance), both.var(0), atol=1e-5)


def test_a_nested_model_and_what_stands_around_it_are_measured_at_once():
    y = start = keras.Input((4,))
    y = layers.Dense(4, name="fc")(y)
    inner = keras.Model(start, layers.BatchNormalization(name="bn")(y), name="inner")
    x = inputs = keras.Input((4,))
    x = layers.Dense(4, activation="relu", name="around")(inner(x))
    model = randomize(keras.Model(inputs, layers.Add(name="sum")([x, inner(inputs + x)])))
    given = data(16, 4)
    first = keras.Model(model.input, model.get_layer("around").output)
    around = outputs(first, given, training=True)[0]
    calls = [outputs(inner, one, training=True)[0] for one in (given, given + around)]
    operation = n2n.Deeper(["around", "inner/fc"], batch_norm=True, calibration=given)
    n2n.grow(model, operation, seed=0)
    assert np.allclose(
        array(model.get_layer("around_deeper_1_bn").moving_mean), around.mean(0), atol=1e-5
    )
    seen = np.concatenate(calls)  # each call once
    norm = inner.get_layer("fc_deeper_1_bn")
    assert np.allclose(array(norm.moving_mean), seen.mean(0), atol=1e-5)
    assert np.allclose(array(norm.moving_variance), seen.var(0), atol=1e-5)


def test_a_shared_layer_is_measured_at_all_its_calls():
    fc = layers.Dense(3, activation="relu", name="fc")
    a, b = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    x = layers.Concatenate()([fc(a), fc(b)])
    model = randomize(keras.Model([a, b], layers.Dense(2, name="out")(x), name="net"))
    given = [data(16, 4), 2 + data(8, 4, seed=2)[np.r_[0:8, 0:8]]]
    before = outputs(model, given)
    seen = [outputs(keras.Model(a, fc(a)), one)[0] for one in given]
    n2n.grow(model, n2n.Deeper("fc", batch_norm=True, calibration=given), seed=0)
    assert_same(outputs(model, given), before)
    norm = model.get_layer("fc_deeper_1_bn")
    both = np.concatenate(seen)
    assert np.allclose(array(norm.moving_mean), both.mean(0), atol=1e-5)
    assert np.allclose(array(norm.moving_variance), both.var(0), atol=1e-5)


def test_a_sequential_model_inside_a_model_with_its_own_call_is_measured():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = keras.Sequential(
                [
                    keras.Input((4,)),
                    layers.Dense(3, name="fc"),
                    layers.BatchNormalization(name="bn"),
                    layers.ReLU(name="act"),
                ],
                name="body",
            )
            self.head = layers.Dense(2, name="head")

        def call(self, x, training=None):
            return self.head(self.body(2 * x, training=training))

    model = Own()
    x = data(8, 4)
    model(x)
    randomize(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Deeper("body/fc", calibration=x), seed=0)
    assert_same(both_modes(model, x), before)


def test_steps_that_are_masked_do_not_count():
    x = inputs = keras.Input((6, 3))
    x = layers.Masking(name="mask")(x)
    x = layers.Dense(4, name="it")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="act")(x)
    x = layers.GlobalAveragePooling1D()(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name="net"))
    given = data(8, 6, 3)
    given[:, 4:] = 0
    before = both_modes(model, given)
    n2n.grow(model, n2n.Deeper("it", calibration=given), seed=0)
    assert_same(both_modes(model, given), before)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's CPU convolves channels last")
def test_channels_first_are_measured_along_their_axis():
    x = inputs = keras.Input((2, 5, 4))
    norm = layers.BatchNormalization(axis=1, name="a_bn")
    x = block(x, "a", norm=norm, data_format="channels_first")
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)), name="net"))
    given = data(8, 2, 5, 4)
    grown_exactly(model, n2n.Deeper("a", calibration=given), given)
    assert model.get_layer("a_deeper_1_bn").gamma.shape == (4,)
    grown_exactly(model, n2n.Deeper("a", form="prelu", calibration=given), given)
    assert model.get_layer("a_deeper_2_prelu").alpha.shape == (4, 1, 1)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_as_exact_as_it_is_precise(policy):
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, dtype=policy, name="it")(x)
    x = layers.BatchNormalization(dtype=policy, name="bn")(x)
    x = layers.ReLU(dtype=policy, name="act")(x)
    model = keras.Model(inputs, layers.Dense(3, dtype=policy, name="out")(x), name="net")
    randomize(model)
    given = data(16, 5)
    before = both_modes(model, given)
    report = n2n.grow(model, n2n.Deeper("it", calibration=given), seed=0)
    assert_same(both_modes(model, given), before, 4e-3 if "bfloat" not in policy else 3e-2)
    assert model.get_layer("it_deeper_1_bn").gamma.dtype == "float32"
    assert report.training_difference is not None


def test_dropout_draws_what_it_drew():
    x = inputs = keras.Input((5,))
    x = layers.Dropout(0.5, seed=1)(x)
    x = layers.Dense(4, name="it")(x)
    x = layers.BatchNormalization(name="bn")(x)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="out")(x), name="net"))
    given = data(16, 5)
    before = array(model.layers[1].seed_generator.state)
    grown_exactly(model, n2n.Deeper("it", calibration=given), given)
    assert np.array_equal(array(model.layers[1].seed_generator.state), before)


def test_data_that_the_model_does_not_take_is_an_error():
    model = conv_net()
    before = state(model)
    with pytest.raises(GrowthError) as caught:
        n2n.grow(model, n2n.Deeper("a", calibration=data(3, 4)))
    assert_explained(caught.value, "'net' can't be calibrated", "[(3, 4)]", "(inputs, targets)")
    assert_state(model, before)
    assert "call" not in vars(model)


def test_data_is_no_part_of_a_configuration():
    operation = n2n.Deeper("a", calibration=data(3, 4))
    assert "calibration" not in operation.get_config()
    assert "calibration" not in repr(operation)
    assert operation == n2n.Deeper("a")
    assert n2n.Deeper.from_config(operation.get_config()) == operation


def test_an_inserted_renormalization_is_exact_in_both_modes_too():
    if "renorm" not in layers.BatchNormalization().get_config():
        pytest.skip("newer than the oldest Keras")
    model = conv_net(layers.BatchNormalization(renorm=True, name="a_bn"))
    x = data(8, 5, 5, 2)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Deeper("a", calibration=x), seed=0)
    assert_same(both_modes(model, x), before, 1e-5)


# -- without data ------------------------------------------------------------------------


def by_hand(norm) -> tuple[np.ndarray, np.ndarray]:
    variance = array(norm.moving_variance).astype("float64")
    deviation = np.abs(array(norm.gamma)) * np.sqrt(variance / (variance + norm.epsilon))
    return quadrature(lambda x: np.maximum(x, 0), array(norm.beta), deviation)


def test_without_data_the_normalization_of_the_block_says_what_it_makes():
    model = conv_net()
    x = data(64, 5, 5, 2)
    before = both_modes(model, x)
    first, second = by_hand(model.get_layer("a_bn"))
    report = n2n.grow(model, n2n.Deeper("a"), seed=0, verify=x)
    norm = model.get_layer("a_deeper_1_bn")
    assert np.allclose(array(norm.moving_mean), first, atol=1e-4)
    assert np.allclose(array(norm.moving_variance), second, atol=1e-4)
    after = both_modes(model, x)
    assert_same(after[:1], before[:1])
    difference = float(np.abs(after[1] - before[1]).max())
    assert report.training_difference == pytest.approx(difference, rel=1e-3)
    notes = str(report.notes)
    assert "set by what 'a_bn' says of its input" in notes
    assert f"differ by up to {report.training_difference:.1e} from those before" in notes


def test_what_the_block_says_is_far_closer_than_nothing():
    differences = {}
    for way in ("nothing", "block"):
        model = conv_net()
        x = data(64, 5, 5, 2)
        before = both_modes(model, x)
        n2n.grow(model, n2n.Deeper("a"), seed=0)
        if way == "nothing":
            norm = model.get_layer("a_deeper_1_bn")
            norm.gamma.assign(np.ones(4))
            norm.beta.assign(np.zeros(4))
            norm.moving_mean.assign(np.zeros(4))
            norm.moving_variance.assign(np.full(4, 1 - norm.epsilon))
        after = both_modes(model, x)
        assert_same(after[:1], before[:1])
        differences[way] = float(np.abs(after[1] - before[1]).max())
    assert differences["block"] < 0.25 * differences["nothing"]


def test_without_data_and_without_a_normalization_nothing_is_known():
    model = dense_net()
    x = data(8, 5)
    before = outputs(model, x)
    report = n2n.grow(model, n2n.Deeper("it", batch_norm=True), seed=0)
    assert_same(outputs(model, x), before)
    norm = model.get_layer("it_deeper_1_bn")
    assert np.array_equal(array(norm.gamma), np.ones(4))
    assert "until it has adapted" in str(report.notes)
    assert report.training_difference > 1e-2


def test_nothing_is_measured_in_training_mode_without_normalizations_or_verification():
    assert n2n.grow(dense_net(), n2n.Deeper("it"), seed=0).training_difference is None
    report = n2n.grow(conv_net(), n2n.Deeper("a"), seed=0, verify=False)
    assert report.training_difference is None


# -- inside fit ----------------------------------------------------------------------------


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 2

    def __getitem__(self, at):
        return self.x[8 * at : 8 * at + 8], self.y[8 * at : 8 * at + 8]


def generator(x, y):
    for _ in range(4):
        yield from ((x[at : at + 8], y[at : at + 8]) for at in (0, 8))


def dataset(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(16, seed=0).batch(8)


def loader(x, y):
    import torch

    parts = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return torch.utils.data.DataLoader(parts, batch_size=8, shuffle=True)


SOURCES = {
    "arrays": lambda x, y: {"x": x, "y": y, "batch_size": 8},
    "a PyDataset": lambda x, y: {"x": Batches(x, y)},
    "a generator": lambda x, y: {"x": generator(x, y), "steps_per_epoch": 2, "shuffle": False},
}
if BACKEND == "tensorflow":
    SOURCES["a tf.data.Dataset"] = lambda x, y: {"x": dataset(x, y), "shuffle": False}
if BACKEND == "torch":
    SOURCES["a DataLoader"] = lambda x, y: {"x": loader(x, y), "shuffle": False}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_running_fit_gives_its_first_batches(source):
    model = conv_net()
    x, y = data(16, 5, 5, 2), data(16, 3, seed=2)
    model.compile("sgd", "mse", **EAGERLY)
    growth = n2n.GrowthScheduler({1: n2n.Deeper("a")}, seed=0, verbose=0)
    steps = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(batch)

    model.fit(**source(x, y), epochs=2, verbose=0, callbacks=[growth, Count()])
    (report,) = growth.history
    assert "set by the statistics of the first batches of this `fit`" in str(report.notes)
    assert report.training_difference < 1e-5
    assert steps == [0, 1, 0, 1]  # no batch was lost


@pytest.mark.skipif(BACKEND == "jax", reason="the data is read by the same code; JAX compiles it")
@pytest.mark.parametrize("kind", [kind for kind in ("arrays", "a DataLoader") if kind in SOURCES])
def test_reading_the_first_batches_does_not_change_the_order_of_the_data(kind):
    x, y = data(16, 5, 5, 2), data(16, 3, seed=2)
    seen = []
    for operation in (n2n.Deeper("a", calibration=x), n2n.Deeper("a")):  # of all 16 either way
        model = conv_net()
        model.compile("sgd", "mse", **EAGERLY)
        keras.utils.set_random_seed(0)
        losses = []

        class Note(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None, losses=losses):
                losses.append(logs["loss"])

        growth = n2n.GrowthScheduler({1: operation}, seed=0, verbose=0)
        model.fit(**SOURCES[kind](x, y), epochs=3, verbose=0, callbacks=[growth, Note()])
        seen.append(losses)
    assert np.allclose(*seen, rtol=1e-4)


def test_data_that_can_not_be_had_is_done_without():
    model = conv_net()
    assert internals.fit_batches(model, 8) == []  # no fit is running

    class Adapter:
        py_dataset = Batches(data(16, 5, 5, 2), data(16, 3))

        def _standardize_batch(self, batch):
            raise OSError("gone")

    class Iterator:
        data_adapter = Adapter()

    class Fit:
        def fit(self):
            epoch_iterator = Iterator()  # noqa: F841
            return internals.fit_batches(self, 8)

    assert Fit().fit() == []


def test_the_data_of_a_callback_comes_before_that_of_its_fit():
    model = conv_net()
    x, y = data(16, 5, 5, 2), data(16, 3, seed=2)
    model.compile("sgd", "mse", **EAGERLY)
    growth = n2n.GrowthScheduler({0: n2n.Deeper("a")}, seed=0, verbose=0, calibration=x)
    model.fit(x, y, epochs=1, verbose=0, callbacks=[growth])
    (report,) = growth.history
    assert "the statistics of the calibration data" in str(report.notes)
    assert report.training_difference < 1e-5
