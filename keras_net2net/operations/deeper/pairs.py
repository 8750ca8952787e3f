"""DeeperPairs: the paper's move on Inception, more pairs of 1xn and nx1 convolutions."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras
from keras import layers

from keras_net2net.errors import GrowthError, NotIdentityError, whole_number
from keras_net2net.operations.base import (
    Operation,
    check_normalized,
    find_layers,
    fixed_request,
    label,
)
from keras_net2net.operations.deeper.blocks import Block, find_block
from keras_net2net.operations.deeper.building import Builder, Namer
from keras_net2net.operations.deeper.forms import (
    Site,
    calibrate,
    identity_chain,
    insert_chains,
    normalization_notes,
)
from keras_net2net.operations.deeper.identities import leaves_alone
from keras_net2net.planning.draft import Draft, Inserted
from keras_net2net.planning.plan import Insertion, Skipped, Step
from keras_net2net.widths.facts import Facts


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A vertical and a horizontal convolution, one after the other.

    Args:
        first: The block of the first, 1xn or nx1.
        second: What is known of the second, nx1 or 1xn.
        blocks: The block of the second, at each call of it.
    """

    first: Block
    second: Facts
    blocks: list[Block]


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
        pairs, skipped = self._pairs(draft)
        sites = [self._site(draft, pair) for pair in pairs]
        calibrate(draft, sites, self.calibration)
        insertions: list[Insertion] = []
        notes: list[str] = []
        for pair, site in zip(pairs, sites, strict=True):
            chain = functools.partial(self._chain, draft, pair, site)
            new = insert_chains(draft, site, self.count, chain, followed=-1)
            insertions += new
            notes += normalization_notes(new, site)
        return [Step(self, insertions=tuple(insertions), skipped=skipped, notes=tuple(notes))]

    def _pairs(self, draft: Draft) -> tuple[list[Pair], tuple[Skipped, ...]]:
        """The pairs that are meant, and those of them that have no identity."""
        pairs = find_pairs(draft)
        named: set[int] = set()
        if self.layers is not None:
            matches = find_layers(draft, self.layers)
            wanted = {id(match.facts.operation) for match in matches}
            named = {id(match.facts.operation) for match in matches if match.named}
            found = {id(one) for pair in pairs for one in _layers_of(pair)}
            for match in matches:
                if match.named and id(match.facts.operation) not in found:
                    raise _no_pair(match.facts)
            pairs = [pair for pair in pairs if any(id(x) in wanted for x in _layers_of(pair))]
        if not pairs:
            raise GrowthError(
                f"No pair of {draft.model.name!r} can be followed by another",
                "there is no Conv2D of a kernel 1xn (n > 1) whose block is read by one of nx1",
                "Use `Deeper` to insert single layers",
            )
        kept, skipped = [], []
        for pair in pairs:
            changed = [b for b in pair.blocks if not leaves_alone(b.function, b)]
            if not changed:
                kept.append(pair)
                continue
            name = changed[0].activation_label
            why = f"its activation {name!r} isn't idempotent: f(f(x)) differs from f(x)"
            if self.layers is not None and any(id(x) in named for x in _layers_of(pair)):
                raise NotIdentityError(
                    f"No pair can be inserted after {label(pair.second)}",
                    why,
                    "Name a pair with ReLU or no activation",
                )
            skipped.append(Skipped(pair.second.path, why))
        return kept, tuple(skipped)

    def _site(self, draft: Draft, pair: Pair) -> Site:
        own = pair.blocks[0].normalization is not None
        normalized = own if self.batch_norm is None else self.batch_norm
        return Site(pair.second, pair.blocks, normalized, True, self.calibration is not None)

    def _chain(self, draft: Draft, pair: Pair, site: Site) -> list[Inserted]:
        """The layers of one pair."""
        block = pair.blocks[0]
        name = Namer(draft, "pair").stem(pair.second.operation.name)
        inline = block.inline and not site.normalized
        chain: list[Inserted] = []
        for layer in _layers_of(pair):
            path = Builder(draft, block.graph).path(
                f"{name}_{'x'.join(map(str, layer.kernel_size))}"
            )
            # After the block of the second, whichever of the two its kernel is like.
            chain += identity_chain(site, layer, path, block.function, inline)
        return chain


def find_pairs(draft: Draft) -> list[Pair]:
    """All pairs of a 1xn and an nx1 convolution that follow each other, in graph order."""
    facts = draft.inference.facts
    pairs: list[Pair] = []
    used: set[int] = set()
    for graph, call in draft.graph.all_calls():
        size = _line(call.operation)
        if size is None or id(call.operation) in used or graph.opened:
            continue
        first = find_block(graph, call)
        for following in graph.consumers(first.end):
            second = following.operation
            known = facts.get(id(second))
            fits = _line(second) == size[::-1] and id(second) not in used
            if not fits or known is None or not known.has_rule:
                continue
            blocks = [find_block(g, one) for g, one in draft.calls_of(second)]
            used |= {id(call.operation), id(second)}
            pairs.append(Pair(first, known, blocks))
            break
    return pairs


def _line(layer: Any) -> tuple[int, int] | None:
    """The kernel size of a convolution that is 1xn or nx1, n > 1."""
    if not isinstance(layer, layers.Conv2D):
        return None
    height, width = layer.kernel_size
    return (height, width) if (height == 1) != (width == 1) else None


def _layers_of(pair: Pair) -> tuple[Any, Any]:
    return pair.first.call.operation, pair.second.operation


def _no_pair(facts: Facts) -> GrowthError:
    return GrowthError(
        f"No pair can be inserted after {label(facts)}",
        "it isn't one of a Conv2D of a kernel 1xn (n > 1) and one of nx1 that reads its block",
        "Name one of such a pair, or use `Deeper` to insert single layers",
    )
