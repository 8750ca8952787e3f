"""Layers that start as the identity: kernels, normalizations and activations.

A convolution of stride 1 with `same` padding and a one at its centre passes its input
on, whatever the strides, padding or groups of the layer whose family it is of.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net.graph.structure import Tensor
from keras_net2net.internals.activations import describe, is_linear
from keras_net2net.operations.blocks import Block
from keras_net2net.operations.deeper.building import new_layer
from keras_net2net.operations.deeper.moments import Moments
from keras_net2net.operations.families import DEPTHWISE, SEPARABLE, SLIDING, bn_axis, channel_axis
from keras_net2net.planning.making import Inserted
from keras_net2net.planning.plan import InitialWeight


def kernel_layer(layer: Any, path: str, end: Tensor, activation: Any = None) -> Inserted | str:
    """A layer of the family of another, with the identity as its kernel.

    Args:
        layer: The layer of the family.
        path: The path of the new one.
        end: The tensor that it reads.
        activation: Its activation. Defaults to `None`: linear.

    Returns:
        The layer, or why there is none.
    """
    config = kernel_config(layer)
    if activation is not None:
        config["activation"] = keras.activations.serialize(activation)
    if isinstance(layer, layers.EinsumDense):
        return _einsum(layer, config, path, end)
    units = int(end.shape[channel_axis(layer, end)] or 0)
    if isinstance(layer, layers.Dense):
        config["units"] = units
        weights = [InitialWeight("kernel", (units, units), identity_at=())]
    else:
        weights = _sliding(layer, config, units)
    return new_layer(path, type(layer), config, [*weights, *zero_bias(config, units)])


def zero_bias(config: Mapping[str, Any], units: int) -> list[InitialWeight]:
    """The bias of a layer of a configuration, if it has one."""
    return [InitialWeight("bias", (units,))] if config.get("use_bias", True) else []


def kernel_config(layer: Any) -> dict[str, Any]:
    """The configuration of a linear layer like another, whose output has its input's size."""
    config = {**layer.get_config(), "activation": "linear"}
    for key in ("lora_rank", "lora_alpha", "quantization_config"):
        config.pop(key, None)
    if isinstance(layer, SLIDING):
        ones = (1,) * len(layer.kernel_size)
        padding = "causal" if config["padding"] == "causal" else "same"
        config.update(strides=ones, dilation_rate=ones, padding=padding)
    for key, value in (("groups", 1), ("depth_multiplier", 1), ("output_padding", None)):
        if key in config:
            config[key] = value
    return config


def _sliding(layer: Any, config: dict[str, Any], units: int) -> list[InitialWeight]:
    """The kernels of a convolution that passes everything on; its config is changed."""
    space = layer.kernel_size
    ones = (1,) * len(space)
    causal = config["padding"] == "causal"
    if not isinstance(layer, DEPTHWISE):
        config["filters"] = units
    # "same" padding puts the smaller half before: an even kernel's centre is
    # the last position of its first half. A causal kernel sees only the past.
    centre = tuple(size - 1 if causal else (size - 1) // 2 for size in space)
    if not isinstance(layer, (*DEPTHWISE, *SEPARABLE)):
        return [InitialWeight("kernel", (*space, units, units), identity_at=centre)]
    delta = np.zeros((*space, units, 1), "float32")
    delta[centre] = 1.0
    if isinstance(layer, DEPTHWISE):
        return [InitialWeight("kernel", delta.shape, delta)]
    origin = (0,) * len(space)
    return [
        InitialWeight("depthwise_kernel", delta.shape, delta),
        InitialWeight("pointwise_kernel", (*ones, units, units), identity_at=origin),
    ]


def _einsum(layer: Any, config: dict[str, Any], path: str, end: Tensor) -> Inserted | str:
    """An EinsumDense that maps the axes that another one makes onto themselves.

    After `"abc,cd->abd"` it is `"abd,de->abe"`.
    """
    left, _, right = layer.equation.replace(" ", "").partition("->")
    given, _, weight = left.partition(",")
    new = [letter for letter in weight if letter not in given]
    if not right or not new or any(letter not in right for letter in new):
        return f"its equation {layer.equation!r} makes no axis of its own"
    free = [letter for letter in string.ascii_letters if letter not in left + right]
    if len(free) < len(new):
        return f"no letters are left in its equation {layer.equation!r}"
    ordered = [letter for letter in right if letter in new]
    renamed = dict(zip(ordered, free, strict=False))
    after = "".join(renamed.get(letter, letter) for letter in right)
    kernel = "".join(ordered) + "".join(renamed[letter] for letter in ordered)
    config["equation"] = f"{right},{kernel}->{after}"
    sizes = _sizes(right, end)
    shape = tuple(sizes[letter] for letter in ordered)
    if config["bias_axes"]:
        config["bias_axes"] = "".join(renamed.get(x, x) for x in config["bias_axes"])
    identity = np.eye(math.prod(shape), dtype="float32").reshape(*shape, *shape)
    weights = [InitialWeight("kernel", identity.shape, identity)]
    if layer.bias is not None:
        weights.append(InitialWeight("bias", tuple(layer.bias.shape)))
    return new_layer(path, type(layer), config, weights)


def _sizes(term: str, tensor: Tensor) -> dict[str, int]:
    """The size of each letter of an output; an ellipsis stands for what is left."""
    before, dots, after = term.partition("...")
    shape = tensor.shape
    named = [*zip(before, shape, strict=False)]
    named += zip(after[::-1], shape[::-1], strict=False) if dots else ()
    return {letter: int(size or 0) for letter, size in named}


def normalization(
    layer: Any, block: Block, path: str, moments: Moments | None, end: Tensor
) -> Inserted:
    """A BatchNormalization that undoes itself.

    It scales by what it divides by, and adds what it subtracts: gamma is the root of the
    variance plus epsilon, and beta the mean. At inference this is exact with any
    numbers; in training mode with the moments of its input on the batch.

    Args:
        layer: The layer after whose block it is inserted.
        block: The block, whose own normalization says how it is set.
        path: Its path.
        moments: Those of its input. `None` if nothing is known: then mean 0, and
            variance 1 - epsilon, so that it divides by exactly one. A variance of 1 would
            be off by half of epsilon.
        end: The tensor that it reads.
    """
    cls, config = normalization_like(layer, block)
    units = int(end.shape[config["axis"]] or 0)
    if moments is None:
        mean, variance = np.zeros(units), np.full(units, 1.0 - config["epsilon"])
    else:
        mean, variance = moments.mean, moments.variance
        config.update(scale=True, center=True)  # without them it could not undo itself
    deviation = np.sqrt(variance + config["epsilon"])
    values = {"moving_mean": mean, "moving_variance": variance, "gamma": deviation, "beta": mean}
    if config.get("renorm"):
        values.update(moving_stddev=deviation, renorm_mean=mean, renorm_stddev=deviation)
    return new_layer(path, cls, config, _normalizing(config, units, values))


def fresh_normalization(layer: Any, block: Block, path: str, end: Tensor) -> Inserted:
    """A BatchNormalization as Keras makes it, set as that of a block is."""
    cls, config = normalization_like(layer, block)
    values = {"moving_mean": 0.0, "moving_variance": 1.0, "gamma": 1.0, "beta": 0.0}
    units = int(end.shape[config["axis"]] or 0)
    return new_layer(path, cls, config, _normalizing(config, units, values))


def _normalizing(
    config: Mapping[str, Any], units: int, values: Mapping[str, Any]
) -> list[InitialWeight]:
    """The weights that a BatchNormalization of a configuration has."""
    without = {key for key, has in (("gamma", "scale"), ("beta", "center")) if not config[has]}
    return [InitialWeight(k, (units,), value) for k, value in values.items() if k not in without]


def normalization_like(layer: Any, block: Block) -> tuple[type, dict[str, Any]]:
    """The class and configuration of a normalization as a block has it, or would have it."""
    if block.normalization is not None:
        return type(block.normalization), dict(block.normalization.get_config())
    cls = layers.BatchNormalization
    return cls, dict(cls(axis=bn_axis(layer), dtype=layer.dtype_policy).get_config())


def activation_layer(activation: Any, path: str, end: Tensor) -> Inserted:
    """A layer that is an activation; a PReLU starts with slopes of a quarter."""
    if not isinstance(activation, keras.Layer):
        return new_layer(path, layers.Activation, layers.Activation(activation).get_config())
    config = dict(activation.get_config())
    prelu = isinstance(activation, layers.PReLU)
    weights = [_slopes(end, config["shared_axes"] or (), 0.25)] if prelu else []
    return new_layer(path, type(activation), config, weights)


def prelu(layer: Any, path: str, end: Tensor) -> Inserted:
    """A PReLU that starts as the identity: its slopes are one, and each channel has one."""
    axis = channel_axis(layer, end)
    shared = [i for i in range(1, len(end.shape)) if i != axis]
    config = layers.PReLU(shared_axes=shared or None, dtype=layer.dtype_policy).get_config()
    return new_layer(path, layers.PReLU, config, [_slopes(end, shared, 1.0)])


def _slopes(end: Tensor, shared: Sequence[int], value: float) -> InitialWeight:
    """The slopes of a PReLU, one for all along the axes that share them."""
    sizes = enumerate(end.shape[1:], start=1)
    shape = tuple(1 if axis in shared else int(size or 1) for axis, size in sizes)
    return InitialWeight("alpha", shape, value)


def leaves_alone(new: Any, block: Block) -> bool:
    """Whether an activation after a block changes nothing."""
    known, before = describe(new), block.describe()
    if is_linear(new):
        return True
    return known is not None and before is not None and known.leaves_alone(before)
