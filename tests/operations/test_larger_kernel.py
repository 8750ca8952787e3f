"""LargerKernel: where the old kernel has to stand, for every padding that keeps the size."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError, SizeError, UnknownLayerError
from keras_net2net.testing import check_model
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_native,
    assert_same,
    both_modes,
    cases,
    data_for,
    outputs,
    randomize,
    train_a_step,
)
from tests.support.messages import refused
from tests.support.states import assert_state, state


def one(layer: keras.Layer, shape: tuple[int | None, ...]) -> keras.Model:
    return randomize(keras.Sequential([keras.Input(shape), layer], name="one"))


def images(padding: str = "same") -> keras.Model:
    """Conv-BN-ReLU twice, with a depthwise convolution between them, and a head."""
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding=padding, name="conv1")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding=padding, name="depthwise")(x)
    x = layers.Conv2D(5, 1, activation="relu", name="conv2")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(x), name="images")


def test_the_old_kernel_stands_in_the_middle_of_zeros():
    model = one(layers.Conv1D(1, 3, padding="same", name="conv"), (None, 1))
    model.set_weights([np.array([[[1.0]], [[2.0]], [[3.0]]]), np.array([0.5])])
    report = n2n.grow(model, n2n.LargerKernel("conv", kernel_size=5), seed=0)
    assert array(model.layers[0].kernel).ravel().tolist() == [0, 1, 2, 3, 0]
    assert model.layers[0].kernel_size == (5,)
    x = np.array([[[1.0], [10.0], [100.0], [1000.0]]], "float32")
    assert outputs(model, x)[0].ravel().tolist() == [32.5, 321.5, 3210.5, 2100.5]
    assert (report.parameters_before, report.parameters_after) == (4, 6)
    assert report.difference < 1e-6
    assert report.plan.exact
    assert report.headline().startswith("conv: kernel_size (3,) -> (5,) | 4 -> 6 parameters")
    assert "    conv: kernel_size (3,) -> (5,)" in report.plan.summary()


EVEN = {  # kernel, new kernel, zeros before: half of what is padded in all, rounded down
    "1 to 2": (1, 2, 0),
    "1 to 3": (1, 3, 1),
    "2 to 3": (2, 3, 1),
    "2 to 4": (2, 4, 1),
    "3 to 4": (3, 4, 0),
    "3 to 6": (3, 6, 1),
    "4 to 5": (4, 5, 1),
}


@pytest.mark.parametrize(("old", "new", "before"), EVEN.values(), ids=EVEN)
def test_odd_and_even_kernels_of_same_padding(old, new, before):
    model = one(layers.Conv1D(2, old, padding="same", name="conv"), (7, 3))
    x, kernel = data_for(model), array(model.layers[0].kernel)
    expected = outputs(model, x)
    n2n.grow(model, n2n.LargerKernel("conv", new), seed=0, verify=False)
    padded = np.pad(kernel, [(before, new - old - before), (0, 0), (0, 0)])
    assert array(model.layers[0].kernel).tobytes() == padded.tobytes()
    assert_same(outputs(model, x), expected)


def test_a_causal_kernel_gets_all_zeros_in_the_past():
    layer = layers.Conv1D(1, 2, padding="causal", dilation_rate=2, name="conv", use_bias=False)
    model = one(layer, (None, 1))
    model.set_weights([np.array([[[1.0]], [[2.0]]])])
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.LargerKernel("conv", 5), seed=0)
    assert array(model.layers[0].kernel).ravel().tolist() == [0, 0, 0, 1, 2]
    assert_same(outputs(model, x), before)


KINDS = {
    "Conv1D": lambda **kw: layers.Conv1D(2, **kw),
    "DepthwiseConv1D": lambda **kw: layers.DepthwiseConv1D(depth_multiplier=2, **kw),
    "SeparableConv1D": lambda **kw: layers.SeparableConv1D(2, **kw),
    "Conv1DTranspose": lambda **kw: layers.Conv1DTranspose(2, **kw),
}
SETTINGS = [  # strides, dilation, length
    *itertools.product((1, 2, 3), (1,), (7, 8, None)),
    *itertools.product((1,), (2, 3), (8, None)),
][:: 3 if BACKEND == "jax" else 1]


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_size_is_exact_or_refused_with_the_reason(make):
    """All of it by numbers: where the kernel stands, with strides and dilation."""
    done = refusals = 0
    sizes = [(3, 5), (1, 3), (2, 3), (3, 4)][: len(cases(dict.fromkeys(range(4))))]
    for (old, new), (strides, dilation, length) in itertools.product(sizes, SETTINGS):
        made = {"kernel_size": old, "strides": strides, "dilation_rate": dilation}
        model = one(make(**made, padding="same", name="it"), (length, 2))
        lengths = (length,) if length else (5, 6, 7)
        xs = [np.random.default_rng(n).standard_normal((2, n, 2), "float32") for n in lengths]
        before = [outputs(model, x) for x in xs]
        if (new - old) % 2 and (dilation > 1 or (strides == 2 and length is None)):
            if make is KINDS["Conv1DTranspose"] and dilation == 1:
                continue  # what it crops doesn't depend on the size
            with pytest.raises(SizeError, match="strides" if strides > 1 else "dilation"):
                n2n.grow(model, n2n.LargerKernel("it", new), seed=0)
            refusals += 1
            continue
        try:
            n2n.grow(model, n2n.LargerKernel("it", new), seed=0, verify=False)
        except SizeError:
            refusals += 1
            continue
        for x, y in zip(xs, before, strict=True):
            assert_same(outputs(model, x), y)
        done += 1
    assert done > 2 * refusals
    if make is KINDS["Conv1D"] and BACKEND == "torch":
        assert refusals > 0


def test_a_stride_needs_the_size_of_the_input_where_the_place_depends_on_it():
    def model(length):
        return one(layers.Conv1D(2, 3, strides=2, padding="same", name="conv"), (length, 2))

    message = refused(model(None), n2n.LargerKernel("conv", 4), SizeError, "strides of 2")
    assert "which isn't known" in message
    for length, place in ((7, 0), (8, 1)):
        grown = model(length)
        kernel = array(grown.layers[0].kernel)
        n2n.grow(grown, n2n.LargerKernel("conv", 4), seed=0, verify=False)
        assert np.array_equal(array(grown.layers[0].kernel)[place : place + 3], kernel)
    n2n.plan(model(None), n2n.LargerKernel("conv", 5))  # in the middle for all sizes


def test_a_layer_that_is_called_at_two_sizes_is_refused_where_they_differ():
    layer = layers.Conv1D(2, 3, strides=2, padding="same", name="conv")
    inputs = [keras.Input((7, 2)), keras.Input((8, 2))]
    model = keras.Model(inputs, [layer(x) for x in inputs])
    refused(model, n2n.LargerKernel("conv", 4), SizeError, "not always the same")
    n2n.grow(model, n2n.LargerKernel("conv", 5), seed=0)


def test_dilation_moves_the_old_kernel_by_whole_places_only():
    layer = layers.Conv1D(2, 3, dilation_rate=2, padding="same", name="conv")
    text = refused(one(layer, (9, 2)), n2n.LargerKernel("conv", 4), SizeError, "dilation of 2")
    assert "larger than 3 by an even number" in text


def test_an_output_padding_keeps_kernels_odd_or_even():
    layer = layers.Conv1DTranspose(2, 3, 2, padding="same", output_padding=1, name="conv")
    model = one(layer, (5, 2))
    refused(model, n2n.LargerKernel("conv", 4), SizeError, "output_padding")
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.LargerKernel("conv", 5), seed=0)
    assert_same(outputs(model, x), before)


def test_valid_padding_is_refused_with_what_to_do_instead():
    model = randomize(images("valid"))
    text = refused(
        model, n2n.LargerKernel("conv1", 5), GrowthError, "padding is 'valid'", "get smaller"
    )
    assert "`Deeper`" in text


RANKS = {
    "Conv2D": (lambda: layers.Conv2D(3, (3, 1), padding="same", name="it"), (5, 6, 2), (5, 4)),
    "groups": (lambda: layers.Conv2D(4, 3, groups=2, padding="same", name="it"), (5, 5, 2), 5),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(3, 2, padding="same", depth_multiplier=2, name="it"),
        (5, 5, 2),
        (2, 5),
    ),
    "DepthwiseConv2D": (
        lambda: layers.DepthwiseConv2D(3, strides=2, padding="same", name="it"),
        (6, 6, 2),
        5,
    ),
    "Conv2DTranspose": (
        lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same", name="it"),
        (4, 4, 2),
        (5, 4),
    ),
    "Conv3D": (lambda: layers.Conv3D(2, 1, padding="same", name="it"), (3, 4, 3, 2), (3, 2, 1)),
    "Conv3DTranspose": (
        lambda: layers.Conv3DTranspose(2, 2, padding="same", name="it"),
        (3, 3, 3, 2),
        3,
    ),
}


@pytest.mark.parametrize(("make", "shape", "size"), cases(RANKS, 3).values(), ids=cases(RANKS, 3))
def test_every_family_and_rank(make, shape, size):
    check_model(lambda: one(make(), shape), [n2n.LargerKernel("it", size)], save=False, train=False)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="its convolutions need a GPU for that")
def test_channels_first():
    made = {"padding": "same", "data_format": "channels_first", "strides": 2, "name": "it"}
    check_model(
        lambda: one(layers.Conv2D(3, 3, **made), (2, 5, 6)),
        [n2n.LargerKernel("it", (4, 5))],
        save=False,
        train=False,
    )


def test_what_has_to_agree_with_the_rest_of_a_model_still_does():
    """Both modes, twice in a row, in one list with Wider and Deeper; saved, loaded and trained."""
    check_model(
        images,
        [
            [
                n2n.Wider("conv1", 6),
                n2n.LargerKernel({"conv1": (5, 4), "depthwise": 5}),
                n2n.Deeper("conv2"),
                n2n.Wider("conv2", 7),
            ],
            n2n.LargerKernel("conv1", 6),
        ],
    )


def test_a_layer_that_was_just_inserted_grows_in_the_same_list():
    model = randomize(keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(3, 3, name="conv")]))
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, [n2n.Deeper("conv"), n2n.LargerKernel("conv_deeper_1", 5)], seed=0)
    assert model.get_layer("conv_deeper_1").kernel_size == (5, 5)
    assert_native(model)
    assert_same(outputs(model, x), before)


def test_a_plan_replays_on_what_has_the_shape_of_the_weights():
    model = randomize(images())
    plan = n2n.plan(model, n2n.LargerKernel("conv1", 5), seed=0)
    assert plan.parameters_after - plan.parameters_before == (25 - 9) * 3 * 4
    slot = np.ones((3, 3, 3, 4), "float32")
    grown = plan.apply_to({"conv1/kernel": slot})["conv1/kernel"]
    assert grown.shape == (5, 5, 3, 4)
    assert np.array_equal(grown[1:4, 1:4], slot)
    assert grown.sum() == slot.sum()


def test_new_weights_have_gradients_from_the_first_step():
    model = randomize(images())
    n2n.grow(model, n2n.LargerKernel("conv1", 5), seed=0)
    before = array(model.get_layer("conv1").kernel)
    train_a_step(model, data_for(model))
    moved = array(model.get_layer("conv1").kernel) != before
    assert moved[0].all()
    assert moved[:, -1].all()


def test_all_that_can_grow_does_and_the_others_say_why():
    model = randomize(images())
    report = n2n.grow(model, n2n.LargerKernel(kernel_size=3), seed=0, verify=False)
    assert not report.plan.steps[0].layers
    (step,) = n2n.grow(model, n2n.LargerKernel(kernel_size=5), seed=0).plan.steps
    assert [layer.path for layer in step.layers] == ["conv1", "depthwise"]
    (skip,) = step.skipped
    assert (skip.path, "'valid'" in skip.reason) == ("conv2", True)
    again = n2n.grow(model, n2n.LargerKernel("conv*", kernel_size=5), seed=0)
    assert "conv1: has a kernel of 5 x 5 already" in again.plan.summary()
    assert again.difference is None


def test_layers_are_named_in_every_way():
    for layers_, expected in (
        ("conv1", ["conv1"]),
        (["depthwise", "conv1"], ["depthwise", "conv1"]),
        ("conv[0-9]", ["conv1"]),
    ):
        (step,) = n2n.plan(images(), n2n.LargerKernel(layers_, 5)).steps
        assert [layer.path for layer in step.layers] == expected
    model = images()
    (step,) = n2n.plan(model, n2n.LargerKernel({model.get_layer("conv1"): 5})).steps
    assert [layer.path for layer in step.layers] == ["conv1"]


REFUSED = {
    "not a convolution": ("out", 5, GrowthError, "a Dense has no kernel that slides"),
    "smaller": ("conv1", 2, SizeError, "a kernel only gets larger"),
    "smaller along an axis": ("conv1", (5, 1), SizeError, "it is 3 x 3 now"),
    "another rank": ("conv1", (5, 5, 5), SizeError, "it has 2 axes of space, and 3 sizes"),
    "unknown": ("nowhere", 5, UnknownLayerError, "matches no layer"),
    "nothing": ("conv2*", 5, GrowthError, "No kernel of the model"),
}


@pytest.mark.parametrize(("name", "size", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_possible_is_refused_with_the_reason(name, size, kind, text):
    refused(images(), n2n.LargerKernel(name, size), kind, text)


def test_two_sizes_for_one_layer_are_refused():
    refused(images(), n2n.LargerKernel({"conv1": 5, "*1": 7}), GrowthError, "another size")


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (("conv1",), GrowthError, "isn't clear"),
        (({"conv1": 5}, 5), GrowthError, "isn't clear"),
        (("conv1", 0), SizeError, "`kernel_size` can't be 0"),
        (("conv1", (3, 2.5)), SizeError, "can't be 2.5"),
        (({"conv1": "5"},), SizeError, "The kernel size of 'conv1'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, kind, text):
    with pytest.raises(kind, match=r"isn't clear|can't be") as error:
        n2n.LargerKernel(*arguments)
    assert text in str(error.value)


def test_a_kernel_grows_during_fit():
    model = randomize(images())
    model.compile(keras.optimizers.Adam(1e-3), "mse", **EAGERLY)
    x = data_for(model, batch=8)
    growth = n2n.GrowthScheduler({1: n2n.LargerKernel("conv1", 5)}, seed=0, verbose=0)
    history = model.fit(x, np.zeros((8, 3)), epochs=3, verbose=0, callbacks=[growth])
    assert np.isfinite(history.history["loss"]).all()
    assert model.get_layer("conv1").kernel.shape[:2] == (5, 5)
    assert growth.history[0].difference < 1e-5


def test_a_student_leaves_its_teacher_as_it_was():
    teacher = randomize(images())
    before = state(teacher)
    x = data_for(teacher)
    student = n2n.clone_and_grow(teacher, n2n.LargerKernel("conv1", 7), seed=0)
    assert_state(teacher, before)
    assert_same(both_modes(student, x), both_modes(teacher, x))


@keras.saving.register_keras_serializable("larger_kernel")
class Block(keras.layers.Layer):
    """A composite layer without a rule."""

    def __init__(self, kernel_size=3, **kwargs):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.conv = layers.Conv2D(4, kernel_size, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], 4))

    def call(self, x):
        return keras.ops.relu(self.norm(self.conv(x)))

    def get_config(self):
        return {**super().get_config(), "kernel_size": self.kernel_size}


def test_a_kernel_inside_a_layer_without_a_rule(tmp_path):
    model = randomize(keras.Sequential([keras.Input((6, 6, 2)), Block(name="block")]))
    x = data_for(model)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.LargerKernel("block/conv", 5), seed=0)
    assert_same(both_modes(model, x), before)
    assert not report.notes
    assert model.layers[0].kernel_size == 5
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].conv.kernel.shape[:2] == (5, 5)
    assert_same(outputs(loaded, x), before[:1])
