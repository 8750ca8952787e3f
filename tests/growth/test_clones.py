"""clone, clone_and_grow, net2wider, net2deeper: a student that shares nothing with its teacher."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.errors import FixedWidthError, GrowthError, SizeError, UnknownLayerError
from tests.support.helpers import (
    EAGERLY,
    array,
    assert_same,
    both_modes,
    data_for,
    flat_layers,
    outputs,
    randomize,
    train_a_step,
)
from tests.support.messages import assert_explained
from tests.support.states import assert_state, operations, state


def mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="relu", name="fc"),
            layers.Dense(2, name="out"),
        ],
        name="mlp",
    )


def rich() -> keras.Model:
    """A nested model twice, a shared layer, constants, operations, and a Lambda."""
    shared = layers.Dense(4, name="shared")
    inner = keras.Sequential(
        [keras.Input((4,)), shared, layers.BatchNormalization(name="bn")], name="inner"
    )
    x = keras.Input((4,), name="x")
    side = keras.Input((4,), name="side")
    a, b = inner(x), inner(side)
    a = shared(a) + np.float32(0.5)
    scale = 2.0
    b = layers.Lambda(lambda t: ops.tanh(t) * scale, name="lambda")(b)
    y = layers.Add(name="sum")([ops.relu(a), b])
    y = layers.Dense(5, activation="relu", name="fc")(y)
    y = layers.Dropout(0.0, seed=3, name="drop")(y)
    ends = {"main": layers.Dense(2, name="main")(y), "raw": layers.Dense(1, name="raw")(y)}
    return keras.Model({"x": x, "side": side}, ends, name="rich")


def convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(3, 2, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.PReLU(name="act"),
            layers.GlobalAveragePooling2D(name="mean"),
            layers.Dense(2, name="out"),
        ],
        name="convolutional",
    )


def deferred() -> keras.Model:
    model = keras.Sequential([layers.Dense(5, name="fc"), layers.Dense(2, name="out")])
    model.build((None, 4))
    return model


class Counts(keras.Model):
    """A training step of its own, and the constructor of a Functional model."""

    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)

    def describe(self):
        return f"of {len(self.layers)} layers"


class Encoder(keras.Model):
    """A constructor of its own, and things that its steps need."""

    def __init__(self, units, beta=0.5):
        inputs = keras.Input((4,))
        encoder = keras.Sequential([keras.Input((4,)), layers.Dense(units, name="fc")], name="enc")
        head = layers.Dense(2, name="out")
        super().__init__(inputs, head(encoder(inputs)), name="own")
        self.encoder, self.head = encoder, head
        self.beta = beta
        self.tracker = keras.metrics.Mean(name="tracker")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        loss = super().compute_loss(x, y, y_pred, sample_weight, **kwargs)
        self.tracker.update_state(loss)
        return loss + self.beta * ops.mean(self.encoder(x) ** 2)


class Stack(keras.Sequential):
    """A Sequential with a constructor of its own."""

    def __init__(self, units):
        super().__init__(
            [keras.Input((4,)), layers.Dense(units, name="fc"), layers.Dense(2, name="out")],
            name="stack",
        )
        self.units = units


class Steps(keras.Sequential):
    """A Sequential with a training step of its own."""

    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


def counts() -> keras.Model:
    inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc")(inputs)
    return Counts(inputs, layers.Dense(2, name="out")(x), name="counts")


BUILDS = {
    "Sequential": mlp,
    "Sequential without an input": deferred,
    "convolutional": convolutional,
    "Functional": rich,
    "a subclass": counts,
    "a subclass with a constructor": lambda: Encoder(6, beta=0.25),
    "a subclass of Sequential": lambda: Steps([keras.Input((4,)), *mlp().layers], name="steps"),
    "a Sequential with a constructor": lambda: Stack(6),
}
MAKERS = {
    "clone": n2n.clone,
    "clone_and_grow": lambda model: n2n.clone_and_grow(model, n2n.Wider(factor=1.5), seed=0),
}


def parts(model: keras.Model) -> set[int]:
    """All that a model is made of: layers, variables and their values, tensors, nodes."""
    found: list = []
    for operation in operations(model):
        found += [operation, *operation._inbound_nodes, *operation._outbound_nodes]
        found += [
            x for node in operation._inbound_nodes for x in (*node.outputs, *node.input_tensors)
        ]
    found += [*model.variables, *(v._value for v in model.variables)]
    found += list(model.metrics)
    return {id(thing) for thing in found}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_a_student_computes_what_its_teacher_does_and_shares_nothing(build, make):
    teacher = randomize(build())
    x = data_for(teacher)
    before, kept = both_modes(teacher, x), state(teacher)
    student = make(teacher)
    assert_state(teacher, kept)
    assert type(student) is type(teacher)
    assert student.name == teacher.name
    assert [path for path, _ in flat_layers(student)] == [path for path, _ in flat_layers(teacher)]
    assert not parts(student) & parts(teacher)
    assert not student.compiled
    assert_same(both_modes(student, x), before)
    if make is n2n.clone:
        for one, other in zip(student.weights, teacher.weights, strict=True):
            assert array(one).tobytes() == array(other).tobytes()
    else:
        assert student.count_params() > teacher.count_params()
    # What happens to one doesn't reach the other.
    for weight in student.weights:
        weight.assign(weight + 1 if weight.dtype == "float32" else weight)
    assert_state(teacher, kept)
    assert_same(both_modes(teacher, x), before, 0.0)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_student_of_a_compiled_teacher_is_not_compiled_and_its_teacher_trains_on(make):
    teacher = randomize(mlp())
    teacher.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], **EAGERLY)
    x = data_for(teacher)
    y = np.zeros((4, 2), "float32")
    teacher.train_on_batch(x, y)
    kept = state(teacher)
    student = make(teacher)
    assert_state(teacher, kept)
    assert not student.compiled
    assert getattr(student, "optimizer", None) is None
    teacher.train_on_batch(x, y)
    student.compile("sgd", "mse", **EAGERLY)
    values = [array(w) for w in teacher.weights]
    student.train_on_batch(x, y)
    assert [array(w).tobytes() for w in teacher.weights] == [v.tobytes() for v in values]


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_a_student_trains(build):
    student = n2n.clone_and_grow(randomize(build()), n2n.Wider(factor=1.5), seed=0)
    train_a_step(student, data_for(student))


def test_what_is_shared_within_a_teacher_is_shared_within_its_student():
    teacher = randomize(rich())
    student = n2n.clone_and_grow(teacher, n2n.Deeper("shared"), seed=0)
    inner = student.get_layer("inner")
    assert student.get_layer("shared") is inner.get_layer("shared")
    assert len(inner._inbound_nodes) - len(teacher.get_layer("inner")._inbound_nodes) == 0
    assert inner is not teacher.get_layer("inner")
    kernel = student.get_layer("shared").kernel
    assert sum(weight is kernel for weight in student.weights) == 1
    assert len(student.weights) == len(teacher.weights) + 2


def test_inputs_and_outputs_keep_their_structure_and_names():
    student = n2n.clone(randomize(rich()))
    assert [tensor.name for tensor in student.inputs] == ["side", "x"]
    made = student(data_for(student))
    assert set(made) == {"main", "raw"}
    assert made["main"].shape == (4, 2)


def test_flags_and_settings_are_kept():
    teacher = convolutional()
    teacher.get_layer("conv").trainable = False
    teacher.get_layer("bn").trainable = False
    nested = rich()
    nested.get_layer("inner").trainable = False
    for make in MAKERS.values():
        student = make(teacher)
        assert [layer.trainable for layer in student.layers] == [False, False, True, True, True]
        assert [w.name for w in student.trainable_weights] == ["alpha", "kernel", "bias"]
        student = make(nested)
        assert not student.get_layer("inner").trainable
        assert not student.get_layer("inner").get_layer("bn").trainable
        assert student.get_layer("fc").trainable
        drop = student.get_layer("drop")
        assert (drop.rate, drop.seed) == (0.0, 3)
        assert student.get_layer("lambda").name == "lambda"
    frozen = mlp()
    frozen.trainable = False
    assert n2n.clone(frozen).trainable_weights == []


def test_a_policy_of_half_precision_is_kept():
    teacher = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, dtype="mixed_float16", name="fc"),
            layers.Dense(2, dtype="float32", name="out"),
        ]
    )
    student = n2n.clone(teacher)
    assert [layer.dtype_policy.name for layer in student.layers] == ["mixed_float16", "float32"]
    x = data_for(teacher)
    assert_same(outputs(student, x), outputs(teacher, x), 0.0)


def test_dropout_of_a_clone_drops_as_that_of_its_teacher_would():
    teacher = keras.Sequential([keras.Input((50,)), layers.Dropout(0.5, seed=7, name="drop")])
    student = n2n.clone(teacher)
    x = np.ones((4, 50), "float32")
    assert np.array_equal(array(student(x, training=True)), array(teacher(x, training=True)))
    assert not np.array_equal(array(student(x, training=True)), x)


def test_the_methods_and_attributes_of_a_class_go_with_its_student():
    student = n2n.clone_and_grow(counts(), n2n.Deeper("fc"), seed=0)
    assert student.describe() == "of 4 layers"
    teacher = Encoder(6, beta=0.25)
    student = n2n.clone(teacher)
    assert student.beta == 0.25
    assert student.encoder is student.get_layer("enc")
    assert student.head is student.get_layer("out")
    assert isinstance(student.tracker, keras.metrics.Mean)
    assert student.tracker is not teacher.tracker
    assert n2n.clone(Stack(6)).units == 6
    # A growth of the student is a growth of what its own steps use.
    n2n.grow(student, n2n.Wider("enc/fc", 9, noise=0.0), seed=0)
    assert student.encoder.output_shape == (None, 9)
    assert teacher.encoder.output_shape == (None, 6)
    train_a_step(student, data_for(student))


def test_net2wider_and_net2deeper_are_the_two_growths_of_the_paper():
    teacher = randomize(mlp())
    x = data_for(teacher)
    wide = n2n.net2wider(teacher, {"fc": 9}, seed=0)
    same = n2n.clone_and_grow(teacher, n2n.Wider({"fc": 9}), seed=0)
    assert wide.get_layer("fc").units == 9
    for one, other in zip(wide.weights, same.weights, strict=True):
        assert array(one).tobytes() == array(other).tobytes()
    assert n2n.net2wider(teacher, "fc", 9).get_layer("fc").units == 9
    assert n2n.net2wider(teacher, factor=2).get_layer("fc").units == 12
    fresh = n2n.net2wider(teacher, "fc", 9, new_units="fresh", seed=0)
    assert np.count_nonzero(array(fresh.get_layer("out").kernel)[6:]) == 0
    deep = n2n.net2deeper(teacher, "fc", 2, seed=0)
    assert [layer.name for layer in deep.layers] == ["fc", "fc_deeper_1", "fc_deeper_2", "out"]
    normed = n2n.net2deeper(teacher, "fc", batch_norm=True, activation="linear", units=8)
    assert [layer.name for layer in normed.layers] == ["fc", "fc_deeper_1", "fc_deeper_1_bn", "out"]
    for student in (wide, fresh, deep, normed):
        assert_same(outputs(student, x), outputs(teacher, x))
    assert teacher.get_layer("fc").units == 6


def test_layers_may_be_named_by_the_objects_of_the_teacher():
    teacher = mlp()
    fc = teacher.get_layer("fc")
    student = n2n.clone_and_grow(teacher, [n2n.Wider({fc: 8}), n2n.Deeper(fc), n2n.Wider([fc], 9)])
    assert [w.shape for w in student.weights][:4] == [(4, 9), (9,), (9, 8), (8,)]
    nested = rich()
    inner = nested.get_layer("inner").get_layer("bn")
    with pytest.raises(FixedWidthError):
        n2n.net2wider(nested, inner, 9)


def test_an_object_in_a_nested_model_is_found_although_another_layer_has_its_name():
    def part(name: str) -> keras.Model:
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(4, name="fc"), layers.Dense(4, name="end")], name=name
        )

    x = inputs = keras.Input((4,))
    left, right = part("left"), part("right")
    teacher = keras.Model(inputs, layers.Dense(2, name="out")(right(left(x))))
    student = n2n.net2wider(teacher, right.get_layer("fc"), 7)
    assert student.get_layer("right").get_layer("fc").units == 7
    assert student.get_layer("left").get_layer("fc").units == 4
    student = n2n.net2wider(teacher, {right.get_layer("fc"): 7, "left/fc": 6})
    assert student.get_layer("left").get_layer("fc").units == 6


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda teacher: n2n.net2wider(teacher, "fcc", 9), UnknownLayerError),
        (lambda teacher: n2n.net2wider(teacher, "out", 9), FixedWidthError),
        (lambda teacher: n2n.net2wider(teacher, "fc", 3), SizeError),
        (lambda teacher: n2n.net2wider(teacher, "fc"), GrowthError),
        (lambda teacher: n2n.net2deeper(teacher, None), GrowthError),
        (lambda teacher: n2n.clone_and_grow(teacher, []), GrowthError),
    ],
)
def test_what_can_not_be_done_is_an_error_before_anything_is_copied(monkeypatch, make, kind):
    teacher = mlp()
    kept = state(teacher)
    monkeypatch.setattr("keras_net2net.growth.clones.clone", None)
    with pytest.raises(kind) as caught:
        make(teacher)
    assert_explained(caught.value)
    assert_state(teacher, kept)


@pytest.mark.parametrize("name", [None, "both"])
def test_weights_without_names_of_their_own_are_copied_too(name):
    class Affine(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name=name)
            self.offset = self.add_weight(shape=(shape[-1],), name=name)

        def call(self, x):
            return self.scale * x + self.offset

    model = keras.Sequential([keras.Input((4,)), layers.Dense(6), Affine(), layers.Dense(2)])
    randomize(model)
    x = data_for(model)
    assert_same(both_modes(n2n.clone(model), x), both_modes(model, x), 0.0)


def test_a_layer_that_is_not_made_from_its_config_is_an_error():
    class Odd(keras.Layer):
        def __init__(self, secret):
            super().__init__(name="odd")
            self.secret = secret

        def call(self, x):
            return x * self.secret

        def get_config(self):
            return {}

    teacher = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="fc"), Odd(2.0)], name="m")
    with pytest.raises(GrowthError) as caught:
        n2n.clone(teacher)
    assert_explained(caught.value, "'odd' (Odd) can't be copied", "get_config", "in place")


def test_a_seed_makes_students_that_are_the_same():
    teacher = randomize(mlp())
    first, second, other = (n2n.net2wider(teacher, "fc", 11, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first.weights, second.weights, strict=True):
        assert array(a).tobytes() == array(b).tobytes()
    assert any(
        array(a).tobytes() != array(b).tobytes()
        for a, b in zip(first.weights, other.weights, strict=True)
    )


def test_a_student_does_not_keep_its_teacher_alive():
    teacher = mlp()
    gone = [weakref.ref(thing) for thing in (teacher, *teacher.layers, teacher.weights[0])]
    student = n2n.clone_and_grow(teacher, [n2n.Wider("fc", 9), n2n.Deeper("fc")], seed=0)
    del teacher
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)
    assert student.count_params() > 0


def test_a_student_saves_and_loads(tmp_path):
    student = n2n.clone_and_grow(randomize(mlp()), [n2n.Wider("fc", 9), n2n.Deeper("fc")], seed=0)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    x = data_for(student)
    assert_same(outputs(loaded, x), outputs(student, x), 1e-7)
