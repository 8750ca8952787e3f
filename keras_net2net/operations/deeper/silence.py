"""Making a part of a graph start as the identity: which of its weights have to be zero.

A residual block is `x + f(x)`: with the last weights of `f` at zero it passes `x` on,
and learns at once, since the gradient of these weights isn't zero. So the input is
followed backwards from the output, along the sums that carry it; all else that is
added to it on the way must be silent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.internals.activations import Activation, activation_name, describe

Zeros = dict[int, Any]  # variables that start at zero, by `id`

# What an operation does with its input, by the name of its class without underscores.
SUMS = frozenset(["add", "subtract", "average", "concatenate", "stack"])
PRODUCTS = frozenset(["multiply", "matmul", "einsum", "dot", "tensordot"])
QUOTIENTS = frozenset(["divide", "truedivide"])
UNCHANGED = frozenset(
    [
        *("identity", "dropout", "spatialdropout1d", "spatialdropout2d", "spatialdropout3d"),
        *("gaussiandropout", "activityregularization", "copy"),
    ]
)
# Zero where their input is, and as steep there on both sides.
PASSES = UNCHANGED | frozenset(
    [
        *("reshape", "permute", "flatten", "repeatvector", "transpose", "squeeze", "expanddims"),
        *("moveaxis", "swapaxes", "getitem", "roll", "flip", "repeat", "tile", "cast"),
        *("negative", "mean", "sum", "cropping1d", "cropping2d", "cropping3d"),
        *("zeropadding1d", "zeropadding2d", "zeropadding3d", "upsampling1d", "upsampling2d"),
        *("upsampling3d", "averagepooling1d", "averagepooling2d", "averagepooling3d"),
        *("maxpooling1d", "maxpooling2d", "maxpooling3d", "globalaveragepooling1d"),
        *("globalaveragepooling2d", "globalaveragepooling3d", "globalmaxpooling1d"),
        *("globalmaxpooling2d", "globalmaxpooling3d", "leakyrelu", "elu", "averagepool"),
        *("maxpool", "broadcastto"),
    ]
)
RANDOM = frozenset(
    ["dropout", "spatialdropout1d", "spatialdropout2d", "spatialdropout3d", "gaussiandropout"]
)
# The weights that make the output of a layer, linearly but for its own activation.
MAKERS: dict[str, tuple[str, ...]] = {
    "dense": ("kernel", "bias"),
    "einsumdense": ("kernel", "bias"),
    **{
        f"conv{n}d{transposed}": ("kernel", "bias")
        for n in (1, 2, 3)
        for transposed in ("", "transpose")
    },
    "depthwiseconv1d": ("kernel", "bias"),
    "depthwiseconv2d": ("kernel", "bias"),
    "separableconv1d": ("pointwise_kernel", "bias"),
    "separableconv2d": ("pointwise_kernel", "bias"),
    "batchnormalization": ("gamma", "beta"),
    "layernormalization": ("gamma", "beta"),
    "groupnormalization": ("gamma", "beta"),
    "rmsnormalization": ("scale",),
}
ATTENTIONS = frozenset(["multiheadattention", "groupedqueryattention"])
_DECISIVE = ("call", "build", "compute_output_shape", "compute_output_spec", "__call__")


def kind_of(operation: Any) -> str | None:
    """The class of one of Keras's own layers or operations, without underscores.

    A subclass that overrides nothing of what is computed is of the kind of its base.
    """
    if isinstance(operation, keras.Layer):
        cls = type(operation)
        for base in cls.__mro__:
            if base.__module__.startswith("keras.src.layers."):
                same = all(getattr(cls, name) is getattr(base, name) for name in _DECISIVE)
                return base.__name__.lower() if same else None
        return None
    if internals.is_keras_operation(operation):
        return type(operation).__name__.replace("_", "").lower()
    return None


@dataclasses.dataclass(eq=False)
class Frame:
    """A graph that is looked at, and where the tensors come from that enter it.

    Args:
        calls: The calls in it.
        entries: For its inputs, by `id`, the tensors outside that they stand for.
        outer: The frame outside. Defaults to `None`: it is the outermost.
    """

    calls: Sequence[Call]
    entries: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    outer: Frame | None = None

    def __post_init__(self) -> None:
        self.makers = {id(t): call for call in self.calls for t in call.outputs}


@dataclasses.dataclass
class Solution:
    """How a part becomes the identity.

    Args:
        zeros: The weights that start at zero.
        projections: Branches that nothing in them can silence: a projection that
            starts at zero is put behind each, as the call and the tensor that it reads.
        randomly: The layers on the way of the input that drop some of it in training.
    """

    zeros: Zeros = dataclasses.field(default_factory=dict)
    projections: list[tuple[Call, Tensor]] = dataclasses.field(default_factory=list)
    randomly: list[str] = dataclasses.field(default_factory=list)

    @property
    def cost(self) -> tuple[int, int]:
        """To compare solutions: projections first, then weights."""
        return len(self.projections), sum(int(np.prod(v.shape)) for v in self.zeros.values())

    def join(self, other: Solution) -> Solution:
        """Both."""
        return Solution(
            self.zeros | other.zeros,
            self.projections + other.projections,
            self.randomly + other.randomly,
        )


class Silencer:
    """Finds the weights of a part of a graph that have to be zero.

    Args:
        calls: The calls of the part.
        start: The tensor that it begins at.
        values: What is known of the values of the tensor behind which the part is
            repeated: what an activation may leave alone.
    """

    def __init__(self, calls: Sequence[Call], start: Tensor, values: Activation | None) -> None:
        self.root = Frame(calls)
        self.start = start
        self.values = values
        self._uses: dict[int, int] = {}
        self._count(calls)

    def _count(self, calls: Iterable[Call]) -> None:
        for call in calls:
            self._uses[id(call.operation)] = self._uses.get(id(call.operation), 0) + 1
            if call.inner is not None:
                self._count(call.inner.calls)

    def identity(self, end: Tensor) -> Solution | None:
        """What makes a tensor of the part equal to its start; `None` if nothing does."""
        return self._equal(end, self.root, {})

    def silence(self, tensor: Tensor) -> Zeros | None:
        """The weights whose zeros make a tensor of the part zero; `None` if none do."""
        return self._zero(tensor, self.root, {})

    def carries(self, call: Call) -> bool:
        """Whether a call gives what it is given, as long as that is the start."""
        if len(call.inputs) != 1 or len(call.outputs) != 1 or call.inner is not None:
            return False
        kind = kind_of(call.operation)
        if kind in UNCHANGED:
            return True
        activation = activation_of(call.operation)
        if activation is None:
            return False
        known = describe(activation)
        if known is None:
            return False
        values = self.values or Activation()
        return known.leaves_alone(values)

    # -- what carries the start ---------------------------------------------------

    def _equal(self, tensor: Tensor, frame: Frame, chosen: Zeros) -> Solution | None:
        if tensor is self.start:
            return Solution()
        if id(tensor) in frame.entries and frame.outer is not None:
            return self._equal(frame.entries[id(tensor)], frame.outer, chosen)
        call = frame.makers.get(id(tensor))
        if call is None:
            return None
        if call.inner is not None:
            both = Solution()
            for inner in call.insides:
                at = inner.flat_outputs[call.outputs.index(tensor)]
                more = self._equal(at, _enter(call, inner, frame), chosen | both.zeros)
                if more is None:
                    return None
                both = both.join(more)
            return both
        if self.carries(call):
            found = self._equal(call.inputs[0], frame, chosen)
            if found is not None and kind_of(call.operation) in RANDOM:
                found = found.join(Solution(randomly=[call.path]))
            return found
        if kind_of(call.operation) not in ("add", "subtract") or not _only_tensors(call):
            return None
        options = []
        inputs = call.inputs
        for i, carrier in enumerate(inputs):
            if carrier.shape != tensor.shape:
                continue
            if kind_of(call.operation) == "subtract" and i > 0:
                break
            found = self._equal(carrier, frame, chosen)
            if found is None:
                continue
            for branch in inputs[:i] + inputs[i + 1 :]:
                found = found.join(self._silent(call, branch, frame, chosen | found.zeros))
            if frame is self.root or not found.projections:
                options.append(found)
        return min(options, key=lambda one: one.cost, default=None)

    def _silent(self, call: Call, branch: Tensor, frame: Frame, chosen: Zeros) -> Solution:
        zeros = self._zero(branch, frame, chosen)
        return Solution(projections=[(call, branch)]) if zeros is None else Solution(zeros)

    # -- what is silent -----------------------------------------------------------

    def _zero(self, tensor: Tensor, frame: Frame, chosen: Zeros) -> Zeros | None:
        if tensor.variable is not None:
            owner, _, variable = tensor.variable
            return self._zeros([variable], owner)
        if id(tensor) in frame.entries and frame.outer is not None:
            return self._zero(frame.entries[id(tensor)], frame.outer, chosen)
        call = frame.makers.get(id(tensor))
        if call is None:
            return None
        if call.inner is not None:
            found: Zeros = {}
            for inner in call.insides:
                at = inner.flat_outputs[call.outputs.index(tensor)]
                more = self._zero(at, _enter(call, inner, frame), chosen | found)
                if more is None:
                    return None
                found |= more
            return found
        kind = kind_of(call.operation) or ""
        if kind in SUMS:
            return self._all(call, frame, chosen) if _only_tensors(call) else None
        if kind in PRODUCTS or kind in QUOTIENTS:
            inputs = call.inputs[:1] if kind in QUOTIENTS else call.inputs
            if kind in QUOTIENTS and (not call.args or call.args[0] is not inputs[0]):
                return None
            options = [self._zero(x, frame, chosen) for x in inputs]
            found_options = [one for one in options if one is not None]
            return min(found_options, key=lambda one: _size(one, chosen), default=None)
        if kind in MAKERS or kind in ATTENTIONS:
            return self._maker(call, kind, frame, chosen)
        if kind in PASSES or _is_steep(activation_of(call.operation)):
            inputs = call.inputs
            return self._zero(inputs[0], frame, chosen) if inputs else None
        return None

    def _all(self, call: Call, frame: Frame, chosen: Zeros) -> Zeros | None:
        found: Zeros = {}
        for x in call.inputs:
            more = self._zero(x, frame, chosen | found)
            if more is None:
                return None
            found |= more
        return found

    def _maker(self, call: Call, kind: str, frame: Frame, chosen: Zeros) -> Zeros | None:
        layer = call.operation
        if kind in ATTENTIONS:
            named = [one for one in internals.sublayers(layer) if one.name == "attention_output"]
            if not named or len(call.outputs) > 1 or self._uses.get(id(layer), 0) != 1:
                return None
            layer, kind = named[0], "einsumdense"
        if getattr(layer, "lora_enabled", False) or not _is_steep(
            getattr(layer, "activation", None) or keras.activations.linear
        ):
            return None
        own = internals.named_variables(layer)
        wanted = [own[name] for name in MAKERS[kind] if name in own]
        if kind == "batchnormalization" and "gamma" not in own:
            return self._unscaled(call, own, frame, chosen)
        if "normalization" in kind and not {"gamma", "scale"} & set(own):
            return None
        return self._zeros(wanted, layer)

    def _unscaled(
        self, call: Call, own: dict[str, Any], frame: Frame, chosen: Zeros
    ) -> Zeros | None:
        """A BatchNormalization without gamma makes zero of zero, if its mean is zero as well."""
        before = self._zero(call.inputs[0], frame, chosen)
        if before is None or self._uses.get(id(call.operation), 0) != 1:
            return None
        mine = [own[name] for name in ("moving_mean", "beta") if name in own]
        return before | {id(v): v for v in mine}

    def _zeros(self, variables: list[Any], layer: Any) -> Zeros | None:
        """The variables, if they can learn from zero: a layer called twice can't."""
        if not variables or self._uses.get(id(layer), 1) > 1:
            return None
        for variable in variables:
            if "float" not in variable.dtype or (not variable.trainable and layer.trainable):
                return None
        return {id(v): v for v in variables}


def _enter(call: Call, inner: Graph, frame: Frame) -> Frame:
    pairs = call.entries(inner)
    entries = {id(inside): outside for inside, outside in pairs if outside is not None}
    return Frame(inner.calls, entries, frame)


def _only_tensors(call: Call) -> bool:
    """Whether a sum is one of tensors alone: a number that is added isn't silent."""
    flat = keras.tree.flatten((call.args, call.kwargs))
    return all(isinstance(x, Tensor) or x is None for x in flat)


def _size(zeros: Zeros, chosen: Zeros) -> int:
    return sum(int(np.prod(v.shape)) for key, v in zeros.items() if key not in chosen)


def activation_of(operation: Any) -> Any | None:
    """The activation that a call computes, as a function or layer; `None` if it isn't one."""
    if isinstance(operation, layers.Activation):
        return operation.activation
    if isinstance(operation, (layers.ReLU, layers.LeakyReLU, layers.ELU)):
        return operation
    kind = None if isinstance(operation, keras.Layer) else kind_of(operation)
    for name in dir(keras.activations) if kind else ():
        function = getattr(keras.activations, name)
        if name.replace("_", "") == kind and activation_name(function) is not None:
            return function
    return None


def _is_steep(activation: Any) -> bool:
    """Whether a function is zero at zero, and steep there on both sides.

    Behind a ReLU, weights that are all zero would never learn.
    """
    if activation is None:
        return False
    if isinstance(activation, layers.ReLU):
        return bool(activation.negative_slope) and not activation.threshold
    if isinstance(activation, keras.Layer):
        return kind_of(activation) in ("leakyrelu", "elu")
    name = activation_name(activation)
    if name is None:
        return False
    at = np.array([-1e-2, 0.0, 1e-2], "float32")
    try:
        low, zero, high = np.asarray(
            keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(at))), "float64"
        )
    except Exception:
        return False
    return bool(zero == 0.0 and abs(low) > 1e-4 and abs(high) > 1e-4)
