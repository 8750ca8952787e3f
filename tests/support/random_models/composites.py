"""Layers and models that are written with Keras's layers and operations: they are opened."""

from __future__ import annotations

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("random_models")
class Residual(keras.Layer):
    """A residual block: a normalization, two Dense layers, a scale of its own."""

    def __init__(self, units=4, norm=False, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.norm = layers.LayerNormalization(name="norm") if norm else None
        self.first = layers.Dense(units, "relu", name="first")

    def build(self, input_shape):
        self.second = layers.Dense(input_shape[-1], name="second")
        if self.norm is not None:
            self.norm.build(input_shape)
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], self.units))
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        y = x if self.norm is None else self.norm(x)
        return x + self.scale * self.second(self.first(y))

    def get_config(self):
        return {**super().get_config(), "units": self.units, "norm": self.norm is not None}


@keras.saving.register_keras_serializable("random_models")
class GatedProjection(keras.Layer):
    """Two products with weights of its own, one of which gates the other."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        shape = (input_shape[-1], self.units)
        self.value = self.add_weight(shape=shape, name="value")
        self.gate = self.add_weight(shape=shape, name="gate")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, x):
        return ops.matmul(x, self.value) * ops.sigmoid(ops.matmul(x, self.gate) + self.bias)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("random_models")
class Encoder(keras.Layer):
    """A transformer's block: attention and a feed-forward part, each in a residual sum."""

    def __init__(self, heads=2, key_dim=2, units=6, before=True, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.key_dim, self.units, self.before = heads, key_dim, units, before
        self.attention = layers.MultiHeadAttention(heads, key_dim, name="attention")
        self.norms = [layers.LayerNormalization(name=f"norm{i}") for i in range(2)]
        self.up = layers.Dense(units, "gelu", name="up")

    def build(self, input_shape):
        self.down = layers.Dense(input_shape[-1], name="down")
        self.attention.build(input_shape, input_shape)
        for norm in self.norms:
            norm.build(input_shape)
        self.up.build(input_shape)
        self.down.build((*input_shape[:-1], self.units))

    def call(self, x):
        if self.before:
            y = self.norms[0](x)
            x = x + self.attention(y, y)
            return x + self.down(self.up(self.norms[1](x)))
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.down(self.up(x)))

    def get_config(self):
        names = ("heads", "key_dim", "units", "before")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("random_models")
class Subclassed(keras.Model):
    """A model with a `call` of its own: two branches, one of them in training mode alone."""

    def __init__(self, units=4, out=3, **kwargs):
        super().__init__(**kwargs)
        self.units, self.out = units, out
        self.stem = layers.Dense(units, "relu", name="stem")
        self.blocks = [layers.Dense(units, "tanh", name=f"block{i}") for i in range(2)]
        self.norm = layers.BatchNormalization(name="norm")
        self.drop = layers.Dropout(0.0, name="drop")
        self.head = layers.Dense(out, name="head")

    def call(self, x, training=None):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        x = self.norm(x, training=training)
        if training:
            x = self.drop(x, training=training)
        return self.head(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "out": self.out}


@keras.saving.register_keras_serializable("random_models")
class Network(keras.Model):
    """A model of any layers, with a sum around each that keeps the shape."""

    def __init__(self, chain=(), out=3, **kwargs):
        super().__init__(**kwargs)
        self.chain = list(chain)
        self.head = layers.Dense(out, name="head")

    def call(self, x):
        for layer in self.chain:
            y = layer(x)
            x = x + y if y.shape == x.shape else y
        return self.head(x)

    def get_config(self):
        chain = [keras.saving.serialize_keras_object(layer) for layer in self.chain]
        return {**super().get_config(), "chain": chain, "out": self.head.units}

    @classmethod
    def from_config(cls, config):
        chain = [keras.saving.deserialize_keras_object(layer) for layer in config["chain"]]
        return cls(**{**config, "chain": chain})


@keras.saving.register_keras_serializable("random_models")
class TwoReaders(keras.Layer):
    """A recurrent layer and a convolution that read the same sequence, side by side."""

    def __init__(self, units=4, filters=3, **kwargs):
        super().__init__(**kwargs)
        self.units, self.filters = units, filters
        self.recurrent = layers.GRU(units, return_sequences=True, name="recurrent")
        self.conv = layers.Conv1D(filters, 2, padding="same", name="conv")

    def build(self, input_shape):
        self.recurrent.build(input_shape)
        self.conv.build(input_shape)

    def call(self, x):
        return ops.concatenate([self.recurrent(x), ops.relu(self.conv(x))], axis=-1)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "filters": self.filters}
