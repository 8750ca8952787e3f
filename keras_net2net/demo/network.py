"""The network that the demonstration trains: plain Keras layers, nothing of this package."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers


def build(
    image_shape: tuple[int, ...],
    classes: int,
    filters: Sequence[int],
    pool_after: int = 1,
) -> keras.Model:
    """A stack of convolutions, each with BatchNormalization and ReLU, and a classifier.

    Args:
        image_shape: Tuple of integers, `(height, width, channels)`.
        classes: Integer, the number of classes.
        filters: Integers, the filters of each convolution, from the image up.
        pool_after: Integer, after how many convolutions the image is halved. Defaults to 1.

    Returns:
        An uncompiled functional model from images to logits. The convolutions are called
        `conv1`, `conv2`, and so on.
    """
    image = x = keras.Input(image_shape, name="image")
    for number, count in enumerate(filters, start=1):
        x = layers.Conv2D(count, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        # The default momentum needs hundreds of steps to know the statistics: on a small data set
        # the first epochs' validation would show that and nothing else.
        x = layers.BatchNormalization(momentum=0.9, name=f"conv{number}_norm")(x)
        x = layers.ReLU(name=f"conv{number}_relu")(x)
        if number == pool_after:
            # "same": images of one pixel are small, but no reason to fail.
            x = layers.MaxPooling2D(2, padding="same", name="pool")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="network")
