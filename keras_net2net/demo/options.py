"""Train a small convolutional network on real data and grow it wider and deeper at two epochs
inside one fit; then train the same final architecture from scratch, for as many steps. Ends with a
table of both runs, a picture of their validation curves (growth.png) and the grown network
(model.keras).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

DATA = """\
what to learn from: 'digits' (1,797 images that come with scikit-learn), 'fashion_mnist' (70,000
images, loaded by keras.datasets), or an .npz file with x_train, y_train, x_test and y_test"""


def fail(problem: str) -> NoReturn:
    """Ends the process with one line on standard error, and exit code 2."""
    print(f"python -m keras_net2net: error: {' '.join(problem.split())}", file=sys.stderr)
    raise SystemExit(2)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (--help explains every option)")


def _number(kind: Callable, expected: str, accepts: Callable[[Any], bool]) -> Callable[[str], Any]:
    """An argparse type: a number of a kind and in a range, with a message that says which."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if accepts(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, received {text!r}")

    return parse


_COUNT = _number(int, "an integer of at least 1", lambda value: value >= 1)
_SEVERAL = _number(int, "an integer of at least 2", lambda value: value >= 2)
_SEED = _number(int, "an integer from 0 to 4294967295", lambda value: 0 <= value < 2**32)
_FACTOR = _number(float, "a number above 1 and up to 16", lambda value: 1 < value <= 16)
_RATE = _number(float, "a number above 0 and up to 1", lambda value: 0 < value <= 1)
# The type of each option, its default, and its explanation.
_OPTIONS: dict[str, tuple[Callable, object, str]] = {
    "--data": (str, "digits", DATA),
    "--output": (Path, Path("net2net_demo"), "where to write both files; made if it isn't there"),
    "--epochs": (_SEVERAL, 12, "the number of epochs of each of the two runs"),
    "--widen-at": (_COUNT, None, "grow wider after this many epochs (default: a third of them)"),
    "--deepen-at": (_COUNT, None, "grow deeper after so many epochs (default: two thirds of them)"),
    "--factor": (_FACTOR, 2.0, "how much wider every hidden layer becomes"),
    "--batch-size": (_COUNT, 32, "the number of images in a training step"),
    "--learning-rate": (_RATE, 2e-3, "the learning rate that both runs begin with, Adam's"),
    "--rate-at-growth": (_RATE, 0.5, "what each growth multiplies that learning rate by"),
    "--seed": (_SEED, 0, "the source of everything random: weights, shuffling, growth"),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line.

    Args:
        arguments: Strings, the arguments after the program's name. Defaults to the process's.

    Returns:
        The options, checked. A bad one ends the process with one line and exit code 2.
    """
    parser = _Parser(prog="python -m keras_net2net", description=__doc__)
    for flag, (kind, default, explanation) in _OPTIONS.items():
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(flag, type=kind, default=default, help=explanation + shown)
    given = parser.parse_args(arguments)
    given.widen_at = given.widen_at or max(1, round(given.epochs / 3))
    given.deepen_at = given.deepen_at or max(1, round(given.epochs * 2 / 3))
    if max(given.widen_at, given.deepen_at) >= given.epochs:
        most = f"integers of at most {given.epochs - 1} with --epochs {given.epochs}"
        parser.error(f"argument --widen-at, --deepen-at: expected {most}")
    return given
