"""Random models and random operations, and the check that a growth preserves or refuses.

Everything is drawn from a source of numbers: from Hypothesis, which shrinks what it
finds, in the tests; from a seeded generator in `benchmarks/fuzz.py`. A draw of zero
is the simplest choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
import numpy as np
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.operations.base import as_operations
from keras_net2net.planning.draft import Draft
from keras_net2net.widths.expressions import widths_of
from keras_net2net.widths.reading import read
from tests.rules import test_image_preprocessing, test_ops
from tests.support.helpers import BACKEND, array, both_modes, max_difference, randomize

# Rounding, relative to the largest output. In float64, anything more is a mistake.
TOLERANCES = {"float64": 1e-9, "float32": 3e-5}
LARGEST = 1e6  # outputs beyond it say nothing
BATCH = 4
# An older Keras has no model with an input that nothing reads.
OLDER = not hasattr(layers, "ReversibleEmbedding")
ACTIVATIONS = ("relu", "tanh", "silu", "gelu", "linear", "sigmoid", "softplus", "leaky_relu")


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Lets Keras compute in float64, where a mistake can't hide behind rounding.

    Beside its settings there is a table by which Keras computes in float32 what is
    given in float64, on JAX and PyTorch.
    """
    from keras.src.backend.common import dtypes

    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    narrowed = dict(dtypes.BIT64_TO_BIT32_DTYPE)
    if BACKEND == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    try:
        yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE.update(narrowed)
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(floatx)
        if BACKEND == "jax":
            jax.config.update("jax_enable_x64", False)


@contextlib.contextmanager
def quick_initializers() -> Iterator[None]:
    """Lets JAX make new weights without compiling: `randomize` overwrites them all."""
    if BACKEND != "jax":
        yield
        return
    from keras.src.backend.jax import random

    def made(shape: Any, *args: Any, dtype: Any = None, **kwargs: Any) -> Any:
        return np.full(tuple(shape), 0.1, dtype or keras.config.floatx())

    names = ("uniform", "normal", "truncated_normal")
    kept = {name: getattr(random, name) for name in names}
    try:
        for name in names:
            setattr(random, name, made)
        yield
    finally:
        for name, function in kept.items():
            setattr(random, name, function)


class Source(Protocol):
    """Where choices come from."""

    def below(self, limit: int) -> int:
        """A number from 0 to `limit - 1`."""


class Seeded:
    """Choices of a seeded generator, which can be read and replayed.

    Args:
        seed: The seed.
        replayed: The first choices. Defaults to `()`.
        then: What follows on them: `"random"`, or `"zero"`.
    """

    def __init__(self, seed: int, replayed: Any = (), then: str = "random") -> None:
        self.random = np.random.default_rng(seed)
        self.replayed = list(replayed)
        self.then = then
        self.choices: list[int] = []

    def below(self, limit: int) -> int:
        """A number from 0 to `limit - 1`."""
        at = len(self.choices)
        if at < len(self.replayed):
            choice = min(self.replayed[at], limit - 1)
        else:
            choice = int(self.random.integers(limit)) if self.then == "random" else 0
        self.choices.append(choice)
        return choice


# Layers that are written with Keras's layers and operations: they are opened.


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


class Builder:
    """Makes a random model, step by step, of tensors that it made before.

    Args:
        source: Where choices come from.
        prefix: What the names of layers start with.
        depth: How deep this model is nested.

    Attributes:
        lines: What was made, in words.
        failed: The steps that Keras refused, which are left out, by kind.
        native: Whether the configuration of the model can be built again.
        batch: The size of a batch, if the model is made for one, as stateful layers are.
    """

    def __init__(self, source: Source, prefix: str = "", depth: int = 0) -> None:
        self.source = source
        self.prefix = prefix
        self.depth = depth
        self.count = 0
        self.pool: list[Any] = []
        self.made: list[tuple[Any, Any]] = []
        self.tables: list[Any] = []
        self.lines: list[str] = []
        self.failed: list[str] = []
        self.native = True
        self.batch: int | None = None

    # Choices

    def pick(self, *values: Any) -> Any:
        """One of the values."""
        if not values:
            raise LookupError("nothing to pick from")
        return values[self.source.below(len(values))]

    def flag(self, chance: int = 2) -> bool:
        """True once in `chance` times."""
        return self.source.below(chance) == chance - 1

    def units(self) -> int:
        """A number of units."""
        return self.pick(3, 4, 2, 6, 1, 5, 8)

    def name(self, kind: str) -> str:
        """A name that no other layer has."""
        self.count += 1
        return f"{self.prefix}{kind}{self.count}"

    def put(self, layer: Any, x: Any, **kwargs: Any) -> Any:
        """Calls a layer, which may be called again later."""
        y = layer(x, **kwargs)
        if not isinstance(x, list) and not kwargs and isinstance(y, keras.KerasTensor):
            self.made.append((layer, x))
        return y

    def like(self, x: Any, last: bool = True) -> Any:
        """A tensor of the shape of `x`, or one that differs in the last axis."""
        end = len(x.shape) if last else -1
        return self.pick(
            *(
                y
                for y in self.pool
                if len(y.shape) == len(x.shape) and y.shape[:end] == x.shape[:end]
            )
        )

    def axis(self, x: Any) -> int:
        """An axis other than that of the batch, mostly the last."""
        return self.pick(-1, *range(1, len(x.shape)))

    # Models

    def model(self, name: str | None = None) -> tuple[Any, Any]:
        """A random model, and the symbolic tensors that say what it takes."""
        style = self.source.below(16)
        if style in (12, 13):
            return self.sequential(name)
        if style in (14, 15):
            return self.subclassed(name, style == 15)
        self.batch = BATCH if self.flag(10) else None
        inputs = [self.input() for _ in range(self.pick(1, 1, 1, 2, 2, 3))]
        self.pool = [self.stem(self.floating(x)) for x in inputs]
        self.steps(self.pick(2, 3, 4, 5, 6, 8))
        outs = [self.end(self.pool[-1])]
        for _ in range(self.pick(0, 0, 0, 1, 2)):
            outs.append(self.end(self.pick(*self.pool)))
        if len(inputs) > 1 and (self.flag() or OLDER):
            outs.append(self.end(self.join_all(inputs)))
        structure: Any = inputs if len(inputs) > 1 else inputs[0]
        if len(inputs) > 1 and self.flag(3):
            structure = {x.name: x for x in inputs}
        return keras.Model(structure, outs if len(outs) > 1 else outs[0], name=name), structure

    def inner(self, x: Any, name: str) -> Any:
        """A functional model for a tensor like `x`."""
        inputs = keras.Input(batch_shape=x.shape, name=f"{self.prefix}input", dtype=x.dtype)
        self.pool = [inputs]
        self.steps(self.pick(1, 2, 3))
        return keras.Model(inputs, self.pool[-1], name=name)

    def input(self) -> Any:
        """An input: vectors, sequences of any length or a known one, images, volumes, tokens."""
        name = self.name("input")
        kinds = ["vector", "image", "sequence", "tokens", "steps", "sequence", "image", "video"]
        kind = self.pick(*kinds, "volume", "film" if self.flag(4) else "vector")
        shape = {
            "vector": (3,),
            "sequence": (4, 3),
            "image": (4, 4, 2),
            "video": (3, 4, 4, 2),
            "volume": (2, 2, 2, 2),
            "film": (2, 2, 2, 2, 2),
            "tokens": (4,),
            "steps": (4, 3),
        }[kind]
        if kind in ("tokens", "steps") and self.flag():
            shape = (None, *shape[1:])
        self.lines.append(f"{name} = {kind}{shape}")
        dtype = "int32" if kind == "tokens" else None
        return keras.Input(shape, batch_size=self.batch, dtype=dtype, name=name)

    def stem(self, x: Any) -> Any:
        """What reads an input: mostly a layer that makes units, which can grow."""
        if self.flag(8):
            return x
        convolutions = {3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}
        if len(x.shape) in convolutions and self.flag():
            conv = convolutions[len(x.shape)](
                self.units(), 2, padding="same", activation="relu", name=self.name("stem")
            )
            return self.put(conv, x)
        return self.put(
            layers.Dense(self.units(), self.pick(*ACTIVATIONS), name=self.name("stem")), x
        )

    def floating(self, x: Any) -> Any:
        """Tokens become vectors."""
        if "int" not in x.dtype:
            return x
        if self.flag(3) and not OLDER:
            table = layers.ReversibleEmbedding(
                6, self.units(), tie_weights=not self.flag(3), name=self.name("table")
            )
            self.tables.append(table)
        else:
            table = layers.Embedding(
                6, self.units(), mask_zero=self.flag(4), name=self.name("embedding")
            )
        return table(x)

    def subclassed(self, name: str | None, drawn: bool) -> tuple[Any, Any]:
        """A model with a call of its own, of layers that are drawn or always the same."""
        shapes: list[Any] = [(3,), (4, 3), (None, 3), *([(4, 4, 2)] if drawn else [])]
        if drawn and BACKEND == "jax":  # it can't infer shapes of several unknown sizes
            shapes.remove((None, 3))
        x = keras.Input(self.pick(*shapes), name=self.name("input"))
        name = name or self.name("subclassed")
        if drawn:
            first = layers.Dense(self.units(), "relu", name=self.name("first"))
            model: Any = Network([first, *self.chain(x)], self.units(), name=name)
            self.lines.append(f"Network{[layer.name for layer in model.chain]} on {x.shape}")
        else:
            model = Subclassed(self.units(), self.units(), name=name)
            self.lines.append(f"Subclassed(units={model.units}, out={model.out}) on {x.shape}")
        model(x)
        return model, x

    def sequential(self, name: str | None) -> tuple[Any, Any]:
        """A chain of layers."""
        shape = self.pick((3,), (4, 3), (4, 4, 2))
        model = keras.Sequential(name=name)
        x = keras.Input(shape, name=self.name("input"))
        model.add(x)
        if not self.flag(6):
            model.add(layers.Dense(self.units(), "relu", name=self.name("first")))
        for layer in self.chain(x):
            model.add(layer)
        if self.flag() and len(shape) > 1:
            model.add(layers.Flatten(name=self.name("flat")))
        model.add(layers.Dense(2, name=self.name("out")))
        self.lines.append(f"Sequential on {shape}: {[layer.name for layer in model.layers]}")
        return model, x

    def chain(self, x: Any) -> list[Any]:
        """Layers that keep the rank of a tensor."""
        chosen: list[Any] = []
        for _ in range(self.pick(1, 2, 3, 4)):
            kinds = [
                lambda: layers.Dense(
                    self.units(), self.pick("relu", None), name=self.name("dense")
                ),
                lambda: layers.BatchNormalization(name=self.name("norm")),
                lambda: layers.LayerNormalization(name=self.name("layer_norm")),
                lambda: layers.ReLU(name=self.name("relu")),
                lambda: layers.Dropout(0.0, name=self.name("drop")),
                lambda: Residual(self.units(), self.flag(), name=self.name("residual")),
            ]
            if len(x.shape) == 3:
                kinds += [
                    lambda: layers.LSTM(
                        self.units(), return_sequences=True, name=self.name("lstm")
                    ),
                    lambda: layers.Conv1D(self.units(), 2, padding="same", name=self.name("conv")),
                    lambda: TwoReaders(self.units(), self.units(), name=self.name("readers")),
                    lambda: layers.TimeDistributed(
                        layers.Dense(self.units(), "relu"), name=self.name("time_distributed")
                    ),
                ]
            if len(x.shape) == 4:
                kinds += [
                    lambda: layers.Conv2D(self.units(), 2, padding="same", name=self.name("conv")),
                    lambda: layers.MaxPooling2D(2, 1, padding="same", name=self.name("pool")),
                ]
            chosen.append(self.pick(*kinds)())
        return chosen

    def end(self, x: Any) -> Any:
        """An output: mostly of a Dense layer."""
        style = self.pick("dense", "dense", "pooled", "flat", "dense", "dense", "dense", "raw")
        if style == "flat" and None not in x.shape[1:] and len(x.shape) > 2:
            x = layers.Flatten(name=self.name("flat"))(x)
        elif style == "pooled":
            x = self.vector(x)
        if style == "raw":
            return x
        if x.shape[-1] is None:
            x = ops.mean(x, axis=-1, keepdims=True)
        return layers.Dense(2, name=self.name("out"))(x)

    def vector(self, x: Any) -> Any:
        """A vector for each example."""
        while len(x.shape) > 2:
            x = ops.mean(x, axis=1)
        return ops.expand_dims(x, -1) if len(x.shape) < 2 else x

    def join_all(self, inputs: list[Any]) -> Any:
        """One tensor of several; an older Keras has all inputs read."""
        chosen = [self.pool[0], self.pool[-1], self.pick(*self.pool)]
        if OLDER:
            given = [ops.cast(x, keras.config.floatx()) for x in inputs]
            chosen += [x if x.shape[-1] else ops.mean(x, -1, keepdims=True) for x in given]
        ends = [self.vector(x) for x in chosen]
        ends = [x for x in ends if x.shape[-1] is not None]
        return layers.Concatenate(name=self.name("join"))(ends) if len(ends) > 1 else self.pool[-1]

    # Steps

    def steps(self, number: int) -> None:
        """Adds steps; what Keras refuses is left out."""
        for _ in range(number):
            x = self.pick(self.pool[-1], *self.pool[-4:])
            kinds = [*ANY]
            kinds += {3: SEQUENCES, 4: IMAGES, 5: VOLUMES, 6: FILMS}.get(len(x.shape), [])
            kind = self.pick(*kinds)
            try:
                y = getattr(self, kind)(x)
            except Exception as error:  # what fits where is for Keras to say
                self.failed.append(f"{kind}: {type(error).__name__}: {str(error)[:150]}")
                continue
            if not isinstance(y, keras.KerasTensor) or y is x or not 2 <= len(y.shape) <= 6:
                continue
            if math.prod(size or 4 for size in y.shape[1:]) > 400 or 0 in y.shape:
                continue
            if y.shape[0] not in (None, BATCH):
                continue
            if "complex" in y.dtype:
                y = ops.real(y)
            if "float" not in y.dtype:
                y = ops.cast(y, keras.config.floatx())
            self.lines.append(f"{kind}: {tuple(x.shape)} -> {tuple(y.shape)}")
            self.pool.append(y)

    def dense(self, x: Any) -> Any:
        return self.put(
            layers.Dense(
                self.units(),
                self.pick(*ACTIVATIONS),
                use_bias=not self.flag(4),
                name=self.name("dense"),
            ),
            x,
        )

    def einsum_dense(self, x: Any) -> Any:
        a, b = self.units(), self.pick(2, 3)
        rank = len(x.shape)
        kinds: list[Any] = []
        if x.shape[1:-1] == x.shape[-2:0:-1]:  # Keras takes what an ellipsis is for in reverse
            kinds.append(("...x,xy->...y", (a,), "y"))
        if rank == 3:
            kinds += [
                ("abc,cde->abde", (x.shape[1], b, a), "de"),
                ("abc,cd->abd", (x.shape[1], a), None),
                ("abc,bd->adc", (a, x.shape[2]), "d"),
                ("abc,bcd->ad", (a,), "d"),
            ]
        if rank == 4:
            kinds += [
                ("abcd,cde->abe", (x.shape[1], a), "e"),
                ("abcd,cdef->abef", (x.shape[1], b, a), "ef"),
                ("abcd,ce->abed", (x.shape[1], a, x.shape[3]), "e"),
            ]
        if not kinds:
            return None
        equation, shape, bias = self.pick(*kinds)
        return self.put(
            layers.EinsumDense(
                equation,
                shape,
                activation=self.pick(None, "relu"),
                bias_axes=self.pick(bias, None),
                name=self.name("einsum_dense"),
            ),
            x,
        )

    def activation(self, x: Any) -> Any:
        return self.put(
            self.pick(
                lambda name: layers.Activation(self.pick(*ACTIVATIONS, "softmax"), name=name),
                lambda name: layers.ReLU(max_value=self.pick(None, 2.0), name=name),
                lambda name: layers.LeakyReLU(0.2, name=name),
                lambda name: layers.ELU(name=name),
                lambda name: layers.Softmax(self.axis(x), name=name),
                lambda name: layers.PReLU(
                    "ones",
                    shared_axes=self.pick(list(range(1, len(x.shape) - 1)) or None, None),
                    name=name,
                ),
            )(self.name("activation")),
            x,
        )

    def regularization(self, x: Any) -> Any:
        spatial = {
            3: layers.SpatialDropout1D,
            4: layers.SpatialDropout2D,
            5: layers.SpatialDropout3D,
        }
        kinds: list[Any] = [
            lambda **kw: layers.Dropout(0.0, **kw),
            lambda **kw: layers.GaussianNoise(0.0, **kw),
            lambda **kw: layers.GaussianDropout(0.0, **kw),
            lambda **kw: layers.AlphaDropout(0.0, **kw),
            lambda **kw: layers.ActivityRegularization(l2=0.01, **kw),
            lambda **kw: layers.Identity(**kw),
        ]
        if len(x.shape) in spatial:
            kinds.append(lambda **kw: spatial[len(x.shape)](0.0, **kw))
        return self.put(self.pick(*kinds)(name=self.name("regularization")), x)

    def batch_norm(self, x: Any) -> Any:
        axis = -1 if not self.flag(5) else self.axis(x)
        return self.put(
            layers.BatchNormalization(
                axis, scale=not self.flag(4), center=not self.flag(4), name=self.name("norm")
            ),
            x,
        )

    def layer_norm(self, x: Any) -> Any:
        name = self.name("layer_norm")
        axis: Any = -1 if not self.flag(4) else self.axis(x)
        if x.shape[-1] is None:
            return None
        unit_axis = axis
        if BACKEND == "torch":  # Keras's kernel there takes any axis for the last one
            axis = -1
        kinds: list[Any] = [
            lambda: layers.LayerNormalization(axis, name=name),
            lambda: layers.LayerNormalization(axis, scale=False, name=name),
            lambda: layers.RMSNormalization(axis, name=name),
            lambda: layers.UnitNormalization(unit_axis, name=name),
            lambda: layers.GroupNormalization(
                self.pick(*(n for n in range(1, x.shape[-1] + 1) if x.shape[-1] % n == 0), -1),
                name=name,
            ),
            lambda: layers.LayerNormalization([len(x.shape) - 2, len(x.shape) - 1], name=name),
        ]
        return self.put(self.pick(*kinds)(), x)

    def pre_norm(self, x: Any) -> Any:
        """A linear stream, which a normalization reads, as in a transformer."""
        stream = self.put(layers.Dense(self.units(), name=self.name("stream")), x)
        norm = self.pick(layers.LayerNormalization, layers.RMSNormalization)
        y = self.put(norm(name=self.name("pre")), stream)
        if len(x.shape) == 3 and x.shape[1] is not None and self.flag():
            mixed = stream + self.mixed(y)  # and what mixes channels reads that
            y = self.put(norm(name=self.name("pre")), mixed)
            stream = mixed
        y = self.dense(y)
        return stream + self.put(layers.Dense(stream.shape[-1], name=self.name("back")), y)

    def mixed(self, x: Any) -> Any:
        """A mix of places, the same for each unit; perhaps only of some, or scaled."""
        style = self.pick("dense", "deep", "einsum", "conv", "scaled")
        y = self.put(layers.Permute((2, 1), name=self.name("turn")), x)
        places, bias = x.shape[1], self.flag()
        if style == "deep":
            y = self.dense(y)
        if style == "einsum":
            mix: Any = layers.EinsumDense("abc,cd->abd", (None, places), name=self.name("mix"))
        elif style == "conv":  # over the units, as if they were places
            mix = layers.Conv1D(places, 1, use_bias=bias, name=self.name("mix"))
        else:
            mix = layers.Dense(places, use_bias=bias, name=self.name("mix"))
        y = self.put(layers.Permute((2, 1), name=self.name("turn")), self.put(mix, y))
        if style == "scaled":
            y = y * ops.sigmoid(ops.mean(x, axis=(1, 2), keepdims=True)) + ops.mean(
                y, axis=1, keepdims=True
            )
        return y

    def refused(self, x: Any) -> Any:
        """Layers through which units can't pass."""
        name = self.name("refused")
        kind = self.pick("lambda", "masking", "spectral", "ranked")
        if kind == "lambda":
            self.native = False
            return layers.Lambda(lambda y: ops.sin(y) + ops.flip(y, -1), name=name)(x)
        if kind == "masking":
            return layers.Masking(0.0, name=name)(x)
        if kind == "spectral":
            dense = layers.Dense(self.units(), name=f"{name}_dense")
            return layers.SpectralNormalization(dense, name=name)(x)
        return ops.sort(x, axis=-1)

    def preprocessing(self, x: Any) -> Any:
        name = self.name("preprocessing")
        kinds: list[Any] = [
            lambda: layers.Rescaling(0.5, 0.1, name=name),
            lambda: layers.Normalization(name=name),
            lambda: layers.Discretization([-1.0, 0.123, 1.0], name=name),
        ]
        if len(x.shape) == 4:
            kinds += [
                lambda: layers.Resizing(3, 3, name=name),
                lambda: layers.CenterCrop(2, 2, name=name),
                lambda: layers.RandomBrightness(0.0, value_range=(-5.0, 5.0), name=name),
                lambda: (
                    layers.RandomFlip(seed=1, name=name) if self.flag(50) else layers.Identity()
                ),
            ]
        return self.put(self.pick(*kinds)(), x)

    def image_preprocessing(self, x: Any) -> Any:
        """Layers that prepare images, on hidden channels; what they draw has a seed."""
        made = self.pick(*IMAGE_LAYERS.values())()
        config = {**made.get_config(), "name": self.name("image"), "dtype": x.dtype}
        return self.put(type(made).from_config(config), self.bounded(x))

    def hashing(self, x: Any) -> Any:
        if BACKEND == "jax":  # it doesn't compile there
            raise LookupError("JAX doesn't compile it")
        return layers.Hashing(5, name=self.name("hashing"))(ops.cast(4.0 * x + 0.123, "int32"))

    def bounded(self, x: Any, offset: float = 0.0123) -> Any:
        """Numbers between -1 and 1, none of which is at a jump of a function."""
        return 0.9 * ops.tanh(x) + offset

    def merge(self, x: Any) -> Any:
        kind = self.pick(
            layers.Add,
            layers.Multiply,
            layers.Concatenate,
            layers.Maximum,
            layers.Minimum,
            layers.Average,
            layers.Subtract,
        )
        name = self.name("merge")
        if kind is layers.Concatenate:
            return kind(name=name)([x, self.like(x, last=False)])
        return kind(name=name)(
            [
                x,
                self.like(x),
                *([self.like(x)] if self.flag(4) and kind is not layers.Subtract else []),
            ]
        )

    def branch(self, x: Any) -> Any:
        """A branch with as many units, summed or multiplied to the trunk."""
        y = self.put(
            layers.Dense(x.shape[-1], self.pick(*ACTIVATIONS), name=self.name("branch")), x
        )
        kind = self.pick(layers.Add, layers.Multiply, layers.Maximum, layers.Subtract)
        return kind(name=self.name("merge"))([x, y])

    def concat_axis(self, x: Any) -> Any:
        """A concatenation along any axis."""
        axis = self.axis(x) % len(x.shape)
        rest = [s for i, s in enumerate(x.shape) if i != axis]
        fits = [
            y
            for y in self.pool
            if len(y.shape) == len(x.shape)
            and [s for i, s in enumerate(y.shape) if i != axis] == rest
        ]
        return layers.Concatenate(axis, name=self.name("concat"))([x, self.pick(*fits)])

    def dot(self, x: Any) -> Any:
        y = self.pick(*(y for y in self.pool if len(y.shape) == len(x.shape) <= 3))
        axes = self.pick(-1, 1)
        return layers.Dot(axes if axes == 1 else len(x.shape) - 1, name=self.name("dot"))([x, y])

    def reshape(self, x: Any) -> Any:
        size = math.prod(x.shape[1:])
        first = self.pick(*(n for n in range(1, size + 1) if size % n == 0))
        target = self.pick((first, size // first), (-1, first), (size,), (first, size // first, 1))
        return self.put(layers.Reshape(target, name=self.name("reshape")), x)

    def reshaped_merge(self, x: Any) -> Any:
        """Two tensors of one size, whatever they are made of."""
        fits = [y for y in self.pool if None not in y.shape[1:]]
        y = self.pick(*(y for y in fits if math.prod(y.shape[1:]) == math.prod(x.shape[1:])))
        y = layers.Reshape(tuple(x.shape[1:]), name=self.name("reshape"))(y)
        return self.pick(layers.Add, layers.Maximum)(name=self.name("merge"))([x, y])

    def flatten(self, x: Any) -> Any:
        return self.put(layers.Flatten(name=self.name("flatten")), x)

    def permute(self, x: Any) -> Any:
        order = list(range(1, len(x.shape)))
        for i in range(len(order) - 1):
            j = i + self.source.below(len(order) - i)
            order[i], order[j] = order[j], order[i]
        return self.put(layers.Permute(tuple(order), name=self.name("permute")), x)

    def repeat_vector(self, x: Any) -> Any:
        return self.put(layers.RepeatVector(2, name=self.name("repeat")), self.vector(x))

    def again(self, x: Any) -> Any:
        """A layer that was made before, called on another tensor."""
        layer, given = self.pick(*reversed(self.made[-5:]))
        fits = [
            y
            for y in self.pool
            if len(y.shape) == len(given.shape) and y.shape[-1] == given.shape[-1]
        ]
        y = self.pick(*reversed(fits))
        return layer(y)

    def shared(self, x: Any) -> Any:
        """A layer that is called twice, one call on the other's output."""
        name = self.name("shared")
        n = x.shape[-1]
        kinds: list[Any] = [
            lambda: layers.Dense(n, self.pick(None, "relu"), name=name),
            lambda: Residual(self.units(), self.flag(), name=name),
            lambda: GatedProjection(n, name=name),
        ]
        if len(x.shape) == 3:
            kinds += [
                lambda: layers.GRU(n, return_sequences=True, name=name),
                lambda: layers.Conv1D(n, 2, padding="same", name=name),
            ]
        if len(x.shape) == 4:
            kinds.append(lambda: layers.Conv2D(n, 2, padding="same", name=name))
        layer = self.pick(*kinds)()
        return layer(layers.ReLU(name=self.name("relu"))(layer(x)))

    def composite(self, x: Any) -> Any:
        """A layer of layers and operations, which is opened."""
        name = self.name("composite")
        kinds: list[Any] = [
            lambda: Residual(self.units(), self.flag(), name=name),
            lambda: GatedProjection(self.units(), name=name),
            lambda: Subclassed(self.units(), self.units(), name=name),
            lambda: Network(self.chain(x), self.units(), name=name),
        ]
        if len(x.shape) == 3:
            kinds += [
                lambda: Encoder(self.pick(1, 2), self.pick(2, 3), 6, self.flag(), name=name),
                lambda: TwoReaders(self.units(), self.units(), name=name),
            ]
        return self.put(self.pick(*kinds)(), x)

    def nested(self, x: Any) -> Any:
        """A model in the model, called once or twice."""
        if self.depth > 1:
            return self.dense(x)
        name = self.name("nested")
        if self.flag(3):
            inputs = keras.Input(batch_shape=x.shape)
            inner: Any = keras.Sequential([inputs, *self.chain(x)], name=name)
        else:
            builder = Builder(self.source, f"{name}_", self.depth + 1)
            inner = builder.inner(x, name)
            self.lines += [f"  in {name}: {line}" for line in builder.lines]
            self.failed += builder.failed
            self.native &= builder.native
        called = inner(x)
        if not self.flag(3):
            return called
        other = inner(self.like(x))
        return layers.Concatenate(name=self.name("twice"))([called, other])

    def reverse_embedding(self, x: Any) -> Any:
        """The embedding's table once more, as the projection to its entries."""
        table = self.pick(*self.tables)
        if x.shape[-1] != table.output_dim:
            x = layers.Dense(table.output_dim, name=self.name("stream"))(x)
        return table(x, reverse=True)

    # Steps on sequences

    def conv1(self, x: Any) -> Any:
        name = self.name("conv")
        n = self.units()
        groups = self.pick(*(g for g in (1, x.shape[-1]) if x.shape[-1] % g == 0))
        return self.put(
            self.pick(
                lambda: layers.Conv1D(
                    n, 2, padding=self.pick("same", "causal", "valid"), name=name
                ),
                lambda: layers.Conv1D(
                    groups * self.pick(1, 2), 2, padding="same", groups=groups, name=name
                ),
                lambda: layers.Conv1DTranspose(n, 2, padding="same", name=name),
                lambda: layers.SeparableConv1D(
                    n, 2, padding="same", depth_multiplier=self.pick(1, 2), name=name
                ),
                lambda: layers.DepthwiseConv1D(
                    2, padding="same", depth_multiplier=self.pick(1, 2), name=name
                ),
            )(),
            x,
        )

    def pool1(self, x: Any) -> Any:
        name = self.name("pool")
        kinds: list[Any] = [
            lambda: layers.MaxPooling1D(2, 1, padding="same", name=name),
            lambda: layers.AveragePooling1D(2, 1, padding="same", name=name),
            lambda: layers.GlobalAveragePooling1D(name=name),
            lambda: layers.GlobalMaxPooling1D(keepdims=self.flag(), name=name),
            lambda: layers.ZeroPadding1D(1, name=name),
            lambda: layers.Cropping1D(1, name=name),
            lambda: layers.UpSampling1D(2, name=name),
        ]
        if hasattr(layers, "AdaptiveAveragePooling1D"):
            kinds += [
                lambda: layers.AdaptiveAveragePooling1D(2, name=name),
                lambda: layers.AdaptiveMaxPooling1D(2, name=name),
            ]
        return self.put(self.pick(*kinds)(), x)

    def rnn(self, x: Any) -> Any:
        name = self.name("rnn")
        n = self.units()
        kwargs = {"return_sequences": self.flag(), "name": name}
        unroll = {"unroll": True} if self.flag(6) and x.shape[1] is not None else {}
        if x.shape[0] is not None and not self.flag(3):
            kwargs["stateful"] = True
        cells = (layers.GRUCell, layers.LSTMCell, layers.SimpleRNNCell)
        kinds: list[Any] = [
            lambda: layers.SimpleRNN(n, **kwargs, **unroll),
            lambda: layers.GRU(n, reset_after=self.flag(), **kwargs, **unroll),
            lambda: layers.LSTM(n, use_bias=not self.flag(4), **kwargs, **unroll),
            lambda: layers.RNN(
                layers.StackedRNNCells(
                    [layers.GRUCell(n), self.pick(layers.LSTMCell, layers.SimpleRNNCell)(3)]
                ),
                **kwargs,
            ),
            lambda: layers.RNN([self.pick(*cells)(n), self.pick(*cells)(2)], **kwargs),
            lambda: layers.RNN(self.pick(*cells)(n), **kwargs),
            lambda: layers.LSTM(n, go_backwards=True, **kwargs),
        ]
        return self.put(self.pick(*kinds)(), x)

    def rnn_states(self, x: Any) -> Any:
        """States that one layer returns and another one starts from."""
        n = self.units()
        kind = self.pick(layers.GRU, layers.LSTM, layers.SimpleRNN)
        sequence, *states = kind(
            n, return_sequences=True, return_state=True, name=self.name("encoder")
        )(x)
        if self.flag(3):
            return layers.Concatenate(name=self.name("concat"))([*states, *states[:1]])
        given = self.pick(sequence, x)
        return kind(n, return_sequences=self.flag(), name=self.name("decoder"))(
            given, initial_state=states if len(states) > 1 else states[0]
        )

    def bidirectional(self, x: Any) -> Any:
        kind = self.pick(layers.GRU, layers.LSTM, layers.SimpleRNN)
        name = self.name("bidirectional")
        n, kwargs = self.units(), {"return_sequences": self.flag()}
        backward = None
        if self.flag(4):
            other = self.pick(kind, layers.GRU)
            backward = other(n, go_backwards=True, name=f"{name}_backward", **kwargs)
        mode = self.pick("concat", "sum", "mul", "ave")
        forward = kind(n, name=f"{name}_inner", **kwargs)
        return self.put(
            layers.Bidirectional(forward, merge_mode=mode, backward_layer=backward, name=name), x
        )

    def time_distributed(self, x: Any) -> Any:
        name = self.name("time_distributed")
        kinds: list[Any] = [
            lambda: layers.Dense(self.units(), "relu", name=f"{name}_inner"),
            lambda: layers.BatchNormalization(name=f"{name}_inner"),
            lambda: layers.LayerNormalization(name=f"{name}_inner"),
            lambda: Residual(self.units(), name=f"{name}_inner"),
            lambda: keras.Sequential(
                [keras.Input(batch_shape=(x.shape[0], *x.shape[2:]))]
                + [layers.Dense(n, "relu") for n in (self.units(), self.units())],
                name=f"{name}_inner",
            ),
        ]
        if len(x.shape) == 5:
            kinds += [
                lambda: layers.Conv2D(self.units(), 2, name=f"{name}_inner"),
                lambda: layers.GlobalAveragePooling2D(name=f"{name}_inner"),
            ]
        if len(x.shape) == 4:
            kinds.append(lambda: layers.Conv1D(self.units(), 2, name=f"{name}_inner"))
        return self.put(layers.TimeDistributed(self.pick(*kinds)(), name=name), x)

    def attention(self, x: Any) -> Any:
        name = self.name("attention")
        others = [y for y in self.pool if len(y.shape) == 3]
        y = x if self.flag() else self.pick(*others)
        heads, key_dim = self.pick(2, 1, 3), self.pick(2, 3)
        kind = self.pick(
            "multi_head", "multi_head", "grouped", "dot", "additive", "residual", "keyed"
        )
        if kind == "multi_head":
            layer: Any = layers.MultiHeadAttention(
                heads,
                key_dim,
                value_dim=self.pick(None, 2, 4),
                output_shape=self.pick(None, 5),
                use_bias=not self.flag(4),
                name=name,
            )
            if self.flag(5):
                made, scores = layer(x, y, return_attention_scores=True)
                return self.pick(made, scores)
            return layer(x, y, use_causal_mask=self.flag(5))
        if kind == "grouped":
            groups = self.pick(1, 2)
            return layers.GroupQueryAttention(key_dim, groups * self.pick(1, 2), groups, name=name)(
                x, y
            )
        if kind == "keyed":
            keys = self.pick(*(z for z in others if z.shape[1] == y.shape[1]))
            return layers.MultiHeadAttention(heads, key_dim, name=name)(x, y, keys)
        if kind == "residual":
            layer = layers.MultiHeadAttention(heads, key_dim, name=name)
            return layers.Add(name=self.name("sum"))([x, layer(x, x)])
        inputs = [x, *([y] if y.shape[-1] == x.shape[-1] else [x])]
        if self.flag():  # projections, as they mostly come
            n = self.units()
            inputs = [
                layers.Dense(n, name=self.name(part))(tensor)
                for part, tensor in zip(("query", "value", "key"), (x, y, y), strict=True)
            ]
        if kind == "dot":
            mode = self.pick("dot", "dot", "concat")
            return layers.Attention(use_scale=self.flag(), score_mode=mode, name=name)(inputs)
        return layers.AdditiveAttention(use_scale=not self.flag(4), name=name)(inputs)

    def attention_axes(self, x: Any) -> Any:
        """Attention along one axis of an image, or along both."""
        axes = self.pick((1,), (2,), (1, 2))
        layer = layers.MultiHeadAttention(2, 2, attention_axes=axes, name=self.name("attention"))
        return layer(x, x)

    # Steps on images and volumes

    def channels_first(self, x: Any) -> Any:
        """Layers for which the axis after the batch has the channels."""
        if BACKEND == "tensorflow":
            raise LookupError("TensorFlow doesn't run it on a CPU")
        rank = len(x.shape) - 2
        n, name, first = self.units(), self.name("first"), {"data_format": "channels_first"}
        same = {"padding": "same", **first}
        conv = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
        kinds: list[Any] = [
            lambda: conv(n, 2, activation="relu", name=name, **same),
            lambda: conv(n, 1, name=name, **same),
            lambda: layers.BatchNormalization(1, name=name),
            lambda: layers.Flatten(name=name, **first),
            lambda: (
                layers.GlobalAveragePooling1D,
                layers.GlobalMaxPooling2D,
                layers.GlobalAveragePooling3D,
            )[rank - 1](name=name, **first),
            lambda: (layers.MaxPooling1D, layers.AveragePooling2D, layers.MaxPooling3D)[rank - 1](
                2, 1, name=name, **same
            ),
        ]
        if rank == 1:
            kinds += [
                lambda: layers.SeparableConv1D(n, 2, name=name, **same),
                lambda: layers.DepthwiseConv1D(2, name=name, **same),
                lambda: layers.Conv1DTranspose(n, 2, name=name, **same),
            ]
        if rank == 2:
            kinds += [
                lambda: layers.SeparableConv2D(n, 2, name=name, **same),
                lambda: layers.DepthwiseConv2D(2, depth_multiplier=2, name=name, **same),
                lambda: layers.Conv2DTranspose(n, 2, name=name, **same),
                lambda: layers.UpSampling2D(2, name=name, **first),
                lambda: layers.ZeroPadding2D(1, name=name, **first),
                lambda: layers.SpatialDropout2D(0.0, name=name, **first),
                lambda: layers.ConvLSTM1D(n, 2, name=name, return_sequences=self.flag(), **same),
            ]
        return self.put(self.pick(*kinds)(), x)

    def conv2(self, x: Any) -> Any:
        name = self.name("conv")
        n = self.units()
        channels = x.shape[-1]
        groups = self.pick(*(g for g in (1, 2, channels) if channels % g == 0))
        return self.put(
            self.pick(
                lambda: layers.Conv2D(
                    n,
                    self.pick(1, 2, 3, (1, 3)),
                    padding="same",
                    use_bias=self.pick(True, False),
                    activation=self.pick("relu", "linear"),
                    name=name,
                ),
                lambda: layers.Conv2D(n, 2, strides=self.pick(1, 2), padding="same", name=name),
                lambda: layers.Conv2D(n, 2, dilation_rate=2, padding="same", name=name),
                lambda: layers.Conv2D(
                    groups * self.pick(1, 2), 2, padding="same", groups=groups, name=name
                ),
                lambda: layers.Conv2DTranspose(
                    n, 2, strides=self.pick(1, 2), padding="same", name=name
                ),
                lambda: layers.SeparableConv2D(
                    n, 2, padding="same", depth_multiplier=self.pick(1, 2), name=name
                ),
                lambda: layers.DepthwiseConv2D(
                    2, padding="same", depth_multiplier=self.pick(1, 2), name=name
                ),
            )(),
            x,
        )

    def pool2(self, x: Any) -> Any:
        name = self.name("pool")
        kinds: list[Any] = [
            lambda: layers.MaxPooling2D(2, 1, padding="same", name=name),
            lambda: layers.AveragePooling2D(2, 1, padding="same", name=name),
            lambda: layers.GlobalAveragePooling2D(keepdims=self.flag(), name=name),
            lambda: layers.GlobalMaxPooling2D(name=name),
            lambda: layers.ZeroPadding2D(1, name=name),
            lambda: layers.Cropping2D(1, name=name),
            lambda: layers.UpSampling2D(2, name=name),
        ]
        if hasattr(layers, "AdaptiveAveragePooling2D"):
            kinds += [
                lambda: layers.AdaptiveAveragePooling2D(2, name=name),
                lambda: layers.AdaptiveMaxPooling2D(2, name=name),
            ]
        return self.put(self.pick(*kinds)(), x)

    def squeeze_excite(self, x: Any) -> Any:
        squeezed = layers.GlobalAveragePooling2D(keepdims=True, name=self.name("squeeze"))(x)
        reduced = layers.Dense(self.units(), "relu", name=self.name("reduce"))(squeezed)
        gate = layers.Dense(x.shape[-1], "sigmoid", name=self.name("gate"))(reduced)
        return layers.Multiply(name=self.name("excite"))([x, gate])

    def conv_lstm1(self, x: Any) -> Any:
        return self.put(
            layers.ConvLSTM1D(
                self.units(),
                2,
                padding="same",
                return_sequences=self.flag(),
                name=self.name("lstm"),
            ),
            x,
        )

    def conv_lstm2(self, x: Any) -> Any:
        return self.put(
            layers.ConvLSTM2D(
                self.units(),
                2,
                padding="same",
                return_sequences=self.flag(),
                name=self.name("lstm"),
            ),
            x,
        )

    def conv_lstm3(self, x: Any) -> Any:
        return self.put(
            layers.ConvLSTM3D(
                self.pick(2, 1, 3),
                self.pick(1, 2),
                padding="same",
                return_sequences=self.flag(),
                name=self.name("lstm"),
            ),
            x,
        )

    def conv3(self, x: Any) -> Any:
        name = self.name("conv")
        n = self.units()
        return self.put(
            self.pick(
                lambda: layers.Conv3D(n, 2, padding="same", name=name),
                lambda: layers.Conv3D(n, 1, activation="relu", name=name),
                lambda: layers.Conv3DTranspose(n, 2, padding="same", name=name),
            )(),
            x,
        )

    def pool3(self, x: Any) -> Any:
        name = self.name("pool")
        kinds: list[Any] = [
            lambda: layers.MaxPooling3D(2, 1, padding="same", name=name),
            lambda: layers.AveragePooling3D(2, 1, padding="same", name=name),
            lambda: layers.GlobalAveragePooling3D(name=name),
            lambda: layers.GlobalMaxPooling3D(name=name),
            lambda: layers.ZeroPadding3D(1, name=name),
            lambda: layers.Cropping3D((0, 1, 1), name=name),
            lambda: layers.UpSampling3D((1, 1, 2), name=name),
        ]
        if hasattr(layers, "AdaptiveAveragePooling3D"):
            kinds += [
                lambda: layers.AdaptiveAveragePooling3D(2, name=name),
                lambda: layers.AdaptiveMaxPooling3D(2, name=name),
            ]
        return self.put(self.pick(*kinds)(), x)

    # Operations of keras.ops

    def op_listed(self, x: Any) -> Any:
        """Any operation that is followed, on two tensors of the same shape."""
        groups: dict[str, Any] = {"elements": ELEMENTS}
        if len(x.shape) > 2:
            groups["axes"] = AXES
        if len(x.shape) == 3:
            groups |= {"last": LAST, "shapes": SHAPES}
        if len(x.shape) == 4:
            groups |= {"images": IMAGES_OPS, "image": IMAGES_OPS}
        chosen = self.pick(*groups)
        y = self.like(x)
        if chosen in ("last", "shapes"):  # the examples count four units
            x, y = (
                self.put(layers.Dense(4, name=self.name("listed")), ops.softplus(z)) for z in (x, y)
            )
        name = self.pick(*groups[chosen])
        functions = groups[chosen][name]
        function = self.pick(*functions) if isinstance(functions, tuple) else functions
        made = function(self.bounded(x), self.bounded(y, -0.0321))
        self.lines.append(f"  {name}:")
        return made

    def op_elementwise(self, x: Any) -> Any:
        return self.pick(
            ops.relu,
            ops.tanh,
            lambda y: 0.5 * y + 1.0,
            ops.sin,
            lambda y: ops.clip(y, -1.0, 1.0),
            lambda y: ops.where(y > 0.123, y, 0.1 * y),
            lambda y: ops.maximum(y, 0.2),
            lambda y: y / (1.0 + ops.abs(y)),
            lambda y: ops.sqrt(ops.square(y) + 0.1),
            lambda y: ops.stop_gradient(y) * ops.sigmoid(y),
            lambda y: ops.add(y, ops.ones_like(y)),
        )(x)

    def op_binary(self, x: Any) -> Any:
        y = self.like(x)
        return self.pick(
            ops.add,
            ops.multiply,
            ops.maximum,
            lambda a, b: ops.where(a > 0.123, a, b),
            lambda a, b: a - 0.3 * b,
            ops.logaddexp,
        )(x, y)

    def op_reduce(self, x: Any) -> Any:
        axis, keep = self.axis(x), self.flag()
        return self.pick(
            ops.mean,
            ops.sum,
            ops.max,
            ops.min,
            ops.logsumexp,
            ops.prod,
            lambda y, axis, keepdims: ops.var(y, axis=axis, keepdims=keepdims),
            lambda y, axis, keepdims: ops.any(y > 0.123, axis=axis, keepdims=keepdims),
            lambda y, axis, keepdims: ops.norm(y + 0.1, axis=axis, keepdims=keepdims),
        )(x, axis=axis, keepdims=keep)

    def op_cut(self, x: Any) -> Any:
        n = x.shape[-1]
        return self.pick(
            lambda: ops.split(x, 2, axis=-1)[1],
            lambda: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1),
            lambda: ops.multiply(*ops.split(x, 2, axis=-1)),
            lambda: ops.split(x, [1], axis=-1)[self.source.below(2)],
            lambda: x[..., : n // 2],
            lambda: x[..., 1:],
            lambda: x[..., ::2],
            lambda: x[..., -1:],
            lambda: x[:, 1:],
            lambda: ops.flip(x, 1),
            lambda: x[:, 0],
            lambda: x[..., None],
            lambda: ops.take(x, np.array([0, n - 1, 0]), axis=-1),
            lambda: ops.take(x, 0, axis=self.axis(x)),
            lambda: ops.slice(x, [0] * len(x.shape), [2, *x.shape[1:]]) if self.flag(9) else x,
            lambda: ops.glu(x, axis=-1),
            lambda: ops.unstack(x, axis=self.axis(x))[0],
        )()

    def op_move(self, x: Any) -> Any:
        rank = len(x.shape)
        n = x.shape[-1]
        return self.pick(
            lambda: ops.transpose(x, [0, *reversed(range(1, rank))]),
            lambda: ops.swapaxes(x, 1, -1),
            lambda: ops.moveaxis(x, -1, 1),
            lambda: ops.expand_dims(x, self.pick(-1, 1)),
            lambda: ops.squeeze(ops.expand_dims(x, 1), 1),
            lambda: ops.flip(x, self.axis(x)),
            lambda: ops.roll(x, 1, self.axis(x)),
            lambda: ops.repeat(x, 2, axis=self.axis(x)),
            lambda: ops.tile(x, [1] * (rank - 1) + [2]),
            lambda: ops.pad(x, [(0, 0)] * (rank - 1) + [(1, 0)]),
            lambda: ops.pad(x, [(0, 0), (1, 1), *[(0, 0)] * (rank - 2)]),
            lambda: ops.cumsum(x, axis=self.axis(x)),
            lambda: (
                ops.broadcast_to(ops.expand_dims(x, 1), (*x.shape[:1], 2, *x.shape[1:]))
                if x.shape[0]
                else ops.expand_dims(x, 1) * np.ones((1, 2, *[1] * (rank - 1)))
            ),
            lambda: x + np.linspace(0, 1, n),
            lambda: x * np.linspace(0.5, 1, x.shape[1]).reshape(-1, *[1] * (rank - 2)),
        )()

    def op_reshape(self, x: Any) -> Any:
        """Heads and back again, as attention is written by hand."""
        n = x.shape[-1]
        part = self.pick(*(k for k in range(1, n + 1) if n % k == 0))
        space = [-1 if size is None else size for size in x.shape[1:-1]]
        y = ops.reshape(x, (-1, *space, n // part, part)) if -1 not in space else None
        if y is None:
            return ops.rearrange(x, "b t (h d) -> b t h d", d=part)
        if self.flag():
            y = ops.swapaxes(y, -1, -2)
        if self.flag():
            y = ops.reshape(self.op_elementwise(y), (-1, *space, n))
        return y

    def op_normalize(self, x: Any) -> Any:
        axis = self.axis(x)
        return self.pick(
            lambda: ops.softmax(x, axis=axis),
            lambda: ops.log_softmax(x, axis=axis),
            lambda: ops.normalize(x + 0.1, axis=axis),
            lambda: ops.rms_normalization(x, axis=-1),
            lambda: ops.layer_normalization(x, axis=-1),
            lambda: (
                (x - ops.mean(x, axis=axis, keepdims=True))
                / (0.1 + ops.std(x, axis=axis, keepdims=True))
            ),
            lambda: ops.top_k(x, 1)[0],
            lambda: ops.one_hot(ops.argmax(x, axis=-1), x.shape[-1]),
        )()

    def op_stack(self, x: Any) -> Any:
        axis = self.pick(-1, 1)
        y = ops.stack([x, self.like(x)], axis=axis)
        return ops.mean(y, axis=axis) if self.flag() else y

    def op_product(self, x: Any) -> Any:
        """Products of two computed tensors: attention written by hand, covariances."""
        rank = len(x.shape)
        if rank == 2:
            y = self.pick(*(y for y in self.pool if len(y.shape) == 2))
            return self.pick(
                lambda: ops.einsum("bi,bj->bij", x, y),
                lambda: ops.einsum("bi,bi->b", x, self.like(x))[:, None],
                lambda: ops.matmul(x[:, None, :], self.like(x)[:, :, None])[:, 0],
            )()
        y = self.like(x)
        last = [1.0 / math.sqrt(x.shape[-1])]
        if rank == 3:
            return self.pick(
                lambda: ops.matmul(x, ops.transpose(y, (0, 2, 1))) * last[0],
                lambda: ops.einsum("btd,bsd->bts", x, y),
                lambda: ops.einsum("btd,bte->bde", x, y),
                lambda: ops.matmul(ops.softmax(ops.matmul(x, ops.swapaxes(y, 1, 2))), y),
                lambda: ops.einsum("btd->bd", x),
                lambda: ops.tensordot(x, np.ones((x.shape[-1], 2)), axes=1),
            )()
        return self.pick(
            lambda: ops.einsum("...d,...d->...", x, y),
            lambda: ops.matmul(ops.swapaxes(x, -1, -2), y),
            lambda: ops.dot_product_attention(x, y, y) if rank == 4 else x,
        )()


# The examples of the operations' own tests. Left out: what mixes a batch or counts its
# examples, what computes in float32, and places, of which two equal values have either.
LEFT_OUT = test_ops.words(
    """
    vstack vsplit segment_max segment_min segment_prod segment_sum rearrange dot slice tensordot
    view imag view_as_complex view_as_real argsort argmax argmin nanargmax nanargmin argpartition
    take_along_axis
    """
)


def _listed(examples: dict[str, Any]) -> dict[str, Any]:
    """The examples that Keras runs, by name."""
    left_out = {*LEFT_OUT, *test_ops.NOT_RUN.get(BACKEND, ())}
    return {name: known for name, known in sorted(examples.items()) if name not in left_out}


ELEMENTS, AXES = _listed(test_ops.ELEMENTS), _listed(test_ops.AXES)
LAST, SHAPES = _listed(test_ops.LAST), _listed(test_ops.SHAPES)
IMAGES_OPS = _listed(test_ops.IMAGES)
IMAGE_LAYERS = {
    name: make for name, make in test_image_preprocessing.CASES.items() if hasattr(layers, name)
}

ANY = [
    "dense", "branch", "activation", "batch_norm", "layer_norm", "merge", "dense", "einsum_dense",
    "pre_norm", "composite", "nested", "shared", "again", "regularization", "reshape",
    "reshaped_merge", "flatten", "permute", "concat_axis", "dot", "repeat_vector", "refused",
    "preprocessing", "reverse_embedding",
    "op_elementwise", "op_binary", "op_reduce", "op_cut", "op_cut", "op_move", "op_move",
    "op_reshape", "op_normalize", "op_stack", "op_product", "op_listed", "op_listed", "hashing",
]  # fmt: skip
SEQUENCES = ["rnn", "attention", "conv1", "attention", "rnn", "rnn_states", "bidirectional",
             "pool1", "time_distributed", "conv1", "attention", "channels_first"]  # fmt: skip
IMAGES = ["conv2", "conv2", "conv2", "pool2", "squeeze_excite", "conv_lstm1",
          "time_distributed", "pool2", "channels_first", "attention_axes",
          "image_preprocessing"]  # fmt: skip
VOLUMES = [
    "conv3",
    "conv3",
    "pool3",
    "pool3",
    "conv_lstm2",
    "conv_lstm2",
    "time_distributed",
    "channels_first",
]
FILMS = ["conv_lstm3"] * 12 + ["time_distributed"] * 2


HAVE_IDENTITY = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
IDEMPOTENT = ("relu", "linear")


def random_operation(source: Source, model: Any) -> Any:
    """One operation, or a list of two, on layers that the model has."""
    if source.below(6) == 5:
        return [_operation(source, model), _operation(source, model)]
    return _operation(source, model)


def _operation(source: Source, model: Any) -> Any:
    def pick(*values: Any) -> Any:
        return values[source.below(len(values))]

    facts = list(Draft(model, 0).layers())
    if not facts:
        return n2n.Wider(factor=1.5)
    # Mostly layers whose units can grow, sometimes any that makes units, or any at all.
    free = [one for one in facts if any(w.obstacle is None for w in widths_of(one.main))]
    makers = [one for one in facts if one.units]
    wanted = source.below(16)
    kind = source.below(18)
    if wanted < 14 and kind in (10, 11):  # what has an identity, mostly
        known = [one for one in free if isinstance(one.operation, HAVE_IDENTITY)]
        named = [one for one in known if one.operation.activation.__name__ in IDEMPOTENT]
        free = (known if wanted < 2 else named) or known or free
    chosen = pick(*((free if wanted < 14 else makers if wanted < 15 else facts) or facts))
    path = chosen.path
    how = {"new_units": pick("replicate", "fresh"), "shares": pick("random", "even")}
    now = chosen.main.size or 1
    if kind in (0, 1):
        return n2n.Wider(path, factor=pick(1.5, 2, 1.2, 3), **how)
    if kind in (2, 3):
        return n2n.Wider(path, units=now + pick(1, 2, 3, now), round_to=pick(1, 1, 2, 4), **how)
    if kind in (4, 5, 6):
        return n2n.Wider(factor=pick(1.5, 2), **how)
    if kind == 7:
        return n2n.Wider(
            pick("*", f"*{path[-2:]}", "*", f"*{path[:3]}*", "*dense*"), factor=pick(1.5, 2), **how
        )
    if kind == 8 and chosen.units:
        parts = [
            part
            for part, units in chosen.units.items()
            if any(width.obstacle is None for width in widths_of(units))
        ]
        part = pick(*(parts or chosen.units))
        size = chosen.units[part].size or 1
        return n2n.Wider(path, units={part: size * 2 if pick(0, 1) else size + 1}, **how)
    if kind == 9:
        return n2n.Wider({path: now * 2}, **how)
    if kind == 10:
        return n2n.Deeper(path, count=pick(1, 2), batch_norm=pick(None, False, True))
    if kind == 11:
        return n2n.Deeper(path, units=now + pick(0, 1, 3), activation=pick(None, "linear"))
    if kind == 12:
        return n2n.Deeper(path, form=pick("prelu", "auto", "factor"))
    if kind in (13, 14):
        named = pick(*(call.path for call in Draft(model, 0).graph.calls), path)
        return n2n.Deeper(named, count=pick(1, 1, 2), form="residual")
    if kind == 15:
        return n2n.LargerKernel(pick(path, None, None), kernel_size=pick(2, 3, 4, 5))
    if kind == 16:
        return n2n.Narrower(pick(path, None, None))
    return n2n.NewClasses(
        pick(*(one.path for one in facts)), pick(1, 3), start=pick("zeros", "mean", "suppressed")
    )


@dataclasses.dataclass
class Outcome:
    """What came of one example.

    Args:
        kinds: What each growth ended in: `"grown"`, `"nothing to do"`, or the error and why.
        types: The types of layers and operations in the model, if it grew.
        changed: Those of layers that changed.
        lines: The model and the operations in words.
        failed: The steps that Keras refused to build.
        difference: The largest difference, relative to the outputs.
    """

    kinds: list[str] = dataclasses.field(default_factory=list)
    types: set[str] = dataclasses.field(default_factory=set)
    changed: set[str] = dataclasses.field(default_factory=set)
    lines: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    difference: float = 0.0


class Mistake(AssertionError):
    """A growth that neither preserved the function nor refused."""


def check(source: Source, outcome: Outcome | None = None) -> Outcome:
    """Builds a random model and grows it once or twice.

    Args:
        source: Where choices come from.
        outcome: Filled in on the way, to tell of an example that fails.

    Returns:
        The outcome.

    Raises:
        Mistake: If the function changed, or a refusal left something behind.
        Exception: Whatever the growth raises that isn't a `GrowthError`.
    """
    outcome = outcome or Outcome()
    builder = Builder(source)
    outcome.lines, outcome.failed = builder.lines, builder.failed
    model, symbols = builder.model()
    randomize(model)
    _randomize_states(model)
    x = _data(symbols)
    try:
        before = _run(model, x)
    except Exception as error:  # what Keras builds, but doesn't run
        outcome.kinds.append("discarded: doesn't run")
        outcome.failed.append(f"run: {type(error).__name__}: {str(error)[:200]}")
        return outcome
    if not all(np.all(np.isfinite(y)) and np.max(np.abs(y), initial=0) < LARGEST for y in before):
        outcome.kinds.append("discarded: outputs too large")
        return outcome
    native = builder.native
    for number in range(1 + source.below(2)):
        operation = random_operation(source, model)
        if any(isinstance(one, n2n.NewClasses) for one in as_operations(operation)):
            _new_classes(model, operation, number, outcome, x)
            break  # the outputs are larger now
        builder.lines.append(f"grow: {operation}")
        state = _state(model)
        try:
            grown, planned, rebuilt = _grow(model, operation, number, source.below(6) == 5)
        except n2n.GrowthError as error:
            outcome.kinds.append(_kind(error))
            if _state(model) != state:
                raise Mistake("a refused growth changed weights, sizes or nodes") from error
            if BACKEND != "jax" and max_difference(_run(model, x), before) > 0:
                raise Mistake("a refused growth changed outputs") from error
            continue
        if planned.empty:
            outcome.kinds.append("nothing to do")
            continue
        if grown is not model:
            builder.lines[-1] += ", on a clone"
            if _state(model) != state:
                raise Mistake("the growth of a clone changed its teacher")
            model = grown
        outcome.kinds.append("grown")
        outcome.types |= _types(model)
        outcome.changed |= {layer.kind for s in planned.steps for layer in s.layers}
        if model.count_params() != planned.parameters_after:
            raise Mistake(
                f"{model.count_params()} parameters, {planned.parameters_after} were planned"
            )
        after = _run(model, x)
        inserted = [i.layer_class for step in planned.steps for i in step.insertions]
        half = len(before) // 2
        compared = half if layers.BatchNormalization in inserted else len(before)
        scale = max(1e-2, *(float(np.max(np.abs(y), initial=0.0)) for y in before))
        difference = max_difference(after[:compared], before[:compared]) / scale
        outcome.difference = max(outcome.difference, difference)
        if not difference <= TOLERANCES[keras.config.floatx()]:
            modes = [
                max_difference(after[part], before[part]) / scale
                for part in (slice(half), slice(half, None))
            ]
            raise Mistake(f"the outputs moved by {modes[0]:.1e}, in training by {modes[1]:.1e}")
        before = after
        native &= rebuilt
        if native:
            _check_native(model, x, after)
    return outcome


def _new_classes(model: Any, operation: Any, seed: int, outcome: Outcome, x: Any) -> None:
    """Grows a head; the growth itself compares the outputs of the old classes."""
    outcome.lines.append(f"grow: {operation}")
    state, before = _state(model), _run(model, x)
    half = len(before) // 2
    try:
        report = n2n.grow(model, operation, seed=seed, verify=x)
    except n2n.errors.VerificationError as error:
        raise Mistake(f"old classes moved: {error}") from error
    except n2n.GrowthError as error:
        outcome.kinds.append(_kind(error))
        if _state(model) != state:
            raise Mistake("a refused growth changed weights, sizes or nodes") from error
        return
    outcome.kinds.append("grown")
    outcome.types |= _types(model)
    if model.count_params() != report.plan.parameters_after:
        raise Mistake(f"{model.count_params()} parameters, {report.plan.parameters_after} planned")
    sizes = [sum(y.shape) for y in before[:half]]
    if not sum(sum(y.shape) for y in _run(model, x)[:half]) > sum(sizes):
        raise Mistake("no output has more classes")


def _grow(model: Any, operation: Any, seed: int, clone: bool) -> tuple[Any, Any, bool]:
    """Grows a model, or a clone of it.

    Returns:
        What grew, the plan, and whether its configuration can be built again: a layer
        whose code leaves an epsilon at its default can't say that it changed.
    """
    if clone:
        planned = n2n.plan(model, operation, seed=seed)
        student = n2n.clone_and_grow(model, operation, seed=seed, verify=False)
        return student, planned, False
    report = n2n.grow(model, operation, seed=seed, verify=False)
    rebuilt = not any("can't be rebuilt" in note for note in report.notes)
    return model, report.plan, rebuilt


def _check_native(model: Any, x: Any, grown: list[np.ndarray]) -> None:
    """The configuration builds a model of the same shapes, which computes the same."""
    native = type(model).from_config(model.get_config())
    if not isinstance(model, keras.Function):
        native(x)
    shapes, wanted = _shapes(model), _shapes(native)
    if shapes != wanted:
        differ = [key for key in shapes.keys() | wanted if shapes.get(key) != wanted.get(key)]
        raise Mistake(f"shapes differ from a native model's at {differ[:3]}")
    native.set_weights(model.get_weights())
    for state, value in zip(_states(native), _states(model), strict=True):
        state.assign(value)
    for layer in native._flatten_layers():
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()
    if BACKEND == "jax":
        return
    difference = max_difference(_run(native, x), grown)
    if not difference <= 1e-5 * max(1.0, *(float(np.max(np.abs(y), initial=0.0)) for y in grown)):
        raise Mistake(f"a native model with the same weights differs by {difference:.1e}")


def _states(model: Any) -> list[Any]:
    """What stateful layers carry from batch to batch."""
    states = [
        getattr(layer, "states", None)
        for layer in model._flatten_layers()
        if getattr(layer, "stateful", False) and hasattr(layer, "cell")
    ]
    return [state for state in keras.tree.flatten(states) if isinstance(state, keras.Variable)]


def _randomize_states(model: Any) -> None:
    random = np.random.default_rng(1)
    for state in _states(model):
        state.assign(random.standard_normal(tuple(state.shape)))


def _shapes(model: Any) -> dict[str, Any]:
    """The shapes of the tensors in a model, and of its weights."""
    found: dict[str, Any] = {"weights": [tuple(w.shape) for w in model.weights]}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Function):
            for node in (node for nodes in layer._nodes_by_depth.values() for node in nodes):
                made = node.operation
                # An older Keras gives operations new names.
                name = made.name if isinstance(made, keras.Layer) else type(made).__name__
                # Masks come with the tensors, whether or not the graph says so.
                parts = [x for x in (*node.input_tensors, *node.outputs) if x.dtype != "bool"]
                if not {x.dtype for x in node.outputs} - {"bool"}:
                    continue
                tensors = [tuple(x.shape) for x in parts]
                found.setdefault(f"{layer.name}/{name}", []).append(tensors)
    return {
        key: sorted(value, key=repr) if key != "weights" else value for key, value in found.items()
    }


def _parts(model: Any) -> Iterator[Any]:
    """The layers and operations of a model, and those of models and layers in it."""
    for layer in model._flatten_layers():
        yield layer
        if isinstance(layer, keras.Function):
            yield from (part for part in layer.operations if not isinstance(part, keras.Layer))


def _types(model: Any) -> set[str]:
    """The types of layers and operations, those inside opened layers included."""
    operations = [call.operation for _, call in read(model).all_calls()]
    return {
        type(part).__name__ if isinstance(part, keras.Layer) else f"ops.{type(part).__name__}"
        for part in (*_parts(model), *operations)
    }


def _data(symbols: Any, batch: int = BATCH) -> Any:
    """Random inputs for symbolic ones; integers are below six."""
    random = np.random.default_rng(0)

    def make(tensor: Any) -> np.ndarray:
        shape = [batch, *(4 if size is None else size for size in tensor.shape[1:])]
        if "int" in tensor.dtype:
            return random.integers(0, 6, shape).astype(tensor.dtype)
        return random.standard_normal(shape).astype(tensor.dtype)

    return keras.tree.map_structure(make, symbols)


def _run(model: Any, x: Any) -> list[np.ndarray]:
    """The outputs at inference, then those in training mode."""
    return both_modes(model, x)


def _state(model: Any) -> Any:
    """All that a refused growth must leave: weights, configuration, nodes."""
    try:
        config = repr(model.get_config())
    except Exception:  # a Lambda's function, say
        config = ""
    return (
        [(w.path, array(w).tobytes(), tuple(w.shape)) for w in (*model.weights, *_states(model))],
        re.sub(r"0x[0-9a-f]+", "", config),
        [(id(part), len(part._inbound_nodes), len(part._outbound_nodes)) for part in _parts(model)],
    )


def _kind(error: Exception) -> str:
    """The error and what it blames, without names and sizes."""
    text = str(error)
    name = type(error).__name__
    blamed = re.search(r"\(([A-Z]\w*)\) ([a-z][^;:(.]{3,70})", text.split("Received:")[0])
    if blamed:
        return f"{name}: ({blamed[1]}) {re.sub(r'[0-9]+', 'n', blamed[2]).strip()}"
    for fixed in ("is an output of the model", "has no units of its own", "tied to those of"):
        if fixed in text:
            return f"{name}: {fixed}"
    reason = re.sub(r"'[^']*'", "...", text.split("Received:")[0].split(": ", 1)[-1])
    return f"{name}: {re.sub(r'[0-9]+', 'n', reason)[:70].strip()}"


def shrink(seed: int, choices: list[int], fails: Callable[[Source], bool], tries: int) -> list[int]:
    """The simplest choices found that still fail: shorter, then with zeros.

    Args:
        seed: The seed of the source.
        choices: Choices that fail.
        fails: Whether the choices of a source fail.
        tries: How often to try.

    Returns:
        The choices, to be followed by zeros.
    """
    best = list(choices)

    def attempt(candidate: list[int]) -> bool:
        nonlocal best, tries
        if tries <= 0 or candidate == best:
            return False
        tries -= 1
        source = Seeded(seed, candidate, "zero")
        if not fails(source):
            return False
        best = source.choices if len(source.choices) <= len(candidate) else candidate
        return True

    for size in (16, 8, 4, 2, 1):
        at = 0
        while at < len(best):
            if not attempt(best[:at] + best[at + size :]):
                at += size
    for at in range(len(best) - 1, -1, -1):
        if at < len(best) and best[at]:
            attempt([*best[:at], 0, *best[at + 1 :]])
    for size in (4, 2, 1):
        at = 0
        while at < len(best):
            if not attempt(best[:at] + best[at + size :]):
                at += size
    return best
