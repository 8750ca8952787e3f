"""Steps on tensors of any rank: a layer, or a chain of them."""

from __future__ import annotations

from typing import Any

from keras import layers, ops

from tests.rules import test_image_preprocessing
from tests.support.backend import BACKEND
from tests.support.random_models.composites import (
    Residual,
    TwoReaders,
)
from tests.support.random_models.draw import ACTIVATIONS, Draw

IMAGE_LAYERS = {
    name: make for name, make in test_image_preprocessing.CASES.items() if hasattr(layers, name)
}


def chain(draw: Draw, x: Any) -> list[Any]:
    """Layers that keep the rank of a tensor."""
    chosen: list[Any] = []
    for _ in range(draw.pick(1, 2, 3, 4)):
        kinds = [
            lambda: layers.Dense(draw.units(), draw.pick("relu", None), name=draw.name("dense")),
            lambda: layers.BatchNormalization(name=draw.name("norm")),
            lambda: layers.LayerNormalization(name=draw.name("layer_norm")),
            lambda: layers.ReLU(name=draw.name("relu")),
            lambda: layers.Dropout(0.0, name=draw.name("drop")),
            lambda: Residual(draw.units(), draw.flag(), name=draw.name("residual")),
        ]
        if len(x.shape) == 3:
            kinds += [
                lambda: layers.LSTM(draw.units(), return_sequences=True, name=draw.name("lstm")),
                lambda: layers.Conv1D(draw.units(), 2, padding="same", name=draw.name("conv")),
                lambda: TwoReaders(draw.units(), draw.units(), name=draw.name("readers")),
                lambda: layers.TimeDistributed(
                    layers.Dense(draw.units(), "relu"), name=draw.name("time_distributed")
                ),
            ]
        if len(x.shape) == 4:
            kinds += [
                lambda: layers.Conv2D(draw.units(), 2, padding="same", name=draw.name("conv")),
                lambda: layers.MaxPooling2D(2, 1, padding="same", name=draw.name("pool")),
            ]
        chosen.append(draw.pick(*kinds)())
    return chosen


def vector(x: Any) -> Any:
    """A vector for each example."""
    while len(x.shape) > 2:
        x = ops.mean(x, axis=1)
    return ops.expand_dims(x, -1) if len(x.shape) < 2 else x


def dense(draw: Draw, x: Any) -> Any:
    return draw.put(
        layers.Dense(
            draw.units(),
            draw.pick(*ACTIVATIONS),
            use_bias=not draw.flag(4),
            name=draw.name("dense"),
        ),
        x,
    )


def einsum_dense(draw: Draw, x: Any) -> Any:
    a, b = draw.units(), draw.pick(2, 3)
    rank = len(x.shape)
    kinds: list[Any] = []
    if x.shape[1:-1] == x.shape[-2:0:-1]:  # Keras takes what an ellipsis is for in reverse
        kinds.append(("...x,xy->...y", (a,), "y"))
    if rank == 3:
        kinds += [
            ("abc,cde->abde", (x.shape[1], b, a), "de"),
            ("abc,cd->abd", (x.shape[1], a), None),
            ("abc,bd->adc", (a, x.shape[2]), "d"),
            ("abc,bcd->ad", (a,), "d"),
        ]
    if rank == 4:
        kinds += [
            ("abcd,cde->abe", (x.shape[1], a), "e"),
            ("abcd,cdef->abef", (x.shape[1], b, a), "ef"),
            ("abcd,ce->abed", (x.shape[1], a, x.shape[3]), "e"),
        ]
    if not kinds:
        return None
    equation, shape, bias = draw.pick(*kinds)
    return draw.put(
        layers.EinsumDense(
            equation,
            shape,
            activation=draw.pick(None, "relu"),
            bias_axes=draw.pick(bias, None),
            name=draw.name("einsum_dense"),
        ),
        x,
    )


def activation(draw: Draw, x: Any) -> Any:
    return draw.put(
        draw.pick(
            lambda name: layers.Activation(draw.pick(*ACTIVATIONS, "softmax"), name=name),
            lambda name: layers.ReLU(max_value=draw.pick(None, 2.0), name=name),
            lambda name: layers.LeakyReLU(0.2, name=name),
            lambda name: layers.ELU(name=name),
            lambda name: layers.Softmax(draw.axis(x), name=name),
            lambda name: layers.PReLU(
                "ones",
                shared_axes=draw.pick(list(range(1, len(x.shape) - 1)) or None, None),
                name=name,
            ),
        )(draw.name("activation")),
        x,
    )


def regularization(draw: Draw, x: Any) -> Any:
    spatial = {
        3: layers.SpatialDropout1D,
        4: layers.SpatialDropout2D,
        5: layers.SpatialDropout3D,
    }
    kinds: list[Any] = [
        lambda **kw: layers.Dropout(0.0, **kw),
        lambda **kw: layers.GaussianNoise(0.0, **kw),
        lambda **kw: layers.GaussianDropout(0.0, **kw),
        lambda **kw: layers.AlphaDropout(0.0, **kw),
        lambda **kw: layers.ActivityRegularization(l2=0.01, **kw),
        lambda **kw: layers.Identity(**kw),
    ]
    if len(x.shape) in spatial:
        kinds.append(lambda **kw: spatial[len(x.shape)](0.0, **kw))
    return draw.put(draw.pick(*kinds)(name=draw.name("regularization")), x)


def batch_norm(draw: Draw, x: Any) -> Any:
    axis = -1 if not draw.flag(5) else draw.axis(x)
    return draw.put(
        layers.BatchNormalization(
            axis, scale=not draw.flag(4), center=not draw.flag(4), name=draw.name("norm")
        ),
        x,
    )


def layer_norm(draw: Draw, x: Any) -> Any:
    name = draw.name("layer_norm")
    axis: Any = -1 if not draw.flag(4) else draw.axis(x)
    if x.shape[-1] is None:
        return None
    unit_axis = axis
    if BACKEND == "torch":  # Keras's kernel there takes any axis for the last one
        axis = -1
    kinds: list[Any] = [
        lambda: layers.LayerNormalization(axis, name=name),
        lambda: layers.LayerNormalization(axis, scale=False, name=name),
        lambda: layers.RMSNormalization(axis, name=name),
        lambda: layers.UnitNormalization(unit_axis, name=name),
        lambda: layers.GroupNormalization(
            draw.pick(*(n for n in range(1, x.shape[-1] + 1) if x.shape[-1] % n == 0), -1),
            name=name,
        ),
        lambda: layers.LayerNormalization([len(x.shape) - 2, len(x.shape) - 1], name=name),
    ]
    return draw.put(draw.pick(*kinds)(), x)


def pre_norm(draw: Draw, x: Any) -> Any:
    """A linear stream, which a normalization reads, as in a transformer."""
    stream = draw.put(layers.Dense(draw.units(), name=draw.name("stream")), x)
    norm = draw.pick(layers.LayerNormalization, layers.RMSNormalization)
    y = draw.put(norm(name=draw.name("pre")), stream)
    if len(x.shape) == 3 and x.shape[1] is not None and draw.flag():
        stream = stream + mixed(draw, y)  # and what mixes channels reads that
        y = draw.put(norm(name=draw.name("pre")), stream)
    y = dense(draw, y)
    return stream + draw.put(layers.Dense(stream.shape[-1], name=draw.name("back")), y)


def mixed(draw: Draw, x: Any) -> Any:
    """A mix of places, the same for each unit; perhaps only of some, or scaled."""
    style = draw.pick("dense", "deep", "einsum", "conv", "scaled")
    y = draw.put(layers.Permute((2, 1), name=draw.name("turn")), x)
    places, bias = x.shape[1], draw.flag()
    if style == "deep":
        y = dense(draw, y)
    if style == "einsum":
        mix: Any = layers.EinsumDense("abc,cd->abd", (None, places), name=draw.name("mix"))
    elif style == "conv":  # over the units, as if they were places
        mix = layers.Conv1D(places, 1, use_bias=bias, name=draw.name("mix"))
    else:
        mix = layers.Dense(places, use_bias=bias, name=draw.name("mix"))
    y = draw.put(layers.Permute((2, 1), name=draw.name("turn")), draw.put(mix, y))
    if style == "scaled":
        y = y * ops.sigmoid(ops.mean(x, axis=(1, 2), keepdims=True)) + ops.mean(
            y, axis=1, keepdims=True
        )
    return y


def refused(draw: Draw, x: Any) -> Any:
    """Layers through which units can't pass."""
    name = draw.name("refused")
    kind = draw.pick("lambda", "masking", "spectral", "ranked")
    if kind == "lambda":
        draw.native = False
        return layers.Lambda(lambda y: ops.sin(y) + ops.flip(y, -1), name=name)(x)
    if kind == "masking":
        return layers.Masking(0.0, name=name)(x)
    if kind == "spectral":
        dense = layers.Dense(draw.units(), name=f"{name}_dense")
        return layers.SpectralNormalization(dense, name=name)(x)
    return ops.sort(x, axis=-1)


def preprocessing(draw: Draw, x: Any) -> Any:
    name = draw.name("preprocessing")
    kinds: list[Any] = [
        lambda: layers.Rescaling(0.5, 0.1, name=name),
        lambda: layers.Normalization(name=name),
        lambda: layers.Discretization([-1.0, 0.123, 1.0], name=name),
    ]
    if len(x.shape) == 4:
        kinds += [
            lambda: layers.Resizing(3, 3, name=name),
            lambda: layers.CenterCrop(2, 2, name=name),
            lambda: layers.RandomBrightness(0.0, value_range=(-5.0, 5.0), name=name),
            lambda: layers.RandomFlip(seed=1, name=name) if draw.flag(50) else layers.Identity(),
        ]
    return draw.put(draw.pick(*kinds)(), x)


def image_preprocessing(draw: Draw, x: Any) -> Any:
    """Layers that prepare images, on hidden channels; what they draw has a seed."""
    made = draw.pick(*IMAGE_LAYERS.values())()
    config = {**made.get_config(), "name": draw.name("image"), "dtype": x.dtype}
    return draw.put(type(made).from_config(config), bounded(x))


def hashing(draw: Draw, x: Any) -> Any:
    if BACKEND == "jax":  # it doesn't compile there
        raise LookupError("JAX doesn't compile it")
    return layers.Hashing(5, name=draw.name("hashing"))(ops.cast(4.0 * x + 0.123, "int32"))


def bounded(x: Any, offset: float = 0.0123) -> Any:
    """Numbers between -1 and 1, none of which is at a jump of a function."""
    return 0.9 * ops.tanh(x) + offset
