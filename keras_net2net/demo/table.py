"""Both runs as a table."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Column, Table

from keras_net2net.demo.training import Run


def show(grown: Run, scratch: Run) -> None:
    """Prints a table of both runs, epoch by epoch, and what each growth did to the loss.

    Args:
        grown: The `Run` that grew.
        scratch: The `Run` of the final architecture from scratch, of as many epochs.
    """
    steps = int(grown.model.optimizer.iterations)
    table = Table(
        Column("epoch", justify="right"),
        "growth",
        title=f"Parameters, validation accuracy and seconds, {steps:,} steps each",
        caption="A growth happens before the epoch that it stands at.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("grown", "scratch"):
        for heading in ("parameters", "accuracy", "seconds"):
            table.add_column(f"{name}\n{heading}", justify="right")
    kinds = {growth.epoch: growth.kind.replace(" and ", "\n") for growth in grown.growths}
    for epoch in range(len(grown.loss)):
        # From 1, as in the progress on the screen above.
        cells = [str(epoch + 1), kinds.get(epoch, "")]
        for run in (grown, scratch):
            parameters, accuracy = run.parameters[epoch], run.accuracy[epoch]
            cells += [f"{parameters:,}", f"{accuracy:.2%}", f"{run.seconds[epoch]:.1f}"]
        table.add_row(*cells, style="bold" if epoch in kinds else "")
    table.add_section()
    ours, theirs = (f"{sum(run.seconds):.1f}" for run in (grown, scratch))
    table.add_row("all", "", "", "", ours, "", "", theirs, style="bold")
    Console().print("", table, sep="\n")
    for growth in grown.growths:
        print(
            f"{growth.kind} after epoch {growth.epoch}: validation loss "
            f"{growth.loss_before:.6f} right before, {growth.loss_after:.6f} right after"
        )
