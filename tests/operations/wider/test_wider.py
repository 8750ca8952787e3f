"""Wider: the sizes that it gives, how new units start, what is tied, and what it refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import ConflictError, FixedWidthError, GrowthError, SizeError
from tests.operations.test_base import mlp
from tests.support.helpers import (
    Closed,
    array,
    assert_native,
    assert_same,
    both_modes,
    data_for,
    randomize,
)
from tests.support.messages import assert_explained, refused
from tests.support.states import assert_state, state


def functional(build, outputs=3) -> keras.Model:
    """A model whose hidden part is `build(input)`, a tensor or a list of outputs."""
    x = inputs = keras.Input((4,))
    x = build(x)
    ends = x if isinstance(x, list) else [layers.Dense(outputs, name="out")(x)]
    return randomize(keras.Model(inputs, ends if len(ends) > 1 else ends[0], name="net"))


def dense(name: str, units: int = 6) -> keras.Layer:
    return layers.Dense(units, activation="relu", name=name)


def sizes(model: keras.Model) -> dict[str, int]:
    return {layer.name: layer.units for layer in model.layers if isinstance(layer, layers.Dense)}


def grown(model: keras.Model, *args, **kwargs) -> dict[str, int]:
    """Grows a model, checks that its function stays, and returns the sizes of its layers."""
    x = data_for(model)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.Wider(*args, **kwargs), seed=0, verify=False)
    assert report.parameters_after == model.count_params() > report.parameters_before
    assert_same(both_modes(model, x), before)
    assert_native(model)
    return sizes(model)


def residual() -> keras.Model:
    def build(x):
        x = dense("stem")(x)
        y = dense("inner", 5)(x)
        y = layers.Dense(6, name="end")(y)
        return layers.Add(name="sum")([x, y])

    return functional(build)


# -- sizes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "arguments", "size"),
    [
        (8, {"factor": 2}, 16),
        (8, {"factor": 2.0}, 16),
        (8, {"factor": 1.5}, 12),
        (5, {"factor": 1.5}, 8),  # 7.5: half goes up
        (3, {"factor": 1.5}, 5),  # 4.5, where Python's own rounding would give 4
        (7, {"factor": 1.2}, 8),  # 8.4
        (6, {"factor": 1.1}, 7),  # 6.6
        (5, {"factor": 1.05}, 6),  # 5.25: at least one unit more
        (1, {"factor": 1.01}, 2),
        (10, {"factor": np.float32(1.5)}, 15),
        (4, {"factor": np.int64(3)}, 12),
        (8, {"factor": 1.5, "round_to": 8}, 16),
        (8, {"factor": 2, "round_to": 8}, 16),
        (8, {"factor": 1.01, "round_to": 4}, 12),
        (5, {"factor": 1.5, "round_to": 5}, 10),
        (8, {"units": 9}, 9),
        (8, {"units": np.int32(9)}, 9),
        (8, {"units": 9, "round_to": 4}, 12),
        (8, {"units": 12, "round_to": 4}, 12),
        (6, {"units": 6, "round_to": 4}, 8),
        (1, {"units": 5}, 5),
        (2, {"units": 41}, 41),
    ],
)
def test_the_new_size_is_what_was_asked_for_rounded_as_documented(now, arguments, size):
    model = functional(lambda x: dense("fc", now)(x))
    plan = n2n.plan(model, n2n.Wider("fc", **arguments), seed=0)
    assert [(w.name, w.old, w.new) for w in plan.steps[0].widths] == [("fc", now, size)]


def test_a_dict_gives_each_layer_its_own_size():
    model = randomize(mlp())
    a, b = model.layers[:2]
    assert grown(model, {"dense_a": 9, b: 8}) == {"dense_a": 9, "dense_b": 8, "out": 2}
    assert grown(model, {a: 10, "*_b": 9}, round_to=4) == {"dense_a": 12, "dense_b": 12, "out": 2}


def test_a_list_gives_all_layers_one_size():
    assert grown(randomize(mlp()), ["dense_a", "dense_b"], 11) == {
        "dense_a": 11,
        "dense_b": 11,
        "out": 2,
    }


def test_without_layers_everything_grows_that_can_and_the_rest_is_listed_with_its_reason():
    def build(x):
        x = dense("fc")(x)
        x = layers.BatchNormalization(name="bn")(x)
        x = Closed(name="ln")(dense("normed")(x))
        return dense("last")(x)

    model = functional(build)
    plan = n2n.plan(model, n2n.Wider(factor=2), seed=0)
    assert {w.name for w in plan.steps[0].widths} == {"fc", "last"}
    reasons = {skip.path: skip.reason for skip in plan.steps[0].skipped}
    assert reasons.keys() == {"normed", "ln", "out"}  # what makes no units isn't listed
    assert reasons["out"] == "out is an output of the model"
    assert "ln (Closed) has no rule" in reasons["normed"]
    assert reasons["ln"] == "Closed has no rule"
    for path, reason in reasons.items():
        assert f"skip {path}: {reason}" in plan.summary()
    assert grown(model, factor=2) == {"fc": 12, "normed": 6, "last": 12, "out": 3}


def test_a_pattern_skips_what_can_not_grow():
    model = randomize(mlp())
    plan = n2n.plan(model, n2n.Wider("*", factor=2), seed=0)
    assert [skip.path for skip in plan.steps[0].skipped] == ["out"]
    assert grown(model, "*", factor=2) == {"dense_a": 16, "dense_b": 12, "out": 2}


def test_a_layer_that_has_the_size_already_is_left_alone():
    model = randomize(mlp())
    before = state(model)
    report = n2n.grow(model, n2n.Wider("dense_a", 8), seed=0)
    assert_state(model, before)
    assert report.plan.empty
    assert report.plan.steps[0].skipped[0].reason == "has 8 units already"
    assert report.parameters_before == report.parameters_after
    assert "nothing to grow" in report.headline()
    assert grown(model, ["dense_a", "dense_b"], 8) == {"dense_a": 8, "dense_b": 8, "out": 2}


def test_one_width_of_units_in_a_dense_layer_can_grow_from_one():
    model = functional(lambda x: dense("fc", 1)(x))
    assert grown(model, "fc", factor=4)["fc"] == 4


# -- how new units start ------------------------------------------------------------


def two_layers(**kwargs) -> tuple[keras.Model, list[np.ndarray], list[np.ndarray]]:
    """A model, its weights, and those after its hidden layer grew from 6 to 16."""
    model = functional(lambda x: dense("fc")(x))
    old = [array(w) for w in model.weights]
    n2n.grow(model, n2n.Wider("fc", 16, **kwargs), seed=3, verify=False)
    return model, old, [array(w) for w in model.weights]


def sources(old: np.ndarray, new: np.ndarray) -> list[int]:
    """For each column of `new`, the column of `old` that it equals, bit for bit."""
    columns = [column.tobytes() for column in old.T.copy()]
    return [columns.index(column.tobytes()) for column in new.T.copy()]


@pytest.mark.parametrize("shares", ["random", "even"])
def test_replicated_units_copy_what_they_read_and_share_what_reads_them(shares):
    _, old, new = two_layers(shares=shares)
    copied = sources(old[0], new[0])
    assert copied[:6] == list(range(6))
    assert np.array_equal(new[1], old[1][copied])  # the bias goes with its unit
    counts = np.bincount(copied)
    assert sorted(counts) == [2, 2, 3, 3, 3, 3]  # as evenly as 16 over 6 can be
    for unit in range(6):
        shares_of = new[2][[i for i, source in enumerate(copied) if source == unit]]
        assert np.max(np.abs(shares_of.sum(axis=0) - old[2][unit])) < 1e-6
        relative = shares_of / old[2][unit]
        if shares == "even":
            assert np.max(np.abs(relative - 1 / counts[unit])) < 1e-6
        else:  # every copy and every outgoing weight has a share of its own
            assert len(np.unique(np.round(relative, 5))) == relative.size
            assert np.all(relative > 0)
            assert np.all(relative < 1)
    assert np.array_equal(new[3], old[3])


def test_fresh_units_read_at_the_norm_of_old_ones_and_are_not_read():
    _, old, new = two_layers(new_units="fresh")
    assert np.array_equal(new[0][:, :6], old[0])
    assert np.array_equal(new[2][:6], old[2])
    assert np.count_nonzero(new[2][6:]) == 0
    norms, fresh = (np.linalg.norm(kernel, axis=0) for kernel in (old[0], new[0][:, 6:]))
    assert np.max(np.min(np.abs(fresh[:, None] - norms), axis=1)) < 1e-5
    directions = new[0] / np.linalg.norm(new[0], axis=0)
    cosines = np.abs(directions.T @ directions - np.eye(16))
    assert np.max(cosines) < 0.999  # no unit is a copy of another


def test_random_units_change_the_function_and_say_so():
    model = functional(lambda x: dense("fc")(x))
    x = data_for(model)
    before = both_modes(model, x)
    operation = n2n.Wider("fc", 16, new_units="random")
    assert not operation.exact
    report = n2n.grow(model, operation, seed=3)
    assert report.difference > 1e-3
    assert not report.plan.exact
    assert any("not exact: random units" in note for note in report.notes)
    assert "not exact" in report.plan.summary()
    after = both_modes(model, x)
    assert np.max(np.abs(after[0] - before[0])) > 0.01
    assert np.count_nonzero(array(model.weights[2])[6:]) == 30


def test_noise_moves_the_copies_by_as_much_as_was_asked_for():
    model = functional(lambda x: dense("fc", 40)(x))
    old = [array(w) for w in model.weights]
    operation = n2n.Wider("fc", 400, noise=0.05)
    assert not operation.exact
    report = n2n.grow(model, operation, seed=0)
    assert any("noise of 0.05" in note for note in report.notes)
    new = [array(w) for w in model.weights]
    assert np.array_equal(new[0][:, :40], old[0])
    distances = np.linalg.norm(new[0][:, 40:, None] - old[0][:, None, :], axis=0)
    nearest = distances.argmin(axis=1)
    noise = new[0][:, 40:] - old[0][:, nearest]
    assert 0.9 < noise.std() / (0.05 * old[0].std()) < 1.1
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    for kwargs in ({}, {"new_units": "fresh"}, {"new_units": "random"}, {"noise": 0.1}):
        first, again = (two_layers(**kwargs)[2] for _ in range(2))
        assert [a.tobytes() for a in first] == [b.tobytes() for b in again]
        model = functional(lambda x: dense("fc")(x))
        n2n.grow(model, n2n.Wider("fc", 16, **kwargs), seed=4, verify=False)
        assert not np.array_equal(array(model.weights[0]), first[0])


# -- widths that are tied, joined or multiplied -----------------------------------------


def test_the_widths_of_a_residual_sum_grow_together_and_are_reported():
    model = residual()
    plan = n2n.plan(model, n2n.Wider("end", 9), seed=0)
    (width,) = plan.steps[0].widths
    assert (width.asked, set(width.layers)) == (("end",), {"stem", "end"})
    assert "widen end: 6 -> 9 (and, tied to it: stem)" in plan.summary()
    assert grown(model, "end", 9) == {"stem": 9, "inner": 5, "end": 9, "out": 3}


def test_layers_that_were_built_for_the_old_sizes_record_the_new_ones():
    model = residual()
    grown(model, "end", 9)
    shapes = model.get_layer("sum").get_build_config()["input_shape"]
    assert [tuple(shape) for shape in shapes] == [(None, 9), (None, 9)]
    model = concatenated()
    grown(model, "whole", 9)
    shapes = model.get_layer("join").get_build_config()["input_shape"]
    assert [tuple(shape) for shape in shapes] == [(None, 6), (None, 3)]


def test_tied_widths_may_be_asked_for_twice_with_one_size():
    plan = n2n.plan(residual(), n2n.Wider({"stem": 9, "end": 9}), seed=0)
    (width,) = plan.steps[0].widths
    assert set(width.asked) == {"stem", "end"}
    assert grown(residual(), ["end", "stem"], factor=2)["stem"] == 12


@pytest.mark.parametrize("request_", [{"stem": 9, "end": 10}, {"end": 10, "stem": 9}])
def test_conflicting_sizes_of_tied_widths_are_an_error(request_):
    (first, _), (second, size) = request_.items()
    refused(
        residual(),
        n2n.Wider(request_),
        ConflictError,
        f"Layer '{second}' (Dense, 6 units) can't be widened to {size} units",
        f"tied to those of '{first}'",
        f"for which {request_[first]} are asked",
        "Ask for one size",
    )


def test_two_operations_in_a_row_may_ask_for_two_sizes():
    model = residual()
    n2n.grow(model, [n2n.Wider("stem", 9), n2n.Wider("end", 10)], seed=0)
    assert sizes(model) == {"stem": 10, "inner": 5, "end": 10, "out": 3}


def concatenated(free: bool = True) -> keras.Model:
    """`sum` has the units of `left` and `right`; unless `free`, `left` is an output as well."""

    def build(x):
        left, right = dense("left", 4)(x), dense("right", 2)(x)
        joined = layers.Concatenate(name="join")([left, right])
        x = layers.Add(name="add")([dense("whole")(x), joined])
        x = layers.Dense(3, name="out")(x)
        return [x] if free else [x, left]

    return functional(build)


def test_units_that_are_a_concatenation_grow_all_their_parts_in_proportion():
    model = concatenated()
    assert grown(model, "whole", 9) == {"left": 6, "right": 3, "whole": 9, "out": 3}
    assert grown(model, "whole", 10)["whole"] == 10
    assert grown(model, "right", factor=2)["whole"] == 13
    assert grown(model, "whole", factor=2) == {"left": 14, "right": 12, "whole": 26, "out": 3}


def test_units_that_are_a_concatenation_grow_by_the_parts_that_can():
    model = concatenated(free=False)
    assert grown(model, "whole", 9) == {"left": 4, "right": 5, "whole": 9, "out": 3}
    refused(
        model,
        n2n.Wider("left", 9),
        FixedWidthError,
        "'left' (Dense, 4 units)",
        "left is an output of the model",
    )


def multiplied() -> keras.Model:
    """`whole` has 4 times the units of `part`, since it is reshaped to (4, units)."""

    def build(x):
        whole = layers.Reshape((4, 3), name="rows")(dense("whole", 12)(x))
        rows = layers.Reshape((4, 1), name="column")(x)
        part = dense("part", 3)(rows)
        return layers.Flatten(name="flat")(layers.Add(name="add")([whole, part]))

    return functional(build)


def test_units_that_are_a_product_grow_by_whole_multiples():
    model = multiplied()
    assert grown(model, "whole", 20) == {"whole": 20, "part": 5, "out": 3}
    assert model.get_layer("rows").target_shape == (4, 5)
    assert grown(model, "part", 6) == {"whole": 24, "part": 6, "out": 3}
    assert grown(model, "whole", factor=1.5) == {"whole": 36, "part": 9, "out": 3}


@pytest.mark.parametrize(
    ("units", "nearest"), [(13, "16"), (15, "16"), (18, "16 or 20"), (23, "20 or 24")]
)
def test_units_that_are_not_possible_are_an_error_that_names_the_nearest(units, nearest):
    refused(
        multiplied(),
        n2n.Wider("whole", units),
        SizeError,
        f"Layer 'whole' (Dense, 12 units) can't be widened to {units} units",
        "can grow",
        f"Pass {nearest} units.",
    )


def test_rounding_up_applies_to_the_size_that_is_asked_for():
    assert grown(multiplied(), "whole", 13, round_to=8)["whole"] == 16


# -- what is refused ----------------------------------------------------------------------


def test_an_output_layer_is_fixed():
    for model, name in ((mlp(), "out"), (residual(), "out")):
        refused(
            model,
            n2n.Wider(name, 9),
            FixedWidthError,
            f"Layer 'out' (Dense, {model.layers[-1].units} units) can't be widened",
            "out is an output of the model (path: out)",
            "plan(model, Wider(factor=2))",
        )


def test_a_layer_whose_units_reach_an_operation_without_a_rule_is_fixed_and_the_path_is_shown():
    def build(x):
        x = dense("fc")(x)
        x = layers.Dropout(0.5, name="drop")(x)
        x = layers.Activation("tanh", name="tanh")(x)
        return Closed(name="flip")(x)

    refused(
        functional(build),
        n2n.Wider("fc", factor=2),
        FixedWidthError,
        "Layer 'fc' (Dense, 6 units) can't be widened",
        "flip (Closed) has no rule",
        "(path: fc -> drop -> tanh -> flip)",
        "Register a rule for Closed with `keras_net2net.rules.register_rule`",
    )


def test_the_path_to_an_obstacle_leads_through_tied_layers():
    def build(x):
        x, y = dense("first")(x), dense("second")(x)
        y = Closed(name="norm")(layers.Add(name="sum")([x, y]))
        return y

    message = refused(functional(build), n2n.Wider("first", 9), FixedWidthError, "norm (Closed)")
    assert "(path: first -> sum -> norm)" in message


def test_the_obstacle_may_stand_in_a_nested_model():
    inner = keras.Sequential([keras.Input((6,)), Closed(name="norm"), dense("fc")], name="inner")
    model = functional(lambda x: inner(dense("outer")(x)))
    refused(model, n2n.Wider("outer", 9), FixedWidthError, "inner/norm (Closed)")


def test_a_layer_without_units_is_an_error_that_names_what_makes_them():
    def build(x):
        x = layers.BatchNormalization(name="bn")(dense("fc")(x))
        return layers.Activation("relu", name="act")(x)

    model = functional(build)
    for name, kind in (("bn", "BatchNormalization"), ("act", "Activation")):
        refused(
            model,
            n2n.Wider(name, 9),
            FixedWidthError,
            f"'{name}' ({kind})",
            f"a {kind} makes no units of its own",
            "'fc'",
        )


def test_a_layer_without_a_rule_is_an_error_that_says_how_to_register_one():
    model = functional(lambda x: Closed(name="norm")(dense("fc")(x)))
    refused(
        model,
        n2n.Wider("norm", 9),
        FixedWidthError,
        "'norm' (Closed)",
        "has no rule",
        "Register a rule for Closed",
    )


@pytest.mark.parametrize("units", [7, 1])
def test_fewer_units_than_now_are_an_error(units):
    for operation in (n2n.Wider("dense_a", units), n2n.Wider({"dense_b": 9, "dense_a": units})):
        refused(
            mlp(),
            operation,
            SizeError,
            f"Layer 'dense_a' (Dense, 8 units) can't be widened to {units} units",
            "it has 8, and widening only adds units",
            "Pass more than 8 units",
        )


def test_a_model_in_which_nothing_can_grow_is_an_error_with_the_reasons():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="only")], name="tiny")
    for operation in (n2n.Wider(factor=2), n2n.Wider("o*", 9)):
        refused(model, operation, FixedWidthError, "'tiny'", "only: only is an output of the model")


@pytest.mark.parametrize("factor", [1, 1.0, 0.5, 0, -2, True, "2", float("nan"), float("inf")])
def test_a_factor_that_does_not_widen_is_an_error(factor):
    with pytest.raises(SizeError) as caught:
        n2n.Wider("conv1", factor=factor)
    parts = assert_explained(caught.value, f"`factor` can't be {factor!r}", "above 1")
    assert parts["received"] == f"Wider('conv1', factor={factor!r})"


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": "conv1"},
        {"layers": "conv1", "units": 9, "factor": 2},
        {"layers": {"conv1": 9}, "units": 9},
        {"layers": {"conv1": 9}, "factor": 2},
        {},
        {"units": 9, "factor": 2},
    ],
)
def test_a_size_given_twice_or_not_at_all_is_an_error(arguments):
    with pytest.raises(GrowthError) as caught:
        n2n.Wider(**arguments)
    assert_explained(caught.value, "exactly one of", "Pass `Wider('conv1', units=64)`")


def test_one_number_of_units_for_all_layers_is_an_error():
    with pytest.raises(GrowthError) as caught:
        n2n.Wider(units=9)
    assert_explained(caught.value, "`units` needs `layers`", "Wider(units=9)")


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        (
            {"new_units": "copies"},
            ["`new_units` can't be 'copies'", "'replicate', 'fresh', 'random'"],
        ),
        ({"shares": "odd"}, ["`shares` can't be 'odd'", "'random', 'even'"]),
        ({"noise": -0.1}, ["`noise` can't be -0.1"]),
        ({"noise": "much"}, ["`noise` can't be 'much'"]),
        ({"noise": float("nan")}, ["`noise` can't be nan"]),
        ({"noise": None}, ["`noise` can't be None"]),
    ],
)
def test_an_option_that_is_none_of_those_allowed_is_an_error(arguments, content):
    with pytest.raises(GrowthError) as caught:
        n2n.Wider("conv1", 9, **arguments)
    parts = assert_explained(caught.value, *content)
    assert "Wider('conv1', units=9" in parts["received"]


def test_a_bad_second_operation_leaves_the_model_as_it_was():
    model = mlp()
    before = state(model)
    with pytest.raises(SizeError):
        n2n.grow(model, [n2n.Wider("dense_a", 9), n2n.Deeper("dense_a"), n2n.Wider("dense_a", 8)])
    assert_state(model, before)
