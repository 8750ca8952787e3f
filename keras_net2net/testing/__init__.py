"""The battery that every built-in rule passes, for rules of your own as well.

A rule is a claim: if units are copied, and the weights shared as it says, then the
layer and all around it compute what they did. `check_rule` tests the claim on
numbers. It needs nothing beside Keras and NumPy, and no test framework.
"""

from keras_net2net.testing.models import (
    check_model,
    check_native,
    check_same,
    check_training,
    flat_layers,
    largest_difference,
    outputs,
    random_inputs,
    randomize,
    shapes_of,
)
from keras_net2net.testing.rules import POLICIES, check_rule, custom_objects

__all__ = [
    "POLICIES",
    "check_model",
    "check_native",
    "check_rule",
    "check_same",
    "check_training",
    "custom_objects",
    "flat_layers",
    "largest_difference",
    "outputs",
    "random_inputs",
    "randomize",
    "shapes_of",
]
