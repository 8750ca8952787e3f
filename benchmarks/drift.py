"""A hundred growths in one process: do memory or the time of a growth drift?

    KERAS_BACKEND=torch python benchmarks/drift.py

Three processes train a model of the same size: one is built at that size; one is built and
trained at a smaller size, and then built anew; one grows from the smaller size, unit by
unit. The memory that each holds in the end is that of its process, less that which it held
with a small model. Allocators that keep what is freed are told not to, so that what is held
is seen, and not what was held at some time (`--pools` leaves them alone). For the time, one
teacher gets a hundred students of the same size, and the last twenty are compared with the
first twenty.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time

GROWTHS = 100


def model(units: int):
    """A compiled model."""
    import keras
    from keras import layers

    made = keras.Sequential(
        [
            keras.Input((512,)),
            layers.Dense(units, activation="relu", name="first"),
            layers.Dense(units, activation="relu", name="second"),
            layers.BatchNormalization(),
            layers.Dense(8),
        ]
    )
    made.compile(keras.optimizers.Adam(), "mse", jit_compile=False)
    return made


def train(made) -> None:
    """One epoch of two batches."""
    import numpy as np

    made.fit(np.ones((64, 512)), np.ones((64, 8)), batch_size=32, verbose=0)


def memory() -> int:
    """The memory of this process that it doesn't share, in bytes."""
    import psutil

    for _ in range(3):
        gc.collect()
    if sys.platform == "linux":  # what has been freed isn't held
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_full_info().uss


def held(kind: str, units: int) -> dict:
    """What a model holds at the end."""
    import keras_net2net as n2n

    small = model(8)
    train(small)
    n2n.grow(small, n2n.Wider(["first", "second"], 9), seed=0)
    train(small)
    before = memory()
    made = model(units if kind == "native" else units - GROWTHS)
    train(made)
    if kind == "rebuilt":
        made = model(units)
        train(made)
    seconds = []
    for i in range(GROWTHS if kind == "grown" else 0):
        started = time.perf_counter()
        sizes = units - GROWTHS + i + 1
        n2n.grow(made, n2n.Wider(["first", "second"], sizes), seed=i, verify=False)
        seconds.append(time.perf_counter() - started)
    train(made)
    bytes_of_state = 4 * sum(
        math.prod(v.shape) for v in (*made.variables, *made.optimizer.variables)
    )
    return {"memory": memory() - before, "state": bytes_of_state, "seconds": seconds}


def students() -> list[float]:
    """The seconds of a hundred growths of the same size."""
    import keras_net2net as n2n

    teacher = model(256)
    seconds = []
    for i in range(GROWTHS + 1):
        started = time.perf_counter()
        n2n.clone_and_grow(teacher, n2n.Wider(["first", "second"], 300), seed=i, verify=False)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def drift(seconds: list[float]) -> float:
    """The median of the last ones over that of the first ones."""
    return statistics.median(seconds[-20:]) / statistics.median(seconds[:20])


def main() -> None:
    """Runs it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=2100)
    parser.add_argument("--part", choices=["native", "rebuilt", "grown", "students"])
    parser.add_argument("--pools", action="store_true", help="leave allocators as they are")
    options = parser.parse_args()
    if options.part:
        part = options.part
        found = students() if part == "students" else held(part, options.units)
        print("\n" + json.dumps(found))
        return
    results = {}
    # glibc then gives back what is freed, and TensorFlow does without oneDNN and its pool.
    frugal = (
        {} if options.pools else {"MALLOC_MMAP_THRESHOLD_": "65536", "TF_ENABLE_ONEDNN_OPTS": "0"}
    )
    for part in ("native", "rebuilt", "grown", "students"):
        command = [sys.executable, __file__, "--part", part, "--units", str(options.units)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **frugal}
        )
        results[part] = json.loads(done.stdout.splitlines()[-1])
    native, rebuilt, grown = (results[part] for part in ("native", "rebuilt", "grown"))
    assert native["state"] == rebuilt["state"] == grown["state"]
    print(
        f"{os.environ.get('KERAS_BACKEND', '')}: weights and optimizer "
        f"{native['state'] / 1e6:.0f} MB; the process holds {native['memory'] / 1e6:.0f} MB "
        f"natively, {rebuilt['memory'] / 1e6:.0f} MB after one of another size, and "
        f"{grown['memory'] / 1e6:.0f} MB after {GROWTHS} growths; time of a growth, last 20 over "
        f"first 20: {drift(grown['seconds']):.2f} growing, {drift(results['students']):.2f} "
        "at equal sizes"
    )


if __name__ == "__main__":
    main()
