"""Steps on sequences: convolutions, recurrent layers, attention."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tests.support.random_models.composites import (
    Residual,
)
from tests.support.random_models.draw import Draw


def conv1(draw: Draw, x: Any) -> Any:
    name = draw.name("conv")
    n = draw.units()
    groups = draw.pick(*(g for g in (1, x.shape[-1]) if x.shape[-1] % g == 0))
    return draw.put(
        draw.pick(
            lambda: layers.Conv1D(n, 2, padding=draw.pick("same", "causal", "valid"), name=name),
            lambda: layers.Conv1D(
                groups * draw.pick(1, 2), 2, padding="same", groups=groups, name=name
            ),
            lambda: layers.Conv1DTranspose(n, 2, padding="same", name=name),
            lambda: layers.SeparableConv1D(
                n, 2, padding="same", depth_multiplier=draw.pick(1, 2), name=name
            ),
            lambda: layers.DepthwiseConv1D(
                2, padding="same", depth_multiplier=draw.pick(1, 2), name=name
            ),
        )(),
        x,
    )


def pool1(draw: Draw, x: Any) -> Any:
    name = draw.name("pool")
    kinds: list[Any] = [
        lambda: layers.MaxPooling1D(2, 1, padding="same", name=name),
        lambda: layers.AveragePooling1D(2, 1, padding="same", name=name),
        lambda: layers.GlobalAveragePooling1D(name=name),
        lambda: layers.GlobalMaxPooling1D(keepdims=draw.flag(), name=name),
        lambda: layers.ZeroPadding1D(1, name=name),
        lambda: layers.Cropping1D(1, name=name),
        lambda: layers.UpSampling1D(2, name=name),
    ]
    if hasattr(layers, "AdaptiveAveragePooling1D"):
        kinds += [
            lambda: layers.AdaptiveAveragePooling1D(2, name=name),
            lambda: layers.AdaptiveMaxPooling1D(2, name=name),
        ]
    return draw.put(draw.pick(*kinds)(), x)


def rnn(draw: Draw, x: Any) -> Any:
    name = draw.name("rnn")
    n = draw.units()
    kwargs = {"return_sequences": draw.flag(), "name": name}
    unroll = {"unroll": True} if draw.flag(6) and x.shape[1] is not None else {}
    if x.shape[0] is not None and not draw.flag(3):
        kwargs["stateful"] = True
    cells = (layers.GRUCell, layers.LSTMCell, layers.SimpleRNNCell)
    kinds: list[Any] = [
        lambda: layers.SimpleRNN(n, **kwargs, **unroll),
        lambda: layers.GRU(n, reset_after=draw.flag(), **kwargs, **unroll),
        lambda: layers.LSTM(n, use_bias=not draw.flag(4), **kwargs, **unroll),
        lambda: layers.RNN(
            layers.StackedRNNCells(
                [layers.GRUCell(n), draw.pick(layers.LSTMCell, layers.SimpleRNNCell)(3)]
            ),
            **kwargs,
        ),
        lambda: layers.RNN([draw.pick(*cells)(n), draw.pick(*cells)(2)], **kwargs),
        lambda: layers.RNN(draw.pick(*cells)(n), **kwargs),
        lambda: layers.LSTM(n, go_backwards=True, **kwargs),
    ]
    return draw.put(draw.pick(*kinds)(), x)


def rnn_states(draw: Draw, x: Any) -> Any:
    """States that one layer returns and another one starts from."""
    n = draw.units()
    kind = draw.pick(layers.GRU, layers.LSTM, layers.SimpleRNN)
    sequence, *states = kind(
        n, return_sequences=True, return_state=True, name=draw.name("encoder")
    )(x)
    if draw.flag(3):
        return layers.Concatenate(name=draw.name("concat"))([*states, *states[:1]])
    given = draw.pick(sequence, x)
    return kind(n, return_sequences=draw.flag(), name=draw.name("decoder"))(
        given, initial_state=states if len(states) > 1 else states[0]
    )


def bidirectional(draw: Draw, x: Any) -> Any:
    kind = draw.pick(layers.GRU, layers.LSTM, layers.SimpleRNN)
    name = draw.name("bidirectional")
    n, kwargs = draw.units(), {"return_sequences": draw.flag()}
    backward = None
    if draw.flag(4):
        other = draw.pick(kind, layers.GRU)
        backward = other(n, go_backwards=True, name=f"{name}_backward", **kwargs)
    mode = draw.pick("concat", "sum", "mul", "ave")
    forward = kind(n, name=f"{name}_inner", **kwargs)
    return draw.put(
        layers.Bidirectional(forward, merge_mode=mode, backward_layer=backward, name=name), x
    )


def time_distributed(draw: Draw, x: Any) -> Any:
    name = draw.name("time_distributed")
    kinds: list[Any] = [
        lambda: layers.Dense(draw.units(), "relu", name=f"{name}_inner"),
        lambda: layers.BatchNormalization(name=f"{name}_inner"),
        lambda: layers.LayerNormalization(name=f"{name}_inner"),
        lambda: Residual(draw.units(), name=f"{name}_inner"),
        lambda: keras.Sequential(
            [keras.Input(batch_shape=(x.shape[0], *x.shape[2:]))]
            + [layers.Dense(n, "relu") for n in (draw.units(), draw.units())],
            name=f"{name}_inner",
        ),
    ]
    if len(x.shape) == 5:
        kinds += [
            lambda: layers.Conv2D(draw.units(), 2, name=f"{name}_inner"),
            lambda: layers.GlobalAveragePooling2D(name=f"{name}_inner"),
        ]
    if len(x.shape) == 4:
        kinds.append(lambda: layers.Conv1D(draw.units(), 2, name=f"{name}_inner"))
    return draw.put(layers.TimeDistributed(draw.pick(*kinds)(), name=name), x)


def attention(draw: Draw, x: Any) -> Any:
    name = draw.name("attention")
    others = [y for y in draw.pool if len(y.shape) == 3]
    y = x if draw.flag() else draw.pick(*others)
    heads, key_dim = draw.pick(2, 1, 3), draw.pick(2, 3)
    kind = draw.pick("multi_head", "multi_head", "grouped", "dot", "additive", "residual", "keyed")
    if kind == "multi_head":
        layer: Any = layers.MultiHeadAttention(
            heads,
            key_dim,
            value_dim=draw.pick(None, 2, 4),
            output_shape=draw.pick(None, 5),
            use_bias=not draw.flag(4),
            name=name,
        )
        if draw.flag(5):
            made, scores = layer(x, y, return_attention_scores=True)
            return draw.pick(made, scores)
        return layer(x, y, use_causal_mask=draw.flag(5))
    if kind == "grouped":
        groups = draw.pick(1, 2)
        return layers.GroupQueryAttention(key_dim, groups * draw.pick(1, 2), groups, name=name)(
            x, y
        )
    if kind == "keyed":
        keys = draw.pick(*(z for z in others if z.shape[1] == y.shape[1]))
        return layers.MultiHeadAttention(heads, key_dim, name=name)(x, y, keys)
    if kind == "residual":
        layer = layers.MultiHeadAttention(heads, key_dim, name=name)
        return layers.Add(name=draw.name("sum"))([x, layer(x, x)])
    inputs = [x, *([y] if y.shape[-1] == x.shape[-1] else [x])]
    if draw.flag():  # projections, as they mostly come
        n = draw.units()
        inputs = [
            layers.Dense(n, name=draw.name(part))(tensor)
            for part, tensor in zip(("query", "value", "key"), (x, y, y), strict=True)
        ]
    if kind == "dot":
        mode = draw.pick("dot", "dot", "concat")
        return layers.Attention(use_scale=draw.flag(), score_mode=mode, name=name)(inputs)
    return layers.AdditiveAttention(use_scale=not draw.flag(4), name=name)(inputs)


def attention_axes(draw: Draw, x: Any) -> Any:
    """Attention along one axis of an image, or along both."""
    axes = draw.pick((1,), (2,), (1, 2))
    layer = layers.MultiHeadAttention(2, 2, attention_axes=axes, name=draw.name("attention"))
    return layer(x, x)
