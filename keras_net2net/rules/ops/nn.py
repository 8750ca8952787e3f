"""Operations of `keras.ops` as in `keras/src/ops/nn.py`."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_net2net.rules.kinds import (
    along,
    broadcast,
    channel_axis,
    cut,
    named,
    positions,
    tensors_in,
    use,
    with_space,
)
from keras_net2net.rules.ops.numpy import REDUCES
from keras_net2net.rules.pooling import POOLS, pooled
from keras_net2net.widths.expressions import Axes, Expression, Fixed, product
from keras_net2net.widths.registry import Refusal, refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import COMPETES
from keras_net2net.widths.unification import regroup

NORMALIZES = "normalizes over its units"
BLOCKS = "moves blocks of this axis to another one"


@register_rule(*named("softmax log_softmax sparsemax"))
def softmax(call: RuleCall, x: Axes) -> Axes:
    """Fixes the units that it normalizes over, and passes the others through."""
    kind = {"Softmax": "softmax", "LogSoftmax": "log_softmax"}.get(type(call.layer).__name__)
    for at in positions(call.layer.axis, len(x)):
        if kind is None:
            call.fix(x[at], NORMALIZES)
        else:
            call.compete(x[at], kind, NORMALIZES)
            call.treat(COMPETES)
    return x


register_rule(*named("normalize"))(along("divides by a norm over this axis"))


@register_rule(*named("layer_normalization rms_normalization"))
def normalization(call: RuleCall, x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """Fixes the units that it normalizes over, and passes the others through."""
    for given in tensors_in((*args, *kwargs.values())):
        if len(given) == len(x):
            x = broadcast(call, [x, given])
        else:
            call.fix(given, NORMALIZES)
    call.fix([x[at] for at in positions(call.layer.axis, len(x))], NORMALIZES)
    return x


@register_rule(*named("moments"))
def moments(call: RuleCall, x: Axes) -> list[Axes]:
    """Passes units through on the axes that stay; fixes those that it reduces over."""
    reduced = positions(call.layer.axes, len(x))
    axes = use(call, x, reduced, REDUCES, keep=False)
    if call.layer.keepdims:
        axes = tuple(Fixed(1) if at in reduced else axis for at, axis in enumerate(x))
    return [axes, axes]


@register_rule(*named("max_pool average_pool adaptive_max_pool adaptive_average_pool"))
def pooling(call: RuleCall, inputs: Axes) -> Axes:
    """Passes channels through."""
    if len(call.output_shapes[0]) != len(inputs):
        # Up to Keras 3.15 at least, the adaptive ones say so with the channels last.
        return Refusal("gives its output a shape that it doesn't have")(call, inputs)[0]
    call.treat(pooled(call))
    return with_space(call, inputs, POOLS)


@register_rule(ops.one_hot)
def one_hot(call: RuleCall, x: Axes) -> Axes:
    """Passes units through; the classes lie on a new axis."""
    axes: list[Expression] = list(x)
    axes.insert(call.layer.axis % (len(x) + 1), Fixed(call.layer.num_classes))
    return tuple(axes)


@register_rule(*named("glu"))
def glu(call: RuleCall, x: Axes) -> Axes:
    """Ties the two halves of the units, and multiplies them."""
    axis = call.layer.axis % len(x)
    size = call.output_shapes[0][axis]
    if size is None:
        return x
    first, second = cut(call, x[axis], [size, size], "cuts this axis into halves")
    call.unify(first, second, "multiplies the halves of this axis")
    return (*x[:axis], first, *x[axis + 1 :])


@register_rule(*named("categorical_crossentropy"))
def categorical_crossentropy(call: RuleCall, target: Any, output: Any) -> Axes:
    """Passes units through on other axes than that of the classes, over which it sums."""
    both = broadcast(call, tensors_in([target, output]))
    return use(call, both, positions(call.layer.axis, len(both)), "sums over classes", keep=False)


@register_rule(*named("depth_to_space"))
def depth_to_space(call: RuleCall, x: Axes) -> Axes:
    """Splits channels into blocks, which go to space, and the rest, which passes through."""
    shape = call.output_shapes[0]
    at = channel_axis(call, len(x))
    block = call.layer.block_size**2
    # With the channels first, the order of the factors isn't the same on all backends.
    groups = None if at == 1 else regroup([x[at]], [block, shape[at]])
    if groups is None:
        return Refusal(BLOCKS)(call, x)[0]
    call.fix(groups[0], BLOCKS)
    return with_space(call, x, BLOCKS, groups[1])


@register_rule(*named("space_to_depth"))
def space_to_depth(call: RuleCall, x: Axes) -> Axes:
    """Multiplies blocks of space by the channels."""
    if channel_axis(call, len(x)) == 1:
        return Refusal(BLOCKS)(call, x)[0]
    channels = product([Fixed(call.layer.block_size**2), x[-1]])
    return with_space(call, x, BLOCKS, channels)


def _kernel(call: RuleCall) -> int:
    size = call.layer.kernel_size
    return size * size if isinstance(size, int) else math.prod(size)


@register_rule(*named("unfold"))
def unfold(call: RuleCall, x: Axes) -> Axes:
    """Multiplies channels, which are first, by the places of a patch."""
    call.fix(x[2:], "cuts patches along this axis")
    return (x[0], product([x[1], Fixed(_kernel(call))]), Fixed(call.output_shapes[0][2]))


@register_rule(*named("fold"))
def fold(call: RuleCall, x: Axes) -> Axes:
    """Splits channels, which are first, from the places of a patch."""
    shape, why = call.output_shapes[0], "puts patches together along this axis"
    groups = regroup([x[1]], [shape[1], _kernel(call)])
    if groups is None:
        return Refusal(why)(call, x)[0]
    call.fix([groups[1], *x[2:]], why)
    return (x[0], groups[0], *map(Fixed, shape[2:]))


refuse("marks which classes occur along an axis", *named("multi_hot"))
refuse("picks the class that the target says", *named("sparse_categorical_crossentropy"))
refuse("sums over all alignments of a sequence", *named("ctc_loss ctc_decode"))
refuse("compares all elements in one number", *named("psnr"))
