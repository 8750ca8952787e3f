"""Every operation of `keras.ops` that has a rule: units pass through it, or it says why not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_net2net as n2n
from keras_net2net.widths.registry import Refusal, rules
from tests.support.helpers import (
    BACKEND,
    KINDS,
    array,
    assert_native,
    assert_same,
    assert_untouched,
    both_modes,
    data_for,
    few,
    outputs,
    randomize,
    skipped,
    snapshot,
)

LINE, IMAGE = (3, 5), (4, 6, 2)
CONSTANT = np.array([[0.5], [-1.0], [2.0]], "float32")  # one number for each time


def words(text):
    return text.split()


def integers(x):
    return ops.cast(ops.round(3.0 * x), "int32")


def positive(x):
    return x + 2.0


UNARY = words(
    """
    abs absolute angle arccos arcsin arcsinh arctan arctanh array cbrt ceil celu conj
    conjugate convert_to_tensor copy cos cosh deg2rad elu erf erfc erfinv exp exp2 expm1
    fabs floor gelu hard_shrink hard_sigmoid hard_silu hard_tanh i0 isfinite isinf isnan
    isneginf isposinf isreal leaky_relu log1p log_sigmoid logical_not nan_to_num negative
    ones_like rad2deg real relu relu6 round selu sigmoid sign signbit silu sin sinc sinh
    soft_shrink softplus softsign sparse_plus sparse_sigmoid square squareplus stop_gradient
    tan tanh tanh_shrink trunc zeros_like
    """
)
POSITIVE = words(
    """
    arccosh log log10 log2 reciprocal rsqrt sqrt
    """
)
BINARY = words(
    """
    add arctan2 equal fmax fmin greater greater_equal heaviside hypot isclose less
    less_equal logaddexp logaddexp2 maximum minimum multiply nextafter not_equal polar
    subtract
    """
)
DIVIDING = words(
    """
    divide divide_no_nan floor_divide fmod mod power true_divide
    """
)
INTEGERS = words(
    """
    bitwise_and bitwise_or bitwise_xor gcd lcm logical_and logical_or logical_xor
    """
)
SHIFTS = words(
    """
    bitwise_left_shift bitwise_right_shift left_shift right_shift
    """
)
AXIS_1 = words(
    """
    all amax amin any argmax argmin argsort average count_nonzero cumprod cumsum flip
    log_softmax logsumexp max mean median min nanargmax nanargmin nancumprod nancumsum
    nanmax nanmean nanmedian nanmin nanprod nanstd nansum nanvar norm normalize prod ptp
    roll sort softmax sparsemax std sum trapezoid var
    """
)

ELEMENTS = {
    **{name: lambda x, y, f=name: getattr(ops, f)(x) for name in UNARY},
    **{name: lambda x, y, f=name: getattr(ops, f)(positive(x)) for name in POSITIVE},
    **{name: lambda x, y, f=name: getattr(ops, f)(x, y) for name in BINARY},
    **{name: lambda x, y, f=name: getattr(ops, f)(positive(x), positive(y)) for name in DIVIDING},
    **{name: lambda x, y, f=name: getattr(ops, f)(integers(x), integers(y)) for name in INTEGERS},
    **{
        name: lambda x, y, f=name: getattr(ops, f)(integers(x), integers(y) ** 2) for name in SHIFTS
    },
    "binary_crossentropy": lambda x, y: ops.binary_crossentropy(
        ops.sigmoid(x), y, from_logits=True
    ),
    "bitwise_invert": lambda x, y: ops.bitwise_invert(integers(x)),
    "bitwise_not": lambda x, y: ops.bitwise_not(integers(x)),
    "cast": lambda x, y: ops.cast(3.0 * x, "int32"),
    "clip": lambda x, y: ops.clip(x, -0.5, 0.5),
    "digitize": lambda x, y: ops.digitize(x, np.array([-0.5, 0.0, 0.5])),
    "imag": lambda x, y: ops.imag(ops.cast(x, "complex64")),
    "full_like": lambda x, y: ops.full_like(x, 2.0),
    "isin": lambda x, y: ops.isin(integers(x), np.array([0, 2])),
    "polar": lambda x, y: ops.real(ops.polar(x, y)),
    "ldexp": lambda x, y: ops.ldexp(x, integers(y)),
    "saturate_cast": lambda x, y: ops.saturate_cast(3.0 * x, "int32"),
    "searchsorted": lambda x, y: ops.searchsorted(np.array([-0.5, 0.5], "float32"), x),
    "select": lambda x, y: ops.select([x > 0.5, y > 0.0], [x, 2.0 * y], 0.1),
    "threshold": lambda x, y: ops.threshold(x, 0.1, 0.2),
    "view": lambda x, y: ops.view(x, "int32") > 0,
    "where": lambda x, y: ops.where(x > y, x, 2.0 * y),
}

WEIGHTED = (
    lambda x, y: ops.average(x, axis=1, weights=np.array([1.0, 2.0, 3.0], "float32")),
    lambda x, y: ops.average(x, axis=1, weights=positive(y)),
)
AXES = {
    **{name: lambda x, y, f=name: getattr(ops, f)(x, axis=1) for name in AXIS_1 if name != "roll"},
    "average": (
        lambda x, y: ops.average(x, axis=1),
        *(() if BACKEND == "torch" else WEIGHTED),  # Keras doesn't run them on PyTorch
    ),
    "diff": lambda x, y: ops.diff(x, axis=1),
    "fft": lambda x, y: ops.moveaxis(
        ops.fft((ops.moveaxis(x, -1, 1), ops.moveaxis(y, -1, 1)))[0], 1, -1
    ),
    "moments": (
        lambda x, y: ops.add(*ops.moments(x, axes=[1])),
        lambda x, y: ops.moments(x, axes=[1], keepdims=True)[1] * y,
    ),
    "nanpercentile": lambda x, y: ops.nanpercentile(x, 30.0, axis=1),
    "nanquantile": lambda x, y: ops.nanquantile(x, 0.3, axis=1),
    "norm": (
        lambda x, y: ops.norm(x, axis=1),
        lambda x, y: ops.norm(x, ord=1, axis=1, keepdims=True) + y,
    ),
    "percentile": lambda x, y: ops.percentile(x, 30.0, axis=1),
    "quantile": (
        lambda x, y: ops.quantile(x, 0.3, axis=1),
        lambda x, y: ops.quantile(x, [0.2, 0.7], axis=1, keepdims=True)[1] * y,
    ),
    "roll": lambda x, y: ops.roll(x, 1, axis=1),
    "segment_max": lambda x, y: ops.segment_max(x, np.array([0, 1, 1, 0]), 2),
    "segment_min": lambda x, y: ops.segment_min(x, np.array([0, 1, 1, 0]), 2),
    "segment_prod": lambda x, y: ops.segment_prod(x, np.array([0, 1, 1, 0]), 2),
    "segment_sum": lambda x, y: ops.segment_sum(x, np.array([0, 1, 1, 0]), 2),
    "trapezoid": lambda x, y: ops.trapezoid(x, dx=0.5, axis=1),
}


def turned(function):
    """Applies a function to the last axis, with the units on the one in front of it."""
    return lambda x, y: ops.swapaxes(function(ops.swapaxes(x, 1, 2)), 1, 2)


LAST = {
    "categorical_crossentropy": lambda x, y: ops.categorical_crossentropy(
        ops.swapaxes(x, 1, 2), ops.swapaxes(y, 1, 2), from_logits=True
    ),
    "extract_sequences": lambda x, y: ops.moveaxis(
        ops.extract_sequences(ops.swapaxes(x, 1, 2), 2, 1), 1, -1
    ),
    "layer_normalization": (
        turned(lambda x: ops.layer_normalization(x)),
        turned(lambda x: ops.layer_normalization(x, CONSTANT[:, 0], CONSTANT[:, 0])),
    ),
    "rms_normalization": turned(lambda x: ops.rms_normalization(x)),
    "irfft": turned(lambda x: ops.irfft((x, 0.5 * x))),
    "rfft": turned(lambda x: ops.rfft(x)[0]),
    "stft": lambda x, y: ops.moveaxis(ops.stft(ops.swapaxes(x, 1, 2), 2, 1, 2)[0], 1, -1),
    "argpartition": turned(lambda x: ops.argpartition(x, 1)),
    "top_k": turned(lambda x: ops.top_k(x, 2)[0]),
    "view_as_complex": lambda x, y: ops.real(ops.view_as_complex(ops.stack([x, y], axis=-1))),
    "view_as_real": lambda x, y: ops.view_as_real(ops.cast(x, "complex64"))[..., 0] + y,
}


SUMS = np.array([[0.5, -1.0, 2.0], [1.0, 0.3, -0.4]], "float32")  # two sums over time


def batched(x):
    """`rearrange` needs a known batch size."""
    return ops.reshape(x, (4, 3, 4))


SHAPES = {
    "append": lambda x, y: ops.append(x, y, axis=-1),
    "array_split": lambda x, y: ops.add(*ops.array_split(x, 2, axis=-1)),
    "broadcast_to": lambda x, y: ops.broadcast_to(x[:, :1], (4, 3, 4)) + y,
    "cdist": lambda x, y: ops.cdist(ops.swapaxes(x, 1, 2), ops.swapaxes(y, 1, 2)),
    "concatenate": lambda x, y: ops.concatenate([x, y], axis=-1),
    "dot": lambda x, y: ops.moveaxis(ops.dot(SUMS, x), 0, 1),
    "einsum": (
        lambda x, y: ops.einsum("btc,kt->bkc", x, SUMS),
        lambda x, y: ops.einsum("btc,btd->bcd", x, y),
    ),
    "inner": lambda x, y: ops.inner(ops.swapaxes(x, 1, 2), SUMS),
    "matmul": (
        lambda x, y: ops.matmul(SUMS, x),
        lambda x, y: ops.matmul(ops.swapaxes(x, 1, 2), y),
    ),
    "tensordot": lambda x, y: ops.tensordot(batched(x), SUMS, axes=[[1], [1]]),
    "diagonal": lambda x, y: ops.diagonal(ops.stack([x, y, x * y], axis=1), axis1=1, axis2=2),
    "dsplit": lambda x, y: ops.concatenate(ops.dsplit(x, [1, 3])[::-1], axis=-1),
    "dstack": lambda x, y: ops.dstack([x, y]),
    "expand_dims": (
        lambda x, y: ops.expand_dims(x, 1),
        lambda x, y: ops.expand_dims(x, (1, -2)),
    ),
    "fliplr": lambda x, y: ops.fliplr(x) + y,
    "flipud": lambda x, y: ops.flipud(x) + y,
    "geomspace": lambda x, y: ops.moveaxis(ops.geomspace(positive(x), positive(y), 3), 0, 1),
    "get_item": (
        lambda x, y: x[:, 0],
        lambda x, y: (x + y)[:, None, ..., :],
        lambda x, y: x[:, ::2],
        lambda x, y: ops.pad(x, ((0, 0), (0, 0), (2, 1)))[..., 2:-1],
        lambda x, y: ops.pad(x, ((0, 0), (0, 0), (2, 1)))[..., :-1],
    ),
    "glu": lambda x, y: ops.glu(x),
    "hsplit": lambda x, y: ops.add(*ops.hsplit(ops.reshape(x, (-1, 12)), 3)[1:]),
    "hstack": lambda x, y: ops.hstack([x, y]),
    "linspace": lambda x, y: ops.moveaxis(ops.linspace(x, y, 3), 0, 1),
    "logspace": lambda x, y: ops.moveaxis(ops.logspace(x, y, 3), 0, 1),
    "moveaxis": lambda x, y: ops.moveaxis(ops.moveaxis(x, 1, -1), [2, 1], [1, 2]) + y,
    "one_hot": lambda x, y: ops.swapaxes(ops.one_hot(ops.abs(integers(x)), 4), -1, -2),
    "pad": (
        lambda x, y: ops.pad(x, ((0, 0), (1, 0), (2, 1))),
        lambda x, y: ops.pad(x, ((0, 0), (1, 1), (0, 0)), mode="reflect"),
    ),
    "rearrange": (
        lambda x, y: ops.rearrange(batched(x), "b t c -> b (t c)"),
        lambda x, y: ops.rearrange(batched(x), "b t c -> b c t"),
        *(
            ()  # JAX can't compile what Keras does here
            if BACKEND == "jax"
            else (lambda x, y: ops.rearrange(batched(x), "b t (h c) -> b h (c t)", h=2),)
        ),
        lambda x, y: ops.rearrange(batched(x), "b t c -> (b t) c"),
    ),
    "repeat": (
        lambda x, y: ops.repeat(x, 2, axis=-1),
        *(() if BACKEND != "tensorflow" else (lambda x, y: ops.repeat(x, [1, 0, 2], axis=1),)),
    ),
    "reshape": (
        lambda x, y: ops.reshape(x, (-1, 12)),
        lambda x, y: ops.reshape(x, (-1, 4)),
        lambda x, y: ops.reshape(x, (-1, 3, 2, 2)),
        lambda x, y: ops.reshape(ops.reshape(x, (-1, 12)), (-1, 3, 4)) + y,
        lambda x, y: ops.reshape(x, (4, 3, 4)),
    ),
    "slice": lambda x, y: ops.slice(x, (0, 1, 0), (4, 2, 4)),
    "slice_update": lambda x, y: ops.slice_update(x, (0, 1, 0), y[:, :1]),
    "split": (
        lambda x, y: ops.concatenate(ops.split(x, [1, 3], axis=-1)[::-1], axis=-1),
        lambda x, y: ops.multiply(*ops.split(x, 2, axis=-1)),
        lambda x, y: ops.add(*ops.split(ops.concatenate([x, y], axis=-1), [4], axis=-1)),
        lambda x, y: ops.add(*ops.split(ops.concatenate([x, y], axis=-1), 2, axis=-1)),
        lambda x, y: ops.split(x, [1], axis=1)[1],
    ),
    "squeeze": lambda x, y: ops.squeeze(x[:, :1], 1),
    "stack": lambda x, y: ops.stack([x, y], axis=1),
    "swapaxes": lambda x, y: ops.swapaxes(x, 1, 2),
    "take": (
        lambda x, y: ops.take(x, np.array([2, 0]), axis=1),
        lambda x, y: ops.take(np.array([1.0, 2.0, 3.0], "float32"), ops.argmax(x, axis=1)),
    ),
    "take_along_axis": lambda x, y: ops.take_along_axis(x, ops.argsort(y, axis=1), axis=1),
    "tile": lambda x, y: ops.tile(x, (1, 1, 2)),
    "trace": lambda x, y: ops.trace(ops.stack([x, y, x * y], axis=1), axis1=1, axis2=2),
    "transpose": lambda x, y: ops.transpose(x, (0, 2, 1)),
    "unstack": lambda x, y: ops.add(*ops.unstack(x, axis=1)[:2]),
    "vsplit": lambda x, y: ops.concatenate(ops.vsplit(ops.broadcast_to(x, (4, 3, 4)), [1]), axis=0),
    "vstack": lambda x, y: ops.vstack([x, y]),
}


def channels_first(function):
    return lambda x, y: ops.moveaxis(function(ops.moveaxis(x, -1, 1)), 1, -1)


BOX = np.array([[0.0, 0.0], [0.0, 6.0], [4.0, 0.0], [4.0, 6.0]], "float32")
IMAGES = {
    "depth_to_space": lambda x, y: ops.depth_to_space(ops.tile(x, (1, 1, 1, 4)), 2),
    "fft2": lambda x, y: ops.moveaxis(
        ops.fft2((ops.moveaxis(x, -1, 1), ops.moveaxis(y, -1, 1)))[0], 1, -1
    ),
    "fold": lambda x, y: ops.moveaxis(
        ops.fold(ops.unfold(ops.moveaxis(x, -1, 1), 2, stride=2), (4, 6), 2, stride=2), 1, -1
    ),
    "ifft2": lambda x, y: ops.moveaxis(
        ops.ifft2((ops.moveaxis(x, -1, 1), ops.moveaxis(y, -1, 1)))[0], 1, -1
    ),
    "image.affine_transform": lambda x, y: ops.image.affine_transform(
        x, np.array([[1.0, 0.2, 0.5, 0.1, 1.0, 0.0, 0.0, 0.0]] * 4, "float32")
    ),
    "image.crop_images": lambda x, y: ops.image.crop_images(
        x, top_cropping=1, left_cropping=1, target_height=2, target_width=3
    ),
    "image.extract_patches": lambda x, y: ops.image.extract_patches(x, (2, 3)),
    "image.gaussian_blur": lambda x, y: ops.image.gaussian_blur(x),
    "image.pad_images": lambda x, y: ops.image.pad_images(
        x, top_padding=1, left_padding=1, target_height=7, target_width=8
    ),
    "image.perspective_transform": lambda x, y: ops.image.perspective_transform(
        x, np.stack([BOX] * 4), np.stack([BOX + 0.5] * 4)
    ),
    "image.resize": (
        lambda x, y: ops.image.resize(x, (3, 5)),
        lambda x, y: ops.image.resize(x, (5, 5), interpolation="nearest"),
    ),
    "image.sobel_edges": lambda x, y: ops.image.sobel_edges(x)[..., 0],
    "istft": lambda x, y: ops.swapaxes(
        ops.istft(
            (ops.moveaxis(x[..., :3, :], -1, 1), ops.moveaxis(y[..., :3, :], -1, 1)), 4, 1, 4
        ),
        1,
        2,
    ),
    "space_to_depth": lambda x, y: ops.space_to_depth(x, 2),
    "tril": channels_first(ops.tril),
    "triu": channels_first(ops.triu),
    "unfold": lambda x, y: ops.swapaxes(ops.unfold(ops.moveaxis(x, -1, 1), (2, 2)), 1, 2),
}

# What Keras itself doesn't run on a backend, or not as it does on others.
NOT_RUN = {
    "torch": {"count_nonzero", "dot"},
    "tensorflow": {"argpartition", "searchsorted", "view_as_complex"},
    "jax": {"norm", "quantile"},
}
# They don't come back as they were: Keras reads their sizes as lists.
NOT_SAVED = {
    "average_pool": lambda x, y: ops.average_pool(x, (2, 2), (2, 2)),
    "rot90": lambda x, y: ops.rot90(x, axes=(1, 2)),
    "max_pool": (
        lambda x, y: ops.max_pool(x, (2, 2), (2, 2)),
        lambda x, y: ops.max_pool(x, (2, 1), strides=1, padding="same"),
    ),
    "adaptive_average_pool": channels_first(
        lambda x: ops.adaptive_average_pool(x, (2, 2), data_format="channels_first")
    ),
    "adaptive_max_pool": channels_first(
        lambda x: ops.adaptive_max_pool(x, (2, 2), data_format="channels_first")
    ),
}

GROUPS = {
    "not saved": (IMAGE, NOT_SAVED),
    "elements": (LINE, ELEMENTS),
    "axes": (LINE, AXES),
    "last": (LINE, LAST),
    "shapes": (LINE, SHAPES),
    "images": (IMAGE, IMAGES),
}


def registered(refused):
    return {
        name.removeprefix("ops.")
        for name, rule in rules()
        if name.startswith("ops.") and isinstance(rule, Refusal) == refused
    }


def public(name):
    return getattr(ops.image if name.startswith("image.") else ops, name.split(".")[-1], None)


# These have tests of their own, in test_contractions.py: they need weights.
CONTRACTIONS = set(
    words(
        """
        batch_normalization conv conv_transpose depthwise_conv dot dot_product_attention einsum
        inner matmul separable_conv tensordot
        """
    )
)


def test_every_operation_that_is_followed_has_an_example():
    examples = {name for _, group in GROUPS.values() for name in group} | CONTRACTIONS
    assert registered(refused=False) <= examples
    assert {name for name in examples if public(name)} <= registered(refused=False)


def test_every_operation_that_is_refused_has_an_example():
    # `arange` doesn't take a symbolic tensor, though it has a class.
    assert registered(refused=True) <= {*REFUSED, "arange"}
    assert {name for name in REFUSED if public(name)} <= registered(refused=True)


def as_float(x):
    """What a Dense layer reads: real numbers, wherever the units are."""
    if "complex" in x.dtype:
        x = ops.real(x)
    elif x.dtype != "float32":
        x = ops.cast(x, "float32")
    return layers.Flatten()(x) if len(x.shape) > 2 else x


def together(shape, examples):
    """One model with all the examples side by side, each between layers of its own.

    Those on elements have the layers in front of them in common: they tie nothing but these two.
    """
    inputs = keras.Input(shape)
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    y = layers.Dense(4, activation="tanh", name="right")(inputs)
    results = {}
    for name, functions in examples.items():
        if public(name) is None or name in NOT_RUN.get(BACKEND, ()):
            continue
        functions = functions if isinstance(functions, tuple) else (functions,)
        for number, function in enumerate(functions):
            key = f"{name.replace('.', '_')}_{number}"
            if examples is not ELEMENTS:
                x = layers.Dense(4, activation="tanh", name=f"before_{key}")(inputs)
                y = layers.Dense(4, activation="tanh", name=f"right_{key}")(inputs)
            results[key] = layers.Dense(2, name=f"after_{key}")(as_float(function(x, y)))
    return keras.Model(inputs, results)


def check_together(model, path=None):
    """The battery for many operations at once: all layers in front of them grow, twice."""
    randomize(model)
    x = data_for(model)
    # No operation has a training mode, and JAX would compile all of them twice.
    run = outputs if BACKEND == "jax" else both_modes
    before = run(model, x)
    keys = [path for path, *_ in keras.tree.flatten_with_path(model(x))]
    everything = [n2n.Wider(factor=1.5, **kind) for kind in KINDS]
    # JAX compiles the model for seconds at each size.
    for operations in [everything] if BACKEND == "jax" else [everything[:1], everything]:
        report = n2n.grow(model, operations, seed=len(operations), verify=False)
        assert all(path.startswith("after") for path in skipped(report.plan))
        assert_native(model)
        wrong = {
            key: float(np.max(np.abs(new - old)))
            for key, new, old in zip([*keys, *keys], run(model, x), before, strict=False)
            if not np.max(np.abs(new - old)) <= 5e-6 * max(1.0, np.max(np.abs(old)))
        }
        assert not wrong
    if path is not None:
        model.save(path / "grown.keras")
        loaded = keras.models.load_model(path / "grown.keras")
        assert_same(outputs(loaded, x), outputs(model, x), 1e-7)


# An older Keras doesn't run some of these operations, or not between symbolic tensors.
newest = pytest.mark.skipif(
    not hasattr(ops, "adaptive_max_pool"), reason="the examples are those of a newer Keras"
)


@newest
@pytest.mark.parametrize("group", few(["last", *(name for name in GROUPS if name != "last")], 2))
def test_the_function_stays(group, tmp_path):
    shape, examples = GROUPS[group]
    check_together(together(shape, examples), None if examples is NOT_SAVED else tmp_path)


CUTS = {
    "a stop": (lambda x: x[..., :1], slice(None, 3), 3),
    "a start": (lambda x: x[..., 1:], slice(3, None), 6),
    "a start from the end": (lambda x: x[..., -1:], slice(-2, None), 2),
    "a stop from the end": (lambda x: x[..., :-3], slice(None, -6), 3),
    "both": (lambda x: x[..., 1:-1], slice(3, -2), 4),
}


@pytest.mark.parametrize(("cut", "key", "size"), few(CUTS, 2))
def test_the_places_of_a_slice_follow_the_units(cut, key, size, tmp_path):
    inputs = keras.Input(LINE)
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    merged = [layers.Dense(2, name=f"after_{i}")(y) for i, y in enumerate((cut(x), x))]
    model = randomize(keras.Model(inputs, merged))
    data = data_for(model)
    before = both_modes(model, data)
    student = n2n.clone_and_grow(model, n2n.Wider("before", units=9), seed=0, verify=False)
    assert_same(both_modes(model, data), before)
    n2n.grow(model, n2n.Wider("before", units=9), seed=0, verify=False)
    (item,) = [op for op in model.operations if type(op).__name__ == "GetItem"]
    assert item._inbound_nodes[0].arguments.args[1] == (Ellipsis, key)
    assert item.output.shape == (None, 3, size)
    n2n.grow(model, [n2n.Wider("before", units=11), n2n.Deeper("before", activation="linear")])
    for grown in (student, model):
        assert_same(both_modes(grown, data), before)
        assert_native(grown)
    if BACKEND == "torch":
        model.save(tmp_path / "grown.keras")
        loaded = keras.models.load_model(tmp_path / "grown.keras")
        assert_same(outputs(loaded, data), outputs(model, data))


def test_the_places_of_a_slice_of_keras_ops_follow_the_units():
    inputs = keras.Input(LINE)
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    cut = ops.slice(x, (0, 0, 1), (4, 3, 2))
    model = randomize(keras.Model(inputs, layers.Dense(2)(cut)))
    data = data_for(model)
    before = both_modes(model, data)
    n2n.grow(model, n2n.Wider("before", units=9), seed=0, verify=False)
    assert_same(both_modes(model, data), before)
    assert_native(model)


def test_a_failed_growth_leaves_the_places_of_a_slice(monkeypatch):
    inputs = keras.Input(LINE)
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(2)(x[..., 1:])))
    (item,) = [op for op in model.operations if type(op).__name__ == "GetItem"]
    before = outputs(model, data_for(model))
    monkeypatch.setattr("keras_net2net.growth.probe.Probe.tolerance", -1.0)
    with pytest.raises(n2n.errors.VerificationError):
        n2n.grow(model, n2n.Wider("before", units=9), seed=0)
    assert item._inbound_nodes[0].arguments.args[1] == (Ellipsis, slice(1, None))
    assert_same(outputs(model, data_for(model)), before, 0.0)


@keras.saving.register_keras_serializable("test_ops")
class Cutting(keras.Layer):
    def call(self, x):
        return x[..., 1:]


def test_the_places_of_a_slice_stay_in_the_code_of_a_layer():
    inputs = keras.Input(LINE)
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(2)(Cutting()(x))))
    data = data_for(model)
    before, kernel = both_modes(model, data), array(model.get_layer("before").kernel)
    n2n.grow(model, n2n.Wider("before", units=9), seed=0, verify=False)
    assert_same(both_modes(model, data), before)
    # The unit that the slice leaves out is where it was, once.
    new = array(model.get_layer("before").kernel)
    assert [(new[:, i] == kernel[:, 0]).all() for i in range(9)] == [True] + [False] * 8


def test_split_parts_grow_apart_and_the_places_follow():
    inputs = keras.Input(LINE)
    x = layers.Dense(3, activation="tanh", name="left")(inputs)
    y = layers.Dense(5, activation="tanh", name="right")(inputs)
    parts = ops.split(ops.concatenate([x, y], axis=-1), [3], axis=-1)
    model = randomize(
        keras.Model(inputs, [layers.Dense(2, name=f"after_{i}")(p) for i, p in enumerate(parts)])
    )
    data = data_for(model)
    before = both_modes(model, data)
    n2n.grow(model, n2n.Wider({"left": 4, "right": 9}), seed=0)
    assert_same(both_modes(model, data), before)
    (split,) = [op for op in model.operations if type(op).__name__ == "Split"]
    assert split.indices_or_sections == (4,)
    assert split.get_config()["indices_or_sections"] == (4,)
    assert [tuple(part.shape) for part in split.output] == [(None, 3, 4), (None, 3, 9)]


MOVES = {
    "the first step": lambda x: x[:, 0],
    "expand_dims, squeeze": lambda x: ops.squeeze(ops.expand_dims(x, 1), 1),
    "reshape": lambda x: ops.reshape(x, (-1, 3, 1, 4)),
    "there and back": lambda x: ops.swapaxes(ops.transpose(x, (0, 2, 1)), 1, 2),
    "concatenated in time": lambda x: ops.concatenate([x, ops.moveaxis(x, 1, 1)], axis=1),
}


@pytest.mark.parametrize("move", few(MOVES, 2))
def test_units_that_fill_still_do_after_a_move(move):
    inputs = keras.Input(LINE)
    x = layers.LayerNormalization()(move(layers.Dense(4, name="before")(inputs)))
    model = randomize(keras.Model(inputs, layers.Dense(2, name="after")(x)))
    data = data_for(model)
    before = both_modes(model, data)
    n2n.grow(model, n2n.Wider("before", units=7), seed=0, verify=False)
    assert model.get_layer("before").units == 7
    assert_same(both_modes(model, data), before, 1e-5)


def test_a_growth_that_fails_leaves_the_settings_of_operations_as_they_were(monkeypatch):
    inputs = keras.Input(LINE)
    x = ops.reshape(layers.Dense(4, name="before")(inputs), (-1, 12))
    model = randomize(keras.Model(inputs, layers.Dense(2, name="after")(x)))
    weights = snapshot(model)
    (reshape,) = [op for op in model.operations if type(op).__name__ == "Reshape"]

    def fail(*args, **kwargs):
        raise RuntimeError("as if the machine had failed")

    monkeypatch.setattr("keras_net2net.growth.apply.relabel", fail)
    with pytest.raises(RuntimeError, match="as if"):
        n2n.grow(model, n2n.Wider("before", units=6))
    assert reshape.newshape == reshape.get_config()["newshape"] == (-1, 12)
    assert_untouched(model, weights)
    monkeypatch.undo()
    n2n.grow(model, n2n.Wider("before", units=6))
    assert reshape.newshape == reshape.get_config()["newshape"] == (-1, 18)


def square(x):
    """A batch of matrices whose rows and columns are units."""
    return ops.stack([x[:, 0], x[:, 1], x[:, 2], x[:, 0] + x[:, 1]], axis=1)


def matrix(name):
    return lambda x, y, n: getattr(ops, name)(square(x))


MATRICES = words(
    """
    cholesky cholesky_inverse det eig eigh inv logdet lu_factor matrix_rank pinv qr slogdet svd
    """
)
REFUSED = {
    **{name: matrix(name) for name in MATRICES},
    "vdot": lambda x, y, n: ops.vdot(x, y),
    "allclose": lambda x, y, n: ops.allclose(x, y),
    "associative_scan": lambda x, y, n: ops.associative_scan(lambda a, b: a + b, x, axis=1),
    "bincount": lambda x, y, n: ops.bincount(integers(x)[:, 0], minlength=3),
    "cond": lambda x, y, n: ops.cond(x > 0.0, lambda: ops.zeros(2), lambda: ops.ones(2)),
    "corrcoef": lambda x, y, n: ops.corrcoef(x[:, 0]),
    "correlate": lambda x, y, n: ops.correlate(x[0, 0], y[0, 0]),
    "cross": lambda x, y, n: ops.cross(x, y, axis=1),
    "ctc_decode": lambda x, y, n: ops.ctc_decode(x, n),
    "ctc_loss": lambda x, y, n: ops.ctc_loss(integers(ops.max(x, axis=1)), y, n, n),
    "diag": lambda x, y, n: ops.diag(x[:, 0]),
    "diagflat": lambda x, y, n: ops.diagflat(x[0, 0]),
    "empty_like": lambda x, y, n: ops.empty_like(x),
    "fori_loop": lambda x, y, n: ops.fori_loop(0, 2, lambda i, z: z * 2.0, x),
    "full": lambda x, y, n: ops.full((4, 3, 4), x),
    "histogram": lambda x, y, n: ops.histogram(x),
    "image.elastic_transform": lambda x, y, n: ops.image.elastic_transform(image(x)),
    "image.hsv_to_rgb": lambda x, y, n: ops.image.hsv_to_rgb(image(ops.swapaxes(x, 1, 2))),
    "image.map_coordinates": lambda x, y, n: ops.image.map_coordinates(
        x, np.zeros((3, 4, 3, 4), "float32"), 1
    ),
    "image.rgb_to_grayscale": lambda x, y, n: ops.image.rgb_to_grayscale(
        image(ops.swapaxes(x, 1, 2))
    ),
    "image.rgb_to_hsv": lambda x, y, n: ops.image.rgb_to_hsv(image(ops.swapaxes(x, 1, 2))),
    "image.scale_and_translate": lambda x, y, n: ops.image.scale_and_translate(
        image(x), (4, 3, 6, 4), np.ones(1, "float32"), np.zeros(1, "float32"), (2,), "linear"
    ),
    "image.ssim": lambda x, y, n: ops.image.ssim(image(x), image(y)),
    "in_top_k": lambda x, y, n: ops.in_top_k(n, y[:, 0], 2),
    "jvp": lambda x, y, n: ops.jvp(lambda z: z * 2.0, (x,), (y,))[0],
    "kron": lambda x, y, n: ops.kron(x, y),
    "lstsq": lambda x, y, n: ops.lstsq(square(x)[0], square(y)[0]),
    "map": lambda x, y, n: ops.map(lambda z: z * 2.0, x),
    "meshgrid": lambda x, y, n: ops.meshgrid(x[0, 0], y[0, 0])[0],
    "multi_hot": lambda x, y, n: ops.multi_hot(integers(x), 3),
    "ndim": lambda x, y, n: ops.ndim(x),
    "nonzero": lambda x, y, n: ops.nonzero(x)[0],
    "outer": lambda x, y, n: ops.outer(x, y),
    "psnr": lambda x, y, n: ops.psnr(x, y, 1.0),
    "ravel": lambda x, y, n: ops.ravel(x),
    "scan": lambda x, y, n: ops.scan(lambda c, z: (c, z), y[0], x)[1],
    "scatter": lambda x, y, n: ops.scatter(np.array([[0], [2]]), x[0, :2], (3, 4)),
    "scatter_update": lambda x, y, n: ops.scatter_update(x, np.array([[0, 0]]), y[:1, 0]),
    "size": lambda x, y, n: ops.size(x),
    "solve": lambda x, y, n: ops.solve(square(x), square(y)),
    "solve_triangular": lambda x, y, n: ops.solve_triangular(square(x), square(y)),
    "sparse_categorical_crossentropy": lambda x, y, n: ops.sparse_categorical_crossentropy(
        ops.repeat(n[:, None], 3, axis=1), y
    ),
    "switch": lambda x, y, n: ops.switch(n[0], [lambda z: z, lambda z: 2.0 * z], y),
    "unique": lambda x, y, n: ops.unique(x),
    "unravel_index": lambda x, y, n: ops.unravel_index(integers(x), (3, 4))[0],
    "vander": lambda x, y, n: ops.vander(x[0, 0]),
    "vectorized_map": lambda x, y, n: ops.vectorized_map(lambda z: z * 2.0, x),
    "while_loop": lambda x, y, n: ops.while_loop(lambda z: False, lambda z: z, (x,))[0],
}


def image(x):
    return ops.expand_dims(x, 1)


@pytest.mark.pure
@newest
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(name):
    if public(name) is None:
        pytest.skip("this Keras doesn't have it")
    inputs = keras.Input(LINE)
    x = layers.Dense(4, activation="tanh", name="before")(inputs)
    y = layers.Dense(4, activation="tanh", name="right")(inputs)
    number = keras.Input((), dtype="int32")
    # An older Keras wants every input to lead somewhere.
    model = keras.Model([inputs, number], [REFUSED[name](x, y, number), ops.copy(number)])
    weights = snapshot(model)
    for layer in ("before", "right"):
        if all(made.name != layer for made in model.layers):
            continue
        with pytest.raises(n2n.errors.FixedWidthError) as error:
            n2n.grow(model, n2n.Wider(layer, units=6))
    kind = name.split(".")[-1].replace("_", "")
    assert kind in str(error.value).lower().replace("_", "")
    assert dict(rules())[f"ops.{name}"].why in str(error.value)
    assert_untouched(model, weights)
