"""NewClasses: old logits stay bit for bit, new ones start as asked, and training goes on."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.errors import (
    ConflictError,
    FixedWidthError,
    GrowthError,
    SizeError,
    VerificationError,
)
from keras_net2net.growth.probe import Probe
from tests.support.helpers import (
    BACKEND,
    Closed,
    array,
    assert_native,
    assert_same,
    both_modes,
    cases,
    data_for,
    outputs,
    randomize,
)
from tests.support.messages import refused
from tests.support.states import assert_state, state

# On JAX, what Keras's own `MeanIoU` and its like do with labels warns of their dtype.
pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning")


def whole(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives a model small whole numbers as weights, whose sums are exact in any order."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        if "int" not in variable.dtype:
            variable.assign(random.integers(-2, 3, tuple(variable.shape)).astype("float32"))
    return model


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-3, 4, shape).astype("float32")


def classifier(activation: str | None = None, classes: int = 3, **kwargs) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.Dense(classes, activation=activation, name="head", **kwargs),
        ],
        name="classifier",
    )


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# -- old and new logits -------------------------------------------------------------


def test_old_logits_stay_bit_for_bit_and_new_ones_are_zero():
    model = whole(classifier())
    x = numbers(4, 4)
    before = outputs(model, x)[0]
    report = n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    after = outputs(model, x)[0]
    assert model.output_shape == (None, 5)
    assert np.array_equal(after[:, :3], before)
    assert np.array_equal(after[:, 3:], np.zeros((4, 2)))
    assert report.difference == 0.0
    assert report.headline().startswith("head 3 -> 5 | 43 -> 55 parameters")
    (note,) = report.notes
    assert note == (
        "output 0: 3 -> 5 entries, new ones at the end; "
        "the old entries are compared, and are what they were"
    )
    assert_native(model)


def test_the_mean_of_the_old_classes():
    model = whole(classifier())
    x = numbers(4, 4)
    before = outputs(model, x)[0]
    n2n.grow(model, n2n.NewClasses("head", 2, start="mean"), seed=0)
    after = outputs(model, x)[0]
    assert np.array_equal(after[:, :3], before)
    assert np.allclose(after[:, 3:], before.mean(axis=1, keepdims=True), atol=1e-6)
    assert np.allclose(array(model.layers[1].bias)[3:], array(model.layers[1].bias)[:3].mean())


@pytest.mark.parametrize("start", ["zeros", "mean"])
def test_old_probabilities_keep_their_ratios(start):
    model = randomize(classifier("softmax"))
    x = data_for(model)
    before = outputs(model, x)[0]
    report = n2n.grow(model, n2n.NewClasses("head", 2, start=start), seed=0)
    after = outputs(model, x)[0]
    left = after[:, :3].sum(axis=1, keepdims=True)
    assert np.allclose(after[:, :3] / left, before, atol=1e-6)
    assert (left < 0.95).all()
    if start == "mean":
        assert (1 - left <= 2 / 5 + 1e-6).all()
    assert "compared after dividing them by their sum" in report.notes[0]
    assert report.difference < 1e-6


@pytest.mark.parametrize("mass", [1e-2, 1e-5])
def test_suppressed_classes_get_no_more_than_their_mass_for_any_input(mass):
    model = randomize(classifier("softmax"))
    x = np.concatenate([data_for(model), 100 * data_for(model), np.zeros((1, 4), "float32")])
    before = outputs(model, x)[0]
    operation = n2n.NewClasses("head", 2, start="suppressed", mass=mass)
    report = n2n.grow(model, operation, seed=0)
    after = outputs(model, x)[0]
    assert (after[:, 3:].sum(axis=1) <= mass * (1 + 1e-4)).all()
    assert np.abs(after[:, :3] - before).max() <= mass
    bias = np.log(mass * 3 / (2 * (1 - mass)))
    old = array(model.layers[1].bias)
    assert np.allclose(old[3:], old[:3].mean() + bias, atol=1e-5)
    assert f"get at most {mass:g} of the probability, for every input" in report.notes[0]


def test_the_bound_of_suppressed_classes_is_reached_where_all_logits_are_the_same():
    model = classifier("softmax")  # its biases are zero, and so are the logits of zeros
    n2n.grow(model, n2n.NewClasses("head", 2, start="suppressed", mass=0.25), seed=0)
    after = outputs(model, np.zeros((1, 4), "float32"))[0]
    assert np.allclose(after[0, 3:].sum(), 0.25, atol=1e-6)


def test_suppressed_classes_of_sigmoids_start_with_a_probability_of_their_own():
    model = randomize(classifier("sigmoid"))
    x = data_for(model)
    before = outputs(model, x)[0]
    operation = n2n.NewClasses("head", 2, start="suppressed", mass=0.01)
    report = n2n.grow(model, operation, seed=0)
    after = outputs(model, x)[0]
    assert np.allclose(after[:, :3], before, atol=1e-7)
    assert np.allclose(after[:, 3:], 0.005, atol=1e-6)
    assert "each new class starts with the probability 0.005" in report.notes[0]


# -- what stands between a head and the outputs ----------------------------------------


def functional(*steps, classes: int = 3) -> keras.Model:
    inputs = keras.Input((4,))
    x = layers.Dense(5, activation="relu", name="hidden")(inputs)
    x = layers.Dense(classes, name="head")(x)
    for step in steps:
        x = step(x)
    return randomize(keras.Model(inputs, x, name="net"))


SOFTMAXES = {
    "Softmax": [lambda: layers.Softmax()],
    "Activation": [lambda: layers.Activation("softmax")],
    "ops.softmax": [lambda: ops.softmax],
    "log_softmax": [lambda: ops.log_softmax],
    "a temperature": [lambda: lambda x: x / 2.0, lambda: layers.Softmax()],
    "Rescaling and Dropout": [
        lambda: layers.Rescaling(0.5),
        lambda: layers.Dropout(0.5),
        lambda: layers.Activation("softmax", dtype="float32"),
    ],
    "Reshape": [lambda: layers.Reshape((1, 3)), lambda: layers.Softmax()],
    "Reshape after it": [lambda: layers.Softmax(), lambda: layers.Reshape((3, 1))],
}


@pytest.mark.parametrize("steps", cases(SOFTMAXES, 4).values(), ids=cases(SOFTMAXES, 4))
def test_a_softmax_stands_anywhere_behind_the_head(steps):
    model = functional(*(make() for make in steps))
    x = data_for(model)
    log = steps == SOFTMAXES["log_softmax"]
    before = outputs(model, x)[0]
    operation = n2n.NewClasses("head", 2, start="suppressed", mass=1e-3)
    report = n2n.grow(model, operation, seed=0)
    after = outputs(model, x)[0].reshape(4, 5)
    probabilities = np.exp(after) if log else after
    assert (probabilities[:, 3:].sum(axis=1) <= 1e-3 * (1 + 1e-4)).all()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.allclose(after[:, :3], before.reshape(4, 3), atol=2e-3)
    assert report.difference < 1e-5
    assert_native(model)


@keras.saving.register_keras_serializable("new_classes")
class Factor(keras.Layer):
    """A layer of a user with a rule: halves what it is given, or hands it on."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@n2n.rules.register_rule(Factor)
def factor(call, x):
    """Passes units through, up to a factor."""
    words = n2n.rules.treatments
    known = words.UNCHANGED if call.layer.factor == 1.0 else words.PASSES
    call.treat(known.but(factor=call.layer.factor))
    return x


@pytest.mark.parametrize(
    "steps",
    [[Factor(0.5), layers.Softmax()], [layers.Softmax(), Factor(1.0)]],
    ids=["before", "behind"],
)
def test_a_layer_with_a_rule_of_ones_own_stands_between_a_head_and_the_output(steps):
    test_a_softmax_stands_anywhere_behind_the_head([lambda step=step: step for step in steps])


def test_what_a_rule_does_not_say_of_probabilities_is_not_taken_for_granted():
    class Mixes(Factor):
        pass

    @n2n.rules.register_rule(Mixes)
    def mixes(call, x):
        return x

    model = functional(layers.Softmax(), Mixes(1.0))
    assert n2n.grow(model, n2n.NewClasses("head", 1), seed=0).difference is None


def test_the_logits_of_one_head_join_in_the_middle_of_a_concatenation():
    inputs = keras.Input((4,))
    heads = [layers.Dense(n, name=name)(inputs) for name, n in (("a", 2), ("b", 3), ("c", 1))]
    logits = layers.Concatenate()(heads)
    model = whole(keras.Model(inputs, [logits, layers.Softmax()(logits)]))
    x = numbers(4, 4)
    before = outputs(model, x)
    report = n2n.grow(model, n2n.NewClasses({"b": 2, "a": 1}), seed=0)
    after = outputs(model, x)
    old = [0, 1, 3, 4, 5, 8]
    assert np.array_equal(after[0][:, old], before[0])
    assert np.array_equal(after[0][:, [2, 6, 7]], np.zeros((4, 3)))
    assert np.allclose(after[1], softmax(after[0]), atol=1e-6)
    assert (
        "output 0: 6 -> 9 entries, new ones at 2, 6, 7, and the old ones behind these move"
        in report.notes[0]
    )
    assert report.difference < 1e-6
    assert_native(model)


def test_softmaxes_of_their_own_that_are_concatenated():
    inputs = keras.Input((4,))
    heads = [layers.Dense(3, activation="softmax", name=name)(inputs) for name in "ab"]
    model = randomize(keras.Model(inputs, layers.Concatenate()(heads)))
    x = data_for(model)
    before = outputs(model, x)[0]
    report = n2n.grow(model, n2n.NewClasses("a", 2), seed=0)
    after = outputs(model, x)[0]
    assert np.allclose(after[:, 5:], before[:, 3:], atol=1e-6)
    assert np.allclose(after[:, :3] / after[:, :3].sum(axis=1, keepdims=True), before[:, :3])
    assert report.difference < 1e-6


def test_several_outputs_of_which_one_grows():
    inputs = keras.Input((4,))
    x = layers.Dense(5, activation="relu")(inputs)
    made = {"a": layers.Dense(3, name="a")(x), "b": layers.Dense(2, name="b")(x)}
    model = whole(keras.Model(inputs, made))
    data = numbers(3, 4)
    before = outputs(model, data)
    n2n.grow(model, [n2n.Wider("dense*", factor=2), n2n.NewClasses("b", 3)], seed=0)
    after = outputs(model, data)
    assert np.allclose(after[0], before[0], atol=1e-5)
    assert np.allclose(after[1][:, :2], before[1], atol=1e-5)
    assert [y.shape for y in after] == [(3, 3), (3, 5)]
    assert [tensor.shape for tensor in model.outputs] == [(None, 3), (None, 5)]


SEGMENTATION = {
    "Conv2D": lambda: layers.Conv2D(3, 1, name="head"),
    "Conv2DTranspose": lambda: layers.Conv2DTranspose(3, 2, strides=2, name="head"),
    "EinsumDense": lambda: layers.EinsumDense(
        "bhwc,cd->bhwd", (None, None, 3), bias_axes="d", name="head"
    ),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(3), name="head"),
}


@pytest.mark.parametrize("make", cases(SEGMENTATION, 3).values(), ids=cases(SEGMENTATION, 3))
def test_a_head_for_every_pixel(make):
    inputs = keras.Input((None, None, 2) if make is SEGMENTATION["Conv2D"] else (4, 4, 2))
    x = make()(inputs)
    x = layers.Reshape((-1, 3))(x)
    model = randomize(keras.Model(inputs, layers.Softmax()(x)))
    data = data_for(model)
    before = outputs(model, data)[0]
    report = n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    after = outputs(model, data)[0]
    assert after.shape == (*before.shape[:-1], 5)
    assert np.allclose(after[..., :3] / after[..., :3].sum(-1, keepdims=True), before, atol=1e-6)
    assert report.difference < 1e-6
    assert_native(model)


def test_logits_that_are_averaged_over_space():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 1, name="head")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    model = randomize(keras.Model(inputs, layers.Softmax()(x)))
    n2n.grow(model, n2n.NewClasses("head", 2, start="suppressed", mass=1e-3), seed=0)
    assert (outputs(model, data_for(model))[0][:, 3:].sum(axis=1) <= 1.001e-3).all()


def test_a_sum_of_two_heads_and_a_normalization_behind_them():
    inputs = keras.Input((4,))
    x = layers.Add()([layers.Dense(3, name="a")(inputs), layers.Dense(3, name="b")(inputs)])
    x = layers.BatchNormalization(name="norm")(x)
    model = randomize(keras.Model(inputs, x))
    data = data_for(model)
    before = both_modes(model, data)
    report = n2n.grow(model, n2n.NewClasses("a", 1, start="mean"), seed=0)
    assert_same([y[:, :3] for y in both_modes(model, data)], before)
    (width,) = report.plan.steps[0].widths
    assert width.layers == ("a", "b")
    assert array(model.get_layer("norm").moving_variance).shape == (4,)
    assert_native(model)


def test_what_reads_the_logits_does_not_see_the_new_ones():
    inputs = keras.Input((4,))
    logits = layers.Dense(3, name="head")(inputs)
    model = whole(keras.Model(inputs, [logits, layers.Dense(2, name="other")(logits)]))
    data = numbers(3, 4)
    before = outputs(model, data)
    n2n.grow(model, n2n.NewClasses("head", 2, start="mean"), seed=0)
    after = outputs(model, data)
    assert np.array_equal(after[0][:, :3], before[0])
    assert np.array_equal(after[1], before[1])


def test_an_average_of_probabilities_is_not_compared():
    inputs = keras.Input((4,))
    heads = [layers.Dense(3, activation="softmax", name=name)(inputs) for name in "ab"]
    model = randomize(keras.Model(inputs, layers.Average()(heads)))
    report = n2n.grow(model, n2n.NewClasses("a", 1), seed=0)
    assert report.difference is None
    assert "aren't compared" in report.notes[0]
    assert model.output_shape == (None, 4)


@keras.saving.register_keras_serializable("new_classes")
class Classifier(keras.Model):
    """A subclassed model whose head is an attribute."""

    def __init__(self, classes=3, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes
        self.hidden = layers.Dense(5, activation="relu", name="hidden")
        self.head = layers.Dense(classes, activation="softmax", name="head")

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.head.build((None, 5))

    def call(self, x):
        return self.head(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}


def test_the_head_of_a_subclassed_model(tmp_path):
    model = Classifier(name="sub")
    x = numbers(4, 4)
    model(x)
    randomize(model)
    before = array(model(x))
    report = n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    after = array(model(x))
    assert model.classes == 5
    assert np.allclose(after[:, :3] / after[:, :3].sum(axis=1, keepdims=True), before, atol=1e-6)
    assert report.difference < 1e-6
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert np.allclose(array(loaded(x)), after, atol=1e-6)


@keras.saving.register_keras_serializable("new_classes")
class Own(keras.layers.Layer):
    """A head without a rule, with a weight of its own."""

    def __init__(self, classes=3, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], self.classes), name="w")

    def call(self, x):
        return ops.softmax(ops.matmul(x, self.w) / 0.5)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}


def test_a_head_without_a_rule_inside_a_nested_model():
    top = keras.Sequential([keras.Input((5,)), layers.Dropout(0.0), Own(name="head")], name="top")
    inputs = keras.Input((4,))
    model = randomize(keras.Model(inputs, top(layers.Dense(5, name="hidden")(inputs))))
    x = data_for(model)
    before = outputs(model, x)[0]
    operation = n2n.NewClasses("top/head", 2, start="mean")
    report = n2n.grow(model, operation, seed=0)
    after = outputs(model, x)[0]
    assert np.allclose(after[:, :3] / after[:, :3].sum(axis=1, keepdims=True), before, atol=1e-6)
    assert (model.output_shape, top.output_shape) == ((None, 5), (None, 5))
    assert top.layers[-1].classes == 5
    assert report.difference < 1e-6
    student = n2n.clone_and_grow(model, operation, seed=0)
    assert student.output_shape == (None, 7)


# -- losses, metrics and training ------------------------------------------------------


# TensorFlow traces each step for seconds; it does where the step itself is tested.
EAGER = BACKEND == "tensorflow"


def compiled(*metrics, loss="sparse_categorical_crossentropy", eagerly=False) -> keras.Model:
    model = randomize(classifier("softmax"))
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=list(metrics), run_eagerly=eagerly)
    return model


def labelled(classes: int, one_hot: bool = False):
    x = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")
    y = np.arange(16) % classes
    return x, np.eye(classes, dtype="float32")[y] if one_hot else y


def test_training_goes_on_with_the_new_labels():
    model = compiled("accuracy")
    model.fit(*labelled(3), epochs=1, verbose=0)
    step = int(array(model.optimizer.iterations))
    n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    losses = model.fit(*labelled(5), epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert int(array(model.optimizer.iterations)) > step
    assert set(model.evaluate(*labelled(5), verbose=0, return_dict=True)) == {"loss", "accuracy"}


def test_metrics_that_count_classes_are_made_anew():
    iou = keras.metrics.OneHotMeanIoU(num_classes=3, name="iou")
    score = keras.metrics.F1Score(name="score")
    area = keras.metrics.AUC(multi_label=True, num_labels=3, num_thresholds=5, name="area")
    plain = keras.metrics.CategoricalAccuracy(name="plain")
    metrics = (iou, score, area, plain)
    model = compiled(*metrics, loss="categorical_crossentropy", eagerly=EAGER)
    model.fit(*labelled(3, one_hot=True), verbose=0)
    report = n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    notes = [note for note in report.notes if "the metric" in note]
    assert notes == [
        "the metric 'iou' (OneHotMeanIoU) was made anew with num_classes=5, and counts from zero",
        "the metric 'score' (F1Score) was made anew, and counts from zero",
        "the metric 'area' (AUC) was made anew with num_labels=5, and counts from zero",
    ]
    assert len(report.notes) == 4  # and the one on the output
    assert (iou.num_classes, area.num_labels) == (5, 5)
    history = model.fit(*labelled(5, one_hot=True), verbose=0).history
    assert array(iou.total_cm).shape == (5, 5)
    assert array(iou.total_cm).sum() == 16
    assert {"iou", "score", "area", "plain"} < set(history)
    assert len(history["score"][0]) == 5


def test_metrics_and_losses_follow_the_output_that_they_are_for():
    inputs = keras.Input((4,))
    made = {n: layers.Dense(3, activation="softmax", name=n)(inputs) for n in ("a", "b")}
    model = randomize(keras.Model(inputs, made))
    metrics = {n: [keras.metrics.OneHotMeanIoU(3, name="iou")] for n in ("a", "b")}
    losses = {n: keras.losses.CategoricalFocalCrossentropy([0.2, 0.3, 0.7]) for n in ("a", "b")}
    model.compile("sgd", losses, metrics=metrics, run_eagerly=EAGER)
    report = n2n.grow(model, n2n.NewClasses("b", 1), seed=0)
    assert (metrics["a"][0].num_classes, metrics["b"][0].num_classes) == (3, 4)
    assert len(losses["a"].alpha) == 3
    assert np.allclose(losses["b"].alpha, [0.2, 0.3, 0.7, 0.4])
    assert sum("the loss" in note for note in report.notes) == 1
    x = numbers(8, 4)
    y = {"a": np.eye(3)[np.arange(8) % 3], "b": np.eye(4)[np.arange(8) % 4]}
    model.fit(x, y, verbose=0)


@keras.saving.register_keras_serializable("new_classes")
class Hidden(keras.metrics.Metric):
    """A metric with a state of the number of classes, which its configuration doesn't name."""

    def __init__(self, name="hidden", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.counts = self.add_weight(shape=(3,), initializer="zeros", name="counts")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.counts.assign_add(ops.sum(y_pred[:, :3], axis=0))

    def result(self):
        return ops.sum(self.counts)


def test_a_metric_of_which_it_is_not_known_is_named():
    model = compiled(Hidden())
    report = n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    assert any("'hidden' (Hidden) holds something of the size" in note for note in report.notes)


def test_the_saved_model_is_compiled_for_the_new_classes(tmp_path):
    iou = keras.metrics.OneHotMeanIoU(3, name="iou")
    model = compiled(iou, loss="categorical_crossentropy", eagerly=EAGER)
    model.fit(*labelled(3, one_hot=True), verbose=0)
    n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    x, y = labelled(5, one_hot=True)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(outputs(loaded, x), outputs(model, x))
    assert loaded.evaluate(x, y, verbose=0, return_dict=True).keys() == {"loss", "iou"}
    assert loaded.get_compile_config() == model.get_compile_config()


def test_classes_join_inside_one_fit():
    iou = keras.metrics.MeanIoU(3, sparse_y_pred=False, name="iou")
    model = compiled("accuracy", iou)
    x, y = labelled(5)
    growth = n2n.GrowthScheduler({0: n2n.NewClasses("head", 2)}, seed=0, verbose=0)
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[growth]).history
    assert np.isfinite(history["loss"]).all()
    assert model.output_shape == (None, 5)
    assert array(iou.total_cm).sum() == 16


def test_classes_join_across_fits():
    model = compiled(keras.metrics.SparseCategoricalAccuracy(name="accuracy"))
    schedule = {epoch: n2n.NewClasses("head", 1) for epoch in (1, 2)}
    growth = n2n.GrowthScheduler(schedule, seed=0, verbose=0, across_fits=True)
    for classes in (3, 4, 5):
        history = model.fit(*labelled(classes), verbose=0, callbacks=[growth]).history
        assert np.isfinite(history["loss"]).all()
        assert model.output_shape == (None, classes)
    assert [report.epoch for report in growth.history] == [1, 2]


def test_new_classes_have_gradients_from_the_first_step():
    model = compiled(eagerly=EAGER)
    n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    model.train_on_batch(*labelled(5))
    assert array(model.layers[1].kernel)[:, 3:].any(axis=0).all()


# -- together with the rest --------------------------------------------------------------


def test_in_one_list_with_other_operations_and_twice_in_a_row():
    model = randomize(classifier("softmax"))
    x = data_for(model)
    before = both_modes(model, x)
    report = n2n.grow(
        model,
        [
            n2n.NewClasses("head", 2),
            n2n.Wider("hidden", factor=2),
            n2n.Deeper("hidden"),
            n2n.NewClasses("head", 1, start="mean"),
        ],
        seed=0,
    )
    assert report.difference < 1e-6
    assert model.output_shape == (None, 6)
    after = [y[:, :3] / y[:, :3].sum(axis=1, keepdims=True) for y in both_modes(model, x)]
    assert_same(after, before)
    assert_native(model)


def test_the_outputs_stay_fixed_for_other_operations():
    model = classifier("softmax")
    refused(model, [n2n.NewClasses("head", 2), n2n.Wider("head", 9)][1], FixedWidthError)
    with pytest.raises(FixedWidthError, match="normalizes over its units with softmax"):
        n2n.grow(model, [n2n.NewClasses("head", 2), n2n.Wider("head", 9)])
    assert model.output_shape == (None, 3)


def test_a_student_has_more_classes_than_its_teacher():
    teacher = randomize(classifier("softmax"))
    before = state(teacher)
    student = n2n.clone_and_grow(teacher, n2n.NewClasses("head", 2), seed=0)
    assert_state(teacher, before)
    assert student.output_shape == (None, 5)
    plan = n2n.plan(teacher, n2n.NewClasses(teacher.layers[1], 2))
    assert (plan.parameters_before, plan.parameters_after) == (43, 55)
    grown = plan.apply_to({"head/kernel": np.ones((5, 3)), "head/bias": np.ones(3)})
    assert grown["head/kernel"].sum() == 15
    assert_state(teacher, before)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    model = randomize(
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(5, activation="relu", dtype=policy),
                layers.Dense(3, name="head", dtype=policy),
                layers.Activation("softmax", dtype="float32"),
            ]
        )
    )
    report = n2n.grow(model, n2n.NewClasses("head", 2, start="suppressed", mass=0.01), seed=0)
    assert (outputs(model, data_for(model))[0][:, 3:].sum(axis=1) <= 0.011).all()
    assert report.difference < 1e-2


@pytest.mark.skipif(BACKEND == "tensorflow", reason="its convolutions need a GPU for that")
def test_channels_first():
    inputs = keras.Input((2, 4, 4))
    x = layers.Conv2D(3, 1, data_format="channels_first", name="head")(inputs)
    model = randomize(keras.Model(inputs, layers.Softmax(axis=1)(x)))
    data = data_for(model)
    before = outputs(model, data)[0]
    report = n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    after = outputs(model, data)[0]
    assert np.allclose(after[:, :3] / after[:, :3].sum(axis=1, keepdims=True), before, atol=1e-6)
    assert report.difference < 1e-6


# -- errors --------------------------------------------------------------------------------


def test_a_growth_that_fails_late_leaves_metrics_as_they_were(monkeypatch):
    iou = keras.metrics.OneHotMeanIoU(num_classes=3, name="iou")
    score = keras.metrics.F1Score(name="score")
    model = compiled(iou, score, loss="categorical_crossentropy", eagerly=EAGER)
    model.fit(*labelled(3, one_hot=True), verbose=0)
    before, counts = state(model), array(iou.total_cm)
    attributes = {id(m): {k: id(v) for k, v in vars(m).items()} for m in (iou, score)}

    def fail(*args):
        raise VerificationError("no")

    monkeypatch.setattr(Probe, "check", fail)
    with pytest.raises(VerificationError):
        n2n.grow(model, n2n.NewClasses("head", 2), seed=0)
    assert_state(model, before)
    assert {id(m): {k: id(v) for k, v in vars(m).items()} for m in (iou, score)} == attributes
    assert np.array_equal(array(iou.total_cm), counts)
    model.fit(*labelled(3, one_hot=True), verbose=0)


def test_a_layer_that_makes_no_outputs_is_refused():
    text = refused(
        classifier(), n2n.NewClasses("hidden", 2), FixedWidthError, "aren't among the outputs"
    )
    assert "use `Wider`" in text


def test_what_else_fixes_the_classes_still_does():
    operation = n2n.NewClasses("head", 2)
    refused(functional(Closed(name="closed")), operation, FixedWidthError, "path: head -> closed")
    normalized = functional(layers.LayerNormalization(name="norm"))
    refused(normalized, operation, FixedWidthError, "normalizes over", "norm")
    refused(functional(ops.sum), operation, FixedWidthError, "path: head -> sum")
    summed = functional(lambda x: ops.softmax(x, axis=(0, 1)))
    refused(summed, operation, FixedWidthError, "normalizes over its units")
    refused(functional(layers.Activation("sparsemax")), operation, FixedWidthError, "sparsemax")


def test_probabilities_that_something_reads_are_refused():
    model = functional(layers.Softmax(), layers.Dense(2, name="after"))
    refused(model, n2n.NewClasses("head", 2), FixedWidthError, "after reads probabilities")
    inputs = keras.Input((4,))
    probabilities = layers.Dense(3, activation="softmax", name="head")(inputs)
    both = keras.Model(inputs, [probabilities, layers.Dense(2, name="after")(probabilities)])
    refused(both, n2n.NewClasses("head", 2), FixedWidthError, "after reads probabilities")


def test_suppression_needs_a_bias_and_differences_that_stay():
    operation = n2n.NewClasses("head", 2, start="suppressed")
    refused(classifier(use_bias=False), operation, GrowthError, "needs a bias")
    bent = functional(layers.ReLU(), layers.Softmax())
    refused(bent, operation, GrowthError, "isn't known to keep the differences")
    n2n.grow(bent, n2n.NewClasses("head", 2, start="mean"), seed=0)


def test_a_number_of_classes_that_does_not_fit_a_reshape_is_refused():
    model = functional(layers.Reshape((3, 2)), classes=6)
    text = refused(model, n2n.NewClasses("head", 4), SizeError, "its units are made of")
    assert "Pass 3 or 6 classes" in text
    x = data_for(model)
    before = outputs(model, x)[0]
    report = n2n.grow(model, n2n.NewClasses("head", 3), seed=0)
    after = outputs(model, x)[0]
    assert after.shape == (4, 3, 3)
    assert np.allclose(after[:, :, :2], before, atol=1e-7)
    assert report.difference < 1e-6


def test_tied_heads_get_the_same_number_of_classes():
    inputs = keras.Input((4,))
    heads = [layers.Dense(3, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, layers.Add()(heads))
    refused(model, n2n.NewClasses({"a": 1, "b": 2}), ConflictError, "tied to those of 'a'")


def test_a_pattern_skips_what_is_no_head():
    report = n2n.grow(classifier(), n2n.NewClasses("*", 2), seed=0)
    (skip,) = report.plan.steps[0].skipped
    assert skip.path == "hidden"
    with pytest.raises(FixedWidthError, match="No layer that was asked for"):
        n2n.grow(classifier(), n2n.NewClasses("hid*", 2), seed=0)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (("head",), {}, "aren't clear"),
        ((None, 5), {}, "aren't clear"),
        (({"head": 1}, 5), {}, "aren't clear"),
        (("head", 0), {}, "`classes` can't be 0"),
        (({"head": 1.5},), {}, "The classes of 'head' can't be 1.5"),
        (("head", 1), {"start": "ones"}, "`start` can't be 'ones'"),
        (("head", 1), {"mass": 0}, "`mass` can't be 0"),
        (("head", 1), {"mass": 1.0}, "`mass` can't be 1.0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, options, text):
    with pytest.raises(GrowthError) as error:
        n2n.NewClasses(*arguments, **options)
    assert text in str(error.value)
