"""Steps on images, volumes and films."""

from __future__ import annotations

from typing import Any

from keras import layers

from tests.support.backend import BACKEND
from tests.support.random_models.draw import Draw


def channels_first(draw: Draw, x: Any) -> Any:
    """Layers for which the axis after the batch has the channels."""
    if BACKEND == "tensorflow":
        raise LookupError("TensorFlow doesn't run it on a CPU")
    rank = len(x.shape) - 2
    n, name, first = draw.units(), draw.name("first"), {"data_format": "channels_first"}
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
            lambda: layers.ConvLSTM1D(n, 2, name=name, return_sequences=draw.flag(), **same),
        ]
    return draw.put(draw.pick(*kinds)(), x)


def conv2(draw: Draw, x: Any) -> Any:
    name = draw.name("conv")
    n = draw.units()
    channels = x.shape[-1]
    groups = draw.pick(*(g for g in (1, 2, channels) if channels % g == 0))
    return draw.put(
        draw.pick(
            lambda: layers.Conv2D(
                n,
                draw.pick(1, 2, 3, (1, 3)),
                padding="same",
                use_bias=draw.pick(True, False),
                activation=draw.pick("relu", "linear"),
                name=name,
            ),
            lambda: layers.Conv2D(n, 2, strides=draw.pick(1, 2), padding="same", name=name),
            lambda: layers.Conv2D(n, 2, dilation_rate=2, padding="same", name=name),
            lambda: layers.Conv2D(
                groups * draw.pick(1, 2), 2, padding="same", groups=groups, name=name
            ),
            lambda: layers.Conv2DTranspose(
                n, 2, strides=draw.pick(1, 2), padding="same", name=name
            ),
            lambda: layers.SeparableConv2D(
                n, 2, padding="same", depth_multiplier=draw.pick(1, 2), name=name
            ),
            lambda: layers.DepthwiseConv2D(
                2, padding="same", depth_multiplier=draw.pick(1, 2), name=name
            ),
        )(),
        x,
    )


def pool2(draw: Draw, x: Any) -> Any:
    name = draw.name("pool")
    kinds: list[Any] = [
        lambda: layers.MaxPooling2D(2, 1, padding="same", name=name),
        lambda: layers.AveragePooling2D(2, 1, padding="same", name=name),
        lambda: layers.GlobalAveragePooling2D(keepdims=draw.flag(), name=name),
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
    return draw.put(draw.pick(*kinds)(), x)


def squeeze_excite(draw: Draw, x: Any) -> Any:
    squeezed = layers.GlobalAveragePooling2D(keepdims=True, name=draw.name("squeeze"))(x)
    reduced = layers.Dense(draw.units(), "relu", name=draw.name("reduce"))(squeezed)
    gate = layers.Dense(x.shape[-1], "sigmoid", name=draw.name("gate"))(reduced)
    return layers.Multiply(name=draw.name("excite"))([x, gate])


def conv_lstm1(draw: Draw, x: Any) -> Any:
    return draw.put(
        layers.ConvLSTM1D(
            draw.units(),
            2,
            padding="same",
            return_sequences=draw.flag(),
            name=draw.name("lstm"),
        ),
        x,
    )


def conv_lstm2(draw: Draw, x: Any) -> Any:
    return draw.put(
        layers.ConvLSTM2D(
            draw.units(),
            2,
            padding="same",
            return_sequences=draw.flag(),
            name=draw.name("lstm"),
        ),
        x,
    )


def conv_lstm3(draw: Draw, x: Any) -> Any:
    return draw.put(
        layers.ConvLSTM3D(
            draw.pick(2, 1, 3),
            draw.pick(1, 2),
            padding="same",
            return_sequences=draw.flag(),
            name=draw.name("lstm"),
        ),
        x,
    )


def conv3(draw: Draw, x: Any) -> Any:
    name = draw.name("conv")
    n = draw.units()
    return draw.put(
        draw.pick(
            lambda: layers.Conv3D(n, 2, padding="same", name=name),
            lambda: layers.Conv3D(n, 1, activation="relu", name=name),
            lambda: layers.Conv3DTranspose(n, 2, padding="same", name=name),
        )(),
        x,
    )


def pool3(draw: Draw, x: Any) -> Any:
    name = draw.name("pool")
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
    return draw.put(draw.pick(*kinds)(), x)
