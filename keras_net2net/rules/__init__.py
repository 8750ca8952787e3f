"""The rules of Keras's layers and operations, in files named after Keras's own folders.

`registry` says how a rule is found and `builtin` registers them all. A rule is
one plain function from the width expressions of the inputs to those of the
outputs; on the way it names the layer's units, its weights' axes, and what must
agree. Most are made of the few kinds in `kinds`.
"""
