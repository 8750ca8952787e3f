"""Sums over an axis of two tensors: own weights, attention by hand, tied tables, EinsumDense."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.rules.contractions import parse_einsum
from keras_net2net.testing import check_model, check_rule
from tests.support.helpers import (
    QUICK,
    array,
    assert_native,
    assert_same,
    assert_untouched,
    both_modes,
    cases,
    data_for,
    few,
    randomize,
    snapshot,
)

KINDS = ({}, {"shares": "even"}, {"new_units": "fresh"})

# From (batch, step, channel) and a matrix to (batch, step, unit).
PRODUCTS = {
    "matmul": lambda x, w: ops.matmul(x, w),
    "the operator": lambda x, w: x @ w,
    "dot": lambda x, w: ops.dot(x, w),
    "tensordot": lambda x, w: ops.tensordot(x, w, axes=1),
    "tensordot by axes": lambda x, w: ops.tensordot(x, w, axes=[[2], [0]]),
    "einsum": lambda x, w: ops.einsum("btc,cu->btu", x, w),
    "einsum with an ellipsis": lambda x, w: ops.einsum("...c,cu->...u", x, w),
    "einsum of the weight first": lambda x, w: ops.einsum("cu,btc->btu", w, x),
    "the weight in front": lambda x, w: ops.transpose(
        ops.matmul(ops.transpose(w), ops.transpose(x, (0, 2, 1))), (0, 2, 1)
    ),
    "a weight that is scaled": lambda x, w: x @ (w * 0.5),
    "a weight that is used twice": lambda x, w: ops.tanh(x @ w) + x @ w,
    "inner": lambda x, w: ops.inner(x, ops.transpose(w)),  # not on TensorFlow, by Keras's own
    "a weight that is divided": lambda x, w: -(x @ (w / 2.0)),
}


class Own(keras.Layer):
    """A matrix of its own, which no rule describes: it is opened."""

    def __init__(self, units, product, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.product = product

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), name="bias")

    def call(self, x):
        return ops.tanh(PRODUCTS[self.product](x, self.kernel) + self.bias)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "product": self.product}


@pytest.mark.parametrize("product", cases(PRODUCTS, 5))
def test_a_product_with_a_weight_reads_and_makes_units(product):
    assert check_rule(Own(4, product), (3, 5), **QUICK) == ("input", "units")


# What a weight that reads goes through before the product: the shares of copies with it.
OTHERWISE = {
    "squared": lambda x, w: x @ ops.square(w),
    "multiplied with itself": lambda x, w: x @ (w * w),
    "through a function": lambda x, w: x @ ops.tanh(w),
    "with a constant added": lambda x, w: x @ (w + 0.1),
    "normalized by row": lambda x, w: x @ ops.softmax(w, axis=1),
    "normalized by column": lambda x, w: x @ (w / ops.norm(w, axis=0, keepdims=True)),
    "clipped": lambda x, w: x @ ops.clip(w, -0.1, 0.1),
    "summed as well": lambda x, w: x @ w + ops.sum(w, axis=0),
    "the other way round, too": lambda x, w: ops.tanh(x @ w) @ ops.transpose(w) @ w,
    "divided by": lambda x, w: x @ (0.1 / w),
}


@pytest.mark.pure
@pytest.mark.parametrize("product", OTHERWISE)
def test_a_weight_that_is_used_otherwise_reads_no_more_units(product, monkeypatch):
    monkeypatch.setitem(PRODUCTS, product, OTHERWISE[product])
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(Own(4, product, name="it")(x)))
    with pytest.raises(n2n.errors.FixedWidthError):
        n2n.plan(model, n2n.Wider("before", 6))


def test_the_reason_names_the_weight(monkeypatch):
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    monkeypatch.setitem(PRODUCTS, "squared", OTHERWISE["squared"])
    model = keras.Model(inputs, layers.Dense(2)(Own(4, "squared", name="it")(x)))
    reason = r"it .Own. uses its weight 'kernel' in another way than to sum over these units"
    with pytest.raises(n2n.errors.FixedWidthError, match=reason):
        n2n.plan(model, n2n.Wider("before", 6))


def test_a_product_with_a_constant_fixes_what_it_sums_over():
    constant = np.ones((4, 4), "float32")
    for product in (ops.matmul, ops.dot, lambda x, w: ops.tensordot(x, w, axes=1)):
        inputs = keras.Input((3, 5))
        x = layers.Dense(4, name="before")(inputs)
        model = keras.Model(inputs, layers.Dense(2)(product(x, constant)))
        with pytest.raises(n2n.errors.FixedWidthError):
            n2n.plan(model, n2n.Wider("before", 6))


def attention_by_hand(query, key, value):
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / 2.0
    return ops.matmul(ops.softmax(scores), value)


def attention_by_einsum(query, key, value):
    weights = ops.softmax(ops.einsum("btd,bsd->bts", query, key) * 0.5)
    return ops.einsum("bts,bsd->btd", weights, value)


def attention_keys_first(query, key, value):
    scores = ops.einsum("bsd,btd->bts", key, query)
    return ops.softmax(scores) @ value


@pytest.mark.parametrize("attend", [attention_by_hand, attention_by_einsum, attention_keys_first])
@pytest.mark.parametrize("activated", list(cases(dict.fromkeys(["query", "key", "value"]), 1)))
def test_an_attention_written_by_hand_grows(attend, activated):
    def build():
        inputs = keras.Input((3, 5))
        made = [
            layers.Dense(4, activation="tanh" if name == activated else None, name=name)(inputs)
            for name in ("query", "key", "value")
        ]
        return keras.Model(inputs, layers.Dense(2, name="after")(attend(*made)))

    growths = [n2n.Wider({"key": 6, "value": 7}), [n2n.Wider(factor=1.5, **kind) for kind in KINDS]]
    check_model(build, growths, save=False, train=False)


def test_what_makes_neither_tensor_linearly_is_fixed():
    inputs = keras.Input((3, 5))
    query, key = (layers.Dense(4, "relu", name=name)(inputs) for name in ("query", "key"))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    model = keras.Model(inputs, layers.Dense(2)(scores @ layers.Dense(3)(inputs)))
    weights = snapshot(model)
    with pytest.raises(
        n2n.errors.FixedWidthError, match="sums over these units, and nothing before it"
    ):
        n2n.grow(model, n2n.Wider("key", 6))
    assert_untouched(model, weights)


def test_what_is_multiplied_with_itself_is_fixed():
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, name="before")(inputs)
    gram = ops.einsum("btc,bsc->bts", x, x)
    model = keras.Model(inputs, layers.Dense(2)(gram @ layers.Dense(4)(inputs)))
    with pytest.raises(n2n.errors.FixedWidthError, match="sums over these units"):
        n2n.plan(model, n2n.Wider("before", 6))


@pytest.mark.parametrize("equation", ["btc->bt", "btt->bt"])
def test_an_einsum_of_one_tensor_fixes_what_it_sums_over_or_takes_a_diagonal_of(equation):
    inputs = keras.Input((4, 5))
    x = layers.Dense(4, name="before")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(ops.einsum(equation, x)))
    with pytest.raises(n2n.errors.FixedWidthError):
        n2n.plan(model, n2n.Wider("before", 6))


def test_an_einsum_of_one_tensor_moves_units():
    def build():
        inputs = keras.Input((3, 5))
        x = layers.Dense(4, activation="tanh", name="before")(inputs)
        x = layers.Flatten()(ops.einsum("btc->bct", x))
        return keras.Model(inputs, layers.Dense(2)(x))

    check_model(build, [n2n.Wider("before", 6)], save=False, train=False)


def test_an_einsum_of_three_tensors_is_refused():
    inputs = keras.Input((3, 5))
    x = layers.Dense(4, name="before")(inputs)
    model = keras.Model(inputs, ops.einsum("btc,btc,btc->btc", x, x, x)[..., :0])
    with pytest.raises(n2n.errors.FixedWidthError):
        n2n.plan(model, n2n.Wider("before", 6))


@pytest.mark.parametrize(
    ("equation", "ranks", "letters"),
    [
        ("ab,bc->ac", [2, 2], ([["a", "b"], ["b", "c"]], ["a", "c"])),
        ("ab,bc", [2, 2], ([["a", "b"], ["b", "c"]], ["a", "c"])),
        ("...b,bc->...c", [3, 2], ([["-2", "-1", "b"], ["b", "c"]], ["-2", "-1", "c"])),
        ("a...,...b -> ab...", [2, 3], ([["a", "-1"], ["-2", "-1", "b"]], ["a", "b", "-2", "-1"])),
        ("ba", [2], ([["b", "a"]], ["a", "b"])),
        ("ab,bc->ac", [3, 2], None),
        ("ab->ab", [2, 2], None),
        ("abc", [2], None),
    ],
)
def test_the_letters_of_an_equation(equation, ranks, letters):
    assert parse_einsum(equation, ranks) == letters


EQUATIONS = {
    "like Dense": ("ab,bc->ac", (4,), "c", (5,), ("input", "units")),
    "on a sequence": ("abc,cd->abd", (None, 4), "d", (3, 5), ("input", "units")),
    "without bias": ("abc,cd->abd", (None, 4), None, (3, 5), ("input", "units")),
    "an ellipsis": ("...x,xy->...y", (4,), "y", (3, 5), ("input", "units")),
}


@pytest.mark.parametrize(
    ("equation", "shape", "bias", "given", "grown"), cases(EQUATIONS).values(), ids=cases(EQUATIONS)
)
def test_einsum_dense_grows(equation, shape, bias, given, grown):
    layer = layers.EinsumDense(equation, shape, bias_axes=bias, activation="tanh")
    assert check_rule(layer, given, **QUICK) == grown


HEADS = {
    "heads": ("abc,cde->abde", (None, 2, 4), "de"),
    "heads with a bias on one axis": ("abc,cde->abde", (None, 2, 4), "e"),
    "heads with a bias on the other axis": ("abc,cde->abde", (None, 2, 4), "d"),
    "heads without bias": ("abc,cde->abde", (None, 2, 4), None),
}


@pytest.mark.parametrize(("equation", "shape", "bias"), cases(HEADS).values(), ids=cases(HEADS))
def test_an_einsum_dense_that_makes_two_axes_grows_in_both_and_another_reads_both(
    equation, shape, bias
):
    def build():
        # On TensorFlow, Keras adds a bias of shape (n, 1) to another axis that has n places.
        inputs = keras.Input((7, 5))
        x = layers.Dense(4, activation="tanh", name="before")(inputs)
        x = layers.EinsumDense(equation, shape, bias_axes=bias, name="it")(x)
        x = layers.EinsumDense("abde,def->abf", (None, 4), bias_axes="f", name="join")(x)
        return keras.Model(inputs, layers.Dense(2, name="after")(x))

    growths = [
        n2n.Wider("it", units={"units_d": 3}),
        n2n.Wider("it", units={"units_e": 6}, shares="even"),
        [n2n.Wider(factor=1.5, **kind) for kind in KINDS],
    ]
    check_model(build, growths, train=False)


class Tied(keras.Layer):
    """A table that is looked up, and compared with, as in a language model."""

    def __init__(self, entries, units, **kwargs):
        super().__init__(**kwargs)
        self.entries, self.units = entries, units
        self.inner = layers.Dense(units, activation="tanh", name="inner")

    def build(self, shape):
        self.table = self.add_weight(shape=(self.entries, self.units), name="table")
        self.inner.build((*shape, self.units))

    def call(self, tokens):
        x = ops.take(self.table, tokens, axis=0)
        return ops.matmul(self.inner(x), ops.transpose(self.table))

    def get_config(self):
        return {**super().get_config(), "entries": self.entries, "units": self.units}


def tied_model():
    tokens = keras.Input((3,), dtype="int32")
    return keras.Model(tokens, layers.Dense(2, name="after")(Tied(5, 4, name="tied")(tokens)))


def test_a_table_that_is_also_a_weight_is_refused_where_what_is_compared_is_not_linear():
    model = randomize(tied_model())
    weights = snapshot(model)
    with pytest.raises(n2n.errors.FixedWidthError, match="uses its weight 'table' in another way"):
        n2n.grow(model, n2n.Wider("tied/inner", 6), seed=0, verify=False)
    assert_untouched(model, weights)


class Mirror(keras.Layer):
    """An autoencoder whose decoder is its encoder, turned round."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, activation="tanh", use_bias=False, name="dense")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return ops.matmul(self.dense(x), ops.transpose(self.dense.kernel))


def test_a_kernel_that_is_read_from_both_sides_is_refused():
    inputs = keras.Input((5,))
    x = layers.Dense(5, name="before")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(2)(Mirror(name="mirror")(x))))
    weights = snapshot(model)
    for name in ("before", "mirror/dense"):
        with pytest.raises(n2n.errors.FixedWidthError):
            n2n.grow(model, n2n.Wider(name, 6), seed=0, verify=False)
    assert_untouched(model, weights)


def gpt(tie=True, norm=layers.LayerNormalization, activation=None):
    tokens = keras.Input((4,), dtype="int32")
    table = layers.ReversibleEmbedding(7, 6, tie_weights=tie, name="table")
    x = table(tokens)
    h = norm(name="norm1")(x)
    h = layers.MultiHeadAttention(2, 3, name="mha")(h, h, use_causal_mask=True)
    x = layers.Add()([x, h])
    h = norm(name="norm2")(x)
    h = layers.Dense(8, activation="gelu", name="up")(h)
    x = layers.Add()([x, layers.Dense(6, name="down")(h)])
    x = norm(name="norm3")(x)
    if activation:
        x = layers.Activation(activation, name="last")(x)
    return keras.Model(tokens, table(x, reverse=True))


needs_reversible = pytest.mark.skipif(
    not hasattr(layers, "ReversibleEmbedding"), reason="new in a later Keras"
)


@needs_reversible
@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("units", few([9, 12], 1))
def test_a_reversible_embedding_grows_in_a_language_model(tie, units, kind):
    model = randomize(gpt(tie))
    x = data_for(model)
    before = both_modes(model, x)
    n2n.grow(model, n2n.Wider("table", units, **kind), seed=0, verify=False)
    assert model.get_layer("table").output_dim == model.get_layer("down").units == units
    assert_same(both_modes(model, x), before, 2e-6)
    assert_native(model)


@needs_reversible
def test_the_table_of_a_tied_embedding_is_copied_and_the_norm_before_it_is_shared():
    model = randomize(gpt())
    table = array(model.get_layer("table").embeddings)
    gamma = array(model.get_layer("norm3").gamma)
    n2n.grow(model, n2n.Wider("table", 12, shares="even"), seed=0)
    new = array(model.get_layer("table").embeddings)
    index = [int(np.abs(table - new[:, [j]]).sum(0).argmin()) for j in range(12)]
    assert sorted(index) == sorted([*range(6), *range(6)])
    np.testing.assert_array_equal(new, table[:, index])
    np.testing.assert_allclose(array(model.get_layer("norm3").gamma), gamma[index] / 2, rtol=1e-6)


@needs_reversible
def test_a_tied_embedding_after_a_nonlinear_function_is_refused():
    model = randomize(gpt(activation="tanh"))
    with pytest.raises(n2n.errors.FixedWidthError, match="sums over these units"):
        n2n.plan(model, n2n.Wider("table", 12))
    n2n.plan(gpt(tie=False, activation="tanh"), n2n.Wider("table", 12))
