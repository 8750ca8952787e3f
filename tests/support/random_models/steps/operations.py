"""Steps of `keras.ops`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers, ops

from tests.rules import test_ops
from tests.support.backend import BACKEND
from tests.support.random_models.draw import Draw
from tests.support.random_models.steps.layers import bounded

# The examples of the operations' own tests. Left out: what mixes a batch or counts its
# examples, what computes in float32, and places, of which two equal values have either.
LEFT_OUT = test_ops.words(
    """
    vstack vsplit segment_max segment_min segment_prod segment_sum rearrange dot slice tensordot
    view imag view_as_complex view_as_real argsort argmax argmin nanargmax nanargmin argpartition
    take_along_axis
    """
)


def _listed(examples: dict[str, Any]) -> dict[str, Any]:
    """The examples that Keras runs, by name."""
    left_out = {*LEFT_OUT, *test_ops.NOT_RUN.get(BACKEND, ())}
    return {name: known for name, known in sorted(examples.items()) if name not in left_out}


ELEMENTS, AXES = _listed(test_ops.ELEMENTS), _listed(test_ops.AXES)
LAST, SHAPES = _listed(test_ops.LAST), _listed(test_ops.SHAPES)
IMAGES_OPS = _listed(test_ops.IMAGES)


def op_listed(draw: Draw, x: Any) -> Any:
    """Any operation that is followed, on two tensors of the same shape."""
    groups: dict[str, Any] = {"elements": ELEMENTS}
    if len(x.shape) > 2:
        groups["axes"] = AXES
    if len(x.shape) == 3:
        groups |= {"last": LAST, "shapes": SHAPES}
    if len(x.shape) == 4:
        groups |= {"images": IMAGES_OPS, "image": IMAGES_OPS}
    chosen = draw.pick(*groups)
    y = draw.like(x)
    if chosen in ("last", "shapes"):  # the examples count four units
        x, y = (
            draw.put(layers.Dense(4, name=draw.name("listed")), ops.softplus(z)) for z in (x, y)
        )
    name = draw.pick(*groups[chosen])
    functions = groups[chosen][name]
    function = draw.pick(*functions) if isinstance(functions, tuple) else functions
    made = function(bounded(x), bounded(y, -0.0321))
    draw.lines.append(f"  {name}:")
    return made


def op_elementwise(draw: Draw, x: Any) -> Any:
    return draw.pick(
        ops.relu,
        ops.tanh,
        lambda y: 0.5 * y + 1.0,
        ops.sin,
        lambda y: ops.clip(y, -1.0, 1.0),
        lambda y: ops.where(y > 0.123, y, 0.1 * y),
        lambda y: ops.maximum(y, 0.2),
        lambda y: y / (1.0 + ops.abs(y)),
        lambda y: ops.sqrt(ops.square(y) + 0.1),
        lambda y: ops.stop_gradient(y) * ops.sigmoid(y),
        lambda y: ops.add(y, ops.ones_like(y)),
    )(x)


def op_binary(draw: Draw, x: Any) -> Any:
    y = draw.like(x)
    return draw.pick(
        ops.add,
        ops.multiply,
        ops.maximum,
        lambda a, b: ops.where(a > 0.123, a, b),
        lambda a, b: a - 0.3 * b,
        ops.logaddexp,
    )(x, y)


def op_reduce(draw: Draw, x: Any) -> Any:
    axis, keep = draw.axis(x), draw.flag()
    return draw.pick(
        ops.mean,
        ops.sum,
        ops.max,
        ops.min,
        ops.logsumexp,
        ops.prod,
        lambda y, axis, keepdims: ops.var(y, axis=axis, keepdims=keepdims),
        lambda y, axis, keepdims: ops.any(y > 0.123, axis=axis, keepdims=keepdims),
        lambda y, axis, keepdims: ops.norm(y + 0.1, axis=axis, keepdims=keepdims),
    )(x, axis=axis, keepdims=keep)


def op_cut(draw: Draw, x: Any) -> Any:
    n = x.shape[-1]
    return draw.pick(
        lambda: ops.split(x, 2, axis=-1)[1],
        lambda: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1),
        lambda: ops.multiply(*ops.split(x, 2, axis=-1)),
        lambda: ops.split(x, [1], axis=-1)[draw.below(2)],
        lambda: x[..., : n // 2],
        lambda: x[..., 1:],
        lambda: x[..., ::2],
        lambda: x[..., -1:],
        lambda: x[:, 1:],
        lambda: ops.flip(x, 1),
        lambda: x[:, 0],
        lambda: x[..., None],
        lambda: ops.take(x, np.array([0, n - 1, 0]), axis=-1),
        lambda: ops.take(x, 0, axis=draw.axis(x)),
        lambda: ops.slice(x, [0] * len(x.shape), [2, *x.shape[1:]]) if draw.flag(9) else x,
        lambda: ops.glu(x, axis=-1),
        lambda: ops.unstack(x, axis=draw.axis(x))[0],
    )()


def op_move(draw: Draw, x: Any) -> Any:
    rank = len(x.shape)
    n = x.shape[-1]
    return draw.pick(
        lambda: ops.transpose(x, [0, *reversed(range(1, rank))]),
        lambda: ops.swapaxes(x, 1, -1),
        lambda: ops.moveaxis(x, -1, 1),
        lambda: ops.expand_dims(x, draw.pick(-1, 1)),
        lambda: ops.squeeze(ops.expand_dims(x, 1), 1),
        lambda: ops.flip(x, draw.axis(x)),
        lambda: ops.roll(x, 1, draw.axis(x)),
        lambda: ops.repeat(x, 2, axis=draw.axis(x)),
        lambda: ops.tile(x, [1] * (rank - 1) + [2]),
        lambda: ops.pad(x, [(0, 0)] * (rank - 1) + [(1, 0)]),
        lambda: ops.pad(x, [(0, 0), (1, 1), *[(0, 0)] * (rank - 2)]),
        lambda: ops.cumsum(x, axis=draw.axis(x)),
        lambda: (
            ops.broadcast_to(ops.expand_dims(x, 1), (*x.shape[:1], 2, *x.shape[1:]))
            if x.shape[0]
            else ops.expand_dims(x, 1) * np.ones((1, 2, *[1] * (rank - 1)))
        ),
        lambda: x + np.linspace(0, 1, n),
        lambda: x * np.linspace(0.5, 1, x.shape[1]).reshape(-1, *[1] * (rank - 2)),
    )()


def op_reshape(draw: Draw, x: Any) -> Any:
    """Heads and back again, as attention is written by hand."""
    n = x.shape[-1]
    part = draw.pick(*(k for k in range(1, n + 1) if n % k == 0))
    space = [-1 if size is None else size for size in x.shape[1:-1]]
    y = ops.reshape(x, (-1, *space, n // part, part)) if -1 not in space else None
    if y is None:
        return ops.rearrange(x, "b t (h d) -> b t h d", d=part)
    if draw.flag():
        y = ops.swapaxes(y, -1, -2)
    if draw.flag():
        y = ops.reshape(op_elementwise(draw, y), (-1, *space, n))
    return y


def op_normalize(draw: Draw, x: Any) -> Any:
    axis = draw.axis(x)
    return draw.pick(
        lambda: ops.softmax(x, axis=axis),
        lambda: ops.log_softmax(x, axis=axis),
        lambda: ops.normalize(x + 0.1, axis=axis),
        lambda: ops.rms_normalization(x, axis=-1),
        lambda: ops.layer_normalization(x, axis=-1),
        lambda: (
            (x - ops.mean(x, axis=axis, keepdims=True))
            / (0.1 + ops.std(x, axis=axis, keepdims=True))
        ),
        lambda: ops.top_k(x, 1)[0],
        lambda: ops.one_hot(ops.argmax(x, axis=-1), x.shape[-1]),
    )()


def op_stack(draw: Draw, x: Any) -> Any:
    axis = draw.pick(-1, 1)
    y = ops.stack([x, draw.like(x)], axis=axis)
    return ops.mean(y, axis=axis) if draw.flag() else y


def op_product(draw: Draw, x: Any) -> Any:
    """Products of two computed tensors: attention written by hand, covariances."""
    rank = len(x.shape)
    if rank == 2:
        y = draw.pick(*(y for y in draw.pool if len(y.shape) == 2))
        return draw.pick(
            lambda: ops.einsum("bi,bj->bij", x, y),
            lambda: ops.einsum("bi,bi->b", x, draw.like(x))[:, None],
            lambda: ops.matmul(x[:, None, :], draw.like(x)[:, :, None])[:, 0],
        )()
    y = draw.like(x)
    last = [1.0 / math.sqrt(x.shape[-1])]
    if rank == 3:
        return draw.pick(
            lambda: ops.matmul(x, ops.transpose(y, (0, 2, 1))) * last[0],
            lambda: ops.einsum("btd,bsd->bts", x, y),
            lambda: ops.einsum("btd,bte->bde", x, y),
            lambda: ops.matmul(ops.softmax(ops.matmul(x, ops.swapaxes(y, 1, 2))), y),
            lambda: ops.einsum("btd->bd", x),
            lambda: ops.tensordot(x, np.ones((x.shape[-1], 2)), axes=1),
        )()
    return draw.pick(
        lambda: ops.einsum("...d,...d->...", x, y),
        lambda: ops.matmul(ops.swapaxes(x, -1, -2), y),
        lambda: ops.dot_product_attention(x, y, y) if rank == 4 else x,
    )()
