"""The optimizer's state through a growth, and the learning rate after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net import internals
from keras_net2net.errors import GrowthError
from tests.support.gradients import batch, dense, gradients
from tests.support.helpers import BACKEND, EAGERLY, array, few, precision, randomize
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state

# -- all optimizers ----------------------------------------------------------------------------

opt = keras.optimizers
RATE = 1e-6  # so small that the weights, and with them the gradients, stay what they are
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: opt.SGD(RATE),
    "SGD with momentum": lambda: opt.SGD(RATE, momentum=0.9),
    "SGD with Nesterov momentum": lambda: opt.SGD(RATE, momentum=0.9, nesterov=True),
    "RMSprop": lambda: opt.RMSprop(RATE, epsilon=1e-12),
    "RMSprop, centered, with momentum": lambda: opt.RMSprop(
        RATE, momentum=0.5, centered=True, epsilon=1e-12
    ),
    "Adam": lambda: opt.Adam(RATE),
    "Adam with amsgrad": lambda: opt.Adam(RATE, amsgrad=True),
    "AdamW": lambda: opt.AdamW(RATE, weight_decay=0.1),
    "Adamax": lambda: opt.Adamax(RATE),
    "Adagrad": lambda: opt.Adagrad(RATE),
    "Adadelta": lambda: opt.Adadelta(RATE, epsilon=1e-12),
    "Nadam": lambda: opt.Nadam(RATE),
    "Ftrl": lambda: opt.Ftrl(RATE),
    "Lion": lambda: opt.Lion(RATE),
    "Adafactor": lambda: opt.Adafactor(RATE),
    "Lamb": lambda: opt.Lamb(RATE),
    "Muon": lambda: opt.Muon(RATE, exclude_layers=["out"]),
    "ScheduleFreeAdamW": lambda: opt.ScheduleFreeAdamW(RATE),
    "loss scale": lambda: opt.LossScaleOptimizer(opt.Adam(RATE), initial_scale=4.0),
    "averages": lambda: opt.SGD(RATE, momentum=0.9, use_ema=True, ema_momentum=0.5),
    "gradient accumulation": lambda: opt.Adam(RATE, gradient_accumulation_steps=4),
    "clipping": lambda: opt.Adam(RATE, clipvalue=10.0),
    "several": lambda: opt.MultiOptimizer(several()),
}
CLASSES = {"several": "MultiOptimizer", "loss scale": "LossScaleOptimizer"}
HAVE = {
    name: make
    for name, make in OPTIMIZERS.items()
    if hasattr(opt, CLASSES.get(name, name.split()[0].strip(",") if name[0].isupper() else "SGD"))
}
if BACKEND == "tensorflow" and keras.__version__.startswith("3.10."):
    HAVE.pop("Muon", None)  # it asks a variable of TensorFlow for its path
DOUBLE = n2n.Wider(factor=2, shares="even")


def several():
    chosen = opt.OptimizerMap(opt.Adam(RATE))
    chosen["b/.*"] = opt.SGD(RATE, momentum=0.9)
    return chosen


@pytest.fixture(scope="module")
def teacher():
    """A model, its double, and the gradients of both on two batches."""
    small = randomize(dense())
    large = n2n.clone_and_grow(small, DOUBLE, seed=3)
    batches = [batch((3,)), batch((3,), n=7)]
    found = [[gradients(model, x, y) for x, y in batches] for model in (small, large)]
    return small, large, found


def stepped(model: Any, optimizer: Any, steps: list[list[np.ndarray]]) -> Any:
    """The optimizer, having applied gradients to the model."""
    for found in steps:
        scale = (
            float(array(optimizer.initial_scale)) if hasattr(optimizer, "inner_optimizer") else 1
        )
        given = [keras.ops.convert_to_tensor(scale * g) for g in found]
        if BACKEND == "jax" and hasattr(optimizer, "inner_optimizer"):  # works there alone
            if not optimizer.built:
                optimizer.build(model.trainable_variables)
            held = [*model.trainable_variables, *optimizer.variables]
            weights = [v.value for v in model.trainable_variables]
            slots = [v.value for v in optimizer.variables]
            made = optimizer.stateless_apply(slots, given, weights)
            for variable, value in zip(held, [*made[0], *made[1]], strict=True):
                variable.assign(value)
        else:
            optimizer.apply(given, model.trainable_variables)
    return optimizer


def ones(model: Any) -> list[np.ndarray]:
    return [np.ones(v.shape, "float32") for v in model.trainable_variables]


def all_slots(optimizer: Any) -> list[internals.Slot]:
    return [s for part in internals.optimizer_parts(optimizer) for s in internals.slots_of(part)]


def named(slot: internals.Slot) -> str:
    return slot.name.split("/")[-1]  # without the optimizer's own


@pytest.mark.parametrize("operation", few({"wider": DOUBLE, "narrower": n2n.Narrower()}, 1))
@pytest.mark.parametrize("name", HAVE)
def test_carried_slots_are_those_of_a_model_that_had_its_size_from_the_start(
    name, operation, teacher
):
    """Two copies of each unit, with even shares; and merged again, with all that they keep."""
    models = list(zip(teacher[:2], teacher[2], strict=True))
    if operation is not DOUBLE:
        models.reverse()
    (first, before), (last, after) = models
    make = HAVE[name]
    model = n2n.clone(first)
    optimizer = stepped(model, make(), before)
    model.compile(optimizer, "mse", **EAGERLY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        n2n.grow(model, operation, seed=3, optimizer_state="carry")
    assert model.optimizer is optimizer
    native = stepped(n2n.clone(last), make(), after)
    assert int(optimizer.iterations) == int(native.iterations)
    found, expected = all_slots(optimizer), all_slots(native)
    assert list(map(named, found)) == list(map(named, expected))
    assert [v.shape for v in optimizer.variables] == [v.shape for v in native.variables]
    for one, other in zip(found, expected, strict=True):
        if name == "Ftrl" and one.name == "_linears":
            continue  # it makes the weights from these, and so it does of those at random
        new, like = array(one.variable), array(other.variable)
        assert np.abs(new - like).max() < 2e-4 * np.abs(like).max() + 1e-12, one.variable.path
    weights = [array(v) for v in model.trainable_variables]
    stepped(model, optimizer, after[:1])
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        assert np.abs(array(variable) - value).max() < 1e-4, variable.path


@pytest.mark.parametrize("name", few(list(HAVE), 6))
def test_reset_slots_are_those_of_a_new_optimizer(name, teacher):
    small, _, (before, _) = teacher
    model = n2n.clone(small)
    optimizer = stepped(model, HAVE[name](), before)
    model.compile(optimizer, "mse", **EAGERLY)
    n2n.grow(model, [DOUBLE, n2n.Deeper("b")], seed=3)
    fresh = HAVE[name]()
    fresh.build(model.trainable_variables)
    for one, other in zip(all_slots(optimizer), all_slots(fresh), strict=True):
        assert named(one) == named(other)
        if one.name in ("_linears", "_model_variables_moving_average"):
            continue  # these make the weights, or become them
        if other.variable.name not in ("step_counter", "dynamic_scale"):
            assert np.array_equal(array(one.variable), array(other.variable)), one.variable.path
    assert int(optimizer.iterations) == (0 if name == "gradient accumulation" else 2)
    stepped(model, optimizer, [ones(model)])
    assert all(np.all(np.isfinite(array(v))) for v in model.trainable_variables)


def tiny(optimizer: Any, units: int = 2) -> Any:
    """One input, two units, one output, with slots made for it."""
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(units, name="fc"), layers.Dense(1, name="out")]
    )
    if units == 2:
        model.set_weights(list(map(np.array, ([[3.0, 5.0]], [1.0, 2.0], [[6.0], [8.0]], [7.0]))))
    model.compile(optimizer, "mse", **EAGERLY)
    optimizer.build(model.trainable_variables)
    return model


def fill(optimizer: Any, **values: Any) -> None:
    for slot in all_slots(optimizer):
        at = next(i for i, v in enumerate(optimizer._trainable_variables) if v is slot.owner)
        slot.variable.assign(np.array(values[slot.name.strip("_")][at], "float32"))


def of(optimizer: Any, name: str) -> list[np.ndarray]:
    return [array(s.variable).tolist() for s in all_slots(optimizer) if s.name.strip("_") == name]


def test_the_momentum_of_sgd_worked_out_by_hand():
    """Two units become three: g(2) is 0 or 1, whose copies are read by a half each."""
    optimizer = opt.SGD(0.1, momentum=0.5)
    model = tiny(optimizer)
    fill(optimizer, momentums=([[4.0, 8.0]], [2.0, 6.0], [[10.0], [20.0]], [1.0]))
    optimizer.iterations.assign(11)
    report = n2n.grow(
        model, n2n.Wider("fc", 3, shares="even"), seed=0, optimizer_state="carry", learning_rate=0.1
    )
    (layer,) = [one for one in report.plan.steps[0].layers if one.path == "fc"]
    copied = int(layer.variables[0].axes[1].remap.index[2])
    expected = (
        ([[2.0, 8.0, 2.0]], [1.0, 6.0, 1.0], [[10.0], [20.0], [10.0]], [1.0])
        if copied == 0
        else ([[4.0, 4.0, 4.0]], [2.0, 3.0, 3.0], [[10.0], [20.0], [20.0]], [1.0])
    )
    assert of(optimizer, "momentums") == list(expected)
    assert array(model.get_layer("out").kernel).sum() == 14.0  # the weights are divided
    assert int(optimizer.iterations) == 11
    assert abs(float(array(optimizer.learning_rate)) - 0.01) < 1e-8


def test_the_moments_of_adam_worked_out_by_hand():
    optimizer = opt.Adam(0.1)
    model = tiny(optimizer)
    fill(
        optimizer,
        momentums=([[4.0, 8.0]], [2.0, 6.0], [[10.0], [20.0]], [1.0]),
        velocities=([[16.0, 64.0]], [4.0, 36.0], [[100.0], [400.0]], [1.0]),
    )
    # All copied: each by a half. Then one more fresh unit, and a new layer behind.
    operations = [
        n2n.Wider("fc", 4, shares="even"),
        n2n.Wider("fc", 5, new_units="fresh"),
        n2n.Deeper("fc"),
    ]
    index = n2n.plan(model, operations, seed=0).steps[0].layers[0].variables[0].axes[1].remap.index
    n2n.grow(model, operations, seed=0, optimizer_state="carry")
    pick = lambda *values: [values[at] for at in index] + [0.0]  # noqa: E731
    zeros = np.zeros((5, 5)).tolist()
    assert of(optimizer, "momentums") == [
        [pick(2.0, 4.0)],
        pick(1.0, 3.0),
        zeros,
        zeros[0],
        [[value] for value in pick(10.0, 20.0)],
        [1.0],
    ]
    assert of(optimizer, "velocities") == [
        [pick(4.0, 16.0)],
        pick(1.0, 9.0),
        zeros,
        zeros[0],
        [[value] for value in pick(100.0, 400.0)],
        [1.0],
    ]


def test_sums_of_squares_start_where_the_optimizer_starts_them():
    optimizer = opt.Adagrad(0.1, initial_accumulator_value=0.5)
    model = tiny(optimizer)
    fill(optimizer, accumulators=([[4.5, 8.5]], [2.5, 6.5], [[10.5], [20.5]], [1.5]))
    n2n.grow(
        model,
        [
            n2n.Wider("fc", 4, shares="even"),
            n2n.Wider("fc", 5, new_units="fresh"),
            n2n.Deeper("fc"),
        ],
        seed=0,
        optimizer_state="carry",
    )
    kernel, bias, inner, _, out, _ = of(optimizer, "accumulators")
    assert sorted(kernel[0]) == [0.5, 1.5, 1.5, 2.5, 2.5]
    assert sorted(bias) == [0.5, 1.0, 1.0, 2.0, 2.0]
    assert np.all(np.array(inner) == 0.5)
    assert sorted(value for (value,) in out) == [0.5, 10.5, 10.5, 20.5, 20.5]


@pytest.mark.parametrize("how", ["reset", "carry"])
@pytest.mark.parametrize("factor", [None, 0.1])
def test_ftrl_makes_the_grown_weights_of_its_sums(how, factor):
    """It computes each weight from its sums alone: from zeros it would make zeros."""
    optimizer = opt.Ftrl(
        0.1, l1_regularization_strength=0.01, l2_regularization_strength=0.1, beta=0.2
    )
    model = tiny(optimizer)
    squares = ([[4.0, 8.0]], [2.0, 6.0], [[10.0], [20.0]], [1.0])
    fill(optimizer, accumulators=squares, linears=[np.negative(one) for one in squares])
    operations = [n2n.Wider("fc", 3), n2n.Deeper("fc")]
    n2n.grow(model, operations, seed=0, optimizer_state=how, learning_rate=factor)
    weights = [array(v) for v in model.trainable_variables]
    stepped(model, optimizer, [[np.zeros_like(w) for w in weights]])
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        assert np.abs(array(variable) - value).max() < 1e-5, variable.path


def averaged(model: Any, x: Any) -> np.ndarray:
    """What the model computes with the averages of its weights."""
    other = n2n.clone(model)
    averages = {id(s.owner): s.variable for s in all_slots(model.optimizer)}
    for mine, theirs in zip(model.trainable_variables, other.trainable_variables, strict=True):
        theirs.assign(array(averages[id(mine)]))
    return array(other(x))


@pytest.mark.parametrize("kind", [{}, {"shares": "even"}, {"new_units": "fresh"}])
def test_averages_of_the_weights_grow_as_the_weights_do(kind):
    """The model of the averages computes what it computed before."""
    optimizer = opt.SGD(0.1, use_ema=True)
    model = randomize(dense())
    model.compile(optimizer, "mse", **EAGERLY)
    optimizer.build(model.trainable_variables)
    random = np.random.default_rng(1)
    for slot in all_slots(optimizer):
        slot.variable.assign(random.standard_normal(slot.variable.shape))
    optimizer.iterations.assign(5)

    x = batch((3,))[0]
    before = averaged(model, x)
    n2n.grow(model, [n2n.Wider("b", 9, **kind), n2n.Deeper("b")], seed=0, optimizer_state="carry")
    assert np.abs(averaged(model, x) - before).max() < 1e-5


def accumulating(policy: str) -> Any:
    inner = opt.SGD(0.1, gradient_accumulation_steps=2)
    return opt.LossScaleOptimizer(inner, 64.0) if policy == "mixed_float16" else inner


@pytest.mark.parametrize(("policy", "most"), [("float32", 1e-6), ("mixed_float16", 2e-3)])
def test_gradients_that_are_being_accumulated_are_not_lost(policy, most):
    """A growth in the middle leads to the step that the large model would have taken."""
    found = []
    for early in (True, False):
        with precision(policy):
            model = randomize(dense())
        model.compile(accumulating(policy), "mse", **EAGERLY)
        growth = {"seed": 3, "optimizer_state": "carry"}
        if early:
            n2n.grow(model, DOUBLE, **growth)
        model.train_on_batch(*batch((3,)))
        if not early:
            n2n.grow(model, DOUBLE, **growth)
        before = model.get_weights()
        model.train_on_batch(*batch((3,), n=6))
        found.append([new - old for new, old in zip(model.get_weights(), before, strict=True)])
        assert int(array(model.optimizer.iterations)) == 1
    for one, other in zip(*found, strict=True):
        assert np.abs(one).max() > 1e-3
        assert np.abs(one - other).max() < most


@pytest.mark.parametrize(("policy", "most"), [("float32", 1e-6), ("mixed_float16", 2e-3)])
def test_gradients_that_are_being_accumulated_start_again_where_slots_do(policy, most):
    """The step in the middle of which the model grows is made of the rest of its batches."""
    found = []
    for early in (True, False):
        with precision(policy):
            model = randomize(dense())
        model.compile(accumulating(policy), "mse", **EAGERLY)
        if early:
            n2n.grow(model, DOUBLE, seed=3)
            model.optimizer.build(model.trainable_variables)
            inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
            inner._iterations.assign(1)
        else:
            model.train_on_batch(*batch((3,)))
            n2n.grow(model, DOUBLE, seed=3)
        before = model.get_weights()
        model.train_on_batch(*batch((3,), n=6))
        found.append([new - old for new, old in zip(model.get_weights(), before, strict=True)])
    for one, other in zip(*found, strict=True):
        assert np.abs(one).max() > 1e-3
        assert np.abs(one - other).max() < most


# How coarse the numbers are in which slots are kept.
POLICIES = {
    "mixed_float16": 0.0,
    "mixed_bfloat16": 0.0,
    "float16": 2.0**-9,
    "bfloat16": 2.0**-6,
}


@pytest.mark.parametrize("how", ["reset", "carry"])
@pytest.mark.parametrize("policy", POLICIES)
def test_slots_in_other_precisions_grow_as_those_of_float32(policy, how):
    """Moments, sums of gradients and averages; and the scale of the loss stays what it was."""
    operations = [n2n.Wider("b", 8), n2n.Deeper("b"), n2n.Wider("a", 6, shares="even")]
    found = []
    for one in (policy, "float32"):
        with precision(one):
            model = randomize(dense())
            for variable in model.trainable_variables:  # the same in both
                variable.assign(keras.ops.cast(keras.ops.cast(variable, "float16"), "float32"))
            inner = opt.Adam(0.01, amsgrad=True, use_ema=True, gradient_accumulation_steps=3)
            optimizer = opt.LossScaleOptimizer(inner, 64.0)
            model.compile(optimizer, "mse", **EAGERLY)
            optimizer.build(model.trainable_variables)
            random = np.random.default_rng(2)
            for slot in all_slots(optimizer):
                if slot.owner is not None:
                    slot.variable.assign(random.uniform(0.5, 2, slot.variable.shape))
            optimizer.dynamic_scale.assign(16.0)
            optimizer.step_counter.assign(7)
            inner._iterations.assign(5)
            n2n.grow(model, operations, seed=0, optimizer_state=how)
        assert float(array(optimizer.dynamic_scale)) == 16.0
        assert int(array(optimizer.step_counter)) == 7
        assert int(array(inner._iterations)) == 5
        found.append([slot for slot in all_slots(optimizer) if slot.owner is not None])
    assert list(map(named, found[0])) == list(map(named, found[1]))
    assert len(found[0]) == 5 * 8
    for one, other in zip(*found, strict=True):
        assert one.variable.dtype == one.owner.dtype
        new, like = (array(slot.variable).astype("float64") for slot in (one, other))
        assert new.shape == tuple(one.owner.shape)
        error = np.abs(new - like).max()
        assert error <= POLICIES[policy] * np.abs(like).max() + 1e-9, one.variable.path


@pytest.mark.parametrize("how", ["reset", "carry"])
def test_averages_in_mixed_precision_compute_what_they_did(how):
    with precision("mixed_float16"):
        model = randomize(dense())
        optimizer = opt.LossScaleOptimizer(opt.SGD(0.1, use_ema=True, ema_momentum=0.5), 64.0)
        model.compile(optimizer, "mse", **EAGERLY)
        x, y = batch((3,))
        for _ in range(3):
            model.train_on_batch(x, y)
        now, before = array(model(x)), averaged(model, x)
        assert np.abs(now - before).max() > 1e-2
        n2n.grow(model, [n2n.Wider("b", 9), n2n.Deeper("b")], seed=0, optimizer_state=how)
        # Those that start again start at the weights.
        expected = before if how == "carry" else now
        assert np.abs(averaged(model, x) - expected).max() < 5e-3
        model.train_on_batch(x, y)
        optimizer.finalize_variable_values(model.trainable_variables)
        assert np.all(np.isfinite(array(model(x))))


def test_averages_of_a_kernel_become_averages_of_its_factors():
    """The factors of the average, not the average of factors, which have other bases."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="tanh", name="a"),
            layers.Dense(4, activation="tanh", name="b"),
            layers.Dense(2, name="out"),
        ]
    )
    optimizer = opt.SGD(0.1, use_ema=True)
    randomize(model).compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    random = np.random.default_rng(1)
    for slot in all_slots(optimizer):
        slot.variable.assign(random.standard_normal(slot.variable.shape))
    x = batch((3,))[0]
    before = averaged(model, x)
    n2n.grow(model, n2n.Deeper("b", form="factor"), seed=0, optimizer_state="carry")
    assert np.abs(averaged(model, x) - before).max() < 1e-5


def test_the_moments_of_adam_through_a_merger_worked_out_by_hand():
    """Of units 0, 1, 0 the third goes: its roots of v are added, its readers' dropped."""
    optimizer = opt.Adam(0.1)
    model = tiny(optimizer, units=3)
    model.set_weights(
        list(map(np.array, ([[3.0, 5.0, 3.0]], [1.0, 2.0, 1.0], [[4.0], [8.0], [2.0]], [7.0])))
    )
    fill(
        optimizer,
        momentums=([[4.0, 8.0, 2.0]], [2.0, 6.0, 1.0], [[10.0], [20.0], [10.0]], [1.0]),
        velocities=([[16.0, 64.0, 4.0]], [4.0, 36.0, 1.0], [[100.0], [400.0], [100.0]], [1.0]),
    )
    n2n.grow(model, n2n.Narrower("fc"), seed=0, optimizer_state="carry")
    assert [w.tolist() for w in model.get_weights()] == [[[3, 5]], [1, 2], [[6], [8]], [7]]
    assert of(optimizer, "momentums") == [[[6.0, 8.0]], [3.0, 6.0], [[10.0], [20.0]], [1.0]]
    assert of(optimizer, "velocities") == [[[36.0, 64.0]], [9.0, 36.0], [[100.0], [400.0]], [1.0]]


# -- what an optimizer keeps beside its slots --------------------------------------------------


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("how", ["reset", "carry"])
def test_what_is_excluded_from_weight_decay_stays_so(how, built):
    model = randomize(dense())
    kernel = model.get_layer("b").kernel
    optimizer = opt.AdamW(1e-3, weight_decay=0.5)
    optimizer.exclude_from_weight_decay([kernel], ["bias"])
    model.compile(optimizer, "mse", **EAGERLY)
    if built:
        optimizer.build(model.trainable_variables)
    n2n.grow(model, [n2n.Wider("b", 9), n2n.Deeper("b")], seed=0, optimizer_state=how)
    assert model.get_layer("b").kernel is kernel
    decayed = {
        layer.name
        for layer in model.layers
        for variable in layer.trainable_variables
        if optimizer._use_weight_decay(variable)
    }
    assert decayed == {"a", "b_deeper_1", "out"}
    assert not any(optimizer._use_weight_decay(layer.bias) for layer in model.layers)


@pytest.mark.parametrize("how", ["reset", "carry"])
def test_the_scale_of_the_loss_stays(how):
    optimizer = opt.LossScaleOptimizer(opt.Adam(0.01), initial_scale=64.0)
    model = randomize(dense())
    model.compile(optimizer, "mse", **EAGERLY)
    stepped(model, optimizer, [ones(model)])
    optimizer.dynamic_scale.assign(16.0)
    optimizer.step_counter.assign(7)
    n2n.grow(model, n2n.Wider("b", 9), seed=0, optimizer_state=how)
    assert model.optimizer is optimizer
    assert float(array(optimizer.dynamic_scale)) == 16.0
    assert int(array(optimizer.step_counter)) == 7
    momentum = [s for s in all_slots(optimizer) if s.name == "_momentums"]
    assert [bool(array(s.variable).any()) for s in momentum] == [how == "carry"] * 6


def test_a_growth_that_fails_leaves_all_slots_as_they_were():
    model = randomize(dense())
    model.compile(opt.Adam(opt.schedules.CosineDecay(0.1, 10), use_ema=True), "mse", **EAGERLY)
    model.train_on_batch(*batch((3,)))
    before = state(model)

    def fail(old: Any, report: Any) -> Any:
        assert model.optimizer.variables[1].shape != before["optimizer"][1][1][2][1]
        raise RuntimeError("no rate today")

    with pytest.raises(RuntimeError, match="no rate today"):
        n2n.grow(
            model,
            [n2n.Wider(factor=2), n2n.Deeper("b")],
            optimizer_state="carry",
            learning_rate=[lambda old, report: 0.5, fail],
        )
    assert_state(model, before)
    model.train_on_batch(*batch((3,)))


# -- optimizers of others ----------------------------------------------------------------------


class Own(opt.Optimizer):
    """Keeps slots under names that Keras uses, and under one that it doesn't."""

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.first = self.add_optimizer_variables(variables, "momentum")
        self.strange = self.add_optimizer_variables(variables, "aura")
        self.number = self.add_variable((), name="number")

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        self.assign(self.first[index], gradient)
        self.assign(self.strange[index], keras.ops.add(self.strange[index], 1))
        self.assign_sub(variable, keras.ops.multiply(learning_rate, gradient))


def test_slots_of_an_unknown_optimizer_go_by_path_and_name_or_start_again_with_a_warning():
    model = randomize(dense())
    optimizer = Own(0.01)
    model.compile(optimizer, "mse", **EAGERLY)
    stepped(model, optimizer, [ones(model)])
    optimizer.number.assign(5)
    old = [array(v) for v in optimizer.first]
    growth = n2n.Wider("b", 10, shares="even")
    with pytest.warns(UserWarning, match="aura.* start again") as caught:
        report = n2n.grow(model, growth, seed=3, optimizer_state="carry")
    assert sum(one.category is UserWarning for one in caught) == 1
    assert any("start again" in note for note in report.notes)
    index = report.plan.steps[0].layers[0].variables[0].axes[1].remap.index
    assert np.array_equal(array(optimizer.first[2]), old[2][:, index] / 2)
    assert np.array_equal(array(optimizer.first[4]), old[4][index])
    # What doesn't grow keeps all it has.
    assert [float(array(v).mean()) for v in optimizer.strange] == [1, 1, 0, 0, 0, 1]
    assert float(array(optimizer.number)) == 5


class Derived(opt.Adam):
    """Derived from one of Keras's."""


def test_an_optimizer_derived_from_one_of_keras_is_treated_as_that():
    model = randomize(dense())
    optimizer = Derived(0.01)
    stepped(model, optimizer, [ones(model)])
    model.compile(optimizer, "mse", **EAGERLY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        n2n.grow(model, n2n.Wider("b", 9), seed=3, optimizer_state="carry")
    assert all(array(slot.variable).any() for slot in all_slots(model.optimizer))


# -- the learning rate -------------------------------------------------------------------------

Schedules = keras.optimizers.schedules


def steady() -> float:
    return 0.5


def compiled(rate: Any, steps: int = 0) -> Any:
    model = randomize(dense())
    model.compile(opt.SGD(rate, momentum=0.9), "mse", **EAGERLY)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(steps)
    return model


def rate(model: Any, step: int | None = None) -> float:
    if step is not None:
        model.optimizer.iterations.assign(step)
    return float(array(model.optimizer.learning_rate))


def grow(model: Any, policy: Any, layer: str = "b", **kwargs: Any) -> Any:
    return n2n.grow(model, n2n.Wider(layer, factor=1.5), seed=0, learning_rate=policy, **kwargs)


def test_a_callable_is_given_the_old_rate_and_the_report():
    model = compiled(0.5, steps=7)
    seen = []

    def policy(old, report):
        seen.append((old, report.parameters_after, report.step, report.difference is not None))
        return old / 5

    report = grow(model, policy)
    assert seen == [(0.5, report.parameters_after, 7, True)]
    assert isinstance(model.optimizer._learning_rate, keras.Variable)
    assert abs(rate(model) - 0.1) < 1e-7
    grow(model, lambda old, report: np.float32(0.25))
    assert rate(model) == 0.25
    grow(model, lambda old, report: keras.ops.convert_to_tensor(0.125))
    assert rate(model) == 0.125
    grow(model, [0.5, lambda old, report: old + 1, 2])
    assert rate(model) == 2.125


def test_a_number_and_a_schedule_take_the_place_of_each_other(tmp_path):
    model = randomize(dense())
    inner = opt.Adam(0.5)
    model.compile(opt.LossScaleOptimizer(inner), "mse", **EAGERLY)
    model.optimizer.build(model.trainable_variables)
    schedule = Schedules.CosineDecay(0.25, 100)
    grow(model, lambda old, report: schedule)
    assert inner._learning_rate is schedule
    assert len(inner.variables) == 1 + 2 * 6
    grow(model, lambda old, report: old, optimizer_state="carry")
    assert inner._learning_rate is schedule
    grow(model, lambda old, report: 0.125)
    assert isinstance(inner._learning_rate, keras.Variable)
    assert rate(model) == 0.125
    assert inner.variables[1] is inner._learning_rate
    assert len(inner.variables) == 2 + 2 * 6
    model.optimizer.learning_rate = 0.0625  # as callbacks do
    assert rate(model) == 0.0625
    again(model, tmp_path)


def again(model: Any, path: Any) -> Any:
    """Saves and loads a model, and trains both on: the same loss, and the same weights."""
    x, y = batch((3,))
    model.save(path / "model.keras")
    loaded = keras.saving.load_model(path / "model.keras")
    mine, theirs = model.optimizer.variables, loaded.optimizer.variables
    for one, other in zip(mine, theirs, strict=True):
        assert np.array_equal(array(one), array(other)), one.path
    model.reset_metrics()  # up to Keras 3.10 a loss is the mean since the last one
    first, second = model.train_on_batch(x, y), loaded.train_on_batch(x, y)
    assert abs(float(first) - float(second)) < 1e-5 * abs(float(first)) + 1e-6
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        assert np.abs(one - other).max() < 1e-5
    return loaded


@pytest.mark.parametrize("how", ["reset", "carry"])
@pytest.mark.parametrize("held", [steady, Schedules.CosineDecay(0.5, 10)])
def test_a_callable_or_schedule_stays_the_same_object(held, how):
    model = compiled(held, steps=3)
    grow(model, None, optimizer_state=how)
    assert model.optimizer._learning_rate is held
    assert int(model.optimizer.iterations) == 3


def test_rewinding_lets_a_schedule_start_again():
    schedule = Schedules.ExponentialDecay(0.5, 10, 0.5)
    model = compiled(schedule, steps=30)
    assert abs(rate(model) - 0.0625) < 1e-7
    grow(model, n2n.Rewind())
    assert abs(rate(model) - 0.5) < 1e-7
    assert abs(rate(model, 40) - 0.25) < 1e-7
    assert model.optimizer._learning_rate.schedule is schedule
    # A second time, from a later step: of the same schedule.
    grow(model, n2n.Rewind(to=20))
    assert abs(rate(model) - 0.125) < 1e-7
    assert abs(rate(model, 50) - 0.0625) < 1e-7
    assert model.optimizer._learning_rate.schedule is schedule
    # The paper's tenth of the initial rate.
    grow(model, [n2n.Rewind(), 0.1])
    assert abs(rate(model) - 0.05) < 1e-7
    grow(model, [n2n.Rewind(), n2n.Rewarm(4, start=0.2)])
    assert abs(rate(model) - 0.01) < 1e-7
    assert abs(rate(model, 60) - 0.025) < 1e-7


def test_rewarming_rises_to_the_rate_in_equal_steps():
    model = compiled(0.5, steps=30)
    grow(model, n2n.Rewarm(4))
    expected = [0.05, 0.1625, 0.275, 0.3875, 0.5, 0.5]
    assert np.allclose([rate(model, 30 + i) for i in range(6)], expected)
    assert rate(model, 0) == rate(model, 30)
    grow(model, 0.5)
    assert np.allclose([rate(model, 32), rate(model, 40)], [0.1375, 0.25])
    grow(model, n2n.Rewarm(2, start=0))  # the first one is done
    assert np.allclose([rate(model, step) for step in (40, 41, 42)], [0, 0.125, 0.25])
    assert model.optimizer._learning_rate.rate == 0.25
    model = compiled(Schedules.PiecewiseConstantDecay([34], [0.5, 0.25]), steps=30)
    grow(model, n2n.Rewarm(10, start=0.5))
    assert np.allclose([rate(model, step) for step in (30, 34, 35, 50)], [0.25, 0.35, 0.1875, 0.25])
    grow(model, 0.5)
    assert np.allclose(rate(model, 50), 0.125)


def test_gradient_accumulation_counts_as_its_schedule_does():
    schedule = Schedules.ExponentialDecay(0.5, 10, 0.5)
    model = randomize(dense())
    model.compile(opt.SGD(schedule, gradient_accumulation_steps=2), "mse", **EAGERLY)
    model.optimizer._iterations.assign(10)
    assert int(model.optimizer.iterations) == 5
    assert abs(rate(model) - 0.25) < 1e-6
    grow(model, n2n.Rewind())
    assert abs(rate(model) - 0.5) < 1e-6


def test_a_model_with_such_a_schedule_is_saved_and_loaded(tmp_path):
    model = compiled(Schedules.ExponentialDecay(0.1, 10, 0.5), steps=30)
    grow(model, [n2n.Rewind(), n2n.Rewarm(3)], optimizer_state="carry")
    loaded = again(model, tmp_path)
    for step in (30, 32, 33, 50):
        assert np.isclose(rate(model, step), rate(loaded, step))


@pytest.mark.parametrize("policy", [n2n.Rewind(to=3), n2n.Rewarm(5, start=0.25)])
def test_policies_are_values(policy):
    saved = keras.saving.serialize_keras_object(policy)
    assert keras.saving.deserialize_keras_object(saved) == policy
    assert hash(policy) == hash(type(policy).from_config(policy.get_config()))


@pytest.mark.parametrize(
    ("policy", "held", "parts"),
    [
        (n2n.Rewind(), 0.5, ["rewound", "Rewind(to=0)", "0.5", "`LearningRateSchedule`"]),
        (n2n.Rewarm(5), steady, ["warmed up", "Rewarm(steps=5", "number"]),
        (lambda old, report: "fast", 0.5, ["returned", "'fast'", "str"]),
        (lambda old, report: -1.0, 0.5, ["returned", "-1.0"]),
        (lambda old, report: None, 0.5, ["returned", "None"]),
        (lambda old, report: float("nan"), 0.5, ["returned", "nan"]),
        ([0.5, n2n.Rewind()], 0.5, ["rewound", "0.25"]),
    ],
)
def test_a_policy_that_does_not_fit_is_an_error_that_undoes_all(policy, held, parts):
    model = compiled(held)
    before = state(model)
    with pytest.raises(GrowthError) as caught:
        grow(model, policy, optimizer_state="carry")
    assert_state(model, before)
    assert_explained(caught.value, *parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: n2n.Rewind(-1),
        lambda: n2n.Rewind(0.5),
        lambda: n2n.Rewarm(0),
        lambda: n2n.Rewarm(3, start=1),
        lambda: n2n.Rewarm(3, start=-0.1),
        lambda: n2n.Rewarm(3, start="low"),
    ],
)
def test_arguments_of_policies_are_checked(make):
    with pytest.raises(GrowthError):
        make()


# -- inside fit --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "carry"])
def test_inside_fit_with_callbacks_that_set_the_rate(how, tmp_path):
    """The rate stays a variable; slots grow, and training goes on; then saved and loaded."""
    model = randomize(dense())
    optimizer = opt.Adam(0.08)
    model.compile(optimizer, "mse", **EAGERLY)
    seen = []
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, old: old * 0.5 if epoch == 3 else old),
        n2n.GrowthScheduler(
            {1: n2n.Wider("b", 8), 2: [n2n.Wider("a", 6), n2n.Deeper("b")]},
            seed=0,
            optimizer_state=how,
            learning_rate=lambda old, report: seen.append(report.epoch) or old * 0.5,
            verbose=0,
        ),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9),
    ]
    x, y = batch((3,), n=16)
    history = model.fit(x, y, batch_size=8, epochs=5, verbose=0, callbacks=callbacks)
    assert np.all(np.isfinite(history.history["loss"]))
    assert seen == [1, 2]
    assert int(optimizer.iterations) == 10
    # Halved by two growths, once by the schedule, and at the ends of epochs 1 to 4.
    assert abs(rate(model) - 0.08 * 0.5**7) < 1e-6
    assert model.optimizer is optimizer
    assert all(array(slot.variable).any() for slot in all_slots(optimizer))
    if how == "carry":
        again(model, tmp_path)


def test_inside_fit_slots_go_on_from_what_they_were():
    """Of an optimizer that only adds up, the sums before the growth are in those after it."""
    model = randomize(dense())
    optimizer = opt.Adagrad(1e-6, initial_accumulator_value=0.0)
    model.compile(optimizer, "mse", **EAGERLY)
    sums = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            keras_state = getattr(self.model, "jax_state_sync", None)
            if keras_state is not None:
                keras_state()
            sums.append([float(array(s.variable).sum()) for s in all_slots(optimizer)])

    growth = n2n.GrowthScheduler({1: DOUBLE}, seed=0, optimizer_state="carry", verbose=0)
    x, y = batch((3,))
    model.fit(x, y, epochs=2, verbose=0, callbacks=[growth, Look()])
    # Twice as many, each a quarter; what reads them: twice as many, half of them made twice.
    factors = [0.5, 0.5, 1, 0.5, 2, 1]
    for first, last, factor in zip(*sums, factors, strict=True):
        assert abs(last - 2 * first * factor) < 2e-3 * last


# -- students that are compiled ----------------------------------------------------------------


def test_a_student_goes_on_with_the_state_of_its_teachers_optimizer():
    teacher = randomize(dense())
    optimizer = opt.AdamW(Schedules.CosineDecay(0.1, 50), weight_decay=0.1)
    optimizer.exclude_from_weight_decay([teacher.get_layer("b").kernel], ["bias"])
    teacher.compile(optimizer, "mse", metrics=["mae"], **EAGERLY)
    x, y = batch((3,))
    teacher.train_on_batch(x, y)
    before = state(teacher)
    student = n2n.net2wider(teacher, {"b": 10}, shares="even", seed=0, optimizer_state="carry")
    assert_state(teacher, before)
    assert student.optimizer is not optimizer
    assert int(student.optimizer.iterations) == 1
    assert np.isclose(rate(student), rate(teacher))
    assert not student.optimizer._use_weight_decay(student.get_layer("b").kernel)
    assert student.optimizer._use_weight_decay(student.get_layer("a").kernel)
    (kernel,) = [
        array(s.variable)
        for s in all_slots(student.optimizer)
        if s.owner is student.get_layer("b").kernel and s.name == "_momentums"
    ]
    mine = array(optimizer._momentums[2])
    assert np.array_equal(kernel[:, :5], mine / 2)
    assert np.isclose(teacher.evaluate(x, y, verbose=0)[1], student.evaluate(x, y, verbose=0)[1])
    assert np.all(np.isfinite(student.train_on_batch(x, y)))
    assert np.array_equal(array(optimizer._momentums[2]), mine)


def test_a_student_of_a_teacher_that_was_not_trained_yet():
    teacher = randomize(dense())
    teacher.compile(opt.SGD(0.1, momentum=0.9), "mse", **EAGERLY)
    student = n2n.net2deeper(teacher, "b", optimizer_state="reset", learning_rate=0.1)
    assert np.isclose(rate(student), 0.01)
    assert np.all(np.isfinite(student.train_on_batch(*batch((3,)))))


def unregistered(y: Any, x: Any) -> Any:
    return keras.ops.mean((y - x) ** 2)


@pytest.mark.parametrize("loss", [None, unregistered])
def test_a_student_that_can_not_be_compiled_as_its_teacher_is_an_error(loss):
    teacher = randomize(dense())
    if loss is not None:
        teacher.compile("sgd", loss)
    with pytest.raises(GrowthError) as caught:
        n2n.clone_and_grow(teacher, DOUBLE, optimizer_state="carry")
    assert_explained(caught.value, "compiled", "optimizer_state", "register")
