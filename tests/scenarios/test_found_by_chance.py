"""What random models found, each as the smallest model that shows it."""

from __future__ import annotations

import keras
import pytest
from keras import layers, ops

import keras_net2net as n2n
from tests.support.helpers import (
    assert_same,
    assert_untouched,
    both_modes,
    data_for,
    few,
    outputs,
    randomize,
    snapshot,
)
from tests.support.random_models import Encoder, Residual, double_precision


def grow_and_compare(model, *growths, tolerance=3e-6):
    """Grows a model step by step; the outputs stay in both modes."""
    randomize(model)
    x = data_for(model)
    before = both_modes(model, x)
    for number, operation in enumerate(growths):
        report = n2n.grow(model, operation, seed=number, verify=False)
        assert report.parameters_after > report.parameters_before
        assert_same(both_modes(model, x), before, tolerance)
    return report


@pytest.mark.parametrize("kind", [layers.GRU, layers.SimpleRNN])
def test_a_recurrent_layer_starts_from_one_state_that_comes_without_a_list(kind):
    inputs = keras.Input((4, 3))
    sequence, state = kind(4, return_sequences=True, return_state=True, name="encoder")(inputs)
    decoded = kind(4, name="decoder")(sequence, initial_state=state)
    model = keras.Model(inputs, layers.Dense(2)(decoded))
    report = grow_and_compare(model, n2n.Wider("encoder", factor=1.5))
    assert report.plan.steps[0].widths[0].layers == ("encoder", "decoder")


def test_normalizations_in_a_composite_layer_keep_the_epsilon_that_a_growth_gave_them():
    inputs = keras.Input((4,), dtype="int32")
    stream = layers.Embedding(6, 8, name="table")(inputs)
    encoder = Encoder(2, 2, 6, name="encoder")
    model = keras.Model(inputs, layers.Dense(2)(encoder(stream)))
    # The second growth builds a twin of the encoder, whose code sets no epsilon, too.
    report = grow_and_compare(
        model,
        n2n.Wider("table", units=12),
        n2n.Wider("encoder/attention", units={"heads": 3}),
        tolerance=1e-5,
    )
    assert encoder.norms[0].epsilon == pytest.approx(1e-3 * 8 / 12)
    assert any("can't be rebuilt from its configuration" in note for note in report.notes)


def attend(query, value, kind):
    """Attention from one sequence to another one."""
    if kind in (layers.MultiHeadAttention, layers.GroupQueryAttention):
        sizes = (2, 2) if kind is layers.MultiHeadAttention else (2, 2, 1)
        return kind(*sizes, name="reader")(query, value)
    return kind(name="reader")([query, value])


def across(kind):
    return lambda other, turned: attend(other, turned, kind)


READERS = {
    "GRU": lambda other, turned: layers.GRU(3, name="reader")(turned),
    "LSTM": lambda other, turned: layers.LSTM(3, return_sequences=True, name="reader")(turned),
    "Bidirectional": lambda other, turned: layers.Bidirectional(
        layers.SimpleRNN(3, name="both"), name="reader"
    )(turned),
    "MultiHeadAttention": across(layers.MultiHeadAttention),
    "GroupQueryAttention": across(layers.GroupQueryAttention),
    "Attention": across(layers.Attention),
    "AdditiveAttention": across(layers.AdditiveAttention),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_units_that_lie_on_the_steps_of_a_sequence_are_fixed(reader):
    inputs = keras.Input((4, 3))
    turned = layers.Permute((2, 1))(layers.Dense(4, name="hidden")(inputs))
    other = layers.Dense(4, name="other")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(reader(other, turned)))
    with pytest.raises(
        n2n.errors.FixedWidthError, match=r"(goes through|attends to) the (steps|places)"
    ):
        n2n.grow(model, n2n.Wider("hidden", units=6))


def test_units_that_lie_on_the_steps_of_a_convolutional_recurrence_are_fixed():
    inputs = keras.Input((3, 4, 2))
    turned = layers.Permute((3, 1, 2))(layers.Dense(4, name="hidden")(inputs))
    model = keras.Model(inputs, layers.ConvLSTM1D(3, 2)(turned))
    with pytest.raises(n2n.errors.FixedWidthError, match="goes through the steps along this axis"):
        n2n.grow(model, n2n.Wider("hidden", units=6))


def test_units_on_the_steps_of_queries_pass_unless_the_mask_is_causal():
    def build(causal):
        inputs = keras.Input((4, 3))
        turned = layers.Permute((2, 1))(layers.Dense(4, "tanh", name="hidden")(inputs))
        attention = layers.MultiHeadAttention(2, 2)
        made = attention(turned, layers.Dense(4)(inputs), use_causal_mask=causal)
        return keras.Model(inputs, layers.Dense(2)(layers.Permute((2, 1))(made)))

    grow_and_compare(build(False), n2n.Wider("hidden", units=6))
    with pytest.raises(n2n.errors.FixedWidthError, match="masks by the places along this axis"):
        n2n.grow(build(True), n2n.Wider("hidden", units=6))


def test_units_on_an_axis_that_attention_leaves_alone_are_tied():
    inputs = keras.Input((3, 4, 2))
    query = layers.Permute((3, 2, 1))(layers.Dense(4, "tanh", name="hidden")(inputs))
    value = layers.Permute((3, 2, 1))(layers.Dense(4, "tanh", name="other")(inputs))
    attended = layers.MultiHeadAttention(2, 2, attention_axes=(2,))(query, value)
    back = layers.Permute((3, 2, 1))(attended)
    model = keras.Model(inputs, layers.Dense(2)(back))
    report = grow_and_compare(model, n2n.Wider("hidden", units=6))
    assert set(report.plan.steps[0].widths[0].layers) == {"hidden", "other"}


def test_units_on_the_steps_of_an_attention_of_keras_ops_are_fixed():
    inputs = keras.Input((4, 2, 3))
    turned = layers.Permute((3, 2, 1))(layers.Dense(5, name="hidden")(inputs))
    query = layers.Permute((3, 2, 1))(layers.Dense(5)(inputs))
    made = keras.ops.dot_product_attention(query[:, :3], turned, turned)
    model = keras.Model(inputs, layers.Dense(2)(made))
    with pytest.raises(n2n.errors.FixedWidthError, match="attends to the places along this axis"):
        n2n.grow(model, n2n.Wider("hidden", units=6))


def test_an_opened_layer_reads_the_layers_that_were_inserted_before_it():
    inputs = keras.Input((3,))
    x = layers.Dense(3, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(Residual(4, name="block")(x)))
    report = grow_and_compare(model, n2n.Deeper("hidden", units=5))
    assert "block/first" in [layer.path for layer in report.plan.steps[-1].layers]


def test_a_layer_is_inserted_after_a_convolution_whose_channels_are_its_inputs():
    inputs = keras.Input((5, 4))
    x = layers.Conv1D(4, 3, padding="same", groups=4, name="grouped")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    grow_and_compare(model, n2n.Deeper("grouped", units=6))


def test_an_inserted_normalization_is_exact_in_float64():
    with double_precision():
        inputs = keras.Input((3,))
        x = layers.Dense(4, "relu", name="hidden")(inputs)
        model = randomize(keras.Model(inputs, layers.Dense(2)(x)))
        x = data_for(model)
        before = outputs(model, x)
        n2n.grow(model, n2n.Deeper("hidden", batch_norm=True), seed=0, verify=False)
        assert_same(outputs(model, x), before, 1e-14)


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_the_states_of_a_stateful_layer_are_no_parameters_and_are_copied(kind):
    inputs = keras.Input((4, 3), batch_size=4)
    layer = kind(4, stateful=True, name="recurrent")
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    report = grow_and_compare(model, n2n.Wider("recurrent", units=6))
    assert report.parameters_after == model.count_params()
    model(data_for(model))  # the states aren't zero any more
    x = data_for(model, seed=1)
    student = n2n.clone_and_grow(model, n2n.Wider("recurrent", units=7), verify=False)
    assert_same(outputs(student, x), outputs(model, x))


def test_a_layer_that_no_configuration_describes_is_not_copied():
    inputs = keras.Input((3,))
    x = layers.Dense(1, name="before")(inputs)
    # A scale of one number is broadcast to the units that grow, and stays one number.
    model = keras.Model(inputs, layers.Dense(2)(Residual(4, name="block")(x)))
    report = grow_and_compare(model, n2n.Wider("before", units=2))
    assert any("can't be rebuilt from its configuration" in note for note in report.notes)
    weights = snapshot(model)
    with pytest.raises(n2n.GrowthError, match="configuration doesn't say which sizes"):
        n2n.clone(model)
    with pytest.raises(n2n.GrowthError, match=r"'block' \(Residual\) can't be copied"):
        n2n.clone_and_grow(model, n2n.Wider(factor=1.5))
    assert_untouched(model, weights)


def test_units_beside_an_unknown_number_of_steps_grow():
    inputs = keras.Input((None, 3))
    x = layers.Flatten()(layers.Dense(4, "relu", name="hidden")(inputs))
    model = keras.Model(inputs, keras.ops.mean(x, axis=-1, keepdims=True))
    grow_and_compare(model, n2n.Wider("hidden", units=8))


def test_a_kernel_is_enlarged_as_an_earlier_operation_leaves_it():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(1, 2, padding="same", name="conv")(inputs)
    model = randomize(keras.Model(inputs, layers.Conv2D(2, 1)(x)))
    weights = snapshot(model)
    factored = n2n.Deeper("conv", form="factor")  # which leaves a kernel of 1 x 1 without padding
    with pytest.raises(n2n.GrowthError, match="its padding is 'valid'"):
        n2n.grow(model, [factored, n2n.LargerKernel("conv", kernel_size=2)])
    assert_untouched(model, weights)
    grow_and_compare(model, [factored, n2n.LargerKernel("conv_factor_1", kernel_size=4)])


BEHIND_A_STREAM = {
    "maximum": lambda x, one: ops.maximum(x, 0.3),
    "minimum": lambda x, one: ops.minimum(-0.2, x),
    "clip": lambda x, one: ops.clip(x, 0.1, 2.0),
    "quotient": lambda x, one: 1.0 / (x * x + 0.5),
    "by itself": lambda x, one: (x * x + 1.0) / (x * x + 0.5),
    "Maximum": lambda x, one: layers.Maximum()([x, one]),
    "Add": lambda x, one: layers.Add()([x, one]),
    "relu": lambda x, one: ops.relu(x),
    "power": lambda x, one: ops.power(ops.abs(x) + 0.1, 2.0),
    "logaddexp": lambda x, one: ops.logaddexp(x, x),
}


@pytest.mark.parametrize("function", few(BEHIND_A_STREAM))
@pytest.mark.parametrize("norm", [layers.RMSNormalization, layers.LayerNormalization])
def test_what_becomes_of_units_that_fill_up_a_stream(norm, function):
    inputs = keras.Input((4, 3))
    stream = layers.Dense(4, name="stream")(inputs)
    x = norm(name="norm")(stream)
    stream = stream + layers.Dense(4, name="back")(layers.Dense(6, "relu")(x))
    made = function(stream, layers.Dense(1, "sigmoid")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(norm()(made)))
    # Some of these leave units that hardly differ, so that the norm enlarges rounding.
    grow_and_compare(model, n2n.Wider("stream", units=8), tolerance=3e-5)
    model = keras.Model(inputs, layers.Dense(2)(made))
    grow_and_compare(model, n2n.Wider("stream", units=11))


def test_units_are_seen_in_a_nested_model_beside_an_unknown_number_of_steps():
    inputs = keras.Input((None, 3))
    flat = layers.Flatten()(layers.Dense(4, "relu", name="hidden")(inputs))
    given = keras.Input((None,))
    inner = keras.Model(given, ops.tanh(given), name="inner")
    x = ops.mean(inner(flat), axis=-1, keepdims=True)
    model = randomize(keras.Model(inputs, layers.Dense(2)(x)))
    weights = snapshot(model)
    with pytest.raises(n2n.errors.SizeError, match="takes the mean over its units"):
        n2n.grow(model, n2n.Wider("hidden", units=6))
    assert_untouched(model, weights)
    grow_and_compare(model, n2n.Wider("hidden", units=8))


def test_a_single_unit_that_is_stacked_beside_something_else_stays():
    inputs = keras.Input((4, 3))
    x = layers.Dense(1, name="single")(inputs)
    y = ops.stack([ops.min(x, axis=-1, keepdims=True), x], axis=2)
    model = randomize(keras.Model(inputs, layers.Dense(2)(ops.mean(y, axis=2))))
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match="needs both sizes to agree"):
        n2n.grow(model, n2n.Wider("single", units=2))
    assert_untouched(model, weights)
