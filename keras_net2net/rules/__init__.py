"""The rules of Keras's layers and operations, in files named after Keras's own folders.

`register_rule` registers one, and the lookup order stands in `widths.registry`; `builtin`
registers all of ours. A rule is
one plain function from the width expressions of the inputs to those of the
outputs; on the way it names the layer's units, its weights' axes, and what must
agree. Most are made of the few kinds in `kinds`.
"""

from keras_net2net.widths.facts import follows, makes, reads
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall

__all__ = ["RuleCall", "follows", "makes", "reads", "register_rule"]
