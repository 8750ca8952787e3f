"""Attention layers: their projections, which have public names in none or some of them only."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class Attention:
    """What an attention layer holds.

    Args:
        query, key, value, output: The projections.
        gate: That of its gate, or `None`.
        axes: The axes that it attends along, or `None` for all between batch and units.
        output_shape: The shape of a place in its output, or `None`: that of its query.
        scale: The attribute that its scores are multiplied by.
    """

    query: Any
    key: Any
    value: Any
    output: Any
    gate: Any
    axes: Any
    output_shape: tuple[int, ...] | None
    scale: str


def attention_of(layer: Any) -> Attention:
    """The parts of a `MultiHeadAttention` or `GroupQueryAttention`."""
    grouped = isinstance(layer, keras.layers.GroupQueryAttention)
    gated = getattr(layer, "use_gate" if grouped else "_use_gate", False)
    return Attention(
        query=layer._query_dense,
        key=layer._key_dense,
        value=layer._value_dense,
        output=layer._output_dense,
        gate=layer._gate_dense if gated else None,
        axes=[1] if grouped else layer._attention_axes,
        output_shape=None if grouped else layer._output_shape,
        scale="_inverse_sqrt_head_dim" if grouped else "_inverse_sqrt_key_dim",
    )


def attention_has_one_size() -> bool:
    """Whether Keras's attention computes only with keys and values of one size.

    On JAX it calls JAX's own attention, which does; no layer says so.
    """
    return bool(keras.backend.backend() == "jax")
