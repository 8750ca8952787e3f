"""Steps that join, fold, nest and repeat: of several tensors, or of a model in the model."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers

from tests.support.random_models.composites import (
    Encoder,
    GatedProjection,
    Network,
    Residual,
    Subclassed,
    TwoReaders,
)
from tests.support.random_models.draw import ACTIVATIONS, Draw
from tests.support.random_models.steps.layers import chain, dense, vector


def merge(draw: Draw, x: Any) -> Any:
    kind = draw.pick(
        layers.Add,
        layers.Multiply,
        layers.Concatenate,
        layers.Maximum,
        layers.Minimum,
        layers.Average,
        layers.Subtract,
    )
    name = draw.name("merge")
    if kind is layers.Concatenate:
        return kind(name=name)([x, draw.like(x, last=False)])
    return kind(name=name)(
        [
            x,
            draw.like(x),
            *([draw.like(x)] if draw.flag(4) and kind is not layers.Subtract else []),
        ]
    )


def branch(draw: Draw, x: Any) -> Any:
    """A branch with as many units, summed or multiplied to the trunk."""
    y = draw.put(layers.Dense(x.shape[-1], draw.pick(*ACTIVATIONS), name=draw.name("branch")), x)
    kind = draw.pick(layers.Add, layers.Multiply, layers.Maximum, layers.Subtract)
    return kind(name=draw.name("merge"))([x, y])


def concat_axis(draw: Draw, x: Any) -> Any:
    """A concatenation along any axis."""
    axis = draw.axis(x) % len(x.shape)
    rest = [s for i, s in enumerate(x.shape) if i != axis]
    fits = [
        y
        for y in draw.pool
        if len(y.shape) == len(x.shape) and [s for i, s in enumerate(y.shape) if i != axis] == rest
    ]
    return layers.Concatenate(axis, name=draw.name("concat"))([x, draw.pick(*fits)])


def dot(draw: Draw, x: Any) -> Any:
    y = draw.pick(*(y for y in draw.pool if len(y.shape) == len(x.shape) <= 3))
    axes = draw.pick(-1, 1)
    return layers.Dot(axes if axes == 1 else len(x.shape) - 1, name=draw.name("dot"))([x, y])


def reshape(draw: Draw, x: Any) -> Any:
    size = math.prod(x.shape[1:])
    first = draw.pick(*(n for n in range(1, size + 1) if size % n == 0))
    target = draw.pick((first, size // first), (-1, first), (size,), (first, size // first, 1))
    return draw.put(layers.Reshape(target, name=draw.name("reshape")), x)


def reshaped_merge(draw: Draw, x: Any) -> Any:
    """Two tensors of one size, whatever they are made of."""
    fits = [y for y in draw.pool if None not in y.shape[1:]]
    y = draw.pick(*(y for y in fits if math.prod(y.shape[1:]) == math.prod(x.shape[1:])))
    y = layers.Reshape(tuple(x.shape[1:]), name=draw.name("reshape"))(y)
    return draw.pick(layers.Add, layers.Maximum)(name=draw.name("merge"))([x, y])


def flatten(draw: Draw, x: Any) -> Any:
    return draw.put(layers.Flatten(name=draw.name("flatten")), x)


def permute(draw: Draw, x: Any) -> Any:
    order = list(range(1, len(x.shape)))
    for i in range(len(order) - 1):
        j = i + draw.below(len(order) - i)
        order[i], order[j] = order[j], order[i]
    return draw.put(layers.Permute(tuple(order), name=draw.name("permute")), x)


def repeat_vector(draw: Draw, x: Any) -> Any:
    return draw.put(layers.RepeatVector(2, name=draw.name("repeat")), vector(x))


def again(draw: Draw, x: Any) -> Any:
    """A layer that was made before, called on another tensor."""
    layer, given = draw.pick(*reversed(draw.made[-5:]))
    fits = [
        y for y in draw.pool if len(y.shape) == len(given.shape) and y.shape[-1] == given.shape[-1]
    ]
    y = draw.pick(*reversed(fits))
    return layer(y)


def shared(draw: Draw, x: Any) -> Any:
    """A layer that is called twice, one call on the other's output."""
    name = draw.name("shared")
    n = x.shape[-1]
    kinds: list[Any] = [
        lambda: layers.Dense(n, draw.pick(None, "relu"), name=name),
        lambda: Residual(draw.units(), draw.flag(), name=name),
        lambda: GatedProjection(n, name=name),
    ]
    if len(x.shape) == 3:
        kinds += [
            lambda: layers.GRU(n, return_sequences=True, name=name),
            lambda: layers.Conv1D(n, 2, padding="same", name=name),
        ]
    if len(x.shape) == 4:
        kinds.append(lambda: layers.Conv2D(n, 2, padding="same", name=name))
    layer = draw.pick(*kinds)()
    return layer(layers.ReLU(name=draw.name("relu"))(layer(x)))


def composite(draw: Draw, x: Any) -> Any:
    """A layer of layers and operations, which is opened."""
    name = draw.name("composite")
    kinds: list[Any] = [
        lambda: Residual(draw.units(), draw.flag(), name=name),
        lambda: GatedProjection(draw.units(), name=name),
        lambda: Subclassed(draw.units(), draw.units(), name=name),
        lambda: Network(chain(draw, x), draw.units(), name=name),
    ]
    if len(x.shape) == 3:
        kinds += [
            lambda: Encoder(draw.pick(1, 2), draw.pick(2, 3), 6, draw.flag(), name=name),
            lambda: TwoReaders(draw.units(), draw.units(), name=name),
        ]
    return draw.put(draw.pick(*kinds)(), x)


def nested(draw: Draw, x: Any) -> Any:
    """A model in the model, called once or twice."""
    if draw.depth > 1:
        return dense(draw, x)
    name = draw.name("nested")
    if draw.flag(3):
        inputs = keras.Input(batch_shape=x.shape)
        inner: Any = keras.Sequential([inputs, *chain(draw, x)], name=name)
    else:
        inner = draw.inside(x, name)
    called = inner(x)
    if not draw.flag(3):
        return called
    other = inner(draw.like(x))
    return layers.Concatenate(name=draw.name("twice"))([called, other])


def reverse_embedding(draw: Draw, x: Any) -> Any:
    """The embedding's table once more, as the projection to its entries."""
    table = draw.pick(*draw.tables)
    if x.shape[-1] != table.output_dim:
        x = layers.Dense(table.output_dim, name=draw.name("stream"))(x)
    return table(x, reverse=True)
