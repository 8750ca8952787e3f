"""What an inserted normalization will see: the moments of the activations it stands behind.

With data they are measured, in training mode, since there the model's own
normalizations use the statistics of the batch as well. Without data they are derived
from the normalization of the block: what leaves it has the mean beta and the deviation
|gamma| in each channel, and an activation maps a Gaussian of these to a distribution
whose moments are known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.graph.structure import Graph, Tensor
from keras_net2net.internals.activations import describe, straight_lines
from keras_net2net.operations.blocks import Block
from keras_net2net.operations.data import inputs_of
from keras_net2net.planning.draft import Draft


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """The mean and the variance of each channel.

    Args:
        mean: Array, one mean for each channel.
        variance: Array, one variance for each channel.
        count: The number of values that they are of.
    """

    mean: np.ndarray
    variance: np.ndarray
    count: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor behind which a normalization is to be inserted.

    Args:
        graph: The graph that the tensor belongs to.
        tensor: The tensor that it will read.
        axis: The axis of the channels.
    """

    graph: Graph
    tensor: Tensor
    axis: int


def pooled(parts: Sequence[Moments]) -> Moments:
    """The moments of all the values that several moments are of.

    Example:

    >>> import numpy as np
    >>> one, other = Moments(np.zeros(1), np.ones(1)), Moments(np.ones(1) * 2, np.ones(1))
    >>> both = pooled([one, other])
    >>> float(both.mean[0]), float(both.variance[0])
    (1.0, 2.0)
    """
    if len(parts) == 1:
        return parts[0]
    count = sum(part.count for part in parts)
    mean = np.sum([part.count / count * part.mean for part in parts], axis=0)
    spread = [part.variance + np.square(part.mean - mean) for part in parts]
    shares = [part.count / count for part in parts]
    return Moments(
        mean, np.sum([s * v for s, v in zip(shares, spread, strict=True)], axis=0), count
    )


# -- with data -----------------------------------------------------------------


def measure(draft: Draft, points: Iterable[Channels], data: Any) -> list[Moments]:
    """Runs the model on data, and measures the moments at some points of it.

    Args:
        draft: The draft; the model is as its graph was read.
        points: The points. Where a nested model is called more than once, all that
            passes a point counts.
        data: A batch of inputs, or `(x, y)`.

    Returns:
        The moments at each point.

    Raises:
        GrowthError: If the model doesn't take the data.
    """
    points = list(points)
    found: list[list[Moments]] = [[] for _ in points]
    x = inputs_of(data)
    try:
        with keras.StatelessScope(), internals.calls_watched(_watchers(points, found)):
            draft.model(x, training=True)
    except Exception as error:
        raise GrowthError(
            f"The model {draft.model.name!r} can't be calibrated",
            f"it doesn't take the calibration data: {' '.join(str(error).split())[:200]}",
            "Pass a batch of inputs, or `(inputs, targets)`, as the model's `fit` takes them",
            received=f"data of shapes {[tuple(np.shape(one)) for one in keras.tree.flatten(x)]}",
        ) from error
    return [pooled(moments) for moments in found]


def _watchers(
    points: list[Channels], found: list[list[Moments]]
) -> list[tuple[Any, Callable[..., None]]]:
    """For each model that has points, what to do when it is called."""
    graphs = {id(point.graph): point.graph for point in points}
    pairs = list(zip(points, found, strict=True))
    return [
        (graph.model, _watcher([pair for pair in pairs if pair[0].graph is graph]))
        for graph in graphs.values()
    ]


def _watcher(targets: list[tuple[Channels, list[Moments]]]) -> Callable[..., None]:
    function: Any = internals.function_of(targets[0][0].graph.model)
    inputs, _ = internals.structures_of(function)
    inside = keras.Model(inputs, [point.tensor.keras_tensor for point, _ in targets], name="inside")

    def watch(inputs: Any, **kwargs: Any) -> None:
        given = {key: value for key, value in kwargs.items() if value is not None}
        made = keras.tree.flatten(inside(inputs, **given))  # one tensor alone comes bare
        for (point, found), x in zip(targets, made, strict=True):
            found.append(_moments(x, point.axis))

    return watch


def _moments(x: Any, axis: int) -> Moments:
    """The moments of a batch, as a BatchNormalization finds them there."""
    mask = internals.mask_of(x)
    wide = keras.backend.standardize_dtype(x.dtype) == "float64"
    x = ops.cast(x, "float64" if wide else "float32")
    rest = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
    count = float(np.prod([x.shape[i] for i in rest]))
    if mask is None:
        mean, variance = ops.moments(x, rest)
    else:
        seen = ops.cast(ops.broadcast_to(ops.expand_dims(mask, -1), x.shape), "bool")
        total = ops.sum(ops.cast(seen, x.dtype), rest, keepdims=True)
        total = total + keras.config.epsilon()
        mean = ops.sum(ops.where(seen, x, 0.0), rest, keepdims=True) / total
        squares = ops.square(ops.where(seen, x - mean, 0.0))
        variance = ops.sum(squares, rest, keepdims=True) / total
        count = float(np.max(ops.convert_to_numpy(total)))
    arrays = [ops.convert_to_numpy(one).astype("float64").reshape(-1) for one in (mean, variance)]
    return Moments(arrays[0], np.maximum(arrays[1], 0.0), count)


# -- without data --------------------------------------------------------------


def derived(block: Block) -> Moments | None:
    """The moments of what a block makes, as far as its own normalization says.

    Args:
        block: The block.

    Returns:
        The moments, or `None` if it has no normalization, or if it isn't known what
        its activation does.
    """
    norm = block.normalization
    if norm is None or not norm.built:
        return None
    variance = np.asarray(internals.read_variable(norm.moving_variance), "float64")
    deviation = np.sqrt(variance / (variance + norm.epsilon))
    if norm.scale:
        deviation = deviation * np.abs(internals.read_variable(norm.gamma).astype("float64"))
    beta = internals.read_variable(norm.beta).astype("float64") if norm.center else 0.0
    return after_activation(block.function, np.broadcast_to(beta, deviation.shape), deviation)


def after_activation(function: Any, mean: np.ndarray, deviation: np.ndarray) -> Moments | None:
    """The moments of an activation of Gaussian values.

    With the density phi and the distribution function Phi of the standard normal
    distribution, t = mean / deviation, and ReLU:

        E[y]   = mean Phi(t) + deviation phi(t)
        E[y^2] = (mean^2 + deviation^2) Phi(t) + mean deviation phi(t)

    Other functions that are made of straight lines likewise, piece by piece; smooth
    ones by a sum over the density.

    Args:
        function: The activation: a function or a layer.
        mean: The mean of each channel before it.
        deviation: The standard deviation of each channel before it.

    Returns:
        The moments, or `None` if it isn't known what the activation does.

    Example:

    >>> import numpy as np
    >>> relu = after_activation("relu", np.zeros(1), np.ones(1))
    >>> bool(np.isclose(relu.mean[0], 1 / np.sqrt(2 * np.pi)))
    True
    """
    if isinstance(function, str):
        function = keras.activations.get(function)
    pieces = straight_lines(function, len(mean))
    if pieces is None:
        if describe(function) is None:
            return None
        return _summed(function, mean, deviation)
    scale = np.maximum(deviation, 1e-30)
    first, second = np.zeros_like(scale), np.zeros_like(scale)
    for low, high, slope, value in pieces:
        a, b = (low - mean) / scale, (high - mean) / scale
        part = _distribution(b) - _distribution(a)
        edge = _density(a) - _density(b)
        moment = mean * part + deviation * edge
        square = (
            (mean**2 + deviation**2) * part
            + 2 * mean * deviation * edge
            + deviation**2 * (_times_density(a) - _times_density(b))
        )
        first += slope * moment + value * part
        second += slope**2 * square + 2 * slope * value * moment + value**2 * part
    return Moments(first, np.maximum(second - first**2, 0.0))


def _summed(function: Any, mean: np.ndarray, deviation: np.ndarray) -> Moments:
    t = np.linspace(-8.0, 8.0, 2001)
    weights = _density(t) / _density(t).sum()
    x = mean + deviation * t[:, None]
    y = ops.convert_to_numpy(function(ops.convert_to_tensor(x, "float32"))).astype("float64")
    first = weights @ y
    return Moments(first, weights @ np.square(y - first))


def _density(t: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.square(t)) / math.sqrt(2 * math.pi)


def _times_density(t: np.ndarray) -> np.ndarray:
    finite = np.where(np.abs(t) < 40, t, 0.0)
    return finite * _density(finite)


_erf = np.vectorize(math.erf, otypes=[float])


def _distribution(t: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + _erf(np.clip(t, -40, 40) / math.sqrt(2)))
