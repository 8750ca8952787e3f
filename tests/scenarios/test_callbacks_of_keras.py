"""Each of Keras's own callbacks in a `fit` in which the model grows."""

from __future__ import annotations

import csv
import http.server
import json
import threading

import keras
import numpy as np
import pytest
from keras import callbacks as of_keras
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError
from keras_net2net.growth.probe import Probe
from tests.support.helpers import BACKEND, EAGERLY, array, few, max_difference, outputs, randomize
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state

X, Y = (np.random.default_rng(k).standard_normal((8, k)).astype("float32") for k in (4, 2))


def net(optimizer=None, **kwargs) -> keras.Model:
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc")(x)
    x = layers.BatchNormalization(name="bn")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name="net"))
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse", **EAGERLY, **kwargs)
    return model


def size(units: int, inserted: int = 0) -> int:
    """The number of parameters at a width, by hand."""
    return 5 * units + inserted * units * (units + 1) + 4 * units + 2 * units + 2


GROWTH = [n2n.Wider("fc", 9), n2n.Deeper("fc")]


def growing(epoch: int = 2, **kwargs) -> n2n.GrowthScheduler:
    return n2n.GrowthScheduler({epoch: GROWTH}, seed=0, **({"verbose": 0} | kwargs))


def fit(model: keras.Model, *callbacks, **kwargs) -> keras.callbacks.History:
    kwargs = {"batch_size": 4, "epochs": 4, "verbose": 0} | kwargs
    return model.fit(X, Y, callbacks=list(callbacks), **kwargs)


class Watch(of_keras.Callback):
    """What the model computes, and how large it is, at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.outputs: list[list[np.ndarray]] = []
        self.sizes: list[int] = []

    def on_epoch_end(self, epoch, logs=None):
        self.outputs.append(outputs(self.model, X))
        self.sizes.append(self.model.count_params())


class Metric(of_keras.Callback):
    """Puts numbers that are known beforehand into the logs, an epoch each."""

    def __init__(self, *values: float, name: str = "metric"):
        super().__init__()
        self.values, self.name = values, name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


def stopping(**kwargs) -> of_keras.EarlyStopping:
    kwargs = {"monitor": "metric", "mode": "min", "patience": 9} | kwargs
    return of_keras.EarlyStopping(restore_best_weights=True, **kwargs)


# -- EarlyStopping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["growth first", "stopping first"])
def test_early_stopping_restores_the_best_function_from_before_a_growth(first):
    model, watch, stop = net(), Watch(), stopping(patience=2)
    callbacks = [growing(), stop][:: 1 if first else -1]
    fit(model, Metric(2.0, 1.0, 3.0, 4.0, 5.0), watch, *callbacks, epochs=5)
    assert watch.sizes == [size(6)] * 2 + [size(9, 1)] * 2  # it stopped after the fourth
    assert stop.best_epoch == 1
    assert model.count_params() == size(9, 1)
    assert max_difference(outputs(model, X), watch.outputs[1]) < 1e-6
    assert max_difference(watch.outputs[3], watch.outputs[1]) > 1e-3


def test_best_weights_from_before_two_growths_and_of_every_kind_of_layer():
    """Copied, fresh and filling units, a layer that is inserted, and a nested model."""
    x = inputs = keras.Input((5, 4))
    inner = keras.Input((5, 6))
    body = keras.Model(inner, layers.Dense(6, name="dense")(layers.LayerNormalization()(inner)))
    x = layers.Dense(6, name="embed")(x)
    x = layers.Add()([x, body(x)])
    if BACKEND != "jax":  # it compiles for long
        x = layers.MultiHeadAttention(2, 3, name="mha")(x, x)
    x = layers.SimpleRNN(4, name="rnn")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x)))
    model.compile("sgd", "mse", **EAGERLY)
    schedule = {
        1: n2n.Wider("embed", factor=1.5),
        2: [n2n.Wider("rnn", 7, new_units="fresh"), n2n.Deeper("dense")],
    }
    data = np.random.default_rng(0).standard_normal((4, 5, 4)).astype("float32")
    best = []

    class Note(of_keras.Callback):
        def on_epoch_end(self, epoch, logs=None):
            best.append(outputs(self.model, data))

    growth = n2n.GrowthScheduler(schedule, seed=0, verbose=0)
    chain = [Metric(1.0, 2.0, 3.0), Note(), growth, stopping()]
    model.fit(data, np.ones((4, 2)), epochs=3, verbose=0, callbacks=chain)
    assert [report.plan.empty for report in growth.history] == [False, False]
    assert max_difference(outputs(model, data), best[0]) < 1e-5
    assert max_difference(best[2], best[0]) > 1e-4


def test_best_weights_leave_the_states_alone_that_a_layer_carries_from_batch_to_batch():
    x = inputs = keras.Input(batch_shape=(4, 3, 4))
    x = layers.SimpleRNN(4, stateful=True, name="rnn")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x)))
    model.compile("sgd", "mse", **EAGERLY)
    data, best = np.ones((4, 3, 4), "float32"), []

    def note(epoch, logs):
        model.get_layer("rnn").reset_states()
        best.append(outputs(model, data))

    growth = n2n.GrowthScheduler({1: n2n.Wider("rnn", 6)}, seed=0, verbose=0)
    chain = [Metric(1.0, 2.0), of_keras.LambdaCallback(on_epoch_end=note), growth, stopping()]
    model.fit(data, np.ones((4, 2)), batch_size=4, epochs=2, verbose=0, callbacks=chain)
    assert model.get_layer("rnn").units == 6
    model.get_layer("rnn").reset_states()
    assert max_difference(outputs(model, data), best[0]) < 1e-6


def test_best_weights_from_after_a_growth_are_restored_as_they_were():
    model, watch = net(), Watch()
    fit(model, Metric(4.0, 3.0, 2.0, 5.0), watch, growing(1), stopping())
    assert max_difference(outputs(model, X), watch.outputs[2]) == 0


def test_best_weights_stand_in_the_precision_of_the_model():
    model = net()
    best = []

    class Note(of_keras.Callback):
        def on_train_end(self, logs=None):
            best.extend(stop.best_weights)

    stop = stopping()
    fit(model, Metric(1.0, 2.0, 3.0, 4.0), growing(), stop, Note())
    assert [w.dtype for w in best] == ["float32"] * len(model.weights)
    assert [w.shape for w in best] == [tuple(w.shape) for w in model.weights]


def test_a_growth_that_fails_leaves_the_best_weights():
    model, stop = net(), stopping()
    held = []

    def fail(epoch, logs):
        if epoch == 1:
            before = stop.best_weights
            for operations, verify in ((n2n.Wider("out", 9), True), (GROWTH, np.ones((2, 3)))):
                with pytest.raises((GrowthError, ValueError)):
                    n2n.grow(model, operations, verify=verify)
            held.append(stop.best_weights is before)

    fit(model, Metric(1.0, 2.0), stop, of_keras.LambdaCallback(on_epoch_begin=fail), epochs=2)
    assert held == [True]


def test_a_growth_that_is_found_wrong_leaves_the_best_weights(monkeypatch):
    model, stop = net(), stopping()
    right = Probe.check
    monkeypatch.setattr(Probe, "check", lambda *_: right(*_) + int("wrong"))
    held = []

    def fail(epoch, logs):
        if epoch == 1:
            before = stop.best_weights
            with pytest.raises(ValueError, match="wrong"):
                n2n.grow(model, GROWTH)
            held.append(stop.best_weights is before and stop.best == 1.0)

    fit(model, Metric(1.0, 2.0), stop, of_keras.LambdaCallback(on_epoch_begin=fail), epochs=2)
    assert held == [True]


def test_a_growth_in_a_callback_of_ones_own_carries_the_best_weights_too():
    model, watch = net(), Watch()
    own = of_keras.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: n2n.grow(model, GROWTH, seed=0) if epoch == 2 else None
    )
    fit(model, Metric(2.0, 1.0, 3.0, 4.0), watch, own, stopping())
    assert model.count_params() == size(9, 1)
    assert max_difference(outputs(model, X), watch.outputs[1]) < 1e-6


def test_in_a_loop_of_ones_own_the_callbacks_are_given():
    model, watch, stop = net(), Watch(), stopping()
    chain = of_keras.CallbackList([Metric(1.0, 2.0), stop, watch], model=model, epochs=2)
    chain.on_train_begin()
    for epoch in range(2):
        chain.on_epoch_begin(epoch)
        chain.on_epoch_end(epoch, {"loss": model.train_on_batch(X, Y)})
        if epoch == 0:
            n2n.grow(model, GROWTH, seed=0, callbacks=chain)
    chain.on_train_end()
    assert max_difference(outputs(model, X), watch.outputs[0]) < 1e-6


@pytest.mark.parametrize("wrong", ["stop", 3, [stopping(), "x"]])
def test_something_given_that_is_no_callback_is_an_error(wrong):
    model = net()
    before = state(model)
    with pytest.raises(GrowthError) as caught:
        n2n.grow(model, GROWTH, callbacks=wrong)
    assert_explained(caught.value, "a callback, a list of callbacks or a `CallbackList`")
    assert_state(model, before)


def test_callbacks_of_another_model_are_left_alone():
    model, other, stop = net(), net(), stopping()
    seen = []

    def copy(epoch, logs):
        if epoch == 1:
            before = stop.best_weights
            n2n.clone_and_grow(model, GROWTH)
            n2n.grow(other, GROWTH)
            seen.append(stop.best_weights is before)

    own = of_keras.LambdaCallback(on_epoch_begin=copy)
    fit(model, Metric(1.0, 2.0), stop, own, epochs=2)
    assert seen == [True]
    assert model.count_params() == size(6)


# -- what is logged --------------------------------------------------------------------------------

PARAMS, GREW = [size(6)] * 2 + [size(9, 1)] * 2, [0, 0, 1, 0]


@pytest.mark.parametrize("place", ["Keras's own", "before", "behind"])
def test_history_holds_parameters_and_growths(place):
    model, own = net(), of_keras.History()
    chain = {
        "Keras's own": [growing()],
        "before": [own, growing(), n2n.GrowthScheduler({}, verbose=0)],
        "behind": [growing(), own],
    }[place]
    history = fit(model, *chain)
    assert history.history["params"] == PARAMS
    assert history.history["growth"] == GREW
    assert history.epoch == [0, 1, 2, 3]
    assert len(history.history["loss"]) == 4


@pytest.mark.parametrize("behind", [True, False])
def test_csv_logger_has_its_columns_from_the_first_epoch(tmp_path, behind):
    path = tmp_path / "log.csv"
    logger = of_keras.CSVLogger(path)
    fit(net(), *[growing(), logger][:: 1 if behind else -1])
    rows = rows_of(path)
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    if behind:
        assert [int(row["params"]) for row in rows] == PARAMS
        assert [int(row["growth"]) for row in rows] == GREW
    else:
        assert "params" not in rows[0]


def test_progbar_logger_shows_every_epoch(capsys):
    fit(net(), growing(), of_keras.ProgbarLogger(), verbose=2)
    text = capsys.readouterr().out
    assert text.count("loss:") == 4
    assert text.count("growth: 1") == 1
    assert f"params: {size(9, 1)}" in text


def test_lambda_callback_is_called_at_every_moment():
    seen = []
    own = of_keras.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(("begin", epoch)),
        on_epoch_end=lambda epoch, logs: seen.append(("end", epoch, logs["params"])),
        on_train_end=lambda logs: seen.append(("done",)),
    )
    fit(net(), growing(), own)
    ends = [("end", epoch, params) for epoch, params in enumerate(PARAMS)]
    begins = [("begin", epoch) for epoch in range(4)]
    pairs = zip(begins, ends, strict=True)
    assert seen == [event for pair in pairs for event in pair] + [("done",)]


def test_remote_monitor_sends_every_epoch():
    pytest.importorskip("requests")
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monitor = of_keras.RemoteMonitor(
            f"http://127.0.0.1:{server.server_port}", send_as_json=True
        )
        fit(net(), growing(), monitor)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [one["epoch"] for one in received] == [0, 1, 2, 3]
    assert [one["params"] for one in received] == PARAMS
    assert [one["growth"] for one in received] == GREW


def rows_of(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def events_of(folder) -> dict[str, list]:
    """The scalars and texts that were written, by tag: step and value."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), {"tensors": 0}).Reload()
    from tensorboard.util import tensor_util

    return {
        tag: [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


@pytest.mark.parametrize("first", [True, False], ids=["growth first", "TensorBoard first"])
def test_tensorboard_shows_the_growth(tmp_path, first):
    pytest.importorskip("tensorboard")
    board = of_keras.TensorBoard(tmp_path, histogram_freq=1, write_graph=True, update_freq=1)
    fit(net(), *[growing(), board][:: 1 if first else -1])
    events = events_of(tmp_path / "train")
    assert [(step, int(value)) for step, value in events["params"]] == list(enumerate(PARAMS))
    ((step, text),) = events["growth"]
    assert step == 2
    assert "fc 6 -> 9" in str(text)
    assert [step for step, _ in events["epoch_loss"]] == [0, 1, 2, 3]
    assert ("epoch_params" in events) == first
    kernel = next(tag for tag in events if "kernel" in tag)  # up to Keras 3.10 without a path
    assert {step for step, _ in events[kernel]} == {0, 1, 2, 3}


# -- the learning rate -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["growth first", "rate first"])
def test_learning_rate_scheduler_goes_on_from_the_rate_of_the_growth(first):
    """Halving what there is and taking a tenth of it give the same, in either order."""
    schedule = of_keras.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model = net(keras.optimizers.SGD(0.8))
    history = fit(model, *[growing(learning_rate=0.1), schedule][:: 1 if first else -1])
    assert np.allclose(history.history["learning_rate"], [0.4, 0.2, 0.01, 0.005])


@pytest.mark.parametrize(("first", "expected"), [(True, [0.1, 0.1]), (False, [0.01, 0.1])])
def test_learning_rate_scheduler_that_names_a_rate_has_the_last_word_if_it_is_last(first, expected):
    schedule = of_keras.LearningRateScheduler(lambda epoch: 0.1)
    model = net(keras.optimizers.SGD(0.8))
    rates = []

    def note(batch, logs):
        rates.append(float(array(model.optimizer.learning_rate)))

    chain = [growing(1, learning_rate=0.1), schedule][:: 1 if first else -1]
    chain.append(of_keras.LambdaCallback(on_train_batch_begin=note))
    fit(model, *chain, batch_size=8, epochs=3)
    assert np.allclose(rates[1:], expected)


def test_reduce_lr_on_plateau_counts_over_a_growth_and_reduces_the_rate_that_is_trained_with():
    reduce = of_keras.ReduceLROnPlateau("metric", factor=0.5, patience=2, mode="min")
    model = net(keras.optimizers.SGD(0.8))
    metric = Metric(1.0, 2.0, 2.0, 2.0)
    history = fit(model, metric, growing(2), reduce)
    assert reduce.best == 1.0
    assert np.allclose(history.history["learning_rate"], [0.8, 0.8, 0.8, 0.4])
    assert np.isclose(float(array(model.optimizer.learning_rate)), 0.4)
    assert model.count_params() == size(9, 1)


# -- what is saved ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_model_checkpoint_saves_the_best_model_at_the_size_that_it_had(tmp_path, first):
    model, watch = net(), Watch()
    path = tmp_path / "{epoch}.keras"
    keep = of_keras.ModelCheckpoint(str(path), "metric", save_best_only=True, mode="min")
    chain = [growing(), keep][:: 1 if first else -1]
    fit(model, Metric(3.0, 1.0, 2.0, 0.5), watch, *chain)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.keras", "2.keras", "4.keras"]
    assert keep.best == 0.5
    for epoch, parameters in ((2, size(6)), (4, size(9, 1))):
        loaded = keras.models.load_model(tmp_path / f"{epoch}.keras")
        assert loaded.count_params() == parameters
        assert max_difference(outputs(loaded, X), watch.outputs[epoch - 1]) < 1e-6


def test_model_checkpoint_saves_weights_for_a_model_of_that_size(tmp_path):
    model, watch = net(), Watch()
    keep = of_keras.ModelCheckpoint(str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True)
    fit(model, watch, growing(), keep)
    seed = net()
    seed.load_weights(tmp_path / "2.weights.h5")
    assert max_difference(outputs(seed, X), watch.outputs[1]) == 0
    model.load_weights(tmp_path / "3.weights.h5")
    assert max_difference(outputs(model, X), watch.outputs[2]) == 0
    n2n.grow(seed, GROWTH, seed=1)  # and a seed model that grows as this one did
    seed.load_weights(tmp_path / "4.weights.h5")
    assert max_difference(outputs(seed, X), watch.outputs[3]) == 0


def test_model_checkpoint_saves_in_full_with_the_optimizer_and_between_batches(tmp_path):
    model = net(keras.optimizers.Adam(0.01))
    keep = of_keras.ModelCheckpoint(str(tmp_path / "last.keras"), save_freq=1)
    fit(model, growing(), keep)
    loaded = keras.models.load_model(tmp_path / "last.keras")
    pairs = zip(loaded.optimizer.variables, model.optimizer.variables, strict=True)
    assert all(np.array_equal(array(a), array(b)) for a, b in pairs)
    losses = [one.evaluate(X, Y, verbose=0) for one in (loaded, model)]
    assert np.isclose(*losses)
    fit(loaded, epochs=1)


class Stop(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("first", [True, False])
def test_backup_and_restore_goes_on_at_the_grown_size(tmp_path, first):
    """A `fit` breaks off in the epoch after that of the growth, and is called again."""
    model, watch = net(keras.optimizers.Adam(0.01)), Watch()
    backup = of_keras.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    growth = growing(1)
    seen: list[tuple[int, int]] = []

    def count(epoch, logs):
        seen.append((epoch, model.count_params()))
        if len(seen) == 3:
            raise Stop

    chain = [growth, backup][:: 1 if first else -1]
    chain += [watch, of_keras.LambdaCallback(on_epoch_begin=count)]
    ordered = {"shuffle": False}
    with pytest.raises(Stop):
        fit(model, *chain, **ordered)
    randomize(model)  # what is lost
    fit(model, *chain, **ordered)
    assert seen == [
        (0, size(6)),
        (1, size(9, 1)),
        (2, size(9, 1)),
        (2, size(9, 1)),
        (3, size(9, 1)),
    ]
    assert len(growth.history) == 1
    straight, reference = net(keras.optimizers.Adam(0.01)), Watch()
    fit(straight, growing(1), reference, **ordered)
    assert max_difference(watch.outputs[3], reference.outputs[3]) < 1e-6


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_checkpoint_saves_the_grown_model(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    if not hasattr(of_keras, "OrbaxCheckpoint"):
        pytest.skip("this Keras has no OrbaxCheckpoint")
    model = net()
    keep = of_keras.OrbaxCheckpoint(str(tmp_path), save_on_background=False)
    fit(model, growing(), keep)
    loaded = keras.models.load_model(str(tmp_path))
    assert loaded.count_params() == size(9, 1)
    assert max_difference(outputs(loaded, X), outputs(model, X)) < 1e-6


# -- averages of the weights -----------------------------------------------------------------------


@pytest.mark.parametrize("on_epoch", [False, True])
@pytest.mark.parametrize("first", few({"growth first": True, "swap first": False}, 1))
def test_swap_ema_weights_leaves_the_model_its_own_weights_at_a_growth(on_epoch, first):
    """With `swap_on_epoch`, the averages are in the model when the next epoch begins."""
    own: list[list[np.ndarray]] = []

    class Own(of_keras.Callback):
        """What the model itself computes, averages aside, around the beginning of an epoch."""

        def on_train_batch_end(self, batch, logs=None):
            self.last = outputs(self.model, X)

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0 and hasattr(self, "last"):
                own.append([*self.last, *outputs(self.model, X)])

    model = net(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    swap = of_keras.SwapEMAWeights(swap_on_epoch=on_epoch)
    chain = [growing(), swap][:: 1 if first else -1]
    history = fit(model, *chain, Own(), validation_data=(X, Y))
    assert [max_difference([b], [a]) < 1e-6 for a, b in own] == [True] * 3
    assert model.count_params() == size(9, 1)
    assert np.all(np.isfinite(history.history["val_loss"]))


def test_averages_and_weights_change_places_bit_for_bit():
    model = net(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    swap = of_keras.SwapEMAWeights(swap_on_epoch=True)
    held = []

    class Fails(of_keras.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                before = state(self.model)
                with pytest.raises(GrowthError):
                    n2n.grow(self.model, [*GROWTH, n2n.Wider("out", 9)])
                assert_state(self.model, before)
                held.append(swap._ema_weights_in_model)

    fit(model, Fails(), swap, epochs=3)
    assert held == [True]


# -- the rest --------------------------------------------------------------------------------------


def test_terminate_on_nan_ends_the_training_of_a_grown_model():
    model, watch = net(), Watch()

    def spoil(epoch, logs):
        if epoch == 2:
            model.get_layer("out").bias.assign(np.full(2, np.nan, "float32"))

    spoiler = of_keras.LambdaCallback(on_epoch_begin=spoil)
    history = fit(model, growing(), of_keras.TerminateOnNaN(), spoiler, watch)
    assert len(history.epoch) == 3
    assert np.all(np.isfinite(history.history["loss"][:2]))
    assert model.stop_training


@pytest.mark.parametrize("nested", [False, True])
def test_a_callback_list_may_be_passed_as_such(nested):
    model, watch, stop = net(), Watch(), stopping()
    chain = [Metric(2.0, 1.0, 3.0, 4.0), watch, growing(), stop]
    if nested:
        chain = [*chain[:2], of_keras.CallbackList(chain[2:])]
    given = of_keras.CallbackList(chain, add_history=True, model=model, epochs=4, steps=2)
    history = model.fit(X, Y, batch_size=4, epochs=4, verbose=0, callbacks=given)
    if not nested:  # Keras copies the logs for a list in a list
        assert history.history["params"] == PARAMS
    assert len(history.history["loss"]) == 4
    assert watch.sizes == PARAMS
    assert max_difference(outputs(model, X), watch.outputs[1]) < 1e-6


def test_all_of_them_together(tmp_path):
    """Whatever they do, it is one training, and the best function comes out of it."""
    model = net(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    watch = Watch()
    chain = [
        of_keras.BackupAndRestore(tmp_path / "backup"),
        of_keras.LearningRateScheduler(lambda epoch, rate: rate),
        growing(),
        Metric(2.0, 1.0, 3.0, 4.0),
        of_keras.SwapEMAWeights(swap_on_epoch=True),
        watch,
        stopping(),
        of_keras.ModelCheckpoint(
            str(tmp_path / "best.keras"), "metric", save_best_only=True, mode="min"
        ),
        of_keras.ReduceLROnPlateau("metric", mode="min", patience=9),
        of_keras.CSVLogger(tmp_path / "log.csv"),
        of_keras.TerminateOnNaN(),
    ]
    history = fit(model, *chain, validation_data=(X, Y))
    assert history.history["params"] == PARAMS
    assert len(rows_of(tmp_path / "log.csv")) == 4
    assert max_difference(outputs(model, X), watch.outputs[1]) < 1e-5
    best = keras.models.load_model(tmp_path / "best.keras")
    assert max_difference(outputs(best, X), watch.outputs[1]) < 1e-6
