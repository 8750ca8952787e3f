"""Models as people write them: one of each genre, tiny, with its own layers and its own loop."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from tests.support.helpers import (
    BACKEND,
    array,
    assert_same,
    both_modes,
    cases,
    max_difference,
    outputs,
    randomize,
    skipped,
)

registered = keras.saving.register_keras_serializable("examples")
RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype("float32")


def integers(high, *shape):
    return RANDOM.integers(0, high, shape).astype("int32")


class Configured(keras.Layer):
    """A layer that keeps its arguments in a dict, as its `get_config` returns them."""

    def __init__(self, settings, **kwargs):
        super().__init__(**kwargs)
        self.settings = settings

    def get_config(self):
        return {**super().get_config(), **self.settings}


@registered
class TransformerBlock(Configured):
    def __init__(self, width, heads, hidden, **kwargs):
        super().__init__({"width": width, "heads": heads, "hidden": hidden}, **kwargs)
        self.attention = layers.MultiHeadAttention(heads, width)
        self.mlp = keras.Sequential(
            [layers.Dense(hidden, activation="relu"), layers.Dense(width, name="down")], name="mlp"
        )
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.mlp(x))


@registered
class TokensAndPlaces(Configured):
    def __init__(self, length, words, width, **kwargs):
        super().__init__({"length": length, "words": words, "width": width}, **kwargs)
        self.tokens = layers.Embedding(words, width, name="tokens")
        self.places = layers.Embedding(length, width, name="places")

    def call(self, x):
        return self.tokens(x) + self.places(ops.arange(ops.shape(x)[-1]))


def text_transformer():
    inputs = keras.Input((6,), dtype="int32")
    x = TransformerBlock(4, 2, 6, name="block")(TokensAndPlaces(6, 9, 4, name="embed")(inputs))
    x = layers.Dense(5, activation="relu")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(2, activation="softmax", name="after")(x))


@registered
class Mixer(keras.Layer):
    """Mixes the places, then the channels; one normalization serves both."""

    def __init__(self, places, width, hidden, **kwargs):
        super().__init__(**kwargs)
        self.places, self.width, self.hidden = places, width, hidden
        self.across = [layers.Dense(places, activation="gelu"), layers.Dense(places)]
        self.along = [layers.Dense(hidden, activation="gelu"), layers.Dense(width)]
        self.norm = layers.LayerNormalization()

    def call(self, x):
        y = ops.transpose(self.norm(x), (0, 2, 1))
        for dense in self.across:
            y = dense(y)
        y = x = x + ops.transpose(y, (0, 2, 1))
        y = self.norm(y)
        for dense in self.along:
            y = dense(y)
        return x + y

    def get_config(self):
        sizes = {"places": self.places, "width": self.width, "hidden": self.hidden}
        return {**super().get_config(), **sizes}


def mlp_mixer():
    inputs = keras.Input((8, 8, 3))
    patches = layers.Reshape((4, 48))(ops.image.extract_patches(inputs, size=4))
    x = Mixer(4, 4, 6, name="mixer")(layers.Dense(4, name="patches")(patches))
    return keras.Model(inputs, layers.Dense(3, name="after")(layers.GlobalMaxPooling1D()(x)))


@registered
class Recommender(keras.Model):
    def __init__(self, users, films, size, **kwargs):
        super().__init__(**kwargs)
        self.users, self.films, self.size = users, films, size
        self.user = layers.Embedding(users, size, name="user")
        self.film = layers.Embedding(films, size, name="film")
        self.bias = layers.Embedding(users, 1, name="bias")

    def call(self, pairs):
        users, films = pairs[:, 0], pairs[:, 1]
        match = ops.sum(self.user(users) * self.film(films), axis=1, keepdims=True)
        return ops.sigmoid(match + self.bias(users))

    def get_config(self):
        sizes = {"users": self.users, "films": self.films, "size": self.size}
        return {**super().get_config(), **sizes}


@registered
class Switch(keras.Layer):
    """Each place goes through the expert that a router picks; it adds a loss."""

    def __init__(self, experts, hidden, width, **kwargs):
        super().__init__(**kwargs)
        self.sizes = (experts, hidden, width)
        self.router = layers.Dense(experts, name="router")
        self.experts = [
            keras.Sequential([layers.Dense(hidden, activation="gelu"), layers.Dense(width)])
            for _ in range(experts)
        ]

    def call(self, x):
        shares = ops.softmax(self.router(x))
        gate, chosen = ops.top_k(shares, 1)
        mask = ops.one_hot(chosen[..., 0], self.sizes[0])
        self.add_loss(0.01 * ops.mean(ops.mean(mask, (0, 1)) * ops.mean(shares, (0, 1))))
        return gate * sum(e(x) * mask[..., i : i + 1] for i, e in enumerate(self.experts))


def switch_transformer():
    inputs = keras.Input((5, 4))
    x = layers.Dense(4)(inputs)
    x = x + Switch(3, 6, 4, name="switch")(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(2, name="after")(layers.LayerNormalization()(x)))


@registered
def distance(pair):
    return ops.abs(pair[0] - pair[1])


def siamese():
    x = inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))
    x = layers.Dense(5, activation="tanh")(layers.Flatten()(layers.MaxPooling2D()(x)))
    encoder = keras.Model(inputs, x, name="encoder")
    pair = [keras.Input((8, 8, 1)) for _ in range(2)]
    x = layers.Lambda(distance, output_shape=(5,))([encoder(x) for x in pair])
    return keras.Model(pair, layers.Dense(1, activation="sigmoid", name="after")(x))


@registered
class Orthogonal(keras.Regularizer):
    """A penalty on matrices that aren't orthogonal; it can take `size` x `size` only."""

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.size, self.size))
        return ops.sum(ops.square(ops.matmul(x, ops.transpose(x, (0, 2, 1))) - ops.eye(self.size)))

    def get_config(self):
        return {"size": self.size}


def pointnet():
    inputs = keras.Input((7, 3))
    x = layers.BatchNormalization()(layers.Conv1D(4, 1, activation="relu")(inputs))
    x = layers.Dense(5, activation="relu")(layers.GlobalMaxPooling1D()(x))
    x = layers.Dense(9, activity_regularizer=Orthogonal(3), name="transform")(x)
    x = layers.Dot((2, 1))([inputs, layers.Reshape((3, 3))(x)])
    x = layers.GlobalMaxPooling1D()(layers.Conv1D(5, 1, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="after")(x))


@registered
class GraphAttention(keras.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shapes):
        self.kernel = self.add_weight(shape=(shapes[0][-1], self.units), name="kernel")
        self.scores = self.add_weight(shape=(2 * self.units, 1), name="scores")

    def call(self, inputs):
        nodes, edges = inputs
        nodes = ops.matmul(nodes, self.kernel)
        ends = ops.reshape(ops.take(nodes, edges, axis=0), (edges.shape[0], -1))
        weights = ops.exp(ops.tanh(ops.matmul(ends, self.scores)[:, 0]))
        total = ops.segment_sum(weights, edges[:, 0], num_segments=6)
        weights = weights / ops.take(total, edges[:, 0], axis=0)
        sent = ops.take(nodes, edges[:, 1], axis=0) * weights[:, None]
        return ops.relu(ops.segment_sum(sent, edges[:, 0], num_segments=6))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


EDGES = np.array([[i, j % 6] for i in range(6) for j in (i, i + 1, i + 3)], "int32")


def graph_attention():
    nodes = keras.Input(batch_shape=(6, 5))
    edges = keras.Input(batch_shape=(18, 2), dtype="int32")
    x = layers.Dense(4, activation="relu")(nodes)
    x = layers.Concatenate()([x, GraphAttention(4)([x, edges]), GraphAttention(3)([x, edges])])
    return keras.Model([nodes, edges], layers.Dense(3, name="after")(x))


@registered
class ListsAndDicts(keras.Model):
    def __init__(self, widths=(6, 5), **kwargs):
        super().__init__(**kwargs)
        self.widths = list(widths)

    def build(self, shape):
        self.blocks = [(layers.Dense(w), layers.BatchNormalization()) for w in self.widths]
        self.heads = {name: layers.Dense(2, name=name) for name in ("left", "right")}
        for dense, norm in self.blocks:
            dense.build(shape)
            shape = (*shape[:-1], dense.units)
            norm.build(shape)
        for head in self.heads.values():
            head.build(shape)
        self.built = True

    def call(self, x, training=False):
        for dense, norm in self.blocks:
            x = ops.relu(norm(dense(x), training=training))
        return {name: head(x) for name, head in self.heads.items()}

    def get_config(self):
        return {**super().get_config(), "widths": self.widths}


def deep_and_cross():
    inputs = {name: keras.Input((1,), name=name) for name in ("age", "hours")}
    inputs["job"] = keras.Input((1,), name="job", dtype="int32")
    known = layers.CategoryEncoding(5, output_mode="one_hot")(inputs["job"])
    wide = layers.BatchNormalization()(layers.concatenate([inputs["age"], known]))
    job = layers.Reshape((3,))(layers.Embedding(5, 3)(inputs["job"]))
    x = deep = layers.concatenate([inputs["age"], inputs["hours"], job])
    cross = deep * layers.Dense(5)(deep) + deep
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(6)(x)))
    x = layers.concatenate([wide, cross, x])
    return keras.Model(
        inputs,
        {"income": layers.Dense(1, name="income")(x), "score": layers.Dense(2, name="score")(x)},
    )


def sequence_to_sequence():
    source, target = keras.Input((None, 5)), keras.Input((None, 6))
    _, *states = layers.LSTM(4, return_state=True)(source)
    x = layers.LSTM(4, return_sequences=True)(target, initial_state=states)
    return keras.Model([source, target], layers.Dense(6, activation="softmax", name="after")(x))


def u_net():
    x = inputs = keras.Input((8, 8, 3))
    kept = []
    for filters in (3, 4):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        kept.append(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D(2)(kept[-1])
    for filters, other in zip((4, 3), kept[::-1], strict=True):
        x = layers.Conv2DTranspose(filters, 3, 2, padding="same")(x)
        x = layers.Conv2D(filters, 3, padding="same")(layers.concatenate([x, other]))
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax", name="after")(x))


# The model, what it is called on, and what can't grow by half: outputs, what a softmax runs
# over, and streams whose normalization takes whole multiples only.
EXAMPLES = {
    "text transformer": (
        text_transformer,
        integers(9, 3, 6),
        {"embed/tokens", "block/mlp/down", "after"},
    ),
    "switch transformer": (switch_transformer, floats(3, 5, 4), {"switch/router", "after"}),
    "recommender": (lambda: Recommender(7, 7, 4), integers(7, 4, 2), {"bias"}),
    "siamese": (siamese, [floats(3, 8, 8, 1), floats(3, 8, 8, 1)], {"after"}),
    "lists and dicts": (ListsAndDicts, floats(4, 4), {"left", "right"}),
    "PointNet": (pointnet, floats(3, 7, 3), {"transform", "after"}),
    "graph attention": (graph_attention, [floats(6, 5), EDGES], {"after"}),
    "sequence to sequence": (sequence_to_sequence, [floats(2, 4, 5), floats(2, 3, 6)], {"after"}),
    "U-Net": (u_net, floats(2, 8, 8, 3), {"after"}),
    "deep and cross": (
        deep_and_cross,
        {"age": floats(4, 1), "hours": floats(4, 1), "job": integers(5, 4, 1)},
        {"income", "score"},
    ),
}
UNSAVED = ("switch transformer",)  # its layer has no `get_config`


def built(build, x):
    """The model with random weights; one with a `call` of its own is built by data."""
    model = build()
    model(x)
    return randomize(model)


@pytest.mark.filterwarnings("ignore:`build..` was called on layer")  # Keras's, when it loads
@pytest.mark.parametrize("name", cases(EXAMPLES, most=6))
def test_all_that_can_grows_by_half(name, tmp_path):
    build, x, fixed = EXAMPLES[name]
    model = built(build, x)
    before = both_modes(model, x)
    report = n2n.grow(model, n2n.Wider(factor=1.5), seed=0)
    assert report.parameters_after > report.parameters_before
    assert skipped(report.plan) == fixed
    assert_same(both_modes(model, x), before, 1e-5)
    if name not in UNSAVED and BACKEND != "jax":  # it compiles the loaded one for long
        assert not [note for note in report.notes if "rebuilt" in note]
        model.save(tmp_path / "grown.keras")
        loaded = keras.models.load_model(tmp_path / "grown.keras")
        assert_same(both_modes(loaded, x), both_modes(model, x), 1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has tensors of strings")
def test_words_are_made_to_compare_a_model_on():
    words, numbers = keras.Input((3,), dtype="string"), keras.Input((2,))
    found = layers.StringLookup(vocabulary=["red", "green", "blue"])(words)
    x = layers.Embedding(4, 3, name="table")(found)
    x = layers.concatenate([layers.Flatten()(x), layers.Dense(4, "relu", name="hidden")(numbers)])
    model = randomize(keras.Model([words, numbers], layers.Dense(2)(x)))
    report = n2n.grow(model, n2n.Wider(["table", "hidden"], factor=2), seed=0)
    assert report.difference < 1e-5


def test_a_mixer_takes_whole_multiples_of_the_units_whose_places_it_mixes():
    # A Dense along the places adds its bias to each unit: a mean of them is none any more.
    x = floats(3, 8, 8, 3)
    model = built(mlp_mixer, x)
    before = both_modes(model, x)
    with pytest.raises(n2n.errors.SizeError, match="only whole multiples of its 4 units"):
        n2n.grow(model, n2n.Wider("patches", units=6))
    n2n.grow(model, n2n.Wider(factor=1.5), seed=0)
    n2n.grow(model, n2n.Wider("patches", units=8), seed=0)
    assert_same(both_modes(model, x), before, 1e-5)


class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise


def coder_and_decoder():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(3, 3, strides=2, activation="relu", name="conv")(inputs)
    x = layers.Dense(5, activation="relu", name="hidden")(layers.Flatten()(x))
    code = [layers.Dense(2, name=name)(x) for name in ("mean", "log_variance")]
    encoder = keras.Model(inputs, [*code, Sampling()(code)], name="encoder")
    inputs = keras.Input((2,))
    x = layers.Dense(12, activation="relu", name="hidden")(inputs)
    x = layers.Conv2DTranspose(3, 3, 3, activation="relu", name="conv")(
        layers.Reshape((2, 2, 3))(x)
    )
    decoder = keras.Model(inputs, layers.Conv2D(1, 3, padding="same")(x), name="decoder")
    return encoder, decoder


def train(optimizer, model, loss_of):
    """One step of an optimizer for one model, by hand."""
    variables = model.trainable_variables
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = loss_of()
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
    else:
        import torch

        model.zero_grad()
        loss = loss_of()
        loss.backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in variables], variables)
    return loss


class Autoencoder(keras.Model):
    """A variational autoencoder that only its `train_step` puts together."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder
        self.built = True

    def train_step(self, data):
        x = data[0] if isinstance(data, tuple) else data

        def loss():
            mean, log_variance, code = self.encoder(x, training=True)
            entropy = 1 + log_variance - ops.square(mean) - ops.exp(log_variance)
            return ops.mean(ops.square(x - self.decoder(code))) - 0.5 * ops.mean(entropy)

        return {"loss": train(self.optimizer, self, loss)}


def parts_of(model, x, code):
    return [*outputs(model.encoder, x)[:2], *outputs(model.decoder, code)]


@pytest.mark.skipif(BACKEND == "jax", reason="a training step there is another, without state")
def test_a_model_without_a_call_grows_in_its_fit():
    model = randomize(Autoencoder(*coder_and_decoder()))
    x, code = floats(4, 6, 6, 1), floats(4, 2)
    before = parts_of(model, x, code)
    model.compile("adam")
    schedule = {0: [n2n.Wider(factor=1.5), n2n.Deeper("encoder/hidden")]}
    growth = n2n.GrowthScheduler(schedule, seed=0, verbose=0)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(parts_of(model, x, code))
    )
    model.fit(x, epochs=2, batch_size=2, verbose=0, callbacks=[growth, watch])
    assert_same(seen[0], before, 1e-5)
    assert max_difference(seen[1], before) > 1e-5  # it learns
    assert model.encoder.get_layer("conv").filters == 5
    assert "hidden_deeper_1" in [layer.name for layer in model.encoder.layers]


def test_the_code_of_an_autoencoder_stays_since_numbers_are_drawn_for_it():
    model = Autoencoder(*coder_and_decoder())
    with pytest.raises(
        n2n.errors.FixedWidthError, match="numbers of this size that no layer makes"
    ):
        n2n.grow(model, n2n.Wider("encoder/mean", units=4))


def test_a_model_that_holds_no_models_and_has_no_call_says_so():
    class Empty(keras.Model):
        pass

    with pytest.raises(n2n.GrowthError, match="has no `call`, and holds no built"):
        n2n.grow(Empty(), n2n.Wider(factor=2))


class Adversaries(keras.Model):
    """A generator and a discriminator, with an optimizer each."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        sizes = {"generator": (2, 4, 3), "discriminator": (3, 5, 1)}
        for name, (given, hidden, made) in sizes.items():
            inputs = keras.Input((given,))
            x = layers.Dense(hidden, activation="relu", name="hidden")(inputs)
            setattr(self, name, keras.Model(inputs, layers.Dense(made)(x), name=name))
        self.optimizers = {name: keras.optimizers.Adam(0.1) for name in sizes}
        self.built = True

    def step(self):
        """One step of both, by gradients of one."""
        for name, optimizer in self.optimizers.items():
            variables = getattr(self, name).trainable_variables
            optimizer.apply([ops.ones(v.shape) for v in variables], variables)


@pytest.mark.parametrize("state", ["carry", "reset"][: 2 if BACKEND == "torch" else 1])
def test_each_part_keeps_its_own_optimizer(state):
    model = randomize(Adversaries())
    model.step()
    code, x = floats(4, 2), floats(4, 3)
    before = [*outputs(model.generator, code), *outputs(model.discriminator, x)]
    operations = [n2n.Wider("*/hidden", factor=2), n2n.Deeper("discriminator/hidden")]
    n2n.grow(model, operations, seed=0, optimizer_state=state)
    after = [*outputs(model.generator, code), *outputs(model.discriminator, x)]
    assert_same(after, before)
    moments = 2 * len(model.discriminator.trainable_variables)
    optimizer = model.optimizers["discriminator"]
    assert len(optimizer.variables) == 2 + moments  # with the iterations and the rate
    assert int(array(optimizer.iterations)) == 1
    model.step()
    assert int(array(optimizer.iterations)) == 2


@pytest.mark.parametrize(
    ("kind", "grows"), [("Dense", False), ("LayerNormalization", False), ("matmul", True)]
)
def test_what_is_added_along_another_axis_is_no_zero_of_units(kind, grows):
    """A normalization must not take units for zeros that a bias was added to on the way."""

    class Turned(keras.Layer):
        def build(self, shape):
            self.mix = self.add_weight(shape=(3, 3), name="mix")
            if kind != "matmul":
                self.inner = layers.Dense(3) if kind == "Dense" else layers.LayerNormalization()
                self.inner.build((shape[0], shape[2], shape[1]))

        def call(self, x):
            x = ops.matmul(ops.transpose(x, (0, 2, 1)), self.mix)
            return ops.transpose(x if kind == "matmul" else self.inner(x), (0, 2, 1))

    inputs = keras.Input((3, 5))
    x = Turned()(layers.Dense(4, name="stream")(inputs))
    x = layers.Dense(2, name="after")(layers.RMSNormalization()(x))
    model = randomize(keras.Model(inputs, x))
    x = floats(4, 3, 5)
    before = both_modes(model, x)
    if not grows:
        with pytest.raises(n2n.errors.SizeError, match="only whole multiples of its 4 units"):
            n2n.grow(model, n2n.Wider("stream", units=6))
    n2n.grow(model, n2n.Wider("stream", units=6 if grows else 8), seed=0, verify=False)
    assert_same(both_modes(model, x), before, 1e-5)
