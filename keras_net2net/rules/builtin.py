"""All the built-in rules; importing this module registers them."""

from keras_net2net.rules import (  # noqa: F401
    activations,
    attention,
    contractions,
    convolutional,
    core,
    image_preprocessing,
    merging,
    normalization,
    pooling,
    preprocessing,
    regularization,
    reshaping,
    rnn,
)
from keras_net2net.rules.ops import core as core_operations  # noqa: F401
from keras_net2net.rules.ops import image, linalg, math, nn, numpy, shapes  # noqa: F401
