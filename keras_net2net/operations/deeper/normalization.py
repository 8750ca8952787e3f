"""Inserted normalizations, which undo themselves, and what is to be known of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import layers

from keras_net2net.errors import GrowthError
from keras_net2net.graph.structure import Tensor
from keras_net2net.operations.blocks import Block, bn_axis
from keras_net2net.operations.deeper.building import new_layer
from keras_net2net.operations.deeper.moments import Moments
from keras_net2net.planning.draft import Inserted
from keras_net2net.planning.plan import InitialWeight


def check_normalized(batch_norm: Any, model: str) -> None:
    """Checks the argument that says whether what is inserted is normalized.

    Args:
        batch_norm: The argument.
        model: What `None` means: as this has it.

    Raises:
        GrowthError: If it is neither `True` nor `False` nor `None`.
    """
    if batch_norm not in (None, True, False):
        raise GrowthError(
            f"`batch_norm` can't be {batch_norm!r}",
            "it says whether the new layers are normalized",
            f"Pass `True`, `False`, or `None` for what {model} has",
        )


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
