"""The families of Keras layers that operations speak of, and where these have their units."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.graph.structure import Tensor

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
SLIDING = (*CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE)
KERNELS = (layers.Dense, *CONVOLUTIONS)  # what one kernel makes of its input
FAMILY = (layers.Dense, layers.EinsumDense, *SLIDING)
FAMILY_NAMES = "a Dense, EinsumDense or convolution layer"


def size_key(layer: Any) -> str:
    """What a layer of `KERNELS` calls its number of units."""
    return "units" if isinstance(layer, layers.Dense) else "filters"


def channel_axis(layer: Any, tensor: Tensor) -> int:
    """The axis of the units that a layer makes."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first else len(tensor.shape) - 1


def bn_axis(layer: Any) -> int:
    """The axis that a BatchNormalization after a layer has."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1
