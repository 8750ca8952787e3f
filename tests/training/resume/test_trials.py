"""Interrupted training goes on: `GrowOnPlateau` with a log, and logs that callbacks share."""

from __future__ import annotations

import json
import os

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import LogError
from keras_net2net.training.resume import log as growth_log
from keras_net2net.training.resume import recorder as resume
from keras_net2net.training.resume.architecture import architecture
from keras_net2net.training.resume.log import GrowthLog, LoggedUndoing, Watch
from tests.scenarios.test_callbacks_of_keras import Metric, stopping
from tests.support.helpers import (
    BACKEND,
    array,
    cases,
    few,
    long_elsewhere,
    max_difference,
    outputs,
)
from tests.support.messages import assert_explained
from tests.training.resume.test_backup import At, Stop, build, state
from tests.training.test_scheduler import data

# With `revert` and a patience of one epoch: grown before epoch 2, undone and grown before
# epoch 3, which pays; grown before epoch 5; undone and grown before epochs 6 and 7.
VALUES = [5, 5, 5, 4, 4, 4, 4, 4]
REVERTED = [2, -3, 3, 5, -6, 6, -7, 7]
GROWTHS = [
    n2n.Wider("fc", factor=1.5),
    [n2n.Wider("fc", factor=1.2, new_units="fresh"), n2n.Deeper("fc")],
]


def plateau(folder, operations=GROWTHS, **kwargs) -> n2n.GrowOnPlateau:
    given = {"monitor": "metric", "mode": "min", "patience": 1, "cycle": True} | kwargs
    return n2n.GrowOnPlateau(
        operations, **({"seed": 0, "verbose": 0, "log": folder / "growth.json"} | given)
    )


KINDS = {
    "revert": lambda folder: [plateau(folder, revert=True)],
    "same sizes": lambda folder: [plateau(folder, GROWTHS[:1], revert=True)],
    "stays": lambda folder: [plateau(folder, cooldown=1, optimizer_state="carry")],
    "limits": lambda folder: [plateau(folder, revert=True, max_growths=3, max_params=400)],
    "shared": lambda folder: [
        n2n.GrowthScheduler(
            {1: n2n.Wider("fc", 7), 6: n2n.Deeper("fc")},
            seed=0, log=folder / "growth.json", verbose=0,
        ),
        plateau(folder, revert=True, patience=2),
    ],
    "two": lambda folder: [
        plateau(folder, revert=True, patience=2),
        plateau(folder, n2n.Wider("fc", factor=1.2), monitor="loss", min_delta=0.1, seed=1),
    ],
}  # fmt: skip


def optimizer() -> keras.optimizers.Optimizer:
    """One that has averages, and a schedule that a growth changes."""
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 7, 0.5)
    return keras.optimizers.Adam(rate, use_ema=True)


def run(folder, kind="revert", moment=None, place=0, save_freq="epoch", values=VALUES, **kwargs):
    """What a script does each time that it is started; the backup stands at `place`."""
    growing = KINDS[kind](folder) if isinstance(kind, str) else kind
    model, watch = build(kwargs.pop("optimizer", None)), At(moment)
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=save_freq, **kwargs)
    callbacks = [Metric(*values), *growing, watch]
    callbacks.insert(place % (len(growing) + 1) + 1, backup)
    x, y = data()
    try:
        model.fit(
            x, y, batch_size=2, epochs=len(values), verbose=0, shuffle=False, callbacks=callbacks
        )  # fmt: skip
    except Stop:
        stopped = True
    else:
        stopped = False
    return model, growing, watch, stopped


def content(folder):
    return json.loads((folder / "growth.json").read_text())


def events(folder) -> list[int]:
    entries = content(folder)["growths"]
    return [-one["epoch"] if "undone" in one else one["epoch"] for one in entries]


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, by kind."""
    known = {}

    def get(kind, **kwargs):
        if kind not in known:
            folder = tmp_path_factory.mktemp("whole")
            model, _, watch, _ = run(folder, kind, **kwargs)
            known[kind] = state(model), watch.losses, content(folder), left(folder)
        return known[kind]

    return get


def assert_ends_alike(folder, kind, model, losses, whole, **kwargs):
    expected = whole(kind, **kwargs)
    assert content(folder)["growths"] == expected[2]["growths"]
    assert losses.items() <= expected[1].items()
    assert state(model) == expected[0]
    assert content(folder) == expected[2]
    assert left(folder) == expected[3] == ["growth.json"]


# The place of the backup among the growing callbacks, and when runs are interrupted.
MOMENTS = {
    "ends of epochs": (0, [("end", 1), ("end", 2), ("end", 4), ("end", 5), ("end", 7)]),
    "within epochs": (1, [("batch", 0), ("batch", 2), ("batch", 3), ("epoch", 5), ("batch", 6)]),
    "again and again": (-1, [("epoch", 2), ("epoch", 2), ("batch", 5), ("batch", 5)]),
}


@pytest.mark.parametrize(("place", "moments"), few(cases(MOMENTS), 1))
@pytest.mark.parametrize("kind", few(list(cases(KINDS)), 1))
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, kind, moments, place, whole):
    losses = {}
    for moment in [*moments, None]:
        model, _, watch, stopped = run(tmp_path, kind, moment, place)
        assert stopped == (moment is not None)
        losses |= watch.losses
    assert_ends_alike(tmp_path, kind, model, losses, whole)
    assert sorted(losses) == list(range(8))


def test_the_uninterrupted_runs_are_what_they_should_be(whole):
    assert [
        -one["epoch"] if "undone" in one else one["epoch"] for one in whole("revert")[2]["growths"]
    ] == REVERTED
    last = whole("revert")[2]["moments"]
    assert [(one["epoch"], one["begun"], one["growths"]) for one in last] == [(8, False, 8)]
    assert last[0]["callbacks"] == {
        "GrowOnPlateau": {
            "best": 4.0, "wait": 1, "cooldown_left": 0, "position": 5, "growths": 5, "due": True,
            "finished": False, "trial": None,
        }
    }  # fmt: skip


def test_the_optimizer_is_that_of_the_moment_of_the_growth_when_it_is_undone(tmp_path, whole):
    """With averages, a schedule and another rate after each growth."""

    def growing(folder):
        return [plateau(folder, revert=True, learning_rate=0.5)]

    folders = [tmp_path / "whole", tmp_path / "killed"]
    ends = []
    for folder, moments in zip(folders, ([None], [("end", 2), ("epoch", 7), None]), strict=True):
        folder.mkdir()
        for moment in moments:
            model, *_ = run(folder, growing(folder), moment, optimizer=optimizer())
        rate = float(array(model.optimizer.learning_rate))
        ends.append((state(model), rate, content(folder), events(folder)))
    assert ends[0] == ends[1]
    assert ends[0][3] == REVERTED
    iterations = int(array(model.optimizer.iterations))
    assert iterations == 4 * (len(VALUES) - 3)  # three epochs were undone
    # Two growths are left, each of which has halved the rate.
    assert rate == pytest.approx(0.05 * 0.5 ** (iterations / 7) * 0.5**2, rel=1e-5)


STEPS = {f"kind {kind}, backup at {place}": (kind, place) for kind, place in (
    ("revert", 0), ("shared", 1), ("revert", 1), ("two", 2), ("same sizes", 0), ("stays", 0),
)}  # fmt: skip


@pytest.mark.parametrize(("kind", "place"), few(cases(STEPS), 1))
def test_a_run_that_is_stopped_at_any_of_its_writes_ends_alike(
    tmp_path, monkeypatch, kind, place, whole
):
    """At each renaming of a file, and at each removal."""
    number = 0
    every = {"torch": 11, "tensorflow": 23, "jax": 37}[BACKEND]
    first = {name: i for i, name in enumerate(KINDS)}[kind] + place
    for step in range(first, 1000, every):
        folder = tmp_path / f"{step}"
        folder.mkdir()
        moments = iter(range(10_000))

        def stopping_at(function, moments=moments, step=step):
            def call(*args, **kwargs):
                if next(moments) == step:
                    raise Stop
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "unlink"):
                patch.setattr(os, name, stopping_at(getattr(os, name)))
            _, _, watch, stopped = run(folder, kind, place=place)
        if not stopped:
            break
        number += 1
        losses = watch.losses
        model, _, watch, _ = run(folder, kind, place=place)
        assert_ends_alike(folder, kind, model, losses | watch.losses, whole)
    assert number >= 30 // every


@long_elsewhere
def test_a_run_that_has_ended_starts_again_from_scratch(tmp_path, whole):
    for _ in range(2):
        model, growing, watch, _ = run(tmp_path)
        assert_ends_alike(tmp_path, "revert", model, watch.losses, whole)
        assert len(growing[0].history) == 5


WITHIN = {str(moment): moment for moment in [("batch", 3), ("batch", 7), ("epoch", 6)]}


@pytest.mark.parametrize("moment", few({name: (at,) for name, at in cases(WITHIN).items()}, 1))
def test_backups_within_an_epoch_have_its_growths_behind_them(tmp_path, moment):
    run(tmp_path, moment=moment, save_freq=1)
    before = events(tmp_path)
    _, growing, watch, _ = run(tmp_path, moment=("batch", moment[1]), save_freq=1)
    assert watch.epoch == moment[1]
    assert events(tmp_path) == before
    _, growing, watch, _ = run(tmp_path, save_freq=1)
    assert events(tmp_path) == REVERTED
    assert min(watch.losses) == moment[1]
    assert max(watch.losses) == 7
    assert growing[0]._watch().wait == 1
    assert left(tmp_path) == ["growth.json"]


@long_elsewhere
def test_the_history_holds_the_growths_that_the_model_has(tmp_path):
    run(tmp_path, moment=("end", 5))
    _, (growth,), _, _ = run(tmp_path)
    # Those before epochs 3 and 5 were done again, and the latter was on trial.
    assert [(one.epoch, one.undone) for one in growth.history] == [
        (3, None), (5, 6), (6, 7), (7, None),
    ]  # fmt: skip
    assert growth.max_growths is None
    assert growth._watch().growths == 5


def test_what_early_stopping_holds_is_undone_in_a_run_that_goes_on(tmp_path):
    """It has begun anew, and was best while the growth was on trial."""
    stop = stopping(monitor="other")
    values = [5] * 6
    growing = [plateau(tmp_path, n2n.Wider("fc", 9), revert=True, cycle=False, patience=2)]
    other = Metric(9.0, 9.0, 9.0, 1.0, 2.0, 8.0, name="other")
    run(tmp_path, [*growing, other, stop], ("end", 3), values=values)
    growing = [plateau(tmp_path, n2n.Wider("fc", 9), revert=True, cycle=False, patience=2)]
    stop = stopping(monitor="other")
    model, *_ = run(tmp_path, [other, *growing, stop], values=values)
    assert events(tmp_path) == [3, -5]
    assert stop.best == 8.0
    assert [w.shape for w in stop.best_weights] == [tuple(w.shape) for w in model.weights]


@long_elsewhere
def test_a_fit_that_was_interrupted_in_the_same_process_goes_on(tmp_path, whole):
    """As one does in a notebook: the model, and the trial, are there still."""
    (growth,) = KINDS["revert"](tmp_path)
    model, watch = build(), At(("batch", 5))
    x, y = data()
    for moment in (("batch", 5), None):
        watch.moment = moment
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [Metric(*VALUES), growth, backup, watch]
        try:
            model.fit(
                x, y, batch_size=2, epochs=8, verbose=0, shuffle=False, callbacks=callbacks
            )  # fmt: skip
        except Stop:
            # The backup is from before the growth, which Keras couldn't load.
            (tmp_path / "backup" / "latest.weights.h5").unlink()
            (tmp_path / "backup" / "training_metadata.json").unlink()
    assert events(tmp_path)[:4] == REVERTED[:4]


# -- without a backup --------------------------------------------------------------


def checkpointed(folder, initial=0, epochs=8, before=lambda model: None):
    """A run that saves each epoch by itself, as with `ModelCheckpoint`."""
    model = build()
    before(model)
    (growth,) = KINDS["stays"](folder)
    save = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.save_weights(folder / f"{epoch}.weights.h5")
    )
    x, y = data()
    model.fit(
        x, y, batch_size=2, initial_epoch=initial, epochs=epochs, verbose=0, shuffle=False,
        callbacks=[Metric(*VALUES), growth, save],
    )  # fmt: skip
    return model, growth


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("way", ["load_model", "replay"])
def test_orbax_checkpoint_goes_on(tmp_path, way):
    pytest.importorskip("orbax.checkpoint")
    if not hasattr(keras.callbacks, "OrbaxCheckpoint"):
        pytest.skip("this Keras has no OrbaxCheckpoint")

    def start(folder, moment=None):
        # Orbax finds the state of an optimizer by its name, which a new process makes up alike.
        model, initial = build(keras.optimizers.Adam(0.05, name="adam")), 0
        steps = [int(one.name) for one in folder.glob("orbax/*") if one.name.isdigit()]
        if steps and way == "load_model":
            model = keras.models.load_model(str(folder / "orbax"))
        elif steps:
            n2n.replay(model, folder / "growth.json", epoch=max(steps))
            model.optimizer.build(model.trainable_variables)
            model.load_weights(str(folder / "orbax"))
        if steps:
            initial = max(steps) + 1
        keep = keras.callbacks.OrbaxCheckpoint(str(folder / "orbax"), save_on_background=False)
        callbacks = [Metric(*VALUES), *KINDS["stays"](folder), keep, At(moment)]
        x, y = data()
        try:
            model.fit(
                x, y, batch_size=2, initial_epoch=initial, epochs=8, verbose=0, shuffle=False,
                callbacks=callbacks,
            )  # fmt: skip
        except Stop:
            keep.on_train_end()
        return model, initial

    folders = [tmp_path / "whole", tmp_path / "stopped"]
    expected, _ = start(folders[0])
    for moment, goes_on_at in ((("end", 2), 0), (("epoch", 5), 3), (("batch", 7), 5), (None, 7)):
        model, initial = start(folders[1], moment)
        assert initial == goes_on_at
    assert state(model) == state(expected)
    assert content(folders[1]) == content(folders[0])


@long_elsewhere
@pytest.mark.parametrize("epoch", [2, 4, 5])
def test_replay_to_an_epoch_and_a_checkpoint_of_it_go_on_alike(tmp_path, epoch):
    first, growth = checkpointed(tmp_path)
    assert [report.epoch for report in growth.history] == [2, 5, 7]
    expected, log = state(first), content(tmp_path)

    def restore(model):
        n2n.replay(model, tmp_path / "growth.json", epoch=epoch)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(tmp_path / f"{epoch}.weights.h5")

    model, growth = checkpointed(tmp_path, initial=epoch + 1, before=restore)
    assert state(model) == expected
    assert content(tmp_path)["growths"] == log["growths"]
    assert content(tmp_path)["moments"] == log["moments"]
    assert growth._watch() == Watch(4.0, 0, 0, 3, 3, False, False)


@long_elsewhere
def test_the_growths_of_a_callback_that_starts_at_the_first_epoch_start_at_the_first(tmp_path):
    checkpointed(tmp_path)
    before = content(tmp_path)
    _, growth = checkpointed(tmp_path)
    assert [report.epoch for report in growth.history] == [2, 5, 7]
    assert content(tmp_path) == before


# -- the log -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed in epoch 6, while the growth before it was on trial."""
    folder = tmp_path_factory.mktemp("stopped")
    run(folder, moment=("end", 6))
    return folder


@long_elsewhere
def test_the_log_says_where_the_run_was(stopped):
    log = content(stopped)
    assert log["version"] == 2
    assert events(stopped) == REVERTED[:6]
    assert [one["by"] for one in log["growths"]] == ["GrowOnPlateau"] * 6
    undone = log["growths"][4]
    assert sorted(undone) == ["after", "by", "epoch", "undone"]
    assert undone["after"] == log["growths"][2]["after"]
    read = GrowthLog.read(stopped / "growth.json")
    assert isinstance(read.growths[1], LoggedUndoing)
    assert list(read.behind()) == [2, 5]
    assert list(read.behind(4)) == [2, 3]
    moments = [(m.epoch, m.begun, m.stage, m.watches["GrowOnPlateau"]) for m in read.moments]
    assert moments[-1] == (7, False, 6, Watch(4.0, 1, 0, 4, 4, True, False, trial=6))
    # A backup is of epoch 6 or, once it is written, of epoch 7; the one before is kept as well.
    assert [moment[:2] for moment in moments] == [(5, False), (6, False), (7, False)]
    # The values of what may be undone, of these moments.
    assert left(stopped) == ["backup", "growth.json", "growth.json.trial-4.npz",
                             "growth.json.trial-6.npz"]  # fmt: skip


def test_replay_leaves_out_what_was_undone(stopped, tmp_path):
    path = stopped / "growth.json"
    log = GrowthLog.read(path)
    model = build()
    before = outputs(model, data()[0])
    reports = n2n.replay(model, path)
    assert [report.epoch for report in reports] == [3, 6]
    assert architecture(model) == log.stages[-1]
    assert max_difference(outputs(model, data()[0]), before) < 1e-5
    # As of the end of each epoch, growths that were on trial then included.
    for epoch, stage in ((0, 0), (1, 0), (2, 1), (3, 3), (4, 3), (5, 4), (6, 6), (9, 6)):
        model = build()
        n2n.replay(model, path, epoch=epoch)
        assert architecture(model) == log.stages[stage], epoch
    with pytest.raises(n2n.errors.SizeError, match="The epoch can't be -1"):
        n2n.replay(model, path, epoch=-1)


def test_a_growth_that_was_undone_can_not_be_by_replay(stopped, tmp_path):
    path = stopped / "growth.json"
    model = build()
    n2n.replay(model, path, epoch=2)
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "trial.weights.h5")
    was = state(model)
    for attempt in (
        lambda: n2n.replay(model, path),
        lambda: n2n.upgrade_weights(
            tmp_path / "trial.weights.h5", build, path, tmp_path / "new.weights.h5"
        ),
    ):
        with pytest.raises(LogError, match="growth 1 of the log behind it, which was undone"):
            attempt()
    assert state(model) == was
    assert left(tmp_path) == ["trial.weights.h5"]


def test_upgraded_weights_are_without_what_was_undone(stopped, tmp_path):
    model = build()
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "old.weights.h5")
    args = stopped / "growth.json", tmp_path / "new.weights.h5"
    new = n2n.upgrade_weights(tmp_path / "old.weights.h5", build, *args)
    assert architecture(new) == GrowthLog.read(args[0]).stages[-1]
    assert max_difference(outputs(new, data()[0]), outputs(model, data()[0])) < 1e-5


@long_elsewhere
def test_a_log_of_the_first_version_is_read(tmp_path):
    growth = n2n.GrowthScheduler(
        {1: n2n.Wider("fc", 9)}, seed=0, log=tmp_path / "growth.json", verbose=0
    )
    run(tmp_path, [growth], ("end", 3))
    log = content(tmp_path)
    assert log["moments"] == []
    del log["moments"], log["growths"][0]["by"]
    (tmp_path / "growth.json").write_text(json.dumps(log | {"version": 1}))
    assert [report.epoch for report in n2n.replay(build(), tmp_path / "growth.json")] == [1]
    # Even by a callback of another kind, which begins anew.
    _, (growth,), watch, _ = run(tmp_path)
    assert min(watch.losses) == 4
    assert [report.epoch for report in growth.history][:2] == [1, 6]


def changed(folder, change) -> bytes:
    log = content(folder)
    change(log)
    return json.dumps(log).encode()


def _set(*path, to):
    def change(log):
        for key in path[:-1]:
            log = log[key]
        if to is None:
            del log[path[-1]]
        else:
            log[path[-1]] = to

    return change


WATCH = ("moments", -1, "callbacks", "GrowOnPlateau")
MALFORMED = {
    "no list": _set("moments", to={}),
    "no moment": _set("moments", 0, to=7),
    "no epoch": _set("moments", 0, "epoch", to=None),
    "negative epoch": _set("moments", 0, "epoch", to=-1),
    "begun": _set("moments", 0, "begun", to=0),
    "too many growths": _set("moments", -1, "growths", to=7),
    "no callbacks": _set("moments", -1, "callbacks", to=[]),
    "no watch": _set(*WATCH, to=[]),
    "best": _set(*WATCH, "best", to="4"),
    "wait": _set(*WATCH, "wait", to=-1),
    "true": _set(*WATCH, "cooldown_left", to=True),
    "half": _set(*WATCH, "position", to=0.5),
    "no number": _set(*WATCH, "growths", to=None),
    "due": _set(*WATCH, "due", to=1),
    "finished": _set(*WATCH, "finished", to="no"),
    "a trial that was undone": _set(*WATCH, "trial", to=1),
    "a trial that there isn't": _set(*WATCH, "trial", to=7),
    "who": _set("growths", 0, "by", to=3),
    "undone of something else": _set("growths", 1, "undone", to=False),
    "undone elsewhere": _set("growths", 1, "after", "parameters", to=1),
    "undone before": lambda log: log["growths"].pop(0),
}


@long_elsewhere
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_log_that_is_malformed_is_an_error_and_touches_nothing(kind, stopped, tmp_path):
    path = tmp_path / "growth.json"
    path.write_bytes(changed(stopped, MALFORMED[kind]))
    before = path.read_bytes()
    model = build()
    model.optimizer.build(model.trainable_variables)
    was = state(model)
    for attempt in (
        lambda: n2n.replay(model, path),
        lambda: model.fit(*data(), verbose=0, callbacks=KINDS["revert"](tmp_path)),
    ):
        with pytest.raises(LogError, match="can't be read") as caught:
            attempt()
        assert_explained(caught.value)
    assert state(model) == was
    assert left(tmp_path) == ["growth.json"]
    assert path.read_bytes() == before


@long_elsewhere
def test_values_that_are_lost_are_an_error_and_touch_nothing(tmp_path):
    run(tmp_path, moment=("end", 6))
    path = tmp_path / "growth.json.trial-6.npz"
    values, log = path.read_bytes(), (tmp_path / "growth.json").read_bytes()
    others = dict.fromkeys(["a"], np.zeros(3, np.uint8))
    for spoil in (
        path.unlink,
        lambda: path.write_bytes(values[:-30]),
        lambda: path.write_bytes(b""),
        lambda: np.savez(path, **others),
        lambda: np.savez(path, **{"0": np.zeros(3, np.uint8)}),
    ):
        spoil()
        with pytest.raises(LogError, match="Growth 6 of the log, which is on trial") as caught:
            run(tmp_path)
        assert_explained(caught.value)
        assert (tmp_path / "growth.json").read_bytes() == log
    path.write_bytes(values)
    run(tmp_path)
    assert events(tmp_path) == REVERTED


def test_without_a_backup_no_values_are_written(tmp_path):
    model = build()
    callbacks = [Metric(*VALUES), *KINDS["revert"](tmp_path)]
    callbacks.append(
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(left(tmp_path)))
    )
    seen: list[list[str]] = []
    model.fit(*data(), epochs=8, verbose=0, callbacks=callbacks)
    assert seen == [["growth.json"]] * 8
    assert events(tmp_path) == REVERTED


@long_elsewhere
def test_moments_are_kept_as_long_as_someone_may_go_back(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "MOMENTS", 3)
    model = build()
    (growth,) = KINDS["stays"](tmp_path)
    callbacks = [Metric(*VALUES), growth]
    model.fit(*data(), epochs=8, verbose=0, callbacks=callbacks)
    kept = [one["epoch"] for one in content(tmp_path)["moments"]]
    assert kept == [5, 6, 7, 8]
    # A backup that outlasts the run may be extended.
    run(tmp_path, KINDS["revert"](tmp_path), delete_checkpoint=False)
    assert "growth.json.trial-8.npz" in left(tmp_path)
    model, (growth,), _, _ = run(tmp_path, values=[*VALUES, 4, 4], delete_checkpoint=False)
    assert events(tmp_path) == [*REVERTED, -8, 8, -9, 9]


def test_a_backup_without_a_growing_callback_counts_at_once(tmp_path):
    """The callback of an earlier `fit`, which had to wait there."""
    (growth,) = KINDS["revert"](tmp_path)
    model = build()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    x, y = data()
    model.fit(x, y, epochs=2, verbose=0, callbacks=[backup, Metric(*VALUES), growth])
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            json.loads((tmp_path / "backup" / "training_metadata.json").read_text())["epoch"]
        )
    )
    model.fit(x, y, epochs=4, verbose=0, callbacks=[backup, look])
    assert seen == [3, 4]


def test_a_backup_counts_once_what_belongs_to_it_is_on_record(tmp_path):
    seen = []

    def look(epoch, logs):
        file = tmp_path / "backup" / "training_metadata.json"
        epoch = json.loads(file.read_text())["epoch"] if file.exists() else None
        logged = content(tmp_path)["moments"]
        seen.append((epoch, logged[-1]["epoch"] if logged else None))

    def looking():
        return keras.callbacks.LambdaCallback(on_epoch_end=look)

    growing = KINDS["revert"](tmp_path)
    run(tmp_path, [looking(), *growing, looking()], values=VALUES[:3])
    assert seen == [(None, None), (1, 1), (1, 1), (2, 2), (2, 2), (3, 3)]


# -- several callbacks -------------------------------------------------------------


@long_elsewhere
def test_growths_are_told_to_those_who_did_them(tmp_path):
    run(tmp_path, "shared", ("end", 6))
    by = [one["by"] for one in content(tmp_path)["growths"]]
    _, (schedule, growth), _, _ = run(tmp_path, "shared")
    assert by == ["GrowthScheduler", "GrowOnPlateau"] * 2
    assert [report.epoch for report in schedule.history] == [1, 6]
    assert [report.epoch for report in growth.history] == [3, 6]
    assert schedule._recorder is growth._recorder


@long_elsewhere
def test_callbacks_of_one_kind_are_told_apart_by_their_order(tmp_path):
    run(tmp_path, "two", ("end", 6))
    names = {one["by"] for one in content(tmp_path)["growths"]}
    assert names == {"GrowOnPlateau", "GrowOnPlateau 2"}
    assert set(content(tmp_path)["moments"][-1]["callbacks"]) == names


@pytest.mark.parametrize("other", [None, "other.json"])
@pytest.mark.parametrize("first", [True, False])
def test_growing_callbacks_with_different_logs_are_an_error(tmp_path, other, first):
    log = None if other is None else tmp_path / other
    schedule = n2n.GrowthScheduler({1: n2n.Wider("fc", 9)}, log=log, verbose=0)
    growing = [schedule, *KINDS["revert"](tmp_path)][:: 1 if first else -1]
    with pytest.raises(LogError, match="Pass the same `log` to all of them") as caught:
        run(tmp_path, growing)
    assert_explained(caught.value, "GrowthScheduler(..., log=")
    assert left(tmp_path) == []


@long_elsewhere
def test_one_path_may_be_written_in_several_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    schedule = n2n.GrowthScheduler({1: n2n.Wider("fc", 9)}, log="growth.json", verbose=0)
    run(tmp_path, [schedule, *KINDS["revert"](tmp_path)])
    assert events(tmp_path)[0] == 1


def test_a_plateau_that_grows_by_what_no_log_can_hold_is_an_error(tmp_path):
    growth = plateau(tmp_path, Unregistered("fc", 9))
    with pytest.raises(LogError, match="can't be written into a growth log"):
        run(tmp_path, [growth])
    assert growth.history == []
    assert growth_log.GrowthLog.read(tmp_path / "growth.json").growths == ()


class Unregistered(n2n.Wider):
    pass


def test_a_path_that_is_none_is_an_error():
    with pytest.raises(LogError, match="can't be kept there"):
        n2n.GrowOnPlateau(n2n.Wider("fc", 9), log=3)


def test_a_model_that_is_not_built_is_an_error(tmp_path):
    (growth,) = KINDS["revert"](tmp_path)
    with pytest.raises(LogError, match="it isn't built"):
        growth.set_model(keras.Sequential([layers.Dense(1)]))
