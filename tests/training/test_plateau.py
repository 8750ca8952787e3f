"""GrowOnPlateau: growth where a metric has stopped improving, and undoing what has not paid."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from keras import callbacks as of_keras
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import FixedWidthError, GrowthError, SizeError
from keras_net2net.growth.transaction import Transaction
from tests.scenarios.test_callbacks_of_keras import Metric, Watch, stopping
from tests.support.helpers import EAGERLY, array, cases, max_difference, outputs, randomize
from tests.support.messages import assert_explained
from tests.support.states import variables

X, Y = (np.random.default_rng(k).standard_normal((8, k)).astype("float32") for k in (4, 2))


def mlp(optimizer=None, **kwargs) -> keras.Model:
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc")(x)
    x = layers.BatchNormalization(name="bn")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name="mlp"))
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse", **EAGERLY, **kwargs)
    return model


def size(units: int, inserted: int = 0) -> int:
    """The number of parameters at a width, by hand."""
    return 5 * units + inserted * units * (units + 1) + 4 * units + 2 * units + 2


def plateau(operations=None, **kwargs) -> n2n.GrowOnPlateau:
    kwargs = {"monitor": "metric", "mode": "min", "patience": 2, "seed": 0, "verbose": 0} | kwargs
    return n2n.GrowOnPlateau(operations or [n2n.Wider("fc", 9), n2n.Wider("fc", 12)], **kwargs)


def fit(model: keras.Model, metric, *callbacks, **kwargs) -> keras.callbacks.History:
    """As many epochs as there are values of the metric."""
    kwargs = {"batch_size": 8, "epochs": len(metric), "verbose": 0} | kwargs
    return model.fit(X, Y, callbacks=[Metric(*metric), *callbacks], **kwargs)


def grown_at(growth: n2n.GrowOnPlateau) -> list[tuple[int, int]]:
    return [(report.epoch, report.parameters_after) for report in growth.history]


# -- when ------------------------------------------------------------------------------------------

# Values of the metric, settings, and the epochs in which the model has grown, by hand.
WHEN = {
    "two epochs": ([5, 5, 5, 5, 5, 5], {}, [3, 5]),
    "an improvement starts the count again": ([5, 5, 4, 4, 4, 4], {}, [5]),
    "patience": ([5, 5, 5, 5, 5, 5], {"patience": 3}, [4]),
    "patience of one": ([5, 5, 4, 4, 4, 4], {"patience": 1}, [2, 4]),
    "cooldown": ([5] * 8, {"cooldown": 2}, [3, 7]),
    "no improvement while cooling down": ([5, 5, 5, 6, 4, 4, 4, 4], {"cooldown": 1}, [3, 7]),
    "too little is none": ([5, 4.9, 4.8, 4.8, 4], {"min_delta": 0.3}, [3]),
    "little upon little adds up": ([5, 4.8, 4.6, 4.4, 4.2], {"min_delta": 0.3}, []),
    "max": ([1, 2, 2, 2, 1, 1], {"mode": "max"}, [4]),
    "max with the least change": ([1, 1.2, 1.3, 2, 2], {"mode": "max", "min_delta": 0.5}, [3]),
    "not a number": ([5, np.nan, np.nan, 4], {}, [3]),
    "not a number at first": ([np.nan, 5, 5, 4, 4, 4], {}, []),
    "the end of the list": ([5] * 9, {}, [3, 5]),
}


@pytest.mark.parametrize(
    ("metric", "settings", "epochs"), cases(WHEN).values(), ids=list(cases(WHEN))
)
def test_the_model_grows_when_the_metric_has_stopped_to_improve(metric, settings, epochs):
    model, growth, watch = mlp(), plateau(**settings), Watch()
    fit(model, metric, growth, watch)
    assert grown_at(growth) == [(e, size(9 + 3 * i)) for i, e in enumerate(epochs)]
    expected = [size(6 + 3 * sum(e <= epoch for e in epochs)) for epoch in range(len(metric))]
    assert watch.sizes == expected
    assert growth.finished == (len(epochs) == 2)


def test_the_outputs_do_not_change_at_that_moment():
    model, growth = mlp(), plateau()
    before, after = [], []

    def note(seen):
        return of_keras.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: seen.append(outputs(model, X))
        )

    fit(model, [5] * 6, note(before), growth, note(after))
    assert max(max_difference(a, b) for a, b in zip(after, before, strict=True)) < 1e-6
    assert [report.epoch for report in growth.history] == [3, 5]


@pytest.mark.parametrize(("name", "up"), [("val_loss", False), ("val_accuracy", True)])
def test_the_metric_itself_says_which_way_it_improves(name, up):
    model = mlp(metrics=["accuracy"])
    growth = plateau(monitor=name, mode="auto", patience=1)
    values = iter([0.5, 0.6, 0.7, 0.6])

    class Says(of_keras.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs[name] = next(values)

    chain = [Says(), growth]
    model.fit(X, Y, validation_data=(X, Y), epochs=4, verbose=0, callbacks=chain)
    assert [report.epoch for report in growth.history] == ([] if up else [2, 3])


def test_a_metric_that_does_not_say_it_is_an_error():
    growth = plateau(mode="auto")
    with pytest.raises(GrowthError) as caught:
        fit(mlp(), [1, 2], growth)
    assert_explained(caught.value, "'metric' should rise or fall", "mode='min'")


def test_a_metric_that_there_is_not_is_a_warning():
    growth = plateau(monitor="val_loss")
    with pytest.warns(UserWarning, match="'val_loss', which there isn't. There are: loss, metric."):
        fit(mlp(), [1], growth)


# -- what ------------------------------------------------------------------------------------------


def test_one_operation_is_done_once_and_a_list_for_each_plateau():
    model, growth = mlp(), plateau(n2n.Wider("fc", 9))
    fit(model, [5] * 6, growth)
    assert grown_at(growth) == [(3, size(9))]
    assert growth.finished
    model = mlp()
    growth = plateau([[n2n.Wider("fc", 9), n2n.Deeper("fc")], n2n.Wider("fc", 12)])
    fit(model, [5] * 6, growth)
    assert grown_at(growth) == [(3, size(9, 1)), (5, growth.history[1].parameters_after)]
    assert len(growth.history[0].operations) == 2


def test_a_list_begins_again_if_it_is_a_cycle():
    model = mlp()
    growth = plateau([n2n.Wider("fc", factor=1.5), n2n.Deeper("fc")], cycle=True, patience=1)
    fit(model, [5] * 5, growth)
    assert [type(r.operations[0]).__name__ for r in growth.history] == ["Wider", "Deeper", "Wider"]
    assert not growth.finished


def test_a_callable_is_asked_at_each_plateau_and_may_let_it_pass():
    asked = []

    def operations(epoch, model):
        asked.append((epoch, model))
        return (
            n2n.Wider("fc", factor=1.5) if model.get_layer("fc").units < 9 and epoch > 3 else None
        )

    model = mlp()
    growth = plateau(operations)
    fit(model, [5] * 8, growth)
    assert asked == [(3, model), (5, model), (7, model)]
    assert grown_at(growth) == [(5, size(9))]
    assert not growth.finished


def test_growths_are_limited_by_number_and_by_parameters(capsys):
    growth = plateau(n2n.Wider("fc", factor=1.5), cycle=True, max_growths=2)
    fit(mlp(), [5] * 9, growth)
    assert grown_at(growth) == [(3, size(9)), (5, size(14))]
    assert growth.finished
    for limit, expected in ((size(9), [(3, size(9))]), (size(9) - 1, [])):
        growth = plateau(n2n.Wider("fc", factor=1.5), cycle=True, max_params=limit, verbose=1)
        model = mlp()
        fit(model, [5] * 9, growth)
        assert grown_at(growth) == expected
        assert growth.finished
        assert model.count_params() == max([size(6)] + [n for _, n in expected])
        text = capsys.readouterr().out
        assert text.count("No growth before epoch") == 1
        assert f"would be more than {limit}" in text


def test_a_growth_with_nothing_to_do_is_none_of_the_number():
    growth = plateau([n2n.Wider("fc", 6), n2n.Wider("fc", 9)], max_growths=1)
    history = fit(mlp(), [5] * 7, growth)
    assert [report.plan.empty for report in growth.history] == [True, False]
    assert growth.finished
    assert history.history["growth"] == [0, 0, 0, 0, 0, 1, 0]


def test_the_arguments_of_grow_are_passed_on():
    model = mlp(keras.optimizers.SGD(0.5))
    growth = plateau(seed=3, learning_rate=0.1, verify=False, optimizer_state="reset")
    fit(model, [5] * 4, growth)
    assert abs(float(array(model.optimizer.learning_rate)) - 0.05) < 1e-8
    assert growth.history[0].plan.seed == 3
    assert growth.history[0].difference is None


def test_each_fit_starts_to_watch_anew_and_goes_on_with_the_list():
    model, growth = mlp(), plateau()
    fit(model, [5] * 3, growth)  # the plateau is seen when it is too late
    assert growth.history == []
    fit(model, [9] * 4, growth)
    fit(model, [9] * 4, growth)
    assert grown_at(growth) == [(3, size(9)), (3, size(12))]


# -- what is told ----------------------------------------------------------------------------------


def test_each_growth_and_undoing_prints_a_line(capsys):
    growth = plateau(revert=True, verbose=1)
    fit(mlp(), [5, 5, 5, 6, 6, 4], growth)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"Growth before epoch 4: fc 6 -> 9 \| {size(6)} -> {size(9)} parameters, .*", lines[0]
    )
    assert lines[1] == (
        "Before epoch 6, the growth before epoch 4 was undone: metric has not improved on 5 | "
        f"{size(9)} -> {size(6)} parameters"
    )
    assert re.fullmatch(rf"Growth before epoch 6: fc 6 -> 12 \| .* -> {size(12)} param.*", lines[2])
    assert len(lines) == 3


def test_history_holds_parameters_growths_and_what_was_undone():
    growth = plateau(n2n.Wider("fc", 9), revert=True)
    history = fit(mlp(), [5] * 7, growth)
    assert history.history["params"] == [size(6)] * 3 + [size(9)] * 2 + [size(6)] * 2
    assert history.history["growth"] == [0, 0, 0, 1, 0, -1, 0]
    assert [report.undone for report in growth.history] == [5]


def test_it_goes_along_with_a_growth_scheduler():
    model = mlp()
    schedule = n2n.GrowthScheduler({1: n2n.Wider("fc", 7)}, seed=0, verbose=0)
    for chain in ([schedule, plateau()], [plateau(), schedule]):
        model = mlp()
        history = fit(model, [5] * 4, *chain)
        assert history.history["params"] == [size(6), size(7), size(7), size(9)]
        assert history.history["growth"] == [0, 1, 0, 1]


# -- what has not paid is undone -------------------------------------------------------------------


def momentary(model: keras.Model) -> list:
    """Everything that training changes: values of all variables, and who they are."""
    return variables(model) + variables(model.optimizer)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "schedule and averages": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5), momentum=0.9, use_ema=True
    ),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


@pytest.mark.parametrize("optimizer_state", ["reset", "carry"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_undoing_brings_back_model_and_optimizer_bit_for_bit(optimizer, optimizer_state):
    model = mlp(optimizer())
    before: list[tuple] = []
    behind: list[tuple] = []

    def note(seen):
        return of_keras.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: seen.append((momentary(model), outputs(model, X)))
        )

    growth = plateau(
        [[n2n.Wider("fc", 9, shares="even"), n2n.Deeper("fc")]],
        revert=True,
        learning_rate=0.1,
        optimizer_state=optimizer_state,
    )
    layers_before = list(model.layers)
    history = fit(model, [5] * 7, note(before), growth, note(behind))
    assert history.history["params"] == [size(6)] * 3 + [size(9, 1)] * 2 + [size(6)] * 2
    assert behind[5][0] == before[3][0]
    assert max_difference(behind[5][1], before[3][1]) == 0
    assert max_difference(before[5][1], before[3][1]) > 0  # it trained meanwhile
    assert momentary(model) != behind[5][0]  # and trains on
    assert all(a is b for a, b in zip(model.layers, layers_before, strict=True))


def test_after_undoing_the_training_is_what_it_would_have_been_from_there():
    """The epochs after it repeat what a model does that trains on from that moment, ungrown."""
    model, growth, watch = mlp(keras.optimizers.Adam(0.01)), plateau(revert=True), Watch()
    growth = plateau(n2n.Wider("fc", 9), revert=True)
    fit(model, [5] * 8, growth, watch, shuffle=False)
    plain, reference = mlp(keras.optimizers.Adam(0.01)), Watch()
    fit(plain, [5] * 6, reference, shuffle=False)
    # Three epochs; two on trial; then the fourth to sixth epoch of the plain one.
    again = watch.outputs[:3] + watch.outputs[5:]
    for ours, theirs in zip(again, reference.outputs, strict=True):
        assert max_difference(ours, theirs) < 1e-6
    assert watch.sizes == [size(6)] * 3 + [size(9)] * 2 + [size(6)] * 3


def test_a_growth_that_pays_stays_and_the_next_is_on_trial():
    growth, watch = plateau(revert=True), Watch()
    fit(mlp(), [5, 5, 5, 5, 4, 4, 4, 4, 4, 4], growth, watch)
    # Grown in epoch 3, improved in epoch 4; grown in 7, undone in 9.
    assert [(report.epoch, report.undone) for report in growth.history] == [(3, None), (7, 9)]
    sizes = [size(6)] * 3 + [size(9)] * 4 + [size(12)] * 2 + [size(9)]
    assert watch.sizes == sizes


def test_a_growth_that_did_not_pay_makes_room_for_the_next():
    model = mlp()
    growth = plateau([n2n.Wider("fc", 9), n2n.Deeper("fc"), n2n.Wider("fc", 8)], revert=True)
    watch = Watch()
    fit(model, [5] * 9, growth, watch)
    assert [(report.epoch, report.undone) for report in growth.history] == [
        (3, 5),
        (5, 7),
        (7, None),
    ]
    assert watch.sizes == [size(6)] * 3 + [size(9)] * 2 + [size(6, 1)] * 2 + [size(8)] * 2


def test_growths_that_were_undone_count():
    growth = plateau(n2n.Wider("fc", 9), revert=True, cycle=True, max_growths=2)
    model = mlp()
    fit(model, [5] * 10, growth)
    assert [(report.epoch, report.undone) for report in growth.history] == [(3, 5), (5, 7)]
    assert model.count_params() == size(6)
    assert growth.finished


def test_what_early_stopping_holds_is_undone_as_well():
    """It watches something else, which was best while the growth was on trial."""
    model, stop, watch = mlp(), stopping(monitor="other"), Watch()
    growth = plateau(n2n.Wider("fc", 9), revert=True)
    other = Metric(9.0, 7.0, 8.0, 8.0, 1.0, 8.0, 8.0, name="other")
    fit(model, [5] * 7, other, growth, stop, watch)
    assert growth.history[0].undone == 5
    assert stop.best_epoch == 1
    assert stop.best == 7.0
    assert max_difference(outputs(model, X), watch.outputs[1]) == 0


def test_averages_in_the_model_are_no_obstacle():
    for order in (1, -1):
        model = mlp(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
        growth = plateau(n2n.Wider("fc", 9), revert=True)
        began: list[np.ndarray] = []
        ended: list[np.ndarray] = []

        def note(seen):
            now = watch.model  # noqa: B023  (on JAX, which writes the state of the epoch back)
            values = [*now.weights, *now.optimizer.variables]
            seen.append(np.concatenate([array(value).ravel() for value in values]))

        swap = of_keras.SwapEMAWeights(swap_on_epoch=True)
        watch = of_keras.LambdaCallback(
            on_train_batch_begin=lambda batch, logs, seen=began: note(seen),
            on_train_batch_end=lambda batch, logs, seen=ended: note(seen),
        )
        fit(model, [5] * 6, *[growth, swap][::order], watch)
        assert growth.history[0].undone == 5
        # As it was at the end of the epoch before the growth; Keras swaps with rounding.
        assert np.max(np.abs(began[5] - ended[2])) < 1e-6
        assert np.max(np.abs(ended[5] - ended[2])) > 1e-3


def test_what_has_grown_since_is_not_undone():
    model = mlp()
    growth = plateau(n2n.Wider("fc", 9), revert=True)
    more = n2n.GrowthScheduler({4: n2n.Wider("fc", 11)}, seed=0, verbose=0)
    with pytest.warns(UserWarning, match="can't undo the growth before epoch 4"):
        history = fit(model, [5] * 7, growth, more)
    assert model.count_params() == size(11)
    assert growth.history[0].undone is None
    assert history.history["growth"] == [0, 0, 0, 1, 1, 0, 0]


def test_what_others_have_set_since_stays_when_a_growth_is_undone():
    model = mlp()
    growth = plateau(n2n.Wider("fc", 9), revert=True)

    def change(epoch, logs):
        if epoch == 4:
            model.note = "mine"
            model.get_layer("bn").momentum = 0.5

    fit(model, [5] * 6, growth, of_keras.LambdaCallback(on_epoch_begin=change))
    assert growth.history[0].undone == 5
    assert model.note == "mine"
    assert model.get_layer("bn").momentum == 0.5


def test_a_grown_model_that_was_undone_can_be_saved_and_grown_again(tmp_path):
    model = mlp(keras.optimizers.Adam(0.01))
    fit(model, [5] * 6, plateau([[n2n.Wider("fc", 9), n2n.Deeper("fc")]], revert=True))
    assert model.count_params() == size(6)
    model.save(tmp_path / "undone.keras")
    loaded = keras.models.load_model(tmp_path / "undone.keras")
    assert max_difference(outputs(loaded, X), outputs(model, X)) < 1e-6
    before = outputs(model, X)
    n2n.grow(model, [n2n.Wider("fc", 9), n2n.Deeper("fc")], seed=1)
    assert max_difference(outputs(model, X), before) < 1e-6
    fit(model, [1])


def test_a_settled_transaction_leaves_what_others_have_changed():
    class Thing:
        pass

    thing = Thing()
    thing.a, thing.b, thing.items, thing.others = 1, 1, [1], {1}
    transaction = Transaction()
    transaction.remember(thing)
    thing.a, thing.c = 2, 2
    thing.items.append(2)
    transaction.settle()
    thing.b, thing.d = 3, 3
    thing.others.add(3)
    transaction.roll_back()
    assert vars(thing) == {"a": 1, "b": 3, "d": 3, "items": [1], "others": {1, 3}}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["fc", 3, None, [], [n2n.Wider("fc", 9), 3], [[]], {}])
def test_operations_that_are_none_are_an_error(wrong):
    with pytest.raises(GrowthError) as caught:
        n2n.GrowOnPlateau(wrong)
    assert_explained(caught.value, "an operation, or a list of operations, is needed")


WRONG = [
    ({"monitor": None}, GrowthError, "name of a metric"),
    ({"mode": "down"}, GrowthError, "There is no mode 'down'"),
    ({"patience": 0}, SizeError, "`patience` can't be 0"),
    ({"patience": 1.5}, SizeError, "`patience` can't be 1.5"),
    ({"min_delta": -1}, GrowthError, "number of at least 0"),
    ({"min_delta": "0"}, GrowthError, "min_delta='0'"),
    ({"min_delta": float("nan")}, GrowthError, "min_delta=nan"),
    ({"cooldown": -1}, SizeError, "`cooldown` can't be -1"),
    ({"max_growths": 0}, SizeError, "`max_growths` can't be 0"),
    ({"max_params": True}, SizeError, "`max_params` can't be True"),
    ({"optimizer_state": "keep"}, GrowthError, "optimizer_state='keep'"),
    ({"learning_rate": -1}, GrowthError, "learning_rate=-1"),
]


@pytest.mark.parametrize(("settings", "error", "text"), WRONG, ids=[str(w[0]) for w in WRONG])
def test_an_argument_that_can_not_be_used_is_an_error(settings, error, text):
    with pytest.raises(error) as caught:
        n2n.GrowOnPlateau(n2n.Wider("fc", 9), **settings)
    assert_explained(caught.value, text)


def test_a_callable_is_not_cycled():
    with pytest.raises(GrowthError) as caught:
        n2n.GrowOnPlateau(lambda epoch, model: None, cycle=True)
    assert_explained(caught.value, "A callable isn't cycled")


def test_a_growth_that_fails_ends_the_fit_and_changes_nothing():
    model, growth = mlp(), plateau(n2n.Wider("out", 9))
    with pytest.raises(FixedWidthError):
        fit(model, [5] * 5, growth)
    assert model.count_params() == size(6)
    assert growth.history == []
    fit(model, [5])
