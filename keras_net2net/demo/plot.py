"""Both runs as a picture."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from keras_net2net.demo.training import Run

# Okabe and Ito's blue, vermilion and dark grey: told apart by colour-blind readers too.
GROWN, SCRATCH, GROWTH = "#0072B2", "#D55E00", "#444444"


def draw(grown: Run, scratch: Run, name: str) -> Figure:
    """Draws the validation loss and accuracy of both runs, with the growths marked.

    At each growth the loss is shown twice: measured right before (a ring) and right after (the dot
    in it).

    Args:
        grown: The `Run` that grew.
        scratch: The `Run` from scratch.
        name: String, what the data is called.

    Returns:
        The picture, a `matplotlib.figure.Figure`.
    """
    # A bare Figure, without pyplot: no window, no global state, whatever backend is set.
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(f"Grown against from scratch on {name}", fontsize=13)
    loss, accuracy = figure.subplots(1, 2)
    for axes, measure in ((loss, "loss"), (accuracy, "accuracy")):
        for run, label, color in ((scratch, "from scratch", SCRATCH), (grown, "grown", GROWN)):
            epochs, values = zip(*enumerate(getattr(run, measure), start=1), strict=True)
            axes.plot(epochs, values, color=color, label=label, linewidth=2, marker=".")
        axes.set_title(f"validation {measure}", loc="left", fontsize=11)
        axes.set_xlabel("epochs trained")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for growth in grown.growths:
            axes.axvline(growth.epoch, color=GROWTH, linewidth=1, linestyle=":")
    # Room above the curves for what is written at the growths.
    highest = max(*grown.loss, *scratch.loss)
    loss.set_ylim(0, 1.35 * highest if math.isfinite(highest) else None)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.legend(frameon=False, loc="lower right")
    for number, growth in enumerate(grown.growths):
        before, after = growth.loss_before, growth.loss_after
        left = 2 * growth.epoch <= len(grown.loss)
        loss.plot(growth.epoch, before, "o", color=GROWTH, markersize=11, markerfacecolor="none")
        loss.plot(growth.epoch, after, "o", color=GROWTH, markersize=5)
        loss.annotate(
            f"{growth.kind}: {growth.parameters_before:,} \u2192 {growth.parameters_after:,} "
            f"parameters\nloss {before:.5f} \u2192 {after:.5f}",
            # Each a little lower than the one before, so that close growths stay legible.
            (growth.epoch, 1 - 0.13 * number),
            xycoords=("data", "axes fraction"),
            xytext=(6 if left else -6, 0),
            textcoords="offset points",
            ha="left" if left else "right",
            va="top",
            color=GROWTH,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    return figure
