"""Operations of `keras.ops` as in `keras/src/ops/math.py`."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_net2net.rules.kinds import along_last, broadcast, named, tensors_in
from keras_net2net.widths.expressions import Axes, Fixed
from keras_net2net.widths.registry import refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall

FREQUENCIES = "transforms this axis into frequencies, or back"

register_rule(ops.top_k)(along_last(1, "picks the largest values along this axis"))
register_rule(ops.extract_sequences)(along_last(1, "cuts sequences from this axis"))
register_rule(*named("fft rfft irfft stft"))(along_last(1, FREQUENCIES))
register_rule(*named("fft2 ifft2 istft"))(along_last(2, FREQUENCIES))
register_rule(*named("view_as_complex"))(along_last(1, "makes one complex number of this axis"))


@register_rule(*named("view_as_real"))
def view_as_real(call: RuleCall, x: Axes) -> Axes:
    """Passes units through; the two parts of a number lie on a new axis."""
    return (*x, Fixed(2))


@register_rule(*named("segment_sum segment_max segment_min segment_prod"))
def segments(call: RuleCall, data: Axes, segment_ids: Any) -> Axes:
    """Passes units through on other axes than the first, whose segments it reduces."""
    for given in (data[:1], *tensors_in([segment_ids])):
        call.fix(given, "reduces segments of this axis")
    return (Fixed(call.output_shapes[0][0]), *data[1:])


@register_rule(*named("cdist"))
def cdist(call: RuleCall, x: Axes, y: Axes) -> Axes:
    """Passes the units of both sides through; fixes those that distances are taken over."""
    call.fix([x[-1], y[-1]], "takes distances over this axis")
    before = broadcast(call, [x[:-2], y[:-2]]) if len(x) > 2 else ()
    return (*before, x[-2], y[-2])


refuse("ranks the classes", *named("in_top_k"))
