"""What all operations share: they are values, and they name layers."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_net2net as n2n
from keras_net2net.errors import GrowthError, SizeError, UnknownLayerError
from tests.support.helpers import Closed
from tests.support.messages import assert_explained
from tests.support.states import assert_state, state

pytestmark = pytest.mark.pure


def mlp(**kwargs) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="relu", name="dense_a"),
            layers.Dense(6, activation="relu", name="dense_b"),
            layers.Dense(2, name="out"),
        ],
        name="mlp",
        **kwargs,
    )


def nested() -> keras.Model:
    """`fc` stands in both nested models and `alone` only in the first."""

    def part(name: str, *more: keras.Layer) -> keras.Model:
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(5, name="fc"), *more, layers.Dense(4, name="back")],
            name=name,
        )

    x = inputs = keras.Input((4,))
    x = part("left", layers.Dense(5, name="alone"))(x)
    x = part("right")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x), name="nest")


@pytest.fixture(scope="module")
def model():
    return mlp()


@pytest.fixture(scope="module")
def nest():
    return nested()


def asked(model, layers_, **kwargs) -> set[str]:
    """The paths of the layers that a request names."""
    kwargs = kwargs or {"factor": 2}
    plan = n2n.plan(model, n2n.Wider(layers_, **kwargs), seed=0)
    return {path for step in plan.steps for width in step.widths for path in width.asked}


OPERATIONS = {
    "wider, by name": n2n.Wider("conv1", 64),
    "wider, by pattern": n2n.Wider("conv*", factor=1.5, round_to=8),
    "wider, a list": n2n.Wider(["a", "b/c"], units=7, new_units="fresh"),
    "wider, a tuple": n2n.Wider(("a", "b/c"), units=7, shares="even"),
    "wider, a dict": n2n.Wider({"a": 3, "b*": 4}, noise=0.1),
    "wider, all": n2n.Wider(factor=2),
    "wider, numbers of numpy": n2n.Wider("a", np.int64(5), round_to=np.int32(4)),
    "wider, a factor of numpy": n2n.Wider("a", factor=np.float32(1.5), noise=np.float32(0.5)),
    "deeper, by name": n2n.Deeper("conv1"),
    "deeper, a list": n2n.Deeper(["a", "b"], 2, batch_norm=True),
    "deeper, all arguments": n2n.Deeper(
        ("a", "b"), count=3, batch_norm=False, activation="linear", units=9
    ),
    "deeper, a function": n2n.Deeper("a", activation=keras.activations.relu),
    "deeper, a function of keras.ops": n2n.Deeper("a", activation=keras.ops.relu),
    "larger kernel, by name": n2n.LargerKernel("conv1", kernel_size=5),
    "larger kernel, a dict": n2n.LargerKernel({"conv1": (3, 5), "conv*": np.int64(7)}),
    "new classes, by name": n2n.NewClasses("out", 5),
    "new classes, a dict": n2n.NewClasses({"a": 2, "b": 3}, start="suppressed", mass=0.01),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_equals_what_is_read_back_from_its_config(operation):
    read = type(operation).from_config(json.loads(json.dumps(operation.get_config())))
    assert read == operation
    assert type(read) is type(operation)
    assert repr(read) == repr(operation)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_keras_saves_and_loads_an_operation(operation):
    saved = json.dumps(keras.saving.serialize_keras_object(operation))
    assert keras.saving.deserialize_keras_object(json.loads(saved)) == operation


def test_layer_objects_are_saved_by_their_names(model):
    one, two, _ = model.layers
    for operation, plain in (
        (n2n.Wider(one, 9), n2n.Wider("dense_a", 9)),
        (n2n.Wider([one, "dense_b"], 9), n2n.Wider(["dense_a", "dense_b"], 9)),
        (n2n.Wider({one: 9, two: 7}), n2n.Wider({"dense_a": 9, "dense_b": 7})),
        (n2n.Deeper([two, one], 2), n2n.Deeper(["dense_b", "dense_a"], 2)),
    ):
        saved = json.dumps(keras.saving.serialize_keras_object(operation))
        assert keras.saving.deserialize_keras_object(json.loads(saved)) == plain
        assert operation != plain  # an object means this layer and no other of the name


def test_an_activation_layer_is_saved_with_its_settings():
    operation = n2n.Deeper("a", activation=layers.ReLU(max_value=6.0))
    saved = json.dumps(keras.saving.serialize_keras_object(operation))
    loaded = keras.saving.deserialize_keras_object(json.loads(saved))
    assert isinstance(loaded.activation, layers.ReLU)
    assert loaded.activation.max_value == 6.0


def test_operations_with_different_arguments_differ():
    different = [
        n2n.Wider("a", 4),
        n2n.Wider("a", 5),
        n2n.Wider("b", 4),
        n2n.Wider("a", factor=4),
        n2n.Wider("a", 4, round_to=2),
        n2n.Wider("a", 4, new_units="fresh"),
        n2n.Wider("a", 4, shares="even"),
        n2n.Wider("a", 4, noise=0.1),
        n2n.Deeper("a"),
        n2n.Deeper("b"),
        n2n.Deeper("a", 2),
        n2n.Deeper("a", batch_norm=False),
        n2n.Deeper("a", activation="linear"),
        n2n.Deeper("a", units=4),
    ]
    for i, one in enumerate(different):
        for j, other in enumerate(different):
            assert (one == other) == (i == j)
    assert len(set(different)) == len(different)


def test_lists_and_tuples_of_names_mean_the_same():
    assert n2n.Wider(["a", "b"], 4) == n2n.Wider(("a", "b"), 4)
    assert hash(n2n.Deeper(["a", "b"])) == hash(n2n.Deeper(("a", "b")))


@pytest.mark.parametrize("operation", [n2n.Wider("a", 4), n2n.Deeper("a")])
def test_an_operation_is_frozen(operation):
    for field in dataclasses.fields(operation):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(operation, field.name, None)


def test_a_list_given_to_an_operation_can_change_later():
    names = ["a", "b"]
    sizes = {"a": 4}
    by_list, by_dict = n2n.Wider(names, 4), n2n.Wider(sizes)
    names.append("c")
    sizes["b"] = 5
    assert by_list == n2n.Wider(["a", "b"], 4)
    assert by_dict == n2n.Wider({"a": 4})


def test_only_the_arguments_that_were_given_are_shown():
    assert repr(n2n.Wider("a", 4)) == "Wider('a', units=4)"
    assert repr(n2n.Wider(factor=1.5)) == "Wider(factor=1.5)"
    assert repr(n2n.Wider(["a"], factor=2, noise=0.5)) == "Wider(['a'], factor=2, noise=0.5)"
    assert repr(n2n.Deeper("a")) == "Deeper('a')"
    assert repr(n2n.Deeper("a", 2, units=5)) == "Deeper('a', count=2, units=5)"
    assert repr(n2n.Deeper(layers.Dense(2, name="fc"))) == "Deeper('fc')"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("dense_a", {"dense_a"}),
        ("dense_*", {"dense_a", "dense_b"}),
        ("*_b", {"dense_b"}),
        ("dense_?", {"dense_a", "dense_b"}),
        ("dense_[b-z]", {"dense_b"}),
        (["dense_b", "dense_a"], {"dense_a", "dense_b"}),
        (("dense_b",), {"dense_b"}),
        (["dense_a", "dense_*"], {"dense_a", "dense_b"}),
        (None, {"dense_a", "dense_b"}),
        ("*", {"dense_a", "dense_b"}),
    ],
)
def test_layers_are_named_by_names_patterns_and_lists(model, wanted, found):
    assert asked(model, wanted) == found


def test_layers_are_named_by_objects(model):
    assert asked(model, model.layers[1]) == {"dense_b"}
    assert asked(model, [model.layers[0], "dense_b"]) == {"dense_a", "dense_b"}
    assert asked(model, {model.layers[0]: 9, "dense_b": 9}, units=None) == {"dense_a", "dense_b"}


def test_a_layer_of_a_nested_model_is_named_by_its_path_or_by_its_name_alone(nest):
    assert asked(nest, "left/alone") == {"left/alone"}
    assert asked(nest, "alone") == {"left/alone"}
    assert asked(nest, "right/fc") == {"right/fc"}
    assert asked(nest, "*/fc") == {"left/fc", "right/fc"}
    assert asked(nest, "left/*") == {"left/fc", "left/alone", "left/back"}
    assert asked(nest, "f?") == {"left/fc", "right/fc"}
    assert asked(nest, nest.get_layer("right").get_layer("fc")) == {"right/fc"}


def test_a_name_with_the_characters_of_a_pattern_is_a_name_first():
    x = inputs = keras.Input((4,))
    x = layers.Dense(3, name="block[1]")(x)
    x = layers.Dense(3, name="block1")(x)
    odd = keras.Model(inputs, layers.Dense(2)(x))
    assert asked(odd, "block[1]") == {"block[1]"}


UNKNOWN = {
    "a wrong name": ("dense_c", ["'dense_c'", "'mlp'", "Did you mean 'dense_b' or 'dense_a'?"]),
    "a name far off": ("zzz", ["'zzz'", "dense_a, dense_b, out", "model.layers"]),
    "a pattern that matches nothing": ("conv*", ["The pattern 'conv*'", "dense_a, dense_b, out"]),
    "one of a list": (["dense_a", "outt"], ["'outt'", "Did you mean 'out'"]),
    "an empty list": ([], ["No layer was named", "the list is empty"]),
    "a number": (5, ["named by a string", "'conv1'"]),
    "a number in a list": (["dense_a", 5], ["named by a string", "'conv1'"]),
}


@pytest.mark.parametrize("make", [lambda x: n2n.Wider(x, factor=2), n2n.Deeper])
@pytest.mark.parametrize(("wanted", "content"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_layer_is_an_error_that_names_the_closest(model, make, wanted, content):
    operation = make(wanted)
    before = state(model)
    with pytest.raises(UnknownLayerError) as caught:
        n2n.grow(model, operation, seed=0)
    assert_state(model, before)
    assert assert_explained(caught.value, *content)["received"] == repr(operation)


@pytest.mark.parametrize("make", [lambda x: n2n.Wider(x, factor=2), n2n.Deeper])
def test_a_layer_object_of_another_model_is_unknown(model, make):
    with pytest.raises(UnknownLayerError) as caught:
        n2n.plan(model, make(mlp().layers[0]))
    assert_explained(caught.value, "'dense_a' (Dense)", "isn't part of the model 'mlp'")


@pytest.mark.parametrize("make", [lambda x: n2n.Wider(x, factor=2), n2n.Deeper])
def test_a_name_that_two_nested_layers_have_is_an_error_that_lists_the_paths(nest, make):
    with pytest.raises(UnknownLayerError) as caught:
        n2n.plan(nest, make("fc"))
    assert_explained(caught.value, "'fc'", "2 layers", "'left/fc', 'right/fc'")


@pytest.mark.parametrize("make", [lambda x: n2n.Wider(x, factor=2), n2n.Deeper])
def test_the_name_of_a_nested_model_is_an_error_that_says_how_to_name_its_layers(nest, make):
    with pytest.raises(UnknownLayerError) as caught:
        n2n.plan(nest, make("right"))
    assert_explained(caught.value, "'right' is a model (Sequential)", "'right/*'")


class NotAGraph(keras.Model):
    """A model that writes its own call."""

    def __init__(self):
        super().__init__(name="own_call")
        self.dense = layers.Dense(3)
        self.closed = Closed()

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.closed.build((None, 3))

    def call(self, x):
        return self.closed.call(self.dense(x))


def built(model: keras.Model) -> keras.Model:
    model(np.zeros((1, 4), "float32"))
    return model


NO_GRAPH = {
    "an unbuilt Sequential": (
        lambda: keras.Sequential([layers.Dense(3)], name="later"),
        ["'later'", "isn't built", "keras.Input"],
    ),
    "an unbuilt subclass": (NotAGraph, ["'own_call'", "NotAGraph", "isn't built"]),
    "a built subclass": (
        lambda: built(NotAGraph()),
        ["'own_call'", "takes numbers alone", "keras.Model(inputs, outputs)"],
    ),
    "a layer": (lambda: layers.Dense(3), ["`keras.Model`", "(of type Dense)"]),
    "an array": (lambda: np.zeros(3), ["`keras.Model`", "(of type ndarray)"]),
    "nothing": (lambda: None, ["`keras.Model`", "(of type NoneType)"]),
}


@pytest.mark.parametrize(("make", "content"), NO_GRAPH.values(), ids=NO_GRAPH)
def test_what_has_no_graph_of_layers_is_refused(make, content):
    thing = make()
    for call in (
        lambda: n2n.plan(thing, n2n.Wider(factor=2)),
        lambda: n2n.grow(thing, n2n.Wider(factor=2)),
        lambda: n2n.clone_and_grow(thing, n2n.Wider(factor=2)),
        lambda: n2n.clone(thing),
    ):
        with pytest.raises(GrowthError) as caught:
            call()
        assert_explained(caught.value, *content)


@pytest.mark.parametrize(
    "wrong", ["dense_a", None, 4, [], [[]], [n2n.Deeper("dense_a"), "dense_b"], {}, n2n.Wider]
)
def test_what_is_no_operation_is_refused(model, wrong):
    before = state(model)
    for call in (n2n.plan, n2n.grow, n2n.clone_and_grow):
        with pytest.raises(GrowthError) as caught:
            call(model, wrong)
        assert_explained(caught.value, "an operation, or a list of operations", "Wider('conv1'")
    assert_state(model, before)


def test_lists_of_operations_may_be_nested(model):
    wider, deeper = n2n.Wider("dense_a", 9), n2n.Deeper("dense_b")
    plan = n2n.plan(model, [wider, [deeper, (wider,)]], seed=0)
    assert [step.operation for step in plan.steps] == [wider, deeper, wider]


@pytest.mark.parametrize("seed", [1.5, "1", True, [1]])
def test_a_seed_that_is_no_integer_is_an_error(model, seed):
    with pytest.raises(GrowthError) as caught:
        n2n.plan(model, n2n.Wider(factor=2), seed=seed)
    assert_explained(caught.value, "seed", f"seed={seed!r}")


def test_the_seed_may_be_an_integer_of_numpy_and_defaults_to_a_random_one(model):
    operation = n2n.Wider(factor=2)
    assert n2n.plan(model, operation, seed=np.int64(7)) == n2n.plan(model, operation, seed=7)
    drawn = {n2n.plan(model, operation).seed for _ in range(4)}
    assert len(drawn) > 1


@pytest.mark.parametrize("bad", [0, -3, 2.5, 2.0, "4", True, float("nan"), float("inf"), [4]])
@pytest.mark.parametrize(
    ("name", "make"),
    {
        "`units`": lambda bad: n2n.Wider("dense_a", units=bad),
        "The units of 'dense_a'": lambda bad: n2n.Wider({"dense_a": bad}),
        "`round_to`": lambda bad: n2n.Wider("dense_a", 9, round_to=bad),
        "`count`": lambda bad: n2n.Deeper("dense_a", count=bad),
        "The units": lambda bad: n2n.Deeper("dense_a", units=bad),
    }.items(),
)
def test_a_size_that_is_no_positive_whole_number_is_an_error(name, make, bad):
    with pytest.raises(SizeError) as caught:
        make(bad)
    parts = assert_explained(caught.value, f"can't be {bad!r}", "a whole number of at least 1")
    assert "dense_a" in parts["received"]
    assert repr(bad) in parts["received"]
    kind = "a number of layers" if name == "`count`" else "a number of units"
    assert kind in parts["why"]
