"""The rules of Keras's layers and operations, in files named after Keras's own folders.

Importing this room fills the rule book, whose lookup order stands in `widths.registry`. A
rule is one plain function from the width expressions of the inputs to those of the
outputs; on the way it names the layer's units, its weights' axes, what must agree, and
what becomes of the value of a unit. Most are made of the few kinds in `kinds`.

For rules of your own: `register_rule` registers one, the `RuleCall` is what it speaks
with, `makes`, `reads` and `follows` say what an axis of a weight does with units, and
`treatments` holds the words for `RuleCall.treat`.
"""

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
from keras_net2net.widths import treatments
from keras_net2net.widths.facts import follows, makes, reads
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall

__all__ = ["RuleCall", "follows", "makes", "reads", "register_rule", "treatments"]
