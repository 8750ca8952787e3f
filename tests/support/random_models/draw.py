"""What each step of a random model is drawn with: choices, names, and the tensors so far."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tests.support.random_models.sources import Source

BATCH = 4
# An older Keras has no model with an input that nothing reads.
OLDER = not hasattr(layers, "ReversibleEmbedding")
ACTIVATIONS = ("relu", "tanh", "silu", "gelu", "linear", "sigmoid", "softplus", "leaky_relu")


class Draw:
    """Draws the steps of a random model, each from the tensors that were made before.

    Args:
        source: Where choices come from.
        prefix: What the names of layers start with.
        depth: How deep this model is nested.

    Attributes:
        lines: What was made, in words.
        failed: The steps that Keras refused, which are left out, by kind.
        native: Whether the configuration of the model can be built again.
        batch: The size of a batch, if the model is made for one, as stateful layers are.
    """

    def __init__(self, source: Source, prefix: str = "", depth: int = 0) -> None:
        self.source = source
        self.prefix = prefix
        self.depth = depth
        self.count = 0
        self.pool: list[Any] = []
        self.made: list[tuple[Any, Any]] = []
        self.tables: list[Any] = []
        self.lines: list[str] = []
        self.failed: list[str] = []
        self.native = True
        self.batch: int | None = None

    def below(self, limit: int) -> int:
        """A number from 0 to `limit - 1`."""
        return self.source.below(limit)

    def pick(self, *values: Any) -> Any:
        """One of the values."""
        if not values:
            raise LookupError("nothing to pick from")
        return values[self.below(len(values))]

    def flag(self, chance: int = 2) -> bool:
        """True once in `chance` times."""
        return self.below(chance) == chance - 1

    def units(self) -> int:
        """A number of units."""
        return self.pick(3, 4, 2, 6, 1, 5, 8)

    def name(self, kind: str) -> str:
        """A name that no other layer has."""
        self.count += 1
        return f"{self.prefix}{kind}{self.count}"

    def put(self, layer: Any, x: Any, **kwargs: Any) -> Any:
        """Calls a layer, which may be called again later."""
        y = layer(x, **kwargs)
        if not isinstance(x, list) and not kwargs and isinstance(y, keras.KerasTensor):
            self.made.append((layer, x))
        return y

    def like(self, x: Any, last: bool = True) -> Any:
        """A tensor of the shape of `x`, or one that differs in the last axis."""
        end = len(x.shape) if last else -1
        return self.pick(
            *(
                y
                for y in self.pool
                if len(y.shape) == len(x.shape) and y.shape[:end] == x.shape[:end]
            )
        )

    def axis(self, x: Any) -> int:
        """An axis other than that of the batch, mostly the last."""
        return self.pick(-1, *range(1, len(x.shape)))

    def inside(self, x: Any, name: str) -> Any:
        """A model for a tensor like `x`, to be called in this one."""
        raise NotImplementedError
