"""Plans: values that can be read, compared, and replayed on arrays."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.helpers import array, flat_layers, randomize
from tests.support.states import assert_state, state

pytestmark = pytest.mark.pure


def tiny() -> keras.Model:
    return keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, name="fc"), layers.Dense(1, name="out")], name="tiny"
    )


TINY_WEIGHTS = {
    "fc/kernel": np.array([[1, 2, 3], [4, 5, 6]], "float32"),
    "fc/bias": np.array([10, 20, 30], "float32"),
    "out/kernel": np.array([[1], [2], [4]], "float32"),
    "out/bias": np.array([5], "float32"),
}


def network() -> keras.Model:
    """A nested model, a convolution with its normalization, and two branches."""
    inner = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(3, 2, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="act"),
        ],
        name="inner",
    )
    x = inputs = keras.Input((4, 4, 2), name="image")
    x = layers.Conv2D(3, 1, activation="relu", name="stem")(x)
    x = layers.Flatten(name="flat")(inner(x))
    left = layers.Dense(4, activation="relu", name="left")(x)
    right = layers.Dense(3, activation="relu", name="right")(x)
    x = layers.Concatenate(name="join")([left, right])
    return randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name="net"))


@pytest.fixture(scope="module")
def net():
    """For tests that only plan."""
    return network()


def by_path(model: keras.Model) -> dict[str, np.ndarray]:
    return {
        f"{path}/{weight.name}": array(weight)
        for path, layer in flat_layers(model)
        if not isinstance(layer, keras.Model)
        for weight in layer.weights
    }


OPERATIONS = {
    "wider": [n2n.Wider("stem", 5), n2n.Wider(factor=1.5)],
    "wider with fresh units": [n2n.Wider(factor=2, new_units="fresh")],
    "wider with random units": [n2n.Wider("left", 9, new_units="random")],
    "wider with noise": [n2n.Wider("*t", factor=2, noise=0.1, shares="even")],
    "deeper": [n2n.Deeper("inner/conv"), n2n.Deeper("left", 2)],
    "both": [
        n2n.Wider("inner/conv", 5),
        n2n.Deeper("conv", units=7),
        n2n.Deeper("right", 2),
        n2n.Wider("right*", factor=2, new_units="fresh"),
        n2n.Wider(factor=1.3),
    ],
}


@pytest.mark.parametrize("operations", OPERATIONS.values(), ids=OPERATIONS)
def test_a_plan_replayed_on_arrays_gives_the_weights_of_the_grown_model(operations):
    model = network()
    plan = n2n.plan(model, operations, seed=5)
    replayed = plan.apply_to(by_path(model))
    report = n2n.grow(model, operations, seed=5, verify=False)
    assert report.plan == plan
    grown = by_path(model)
    assert grown.keys() == replayed.keys()
    for path, value in grown.items():
        assert value.dtype == replayed[path].dtype
        assert value.shape == replayed[path].shape
        assert value.tobytes() == replayed[path].tobytes(), path
    assert plan.parameters_after == model.count_params() == sum(v.size for v in grown.values())


def test_a_replay_leaves_the_arrays_that_it_is_given_and_passes_on_what_it_does_not_know():
    plan = n2n.plan(tiny(), n2n.Wider("fc", 7), seed=0)
    given = {path: value.copy() for path, value in TINY_WEIGHTS.items()}
    given["something/else"] = np.ones(3)
    grown = plan.apply_to(given)
    assert grown["something/else"] is given["something/else"]
    for path, value in TINY_WEIGHTS.items():
        assert np.array_equal(given[path], value)
    assert grown["fc/kernel"].shape == (2, 7)
    given.pop("fc/bias")
    with pytest.raises(KeyError, match="fc/bias"):
        plan.apply_to(given)


def test_a_replay_keeps_the_dtype_of_the_arrays():
    plan = n2n.plan(tiny(), n2n.Wider("fc", 7), seed=0)
    for dtype in ("float64", "float16"):
        grown = plan.apply_to({path: value.astype(dtype) for path, value in TINY_WEIGHTS.items()})
        assert {str(value.dtype) for value in grown.values()} == {dtype}


def test_what_is_drawn_is_the_same_on_every_backend_and_machine():
    """These numbers stand for all runs: they may only change with a note in the changelog."""
    plan = n2n.plan(tiny(), n2n.Wider("fc", units=7), seed=42)
    copies = [0, 1, 2, 1, 2, 0, 2]
    remap = plan.steps[0].layers[0].variables[0].axes[1].remap
    assert remap.index.tolist() == copies
    assert remap.new.tolist() == [False] * 3 + [True] * 4
    grown = plan.apply_to(TINY_WEIGHTS)
    assert grown["fc/kernel"].tolist() == [[c + 1 for c in copies], [c + 4 for c in copies]]
    assert grown["fc/bias"].tolist() == [10 * (c + 1) for c in copies]
    shares = [0.45692933, 0.9790479, 1.2489402, 1.0209521, 0.934078, 0.5430707, 1.8169818]
    assert np.max(np.abs(grown["out/kernel"][:, 0] - shares)) < 1e-6
    fresh = n2n.plan(tiny(), n2n.Wider("fc", units=5, new_units="fresh"), seed=42)
    grown = fresh.apply_to(TINY_WEIGHTS)
    drawn = [[0.37189716, 3.507491], [4.106299, 4.0862584]]
    assert np.max(np.abs(grown["fc/kernel"][:, 3:] - drawn)) < 1e-6


@pytest.mark.parametrize(
    "others",
    [
        lambda one: [n2n.Wider("right", 9), one],
        lambda one: [one, n2n.Wider("right", 9)],
        lambda one: [n2n.Wider("inner/conv", 5, new_units="fresh"), n2n.Deeper("right"), one],
        lambda one: [n2n.Deeper("left"), one, n2n.Wider("left_deeper_1", 40)],
    ],
)
@pytest.mark.parametrize("kind", ["replicate", "fresh", "random"])
def test_one_more_operation_does_not_change_what_the_others_draw(net, others, kind):
    one = n2n.Wider("left", 10, new_units=kind)
    alone = n2n.plan(net, one, seed=3)
    remap = alone.steps[0].layers[0].variables[0].axes[1].remap
    kernel = alone.apply_to(by_path(net))["left/kernel"]
    plan = n2n.plan(net, others(one), seed=3)
    (step,) = (step for step in plan.steps if step.operation == one)
    change = next(layer for layer in step.layers if layer.path == "left").variables[0]
    assert change.axes[1].remap == remap
    bias = plan.apply_to(by_path(net))["left/bias"]
    assert bias.tobytes() == alone.apply_to(by_path(net))["left/bias"].tobytes()
    if not any("inner" in str(other) for other in others(one)):
        assert plan.apply_to(by_path(net))["left/kernel"].tobytes() == kernel.tobytes()


def test_what_a_width_draws_depends_on_its_name_the_sizes_and_the_seed(net):
    def remap(layer: str, units: int, seed: int):
        plan = n2n.plan(net, n2n.Wider(layer, units), seed=seed)
        (width,) = plan.steps[0].widths
        changes = [
            change
            for entry in plan.steps[0].layers
            for variable in entry.variables
            for change in variable.axes
            if entry.path == layer and change is not None and change.role == "makes"
        ]
        assert (width.name, len(changes)) == (layer, 2)  # the kernel's last axis, and the bias
        return changes[0].remap.index.tolist()

    assert remap("right", 30, 0) == remap("right", 30, 0)
    assert remap("right", 30, 0) != remap("stem", 30, 0)  # of the same old size
    assert remap("right", 30, 0) != remap("right", 30, 1)


def test_planning_changes_nothing(net):
    before = state(net)
    for operations in OPERATIONS.values():
        plan = n2n.plan(net, operations, seed=1)
        assert plan.parameters_before == net.count_params() < plan.parameters_after
        assert not plan.empty
    assert_state(net, before)


def test_plans_compare_by_what_they_do():
    first = n2n.plan(network(), OPERATIONS["both"], seed=5)
    assert first == n2n.plan(network(), OPERATIONS["both"], seed=5)
    assert first != n2n.plan(network(), OPERATIONS["both"], seed=6)
    assert first != n2n.plan(network(), OPERATIONS["wider"], seed=5)
    assert n2n.plan(tiny(), n2n.Wider("fc", 6), seed=5) != n2n.plan(
        tiny(), n2n.Wider("fc", 7), seed=5
    )


def test_a_plan_is_frozen():
    plan = n2n.plan(tiny(), n2n.Wider("fc", 6), seed=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.seed = 6


def test_the_summary_tells_what_grows_what_is_inserted_and_what_stays(net):
    operations = [n2n.Wider(factor=1.5), n2n.Deeper("inner/conv"), n2n.Wider("left", 6)]
    plan = n2n.plan(net, operations, seed=5)
    assert plan.summary() == str(plan)
    before, after = net.count_params(), plan.parameters_after
    assert plan.summary() == "\n".join(
        [
            f"Growth of 'net': {before:,} -> {after:,} parameters (exact, seed 5)",
            "  Wider(factor=1.5)",
            "    widen stem: 3 -> 5",
            "    widen inner/conv: 3 -> 5",
            "    widen left: 4 -> 6",
            "    widen right: 3 -> 5",
            "    change 6 layers: stem, inner/conv, inner/bn, left, right, out",
            "    skip out: out is an output of the model",
            "  Deeper('inner/conv')",
            "    insert inner/conv_deeper_1 (Conv2D) after inner/conv",
            "    insert inner/conv_deeper_1_bn (BatchNormalization) after inner/conv_deeper_1",
            "    insert inner/conv_deeper_1_relu (ReLU) after inner/conv_deeper_1_bn",
            "    note: inner/conv_deeper_1_bn: set by what 'bn' says of its input: exact at "
            "inference; in training mode as far as a batch has these statistics",
            "  Wider('left', units=6)",
            "    skip left: has 6 units already",
        ]
    )


def test_numbers_of_parameters_are_readable():
    wide = keras.Sequential(
        [keras.Input((100,)), layers.Dense(100, name="fc"), layers.Dense(1)], name="wide"
    )
    summary = n2n.plan(wide, n2n.Wider("fc", 200), seed=0).summary()
    assert summary.startswith("Growth of 'wide': 10,201 -> 20,401 parameters (exact, seed 0)")


def test_a_plan_that_is_not_exact_says_so():
    plan = n2n.plan(tiny(), [n2n.Wider("fc", 6, noise=0.1), n2n.Deeper("fc")], seed=0)
    assert not plan.exact
    assert [step.exact for step in plan.steps] == [False, True]
    assert "(not exact, seed 0)" in plan.summary()
    assert "note: not exact: noise of 0.1" in plan.summary()


def test_a_plan_with_nothing_to_do_says_so():
    plan = n2n.plan(tiny(), n2n.Wider("fc", 3), seed=0)
    assert plan.empty
    assert plan.parameters_after == plan.parameters_before
    assert "skip fc: has 3 units already" in plan.summary()


def test_a_layer_that_counts_several_things_is_named_with_what_grows():
    inputs = keras.Input((3, 4))
    outputs = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    model = keras.Model(inputs, outputs)
    plan = n2n.plan(model, n2n.Wider("mha", {"heads": 3, "value_dim": 6}), seed=0)
    assert "widen mha: 2 -> 3" in plan.summary()
    assert "widen mha (value_dim): 4 -> 6" in plan.summary()


def test_weights_may_be_missing_where_that_is_said():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, name="fc"), layers.Dense(2, name="out")]
    )
    plan = n2n.plan(model, [n2n.Wider("fc", 9), n2n.Deeper("fc")], seed=0)
    weights = {"fc/kernel": np.ones((4, 6))}
    with pytest.raises(KeyError):
        plan.apply_to(weights)
    grown = plan.apply_to(weights, partial=True)
    assert sorted(grown) == ["fc/kernel", "fc_deeper_1/bias", "fc_deeper_1/kernel"]
    assert grown["fc/kernel"].shape == (4, 9)
    assert {value.dtype for value in grown.values()} == {np.dtype("float64")}
