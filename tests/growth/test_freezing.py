"""Frozen trunks: what is frozen stays, bit for bit, whatever grows and trains beside it."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import FixedWidthError, GrowthError
from tests.support.helpers import (
    BACKEND,
    EAGERLY,
    array,
    assert_same,
    both_modes,
    cases,
    data_for,
    outputs,
    randomize,
    snapshot,
)
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state


def mlp() -> keras.Model:
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="a")(x)
    x = layers.Dense(5, activation="relu", name="b")(x)
    x = layers.Dense(4, activation="relu", name="c")(x)
    return randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name="mlp"))


def convolutional() -> keras.Model:
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, use_bias=False, name="a")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(4, 3, use_bias=False, name="b")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn2")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(keras.Model(inputs, layers.Dense(2, name="out")(x), name="conv"))


def compiled(model, optimizer=None, **kwargs) -> keras.Model:
    model.compile(
        optimizer or keras.optimizers.AdamW(0.05, weight_decay=0.1), "mse", **(EAGERLY | kwargs)
    )
    return model


def train(model, steps: int = 2) -> None:
    x = data_for(model, batch=8)
    y = [np.ones_like(out, "float32") for out in outputs(model, x)]
    model.fit(x, y[0], batch_size=8 // steps, epochs=1, verbose=0)


def values(model) -> dict[str, np.ndarray]:
    return {weight.path: array(weight) for weight in model.weights}


def moved(before, after) -> dict[str, np.ndarray]:
    """For each weight, which of its entries have changed."""
    return {path: before[path] != after[path] for path in before}


# -- layers that the user froze ----------------------------------------------------------


def test_frozen_layers_grow_and_stay_frozen():
    model = mlp()
    model.get_layer("a").trainable = model.get_layer("b").trainable = False
    compiled(model)
    train(model)
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, [n2n.Wider(factor=1.5), n2n.Deeper("a")], seed=0)
    assert_same(both_modes(model, x), before)
    assert [layer.name for layer in model.layers if not layer.trainable] == ["a", "b"]
    start = values(model)
    train(model)
    changes = moved(start, values(model))
    for path, change in changes.items():
        assert change.any() == (path.split("/")[0] not in ("a", "b")), path
    # Thawed by the user, they have gradients again.
    model.get_layer("a").trainable = model.get_layer("b").trainable = True
    compiled(model)
    train(model)
    assert all(change.any() for change in moved(start, values(model)).values())


def test_a_frozen_batch_normalization_grows_and_runs_in_inference_mode():
    model = convolutional()
    model.get_layer("a").trainable = model.get_layer("bn").trainable = False
    compiled(model)
    n2n.grow(model, n2n.Wider("a", 5), seed=0)
    start = values(model)
    train(model)
    changes = moved(start, values(model))
    assert not any(
        change.any() for path, change in changes.items() if path.startswith(("a", "bn/"))
    )
    assert changes["bn2/moving_mean"].all()
    assert changes["b/kernel"].all()


# -- freeze="teacher" ----------------------------------------------------------------------

OPTIMIZERS = {
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05)),
    "lion": lambda: keras.optimizers.Lion(0.01, weight_decay=0.1, clipnorm=1.0),
}


@pytest.mark.parametrize("new_units", cases({"replicate": 0, "fresh": 1}, 1))
@pytest.mark.parametrize("name", cases(OPTIMIZERS, 1))
def test_only_what_is_new_is_trained(name, new_units):
    model = compiled(mlp(), OPTIMIZERS[name]())
    train(model)
    n2n.grow(model, n2n.Wider("b", 8, new_units=new_units), seed=0, freeze="teacher")
    start = values(model)
    train(model)
    changes = moved(start, values(model))
    old = {
        "b/kernel": (slice(None), slice(5)),
        "b/bias": (slice(5),),
        "c/kernel": (slice(5), slice(None)),
    }
    for path, change in changes.items():
        if path not in old:
            assert not change.any(), path
            continue
        assert not change[old[path]].any(), path
        change[old[path]] = True
        # Fresh units are read with zeros, so that the first step moves what reads them.
        assert change.any() if path != "c/kernel" else change.mean() > 0.6, path
    assert [layer.trainable for layer in model.layers[1:]] == [False, True, True, False]


def test_inserted_layers_are_trained_and_all_else_is_not():
    model = compiled(mlp())
    n2n.grow(model, [n2n.Deeper("a"), n2n.Wider("b", 7)], seed=0, freeze="teacher")
    start = values(model)
    train(model)
    changes = moved(start, values(model))
    assert changes["a_deeper_1/kernel"].any()
    assert not changes["a/kernel"].any()
    assert not changes["b/kernel"][:, :5].any()
    assert changes["b/kernel"][:, 5:].any()


def test_batch_normalizations_are_frozen_where_they_are_old_and_masked_where_they_are_mixed():
    model = compiled(convolutional())
    report = n2n.grow(model, n2n.Wider("b", 6), seed=0, freeze="teacher")
    assert any("'bn2'" in note and "batch" in note for note in report.notes)
    start = values(model)
    train(model)
    changes = moved(start, values(model))
    for path, change in changes.items():
        if path.startswith(("a/", "bn/")):
            assert not change.any(), path
    assert not changes["bn2/gamma"][:4].any()
    assert changes["bn2/gamma"][4:].all()
    assert not changes["b/kernel"][..., :4].any()
    assert changes["b/kernel"][..., 4:].any()


@pytest.mark.parametrize("jit", [BACKEND != "torch"])
def test_steps_that_are_compiled_or_called_one_by_one_keep_it(jit):
    model = compiled(mlp(), jit_compile=jit, run_eagerly=False)
    n2n.grow(model, n2n.Wider("b", 8), seed=0, freeze="teacher")
    start = values(model)
    x, y = data_for(model, batch=8), np.ones((8, 2), "float32")
    for _ in range(2):
        model.train_on_batch(x, y)
    train(model)
    changes = moved(start, values(model))
    assert not changes["b/kernel"][:, :5].any()
    assert changes["b/kernel"][:, 5:].any()


def test_a_student_that_is_compiled_later_is_frozen_too():
    teacher = mlp()
    student = n2n.clone_and_grow(teacher, n2n.Wider("b", 8), seed=0, freeze="teacher")
    assert all(layer.trainable for layer in teacher.layers)
    compiled(student)
    start = values(student)
    train(student)
    changes = moved(start, values(student))
    assert not changes["b/kernel"][:, :5].any()
    assert changes["b/kernel"][:, 5:].any()
    # A copy of it is as frozen as it is.
    twin = compiled(n2n.clone(student))
    start = values(twin)
    train(twin)
    assert not moved(start, values(twin))["b/kernel"][:, :5].any()
    n2n.unfreeze(twin)
    assert all(layer.trainable for layer in twin.layers)
    assert not student.get_layer("a").trainable


def test_it_is_part_of_a_schedule():
    model = compiled(mlp())
    x, y = data_for(model, batch=8), np.ones((8, 2), "float32")
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(values(model))
    )
    growth = n2n.GrowthScheduler({1: n2n.Wider("b", 8)}, seed=0, verbose=0, freeze="teacher")
    model.fit(x, y, epochs=3, batch_size=4, verbose=0, callbacks=[growth, watch])
    assert np.array_equal(seen[1]["a/kernel"], seen[0]["a/kernel"])
    assert np.array_equal(seen[2]["b/kernel"][:, :5], seen[0]["b/kernel"])
    assert not np.array_equal(seen[2]["b/kernel"][:, 5:], seen[1]["b/kernel"][:, 5:])


def test_a_second_growth_freezes_what_was_new():
    model = compiled(mlp())
    n2n.grow(model, n2n.Wider("b", 8), seed=0, freeze="teacher")
    train(model)
    n2n.grow(model, n2n.Wider("a", 9), seed=0, freeze="teacher")
    start = values(model)
    train(model)
    changes = moved(start, values(model))
    assert not changes["a/kernel"][:, :6].any()
    assert changes["a/kernel"][:, 6:].any()
    assert not changes["b/kernel"][:6].any()
    assert changes["b/kernel"][6:].any()
    assert not changes["c/kernel"].any()
    assert [layer.trainable for layer in model.layers[1:]] == [True, True, False, False]


def test_a_further_growth_without_it_takes_the_masks_along():
    model = compiled(mlp())
    n2n.grow(model, n2n.Wider("b", 8), seed=0, freeze="teacher")
    n2n.grow(model, [n2n.Wider({"b": 10, "a": 8}), n2n.Narrower("a")], seed=0)
    start = values(model)
    train(model)
    changes = moved(start, values(model))
    assert not changes["b/kernel"][:, :5].any()
    assert changes["b/kernel"][:, 5:].any()
    assert not changes["a/kernel"].any()
    assert not changes["out/kernel"].any()


def test_unfreeze_gives_back_the_flags_that_the_user_set():
    model = mlp()
    model.get_layer("a").trainable = False
    model.get_layer("c").kernel.constraint = keras.constraints.MaxNorm(3.0)
    before = model.get_layer("c").kernel.constraint
    compiled(model)
    train(model)
    n2n.grow(model, n2n.Wider("b", 8), seed=0, freeze="teacher")
    n2n.unfreeze(model)
    assert [layer.trainable for layer in model.layers[1:]] == [False, True, True, True]
    assert model.get_layer("c").kernel.constraint is before
    assert model.get_layer("b").kernel.constraint is None
    start = values(model)
    train(model)
    changes = moved(start, values(model))
    assert not changes["a/kernel"].any()
    assert changes["b/kernel"].mean() > 0.5
    assert changes["out/kernel"].any()
    again = state(model)
    n2n.unfreeze(model)  # nothing to do
    assert_state(model, again)


def test_the_constraint_of_the_user_holds_for_what_is_new():
    model = mlp()
    model.get_layer("b").kernel.constraint = keras.constraints.NonNeg()
    compiled(model)
    n2n.grow(model, n2n.Wider("b", 9, new_units="fresh"), seed=0, freeze="teacher")
    start = array(model.get_layer("b").kernel)
    train(model)
    kernel = array(model.get_layer("b").kernel)
    assert np.array_equal(kernel[:, :5], start[:, :5])
    assert (kernel[:, :5] < 0).any()
    assert (kernel[:, 5:] >= 0).all()


def test_the_saved_model_is_a_plain_one(tmp_path):
    model = compiled(mlp())
    train(model)
    n2n.grow(model, n2n.Wider("b", 8), seed=0, freeze="teacher")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = data_for(model)
    assert_same(outputs(loaded, x), outputs(model, x))
    assert {type(layer).__module__.split(".")[0] for layer in loaded.layers} == {"keras"}
    assert loaded.get_layer("b").kernel.constraint is None
    train(loaded)


def test_a_failed_growth_freezes_nothing(monkeypatch):
    model = compiled(mlp())
    train(model)
    before = state(model)
    with pytest.raises(FixedWidthError):
        n2n.grow(model, n2n.Wider("out", 8), freeze="teacher")
    assert_state(model, before)
    monkeypatch.setattr(
        "keras_net2net.growth.optimizers.OptimizerUpdate.follow",
        lambda *args: (_ for _ in ()).throw(OSError("full")),
    )
    with pytest.raises(OSError, match="full"):
        n2n.grow(model, n2n.Wider("b", 8), freeze="teacher")
    assert_state(model, before)
    start = values(model)
    train(model)
    assert all(change.any() for change in moved(start, values(model)).values())


def test_what_can_not_be_is_refused():
    model = compiled(mlp(), keras.optimizers.Adam(use_ema=True))
    before = state(model)
    with pytest.raises(GrowthError) as caught:
        n2n.grow(model, n2n.Wider("b", 8), freeze="teacher")
    assert_explained(caught.value, "moving averages", "use_ema=False")
    with pytest.raises(GrowthError) as caught:
        n2n.grow(model, n2n.Wider("b", 8), freeze="student")
    assert_explained(caught.value, "freeze='student'")
    assert_state(model, before)
    with pytest.raises(GrowthError):
        n2n.GrowthScheduler({}, freeze="student")


def test_nothing_outlives_the_model():
    model = compiled(mlp())
    n2n.grow(model, n2n.Wider("b", 8), seed=0, freeze="teacher")
    kernel = weakref.ref(model.get_layer("b").kernel.constraint)
    n2n.unfreeze(model)
    gc.collect()
    assert kernel() is None
    assert snapshot(model)
