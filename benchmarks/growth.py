"""How long a growth takes, against the by-hand way; how fast and how big the grown model is.

And how the time of a growth depends on the depth of the network.

The by-hand way is the least that someone does who builds a new model instead of
growing one: `keras.models.clone_model(model)`, then
`clone.set_weights(model.get_weights())`, at the *old* size. It is measured in the
same run, in turn with the growths; each number is the median of the ratios.

    KERAS_BACKEND=jax python benchmarks/growth.py
    python benchmarks/growth.py --all-backends --only sizes --output benchmarks/growth.md
    python benchmarks/growth.py --all-backends --only depth --output benchmarks/depth.md
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.machine import machine, versions

BACKENDS = ("tensorflow", "jax", "torch")
HOWS = ("grown", "native", "rebuilt")
SEED = 0
# One layer in the middle of ResNet50, and all of it, as in the targets below.
ONE_LAYER = ("conv3_block2_2_conv", 192)
FACTOR = 1.5
DEPTHS = (10, 30, 100, 300, 1000)  # layers of the residual networks
TARGETS = {"one layer": 0.15, "all layers": 0.6, "training step": 1.02, "live arrays": 1.05}
DEPTH_TARGETS = {"inference (s)": 0.1, "slope": 1.1}


class Table(NamedTuple):
    """A table: the parts that it is measured by, and what makes its lines of them."""

    parts: tuple[str, ...]
    lines: Callable[[list[dict[str, Any]], argparse.Namespace], list[str]]


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all-backends", action="store_true", help="run each backend in turn")
    parser.add_argument("--repeats", type=int, default=7, help="growths to take the median of")
    parser.add_argument("--steps", type=int, default=40, help="training steps to take it of")
    parser.add_argument("--growths", type=int, default=50, help="growths of the memory test")
    parser.add_argument("--only", choices=TABLES, help="one of the two tables alone")
    parser.add_argument("--output", type=Path, help="a Markdown file to write the table to")
    parser.add_argument("--part", choices=[*PARTS, "memory-of"], help=argparse.SUPPRESS)
    parser.add_argument("--how", choices=HOWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "memory-of":
        print(json.dumps(memory_of(options.how, options.growths)))
    elif options.part:
        print(json.dumps(PARTS[options.part](options)))
    else:
        chosen = (
            BACKENDS if options.all_backends else (os.environ.get("KERAS_BACKEND", BACKENDS[0]),)
        )
        tables = [options.only] if options.only else list(TABLES)
        parts = ["versions", *(part for name in tables for part in TABLES[name].parts)]
        rows = [measure(backend, parts, options) for backend in chosen]
        lines = [line for name in tables for line in TABLES[name].lines(rows, options)]
        of_all = "; ".join(row["versions"] for row in rows)
        text = "\n".join([*lines, f"Machine: {machine()}; {of_all}; seed {SEED}."])
        print(text)
        if options.output:
            options.output.write_text(text + "\n")


def measure(backend: str, parts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measures one backend, each part in a process of its own."""
    row: dict[str, Any] = {"backend": backend}
    for part in parts:
        print(f"{backend}: {part} ...", file=sys.stderr, flush=True)
        row.update(run_part(backend, part, options))
    return row


def run_part(backend: str, part: str, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Runs one part of this script in a new process, and returns what it printed."""
    arguments = [
        f"--part={part}",
        f"--repeats={options.repeats}",
        f"--steps={options.steps}",
        f"--growths={options.growths}",
        *more,
    ]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def growth_times(options: argparse.Namespace) -> dict[str, Any]:
    """Growth of ResNet50 in place, relative to cloning it by hand."""
    import keras

    import keras_net2net as n2n

    keras.utils.set_random_seed(SEED)
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)
    one = n2n.Wider(*ONE_LAYER)
    everything = n2n.Wider(factor=FACTOR)

    def by_hand() -> None:
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())

    def growing(operation: Any, verify: bool) -> float:
        teacher = n2n.clone(model)
        return seconds(lambda: n2n.grow(teacher, operation, seed=SEED, verify=verify))

    ratios: dict[str, list[float]] = {}
    hand = []
    for repeat in range(options.repeats + 1):
        base = seconds(by_hand)
        times = {
            "one": growing(one, False),
            "one_verified": growing(one, True),
            "all": growing(everything, False),
            "all_verified": growing(everything, True),
        }
        if repeat == 0:
            continue  # compiles, and fills caches
        hand.append(base)
        for name, value in times.items():
            ratios.setdefault(name, []).append(value / base)
    return {
        "by_hand": statistics.median(hand),
        **{name: statistics.median(values) for name, values in ratios.items()},
    }


def training_step(options: argparse.Namespace) -> dict[str, Any]:
    """A training step of a grown model, relative to one of a native model of its size."""
    import keras
    import numpy as np

    import keras_net2net as n2n

    keras.utils.set_random_seed(SEED)

    def build() -> Any:
        inputs = keras.Input((32, 32, 3))
        x = inputs
        for i, filters in enumerate((32, 32, 64, 64)):
            x = keras.layers.Conv2D(filters, 3, strides=1 + i % 2, name=f"conv{i}")(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))

    grown = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((64, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, 64)
    grown.compile("adam", loss)
    grown.train_on_batch(x, y)
    n2n.grow(grown, [n2n.Wider(factor=FACTOR), n2n.Deeper("conv3")], seed=SEED)
    native = type(grown).from_config(grown.get_config())
    native.compile("adam", loss)
    models = (grown, native)
    for model in models:
        for _ in range(3):
            model.train_on_batch(x, y)
    # Neighbouring steps see the same noise, so each pair gives a ratio.
    ratios = []
    for step in range(options.steps):
        order = models if step % 2 else models[::-1]
        taken = {id(model): seconds(lambda m=model: m.train_on_batch(x, y)) for model in order}
        ratios.append(taken[id(grown)] / taken[id(native)])
    return {"step": statistics.median(ratios)}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """What is held after many growths, with a training step after each.

    It is compared with a native model of the final size, by the bytes of the arrays
    that are alive and by what the process holds; and with native models of all the
    sizes, built, trained and dropped one after the other, since the backends keep
    what they compiled for a size whether a model was grown or rebuilt.
    """
    backend = os.environ["KERAS_BACKEND"]
    held = {how: run_part(backend, "memory-of", options, f"--how={how}") for how in HOWS}
    return {
        "live": held["grown"]["live"] / held["native"]["live"],
        "process": held["grown"]["process"] / held["native"]["process"],
        "rebuilt": held["grown"]["process"] / held["rebuilt"]["process"],
        "megabytes": held["native"]["live"] / 2**20,
    }


def memory_of(how: str, growths: int) -> dict[str, Any]:
    """What a process holds for a model that was grown, built at once, or rebuilt."""
    import keras
    import numpy as np

    import keras_net2net as n2n

    start, most = 512, 3072
    sizes = [start + (most - start) * (i + 1) // growths for i in range(growths)]
    x, y = np.ones((8, 256), "float32"), np.ones((8, 1), "float32")

    def build(units: int) -> Any:
        layers = [keras.layers.Dense(units, activation="relu", name=f"fc{i}") for i in range(3)]
        model = keras.Sequential([keras.Input((256,)), *layers, keras.layers.Dense(1, name="out")])
        model.compile("sgd", "mse")
        model.train_on_batch(x, y)
        return model

    build(8)  # what the backend holds for itself isn't the model's
    before, live_before = resident(), live_bytes()
    model = build(most if how == "native" else start)
    for size in () if how == "native" else sizes:
        if how == "grown":
            n2n.grow(model, n2n.Wider(["fc0", "fc1", "fc2"], size), seed=SEED)
            model.train_on_batch(x, y)
        else:
            model = None
            model = build(size)
    if model.count_params() != build(most).count_params():
        raise RuntimeError("The models to compare aren't of the same size.")
    return {"process": resident() - before, "live": live_bytes() - live_before}


def live_bytes() -> int:
    """The bytes of all arrays that are alive, by the backend's own accounts."""
    import keras

    gc.collect()
    if keras.backend.backend() == "jax":
        import jax

        return sum(array.nbytes for array in jax.live_arrays())
    if keras.backend.backend() == "torch":
        import torch

        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())
    import tensorflow as tf

    variables = [thing for thing in gc.get_objects() if isinstance(thing, tf.Variable)]
    return sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)


def resident() -> int:
    """The bytes that the process holds, once the allocator gave back what is free."""
    import psutil

    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def depth(options: argparse.Namespace) -> dict[str, Any]:
    """How long inference and growth take in residual networks of ever more layers."""
    import keras

    import keras_net2net as n2n
    from keras_net2net.widths.inference import infer
    from keras_net2net.widths.reading import read

    keras.utils.set_random_seed(SEED)

    def build(layers: int) -> Any:
        """Each block has a width of its own, and all share that of the residual stream."""
        x = inputs = keras.Input((16,))
        x = keras.layers.Dense(16, name="stem")(x)
        for block in range((layers - 2) // 4):
            y = keras.layers.Dense(16, activation="relu", name=f"wide{block}")(x)
            y = keras.layers.Dense(16, name=f"back{block}")(y)
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
        return keras.Model(inputs, keras.layers.Dense(4, name="out")(x))

    growths = {
        "one width": n2n.Wider("wide0", factor=FACTOR),
        "all widths": n2n.Wider(factor=FACTOR),
        "insertions": n2n.Deeper("wide*"),
    }
    times: dict[str, list[float]] = {"inference": [], **{name: [] for name in growths}}
    for layers in DEPTHS:
        model = build(layers)
        graph = read(model)
        # The first of each compiles, and fills caches.
        taken = [seconds(lambda g=graph: infer(g, {}, {})) for _ in range(options.repeats + 1)]
        times["inference"].append(statistics.median(taken[1:]))
        for name, operation in growths.items():
            twins = [n2n.clone(model) for _ in range(options.repeats + 1)]
            taken = [
                seconds(lambda t=twin, o=operation: n2n.grow(t, o, seed=SEED, verify=False))
                for twin in twins
            ]
            times[name].append(statistics.median(taken[1:]))
    return {"depth": times}


def slope(values: list[float]) -> float:
    """How fast times grow with the layers: the power, by least squares."""
    return statistics.linear_regression(*(list(map(math.log, v)) for v in (DEPTHS, values))).slope


def seconds(work: Callable[[], Any]) -> float:
    """How long something takes; collecting garbage is kept out of it."""
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def size_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """Growth of ResNet50 as a Markdown table."""
    lines = [
        "| backend | by hand (s) | one layer | with `verify` | all layers, 1.5x | with `verify` "
        "| training step | live arrays | process | process, rebuilt |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['backend']} | {row['by_hand']:.2f} | {row['one']:.3f}x "
        f"| {row['one_verified']:.2f}x | {row['all']:.2f}x | {row['all_verified']:.2f}x "
        f"| {row['step']:.3f}x | {row['live']:.3f}x of {row['megabytes']:.0f} MB "
        f"| {row['process']:.2f}x | {row['rebuilt']:.2f}x |"
        for row in rows
    ]
    goals = ", ".join(f"{name} <= {limit:g}x" for name, limit in TARGETS.items())
    lines += [
        "",
        f"Medians of {options.repeats} growths of ResNet50 (64 x 64 inputs) relative to "
        "`clone_model` and `set_weights` at the old size in the same run; "
        f"of {options.steps} training steps relative to a native model of the grown size; the "
        f"arrays alive and the memory that the process holds after {options.growths} growths, with "
        "a training step after each, relative to a native model of the final size, and (last "
        "column) to native models of all the sizes, built and trained one after the other. "
        f"Goals: {goals}.",
        "",
    ]
    return lines


def depth_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """How growth depends on depth, as a Markdown table."""
    depth_goals = ", ".join(f"{name} <= {limit:g}" for name, limit in DEPTH_TARGETS.items())
    lines = [
        "| backend | what | " + " | ".join(f"{n} layers (s)" for n in DEPTHS) + " | slope |",
        "|---|---|" + "---|" * (len(DEPTHS) + 1),
    ]
    lines += [
        f"| {row['backend']} | {name} | "
        + " | ".join(f"{value:.4f}" for value in values)
        + f" | {slope(values):.2f} |"
        for row in rows
        for name, values in row["depth"].items()
    ]
    lines += [
        "",
        f"Medians of {options.repeats}. Inference, and growth in place by 1.5x of one width and of "
        "all widths, and by a layer in every block, of residual networks of ever more Dense "
        f"layers; the slope is that of the logarithms. Goals: {depth_goals}, the first at "
        f"{DEPTHS[-1]} layers.",
        "",
    ]
    return lines


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "growth": growth_times,
    "step": training_step,
    "memory": memory,
    "depth": depth,
    "versions": lambda options: {"versions": versions()},
}

TABLES = {
    "sizes": Table(("growth", "step", "memory"), size_table),
    "depth": Table(("depth",), depth_table),
}

if __name__ == "__main__":
    main()
