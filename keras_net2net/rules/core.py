"""Dense, EinsumDense, embeddings, and the layers that do nothing to units."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.rules.activations import activate_made
from keras_net2net.rules.contractions import parse_einsum
from keras_net2net.rules.kinds import named, passes
from keras_net2net.widths.expressions import Axes, Expression, Fixed
from keras_net2net.widths.facts import follows, makes, reads
from keras_net2net.widths.registry import opened, refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall
from keras_net2net.widths.treatments import MAKES_UNITS


@register_rule(layers.Dense)
def dense(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Makes `units`; reads those on the last axis."""
    units = call.units("units")
    call.weight("kernel", reads(x[-1]), makes(units))
    if call.layer.use_bias:
        call.weight("bias", makes(units))
    layer = call.layer
    return activate_made(call, (*x[:-1], units), layer.activation, x[:-1], layer.use_bias)


@register_rule(layers.Embedding)
def embedding(call: RuleCall, x: Axes, **kwargs: Any) -> Axes:
    """Makes `output_dim` units for each entry of its table."""
    units = call.units("output_dim")
    call.fix(x, "looks up the values on this axis in a table")
    call.weight("embeddings", call.layer.input_dim, makes(units))
    call.treat(MAKES_UNITS)
    return (*x, units)


if hasattr(layers, "ReversibleEmbedding"):  # newer than the oldest Keras

    @register_rule(layers.ReversibleEmbedding)
    def reversible_embedding(call: RuleCall, x: Axes, reverse: bool = False, **kwargs: Any) -> Axes:
        """Makes `output_dim` units; reversed, reads them, tied or with weights of its own."""
        layer = call.layer
        units = call.units("output_dim")
        call.weight("embeddings", layer.input_dim, makes(units))
        if not layer.tie_weights:
            call.weight("reverse_embeddings", reads(units), layer.input_dim)
        if not reverse:
            call.fix(x, "looks up the values on this axis in a table")
            call.treat(MAKES_UNITS)
            return (*x, units)
        call.unify(x[-1], units, "compares its input with the units of its table")
        if layer.tie_weights:
            call.share(x[-1], 0)
        return (*x[:-1], Fixed(layer.input_dim))


@register_rule(layers.EinsumDense)
def einsum_dense(call: RuleCall, x: Axes, **kwargs: Any) -> Axes | None:
    """Makes the axes that only its output has; reads those that it sums over."""
    layer = call.layer
    kernel_shape = call.shape_of("kernel")
    terms = parse_einsum(layer.equation, [len(x), len(kernel_shape)])
    if terms is None:
        return None
    (given, weight), output = terms
    if any(len(set(term)) != len(term) for term in (given, weight, output)):
        return None  # a diagonal
    known: dict[str, Expression] = dict(zip(given, x, strict=True))
    new = [letter for letter in weight if letter not in given]
    axes = []
    for letter, size in zip(weight, kernel_shape, strict=True):
        if letter in new:
            if letter not in output:
                return None
            name = "units" if len(new) == 1 else f"units_{letter}"
            known[letter] = call.new_units(name, size)
            axes.append(makes(known[letter]))
        else:
            axes.append(follows(known[letter]) if letter in output else reads(known[letter]))
    call.weight("kernel", *axes)
    call.fix(
        [known[x] for x in given if x not in weight and x not in output], "sums over this axis"
    )
    result = tuple(known[letter] for letter in output)
    if layer.bias_axes:
        start = min(output.index(letter) for letter in layer.bias_axes)
        call.weight(
            "bias",
            *(makes(known[x]) if x in layer.bias_axes else 1 for x in output[start:]),
        )
    sizes = call.setting("partial_output_shape")
    shape = [
        old if old is None else axis
        for old, axis in zip(sizes, result[len(result) - len(sizes) :], strict=True)
    ]
    call.configure("partial_output_shape", tuple(shape))
    beside = [known[letter] for letter in output if letter in given]
    weights = ["kernel", "bias"] if layer.bias_axes else ["kernel"]
    if any(letter in weight for letter in output if letter in given):
        output_axes = activate_made(call, result, layer.activation, (), False)
        # Each of these units has weights of its own.
        call.treat(call.treatment, beside, weights=weights)
        return output_axes
    return activate_made(
        call, result, layer.activation, beside, bool(layer.bias_axes), weights=weights
    )


register_rule(layers.Identity)(passes())

refuse("decides by all units of a step whether to mask it", layers.Masking)
refuse("is an input of the model", layers.InputLayer)


def lambda_settings(call: RuleCall, *outputs: Axes) -> None:
    """The shape that a `Lambda` was told it makes follows the units."""
    told = call.setting("_output_shape")
    if isinstance(told, tuple) and len(outputs) == 1 and len(told) == len(outputs[0]) - 1:
        shape = (old if old is None else e for old, e in zip(told, outputs[0][1:], strict=True))
        call.configure("_output_shape", tuple(shape))


opened(
    "A function of Keras's operations; what it does with another library can't be seen.",
    layers.Lambda,
    settings=lambda_settings,
)
# A user may register a rule for these, so the reason says that there is none.
refuse(
    "has no rule that says what happens to units: it runs code that isn't Keras's",
    *named("FlaxLayer JaxLayer TFSMLayer TorchModuleWrapper", layers),
)
