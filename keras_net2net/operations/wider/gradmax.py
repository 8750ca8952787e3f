"""New units chosen by gradient: those whose first step of training moves most.

A unit that is added between layers l and l + 1 leaves the function as it is if either
what it reads or what reads it is zero. The other side is free, and its choice decides
on the first gradient of the zero side. With h, the input of layer l, and d, the gradient
of the loss with respect to what layer l + 1 sums up, the gradient of the incoming weights
of a unit with outgoing weights u is f'(0) G u, with G = sum of h d^T over the batch. So
the k orthogonal u with the largest gradients are the first k right singular vectors of G.

Source: Evci et al., GradMax: Growing Neural Networks using Gradient Information (ICLR
2022, arXiv:2201.05125), section 3, which takes f'(0) = 1 for ReLU as well. Keras takes 0
there, so that nothing would ever move. For such functions, and before a batch
normalization, the sides change places here: what reads new units is zero, and what they
read are the first k left singular vectors, which have the largest gradients as far as the
function is linear, each with the sign that has the larger one on the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.graph.structure import Call
from keras_net2net.internals.gradients import gradients
from keras_net2net.operations.blocks import Block, find_block
from keras_net2net.operations.data import inputs_of, targets_of
from keras_net2net.planning.changes import Addition
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.remaps import Remap, generator, remap_of
from keras_net2net.widths.expressions import Width, resolve
from keras_net2net.widths.facts import Facts

_FAMILIES = (layers.Dense, layers.Conv2D)


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenUnits:
    """Where units are added: the layer that makes them, and those that read them."""

    width: Width
    maker: Facts
    block: Block
    readers: tuple[Facts, ...]


def find_hidden_units(draft: Draft, width: Width) -> HiddenUnits | str:
    """Where the units of a width lie, or why they can't be chosen by gradient."""
    owners = draft.owners()[width]
    found = [facts for facts in draft.inference.facts.values() if facts.path in owners]
    if len(found) != 1:
        return f"its units are tied to those of {', '.join(map(repr, owners[1:]))}"
    (maker,) = found
    kind = type(maker.operation).__name__
    if not _is_of_family(maker.operation):
        return f"units are chosen by gradient for Dense and Conv2D, not for {kind}"
    calls = draft.calls_of(maker.operation)
    if len(calls) != 1 or resolve(maker.main) is not width:
        return "it is called more than once" if len(calls) > 1 else "its units are made of parts"
    graph, call = calls[0]
    block = find_block(graph, call)
    if getattr(block.function, "weights", None):
        return f"its activation ({type(block.function).__name__}) has weights of its own"
    readers = []
    for consumer in graph.consumers(block.end):
        problem = _reads(draft, consumer, width)
        if problem is not None:
            return problem
        readers.append(draft.inference.facts[id(consumer.operation)])
    if any(x is block.end for x in graph.flat_outputs) or not readers:
        return "nothing in the same graph reads its units"
    return HiddenUnits(width, maker, block, tuple(readers))


def _is_of_family(layer: Any) -> bool:
    return isinstance(layer, _FAMILIES) and getattr(layer, "groups", 1) == 1


def _reads(draft: Draft, consumer: Call, width: Width) -> str | None:
    facts = draft.inference.facts.get(id(consumer.operation))
    kind = type(consumer.operation).__name__
    if facts is None or not _is_of_family(consumer.operation):
        return f"its units go through {consumer.path!r} ({kind}), and not straight into a layer"
    if len(draft.calls_of(consumer.operation)) != 1:
        return f"{consumer.path!r} ({kind}), which reads them, is called more than once"
    if not any(resolve(axis.expression) is width for axis in facts.weights["kernel"]):
        return f"{consumer.path!r} ({kind}) doesn't read its units alone"
    return None


class GradMax:
    """The gradients of a model on its calibration data, and the units that follow.

    Args:
        draft: The draft; its model runs forwards and backwards once.
        hidden: Where units are added.
        remaps: The remap of each width that grows.
    """

    def __init__(
        self, draft: Draft, hidden: Sequence[HiddenUnits], remaps: Mapping[Width, Remap]
    ) -> None:
        self._draft = draft
        self._hidden = hidden
        self._remaps = remaps
        data = (inputs_of(draft.calibration), targets_of(draft.calibration))
        problem = "New units can't be chosen by gradient"
        if data[1] is None:
            raise GrowthError(
                problem, "that needs data with targets", "Pass `grow(..., calibration=(x, y))`"
            )
        if not getattr(draft.loss_of, "compiled", False):
            raise GrowthError(
                problem,
                f"the model {draft.model.name!r} isn't compiled, and so has no loss",
                "Compile the model first",
            )
        x, y = (keras.tree.map_structure(keras.ops.convert_to_tensor, one) for one in data)
        readers = [facts.operation for units in hidden for facts in units.readers]
        readers = list({id(layer): layer for layer in readers}.values())
        makers = [units.maker.operation for units in hidden]
        shapes: dict[int, tuple[int, ...]] = {}

        def note(layer: Any, z: Any) -> Any:
            shapes[id(layer)] = tuple(z.shape)
            return z

        with (
            internals.recorded_inputs(makers) as record,
            _before_activation(readers, note),
            keras.StatelessScope(),
        ):
            draft.model(x, training=True)
        self._inputs = {key: values[0].astype(float) for key, values in record.items()}
        zeros = [np.zeros(shapes[id(layer)], "float32") for layer in readers]
        slopes = _slopes(draft, x, y, readers, zeros)
        self._slopes = {id(one): g.astype(float) for one, g in zip(readers, slopes, strict=True)}

    def choose(self) -> tuple[dict[str, tuple[Addition, ...]], list[str]]:
        """The weights of new units.

        Returns:
            What is added to weights, by path, where new units start at zero; and notes.
        """
        added: dict[str, tuple[Addition, ...]] = {}
        notes: list[str] = []
        for units in self._hidden:
            for path, addition in self._chosen(units, notes):
                added[path] = (*added.get(path, ()), addition)
        return added, notes

    def _chosen(self, units: HiddenUnits, notes: list[str]) -> Iterator[tuple[str, Addition]]:
        h = self._read(units.maker)
        if units.block.normalization is not None:
            h = h - h.mean(axis=tuple(range(h.ndim - 1)))
        left, values, right = np.linalg.svd(self._gradient(h, units), full_matrices=False)
        rank = int(np.sum(values > 1e-10 * max(values[0], 1e-30)))
        missing = int(self._remaps[units.width].new.sum()) - rank
        if missing > 0:
            notes.append(
                f"{units.width!r}: the gradient has {rank} directions, the other {missing} new "
                "units are random"
            )
        value, slope = _at_zero(units.block.function)
        if units.block.normalization is None and value == 0.0 and slope != 0.0:
            notes.append(f"{units.width!r}: new units read nothing at first, and are read along G")
            yield from self._outgoing(units, self._directions(right[:rank], units.width))
        else:
            notes.append(f"{units.width!r}: new units read along G, and aren't read at first")
            yield from self._incoming(units, h, self._directions(left.T[:rank], units.width))

    def _read(self, maker: Facts) -> np.ndarray:
        """What each output of a layer reads."""
        return patches(self._inputs[id(maker.operation)], maker.operation)

    def _gradient(self, h: np.ndarray, units: HiddenUnits) -> np.ndarray:
        """The gradient of all weights with which readers would read a tensor, as a matrix."""
        layers_reading = [facts.operation for facts in units.readers]
        parts = [correlation(h, self._slopes[id(layer)], layer) for layer in layers_reading]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

    def _outgoing(
        self, units: HiddenUnits, directions: np.ndarray
    ) -> Iterator[tuple[str, Addition]]:
        """New units that are read along directions."""
        kernels = [_kernel(facts) for facts in units.readers]
        rows = [kernel.swapaxes(0, -2).reshape(kernel.shape[-2], -1) for kernel in kernels]
        directions *= np.linalg.norm(np.concatenate(rows, axis=1), axis=1).mean()
        ends = np.cumsum([row.shape[1] for row in rows])
        parts = np.split(directions, ends[:-1], axis=1)
        for facts, kernel, part in zip(units.readers, kernels, parts, strict=True):
            # As a slice of a kernel with the axis of the units taken out.
            shape = (*kernel.shape[:-2], kernel.shape[-1])
            yield self._addition(facts, -2, units, part.reshape(-1, *shape))

    def _incoming(
        self, units: HiddenUnits, h: np.ndarray, directions: np.ndarray
    ) -> Iterator[tuple[str, Addition]]:
        """New units that read along directions, in front of a normalization as it sees them."""
        kernel = _kernel(units.maker)
        scale = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0).mean()
        remap = self._remaps[units.width]
        signs, variances = self._signs(h @ (scale * directions.T), units, remap)
        incoming = scale * directions * signs[:, None]
        values = incoming.reshape(-1, *kernel.shape[:-1])
        yield self._addition(units.maker, -1, units, values)
        normalization = units.block.normalization
        if normalization is not None:
            facts = self._draft.inference.facts[id(normalization)]
            mean = self._read(units.maker) @ incoming.T
            mean = mean.mean(axis=tuple(range(mean.ndim - 1)))
            at = np.flatnonzero(remap.new)
            for name, target in (("moving_mean", mean), ("moving_variance", variances)):
                old = internals.read_variable(getattr(normalization, name))[remap.index[at]]
                yield f"{facts.path}/{name}", Addition(0, at, (target - old).astype("float32"))

    def _directions(self, found: np.ndarray, width: Width) -> np.ndarray:
        """As many directions of length one as there are new units."""
        count = int(self._remaps[width].new.sum())
        directions = found[:count]
        missing = count - len(directions)
        if missing:
            rng = generator(self._draft.seed, "gradmax", width.name, count)
            random = rng.standard_normal((missing, found.shape[1]))
            random /= np.linalg.norm(random, axis=1, keepdims=True)
            directions = np.concatenate([directions, random])
        # A singular vector has no sign: its largest entry is positive on every machine.
        largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
        return np.asarray(directions * np.where(largest < 0, -1.0, 1.0))

    def _signs(
        self, made: np.ndarray, units: HiddenUnits, remap: Remap
    ) -> tuple[np.ndarray, np.ndarray]:
        """The sign of each new unit with the larger gradient of what reads it; its variance."""
        over = tuple(range(made.ndim - 1))
        mean, variance = made.mean(axis=over), made.var(axis=over)
        sizes = []
        for sign in (1.0, -1.0):
            value = sign * made
            layer = units.block.normalization
            if layer is not None:
                value = (value - sign * mean) / np.sqrt(variance + layer.epsilon)
                index = remap.index[remap.new]
                for name, join in (("gamma", np.multiply), ("beta", np.add)):
                    if getattr(layer, name, None) is not None:
                        value = join(value, internals.read_variable(getattr(layer, name))[index])
            function = units.block.function
            if function is not None:
                given = keras.ops.convert_to_tensor(value, "float32")
                value = np.asarray(keras.ops.convert_to_numpy(function(given)))
            sizes.append(np.square(self._gradient(value, units)).sum(axis=1))
        return np.where(sizes[0] >= sizes[1], 1.0, -1.0), variance

    def _addition(
        self, facts: Facts, axis: int, units: HiddenUnits, values: np.ndarray
    ) -> tuple[str, Addition]:
        """Weights of new units, zero towards what else is new."""
        axes = list(facts.weights["kernel"])
        axis %= len(axes)
        del axes[axis]
        for i, other in enumerate(axes, start=1):
            remap = remap_of(other.expression, self._remaps)
            if remap is None:
                continue
            wide = np.zeros((*values.shape[:i], remap.size, *values.shape[i + 1 :]))
            np.moveaxis(wide, i, 0)[~remap.new] = np.moveaxis(values, i, 0)
            values = wide
        at = np.flatnonzero(self._remaps[units.width].new)
        return f"{facts.path}/kernel", Addition(axis, at, values.astype("float32"))


def _kernel(facts: Facts) -> np.ndarray:
    variable = internals.named_variables(facts.operation)["kernel"]
    return internals.read_variable(variable).astype(float)


def _slopes(
    draft: Draft, x: Any, y: Any, readers: Sequence[Any], zeros: list[np.ndarray]
) -> list[np.ndarray]:
    """The gradients of the loss with respect to what layers sum up."""
    model, trained = draft.model, draft.loss_of
    # Before gradients are recorded, since a loss makes variables at its first call.
    trained.compute_loss(x=x, y=y, y_pred=model(x, training=False))

    def loss(probes: list[Any]) -> Any:
        added = dict(zip(map(id, readers), probes, strict=True))
        with _before_activation(readers, lambda layer, z: z + added[id(layer)]):
            made = model(x, training=True)
            return trained.compute_loss(x=x, y=y, y_pred=made, training=True)

    return gradients(loss, zeros)


@contextlib.contextmanager
def _before_activation(operations: Sequence[Any], change: Any) -> Iterator[None]:
    """Lets a function see and change what layers have summed up, before their activation."""
    held = [(layer, layer.activation) for layer in operations]

    def changed(layer: Any, function: Any) -> Any:
        def call(z: Any) -> Any:
            z = change(layer, z)
            return z if function is None else function(z)

        return call

    try:
        for layer, function in held:
            vars(layer)["activation"] = changed(layer, function)
        yield
    finally:
        for layer, function in held:
            vars(layer)["activation"] = function


def _at_zero(function: Any) -> tuple[float, float]:
    """The value and the slope of an activation at zero, as this backend has it."""
    if function is None:
        return 0.0, 1.0
    zero = np.zeros(1, "float32")
    value = float(keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(zero)))[0])
    slope = gradients(lambda x: keras.ops.sum(function(x[0])), [zero])[0][0]
    return value, float(slope)


# -- what a layer reads, as a matrix --------------------------------------------------------


def patches(x: np.ndarray, layer: Any) -> np.ndarray:
    """What each output of a layer reads, so that the layer is a matrix product.

    Args:
        x: The input.
        layer: A Dense or Conv2D layer.

    Returns:
        For Dense the input; for Conv2D, shape `(batch, height, width, kernel height x
        kernel width x channels)`, zeros where it is padded.
    """
    if not isinstance(layer, layers.Conv2D):
        return x
    return np.concatenate(list(_shifted(_channels_last(x, layer), layer)), axis=-1)


def correlation(h: np.ndarray, slopes: np.ndarray, layer: Any) -> np.ndarray:
    """The gradient of the weights with which a layer would read a tensor.

    Args:
        h: The tensor, channels last.
        slopes: The gradient of what the layer sums up.
        layer: A Dense or Conv2D layer.

    Returns:
        Shape `(channels of h, ..., units of the layer)`.
    """
    if not isinstance(layer, layers.Conv2D):
        return np.tensordot(h, slopes, (range(h.ndim - 1), range(h.ndim - 1)))
    slopes = _channels_last(slopes, layer)
    found = [np.tensordot(one, slopes, ((0, 1, 2), (0, 1, 2))) for one in _shifted(h, layer)]
    height, width = layer.kernel_size
    return np.stack(found, axis=1).reshape(h.shape[-1], height, width, -1)


def _channels_last(x: np.ndarray, layer: Any) -> np.ndarray:
    return np.moveaxis(x, 1, -1) if layer.data_format == "channels_first" else x


def _shifted(x: np.ndarray, layer: Any) -> Iterator[np.ndarray]:
    """For each place of a kernel, what it reads of a tensor at all outputs."""
    pads, counts = [(0, 0)], []
    for at in range(2):
        size, stride = layer.kernel_size[at], layer.strides[at]
        reach = (size - 1) * layer.dilation_rate[at] + 1
        length = x.shape[at + 1]
        if layer.padding == "same":
            count = -(-length // stride)
            total = max((count - 1) * stride + reach - length, 0)
            pads.append((total // 2, total - total // 2))
        else:
            count = (length - reach) // stride + 1
            pads.append((0, 0))
        counts.append(count)
    padded = np.pad(x, [*pads, (0, 0)])
    for i in range(layer.kernel_size[0]):
        for j in range(layer.kernel_size[1]):
            rows = i * layer.dilation_rate[0] + layer.strides[0] * np.arange(counts[0])
            columns = j * layer.dilation_rate[1] + layer.strides[1] * np.arange(counts[1])
            yield padded[:, rows][:, :, columns]
