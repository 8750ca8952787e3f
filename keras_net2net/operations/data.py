"""The data that operations look at: a batch of inputs, with targets or without."""

from __future__ import annotations

from typing import Any


def inputs_of(data: Any) -> Any:
    """The inputs of `x` or `(x, y)`, as a model takes them."""
    return data[0] if isinstance(data, tuple) else data


def targets_of(data: Any) -> Any | None:
    """The targets of `(x, y)`, or `None`."""
    return data[1] if isinstance(data, tuple) and len(data) > 1 else None
