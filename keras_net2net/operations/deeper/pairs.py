"""DeeperPairs: the paper's move on Inception, more pairs of 1xn and nx1 convolutions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Iterator
from typing import Any

import keras
from keras import layers

from keras_net2net.errors import GrowthError, NotIdentityError, whole_number
from keras_net2net.operations.base import Operation
from keras_net2net.operations.blocks import find_block
from keras_net2net.operations.deeper.building import Builder, Namer
from keras_net2net.operations.deeper.forms import (
    InsertionPoint,
    changing,
    check_normalized,
    find_moments,
    identity_chain,
    insert_chains,
    insertion_point,
    normalization_notes,
)
from keras_net2net.operations.deeper.identities import leaves_alone
from keras_net2net.operations.select import find_layers, fixed_request, label
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.making import Inserted
from keras_net2net.planning.plan import Insertion, Skipped, Step
from keras_net2net.widths.facts import Facts


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A vertical and a horizontal convolution, one after the other.

    Args:
        first: The first layer, 1xn or nx1.
        second: What is known of the second, nx1 or 1xn.
    """

    first: Any
    second: Facts

    @property
    def layers(self) -> tuple[Any, Any]:
        """Both layers."""
        return self.first, self.second.operation

    def among(self, ids: Container[int]) -> bool:
        """Whether one of the layers has one of these `id`s."""
        return any(id(layer) in ids for layer in self.layers)


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True, repr=False)
class DeeperPairs(Operation):
    """Inserts pairs of 1xn and nx1 convolutions behind those that are there, as identities.

    Inception networks have pairs of a `1xn` and an `nx1` convolution (in either order),
    each with BatchNormalization and activation. Behind every such pair further ones of
    the same kernels are inserted that start as the identity, with their normalizations
    and activations: the paper's experiment on deeper networks inserts two behind each.

    A pair is a `Conv2D` with a kernel of `1xn` whose block is read by one with `nx1`, or
    the other way round, whatever the strides and padding of both. A convolution belongs
    to one pair: of three in a row, the first two are one.

    Args:
        layers: Which pairs: the name, path, glob pattern or layer object of one of the
            two convolutions, or a list of these. Defaults to `None`: all of them.
        count: Integer, how many pairs to insert behind each. Defaults to `1`.
        batch_norm: Boolean, whether the new layers have BatchNormalization.
            Defaults to `None`: as the second of the pair has.
        calibration: Data by which the new normalizations are set, as in `Deeper`.
            Defaults to `None`.

    Raises:
        GrowthError: If an argument isn't possible.

    Source: Chen, Goodfellow, Shlens: Net2Net (ICLR 2016), section 3.2.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, (1, 3), padding="same", activation="relu", name="across"),
    ...     keras.layers.Conv2D(4, (3, 1), padding="same", activation="relu", name="down"),
    ... ])
    >>> report = n2n.grow(model, n2n.DeeperPairs(), seed=0)
    >>> [layer.name for layer in model.layers]
    ['across', 'down', 'down_pair_1_1x3', 'down_pair_1_3x1']
    """

    layers: Any = None
    count: int = 1
    _: dataclasses.KW_ONLY
    batch_norm: bool | None = None
    calibration: Any = dataclasses.field(default=None, compare=False, repr=False)

    def _check(self) -> None:
        count = whole_number(self.count, "`count`", kind="a number of pairs")
        self._set(layers=fixed_request(self.layers), count=count)
        check_normalized(self.batch_norm, "the pair")

    @property
    def exact(self) -> bool:
        """Whether the operation preserves the function: always, at inference."""
        return True

    @property
    def looks_at_model(self) -> bool:
        """Whether weights or activations are needed: for the normalizations."""
        return self.batch_norm is not False

    def draft(self, draft: Draft) -> list[Step]:
        """Inserts the pairs into a draft."""
        pairs, named = self._pairs(draft)
        points: dict[Pair, InsertionPoint] = {}
        skipped = []
        for pair in pairs:
            point = insertion_point(draft, pair.second, self)
            changed = [b for b in point.blocks if not leaves_alone(b.function, b)]
            if not changed:
                points[pair] = point
            elif pair.among(named):
                raise NotIdentityError(
                    f"No pair can be inserted after {label(pair.second)}",
                    changing(changed[0]),
                    "Name a pair with ReLU or no activation",
                )
            else:
                skipped.append(Skipped(pair.second.path, changing(changed[0])))
        find_moments(draft, list(points.values()), self.calibration)
        insertions: list[Insertion] = []
        notes: list[str] = []
        for pair, point in points.items():
            chain = functools.partial(self._chain, draft, pair, point)
            new = insert_chains(draft, point, self.count, chain, followed=-1)
            insertions += new
            notes += normalization_notes(new, point)
        step = Step(self, insertions=tuple(insertions), skipped=tuple(skipped), notes=tuple(notes))
        return [step]

    def _pairs(self, draft: Draft) -> tuple[list[Pair], set[int]]:
        """The pairs that are meant, and the `id`s of the layers that were named outright."""
        pairs = list(find_pairs(draft))
        named: set[int] = set()
        if self.layers is not None:
            matches = find_layers(draft, self.layers)
            named = {id(match.facts.operation) for match in matches if match.named}
            for match in matches:
                if match.named and not any(p.among({id(match.facts.operation)}) for p in pairs):
                    raise GrowthError(
                        f"No pair can be inserted after {label(match.facts)}",
                        "it isn't one of a Conv2D of a kernel 1xn (n > 1) and one of nx1 that "
                        "reads its block",
                        "Name one of such a pair, or use `Deeper` to insert single layers",
                    )
            wanted = {id(match.facts.operation) for match in matches}
            pairs = [pair for pair in pairs if pair.among(wanted)]
        if not pairs:
            raise GrowthError(
                f"No pair of {draft.model.name!r} can be followed by another",
                "there is no Conv2D of a kernel 1xn (n > 1) whose block is read by one of nx1",
                "Use `Deeper` to insert single layers",
            )
        return pairs, named

    def _chain(self, draft: Draft, pair: Pair, point: InsertionPoint) -> list[Inserted]:
        """The layers of one pair."""
        block = point.blocks[0]
        name = Namer(draft, "pair").stem(pair.second.operation.name)
        inline = block.inline and not point.normalized
        chain: list[Inserted] = []
        for layer in pair.layers:
            size = "x".join(map(str, layer.kernel_size))
            path = Builder(draft, block.graph).path(f"{name}_{size}")
            # After the block of the second, whichever of the two its kernel is like.
            chain += identity_chain(point, layer, path, block.function, inline)
        return chain


def find_pairs(draft: Draft) -> Iterator[Pair]:
    """All pairs of a 1xn and an nx1 convolution that follow each other, in graph order."""
    used: set[int] = set()
    for graph, call in draft.graph.all_calls():
        first = call.operation
        size = _line(first)
        if size is None or id(first) in used or graph.opened:
            continue
        for following in graph.consumers(find_block(graph, call).end):
            second = following.operation
            known = draft.inference.facts.get(id(second))
            fits = _line(second) == size[::-1] and id(second) not in used
            if fits and known is not None and known.has_rule:
                used |= {id(first), id(second)}
                yield Pair(first, known)
                break


def _line(layer: Any) -> tuple[int, int] | None:
    """The kernel size of a convolution that is 1xn or nx1, n > 1."""
    if not isinstance(layer, layers.Conv2D):
        return None
    height, width = layer.kernel_size
    return (height, width) if (height == 1) != (width == 1) else None
