"""Both runs as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_net2net.demo.training import Epoch, Run

if TYPE_CHECKING:
    from rich.table import Table


def build(grown: Run, scratch: Run) -> Table:
    """A table of both runs, epoch by epoch: parameters, validation accuracy and seconds.

    Args:
        grown: The `Run` that grew.
        scratch: The `Run` of the final architecture from scratch, of as many epochs.

    Returns:
        A `rich.table.Table`, at most 80 characters wide.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"Parameters, validation accuracy and seconds, {grown.steps:,} steps each",
        caption="A growth happens before the epoch that it stands at.",
    )
    table.add_column("epoch", justify="right")
    table.add_column("growth")
    for name in ("grown", "scratch"):
        for heading in ("parameters", "accuracy", "seconds"):
            table.add_column(f"{name}\n{heading}", justify="right")
    kinds = {growth.epoch: growth.kind for growth in grown.growths}
    for number, (one, other) in enumerate(zip(grown.epochs, scratch.epochs, strict=True)):
        # From 1, as in the progress on the screen above.
        table.add_row(
            str(number + 1),
            kinds.get(number, "").replace(" and ", "\n"),
            *_cells(one),
            *_cells(other),
            style="bold" if number in kinds else "",
        )
    table.add_section()
    table.add_row(
        "all", "", "", "", f"{grown.seconds:.1f}", "", "", f"{scratch.seconds:.1f}", style="bold"
    )
    return table


def _cells(epoch: Epoch) -> tuple[str, str, str]:
    return f"{epoch.parameters:,}", f"{epoch.accuracy:.2%}", f"{epoch.seconds:.1f}"
