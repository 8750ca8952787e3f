"""The forms that an inserted layer can take, and which of them fits a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from keras import layers

from keras_net2net.errors import GrowthError
from keras_net2net.operations.base import label
from keras_net2net.operations.deeper.blocks import Block
from keras_net2net.operations.deeper.building import insert_in_a_row
from keras_net2net.operations.deeper.identities import (
    FAMILY_NAMES,
    activation_label,
    activation_layer,
    bn_axis,
    is_linear,
    kernel_layer,
    normalization,
)
from keras_net2net.operations.deeper.normalization import (
    Moments,
    Point,
    derived,
    inputs_of,
    measure,
    pooled,
)
from keras_net2net.planning.draft import Draft, Inserted
from keras_net2net.planning.plan import Insertion
from keras_net2net.widths.facts import Facts


@dataclasses.dataclass(eq=False)
class Site:
    """A layer after which something is inserted.

    Args:
        facts: What is known of the layer.
        blocks: The block that it begins, at each call of it.
        normalized: Whether what is inserted has a BatchNormalization.
        idempotent: Whether the activation of what is inserted leaves all blocks as
            they are.
        measured: Whether the moments of its activations are measured on data.
        branches: Whether a residual block can stand there.
        moments: Those that a normalization is set by, as soon as they are known.
        source: Where these are from.
    """

    facts: Facts
    blocks: list[Block]
    normalized: bool
    idempotent: bool
    measured: bool
    branches: bool = False
    moments: Moments | None = None
    source: str = ""

    @property
    def layer(self) -> Any:
        """The layer."""
        return self.facts.operation


@dataclasses.dataclass(frozen=True)
class Choice:
    """A form that `"auto"` may choose.

    Args:
        form: The form.
        fits: Whether it is exact after a layer.
        why: Why it is chosen, for the note.
    """

    form: str
    fits: Callable[[Site], bool]
    why: str


# The first that fits is taken; those that are exact in both modes come first.
CHOICES = (
    Choice(
        "identity",
        lambda site: site.idempotent and (site.measured or not site.normalized),
        "its activation is idempotent",
    ),
    Choice(
        "prelu",
        lambda site: site.measured or not site.normalized,
        "its activation isn't idempotent",
    ),
    Choice(
        "residual",
        lambda site: site.branches,
        "its normalization has no data, and a block that adds zero needs none",
    ),
    Choice(
        "identity",
        lambda site: site.idempotent,
        "its activation is idempotent, though its normalization has no data",
    ),
    Choice("prelu", lambda site: True, "its activation isn't idempotent"),
)


def choose(site: Site) -> tuple[str, tuple[str, ...]]:
    """The form that fits a layer best, and a note that says why."""
    choice = next(choice for choice in CHOICES if choice.fits(site))
    return choice.form, (f"{site.facts.path}: form {choice.form!r}, since {choice.why}",)


def calibrate(draft: Draft, sites: list[Site], data: Any = None) -> None:
    """Finds the moments by which the normalizations of sites are set.

    Args:
        draft: The draft; its model is as its graph was read.
        sites: The sites; they are told the moments, and where these are from.
        data: The operation's own data. Defaults to `None`: what the growth was given.
    """
    sites = [site for site in sites if site.normalized]
    label = "its calibration data"
    if data is None and sites:
        data, label = draft.calibration, draft.calibration_label
    if not sites:
        return
    if data is None:
        for site in sites:
            known = [derived(block) for block in site.blocks]
            if None not in known:
                site.moments = pooled([one for one in known if one is not None])
                names = dict.fromkeys(str(block.normalization_name) for block in site.blocks)
                site.source = " and ".join(map(repr, names))
        return
    draft.training_data = inputs_of(data)
    points = [
        Point(block.graph, block.end, _axis(site.layer, block))
        for site in sites
        for block in site.blocks
    ]
    found = iter(measure(draft, points, data))
    for site in sites:
        site.moments = pooled([next(found) for _ in site.blocks])
        site.source = label
        site.measured = True


def identity_chain(
    site: Site, layer: Any, path: str, activation: Any, inline: bool
) -> list[Inserted]:
    """The layers that one identity is made of: kernel, normalization, activation.

    Args:
        site: Where they are inserted.
        layer: The layer of whose family, and with whose kernel size, the kernel is.
        path: The path of the kernel; the others' begin like it.
        activation: The activation, or `None`.
        inline: Whether the activation is the kernel layer's own.

    Returns:
        The layers.

    Raises:
        GrowthError: If there are none.
    """
    block = site.blocks[0]
    kernel = kernel_layer(layer, path, block.end, activation if inline else None)
    if isinstance(kernel, str):
        raise GrowthError(
            f"No layer can be inserted after {label(site.facts)}", kernel, f"Name {FAMILY_NAMES}"
        )
    chain = [kernel]
    if site.normalized:
        chain.append(normalization(site.layer, block, f"{path}_bn", site.moments, block.end))
    if activation is not None and not inline and not is_linear(activation):
        path = f"{path}_{activation_label(activation)}"
        chain.append(activation_layer(activation, path, block.end))
    return chain


def insert_chains(
    draft: Draft, site: Site, count: int, chain: Callable[[], list[Inserted]], followed: int
) -> list[Insertion]:
    """Inserts identities behind a layer, at each call of it.

    Args:
        draft: The draft.
        site: The layer.
        count: How many identities.
        chain: Makes the layers of the next one.
        followed: The position of that layer in a chain that the plan says the next chain
            stands behind.

    Returns:
        What was inserted.
    """
    ends = [block.end for block in site.blocks]
    graphs = [block.graph for block in site.blocks]
    behind = site.facts.path
    insertions: list[Insertion] = []
    for _ in range(count):
        made = chain()
        ends = insert_in_a_row(draft, made, zip(graphs, ends, strict=True), behind)
        insertions += [inserted.insertion for inserted in made]
        behind = made[followed].path
    return insertions


def _axis(layer: Any, block: Block) -> int:
    return bn_axis(layer) if block.normalization is None else int(block.normalization.axis)


def normalization_notes(insertions: Iterable[Insertion], site: Site) -> list[str]:
    """What a user should know of the normalizations that were inserted."""
    paths = [i.path for i in insertions if issubclass(i.layer_class, layers.BatchNormalization)]
    if not paths:
        return []
    if site.measured:
        how = f"set by the statistics of {site.source}: exact at inference, and in training mode"
        how += " on that data"
    elif site.moments is not None:
        how = f"set by what {site.source} says of its input: exact at inference; in training mode "
        how += "as far as a batch has these statistics"
    else:
        how = "exact at inference; in training mode it normalizes by the statistics of the batch, "
        how += "so that outputs differ until it has adapted"
    return [f"{', '.join(paths)}: {how}"]
