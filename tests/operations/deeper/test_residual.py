"""Residual blocks and parts of a graph that are repeated: exact, and able to learn."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.errors import GrowthError, NotIdentityError, UnknownLayerError, VerificationError
from keras_net2net.operations.deeper import building
from keras_net2net.widths import registry
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_native,
    assert_same,
    assert_untouched,
    both_modes,
    cases,
    data_for,
    max_difference,
    outputs,
    randomize,
    snapshot,
    train_a_step,
)
from tests.support.messages import assert_explained, refused
from tests.support.states import assert_state, state

Deeper = n2n.Deeper
elsewhere = pytest.mark.skipif(
    BACKEND == "jax", reason="it compiles for seconds what the other backends do at once"
)


def model_of(shape, *blocks, dtype="float32"):
    """Blocks, functions of a tensor and a name, one after the other, between two layers."""
    x = inputs = keras.Input(shape)
    for number, block in enumerate(blocks):
        x = block(x, f"b{number}")
    if len(x.shape) > 2:
        x = layers.Flatten(name="flat")(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="out", dtype=dtype)(x), name="net"))


def names(model):
    return [layer.name for layer in model.layers if not isinstance(layer, layers.InputLayer)]


def inserted(report):
    return [one.path for step in report.plan.steps for one in step.insertions]


def zeros(report):
    """The weights that start at zero, and stand in the notes."""
    (note,) = (note for note in report.notes if "start at zero: " in note)
    return note.partition("start at zero: ")[2].split(", ")


def repeated(model, *args, tolerance=0.0, learns=True, **kwargs):
    """Grows a model, and checks all that a repeated block promises."""
    x = data_for(model)
    before, number = both_modes(model, x), model.count_params()
    planned = n2n.plan(model, Deeper(*args, **kwargs), seed=0)
    report = n2n.grow(model, Deeper(*args, **kwargs), seed=0)
    assert max_difference(both_modes(model, x), before) <= tolerance
    assert report.parameters_before == number < report.parameters_after == model.count_params()
    assert planned.parameters_after == report.parameters_after
    assert inserted(report)
    assert_native(model)
    if learns and BACKEND == "torch":  # the others compile for seconds
        assert_learns(model, report, x)
    return report


def assert_learns(model, report, x):
    """What starts at zero moves with the first step, and all other kernels with the second."""
    new = set(inserted(report))
    found = [
        layer
        for path, layer in n2n.testing.flat_layers(model)
        if new & {path, path.rsplit("/", 1)[0], path.split("/")[0]}
    ]
    kernels = [
        variable
        for layer in found
        for variable in layer.trainable_weights
        if variable.name != "bias" and (len(variable.shape) > 1 or variable.name == "gamma")
    ]
    kernels = list({id(variable): variable for variable in kernels}.values())
    assert kernels
    y = [np.ones_like(out, "float32") for out in outputs(model, x)]
    model.compile(keras.optimizers.SGD(0.05), loss="mse", **EAGERLY)
    start = [array(variable) for variable in kernels]
    model.train_on_batch(x, y[0])
    moved = [not np.array_equal(array(v), old) for v, old in zip(kernels, start, strict=True)]
    assert any(moved)
    assert all(now for now, old in zip(moved, start, strict=True) if not old.any())
    model.train_on_batch(x, y[0])
    for variable, old in zip(kernels, start, strict=True):
        assert not np.array_equal(array(variable), old), variable.path


# -- blocks as they are written ------------------------------------------------------------


def basic(x, name, width=4, data_format="channels_last"):
    """The basic block of a ResNet."""
    axis = 1 if data_format == "channels_first" else -1
    options = {"padding": "same", "data_format": data_format}
    y = layers.Conv2D(width, 3, name=f"{name}_conv1", **options)(x)
    y = layers.BatchNormalization(axis=axis, name=f"{name}_bn1")(y)
    y = layers.ReLU(name=f"{name}_relu")(y)
    y = layers.Conv2D(width, 3, name=f"{name}_conv2", **options)(y)
    y = layers.BatchNormalization(axis=axis, name=f"{name}_bn2")(y)
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, y]))


def preactivated(x, name, width=4):
    y = layers.BatchNormalization(name=f"{name}_bn1")(x)
    y = layers.Activation("relu", name=f"{name}_relu")(y)
    y = layers.Conv2D(width, 3, padding="same", name=f"{name}_conv1")(y)
    y = layers.Conv2D(width, 3, padding="same", name=f"{name}_conv2")(y)
    return layers.Add(name=f"{name}_out")([x, y])


def inverted(x, name, width=4):
    """The block of MobileNetV2."""
    y = layers.Conv2D(8, 1, use_bias=False, name=f"{name}_expand")(x)
    y = layers.BatchNormalization(name=f"{name}_expand_bn")(y)
    y = layers.ReLU(6.0, name=f"{name}_expand_relu")(y)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(y)
    y = layers.BatchNormalization(name=f"{name}_depthwise_bn")(y)
    y = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(y)
    y = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_project")(y)
    y = layers.BatchNormalization(name=f"{name}_project_bn")(y)
    return layers.Add(name=f"{name}_out")([x, y])


def squeezing(x, name, width=4):
    """A block with a gate over the channels, and dropout of whole samples."""
    y = layers.SeparableConv2D(width, 3, padding="same", name=f"{name}_conv")(x)
    y = layers.BatchNormalization(name=f"{name}_bn")(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(y)
    gate = layers.Conv2D(width, 1, activation="sigmoid", name=f"{name}_gate")(gate)
    y = layers.Multiply(name=f"{name}_excite")([y, gate])
    y = layers.Dropout(0.0, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(y)
    return layers.Add(name=f"{name}_out")([y, x])


@keras.saving.register_keras_serializable("tests")
class Scale(keras.Layer):
    """What ConvNeXt calls LayerScale."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],), name="gamma")

    def call(self, x):
        return x * self.gamma


@keras.saving.register_keras_serializable("tests")
class Depth(keras.Layer):
    """Stochastic depth, with a rate of zero."""

    def call(self, x, training=None):
        if training:
            return x / 1.0 * ops.floor(1.0 + keras.random.uniform((ops.shape(x)[0], 1, 1)))
        return x


def convnext(x, name, width=4):
    y = layers.DepthwiseConv1D(3, padding="same", name=f"{name}_dw")(x)
    y = layers.LayerNormalization(name=f"{name}_ln")(y)
    y = layers.Dense(2 * width, name=f"{name}_pw1")(y)
    y = layers.Dense(width, name=f"{name}_pw2")(ops.gelu(y))
    return x + Depth(name=f"{name}_out")(Scale(name=f"{name}_scale")(y))


def transformer(x, name, width=4):
    """A transformer block with its normalizations in front."""
    y = layers.LayerNormalization(name=f"{name}_ln1")(x)
    y = layers.MultiHeadAttention(2, 3, name=f"{name}_attention")(y, y)
    x = layers.Add(name=f"{name}_add")([x, y])
    y = layers.LayerNormalization(name=f"{name}_ln2")(x)
    y = layers.Dense(2 * width, activation="gelu", name=f"{name}_fc1")(y)
    y = layers.Dense(width, name=f"{name}_fc2")(y)
    return layers.Add(name=f"{name}_out")([x, y])


def postnorm(x, name, width=4):
    """The original transformer block, normalized behind its sums."""
    y = layers.MultiHeadAttention(2, 3, name=f"{name}_attention")(x, x)
    x = layers.LayerNormalization(name=f"{name}_ln1")(layers.Add(name=f"{name}_add")([x, y]))
    y = layers.Dense(width, activation="gelu", name=f"{name}_fc")(x)
    return layers.LayerNormalization(name=f"{name}_out")(layers.Add(name=f"{name}_add2")([x, y]))


@keras.saving.register_keras_serializable("tests")
class Block(keras.Layer):
    """A layer that holds a whole residual block."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.norm = layers.LayerNormalization()
        self.up = layers.Dense(2 * width, activation="gelu")
        self.drop = layers.Dropout(0.0)
        self.down = layers.Dense(width)

    def build(self, input_shape):
        self.norm.build(input_shape)
        self.up.build(input_shape)
        self.down.build((*input_shape[:-1], 2 * self.width))

    def call(self, x, training=None):
        y = self.drop(self.up(self.norm(x)), training=training)
        return x + self.down(y)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("tests")
class Normalized(Block):
    """The same, normalized behind the sum."""

    def call(self, x, training=None):
        return self.norm(x + self.down(self.drop(self.up(x), training=training)))


def own(x, name, width=4):
    return Block(width, name=f"{name}_out")(x)


def dense(x, name, width=4):
    return layers.Dense(width, name=f"{name}_dense")(x)


def conv(x, name, width=4):
    return layers.Conv2D(width, 3, padding="same", name=f"{name}_conv")(x)


IMAGE, SEQUENCE = (6, 6, 2), (5, 3)
BLOCKS = {
    "transformer": (
        SEQUENCE,
        dense,
        transformer,
        ["attention_deeper_1/attention_output/kernel", "fc2_deeper_1/kernel"],
    ),
    "basic": (IMAGE, conv, basic, ["bn2_deeper_1/gamma", "bn2_deeper_1/beta"]),
    "a layer": (SEQUENCE, dense, own, ["out_deeper_1/down/kernel"]),
    "preactivated": (IMAGE, conv, preactivated, ["conv2_deeper_1/kernel", "conv2_deeper_1/bias"]),
    "inverted": (IMAGE, conv, inverted, ["project_bn_deeper_1/gamma", "project_bn_deeper_1/beta"]),
    "squeezing": (IMAGE, conv, squeezing, ["bn_deeper_1/gamma", "bn_deeper_1/beta"]),
    "convnext": (SEQUENCE, dense, convnext, ["scale_deeper_1/gamma"]),
    "postnorm": (SEQUENCE, dense, postnorm, ["out_deeper_1/gamma", "out_deeper_1/beta"]),
}


@pytest.mark.parametrize(
    ("shape", "stem", "block", "expected"), cases(BLOCKS, 4).values(), ids=cases(BLOCKS, 4)
)
def test_a_block_is_repeated_as_the_identity_and_learns(shape, stem, block, expected, tmp_path):
    model = model_of(shape, stem, block, block)
    x = data_for(model)
    report = repeated(model, "b2_out", form="residual", learns=False)
    if block is not own:  # Keras numbers the layers in it
        assert set(expected) <= {name.removeprefix("b2_") for name in zeros(report)}
    assert all(name.startswith(("b2_", "add_", "gelu_")) for name in inserted(report))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert names(loaded) == names(model)
    assert_same(outputs(loaded, x), outputs(model, x), 1e-7)
    if BACKEND != "jax":
        assert_learns(model, report, x)


def test_the_copy_has_the_weights_of_the_block_but_for_those_that_start_at_zero():
    model = model_of((3,), dense, dense_block)
    n2n.grow(model, Deeper("b1_out", form="residual"), seed=0)
    assert names(model)[2:] == [
        "b1_fc2",
        "b1_out",
        "b1_fc1_deeper_1",
        "b1_fc2_deeper_1",
        "b1_out_deeper_1",
        "out",
    ]
    old, new = model.get_layer("b1_fc1"), model.get_layer("b1_fc1_deeper_1")
    for a, b in zip(old.get_weights(), new.get_weights(), strict=True):
        assert np.array_equal(a, b)
    last = model.get_layer("b1_fc2_deeper_1")
    assert not any(w.any() for w in last.get_weights())
    # With the weights of the old block, it is the block once more: worked out by hand.
    last.set_weights(model.get_layer("b1_fc2").get_weights())
    x = data_for(model)
    weights = {layer.name: layer.get_weights() for layer in model.layers}

    def apply(name, x):
        kernel, bias = (w.astype("float64") for w in weights[name])
        return x @ kernel + bias

    z = apply("b0_dense", np.asarray(x, "float64"))
    for _ in range(2):
        z = z + apply("b1_fc2", np.tanh(apply("b1_fc1", z)))
    assert np.abs(outputs(model, x)[0] - apply("out", z)).max() < 1e-5


def dense_block(x, name, width=4):
    y = layers.Dense(6, activation="tanh", name=f"{name}_fc1")(x)
    return layers.Add(name=f"{name}_out")([x, layers.Dense(width, name=f"{name}_fc2")(y)])


# -- which part is a block -----------------------------------------------------------------


def test_attention_and_mlp_are_one_block_and_each_a_part():
    one, two = (model_of(SEQUENCE, dense, *[transformer] * n) for n in (1, 2))
    for model in (one, two):
        plan = n2n.plan(model, Deeper("b1_out", form="residual"), seed=0)
        assert "from 'b0_dense' to 'b1_out'" in plan.summary()
        plan = n2n.plan(model, Deeper("b1_add", form="residual"), seed=0)
        assert "from 'b0_dense' to 'b1_add'" in plan.summary()
    plan = n2n.plan(two, Deeper("b2_out", form="residual"), seed=0)
    assert "from 'b1_out' to 'b2_out'" in plan.summary()
    plan = n2n.plan(two, Deeper(between=("b1_add", "b1_out")), seed=0)
    assert "from 'b1_add' to 'b1_out'" in plan.summary()


def mixer(x, name, width=4):
    """Two kinds of blocks that take turns, without attention."""
    y = layers.Permute((2, 1), name=f"{name}_p1")(layers.LayerNormalization(name=f"{name}_n1")(x))
    y = layers.Permute((2, 1), name=f"{name}_p2")(layers.Dense(5, name=f"{name}_tokens")(y))
    x = layers.Add(name=f"{name}_add")([x, y])
    y = layers.Dense(width, name=f"{name}_channels")(
        layers.LayerNormalization(name=f"{name}_n2")(x)
    )
    return layers.Add(name=f"{name}_out")([x, y])


@elsewhere
def test_blocks_of_other_kinds_that_take_turns_are_one_too():
    model = model_of(SEQUENCE, dense, mixer, mixer)
    report = repeated(model, "b2_out", form="residual", learns=False)
    assert zeros(report) == [
        "b2_tokens_deeper_1/kernel",
        "b2_tokens_deeper_1/bias",
        "b2_channels_deeper_1/kernel",
        "b2_channels_deeper_1/bias",
    ]
    plan = n2n.plan(model, Deeper("b2_add", form="residual"), seed=0)
    assert "from 'b1_out' to 'b2_add'" in plan.summary()


def parallel(x, name, width=4):
    """Attention and MLP side by side, as in GPT-J, added one after the other."""
    y = layers.LayerNormalization(name=f"{name}_ln")(x)
    attended = layers.MultiHeadAttention(2, 3, name=f"{name}_attention")(y, y)
    return x + attended + layers.Dense(width, name=f"{name}_out")(y)


def test_branches_that_are_added_one_after_the_other_are_one_block():
    model = model_of(SEQUENCE, dense, parallel)
    plan = n2n.plan(model, Deeper("b1_out", form="residual"), seed=0)
    assert "from 'b0_dense'" in plan.summary()
    assert len(plan.steps[0].insertions) == 5
    assert "b1_attention_deeper_1/attention_output/kernel" in plan.summary()


def test_the_sum_and_its_activation_name_the_same_block():
    plans = [
        n2n.plan(model_of(IMAGE, conv, basic), Deeper(name, form="residual"), seed=0)
        for name in ("b1_add", "b1_out")
    ]
    assert len({str(plan.steps[0].insertions) for plan in plans}) == 1


def test_a_sum_without_a_name_of_its_own_is_named_by_what_comes_before_it():
    model = model_of(SEQUENCE, dense, convnext)
    for name in ("b1_out", "b1_scale", "b1_pw2"):
        plan = n2n.plan(model, Deeper(name, form="residual"), seed=0)
        assert len(plan.steps[0].insertions) == 8, name
    # but a layer before a sum with a name is a layer like others
    plan = n2n.plan(model_of((3,), dense, dense_block), Deeper("b1_fc2", form="residual"), seed=0)
    assert len(plan.steps[0].insertions) == 3


def test_a_pattern_names_blocks_and_where_it_names_none_layers():
    model = model_of((3,), dense, dense_block, dense_block)
    report = repeated(model, "b*", form="residual", learns=False)
    assert [path for path in inserted(report) if "out" in path] == [
        "b1_out_deeper_1",
        "b2_out_deeper_1",
    ]
    plan = n2n.plan(model, Deeper("*fc2", form="residual"), seed=0)
    assert len(plan.steps) == 2


@keras.saving.register_keras_serializable("tests")
class WeightedSum(keras.Layer):
    """Adds in its own way, as a layer of InceptionResNetV2 does."""

    def call(self, inputs):
        return inputs[0] + 0.5 * inputs[1]


def weighted(x, name, width=4):
    y = layers.Dense(width, name=f"{name}_fc")(x)
    return layers.ReLU(name=f"{name}_out")(WeightedSum(name=f"{name}_sum")([x, y]))


@elsewhere
def test_a_layer_that_adds_in_its_own_way_ends_a_block():
    model = model_of((3,), dense, weighted, weighted)
    report = repeated(model, "b2_out", form="residual")
    assert zeros(report) == ["b2_fc_deeper_1/kernel", "b2_fc_deeper_1/bias"]


@keras.saving.register_keras_serializable("tests")
class Tilt(keras.Layer):
    """Scales and shifts each unit, by weights of its own."""

    def build(self, input_shape):
        self.slope = self.add_weight(shape=input_shape[-1:], name="gamma", initializer="ones")
        self.offset = self.add_weight(shape=input_shape[-1:], name="offset")

    def call(self, x):
        return x * self.slope + self.offset


@keras.saving.register_keras_serializable("tests")
class Halved(keras.Layer):
    """Halves what it is given."""

    def call(self, x):
        return x / 2


@pytest.fixture
def own_rules():
    """Rules of a user, for layers that otherwise were opened."""
    words = n2n.rules.treatments

    def tilt(call, x):
        for name in ("gamma", "offset"):
            call.weight(name, n2n.rules.follows(x[-1]))
        call.treat(words.SCALES)
        return x

    def say(treatment):
        def rule(call, x):
            call.treat(treatment)
            return x

        n2n.rules.register_rule(Halved)(rule)

    n2n.rules.register_rule(Tilt)(tilt)
    say(words.PASSES)
    yield say
    del registry._BY_CLASS[Tilt], registry._BY_CLASS[Halved]


def ended_by(layer):
    def block(x, name):
        y = layer(name=f"{name}_it")(layers.Dense(4, name=f"{name}_fc")(x))
        return layers.Add(name=f"{name}_add")([x, y])

    return block


def test_weights_that_a_users_rule_says_make_the_output_start_at_zero(own_rules):
    report = repeated(model_of((3,), dense, ended_by(Tilt)), "b1_add", form="residual")
    assert zeros(report) == ["b1_it_deeper_1/gamma", "b1_it_deeper_1/offset"]


@elsewhere
def test_a_layer_whose_rule_passes_units_through_passes_silence_on(own_rules):
    model = model_of((3,), dense, ended_by(Halved))
    assert zeros(repeated(model, "b1_add", form="residual")) == [
        "b1_fc_deeper_1/kernel",
        "b1_fc_deeper_1/bias",
    ]
    # Zero of zero isn't enough: behind a ReLU, weights that are all zero wouldn't learn.
    own_rules(n2n.rules.treatments.KEEPS_ZERO)
    model = model_of((3,), dense, ended_by(Halved))
    assert zeros(repeated(model, "b1_add", form="residual"))[0].startswith("b1_add_deeper_1_proj")


# -- parts between two tensors -------------------------------------------------------------


def test_a_plain_part_is_added_to_its_input_in_front_of_its_relu():
    def plain(x, name):
        x = layers.ReLU(name=f"{name}_start")(x)
        x = layers.Conv2D(4, 3, padding="same", name=f"{name}_conv")(x)
        return layers.ReLU(name=f"{name}_end")(layers.BatchNormalization(name=f"{name}_bn")(x))

    model = model_of(IMAGE, conv, plain)
    report = repeated(model, between=("b1_start", "b1_end"))
    assert inserted(report) == [
        "b1_conv_deeper_1",
        "b1_bn_deeper_1",
        "b1_end_deeper_1_add",
        "b1_end_deeper_1",
    ]
    assert zeros(report) == ["b1_bn_deeper_1/gamma", "b1_bn_deeper_1/beta"]
    assert any("no skip of its own" in note for note in report.notes)


@pytest.mark.parametrize("activation", cases(dict.fromkeys(["sigmoid", "relu", "softmax"]), 1))
def test_a_part_that_nothing_in_it_can_silence_gets_a_projection(activation):
    """Behind a ReLU, weights of zero would never learn; a sigmoid of zero isn't zero."""

    def plain(x, name):
        return layers.Dense(4, activation=activation, name=f"{name}_fc")(x)

    model = model_of((3,), dense, plain)
    report = repeated(model, between=("b0_dense", "b1_fc"))
    assert inserted(report) == [
        "b1_fc_deeper_1",
        "b1_fc_deeper_1_projection",
        "b1_fc_deeper_1_add",
    ]


@elsewhere
def test_a_branch_that_ends_with_a_relu_gets_a_projection():
    def branch(x, name):
        y = layers.Conv1D(4, 3, padding="same", activation="relu", name=f"{name}_conv")(x)
        return layers.Add(name=f"{name}_out")([x, y])

    model = model_of(SEQUENCE, dense, branch)
    report = repeated(model, "b1_out", form="residual")
    assert "b1_out_deeper_1_projection" in inserted(report)
    assert isinstance(model.get_layer("b1_out_deeper_1_projection"), layers.Conv1D)


def test_an_even_older_normalization_without_gamma_is_silent_by_its_mean():
    def branch(x, name):
        y = layers.Conv1D(4, 3, padding="same", name=f"{name}_conv")(x)
        y = layers.BatchNormalization(scale=False, name=f"{name}_bn")(y)
        return layers.Add(name=f"{name}_out")([x, y])

    model = model_of(SEQUENCE, dense, branch)
    report = repeated(model, "b1_out", form="residual", learns=False)
    assert zeros(report) == [
        "b1_conv_deeper_1/kernel",
        "b1_conv_deeper_1/bias",
        "b1_bn_deeper_1/beta",
        "b1_bn_deeper_1/moving_mean",
    ]


def decoder():
    """Two inputs: blocks read an encoding and a mask that come from outside of them."""
    x = inputs = keras.Input((5, 3), name="target")
    y = encoding = keras.Input((7, 3), name="source")
    y = layers.Dense(4, name="encoded")(y)
    x = layers.Dense(4, name="embedded")(x)
    bias = layers.Dense(4, name="bias")(layers.GlobalAveragePooling1D(name="pool")(y))
    bias = layers.Reshape((1, 4), name="row")(bias)
    for name in ("b1", "b2"):
        h = layers.MultiHeadAttention(2, 3, name=f"{name}_cross")(x, y)
        x = layers.Add(name=f"{name}_add")([x, h])
        h = layers.Multiply(name=f"{name}_by")([layers.Dense(4, name=f"{name}_fc")(x), bias])
        x = layers.Add(name=f"{name}_out")([x, h])
    x = layers.Dense(2, name="out")(x)
    return randomize(keras.Model([inputs, encoding], x, name="decoder"))


@elsewhere
def test_a_copy_reads_what_comes_from_outside_as_the_block_does():
    model = decoder()
    report = repeated(model, "b2_out", 2, form="residual", learns=False)
    assert inserted(report)[:3] == ["b2_cross_deeper_1", "b2_add_deeper_1", "b2_fc_deeper_1"]
    readers = [node.operation.name for node in model.get_layer("row")._outbound_nodes]
    assert set(readers) >= {"b1_by", "b2_by", "b2_by_deeper_1", "b2_by_deeper_2"}


def shared():
    x = inputs = keras.Input((3,))
    x = layers.Dense(4, name="stem")(x)
    twice = layers.Dense(4, activation="tanh", name="twice")
    for name in ("b1", "b2"):
        x = layers.Add(name=f"{name}_out")([x, layers.Dense(4, name=f"{name}_fc")(twice(x))])
    return randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name="shared"))


def test_a_layer_that_is_called_outside_too_is_copied_as_a_new_one():
    model = shared()
    report = repeated(model, "b2_out", form="residual")
    assert "twice_deeper_1" in names(model)
    assert any("'twice': called outside of the block, too" in note for note in report.notes)


@elsewhere
def test_tensors_tell_the_calls_of_a_shared_layer_apart():
    model = shared()
    calls = [model.get_layer(name).input for name in ("b1_fc", "b2_fc")]
    repeated(model, between=tuple(calls), learns=False)
    model = shared()
    ends = (model.get_layer("b1_out").output, model.get_layer("b2_out"))
    student = n2n.clone_and_grow(model, Deeper(between=ends), seed=0)
    assert "b2_fc_deeper_1" in names(student)
    assert "b2_fc_deeper_1" not in names(model)
    refused(shared(), Deeper(between=("stem", "twice")), UnknownLayerError, "which tensor")


@elsewhere
def test_a_layer_called_twice_in_the_part_stays_one_layer():
    model = shared()
    report = repeated(model, between=("stem", "b2_out"))
    assert sum(name.startswith("twice_deeper") for name in names(model)) == 1
    assert zeros(report) == [
        "b1_fc_deeper_1/kernel",
        "b1_fc_deeper_1/bias",
        "b2_fc_deeper_1/kernel",
        "b2_fc_deeper_1/bias",
    ]


@elsewhere
def test_an_input_of_the_model_may_be_the_start():
    model = model_of((4,), dense, dense_block)
    report = repeated(model, between=(model.inputs[0], "b1_out"), learns=False)
    assert len(inserted(report)) == 5


# -- a block made for a plain layer ----------------------------------------------------------

PLAIN = {
    "tanh": ((3,), lambda name: [layers.Dense(4, activation="tanh", name=name)]),
    "a convolution with sigmoid": (
        IMAGE,
        lambda name: [layers.Conv2D(4, 3, strides=2, activation="sigmoid", name=name)],
    ),
    "softmax": ((3,), lambda name: [layers.Dense(4, activation="softmax", name=name)]),
    "a causal one and PReLU": (
        SEQUENCE,
        lambda name: [layers.Conv1D(4, 2, padding="causal", name=name), layers.PReLU()],
    ),
    "normalized": (
        IMAGE,
        lambda name: [
            layers.Conv2D(4, 3, use_bias=False, name=name),
            layers.BatchNormalization(),
            layers.Activation("silu"),
        ],
    ),
    "in space": ((3, 3, 3, 1), lambda name: [layers.Conv3D(2, 2, groups=1, name=name)]),
    "gelu of sequences": (SEQUENCE, lambda name: [layers.Dense(4, activation="gelu", name=name)]),
}


def in_a_row(make):
    def block(x, name):
        for layer in make(f"{name}_layer"):
            x = layer(x)
        return x

    return block


@pytest.mark.parametrize(("shape", "make"), cases(PLAIN).values(), ids=cases(PLAIN))
def test_a_residual_block_follows_a_layer_with_any_activation(shape, make):
    model = model_of(shape, in_a_row(make))
    report = repeated(model, "b0_layer", form="residual", learns=False)
    new = model.get_layer("b0_layer_deeper_1")
    assert type(new) is type(model.get_layer("b0_layer"))
    projection = model.get_layer("b0_layer_deeper_1_projection")
    assert not any(array(w).any() for w in projection.weights)
    assert array(new.kernel).std() > 0.1
    assert f"all weights of {projection.name} start at zero" in " ".join(report.notes)
    assert ("b0_layer_deeper_1_bn" in names(model)) == ("Normalization" in str(model.layers))
    if BACKEND == "torch":
        assert_learns(model, report, data_for(model))


@elsewhere
def test_the_hidden_units_and_the_settings_of_the_block_can_be_chosen():
    model = model_of((3,), dense)
    report = repeated(
        model, "b0_dense", form="residual", units=7, activation="gelu", batch_norm=True
    )
    assert inserted(report) == [
        "b0_dense_deeper_1",
        "b0_dense_deeper_1_bn",
        "b0_dense_deeper_1_activation",
        "b0_dense_deeper_1_projection",
        "b0_dense_deeper_1_add",
    ]
    assert model.get_layer("b0_dense_deeper_1").units == 7
    # The same seed, the same weights.
    again = model_of((3,), dense)
    n2n.grow(again, report.operations[0], seed=0)
    kernels = [one.get_layer("b0_dense_deeper_1").kernel for one in (model, again)]
    assert np.allclose(*map(array, kernels), atol=0.2)  # one of them has learned


# -- models --------------------------------------------------------------------------------


def sequential():
    return randomize(
        keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(4, activation="tanh", name="one"),
                layers.Dense(4, activation="tanh", name="two"),
                layers.Dense(2, activation="softmax", name="out"),
            ],
            name="row",
        )
    )


def test_in_a_sequential_a_block_is_a_model_of_its_own(tmp_path):
    model = sequential()
    x = data_for(model)
    operations = [
        Deeper("one", form="residual"),
        Deeper(between=("one", "two")),
        n2n.Wider(factor=1.5),
    ]
    before = both_modes(model, x)
    n2n.grow(model, operations, seed=0)
    assert_same(both_modes(model, x), before)
    assert names(model) == ["one", "one_deeper_1_block", "two", "two_deeper_1_block", "out"]
    assert isinstance(model.get_layer("two_deeper_1_block"), keras.Model)
    assert model.get_layer("two").units == 6
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(outputs(loaded, x), outputs(model, x), 1e-7)
    assert_native(model)


@elsewhere
def test_a_single_layer_that_is_a_block_stands_in_a_sequential_as_it_is():
    model = randomize(
        keras.Sequential([keras.Input((5, 4)), Block(4, name="it"), layers.Dense(2, name="out")])
    )
    repeated(model, "it", 2, form="residual")
    assert names(model) == ["it", "it_deeper_1", "it_deeper_2", "out"]


@elsewhere
def test_nested_models_are_blocks_and_hold_blocks():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, dense_block(dense(inputs, "in"), "in"), name="b1_inner")
    residual = keras.Model(inputs, dense_block(inputs, "res"), name="b2_inner")
    model = model_of((3,), dense, lambda x, _: residual(inner(x)))
    report = repeated(model, "b2_inner", form="residual", learns=False)
    assert zeros(report) == ["b2_inner_deeper_1/res_fc2/kernel", "b2_inner_deeper_1/res_fc2/bias"]
    report = repeated(model, "b1_inner/in_out", form="residual", learns=False)
    assert inserted(report)[-1] == "b1_inner/in_out_deeper_1"
    assert names(inner)[-1] == "in_out_deeper_1"
    repeated(model, "b1_inner", form="residual", learns=False)


@elsewhere
def test_what_is_in_a_copied_layer_grows_like_other_layers(tmp_path):
    model = model_of(SEQUENCE, dense, own)
    x = data_for(model)
    before = both_modes(model, x)
    operations = [
        Deeper("b1_out", form="residual"),
        n2n.Wider(factor=2),
        Deeper("b1_out_deeper_1", form="residual"),
    ]
    report = n2n.grow(model, operations, seed=0)
    assert_same(both_modes(model, x), before)
    assert model.get_layer("b1_out_deeper_1").up.units == 16
    assert model.get_layer("b1_out_deeper_2").width == 8
    assert report.parameters_after == model.count_params()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(outputs(loaded, x), outputs(model, x), 1e-7)


@elsewhere
def test_a_normalized_layer_of_ones_own_is_added_to_its_input():
    model = model_of(SEQUENCE, dense, lambda x, name: Normalized(4, name=f"{name}_out")(x))
    report = repeated(model, "b1_out", form="residual", learns=False)
    assert [name.rsplit("/", 1)[-1] for name in zeros(report)] == ["gamma", "beta"]
    assert inserted(report) == ["b1_out_deeper_1", "b1_out_deeper_1_add"]


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it convolves no channels first on a CPU")
def test_channels_may_come_first():
    def first(x, name):
        return basic(x, name, data_format="channels_first")

    def stem(x, name):
        return layers.Conv2D(4, 1, data_format="channels_first", name=f"{name}_stem")(x)

    model = model_of((2, 6, 6), stem, first)
    repeated(model, "b1_out", form="residual", learns=False)
    report = repeated(model, "b0_stem", form="residual", units=5, batch_norm=True, learns=False)
    assert model.get_layer("b0_stem_deeper_1").output.shape == (None, 5, 6, 6)
    assert len(inserted(report)) == 4


@elsewhere
def test_blocks_in_half_precision_are_the_identity_to_the_last_bit():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16" if BACKEND == "tensorflow" else "mixed_bfloat16")
    try:
        model = model_of(SEQUENCE, dense, transformer, dtype="float32")
    finally:
        keras.config.set_dtype_policy(policy)
    x = data_for(model)
    before = outputs(model, x)
    operations = [Deeper("b1_out", form="residual"), Deeper("b0_dense", form="residual")]
    n2n.grow(model, operations, seed=0)
    assert max_difference(outputs(model, x), before) == 0.0
    new = model.get_layer("b0_dense_deeper_1_add")
    assert new.compute_dtype == model.get_layer("b0_dense").compute_dtype
    assert_native(model)


@elsewhere
def test_what_was_frozen_learns_in_the_copy():
    model = model_of((3,), dense, dense_block)
    model.trainable = False
    model.get_layer("out").trainable = True
    n2n.grow(model, Deeper("b1_out", form="residual"), seed=0)
    assert {layer.name for layer in model.layers if layer.weights and layer.trainable} >= {
        "b1_fc1_deeper_1",
        "b1_fc2_deeper_1",
    }
    assert not model.get_layer("b1_fc1").trainable


# -- together with other operations ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(3 if BACKEND == "torch" else 1))
def test_all_operations_together_on_random_widths(seed):
    random = np.random.default_rng(seed)
    a, b, c = (int(n) for n in random.integers(3, 7, 3))

    def block(x, name):
        y = layers.Dense(a, activation="relu", name=f"{name}_one")(x)
        y = layers.Dense(b, activation="tanh", name=f"{name}_two")(y)
        return layers.Add(name=f"{name}_out")([x, layers.Dense(c, name=f"{name}_three")(y)])

    def stem(x, name):
        return layers.Dense(c, activation="tanh", name=f"{name}_stem")(x)

    model = model_of((3,), stem, block, block)
    x = data_for(model)
    before = both_modes(model, x)
    operations = [
        n2n.Wider("b1_one", a + int(random.integers(1, 4))),
        Deeper("b2_out", 2, form="residual"),
        n2n.Wider("b2_two_deeper_1", b + int(random.integers(1, 4))),
        Deeper("b2_one_deeper_2"),
        n2n.Wider(factor=1.5),
        Deeper(between=("b0_stem", "b1_out")),
        Deeper("b0_stem", form="residual"),
        Deeper(between=("b2_out", "b2_out_deeper_1")),
        n2n.Wider("b2_three_deeper_1", factor=1.5),
    ]
    weights = {f"{path}/{w.name}": array(w) for path, one in flat_paths(model) for w in one.weights}
    report = n2n.grow(model, operations, seed=seed)
    assert_same(both_modes(model, x), before)
    assert report.plan.exact
    assert report.parameters_after == model.count_params()
    assert_native(model)
    # The plan gives the weights of the grown model, from those that it had.
    grown = report.plan.apply_to(weights)
    for path, layer in flat_paths(model):
        for weight in layer.weights:
            assert np.allclose(grown[f"{path}/{weight.name}"], array(weight)), weight.path
    train_a_step(model, x)


def flat_paths(model):
    return [(path, layer) for path, layer in n2n.testing.flat_layers(model)]


def test_copies_of_copies_count_their_names_on():
    model = model_of((3,), dense, dense_block)
    for _ in range(2):
        n2n.grow(model, Deeper("b1_out", form="residual"), seed=0)
    n2n.grow(model, Deeper("b1_out_deeper_2", form="residual"), seed=0)
    n2n.grow(model, Deeper(between=("b1_out", "b1_out_deeper_1")), seed=0)
    outs = [name for name in names(model) if "_out" in name]
    assert sorted(outs) == sorted(set(outs))
    assert outs[0] == "b1_out"
    assert "b1_out_deeper_2" in outs


def test_a_student_is_grown_and_the_teacher_left():
    teacher = model_of((3,), dense, dense_block)
    before = snapshot(teacher)
    operations = [Deeper(teacher.get_layer("b1_out"), form="residual"), n2n.Wider(factor=2)]
    student = n2n.clone_and_grow(teacher, operations, seed=0)
    assert_untouched(teacher, before)
    x = data_for(teacher)
    assert_same(both_modes(student, x), both_modes(teacher, x))
    mine = {id(v) for v in teacher.weights}
    assert not mine & {id(v) for v in student.weights}


def test_blocks_are_inserted_while_the_model_trains():
    model = model_of((3,), dense, dense_block)
    model.compile(keras.optimizers.Adam(0.01), loss="mse", **EAGERLY)
    x = data_for(model, batch=8)
    y = np.zeros((8, 3), "float32")
    growth = n2n.GrowthScheduler(
        {1: Deeper("b1_out", form="residual"), 2: [Deeper(between=("b0_dense", "b1_out"))]},
        seed=0,
        verbose=0,
    )
    history = model.fit(x, y, epochs=3, batch_size=4, verbose=0, callbacks=[growth])
    assert np.all(np.isfinite(history.history["loss"]))
    assert [report.difference < 1e-6 for report in growth.history] == [True, True]
    assert array(model.get_layer("b1_fc2_deeper_1").kernel).any()
    assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)


def test_a_growth_that_fails_behind_a_block_takes_the_block_back(monkeypatch):
    model = model_of(SEQUENCE, dense, transformer)
    model.compile("adam", loss="mse", **EAGERLY)
    before = state(model)
    with pytest.raises(UnknownLayerError):
        n2n.grow(model, [Deeper("b1_out", form="residual"), n2n.Wider("nothing", 9)], seed=0)
    assert_state(model, before)
    # A copy whose weights aren't zero is noticed.
    copy_layer = building.copy_layer

    def wrong(call, name, values, seed):
        return copy_layer(call, name, [value + 1 for value in values], seed)

    monkeypatch.setattr(building, "copy_layer", wrong)
    with pytest.raises(VerificationError):
        n2n.grow(model, Deeper("b1_out", form="residual"), seed=0)
    assert_state(model, before)


def test_a_plan_shows_what_is_copied():
    model = model_of((3,), dense, dense_block)
    before = state(model)
    text = n2n.plan(model, Deeper("b1_out", form="residual"), seed=0).summary()
    assert "insert b1_fc1_deeper_1 (Dense) after b1_out" in text
    assert "insert b1_fc2_deeper_1 (Dense) after b1_fc1_deeper_1" in text
    assert "copied the block from 'b0_dense' to 'b1_out' (3 layers and operations)" in text
    assert_state(model, before)


def test_penalties_of_copies_are_said():
    def block(x, name):
        y = layers.Dense(4, kernel_regularizer="l2", name=f"{name}_fc")(x)
        return layers.Add(name=f"{name}_out")([x, y])

    report = n2n.grow(model_of((3,), dense, block), Deeper("b1_out", form="residual"), seed=0)
    assert any("regularizers" in note for note in report.notes)


def test_random_layers_draw_for_themselves():
    def block(x, name):
        y = layers.Dense(4, name=f"{name}_fc")(layers.Dropout(0.5, seed=3, name=f"{name}_drop")(x))
        return layers.Add(name=f"{name}_out")([x, y])

    model = model_of((3,), dense, block)
    n2n.grow(model, Deeper("b1_out", form="residual"), seed=0)
    old, new = model.get_layer("b1_drop"), model.get_layer("b1_drop_deeper_1")
    assert old.seed_generator is not new.seed_generator
    assert old.seed != new.seed
    assert new.rate == 0.5


@elsewhere
def test_dropout_on_the_way_of_the_input_is_said():
    def block(x, name):
        x = layers.Add(name=f"{name}_add")([x, layers.Dense(4, name=f"{name}_fc")(x)])
        return layers.Dropout(0.0, name=f"{name}_out")(x)

    report = repeated(model_of((3,), dense, block), "b1_out", form="residual")
    assert any("stand outside of the branches" in note for note in report.notes)


# -- values ----------------------------------------------------------------------------------


def test_the_operation_is_a_value():
    operation = Deeper(between=["a", "b"], count=2)
    assert operation == Deeper(between=("a", "b"), count=2)
    assert repr(operation) == "Deeper(count=2, between=('a', 'b'))"
    assert Deeper.from_config(operation.get_config()) == operation
    assert repr(Deeper("a", form="residual")) == "Deeper('a', form='residual')"
    layer = layers.Dense(2, name="it")
    assert Deeper(between=(layer, "b")).get_config()["between"] == ["it", "b"]


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        ({"layers": "a", "form": "wrong"}, "`form` can't be 'wrong'"),
        ({"between": "a"}, "`between` can't be 'a'"),
        ({"between": ("a", "b", "c")}, "the two ends"),
        ({"between": ("a", "b"), "layers": "c"}, "can't be combined"),
        ({}, "No layer was named"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_an_error(arguments, content):
    with pytest.raises(GrowthError) as caught:
        Deeper(**arguments)
    assert_explained(caught.value, content)


# -- errors ----------------------------------------------------------------------------------


def strided():
    def block(x, name):
        y = layers.Conv2D(8, 3, strides=2, padding="same", name=f"{name}_conv")(x)
        y = layers.BatchNormalization(name=f"{name}_bn")(y)
        skip = layers.Conv2D(8, 1, strides=2, name=f"{name}_skip")(x)
        return layers.Add(name=f"{name}_out")([skip, y])

    return model_of(IMAGE, conv, basic, block)


def test_what_cannot_be_repeated_is_an_error_with_the_reason():
    model = strided()
    residual = {"form": "residual"}
    refused(
        model,
        Deeper("b2_out", **residual),
        NotIdentityError,
        "(None, 3, 3, 8)",
        "a projection for its shortcut",
        "ends with 'b1_add'",
    )
    refused(model, Deeper(between=("b1_out", "b2_out")), NotIdentityError, "(None, 3, 3, 8)")
    refused(model, Deeper(between=("b1_out", "b0_conv")), GrowthError, "Swap them")
    refused(model, Deeper(between=("b1_bn2", "b2_skip")), NotIdentityError, "(None, 3, 3, 8)")
    refused(model, Deeper(between=("b1_bn1", "b1_relu")), GrowthError, "weights that could")
    refused(model, Deeper("b1_relu", **residual), GrowthError, "isn't the end of a residual block")
    refused(model, Deeper("b1_outt", **residual), UnknownLayerError, "Did you mean 'b1_out'")
    refused(model, Deeper("x*", **residual), UnknownLayerError, "matches no layer")
    refused(model, Deeper([], **residual), UnknownLayerError, "the list is empty")
    refused(model, Deeper([3], **residual), UnknownLayerError, "strings, layers")
    refused(model, Deeper("b1_out", units=8, **residual), GrowthError, "`units` can't be chosen")
    other = layers.Dense(2, name="other")
    refused(model, Deeper(other, **residual), UnknownLayerError, "doesn't call it")


def test_probabilities_stay_probabilities():
    refused(sequential(), Deeper("out", form="residual"), NotIdentityError, "'softmax'")


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.one = layers.Dense(4, name="one")
        self.two = layers.Dense(4, name="two")

    def call(self, x):
        return x + self.two(self.one(x))


def test_the_code_of_a_subclass_decides_what_it_calls():
    model = Subclass()
    model(np.zeros((1, 4), "float32"))
    for operation in (Deeper("one", form="residual"), Deeper(between=("one", "two"))):
        with pytest.raises(GrowthError) as caught:
            n2n.grow(model, operation)
        assert_explained(caught.value, "its own code decides which layers it calls")
    model = model_of((3,), dense, own)
    inside = model.get_layer("b1_out").down
    refused(model, Deeper(inside, form="residual"), GrowthError, "its own code decides")


class Unreadable(keras.Layer):
    """A layer that isn't made from its own configuration."""

    def __init__(self, width):
        super().__init__(name=f"unreadable_{width}")
        self.dense = layers.Dense(width)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return x + self.dense(x)

    def get_config(self):
        return {"size": 4}


def test_a_layer_that_cannot_be_copied_is_an_error():
    model = model_of((3,), dense, lambda x, name: Unreadable(4)(x))
    refused_by_name = Deeper("unreadable_4", form="residual")
    with pytest.raises(GrowthError) as caught:
        n2n.grow(model, refused_by_name, seed=0)
    assert_explained(caught.value, "isn't made from its own `get_config()`")


def test_the_ends_of_a_part_are_in_one_model():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, dense_block(inputs, "in"), name="inner")
    model = model_of((3,), dense, lambda x, _: inner(x))
    refused(model, Deeper(between=("b0_dense", "in_out")), GrowthError, "different models")


# -- the networks of keras.applications --------------------------------------------------------

NETWORKS = {
    "ResNet50": ("conv4_block2_out", 10, "conv4_block2_3_bn_deeper_1/gamma"),
    "ResNet50V2": ("conv4_block2_out", 11, "conv4_block2_3_conv_deeper_1/kernel"),
    "MobileNetV2": ("block_5_add", 9, "block_5_project_BN_deeper_1/gamma"),
    "MobileNetV3Small": ("expanded_conv_5_add", 17, "expanded_conv_5_project_bn_deeper_1/gamma"),
    "EfficientNetB0": ("block3b_add", 15, "block3b_project_bn_deeper_1/gamma"),
    "ConvNeXtTiny": (
        "convnext_tiny_stage_2_block_3_identity",
        8,
        "convnext_tiny_stage_2_block_3_layer_scale_deeper_1/variable",
    ),
    "InceptionResNetV2": ("block17_3_ac", 16, "block17_3_conv_deeper_1/kernel"),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "name", NETWORKS if BACKEND == "torch" else ["MobileNetV2", "ConvNeXtTiny"]
)
def test_a_block_of_a_network_is_repeated_as_the_identity(name):
    layer, count, first = NETWORKS[name]
    size = 75 if name.startswith("Inception") else 64
    make = getattr(keras.applications, name)
    model = randomize(make(weights=None, input_shape=(size, size, 3), classes=10))
    for one in model.layers:
        if isinstance(one, layers.Dropout):
            one.rate = 0.0
    x = data_for(model)
    before = both_modes(model, x)
    report = n2n.grow(model, Deeper(layer, form="residual"), seed=0)
    assert max_difference(both_modes(model, x), before) == 0.0
    assert len(inserted(report)) == count
    assert zeros(report)[0].startswith(first)
    assert_native(model)
