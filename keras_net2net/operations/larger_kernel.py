"""Larger kernels, padded with zeros so that the function stays (kernel size morphing)."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_net2net.errors import GrowthError, SizeError, whole_number
from keras_net2net.graph.structure import Shape
from keras_net2net.operations.base import Operation, reasons
from keras_net2net.operations.families import SLIDING, TRANSPOSED
from keras_net2net.operations.select import Match, find_each, label
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import LayerChange, Skipped, Step
from keras_net2net.planning.remaps import padded
from keras_net2net.widths.facts import Facts


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True, repr=False)
class LargerKernel(Operation):
    """Enlarges the kernels of convolutions, with zeros around the old weights.

    The old kernel stands in the new one where it meets the same inputs as before,
    so that the layer computes what it did, and the new weights get gradients from
    the first step. For `same` padding, of which the smaller half is put before the
    input, that is, along one axis, for a kernel of size k that grows to K,

        shift = (pad(K) - pad(k)) / dilation
        pad(k) = max((ceil(n / stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0) // 2

    zeros before, and K - k - shift behind. With a stride the padding depends on the
    input's size n; where n is unknown, the shift must be the same for all sizes. A
    `causal` kernel gets all zeros before. A transposed convolution crops what a
    convolution pads, by max((k - 1) * dilation + 1 - stride, 0) // 2 before.

    Args:
        layers: Which layers: a name, a path, a glob pattern, a layer object, a list of
            these, or a dict from these to kernel sizes. Defaults to `None`: every
            convolution that can have the size. Layers that a pattern or `None` finds
            and that can't are skipped, and listed in the plan with the reason.
        kernel_size: Integer, or a tuple of one integer for each axis: the new size.
            Defaults to `None`: the sizes stand in the dict.

    Raises:
        GrowthError: If the arguments contradict each other.
        SizeError: If a size isn't possible.

    Source: Wei, Wang, Rui, Chen: Network Morphism (ICML 2016, arXiv:1603.01670),
    section 3.5, kernel size morphing, which knows odd kernels without strides.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, padding="same", name="conv1"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ... ])
    >>> report = n2n.grow(model, n2n.LargerKernel("conv1", kernel_size=5), seed=0)
    >>> model.get_layer("conv1").kernel_size
    (5, 5)
    """

    layers: Any = None
    kernel_size: Any = None

    def _check(self) -> None:
        if isinstance(self.layers, dict) == (self.kernel_size is not None):
            raise GrowthError(
                "The new kernel size isn't clear",
                "it comes from either `kernel_size` or a dict of layers to sizes",
                "Pass `LargerKernel('conv1', kernel_size=5)` or `LargerKernel({'conv1': 5})`",
            )
        self._set_each("kernel_size", "The kernel size", _sizes)

    @property
    def exact(self) -> bool:
        """Whether the operation preserves the function: always, in both modes."""
        return True

    def draft(self, draft: Draft) -> list[Step]:
        """Enlarges the kernels of a draft."""
        changes: dict[str, LayerChange] = {}
        skipped: list[Skipped] = []
        for match, wanted in self._requests(draft):
            facts = draft.inference.facts[id(match.facts.operation)]  # an earlier change counts
            why, error = self._problem(draft, facts, wanted)
            instead = self._instead(draft, facts)
            if why is None and facts.path in changes:
                why, error = "another size is asked for as well", GrowthError
                instead = "Ask for one size for each layer"
            elif why is not None and not (match.named and error is not None):
                skipped.append(Skipped(facts.path, why))
                continue
            if why is not None and error is not None:
                problem = f"The kernel of layer {label(facts)} can't become {_text(wanted)}"
                raise error(problem, why, instead)
            changes[facts.path] = self._change(draft, facts, wanted)
        if not changes and not any("already" in skip.reason for skip in skipped):
            raise GrowthError(
                f"No kernel of the model {draft.model.name!r} that was asked for can grow",
                reasons(skipped) or "it has no convolutions",
                "Name a convolution with `same` or `causal` padding",
            )
        return [Step(self, layers=tuple(changes.values()), skipped=tuple(skipped))]

    def _requests(self, draft: Draft) -> list[tuple[Match, Any]]:
        """Each layer that is meant, with its new size."""
        if self.layers is None:
            found = [(Match(facts, False), self.kernel_size) for facts in draft.layers()]
        else:
            found = find_each(draft, self.layers, self.kernel_size)
        return [one for one in found if one[0].named or isinstance(one[0].facts.operation, SLIDING)]

    def _problem(
        self, draft: Draft, facts: Facts, wanted: Any
    ) -> tuple[str | None, type[GrowthError] | None]:
        """Why a kernel can't have a size, and the error that says so; no error if it has it."""
        layer = facts.operation
        kind = type(layer).__name__
        if not isinstance(layer, SLIDING):
            return f"a {kind} has no kernel that slides along space", GrowthError
        if not facts.has_rule or not draft.inference.weights_covered(facts):
            return f"{kind} holds weights that its rule doesn't cover", GrowthError
        old = draft.setting(layer, "kernel_size")
        new = _for_rank(wanted, len(old))
        if new is None:
            return f"it has {len(old)} axes of space, and {len(wanted)} sizes are given", SizeError
        if new == old:
            return f"has a kernel of {_text(old)} already", None
        if any(k > size for k, size in zip(old, new, strict=True)):
            return f"it is {_text(old)} now, and a kernel only gets larger", SizeError
        if draft.setting(layer, "padding") == "valid":
            return "its padding is 'valid', so that its output would get smaller", GrowthError
        for axis in range(len(old)):
            before = _before(draft, facts, axis, old[axis], new[axis])
            if isinstance(before, str):
                return before, SizeError
        return None, None

    def _instead(self, draft: Draft, facts: Facts) -> str:
        layer = facts.operation
        if not isinstance(layer, SLIDING):
            return "Name a convolution with `same` or `causal` padding"
        if draft.setting(layer, "padding") == "valid":
            return "Name a layer with `same` padding, or insert a layer with `Deeper` instead"
        now = _text(draft.setting(layer, "kernel_size"))
        return f"Pass a size that is larger than {now} by an even number"

    def _change(self, draft: Draft, facts: Facts, wanted: Any) -> LayerChange:
        old = draft.setting(facts.operation, "kernel_size")
        new = _for_rank(wanted, len(old)) or old
        remaps = {}
        for axis, (k, size) in enumerate(zip(old, new, strict=True)):
            if k != size:
                before = int(_before(draft, facts, axis, k, size))
                remaps[axis] = padded(k, before, size - k - before)
        separable = "depthwise_kernel" in facts.weights
        name = "depthwise_kernel" if separable else "kernel"
        return draft.resize(facts, {name: remaps}, {"kernel_size": new})


def _before(draft: Draft, facts: Facts, axis: int, old: int, new: int) -> int | str:
    """How many zeros stand before the old kernel along an axis, or why that isn't known."""
    layer = facts.operation
    if old == new:
        return 0
    if draft.setting(layer, "padding") == "causal":
        return new - old
    stride, dilation = (draft.setting(layer, key)[axis] for key in ("strides", "dilation_rate"))
    spans = ((old - 1) * dilation + 1, (new - 1) * dilation + 1)
    if isinstance(layer, TRANSPOSED):
        more = layer.output_padding
        more = more if more is None or isinstance(more, int) else more[axis]
        if more is not None and spans[0] % 2 != spans[1] % 2:
            return "its output with an `output_padding` has another size for odd and even kernels"
        crops = [
            max(span - (stride if more is None else span % 2 + more), 0) // 2 for span in spans
        ]
        shifts = {crops[1] - crops[0]}
    else:
        sizes = {_size_along(draft, layer, shape, axis) for shape in _input_shapes(draft, facts)}
        # The padding depends on the remainder of the size by the stride alone.
        known = range(1, stride + 1) if None in sizes else sizes
        shifts = {_pad(n, spans[1], stride) - _pad(n, spans[0], stride) for n in known if n}
    if len(shifts) > 1:
        return (
            f"with strides of {stride}, where the old kernel has to stand in one of {new} depends "
            f"on the size of the input, which isn't known or not always the same"
        )
    shift = shifts.pop()
    if shift % dilation:
        return (
            f"with a dilation of {dilation}, the padding for a kernel of {new} would move the old "
            f"one of {old} by {shift}, between two of its places"
        )
    if not 0 <= shift // dilation <= new - old:
        return f"the old kernel of {old} would have to stand outside of one of {new}"
    return shift // dilation


def _pad(n: int, span: int, stride: int) -> int:
    """What `same` padding puts before an input of size `n`."""
    return max((-(-n // stride) - 1) * stride + span - n, 0) // 2


def _input_shapes(draft: Draft, facts: Facts) -> list[Shape]:
    """The shapes that the layer is called with; sizes that a stand-in stands for as `None`."""
    shapes = []
    outer = draft.graph.sources or draft.graph.flat_inputs
    unknown = any(None in tensor.shape[1:] for tensor in outer)
    for graph, call in draft.calls_of(facts.operation):
        shape = call.inputs[0].shape
        hidden = graph.opened and unknown  # numbers stand for unknown sizes inside
        shapes.append((None,) * len(shape) if hidden else shape)
    return shapes


def _size_along(draft: Draft, layer: Any, shape: Shape, axis: int) -> int | None:
    return shape[axis + (2 if layer.data_format == "channels_first" else 1)]


def _sizes(value: Any, what: str) -> int | tuple[int, ...]:
    """A kernel size as an integer or a tuple of these."""
    if isinstance(value, (list, tuple)) and value:
        return tuple(_sizes(size, what) for size in value)  # type: ignore[misc]
    return whole_number(value, what, kind="the size of a kernel")


def _for_rank(wanted: Any, rank: int) -> tuple[int, ...] | None:
    """The sizes for all axes, or `None` if there are more or fewer of them."""
    if isinstance(wanted, int):
        return (wanted,) * rank
    return wanted if len(wanted) == rank else None


def _text(size: Any) -> str:
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)
