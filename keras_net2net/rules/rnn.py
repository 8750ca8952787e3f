"""Recurrent layers and the wrappers around layers.

A cell makes its units gate by gate, so that the last axis of its kernels is the
product of the gates and the units; its recurrent kernel reads the same units.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net import internals
from keras_net2net.rules.activations import activate
from keras_net2net.rules.kinds import broadcast, channel_axis
from keras_net2net.widths.expressions import Axes, Expression, Fixed, concat, is_axes, product
from keras_net2net.widths.facts import follows, makes, reads
from keras_net2net.widths.registry import register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import ANYTHING

States = list[Any]


# The gates of each kind of cell, and the states that it keeps.
GATES = {layers.SimpleRNNCell: (1, 1), layers.GRUCell: (3, 1), layers.LSTMCell: (4, 2)}


@register_rule(*GATES)
def cell(call: RuleCall, x: Axes, states: Any, **kwargs: Any) -> Any:
    """Makes `units`, gate by gate; reads its input and its own units."""
    layer = call.layer
    gates, count = next(known for cls, known in GATES.items() if isinstance(layer, cls))
    units = call.units("units")
    all_gates = product([Fixed(gates), units])
    call.configure("state_size", [units] * count if count > 1 else units)
    call.configure("output_size", units)
    call.weight("kernel", reads(x[-1]), makes(all_gates))
    call.weight("recurrent_kernel", reads(units), makes(all_gates))
    if layer.use_bias:
        twice = [2] if getattr(layer, "reset_after", False) else []
        call.weight("bias", *twice, makes(all_gates))
    state = (x[0], units)
    for function in (layer.activation, getattr(layer, "recurrent_activation", None)):
        if function is not None and activate(call, state, function) is None:
            return None
    call.treat(ANYTHING)
    return [state, [state] * count]


@register_rule(layers.StackedRNNCells)
def stacked_cells(call: RuleCall, x: Axes, states: Any, **kwargs: Any) -> Any:
    """Each cell makes its units and reads those of the cell before it."""
    found = []
    for cell in call.layer.cells:
        result = call.apply(cell, x, None)
        if result is None:
            return None
        x, state = result
        found.append(state if len(state) > 1 else state[0])
    counted = [call.counted(cell) for cell in call.layer.cells]
    call.expose("units", concat([units for one in counted for units in one.values()]))
    for i, one in enumerate(counted):
        for key, units in one.items():
            call.expose(f"{key}_{i}", units)
    return [x, found]


@register_rule(layers.RNN, layers.SimpleRNN, layers.GRU, layers.LSTM)
def recurrent(
    call: RuleCall, sequence: Axes, initial_state: Any = None, mask: Any = None, **kwargs: Any
) -> Any:
    """The units of its cell, at each step or at the last."""
    layer = call.layer
    result = call.apply(layer.cell, (sequence[0], *sequence[2:]), None)
    if result is None:
        return None
    output, states = result
    sizes = [_sizes(state) for state in states]
    old = call.setting("state_size")
    if len(old) == len(sizes):
        call.configure("state_size", sizes)
    return _recurrent(call, sequence, output, states, initial_state)


def _sizes(state: Any) -> Any:
    return [_sizes(one) for one in state] if isinstance(state, list) else state[-1]


def _recurrent(call: RuleCall, sequence: Axes, output: Axes, states: States, initial: Any) -> Any:
    """The outputs of a recurrent layer, and the states that it keeps or is given."""
    layer = call.layer
    call.fix(sequence[1], "goes through the steps along this axis")
    for key, units in call.counted(layer.cell).items():
        call.expose(key, units)
    flat = [axes for state in states for axes in _flat(state)]
    if layer.stateful and layer.states is not None:
        for i, axes in enumerate(flat):
            call.weight(f"state_{i}", *(follows(axis) for axis in axes))
    given = _flat(initial)  # one state may come without a list
    for mine, other in zip(flat, given, strict=False):
        broadcast(call, [mine, other])
    made = (output[0], sequence[1], *output[1:]) if layer.return_sequences else output
    return [made, *flat] if layer.return_state else made


def _flat(state: Any) -> list[Axes]:
    if is_axes(state):
        return [state]
    return [axes for one in state or [] for axes in _flat(one)]


@register_rule(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def conv_lstm(
    call: RuleCall, sequence: Axes, initial_state: Any = None, mask: Any = None, **kwargs: Any
) -> Any:
    """Makes `filters`, in four gates; reads channels and its own filters."""
    layer = call.layer
    cell = layer.cell
    state = call.apply(cell, (sequence[0], *sequence[2:]), None)
    if state is None:
        return None
    shape = call.output_shapes[0]
    space = shape[2:] if layer.return_sequences else shape[1:]
    at = channel_axis(call, len(space) + 1) - 1
    axes: list[Expression] = [Fixed(size, call.obstacle("determines this size")) for size in space]
    axes[at] = state
    output = (sequence[0], *axes)
    return _recurrent(call, sequence, output, [output, output], initial_state)


def conv_lstm_cell(call: RuleCall, x: Axes, states: Any) -> Any:
    """Makes `filters`, in four gates; reads channels and its own filters."""
    layer = call.layer
    channels = x[channel_axis(call, len(x))]
    at = channel_axis(call, len(x))
    call.fix([e for i, e in enumerate(x) if i not in (0, at)], "slides a kernel along this axis")
    units = call.units("filters")
    gates = product([Fixed(4), units])
    call.weight("kernel", *layer.kernel_size, reads(channels), makes(gates))
    call.weight("recurrent_kernel", *layer.kernel_size, reads(units), makes(gates))
    if layer.use_bias:
        call.weight("bias", makes(gates))
    for function in (layer.activation, layer.recurrent_activation):
        # A function over the last axis would see the channels, or space.
        if activate(call, (units,), function) is None:
            return None
    call.treat(ANYTHING)
    return units


register_rule(internals.ConvLSTMCell)(conv_lstm_cell)


@register_rule(layers.Bidirectional)
def bidirectional(
    call: RuleCall, sequence: Axes, initial_state: Any = None, mask: Any = None, **kwargs: Any
) -> Any:
    """The units of the layers of both directions, joined or merged."""
    layer = call.layer
    states = list(initial_state or [])
    half = len(states) // 2
    results = []
    for inner, given in (
        (layer.forward_layer, states[:half]),
        (layer.backward_layer, states[half:]),
    ):
        result = call.apply(inner, sequence, given or None)
        if result is None:
            return None
        results.append(result if isinstance(result, list) else [result])
    # Keras takes the shape of both from the first, and saves one configuration for both.
    back = call.counted(layer.backward_layer)
    for key, units in call.counted(layer.forward_layer).items():
        call.unify(units, back.get(key, Fixed(None)), "has as many units in both directions")
        call.expose(key, units)
    (forward, *kept), (backward, *more) = results
    if layer.merge_mode == "concat":
        merged = [(*forward[:-1], concat([forward[-1], backward[-1]]))]
    elif layer.merge_mode is None:
        merged = [forward, backward]
    else:
        merged = [broadcast(call, [forward, backward])]
    if len({len(forward), len(backward)}) > 1:
        return None
    outputs = [*merged, *kept, *more]
    return outputs if len(outputs) > 1 else outputs[0]


@register_rule(layers.TimeDistributed)
def time_distributed(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """What its layer does, at each step; a model in it is opened."""
    shapes = [(shape[0], *shape[2:]) for shape in call.output_shapes]
    output = call.apply(call.layer.layer, (x[0], *x[2:]), shapes=shapes)
    if not isinstance(output, tuple):
        return None
    for key, units in call.counted(call.layer.layer).items():
        call.expose(key, units)
    return (output[0], x[1], *output[1:])
