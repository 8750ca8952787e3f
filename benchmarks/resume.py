"""Kills a training process at random moments, and compares what it comes to in the end.

    KERAS_BACKEND=jax python benchmarks/resume.py --kills 50 --callback revert

A script that grows its model with a log, beside `BackupAndRestore`, runs to its end once.
Then it is started, killed with SIGKILL after a random time and started again, until it
ends; and so on, until it has been killed often enough. Each end must be that of the run
that nobody killed: the same weights, optimizer state, losses of all epochs, and growths at
their epochs, bit for bit.

The script runs in forked children of a process that has imported everything, and has not
computed anything: a fork of a backend that has threads may hang.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback

import h5py
import keras
import numpy as np
from keras import layers

import keras_net2net as n2n

EPOCHS = {"schedule": 8, "plateau": 12, "revert": 12, "shared": 10}
SCHEDULE = {
    2: n2n.Wider("fc", 9),
    4: [n2n.Wider("fc", 10, new_units="fresh"), n2n.Deeper("fc")],
    6: n2n.Wider("fc*", factor=1.5),
}
PLATEAU = [
    n2n.Wider("fc", factor=1.3),
    [n2n.Wider("fc", factor=1.2, new_units="fresh"), n2n.Deeper("fc")],
]


def growing(kind: str, folder: pathlib.Path) -> list[keras.callbacks.Callback]:
    """The callbacks that grow the model: each kind keeps other things in the log."""
    common = {"seed": 0, "log": folder / "growth.json", "verbose": 0}
    watching = {"monitor": "metric", "mode": "min", "patience": 2, "cycle": True} | common
    schedule = functools.partial(n2n.GrowthScheduler, **common)
    plateau = functools.partial(n2n.GrowOnPlateau, PLATEAU, **watching)
    return {
        "schedule": lambda: [schedule(SCHEDULE)],
        "plateau": lambda: [plateau(cooldown=1, optimizer_state="carry")],
        "revert": lambda: [plateau(revert=True)],
        "shared": lambda: [schedule({3: n2n.Wider("fc", 12)}), plateau(revert=True)],
    }[kind]()


class Losses(keras.callbacks.Callback):
    """Writes a line for each epoch; more than one for an epoch that was begun again.

    It adds a metric that improves in the fourth epoch alone: the losses differ by backend.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        """Adds the line."""
        with open(self.path, "a") as file:
            logs["metric"] = 5.0 if epoch < 3 else 4.0
            file.write(f"{epoch} {self.model.count_params()} {logs['loss']!r}\n")


def script(folder: pathlib.Path, order: int, kind: str) -> None:
    """What a user would write: nothing in it knows whether it is started again."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="fc")(x)
    x = layers.BatchNormalization(name="bn")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    numbers = np.random.default_rng(0)
    x, y = (numbers.standard_normal((64, n)).astype("float32") for n in (4, 2))
    callbacks = [Losses(folder / "losses"), *growing(kind, folder)]
    callbacks.insert(1 if order < 0 else len(callbacks), backup)
    model.fit(
        x, y, epochs=EPOCHS[kind], batch_size=16, shuffle=False, verbose=0, callbacks=callbacks
    )  # fmt: skip
    weights = {f"{i}": np.asarray(value) for i, value in enumerate(model.get_weights())}
    for i, variable in enumerate(model.optimizer.variables):
        weights[f"optimizer {i}"] = keras.ops.convert_to_numpy(variable)
    with open(folder / "end.part", "wb") as file:
        np.savez(file, **weights)
    modules = [name for name in sys.modules if name.isidentifier() or "." in name]
    (folder.parent / "modules").write_text("\n".join(modules))
    os.replace(folder / "end.part", folder / "end.npz")


def start(folder: pathlib.Path, order: int, kind: str) -> int:
    """Starts the script in a process of its own."""
    process = os.fork()
    if process:
        return process
    try:
        script(folder, order, kind)
    except BaseException:
        (folder / "error").write_text(traceback.format_exc())
    finally:
        os._exit(0)


def ended(process: int, seconds: float) -> bool:
    """Waits; whether a process has ended by then."""
    until = time.monotonic() + seconds
    while not (done := os.waitpid(process, os.WNOHANG)[0]) and time.monotonic() < until:
        time.sleep(0.002)
    return bool(done)


def run(folder: pathlib.Path, order: int, kind: str, kills: list[float]) -> int:
    """Runs the script until it ends; each time it may be killed, after a time from the list."""
    folder.mkdir()
    killed = 0
    while not (folder / "end.npz").exists():
        process = start(folder, order, kind)
        if not ended(process, kills.pop() if kills else 120):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            killed += 1
        if (folder / "error").exists():
            raise SystemExit(f"{folder}:\n{(folder / 'error').read_text()}")
    return killed


def result(folder: pathlib.Path) -> dict:
    """What a run has come to."""
    lines = [line.split() for line in (folder / "losses").read_text().splitlines()]
    log = json.loads((folder / "growth.json").read_text())
    with np.load(folder / "end.npz") as end:
        weights = {name: (end[name].shape, end[name].tobytes()) for name in end.files}
    return {
        "weights": weights,
        "growths": log["growths"],
        "moments": log["moments"],
        # An epoch that was begun again must come to the same.
        "epochs": {epoch: (parameters, loss) for epoch, parameters, loss in lines},
        "all": {tuple(line) for line in lines},
        "lines": len(lines),
        "left": sorted(path.name for path in folder.iterdir()),
    }


def kill(folder: pathlib.Path, order: int, kind: str, kills: int, numbers: random.Random) -> str:
    """Runs scripts of one kind until they have been killed often enough.

    Args:
        folder: Where they write.
        order: `1` if the backup stands behind the growing callbacks at first, `-1` if not.
        kind: See `growing`.
        kills: How often they are killed.
        numbers: What the moments are drawn from.

    Returns:
        A line that says what was seen.
    """
    begun = time.monotonic()
    folder.mkdir()
    run(folder / "whole", order, kind, [])
    lasts = time.monotonic() - begun
    wanted = result(folder / "whole")
    assert wanted["growths"]
    assert len(wanted["epochs"]) == len(wanted["all"])
    killed = runs = repeated = 0
    while killed < kills:
        runs += 1
        times = [numbers.uniform(0, lasts) for _ in range(kills - killed)]
        killed += run(folder / f"{runs}", order * (-1) ** runs, kind, times)
        found = result(folder / f"{runs}")
        repeated += found["lines"] - wanted["lines"]
        different = [key for key in wanted if key != "lines" and found[key] != wanted[key]]
        if different:
            raise SystemExit(f"{folder / str(runs)}: other {', '.join(different)}")
    events = [f"-{one['epoch']}" if "undone" in one else one["epoch"] for one in wanted["growths"]]
    return (
        f"{keras.backend.backend()}, {kind}: {killed} kills in {runs} runs, {repeated} epochs "
        f"trained twice; growths before epochs {', '.join(map(str, events))}; a run lasts "
        f"{lasts:.1f} s; all ended alike ({time.monotonic() - begun:.0f} s)"
    )


def main() -> None:
    """Runs it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--callback", choices=EPOCHS, action="append", help="default: all")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp())
    if keras.backend.backend() == "jax":  # it compiles for longer than all the rest takes
        jax = importlib.import_module("jax")
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    kinds = options.callback or list(EPOCHS)
    for kind in kinds:
        run(folder / f"first {kind}", 1, kind, [])
    for name in (folder / "modules").read_text().splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)  # so that no other child has to
    for i, kind in enumerate(kinds):
        numbers = random.Random(options.seed)
        print(kill(folder / kind, (-1) ** i, kind, options.kills, numbers), flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    assert h5py.version  # imported before the forks, as Keras does when it saves
    if not hasattr(os, "fork"):
        sys.exit("this system can't fork")
    main()
