"""Copying a live model, with what growth keeps about its variables."""

from __future__ import annotations

from typing import Any

from keras_net2net.graph.copying import copy_graph
from keras_net2net.growth.freezing import carry_over
from keras_net2net.widths.reading import read


def copy_model(model: Any) -> Any:
    """Copies a built model: a new one of the same class and name, uncompiled.

    Raises:
        GrowthError: If the model isn't built, or isn't a graph of layers.
    """
    copy = copy_graph(read(model))
    carry_over(model, copy)
    return copy
