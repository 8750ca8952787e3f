"""The operations of `keras.ops` between symbolic tensors: `x + y`, `ops.relu(x)`."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_net2net.inference import RuleCall
from keras_net2net.rules.kinds import elementwise
from keras_net2net.rules.merging import join
from keras_net2net.rules.registry import register_rule
from keras_net2net.widths import Axes, Fixed

ELEMENTWISE = [
    "abs",
    "absolute",
    "add",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "bitwise_and",
    "bitwise_invert",
    "bitwise_left_shift",
    "bitwise_not",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "cast",
    "cbrt",
    "ceil",
    "celu",
    "clip",
    "conj",
    "copy",
    "cos",
    "cosh",
    "deg2rad",
    "divide",
    "divide_no_nan",
    "elu",
    "equal",
    "erf",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "floor_divide",
    "fmod",
    "gelu",
    "greater",
    "greater_equal",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "heaviside",
    "hypot",
    "imag",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "isneginf",
    "isposinf",
    "leaky_relu",
    "less",
    "less_equal",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_sigmoid",
    "logaddexp",
    "logaddexp2",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "mod",
    "multiply",
    "nan_to_num",
    "negative",
    "nextafter",
    "not_equal",
    "ones_like",
    "power",
    "real",
    "reciprocal",
    "relu",
    "relu6",
    "round",
    "rsqrt",
    "saturate_cast",
    "selu",
    "sigmoid",
    "sign",
    "signbit",
    "silu",
    "sin",
    "sinc",
    "sinh",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "sqrt",
    "square",
    "squareplus",
    "stop_gradient",
    "subtract",
    "tan",
    "tanh",
    "tanh_shrink",
    "threshold",
    "true_divide",
    "trunc",
    "where",
    "zeros_like",
]
REDUCTIONS = ["all", "amax", "amin", "any", "max", "mean", "min", "std", "sum", "var"]

# Some are newer than the oldest Keras that is supported.
register_rule(*(getattr(ops, name) for name in ELEMENTWISE if hasattr(ops, name)))(elementwise)


@register_rule(*(getattr(ops, name) for name in REDUCTIONS))
def reduction(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """Passes units through on the axes that stay; fixes those that it reduces over."""
    axis = call.layer.axis
    axes = range(len(x)) if axis is None else axis if isinstance(axis, (list, tuple)) else (axis,)
    reduced = {at % len(x) for at in axes}
    call.fix([x[at] for at in reduced], "reduces this axis")
    if call.layer.keepdims:
        return tuple(Fixed(1) if i in reduced else e for i, e in enumerate(x))
    return tuple(e for i, e in enumerate(x) if i not in reduced)


@register_rule(ops.softmax, ops.log_softmax)
def softmax(call: RuleCall, x: Axes) -> Axes:
    """Fixes the units that it normalizes over, and passes the others through."""
    axis = call.layer.axis
    normalized = (
        x if axis is None else [x[at] for at in ([axis] if isinstance(axis, int) else axis)]
    )
    call.fix(normalized, "normalizes over its units")
    return x


@register_rule(ops.concatenate)
def concatenate(call: RuleCall, xs: list[Axes]) -> Axes:
    """Puts units one after the other; ties those on the other axes."""
    return join(call, list(xs), call.layer.axis)


@register_rule(ops.transpose)
def transpose(call: RuleCall, x: Axes) -> Axes:
    """Moves units to other axes."""
    axes = call.layer.axes
    return tuple(reversed(x)) if axes is None else tuple(x[axis] for axis in axes)
