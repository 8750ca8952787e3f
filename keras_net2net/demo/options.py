"""The command line of `python -m keras_net2net`."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from keras_net2net.demo import data

DESCRIPTION = """\
Train a small convolutional network on real data and grow it wider and deeper at two epochs inside
one fit; then train the same final architecture from scratch, for as many steps. Ends with a table
of both runs, a picture of their validation curves (growth.png) and the grown network (model.keras).
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for, checked.

    Args:
        data: String, what to learn from: `"digits"`, `"fashion_mnist"` or an `.npz` file's path.
        output: Path of the directory that the picture and the model are written to.
        epochs: Integer, the number of epochs of each run.
        widen_at: Integer, after how many epochs the network grows wider.
        deepen_at: Integer, after how many epochs the network grows deeper.
        factor: Float, how much wider every hidden layer becomes.
        batch_size: Integer, the number of images in a step.
        learning_rate: Float, the learning rate that both runs begin with.
        rate_at_growth: Float, what each growth multiplies the learning rate by.
        seed: Integer, the source of everything random.
    """

    data: str
    output: Path
    epochs: int
    widen_at: int
    deepen_at: int
    factor: float
    batch_size: int
    learning_rate: float
    rate_at_growth: float
    seed: int


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help explains every option)\n")


def _number(
    kind: Callable[[str], float], expected: str, accepts: Callable[[float], bool]
) -> Callable[[str], float]:
    """An argparse type: a number of a kind and in a range, with a message that says which."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
            accepted = math.isfinite(value) and accepts(value)
        except (ValueError, OverflowError):
            accepted = False
        if not accepted:
            raise argparse.ArgumentTypeError(f"expected {expected}, received {text!r}")
        return value

    return parse


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line.

    Args:
        arguments: Strings, the arguments after the program's name. Defaults to the process's.

    Returns:
        `Options`. A bad argument ends the process with one line and exit code 2.
    """
    parser = _Parser(prog="python -m keras_net2net", description=DESCRIPTION)
    epoch = _number(int, "an integer of at least 1", lambda value: value >= 1)
    parser.add_argument(
        "--data",
        default="digits",
        metavar="NAME|FILE.npz",
        help="what to learn from: 'digits' (1,797 images that come with scikit-learn), "
        "'fashion_mnist' (70,000 images, loaded by keras.datasets), or an .npz file with "
        f"{data.KEYS_IN_WORDS} (default: digits)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("net2net_demo"),
        metavar="DIR",
        help="where growth.png and model.keras are written; made if it isn't there "
        "(default: net2net_demo)",
    )
    parser.add_argument(
        "--epochs",
        type=_number(int, "an integer of at least 2", lambda value: value >= 2),
        default=12,
        metavar="N",
        help="the number of epochs of each of the two runs (default: 12)",
    )
    parser.add_argument(
        "--widen-at",
        type=epoch,
        metavar="N",
        help="grow wider after this many epochs (default: a third of them)",
    )
    parser.add_argument(
        "--deepen-at",
        type=epoch,
        metavar="N",
        help="grow deeper after this many epochs (default: two thirds of them)",
    )
    parser.add_argument(
        "--factor",
        type=_number(float, "a number above 1 and up to 16", lambda value: 1 < value <= 16),
        default=2.0,
        metavar="X",
        help="how much wider every hidden layer becomes (default: 2)",
    )
    parser.add_argument(
        "--batch-size",
        type=_number(int, "an integer of at least 1", lambda value: value >= 1),
        default=32,
        metavar="N",
        help="the number of images in a training step (default: 32)",
    )
    parser.add_argument(
        "--learning-rate",
        type=_number(float, "a number above 0 and up to 1", lambda value: 0 < value <= 1),
        default=2e-3,
        metavar="X",
        help="the learning rate that both runs begin with, Adam's (default: 0.002)",
    )
    parser.add_argument(
        "--rate-at-growth",
        type=_number(float, "a number above 0 and up to 1", lambda value: 0 < value <= 1),
        default=0.5,
        metavar="X",
        help="what each growth multiplies the grown run's learning rate by: what has been "
        "learnt wants smaller steps than random weights do (default: 0.5)",
    )
    parser.add_argument(
        "--seed",
        type=_number(int, "an integer from 0 to 4294967295", lambda value: 0 <= value < 2**32),
        default=0,
        metavar="N",
        help="the source of everything random: weights, shuffling, growth (default: 0)",
    )
    given = vars(parser.parse_args(arguments))
    for name, thirds in (("widen_at", 1), ("deepen_at", 2)):
        if given[name] is None:
            given[name] = max(1, round(given["epochs"] * thirds / 3))
        if given[name] >= given["epochs"]:
            parser.error(
                f"argument --{name.replace('_', '-')}: expected an integer of at most "
                f"{given['epochs'] - 1} with --epochs {given['epochs']}, received {given[name]}"
            )
    return Options(**given)
