"""Slots of optimizers by the chain rule, against the gradients of the grown model.

The oracle knows nothing of slots: a gradient on a batch, mapped as a slot is, must be the
gradient of the grown model on that batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.gradients import (
    Mapped,
    apart,
    attention,
    batch,
    batches,
    both_ways,
    classifier,
    convolutional,
    dense,
    entropy,
    films,
    gradients,
    grouped,
    mapped,
    normalized,
    pairs,
    recurrent,
    residual,
    roots,
    smooth,
    spatial,
    squares,
)
from tests.support.helpers import BACKEND, EAGERLY, few, precision, randomize


def wider(*args: Any, **kwargs: Any) -> n2n.Wider:
    return n2n.Wider(*args, **{"shares": "even", **kwargs})


@dataclasses.dataclass(frozen=True)
class Case:
    """A growth, and how well the gradients after it are known.

    Args:
        build: Makes the model.
        operations: What is done.
        before: What is done before the gradients are taken.
        reasons: Why what is mapped is an estimate.
        errors: The least and the largest error: where it is an estimate, as measured.
        above: Whether second moments are a bound from above.
        measure: The loss.
        calibrated: Whether the batch is given as calibration data.
    """

    build: Callable[[], Any]
    operations: Any
    before: Any = None
    reasons: frozenset[str] = frozenset()
    errors: tuple[float, float] = (0.0, 1e-5)
    above: bool = False
    measure: Any = squares
    calibrated: bool = False


MERGED, FILLED, FUNCTION = (frozenset([one]) for one in ("merged", "filled", "function"))
PARTS = {"heads": 3, "key_dim": 5, "value_dim": 5}
HEADS = {"num_key_value_heads": 3, "head_dim": 5}
KERNELS = {"a": 5, "depthwise": 5, "separable": (5, 3), "transposed": 5, "strided": 5}

EXACT = {
    # Units that are copied.
    "dense": Case(dense, wider(factor=1.5)),
    "dense, twice": Case(dense, [wider(factor=1.5), wider("a", factor=2)]),
    "convolutions": Case(convolutional, wider(factor=1.5)),
    "convolutions of all kinds": Case(spatial, wider(factor=1.5)),
    "a residual sum": Case(residual, wider(factor=1.5)),
    "layer normalization": Case(normalized, wider(factor=2)),
    "RMS normalization, of any size": Case(roots, wider("a", 6)),
    "attention": Case(attention, wider(factor=2)),
    "heads and keys": Case(attention, wider("attention", PARTS)),
    "heads and keys of groups": Case(grouped, wider("attention", HEADS)),
    "LSTM and GRU": Case(recurrent, wider(factor=1.5)),
    "recurrent layers": Case(both_ways, wider(factor=1.5)),
    "ConvLSTM": Case(films, wider(factor=1.5)),
    # What is new beside what was there.
    "fresh units": Case(dense, wider(factor=1.5, new_units="fresh")),
    "units by gradient": Case(dense, wider("b", 8, new_units="gradmax"), calibrated=True),
    "normalized units by gradient": Case(
        batches, wider("a", 6, new_units="gradmax"), calibrated=True
    ),
    "larger kernels": Case(spatial, n2n.LargerKernel(KERNELS)),
    "larger kernels of more units": Case(
        spatial, [n2n.LargerKernel("a", 5), wider("a", 6), n2n.LargerKernel("a", 7)]
    ),
    "a layer": Case(dense, n2n.Deeper("b")),
    "a PReLU": Case(smooth, n2n.Deeper("b", form="prelu")),
    "a residual block": Case(smooth, n2n.Deeper("b", form="residual")),
    "two factors": Case(smooth, n2n.Deeper("b", form="factor")),
    "a pair": Case(pairs, n2n.DeeperPairs()),
    # Copies that are merged. Gradients add up, whatever the shares are.
    "dense, merged": Case(dense, n2n.Narrower(), wider(factor=1.5), MERGED),
    "dense, in part": Case(dense, n2n.Narrower("b", 8), wider("b", 15), MERGED),
    "dense, merged, random": Case(dense, n2n.Narrower(), n2n.Wider(factor=1.5), MERGED, above=True),
    "convolutions, merged": Case(convolutional, n2n.Narrower(), wider(factor=1.5), MERGED),
    "convolutions, merged, random": Case(
        convolutional, n2n.Narrower(), n2n.Wider(factor=1.5), MERGED, above=True
    ),
    "convolutions of all kinds, merged": Case(spatial, n2n.Narrower(), wider(factor=1.5), MERGED),
    "a residual sum, merged": Case(residual, n2n.Narrower(), wider(factor=1.5), MERGED),
    "layer normalization, merged": Case(normalized, n2n.Narrower(), wider("a", 8), MERGED),
    "layer normalization, half of it": Case(
        normalized, n2n.Narrower("a", 8), wider("a", 16), MERGED
    ),
    "attention, merged": Case(attention, n2n.Narrower(), wider("attention", PARTS), MERGED),
    "LSTM and GRU, merged": Case(recurrent, n2n.Narrower(), wider(factor=1.5), MERGED),
    "recurrent layers, merged": Case(
        both_ways, n2n.Narrower(), n2n.Wider(factor=1.5), MERGED, above=True
    ),
    "ConvLSTM, merged": Case(films, n2n.Narrower(), wider(factor=1.5), MERGED),
    # What goes was read with zeros.
    "fresh units that go": Case(
        dense, n2n.Narrower("b", 5, keep="norm"), n2n.Wider("b", 8, new_units="fresh"), FUNCTION
    ),
}
if not hasattr(layers, "RMSNormalization"):
    del EXACT["RMS normalization, of any size"]
# JAX compiles each model twice, for seconds.
QUICK = ["dense", "LSTM and GRU", "larger kernels", "convolutions, merged", "attention, merged"]
HERE = EXACT if BACKEND != "jax" else {name: EXACT[name] for name in QUICK}

# By how much an estimate is off, relative to the largest gradient, as measured.
ESTIMATES = {
    # Part of the gradient goes to the units that fill, by how they are read.
    "mean of the units": Case(normalized, wider("a", 6), None, FILLED, (0.1, 0.6)),
    "units that fill go": Case(normalized, n2n.Narrower(), wider("a", 6), FILLED, (0.1, 0.6)),
    "two of three copies": Case(
        normalized, n2n.Narrower("a", 8), wider("a", 12), MERGED | FILLED, (0.1, 0.6)
    ),
    # The function changes: as much as there is noise.
    "noise of 0.1": Case(dense, wider("b", 8, noise=0.1), None, FUNCTION, (3e-3, 1e-1)),
    "noise of 0.001": Case(dense, wider("b", 8, noise=0.001), None, FUNCTION, (3e-5, 1e-3)),
    "random units": Case(dense, n2n.Wider("b", 8, new_units="random"), None, FUNCTION, (0.1, 2)),
    "small norms go": Case(dense, n2n.Narrower("b", 4, keep="norm"), None, FUNCTION, (0.0, 1)),
    "small activations go": Case(
        dense, n2n.Narrower("a", 3, keep="activation"), None, FUNCTION, (0.0, 1), calibrated=True
    ),
    # The old classes lose what the new ones get of the probability.
    "suppressed classes": Case(
        classifier,
        n2n.NewClasses("out", 2, start="suppressed", mass=1e-3),
        None,
        FUNCTION,
        (1e-6, 2e-3),
        measure=entropy,
    ),
    "classes at zero": Case(
        classifier, n2n.NewClasses("out", 2), None, FUNCTION, (0.01, 1), measure=entropy
    ),
}


def run(case: Case) -> list[Mapped]:
    model = randomize(case.build())
    model.compile("sgd", "mse")
    given = batch(model.input_shape[1:], model.output_shape[-1])
    x, y = (one.astype(keras.config.floatx()) for one in given)
    if case.before is not None:
        n2n.grow(model, case.before, seed=1)
    return mapped(model, case.operations, x, y, case.measure, (x, y) if case.calibrated else None)


def reasons(found: list[Mapped]) -> frozenset[str]:
    return frozenset().union(*(one.reasons for one in found))


@pytest.mark.parametrize("case", few(HERE, 2 if BACKEND == "jax" else 12))
def test_the_old_gradient_mapped_as_a_slot_is_that_of_the_grown_model(case):
    found = run(case)
    assert reasons(found) == case.reasons
    assert apart(found) < case.errors[1]
    for one in found:
        assert not one.first[~one.past].any()
        assert not one.second[~one.past].any()
    # Means of squares, where there is one batch.
    top = max(float(np.square(one.found).max()) for one in found)
    for one in found:
        off = (one.second - np.square(one.found)) * one.past / top
        assert off.min() > -1e-5, one.name
        assert off.max() < (2.0 if case.above else 1e-5), one.name


@pytest.mark.parametrize("case", ESTIMATES.values(), ids=ESTIMATES)
def test_how_far_off_estimates_are(case):
    found = run(case)
    assert reasons(found) == case.reasons
    least, most = case.errors
    assert least < apart(found) < most


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras computes in float32 there")
@pytest.mark.parametrize("name", ["dense", "layer normalization", "convolutions, merged"])
def test_in_float64_it_is_exact_to_rounding(name):
    with precision("float64"):
        found = run(EXACT[name])
    assert all(one.found.dtype == np.float64 for one in found)
    assert apart(found) < 1e-13


@pytest.mark.parametrize("keep", ["norm", "activation"])
def test_what_stays_of_units_that_are_no_copies_keeps_its_moments(keep):
    model = randomize(dense())
    x, y = batch((3,))
    old = gradients(model, x, y)
    operation = n2n.Narrower("b", 3, keep=keep)
    kept = n2n.plan(model, operation, seed=3, calibration=x).steps[0].layers[0]
    index = next(change for change in kept.variables if change.name == "b/kernel").axes[1].remap
    found = mapped(model, operation, x, y, calibration=x)
    expected = [*old[:2], old[2][:, index.index], old[3][index.index], old[4][index.index], old[5]]
    for one, value in zip(found, expected, strict=True):
        assert np.array_equal(one.first, value)
        assert np.array_equal(one.second, value**2)


def test_an_inserted_batch_normalization_takes_the_mean_out_of_gradients():
    """The offset in front of it has none afterwards; what is behind it keeps its own."""
    model = randomize(batches())
    x, y = batch((3,))
    found = {
        one.name.split("/", 1)[-1] if one.name.startswith("functional") else one.name: one
        for one in mapped(model, n2n.Deeper("a"), x, y, calibration=x)
    }
    top = max(np.abs(one.found).max() for one in found.values())
    assert np.abs(found["norm/beta"].first).max() > 0.1 * top
    assert np.abs(found["norm/beta"].first - found["norm/beta"].found).max() > 0.1 * top
    assert apart([found["out/kernel"], found["out/bias"]]) < 1e-5


@pytest.mark.parametrize("build", [normalized, roots])
def test_units_that_fill_a_normalization_have_gradients(build):
    """One of two zeros has to be something else, or they would be zero for ever."""
    model = randomize(build())
    n2n.grow(model, wider("a", 6), seed=0)
    found = gradients(model, *batch((3,)))
    assert np.abs(found[0][:, 4:]).max(axis=0).min() > 1e-4


@pytest.mark.parametrize(
    ("build", "operations", "before", "notes"),
    [
        (dense, wider("b", 8), None, []),
        (dense, n2n.Wider("b", 8), None, ["random shares"]),
        (dense, wider("b", 8, noise=0.1), None, ["as it was before"]),
        (dense, n2n.Narrower(), wider("b", 8), ["take over copies"]),
        (dense, n2n.Narrower("b", 3, keep="norm"), None, ["as it was before"]),
        (dense, n2n.LargerKernel("a", 5), None, []),
        (normalized, wider("a", 6), None, ["units that fill it"]),
        (normalized, wider("a", 8), None, []),
        (classifier, n2n.NewClasses("out", 2), None, ["as it was before"]),
        (batches, n2n.Deeper("a"), None, ["mean and the scale of a batch"]),
    ],
)
def test_the_report_says_what_is_an_estimate(build, operations, before, notes):
    build = spatial if isinstance(operations, n2n.LargerKernel) else build
    model = randomize(build())
    if before is not None:
        n2n.grow(model, before, seed=1)
    model.compile(keras.optimizers.Adam(), "mse", **EAGERLY)
    model.optimizer.build(model.trainable_variables)
    x = batch(model.input_shape[1:])[0]
    report = n2n.grow(model, operations, seed=0, optimizer_state="carry", calibration=x)
    found = [note for note in report.notes if "optimizer" in note or "moments" in note]
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True))


# -- shares of all kinds -----------------------------------------------------------------------


@pytest.mark.parametrize(("outputs", "most"), [(1, 1e-6), (8, 0.25)])
def test_how_far_off_the_mean_of_random_shares_is(outputs, most):
    """Exact where one weight reads a unit: then its share is that of all. Measured elsewhere."""
    x = inputs = keras.Input((6,))
    x = layers.Dense(16, activation="tanh", name="a")(x)
    model = randomize(keras.Model(inputs, layers.Dense(outputs, name="out")(x)))
    x, y = batch((6,), outputs, n=32)
    pairs = mapped(model, n2n.Wider("a", 32), x, y)
    assert [one.reasons for one in pairs] == [{"shares"}, {"shares"}, set(), set()]
    assert apart(pairs[2:]) < 1e-6  # what reads copies is exact always
    kernel = pairs[0]
    error = np.linalg.norm(kernel.first - kernel.found) / np.linalg.norm(kernel.found)
    assert error < most, error
    assert np.allclose(kernel.first.sum(), kernel.found.sum(), rtol=0.2)


def joined():
    x = inputs = keras.Input((3,))
    parts = [layers.Dense(3, activation="tanh", name="a")(x), layers.Dense(4, name="b")(x)]
    return keras.Model(inputs, layers.Dense(1, name="out")(layers.Concatenate()(parts)))


def flattened():
    x = inputs = keras.Input((2, 2, 3))
    x = layers.Conv2D(4, 2, activation="tanh", name="a")(x)
    return keras.Model(inputs, layers.Dense(1, name="out")(layers.Flatten()(x)))


@pytest.mark.parametrize("build", [joined, flattened])
def test_a_random_share_that_is_the_only_one_is_found_through_joined_and_crossed_axes(build):
    model = randomize(build())
    x, y = batch(model.input_shape[1:], 1)
    found = mapped(model, n2n.Wider(factor=1.75), x, y)
    assert any(one.reasons for one in found)
    assert apart(found) < 1e-5


@pytest.mark.parametrize("shares", ["random", "even"])
def test_mean_shares_sum_to_one_over_the_copies_of_a_unit(shares):
    model = randomize(attention())
    parts = {"heads": 5, "value_dim": 7}
    planned = n2n.plan(model, n2n.Wider("attention", parts, shares=shares), seed=0)
    changes = {c.name: c for layer in planned.steps[0].layers for c in layer.variables}
    (change,) = [c for name, c in changes.items() if "output" in name and len(c.axes) == 3]
    for at in (0, 1):
        remap = change.axes[at].remap
        means, many = change.mean_shares(at, planned.seed)
        sums = np.bincount(remap.index, means, minlength=remap.old_size)
        assert np.allclose(sums, 1, atol=1e-6)
        assert many == (7 * 4, 4)[at]  # the second axis has one share for all of the first
    assert dataclasses.replace(change, shape=None).mean_shares(0, 0) is None
