"""The forms of Deeper: a PReLU that starts as the identity, and the choice of the best."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError, NotIdentityError
from keras_net2net.operations.deeper.deeper import FORMS
from tests.operations.deeper.test_deeper import assert_reloads, conv, model_of, names
from tests.support.helpers import (
    EAGERLY,
    array,
    assert_native,
    assert_same,
    both_modes,
    data_for,
    train_a_step,
)
from tests.support.messages import assert_explained, refused


def grown(model: keras.Model, operation, **kwargs) -> n2n.GrowthReport:
    """Grows a model; it computes the same in both modes."""
    x = data_for(model, batch=16)
    before = both_modes(model, x)
    report = n2n.grow(model, operation, seed=0, **kwargs)
    assert_same(both_modes(model, x), before)
    assert_native(model)
    return report


# -- prelu ---------------------------------------------------------------------------

BEFORE = {
    "tanh inside": ([layers.Dense(4, activation="tanh", name="it")], []),
    "gelu": ([layers.Dense(4, name="it"), layers.Activation("gelu", name="act")], ["act"]),
    "relu": ([layers.Dense(4, activation="relu", name="it")], []),
    "a PReLU": ([layers.Dense(4, name="it"), layers.PReLU(name="act")], ["act"]),
    "softmax": ([layers.Dense(4, activation="softmax", name="it")], []),
    "nothing": ([layers.Dense(4, name="it")], []),
}


@pytest.mark.parametrize(("steps", "between"), BEFORE.values(), ids=BEFORE)
def test_a_prelu_that_starts_as_the_identity_follows_any_activation(steps, between):
    model = model_of((5,), *(type(one).from_config(one.get_config()) for one in steps))
    grown(model, n2n.Deeper("it", form="prelu"))
    assert names(model) == ["it", *between, "it_deeper_1", "it_deeper_1_prelu", "out"]
    alpha = model.get_layer("it_deeper_1_prelu").alpha
    assert alpha.shape == (4,)
    assert np.array_equal(array(alpha), np.ones(4))
    assert model.get_layer("it_deeper_1").activation is keras.activations.linear


def test_the_slopes_of_a_prelu_are_shared_over_space(tmp_path):
    model = model_of((4, 4, 3), conv("it", activation="silu"))
    x = data_for(model)
    grown(model, n2n.Deeper("it", 2, form="prelu"))
    prelu = model.get_layer("it_deeper_2_prelu")
    assert prelu.alpha.shape == (1, 1, 4)
    assert list(prelu.shared_axes) == [1, 2]
    assert_reloads(model, x, tmp_path)
    before = array(prelu.alpha)
    train_a_step(model, x)
    assert not np.array_equal(array(prelu.alpha), before)  # it learns to bend
    grown(model, n2n.Wider("it_deeper_1", 6))
    assert model.get_layer("it_deeper_1_prelu").alpha.shape == (1, 1, 6)


def test_the_slopes_of_a_prelu_are_shared_over_steps():
    model = model_of((6, 3), layers.Dense(4, activation="tanh", name="it"))
    grown(model, n2n.Deeper("it", form="prelu", units=5))
    assert model.get_layer("it_deeper_1_prelu").alpha.shape == (1, 5)


def test_a_prelu_stands_behind_its_normalization():
    model = model_of(
        (5,),
        layers.Dense(4, name="it"),
        layers.BatchNormalization(name="bn"),
        layers.Activation("tanh", name="act"),
    )
    x = data_for(model, batch=16)
    grown(model, n2n.Deeper("it", form="prelu", calibration=x))
    inserted = ["it_deeper_1", "it_deeper_1_bn", "it_deeper_1_prelu"]
    assert names(model) == ["it", "bn", "act", *inserted, "out"]


def test_a_shared_layer_with_any_activations_gets_a_prelu():
    fc = layers.Dense(4, name="fc")
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    ends = [layers.Activation(name, name=name)(fc(x)) for name, x in (("tanh", a), ("silu", b))]
    x = layers.Concatenate(name="both")(ends)
    model = keras.Model([a, b], layers.Dense(3, name="out")(x))
    grown(model, n2n.Deeper("fc", form="prelu"))
    assert len(model.get_layer("fc_deeper_1_prelu")._inbound_nodes) == 2


def test_a_prelu_is_inserted_while_fit_runs():
    model = model_of((5,), layers.Dense(4, activation="tanh", name="it"))
    model.compile("adam", "mse", **EAGERLY)
    growth = n2n.GrowthScheduler({1: n2n.Deeper("it", form="prelu")}, seed=0, verbose=0)
    x = data_for(model, batch=8)
    model.fit(x, np.zeros((8, 3)), epochs=2, verbose=0, callbacks=[growth])
    assert growth.history[0].difference < 1e-6
    assert not np.array_equal(array(model.get_layer("it_deeper_1_prelu").alpha), np.ones(4))


# -- auto ----------------------------------------------------------------------------


def test_the_best_form_is_chosen_and_said():
    model = model_of(
        (5,),
        layers.Dense(4, activation="relu", name="a"),
        layers.Dense(4, activation="tanh", name="b"),
        layers.Dense(4, name="c"),
        layers.BatchNormalization(name="c_bn"),
        layers.ReLU(name="c_act"),
    )
    x = data_for(model, batch=16)
    report = grown(model, n2n.Deeper(["a", "b", "c"], form="auto", calibration=x))
    assert names(model)[:6] == ["a", "a_deeper_1", "b", "b_deeper_1", "b_deeper_1_prelu", "c"]
    assert "c_deeper_1_relu" in names(model)
    notes = str(report.notes)
    assert "a: form 'identity', since its activation is idempotent" in notes
    assert "b: form 'prelu', since its activation isn't idempotent" in notes
    report = n2n.grow(model, n2n.Deeper("c", form="auto"), seed=0)
    assert "its normalization has no data" in str(report.notes)


def test_where_a_normalization_has_no_data_a_block_that_adds_zero_is_exact_in_both_modes():
    model = model_of(
        (6, 6, 3),
        layers.Conv2D(4, 3, padding="same", name="conv"),
        layers.BatchNormalization(name="bn"),
        layers.Activation("tanh", name="act"),
        layers.Flatten(name="flat"),
    )
    x = data_for(model, batch=16)
    before = both_modes(model, x)
    operations = [n2n.Deeper("conv", form="auto"), n2n.Wider("conv_deeper_1", 6)]
    report = n2n.grow(model, operations, seed=0)
    assert "conv: form 'residual', since its normalization has no data" in str(report.notes)
    assert model.get_layer("conv_deeper_1").filters == 6
    assert_same(both_modes(model, x), before)


def test_an_activation_that_is_asked_for_decides_too():
    model = model_of((5,), layers.Dense(4, activation="tanh", name="it"))
    report = grown(model, n2n.Deeper("it", form="auto", activation="linear"))
    assert names(model) == ["it", "it_deeper_1", "out"]
    assert "form 'identity'" in str(report.notes)


# -- arguments -------------------------------------------------------------------------


def test_a_teacher_stays_and_forms_compose_in_one_list():
    teacher = model_of((5,), layers.Dense(4, activation="tanh", name="it"))
    x = data_for(teacher)
    before = both_modes(teacher, x)
    operations = [
        n2n.Wider("it", 6),
        n2n.Deeper("it", form="prelu"),
        n2n.Deeper("out", form="factor"),
        n2n.Wider("out_factor_1", 5),
    ]
    student = n2n.clone_and_grow(teacher, operations, seed=0)
    assert names(teacher) == ["it", "out"]
    assert names(student) == ["it", "it_deeper_1", "it_deeper_1_prelu", "out_factor_1", "out"]
    assert_same(both_modes(student, x), before)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_part_of_the_configuration(form):
    operation = n2n.Deeper("it", form=form)
    assert n2n.Deeper.from_config(operation.get_config()) == operation
    assert (f"form={form!r}" in repr(operation)) == (form != "identity")


@pytest.mark.parametrize("wrong", ["best", None, 3])
def test_a_form_that_there_is_not_is_an_error(wrong):
    with pytest.raises(GrowthError) as caught:
        n2n.Deeper("it", form=wrong)
    assert_explained(caught.value, f"`form` can't be {wrong!r}", "'prelu'")


@pytest.mark.parametrize(
    ("form", "arguments"),
    [
        ("identity", {"rank": 3}),
        ("prelu", {"activation": "relu"}),
        ("prelu", {"rank": 3}),
        ("factor", {"activation": "relu"}),
        ("factor", {"batch_norm": True}),
        ("factor", {"units": 8}),
        ("factor", {"count": 2}),
        ("factor", {"calibration": np.ones((2, 3))}),
    ],
)
def test_an_argument_that_means_nothing_is_an_error(form, arguments):
    with pytest.raises(GrowthError) as caught:
        n2n.Deeper("it", form=form, **arguments)
    (name,) = arguments
    assert_explained(caught.value, f"`{name}` means nothing for the form {form!r}")


def test_the_error_shows_the_way_out():
    model = model_of((5,), layers.Dense(4, activation="tanh", name="it"))
    refused(model, n2n.Deeper("it"), NotIdentityError, "form='prelu'")
