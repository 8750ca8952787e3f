"""The check that a growth preserves the function, or refuses and leaves all as it was."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_net2net as n2n
from keras_net2net.operations.base import as_operations
from keras_net2net.widths.reading import read
from tests.support.helpers import BACKEND, array, both_modes, max_difference, randomize
from tests.support.random_models.draw import BATCH
from tests.support.random_models.growths import random_operation
from tests.support.random_models.models import Builder
from tests.support.random_models.sources import Source

# Rounding, relative to the largest output. In float64, anything more is a mistake.
TOLERANCES = {"float64": 1e-9, "float32": 3e-5}
LARGEST = 1e6  # outputs beyond it say nothing  # outputs beyond it say nothing


@dataclasses.dataclass
class Outcome:
    """What came of one example.

    Args:
        kinds: What each growth ended in: `"grown"`, `"nothing to do"`, or the error and why.
        types: The types of layers and operations in the model, if it grew.
        changed: Those of layers that changed.
        lines: The model and the operations in words.
        failed: The steps that Keras refused to build.
        difference: The largest difference, relative to the outputs.
    """

    kinds: list[str] = dataclasses.field(default_factory=list)
    types: set[str] = dataclasses.field(default_factory=set)
    changed: set[str] = dataclasses.field(default_factory=set)
    lines: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    difference: float = 0.0


class Mistake(AssertionError):
    """A growth that neither preserved the function nor refused."""


def check(source: Source, outcome: Outcome | None = None) -> Outcome:
    """Builds a random model and grows it once or twice.

    Args:
        source: Where choices come from.
        outcome: Filled in on the way, to tell of an example that fails.

    Returns:
        The outcome.

    Raises:
        Mistake: If the function changed, or a refusal left something behind.
        Exception: Whatever the growth raises that isn't a `GrowthError`.
    """
    outcome = outcome or Outcome()
    builder = Builder(source)
    outcome.lines, outcome.failed = builder.lines, builder.failed
    model, symbols = builder.model()
    randomize(model)
    _randomize_states(model)
    x = _data(symbols)
    try:
        before = _run(model, x)
    except Exception as error:  # what Keras builds, but doesn't run
        outcome.kinds.append("discarded: doesn't run")
        outcome.failed.append(f"run: {type(error).__name__}: {str(error)[:200]}")
        return outcome
    if not all(np.all(np.isfinite(y)) and np.max(np.abs(y), initial=0) < LARGEST for y in before):
        outcome.kinds.append("discarded: outputs too large")
        return outcome
    native = builder.native
    for number in range(1 + source.below(2)):
        operation = random_operation(source, model)
        if any(isinstance(one, n2n.NewClasses) for one in as_operations(operation)):
            _new_classes(model, operation, number, outcome, x)
            break  # the outputs are larger now
        outcome.lines.append(f"grow: {operation}")
        state = _state(model)
        try:
            grown, planned, rebuilt = _grow(model, operation, number, source.below(6) == 5)
        except n2n.GrowthError as error:
            outcome.kinds.append(_kind(error))
            if _state(model) != state:
                raise Mistake("a refused growth changed weights, sizes or nodes") from error
            if BACKEND != "jax" and max_difference(_run(model, x), before) > 0:
                raise Mistake("a refused growth changed outputs") from error
            continue
        if planned.empty:
            outcome.kinds.append("nothing to do")
            continue
        if grown is not model:
            outcome.lines[-1] += ", on a clone"
            if _state(model) != state:
                raise Mistake("the growth of a clone changed its teacher")
            model = grown
        before = _check_grown(model, planned, x, before, outcome)
        native &= rebuilt
        if native:
            _check_native(model, x, before)
    return outcome


def _check_grown(
    model: Any, planned: Any, x: Any, before: list[np.ndarray], outcome: Outcome
) -> list[np.ndarray]:
    """The model has the planned size, and computes what it did.

    Returns:
        Its outputs.
    """
    outcome.kinds.append("grown")
    outcome.types |= _types(model)
    outcome.changed |= {layer.kind for s in planned.steps for layer in s.layers}
    if model.count_params() != planned.parameters_after:
        raise Mistake(f"{model.count_params()} parameters, {planned.parameters_after} were planned")
    after = _run(model, x)
    inserted = [i.layer_class for step in planned.steps for i in step.insertions]
    half = len(before) // 2
    compared = half if layers.BatchNormalization in inserted else len(before)
    scale = max(1e-2, *(float(np.max(np.abs(y), initial=0.0)) for y in before))
    difference = max_difference(after[:compared], before[:compared]) / scale
    outcome.difference = max(outcome.difference, difference)
    if not difference <= TOLERANCES[keras.config.floatx()]:
        modes = [
            max_difference(after[part], before[part]) / scale
            for part in (slice(half), slice(half, None))
        ]
        raise Mistake(f"the outputs moved by {modes[0]:.1e}, in training by {modes[1]:.1e}")
    return after


def _new_classes(model: Any, operation: Any, seed: int, outcome: Outcome, x: Any) -> None:
    """Grows a head; the growth itself compares the outputs of the old classes."""
    outcome.lines.append(f"grow: {operation}")
    state, before = _state(model), _run(model, x)
    half = len(before) // 2
    try:
        report = n2n.grow(model, operation, seed=seed, verify=x)
    except n2n.errors.VerificationError as error:
        raise Mistake(f"old classes moved: {error}") from error
    except n2n.GrowthError as error:
        outcome.kinds.append(_kind(error))
        if _state(model) != state:
            raise Mistake("a refused growth changed weights, sizes or nodes") from error
        return
    outcome.kinds.append("grown")
    outcome.types |= _types(model)
    if model.count_params() != report.plan.parameters_after:
        raise Mistake(f"{model.count_params()} parameters, {report.plan.parameters_after} planned")
    sizes = [sum(y.shape) for y in before[:half]]
    if not sum(sum(y.shape) for y in _run(model, x)[:half]) > sum(sizes):
        raise Mistake("no output has more classes")


def _grow(model: Any, operation: Any, seed: int, clone: bool) -> tuple[Any, Any, bool]:
    """Grows a model, or a clone of it.

    Returns:
        What grew, the plan, and whether its configuration can be built again: a layer
        whose code leaves an epsilon at its default can't say that it changed.
    """
    if clone:
        planned = n2n.plan(model, operation, seed=seed)
        student = n2n.clone_and_grow(model, operation, seed=seed, verify=False)
        return student, planned, False
    report = n2n.grow(model, operation, seed=seed, verify=False)
    rebuilt = not any("can't be rebuilt" in note for note in report.notes)
    return model, report.plan, rebuilt


def _check_native(model: Any, x: Any, grown: list[np.ndarray]) -> None:
    """The configuration builds a model of the same shapes, which computes the same."""
    native = type(model).from_config(model.get_config())
    if not isinstance(model, keras.Function):
        native(x)
    shapes, wanted = _shapes(model), _shapes(native)
    if shapes != wanted:
        differ = [key for key in shapes.keys() | wanted if shapes.get(key) != wanted.get(key)]
        raise Mistake(f"shapes differ from a native model's at {differ[:3]}")
    native.set_weights(model.get_weights())
    for state, value in zip(_states(native), _states(model), strict=True):
        state.assign(value)
    for layer in native._flatten_layers():
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()
    if BACKEND == "jax":
        return
    difference = max_difference(_run(native, x), grown)
    if not difference <= 1e-5 * max(1.0, *(float(np.max(np.abs(y), initial=0.0)) for y in grown)):
        raise Mistake(f"a native model with the same weights differs by {difference:.1e}")


def _states(model: Any) -> list[Any]:
    """What stateful layers carry from batch to batch."""
    states = [
        getattr(layer, "states", None)
        for layer in model._flatten_layers()
        if getattr(layer, "stateful", False) and hasattr(layer, "cell")
    ]
    return [state for state in keras.tree.flatten(states) if isinstance(state, keras.Variable)]


def _randomize_states(model: Any) -> None:
    random = np.random.default_rng(1)
    for state in _states(model):
        state.assign(random.standard_normal(tuple(state.shape)))


def _shapes(model: Any) -> dict[str, Any]:
    """The shapes of the tensors in a model, and of its weights."""
    found: dict[str, Any] = {"weights": [tuple(w.shape) for w in model.weights]}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Function):
            for node in (node for nodes in layer._nodes_by_depth.values() for node in nodes):
                made = node.operation
                # An older Keras gives operations new names.
                name = made.name if isinstance(made, keras.Layer) else type(made).__name__
                # Masks come with the tensors, whether or not the graph says so.
                parts = [x for x in (*node.input_tensors, *node.outputs) if x.dtype != "bool"]
                if not {x.dtype for x in node.outputs} - {"bool"}:
                    continue
                tensors = [tuple(x.shape) for x in parts]
                found.setdefault(f"{layer.name}/{name}", []).append(tensors)
    return {
        key: sorted(value, key=repr) if key != "weights" else value for key, value in found.items()
    }


def _parts(model: Any) -> Iterator[Any]:
    """The layers and operations of a model, and those of models and layers in it."""
    for layer in model._flatten_layers():
        yield layer
        if isinstance(layer, keras.Function):
            yield from (part for part in layer.operations if not isinstance(part, keras.Layer))


def _types(model: Any) -> set[str]:
    """The types of layers and operations, those inside opened layers included."""
    operations = [call.operation for _, call in read(model).all_calls()]
    return {
        type(part).__name__ if isinstance(part, keras.Layer) else f"ops.{type(part).__name__}"
        for part in (*_parts(model), *operations)
    }


def _data(symbols: Any, batch: int = BATCH) -> Any:
    """Random inputs for symbolic ones; integers are below six."""
    random = np.random.default_rng(0)

    def make(tensor: Any) -> np.ndarray:
        shape = [batch, *(4 if size is None else size for size in tensor.shape[1:])]
        if "int" in tensor.dtype:
            return random.integers(0, 6, shape).astype(tensor.dtype)
        return random.standard_normal(shape).astype(tensor.dtype)

    return keras.tree.map_structure(make, symbols)


def _run(model: Any, x: Any) -> list[np.ndarray]:
    """The outputs at inference, then those in training mode."""
    return both_modes(model, x)


def _state(model: Any) -> Any:
    """All that a refused growth must leave: weights, configuration, nodes."""
    try:
        config = repr(model.get_config())
    except Exception:  # a Lambda's function, say
        config = ""
    return (
        [(w.path, array(w).tobytes(), tuple(w.shape)) for w in (*model.weights, *_states(model))],
        re.sub(r"0x[0-9a-f]+", "", config),
        [(id(part), len(part._inbound_nodes), len(part._outbound_nodes)) for part in _parts(model)],
    )


def _kind(error: Exception) -> str:
    """The error and what it blames, without names and sizes."""
    text = str(error)
    name = type(error).__name__
    blamed = re.search(r"\(([A-Z]\w*)\) ([a-z][^;:(.]{3,70})", text.split("Received:")[0])
    if blamed:
        return f"{name}: ({blamed[1]}) {re.sub(r'[0-9]+', 'n', blamed[2]).strip()}"
    for fixed in ("is an output of the model", "has no units of its own", "tied to those of"):
        if fixed in text:
            return f"{name}: {fixed}"
    reason = re.sub(r"'[^']*'", "...", text.split("Received:")[0].split(": ", 1)[-1])
    return f"{name}: {re.sub(r'[0-9]+', 'n', reason)[:70].strip()}"
