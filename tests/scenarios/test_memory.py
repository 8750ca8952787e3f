"""After a growth nothing of what was before is kept alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.graph.structure import Graph
from keras_net2net.growth.transaction import Transaction
from keras_net2net.planning.draft import Draft
from tests.support.helpers import BACKEND, few, flat_layers, long_elsewhere, randomize
from tests.support.states import alive, operations


def model_of(first: int = 4, second: int = 5, depth: int = 0) -> keras.Model:
    """A model with a nested one, a normalization and a branch, at given widths."""
    inner = keras.Sequential(
        [
            keras.Input((first,), name="inside"),
            layers.Dense(second, name="fc"),
            layers.BatchNormalization(name="bn"),
        ],
        name="inner",
    )
    x = inputs = keras.Input((3,), name="x")
    x = layers.Dense(first, activation="relu", name="first")(x)
    for i in range(depth):
        x = layers.Dense(first, activation="relu", name=f"first_deeper_{i + 1}")(x)
    x = layers.ReLU(name="act")(inner(x))
    x = layers.Add(name="sum")([x, layers.Dense(second, name="side")(inputs)])
    return keras.Model(inputs, layers.Dense(2, name="out")(x), name="memory")


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return tuple(random.standard_normal((8, k)).astype("float32") for k in (3, 2))


def train(model: keras.Model) -> keras.Model:
    x, y = data()
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    model.evaluate(x, y, batch_size=8, verbose=0)
    model.predict(x, batch_size=8, verbose=0)
    return model


def compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(0.001), "mse", jit_compile=False)
    return train(model)


def values_of(variables: Any) -> list[weakref.ref]:
    return [weakref.ref(variable._value) for variable in variables]


def still(references: list[weakref.ref]) -> list[Any]:
    """What is still alive, for the message of a failed test its shape alone."""
    gc.collect()
    return [getattr(r(), "shape", r()) for r in references if r() is not None]


def twenty(model: keras.Model, operation: Callable[[int], Any]) -> list[n2n.GrowthReport]:
    return [n2n.grow(model, operation(i), seed=i, verify=i == 0) for i in range(20)]


def wider(i: int) -> Any:
    return n2n.Wider({"first": 5 + i, "inner/fc": 6 + i})


OPERATIONS = {
    "wider": (n2n.Wider(factor=1.5), 11),
    "deeper": (n2n.Deeper("first"), 0),
    "deeper inside": (n2n.Deeper("inner/fc", units=7), 3),
}


@pytest.mark.parametrize(("operation", "count"), few(OPERATIONS, 2))
def test_old_values_slots_tensors_and_functions_are_gone(operation, count):
    model = compiled(randomize(model_of()))
    by_path = dict(flat_layers(model))
    plan = n2n.plan(model, operation)
    changes = [change for step in plan.steps for layer in step.layers for change in layer.variables]
    names = {change.name for change in changes}
    changing = [
        weight
        for path, layer in by_path.items()
        for weight in layer.weights
        if f"{path}/{weight.name}" in names
    ]
    old = values_of(changing)
    assert len(old) == count
    slots = model.optimizer.variables[2:]
    references = [*old, *values_of(slots), *(weakref.ref(slot) for slot in slots)]
    for kind in ("train", "test", "predict"):
        references.append(weakref.ref(getattr(model, f"{kind}_function")))
    if isinstance(operation, n2n.Deeper):  # the calls are recorded anew
        changed = model.get_layer("inner") if "inner" in str(operation) else model
        calls = [n for n in changed.layers[-1]._inbound_nodes if n.outputs[0] is changed.outputs[0]]
        assert len(calls) == 1
        references += [weakref.ref(thing) for thing in (calls[0], calls[0].outputs[0])]
        del calls
    del slots, changing, by_path
    report = n2n.grow(model, operation, seed=0)
    assert still(references) == []
    assert alive(Draft, Graph, Transaction) == [0, 0, 0]
    train(model)
    assert report.plan.parameters_after == model.count_params()


def total(model: keras.Model) -> dict[str, int]:
    """How many nodes the operations of a model hold."""
    return {
        operation.name: (len(operation._inbound_nodes), len(operation._outbound_nodes))
        for operation in operations(model)
    }


@long_elsewhere
def test_the_number_of_nodes_stays_and_is_that_of_a_native_model():
    model = randomize(model_of())
    before = total(model)
    tensors = alive(keras.KerasTensor)
    twenty(model, wider)
    assert total(model) == before
    assert alive(keras.KerasTensor) == tensors
    for i in range(3):
        n2n.grow(model, n2n.Deeper("first"), seed=i, verify=False)
    assert total(model) == total(model_of(24, 25, depth=3))


NODE = type(layers.Dense(1)(keras.Input((1,)))._keras_history.operation._inbound_nodes[0])


def live() -> dict[str, int]:
    """What is alive of everything that could pile up."""
    if BACKEND == "jax":
        import jax

        jax.clear_caches()  # what it has compiled for each size that it has seen
    kinds = {
        "variables": keras.Variable,
        "tensors": keras.KerasTensor,
        "layers": keras.Layer,
        "nodes": type(
            layers.Dense(1)(keras.Input((1,)))._keras_history.operation._inbound_nodes[0]
        ),
    }
    found = dict(zip(kinds, alive(*kinds.values()), strict=True))
    # The compiled functions of the backends, which have no common class.
    compiled = ("FuncGraph", "AtomicFunction", "ConcreteFunction", "PjitFunction")
    found["functions"] = sum(type(thing).__name__ in compiled for thing in gc.get_objects())
    if BACKEND == "jax":
        found["bytes"] = sum(array.nbytes for array in jax.live_arrays())
    if BACKEND == "torch":
        import torch

        found["bytes"] = sum(
            thing.nbytes
            for thing in gc.get_objects()
            if type(thing) in (torch.Tensor, torch.nn.Parameter)
        )
    return found


def difference(now: dict[str, int], then: dict[str, int]) -> dict[str, int]:
    return {key: now[key] - then[key] for key in now}


@pytest.mark.long
def test_after_a_hundred_growths_as_much_is_alive_as_of_a_native_model():
    depth = 2

    def native() -> keras.Model:
        return compiled(randomize(model_of(104, 105, depth)))

    def grown(count: int = 100) -> keras.Model:
        model = compiled(randomize(model_of()))
        for i in range(count):
            n2n.grow(model, wider(i), seed=i, verify=False)
        for i in range(depth):
            n2n.grow(model, n2n.Deeper("first"), seed=i, verify=False)
        return train(model)

    held = []
    for make in (native, lambda: grown(2)):
        model = make()
        del model  # what the first run of each leaves behind forever, as caches do
    for make in (native, grown):
        before = live()
        model = make()
        names = [sorted(v.path for v in held.variables) for held in (model, model.optimizer)]
        names = [[path.split("/")[-1] for path in paths] for paths in names]
        held.append((difference(live(), before), model.count_params(), names))
        assert len({layer.name for layer in model.layers}) == len(model.layers)
        del model
    (in_native, parameters, names), (in_grown, same, names_grown) = held
    assert parameters == same
    assert names_grown == names
    for kind in ("variables", "layers"):
        assert in_grown[kind] == in_native[kind]
    for kind in ("tensors", "nodes", "functions"):
        assert in_grown[kind] <= in_native[kind]
    if "bytes" in in_grown:
        assert in_grown["bytes"] <= 1.05 * in_native["bytes"]


@pytest.mark.long
def test_a_hundred_students_leave_nothing_and_keep_their_names():
    teacher = randomize(model_of())
    n2n.clone_and_grow(teacher, wider(0), seed=0, verify=False)
    before = live()
    for i in range(50):
        student = n2n.clone_and_grow(teacher, wider(0), seed=i, verify=False)
    names = [v.path for v in student.variables]
    for i in range(50):  # each the teacher of the next
        student = n2n.clone_and_grow(student, wider(i + 1), seed=i, verify=False)
    assert [v.path for v in student.variables] == names
    assert [path for path, _ in flat_layers(student)] == [path for path, _ in flat_layers(teacher)]
    del student
    assert live() == before


@pytest.mark.long
def test_a_fit_with_growths_keeps_nothing_either():
    model = compiled(randomize(model_of()))
    growth = n2n.GrowthScheduler(
        {i: wider(i) for i in range(6)} | {6: n2n.Deeper("first")}, seed=0, verbose=0, verify=False
    )
    references: list[weakref.ref] = []

    class Refer(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch < 7:
                weights = [
                    w for name in ("first", "side") for w in self.model.get_layer(name).weights
                ]
                references.extend(values_of(weights if epoch < 6 else []))
                references.extend(values_of(self.model.optimizer.variables[2:]))
                references.append(weakref.ref(self.model.train_function))

    x, y = data()
    model.fit(x, y, epochs=8, batch_size=8, verbose=0, callbacks=[Refer(), growth])
    assert len(growth.history) == 7
    assert still(references) == []
    gone = weakref.ref(model)
    del model
    growth.set_model(None)
    gc.collect()
    assert gone() is None
    assert len(growth.history) == 7


@long_elsewhere
def test_a_growth_that_failed_keeps_nothing_either(monkeypatch):
    model = compiled(randomize(model_of()))
    variables = alive(keras.Variable, Draft, Transaction)
    with monkeypatch.context() as patch:
        patch.setattr("keras_net2net.growth.probe.Probe.check", None)
        for i in range(3):
            with pytest.raises(TypeError):
                n2n.grow(model, [wider(i), n2n.Deeper("first")], seed=i)
    assert alive(keras.Variable, Draft, Transaction) == variables
    assert variables[1:] == [0, 0]


@pytest.mark.skipif(BACKEND != "jax", reason="the others compile nothing to make an array")
@pytest.mark.parametrize("state", ["reset", "carry"])
def test_a_growth_compiles_no_program_for_each_new_shape(state):
    import jax

    model = compiled(model_of())
    n2n.grow(model, n2n.Wider("first", 5), seed=0, optimizer_state=state, verify=False)
    seen: list[str] = []

    def listen(event: str, seconds: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        keras.ops.zeros((3, 1, 1, 4, 1, 5 + (state == "carry")))  # the first of their shape
        assert seen, "the listener doesn't hear"
        seen.clear()
        n2n.grow(model, n2n.Wider("first", 71), seed=0, optimizer_state=state, verify=False)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not seen
