"""Operations of `keras.ops` as in `keras/src/ops/core.py`."""

from __future__ import annotations

from keras_net2net.rules.kinds import named
from keras_net2net.widths.registry import refuse

# `cast`, `convert_to_tensor`, `saturate_cast` and `stop_gradient` act on every element alone;
# `slice`, `slice_update` and `unstack` stand with the other operations that cut.
refuse(
    "runs a Python function, which may do anything to units",
    *named("associative_scan cond fori_loop map scan switch vectorized_map while_loop"),
)
refuse("puts values at places that are only known when it runs", *named("scatter"))
refuse("replaces values at places that are only known when it runs", *named("scatter_update"))
