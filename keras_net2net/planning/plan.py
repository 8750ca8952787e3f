"""A growth as a value: what changes, before anything does.

A `Plan` can be printed, compared, and replayed on anything that has the shape
of the model's weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net.planning.changes import VariableChange, VariableReplacement
from keras_net2net.planning.remaps import ByValue, Remap


@dataclasses.dataclass(frozen=True)
class WidthChange:
    """One width that grows or shrinks.

    Args:
        name: The width's name: the path of the layer that makes its units first.
        old: Units before.
        new: Units after.
        layers: The paths of all the layers that make these units. More than one
            where widths are tied, as by a residual sum.
        asked: Those among `layers` that the operation named.
    """

    name: str
    old: int
    new: int
    layers: tuple[str, ...]
    asked: tuple[str, ...]

    @property
    def label(self) -> str:
        """The layers that were asked for, and which part of their units this is."""
        names = ", ".join(self.asked or self.layers[:1])
        layer, _, counted = self.name.partition(":")
        if layer in self.layers and counted.isidentifier():
            return f"{layer} ({counted})"  # one of several things that it counts
        return names if self.name in self.layers else f"{names} (part {self.name!r} of its units)"


@dataclasses.dataclass(frozen=True)
class LayerChange:
    """One layer whose configuration or weights change.

    Args:
        path: The layer's path, e.g. `"encoder/conv1"`.
        kind: The name of its class.
        config: The attributes that change: key, value before, value after.
        variables: The changes of its weights.
    """

    path: str
    kind: str
    config: tuple[tuple[str, Any, Any], ...]
    variables: tuple[VariableChange | VariableReplacement, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class InitialWeight(ByValue):
    """How one weight of an inserted layer starts.

    Args:
        name: The weight's name.
        shape: Its shape when it is inserted.
        value: The constant it is filled with, or an array of that shape.
        identity_at: For a kernel, the spatial position at which it holds the
            identity matrix, `()` for Dense. Defaults to `None`: no identity.
        source: The path of the weight that the value was computed from, and what
            computes it, for a replay on other weights. Defaults to `None`: it is the
            same for all weights.
    """

    name: str
    shape: tuple[int, ...]
    value: float | np.ndarray = 0.0
    identity_at: tuple[int, ...] | None = None
    source: tuple[str, Callable[[np.ndarray], np.ndarray]] | None = None

    def array(self, dtype: str = "float32") -> np.ndarray:
        """The value, as float32, or in the precision of a model that has more."""
        array = np.full(self.shape, self.value, dtype)
        if self.identity_at is not None:
            array[self.identity_at] = np.eye(*self.shape[-2:], dtype=np.dtype(dtype))
        return array


@dataclasses.dataclass(frozen=True)
class Insertion:
    """One layer that is inserted.

    Args:
        path: The path of the new layer.
        after: The path of the layer behind which it is inserted.
        layer_class: Its class.
        config: Its configuration when it is inserted.
        weights: How its weights start.
    """

    path: str
    after: str
    layer_class: Any
    config: Mapping[str, Any]
    weights: tuple[InitialWeight, ...]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A layer that an operation on several layers leaves as it is, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class OutputChange:
    """An output of the model that gets larger.

    Args:
        output: The position of the output among the flat outputs.
        axis: The position of the axis that grows.
        remap: The remap of the axis.
        kind: What the old entries are afterwards: `"values"`: what they were;
            `"softmax"` or `"log_softmax"`: the same parts of what is left to them;
            `"mixed"`: something else, so that they can't be compared.
        parts: For a softmax, for each that ran over entries of the axis, the start and
            the end of these entries before the growth.
    """

    output: int
    axis: int
    remap: Remap
    kind: str = "values"
    parts: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Step:
    """What one operation does.

    Args:
        operation: The operation.
        widths: The widths that grow.
        layers: The layers that change.
        insertions: The layers that are inserted.
        skipped: The layers that stay, and why.
        notes: What else a reader should know.
        exact: Whether the operation preserves the function.
        outputs: The outputs of the model that get larger.
    """

    operation: Any
    widths: tuple[WidthChange, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    insertions: tuple[Insertion, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    exact: bool = True
    outputs: tuple[OutputChange, ...] = ()

    @property
    def settings(self) -> list[str]:
        """The settings that change where no width grows, as text: a kernel's size, say."""
        if self.widths:
            return []  # they follow from the widths
        return [
            f"{layer.path}: {key} {before} -> {after}"
            for layer in self.layers
            for key, before, after in layer.config
        ]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a growth will do: the steps of its operations, in their order.

    Args:
        model: The name of the model.
        seed: The seed of all that is drawn.
        steps: What each operation does.
        parameters_before: The model's number of parameters before.
        parameters_after: The same, after.
    """

    model: str
    seed: int
    steps: tuple[Step, ...]
    parameters_before: int
    parameters_after: int

    @classmethod
    def joined(cls, plans: Sequence[Plan]) -> Plan:
        """Plans that follow each other, as one."""
        return cls(
            plans[0].model,
            plans[0].seed,
            tuple(step for plan in plans for step in plan.steps),
            plans[0].parameters_before,
            plans[-1].parameters_after,
        )

    @property
    def exact(self) -> bool:
        """Whether all operations preserve the function of the model."""
        return all(step.exact for step in self.steps)

    @property
    def outputs(self) -> tuple[OutputChange, ...]:
        """The outputs of the model that get larger, in the order in which they do."""
        return tuple(change for step in self.steps for change in step.outputs)

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not any(step.widths or step.insertions or step.layers for step in self.steps)

    @property
    def normalizes(self) -> bool:
        """Whether normalizations are inserted: in training mode they see the batch alone."""
        inserted = [insertion.layer_class for step in self.steps for insertion in step.insertions]
        return any(issubclass(cls, keras.layers.BatchNormalization) for cls in inserted)

    def changes_of(self, path: str) -> list[LayerChange]:
        """The changes of one layer, in their order."""
        return [layer for step in self.steps for layer in step.layers if layer.path == path]

    def apply_to(
        self, weights: Mapping[str, np.ndarray], *, partial: bool = False
    ) -> dict[str, np.ndarray]:
        """Replays the plan on arrays: a checkpoint, say, from before the growth.

        Args:
            weights: Arrays by path, `"<layer path>/<weight name>"`, with the shapes
                that the weights had before the growth.
            partial: Whether weights that the plan changes, or computes others from, may
                be missing. Defaults to `False`.

        Returns:
            A dict with all of them, grown where the plan grows them, and with the
            weights of the layers that the plan inserts.

        Raises:
            KeyError: If a weight that the plan changes is missing, and `partial` is false.
        """
        grown = dict(weights)
        double = any(np.asarray(value).dtype == np.float64 for value in grown.values())
        for step in self.steps:
            for insertion in step.insertions:
                for weight in insertion.weights:
                    value = weight.array("float64" if double else "float32")
                    if weight.source is not None:
                        path, compute = weight.source
                        if partial and path not in grown:
                            continue
                        value = compute(np.asarray(grown[path])).astype(grown[path].dtype)
                    grown[f"{insertion.path}/{weight.name}"] = value
            for layer in step.layers:
                for change in layer.variables:
                    if partial and change.name not in grown:
                        continue
                    grown[change.name] = change.apply(np.asarray(grown[change.name]), self.seed)
        return grown

    def summary(self) -> str:
        """The plan as text: what grows, what is inserted, what stays and why."""
        lines = [
            f"Growth of {self.model!r}: "
            f"{self.parameters_before:,} -> {self.parameters_after:,} parameters "
            f"({'exact' if self.exact else 'not exact'}, seed {self.seed})"
        ]
        for step in self.steps:
            lines.append(f"  {step.operation}")
            lines += [f"    {line}" for line in _describe(step)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def _describe(step: Step) -> list[str]:
    lines = []
    for width in step.widths:
        tied = [path for path in width.layers if path not in (width.asked or width.layers[:1])]
        also = f" (and, tied to it: {', '.join(tied)})" if tied else ""
        what = "widen" if width.new > width.old else "narrow"
        lines.append(f"{what} {width.label}: {width.old} -> {width.new}{also}")
    for insertion in step.insertions:
        kind = insertion.layer_class.__name__
        lines.append(f"insert {insertion.path} ({kind}) after {insertion.after}")
    if step.widths:
        readers = [layer.path for layer in step.layers]
        lines.append(f"change {len(readers)} layers: {', '.join(readers)}")
    lines += step.settings
    lines += [f"skip {skip.path}: {skip.reason}" for skip in step.skipped]
    lines += [f"note: {note}" for note in step.notes]
    return lines or ["nothing to do"]
