"""Narrower: units are removed again, exactly where they are copies of others."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import keras

from keras_net2net.errors import GrowthError, SizeError, check_choice
from keras_net2net.operations.narrower.duplicates import (
    Held,
    Removable,
    removable,
    unequal,
    weights_of,
)
from keras_net2net.operations.narrower.least_change import Activations, largest, norms
from keras_net2net.operations.resizing import Asked, Request, Resizing
from keras_net2net.planning.changes import Addition
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import Step
from keras_net2net.planning.remaps import Remap
from keras_net2net.widths.expressions import Width
from keras_net2net.widths.sizes import growable

KEEP = ("duplicates", "norm", "activation")


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True, repr=False)
class Narrower(Resizing):
    """Removes units of layers: `Wider` the other way round.

    Everything that the units reach shrinks with them: the layers that read them,
    normalizations, and, where units are summed, the other layers of the sum.

    Args:
        layers: Which layers, as for `Wider`. Defaults to `None`: every layer that can
            be narrowed.
        units: Integer, the new number of units, or a dict, as for `Wider`. Defaults to
            `None`; with `keep="duplicates"` all duplicates there are then go.
        factor: Float below 1, the new size relative to the old one, rounded to the
            nearest integer, and at least one unit fewer. Or a dict, as for `units`.
            Defaults to `None`.
        round_to: Integer. New sizes are rounded up to a multiple of it. Defaults to `1`.
        keep: Which units stay.

            - `"duplicates"`: those of which no other is a copy: units with the same
              incoming weights (up to how copies share those that they read) and the
              same numbers in all that follows them. What reads the copies is added up:
              exact. Units that fill up a layer normalization go as well. After a
              widening with copies this gives the first weights back, up to rounding.
            - `"norm"`: those with the largest product of the norm of all incoming
              weights, the scale of the normalizations (`|gamma| / sqrt(variance +
              epsilon)`), and the norm of all outgoing weights. *Not* exact, unless
              what is removed is read with zeros, as fresh units are.
            - `"activation"`: those whose removal changes least what reads them, as an
              expected square on a batch of data (`calibration=x`): the variance of
              the activation times the squared norm of the weights that read it. The
              mean of what is removed goes into the bias of the layer that reads it,
              or the moving mean of the batch normalization behind that. Where there
              is neither, the mean square takes the place of the variance. *Not* exact.

            Defaults to `"duplicates"`.

    Raises:
        GrowthError: If the arguments contradict each other.
        SizeError: If a size isn't possible.

    Source: the norm of filters as a criterion: Li et al., Pruning Filters for Efficient
    ConvNets (ICLR 2017, arXiv:1608.08710), section 3.1, there of incoming weights alone;
    the factor gamma: Liu et al., Network Slimming (ICCV 2017, arXiv:1708.06519).

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> _ = n2n.grow(model, n2n.Wider("hidden", units=24), seed=0)
    >>> report = n2n.grow(model, n2n.Narrower("hidden"))
    >>> model.get_layer("hidden").units, report.difference < 1e-5
    (16, True)
    """

    layers: Any = None
    units: int | dict[str, int] | None = None
    _: dataclasses.KW_ONLY
    factor: float | dict[str, float] | None = None
    round_to: int = 1
    keep: str = "duplicates"

    _grows: ClassVar[bool] = False
    _do: ClassVar[str] = "narrow"
    _done: ClassVar[str] = "narrowed"
    _change: ClassVar[str] = "shrink"
    _only: ClassVar[str] = "only removes units"
    _beyond: ClassVar[str] = "fewer than {} units, or use `Wider`"
    _lists: ClassVar[str] = "Narrower(factor=0.5, keep='norm')"

    def _check(self) -> None:
        check_choice("keep", self.keep, KEEP, "duplicates")
        self._take_sizes(
            f"`Narrower('conv1', units=32, keep={self.keep!r})`, or none of them with "
            "`keep='duplicates'`",
            not self.exact,
            lambda factor: 0 < factor < 1,
            "a narrower layer has fewer units than before, and at least one",
            "Pass a factor between 0 and 1",
        )

    @property
    def exact(self) -> bool:
        """Whether the operation preserves the function: where only duplicates go."""
        return self.keep == "duplicates"

    @property
    def looks_at_model(self) -> bool:
        """It looks at weights, and for `keep="activation"` at activations."""
        return True

    def draft(self, draft: Draft) -> list[Step]:
        """Narrows the layers of a draft."""
        weights = weights_of(draft.inference)
        notes: tuple[str, ...] = ()
        additions: dict[str, tuple[Addition, ...]] = {}
        if self.exact:
            asked, remaps = self._without_duplicates(draft, weights)
        else:
            asked = self._asked(draft)
            remaps, additions, notes = self._with_least_change(draft, weights, asked.sizes)
        if not remaps:
            return self._nothing(draft, asked)
        return self._step(asked, draft.remap(remaps, asked.paths, additions=additions), notes)

    def _scaled(self, now: int, factor: float) -> int:
        return max(1, min(now - 1, math.floor(now * factor + 0.5)))

    # -- duplicates ----------------------------------------------------------------

    def _without_duplicates(
        self, draft: Draft, weights: list[Held]
    ) -> tuple[Asked, dict[Width, Remap]]:
        free = [width for width in draft.owners() if width.obstacle is None]
        found = removable(draft.inference, weights, free)

        def all_that_go(request: Request) -> dict[Width, int]:
            return {width: found[width].sizes()[0] for width in growable(request.expression)}

        asked = self._asked(draft, None if self._says_sizes else all_that_go)
        remaps: dict[Width, Remap] = {}
        for width, size in list(asked.sizes.items()):
            if size == width.size:
                asked.skip(width, "has no duplicates")
            elif size in found[width].sizes():
                remaps[width] = found[width].remap(size)
            else:
                self._leave(asked, width, self._too_few(width, found[width]))
        while problems := unequal(draft.inference, remaps):
            for width, problem in problems.items():
                del remaps[width]
                self._leave(asked, width, problem)
        return asked, remaps

    def _leave(self, asked: Asked, width: Width, why: str) -> None:
        problem = f"Layer {{}} can't be narrowed to {asked.sizes[width]} units exactly"
        instead = "Pass another size, or `keep='norm'`, which changes the function least"
        asked.leave(width, why, problem, instead, SizeError)

    def _too_few(self, width: Width, found: Removable) -> str:
        possible = found.sizes()
        count = len(found.labels) - possible[0]
        if not count:
            return f"none of its {width.size} units is a duplicate"
        if len(possible) <= count:
            listed = ", ".join(map(str, possible[:-1]))
            return (
                f"{count} of its {width.size} units are duplicates, and a normalization over the "
                f"units lets it have {listed} without them"
            )
        return f"only {count} of its {width.size} units are duplicates"

    def _nothing(self, draft: Draft, asked: Asked) -> list[Step]:
        if self.exact and any("no duplicates" in skip.reason for skip in asked.skipped):
            return self._step(asked)
        return super()._nothing(draft, asked)

    # -- least change ----------------------------------------------------------------

    def _with_least_change(
        self, draft: Draft, weights: list[Held], sizes: dict[Width, int]
    ) -> tuple[dict[Width, Remap], dict[str, tuple[Addition, ...]], tuple[str, ...]]:
        by_norm = self.keep == "norm" or not sizes
        if not by_norm and draft.calibration is None:
            raise GrowthError(
                "The activations of the units can't be compared",
                "`keep='activation'` needs data to look at",
                "Pass `grow(..., calibration=x)` with a batch of inputs, or `keep='norm'`",
            )
        seen = None if by_norm else Activations(draft, weights)
        remaps: dict[Width, Remap] = {}
        blind = []
        # What reads units that go doesn't count: from the outputs to the inputs.
        for width, size in reversed(sizes.items()):
            scores = None if seen is None else seen.scores(width, remaps)
            if scores is None:
                scores = norms(weights, width, remaps)
                blind.append(repr(width))
            remaps[width] = largest(scores, size)
        remaps = {width: remaps[width] for width in sizes}
        if seen is None:
            return remaps, {}, ("not exact: the units with the smallest norms are removed",)
        notes = ["not exact: the units whose activations matter least are removed"]
        if blind:
            notes.append(f"chosen by norm, since nothing shows what reads them: {', '.join(blind)}")
        return remaps, seen.means_to_biases(remaps), tuple(notes)
