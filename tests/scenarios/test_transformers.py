"""A vision transformer and a small GPT of plain Keras layers grow in every width."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.testing import check_model
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    assert_native,
    assert_same,
    assert_untouched,
    both_modes,
    data_for,
    long_elsewhere,
    outputs,
    randomize,
    skipped,
    snapshot,
)

KINDS = ({}, {"shares": "even"}, {"new_units": "fresh"})
UNITS = 6


@keras.saving.register_keras_serializable("transformers")
class Positions(keras.Layer):
    """A table of its own, for each place."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="normal", name="table")

    def call(self, x):
        return x + self.table


def block(x, name, norm, causal=False):
    """A pre-norm block: attention and an MLP, each added to the stream."""
    h = norm(name=f"{name}_norm1")(x)
    h = layers.MultiHeadAttention(2, 3, name=f"{name}_mha")(h, h, use_causal_mask=causal)
    x = layers.Add()([x, layers.Dropout(0.0)(h)])
    h = norm(name=f"{name}_norm2")(x)
    h = layers.Dense(10, activation="gelu", name=f"{name}_up")(h)
    h = layers.Dense(UNITS, name=f"{name}_down")(h)
    return layers.Add()([x, h])


def vit(norm=layers.LayerNormalization, depth=2):
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(UNITS, 2, strides=2, name="patches")(inputs)
    x = layers.Reshape((4, UNITS))(x)
    x = Positions(name="positions")(x)
    for i in range(depth):
        x = block(x, f"block{i}", norm)
    x = norm(name="norm")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def gpt(norm=layers.LayerNormalization, depth=2):
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(7, UNITS, name="tokens")(tokens)
    x = Positions(name="positions")(x)
    for i in range(depth):
        x = block(x, f"block{i}", norm, causal=True)
    x = norm(name="norm")(x)
    return keras.Model(tokens, layers.Dense(7, name="after")(x))


MODELS = {"ViT": (vit, "patches"), "GPT": (gpt, "tokens")}
WIDTHS = {
    "the stream by half a size": lambda stream, kind: n2n.Wider(stream, 9, **kind),
    "the stream by one unit": lambda stream, kind: n2n.Wider(stream, 7, **kind),
    "the stream twice": lambda stream, kind: n2n.Wider(stream, 12, **kind),
    "the stream by more than twice": lambda stream, kind: n2n.Wider("block0_down", 17, **kind),
    "the MLP": lambda stream, kind: n2n.Wider("block0_up", 13, **kind),
    "heads": lambda stream, kind: n2n.Wider("block0_mha", units={"heads": 3}, **kind),
    "the key dimension": lambda stream, kind: n2n.Wider("block1_mha", units={"key_dim": 5}, **kind),
    "the value dimension": lambda stream, kind: n2n.Wider(
        "block0_mha", units={"value_dim": 4}, **kind
    ),
    "everything": lambda stream, kind: n2n.Wider(factor=1.5, **kind),
}


@pytest.mark.parametrize("kind", KINDS if BACKEND == "torch" else KINDS[:1], ids=repr)
@pytest.mark.parametrize(("build", "stream"), MODELS.values(), ids=MODELS)
def test_every_width_grows_alone_and_together_with_the_others(build, stream, kind):
    """One growth after the other on one model; after each the outputs are those from before."""
    model = randomize(build())
    x = data_for(model)
    before = both_modes(model, x)
    sizes = [model.count_params()]
    widths = ["the MLP", "heads", "the key dimension", "the value dimension"]
    widths += ["the stream by one unit", "the stream by half a size", "everything"]
    for seed, name in enumerate(widths):
        n2n.grow(model, WIDTHS[name](stream, kind), seed=seed, verify=False)
        sizes.append(model.count_params())
        if BACKEND == "torch" or seed in (2, 6):
            assert_same(both_modes(model, x), before, 3e-6)
    assert sizes == sorted(set(sizes))
    assert_native(model)


STREAMS = ["the stream twice", "the stream by more than twice"]


@pytest.mark.parametrize("kind", KINDS if BACKEND == "torch" else KINDS[:1], ids=repr)
@pytest.mark.parametrize("width", STREAMS if BACKEND == "torch" else STREAMS[1:])
@pytest.mark.parametrize(
    "norm", [layers.LayerNormalization, layers.RMSNormalization], ids=["layer", "RMS"]
)
def test_the_stream_grows_to_any_size_under_either_norm(norm, width, kind):
    model = randomize(gpt(norm, depth=1))
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, WIDTHS[width]("tokens", kind), seed=0, verify=False)
    names = ("block0_down", "block0_mha")
    assert {model.get_layer(name).output.shape[-1] for name in names} == {
        12 if "twice" in width and "more" not in width else 17
    }
    assert_same(both_modes(model, x), before, 3e-6)
    assert_native(model)


@pytest.mark.parametrize(("build", "stream"), MODELS.values(), ids=MODELS)
def test_a_grown_transformer_is_saved_and_trained(build, stream):
    growths = [n2n.Wider(stream, 9), [n2n.Wider(factor=1.5, **kind) for kind in KINDS]]
    check_model(lambda: build(depth=1), growths, tolerance=3e-6, train=BACKEND == "torch")


def test_all_hidden_layers_of_a_transformer_grow():
    for build in (vit, gpt):
        planned = n2n.plan(build(), n2n.Wider(factor=1.5), seed=0)
        assert skipped(planned) == {"after"}


@long_elsewhere
def test_copies_keep_the_predictions_of_a_trained_language_model():
    model = gpt(depth=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, **EAGERLY)
    x = np.random.default_rng(0).integers(0, 7, (32, 4))
    y = (x + 1) % 7
    growth = n2n.GrowthScheduler({2: n2n.Wider("tokens", 9), 4: n2n.Wider(factor=1.5)}, seed=0)
    history = model.fit(x, y, epochs=6, batch_size=8, verbose=0, callbacks=[growth])
    assert [report.difference < 1e-4 for report in growth.history] == [True, True]
    losses = history.history["loss"]
    assert losses == sorted(losses, reverse=True)


def test_post_norm_streams_grow_by_whole_multiples():
    """There, the stream isn't linear: a normalization lies on it."""
    inputs = keras.Input((4, 5))
    x = layers.Dense(UNITS, name="before")(inputs)
    for i in range(2):
        h = layers.MultiHeadAttention(2, 3, name=f"mha{i}")(x, x)
        x = layers.LayerNormalization(name=f"norm{i}")(layers.Add()([x, h]))
    model = randomize(keras.Model(inputs, layers.Dense(2)(x)))
    weights = snapshot(model)
    data = data_for(model)
    before = both_modes(model, data)
    with pytest.raises(n2n.errors.SizeError, match="whole multiples of its 6 units"):
        n2n.grow(model, n2n.Wider("before", 9))
    assert_untouched(model, weights)
    n2n.grow(model, n2n.Wider("before", 12), seed=0, verify=False)
    assert_same(both_modes(model, data), before, 3e-6)
    assert_native(model)


def test_a_norm_over_heads_fills_each_query_and_key_or_is_refused():
    """Query-key normalization, on the last axis of each head."""
    inputs = keras.Input((4, 5))
    query, key, value = (
        layers.EinsumDense("abc,cde->abde", (None, 2, 4), name=name)(inputs)
        for name in ("query", "key", "value")
    )
    query = layers.RMSNormalization(name="query_norm")(query)
    key = layers.RMSNormalization(name="key_norm")(key)
    scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", query, key) * 0.5)
    mixed = ops.einsum("bhqk,bkhd->bqhd", scores, value)
    mixed = layers.EinsumDense("abde,def->abf", (None, 3), name="join")(mixed)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="after")(mixed)))
    x = data_for(model)
    before = both_modes(model, x)
    for seed, units in enumerate(({"units_e": 6}, {"units_d": 3})):
        n2n.grow(model, n2n.Wider("query", units=units), seed=seed, verify=False)
        assert_same(both_modes(model, x), before)
    n2n.grow(model, n2n.Wider("value", units={"units_e": 6}), seed=2, verify=False)
    assert_same(outputs(model, x), before[:1])
    assert_native(model)
