"""How new units start, on every family of layers: exact or said not to be, and apart."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net import testing
from tests.support.helpers import (
    EAGERLY,
    array,
    both_modes,
    cases,
    data_for,
    max_difference,
    randomize,
    sandwich,
)

RMS = getattr(layers, "RMSNormalization", None)


def residual() -> keras.Model:
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, activation="tanh", name="before")(x)
    y = layers.Dense(6, activation="tanh", name="inner")(x)
    x = layers.Add()([x, layers.Dense(4, name="end")(y)])
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def stream(normalization) -> keras.Model:
    """A residual stream before a normalization, which new units of it don't disturb."""
    x = inputs = keras.Input((3, 5))
    x = layers.Dense(4, name="before")(x)
    y = layers.Dense(6, activation="tanh", name="inner")(normalization()(x))
    x = layers.Add()([x, layers.Dense(4, name="end")(y)])
    x = layers.Dense(5, activation="tanh", name="last")(normalization()(x))
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def attention(layer) -> keras.Model:
    x = inputs = keras.Input((3, 5))
    x = layers.Dense(4, activation="tanh", name="before")(x)
    x = layer(x, x)
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


def embedding() -> keras.Model:
    x = inputs = keras.Input((3,), dtype="int32")
    x = layers.Embedding(7, 4, name="before")(x)
    return keras.Model(inputs, layers.Dense(3, name="after")(x))


FAMILIES = {
    "dense": lambda: sandwich((5,), layers.Dense(6, "tanh")),
    "lstm": lambda: sandwich((3, 5), layers.LSTM(4)),
    "attention": lambda: attention(layers.MultiHeadAttention(2, 3)),
    "conv_2d": lambda: sandwich((4, 4, 2), layers.Conv2D(3, 2, activation="tanh")),
    "batch_normalization": lambda: sandwich((5,), layers.BatchNormalization()),
    "layer_normalization": lambda: stream(layers.LayerNormalization),
    "residual": residual,
    "conv_1d": lambda: sandwich((4, 2), layers.Conv1D(3, 2, activation="tanh")),
    "conv_3d": lambda: sandwich((3, 3, 3, 2), layers.Conv3D(3, 2, activation="tanh")),
    "depthwise_1d": lambda: sandwich((4, 2), layers.DepthwiseConv1D(2, depth_multiplier=2)),
    "depthwise_2d": lambda: sandwich((4, 4, 2), layers.DepthwiseConv2D(2)),
    "separable_1d": lambda: sandwich((4, 2), layers.SeparableConv1D(3, 2)),
    "separable_2d": lambda: sandwich((4, 4, 2), layers.SeparableConv2D(3, 2)),
    "transposed_1d": lambda: sandwich((4, 2), layers.Conv1DTranspose(3, 2)),
    "transposed_2d": lambda: sandwich((4, 4, 2), layers.Conv2DTranspose(3, 2, strides=2)),
    "transposed_3d": lambda: sandwich((2, 2, 2, 2), layers.Conv3DTranspose(3, 2)),
    "einsum_dense": lambda: sandwich(
        (3, 5), layers.EinsumDense("abc,cde->abde", (3, 2, 3), bias_axes="de"), layers.Flatten()
    ),
    "embedding": embedding,
    "grouped_attention": lambda: attention(layers.GroupQueryAttention(4, 4, 2)),
    "simple_rnn": lambda: sandwich((3, 5), layers.SimpleRNN(4)),
    "gru": lambda: sandwich((3, 5), layers.GRU(4, return_sequences=True)),
    "conv_lstm": lambda: sandwich((3, 4, 4, 2), layers.ConvLSTM2D(3, 2)),
    "bidirectional": lambda: sandwich((3, 5), layers.Bidirectional(layers.GRU(3))),
    "group_normalization": lambda: stream(lambda: layers.GroupNormalization(2)),
    "rms_normalization": lambda: stream(RMS or layers.LayerNormalization),
}
EXACT = ({}, {"shares": "even"}, {"new_units": "fresh"})


def wider(name: str, **kind) -> n2n.Wider:
    # The groups of a group normalization grow by whole multiples alone.
    return n2n.Wider(factor=2 if name in ("group_normalization",) else 1.5, **kind)


@pytest.mark.parametrize("name", cases(FAMILIES, 6))
def test_copies_and_fresh_units_preserve_every_family(name):
    testing.check_model(
        FAMILIES[name], [wider(name, **kind) for kind in EXACT], save=False, train=False
    )


@pytest.mark.parametrize("kind", [{"new_units": "random"}, {"noise": 0.1}])
@pytest.mark.parametrize("name", cases(FAMILIES, 2))
def test_random_units_and_noise_change_every_family_and_say_so(name, kind):
    model = randomize(FAMILIES[name]())
    x = data_for(model)
    before = both_modes(model, x)
    operation = wider(name, **kind)
    report = n2n.grow(model, operation, seed=0, verify=x)
    assert not operation.exact
    assert not report.plan.exact
    assert any("not exact" in note for note in report.notes)
    assert report.difference > 1e-4
    assert abs(report.difference - max_difference(both_modes(model, x)[:1], before[:1])) < 1e-5


def grown(name: str, **kind):
    """A model and, for each weight that grows, its change, value and first gradient."""
    model = randomize(FAMILIES[name]())
    x = data_for(model, batch=8)
    operation = wider(name, **kind)
    report = n2n.grow(model, operation, seed=0)
    after = {weight.path: weight for weight in model.trainable_variables}
    start = {path: array(weight) for path, weight in after.items()}
    model.compile(keras.optimizers.SGD(1.0), "mse", **EAGERLY)
    y = 3 * np.random.default_rng(1).standard_normal(model(x).shape).astype("float32")
    model.train_on_batch(x, y)
    found = {}
    for layer in report.plan.steps[0].layers:
        for change in layer.variables:
            shape = {path for path in after if path.endswith(change.name.split("/", 1)[-1])}
            path = change.name if change.name in after else min(shape, default=None)
            if path is not None:
                gradient = start[path] - array(after[path])
                found[change.name] = (change, start[path], gradient)
    return found


def axes(change, value, role):
    for at, axis in enumerate(change.axes):
        if axis is not None and axis.role == role and axis.remap.free.any():
            yield axis.remap, np.moveaxis(value, at, 0).reshape(value.shape[at], -1)


@pytest.mark.parametrize("name", cases(FAMILIES, 2))
def test_fresh_units_differ_from_all_others_and_what_reads_them_has_a_gradient_at_once(name):
    read = 0
    for change, value, gradient in grown(name, new_units="fresh").values():
        for (remap, rows), (_, slopes) in zip(
            axes(change, value, "reads"), axes(change, gradient, "reads"), strict=True
        ):
            read += 1
            assert np.all(np.abs(slopes[remap.free]).max(axis=1) > 0), change.name
            assert np.any(rows[~remap.new] != 0)
        if value.ndim > 1:
            for _, rows in axes(change, value, "makes"):
                same = np.abs(rows[:, None] - rows[None, :]).max(axis=-1) < 1e-7
                assert not np.any(same & ~np.eye(len(rows), dtype=bool)), change.name
    assert read or name == "layer_normalization"


@pytest.mark.parametrize("name", cases(FAMILIES, 2))
def test_copies_are_apart_where_shares_are_random_and_not_where_they_are_even(name):
    for shares in ("random", "even"):
        apart = 0
        for change, value, _ in grown(name, shares=shares).values():
            if sum(axis is not None for axis in change.axes) > 1:
                continue  # its rows differ by the shares of others
            for remap, rows in axes(change, value, "reads"):
                originals = {int(i): n for n, i in enumerate(remap.index) if not remap.new[n]}
                for unit in np.flatnonzero(remap.free):
                    other = rows[originals[int(remap.index[unit])]]
                    distance = np.abs(rows[unit] - other).max()
                    assert (distance > 1e-6) == (shares == "random"), change.name
                    apart += 1
        assert apart or "normalization" in name
