"""Training that was interrupted goes on: the growth log beside BackupAndRestore."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import weakref

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.training.resume import backup as resume
from tests.support.helpers import EAGERLY, array, cases, few, long_elsewhere
from tests.support.messages import assert_explained
from tests.training.test_scheduler import data

SCHEDULE = {
    1: n2n.Wider("fc", 9),
    2: [n2n.Wider("fc", 10, new_units="fresh"), n2n.Deeper("fc")],
    4: n2n.Wider("fc*", factor=1.5),
}


# Each growth is traced anew on TensorFlow, for longer than all the epochs take.


class Stop(Exception):
    """What ends a run at once, as a killed process ends."""


class At(keras.callbacks.Callback):
    """Stops a run at one moment: ("epoch", 2), ("end", 2) or ("batch", 2), the second of it."""

    def __init__(self, moment=None):
        super().__init__()
        self.moment, self.epoch = moment, -1
        self.losses: dict[int, float] = {}

    def stop_at(self, *moment):
        if moment == self.moment:
            raise Stop

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.stop_at("epoch", epoch)

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.stop_at("batch", self.epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.losses[epoch] = logs["loss"]
        self.stop_at("end", epoch)


def build(optimizer=None) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc")(x)
    x = layers.BatchNormalization(name="bn")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x), name="mlp")
    model.compile(optimizer or keras.optimizers.Adam(0.05), "mse", **EAGERLY)
    return model


def run(folder, moment=None, order=1, save_freq="epoch", build=build, epochs=6, **kwargs):
    """What a script does each time that it is started."""
    model, watch = build(), At(moment)
    growth = n2n.GrowthScheduler(
        SCHEDULE, **({"seed": 0, "verbose": 0, "log": folder / "growth.json"} | kwargs)
    )
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=save_freq)
    x, y = data()
    try:
        model.fit(
            x, y, batch_size=2, epochs=epochs, verbose=0, shuffle=False,
            callbacks=[*[growth, backup][::order], watch],
        )  # fmt: skip
    except Stop:
        assert moment is not None
    return model, growth, watch


def state(model):
    return [array(v).tolist() for v in (*model.variables, *model.optimizer.variables)]


def logged(folder):
    return json.loads((folder / "growth.json").read_text())["growths"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    model, _, watch = run(folder)
    return state(model), watch.losses, logged(folder)


MOMENTS = {
    "the log is ahead of the backup": [("epoch", 1), ("epoch", 2)],
    "within an epoch": [("end", 1), ("batch", 2), ("epoch", 4)],
    "no backup yet": [("epoch", 0)],
    "late": [("end", 4), ("epoch", 5)],
}


@pytest.mark.parametrize("order", [1, -1], ids=["growth first", "backup first"])
@pytest.mark.parametrize("moments", few(cases(MOMENTS), 1))
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, moments, order, whole):
    losses = {}
    for moment in [*moments, None]:
        model, growth, watch = run(tmp_path, moment, order)
        losses |= watch.losses
    assert state(model) == whole[0]
    assert losses == whole[1]
    assert logged(tmp_path) == whole[2]
    assert [report.epoch for report in growth.history] == [1, 2, 4]
    assert min(watch.losses) == moments[-1][1]


def test_a_growth_without_a_seed_happens_again_with_the_seed_of_the_first_time(tmp_path):
    run(tmp_path, ("epoch", 1), seed=None)
    ahead = logged(tmp_path)
    assert [growth["epoch"] for growth in ahead] == [1]
    run(tmp_path, ("end", 1), seed=None)
    assert logged(tmp_path) == ahead


WITHIN = {str(moment): moment for moment in [("batch", 2), ("epoch", 3), ("batch", 5)]}


@pytest.mark.parametrize("moment", few({name: (at,) for name, at in cases(WITHIN).items()}, 1))
def test_backups_within_an_epoch_have_its_growth_behind_them(tmp_path, moment, whole):
    run(tmp_path, moment, save_freq=2)
    # Killed again within the first epoch that it goes on with: Keras would forget the epoch.
    _, growth, watch = run(tmp_path, ("batch", moment[1]), save_freq=2)
    assert watch.epoch == moment[1]
    model, growth, watch = run(tmp_path, save_freq=2)
    assert min(watch.losses) == moment[1]
    assert max(watch.losses) == 5
    assert [report.epoch for report in growth.history] == [1, 2, 4]
    assert [np.shape(v) for v in state(model)] == [np.shape(v) for v in whole[0]]
    assert [growth["epoch"] for growth in logged(tmp_path)] == [1, 2, 4]


@long_elsewhere
def test_a_run_that_has_ended_starts_again_from_scratch(tmp_path, whole):
    for _ in range(2):
        model, growth, watch = run(tmp_path)
        assert sorted(watch.losses) == [0, 1, 2, 3, 4, 5]
        assert len(growth.history) == 3
        assert state(model) == whole[0]
        assert logged(tmp_path) == whole[2]


@long_elsewhere
def test_the_learning_rate_and_a_schedule_are_those_of_the_uninterrupted_run(tmp_path):
    def scheduled():
        rate = keras.optimizers.schedules.ExponentialDecay(0.05, 7, 0.5)
        return build(keras.optimizers.SGD(rate, momentum=0.9))

    for make in (build, scheduled):
        ends = []
        for moments in ([None], [("epoch", 2), ("epoch", 5), None]):
            folder = tmp_path / f"{make.__name__}{len(moments)}"
            for moment in moments:
                model, _, _ = run(folder, moment, build=make, learning_rate=0.5)
            ends.append((state(model), float(array(model.optimizer.learning_rate))))
        assert ends[0] == ends[1]
    assert logged(folder)[0]["learning_rate"] == 0.5


@long_elsewhere
def test_epochs_counted_across_fits_go_on_as_well(tmp_path, whole):
    run(tmp_path, ("epoch", 3), across_fits=True)
    model, growth, _ = run(tmp_path, across_fits=True)
    assert growth.epochs_seen == 6
    assert state(model) == whole[0]


def test_a_second_fit_in_the_same_process_goes_on_with_the_log(tmp_path):
    model, growth, _ = run(tmp_path, epochs=2)
    x, y = data()
    model.fit(x, y, initial_epoch=2, epochs=3, verbose=0, callbacks=[growth])
    assert [growth["epoch"] for growth in logged(tmp_path)] == [1, 2]
    assert [report.epoch for report in growth.history] == [1, 2]


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("double", [False, True], ids=["", "double"])
def test_a_backup_changes_as_a_whole_or_not_at_all(tmp_path, monkeypatch, step, double):
    """The saving is stopped at each of its writes to the file system."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    callback = keras.callbacks.BackupAndRestore(tmp_path / "backup", double_checkpoint=double)
    callback.set_model(model)
    backup = resume.Backup(callback)

    def save(value: int) -> None:
        model.set_weights([np.full((1, 1), value), np.zeros(1)])
        callback._current_epoch = value
        callback._save_model()

    save(1)
    moments = iter(range(100))

    def stopping(function):
        def call(*args, **kwargs):
            if next(moments) == step:
                raise Stop
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(os, name, stopping(getattr(os, name)))
        patch.setattr(json, "dumps", stopping(json.dumps))
        patch.setattr(resume, "sync_folder", stopping(resume.sync_folder))
        try:
            save(2)
        except Stop:
            stopped = True
        else:
            stopped = False
    assert stopped or not double
    backup.settle()
    model.load_weights(tmp_path / "backup" / "latest.weights.h5")
    value = int(model.get_weights()[0][0, 0])
    assert backup.state()[1] == value
    assert value == (1 if step < 3 else 2)
    left = {path.name for path in (tmp_path / "backup").iterdir()}
    files = {"latest.weights.h5", "training_metadata.json"}
    assert left in (files, files | {f"{name}.bkp" for name in files})


def test_a_backup_that_was_being_deleted_is_none(tmp_path):
    for name in ("latest.weights.h5", "training_metadata.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("{}")
        backup = resume.Backup(keras.callbacks.BackupAndRestore(folder))
        backup.settle()
        assert backup.state() is None
        assert not folder.exists()


def test_a_backup_of_another_run_is_an_error(tmp_path):
    run(tmp_path, ("epoch", 2))
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    model.save_weights(tmp_path / "backup" / "latest.weights.h5")
    log = (tmp_path / "growth.json").read_bytes()
    with pytest.raises(
        n2n.errors.LogError, match="knows no architecture with weights of its shapes"
    ):
        run(tmp_path)
    assert (tmp_path / "growth.json").read_bytes() == log


def test_a_model_that_grows_outside_of_the_log_is_an_error(tmp_path):
    class Other(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                n2n.grow(self.model, n2n.Wider("fc", 8), seed=0)

    model = build()
    growth = n2n.GrowthScheduler(SCHEDULE, log=tmp_path / "log", verbose=0)
    with pytest.raises(n2n.errors.LogError, match="has changed since the last growth") as caught:
        model.fit(*data(), epochs=2, verbose=0, callbacks=[Other(), growth])
    assert_explained(caught.value)
    assert growth.history == []


def test_a_log_needs_a_path_and_a_model_that_is_built():
    for path in (3, "gs://somewhere/log"):
        with pytest.raises(n2n.errors.LogError, match="can't be kept there") as caught:
            n2n.GrowthScheduler({}, log=path)
        assert_explained(caught.value)
    growth = n2n.GrowthScheduler({}, log="log")
    with pytest.raises(n2n.errors.LogError, match="it isn't built") as caught:
        growth.set_model(keras.Sequential([layers.Dense(1)]))
    assert_explained(caught.value)


def test_the_callback_does_not_keep_the_model_alive(tmp_path):
    model, growth = run(tmp_path, epochs=2)[:2]
    gone = weakref.ref(model)
    del model
    growth.set_model(None)
    growth.history.clear()
    gc.collect()
    assert gone() is None


@long_elsewhere
def test_the_logs_of_a_resumed_epoch_name_the_growth_that_the_backup_has_behind_it(tmp_path):
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen[epoch] = (logs["growth"], logs["params"])

    def again(moment):
        model = build()
        growth = n2n.GrowthScheduler(SCHEDULE, seed=0, verbose=0, log=tmp_path / "growth.json")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=1)
        with contextlib.suppress(Stop):
            model.fit(
                *data(), batch_size=2, epochs=4, verbose=0,
                callbacks=[growth, backup, Look(), At(moment)],
            )  # fmt: skip
        return model, growth

    again(("batch", 2))
    assert [*seen] == [0, 1]
    model, growth = again(None)
    assert [*seen] == [0, 1, 2, 3]
    assert [event for event, _ in seen.values()] == [0, 1, 1, 0]
    assert seen[3][1] == model.count_params()
    assert [report.epoch for report in growth.history] == [1, 2]


def test_best_weights_of_another_model_are_no_hindrance(tmp_path):
    stopping = keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)
    schedule = {1: n2n.Wider("fc", 9), 2: n2n.Wider("fc", 12)}

    def fit(moment=None):
        model = build()
        growth = n2n.GrowthScheduler(schedule, seed=0, verbose=0, log=tmp_path / "growth.json")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        with contextlib.suppress(Stop):
            model.fit(
                *data(), batch_size=2, epochs=4, verbose=0,
                callbacks=[stopping, backup, growth, At(moment)],
            )  # fmt: skip
        return model

    fit(("batch", 2))
    small = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()])
    small.add(layers.Dense(2))
    small.compile("sgd", "mse", **EAGERLY)
    small.fit(*data(), verbose=0, callbacks=[stopping])
    assert stopping.best_weights[0].shape == (4, 3)
    model = fit()
    assert [w.shape for w in stopping.best_weights] == [tuple(w.shape) for w in model.weights]
