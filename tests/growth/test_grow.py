"""grow: the model goes on as it was, larger, and so does its training."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError, VerificationError
from keras_net2net.planning.changes import VariableChange
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_same,
    both_modes,
    data_for,
    few,
    flat_layers,
    long_elsewhere,
    outputs,
    randomize,
)
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state

GROWTH = [n2n.Wider("fc", 9), n2n.Deeper("fc")]


def mlp(name: str = "mlp") -> keras.Model:
    x = inputs = keras.Input((4,), name="x")
    x = layers.Dense(5, activation="tanh", name="first")(x)
    x = layers.Dense(6, activation="relu", name="fc")(x)
    return randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name=name))


def batch(n: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    shape = [(n, 4), (n, 2)]
    return tuple(random.standard_normal(size).astype("float32") for size in shape)


def trained(optimizer, model: keras.Model | None = None, steps: int = 3, **kwargs) -> keras.Model:
    """A model that has been trained for some steps."""
    model = model or mlp()
    kwargs = {"loss": "mse", "metrics": ["mae"]} | EAGERLY | kwargs
    model.compile(optimizer, **kwargs)
    for _ in range(steps):
        model.train_on_batch(*batch())
    return model


# -- the same objects --------------------------------------------------------------------


def test_the_model_and_its_layers_stay_the_same_objects():
    model = mlp()
    objects = {layer.name: layer for layer in model.layers}
    variables = {layer.name: list(layer.weights) for layer in model.layers}
    inputs = model.input
    n2n.grow(model, [n2n.Wider("fc", 9), n2n.Deeper("out")], seed=0)
    for layer in model.layers:
        if layer.name != "out_deeper_1":
            assert layer is objects[layer.name]
            assert [id(v) for v in layer.weights] == [id(v) for v in variables[layer.name]]
    assert model.input is inputs
    assert model.name == "mlp"
    assert model.get_layer("fc").units == 9
    assert model.get_layer("fc").kernel.shape == (5, 9)
    assert model.get_layer("out").input_spec.axes == {-1: 9}


def test_layers_that_do_not_change_are_untouched():
    model = mlp()
    first = model.get_layer("first")
    attributes = dict(vars(first))
    values = [id(v._value) for v in first.weights]
    bits = [array(v).tobytes() for v in first.weights]
    n2n.grow(model, n2n.Wider("fc", 9), seed=0)
    assert vars(first) == attributes
    assert [id(v._value) for v in first.weights] == values
    assert [array(v).tobytes() for v in first.weights] == bits
    n2n.grow(model, n2n.Deeper("fc"), seed=0)
    assert [array(v).tobytes() for v in first.weights] == bits
    assert first.weights == attributes["_trainable_variables"]


def test_variables_keep_their_names_paths_regularizers_and_constraints():
    x = inputs = keras.Input((4,))
    layer = layers.Dense(
        6, kernel_regularizer="l2", bias_constraint="non_neg", name="fc", activation="relu"
    )
    model = keras.Model(inputs, layers.Dense(2, name="out")(layer(x)))
    before = [(v.name, v.path, v.regularizer, v.constraint, v.dtype) for v in layer.weights]
    n2n.grow(model, n2n.Wider("fc", 9), seed=0)
    assert [(v.name, v.path, v.regularizer, v.constraint, v.dtype) for v in layer.weights] == before


def test_a_grown_model_describes_itself_at_its_new_size():
    model = mlp()
    n2n.grow(model, GROWTH, seed=0)
    lines: list[str] = []
    model.summary(print_fn=lines.append)
    assert "fc_deeper_1" in lines[0]
    assert f"{model.count_params():,}" in lines[0]
    config = model.get_config()
    units = {entry["name"]: entry["config"].get("units") for entry in config["layers"]}
    assert units == {"x": None, "first": 5, "fc": 9, "fc_deeper_1": 9, "out": 2}
    assert model.get_layer("fc").output.shape == (None, 9)
    assert model.get_layer("fc").get_build_config() == {"input_shape": (None, 5)}
    assert model.get_layer("out").get_build_config() == {"input_shape": (None, 9)}
    assert model.compute_output_shape((7, 4)) == (7, 2)


def test_the_report_tells_what_happened():
    model = mlp()
    before = model.count_params()
    report = n2n.grow(model, GROWTH, seed=0)
    assert (report.parameters_before, report.parameters_after) == (before, model.count_params())
    assert report.operations == tuple(GROWTH)
    assert report.plan == n2n.plan(mlp(), GROWTH, seed=0)
    assert 0 <= report.difference < 1e-6
    assert report.seconds > 0
    assert report.epoch is None
    assert report.notes == ()
    assert report.headline().startswith("fc 6 -> 9; inserted fc_deeper_1 | ")
    assert f"{before:,} -> {model.count_params():,} parameters" in report.headline()
    assert report.summary() == str(report) == f"{report.headline()}\n{report.plan.summary()}"


def test_the_headline_of_a_large_growth_stays_short():
    inputs = keras.Input((4,))
    x = inputs
    for i in range(6):
        x = layers.Dense(3, name=f"fc{i}")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    report = n2n.grow(model, [n2n.Wider(factor=2), n2n.Deeper("fc*")], seed=0, verify=False)
    assert "fc0 3 -> 6; fc1 3 -> 6; fc2 3 -> 6; fc3 3 -> 6; and 2 more widths" in report.headline()
    assert "fc3_deeper_1 and 2 more" in report.headline()
    assert report.headline().endswith("not compared")


# -- compiled models -----------------------------------------------------------------------


class Own(keras.Model):
    """A model with a training step of its own, which counts and adds to the loss."""

    steps = 0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return 2 * super().compute_loss(x, y, y_pred, sample_weight, **kwargs)

    def train_step(self, *args, **kwargs):
        type(self).steps += 1
        return super().train_step(*args, **kwargs)


SETTINGS = {
    "as it comes": {},
    "eagerly": {"run_eagerly": True},
    "without compiling": {"jit_compile": False},
    "several steps at once": {"steps_per_execution": 2},
    "weighted metrics and loss": {"weighted_metrics": ["mse"], "loss_weights": [0.5]},
    "objects": {"loss": keras.losses.Huber(), "metrics": [keras.metrics.MeanAbsoluteError()]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_compiled_model_keeps_its_settings_and_trains_on(settings):
    if "steps_per_execution" in settings and BACKEND == "torch":
        pytest.skip("PyTorch takes one step at a time")
    model = mlp()
    kwargs = {"loss": "mse", "metrics": ["mae"]} | settings
    model.compile(keras.optimizers.Adam(0.01), **kwargs)
    x, y = batch()
    model.fit(x, y, batch_size=2, epochs=1, verbose=0)
    optimizer, metrics = model.optimizer, list(model.metrics)
    config = model.get_compile_config()
    kept = (model.jit_compile, model.run_eagerly, model.steps_per_execution, model.loss)
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    n2n.grow(model, GROWTH, seed=0)
    assert model.compiled
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 4
    assert [id(metric) for metric in model.metrics] == [id(metric) for metric in metrics]
    assert model.get_compile_config() == config
    assert (model.jit_compile, model.run_eagerly, model.steps_per_execution, model.loss) == kept
    after = model.evaluate(x, y, verbose=0, return_dict=True)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert abs(after[name] - value) < 1e-6 * max(1, abs(value))
    assert model.predict(x, verbose=0).shape == (8, 2)
    history = model.fit(x, y, batch_size=2, epochs=2, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert int(optimizer.iterations) == 12


def test_a_custom_train_step_goes_on():
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc")(x)
    model = Own(inputs, layers.Dense(2, name="out")(x))
    model.compile("sgd", "mse", run_eagerly=True)
    loss = model.test_on_batch(*batch())
    n2n.grow(model, GROWTH, seed=0)
    assert type(model) is Own
    assert abs(model.test_on_batch(*batch()) - loss) < 1e-6
    Own.steps = 0
    assert abs(model.train_on_batch(*batch()) - loss) < 1e-6
    assert Own.steps == 1


def test_the_loss_after_a_growth_is_the_loss_before_on_the_same_batch():
    model = trained(keras.optimizers.SGD(0.0))
    x, y = batch()
    before = model.test_on_batch(x, y)
    assert_same([np.array(model.evaluate(x, y, verbose=0))], [np.array(before)])
    for seed, operation in enumerate([*GROWTH, n2n.Wider(factor=1.3)]):
        n2n.grow(model, operation, seed=seed)
        for after in (
            model.train_on_batch(x, y),
            model.test_on_batch(x, y),
            model.evaluate(x, y, verbose=0),
        ):
            assert_same([np.array(after)], [np.array(before)])


def test_a_model_that_has_only_been_compiled_can_grow():
    for optimizer in ("adam", keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())):
        model = trained(optimizer, steps=0)
        assert not model.optimizer.built
        n2n.grow(model, GROWTH, seed=0, learning_rate=0.5)
        model.fit(*batch(), epochs=1, verbose=0)
        assert int(model.optimizer.iterations) == 1


def test_a_model_that_was_never_compiled_stays_so():
    model = mlp()
    n2n.grow(model, GROWTH, seed=0, learning_rate=0.5)
    assert not model.compiled
    assert model.predict(batch()[0], verbose=0).shape == (8, 2)


def test_evaluate_and_predict_need_no_training_before():
    model = mlp()
    model.compile("sgd", "mse")
    x, y = batch()
    loss, made = model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
    n2n.grow(model, GROWTH, seed=0)
    assert abs(model.evaluate(x, y, verbose=0) - loss) < 1e-6
    assert_same([model.predict(x, verbose=0)], [made])


def test_a_growth_between_the_batches_of_an_epoch():
    class Grow(keras.callbacks.Callback):
        def __init__(self, moment):
            super().__init__()
            setattr(self, moment, self.grow)

        def grow(self, step, logs=None):
            if step == 1:
                x, _ = batch()
                if hasattr(self.model, "jax_state_sync"):
                    self.model.jax_state_sync()
                before = array(self.model(x))
                n2n.grow(self.model, GROWTH, seed=0)
                self.difference = float(np.max(np.abs(array(self.model(x)) - before)))

    for moment in ("on_train_batch_begin", "on_train_batch_end"):
        model = trained("adam", steps=0)
        callback = Grow(moment)
        x, y = batch(16)
        model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[callback])
        assert callback.difference < 1e-6
        assert model.get_layer("fc").units == 9
        assert int(model.optimizer.iterations) == 8
        # What was trained after the growth was written back to the variables.
        assert not np.array_equal(array(model.get_layer("fc_deeper_1").kernel), np.eye(9))


# -- optimizers ------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.01),
    "SGD with momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "Adam with amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.01),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "gradient accumulation": lambda: keras.optimizers.SGD(0.01, gradient_accumulation_steps=2),
    "clipping": lambda: keras.optimizers.SGD(0.01, global_clipnorm=1.0),
}


def slots(optimizer) -> list[keras.Variable]:
    """The variables of an optimizer that belong to the model's variables."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    kept = {id(optimizer._iterations), id(inner._iterations), id(inner._learning_rate)}
    names = ("step_counter", "dynamic_scale")
    kept |= {id(getattr(optimizer, name)) for name in names if hasattr(optimizer, name)}
    return [variable for variable in optimizer.variables if id(variable) not in kept]


def unnumbered(variable) -> tuple[str, tuple[int, ...]]:
    """Name and shape; one of Nadam's has a number that counts all variables there were."""
    return variable.name.rstrip("_0123456789"), tuple(variable.shape)


@pytest.mark.parametrize("make", few(OPTIMIZERS))
def test_slots_start_fresh_and_progress_stays(make):
    model = trained(make())
    optimizer = model.optimizer
    config, variables = optimizer.get_config(), len(optimizer.variables)
    iterations = int(optimizer.iterations)
    assert iterations == (1 if optimizer.gradient_accumulation_steps else 3)
    n2n.grow(model, n2n.Wider("fc", 9), seed=0, verify=False)
    assert model.optimizer is optimizer
    assert optimizer.get_config() == config
    assert int(optimizer.iterations) == iterations
    # Those of an optimizer that was made for a model of this size.
    native = keras.models.clone_model(model)
    fresh = make()
    fresh.build(native.trainable_variables)
    assert len(optimizer.variables) == variables
    assert [unnumbered(v) for v in optimizer.variables] == [unnumbered(v) for v in fresh.variables]
    for slot, like in zip(slots(optimizer), slots(fresh), strict=True):
        if slot.name.endswith("_linear"):
            continue  # FTRL computes the weights from these
        assert array(slot).tobytes() == array(like).tobytes()
    if not isinstance(optimizer, keras.optimizers.Adafactor):  # 0/0 at gradients of zero in Keras
        n2n.grow(model, n2n.Deeper("fc"), seed=0, verify=False)
    before = [array(v) for v in model.trainable_variables]
    for _ in range(2):
        assert np.all(np.isfinite(model.train_on_batch(*batch())))
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert not np.array_equal(old, array(new)), new.path


def test_the_scale_of_the_loss_stays():
    model = trained(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=64.0))
    optimizer = model.optimizer
    optimizer.dynamic_scale.assign(16.0)
    optimizer.step_counter.assign(7)
    n2n.grow(model, GROWTH, seed=0)
    assert float(array(optimizer.dynamic_scale)) == 16.0
    assert int(array(optimizer.step_counter)) == 7
    assert float(array(optimizer.scale_loss(1.0))) == 16.0


def test_averages_of_the_weights_start_from_the_weights():
    """An average that started from zero would wipe the weights out when `fit` ends."""
    optimizer = keras.optimizers.SGD(1e-4, use_ema=True, ema_momentum=0.999)
    model = trained(optimizer)
    x, y = batch()
    loss = model.evaluate(x, y, verbose=0)[0]
    n2n.grow(model, GROWTH, seed=0)
    for average, variable in zip(
        optimizer._model_variables_moving_average, model.trainable_variables, strict=True
    ):
        assert np.array_equal(array(average), array(variable))
    model.fit(x, y, epochs=1, verbose=0)  # at its end the averages become the weights
    assert abs(model.evaluate(x, y, verbose=0)[0] - loss) < 0.05 * loss
    first = model.get_layer("first").kernel
    assert np.max(np.abs(array(first))) > 0.1


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="newer Keras only")
def test_several_optimizers_in_one_are_all_fitted_to_the_new_variables():
    rest, own = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.02, momentum=0.9)
    chosen = keras.optimizers.OptimizerMap(rest)
    chosen["fc/.*"] = own
    model = trained(keras.optimizers.MultiOptimizer(chosen))
    n2n.grow(model, GROWTH, seed=0, learning_rate=0.5)
    shapes = {tuple(v.shape) for v in own.variables if v.ndim == 2}
    assert shapes == {(5, 9)}
    assert abs(float(array(own.learning_rate)) - 0.01) < 1e-8
    assert abs(float(array(rest.learning_rate)) - 0.005) < 1e-8
    before = [array(v) for v in model.trainable_variables]
    model.train_on_batch(*batch())
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert not np.array_equal(old, array(new)), new.path


def test_frozen_layers_stay_out_of_the_optimizer():
    model = mlp()
    model.get_layer("first").trainable = False
    trained(keras.optimizers.SGD(0.1, momentum=0.9), model)
    frozen = array(model.get_layer("first").kernel)
    n2n.grow(model, [n2n.Wider("first", 8), *GROWTH], seed=0)
    kernel = array(model.get_layer("first").kernel)
    assert np.array_equal(kernel[:, :5], frozen)
    model.train_on_batch(*batch())
    assert np.array_equal(array(model.get_layer("first").kernel), kernel)
    assert not model.get_layer("first").trainable
    assert len(slots(model.optimizer)) == len(model.trainable_variables) == 6


def rate(optimizer) -> float:
    return float(array(optimizer.learning_rate))


@pytest.mark.parametrize("make", [keras.optimizers.SGD, keras.optimizers.LossScaleOptimizer])
def test_the_learning_rate_is_multiplied_by_the_factor(make):
    optimizer = make(keras.optimizers.SGD(0.5)) if "Loss" in make.__name__ else make(0.5)
    model = trained(optimizer, steps=1)
    n2n.grow(model, n2n.Wider("fc", 9), seed=0, verify=False)
    assert rate(optimizer) == 0.5
    n2n.grow(model, n2n.Wider("fc", 10), seed=0, verify=False, learning_rate=0.1)
    assert abs(rate(optimizer) - 0.05) < 1e-7
    n2n.grow(model, n2n.Wider("fc", 11), seed=0, verify=False, learning_rate=2)
    assert abs(rate(optimizer) - 0.1) < 1e-7


def test_a_rate_that_was_changed_while_training_is_what_is_kept():
    optimizer = keras.optimizers.SGD(0.5)
    model = trained(optimizer, steps=1)
    optimizer.learning_rate = 0.25
    n2n.grow(model, GROWTH, seed=0)
    assert rate(optimizer) == 0.25


S = keras.optimizers.schedules
SCHEDULES = {
    "exponential": S.ExponentialDecay(0.1, 3, 0.5),
    "in steps": S.ExponentialDecay(0.1, 3, 0.5, staircase=True),
    "piecewise": S.PiecewiseConstantDecay([2, 4], [0.1, 0.05, 0.01]),
    "polynomial": S.PolynomialDecay(0.1, 10, end_learning_rate=0.02, power=2.0, cycle=True),
    "inverse time": S.InverseTimeDecay(0.1, 3, 0.5),
    "cosine": S.CosineDecay(0.1, 10, alpha=0.1),
    "cosine with warm-up": S.CosineDecay(0.01, 10, warmup_target=0.1, warmup_steps=4),
    "cosine with restarts": S.CosineDecayRestarts(0.1, 5, alpha=0.1),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_is_kept_or_scaled_as_a_whole(schedule):
    optimizer = keras.optimizers.SGD(schedule)
    model = trained(optimizer, steps=0)
    n2n.grow(model, n2n.Wider("fc", 9), seed=0, verify=False)
    assert optimizer._learning_rate is schedule
    n2n.grow(model, n2n.Wider("fc", 10), seed=0, verify=False, learning_rate=0.1)
    scaled = optimizer._learning_rate
    assert type(scaled) is type(schedule)
    for step in range(0, 40, 3):
        expected = 0.1 * float(schedule(step))
        assert abs(float(scaled(step)) - expected) < 1e-5 * expected + 1e-12
    loaded = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert abs(float(loaded._learning_rate(5)) - 0.1 * float(schedule(5))) < 1e-6
    assert abs(rate(optimizer) - 0.1 * float(schedule(0))) < 1e-6


def test_a_schedule_goes_on_at_its_step():
    schedule = S.PiecewiseConstantDecay([2, 4], [0.5, 0.25, 0.125])
    model = trained(keras.optimizers.SGD(schedule), steps=3)
    assert rate(model.optimizer) == 0.25
    n2n.grow(model, GROWTH, seed=0, learning_rate=0.5)
    assert rate(model.optimizer) == 0.125
    for _ in range(2):
        model.train_on_batch(*batch())
    assert rate(model.optimizer) == 0.0625


@keras.saving.register_keras_serializable()
class OwnSchedule(S.LearningRateSchedule):
    def __init__(self, top=0.1):
        self.top = top

    def __call__(self, step):
        return self.top

    def get_config(self):
        return {"top": self.top}


def constant_rate():
    return 0.1


@pytest.mark.parametrize("own", [OwnSchedule, lambda: constant_rate], ids=["schedule", "callable"])
def test_a_rate_that_can_not_be_scaled_is_an_error_that_undoes_all(own):
    model = trained(keras.optimizers.SGD(own(), momentum=0.9))
    before = state(model)
    with pytest.raises(GrowthError) as caught:
        n2n.grow(model, GROWTH, seed=0, learning_rate=0.1)
    assert_state(model, before)
    assert_explained(caught.value, "learning rate", "learning_rate=0.1", "`learning_rate=None`")
    n2n.grow(model, GROWTH, seed=0)
    assert np.all(np.isfinite(model.train_on_batch(*batch())))


@pytest.mark.parametrize("wrong", [0, -0.1, "0.1", True, float("nan"), float("inf"), []])
def test_a_learning_rate_factor_that_is_none_is_an_error(wrong):
    for call in (
        lambda: n2n.grow(mlp(), GROWTH, learning_rate=wrong),
        lambda: n2n.GrowthScheduler({1: GROWTH}, learning_rate=wrong),
    ):
        with pytest.raises(GrowthError) as caught:
            call()
        assert_explained(caught.value, "positive factor", f"learning_rate={wrong!r}")


@pytest.mark.parametrize("wrong", ["keep", None, True])
def test_an_unknown_treatment_of_the_optimizer_is_an_error(wrong):
    for call in (
        lambda: n2n.grow(mlp(), GROWTH, optimizer_state=wrong),
        lambda: n2n.GrowthScheduler({1: GROWTH}, optimizer_state=wrong),
    ):
        with pytest.raises(GrowthError) as caught:
            call()
        assert_explained(caught.value, "'reset'", f"optimizer_state={wrong!r}")


def test_a_growth_with_nothing_to_do_leaves_the_optimizer_alone():
    model = trained("adam")
    before = state(model)
    n2n.grow(model, n2n.Wider("fc", 6), seed=0)
    assert_state(model, before)


# -- verification ------------------------------------------------------------------------------


def spoil(monkeypatch) -> None:
    """Makes every grown weight slightly wrong."""
    apply = VariableChange.apply
    monkeypatch.setattr(VariableChange, "apply", lambda *args: apply(*args) * 1.01)


@pytest.mark.parametrize("verify", [True, batch()[0], batch()[0].tolist()], ids=["T", "x", "list"])
def test_a_wrong_growth_is_found_and_undone(monkeypatch, verify):
    verify = np.array(verify) if isinstance(verify, list) else verify
    model = trained("adam")
    before = state(model)
    spoil(monkeypatch)
    with pytest.raises(VerificationError) as caught:
        n2n.grow(model, GROWTH, seed=0, verify=verify)
    assert_state(model, before)
    parts = assert_explained(
        caught.value, "'mlp' was undone", "the outputs differ by up to", "`verify=False`"
    )
    assert "probe batch" in parts["received"]
    monkeypatch.undo()
    n2n.grow(model, GROWTH, seed=0, verify=verify)
    assert np.all(np.isfinite(model.train_on_batch(*batch())))


def test_verification_can_be_left_out(monkeypatch):
    model = mlp()
    x, _ = batch()
    before = outputs(model, x)
    spoil(monkeypatch)
    report = n2n.grow(model, GROWTH, seed=0, verify=False)
    assert report.difference is None
    assert "not compared" in report.headline()
    assert np.max(np.abs(outputs(model, x)[0] - before[0])) > 1e-3


def test_the_difference_of_what_is_not_exact_is_reported_and_not_judged():
    model = mlp()
    x, _ = batch()
    before = outputs(model, x)
    report = n2n.grow(model, [n2n.Wider("fc", 9, noise=0.5), n2n.Deeper("fc")], seed=0, verify=x)
    assert report.difference == pytest.approx(np.max(np.abs(outputs(model, x)[0] - before[0])))
    assert report.difference > 1e-3
    report = n2n.grow(mlp(), n2n.Wider("fc", 9, noise=0.5), seed=0, verify=False)
    assert report.difference is None


@dataclasses.dataclass(frozen=True, repr=False)
class Looking(n2n.Wider):
    """A widening that looks at the weights, to see in which state it is planned."""

    @property
    def looks_at_model(self):
        return True

    def draft(self, draft):
        SEEN.append([w.shape for w in draft.model.get_layer("fc").weights])
        return super().draft(draft)


SEEN = []


def test_operations_that_look_at_the_model_see_what_was_done_before():
    model = mlp()
    model.compile("adam", "mse")
    x, _ = batch()
    before = outputs(model, x)
    operations = [n2n.Wider("fc", 9), Looking("fc", 12), n2n.Deeper("fc")]
    SEEN.clear()
    planned = n2n.plan(model, operations, seed=0)
    assert model.get_layer("fc").weights[0].shape[-1] == 6
    report = n2n.grow(model, operations, seed=0)
    assert [shapes[0][-1] for shapes in SEEN] == [9, 9]
    assert [type(step.operation) for step in report.plan.steps] == [n2n.Wider, Looking, n2n.Deeper]
    assert report.plan == planned
    assert report.parameters_after == planned.parameters_after == model.count_params()
    assert np.max(np.abs(outputs(model, x)[0] - before[0])) < 1e-5
    assert np.all(np.isfinite(model.train_on_batch(*batch())))


def test_a_stage_that_fails_undoes_the_stages_before_it():
    model = mlp()
    model.compile("adam", "mse")
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(n2n.errors.SizeError):
        n2n.grow(model, [n2n.Wider("fc", 9), Looking("fc", 7)], seed=0)
    after = model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))
    assert model.get_layer("fc").units == 6
    assert np.all(np.isfinite(model.train_on_batch(*batch())))


def test_the_difference_that_is_reported_is_that_on_the_given_batch():
    model = mlp()
    x, _ = batch()
    before = outputs(model, x)
    report = n2n.grow(model, n2n.Wider(factor=1.5), seed=0, verify=x)
    expected = np.max(np.abs(outputs(model, x)[0] - before[0]))
    assert report.difference == expected


def test_weights_that_are_not_numbers_are_no_reason_to_accept_a_growth(monkeypatch):
    apply = VariableChange.apply
    monkeypatch.setattr(VariableChange, "apply", lambda *args: apply(*args) * np.nan)
    model = mlp()
    before = state(model)
    with pytest.raises(VerificationError):
        n2n.grow(model, GROWTH, seed=0)
    assert_state(model, before)


# -- inputs ------------------------------------------------------------------------------------


def tokens() -> keras.Model:
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(11, 4, name="table")(ids)
    x = layers.Conv1D(5, 3, padding="causal", activation="relu", name="conv")(x)
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(ids, layers.Dense(2, name="out")(x), name="tokens")


def two_inputs() -> keras.Model:
    ids = keras.Input((3,), dtype="int32", name="ids")
    vector = keras.Input((4,), name="vector")
    x = layers.Flatten(name="flat")(layers.Embedding(7, 2, name="table")(ids))
    y = layers.Dense(4, activation="relu", name="fc")(vector)
    x = layers.Concatenate(name="join")([x, y])
    ends = {"sum": layers.Dense(2, name="sum")(x), "all": layers.Dense(1, name="all")(x)}
    return keras.Model({"vector": vector, "ids": ids}, ends, name="two")


def images() -> keras.Model:
    x = inputs = keras.Input((None, None, 2), name="image")
    x = layers.Conv2D(3, 3, strides=2, activation="relu", name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(4, 3, activation="relu", name="last")(x)
    x = layers.GlobalMaxPooling2D(name="max")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x), name="images")


def flags() -> keras.Model:
    flag = keras.Input((4,), dtype="bool", name="flag")
    x = layers.Dense(5, activation="relu", name="fc")(keras.ops.cast(flag, "float32"))
    return keras.Model(flag, layers.Dense(2, name="out")(x), name="flags")


@pytest.mark.parametrize("build", [tokens, two_inputs, images, flags])
def test_a_probe_batch_is_made_for_inputs_of_every_kind(build):
    model = randomize(build())
    size = 12 if build is images else 4
    x = {
        tokens: lambda r: r.integers(0, 11, (3, 5)).astype("int32"),
        two_inputs: lambda r: {
            "ids": r.integers(0, 7, (3, 3)).astype("int32"),
            "vector": r.standard_normal((3, 4)).astype("float32"),
        },
        images: lambda r: r.standard_normal((2, size, size, 2)).astype("float32"),
        flags: lambda r: r.integers(0, 2, (3, 4)).astype("bool"),
    }[build](np.random.default_rng(0))
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.Wider(factor=1.5), seed=0)
    assert report.difference < 1e-6
    assert_same(both_modes(model, x), before)
    if build is not flags:
        deep = "conv" if build is not two_inputs else "fc"
        assert n2n.grow(model, n2n.Deeper(deep), seed=0, verify=x).difference < 1e-6


def test_mixed_precision_grows_to_its_own_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = mlp()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = batch()
    model.compile("adam", "mse")
    model.fit(x, y, epochs=1, verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = outputs(model, x)
    loss = model.evaluate(x, y, verbose=0)
    report = n2n.grow(model, GROWTH, seed=0, learning_rate=0.5)
    assert report.difference < 5e-3
    assert_same(outputs(model, x), before, 5e-3)
    assert model.get_layer("fc").kernel.dtype == "float32"
    assert model.get_layer("fc_deeper_1").compute_dtype == "float16"
    assert abs(model.evaluate(x, y, verbose=0) - loss) < 5e-3
    assert np.isfinite(model.fit(x, y, epochs=1, verbose=0).history["loss"][0])
    assert abs(rate(model.optimizer) - 5e-4) < 1e-8


# -- notes ---------------------------------------------------------------------------------------


def with_penalty(**kwargs) -> keras.Model:
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc", **kwargs)(x)
    x = layers.Dense(3, name="free")(x)
    return randomize(keras.Model(inputs, layers.Dense(2, name="out")(x)))


PENALTIES = [
    {"kernel_regularizer": "l2"},
    {"bias_regularizer": "l1"},
    {"activity_regularizer": "l2"},
]


@pytest.mark.parametrize("kwargs", PENALTIES, ids=str)
@pytest.mark.parametrize("operation", GROWTH, ids=str)
def test_the_report_says_that_penalties_change_with_the_number_of_weights(kwargs, operation):
    report = n2n.grow(with_penalty(**kwargs), operation, seed=0, verify=False)
    assert any("penalties" in note for note in report.notes)


def test_penalties_that_nothing_changes_are_not_mentioned():
    for operation in GROWTH:
        assert n2n.grow(with_penalty(), operation, seed=0, verify=False).notes == ()
    elsewhere = with_penalty(kernel_regularizer="l2")
    assert n2n.grow(elsewhere, n2n.Deeper("free"), seed=0, verify=False).notes == ()


# -- twenty growths ---------------------------------------------------------------------------


def test_after_twenty_growths_the_function_is_still_the_same():
    model = mlp()
    x, _ = batch()
    before = both_modes(model, x)
    for seed in range(20):
        operation = n2n.Deeper("fc") if seed % 5 == 4 else n2n.Wider(factor=1.08)
        n2n.grow(model, operation, seed=seed, verify=False)
    assert_same(both_modes(model, x), before, 1e-5)
    assert model.get_layer("fc").units >= 22


# -- saved models --------------------------------------------------------------------------------

LOAD = """
import sys
sys.modules["keras_net2net"] = None  # an import of it fails
import keras, numpy as np
folder = sys.argv[1]
for name in sys.argv[2:]:
    data = np.load(f"{folder}/{name}.npz")
    model = keras.models.load_model(f"{folder}/{name}.keras")
    made = model.predict(data["x"], verbose=0)
    difference = float(np.max(np.abs(made - data["y"])))
    iterations = int(model.optimizer.iterations)
    loss = model.evaluate(data["x"], data["target"], verbose=0)
    trained = model.fit(data["x"], data["target"], epochs=1, verbose=0, shuffle=False)
    after = [float(np.abs(w).sum()) for w in model.get_weights()]
    print(name, difference, iterations, loss, trained.history["loss"][0], *after)
"""


def convolutional() -> keras.Model:
    return randomize(
        keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                layers.Conv2D(3, 2, name="fc"),
                layers.BatchNormalization(name="bn"),
                layers.ReLU(name="act"),
                layers.Flatten(name="flat"),
                layers.Dense(2, name="out"),
            ]
        )
    )


@long_elsewhere
def test_a_grown_model_loads_and_trains_on_where_this_package_is_not_installed(tmp_path):
    expected = {}
    for build in (mlp, convolutional):
        name = build.__name__
        model = build()
        random = np.random.default_rng(0)
        x = random.standard_normal((8, *model.input_shape[1:])).astype("float32")
        target = random.standard_normal((8, 2)).astype("float32")
        model.compile(keras.optimizers.Adam(0.01), "mse")
        model.fit(x, target, epochs=2, verbose=0)
        n2n.grow(model, GROWTH, seed=0, learning_rate=0.5)
        model.fit(x, target, epochs=2, verbose=0)
        model.save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", x=x, y=model.predict(x, verbose=0), target=target)
        loss = model.evaluate(x, target, verbose=0)
        step = model.fit(x, target, epochs=1, verbose=0, shuffle=False).history["loss"][0]
        after = [float(np.abs(w).sum()) for w in model.get_weights()]
        expected[name] = [0.0, 4, loss, step, *after]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(tmp_path), *expected],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    found = {
        line.split()[0]: [float(x) for x in line.split()[1:]] for line in run.stdout.splitlines()
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # The loss, the step that Adam takes, and every weight after it: its moments were loaded.
        assert np.max(np.abs(np.array(found[name]) - values)) < 1e-4, name


def test_a_grown_model_loads_here_with_its_names_and_its_compile_state(tmp_path):
    model = trained(keras.optimizers.Adam(S.CosineDecay(0.1, 10)), steps=2)
    n2n.grow(model, GROWTH, seed=0, learning_rate=0.1)
    model.train_on_batch(*batch())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [path for path, _ in flat_layers(loaded)] == [path for path, _ in flat_layers(model)]
    assert [v.path for v in loaded.variables] == [v.path for v in model.variables]
    assert [v.path for v in loaded.optimizer.variables] == [
        v.path for v in model.optimizer.variables
    ]
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert array(one).tobytes() == array(other).tobytes()
    x = data_for(model)
    assert_same(outputs(loaded, x), outputs(model, x), 1e-7)
    model.reset_metrics()  # an older `train_on_batch` returns means over all steps since the last
    assert_same(
        [np.array(loaded.train_on_batch(*batch()))], [np.array(model.train_on_batch(*batch()))]
    )
    n2n.grow(loaded, n2n.Wider(factor=2), seed=0)


def test_weights_saved_before_a_growth_load_into_a_model_that_grows_later(tmp_path):
    """What training tools do: keep weights, and put them back in the same process."""
    model, other = mlp(), mlp()
    n2n.grow(model, GROWTH, seed=0)
    model.save_weights(tmp_path / "grown.weights.h5")
    n2n.grow(other, GROWTH, seed=0)
    for weight in other.weights:
        weight.assign(keras.ops.zeros(weight.shape))
    other.load_weights(tmp_path / "grown.weights.h5")
    x, _ = batch()
    assert_same(outputs(other, x), outputs(model, x), 0.0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own formats")
def test_a_grown_model_is_exported_and_checkpointed_by_tensorflow(tmp_path):
    import tensorflow as tf

    model = trained("adam")
    model.fit(*batch(), epochs=1, verbose=0)
    n2n.grow(model, n2n.Wider("fc", 9), seed=0)
    model.fit(*batch(), epochs=1, verbose=0)
    n2n.grow(model, n2n.Deeper("fc"), seed=0)
    x, _ = batch()
    expected = outputs(model, x)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    assert_same([exported.serve(x).numpy()], expected)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    model.fit(*batch(), epochs=1, verbose=0)
    checkpoint.restore(path).assert_existing_objects_matched()
    assert_same(outputs(model, x), expected, 0.0)
