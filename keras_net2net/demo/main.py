"""`python -m keras_net2net`: what it does, in order."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_net2net.demo import data, options, plot, table, training
from keras_net2net.demo.errors import DemoError, require


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains the grown network and the one from scratch, and shows both.

    Args:
        arguments: Strings, the command line after the program's name. Defaults to the process's.

    Returns:
        Integer, the process's exit code: 0, or 2 after one line on standard error that says which
        option or file is at fault.
    """
    chosen = options.parse(arguments)
    try:
        # Whatever could be at fault is looked at before the minutes of training.
        require("matplotlib", "rich")
        images = data.load(chosen.data, chosen.seed)
        output = _directory(chosen.output)
    except DemoError as error:
        print(f"python -m keras_net2net: error: {error}", file=sys.stderr)
        return 2
    from rich.console import Console

    backend = f"Keras {keras.__version__} on {keras.backend.backend()}"
    print(f"{images}\n{backend}, seed {chosen.seed}")
    print("\n--- Grown: one fit, wider and deeper on the way ---")
    grown = training.run_grown(chosen, images)
    print("\n--- From scratch: the final architecture, for as many steps ---")
    scratch = training.run_from_scratch(chosen, images, grown.model)

    console = Console()
    console.print()
    console.print(table.build(grown, scratch))
    for growth in grown.growths:
        epochs = "1 epoch" if growth.epoch == 1 else f"{growth.epoch} epochs"
        print(
            f"{growth.kind} after {epochs}: validation loss "
            f"{growth.loss_before:.6f} right before, {growth.loss_after:.6f} right after"
        )
    picture, model = output / "growth.png", output / "model.keras"
    plot.save(picture, grown, scratch, title=f"Grown against from scratch on {images.name}")
    grown.model.save(model)
    print(f"\nThe validation curves are in {picture}\nThe grown network is in {model}")
    return 0


def _directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--output {path}: can't make this directory ({error.strerror})") from error
    if not os.access(path, os.W_OK):
        raise DemoError(f"--output {path}: can't write to this directory")
    return path
