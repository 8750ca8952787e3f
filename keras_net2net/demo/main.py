"""`python -m keras_net2net`: what it does, in order."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import keras

from keras_net2net.demo import data, options, training


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains the grown network and the one from scratch, and shows both.

    Args:
        arguments: Strings, the command line after the program's name. Defaults to the process's.

    Returns:
        Integer, the process's exit code: 0, or 2 after one line on standard error that says which
        option or file is at fault.
    """
    chosen = options.parse(arguments)
    picture, saved = chosen.output / "growth.png", chosen.output / "model.keras"
    # Whatever could be at fault is looked at before the minutes of training.
    for name in ("matplotlib", "rich", "sklearn"):
        if importlib.util.find_spec(name) is None:
            options.fail(f'this needs {name}, which is not installed: pip install -e ".[demo]"')
    try:
        images = data.load(chosen.data, chosen.seed)
    except Exception as error:  # each way of loading has its own for every kind of damage
        options.fail(f"--data {chosen.data}: {error}")
    try:
        chosen.output.mkdir(parents=True, exist_ok=True)
        picture.touch()
    except OSError as error:
        options.fail(f"--output {chosen.output}: {error}")
    from keras_net2net.demo import plot, table  # with what is installed, as has been seen

    print(f"{images}\nKeras {keras.__version__} on {keras.backend.backend()}, seed {chosen.seed}")
    print("\n--- Grown: one fit, wider and deeper on the way ---")
    grown = training.run_grown(chosen, images)
    print("\n--- From scratch: the final architecture, for as many steps ---")
    scratch = training.run_from_scratch(chosen, images, grown.model)
    table.show(grown, scratch)
    plot.draw(grown, scratch, images.name).savefig(picture, dpi=150)
    grown.model.save(saved)
    print(f"\nThe validation curves are in {picture}\nThe grown network is in {saved}")
    return 0
