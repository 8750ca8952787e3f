"""Reading models by the rule book: what has a rule is one call, what has none is opened."""

from __future__ import annotations

from typing import Any

from keras_net2net.graph import reading
from keras_net2net.graph.structure import Graph
from keras_net2net.widths.registry import needs_opening


def read(model: Any) -> Graph:
    """Reads the graph of a built model; see `graph.reading.read`."""
    return reading.read(model, needs_opening)


def read_layer(layer: Any, path: str, args: Any, kwargs: Any) -> Graph:
    """Opens a layer, and reads what is inside; see `graph.reading.read_layer`."""
    return reading.read_layer(layer, path, args, kwargs, needs_opening)
