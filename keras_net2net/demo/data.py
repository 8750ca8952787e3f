"""Images and labels to learn from: bundled, downloaded by Keras, or the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

KEYS = ("x_train", "y_train", "x_test", "y_test")
Part = tuple[np.ndarray, np.ndarray]


class Data(NamedTuple):
    """Images and labels, ready for a network.

    Args:
        name: String, what the data is called.
        train: The training images, floats of shape `(n, height, width, channels)`, and their
            labels, integers of shape `(n,)` from 0 to `classes - 1`.
        test: Likewise: what both runs are validated on.
    """

    name: str
    train: Part
    test: Part

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.train[1].max()) + 1

    def __str__(self) -> str:
        (x, _), (x_test, _) = self.train, self.test
        images = f"validation images of {' x '.join(map(str, x.shape[1:]))}"
        return (
            f"{self.name}: {len(x):,} training and {len(x_test):,} {images}, {self.classes} classes"
        )


def load(source: str, seed: int = 0) -> Data:
    """Loads images and labels.

    Args:
        source: String, `"digits"`, `"fashion_mnist"` or the path of an `.npz` file.
        seed: Integer, how `"digits"`, which comes in one piece, is split. Defaults to 0.

    Returns:
        `Data`, its images standardized by the mean and standard deviation of the training images.

    Raises:
        Exception: if there is no such data, or the file isn't as expected.
    """
    if source == "digits":
        parts = _digits(seed)
    elif source == "fashion_mnist":
        parts = keras.datasets.fashion_mnist.load_data()
    elif source.endswith(".npz"):
        parts = _file(source)
    else:
        raise ValueError(f"expected 'digits', 'fashion_mnist' or an .npz file, received {source!r}")
    mean, deviation = float(parts[0][0].mean()), float(parts[0][0].std()) or 1.0
    train, test = (
        (((x.astype("float32") - mean) / deviation).reshape(*x.shape[:3], -1), y.astype("int32"))
        for x, y in parts
    )
    return Data(Path(source).stem, train, test)


def _digits(seed: int) -> tuple[Part, Part]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits().images, load_digits().target
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
    return (x, y), (x_test, y_test)


def _file(path: str) -> tuple[Part, Part]:
    """Reads and checks the arrays of an `.npz` file."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        # CIFAR and its like keep their labels as a column.
        arrays = [a[:, 0] if a.ndim == 2 else a for a in (archive[key] for key in KEYS)]
    x_train, y_train, x_test, y_test = arrays
    classes = set(range(max(2, len(np.unique(y_train)))))
    for x, y, unseen in ((x_train, y_train, classes - {*y_train.flat}), (x_test, y_test, ())):
        images = x.ndim in (3, 4) and x.size and x.dtype.kind in "buif" and np.isfinite(x).all()
        labels = y.shape == x.shape[:1] and y.dtype.kind in "ui" and {*y} <= classes
        if not images or not labels or unseen or x.shape[1:] != x_train.shape[1:]:
            raise ValueError(
                "expected finite images of one shape, (n, height, width) or (n, height, width, "
                "channels), and n integer labels, from 0 to the number of classes - 1, of at least "
                f"two classes; received images {x.dtype} of shape {x.shape}, with labels {y.dtype} "
                f"of shape {y.shape}, {str(np.unique(y))[:40]}"
            )
    return (x_train, y_train), (x_test, y_test)
