"""Merging branches: sums and products with broadcasting, concatenations on any axis."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.helpers import (
    assert_native,
    assert_same,
    both_modes,
    check_growth,
    data_for,
    few,
    outputs,
    randomize,
    skipped,
)

MERGES = [
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
]


def two_branches(merge, shape=(3, 5)):
    inputs = keras.Input(shape)
    left = layers.Dense(4, activation="tanh", name="before")(inputs)
    right = layers.Dense(4, name="right")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="after")(merge([left, right])))


@pytest.mark.parametrize("merge", few({merge.__name__: merge for merge in MERGES}, 3))
def test_merged_branches_grow_together(merge, tmp_path):
    check_growth(lambda: two_branches(merge()), path=tmp_path)


def test_tied_widths_are_told_in_the_plan():
    model = two_branches(layers.Add())
    (width,) = n2n.plan(model, n2n.Wider("right", units=6)).steps[0].widths
    assert width.layers == ("before", "right")
    assert width.asked == ("right",)
    with pytest.raises(n2n.errors.ConflictError, match="tied to those of 'before'"):
        n2n.plan(model, n2n.Wider({"before": 6, "right": 7}))


def three_summed():
    inputs = keras.Input((5,))
    parts = [layers.Dense(4, name=name)(inputs) for name in ("before", "b", "c")]
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Average()(parts)))


def ranks_differ():
    # Keras puts the axes that are missing behind the batch: (b, u) becomes (b, 1, u).
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, name="before")(inputs)
    pooled = layers.GlobalAveragePooling1D()(layers.Dense(4, name="pooled")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Add()([x, pooled])))


def squeeze_and_excite():
    inputs = keras.Input((3, 2, 5))
    x = layers.Conv2D(4, 1, activation="tanh", name="before")(inputs)
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Reshape((1, 1, 4))(s)
    s = layers.Conv2D(2, 1, activation="relu", name="squeeze")(s)
    s = layers.Conv2D(4, 1, activation="sigmoid", name="excite")(s)
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Multiply()([x, s])))


def gated_by_one_unit():
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, name="before")(inputs)
    gate = layers.Dense(1, activation="sigmoid", name="gate")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Multiply()([x, gate])))


def summed_with_the_input():
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="relu", name="before")(inputs)
    x = layers.Dense(4, name="tied")(x)
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Add()([x, inputs])))


def residual_chain():
    inputs = keras.Input((3, 2, 5))
    x = layers.Conv2D(4, 1, name="before")(inputs)
    for i in range(2):
        y = layers.BatchNormalization()(x)
        y = layers.Conv2D(4, 2, padding="same", activation="relu", name=f"a{i}")(y)
        y = layers.Conv2D(4, 1, name=f"b{i}")(y)
        x = layers.Add()([x, y])
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def concatenated(axis=-1, other=3):
    inputs = keras.Input((3, 5))
    left = layers.Dense(4, name="before")(inputs)
    right = layers.Dense(other, activation="relu", name="right")(inputs)
    x = layers.Concatenate(axis=axis)([left, inputs, right] if axis == -1 else [left, right])
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def concatenated_of_concatenated():
    inputs = keras.Input((2, 2, 5))
    x = layers.Conv2D(4, 1, name="before")(inputs)
    for i in range(3):  # as DenseNet does
        y = layers.BatchNormalization()(x)
        y = layers.Conv2D(2, 2, padding="same", activation="relu", name=f"grow{i}")(y)
        x = layers.Concatenate()([x, y])
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def concatenated_and_flat():
    inputs = keras.Input((3, 5))
    left = layers.Dense(4, name="before")(inputs)
    right = layers.Dense(2, name="right")(inputs)
    x = layers.Flatten()(layers.Concatenate()([left, right]))
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def sum_of_width_and_concatenation():
    # The width of the sum is split into the parts of the concatenation.
    inputs = keras.Input((5,))
    parts = [layers.Dense(2, name="before")(inputs), layers.Dense(4, name="right")(inputs)]
    whole = layers.Dense(6, activation="relu", name="whole")(inputs)
    x = layers.Add()([whole, layers.Concatenate()(parts)])
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def sum_of_two_concatenations():
    # 2 + 4 against 4 + 2: the two of four are split where they don't line up.
    inputs = keras.Input((5,))

    def joined(sizes, name):
        return layers.Concatenate()(
            [layers.Dense(n, name=f"{name}{i}")(inputs) for i, n in enumerate(sizes)]
        )

    x = layers.Add()([joined((2, 4), "before"), joined((4, 2), "other")])
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


STRUCTURES = {
    "three summed": (three_summed, "before", ["after"]),
    "ranks differ": (ranks_differ, "before", ["after"]),
    "squeeze and excite": (squeeze_and_excite, "before", ["after"]),
    "gated by one unit": (gated_by_one_unit, "before", ["after", "gate"]),
    "summed with the input": (summed_with_the_input, "before", ["after", "tied"]),
    "a residual chain": (residual_chain, "b1", ["after"]),
    "concatenated": (concatenated, "before", ["after"]),
    "concatenated along time": (lambda: concatenated(1, 4), "before", ["after"]),
    "concatenated of concatenated": (concatenated_of_concatenated, "before", ["after"]),
    "concatenated, then flat": (concatenated_and_flat, "before", ["after"]),
    "a sum of a width and a concatenation": (sum_of_width_and_concatenation, "before", ["after"]),
    "a sum of two concatenations": (sum_of_two_concatenations, "other0", ["after"]),
}


@pytest.mark.parametrize(("build", "single", "fixed"), few(STRUCTURES))
def test_the_function_stays(build, single, fixed, tmp_path):
    check_growth(build, single=single, fixed=fixed, path=tmp_path)


def test_branches_train_after_growth():
    check_growth(squeeze_and_excite, train=True)
    check_growth(sum_of_two_concatenations, train=True, single="other0")


def test_a_sum_with_a_concatenation_grows_to_a_size_in_its_parts():
    model = randomize(sum_of_width_and_concatenation())
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("whole", units=9), seed=0)
    assert model.get_layer("whole").units == 9
    assert model.get_layer("before").units + model.get_layer("right").units == 9
    assert_native(model)
    assert_same(both_modes(model, x), before)


def test_a_concatenation_takes_what_isnt_wider_as_it_was():
    model = randomize(concatenated())
    x = data_for(model)
    before = outputs(model, x)
    kernel = np.array(model.get_layer("right").kernel)
    report = n2n.grow(model, n2n.Wider("before", units=7), seed=0)
    assert [layer.path for layer in report.plan.steps[0].layers if layer.path == "right"] == []
    assert np.array_equal(kernel, np.array(model.get_layer("right").kernel))
    assert_same(outputs(model, x), before)


def test_a_unit_that_is_broadcast_along_units_cannot_become_two():
    model = randomize(gated_by_one_unit())
    with pytest.raises(n2n.errors.FixedWidthError, match="repeats its only unit"):
        n2n.plan(model, n2n.Wider("gate", units=2))


def test_widths_of_one_that_are_summed_grow_together():
    def build():
        inputs = keras.Input((5,))
        parts = [layers.Dense(1, name=name)(inputs) for name in ("before", "b")]
        return keras.Model(inputs, layers.Dense(3, name="after")(layers.Add()(parts)))

    check_growth(build)


def test_a_sum_with_the_input_says_that_it_is_the_input():
    with pytest.raises(n2n.errors.FixedWidthError, match="is an input of the model") as error:
        n2n.plan(summed_with_the_input(), n2n.Wider("tied", units=6))
    assert "tied" in str(error.value)


def dot(axes, normalize=False):
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    y = layers.Dense(6, activation="tanh", name="other")(inputs)
    x = layers.Dot(axes, normalize=normalize, name="dot")([x, y])
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Flatten()(x)))


DOTS = {"of time": lambda: dot(1), "of time, normalized": lambda: dot((1, 1), normalize=True)}


@pytest.mark.parametrize("build", few(DOTS, 1))
def test_a_dot_passes_the_units_of_both_sides(build, tmp_path):
    check_growth(build, path=tmp_path)


def test_a_dot_passes_the_units_of_one_side(tmp_path):
    def build():
        inputs = keras.Input((3, 5))
        x = layers.Dense(4, activation="tanh", name="before")(inputs)
        y = layers.Dense(4, name="other")(layers.Flatten()(inputs))
        x = layers.Dot((1, 1))([x, layers.Dense(3, name="three")(y)])
        return keras.Model(inputs, layers.Dense(3, name="after")(x))

    check_growth(build, fixed=("three", "after"), path=tmp_path)


def test_a_dot_over_units_is_refused():
    inputs = keras.Input((5,))
    parts = [layers.Dense(4, name=name)(inputs) for name in ("a", "b")]
    model = keras.Model(inputs, layers.Dense(3)(layers.Dot(1, name="dot")(parts)))
    with pytest.raises(
        n2n.errors.FixedWidthError, match="sums the products along this axis"
    ) as error:
        n2n.plan(model, n2n.Wider("a", units=6))
    assert "path: a -> dot" in str(error.value)


def test_only_the_output_is_skipped():
    assert skipped(n2n.plan(two_branches(layers.Add()), n2n.Wider(factor=2))) == {"after"}
