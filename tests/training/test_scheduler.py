"""GrowthScheduler: growth inside `fit`, at the right moment, once, and visible."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import FixedWidthError, GrowthError, SizeError
from tests.support.helpers import EAGERLY, array, randomize
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state


def mlp(optimizer=None, **kwargs) -> keras.Model:
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name="mlp"))
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse", **(EAGERLY | kwargs))
    return model


def data(n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return tuple(random.standard_normal((n, k)).astype("float32") for k in (4, 2))


def size(units: int, inserted: int = 0) -> int:
    """The number of parameters of the model at a width, by hand."""
    return 5 * units + inserted * units * (units + 1) + 2 * units + 2


class Watch(keras.callbacks.Callback):
    """Notes the model's size at every batch, and its loss around each epoch's begin."""

    def __init__(self, x=None, y=None):
        super().__init__()
        self.sizes: list[tuple[int, int, int]] = []
        self.epoch = -1
        self.batch = (x, y)
        self.losses: list[float] = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if self.batch[0] is not None:
            self.losses.append(loss_of(self.model, *self.batch))

    def on_train_batch_begin(self, batch, logs=None):
        self.sizes.append((self.epoch, batch, self.model.count_params()))

    @property
    def by_epoch(self) -> dict[int, set[int]]:
        return {epoch: {s for e, _, s in self.sizes if e == epoch} for epoch, _, _ in self.sizes}


def loss_of(model: keras.Model, x, y) -> float:
    return float(np.mean((array(model(x, training=True)) - y) ** 2))


def fit(model: keras.Model, *callbacks, **kwargs):
    x, y = data()
    kwargs = {"batch_size": 4, "epochs": 3, "verbose": 0} | kwargs
    return model.fit(x, y, callbacks=list(callbacks), **kwargs)


SCHEDULE = {1: n2n.Wider("fc", 9), 2: [n2n.Wider("fc", 10), n2n.Deeper("fc")]}
SIZES = {0: {size(6)}, 1: {size(9)}, 2: {size(10, 1)}}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"validation_split": 0.5},
        {"validation_data": data(4), "validation_freq": 2},
        {"shuffle": False, "batch_size": 3},
    ],
    ids=["plain", "split", "validation data", "three batches"],
)
def test_growth_happens_before_the_first_batch_of_its_epoch(kwargs):
    model, watch = mlp(), Watch()
    growth = n2n.GrowthScheduler(SCHEDULE, seed=0, verbose=0)
    history = fit(model, growth, watch, **kwargs)
    assert watch.by_epoch == SIZES
    assert [report.epoch for report in growth.history] == [1, 2]
    assert [report.parameters_after for report in growth.history] == [size(9), size(10, 1)]
    assert [r.operations for r in growth.history] == [(SCHEDULE[1],), tuple(SCHEDULE[2])]
    assert all(report.difference < 1e-6 for report in growth.history)
    assert len(history.history["loss"]) == 3
    assert np.all(np.isfinite(history.history["loss"]))
    if "validation_split" in kwargs:
        assert np.all(np.isfinite(history.history["val_loss"]))


def test_the_moment_of_growth_is_the_same_wherever_the_callback_stands():
    for order in (1, -1):
        model, watch = mlp(), Watch()
        fit(model, *[n2n.GrowthScheduler(SCHEDULE, seed=0, verbose=0), watch][::order])
        assert watch.by_epoch == SIZES


def batches():
    x, y = data()
    for _ in range(6):
        yield x[:4], y[:4]


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        x, y = data()
        return x[4 * index : 4 * index + 4], y[4 * index : 4 * index + 4]


def tensorflow_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(data()).batch(4)


@pytest.mark.parametrize("make", [batches, Sequence, tensorflow_data])
def test_growth_works_whatever_the_data_come_from(make):
    model, watch = mlp(), Watch()
    kwargs = {"steps_per_epoch": 2} if make is batches else {}
    kwargs["shuffle"] = make is Sequence
    growth = n2n.GrowthScheduler(SCHEDULE, seed=0, verbose=0)
    model.fit(make(), epochs=3, verbose=0, callbacks=[growth, watch], **kwargs)
    assert watch.by_epoch == SIZES
    assert len(watch.sizes) == 6


def test_growth_can_happen_before_the_very_first_epoch():
    model, watch = mlp(), Watch()
    growth = n2n.GrowthScheduler({0: n2n.Wider("fc", 9)}, seed=0, verbose=0)
    fit(model, growth, watch, epochs=2)
    assert watch.by_epoch == {0: {size(9)}, 1: {size(9)}}
    assert growth.history[0].epoch == 0


def test_epochs_count_from_the_initial_epoch_as_keras_counts():
    model, watch = mlp(), Watch()
    schedule = {1: n2n.Wider("fc", 20), 5: n2n.Wider("fc", 9), 7: n2n.Wider("fc", 30)}
    growth = n2n.GrowthScheduler(schedule, seed=0, verbose=0)
    fit(model, growth, watch, initial_epoch=4, epochs=7)
    assert watch.by_epoch == {4: {size(6)}, 5: {size(9)}, 6: {size(9)}}
    assert [report.epoch for report in growth.history] == [5]


def test_a_schedule_may_be_a_function_of_the_epoch_and_the_model():
    seen = []

    def schedule(epoch, model):
        seen.append((epoch, model))
        if model.get_layer("fc").units < 9:
            return n2n.Wider("fc", factor=1.2)
        return [n2n.Deeper("fc")] if epoch == 4 else None

    model, watch = mlp(), Watch()
    growth = n2n.GrowthScheduler(schedule, seed=0, verbose=0)
    fit(model, growth, watch, epochs=5)
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 4]
    assert all(each is model for _, each in seen)
    # 6 * 1.2 = 7.2, 7 * 1.2 = 8.4, 8 * 1.2 = 9.6
    sizes = [size(7), size(8), size(10), size(10), size(10, 1)]
    assert watch.by_epoch == {epoch: {each} for epoch, each in enumerate(sizes)}
    assert [report.epoch for report in growth.history] == [0, 1, 2, 4]


@pytest.mark.parametrize("wrong", ["fc", 3, [], ["fc"]])
def test_a_function_that_returns_no_operation_is_an_error(wrong):
    model = mlp()
    before = state(model)
    growth = n2n.GrowthScheduler(lambda epoch, model: wrong, verbose=0)
    growth.set_model(model)
    with pytest.raises(GrowthError) as caught:
        growth.on_epoch_begin(0)
    assert_explained(caught.value, "an operation, or a list of operations")
    assert_state(model, before)


# -- the training goes on ----------------------------------------------------------------------


def test_the_loss_in_fit_does_not_jump():
    x, y = data()
    model, before, after = mlp(), Watch(x, y), Watch(x, y)
    growth = n2n.GrowthScheduler(SCHEDULE, seed=0, verbose=0)
    fit(model, before, growth, after)
    assert len(before.losses) == len(after.losses) == 3
    for old, new in zip(before.losses, after.losses, strict=True):
        assert abs(new - old) < 1e-6
    assert before.losses[0] > before.losses[1] > before.losses[2]  # and it trains meanwhile


def test_the_first_batch_after_a_growth_has_the_loss_that_it_would_have_had():
    """Two fits of the same data, in one of which the model grows before the second epoch."""
    logs = {}
    for grows in (False, True):
        model = mlp()

        class First(keras.callbacks.Callback):
            def __init__(self):
                super().__init__()
                self.losses = []

            def on_train_batch_end(self, batch, logs=None):
                self.losses.append((batch, logs["loss"], logs["mae"]))

        first = First()
        model.compile("sgd", "mse", metrics=["mae"], **EAGERLY)
        growth = n2n.GrowthScheduler({1: SCHEDULE[2]} if grows else {}, seed=0, verbose=0)
        fit(model, growth, first, epochs=2, shuffle=False)
        logs[grows] = first.losses
    for plain, grown in zip(logs[False][:3], logs[True][:3], strict=True):
        assert np.max(np.abs(np.array(plain) - np.array(grown))) < 1e-6


def test_the_arguments_of_grow_are_passed_on():
    model = mlp(keras.optimizers.SGD(0.5))
    x, _ = data()
    growth = n2n.GrowthScheduler(
        SCHEDULE, seed=3, optimizer_state="reset", learning_rate=0.1, verify=x, verbose=0
    )
    fit(model, growth, epochs=3)
    assert abs(float(array(model.optimizer.learning_rate)) - 0.005) < 1e-8
    assert {report.plan.seed for report in growth.history} == {3}
    assert all(report.difference is not None for report in growth.history)
    unverified = n2n.GrowthScheduler({0: n2n.Wider("fc", 12)}, verify=False, verbose=0)
    fit(model, unverified, epochs=1)
    assert unverified.history[0].difference is None


def test_an_error_stops_the_fit_before_anything_has_changed():
    model = mlp()
    fit(model, epochs=1)
    before = state(model)
    x, y = data()
    growth = n2n.GrowthScheduler({0: n2n.Wider("out", 9)}, verbose=0)
    with pytest.raises(FixedWidthError):
        model.fit(x, y, epochs=1, verbose=0, callbacks=[growth])
    assert [bits for _, _, bits in state(model)["weights"]] == [b for *_, b in before["weights"]]
    assert growth.history == []
    fit(model, epochs=1)


# -- several fits --------------------------------------------------------------------------------


def test_each_fit_counts_its_own_epochs():
    model, watch = mlp(), Watch()
    growth = n2n.GrowthScheduler({1: n2n.Wider("fc", factor=1.5)}, seed=0, verbose=0)
    for units in (9, 14):
        fit(model, growth, watch, epochs=2)
        assert model.count_params() == size(units)
    assert [report.epoch for report in growth.history] == [1, 1]
    fit(model, growth, epochs=1)
    assert len(growth.history) == 2


def test_across_fits_the_epochs_count_on_and_each_growth_happens_once():
    model, watch = mlp(), Watch()
    schedule = {0: n2n.Wider("fc", 7), 3: n2n.Wider("fc", 9), 4: n2n.Deeper("fc")}
    growth = n2n.GrowthScheduler(schedule, seed=0, across_fits=True, verbose=0)
    sizes = []
    for _ in range(3):  # data that arrives in parts: epochs 0, 1; 2, 3; 4, 5
        fit(model, growth, watch, epochs=2)
        sizes += [watch.by_epoch[epoch] for epoch in (0, 1)]
        watch.sizes.clear()
    assert sizes == [{size(7)}] * 3 + [{size(9)}] + [{size(9, 1)}] * 2
    assert [report.epoch for report in growth.history] == [0, 3, 4]


def test_one_callback_serves_two_models():
    growth = n2n.GrowthScheduler({0: n2n.Wider("fc", 9)}, seed=0, verbose=0)
    for _ in range(2):
        model = mlp()
        fit(model, growth, epochs=1)
        assert model.count_params() == size(9)
    assert len(growth.history) == 2


def test_a_growth_that_is_done_already_is_no_error():
    model = mlp()
    growth = n2n.GrowthScheduler({0: n2n.Wider("fc", 9)}, seed=0, verbose=0)
    fit(model, growth, epochs=1)
    fit(model, growth, epochs=1)
    assert model.count_params() == size(9)
    assert [report.plan.empty for report in growth.history] == [False, True]


# -- what is printed -------------------------------------------------------------------------------

LINE = re.compile(
    r"Growth before epoch (\d+): .+ \| ([\d,]+) -> ([\d,]+) parameters, \d+\.\d\d s, "
    r"largest difference \d\.\de[-+]\d\d"
)


def test_each_growth_prints_one_line_of_its_own(capsys):
    model = mlp()
    fit(model, n2n.GrowthScheduler(SCHEDULE, seed=0), verbose=2)
    lines = capsys.readouterr().out.splitlines()
    found = [LINE.fullmatch(line) for line in lines if "Growth" in line]
    assert [match.groups() for match in found] == [
        ("2", str(size(6)), str(size(9))),
        ("3", str(size(9)), str(size(10, 1))),
    ]
    assert "fc 9 -> 10; inserted fc_deeper_1" in next(line for line in lines if "epoch 3" in line)
    # Each stands right before the line with which Keras begins its epoch.
    at = [i for i, line in enumerate(lines) if "Growth" in line]
    assert [lines[i + 1].strip() for i in at] == ["Epoch 2/3", "Epoch 3/3"]


def test_the_progress_bar_is_not_broken(capsys):
    fit(mlp(), n2n.GrowthScheduler(SCHEDULE, seed=0), verbose=1)
    text = capsys.readouterr().out
    for line in text.splitlines():
        if "Growth" in line:
            assert LINE.fullmatch(line)
    plain = re.sub(r"\x1b\[[0-9;]*m|\x08", "", text)
    assert plain.count("Growth") == 2
    assert plain.count("2/2") >= 3  # every epoch's bar reached its end


def test_nothing_is_printed_when_asked_for_silence(capsys):
    fit(mlp(), n2n.GrowthScheduler(SCHEDULE, seed=0, verbose=0))
    assert capsys.readouterr().out == ""


def test_what_a_reader_should_know_is_printed_below(capsys):
    growth = n2n.GrowthScheduler({0: n2n.Wider("fc", 9, noise=0.1)}, seed=0)
    fit(mlp(), growth, epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Growth before epoch 1: fc 6 -> 9 | ")
    assert re.search(r"largest difference [\d.e+-]+$", lines[0])
    assert lines[1:] == [f"  note: {note}" for note in growth.history[0].notes]
    assert len(lines) == 2


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", True, None])
def test_an_epoch_that_is_none_is_an_error(epoch):
    with pytest.raises(SizeError) as caught:
        n2n.GrowthScheduler({epoch: n2n.Wider("fc", 9)})
    parts = assert_explained(
        caught.value, f"An epoch of the schedule can't be {epoch!r}", "at least 0"
    )
    assert "Wider('fc', units=9)" in parts["received"]
    assert "units" not in parts["why"]


@pytest.mark.parametrize("wrong", ["fc", None, [], [n2n.Deeper("fc"), 3], {}])
def test_something_in_a_schedule_that_is_no_operation_is_an_error(wrong):
    with pytest.raises(GrowthError) as caught:
        n2n.GrowthScheduler({1: wrong})
    assert_explained(caught.value, "an operation, or a list of operations, is needed")


@pytest.mark.parametrize("wrong", [None, 3, "fc", [n2n.Wider("fc", 9)], n2n.Wider("fc", 9)])
def test_a_schedule_that_is_neither_a_dict_nor_a_function_is_an_error(wrong):
    with pytest.raises(GrowthError) as caught:
        n2n.GrowthScheduler(wrong)
    assert_explained(caught.value, "a dict from epochs to operations, or a callable", repr(wrong))


def test_a_schedule_given_to_the_callback_can_change_later():
    schedule = {1: n2n.Wider("fc", 9)}
    growth = n2n.GrowthScheduler(schedule, seed=0, verbose=0)
    schedule.clear()
    model = mlp()
    fit(model, growth, epochs=2)
    assert model.count_params() == size(9)


def test_epochs_may_be_integers_of_numpy():
    model = mlp()
    growth = n2n.GrowthScheduler({np.int64(1): n2n.Wider("fc", 9)}, seed=0, verbose=0)
    fit(model, growth, epochs=2)
    assert model.count_params() == size(9)


def test_other_callbacks_work_beside_it(tmp_path):
    model = mlp(keras.optimizers.Adam(0.01))
    path = tmp_path / "best.keras"
    history = fit(
        model,
        n2n.GrowthScheduler(SCHEDULE, seed=0, verbose=0, learning_rate=0.5),
        keras.callbacks.ModelCheckpoint(str(path), monitor="loss", save_best_only=False),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate),
        keras.callbacks.TerminateOnNaN(),
        epochs=3,
    )
    rates = history.history["learning_rate"]
    assert np.max(np.abs(np.array(rates) - [0.01, 0.005, 0.0025])) < 1e-8
    loaded = keras.models.load_model(path)
    assert loaded.count_params() == size(10, 1)
    x, y = data()
    assert abs(loss_of(loaded, x, y) - loss_of(model, x, y)) < 1e-6
