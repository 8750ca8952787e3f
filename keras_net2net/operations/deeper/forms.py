"""The forms that an inserted layer can take, and which of them fits a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from keras import layers

from keras_net2net.errors import GrowthError
from keras_net2net.internals.activations import activation_label, is_linear
from keras_net2net.operations.blocks import Block, find_block
from keras_net2net.operations.data import inputs_of
from keras_net2net.operations.deeper.building import Builder
from keras_net2net.operations.deeper.identities import activation_layer, kernel_layer, normalization
from keras_net2net.operations.deeper.moments import Channels, Moments, derived, measure, pooled
from keras_net2net.operations.families import FAMILY_NAMES, bn_axis
from keras_net2net.operations.select import label
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.making import Inserted
from keras_net2net.planning.plan import Insertion
from keras_net2net.widths.facts import Facts


@dataclasses.dataclass(eq=False)
class InsertionPoint:
    """A layer after which something is inserted.

    Args:
        facts: What is known of the layer.
        blocks: The block that it begins, at each call of it.
        normalized: Whether what is inserted has a BatchNormalization.
        measured: Whether the moments of its activations are measured on data.
        activation: That of what is inserted, which leaves all blocks as they are. `None`:
            none does.
        branches: Whether a residual block can stand there.
        moments: Those that a normalization is set by, as soon as they are known.
        source: Where these are from.
    """

    facts: Facts
    blocks: list[Block]
    normalized: bool
    measured: bool
    activation: Any = None
    branches: bool = False
    moments: Moments | None = None
    source: str = ""

    @property
    def layer(self) -> Any:
        """The layer."""
        return self.facts.operation

    @property
    def idempotent(self) -> bool:
        """Whether there is such an activation."""
        return self.activation is not None


def insertion_point(draft: Draft, facts: Facts, operation: Any) -> InsertionPoint:
    """What is known of a layer after which an operation inserts something.

    Args:
        draft: The draft.
        facts: The layer.
        operation: The operation, with a `batch_norm` and data of its own for `calibration`.
    """
    blocks = [find_block(graph, call) for graph, call in draft.calls_of(facts.operation)]
    normalized = operation.batch_norm
    if normalized is None:
        normalized = blocks[0].normalization is not None
    own = operation.calibration is not None
    measured = own or (normalized and draft.calibration is not None)
    return InsertionPoint(facts, blocks, normalized, measured)


def changing(block: Block) -> str:
    """Why an activation can't be repeated."""
    return f"its activation {block.activation_label!r} isn't idempotent: f(f(x)) differs from f(x)"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A form that `"auto"` may choose.

    Args:
        form: The form.
        fits: Whether it is exact after a layer.
        why: Why it is chosen, for the note.
    """

    form: str
    fits: Callable[[InsertionPoint], bool]
    why: str


# The first that fits is taken; those that are exact in both modes come first.
CHOICES = (
    Choice(
        "identity",
        lambda point: point.idempotent and (point.measured or not point.normalized),
        "its activation is idempotent",
    ),
    Choice(
        "prelu",
        lambda point: point.measured or not point.normalized,
        "its activation isn't idempotent",
    ),
    Choice(
        "residual",
        lambda point: point.branches,
        "its normalization has no data, and a block that adds zero needs none",
    ),
    Choice(
        "identity",
        lambda point: point.idempotent,
        "its activation is idempotent, though its normalization has no data",
    ),
    Choice("prelu", lambda point: True, "its activation isn't idempotent"),
)


def choose(point: InsertionPoint) -> tuple[str, tuple[str, ...]]:
    """The form that fits a layer best, and a note that says why."""
    choice = next(choice for choice in CHOICES if choice.fits(point))
    return choice.form, (f"{point.facts.path}: form {choice.form!r}, since {choice.why}",)


def find_moments(draft: Draft, points: list[InsertionPoint], data: Any = None) -> None:
    """Finds the moments by which the normalizations that are inserted are set.

    Args:
        draft: The draft; its model is as its graph was read.
        points: Where they are inserted; told the moments, and where these are from.
        data: The operation's own data. Defaults to `None`: what the growth was given.
    """
    points = [point for point in points if point.normalized]
    label = "its calibration data"
    if data is None and points:
        data, label = draft.calibration, draft.calibration_label
    if not points:
        return
    if data is None:
        for point in points:
            known = [derived(block) for block in point.blocks]
            if None not in known:
                point.moments = pooled([one for one in known if one is not None])
                names = dict.fromkeys(block.normalization_name for block in point.blocks)
                point.source = " and ".join(map(repr, names))
        return
    draft.exact_on(inputs_of(data))
    channels = [
        Channels(block.graph, block.end, _axis(point.layer, block))
        for point in points
        for block in point.blocks
    ]
    found = iter(measure(draft, channels, data))
    for point in points:
        point.moments = pooled([next(found) for _ in point.blocks])
        point.source = label
        point.measured = True


def identity_chain(
    point: InsertionPoint, layer: Any, path: str, activation: Any, inline: bool
) -> list[Inserted]:
    """The layers that one identity is made of: kernel, normalization, activation.

    Args:
        point: Where they are inserted.
        layer: The layer of whose family, and with whose kernel size, the kernel is.
        path: The path of the kernel; the others' begin like it.
        activation: The activation, or `None`.
        inline: Whether the activation is the kernel layer's own.

    Returns:
        The layers.

    Raises:
        GrowthError: If there are none.
    """
    block = point.blocks[0]
    kernel = kernel_layer(layer, path, block.end, activation if inline else None)
    if isinstance(kernel, str):
        raise GrowthError(
            f"No layer can be inserted after {label(point.facts)}", kernel, f"Name {FAMILY_NAMES}"
        )
    chain = [kernel]
    if point.normalized:
        chain.append(normalization(point.layer, block, f"{path}_bn", point.moments, block.end))
    if activation is not None and not inline and not is_linear(activation):
        path = f"{path}_{activation_label(activation)}"
        chain.append(activation_layer(activation, path, block.end))
    return chain


def insert_chains(
    draft: Draft,
    point: InsertionPoint,
    count: int,
    chain: Callable[[], list[Inserted]],
    followed: int,
) -> list[Insertion]:
    """Inserts identities behind a layer, at each call of it.

    Args:
        draft: The draft.
        point: The layer.
        count: How many identities.
        chain: Makes the layers of the next one.
        followed: The position of that layer in a chain that the plan says the next chain
            stands behind.

    Returns:
        What was inserted.
    """
    ends = [block.end for block in point.blocks]
    behind = point.facts.path
    insertions: list[Insertion] = []
    for _ in range(count):
        made = chain()
        for i, block in enumerate(point.blocks):
            builder = Builder(draft, block.graph, behind=behind)
            end = ends[i]
            for inserted in made:
                end = builder.put(inserted, end)
            ends[i] = builder.finish(ends[i], end)[0]
        insertions += [inserted.insertion for inserted in made]
        behind = made[followed].path
    return insertions


def _axis(layer: Any, block: Block) -> int:
    return bn_axis(layer) if block.normalization is None else int(block.normalization.axis)


def normalization_notes(insertions: Iterable[Insertion], point: InsertionPoint) -> list[str]:
    """What a user should know of the normalizations that were inserted."""
    paths = [i.path for i in insertions if issubclass(i.layer_class, layers.BatchNormalization)]
    if not paths:
        return []
    if point.measured:
        how = f"set by the statistics of {point.source}: exact at inference, and in training mode"
        how += " on that data"
    elif point.moments is not None:
        how = f"set by what {point.source} says of its input: exact at inference; in training "
        how += "mode as far as a batch has these statistics"
    else:
        how = "exact at inference; in training mode it normalizes by the statistics of the batch, "
        how += "so that outputs differ until it has adapted"
    return [f"{', '.join(paths)}: {how}"]


def check_normalized(batch_norm: Any, model: str) -> None:
    """Checks the argument that says whether what is inserted is normalized.

    Args:
        batch_norm: The argument.
        model: What `None` means: as this has it.

    Raises:
        GrowthError: If it is neither `True` nor `False` nor `None`.
    """
    if batch_norm not in (None, True, False):
        raise GrowthError(
            f"`batch_norm` can't be {batch_norm!r}",
            "it says whether the new layers are normalized",
            f"Pass `True`, `False`, or `None` for what {model} has",
        )
