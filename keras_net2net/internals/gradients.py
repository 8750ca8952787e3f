"""Gradients on the three backends: the only place that knows how each takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np


def gradients(function: Callable[[list[Any]], Any], at: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The gradients of a number with respect to arrays.

    Args:
        function: From a list of tensors to a scalar tensor, made of Keras's operations.
            What it assigns to variables is dropped.
        at: The arrays.

    Returns:
        The gradient for each array, zeros where the function doesn't depend on it.
    """
    backend = keras.backend.backend()

    def stateless(tensors: list[Any]) -> Any:
        with keras.StatelessScope():
            return function(tensors)

    if backend == "jax":
        import jax

        found = jax.grad(stateless)([keras.ops.convert_to_tensor(x) for x in at])
    elif backend == "torch":
        import torch

        tensors = [keras.ops.convert_to_tensor(x).detach().requires_grad_() for x in at]
        with torch.enable_grad():
            found = torch.autograd.grad(stateless(tensors), tensors, allow_unused=True)
    else:
        import tensorflow as tf

        tensors = [tf.constant(x) for x in at]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            value = stateless(tensors)
        found = tape.gradient(value, tensors)
    return [
        np.zeros_like(x) if one is None else np.array(keras.ops.convert_to_numpy(one))
        for one, x in zip(found, at, strict=True)
    ]
