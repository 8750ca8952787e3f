"""Which networks of keras.applications grow, how fast, and how exactly.

Every network that the public API offers is built with random weights and random
statistics at the smallest of a few input sizes that it takes, and grown in every
hidden layer: in place, as a clone, and in one layer alone. Each has a process of its
own, so that its memory is freed; one that fails is a row of the table.

    KERAS_BACKEND=torch python benchmarks/applications.py
    python benchmarks/applications.py --models "ResNet*" VGG16 --output benchmarks/applications.md
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import gc
import inspect
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.machine import machine, machine_state, versions

BACKENDS = ("tensorflow", "jax", "torch")
SIZES = (32, 71, 75, 96, 128, 224)  # pixels; each network takes the first that it can
CLASSES = 5
COLUMNS = (
    "model",
    "pixels",
    "parameters",
    "widths",
    "fixed, and why",
    "plan (s)",
    "in place (s)",
    "difference",
    "one layer",
    "clone (s)",
    "of the clone",
    "whole multiples",
)


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["*"], help="names or patterns of networks")
    parser.add_argument("--factor", type=float, default=1.5, help="how much wider they become")
    parser.add_argument("--seed", type=int, default=0, help="the seed of weights and growths")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one network")
    parser.add_argument("--output", type=Path, help="a Markdown file to write the table to")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.factor, options.seed)))
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    known = networks()
    chosen = [n for n in known if any(fnmatch.fnmatchcase(n, p) for p in options.models)]
    if not chosen:
        parser.error(f"--models: keras.applications has {', '.join(known)}")
    before = machine_state()
    rows = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(chosen))
        for name in chosen:
            progress.update(task, description=name)
            rows.append(row(name, run(name, options)))
            progress.console.print(" | ".join(rows[-1]), soft_wrap=True, markup=False)
            progress.advance(task)
    text = table(rows, options, before)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one network in a new process; what goes wrong there is its result."""
    command = [
        *(sys.executable, __file__, f"--measure={name}"),
        *(f"--factor={options.factor}", f"--seed={options.seed}"),
    ]
    environment = {"KERAS_BACKEND": BACKENDS[0], "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=options.timeout
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {options.timeout:g} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with status {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# -- networks ------------------------------------------------------------------


def networks() -> list[str]:
    """The names of all networks that `keras.applications` offers."""
    import keras

    return sorted(
        name for name, made in vars(keras.applications).items() if inspect.isfunction(made)
    )


def random_network(name: str, seed: int = 0) -> tuple[Any, np.ndarray]:
    """A network with random weights and statistics, and images that it tells apart.

    Args:
        name: Its name in `keras.applications`.
        seed: The seed of the weights, the statistics and the images.

    Returns:
        The network, which ends in logits since a softmax would hide differences, and
        a batch of two images.
    """
    import keras

    keras.utils.set_random_seed(seed)
    keras.utils.clear_session(free_memory=False)  # some layers are named by numbers
    make = getattr(keras.applications, name)
    model = None
    for size in SIZES:
        try:
            model = make(
                weights=None,
                input_shape=(size, size, 3),
                classes=CLASSES,
                classifier_activation=None,
            )
            break
        except ValueError as error:
            if "at least" not in str(error) and "negative" not in str(error).lower():
                raise
            keras.utils.clear_session(free_memory=False)
    if model is None:
        raise RuntimeError(f"{name} takes no images of up to {SIZES[-1]} pixels.")
    random = np.random.default_rng(seed)
    images = random.standard_normal((16, size, size, 3)).astype("float32")
    rescaling = (keras.layers.Rescaling, keras.layers.Normalization)
    if any(isinstance(layer, rescaling) for layer in all_layers(model)):
        images *= 100.0  # it rescales pixels of up to 255
    # Those of EfficientNet stand less: they are the deepest, and their gates saturate.
    randomize(model, images, random, 1.5 if name.startswith("EfficientNet") else 2.0)
    return model, images[:2]


def all_layers(model: Any) -> Iterator[Any]:
    """All layers of a model, those inside others included."""
    return (layer for layer in model._flatten_layers() if layer is not model)


def randomize(model: Any, images: np.ndarray, random: np.random.Generator, most: float) -> None:
    """Gives a network random weights and statistics that keep the images in sight.

    Through a hundred layers, random numbers alone would drown them. So the statistics
    of each BatchNormalization become those of what it sees, moved at random. Its
    variance only up, by up to `most`: networks at the edge of chaos make much of rounding,
    grown or not, and networks far from it lose sight of the image.
    """
    import keras

    layers = list(all_layers(model))
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    others = (keras.layers.LayerNormalization, keras.layers.GroupNormalization)
    normalized = bool(norms) or any(isinstance(layer, others) for layer in layers)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if "int" in variable.dtype:
            continue  # counters and the states of random seeds
        if "variance" in variable.name:
            value = random.uniform(0.5, 2.0, shape)
        elif variable.name == "gamma":
            value = random.choice([-1, 1], shape) * random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            value = random.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))
            value *= 1.0 if normalized else math.sqrt(2.0)  # ReLU halves
        else:
            value = (0.05 if variable.name == "bias" else 0.5) * random.standard_normal(shape)
        variable.assign(value.astype("float32"))
    for layer in layers:
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()  # it keeps values made from its weights
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    run_network(model, images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, variance = (
            np.array(keras.ops.convert_to_numpy(v))
            for v in (norm.moving_mean, norm.moving_variance)
        )
        moved = mean + 0.1 * np.sqrt(variance) * random.standard_normal(mean.shape)
        norm.moving_mean.assign(moved.astype("float32"))
        more = variance * random.uniform(1.0, most, variance.shape)
        norm.moving_variance.assign(more.astype("float32"))


def run_network(model: Any, images: np.ndarray, training: bool = False) -> np.ndarray:
    """The logits. In training mode, statistics are updated."""
    import keras

    if keras.backend.backend() != "jax":
        if keras.backend.backend() == "torch":
            import torch

            with torch.no_grad():
                logits = model(images, training=training)
        else:
            logits = model(images, training=training)
        return np.array(keras.ops.convert_to_numpy(logits), "float64")
    import jax

    # Operation by operation, JAX would compile for longer.
    def call(trainable: list[Any], rest: list[Any]) -> Any:
        return model.stateless_call(trainable, rest, images, training=training)

    parts = (model.trainable_variables, model.non_trainable_variables)
    logits, rest = jax.jit(call)(*([variable.value for variable in part] for part in parts))
    if training:
        for variable, value in zip(model.non_trainable_variables, rest, strict=True):
            variable.assign(value)
    return np.array(logits, "float64")


def relative_difference(new: np.ndarray, old: np.ndarray) -> float:
    """The largest absolute difference, relative to the largest output."""
    return float(np.max(np.abs(new - old)) / np.max(np.abs(old)))


# -- measuring -----------------------------------------------------------------


def measure(name: str, factor: float, seed: int) -> dict[str, Any]:
    """Grows one network in all the ways; every growth starts from the same weights."""
    import keras_net2net as n2n

    model, images = random_network(name, seed)
    before = run_network(model, images)
    apart = relative_difference(before[:1], before[1:])
    if not apart > 0.01:
        raise RuntimeError(f"The logits of two images differ by {apart:.1e} only.")
    result: dict[str, Any] = {
        "pixels": images.shape[1],
        "parameters": model.count_params(),
        **widths_of_model(model),
    }
    everything = n2n.Wider(factor=factor)
    planned, result["plan"] = timed(lambda: n2n.plan(model, everything, seed=seed))
    result["grown parameters"] = planned.parameters_after

    def grown(operation: Any) -> float:
        twin = n2n.clone(model)
        n2n.grow(twin, operation, seed=seed, verify=False)
        return relative_difference(run_network(twin, images), before)

    layers = [path for width in planned.steps[0].widths for path in width.asked]
    result["single"] = layers[len(layers) // 2]
    result["one layer"] = grown(n2n.Wider(result["single"], factor=factor))

    # Widths that take whole multiples only grow by the next whole factor.
    whole = math.floor(factor) + 1
    more = n2n.plan(model, n2n.Wider(factor=whole), seed=seed)
    found = [len(plan.steps[0].widths) for plan in (planned, more)]
    if found[1] > found[0]:
        result["multiples"] = found[1] - found[0]
        result["whole factor"] = whole
        result["whole"] = grown(n2n.Wider(factor=whole))

    student, result["clone"] = timed(
        lambda: n2n.clone_and_grow(model, everything, seed=seed, verify=False)
    )
    result["clone difference"] = relative_difference(run_network(student, images), before)
    del student
    gc.collect()

    if not np.array_equal(run_network(model, images), before):
        raise RuntimeError("The network isn't what it was before its clones grew.")
    _, result["grow"] = timed(lambda: n2n.grow(model, everything, seed=seed, verify=False))
    result["difference"] = relative_difference(run_network(model, images), before)
    return result


def widths_of_model(model: Any) -> dict[str, Any]:
    """How many widths there are, and how many are fixed, by what fixes them."""
    from keras_net2net.planning.draft import Draft
    from keras_net2net.widths.expressions import widths_of

    found = {
        id(width): width
        for facts in Draft(model, 0).layers()
        for expression in facts.units.values()
        for width in widths_of(expression)
    }
    reasons = collections.Counter(w.obstacle.why for w in found.values() if w.obstacle)
    return {"widths": len(found), "fixed": dict(reasons.most_common())}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What something returns, and the seconds it takes; collecting garbage is kept out of it."""
    gc.collect()
    started = time.perf_counter()
    made = work()
    return made, time.perf_counter() - started


# -- the table -----------------------------------------------------------------


def row(name: str, result: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if "error" in result:
        error = f"failed: {result['error'][:200]}".replace("|", "\\|")
        return [name, error, *[""] * (len(COLUMNS) - 2)]
    fixed = "; ".join(f"{count}: {why}" for why, count in result["fixed"].items())
    millions = (result["parameters"] / 1e6, result["grown parameters"] / 1e6)
    multiples = (
        f"{result['multiples']}, at {result['whole factor']}x: {result['whole']:.1e}"
        if "multiples" in result
        else "none"
    )
    return [
        name,
        str(result["pixels"]),
        "{:.1f} -> {:.1f} M".format(*millions),
        str(result["widths"]),
        fixed or "none",
        f"{result['plan']:.2f}",
        f"{result['grow']:.2f}",
        f"{result['difference']:.1e}",
        f"{result['one layer']:.1e} ({result['single']})",
        f"{result['clone']:.2f}",
        f"{result['clone difference']:.1e}",
        multiples,
    ]


def table(rows: list[list[str]], options: argparse.Namespace, before: str) -> str:
    """The results as a Markdown table, with what is needed to repeat them."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(cells) for cells in rows]
    return "\n".join(
        [
            *(f"| {line} |" for line in lines),
            "",
            f"`Wider(factor={options.factor:g})` in every hidden layer of each network, in place "
            "and as a clone, and in one layer alone: largest absolute difference of the logits at "
            "inference, relative to the largest logit. The output is always fixed. Random weights "
            f"and statistics, {CLASSES} classes.",
            "",
            f"{versions()}; seed {options.seed}. {machine()}. {before}; {machine_state()}.",
        ]
    )


if __name__ == "__main__":
    main()
