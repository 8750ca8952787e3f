"""Dense, Embedding, Identity."""

from __future__ import annotations

import keras
import pytest
from keras import layers

import keras_net2net as n2n
from tests.support.helpers import check_growth, few, sandwich

CASES = {
    "dense": lambda: sandwich((5,), layers.Dense(4, activation="relu", name="it")),
    "dense without bias": lambda: sandwich((5,), layers.Dense(4, use_bias=False, name="it")),
    "dense on a sequence": lambda: sandwich((3, 5), layers.Dense(4, activation="gelu")),
    "dense on an image": lambda: sandwich((3, 2, 5), layers.Dense(4)),
    "identity": lambda: sandwich((5,), layers.Identity()),
}


@pytest.mark.parametrize("build", few(CASES))
def test_the_function_stays(build, tmp_path):
    check_growth(build, path=tmp_path)


def embedding(layer: keras.Layer):
    def build() -> keras.Model:
        tokens = keras.Input((3,), dtype="int32")
        x = layer.from_config(layer.get_config())(tokens)
        return keras.Model(tokens, layers.Dense(3, name="after")(x))

    return build


def test_an_embedding_grows_by_its_output_dimension(tmp_path):
    build = embedding(layers.Embedding(5, 4, name="tokens"))
    check_growth(build, single="tokens", path=tmp_path, train=True)
    model = build()
    n2n.grow(model, n2n.Wider("tokens", units=7), seed=0)
    assert model.get_layer("tokens").output_dim == 7
    assert tuple(model.get_layer("tokens").embeddings.shape) == (5, 7)
