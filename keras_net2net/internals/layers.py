"""Layers: what they hold, what they were built with, and building them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

# The cell of the ConvLSTM layers has a rule as other cells have, and no public name.
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # noqa: F401

from keras_net2net.internals.tracking import overridden
from keras_net2net.internals.variables import own_variables


def all_layers(layer: Any) -> list[Any]:
    """A layer, and all layers in it."""
    return list(layer._flatten_layers(include_self=True, recursive=True))


def is_keras_layer(layer: Any) -> bool:
    """Whether a layer is one of Keras's own, whose classes say all about them."""
    return type(layer).__module__.startswith("keras.src.layers.")


def is_keras_regularizer(penalty: Any) -> bool:
    """Whether a regularizer is one of Keras's own, which take tensors of all sizes."""
    return type(penalty).__module__.startswith("keras.src.regularizers.")


def has_build(layer: Any) -> bool:
    """Whether a layer's class has a `build` of its own, and so may make weights."""
    return type(layer).build is not keras.Layer.build


def name_like(layer: Any, original: Any) -> None:
    """Gives what is in a copied layer the names that it has in the original.

    Layers and variables that their code doesn't name are numbered on by Keras; a plan
    says beforehand what the weights of a copy are called.
    """
    pairs = list(zip(all_layers(layer)[1:], all_layers(original)[1:], strict=False))
    for mine, other in pairs:
        if type(mine) is type(other):
            mine.name = other.name
    for mine, other in [(layer, original), *pairs]:
        names = [variable.name for variable in own_variables(other)]
        for variable, name in zip(own_variables(mine), names, strict=False):
            variable._name = name


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer holds (`_layers` has no public name on a `Layer`)."""
    return list(layer._layers)


def build_shapes(layer: Any) -> dict[str, Any] | None:
    """The shapes that a layer was built with, by the argument names of `build`."""
    return layer._build_shapes_dict


def recorded_arguments(layer: Any) -> Any | None:
    """What Keras recorded of the arguments that a layer was constructed with, in `config`.

    It is what `get_config` returns for a class without one of its own.
    """
    recorded = getattr(layer, "_auto_config", None)
    return recorded if isinstance(getattr(recorded, "config", None), dict) else None


def set_build_shapes(layer: Any, shapes: dict[str, Any]) -> None:
    """Records other build shapes; they are written into saved files."""
    layer._build_shapes_dict = shapes


def rebuild(layer: Any, shapes: dict[str, Any], variable_for: Callable[..., Any]) -> None:
    """Runs a built layer's `build` again, with its own variables handed back to it.

    `build` derives more than variables from the sizes (input specs, axes,
    broadcast shapes), so it is the layer's own code that brings these up to date.
    The tracker is locked after a first build, and the path of a layer is that of
    the scope in which it is built: neither may change here.
    """
    path, parent = layer._path, layer._parent_path
    layer._tracker.unlock()
    try:
        with overridden([layer], "add_weight", lambda _: variable_for):
            layer.build(**shapes)
    finally:
        layer._tracker.lock()
        layer._path, layer._parent_path = path, parent


def build_with_values(layer: Any, shapes: dict[str, Any], value_for: Callable[..., Any]) -> bool:
    """Builds a new layer whose weights start at given values.

    Random initialisers whose values are then overwritten are what makes the
    by-hand way slow, so each weight is created straight from its value.

    Returns:
        Whether all of them were: a weight that its layer doesn't name can't be.
    """
    add_weight = layer.add_weight
    all_given = True

    def add_given(*args: Any, **kwargs: Any) -> Any:
        nonlocal all_given
        name = kwargs.get("name")
        value = None if name is None else value_for(name)
        if value is None:
            all_given = False
        else:
            kwargs["initializer"] = lambda shape, dtype=None, **_: keras.ops.convert_to_tensor(
                value, dtype=dtype
            )
        return add_weight(*args, **kwargs)

    with overridden([layer], "add_weight", lambda _: add_given):
        layer.build(**shapes)
    return all_given
