"""Growth with the channels first, also where TensorFlow can't run that on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_net2net as n2n
from tests.support.helpers import assert_native, assert_same, data_for, outputs, randomize, skipped

Parts = Callable[[dict[str, str]], "tuple[tuple[int, ...], list[Any]]"]


def _model(parts: Parts, data_format: str) -> keras.Model:
    """The layers between two convolutions; the same weights fit both data formats."""
    chosen = {"data_format": data_format}
    shape, middle = parts(chosen)
    if data_format == "channels_last":
        shape = (*shape[1:], shape[0])
    conv = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[len(shape) - 2]
    x = inputs = keras.Input(shape)
    x = conv(4, 1, activation="tanh", name="before", **chosen)(x)
    for layer in middle:
        x = layer(x)
    if len(x.shape) == 2:
        return keras.Model(inputs, layers.Dense(3, name="after")(x))
    return keras.Model(inputs, conv(3, 1, name="after", **chosen)(x))


def _last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def check_channels_first(parts: Parts) -> None:
    """Grows a model with the channels first; its oracle is the same model with them last.

    The grown weights are given to a model of the grown sizes with the channels last, which must
    compute what the small one did. Where the backend runs it, the grown model itself must too.

    Args:
        parts: From a data format to an input shape, with the channels first, and layers.
    """
    small = randomize(_model(parts, "channels_last"))
    x = data_for(_model(parts, "channels_first"))
    before = outputs(small, _last(x))
    model = _model(parts, "channels_first")
    model.set_weights(small.get_weights())
    for seed in (0, 1):
        report = n2n.grow(model, n2n.Wider(factor=1.5), seed=seed, verify=False)
        assert skipped(report.plan) == {"after"}
        assert report.parameters_before < report.parameters_after == model.count_params()
        assert_native(model)
    large = _last_twin(model)
    large.set_weights(model.get_weights())
    assert_same(outputs(large, _last(x)), before)
    if keras.backend.backend() != "tensorflow":
        grown = outputs(model, x)
        if grown[0].ndim > 2:
            grown = [_last(y) for y in grown]
        assert_same(grown, before)


def _last_twin(model: keras.Model) -> keras.Model:
    """The model of the same sizes with the channels last."""
    inputs = model.inputs[0]
    x = new = keras.Input((*inputs.shape[2:], inputs.shape[1]))
    for layer in model.layers[1:]:
        config = layer.get_config()
        if "data_format" in config:
            config["data_format"] = "channels_last"
        if isinstance(layer, layers.BatchNormalization):
            config["axis"] = -1
        x = type(layer).from_config(config)(x)
    return keras.Model(new, x)
