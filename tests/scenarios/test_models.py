"""Whole models: Sequential and Functional, nested, shared, with several inputs and outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_native,
    assert_same,
    both_modes,
    check_growth,
    data_for,
    few,
    max_difference,
    outputs,
    randomize,
)


def dense(units, name, activation="tanh"):
    return layers.Dense(units, activation=activation, name=name)


def sequential():
    return keras.Sequential(
        [
            keras.Input((5, 4, 2)),
            layers.Conv2D(4, 2, activation="relu", name="before"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.0),
            dense(4, "hidden"),
            layers.Dense(3, name="after"),
        ]
    )


def sequential_built_late():
    model = keras.Sequential(
        [dense(4, "before"), dense(4, "hidden"), layers.Dense(3, name="after")]
    )
    model.build((None, 5))
    return model


def several_inputs_and_outputs():
    left, right = keras.Input((5,), name="left"), keras.Input((3,), name="right")
    x = dense(4, "before")(left)
    y = dense(4, "other")(right)
    joined = layers.Concatenate()([x, y, right])
    first = layers.Dense(2, name="after")(joined)
    second = layers.Dense(3, name="also")(layers.Multiply()([x, y]))
    return keras.Model([left, right], [first, second])


def dicts():
    inputs = {"b": keras.Input((5,), name="b"), "a": keras.Input((3,), name="a")}
    x = layers.Add()([dense(4, "before")(inputs["a"]), dense(4, "other")(inputs["b"])])
    outs = {"main": layers.Dense(2, name="after")(x), "aux": layers.Dense(1, name="also")(x)}
    return keras.Model(inputs, outs)


def nested_inputs():
    inputs = {"pair": [keras.Input((5,), name="p"), keras.Input((3,), name="q")]}
    x = layers.Add()([dense(4, "before")(inputs["pair"][0]), dense(4, "r")(inputs["pair"][1])])
    return keras.Model(inputs, layers.Dense(2, name="after")(x))


def shared_layer():
    # Called on two inputs, and on what it makes itself: reads and makes the same units.
    inputs = [keras.Input((4,)), keras.Input((4,))]
    embed = dense(6, "before")
    again = dense(6, "again")
    parts = [again(again(embed(x))) for x in inputs]
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Subtract()(parts)))


def block(name, units=4, size=5):
    x = inputs = keras.Input((size,))
    x = dense(6, "expand", "relu")(x)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, dense(units, "project")(x), name=name)


def nested_functional():
    inputs = keras.Input((5,))
    x = block("block")(dense(5, "before")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def nested_sequential():
    inputs = keras.Input((3, 5))
    x = dense(4, "before")(inputs)
    inner = keras.Sequential(
        [layers.Conv1D(4, 2, name="conv"), layers.ReLU(), dense(4, "mix")], name="inner"
    )
    return keras.Model(inputs, layers.Dense(3, name="after")(inner(x)))


def sequential_of_models():
    return keras.Sequential(
        [
            keras.Input((5,)),
            dense(5, "before"),
            block("first"),
            keras.Sequential([dense(4, "inside")], name="second"),
            layers.Dense(3, name="after"),
        ]
    )


def nested_twice():
    inner = keras.Sequential([keras.Input((4,)), dense(4, "deep"), block("core", 4, 4)], name="in")
    x = middle = keras.Input((5,))
    x = inner(dense(4, "wide")(x))
    middle = keras.Model(middle, x, name="middle")
    inputs = keras.Input((5,))
    x = middle(dense(5, "before")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def nested_model_called_twice():
    # The two calls tie the units of the layers before it.
    inputs = [keras.Input((5,)), keras.Input((3,))]
    twin = block("twin")
    parts = [twin(dense(5, "before")(inputs[0])), twin(dense(5, "other")(inputs[1]))]
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Concatenate()(parts)))


def nested_model_of_its_own_output():
    inputs = keras.Input((5,))
    again = block("again", 4, 4)
    x = again(again(dense(4, "before")(inputs)))
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def nested_with_two_outputs():
    x = inside = keras.Input((5,))
    x = dense(4, "trunk")(x)
    inner = keras.Model(inside, [dense(4, "one")(x), dense(4, "two")(x)], name="inner")
    inputs = keras.Input((5,))
    first, second = inner(dense(5, "before")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.Multiply()([first, second])))


def layer_shared_with_a_nested_model():
    shared = dense(4, "shared")
    inside = keras.Input((4,))
    inner = keras.Model(inside, shared(inside), name="inner")
    inputs = keras.Input((5,))
    x = dense(4, "before")(inputs)
    x = layers.Add()([shared(x), inner(x)])
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def frozen_base():
    # As in transfer learning: the base is frozen, and called in inference mode.
    base = block("base")
    base.trainable = False
    inputs = keras.Input((5,))
    x = base(dense(5, "before")(inputs), training=False)
    x = layers.BatchNormalization(name="norm")(x, training=False)
    return keras.Model(
        inputs, layers.Dense(3, name="after")(layers.Dropout(0.0)(x, training=False))
    )


def masked():
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 4, mask_zero=True, name="before")(tokens)
    x = dense(4, "mix", "relu")(x)
    x = layers.GlobalAveragePooling1D()(x)  # over what isn't masked
    return keras.Model(tokens, layers.Dense(3, name="after")(x))


def residual_network():
    x = inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 2, padding="same", name="before")(x)
    for i in range(2):
        y = layers.BatchNormalization()(x)
        y = layers.ReLU()(y)
        y = layers.Conv2D(4, 2, padding="same", name=f"conv{i}")(y)
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="after")(x))


MODELS = {
    "a Sequential": (sequential, ["after"]),
    "a Sequential that was built late": (sequential_built_late, ["after"]),
    "several inputs and outputs": (several_inputs_and_outputs, ["after", "also"]),
    "dicts of inputs and outputs": (dicts, ["after", "also"]),
    "nested inputs": (nested_inputs, ["after"]),
    "a shared layer": (shared_layer, ["after"]),
    "a nested Functional": (nested_functional, ["after"]),
    "a nested Sequential": (nested_sequential, ["after"]),
    "a Sequential of models": (sequential_of_models, ["after"]),
    "models nested twice": (nested_twice, ["after"]),
    "a nested model called twice": (nested_model_called_twice, ["after"]),
    "a nested model on its own output": (nested_model_of_its_own_output, ["after"]),
    "a nested model with two outputs": (nested_with_two_outputs, ["after"]),
    "a frozen base, called in inference mode": (frozen_base, ["after"]),
    "a masked sequence": (masked, ["after"]),
    "a residual network": (residual_network, ["after"]),
}


@pytest.mark.parametrize(("build", "fixed"), few(MODELS, 6))
def test_the_function_stays(build, fixed, tmp_path):
    check_growth(build, fixed=fixed, path=tmp_path)


def test_a_layer_shared_with_a_nested_model_grows_in_both():
    check_growth(layer_shared_with_a_nested_model)  # Keras saves such a model, but can't load it


@pytest.mark.parametrize("build", [sequential, nested_model_called_twice, dicts])
def test_models_of_each_kind_train_after_growth(build):
    fixed = ["after", "also"] if build is dicts else ["after"]
    check_growth(build, fixed=fixed, train=True)


def test_what_a_nested_model_has_inside_grows_by_its_path():
    model = randomize(nested_twice())
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("middle/in/core/expand", units=9), seed=0)
    core = model.get_layer("middle").get_layer("in").get_layer("core")
    assert core.get_layer("expand").units == 9
    assert tuple(core.get_layer("norm").gamma.shape) == (9,)
    assert_native(model)
    assert_same(both_modes(model, x), before)


def test_a_nested_model_takes_the_width_before_it():
    model = randomize(nested_functional())
    n2n.grow(model, n2n.Wider("before", units=8), seed=0)
    inner = model.get_layer("block")
    assert tuple(inner.inputs[0].shape) == (None, 8)
    assert tuple(inner.get_layer("expand").kernel.shape) == (8, 6)
    # It works by itself, too, on inputs of the new size.
    assert array(inner(np.ones((2, 8), "float32"))).shape == (2, 4)


def test_models_keep_their_identity():
    model = randomize(nested_twice())
    middle = model.get_layer("middle")
    parts = [middle, middle.get_layer("in"), middle.get_layer("in").get_layer("core")]
    n2n.grow(model, [n2n.Wider(factor=1.5), n2n.Deeper("middle/wide", activation="linear")], seed=0)
    now = model.get_layer("middle")
    assert [now, now.get_layer("in"), now.get_layer("in").get_layer("core")] == parts


class Distilled(keras.Model):
    """A model with a training step of its own: the loss is doubled."""

    steps = 0

    def train_step(self, *args, **kwargs):
        type(self).steps += 1
        return super().train_step(*args, **kwargs)

    def compute_loss(self, *args, **kwargs):
        return 2.0 * super().compute_loss(*args, **kwargs)


def subclass():
    inputs = keras.Input((5,))
    x = layers.BatchNormalization(name="norm")(dense(4, "before")(inputs))
    return Distilled(inputs, layers.Dense(3, name="after")(dense(4, "hidden", "relu")(x)))


def test_a_subclass_with_a_graph_grows(tmp_path):
    check_growth(subclass, custom=(Distilled,), path=tmp_path)


def test_a_subclass_trains_by_its_own_step_after_growth():
    model = randomize(subclass())
    x = data_for(model)
    y = np.ones((4, 3), "float32")
    model.compile("sgd", "mse", **EAGERLY)
    before = model.evaluate(x, y, verbose=0)
    plain = float(np.mean((outputs(model, x)[0] - y) ** 2))
    assert before == pytest.approx(2 * plain, rel=1e-4)
    model.train_on_batch(x, y)
    steps = Distilled.steps
    loss = model.evaluate(x, y, verbose=0)
    n2n.grow(model, [n2n.Wider(factor=1.5), n2n.Deeper("hidden")], seed=0)
    assert type(model) is Distilled
    assert model.evaluate(x, y, verbose=0) == pytest.approx(loss, rel=1e-5)
    model.fit(x, y, epochs=2, verbose=0)
    assert Distilled.steps > steps
    assert model.evaluate(x, y, verbose=0) != loss


def small():
    x = inputs = keras.Input((4, 3))
    x = layers.Conv1D(2, 2, padding="same", activation="tanh", name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv1D(2, 1, activation="relu", name="side")(x)
    x = layers.Add()([x, y])
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, name="after")(dense(2, "fc", "relu")(x)))


def test_twenty_growths_in_a_row_keep_the_function():
    model = randomize(small())
    x = data_for(model)
    before = both_modes(model, x)
    for i in range(20):
        name = ("conv", "fc")[i % 2]
        kinds = ({}, {"shares": "even"}, {"new_units": "fresh"})
        now = (model.get_layer("conv").filters, model.get_layer("fc").units)[i % 2]
        operations = [n2n.Wider(name, units=now + 1, **kinds[i % 3])]
        if i % 5 == 4:
            operations.append(n2n.Deeper("fc"))
        n2n.grow(model, operations, seed=i, verify=False)
    assert (model.get_layer("conv").filters, model.get_layer("fc").units) == (12, 12)
    assert len([layer for layer in model.layers if "deeper" in layer.name]) == 4
    assert_native(model)
    assert_same(both_modes(model, x), before, 1e-5)


def autoencoder():
    inputs = keras.Input((5,), name="x")
    x = dense(6, "enc")(inputs)
    code = dense(3, "code")(x)
    x = dense(6, "dec", "relu")(code)
    return randomize(keras.Model(inputs, layers.Dense(5, name="out")(x))), keras.Model(inputs, code)


def test_an_encoder_of_the_same_tensors_keeps_working_when_what_it_shares_stays():
    model, encoder = autoencoder()
    x = data_for(model)
    model_before, code_before = both_modes(model, x), both_modes(encoder, x)
    n2n.grow(model, [n2n.Wider("dec", units=9), n2n.Deeper("dec")], seed=0)
    assert_same(both_modes(model, x), model_before)
    assert_same(both_modes(encoder, x), code_before, 0.0)
    assert encoder.get_layer("code") is model.get_layer("code")


def test_an_encoder_of_the_same_tensors_keeps_working_when_its_layers_grow():
    model, encoder = autoencoder()
    x = data_for(model)
    model_before, code_before = both_modes(model, x), both_modes(encoder, x)
    n2n.grow(model, n2n.Wider("enc", units=9), seed=0)
    assert_same(both_modes(model, x), model_before)
    assert_same(both_modes(encoder, x), code_before)
    assert encoder.get_layer("enc").units == 9
    assert_native(encoder)


def test_the_codes_of_an_encoder_grow_with_the_model():
    model, encoder = autoencoder()
    x = data_for(model)
    (code,) = outputs(encoder, x)
    n2n.grow(model, n2n.Wider("code", units=5), seed=0)
    (grown,) = outputs(encoder, x)
    assert grown.shape == (4, 5)
    assert max_difference([grown[:, :3]], [code]) < 1e-6


def test_a_layer_inserted_in_a_model_leaves_an_encoder_of_its_tensors_as_it_was():
    model, encoder = autoencoder()
    x = data_for(model)
    model_before, code_before = both_modes(model, x), both_modes(encoder, x)
    n2n.grow(model, n2n.Deeper(["enc", "dec"], activation="linear"), seed=0)
    assert "enc_deeper_1" in [layer.name for layer in model.layers]
    assert "enc_deeper_1" not in [layer.name for layer in encoder.layers]
    assert_same(both_modes(model, x), model_before)
    assert_same(both_modes(encoder, x), code_before, 0.0)


def test_an_encoder_keeps_working_when_a_model_of_its_tensors_is_deepened_and_then_widened():
    model, encoder = autoencoder()
    x = data_for(model)
    model_before, code_before = both_modes(model, x), both_modes(encoder, x)
    n2n.grow(model, n2n.Deeper("dec"), seed=0)
    n2n.grow(model, n2n.Wider("enc", units=9), seed=0)
    assert_same(both_modes(model, x), model_before)
    assert_same(both_modes(encoder, x), code_before)
    assert encoder.count_params() == sum(np.size(array(weight)) for weight in encoder.weights)


def test_a_mask_still_hides_what_it_hid():
    model = randomize(masked())
    hidden, shown = np.array([[1, 2, 0, 0]], "int32"), np.array([[1, 2]], "int32")
    n2n.grow(model, [n2n.Wider(factor=1.5), n2n.Deeper("mix")], seed=0)
    short = keras.Input((2,), dtype="int32")
    x = short
    for layer in model.layers[1:]:
        x = layer(x)
    assert_same(outputs(model, hidden), outputs(keras.Model(short, x), shown))


def test_growth_of_a_part_that_another_model_holds_is_seen_there():
    # The nested model alone is grown, inside of its fixed inputs and outputs.
    outer = randomize(nested_functional())
    x = data_for(outer)
    before = both_modes(outer, x)
    n2n.grow(outer.get_layer("block"), n2n.Wider("expand", units=9), seed=0)
    assert_same(both_modes(outer, x), before)


def test_mixed_precision_grows_within_its_rounding():
    policy = keras.DTypePolicy("mixed_bfloat16")
    x = inputs = keras.Input((5,))
    x = layers.Dense(6, activation="tanh", dtype=policy, name="before")(x)
    x = layers.BatchNormalization(dtype=policy)(x)
    model = randomize(keras.Model(inputs, layers.Dense(3, dtype="float32", name="after")(x)))
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("before", units=9), seed=0)
    assert all(weight.dtype == "float32" for weight in model.weights)
    assert_same(both_modes(model, x), before, 2e-2)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        ("float16", 1e-2),
        pytest.param(
            "float64",
            1e-14,
            marks=pytest.mark.skipif(BACKEND == "jax", reason="JAX has it where it is asked to"),
        ),
    ],
)
def test_other_dtypes_keep_their_precision(dtype, tolerance):
    x = inputs = keras.Input((5,), dtype=dtype)
    x = layers.Dense(6, activation="tanh", dtype=dtype, name="before")(x)
    model = keras.Model(inputs, layers.Dense(3, dtype=dtype, name="after")(x))
    randomize(model)
    x = data_for(model).astype("float64")

    def function():
        # By hand, in float64: on PyTorch, Keras rounds some of it to float32.
        kernel, bias, after, last = (array(weight).astype("float64") for weight in model.weights)
        return np.tanh(x @ kernel + bias) @ after + last

    before = function()
    n2n.grow(model, n2n.Wider("before", units=9), seed=0)
    assert {weight.dtype for weight in model.weights} == {dtype}
    assert array(model.weights[0]).dtype == dtype
    assert_same([function()], [before], tolerance)
