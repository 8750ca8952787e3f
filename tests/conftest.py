"""What all tests need before they start."""

from __future__ import annotations

import gc
import importlib
import os
from pathlib import Path

import pytest

# One computing thread for each worker, here and in the processes that tests start. It has to be
# said before a backend is imported; those who know better set the variables themselves.
for name, value in {
    "CUDA_VISIBLE_DEVICES": "",  # the CPU, also where there is more
    # What one process has compiled, the others needn't, nor those of the next run.
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "MPLBACKEND": "Agg",  # draw without a screen
    "OMP_NUM_THREADS": "1",  # PyTorch's threads wait by spinning: small layers only lose
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's notes on start-up would hide the tests' own words
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    # Not without the emitters of fusions, though JAX would compile sooner: a block that is
    # repeated as the identity in a ConvNeXt is then exact to rounding only.
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}.items():
    os.environ.setdefault(name, value)


def pytest_collection(session: pytest.Session) -> None:
    """Settles the backend, but not where tests are only handed out: workers needn't wait for it."""
    if not session.config.pluginmanager.has_plugin("dsession"):
        importlib.import_module("tests.support.backend")


def pytest_collection_finish() -> None:
    """What was imported and collected is never garbage, and takes long to look through."""
    gc.collect()
    gc.freeze()
