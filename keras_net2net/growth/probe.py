"""Does the grown model compute what it computed before? A probe batch tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import VerificationError
from keras_net2net.graph.structure import Graph, Tensor
from keras_net2net.planning.blueprint import Blueprint
from keras_net2net.planning.plan import OutputChange, Plan
from keras_net2net.planning.remaps import generator

# Relative to the largest output. A mistake moves outputs by percents; what is
# allowed here is rounding in a deep network.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
BATCH = 2
# Stand-ins for unknown sizes; the first that the model accepts is taken.
UNKNOWN = (8, 32, 64, 128, 224)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A batch, and what the model made of it before the growth.

    Args:
        batch: The inputs, nested as the model takes them.
        outputs: The outputs at inference, flat.
        dtype: The narrowest dtype that the model computes in.
        training: Whether it is about training mode instead. Defaults to `False`.
    """

    batch: Any
    outputs: list[np.ndarray]
    dtype: str
    training: bool = False

    def difference(self, model: Any, changes: Sequence[OutputChange] = ()) -> float | None:
        """The largest absolute difference of the model's outputs from those before.

        Args:
            model: The grown model.
            changes: The outputs that got larger, of which the old entries are compared.

        Returns:
            The difference, or `None` if no output can be compared.
        """
        new = [
            old_entries(y, i, changes) for i, y in enumerate(run(model, self.batch, self.training))
        ]
        differences = [
            float(np.max(np.abs(y - old), initial=0.0))
            for y, old in zip(new, self.outputs, strict=True)
            if y is not None
        ]
        return max(differences, default=None)

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding may make."""
        largest = max(float(np.max(np.abs(y), initial=0.0)) for y in self.outputs)
        return TOLERANCES.get(self.dtype, 1e-4) * max(largest, 1e-3)

    def check(self, model: Any, changes: Sequence[OutputChange] = ()) -> float | None:
        """Compares the outputs.

        Args:
            model: The grown model.
            changes: As in `difference`.

        Returns:
            The largest absolute difference, or `None` if nothing can be compared.

        Raises:
            VerificationError: If it is more than rounding.
        """
        difference = self.difference(model, changes)
        if difference is not None and not difference <= self.tolerance:
            raise VerificationError(
                f"The growth of {model.name!r} was undone",
                f"the outputs differ by up to {difference:.3g}, and rounding in {self.dtype} "
                f"explains {self.tolerance:.3g} at most",
                "Please report the model; `verify=False` grows it all the same",
                received=f"a probe batch of {BATCH if self.batch is None else _size(self.batch)}",
            )
        return difference


class Verification:
    """Compares what a model computes before and after a growth.

    Args:
        model: The model.
        verify: As `grow` takes it.
    """

    def __init__(self, model: Any, verify: Any) -> None:
        self._model = model
        self._verify = verify
        self._before: Probe | None = None
        self._in_training: Probe | None = None

    def before(self, blueprint: Blueprint) -> None:
        """Runs the model before a stage of the growth, once in each mode that is compared.

        No growth changes the inputs, so that the planned graph tells what to make.
        """
        if self._verify is False:
            return
        if self._before is None:
            batch = None if self._verify is True else self._verify
            self._before = probe(self._model, blueprint.graph, batch)
        if self._in_training is None and blueprint.plan.normalizes:
            data = blueprint.training_data
            batch = self._before.batch if data is None else data
            outputs = run(self._model, batch, True)
            self._in_training = Probe(batch, outputs, self._before.dtype, True)

    def after(self, plan: Plan) -> tuple[float | None, float | None, tuple[str, ...]]:
        """The largest differences at inference and in training mode, and what a user should know.

        Raises:
            VerificationError: If an exact growth changed more than rounding does.
        """
        if self._before is None:
            return None, None, ()
        compare = self._before.check if plan.exact else self._before.difference
        difference = compare(self._model, plan.outputs)
        if self._in_training is None:
            return difference, None, ()
        in_training = self._in_training.difference(self._model, plan.outputs)
        if in_training is None:
            return difference, None, ()
        same = self._in_training.batch is self._before.batch
        note = (
            f"in training mode the outputs on {'the probe batch' if same else 'that data'} differ "
            f"by up to {in_training:.1e} from those before"
        )
        return difference, in_training, (note,)


def old_entries(y: np.ndarray, output: int, changes: Sequence[OutputChange]) -> np.ndarray | None:
    """What an output that got larger says of its old entries, as it said it before.

    Where a softmax ran over old and new entries, the old ones are divided by what is
    left to them, which makes them what they were.

    Args:
        y: The output.
        output: Its position.
        changes: The outputs that got larger, in the order in which they did.

    Returns:
        The old entries, or `None` if they can't be compared.
    """
    for change in reversed([one for one in changes if one.output == output]):
        if change.kind == "mixed":
            return None
        y = np.take(y, np.flatnonzero(~change.remap.new), axis=change.axis)
        if change.kind == "values":
            continue
        y = np.moveaxis(y, change.axis, -1).copy()
        for start, end in change.parts:
            part = y[..., start:end]
            if change.kind == "softmax":
                part /= np.maximum(part.sum(axis=-1, keepdims=True), np.finfo(y.dtype).tiny)
            else:
                highest = part.max(axis=-1, keepdims=True)
                total = np.exp(part - highest).sum(axis=-1, keepdims=True)
                part -= highest + np.log(total)
        y = np.moveaxis(y, -1, change.axis)
    return y


def probe(model: Any, graph: Graph, batch: Any = None) -> Probe:
    """Runs a model on a probe batch before it grows.

    Args:
        model: The model.
        graph: Its graph.
        batch: The inputs to use. Defaults to `None`: made from the input shapes
            and dtypes.

    Returns:
        The probe.
    """
    if batch is not None:
        return Probe(batch, run(model, batch), _narrowest(model))
    problem: Exception | None = None
    unknown = any(None in tensor.shape[1:] for tensor in (graph.sources or graph.flat_inputs))
    for size in UNKNOWN if unknown else UNKNOWN[:1]:
        made = make_batch(graph, size)
        try:
            return Probe(made, run(model, made), _narrowest(model))
        except Exception as error:
            problem = error
    raise VerificationError(
        f"No probe batch could be made for {model.name!r}",
        f"the model refuses inputs made from its input shapes: {problem}",
        "Pass a batch of your data as `verify=x`, or `verify=False`",
        received="verify=True",
    ) from problem


def make_batch(graph: Graph, unknown: int) -> Any:
    """Random inputs for a model, nested as it takes them."""
    limits = _integer_limits(graph)
    words = _words(graph)

    # Inside a subclassed model, numbers stand for what is unknown outside.
    shapes = {id(x): source.shape for x, source in zip(graph.flat_inputs, graph.sources)}  # noqa: B905

    def make(tensor: Tensor) -> Any:
        name = str(getattr(tensor.keras_tensor, "name", ""))
        sizes = shapes.get(id(tensor), tensor.shape)
        shape = [BATCH if sizes[0] is None else sizes[0]]
        shape += [unknown if size is None else size for size in sizes[1:]]
        rng = generator(0, "probe", name)
        if tensor.dtype == "string":
            return rng.choice(words, shape).tolist()
        if id(tensor) in limits and "float" in tensor.dtype:  # looked up, whatever its dtype
            return rng.integers(0, limits[id(tensor)], shape).astype("float32")
        if "int" in tensor.dtype or tensor.dtype == "bool":
            high = limits.get(id(tensor), 2)
            return rng.integers(0, high, shape).astype(tensor.dtype)
        return rng.standard_normal(shape).astype(
            "float32" if tensor.dtype == "bfloat16" else tensor.dtype
        )

    batch = keras.tree.map_structure(make, graph.inputs)
    if all(tensor.dtype != "string" for tensor in graph.flat_inputs):
        return batch
    # NumPy's texts aren't TensorFlow's, and Keras takes either arrays or tensors.
    return keras.tree.map_structure_up_to(
        graph.inputs,
        lambda tensor, x: keras.ops.convert_to_tensor(x, dtype=tensor.dtype),
        graph.inputs,
        batch,
    )


def _words(graph: Graph) -> list[str]:
    """The words that the layers of a graph look up, and one that none knows."""
    found = {"?"}
    for _, call in graph.all_calls():
        if isinstance(call.operation, (keras.layers.StringLookup, keras.layers.TextVectorization)):
            found |= set(map(str, call.operation.get_vocabulary()))
    return sorted(found)


def _integer_limits(graph: Graph) -> dict[int, int]:
    """For inputs that index an embedding: how many entries it has."""
    limits: dict[int, int] = {}
    same: dict[int, int] = {}  # casts, and the inputs of opened layers
    for inner, call in graph.all_calls():
        for inside, source in zip(inner.flat_inputs, inner.sources):  # noqa: B905
            same[id(inside)] = id(source)
        if type(call.operation).__name__ == "Cast" and call.inputs:
            same[id(call.outputs[0])] = id(call.inputs[0])
        if isinstance(call.operation, keras.layers.Embedding):
            for tensor in call.inputs:
                at, size = id(tensor), call.operation.input_dim
                while at in same:
                    limits[at] = min(size, limits.get(at, size))
                    at = same[at]
                limits[at] = min(size, limits.get(at, size))
    return limits


def run(model: Any, batch: Any, training: bool = False) -> list[np.ndarray]:
    """The outputs of a model, flat, in float64 or their own precision."""
    with keras.StatelessScope():  # what a recurrent layer carries from batch to batch stays
        outputs = keras.tree.flatten(_call(model, batch, training))
    arrays = [keras.ops.convert_to_numpy(y) for y in outputs]
    return [y.astype(np.float64) for y in arrays]


def _call(model: Any, batch: Any, training: bool) -> Any:
    """What a model makes of a batch; the models that one without a `call` holds, of one each."""
    if internals.function_of(model) is not None or not internals.has_no_call(model):
        return model(batch, training=training)
    parts = internals.held_models(model)
    return [part(x, training=training) for part, x in zip(parts, batch, strict=True)]


def _narrowest(model: Any) -> str:
    dtypes = {layer.compute_dtype for layer in internals.all_layers(model)}
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        if dtype in dtypes:
            # On JAX and PyTorch, Keras computes in float32 what is given in float64.
            return str(keras.backend.result_type(dtype, dtype))
    return "float32"


def _size(batch: Any) -> str:
    return f"shape {[tuple(np.shape(x)) for x in keras.tree.flatten(batch)]}"
