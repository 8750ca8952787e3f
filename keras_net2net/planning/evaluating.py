"""Evaluating width expressions: what the remaps of widths mean for axes, weights and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_net2net.planning.changes import Addition, AxisChange, NewUnits, VariableChange
from keras_net2net.planning.remaps import Remap, remap_of
from keras_net2net.widths.expressions import EXPRESSIONS, Expression, Width, resolve, widths_of
from keras_net2net.widths.facts import MAKES, READS, Facts, FromEnd, Scaled, WeightAxis


@dataclasses.dataclass(frozen=True)
class Start:
    """How units start that nothing in the model reads yet, as the new classes of a head.

    Args:
        zero: The widths of which what makes new units is zero; for the others, it holds
            the mean of the old ones.
        offsets: What is added to new entries of weights, by path.
    """

    zero: frozenset[Width]
    offsets: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def silent(self, axis: WeightAxis) -> bool:
        """Whether an axis of a weight is zero for them."""
        zero = any(width in self.zero for width in widths_of(axis.expression))
        return axis.role == READS or (axis.role == MAKES and zero)


class Evaluator:
    """What follows from the remaps of some widths for all that is made of them.

    Each expression is evaluated once.

    Args:
        remaps: The remap of each width that changes.
        how: How new units start.
        fills: For the widths that a normalization sees together, what their new units
            hold, as in `draw_bound`.
        additions: What is added to weights, by path.
        start: For units that nothing may read yet, how they start.
    """

    def __init__(
        self,
        remaps: Mapping[Width, Remap],
        how: NewUnits,
        fills: Mapping[Width, str | None],
        additions: Mapping[str, tuple[Addition, ...]],
        start: Start | None,
    ) -> None:
        self._remaps = remaps
        self._how = how
        self._fills = {width: fill for width, fill in fills.items() if fill is not None}
        self._additions = additions
        self._start = start
        self._known: dict[Expression, Remap | None] = {}

    def __call__(self, expression: Expression) -> Remap | None:
        """The remap of an axis; `None` if it doesn't change."""
        expression = resolve(expression)
        if expression not in self._known:
            self._known[expression] = remap_of(expression, self._remaps)
        return self._known[expression]

    def variable(self, facts: Facts, name: str) -> VariableChange | None:
        """What happens to a weight of a layer, if anything does."""
        path, axes = f"{facts.path}/{name}", facts.weights[name]
        changes = tuple(self._axis(path, axis) for axis in axes)
        added = self._additions.get(path, ())
        if not added and all(change is None for change in changes):
            return None
        scale = self.scale(facts.scales[name]) if name in facts.scales else 1.0
        shape = tuple(axis.expression.size or 0 for axis in axes)
        return VariableChange(path, changes, self._how, scale, shape, added)

    def _axis(self, path: str, axis: WeightAxis) -> AxisChange | None:
        remap = self(axis.expression)
        if remap is None:
            return None
        if self._start is None:
            return AxisChange(axis.role, remap, self._silent(axis))
        offset = self._start.offsets.get(path, 0.0)
        return AxisChange(axis.role, remap, self._start.silent(axis), offset)

    def _silent(self, axis: WeightAxis) -> bool:
        """Whether an axis of a weight is zero for units that fill."""
        if not self._fills:
            return False
        modes = {self._fills[w] for w in widths_of(axis.expression) if w in self._fills}
        return any(axis.silent_for("mean" if mode == "mean" else "zero") for mode in modes)

    def scale(self, scaled: Scaled) -> float:
        """What a number is multiplied by."""
        remap = self(scaled.expression)
        if remap is None:
            return 1.0
        base = remap.kept if scaled.by == "kept" else remap.old_size / remap.size
        return float(base**scaled.power)

    def size(self, expression: Expression, old: int | None) -> int | None:
        """The size of an axis after the growth."""
        if expression.size is None:  # units beside a number of steps that isn't known, say
            return old
        remap = self(expression)
        return old if remap is None else remap.size

    def value(self, expressions: Any, old: Any) -> Any:
        """A config value after the growth, in the form of the old one."""
        if isinstance(expressions, (tuple, list)):
            values = [self.value(e, o) for e, o in zip(expressions, old, strict=True)]
            return values if isinstance(old, list) else tuple(values)
        if isinstance(expressions, slice):
            return slice(
                self.value(expressions.start, old.start),
                self.value(expressions.stop, old.stop),
                old.step,
            )
        if isinstance(expressions, FromEnd):
            return -(self.size(expressions.expression, -old) or 0)
        if isinstance(expressions, Scaled):
            return old * self.scale(expressions)
        return self.size(expressions, old) if isinstance(expressions, EXPRESSIONS) else expressions
