"""Random models under random operations: the function stays, or an error changes nothing."""

from __future__ import annotations

import math
from typing import Any

import keras
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from keras import layers

import keras_net2net as n2n
from tests.helpers import (
    assert_same,
    assert_untouched,
    data_for,
    outputs,
    randomize,
    snapshot,
)

EXAMPLES = 40 if keras.backend.backend() != "jax" else 12  # JAX compiles each new shape


class Builder:
    """Makes a random functional model of supported layers, from draws that Hypothesis shrinks.

    Args:
        draw: Hypothesis's `draw`.
        prefix: What the names of the layers start with.
    """

    def __init__(self, draw: Any, prefix: str = "") -> None:
        self.draw = draw
        self.prefix = prefix
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{self.prefix}{kind}{self.count}"

    def pick(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def model(self, shape: tuple[int, ...], steps: int, name: str | None = None) -> Any:
        """A model with branches that are summed, multiplied or concatenated again."""
        inputs = keras.Input(shape, name=f"{self.prefix}input")
        pool = [inputs, *(self.dense(inputs, []) for _ in range(self.pick(0, 1, 2)))]
        for _ in range(steps):
            pool.append(self.step(pool))
        ends = [self.vector(x) for x in (pool[-1], self.pick(*pool))]
        x = layers.Concatenate(name=self.name("join"))(ends) if self.pick(True, False) else ends[0]
        return keras.Model(inputs, layers.Dense(2, name=self.name("out"))(x), name=name)

    def step(self, pool: list[Any]) -> Any:
        x = self.pick(*pool[-3:])
        kinds = ["act", "norm", "act_op", "merge", "dense", "shared", "nested", "prelu", "split"]
        kinds += ["merge", "reshape", "reshaped_merge", "join", "repeat"]
        if len(x.shape) == 4:
            kinds += ["conv", "conv", "depthwise", "separable", "pool", "pad", "se", "transposed"]
        elif len(x.shape) == 3:
            kinds += ["conv1", "pool1"]
        if len(x.shape) > 2:
            kinds += ["permute", "mean"]
        return getattr(self, self.pick(*kinds))(x, pool)

    def units(self) -> int:
        return self.pick(1, 2, 3, 4, 6)

    def act(self, x: Any, pool: list[Any]) -> Any:
        return layers.Activation(self.pick("relu", "tanh", "silu"), name=self.name("act"))(x)

    def act_op(self, x: Any, pool: list[Any]) -> Any:
        return self.pick(keras.ops.relu, keras.ops.sigmoid, lambda y: 0.5 * y + 1.0)(x)

    def prelu(self, x: Any, pool: list[Any]) -> Any:
        shared = list(range(1, len(x.shape) - 1)) or None
        return layers.PReLU("ones", shared_axes=shared, name=self.name("prelu"))(x)

    def norm(self, x: Any, pool: list[Any]) -> Any:
        return layers.BatchNormalization(name=self.name("norm"))(x)

    def dense(self, x: Any, pool: list[Any]) -> Any:
        activation = self.pick("relu", "linear", "gelu")
        return layers.Dense(self.units(), activation=activation, name=self.name("dense"))(x)

    def conv(self, x: Any, pool: list[Any]) -> Any:
        return layers.Conv2D(
            self.units(),
            self.pick(1, 2, 3),
            padding="same",
            use_bias=self.pick(True, False),
            activation=self.pick("relu", "linear"),
            name=self.name("conv"),
        )(x)

    def conv1(self, x: Any, pool: list[Any]) -> Any:
        padding = self.pick("same", "causal")
        return layers.Conv1D(self.units(), 2, padding=padding, name=self.name("conv"))(x)

    def transposed(self, x: Any, pool: list[Any]) -> Any:
        return layers.Conv2DTranspose(
            self.units(), 2, padding="same", name=self.name("transposed")
        )(x)

    def depthwise(self, x: Any, pool: list[Any]) -> Any:
        return layers.DepthwiseConv2D(
            2, padding="same", depth_multiplier=self.pick(1, 2), name=self.name("depthwise")
        )(x)

    def separable(self, x: Any, pool: list[Any]) -> Any:
        return layers.SeparableConv2D(self.units(), 2, padding="same", name=self.name("separable"))(
            x
        )

    def pool(self, x: Any, pool: list[Any]) -> Any:
        kind = self.pick(layers.MaxPooling2D, layers.AveragePooling2D)
        return kind(2, strides=1, padding="same", name=self.name("pool"))(x)

    def pool1(self, x: Any, pool: list[Any]) -> Any:
        return layers.MaxPooling1D(2, strides=1, padding="same", name=self.name("pool"))(x)

    def pad(self, x: Any, pool: list[Any]) -> Any:
        padded = layers.ZeroPadding2D(1, name=self.name("pad"))(x)
        return layers.Cropping2D(1, name=self.name("crop"))(padded)

    def permute(self, x: Any, pool: list[Any]) -> Any:
        order = self.draw(st.permutations(range(1, len(x.shape))))
        return layers.Permute(tuple(order), name=self.name("permute"))(x)

    def mean(self, x: Any, pool: list[Any]) -> Any:
        return keras.ops.mean(x, axis=1)

    def repeat(self, x: Any, pool: list[Any]) -> Any:
        return layers.RepeatVector(2, name=self.name("repeat"))(self.vector(x))

    def reshape(self, x: Any, pool: list[Any]) -> Any:
        size = math.prod(x.shape[1:])
        first = self.pick(*(n for n in range(1, size + 1) if size % n == 0))
        target = self.pick((first, size // first), (-1, first), (size,), (first, size // first, 1))
        return layers.Reshape(target, name=self.name("reshape"))(x)

    def reshaped_merge(self, x: Any, pool: list[Any]) -> Any:
        """Two tensors of one size, whatever they are made of."""
        y = self.pick(*(y for y in pool if math.prod(y.shape[1:]) == math.prod(x.shape[1:])))
        y = layers.Reshape(tuple(x.shape[1:]), name=self.name("reshape"))(y)
        return self.pick(layers.Add, layers.Maximum)(name=self.name("merge"))([x, y])

    def join(self, x: Any, pool: list[Any]) -> Any:
        """A concatenation along any axis."""
        axis = self.pick(*range(1, len(x.shape)))
        rest = [x.shape[i] for i in range(len(x.shape)) if i != axis]
        fits = [
            y
            for y in pool
            if len(y.shape) == len(x.shape)
            and [y.shape[i] for i in range(len(x.shape)) if i != axis] == rest
            and y.shape[axis] + x.shape[axis] < 20
        ]
        return (
            layers.Concatenate(axis, name=self.name("join"))([x, self.pick(*fits)]) if fits else x
        )

    def split(self, x: Any, pool: list[Any]) -> Any:
        flat = layers.Dense(12, name=self.name("dense"))(self.vector(x))
        return layers.Reshape(self.pick((3, 4), (2, 6), (12,), (2, 2, 3)), name=self.name("re"))(
            flat
        )

    def se(self, x: Any, pool: list[Any]) -> Any:
        squeezed = layers.GlobalAveragePooling2D(keepdims=True, name=self.name("squeeze"))(x)
        gate = layers.Dense(x.shape[-1], "sigmoid", name=self.name("gate"))(squeezed)
        return layers.Multiply(name=self.name("excite"))([x, gate])

    def merge(self, x: Any, pool: list[Any]) -> Any:
        same = [y for y in pool if y.shape == x.shape]
        y = self.pick(*same)
        kinds = (layers.Add, layers.Multiply, layers.Maximum, layers.Average, layers.Subtract)
        if self.pick(True, False):
            return self.pick(*kinds)(name=self.name("merge"))([x, y])
        fits = [y for y in pool if y.shape[:-1] == x.shape[:-1]]
        return layers.Concatenate(name=self.name("concat"))([x, self.pick(*fits)])

    def shared(self, x: Any, pool: list[Any]) -> Any:
        layer = layers.Dense(x.shape[-1], name=self.name("shared"))
        return layer(layers.ReLU(name=self.name("relu"))(layer(x)))

    def nested(self, x: Any, pool: list[Any]) -> Any:
        if self.prefix.count("n") > 1:
            return self.dense(x, pool)
        name = self.name("nested")
        inner = Builder(self.draw, f"{name}_").model(tuple(x.shape[1:]), 2, name)
        called = inner(x)
        return (
            layers.Add(name=self.name("twice"))([called, inner(x)]) if self.pick(0, 1) else called
        )

    def vector(self, x: Any) -> Any:
        if len(x.shape) == 4 and self.pick(True, False):
            return layers.GlobalAveragePooling2D(name=self.name("average"))(x)
        return layers.Flatten(name=self.name("flat"))(x) if len(x.shape) > 2 else x


# Models are built in the test, not in a strategy: Keras draws seeds with `random`.
def random_model(draw: Any) -> Any:
    shape = draw(st.sampled_from([(3,), (4, 3), (3, 3, 2)]))
    return randomize(Builder(draw).model(shape, draw(st.integers(2, 6))))


def random_operation(draw: Any, model: Any) -> Any:
    # Mostly layers that make units, sometimes any layer.
    name = draw(st.sampled_from(_paths(model, makers=draw(st.integers(0, 9)) > 0) or ["*"]))
    new_units = draw(st.sampled_from(["replicate", "fresh"]))
    shares = draw(st.sampled_from(["random", "even"]))
    return draw(
        st.sampled_from(
            [
                n2n.Wider(factor=1.5),
                n2n.Wider(factor=1.5, new_units=new_units, shares=shares),
                n2n.Wider(name, factor=2, new_units=new_units, shares=shares),
                n2n.Wider(name, units=draw(st.integers(3, 14)), shares=shares),
                n2n.Deeper(name, count=draw(st.integers(1, 2)), batch_norm=False),
                n2n.Deeper(name, units=draw(st.integers(4, 9))),
            ]
        )
    )


def _paths(model: Any, makers: bool, prefix: str = "") -> list[str]:
    paths = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            paths += _paths(layer, makers, f"{prefix}{layer.name}/")
        elif not makers or hasattr(layer, "units") or hasattr(layer, "filters"):
            paths.append(prefix + layer.name)
    return paths


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_a_random_growth_preserves_a_random_model_or_changes_nothing(data):
    model = random_model(data.draw)
    x = data_for(model)
    for _ in range(data.draw(st.integers(1, 2))):
        operation = random_operation(data.draw, model)
        before = snapshot(model)
        old = outputs(model, x), outputs(model, x, training=True)
        config = model.get_config()
        try:
            report = n2n.grow(model, operation, seed=1)
        except n2n.GrowthError as error:
            event(type(error).__name__)
            assert_untouched(model, before)
            assert model.get_config() == config
            continue
        event("grown")
        assert model.count_params() == report.parameters_after
        inserted = [i.layer_class for step in report.plan.steps for i in step.insertions]
        assert_same(outputs(model, x), old[0], 3e-6)
        if layers.BatchNormalization not in inserted:
            assert_same(outputs(model, x, training=True), old[1], 3e-5)
        reloaded = type(model).from_config(model.get_config())
        reloaded.set_weights(model.get_weights())
        assert_same(outputs(reloaded, x), outputs(model, x))
