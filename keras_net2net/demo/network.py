"""The network that the demonstration trains: plain Keras layers, nothing of this package."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers


def build(image_shape: tuple[int, ...], classes: int, filters: Sequence[int]) -> keras.Model:
    """A stack of convolutions, each with BatchNormalization and ReLU, and a classifier.

    Args:
        image_shape: Tuple of integers, `(height, width, channels)`.
        classes: Integer, the number of classes.
        filters: Integers, the filters of each convolution, from the image up.

    Returns:
        An uncompiled model from images to logits. The convolutions are called `conv1`,
        `conv2`, and so on; the first is followed by a pooling.
    """
    stack = [keras.Input(image_shape, name="image")]
    for number, count in enumerate(filters, start=1):
        stack += [
            layers.Conv2D(count, 3, padding="same", use_bias=False, name=f"conv{number}"),
            # The default momentum needs hundreds of steps to know the statistics: on a small data
            # set the first epochs' validation would show that and nothing else.
            layers.BatchNormalization(momentum=0.9, name=f"conv{number}_norm"),
            layers.ReLU(name=f"conv{number}_relu"),
        ]
    # "same": images of one pixel are small, but no reason to fail.
    stack.insert(4, layers.MaxPooling2D(2, padding="same", name="pool"))
    stack += [layers.GlobalAveragePooling2D(name="average"), layers.Dense(classes, name="logits")]
    return keras.Sequential(stack, name="network")
