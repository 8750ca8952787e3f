"""How the backend runs in tests: with little compiling, since they run each program once."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

BACKEND = keras.backend.backend()


def draw_with_numpy(self: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """An initializer's values: uniform, with variances near those of Keras's own."""
    seed = self.seed if isinstance(self.seed, int) else None
    limit = np.sqrt(3 / max(1, np.prod(shape[:-1])))
    values = np.random.default_rng(seed).uniform(-limit, limit, shape)
    return keras.ops.convert_to_tensor(values.astype("float32"), dtype=dtype)


if BACKEND == "jax":
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    # Keras's own compile for seconds at each new shape, and the tests have hundreds.
    for initializer in (keras.initializers.VarianceScaling, keras.initializers.RandomUniform):
        initializer.__call__ = draw_with_numpy
