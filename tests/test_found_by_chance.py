"""What random models found, each as the smallest model that shows it."""

from __future__ import annotations

import keras
import pytest
from keras import layers

import keras_net2net as n2n
from tests.helpers import assert_same, both_modes, data_for, randomize
from tests.random_models import Encoder


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
