"""All the built-in rules; importing this module registers them."""

from keras_net2net.rules import (  # noqa: F401
    activations,
    attention,
    contractions,
    convolutional,
    core,
    merging,
    normalization,
    operations,
    pooling,
    preprocessing,
    regularization,
    reshaping,
    rnn,
)
