"""How random models are computed: in float64, and with weights that take no time to draw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tests.support.backend import BACKEND


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Lets Keras compute in float64, where a mistake can't hide behind rounding.

    Beside its settings there is a table by which Keras computes in float32 what is
    given in float64, on JAX and PyTorch.
    """
    from keras.src.backend.common import dtypes

    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    narrowed = dict(dtypes.BIT64_TO_BIT32_DTYPE)
    if BACKEND == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    try:
        yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE.update(narrowed)
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(floatx)
        if BACKEND == "jax":
            jax.config.update("jax_enable_x64", False)


@contextlib.contextmanager
def quick_initializers() -> Iterator[None]:
    """Lets JAX make new weights without compiling: `randomize` overwrites them all."""
    if BACKEND != "jax":
        yield
        return
    from keras.src.backend.jax import random

    def made(shape: Any, *args: Any, dtype: Any = None, **kwargs: Any) -> Any:
        return np.full(tuple(shape), 0.1, dtype or keras.config.floatx())

    names = ("uniform", "normal", "truncated_normal")
    kept = {name: getattr(random, name) for name in names}
    try:
        for name in names:
            setattr(random, name, made)
        yield
    finally:
        for name, function in kept.items():
            setattr(random, name, function)
