"""The battery lets right rules pass, and says what is wrong with wrong ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net import testing
from keras_net2net.widths import registry
from tests.support.helpers import cases

QUICK = {"policies": (), "save": False, "train": False}


@pytest.fixture(autouse=True)
def _own_rules(monkeypatch):
    """Each test registers rules for itself alone."""
    monkeypatch.setattr(registry, "_BY_CLASS", dict(registry._BY_CLASS))


class Linear(keras.Layer):
    """A Dense layer of somebody's own, which can't be opened."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), name="bias")

    def call(self, x):
        return ops.matmul(x, self.kernel) + self.bias

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def right(call, x):
    units = call.units("units")
    call.weight("kernel", n2n.rules.reads(x[-1]), n2n.rules.makes(units))
    call.weight("bias", n2n.rules.makes(units))
    return (*x[:-1], units)


def kernel_that_only_makes(call, x):
    units = call.units("units")
    call.weight("kernel", n2n.rules.makes(x[-1]), n2n.rules.makes(units))
    call.weight("bias", n2n.rules.makes(units))
    return (*x[:-1], units)


def bias_forgotten(call, x):
    units = call.units("units")
    call.weight("kernel", n2n.rules.reads(x[-1]), n2n.rules.makes(units))
    return (*x[:-1], units)


def bias_that_reads(call, x):
    units = call.units("units")
    call.weight("kernel", n2n.rules.reads(x[-1]), n2n.rules.makes(units))
    call.weight("bias", n2n.rules.reads(units))
    return (*x[:-1], units)


def config_key_forgotten(call, x):
    units = call.new_units("units", call.setting("units"))
    call.weight("kernel", n2n.rules.reads(x[-1]), n2n.rules.makes(units))
    call.weight("bias", n2n.rules.makes(units))
    return (*x[:-1], units)


def axes_the_wrong_way_round(call, x):
    units = call.units("units")
    call.weight("kernel", n2n.rules.makes(units), n2n.rules.reads(x[-1]))
    call.weight("bias", n2n.rules.makes(units))
    return (*x[:-1], units)


def output_of_another_rank(call, x):
    right(call, x)
    return (call.units("units"),)


def size_of_before_the_plan(call, x):
    units = call.new_units("units", call.layer.units)
    call.configure("units", units)
    call.weight("kernel", n2n.rules.reads(x[-1]), n2n.rules.makes(units))
    call.weight("bias", n2n.rules.makes(units))
    return (*x[:-1], units)


def other_signature(call):
    return None


def test_a_right_rule_passes_and_is_told_what_grew():
    n2n.rules.register_rule(Linear)(right)
    light = {"policies": ["mixed_bfloat16"]} if keras.backend.backend() == "jax" else {}
    assert n2n.testing.check_rule(Linear(4), (3, 5), **light) == ("input", "units")
    assert n2n.testing.check_rule(lambda: Linear(4), (5,), **QUICK) == ("input", "units")


WRONG = {
    "what reads is said to make": (kernel_that_only_makes, "The outputs aren't what they were"),
    "a bias is forgotten": (
        bias_forgotten,
        "doesn't let 'input' grow.*holds weights that its rule doesn't cover",
    ),
    "what makes is said to read": (bias_that_reads, "The outputs aren't what they were"),
    "a config key is forgotten": (
        config_key_forgotten,
        "The grown configuration builds no model: .* Name every config key",
    ),
    "axes are in the wrong order": (
        axes_the_wrong_way_round,
        "doesn't let 'input' grow.*holds weights that its rule doesn't cover",
    ),
    "an output has another rank": (output_of_another_rank, "outputs of other ranks"),
    "a size isn't that of the plan": (size_of_before_the_plan, "weights that its rule"),
    "it doesn't take the layer's arguments": (other_signature, "can't be applied: TypeError"),
}


@pytest.mark.parametrize(("rule", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_caught_and_the_message_says_what_is_wrong(rule, message):
    n2n.rules.register_rule(Linear)(rule)
    with pytest.raises(n2n.errors.CheckError, match="(?s)" + message) as error:
        testing.check_rule(Linear(4, name="it"), (3, 5), **QUICK)
    assert "Received: " in str(error.value)
    assert isinstance(error.value, AssertionError)


def test_the_message_says_by_how_much_outputs_differ_in_each_mode_and_after_what():
    n2n.rules.register_rule(Linear)(kernel_that_only_makes)
    with pytest.raises(
        n2n.errors.CheckError,
        match=r"by up to \d\.\d\de[+-]\d\d at inference, by up to \d\.\d\de[+-]\d\d in training "
        r"mode, .*Received: the outputs after Wider\('before', factor=1.5\)\. Check the role",
    ):
        testing.check_rule(Linear(4), (3, 5), **QUICK)


def test_a_softmax_over_units_that_is_said_to_follow_is_caught():
    class Choose(keras.Layer):
        def build(self, input_shape):
            self.bias = self.add_weight(shape=(input_shape[-1],), name="bias")

        def call(self, x):
            return ops.softmax(x + self.bias)

    @n2n.rules.register_rule(Choose)
    def rule(call, x):
        call.weight("bias", n2n.rules.follows(x[-1]))
        return x

    with pytest.raises(n2n.errors.CheckError, match="The outputs aren't what they were"):
        testing.check_rule(Choose(), (3, 5), **QUICK)

    @n2n.rules.register_rule(Choose)
    def right(call, x):
        call.weight("bias", n2n.rules.follows(x[-1]))
        call.fix(x[-1], "chooses among the units")
        return x

    assert testing.check_rule(Choose(), (3, 5), fixed=["input"], **QUICK) == ()
    with pytest.raises(n2n.errors.CheckError, match=r"doesn't let 'input' grow: .*chooses among"):
        testing.check_rule(Choose(), (3, 5), **QUICK)


def test_a_mistake_that_shows_in_training_mode_alone_is_caught():
    class Batch(keras.Layer):
        def call(self, x, training=False):
            return x - ops.mean(x, axis=-1, keepdims=True) if training else x

    n2n.rules.register_rule(Batch, like=layers.Identity)
    with pytest.raises(
        n2n.errors.CheckError, match=r"by up to \d\.\d\de-0[789] at inference, by up to"
    ):
        testing.check_rule(Batch, (3, 5), **QUICK)


def test_a_config_that_lacks_an_argument_is_caught():
    class Silent(Linear):
        def get_config(self):
            return keras.Layer.get_config(self)

    n2n.rules.register_rule(Silent)(right)
    with pytest.raises(n2n.errors.CheckError, match="'silent' can't be made from its conf"):
        testing.check_rule(lambda: Silent(4, name="silent"), (3, 5), **QUICK)


def test_what_was_said_to_be_fixed_must_be():
    with pytest.raises(
        n2n.errors.CheckError, match="The rule lets 'units' grow: it was said to be fixed"
    ):
        testing.check_rule(layers.Dense(4), (5,), fixed=["units"], **QUICK)
    with pytest.raises(
        n2n.errors.CheckError, match=r"no 'filters' that could be fixed.*'input', 'units'"
    ):
        testing.check_rule(layers.Dense(4), (5,), fixed=["filters"], **QUICK)


BUILT_IN = {
    "Dense": (lambda: layers.Dense(4, "relu"), (3, 5), {}),
    "Conv2D": (lambda: layers.Conv2D(4, 2, padding="same"), (4, None, 5), {}),
    "SeparableConv1D": (lambda: layers.SeparableConv1D(4, 2), (4, 5), {}),
    "BatchNormalization": (layers.BatchNormalization, (3, 5), {}),
    "GroupNormalization": (lambda: layers.GroupNormalization(3), (3, 6), {}),
    "LayerNormalization": (layers.LayerNormalization, (3, 5), {}),
    "GRU": (lambda: layers.GRU(3), (3, 5), {}),
    "MaxPooling2D": (layers.MaxPooling2D, (4, 4, 5), {}),
    "Flatten": (layers.Flatten, (2, 3, 5), {}),
    "Add": (layers.Add, [(3, 5), (1, 5)], {}),
    "Concatenate": (layers.Concatenate, [(3, 5), (3, 4)], {}),
    "Embedding": (lambda: layers.Embedding(5, 4), (3,), {"dtype": "int32"}),
    "Dropout": (lambda: layers.Dropout(0.5), (3, 5), {}),
    "MultiHeadAttention": (
        lambda: layers.MultiHeadAttention(2, 3),
        (3, 5),
        {"call": lambda layer, x: layer(x, x)},
    ),
}


@pytest.mark.parametrize(
    ("layer", "shape", "how"), cases(BUILT_IN, 3).values(), ids=cases(BUILT_IN, 3)
)
def test_built_in_rules_pass(layer, shape, how):
    light = {} if keras.backend.backend() == "torch" else {"train": False, "policies": ()}
    assert testing.check_rule(layer, shape, **how, **light)


def test_a_layer_is_checked_in_both_data_formats():
    class Shift(layers.Layer):
        """Its rule is right for channels that come last."""

        def __init__(self, data_format="channels_last", **kwargs):
            super().__init__(**kwargs)
            self.data_format = data_format

        def build(self, shape):
            self.axis = -1 if self.data_format == "channels_last" else 1
            self.shift = self.add_weight(shape=(shape[self.axis],), name="shift")

        def call(self, x):
            return x + (self.shift if self.axis == -1 else self.shift[:, None])

        def get_config(self):
            return {**super().get_config(), "data_format": self.data_format}

    @n2n.rules.register_rule(Shift)
    def rule(call, x):
        call.weight("shift", n2n.rules.follows(x[-1]))
        return x

    assert testing.check_rule(Shift(), (3, 5), data_formats=False, **QUICK) == ("input",)
    with pytest.raises(n2n.errors.CheckError):
        testing.check_rule(Shift(), (3, 5), **QUICK)
    with pytest.raises(n2n.errors.CheckError, match="doesn't let 'input' grow"):
        testing.check_rule(Shift("channels_first"), (5, 3), **QUICK)


def test_the_layer_and_the_dtype_policy_stay_as_they_are():
    layer = layers.Dense(4)
    testing.check_rule(layer, (5,), save=False, train=False)
    assert not layer.built
    assert layer.units == 4
    assert keras.config.dtype_policy().name == "float32"


def test_a_model_that_cannot_grow_is_an_error_that_says_why():
    def build():
        return keras.Sequential([keras.Input((5,)), layers.Dense(3, name="out")])

    with pytest.raises(n2n.errors.CheckError, match=r"can't grow: FixedWidthError: Layer 'out'"):
        testing.check_model(build, [n2n.Wider("out", 4)])


def test_random_weights_hide_no_mistake():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.BatchNormalization()])
    testing.randomize(model)
    for weight in model.get_weights():
        assert len(np.unique(weight)) == weight.size
    assert model.layers[1].get_weights()[3].min() > 0
    assert np.any(model.layers[1].get_weights()[0] < 0)


def test_outputs_leave_the_state_alone():
    model = keras.Sequential([keras.Input((5,)), layers.BatchNormalization()])
    before = model.get_weights()
    testing.outputs(model, testing.random_inputs(model), (True, True))
    for new, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(new, old)
