"""Activations: as layers, inside layers, per element, and over an axis."""

from __future__ import annotations

import keras
import pytest
from keras import layers, ops

import keras_net2net as n2n
from tests.support.helpers import (
    assert_same,
    assert_untouched,
    both_modes,
    check_growth,
    data_for,
    few,
    outputs,
    randomize,
    sandwich,
    snapshot,
)

PER_ELEMENT = [
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
    "tanh",
    "tanh_shrink",
]

CASES = {
    "Activation": lambda: sandwich((5,), layers.Activation("tanh")),
    "ReLU": lambda: sandwich((5,), layers.ReLU()),
    "ReLU, clipped, leaky and shifted": lambda: sandwich(
        (3, 5), layers.ReLU(max_value=0.5, negative_slope=0.1, threshold=0.2)
    ),
    "LeakyReLU": lambda: sandwich((5,), layers.LeakyReLU(0.3)),
    "ELU": lambda: sandwich((5,), layers.ELU(0.7)),
    "PReLU": lambda: sandwich((5,), layers.PReLU()),
    "PReLU on an image": lambda: sandwich((3, 2, 5), layers.PReLU()),
    "PReLU shared over space": lambda: sandwich((3, 2, 5), layers.PReLU(shared_axes=[1, 2])),
    "PReLU shared over rows": lambda: sandwich((3, 2, 5), layers.PReLU(shared_axes=[1])),
    "PReLU shared over units": lambda: sandwich((3, 2, 5), layers.PReLU(shared_axes=[3])),
    "PReLU after Flatten": lambda: sandwich((3, 2, 5), layers.Flatten(), layers.PReLU()),
    "Softmax over time": lambda: sandwich((3, 5), layers.Softmax(axis=1)),
    "Softmax over space": lambda: sandwich((3, 2, 5), layers.Softmax(axis=(1, 2))),
    "a layer as activation": lambda: sandwich(
        (5,), layers.Dense(4, activation=layers.LeakyReLU(0.3))
    ),
}


@pytest.mark.parametrize("build", few(CASES))
def test_the_function_stays(build, tmp_path):
    check_growth(build, path=tmp_path)


def test_all_of_them_train_after_growth():
    check_growth(
        lambda: sandwich(
            (3, 5),
            layers.PReLU(shared_axes=[1]),
            layers.Dense(4, activation="gelu"),
            layers.ReLU(negative_slope=0.1),
            layers.Dense(4, activation=layers.LeakyReLU(0.3)),
            layers.Softmax(axis=1),
            layers.PReLU(),
            layers.ELU(),
        ),
        train=True,
    )


@pytest.mark.parametrize("name", few(PER_ELEMENT))
def test_every_activation_per_element_follows_the_units(name):
    model = randomize(
        sandwich((5,), layers.Dense(4, activation=name, name="it"), layers.Activation(name))
    )
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.Wider(["before", "it"], factor=1.5), seed=0)
    assert (model.get_layer("before").units, model.get_layer("it").units) == (6, 6)
    assert_same(outputs(model, x), before)


OVER_UNITS = {
    "Softmax": lambda: layers.Softmax(name="obstacle"),
    "Softmax over all axes": lambda: layers.Softmax(axis=(1, 2), name="obstacle"),
    "softmax": lambda: layers.Activation("softmax", name="obstacle"),
    "log_softmax": lambda: layers.Activation("log_softmax", name="obstacle"),
    "sparsemax": lambda: layers.Activation("sparsemax", name="obstacle"),
}


@pytest.mark.pure
@pytest.mark.parametrize("obstacle", OVER_UNITS.values(), ids=OVER_UNITS)
def test_normalizing_over_hidden_units_is_refused_with_the_path(obstacle):
    model = randomize(sandwich((3, 5), layers.ReLU(name="relu"), obstacle()))
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match="normalizes over its units") as error:
        n2n.grow(model, n2n.Wider("before", units=6))
    assert "path: before -> relu -> obstacle" in str(error.value)
    assert_untouched(model, weights)


@pytest.mark.pure
@pytest.mark.parametrize("kind", [layers.Dense, lambda units, **kw: layers.Conv1D(units, 2, **kw)])
def test_softmax_inside_a_hidden_layer_is_refused(kind):
    model = sandwich((3, 5), kind(4, activation="softmax", name="it"))
    with pytest.raises(n2n.errors.FixedWidthError, match="normalizes over its units with softmax"):
        n2n.plan(model, n2n.Wider("it", units=6))
    assert n2n.plan(model, n2n.Wider("before", units=6)).parameters_after > model.count_params()


def test_softmax_after_the_channels_come_first_runs_over_space(tmp_path):
    conv = layers.Conv1D(4, 2, activation="softmax", data_format="channels_first", name="it")
    inputs = keras.Input((2, 5))
    model = keras.Model(
        inputs, layers.Dense(2)(layers.Flatten(data_format="channels_first")(conv(inputs)))
    )
    planned = n2n.plan(model, n2n.Wider("it", units=6))
    assert planned.steps[0].widths[0].new == 6


def relu(x):  # pretends by its name
    return ops.cumsum(x, axis=-1)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Activation(relu, name="it"),
        lambda: layers.Dense(4, activation=relu, name="it"),
        lambda: layers.Dense(4, activation=lambda x: x[..., ::-1], name="it"),
    ],
    ids=["an activation layer", "in a dense layer", "a lambda"],
)
def test_a_function_of_the_users_own_is_not_taken_for_a_known_one(layer):
    model = randomize(sandwich((5,), layer()))
    weights = snapshot(model)
    name = "before" if isinstance(model.get_layer("it"), layers.Activation) else "it"
    with pytest.raises(n2n.errors.FixedWidthError, match=r"adds or multiplies up|picks places"):
        n2n.grow(model, n2n.Wider(name, units=6))
    assert_untouched(model, weights)


def test_a_layer_with_weights_as_activation_grows_once_it_has_them():
    model = randomize(sandwich((5,), layers.Dense(4, activation=layers.PReLU(), name="it")))
    weights = snapshot(model)
    # Keras builds it when it is first run, so that it has no weights yet ...
    assert len(weights) == 6
    with pytest.raises(n2n.errors.FixedWidthError, match="its rule doesn't cover"):
        n2n.grow(model, n2n.Wider("it", units=6))
    assert_untouched(model, weights)
    model(data_for(model))  # ... and from here on it has
    randomize(model)
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider(["before", "it"], units=6), seed=0, verify=False)
    assert model.get_layer("it").activation.alpha.shape == (6,)
    assert_same(both_modes(model, x), before)


@keras.saving.register_keras_serializable("tests")
def approximate(x):
    return 0.5 * x * (1.0 + ops.tanh(0.8 * (x + 0.04 * x * x * x)))


def by_the_number_of_units(x):
    return x / float(x.shape[-1])


def closed(x):
    if isinstance(x, keras.KerasTensor):
        raise TypeError("numbers alone")
    return x


def test_a_function_of_the_users_own_is_followed_through_what_it_does():
    check_growth(
        lambda: sandwich(
            (5,), layers.Dense(4, activation=approximate), layers.Activation(approximate)
        ),
        path=None,
    )


@pytest.mark.parametrize("function", [by_the_number_of_units, closed], ids=lambda f: f.__name__)
def test_a_function_that_depends_on_sizes_or_is_closed_is_refused(function):
    model = randomize(sandwich((5,), layers.Dense(4, activation=function, name="it")))
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match="it isn't known that it acts per element"):
        n2n.grow(model, n2n.Wider("it", units=6))
    assert_untouched(model, weights)
