"""A growth that fails, wherever it does, leaves the model and its training as they were."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.growth import apply, optimizers, probe
from keras_net2net.growth.history import History
from keras_net2net.growth.transaction import Transaction
from keras_net2net.planning.changes import VariableChange
from keras_net2net.planning.draft import Draft
from tests.support.helpers import EAGERLY, array, outputs, randomize
from tests.support.states import assert_state, differences, state

PACKAGE = str(Path(n2n.__file__).parent)


class Injected(BaseException):
    """The failure that a test injects."""


class Own(keras.Model):
    """A model with a training step of its own."""

    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


def functional() -> keras.Model:
    """Nested models, a shared layer, a normalization, a branch, an operation of keras.ops."""
    inner = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, activation="relu", name="fc")], name="inner"
    )
    x = inputs = keras.Input((3,), name="x")
    x = layers.Dense(5, name="first")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="act")(x)
    y = inner(x)
    shared = layers.Dense(4, name="shared")
    y = keras.ops.relu(shared(y)) + shared(y)
    y = layers.Dense(2, name="out")(y)
    model = Own(inputs, y, name="functional")
    model.extra = layers.Dense(2, name="extra")  # a layer that isn't part of the graph
    return model


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(5, name="first"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="act"),
            layers.Reshape((5, 1), name="rows"),
            layers.Flatten(name="flat"),
            layers.Dense(2, name="out"),
        ],
        name="sequential",
    )


OPERATIONS = [n2n.Wider(factor=1.5), n2n.Deeper("first", units=9)]


def data(n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return tuple(random.standard_normal((n, k)).astype("float32") for k in (3, 2))


def compiled(build: Callable[[], keras.Model], optimizer: Any = None) -> keras.Model:
    """A model in the middle of its training."""
    model = randomize(build())
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    model.compile(optimizer, "mse", metrics=["mae"], **EAGERLY)
    x, y = data()
    model.fit(x, y, epochs=1, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    return model


def grow(model: keras.Model) -> Any:
    return n2n.grow(model, OPERATIONS, seed=0, optimizer_state="carry", learning_rate=0.5)


def replace(monkeypatch: Any, owner: Any, name: str, call: int, after: bool) -> None:
    """Lets the call number `call` (from the end, if negative) of a function fail."""
    original = getattr(owner, name)
    numbers = itertools.count(1)  # weights are computed in several threads

    def failing(*args: Any, **kwargs: Any) -> Any:
        number = next(numbers)
        if number == call and not after:
            raise Injected
        result = original(*args, **kwargs)
        if number == call:
            raise Injected
        return result

    monkeypatch.setattr(owner, name, failing)


STEPS = {
    "planning the first operation": (Draft, "widen", 1),
    "planning the second operation": (Draft, "insert", 1),
    "planning the width of what was inserted": (Draft, "widen", 2),
    "making the plan": (Draft, "plan", 1),
    "making a probe batch": (probe, "make_batch", 1),
    "computing the first weight": (VariableChange, "apply", 1),
    "computing a later weight": (VariableChange, "apply", 5),
    "reading a variable": (internals, "read_variable", 2),
    "setting the first variable": (internals, "set_variable", 1),
    "setting a later variable": (internals, "set_variable", 4),
    "rebuilding the first layer": (internals, "rebuild", 1),
    "rebuilding a later layer": (internals, "rebuild", 3),
    "building an inserted layer": (internals, "build_with_values", 1),
    "relabelling the first tensor": (internals, "set_shape", 1),
    "relabelling a later tensor": (internals, "set_shape", 3),
    "relabelling as a whole": (apply, "relabel", 1),
    "making a tensor": (internals, "new_tensor", 2),
    "recording the first call": (internals, "record_call", 1),
    "recording a later call": (internals, "record_call", 4),
    "setting the graph": (internals, "set_graph", 1),
    "rewiring as a whole": (apply, "rewire", 1),
    "tracking the layers": (internals, "track_layers", 1),
    "telling the models": (internals, "containers_changed", 1),
    "resetting the optimizer": (internals, "reset_optimizer", 1),
    "Keras building the optimizer": (keras.optimizers.Adam, "build", 1),
    "carrying the slots": (optimizers, "carry", 1),
    "growing a slot": (History, "as_gradient", 3),
    "treating the slots": (optimizers.OptimizerUpdate, "follow", 1),
    "setting the learning rate": (internals, "set_learning_rate", 1),
    "treating the learning rate": (optimizers.OptimizerUpdate, "rate", 1),
    "forgetting the compiled functions": (internals, "forget_functions", 1),
    "running the grown model": (probe, "run", 2),
    "comparing": (probe.Probe, "check", 1),
}


@pytest.fixture(scope="module", params=[functional, sequential])
def model(request):
    """A model that all the failures are tried on, one after the other."""
    model = compiled(request.param)
    yield model
    # After all of them it grows and trains as if nothing had been.
    x, y = data()
    before = outputs(model, x)
    grow(model)
    assert np.max(np.abs(outputs(model, x)[0] - before[0])) < 1e-6
    assert np.isfinite(model.fit(x, y, epochs=1, verbose=0).history["loss"][0])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_a_step_leaves_everything_as_it_was(monkeypatch, model, step, after):
    owner, name, call = STEPS[step]
    before = state(model)
    replace(monkeypatch, owner, name, call, after)
    with pytest.raises((Injected, GrowthError)):
        grow(model)
    monkeypatch.undo()
    assert_state(model, before)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["first", "bn", "out"])
def test_a_failure_of_keras_in_building_a_layer_leaves_everything_as_it_was(
    monkeypatch, model, name, after
):
    layer = model.get_layer(name)
    before = state(model)
    build = layer.build

    def failing(**shapes: Any) -> None:
        if after:
            build(**shapes)
        raise Injected

    monkeypatch.setitem(vars(layer), "build", failing)
    with pytest.raises(Injected):
        grow(model)
    monkeypatch.undo()
    assert_state(model, before)


def traced(run: Callable[[], Any], fail_at: int | None) -> list[Any]:
    """Runs something and lists the package's functions as they return.

    Args:
        run: What to run.
        fail_at: The position in that list at which the function fails instead.
    """
    seen: list[Any] = []

    def local(frame: Any, event: str, argument: Any) -> Any:
        if event == "return":
            seen.append(frame.f_code)
            if len(seen) - 1 == fail_at:
                sys.settrace(None)
                raise Injected
        return local

    def enter(frame: Any, event: str, argument: Any) -> Any:
        code = frame.f_code
        ours = code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<")
        # To fail at a `yield` in this way would skip the generator's own clearing up.
        ours = ours and not code.co_flags & inspect.CO_GENERATOR
        frame.f_trace_lines = False
        return local if ours else None

    previous = sys.gettrace()
    sys.settrace(enter)
    try:
        run()
    finally:
        sys.settrace(previous)
    return seen


@pytest.mark.long
def test_a_failure_in_any_function_of_the_package_leaves_everything_as_it_was():
    """Each function fails once as it returns for the first time, and once for the last."""
    model = compiled(functional)
    trial = n2n.clone(model)
    trial.compile(keras.optimizers.Adam(0.01), "mse", **EAGERLY)
    trial.fit(*data(), epochs=1, verbose=0)
    codes = traced(lambda: grow(trial), None)
    positions: set[int] = set()
    for code in set(codes):
        positions |= {codes.index(code), len(codes) - 1 - codes[::-1].index(code)}
    committed = len(codes) - 1 - codes[::-1].index(probe.Probe.check.__code__)
    before = state(model)
    tried = 0
    for position in sorted(positions):
        if position > committed:
            continue
        try:
            traced(lambda: grow(model), position)
        except (Injected, GrowthError):
            pass
        else:
            pytest.fail(f"the failure of {codes[position].co_qualname} did not show")
        found = differences(before, state(model))
        assert not found, (codes[position].co_qualname, found[:5])
        tried += 1
    assert tried > 150
    grow(model)


def test_an_interruption_is_undone_too(monkeypatch, model):
    before = state(model)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(internals, "forget_functions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        grow(model)
    assert_state(model, before)


OPTIMIZERS = {
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "averages": lambda: keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True),
    "a schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)),
    "accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_kind_of_optimizer_is_put_back(monkeypatch, make):
    model = randomize(sequential())
    model.compile(make(), "mse", **EAGERLY)
    for _ in range(3):
        model.train_on_batch(*data())
    before = state(model)
    rates = array(model.optimizer.learning_rate)
    replace(monkeypatch, probe.Probe, "check", 1, True)
    with pytest.raises(Injected):
        grow(model)
    assert_state(model, before)
    assert np.array_equal(array(model.optimizer.learning_rate), rates)
    assert np.isfinite(model.train_on_batch(*data()))


class Fails(keras.callbacks.Callback):
    """Tries to grow at one moment of a fit, fails, and says nothing."""

    def __init__(self, moment: str, monkeypatch: Any) -> None:
        super().__init__()
        self.failures = 0
        self.monkeypatch = monkeypatch
        setattr(self, moment, self.fail)

    def fail(self, step: int, logs: Any = None) -> None:
        if step != 1:
            return
        with self.monkeypatch.context() as patch:
            replace(patch, probe.Probe, "check", 1, True)
            with pytest.raises(Injected):
                grow(self.model)
        self.failures += 1


@pytest.mark.parametrize("moment", ["on_epoch_begin", "on_epoch_end", "on_train_batch_end"])
def test_a_fit_goes_on_to_the_same_weights_as_one_without_the_failure(monkeypatch, moment):
    ends = []
    x, y = data(12)
    for failing in (False, True):
        keras.utils.set_random_seed(0)
        model = randomize(functional())
        model.compile(keras.optimizers.Adam(0.05), "mse", metrics=["mae"], **EAGERLY)
        callback = Fails(moment, monkeypatch)
        history = model.fit(
            x,
            y,
            batch_size=4,
            epochs=3,
            verbose=0,
            validation_split=0.34,
            callbacks=[callback] if failing else [],
        )
        assert callback.failures == (0 if not failing else 1 if "epoch" in moment else 3)
        values = [array(v) for v in (*model.variables, *model.optimizer.variables)]
        ends.append(([v.tobytes() for v in values], history.history))
    assert ends[0] == ends[1]


# -- the transaction itself ------------------------------------------------------------------


class Thing:
    """Something with attributes of all kinds."""

    def __init__(self) -> None:
        self.number = 1
        self.items = [1, 2]
        self.names = {"a": [1], "b": 2}
        self.kinds = {1}


def test_a_rollback_puts_back_attributes_and_what_their_containers_hold():
    thing = Thing()
    containers = (thing.items, thing.names, thing.names["a"], thing.kinds)
    transaction = Transaction()
    transaction.remember(thing)
    thing.number, thing.new = 2, 3
    thing.items.append(3)
    thing.names["a"].append(2)
    thing.names["c"] = thing.names.pop("b")
    thing.kinds |= {2}
    thing.items = []
    transaction.remember(thing)  # what was remembered first is what counts
    transaction.roll_back()
    assert vars(thing) == vars(Thing())
    assert all(
        now is then
        for now, then in zip(
            (thing.items, thing.names, thing.names["a"], thing.kinds), containers, strict=True
        )
    )


def test_a_rollback_undoes_the_last_change_first():
    done = []
    transaction = Transaction()
    for i in range(3):
        transaction.on_roll_back(lambda i=i: done.append(i))
    transaction.roll_back()
    transaction.roll_back()
    assert done == [2, 1, 0]
