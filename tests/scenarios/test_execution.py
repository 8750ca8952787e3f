"""Growth inside `fit`, in every precision and every way in which Keras runs a training.

The oracle of each row is the same training by hand: a `fit` up to the growth, `grow`, and a
`fit` of the rest. Both must end with the same weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.helpers import BACKEND, array, max_difference, outputs, precision, randomize

_random = np.random.default_rng(0)
X = _random.standard_normal((12, 4)).astype("float32")
Y = _random.standard_normal((12, 2)).astype("float32")
LABELS = _random.integers(0, 2, (12, 1))
GROWTH = [n2n.Wider("fc", 9), n2n.Deeper("fc")]
KERNELS = (4, 6), (4, 9)  # of `fc`, before and after
ROUNDING = {"mixed_float16": 1e-2, "mixed_bfloat16": 1e-1, "bfloat16": 1e-1}
if BACKEND == "tensorflow":  # elsewhere, Keras computes in float32 what is given in float64
    ROUNDING["float64"] = 1e-12


@keras.saving.register_keras_serializable("tests.execution")
class Penalty(layers.Layer):
    """Adds to the loss what its inputs amount to."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def hidden(x, *more):
    x = layers.Dense(6, activation="relu", name="fc")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Dense(2, name="out")(x)
    for layer in more:
        x = layer(x)
    return x


def plain() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, hidden(inputs))


def penalized() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, hidden(inputs, Penalty(name="penalty")))


def classifier() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, hidden(inputs, layers.Softmax()))


class Subclassed(keras.Model):
    """A model that adds to its own loss."""

    def __init__(self):
        super().__init__()
        self.fc = layers.Dense(6, activation="relu", name="fc")
        self.out = layers.Dense(2, name="out")

    def call(self, x):
        y = self.out(self.fc(x))
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(y)))
        return y


def subclassed() -> keras.Model:
    model = Subclassed()
    model(X)
    return model


# -- where data come from --------------------------------------------------------------------------


def arrays(targets: Any = Y) -> dict[str, Any]:
    return {"x": X, "y": targets, "batch_size": 4}


def weighted() -> dict[str, Any]:
    return {**arrays(), "sample_weight": np.linspace(0, 2, 12).astype("float32")}


def classes() -> dict[str, Any]:
    return {**arrays(LABELS), "class_weight": {0: 0.5, 1: 2.0}}


def tensorflow_data() -> dict[str, Any]:
    tf = pytest.importorskip("tensorflow")
    return {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)}


def torch_data() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.as_tensor(X), torch.as_tensor(Y))
    return {"x": torch.utils.data.DataLoader(dataset, batch_size=4)}


def generator() -> dict[str, Any]:
    def batches():
        while True:
            for at in range(0, 12, 4):
                yield X[at : at + 4], Y[at : at + 4]

    return {"x": batches(), "steps_per_epoch": 3}


class Sequence(keras.utils.PyDataset):
    """One batch again and again: Keras begins a `fit` with workers at another one."""

    def __len__(self):
        return 3

    def __getitem__(self, at):
        return X[:4], Y[:4]


def workers() -> dict[str, Any]:
    return {"x": Sequence(workers=2, use_multiprocessing=False, max_queue_size=2)}


def scaled() -> keras.optimizers.LossScaleOptimizer:
    """A scale that has doubled once when the model grows, and twice at the end."""
    inner = keras.optimizers.Adam(0.01)
    return keras.optimizers.LossScaleOptimizer(inner, 16.0, dynamic_growth_steps=3)


def accumulated() -> keras.optimizers.LossScaleOptimizer:
    """The growth comes in the middle of a step: after three batches of four."""
    inner = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    return keras.optimizers.LossScaleOptimizer(inner, 16.0, dynamic_growth_steps=3)


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to train.

    Args:
        policy: The dtype policy.
        build: Makes the model.
        optimizer: Makes the optimizer.
        compiled: What `compile` is given.
        data: Makes what `fit` is given of the data.
        fitted: What else `fit` is given.
        backends: The backends that can do it.
        steps: The steps of the optimizer in an epoch.
        state: What becomes of the optimizer's state.
        dynamo: On PyTorch, what the steps are compiled with.
        traced: Whether TensorFlow traces the steps, for which it takes long.
    """

    policy: str = "float32"
    build: Callable[[], keras.Model] = plain
    optimizer: Callable[[], Any] = lambda: keras.optimizers.Adam(0.01)
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: Callable[[], dict[str, Any]] = arrays
    fitted: dict[str, Any] = dataclasses.field(default_factory=dict)
    backends: tuple[str, ...] = ("tensorflow", "jax", "torch")
    steps: float = 3
    state: str = "reset"
    dynamo: str = ""
    traced: bool = False


ROWS = {
    "float32": Row(traced=True),
    "mixed_float16": Row("mixed_float16", optimizer=scaled, traced=True),
    "mixed_float16, carried": Row(
        "mixed_float16",
        optimizer=scaled,
        state="carry",
        backends=("tensorflow", "torch"),
        traced=True,
    ),
    "mixed_float16, accumulated and carried": Row(
        "mixed_float16", optimizer=accumulated, steps=1.5, state="carry", traced=True
    ),
    "mixed_bfloat16": Row("mixed_bfloat16"),
    "bfloat16": Row("bfloat16"),
    "float64": Row("float64"),
    "jit_compile=True": Row(
        compiled={"jit_compile": True}, backends=("tensorflow", "jax"), traced=True
    ),
    "jit_compile=True, PyTorch's graphs": Row(
        compiled={"jit_compile": True}, backends=("torch",), dynamo="eager"
    ),
    "jit_compile=True, PyTorch's compiler": Row(
        compiled={"jit_compile": True}, backends=("torch",), dynamo="inductor"
    ),
    "jit_compile='auto'": Row(compiled={"jit_compile": "auto"}, traced=True),
    "run_eagerly": Row(compiled={"run_eagerly": True}),
    "steps_per_execution": Row(
        compiled={"steps_per_execution": 2}, backends=("tensorflow", "jax"), traced=True
    ),
    "gradient accumulation": Row(
        optimizer=lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
        steps=1.5,
        traced=True,
    ),
    "class weights": Row(
        build=classifier,
        data=classes,
        compiled={"loss": "sparse_categorical_crossentropy"},
    ),
    "sample weights": Row(data=weighted, compiled={"weighted_metrics": ["mae"]}),
    "tf.data": Row(data=tensorflow_data, traced=True),
    "torch DataLoader": Row(data=torch_data),
    "PyDataset with workers": Row(data=workers),
    "generator": Row(data=generator),
    "validation_freq": Row(fitted={"validation_data": (X, Y), "validation_freq": 2}),
    "validation_split": Row(fitted={"validation_split": 1 / 3}, steps=2),
    "a layer with add_loss": Row(build=penalized),
    "a model with add_loss": Row(build=subclassed),
}
OF_THE_DATA = {
    *("class weights", "sample weights", "torch DataLoader", "PyDataset with workers"),
    *("generator", "validation_freq", "validation_split"),
}
HERE = [
    # What compiles C++ takes a minute or two; where the data come from is no backend's matter.
    pytest.param(
        row,
        id=name,
        marks=[pytest.mark.long]
        * (row.dynamo == "inductor" or (BACKEND != "torch" and name in OF_THE_DATA)),
    )
    for name, row in ROWS.items()
    if BACKEND in row.backends
]


@contextlib.contextmanager
def compiled_by(dynamo: str) -> Iterator[list[set[tuple[int, ...]]]]:
    """Compiles steps on PyTorch, and notes the shapes of what each graph is given.

    Giving up on a function that was compiled too often is an error. The compiler's own
    warnings aren't.
    """
    graphs: list[set[tuple[int, ...]]] = []
    if not dynamo:
        yield graphs
        return
    import torch

    def noting(module: Any, inputs: list[Any]) -> Any:
        graphs.append({tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)})
        return torch._dynamo.lookup_backend(dynamo)(module, inputs)

    compile_ = torch.compile
    torch.compiler.reset()
    with (
        mock.patch.object(torch, "compile", lambda step: compile_(step, backend=noting)),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield graphs
    torch.compiler.reset()


def made(row: Row) -> keras.Model:
    model = randomize(row.build())
    settings: dict[str, Any] = {"loss": "mse", "jit_compile": False}
    if BACKEND == "tensorflow" and not row.traced:
        settings["run_eagerly"] = True
    settings |= row.compiled
    model.compile(row.optimizer(), **settings)
    return model


def train(model: keras.Model, row: Row, first: int, last: int, *callbacks) -> dict[str, list]:
    kwargs = {"shuffle": False, "verbose": 0} | row.data() | row.fitted
    history = model.fit(initial_epoch=first, epochs=last, callbacks=list(callbacks), **kwargs)
    return history.history


class Watch(keras.callbacks.Callback):
    """What the model computes when an epoch begins, and the scale of its loss."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[list[np.ndarray], float, int]] = []

    def on_epoch_begin(self, epoch, logs=None):
        optimizer = self.model.optimizer
        scale = float(array(getattr(optimizer, "dynamic_scale", 1.0)))
        steps = int(array(optimizer.iterations))
        self.seen.append((outputs(self.model, X), scale, steps))


@pytest.mark.parametrize("row", HERE)
def test_a_training_with_a_growth_in_it_is_what_it_is_by_hand(row):
    with precision(row.policy), compiled_by(row.dynamo) as graphs:
        model, before, after = made(row), Watch(), Watch()
        # The code of a subclassed model decides which layers it calls.
        operations = GROWTH[0] if row.build is subclassed else GROWTH
        growth = n2n.GrowthScheduler({2: operations}, seed=0, verbose=0, optimizer_state=row.state)
        history = train(model, row, 1, 4, before, growth, after)
        rounding = ROUNDING.get(row.policy, 1e-6)
        # The function and the progress stay at the growth.
        assert [report.epoch for report in growth.history] == [2]
        assert model.get_layer("fc").units == 9
        notes = [note for note in growth.history[0].notes if "adds to the loss" in note]
        assert bool(notes) == (row.build in (penalized, subclassed))
        for (old, *progress), (new, *same) in zip(before.seen, after.seen, strict=True):
            assert max_difference(new, old) < rounding
            assert progress == same
        steps = [step for *_, step in after.seen]
        assert steps == [int(n * row.steps) for n in range(3)]
        assert len(history["loss"]) == 3
        assert all(np.all(np.isfinite(values)) for values in history.values())
        if "mixed_float16" in row.policy:
            # TensorFlow builds the optimizer with its first step.
            assert [scale for _, scale, _ in after.seen][1:] == [32.0, 64.0]
        if row.dynamo:  # the kernels before and after
            assert [sum(shape in graph for graph in graphs) > 0 for shape in KERNELS] == [True] * 2
            assert sum(KERNELS[1] in graph for graph in graphs[-4:]) > 0
        # And by hand; where PyTorch compiles, without that.
        row = dataclasses.replace(row, compiled={}) if row.dynamo else row
        other = made(row)
        losses = train(other, row, 1, 2)["loss"]
        n2n.grow(other, growth.history[0].operations, seed=0, optimizer_state=row.state)
        losses += train(other, row, 2, 4)["loss"]
        assert np.allclose(history["loss"], losses, atol=10 * rounding)
        for ours, theirs in zip(model.weights, other.weights, strict=True):
            assert ours.dtype == theirs.dtype
            assert np.max(np.abs(array(ours).astype("float64") - array(theirs))) <= 10 * rounding


def test_a_loop_of_ones_own_grows_between_two_batches():
    """It ends where a `fit` of the same batches ends that grows at that place."""
    looped, fitted = made(Row()), made(Row())
    losses = []
    for step in range(9):
        if step == 3:
            x, y = X[:4], Y[:4]
            looped.reset_metrics()  # up to Keras 3.10 it returns the mean since the last one
            loss = looped.test_on_batch(x, y)
            n2n.grow(looped, GROWTH, seed=0)
            looped.reset_metrics()
            assert abs(looped.test_on_batch(x, y) - loss) < 1e-6
        at = 4 * (step % 3)
        losses.append(float(looped.train_on_batch(X[at : at + 4], Y[at : at + 4])))
    growth = n2n.GrowthScheduler({1: GROWTH}, seed=0, verbose=0)
    train(fitted, Row(), 0, 3, growth)
    assert np.all(np.isfinite(losses))
    for ours, theirs in zip(looped.weights, fitted.weights, strict=True):
        assert np.max(np.abs(array(ours) - array(theirs))) < 1e-5


@pytest.mark.long
@pytest.mark.skipif(BACKEND != "torch", reason="compiles a function eight times at most there")
def test_any_number_of_growths_is_compiled_on_pytorch():
    """What was compiled for the model before a growth doesn't count any more."""
    schedule = {n: n2n.Wider("fc", 6 + n) for n in range(1, 4)}
    row = Row(compiled={"jit_compile": True}, dynamo="eager")
    with compiled_by(row.dynamo) as graphs:
        model, plainly = made(row), made(Row())
        for one in (model, plainly):
            growth = n2n.GrowthScheduler(schedule, seed=0, verbose=0)
            train(one, row, 0, 4, growth)
            assert [report.epoch for report in growth.history] == [1, 2, 3]
    found = {shape for graph in graphs for shape in graph}
    assert {(4, 6 + n) for n in range(4)} <= found
    for ours, theirs in zip(model.weights, plainly.weights, strict=True):
        assert np.max(np.abs(array(ours) - array(theirs))) < 1e-5
