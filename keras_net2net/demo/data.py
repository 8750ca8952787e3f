"""Images and labels to learn from: bundled, downloaded by Keras, or the user's own."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from keras_net2net.demo.errors import DemoError, require

KEYS = ("x_train", "y_train", "x_test", "y_test")
KEYS_IN_WORDS = "the arrays x_train, y_train, x_test and y_test"


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Images and labels, ready for a network.

    Args:
        name: String, what the data is called.
        x_train: Float array, shape `(n, height, width, channels)`, the training images.
        y_train: Integer array, shape `(n,)`, their labels, from 0 to `classes - 1`.
        x_test: Float array, as `x_train`: the images that both runs are validated on.
        y_test: Integer array, as `y_train`.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.y_train.max()) + 1

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.x_train.shape[1:]))
        return (
            f"{self.name}: {len(self.x_train):,} training and {len(self.x_test):,} validation "
            f"images of {shape}, {self.classes} classes"
        )


def load(source: str, seed: int = 0) -> Data:
    """Loads images and labels.

    Args:
        source: String, `"digits"`, `"fashion_mnist"` or the path of an `.npz` file.
        seed: Integer, how `"digits"`, which comes in one piece, is split. Defaults to 0.

    Returns:
        `Data`, its images standardized by the mean and standard deviation of the training images.

    Raises:
        DemoError: if there is no such data, or the file isn't as expected.
    """
    if source == "digits":
        arrays = _digits(seed)
    elif source == "fashion_mnist":
        arrays = _fashion_mnist()
    elif source.endswith(".npz"):
        arrays = _file(Path(source))
    else:
        raise DemoError(
            f"--data: expected 'digits', 'fashion_mnist' or an .npz file, received {source!r}"
        )
    x_train, y_train, x_test, y_test = arrays
    return Data(Path(source).stem, *_standardize(x_train, x_test, y_train, y_test))


def _standardize(
    x_train: np.ndarray, x_test: np.ndarray, y_train: np.ndarray, y_test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    mean, deviation = float(x_train.mean()), float(x_train.std()) or 1.0
    x_train, x_test = (
        ((x.astype("float32") - mean) / deviation).reshape(*x.shape[:3], -1)
        for x in (x_train, x_test)
    )
    return x_train, y_train.astype("int32"), x_test, y_test.astype("int32")


def _digits(seed: int) -> tuple[np.ndarray, ...]:
    require("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.images, digits.target, test_size=0.2, random_state=seed, stratify=digits.target
    )
    return x_train, y_train, x_test, y_test


def _fashion_mnist() -> tuple[np.ndarray, ...]:
    from keras.datasets import fashion_mnist

    try:
        (x_train, y_train), (x_test, y_test) = fashion_mnist.load_data()
    except Exception as error:  # keras.utils.get_file raises a plain Exception without a network
        raise DemoError(f"--data fashion_mnist: {' '.join(str(error).split())}") from error
    return x_train, y_train, x_test, y_test


def _file(path: Path) -> tuple[np.ndarray, ...]:
    """Reads and checks the arrays of an `.npz` file."""
    arrays = _read(path)
    x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    for name, x in (("x_train", x_train), ("x_test", x_test)):
        if x.ndim not in (3, 4) or 0 in x.shape:
            raise DemoError(
                f"--data {path}: expected images of shape (n, height, width) or "
                f"(n, height, width, channels) in {name}, received shape {x.shape}"
            )
        if x.dtype.kind not in "buif":
            raise DemoError(f"--data {path}: expected numbers in {name}, received dtype {x.dtype}")
        if not np.isfinite(x).all():
            raise DemoError(
                f"--data {path}: expected finite numbers in {name}, received NaN or infinity"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DemoError(
            f"--data {path}: expected images of one shape, received {x_train.shape[1:]} in x_train "
            f"and {x_test.shape[1:]} in x_test"
        )
    y_train = _labels(path, "y_train", y_train, len(x_train))
    y_test = _labels(path, "y_test", y_test, len(x_test))
    present = np.unique(y_train)
    if len(present) < 2 or not np.array_equal(present, np.arange(len(present))):
        shown = ", ".join(map(str, present[:8])) + (", ..." if len(present) > 8 else "")
        raise DemoError(
            f"--data {path}: expected every label from 0 to the number of classes - 1 in y_train, "
            f"at least two classes, received the labels {shown}"
        )
    unknown = np.setdiff1d(y_test, present)
    if len(unknown):
        raise DemoError(
            f"--data {path}: expected only labels of y_train in y_test, received {unknown[0]}"
        )
    return x_train, y_train, x_test, y_test


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DemoError(f"--data {path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise DemoError(f"--data {path}: this isn't an .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            present = list(archive)
            arrays = {key: archive[key] for key in KEYS if key in present}
    except Exception as error:  # zipfile, zlib and numpy have one each for every kind of damage
        raise DemoError(
            f"--data {path}: this can't be read as plain arrays ({' '.join(str(error).split())})"
        ) from error
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise DemoError(
            f"--data {path}: expected {KEYS_IN_WORDS}; {', '.join(missing)} not found among "
            f"{', '.join(present) or 'no arrays at all'}"
        )
    return arrays


def _labels(path: Path, name: str, y: np.ndarray, count: int) -> np.ndarray:
    # CIFAR and its like keep their labels as a column.
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (count,) or y.dtype.kind not in "ui":
        raise DemoError(
            f"--data {path}: expected one integer label per image in {name}, shape ({count},), "
            f"received shape {y.shape} and dtype {y.dtype}"
        )
    return y
