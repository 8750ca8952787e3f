"""Deeper: what it inserts after every way to write a block, and that nothing changes by it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.errors import FixedWidthError, GrowthError, NotIdentityError, SizeError
from keras_net2net.operations.drafting import draft_growth
from keras_net2net.widths.inference import infer
from tests.operations.test_base import mlp
from tests.support.helpers import (
    BACKEND,
    array,
    assert_native,
    assert_same,
    both_modes,
    data_for,
    outputs,
    randomize,
    train_a_step,
)
from tests.support.messages import assert_explained, refused
from tests.support.states import assert_state, state


def model_of(shape: tuple[int, ...], *steps, name: str = "net") -> keras.Model:
    """A model of layers and functions in a row, with a head that sees every element."""
    x = inputs = keras.Input(shape)
    for step in steps:
        x = step(x)
    if len(x.shape) > 2:
        x = layers.Flatten(name="flat")(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="out")(x), name=name))


def names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers if not isinstance(layer, layers.InputLayer)]


def deepened(model: keras.Model, *args, exact_in_training: bool = True, **kwargs) -> list[str]:
    """Deepens a model, checks that nothing changed by it, and returns the names of its layers."""
    x = data_for(model)
    before = both_modes(model, x) if exact_in_training else outputs(model, x)
    report = n2n.grow(model, n2n.Deeper(*args, **kwargs), seed=0, verify=False)
    after = both_modes(model, x) if exact_in_training else outputs(model, x)
    assert_same(after, before)
    assert report.parameters_after == model.count_params() > report.parameters_before
    inserted = [i.path for step in report.plan.steps for i in step.insertions]
    assert inserted
    assert ("training mode" in str(report.notes)) == any(path.endswith("_bn") for path in inserted)
    assert_native(model)
    return names(model)


def conv(name: str = "conv", filters: int = 4, kernel=3, **kwargs) -> keras.Layer:
    return layers.Conv2D(filters, kernel, padding="same", name=name, **kwargs)


# -- the ways to write a block ------------------------------------------------------

DENSE = layers.Dense(4).get_config() | {"name": "it"}
BLOCKS = {
    "nothing": ([], ["it_deeper_1"]),
    "inside the layer": ("relu", ["it_deeper_1"]),
    "a ReLU6 inside": ("relu6", ["it_deeper_1"]),
    "Activation": (
        [lambda: layers.Activation("relu", name="act")],
        ["act", "it_deeper_1", "it_deeper_1_relu"],
    ),
    "Activation of a function": (
        [lambda: layers.Activation(keras.activations.relu, name="act")],
        ["act", "it_deeper_1", "it_deeper_1_relu"],
    ),
    "a linear Activation": (
        [lambda: layers.Activation("linear", name="act")],
        ["act", "it_deeper_1"],
    ),
    "ReLU": (
        [lambda: layers.ReLU(name="act")],
        ["act", "it_deeper_1", "it_deeper_1_relu"],
    ),
    "ReLU with a maximum": (
        [lambda: layers.ReLU(max_value=0.5, name="act")],
        ["act", "it_deeper_1", "it_deeper_1_relu"],
    ),
    "keras.ops.relu": ([lambda: ops.relu], ["it_deeper_1", "it_deeper_1_relu"]),
    "keras.activations.relu6": ([lambda: ops.relu6], ["it_deeper_1", "it_deeper_1_relu6"]),
    "BatchNormalization": (
        [lambda: layers.BatchNormalization(name="bn")],
        ["bn", "it_deeper_1", "it_deeper_1_bn"],
    ),
    "BatchNormalization and Activation": (
        [
            lambda: layers.BatchNormalization(name="bn"),
            lambda: layers.Activation("relu", name="act"),
        ],
        ["bn", "act", "it_deeper_1", "it_deeper_1_bn", "it_deeper_1_relu"],
    ),
    "BatchNormalization without gamma and keras.ops.relu": (
        [lambda: layers.BatchNormalization(scale=False, name="bn"), lambda: ops.relu],
        ["bn", "it_deeper_1", "it_deeper_1_bn", "it_deeper_1_relu"],
    ),
}


@pytest.mark.parametrize(("block", "expected"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_of_dense_is_found_however_it_is_written(block, expected):
    inline = {"activation": block} if isinstance(block, str) else {}
    rest = [] if isinstance(block, str) else [make() for make in block]
    model = model_of((5,), layers.Dense(4, name="it", **inline), *rest)
    found = deepened(model, "it", exact_in_training=not any("_bn" in name for name in expected))
    assert found == ["it", *expected, "out"]


@pytest.mark.parametrize(
    ("block", "expected"),
    [BLOCKS[key] for key in ("inside the layer", "ReLU", "BatchNormalization and Activation")],
)
def test_a_block_of_a_convolution_is_found_however_it_is_written(block, expected):
    inline = {"activation": block} if isinstance(block, str) else {}
    rest = [] if isinstance(block, str) else [make() for make in block]
    model = model_of((4, 4, 3), conv("it", **inline), *rest)
    found = deepened(model, "it", exact_in_training=not any("_bn" in name for name in expected))
    assert found == ["it", *expected, "flat", "out"]
    train_a_step(model, data_for(model))


def test_what_is_inserted_has_the_settings_of_the_block():
    norm = layers.BatchNormalization(epsilon=0.1, momentum=0.5, scale=False, name="bn")
    layer = conv("conv", strides=2, dilation_rate=1, use_bias=False, kernel_regularizer="l2")
    model = model_of((6, 6, 3), layer, norm, layers.ReLU(max_value=2.0, name="act"))
    deepened(model, "conv", exact_in_training=False)
    new = model.get_layer("conv_deeper_1")
    assert type(new) is layers.Conv2D
    assert (new.filters, new.kernel_size, new.strides, new.padding) == (4, (3, 3), (1, 1), "same")
    assert not new.use_bias
    assert isinstance(new.kernel_regularizer, keras.regularizers.L2)
    assert new.trainable
    new_norm = model.get_layer("conv_deeper_1_bn")
    assert (new_norm.epsilon, new_norm.momentum) == (0.1, 0.5)
    assert new_norm.scale  # without it, it could not undo its own normalization
    assert model.get_layer("conv_deeper_1_relu").max_value == 2.0


def test_a_layer_inserted_after_a_frozen_one_learns():
    model = model_of((5,), layers.Dense(4, activation="relu", name="it"))
    model.get_layer("it").trainable = False
    deepened(model, "it")
    assert not model.get_layer("it").trainable
    new = model.get_layer("it_deeper_1")
    x = data_for(model)
    frozen, before = array(model.get_layer("it").kernel), array(new.kernel)
    train_a_step(model, x)
    assert np.array_equal(array(model.get_layer("it").kernel), frozen)
    assert not np.array_equal(array(new.kernel), before)


def test_an_activation_that_other_layers_read_as_well_ends_the_block():
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, name="it")(x)
    y = layers.ReLU(name="act")(x)
    x = layers.Add(name="sum")([x, y])  # reads the Dense before its activation
    model = randomize(keras.Model(inputs, layers.Dense(3, name="out")(x)))
    assert deepened(model, "it") == ["it", "it_deeper_1", "act", "sum", "out"]
    assert model.get_layer("it_deeper_1").activation is keras.activations.linear


def test_an_own_operation_called_relu_is_not_taken_for_keras_own():
    @keras.saving.register_keras_serializable()
    class Relu(keras.Operation):
        def call(self, x):
            return ops.relu(x) - 1.0

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    model = model_of((5,), layers.Dense(4, name="it"), Relu())
    assert deepened(model, "it") == ["it", "it_deeper_1", "out"]
    assert model.get_layer("it_deeper_1").activation is keras.activations.linear


# -- kernels ------------------------------------------------------------------------

KERNELS = {
    "1D, odd": ((6, 2), layers.Conv1D(3, 3, activation="relu", name="conv")),
    "1D, even": ((6, 2), layers.Conv1D(3, 4, padding="same", activation="relu", name="conv")),
    "1D, causal": ((6, 2), layers.Conv1D(3, 3, padding="causal", name="conv")),
    "1D, causal and even": (
        (6, 2),
        layers.Conv1D(3, 2, padding="causal", dilation_rate=2, activation="relu", name="conv"),
    ),
    "2D, of one": ((3, 3, 2), layers.Conv2D(3, 1, activation="relu", name="conv")),
    "2D, even": ((4, 4, 2), layers.Conv2D(3, 2, activation="relu", name="conv")),
    "2D, not square": ((6, 5, 2), layers.Conv2D(3, (2, 3), padding="same", name="conv")),
    "2D, larger than its input": ((5, 5, 2), layers.Conv2D(3, (4, 5), name="conv")),
    "2D, strided": ((7, 6, 2), layers.Conv2D(3, 3, strides=(2, 3), name="conv")),
    "2D, dilated": ((6, 6, 2), layers.Conv2D(3, 2, dilation_rate=2, name="conv")),
    "2D, in groups": ((4, 4, 4), layers.Conv2D(6, 3, groups=2, activation="relu", name="conv")),
    "depthwise, even": (
        (5, 4, 3),
        layers.DepthwiseConv2D((2, 3), depth_multiplier=2, activation="relu", name="conv"),
    ),
    "1D, depthwise": ((6, 2), layers.DepthwiseConv1D(4, strides=2, name="conv")),
    "separable": (
        (6, 5, 2),
        layers.SeparableConv2D(3, (3, 2), strides=2, depth_multiplier=2, name="conv"),
    ),
    "1D, separable": ((6, 2), layers.SeparableConv1D(3, 2, activation="relu", name="conv")),
    "transposed": (
        (3, 3, 2),
        layers.Conv2DTranspose(3, 3, strides=2, activation="relu", name="conv"),
    ),
    "transposed, even": (
        (3, 4, 2),
        layers.Conv2DTranspose(3, (2, 4), padding="same", activation="relu", name="conv"),
    ),
    "1D, transposed": ((5, 2), layers.Conv1DTranspose(3, 2, strides=2, name="conv")),
    "3D, transposed": ((2, 3, 2, 2), layers.Conv3DTranspose(2, 2, name="conv")),
    "3D": ((4, 3, 3, 2), layers.Conv3D(2, (2, 3, 1), activation="relu", name="conv")),
}


@pytest.mark.parametrize(("shape", "layer"), KERNELS.values(), ids=KERNELS)
def test_a_convolution_of_any_kernel_is_followed_by_an_identity(shape, layer):
    model = model_of(shape, type(layer).from_config(layer.get_config()))
    assert names(model) == ["conv", "flat", "out"]
    assert deepened(model, "conv") == ["conv", "conv_deeper_1", "flat", "out"]
    new = model.get_layer("conv_deeper_1")
    assert new.kernel_size == layer.kernel_size
    assert new.strides in (1, (1,) * len(new.kernel_size))
    assert getattr(new, "groups", 1) == 1


EINSUMS = {
    "per step": (
        lambda: layers.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d", name="it"),
        "d",
    ),
    "into heads": (lambda: layers.EinsumDense("abc,cde->abde", (4, 2, 3), name="it"), "de"),
    "another order": (
        lambda: layers.EinsumDense("abc,cde->aebd", (3, 4, 2), bias_axes="ed", name="it"),
        "ed",
    ),
    "an ellipsis": (
        lambda: layers.EinsumDense("...x,xy->...y", 3, activation="relu", bias_axes="y", name="it"),
        "y",
    ),
}


@pytest.mark.parametrize(("make", "made"), EINSUMS.values(), ids=EINSUMS)
def test_an_einsum_dense_is_followed_by_one_that_maps_its_axes_onto_themselves(make, made):
    model = model_of((4, 5), make())
    assert deepened(model, "it")[:2] == ["it", "it_deeper_1"]
    new = model.get_layer("it_deeper_1")
    sizes = new.kernel.shape[: len(made)]
    assert tuple(new.kernel.shape) == (*sizes, *sizes)


def test_an_einsum_dense_with_units_of_its_own_can_be_inserted_wider():
    model = model_of((4, 5), layers.EinsumDense("abc,cd->abd", (4, 3), name="it"))
    deepened(model, "it", units=5)
    assert model.get_layer("it_deeper_1").kernel.shape == (3, 5)


def test_an_einsum_dense_that_makes_no_axis_is_an_error():
    model = model_of((4, 5), layers.EinsumDense("abc,c->abc", (4, 5), name="it"))
    refused(
        model,
        n2n.Deeper("it"),
        GrowthError,
        "after 'it' (EinsumDense)",
        "its equation 'abc,c->abc' makes no axis of its own",
    )


def test_layers_that_make_no_units_of_one_kind_are_not_inserted_wider():
    heads = layers.EinsumDense("abc,cde->abde", (4, 2, 3), name="it")
    depthwise = layers.DepthwiseConv2D(3, name="it")
    for model in (model_of((4, 5), heads), model_of((4, 4, 2), depthwise)):
        refused(model, n2n.Deeper("it", units=9), SizeError, "makes no units of one kind")


@pytest.mark.parametrize("kind", ["causal", "same"])
def test_what_is_inserted_sees_as_much_of_the_past_as_the_layer_does(kind):
    """Training must not let a causal network look ahead."""
    model = model_of((6, 1), layers.Conv1D(2, 3, padding=kind, name="conv"))
    deepened(model, "conv")
    new = model.get_layer("conv_deeper_1")
    new.kernel.assign(np.ones(new.kernel.shape))
    x = np.zeros((1, 6, 2), "float32")
    x[0, 3] = 1
    seen = np.flatnonzero(np.abs(array(new(x)))[0, :, 0])
    assert seen.tolist() == ([3, 4, 5] if kind == "causal" else [2, 3, 4])


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's CPU convolves channels last")
@pytest.mark.parametrize("norm", [False, True])
def test_channels_first_stay_first(norm):
    layer = conv("conv", kernel=(2, 3), data_format="channels_first")
    rest = [layers.BatchNormalization(axis=1, name="bn")] if norm else []
    model = model_of((2, 4, 5), layer, *rest, layers.ReLU(name="act"))
    found = deepened(model, "conv", count=2, exact_in_training=not norm)
    one = ["conv_deeper_{}", *(["conv_deeper_{}_bn"] if norm else []), "conv_deeper_{}_relu"]
    inserted = [name.format(i) for i in (1, 2) for name in one]
    assert found == ["conv", *(["bn"] if norm else []), "act", *inserted, "flat", "out"]
    new = model.get_layer("conv_deeper_2")
    assert (new.data_format, new.kernel.shape) == ("channels_first", (2, 3, 4, 4))
    if norm:
        assert model.get_layer("conv_deeper_2_bn").axis == 1


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's CPU convolves channels last")
def test_an_added_normalization_finds_the_channels_where_they_are():
    model = model_of((2, 4, 5), conv("conv", data_format="channels_first", activation="relu"))
    deepened(model, "conv", batch_norm=True, exact_in_training=False)
    assert model.get_layer("conv_deeper_1_bn").axis == 1


def test_a_normalization_over_another_axis_is_no_part_of_the_block():
    model = model_of((4, 6), layers.Dense(3, name="it"), layers.BatchNormalization(1, name="bn"))
    assert deepened(model, "it") == ["it", "it_deeper_1", "bn", "flat", "out"]


# -- counts, names, repeated deepening ---------------------------------------------------


def test_several_layers_are_inserted_one_after_the_other():
    model = model_of((5,), layers.Dense(4, activation="relu", name="fc2"))
    new = [f"fc2_deeper_{i}" for i in (1, 2, 3)]
    assert deepened(model, "fc2", 3) == ["fc2", *new, "out"]
    plan = n2n.plan(model, n2n.Deeper("fc2", 2))
    assert [(i.path, i.after) for i in plan.steps[0].insertions] == [
        ("fc2_deeper_4", "fc2"),
        ("fc2_deeper_5", "fc2_deeper_4"),
    ]


def test_repeated_deepening_counts_the_names_on():
    model = model_of((5,), layers.Dense(4, activation="relu", name="fc"))
    assert deepened(model, "fc") == ["fc", "fc_deeper_1", "out"]
    assert deepened(model, "fc") == ["fc", "fc_deeper_2", "fc_deeper_1", "out"]
    assert deepened(model, "fc_deeper_1") == [
        "fc",
        "fc_deeper_2",
        "fc_deeper_1",
        "fc_deeper_3",
        "out",
    ]
    assert len(set(names(model))) == len(names(model))


def test_a_name_that_is_taken_is_passed_over():
    first = layers.Dense(4, activation="relu", name="fc")
    model = model_of((5,), first, layers.Dense(4, name="fc_deeper_1"))
    assert deepened(model, "fc") == ["fc", "fc_deeper_2", "fc_deeper_1", "out"]


def test_one_operation_may_deepen_several_layers():
    model = randomize(mlp())
    assert deepened(model, ["dense_b", "dense_a"]) == [
        "dense_a",
        "dense_a_deeper_1",
        "dense_b",
        "dense_b_deeper_1",
        "out",
    ]


def test_a_pattern_takes_the_layers_that_have_an_identity():
    model = model_of(
        (5,),
        layers.Dense(4, name="block_fc"),
        layers.BatchNormalization(name="block_bn"),
        layers.ReLU(name="block_act"),
    )
    plan = n2n.plan(model, n2n.Deeper("block_*"))
    assert [i.after for step in plan.steps for i in step.insertions] == [
        "block_fc",
        "block_fc_deeper_1",
        "block_fc_deeper_1_bn",
    ]


def test_several_operations_in_a_row_are_as_good_as_one_after_the_other():
    x = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    operations = [n2n.Deeper("dense_a"), n2n.Wider("dense_a*", 9), n2n.Deeper("dense_a_deeper_1")]
    at_once, in_turn = randomize(mlp()), randomize(mlp())
    before = both_modes(at_once, x)
    n2n.grow(at_once, operations, seed=1)
    for operation in operations:
        n2n.grow(in_turn, operation, seed=1)
    assert names(at_once) == names(in_turn)
    assert_same(both_modes(at_once, x), before)
    for one, other in zip(at_once.weights, in_turn.weights, strict=True):
        assert array(one).tobytes() == array(other).tobytes()


# -- units ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_more_units_than_the_layer_below_compose_deeper_with_wider(count):
    model = model_of((5,), layers.Dense(4, activation="relu", name="fc"))
    deepened(model, "fc", count, units=7)
    units = [layer.units for layer in model.layers if isinstance(layer, layers.Dense)]
    assert units == [4, *[7] * count, 3]


def test_more_units_reach_the_normalization_that_is_inserted_too():
    model = model_of(
        (4, 4, 3), conv("conv"), layers.BatchNormalization(name="bn"), layers.ReLU(name="act")
    )
    deepened(model, "conv", units=6, exact_in_training=False)
    assert model.get_layer("conv_deeper_1").filters == 6
    assert model.get_layer("conv_deeper_1_bn").gamma.shape == (6,)
    assert model.get_layer("conv").filters == 4


def test_as_many_units_as_the_layer_below_change_nothing():
    model = model_of((5,), layers.Dense(4, name="fc"))
    same = n2n.plan(model, n2n.Deeper("fc", units=4), seed=0)
    (step,) = same.steps
    assert not step.widths
    deepened(model, "fc", units=4)
    assert model.get_layer("fc_deeper_1").units == 4


def test_fewer_units_than_the_layer_below_are_an_error():
    refused(
        model_of((5,), layers.Dense(4, name="fc")),
        n2n.Deeper("fc", units=3),
        SizeError,
        "'fc' (Dense, 4 units) can't have 3 units",
        "an identity passes on all 4 units",
        "Pass at least 4 units",
    )


def test_more_units_that_reach_an_output_are_an_error():
    model = mlp()
    before = state(model)
    with pytest.raises(FixedWidthError) as caught:
        n2n.grow(model, n2n.Deeper("out", units=9))
    assert_explained(caught.value, "out_deeper_1", "is an output of the model")
    assert_state(model, before)


# -- batch_norm and activation -----------------------------------------------------------


def test_batch_norm_is_as_in_the_block_unless_it_is_said():
    with_norm = [layers.BatchNormalization(name="bn"), layers.ReLU(name="act")]
    cases = {
        (True, None): ["it_deeper_1", "it_deeper_1_bn", "it_deeper_1_relu"],
        (True, True): ["it_deeper_1", "it_deeper_1_bn", "it_deeper_1_relu"],
        (True, False): ["it_deeper_1", "it_deeper_1_relu"],
        (False, None): ["it_deeper_1"],
        (False, False): ["it_deeper_1"],
        (False, True): ["it_deeper_1", "it_deeper_1_bn", "it_deeper_1_relu"],
    }
    for (normalized, batch_norm), expected in cases.items():
        rest = [type(one).from_config(one.get_config()) for one in with_norm] if normalized else []
        activation = None if normalized else "relu"
        model = model_of((5,), layers.Dense(4, activation=activation, name="it"), *rest)
        old = names(model)
        exact = "it_deeper_1_bn" not in expected
        found = deepened(model, "it", batch_norm=batch_norm, exact_in_training=exact)
        assert [name for name in found if name not in old] == expected


def test_an_inserted_normalization_is_exact_at_inference_to_the_last_digits():
    """gamma = 1 at a moving variance of 1 would be off by half of epsilon, here by 5%."""
    model = model_of(
        (5,), layers.Dense(4, name="it"), layers.BatchNormalization(epsilon=0.1, name="bn")
    )
    deepened(model, "it", count=3, exact_in_training=False)


@pytest.mark.parametrize(
    ("own", "new"),
    [
        ("sigmoid", "linear"),
        ("sigmoid", "relu"),
        ("tanh", "linear"),
        ("tanh", "hard_tanh"),
        ("gelu", "linear"),
        ("softmax", "linear"),
        ("softplus", "relu"),
        ("relu6", "relu"),
        ("relu", "linear"),
        ("relu", keras.ops.relu),
        (None, "linear"),
        ("relu", layers.ReLU()),
    ],
)
def test_another_activation_is_fine_where_it_changes_nothing(own, new):
    model = model_of((5,), layers.Dense(4, activation=own, name="it"))
    deepened(model, "it", activation=new)
    activation = model.get_layer("it_deeper_1").activation
    if isinstance(new, keras.Layer):
        assert isinstance(activation, layers.ReLU)
    else:
        assert activation is keras.activations.get(new if isinstance(new, str) else "relu")


def test_another_activation_follows_the_normalization():
    model = model_of(
        (5,),
        layers.Dense(4, name="it"),
        layers.BatchNormalization(name="bn"),
        layers.Activation("sigmoid", name="act"),
    )
    found = deepened(model, "it", activation="relu", exact_in_training=False)
    assert found[3:-1] == ["it_deeper_1", "it_deeper_1_bn", "it_deeper_1_relu"]
    found = deepened(model, "it", activation="linear", exact_in_training=False)
    assert found[3:5] == ["it_deeper_2", "it_deeper_2_bn"]
    assert "it_deeper_2_linear" not in found


@keras.saving.register_keras_serializable()
def unchanged(x):
    return x


NOT_IDEMPOTENT = {
    "tanh inside": ([layers.Dense(4, activation="tanh", name="it")], "'tanh'"),
    "sigmoid in a layer": (
        [layers.Dense(4, name="it"), layers.Activation("sigmoid")],
        "'sigmoid'",
    ),
    "softmax inside": ([layers.Dense(4, activation="softmax", name="it")], "'softmax'"),
    "LeakyReLU": ([layers.Dense(4, name="it"), layers.LeakyReLU()], "'LeakyReLU'"),
    "PReLU": ([layers.Dense(4, name="it"), layers.PReLU()], "'PReLU'"),
    "a leaking ReLU": ([layers.Dense(4, name="it"), layers.ReLU(negative_slope=0.1)], "'ReLU'"),
    "a shifted ReLU": ([layers.Dense(4, name="it"), layers.ReLU(threshold=0.5)], "'ReLU'"),
    "keras.ops.tanh": ([layers.Dense(4, name="it"), ops.tanh], "'Tanh'"),
    "an own function": ([layers.Dense(4, activation=unchanged, name="it")], "'unchanged'"),
}


@pytest.mark.parametrize(("steps", "label"), NOT_IDEMPOTENT.values(), ids=NOT_IDEMPOTENT)
def test_an_activation_that_is_not_idempotent_is_an_error(steps, label):
    clones = [
        type(step).from_config(step.get_config()) if isinstance(step, keras.Layer) else step
        for step in steps
    ]
    model = model_of((5,), *clones)
    refused(
        model,
        n2n.Deeper("it"),
        NotIdentityError,
        "after 'it' (Dense, 4 units)",
        f"{label} isn't idempotent",
        "activation='linear'",
    )
    deepened(model, "it", activation="linear")  # the way out that the message shows


@pytest.mark.parametrize(
    ("own", "new"),
    [("relu", "tanh"), ("tanh", "relu"), ("linear", "relu"), ("relu", "relu6"), ("relu", "elu")],
)
def test_an_activation_that_changes_the_output_of_the_block_is_an_error(own, new):
    refused(
        model_of((5,), layers.Dense(4, activation=own, name="it")),
        n2n.Deeper("it", activation=new),
        NotIdentityError,
        f"the activation {new!r} doesn't leave the output of the block's {own!r} as it is",
        "activation='linear'",
    )


@pytest.mark.parametrize("wrong", ["nope", 5, [], {"class_name": "nope"}])
def test_an_activation_that_there_is_not_is_an_error(wrong):
    with pytest.raises(GrowthError) as caught:
        n2n.Deeper("it", activation=wrong)
    assert_explained(caught.value, f"`activation` can't be {wrong!r}", "activation='relu'")


@pytest.mark.parametrize("wrong", ["yes", 2, "True"])
def test_a_batch_norm_that_is_no_boolean_is_an_error(wrong):
    with pytest.raises(GrowthError) as caught:
        n2n.Deeper("it", batch_norm=wrong)
    assert_explained(caught.value, f"`batch_norm` can't be {wrong!r}", "`True`, `False`, or `None`")


def test_layers_must_be_named():
    with pytest.raises(GrowthError) as caught:
        n2n.Deeper(None)
    assert_explained(caught.value, "No layer was named", "Deeper('conv2')")


def test_a_layer_without_an_identity_is_an_error():
    model = model_of((4, 4, 3), layers.Dense(3, name="dense"), layers.BatchNormalization(name="bn"))
    refused(
        model,
        n2n.Deeper("bn"),
        GrowthError,
        "after 'bn' (BatchNormalization",
        "BatchNormalization has no identity of its family",
        "Name a Dense, EinsumDense or convolution layer",
    )
    refused(model, n2n.Deeper("b*"), GrowthError, "'net'", "only Dense and convolution layers")


# -- models ------------------------------------------------------------------------------


def test_a_sequential_model_keeps_its_layers_in_order(tmp_path):
    for start in ([keras.Input((4, 4, 1))], []):
        model = keras.Sequential(
            [
                *start,
                layers.Conv2D(3, 2, name="conv"),
                layers.BatchNormalization(name="bn"),
                layers.ReLU(name="act"),
                layers.Flatten(name="flat"),
                layers.Dense(5, activation="relu", name="fc"),
                layers.Dense(2, name="out"),
            ]
        )
        model.build((None, 4, 4, 1))
        randomize(model)
        x = np.random.default_rng(0).standard_normal((2, 4, 4, 1)).astype("float32")
        before = outputs(model, x)
        n2n.grow(model, [n2n.Deeper("conv"), n2n.Deeper("fc", 2, units=7)], seed=0)
        assert names(model) == [
            "conv",
            "bn",
            "act",
            "conv_deeper_1",
            "conv_deeper_1_bn",
            "conv_deeper_1_relu",
            "flat",
            "fc",
            "fc_deeper_1",
            "fc_deeper_2",
            "out",
        ]
        assert_same(outputs(model, x), before)
        assert_reloads(model, x, tmp_path)
    # The model is one that can be edited as before.
    model.pop()
    model.add(layers.Dense(2, name="new_head"))
    assert outputs(model, x)[0].shape == (2, 2)
    assert names(model)[-2:] == ["fc_deeper_2", "new_head"]


def assert_reloads(model: keras.Model, x, path) -> None:
    """A loaded model has the layers and weights in the same order, and the same outputs."""
    model.save(path / "model.keras")
    loaded = keras.models.load_model(path / "model.keras")
    assert names(loaded) == names(model)
    assert [w.name for w in loaded.weights] == [w.name for w in model.weights]
    assert [w.shape for w in loaded.trainable_weights] == [w.shape for w in model.trainable_weights]
    assert_same(outputs(loaded, x), outputs(model, x), 1e-7)


def test_the_weights_are_in_the_order_of_a_loaded_model_after_repeated_deepening(tmp_path):
    x = inputs = keras.Input((5,))
    left = layers.Dense(4, activation="relu", name="left")(x)
    right = layers.Dense(4, activation="relu", name="right")(x)
    x = layers.Add(name="sum")([left, right])
    model = randomize(keras.Model(inputs, layers.Dense(3, name="out")(x)))
    deepened(model, "right", 2)
    deepened(model, "left")
    deepened(model, "right_deeper_1")
    assert_reloads(model, data_for(model), tmp_path)


def test_nested_models_are_deepened_inside(tmp_path):
    innermost = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, activation="relu", name="fc")], name="innermost"
    )
    x = inputs = keras.Input((4,))
    inner = keras.Model(inputs, layers.Dense(4, name="mix")(innermost(x)), name="inner")
    model = model_of((4,), inner, layers.Dense(4, name="fc"))
    x = data_for(model)
    before = both_modes(model, x)
    operations = [
        n2n.Deeper("inner/innermost/fc", units=6),
        n2n.Deeper("inner/mix"),
        n2n.Deeper("fc"),
    ]
    report = n2n.grow(model, operations, seed=0)
    inserted = [i.path for step in report.plan.steps for i in step.insertions]
    assert inserted == ["inner/innermost/fc_deeper_1", "inner/mix_deeper_1", "fc_deeper_2"]
    assert names(model) == ["inner", "fc", "fc_deeper_2", "out"]
    assert model.get_layer("inner") is inner
    assert names(inner) == ["innermost", "mix", "mix_deeper_1"]
    assert inner.get_layer("innermost") is innermost
    assert names(innermost) == ["fc", "fc_deeper_1"]
    assert_same(both_modes(model, x), before)
    assert_native(model)
    assert_reloads(model, x, tmp_path)


def test_a_nested_model_that_is_called_twice_is_deepened_once():
    shared = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, activation="relu", name="fc")], name="shared"
    )
    model = model_of((4,), shared, shared)
    assert deepened(model, "fc") == ["shared", "out"]
    assert names(shared) == ["fc", "fc_deeper_1"]


def shared_layer(*activations) -> keras.Model:
    """One Dense layer that is called at two inputs, with an activation for each call."""
    fc = layers.Dense(4, name="fc")
    inputs = [keras.Input((5,), name="a"), keras.Input((5,), name="b")]
    made = [fc(x) for x in inputs]
    # In the other order, so that the calls of the layer don't stand next to their blocks.
    ends = [activate(x) for activate, x in zip(activations[::-1], made[::-1], strict=True)]
    x = layers.Concatenate(name="both")(ends)
    return randomize(keras.Model(inputs, layers.Dense(3, name="out")(x)))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_shared_layer_is_followed_by_shared_layers(count):
    model = shared_layer(layers.ReLU(name="act_a"), layers.ReLU(name="act_b"))
    before = model.count_params()
    found = deepened(model, "fc", count)
    for i in range(1, count + 1):
        assert found.count(f"fc_deeper_{i}") == 1
        assert len(model.get_layer(f"fc_deeper_{i}")._inbound_nodes) == 2
    assert model.count_params() == before + count * 20


def test_a_shared_layer_with_two_activations_gets_one_that_changes_neither():
    model = shared_layer(layers.ReLU(name="act"), layers.Activation("linear", name="none"))
    deepened(model, "fc")
    assert model.get_layer("fc_deeper_1").activation is keras.activations.linear
    model = shared_layer(layers.ReLU(name="act"), layers.ReLU(max_value=1.0, name="low"))
    deepened(model, "fc")
    assert model.get_layer("fc_deeper_1_relu").max_value is None
    refused(
        shared_layer(layers.ReLU(name="act"), layers.Activation("tanh", name="tanh")),
        n2n.Deeper("fc"),
        NotIdentityError,
        "'tanh' isn't idempotent",
    )
    refused(
        shared_layer(
            layers.Activation("relu6", name="c"), layers.Activation("hard_tanh", name="d")
        ),
        n2n.Deeper("fc"),
        NotIdentityError,
        "'relu6', 'hard_tanh', none of which leaves the others as they are",
    )


def test_an_output_layer_can_be_deepened():
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, activation="relu", name="fc")(x)
    ends = {"a": layers.Dense(3, name="a")(x), "b": layers.Dense(2, name="b")(x), "c": x}
    model = randomize(keras.Model(inputs, ends))
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, [n2n.Deeper("b"), n2n.Deeper("fc")], seed=0)
    assert_same(both_modes(model, x), before)
    assert list(model(x)) == ["a", "b", "c"]


def test_another_model_of_the_same_tensors_computes_what_it_did():
    model = model_of((5,), layers.Dense(4, name="fc"), layers.ReLU(name="act"))
    features = keras.Model(model.input, model.get_layer("act").output)
    x = data_for(model)
    before = outputs(features, x)
    deepened(model, "fc")
    assert_same(outputs(features, x), before)
    assert "fc_deeper_1" not in names(features)
    deeper_features = keras.Model(model.input, model.get_layer("fc_deeper_1_relu").output)
    assert_same(outputs(deeper_features, x), before)
    assert outputs(keras.Model(model.input, model.get_layer("fc").output), x)[0].shape == (4, 4)


def test_deeper_in_half_precision_is_an_identity():
    model = model_of(
        (5,),
        layers.Dense(4, dtype="mixed_float16", name="it"),
        layers.BatchNormalization(dtype="mixed_float16", name="bn"),
        layers.ReLU(dtype="mixed_float16", name="act"),
    )
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.Deeper("it"), seed=0)
    assert_same(outputs(model, x), before, 1e-3)
    for name in ("it_deeper_1", "it_deeper_1_bn", "it_deeper_1_relu"):
        assert model.get_layer(name).dtype_policy.name == "mixed_float16"


def test_layers_that_are_no_part_of_the_graph_stay_behind_those_that_are():
    model = model_of((5,), layers.Dense(4, name="fc"), layers.Dense(4, name="last"))
    model.extra = layers.Dense(2, name="extra")
    model.extra.build((None, 3))
    if len(model.weights) < 8:
        pytest.skip("up to Keras 3.10, a layer that is set on a model isn't part of its weights")
    order = ["fc", "last", "out", "extra"]
    assert [w.path.split("/")[0] for w in model.weights] == [x for x in order for _ in range(2)]
    n2n.grow(model, n2n.Deeper("fc"), seed=0)
    order.insert(1, "fc_deeper_1")
    assert [w.path.split("/")[0] for w in model.weights] == [x for x in order for _ in range(2)]


def residual(blocks: int) -> keras.Model:
    x = inputs = keras.Input((4,))
    for i in range(blocks):
        y = layers.Dense(4, activation="relu", name=f"in{i}")(x)
        x = layers.Add(name=f"sum{i}")([x, layers.Dense(4, name=f"back{i}")(y)])
    return randomize(keras.Model(inputs, layers.Dense(3, name="out")(x)))


def test_many_layers_are_deepened_in_one_pass(monkeypatch):
    passes = []

    def counted(*args):
        passes.append(args)
        return infer(*args)

    monkeypatch.setattr("keras_net2net.planning.draft.infer", counted)
    plan = n2n.plan(residual(20), n2n.Deeper("in*", count=2), seed=0)
    assert sum(len(step.insertions) for step in plan.steps) == 40
    assert len(passes) == 1  # one for each would make the time quadratic


def test_a_graph_knows_who_reads_its_tensors_after_insertions():
    draft = draft_growth(residual(3), n2n.Deeper(["in1", "back*"], count=2), seed=0)
    graph = draft.graph
    tensors = [*graph.flat_inputs, *(t for call in graph.calls for t in call.outputs)]
    for tensor in tensors:
        readers = [call for call in graph.calls if any(x is tensor for x in call.inputs)]
        assert {id(call) for call in graph.consumers(tensor)} == set(map(id, readers))
        assert len(graph.consumers(tensor)) == len(readers)
