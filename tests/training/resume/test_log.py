"""The growth log: what it holds, how it is read, and models brought to its architectures."""

from __future__ import annotations

import json

import keras
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError, LogError
from keras_net2net.training.resume import architecture as architectures
from keras_net2net.training.resume import log as growth_log
from keras_net2net.training.resume.architecture import architecture
from keras_net2net.training.resume.log import GrowthLog
from tests.support.helpers import (
    EAGERLY,
    array,
    assert_same,
    both_modes,
    data_for,
    long_elsewhere,
    randomize,
)
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state
from tests.training.test_scheduler import data

GROWTHS = [
    n2n.Wider("fc", 9),
    [n2n.Wider({"inner/*": 7}, shares="even"), n2n.Deeper("fc", activation="relu")],
]


def build(names: bool = True, compiled: bool = False) -> keras.Model:
    def name(one: str) -> str | None:
        return one if names else None

    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc")(x)
    x = keras.Sequential([layers.Dense(5, name=name("first")), layers.ReLU()], name="inner")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name=name("out"))(x)))
    if compiled:
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **EAGERLY)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose weights were saved before each epoch, with the log of it."""
    folder = tmp_path_factory.mktemp("run")
    model = build(compiled=True)

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.save_weights(folder / f"{epoch}.weights.h5")

        def on_train_batch_begin(self, batch, logs=None):
            if not batch:
                self.model.save_weights(folder / f"{self.epoch}.begun.weights.h5")

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    growth = n2n.GrowthScheduler(
        dict(enumerate(GROWTHS, 1)), seed=3, learning_rate=0.5, log=folder / "log", verbose=0
    )
    x, y = data()
    model.fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=[growth, Save()])
    return folder, model


def weights(model: keras.Model) -> list:
    return [array(v).tolist() for v in model.weights]


def test_the_log_is_small_and_says_what_was_done(run):
    folder, model = run
    content = json.loads((folder / "log").read_text())
    assert content["format"] == "keras_net2net growth log"
    assert content["version"] == 2
    assert content["keras"] == keras.__version__
    assert content["keras_net2net"] == n2n.__version__
    assert [growth["epoch"] for growth in content["growths"]] == [1, 2]
    assert [growth["seed"] for growth in content["growths"]] == [3, 3]
    assert [growth["learning_rate"] for growth in content["growths"]] == [0.5, 0.5]
    assert content["growths"][-1]["after"]["parameters"] == model.count_params()
    assert content["start"]["parameters"] == build().count_params()
    assert (folder / "log").stat().st_size < 4000
    assert [path.name for path in folder.glob("*.part")] == []
    read = GrowthLog.read(folder / "log")
    assert [growth.operations for growth in read.growths] == [
        (GROWTHS[0],),
        tuple(GROWTHS[1]),
    ]
    assert read.stages[-1] == architecture(model)


def test_layer_objects_become_the_paths_of_layers(tmp_path):
    model = build(compiled=True)
    inside = model.get_layer("inner").layers[0]
    log = tmp_path / "new" / "log"  # its folder is made
    growth = n2n.GrowthScheduler({0: n2n.Wider(inside, 8)}, log=log, verbose=0)
    model.fit(*data(), verbose=0, callbacks=[growth])
    (entry,) = GrowthLog.read(log).growths
    assert entry.operations == (n2n.Wider("inner/first", 8),)


def test_an_architecture_has_no_made_up_numbers_in_it_and_knows_what_differs():
    first, second = architecture(build(names=False)), architecture(build(names=False))
    assert first == second
    assert first != architecture(build())
    assert first.weights == architecture(build()).weights
    grown, same = build(names=False), build(names=False)
    for model in (grown, same):
        name = model.get_layer("inner").layers[0].name
        n2n.grow(model, n2n.Deeper(f"inner/{name}", activation="linear"), seed=0)
    assert architecture(grown) == architecture(same) != first


def test_the_digest_of_a_weights_file_is_that_of_its_model(tmp_path):
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(2, 1, name="conv")(inputs)
    x = layers.BatchNormalization()(layers.Dropout(0.5)(x))
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.GlobalAveragePooling2D()(x)
    optimizer = keras.optimizers.Adam(use_ema=True)
    model = keras.Model(inputs, layers.Dense(1, name="out")(x))
    model.compile(optimizer, "mse", metrics=["mae"])
    optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "a.weights.h5")
    known = architecture(model).weights
    assert architectures.digest_of_file(tmp_path / "a.weights.h5") == known
    n2n.grow(model, n2n.Wider("conv", 3), seed=0)
    assert architecture(model).weights != known


@pytest.mark.parametrize("stage", [0, 1])
def test_replay_gives_a_checkpoint_the_very_weights_that_the_growth_gave(run, stage):
    folder, _ = run
    log = GrowthLog.read(folder / "log")
    model, reference = at_stage(stage, log), at_stage(stage + 1, log)
    model.load_weights(folder / f"{stage}.weights.h5")
    (report,) = n2n.replay(model, GrowthLog(log.start, log.growths[: stage + 1]))
    assert report.epoch == stage + 1
    assert report.difference < 1e-5
    assert architecture(model) == log.stages[stage + 1]
    reference.load_weights(folder / f"{stage + 1}.begun.weights.h5")
    assert weights(model) == weights(reference)
    assert len(n2n.replay(model, folder / "log")) == 1 - stage
    assert n2n.replay(model, folder / "log") == []


def at_stage(stage: int, log: GrowthLog) -> keras.Model:
    model = build()
    n2n.replay(model, GrowthLog(log.start, log.growths[:stage]), verify=False)
    return model


def test_a_freshly_built_model_takes_the_final_weights(run):
    folder, trained = run
    model = build()
    before = both_modes(model, data_for(model))
    reports = n2n.replay(model, folder / "log")
    assert_same(both_modes(model, data_for(model)), before)
    assert [report.parameters_after for report in reports][-1] == trained.count_params()
    model.load_weights(folder / "2.weights.h5")
    x = data_for(model)
    assert_same(both_modes(model, x), both_modes(trained, x), 0)


def test_upgraded_weights_are_those_that_the_growth_gave(run, tmp_path):
    folder, _ = run
    output = tmp_path / "new.weights.h5"
    model = n2n.upgrade_weights(folder / "1.weights.h5", build, folder / "log", output)
    reference = at_stage(2, GrowthLog.read(folder / "log"))
    reference.load_weights(folder / "2.begun.weights.h5")
    assert weights(model) == weights(reference)
    model.load_weights(output)
    assert weights(model) == weights(reference)
    # With the optimizer, and in the place of the old file.
    (tmp_path / "old.weights.h5").write_bytes((folder / "1.weights.h5").read_bytes())
    args = folder / "log", tmp_path / "old.weights.h5"
    model = n2n.upgrade_weights(args[1], lambda: build(compiled=True), *args)
    trained = build(compiled=True)
    n2n.replay(trained, folder / "log")
    trained.optimizer.build(trained.trainable_variables)
    trained.load_weights(tmp_path / "old.weights.h5")
    assert int(array(trained.optimizer.iterations)) == 4
    assert float(array(trained.optimizer.learning_rate)) == pytest.approx(0.0125)
    assert weights(trained) == weights(reference)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.weights.h5", "old.weights.h5"]


def broken(folder, change) -> bytes:
    content = json.loads((folder / "log").read_text())
    change(content)
    return json.dumps(content).encode()


def _set(*path, to):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


BROKEN = {
    "truncated": lambda folder: (folder / "log").read_bytes()[:-20],
    "empty": lambda folder: b"",
    "not text": lambda folder: b"\xff\xfe\x00",
    "not a log": lambda folder: b"[1, 2]",
    "nested": lambda folder: b"[" * 100_000,
    "another file": lambda folder: b'{"format": "something"}',
    "newer": lambda folder: broken(folder, _set("version", to=3)),
    "no start": lambda folder: broken(folder, lambda content: content.pop("start")),
    "no seed": lambda folder: broken(folder, lambda content: content["growths"][0].pop("seed")),
    "bad seed": lambda folder: broken(folder, _set("growths", 0, "seed", to="1")),
    "true": lambda folder: broken(folder, _set("growths", 0, "epoch", to=True)),
    "bad epoch": lambda folder: broken(folder, _set("growths", 0, "epoch", to=[])),
    "no operations": lambda folder: broken(folder, _set("growths", 0, "operations", to=[])),
    "no growths": lambda folder: broken(folder, _set("growths", to={})),
    "no growth": lambda folder: broken(folder, _set("growths", 0, to=1)),
    "foreign class": lambda folder: broken(
        folder,
        _set(
            "growths", 0, "operations", 0,
            to={"module": "keras.layers", "class_name": "Dense", "config": {"units": 1},
                "registered_name": None},
        ),
    ),
    "unknown class": lambda folder: broken(
        folder, _set("growths", 0, "operations", 0, "registered_name", to="x>Y")
    ),
    "bad argument": lambda folder: broken(
        folder, _set("growths", 0, "operations", 0, "config", to={"units": 0})
    ),
    "another model": lambda folder: broken(folder, _set("start", "layers", to="0" * 32)),
}  # fmt: skip


@long_elsewhere
@pytest.mark.parametrize("kind", BROKEN)
def test_a_log_that_is_malformed_or_foreign_is_an_error_and_touches_nothing(kind, run, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(BROKEN[kind](run[0]))
    before = path.read_bytes()
    model = build(compiled=True)
    was = state(model)
    growth = n2n.GrowthScheduler({0: GROWTHS[0]}, log=path, verbose=0)
    output = tmp_path / "a.weights.h5"
    for attempt in (
        lambda: n2n.replay(model, path),
        lambda: model.fit(*data(), verbose=0, callbacks=[growth]),
        lambda: n2n.upgrade_weights(run[0] / "0.weights.h5", build, path, output),
    ):
        with pytest.raises(LogError) as caught:
            attempt()
        assert_explained(caught.value)
    now = state(model)
    assert now["weights"] == was["weights"]
    assert now["config"] == was["config"]
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    assert path.read_bytes() == before


def test_a_missing_log_is_an_error_for_replay(tmp_path):
    with pytest.raises(LogError, match="can't be read"):
        n2n.replay(build(), tmp_path / "log")


def test_growths_that_lead_elsewhere_are_undone(run, tmp_path):
    log = tmp_path / "log"
    log.write_bytes(broken(run[0], _set("growths", 1, "after", "layers", to="0" * 32)))
    model = build(compiled=True)
    model.optimizer.build(model.trainable_variables)
    architecture(model)  # reads all attributes, as saving does, and Keras makes some then
    was = state(model)
    with pytest.raises(LogError, match="Growth 2 of the log can't be done again") as caught:
        n2n.replay(model, log)
    assert_explained(caught.value)
    assert_state(model, was)


def test_a_growth_that_fails_is_undone_with_those_before_it(run, tmp_path):
    log = tmp_path / "log"
    operation = growth_log.as_config(n2n.Wider("nothing", 4))
    log.write_bytes(broken(run[0], _set("growths", 1, "operations", to=[operation])))
    model = build(compiled=True)
    model.optimizer.build(model.trainable_variables)
    architecture(model)  # reads all attributes, as saving does, and Keras makes some then
    was = state(model)
    with pytest.raises(n2n.errors.UnknownLayerError):
        n2n.replay(model, log)
    assert_state(model, was)


def test_weights_of_another_model_and_a_bad_name_are_errors(run, tmp_path):
    folder, _ = run
    other = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((1,)), layers.Dense(1)]).save_weights(other)
    for args, kind, message in (
        ((other, tmp_path / "a.weights.h5"), LogError, "aren't of a model of the growth log"),
        ((tmp_path / "no.weights.h5", tmp_path / "a.weights.h5"), GrowthError, "can't be read"),
        ((folder / "0.weights.h5", tmp_path / "a.h5"), GrowthError, "can't be written"),
    ):
        with pytest.raises(kind, match=message) as caught:
            n2n.upgrade_weights(args[0], build, folder / "log", args[1])
        assert_explained(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["other.weights.h5"]


class Unregistered(n2n.Wider):
    pass


@keras.saving.register_keras_serializable("tests")
class Local(n2n.Wider):
    def get_config(self):
        return super().get_config() | {"what": object()}


def test_an_operation_that_no_log_can_hold_is_an_error_before_the_growth(tmp_path):
    model = build(compiled=True)
    weights_before = weights(model)
    for operation in (
        Unregistered("fc", 9),
        Local("fc", 9),
    ):
        growth = n2n.GrowthScheduler({0: operation}, log=tmp_path / "log", verbose=0)
        with pytest.raises(LogError, match="can't be written into a growth log") as caught:
            model.fit(*data(), verbose=0, callbacks=[growth])
        assert_explained(caught.value)
    assert weights(model) == weights_before
    assert GrowthLog.read(tmp_path / "log").growths == ()
