"""The data that operations look at: a batch of inputs, with targets or without."""

from __future__ import annotations

from typing import Any


def inputs_of(calibration: Any) -> Any:
    """The inputs of `x` or `(x, y)`, as a model takes them."""
    return calibration[0] if isinstance(calibration, tuple) else calibration


def targets_of(calibration: Any) -> Any | None:
    """The targets of `(x, y)`, or `None`."""
    with_targets = isinstance(calibration, tuple) and len(calibration) > 1
    return calibration[1] if with_targets else None
