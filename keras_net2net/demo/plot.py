"""Both runs as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from keras_net2net.demo.training import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue, vermilion and dark grey: told apart by colour-blind readers too.
GROWN, SCRATCH, GROWTH = "#0072B2", "#D55E00", "#444444"


def save(path: Path, grown: Run, scratch: Run, title: str) -> None:
    """Draws the validation loss and accuracy of both runs, with the growths marked.

    At each growth the loss is shown twice: measured right before (a ring) and right after (the dot
    in it).

    Args:
        path: Path of the `.png` file to write.
        grown: The `Run` that grew.
        scratch: The `Run` from scratch.
        title: String, what was learnt.
    """
    draw(grown, scratch, title).savefig(path, dpi=150)


def draw(grown: Run, scratch: Run, title: str) -> Figure:
    """The picture that `save` writes, as a `matplotlib.figure.Figure`."""
    # A bare Figure, without pyplot: no window, no global state, whatever backend is set.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(title, fontsize=13)
    loss, accuracy = figure.subplots(1, 2)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for run, label, color in ((scratch, "from scratch", SCRATCH), (grown, "grown", GROWN)):
            values = [getattr(epoch, name) for epoch in run.epochs]
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=color,
                label=label,
                linewidth=2,
                marker=".",
            )
        axes.set_title(f"validation {name}", loc="left", fontsize=11)
        axes.set_xlabel("epochs trained")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for growth in grown.growths:
            axes.axvline(growth.epoch, color=GROWTH, linewidth=1, linestyle=":")
    # Room above the curves for what is written at the growths.
    highest = max(epoch.loss for run in (grown, scratch) for epoch in run.epochs)
    loss.set_ylim(0, 1.35 * highest if math.isfinite(highest) else None)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.legend(frameon=False, loc="lower right")
    _mark_growths(loss, grown)
    return figure


def _mark_growths(axes: Axes, grown: Run) -> None:
    parameters, middle = grown.epochs[0].parameters, (len(grown.epochs) + 1) / 2
    for number, growth in enumerate(grown.growths):
        side = 1 if growth.epoch < middle else -1
        before, after = growth.loss_before, growth.loss_after
        axes.plot(growth.epoch, before, "o", color=GROWTH, markersize=11, markerfacecolor="none")
        axes.plot(growth.epoch, after, "o", color=GROWTH, markersize=5)
        axes.annotate(
            f"{growth.kind}: {parameters:,} \u2192 {growth.parameters:,} parameters\n"
            f"loss {growth.loss_before:.5f} \u2192 {growth.loss_after:.5f}",
            # Each a little lower than the one before, so that close growths stay legible.
            xy=(growth.epoch, 1 - 0.13 * number),
            xycoords=("data", "axes fraction"),
            xytext=(6 * side, 0),
            textcoords="offset points",
            horizontalalignment="left" if side == 1 else "right",
            verticalalignment="top",
            fontsize=9,
            color=GROWTH,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
        parameters = growth.parameters
