"""Random models: functional ones of any steps, sequential and subclassed ones of layers."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

from tests.support.backend import BACKEND
from tests.support.random_models import steps
from tests.support.random_models.composites import (
    Network,
    Subclassed,
)
from tests.support.random_models.draw import ACTIVATIONS, BATCH, OLDER, Draw
from tests.support.random_models.steps.layers import chain, vector


class Builder(Draw):
    """Makes a random model, step by step."""

    def model(self, name: str | None = None) -> tuple[Any, Any]:
        """A random model, and the symbolic tensors that say what it takes."""
        style = self.below(16)
        if style in (12, 13):
            return self.sequential(name)
        if style in (14, 15):
            return self.subclassed(name, style == 15)
        self.batch = BATCH if self.flag(10) else None
        inputs = [self.input() for _ in range(self.pick(1, 1, 1, 2, 2, 3))]
        self.pool = [self.stem(self.floating(x)) for x in inputs]
        self.add_steps(self.pick(2, 3, 4, 5, 6, 8))
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
        self.add_steps(self.pick(1, 2, 3))
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
            model: Any = Network([first, *chain(self, x)], self.units(), name=name)
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
        for layer in chain(self, x):
            model.add(layer)
        if self.flag() and len(shape) > 1:
            model.add(layers.Flatten(name=self.name("flat")))
        model.add(layers.Dense(2, name=self.name("out")))
        self.lines.append(f"Sequential on {shape}: {[layer.name for layer in model.layers]}")
        return model, x

    def end(self, x: Any) -> Any:
        """An output: mostly of a Dense layer."""
        style = self.pick("dense", "dense", "pooled", "flat", "dense", "dense", "dense", "raw")
        if style == "flat" and None not in x.shape[1:] and len(x.shape) > 2:
            x = layers.Flatten(name=self.name("flat"))(x)
        elif style == "pooled":
            x = vector(x)
        if style == "raw":
            return x
        if x.shape[-1] is None:
            x = ops.mean(x, axis=-1, keepdims=True)
        return layers.Dense(2, name=self.name("out"))(x)

    def join_all(self, inputs: list[Any]) -> Any:
        """One tensor of several; an older Keras has all inputs read."""
        chosen = [self.pool[0], self.pool[-1], self.pick(*self.pool)]
        if OLDER:
            given = [ops.cast(x, keras.config.floatx()) for x in inputs]
            chosen += [x if x.shape[-1] else ops.mean(x, -1, keepdims=True) for x in given]
        ends = [vector(x) for x in chosen]
        ends = [x for x in ends if x.shape[-1] is not None]
        return layers.Concatenate(name=self.name("join"))(ends) if len(ends) > 1 else self.pool[-1]

    def add_steps(self, number: int) -> None:
        """Adds steps; what Keras refuses is left out."""
        for _ in range(number):
            x = self.pick(self.pool[-1], *self.pool[-4:])
            kinds = steps.ANY + steps.OF_RANK.get(len(x.shape), [])
            kind = self.pick(*kinds)
            try:
                y = kind(self, x)
            except Exception as error:  # what fits where is for Keras to say
                self.failed.append(f"{kind.__name__}: {type(error).__name__}: {str(error)[:150]}")
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
            self.lines.append(f"{kind.__name__}: {tuple(x.shape)} -> {tuple(y.shape)}")
            self.pool.append(y)

    def inside(self, x: Any, name: str) -> Any:
        builder = Builder(self.source, f"{name}_", self.depth + 1)
        inner = builder.inner(x, name)
        self.lines += [f"  in {name}: {line}" for line in builder.lines]
        self.failed += builder.failed
        self.native &= builder.native
        return inner
