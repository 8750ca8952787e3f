"""Replacing a layer by two: an exact factorisation through a bottleneck.

The kernel of a Dense or convolution layer is a matrix from all that one output sees to
the outputs. Its singular value decomposition gives two factors: the first new layer
makes `rank` units from what the layer saw (with its kernel size, strides and padding),
and the layer itself maps these to its own units, place by place, with its bias and its
activation. Chen et al. (2016, section 2.3) name this as future work.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import layers

from keras_net2net import internals
from keras_net2net.errors import GrowthError, SizeError
from keras_net2net.operations.deeper.building import Builder, Namer, new_layer, resized
from keras_net2net.operations.families import KERNELS, channel_axis, size_key
from keras_net2net.operations.select import label
from keras_net2net.planning.changes import VariableReplacement
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import InitialWeight, Step
from keras_net2net.widths.facts import Facts


@dataclasses.dataclass(frozen=True)
class Factor:
    """One of the two factors of a kernel, as a function of the kernel.

    Args:
        rank: The number of units between them.
        first: Whether it is the first factor.
    """

    rank: int
    first: bool

    def __call__(self, kernel: np.ndarray) -> np.ndarray:
        """Computes it, in the kernel's own dtype."""
        left, right, _ = factors(kernel, self.rank)
        return (left if self.first else right).astype(kernel.dtype)


def factors(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Factors a kernel through a number of units.

    Both factors get the same norm for each unit. A unit that isn't needed, since the
    kernel has a smaller rank, reads something all the same: were it zero on both sides,
    it could never learn.

    Args:
        kernel: Array of shape `(..., inputs, outputs)`.
        rank: The number of units between the factors.

    Returns:
        The first factor, of shape `(..., inputs, rank)`; the second, of shape
        `(1, ..., rank, outputs)`; and the relative error of their product in the
        spectral norm, zero where it is rounding.

    Example:

    >>> import numpy as np
    >>> first, second, error = factors(np.array([[1.0, 2.0], [2.0, 4.0]]), 1)
    >>> bool(np.allclose(first @ second, [[1, 2], [2, 4]])), error
    (True, 0.0)
    """
    matrix = np.asarray(kernel, "float64").reshape(-1, kernel.shape[-1])
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    rounding = s[0] * max(matrix.shape) * np.finfo("float32").eps
    real = s[:rank] > rounding
    root = np.sqrt(s[:rank])
    root = np.where(real, root, root[real].mean() if real.any() else 1.0)
    left = u[:, :rank] * root
    right = np.where(real, s[:rank] / root, 0.0)[:, None] * v[:rank]
    dropped = float(s[rank]) if rank < len(s) else 0.0
    error = dropped / float(s[0]) if dropped > rounding else 0.0
    ones = (1,) * (kernel.ndim - 2)
    return (
        left.reshape(*kernel.shape[:-1], rank),
        right.reshape(*ones, rank, kernel.shape[-1]),
        error,
    )


def factorise(operation: Any, draft: Draft, facts: Facts, rank: int | None) -> Step:
    """Replaces a layer of a draft by two.

    Args:
        operation: The operation.
        draft: The draft; its model is as its graph was read.
        facts: What is known of the layer.
        rank: The number of units between the two. `None`: as many as there can be.

    Returns:
        What was done.

    Raises:
        GrowthError: If the layer has no factors.
    """
    layer = facts.operation
    _check(facts)
    kernel = internals.read_variable(layer.kernel)
    largest = min(int(np.prod(kernel.shape[:-1])), kernel.shape[-1])
    units = largest if rank is None else rank
    if units > largest:
        raise SizeError(
            f"{label(facts)} can't be factored through {units} units",
            f"its kernel of shape {tuple(kernel.shape)} has a rank of at most {largest}",
            f"Pass `rank={largest}` at most, and widen the new layer afterwards",
        )
    first, second, error = factors(kernel, units)
    path = "".join(facts.path.rpartition("/")[:2]) + Namer(draft, "factor").stem(layer.name)
    source = f"{facts.path}/kernel"
    weight = InitialWeight(
        "kernel", first.shape, first.astype(kernel.dtype), source=(source, Factor(units, True))
    )
    config = {**layer.get_config(), "use_bias": False, "activation": "linear"}
    config |= {"activity_regularizer": None, size_key(layer): units}
    new = new_layer(path, type(layer), config, [weight])
    settings: dict[str, Any] = {}
    if not isinstance(layer, layers.Dense):
        ones = (1,) * len(layer.kernel_size)
        settings = dict.fromkeys(("kernel_size", "strides", "dilation_rate"), ones)
        settings["padding"] = "valid"
    replaced = VariableReplacement(source, second.shape, Factor(units, False))
    change = draft.replace(facts, settings, [replaced])
    for graph, call in draft.calls_of(layer):
        like = resized(call.outputs[0], channel_axis(layer, call.outputs[0]), units)
        builder = Builder(draft, graph)
        builder.finish(call.inputs[0], builder.put(new, call.inputs[0], like), call)
    notes = (f"{facts.path}: factored through {units} units, {_how_well(error)}",)
    return Step(
        operation,
        layers=(change,),
        insertions=(new.insertion,),
        notes=notes,
        exact=error == 0.0,
    )


def _how_well(error: float) -> str:
    if not error:
        return "exactly"
    return f"with a relative error of {error:.1e} of its kernel (in the spectral norm)"


def _check(facts: Facts) -> None:
    layer = facts.operation
    if type(layer) not in KERNELS or not facts.has_rule:
        why = f"{type(layer).__name__} has no kernel that is a matrix of inputs and outputs"
    elif getattr(layer, "groups", 1) > 1:
        why = f"its {layer.groups} groups have a matrix each"
    else:
        return
    raise GrowthError(
        f"{label(facts)} can't be factored",
        why,
        "Name a Dense, Conv1D, Conv2D or Conv3D layer without groups",
    )
