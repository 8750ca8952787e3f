"""What a growth did, for people to read and programs to check."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_net2net.planning.plan import Plan


@dataclasses.dataclass(frozen=True)
class GrowthReport:
    """What a growth did.

    Args:
        plan: The plan that was carried out.
        operations: The operations.
        parameters_before: The model's number of parameters before.
        parameters_after: The same, after.
        seconds: How long the growth took, verification included.
        difference: The largest absolute difference between the outputs before and
            after, on the probe batch at inference. `None` if it wasn't measured.
        training_difference: The same in training mode, on the calibration data or the
            probe batch. `None` if it wasn't measured: only inserted normalizations
            make it differ from `difference`.
        notes: What else a reader should know.
        epoch: The epoch before which the growth happened, counted as the callback
            counts. `None` outside of a callback.
        step: The number of steps that the optimizer had done, as its schedule counts
            them. `None` without an optimizer.
        undone: The epoch before which the growth was undone, since it had not paid.
            `None` if it wasn't.
    """

    plan: Plan
    operations: tuple[Any, ...]
    parameters_before: int
    parameters_after: int
    seconds: float
    difference: float | None = None
    notes: tuple[str, ...] = ()
    epoch: int | None = None
    step: int | None = None
    training_difference: float | None = None
    undone: int | None = None

    @classmethod
    def of(cls, plan: Plan, **seen: Any) -> GrowthReport:
        """The report of a plan that was carried out, with what was seen then."""
        operations = tuple(step.operation for step in plan.steps)
        return cls(plan, operations, plan.parameters_before, plan.parameters_after, **seen)

    def headline(self) -> str:
        """The growth in one line."""
        grown = [
            f"{width.label} {width.old} -> {width.new}"
            for step in self.plan.steps
            for width in step.widths
        ]
        grown += [setting for step in self.plan.steps for setting in step.settings]
        inserted = [i.path for step in self.plan.steps for i in step.insertions]
        more = "more" if any(step.settings for step in self.plan.steps) else "more widths"
        shown = grown[:4] + ([f"and {len(grown) - 4} {more}"] if len(grown) > 4 else [])
        if inserted:
            more = f" and {len(inserted) - 4} more" if len(inserted) > 4 else ""
            shown.append(f"inserted {', '.join(inserted[:4])}{more}")
        what = "; ".join(shown) or "nothing to grow"
        seen = (
            "not compared"
            if self.difference is None
            else f"largest difference {self.difference:.1e}"
        )
        if self.training_difference is not None:
            seen += f" ({self.training_difference:.1e} in training mode)"
        return (
            f"{what} | {self.parameters_before:,} -> {self.parameters_after:,} parameters, "
            f"{self.seconds:.2f} s, {seen}"
        )

    def summary(self) -> str:
        """The growth in full: the headline, then the plan."""
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([self.headline(), self.plan.summary(), *notes])

    def __str__(self) -> str:
        return self.summary()
