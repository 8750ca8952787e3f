"""Composite layers and subclassed models need no rule: they are looked into."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.testing import check_model, check_rule
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    QUICK,
    array,
    assert_native,
    assert_same,
    assert_untouched,
    both_modes,
    cases,
    data_for,
    outputs,
    randomize,
    snapshot,
)

KINDS = ({}, {"shares": "even"}, {"new_units": "fresh"})
ALL = [n2n.Wider(factor=1.5, **kind) for kind in KINDS]


@keras.saving.register_keras_serializable("opening")
class Mlp(keras.Layer):
    def __init__(self, hidden, units, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.units = hidden, units
        self.up = layers.Dense(hidden, activation="gelu", name="up")
        self.down = layers.Dense(units, name="down")

    def build(self, shape):
        self.up.build(shape)
        self.down.build((*shape[:-1], self.hidden))

    def call(self, x):
        return self.down(self.up(x))

    def get_config(self):
        return {**super().get_config(), "hidden": self.hidden, "units": self.units}


@keras.saving.register_keras_serializable("opening")
class Residual(keras.Layer):
    """A block in a block in a block, with a scale of its own."""

    def __init__(self, hidden, units, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.units = hidden, units
        self.norm = layers.BatchNormalization(name="norm")
        self.mlp = Mlp(hidden, units, name="mlp")

    def build(self, shape):
        self.gamma = self.add_weight(shape=(self.units,), initializer="ones", name="gamma")
        self.norm.build(shape)
        self.mlp.build(shape)

    def call(self, x, training=None):
        return x + self.gamma * self.mlp(self.norm(x, training=training))

    def get_config(self):
        return {**super().get_config(), "hidden": self.hidden, "units": self.units}


@keras.saving.register_keras_serializable("opening")
class Stage(keras.Layer):
    def __init__(self, hidden, units, depth=2, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.units, self.depth = hidden, units, depth
        self.blocks = [Residual(hidden, units, name=f"block{i}") for i in range(depth)]

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return ops.tanh(x)

    def get_config(self):
        kept = {"hidden": self.hidden, "units": self.units, "depth": self.depth}
        return {**super().get_config(), **kept}


def staged():
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    x = Stage(6, 4, name="stage")(x)
    return keras.Model(inputs, layers.Dense(2, name="after")(x))


def test_layers_three_deep_grow_and_say_so_in_their_configuration():
    growths = [
        n2n.Wider("stage/block0/mlp/up", 8),
        n2n.Wider("stage/block1/mlp/up", 8),
        n2n.Wider("before", 7),
        ALL,
    ]
    reports = check_model(staged, growths, train=BACKEND == "torch", native=False)
    assert [bool(report.notes) for report in reports] == [True, False, False, False]


def test_the_sizes_in_the_configuration_are_those_of_now():
    model = randomize(staged())
    report = n2n.grow(model, [n2n.Wider("*/up", 9), n2n.Wider("before", 7)], seed=0)
    assert report.notes == ()
    stage = model.get_layer("stage")
    for thing in (stage, *stage.blocks, *(block.mlp for block in stage.blocks)):
        assert (thing.hidden, thing.units) == (9, 7)
        assert (thing.get_config()["hidden"], thing.get_config()["units"]) == (9, 7)
    assert_native(model)


def test_a_configuration_that_can_not_say_it_is_named_with_what_to_do_instead():
    model = randomize(staged())
    x = data_for(model)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.Wider("stage/block0/mlp/up", 9), seed=0)
    assert len(report.notes) == 1
    for part in ("'stage' (Stage) can't be rebuilt from its configuration", "`save_weights`"):
        assert part in report.notes[0]
    assert_same(both_modes(model, x), before)
    # What the note says works: the same growth of the same model, and then the weights.
    other = staged()
    n2n.grow(other, report.operations, seed=report.plan.seed, verify=False)
    other.set_weights(model.get_weights())
    assert_same(both_modes(other, x), before)


def test_layers_variables_and_tensors_stay_the_objects_that_they_were():
    model = randomize(staged())
    stage = model.get_layer("stage")
    objects = [stage, *stage.blocks, *(b.mlp for b in stage.blocks), stage.blocks[0].mlp.up]
    nodes = [len(one._inbound_nodes) for one in objects]
    inside = list(map(id, (stage.blocks[0].mlp, stage.blocks[0].norm, stage.blocks[0].mlp.up)))
    n2n.plan(model, ALL)
    assert [len(one._inbound_nodes) for one in objects] == nodes
    n2n.grow(model, ALL, seed=0)
    assert [len(one._inbound_nodes) for one in objects] == nodes
    assert model.get_layer("stage") is stage
    block = stage.blocks[0]
    assert list(map(id, (block.mlp, block.norm, block.mlp.up))) == inside
    assert stage.output.shape == (None, 3, stage.units)
    weights = {id(w) for w in model.weights}
    assert {id(w) for w in block.weights} <= weights
    assert id(block.mlp.up.kernel) in weights
    assert id(block.gamma) in weights
    assert block.gamma.shape == (stage.units,)


@keras.saving.register_keras_serializable("opening")
class Positions(keras.Layer):
    """Adds a table of its own, as positional embeddings do."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="normal", name="table")

    def call(self, x):
        return x + self.table


@keras.saving.register_keras_serializable("opening")
class LayerScale(keras.Layer):
    def __init__(self, initial=0.1, **kwargs):
        super().__init__(**kwargs)
        self.initial = initial

    def build(self, shape):
        value = keras.initializers.Constant(self.initial)
        self.gamma = self.add_weight(shape=(shape[-1],), initializer=value, name="gamma")

    def call(self, x):
        return x * self.gamma

    def get_config(self):
        return {**super().get_config(), "initial": self.initial}


@keras.saving.register_keras_serializable("opening")
class Gated(keras.Layer):
    """Two matrices of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        for name in ("value", "gate"):
            setattr(self, name, self.add_weight(shape=(shape[-1], self.units), name=name))

    def call(self, x):
        return ops.matmul(x, self.value) * ops.sigmoid(ops.matmul(x, self.gate))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("opening")
class ClassToken(keras.Layer):
    """Puts a token of its own in front."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

    def call(self, x):
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([token, x], axis=1)


@keras.saving.register_keras_serializable("opening")
class Modes(keras.Layer):
    """Takes another way in training mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one = layers.Dense(4, activation="relu", name="one")
        self.other = layers.Dense(4, activation="tanh", name="other")

    def build(self, shape):
        self.one.build(shape)
        self.other.build(shape)

    def call(self, x, training=False):
        return self.other(x) - x if training else self.one(x)


@keras.saving.register_keras_serializable("opening")
class TwoOutputs(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(4, name="first")
        self.second = layers.Dense(3, name="second")

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 4))

    def call(self, x):
        y = self.first(x)
        return {"first": y, "second": ops.relu(self.second(y))}


@keras.saving.register_keras_serializable("opening")
class DropPath(keras.Layer):
    """Stochastic depth: leaves out whole examples, at random."""

    def __init__(self, rate=0.5, seeded=True, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seeded = rate, seeded
        self.generator = keras.random.SeedGenerator(1) if seeded else None

    def call(self, x, training=False):
        if not training:
            return x
        shape = (ops.shape(x)[0], 1, 1)
        draws = keras.random.uniform(shape, dtype=x.dtype, seed=self.generator)
        return x * ops.floor(1.0 - self.rate + draws)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seeded": self.seeded}


CASES = {
    "stochastic depth": (DropPath, (3, 5), ("input",)),
    "a table of positions": (Positions, (3, 5), ("input",)),
    "a scale": (LayerScale, (3, 5), ("input",)),
    "matrices of its own": (lambda: Gated(4), (3, 5), ("input", "units")),
    "a block": (lambda: Mlp(6, 4), (3, 5), ("input", "up:units", "down:units")),
    "a residual block": (lambda: Residual(6, 5), (3, 5), None),
}


@pytest.mark.parametrize(("make", "shape", "grown"), cases(CASES, 4).values(), ids=cases(CASES, 4))
def test_a_layer_of_ones_own_passes_the_battery_without_a_rule(make, shape, grown):
    light = QUICK if BACKEND != "torch" else {"policies": ("mixed_bfloat16",)}
    found = check_rule(make, shape, **light)
    assert grown is None or found == grown


@pytest.mark.skipif(BACKEND == "jax", reason="draws no numbers there without a seed")
def test_numbers_that_are_drawn_without_a_seed_are_not_taken_for_sizes():
    assert check_rule(lambda: DropPath(seeded=False), (3, 5), **QUICK) == ("input",)


def test_a_token_in_front_is_followed_or_refused_with_the_reason():
    model = randomize(
        keras.Sequential(
            [keras.Input((3, 5)), layers.Dense(4, name="before"), ClassToken(), layers.Dense(2)]
        )
    )
    weights = snapshot(model)
    x = data_for(model)
    before = both_modes(model, x)
    try:
        n2n.grow(model, n2n.Wider("before", 6), seed=0, verify=False)
    except n2n.errors.FixedWidthError:
        assert_untouched(model, weights)
    assert_same(both_modes(model, x), before)


def between(make):
    def build():
        inputs = keras.Input((3, 5))
        x = layers.Dense(4, activation="tanh", name="before")(inputs)
        made = keras.tree.flatten(make()(x))
        return keras.Model(inputs, [layers.Dense(2)(y) for y in made])

    return build


def test_both_ways_of_a_layer_that_differs_in_training_mode_are_followed():
    check_model(
        between(lambda: Modes(name="it")),
        [n2n.Wider("before", 6), ALL],
        save=False,
        native=False,
        train=False,
    )


def test_outputs_in_a_dict_are_followed():
    check_model(
        between(lambda: TwoOutputs(name="it")),
        [n2n.Wider("it/first", 6), n2n.Wider("it/second", 5)],
        save=False,
        native=False,
        train=False,
    )


def test_a_lambda_is_followed():
    def make():
        return layers.Lambda(lambda x: ops.tanh(2.0 * x) + x)

    check_model(between(make), [n2n.Wider("before", 6), ALL], save=False, train=False, native=False)


def test_a_lambda_that_sees_units_together_is_refused():
    model = between(lambda: layers.Lambda(lambda x: x - ops.sum(x, axis=-1, keepdims=True)))()
    with pytest.raises(n2n.errors.FixedWidthError):
        n2n.plan(model, n2n.Wider("before", 6))


def test_a_lambda_that_sees_units_together_grows_by_whole_multiples_or_not_at_all():
    build = between(lambda: layers.Lambda(lambda x: x - ops.mean(x, axis=-1, keepdims=True)))
    with pytest.raises(n2n.errors.SizeError, match="whole multiples of its 4 units"):
        n2n.plan(build(), n2n.Wider("before", 6))
    check_model(build, [n2n.Wider("before", 8)], save=False, train=False, native=False)
    with pytest.raises(n2n.errors.FixedWidthError, match="before -> "):
        n2n.plan(between(lambda: layers.Lambda(ops.sort))(), n2n.Wider("before", 8))


class Remembers(keras.Layer):
    """A matrix of its own, and a loop that isn't followed."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")

    def call(self, x):
        steps = ops.transpose(ops.matmul(x, self.kernel), (1, 0, 2))
        _, states = ops.scan(lambda a, b: (a + b, a + b), ops.zeros_like(steps[0]), steps)
        return ops.transpose(states, (1, 0, 2))


def test_a_layer_that_was_looked_into_in_vain_says_what_is_in_the_way():
    model = between(lambda: Remembers(name="it"))()
    message = r"Layer 'it' .Remembers. can't be widened: it/scan.* .Scan. .*Register a rule for Rem"
    with pytest.raises(n2n.errors.FixedWidthError, match=message):
        n2n.plan(model, n2n.Wider("it", 6))
    model = between(lambda: Mlp(6, 4, name="it"))()
    with pytest.raises(n2n.GrowthError, match="Name a layer inside it: it/up, it/down"):
        n2n.plan(model, n2n.Wider("it", 6))


class BySize(keras.Layer):
    """Computes with the size of what it gets, as a number."""

    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.how = how

    def call(self, x):
        return SIZED[self.how](x)


SIZED = {
    "divides": lambda x: x / x.shape[-1],
    "divides by a float": lambda x: x / float(x.shape[-1]),
    "by its root": lambda x: x * (x.shape[-1] ** -0.5),
    "adds": lambda x: x + x.shape[-1],
    "raises": lambda x: ops.power(ops.abs(x), x.shape[-1] / 4),
    "by a shape": lambda x: x / ops.shape(x)[-1],
    "branches": lambda x: ops.relu(x) if x.shape[-1] < 5 else ops.tanh(x),
    "clips": lambda x: ops.clip(x, -1.0, x.shape[-1] / 8),
    "slopes": lambda x: ops.leaky_relu(x, 1 / x.shape[-1]),
    "by an array": lambda x: x * ops.full((1,), 1 / x.shape[-1]),
}


@pytest.mark.parametrize("how", cases(SIZED, 3))
def test_a_number_that_depends_on_a_size_is_refused_and_all_is_as_it_was(how):
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(2)(BySize(how, name="it")(x))))
    model.compile("adam", "mse", **EAGERLY)
    data = data_for(model)
    before, weights = both_modes(model, data), snapshot(model)
    with pytest.raises(n2n.GrowthError) as error:
        n2n.grow(model, n2n.Wider("before", 6), seed=0, verify=False)
    assert "it" in str(error.value)
    assert "Received: " in str(error.value)
    assert_untouched(model, weights)
    assert model.get_layer("before").units == 4
    assert model.get_layer("it").output.shape == (None, 3, 4)
    assert_same(both_modes(model, data), before, 0.0)
    model.fit(data, np.zeros((4, 3, 2), "float32"), verbose=0)


class Net(keras.Model):
    """A model in code: lists of layers, and a loop over them."""

    def __init__(self, widths=(6, 4), **kwargs):
        super().__init__(**kwargs)
        self.widths = list(widths)
        self.hidden = [layers.Dense(w, "tanh", name=f"hidden{i}") for i, w in enumerate(widths)]
        self.norms = [layers.BatchNormalization(name=f"norm{i}") for i in range(len(widths))]
        self.head = layers.Dense(2, name="head")

    def call(self, x, training=None):
        for dense, norm in zip(self.hidden, self.norms, strict=True):
            x = norm(dense(x), training=training)
        return self.head(x)

    def get_config(self):
        return {**super().get_config(), "widths": self.widths}


def net(x):
    model = Net(name="net")
    model(x)
    return randomize(model)


X = np.random.default_rng(0).standard_normal((8, 5)).astype("float32")


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_subclassed_model_grows(kind):
    model = net(X)
    before = both_modes(model, X)
    hidden = model.hidden[0]
    n2n.grow(model, n2n.Wider("hidden0", 9, **kind), seed=0, verify=False)
    n2n.grow(model, n2n.Wider(factor=1.5, **kind), seed=1, verify=False)
    assert model.hidden[0] is hidden
    assert [layer.units for layer in model.hidden] == [14, 6]
    assert model.widths == [14, 6]
    assert_same(both_modes(model, X), before)


class Parts(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = {
            "left": layers.Dense(4, activation="relu", name="left"),
            "right": layers.Dense(4, name="right"),
        }
        self.joined = layers.Dense(2, name="joined")

    def call(self, inputs):
        made = [self.parts[key](inputs[key]) for key in ("left", "right")]
        return {"joined": self.joined(made[0] * made[1]), "left": ops.tanh(self.joined(made[0]))}


def test_a_model_that_takes_a_dict_and_gives_one_grows():
    inputs = {"left": X, "right": X[:, :3]}
    model = Parts()
    model(inputs)
    randomize(model)
    before = both_modes(model, inputs)
    n2n.grow(model, n2n.Wider("right", 7), seed=0)
    assert model.parts["left"].units == 7
    assert_same(both_modes(model, inputs), before)


def test_a_subclassed_model_grows_during_fit():
    model = net(X)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    y = X[:, :2]
    growth = n2n.GrowthScheduler({1: n2n.Wider("hidden0", 9), 2: n2n.Wider(factor=1.5)}, seed=0)
    optimizer = model.optimizer
    history = model.fit(X, y, epochs=4, batch_size=4, verbose=0, callbacks=[growth])
    assert [report.epoch for report in growth.history] == [1, 2]
    assert [layer.units for layer in model.hidden] == [14, 6]
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 8
    assert len(history.history["loss"]) == 4
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert model.compiled
    assert all(report.difference < 1e-5 for report in growth.history)


def test_a_subclassed_model_that_was_not_called_is_refused():
    with pytest.raises(n2n.GrowthError, match="Call the model on a batch of data first"):
        n2n.grow(Net(), n2n.Wider(factor=2))


def test_a_grown_subclassed_model_is_loaded_where_nothing_of_this_package_is(tmp_path):
    model = net(X)
    report = n2n.grow(model, n2n.Wider({"hidden0": 9, "hidden1": 5}), seed=0)
    assert report.notes == ()
    model.save(tmp_path / "grown.keras")
    np.save(tmp_path / "x.npy", X)
    with keras.saving.custom_object_scope({"Net": Net}):
        loaded = keras.models.load_model(tmp_path / "grown.keras")
    assert_same(outputs(loaded, X), outputs(model, X))


def test_a_grown_composite_layer_is_loaded_in_a_fresh_process(tmp_path):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="before"), LayerScale()])
    model.add(layers.Dense(2))
    randomize(model)
    n2n.grow(model, n2n.Wider("before", 7), seed=0)
    model.save(tmp_path / "grown.keras")
    code = """
        import sys
        sys.modules["keras_net2net"] = None  # it isn't installed there
        import keras, numpy

        @keras.saving.register_keras_serializable("opening")
        class LayerScale(keras.Layer):
            def __init__(self, initial=0.1, **kwargs):
                super().__init__(**kwargs)
                self.initial = initial

            def build(self, shape):
                self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")

            def call(self, x):
                return x * self.gamma

        model = keras.models.load_model("grown.keras")
        x = numpy.ones((2, 5), "float32")
        numpy.save("y.npy", keras.ops.convert_to_numpy(model(x)))
    """
    environment = {**os.environ, "PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, check=True
    )
    expected = array(model(np.ones((2, 5), "float32")))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-6)
