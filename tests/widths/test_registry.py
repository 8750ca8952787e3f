"""How a rule is found, and how a user adds one."""

from __future__ import annotations

import keras
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.widths.registry import rule_for, rules
from tests.support.helpers import (
    Closed,
    assert_untouched,
    check_growth,
    randomize,
    sandwich,
    snapshot,
)

pytestmark = pytest.mark.pure


def scale_layer():
    """A layer class that no rule is known of: a learned factor for each unit."""

    class Scale(keras.Layer):
        def build(self, input_shape):
            self.gamma = self.add_weight(shape=(input_shape[-1],), name="gamma")

        def call(self, x):
            return x * self.gamma

    return Scale


@pytest.mark.parametrize(
    "layer",
    [lambda: Closed(name="it")],
    ids=["a closed layer"],
)
def test_what_has_no_rule_is_refused_with_the_path_and_what_to_do(layer):
    model = randomize(
        sandwich((5,), layers.ReLU(name="relu"), layer(), layers.Dense(4, name="free"))
    )
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError) as error:
        n2n.grow(model, n2n.Wider("before", units=6))
    message = str(error.value)
    kind = type(model.get_layer("it")).__name__
    assert f"it ({kind}) has no rule that says what happens to units" in message
    assert "path: before -> relu -> it" in message
    assert f"Register a rule for {kind} with `keras_net2net.rules.register_rule`" in message
    assert_untouched(model, weights)
    assert n2n.grow(model, n2n.Wider("free", units=6), seed=0).difference < 1e-6


def test_a_layer_that_has_no_rule_is_listed_in_the_plan():
    model = sandwich((5,), Closed(name="it"), layers.Dense(4, name="free"))
    (step,) = n2n.plan(model, n2n.Wider(factor=2)).steps
    assert {skip.path: skip.reason for skip in step.skipped} == {
        "before": "it (Closed) has no rule that says what happens to units, and its code can't be "
        "followed (this function takes numbers alone)",
        "it": "Closed has no rule",
        "after": "after is an output of the model",
    }


def test_a_registered_rule_is_used():
    scale = scale_layer()

    @n2n.rules.register_rule(scale)
    def rule(call, x):
        call.weight("gamma", n2n.rules.follows(x[-1]))
        return x

    assert rule_for(scale()) is rule
    check_growth(lambda: sandwich((3, 5), scale()), custom=(scale,))


def test_a_rule_that_makes_and_reads_units():
    class Linear(keras.Layer):
        def __init__(self, width, **kwargs):
            super().__init__(**kwargs)
            self.width = width

        def build(self, input_shape):
            self.matrix = self.add_weight(shape=(self.width, input_shape[-1]), name="matrix")

        def call(self, x):
            return ops.matmul(x, ops.transpose(self.matrix))

        def get_config(self):
            return {**super().get_config(), "width": self.width}

    @n2n.rules.register_rule(Linear)
    def rule(call, x):
        units = call.units("width")
        call.weight("matrix", n2n.rules.makes(units), n2n.rules.reads(x[-1]))
        return (*x[:-1], units)

    check_growth(lambda: sandwich((3, 5), Linear(4, name="it")), single="it", custom=(Linear,))


def test_like_gives_a_class_the_rule_of_another():
    class Doubled(keras.Layer):
        def call(self, x):
            return 2.0 * x

    n2n.rules.register_rule(Doubled, like=layers.Identity)
    check_growth(lambda: sandwich((5,), Doubled()), custom=(Doubled,))


def test_like_needs_a_class_that_has_a_rule():
    scale = scale_layer()
    with pytest.raises(ValueError, match="Scale has no rule that others could use"):
        n2n.rules.register_rule(scale_layer(), like=scale)


@pytest.mark.parametrize("target", ["dense", lambda x: x, keras.activations.relu])
def test_a_rule_is_of_a_class_or_of_an_operation(target):
    with pytest.raises(ValueError, match=r"a layer class or for a function of `keras\.ops`"):
        n2n.rules.register_rule(target)(lambda call, x: x)


def test_a_subclass_that_changes_nothing_decisive_has_the_rule_of_its_base():
    class Named(layers.Dense):
        """Only knows itself by another name."""

        def get_config(self):
            return super().get_config()

        def describe(self):
            return "named"

    class More(Named):
        pass

    assert rule_for(Named(3)) is rule_for(layers.Dense(3)) is rule_for(More(3))
    check_growth(lambda: sandwich((5,), More(4, name="it")), single="it", custom=(More,))


@pytest.mark.parametrize("method", ["call", "build", "compute_output_shape", "__call__"])
def test_a_subclass_that_overrides_what_is_computed_has_no_rule(method):
    def changed(self, *args, **kwargs):
        return getattr(super(cls, self), method)(*args, **kwargs)

    cls = type("Changed", (layers.Dense,), {method: changed})
    below = type("Below", (cls,), {})
    assert rule_for(cls(3)) is None
    assert rule_for(below(3)) is None
    n2n.rules.register_rule(cls, like=layers.Dense)
    assert rule_for(cls(3)) is rule_for(below(3)) is rule_for(layers.Dense(3))


def test_a_class_comes_before_its_base():
    class Mine(layers.Dense):
        pass

    @n2n.rules.register_rule(Mine)
    def rule(call, x):
        return None

    assert rule_for(Mine(3)) is rule
    model = sandwich((5,), Mine(4, name="it"))
    with pytest.raises(n2n.errors.FixedWidthError):
        n2n.plan(model, n2n.Wider("before", units=6))


def test_an_operation_of_a_users_own_is_not_taken_for_one_of_keras():
    class Relu(keras.Operation):
        def call(self, x):
            return ops.cumsum(x, axis=-1)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    assert rule_for(Relu()) is None
    inputs = keras.Input((5,))
    x = layers.Dense(4, name="before")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(Relu(name="mine")(x)))
    with pytest.raises(n2n.errors.FixedWidthError, match="path: before -> mine"):
        n2n.plan(model, n2n.Wider("before", units=6))


def test_weights_that_a_rule_does_not_cover_make_it_unfit():
    model = sandwich((5,), layers.Dense(4, name="it"))
    model.get_layer("it").enable_lora(2)
    with pytest.raises(
        n2n.errors.FixedWidthError, match="holds weights that its rule doesn't cover"
    ):
        n2n.plan(model, n2n.Wider("before", units=6))


def test_a_rule_that_is_wrong_about_a_size_changes_nothing():
    class Half(keras.Layer):
        def call(self, x):
            return x[..., :2]

    @n2n.rules.register_rule(Half)
    def rule(call, x):
        return x

    model = randomize(sandwich((5,), Half(name="it")))
    with pytest.raises(n2n.errors.FixedWidthError, match="a size that its rule doesn't explain"):
        n2n.grow(model, n2n.Wider("before", units=6))


def test_every_rule_says_what_it_does():
    described = dict(rules())
    assert {"Dense", "Conv2D", "BatchNormalization", "ops.add"} <= set(described)
    own = [rule for rule in described.values() if str(rule.__module__).startswith("keras_")]
    # Those of examples in docstrings, should these have been run before, are nobody's.
    files = {rule: getattr(rule, "__code__", None) for rule in own}
    own = [rule for rule in own if not files[rule] or files[rule].co_filename[0] != "<"]
    assert len(own) > 40
    assert all(rule.__doc__ for rule in own)
