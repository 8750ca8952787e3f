"""Operations of `keras.ops` on elements and along axes, as in `keras/src/ops/numpy.py`."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_net2net.rules.kinds import (
    along,
    along_last,
    broadcast,
    elementwise,
    has_units,
    named,
    positions,
    tensors_in,
    use,
)
from keras_net2net.widths.expressions import Axes, Fixed, product
from keras_net2net.widths.registry import refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import BENDS, KEEPS_ZERO, PASSES

ELEMENTWISE = """
    abs absolute add angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh array
    binary_crossentropy bitwise_and bitwise_invert bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor cast cbrt ceil celu clip conj conjugate convert_to_tensor
    copy cos cosh deg2rad divide divide_no_nan elu equal erf erfc erfinv exp exp2 expm1 fabs
    floor floor_divide fmax fmin fmod full_like gcd gelu greater greater_equal hard_shrink
    hard_sigmoid hard_silu hard_tanh heaviside hypot i0 imag isclose isfinite isinf isnan
    isneginf isposinf isreal lcm ldexp leaky_relu left_shift less less_equal log log10 log1p
    log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor maximum
    minimum mod multiply nan_to_num negative nextafter not_equal ones_like polar power rad2deg
    real reciprocal relu relu6 right_shift round rsqrt saturate_cast select selu sigmoid sign
    signbit silu sin sinc sinh soft_shrink softplus softsign sparse_plus sparse_sigmoid sqrt
    square squareplus stop_gradient subtract tan tanh tanh_shrink threshold true_divide trunc
    where zeros_like
"""
REDUCTIONS = """
    all amax amin any argmax argmin count_nonzero logsumexp max mean median min nanargmax
    nanargmin nanmax nanmean nanmedian nanmin nanprod nanstd nansum nanvar norm prod ptp std sum
    trapezoid var
"""
# Copying all units equally often changes none of these.
OF_EQUAL_COPIES = """
    all amax amin any max mean median min nanmax nanmean nanmedian nanmin nanstd nanvar ptp std
    var
"""
REDUCES = "reduces this axis"

register_rule(*named(ELEMENTWISE))(elementwise)


@register_rule(*named(REDUCTIONS))
def reduction(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """Passes units that stay; a sum's makers share them, means and limits take whole multiples."""
    reduced = positions(call.layer.axis, len(x))
    over = [x[at] for at in reduced]
    name = type(call.layer).__name__.lower()
    whole = not has_units(tuple(over))
    if name in ("mean", "sum"):
        # Along units it is linear, but not in each of them alone.
        call.treat(PASSES if whole else BENDS)
    elif name == "max" and whole:
        call.treat(KEEPS_ZERO)
    if whole:
        pass
    elif name in OF_EQUAL_COPIES.split():
        call.normalize(product(over), None, why=f"takes the {name} over its units")
    elif name == "sum":
        for units in over:
            call.share(units, 0)
    else:
        call.fix(over, REDUCES)
    if getattr(call.layer, "keepdims", False):
        return tuple(Fixed(1) if i in reduced else e for i, e in enumerate(x))
    return tuple(e for i, e in enumerate(x) if i not in reduced)


@register_rule(*named("quantile percentile nanquantile nanpercentile"))
def quantile(call: RuleCall, x: Axes, q: Any) -> Axes:
    """Passes units through on the axes that stay; fixes those that it reduces over."""
    axes = reduction(call, x)
    for given in tensors_in([q]):
        call.fix(given, "is asked for these quantiles")
    shape = call.output_shapes[0]
    return (Fixed(shape[0]), *axes) if len(shape) > len(axes) else axes


@register_rule(ops.average)
def average(call: RuleCall, x: Axes, weights: Any = None) -> Axes:
    """Passes units through on the axes that stay; fixes those that it reduces over."""
    for given in tensors_in([weights]):
        if len(given) == len(x):
            x = broadcast(call, [x, given])
        else:
            call.fix(given, "weighs what it averages")
    return reduction(call, x)


register_rule(*named("cumsum cumprod nancumsum nancumprod"))(
    along("adds or multiplies up along this axis")
)
register_rule(ops.diff)(along("takes differences along this axis"))
register_rule(*named("sort argsort argpartition"))(along("sorts along this axis"))
register_rule(ops.tril, ops.triu)(along_last(2, "zeroes a triangle of these axes"))


@register_rule(ops.diagonal, ops.trace)
def diagonal(call: RuleCall, x: Axes) -> Axes:
    """Passes units through on other axes than the two of the diagonal."""
    used = positions([call.layer.axis1, call.layer.axis2], len(x))
    axes = use(call, x, used, "takes the diagonal of this axis", keep=False)
    return (*axes, *map(Fixed, call.output_shapes[0][len(axes) :]))


@register_rule(*named("isin"))
def isin(call: RuleCall, x1: Any, x2: Any) -> Axes:
    """Passes units through: every element alone, against a set that is fixed."""
    for given in tensors_in([x2]):
        call.fix(given, "searches all of this axis")
    return next(iter(tensors_in([x1])), ())


@register_rule(*named("digitize"))
def digitize(call: RuleCall, x: Any, bins: Any) -> Axes:
    """Passes units through: every element alone, against bins that are fixed."""
    return isin(call, x, bins)


@register_rule(*named("searchsorted"))
def searchsorted(call: RuleCall, sorted_sequence: Any, values: Any) -> Axes:
    """Passes units of the values through: every element alone, in a sequence that is fixed."""
    return isin(call, values, sorted_sequence)


@register_rule(*named("linspace logspace geomspace"))
def spaced(call: RuleCall, start: Any, stop: Any) -> list[Axes]:
    """Ties the units of start and stop; the numbers between them lie on a new axis."""
    ends = elementwise(call, start, stop)
    axes = list(ends)
    axes.insert(call.layer.axis % (len(axes) + 1), Fixed(call.layer.num))
    return [tuple(axes), ends][: len(call.output_shapes)]


@register_rule(*named("view"))
def view(call: RuleCall, x: Axes) -> Axes:
    """Passes units through where a number stays as long; else fixes the last axis."""
    if call.output_shapes[0][-1] == x[-1].size:
        return x
    return use(call, x, [len(x) - 1], "reads this axis as numbers of another length")


refuse("counts axes or elements", *named("ndim size"))
refuse("makes values that nothing determines", *named("empty_like"))
refuse("compares all elements at once", *named("allclose"))
refuse("counts which values occur", *named("bincount histogram"))
refuse("finds values wherever they are", *named("nonzero unique"))
refuse("multiplies the components of vectors", *named("cross"))
refuse("multiplies all elements with all others", *named("kron outer vander"))
refuse("compares the rows of a matrix", *named("corrcoef"))
refuse("slides one sequence along another", *named("correlate"))
refuse("puts a vector on the diagonal of a matrix, or takes it from there", *named("diag"))
refuse("puts all elements on a diagonal", *named("diagflat"))
refuse("combines the values of its inputs on new axes", *named("meshgrid"))
refuse("makes as many elements as its argument says", *named("arange full"))
refuse("takes places in a shape apart", *named("unravel_index"))
