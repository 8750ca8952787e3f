"""Attention: heads, key and value dimensions, against attention written out in numpy."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.testing import POLICIES, check_rule
from tests.support.helpers import (
    BACKEND,
    QUICK,
    array,
    assert_native,
    assert_same,
    assert_untouched,
    both_modes,
    cases,
    data_for,
    outputs,
    randomize,
    snapshot,
)

MHA = layers.MultiHeadAttention
# On JAX, Keras's attention has one size for keys and values.
VALUES, FEWER_VALUES = (3, 3) if BACKEND == "jax" else (4, 2)
# On each backend: random shares; on the fast one all kinds of new units.
KINDS = list(
    cases({"random": {}, "even": {"shares": "even"}, "fresh": {"new_units": "fresh"}}, 1).values()
)
SIZES = ("heads", "key_dim", "value_dim")
needs_gate = pytest.mark.skipif(
    "use_gate" not in inspect.signature(MHA.__init__).parameters, reason="new in a later Keras"
)


def attend(layer, x):
    return layer(x, x)


CASES = {
    "self-attention": (lambda: MHA(2, 3), (4, 5), attend),
    "other values": (lambda: MHA(2, 3, value_dim=VALUES), (4, 5), attend),
    "without bias": (lambda: MHA(3, 2, use_bias=False), (4, 5), attend),
    "one head": (lambda: MHA(1, 3), (4, 5), attend),
    "cross attention": (lambda: MHA(2, 3), [(4, 5), (3, 6)], lambda layer, x: layer(*x)),
    "query, value and key": (
        lambda: MHA(2, 3, value_dim=FEWER_VALUES),
        [(4, 5), (3, 6), (3, 7)],
        lambda layer, x: layer(*x),
    ),
    "causal": (
        lambda: MHA(2, 3),
        (4, 5),
        lambda layer, x: layer(x, x, use_causal_mask=True),
    ),
    "another output": (lambda: MHA(2, 3, output_shape=6), (4, 5), attend),
    "over the second of two axes": (lambda: MHA(2, 3, attention_axes=2), (2, 3, 5), attend),
    "over two axes": (lambda: MHA(2, 3, attention_axes=(1, 2)), (2, 3, 5), attend),
    "with dropout": (lambda: MHA(2, 3, dropout=0.5), (4, 5), attend),
}


@pytest.mark.parametrize(("layer", "shape", "call"), cases(CASES).values(), ids=cases(CASES))
def test_every_size_of_an_attention_grows(layer, shape, call):
    assert set(SIZES) < set(check_rule(layer, shape, call=call, **QUICK))


def test_a_grown_attention_is_saved_and_trained_in_any_precision():
    # JAX doesn't compute this attention in float16 on the CPU.
    policies = POLICIES[BACKEND == "jax" :]
    grown = check_rule(lambda: MHA(2, 3, value_dim=VALUES), (4, 5), call=attend, policies=policies)
    assert grown == ("input", *SIZES)


@needs_gate
def test_a_gate_grows_with_the_heads_that_it_gates():
    assert check_rule(lambda: MHA(2, 3, use_gate=True), (4, 5), call=attend, **QUICK)


def test_an_output_of_several_axes_keeps_its_shape_where_it_is_read_as_one():
    def call(layer, x):
        return layers.Reshape((4, -1))(layer(x, x))

    assert check_rule(lambda: MHA(2, 3, output_shape=(2, 3)), (4, 5), call=call, **QUICK)


def test_scores_that_are_returned_show_the_heads_which_then_stay():
    def call(layer, x):
        return layer(x, x, return_attention_scores=True)

    grown = check_rule(lambda: MHA(2, 3), (4, 5), call=call, fixed=["heads"], **QUICK)
    assert grown == ("input", "key_dim", "value_dim")


def model_of(layer, **how):
    inputs = keras.Input((4, 5))
    outputs = layer(inputs, inputs, **how)
    return randomize(keras.Model(inputs, outputs))


def attention(weights, x, gate=None):
    """Multi-head attention written out, from the weights in Keras's order."""
    wq, bq, wk, bk, wv, bv, wo, bo = weights
    q = np.einsum("btc,chd->bthd", x, wq) + bq
    k = np.einsum("btc,chd->bthd", x, wk) + bk
    v = np.einsum("btc,chd->bthd", x, wv) + bv
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(wq.shape[-1])
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhts,bshd->bthd", exp / exp.sum(-1, keepdims=True), v)
    return np.einsum("bthd,hdc->btc", mixed, wo) + bo


@pytest.mark.parametrize("how", KINDS, ids=repr)
@pytest.mark.parametrize(
    "sizes", [{"heads": 8}, {"key_dim": 5}, {"value_dim": 7}, {"heads": 3, "key_dim": 9}], ids=repr
)
def test_the_grown_weights_compute_the_same_by_the_definition(sizes, how):
    model = model_of(MHA(2, 3, name="mha"))
    x = data_for(model)
    before = outputs(model, x)
    n2n.grow(model, n2n.Wider("mha", units=sizes, **how), seed=0, verify=False)
    layer = model.get_layer("mha")
    found = {"heads": layer._num_heads, "key_dim": layer._key_dim, "value_dim": layer._value_dim}
    wanted = {"heads": 2, "key_dim": 3, "value_dim": 3, **sizes}
    if BACKEND == "jax":  # its attention has one size for both
        wanted["key_dim"] = wanted["value_dim"] = max(wanted["key_dim"], wanted["value_dim"])
    assert found == wanted
    np.testing.assert_allclose(attention(layer.get_weights(), x), before[0], atol=1e-6)
    assert_same(outputs(model, x), before)
    assert_native(model)


def test_queries_make_up_for_the_root_of_the_key_dimension():
    model = model_of(MHA(1, 2, name="mha"))
    layer = model.get_layer("mha")
    old = [array(w) for w in layer.weights]
    n2n.grow(model, n2n.Wider("mha", units={"key_dim": 8}, shares="even"), seed=0)
    new = [array(w) for w in layer.weights]
    assert layer._inverse_sqrt_key_dim == pytest.approx(1 / np.sqrt(8))
    index = [int(np.argmin(np.abs(old[2][0, 0] - k))) for k in new[2][0, 0]]
    assert sorted(index) == [0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(new[2], old[2][..., index])  # keys are copied
    np.testing.assert_array_equal(new[3], old[3][..., index])
    # Each of 4 copies holds a quarter of the query, times sqrt(8 / 2) = 2.
    np.testing.assert_allclose(new[0], old[0][..., index] / 2, rtol=1e-6)
    np.testing.assert_allclose(new[1], old[1][..., index] / 2, rtol=1e-6)
    if BACKEND != "jax":  # there, the values grow with the keys
        for a, b in zip(new[4:], old[4:], strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_random_shares_of_a_query_sum_to_the_root():
    model = model_of(MHA(2, 3, name="mha"))
    layer = model.get_layer("mha")
    query, key = array(layer.weights[0]), array(layer.weights[2])
    n2n.grow(model, n2n.Wider("mha", units={"key_dim": 5}), seed=1)
    new, keys = array(layer.weights[0]), array(layer.weights[2])
    index = np.array([np.abs(key - keys[..., [j]]).sum((0, 1)).argmin() for j in range(5)])
    for unit in range(3):
        total = new[..., index == unit].sum(-1)
        np.testing.assert_allclose(total, query[..., unit] * np.sqrt(5 / 3), rtol=1e-5)


def test_a_number_of_units_means_heads():
    model = model_of(MHA(2, 3, name="mha"))
    n2n.grow(model, n2n.Wider("mha", 4), seed=0)
    assert model.get_layer("mha")._num_heads == 4
    n2n.grow(model, n2n.Wider("mha", units={"num_heads": 6}), seed=0)
    assert model.get_layer("mha")._num_heads == 6


def test_what_an_attention_does_not_count_is_an_error_that_says_what_it_counts():
    model = model_of(MHA(2, 3, name="mha"))
    weights = snapshot(model)
    with pytest.raises(n2n.GrowthError, match=r"no 'units' .*'heads', 'key_dim', 'value_dim'"):
        n2n.grow(model, n2n.Wider("mha", units={"units": 4}))
    assert_untouched(model, weights)


needs_groups = pytest.mark.skipif(
    not hasattr(layers, "GroupQueryAttention"), reason="new in a later Keras"
)


@needs_groups
@pytest.mark.parametrize("settings", [{}, {"use_bias": False}], ids=repr)
@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ({"head_dim": 5}, (5, 4, 2)),
        ({"num_key_value_heads": 3}, (3, 6, 3)),
        ({"num_query_heads": 6}, (3, 6, 2)),
        ({"num_repeats": 3}, (3, 6, 2)),
    ],
    ids=repr,
)
def test_grouped_queries_grow_by_each_size(sizes, found, settings):
    model = model_of(layers.GroupQueryAttention(3, 4, 2, name="gqa", **settings))
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("gqa", units=sizes), seed=0, verify=False)
    layer = model.get_layer("gqa")
    now = (layer.head_dim, layer.num_query_heads, layer.num_key_value_heads)
    assert now == found
    assert_same(both_modes(model, x), before)
    assert_native(model)


@needs_groups
def test_grouped_queries_pass_the_battery():
    def make():
        return layers.GroupQueryAttention(3, 4, 2)

    grown = check_rule(make, (4, 5), call=attend, policies=(), train=False)
    assert {"input", "head_dim", "num_query_heads", "num_key_value_heads"} < set(grown)


def dot_product(asked=(), **settings):
    """Attention without weights of its own, between projections."""
    inputs = keras.Input((4, 5))
    named = [layers.Dense(4, name=name)(inputs) for name in ("query", "value", "key")]
    results = layers.Attention(name="it", **settings)(named, **dict.fromkeys(asked, True))
    first = results[0] if isinstance(results, (list, tuple)) else results
    return randomize(keras.Model(inputs, layers.Dense(3, name="after")(first)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_scale": True},
        {"asked": ["use_causal_mask"]},
        {"asked": ["return_attention_scores"]},
        {"dropout": 0.0},
    ],
    ids=repr,
)
@pytest.mark.parametrize("how", KINDS, ids=repr)
def test_queries_hold_the_shares_of_a_dot_product(settings, how):
    model = dot_product(**settings)
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider({"key": 6, "value": 7}, **how), seed=0, verify=False)
    assert model.get_layer("query").units == 6
    assert_same(both_modes(model, x), before)
    assert_native(model)


class Tilt(keras.Layer):
    """Scales each unit by a weight of its own, or takes all as they are."""

    def build(self, input_shape):
        self.slope = self.add_weight(shape=input_shape[-1:], name="slope")

    def call(self, x):
        return x * self.slope


def behind_the_query(between, activation=None):
    inputs = keras.Input((4, 5))
    query = between(layers.Dense(4, activation=activation, name="query")(inputs))
    key, value = (layers.Dense(4, name=name)(inputs) for name in ("key", "value"))
    x = layers.Attention()([query, value, layers.Activation("tanh")(key)])
    return randomize(keras.Model(inputs, layers.Dense(3)(x)))


@pytest.mark.parametrize("word", ["PASSES", "SCALES", None])
def test_a_layer_with_a_rule_of_ones_own_passes_or_holds_shares(word):
    """Whatever its rule says: that it is linear in what it is given, or in its weights."""

    @n2n.rules.register_rule(Tilt)
    def tilt(call, x):
        call.weight("slope", n2n.rules.follows(x[-1]))
        call.treat(word and getattr(n2n.rules.treatments, word))
        return x

    model = behind_the_query(Tilt(name="tilt"), "tanh" if word == "SCALES" else None)
    x = data_for(model)
    before = both_modes(model, x)
    if word is None:
        with pytest.raises(n2n.errors.FixedWidthError, match="nothing before it can hold"):
            n2n.plan(model, n2n.Wider("key", 6))
        return
    plan = n2n.grow(model, n2n.Wider("key", 6), seed=0, verify=False).plan
    assert_same(both_modes(model, x), before)
    (change,) = [v for one in plan.steps[0].layers if one.path == "tilt" for v in one.variables]
    assert change.axes[0].role == ("reads" if word == "SCALES" else "follows")


@pytest.mark.parametrize(
    "between",
    [
        lambda: layers.BatchNormalization(),
        lambda: layers.GroupNormalization(4, epsilon=0.1),
        lambda: layers.DepthwiseConv1D(2, padding="same"),
        lambda: layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d"),
    ],
    ids=["BatchNormalization", "GroupNormalization", "DepthwiseConv1D", "EinsumDense"],
)
def test_what_is_linear_in_weights_for_each_unit_holds_their_shares(between):
    model = behind_the_query(between(), "tanh")
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("key", 6), seed=0, verify=False)
    assert_same(both_modes(model, x), before)
    assert_native(model)


def test_the_even_shares_of_a_dot_product_in_numbers():
    model = dot_product()
    old = array(model.get_layer("query").kernel)
    n2n.grow(model, n2n.Wider("key", 8, shares="even"), seed=0)
    # There is no root in this attention: each of two copies holds half a query.
    new = array(model.get_layer("query").kernel)
    np.testing.assert_allclose(new[:, :4], old / 2, rtol=1e-6)
    np.testing.assert_allclose(new.sum(1), old.sum(1), rtol=1e-5)


def test_units_that_are_summed_after_a_nonlinear_function_stay():
    model = dot_product(score_mode="concat", use_scale=True)
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match="sums over these units after a nonlinear"):
        n2n.grow(model, n2n.Wider("key", 6))
    assert_untouched(model, weights)
    assert n2n.grow(model, n2n.Wider("value", 6), seed=0).difference < 1e-5


def test_a_query_that_something_else_reads_cannot_hold_shares():
    inputs = keras.Input((4, 5))
    query = layers.Dense(4, activation="tanh", name="query")(inputs)
    key = layers.Dense(4, activation="tanh", name="key")(inputs)
    x = layers.Attention(name="it")([query, layers.Dense(4)(inputs), key])
    model = keras.Model(inputs, layers.Dense(3)(layers.Add()([x, layers.Dense(4)(query)])))
    with pytest.raises(
        n2n.errors.FixedWidthError, match="nothing before it can hold each copy's part"
    ):
        n2n.plan(model, n2n.Wider("key", 6))


ADDITIVE = {
    "two inputs": ([(4, 5), (3, 5)], ()),
    "three inputs": ([(4, 5), (3, 6), (3, 5)], ()),
}


@pytest.mark.parametrize(("shapes", "fixed"), cases(ADDITIVE, 1).values(), ids=cases(ADDITIVE, 1))
def test_the_scale_of_an_additive_attention_reads(shapes, fixed):
    assert check_rule(
        layers.AdditiveAttention, shapes, call=lambda layer, x: layer(x), fixed=fixed, **QUICK
    )


def test_additive_attention_without_a_scale_fixes_what_it_compares():
    grown = check_rule(
        lambda: layers.AdditiveAttention(use_scale=False),
        [(4, 5), (3, 6), (3, 5)],
        fixed=["input_0", "input_2"],
        **QUICK,
    )
    assert grown == ("input_1",)


def test_a_mask_that_is_computed_is_not_widened():
    inputs = keras.Input((4, 5))
    x = layers.Dense(5, name="before")(inputs)
    mask = layers.Dense(4, activation="sigmoid", name="mask")(inputs) > 0.5
    x = MHA(2, 3, name="mha")(x, x, attention_mask=mask)
    model = randomize(keras.Model(inputs, layers.Dense(3)(x)))
    with pytest.raises(n2n.errors.FixedWidthError, match="masks with this axis"):
        n2n.plan(model, n2n.Wider("mask", 8))
    data = data_for(model)
    before = both_modes(model, data)
    n2n.grow(model, n2n.Wider("mha", units={"heads": 3}), seed=0, verify=False)
    assert_same(both_modes(model, data), before)
