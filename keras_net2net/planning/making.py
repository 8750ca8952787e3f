"""Making what a plan says: the new values of weights, and the layers that it inserts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_net2net import internals
from keras_net2net.planning.plan import Insertion, LayerChange


@dataclasses.dataclass(eq=False)
class Inserted:
    """A layer that the plan inserts.

    Args:
        insertion: What the plan says of it.
        layer: A stand-in without weights.
        make: Makes the layer itself, with its weights. Defaults to `None`: it is built
            from its configuration, for the shapes of what it reads.
    """

    insertion: Insertion
    layer: Any
    make: Callable[[], Any] | None = None

    @property
    def path(self) -> str:
        """Its path."""
        return self.insertion.path


class Placeholder:
    """What stands for a layer of which nothing is known but its name, until it is made.

    Inference has no rule for it, so that it fixes all widths that reach it.

    Args:
        name: The name of the layer.
        **penalties: Its regularizers, by the names of the attributes that hold them.
    """

    def __init__(self, name: str, **penalties: Any) -> None:
        self.name = name
        vars(self).update(penalties)


def build_inserted(
    insertion: Insertion, shape: Any, steps: Sequence[LayerChange] = (), seed: int = 0
) -> Any:
    """Makes the layer of an insertion.

    Args:
        insertion: The insertion.
        shape: The shape of its input.
        steps: What changed of it since it was planned. Defaults to nothing.
        seed: The seed of these changes. Defaults to `0`.

    Returns:
        The layer, built.
    """
    config = dict(insertion.config)
    changed = {key: after for change in steps for key, _, after in change.config}
    config.update({key: after for key, after in changed.items() if key in config})
    layer = insertion.layer_class.from_config(config)
    for key in changed.keys() - config.keys():  # an attribute of another name
        internals.set_setting(layer, key, changed[key])
    precise = getattr(layer, "variable_dtype", "float32") == "float64"
    dtype = "float64" if precise else "float32"
    initial = {weight.name: weight.array(dtype) for weight in insertion.weights}
    values = grown_values(initial, steps, seed)
    internals.build_with_values(layer, {"input_shape": shape}, values.get)
    return layer


def grown_values(
    values: Mapping[str, np.ndarray], steps: Sequence[LayerChange], seed: int
) -> dict[str, np.ndarray]:
    """The values of a layer's weights after all its changes, one after the other."""
    grown = dict(values)
    for step in steps:
        for change in step.variables:
            grown[change.label] = change.apply(grown[change.label], seed)
    return grown
