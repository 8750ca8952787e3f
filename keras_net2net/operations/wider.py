"""Net2WiderNet: more units in a layer (Chen et al., ICLR 2016, section 2.2)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from keras_net2net.errors import GrowthError, SizeError, check_choice, real_number
from keras_net2net.operations.base import Match, label
from keras_net2net.operations.gradmax import GradMax, Site, find_site
from keras_net2net.operations.resizing import Request, Resizing
from keras_net2net.planning.changes import Addition, NewUnits
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import Skipped, Step
from keras_net2net.planning.remaps import draw
from keras_net2net.widths.expressions import Width
from keras_net2net.widths.fills import fills_for
from keras_net2net.widths.sizes import growable, sizes_for

NEW_UNITS = ("replicate", "fresh", "random", "gradmax")
SHARES = ("random", "even")


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True, repr=False)
class Wider(Resizing):
    """Widens layers: more units in Dense, more filters in a convolution.

    New units copy old ones, and the weights that read them are shared among the
    copies, so that the model computes what it computed before. Everything that
    the units reach grows with them: the layers that read them, normalizations,
    and, where units are summed, the other layers of the sum.

    Args:
        layers: Which layers: a name, a path such as `"encoder/conv1"`, a glob
            pattern, a layer object, a list of these, or a dict from these to
            units. Defaults to `None`: every layer that can be widened. Layers
            that a pattern or `None` finds and that can't be widened are skipped,
            and listed in the plan with the reason.
        units: Integer, the new number of units, in whatever the layer counts
            (units, filters, output dimension, heads). For a layer that counts
            several things, a dict from these to sizes: `{"heads": 8}`,
            `{"key_dim": 64, "value_dim": 64}`; a number means the first of them.
            Defaults to `None`.
        factor: Float above 1, the new size relative to the old one, rounded to
            the nearest integer, and at least one unit more. Or a dict, as for
            `units`. Defaults to `None`.
        round_to: Integer. New sizes are rounded up to a multiple of it. Defaults
            to `1`.
        new_units: How the new units start. `"replicate"`: as copies of randomly
            chosen units (Net2WiderNet). `"fresh"`: with random incoming weights
            at the norm of the existing units', and zero outgoing ones; exact
            too. `"random"`: random both ways, the "random pad" baseline of the
            paper (section 3.1); *not* exact. `"gradmax"`: with zero incoming weights,
            and the outgoing ones that give those the largest first gradient on a batch
            of data (`calibration=(x, y)`; the model is compiled); or, where an activation
            has no slope at zero (ReLU) or a batch normalization follows, the other way
            round; exact. For Dense and Conv2D that Dense and Conv2D read (GradMax, Evci
            et al., ICLR 2022, arXiv:2201.05125). Defaults to `"replicate"`.
        shares: How copies share the weights that read them. `"random"`: a random
            share for each copy and each outgoing weight, summing to one; exact,
            and it separates the copies, also under Adam. `"even"`: 1/count, as in
            the paper. Defaults to `"random"`.
        noise: Float. Standard deviation of noise on the incoming weights of
            copies, relative to that of the weights: the paper's symmetry
            breaking. Not exact. Defaults to `0.0`.

    Raises:
        GrowthError: If the arguments contradict each other.
        SizeError: If a size isn't possible.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> report = n2n.grow(model, n2n.Wider("hidden", units=24), seed=0)
    >>> model.get_layer("hidden").units
    24
    """

    layers: Any = None
    units: int | dict[str, int] | None = None
    _: dataclasses.KW_ONLY
    factor: float | dict[str, float] | None = None
    round_to: int = 1
    new_units: str = "replicate"
    shares: str = "random"
    noise: float = 0.0

    def _check(self) -> None:
        given = [isinstance(self.layers, dict), self.units is not None, self.factor is not None]
        if sum(given) != 1:
            raise GrowthError(
                "The new size isn't clear",
                "it comes from exactly one of `units`, `factor` and a dict of layers to units",
                (
                    "Pass `Wider('conv1', units=64)`, `Wider('conv1', factor=2)` or "
                    "`Wider({'conv1': 64})`"
                ),
            )
        self._take_sizes(
            lambda factor: 1 < factor < math.inf,
            "a wider layer has more units than before",
            "Pass a factor above 1",
        )
        noise = real_number(self.noise)
        check_choice("new_units", self.new_units, NEW_UNITS)
        check_choice("shares", self.shares, SHARES)
        if noise is None or not 0 <= noise < math.inf:
            raise GrowthError(
                f"`noise` can't be {self.noise!r}",
                "it is a standard deviation, relative to that of the weights",
                "Pass a number of at least 0, such as 0.05",
            )
        self._set(noise=noise)

    @property
    def exact(self) -> bool:
        """Whether the operation preserves the function: not with random units or noise."""
        return self._how.exact

    @property
    def _how(self) -> NewUnits:
        kind = "zero" if self.new_units == "gradmax" else self.new_units
        return NewUnits(kind, self.shares, float(self.noise))

    @property
    def looks_at_model(self) -> bool:
        """Whether it chooses units by gradient."""
        return self.new_units == "gradmax"

    def draft(self, draft: Draft) -> list[Step]:
        """Widens the layers of a draft."""
        skipped: list[Skipped] = []
        sizes, asked = self._asked(draft, skipped, self._sizes)
        fills = self._fills(draft, sizes, asked, skipped)
        additions: dict[str, tuple[Addition, ...]] = {}
        notes: list[str] = []
        if self.new_units == "gradmax":
            sites = self._sites(draft, sizes, asked, skipped)
            remaps = {w: draw(draft.seed, w.name, int(w.size or 0), n) for w, n in sizes.items()}
            if sites:
                additions, notes = GradMax(draft, sites).choose(remaps)
        if not sizes:
            self._nothing(draft, skipped)
            return [Step(self, skipped=tuple(skipped), exact=self.exact)]
        names = {width: [match.facts.path for match in asked[width]] for width in sizes}
        widths, layers = draft.widen(sizes, self._how, names, fills, additions)
        return [
            Step(
                self,
                widths=widths,
                layers=layers,
                skipped=tuple(skipped),
                notes=(*self._notes(fills), *notes),
                exact=self.exact,
            )
        ]

    def _sites(
        self,
        draft: Draft,
        sizes: dict[Width, int],
        asked: dict[Width, list[Match]],
        skipped: list[Skipped],
    ) -> dict[Width, Site]:
        """Where units can be chosen by gradient; takes out the widths where they can't."""
        sites = {}
        for width in list(sizes):
            found = find_site(draft, width)
            if isinstance(found, Site):
                sites[width] = found
                continue
            named = next((match for match in asked[width] if match.named), None)
            if named is not None:
                raise GrowthError(
                    f"New units of layer {label(named.facts)} can't be chosen by gradient",
                    found,
                    "Pass `new_units='fresh'`, or choose another layer",
                )
            skipped += [Skipped(match.facts.path, found) for match in asked[width]]
            del sizes[width]
        return sites

    def _check_direction(self, request: Request, now: int) -> None:
        if request.units is not None and request.units < now:
            raise SizeError(
                f"Layer {label(request.facts)} can't be widened to {request.units} units",
                f"it has {now}, and widening only adds units",
                f"Pass more than {now} units",
            )

    def _fills(
        self,
        draft: Draft,
        sizes: dict[Width, int],
        asked: dict[Width, list[Match]],
        skipped: list[Skipped],
    ) -> dict[Width, str | None]:
        """What new units hold that a normalization sees; takes out what can't be."""
        while True:
            fills, problems = fills_for(draft.inference, sizes)
            if not problems:
                return fills
            for width, problem in problems.items():
                named = next((match for match in asked[width] if match.named), None)
                if named is not None:
                    raise SizeError(
                        f"Layer {label(named.facts)} can't be widened to {sizes[width]} units",
                        problem,
                        f"Pass a multiple of {width.size}",
                    )
                skipped += [Skipped(match.facts.path, problem) for match in asked[width]]
                del sizes[width]

    def _factored(self, now: int, factor: float | None) -> int:
        return self._rounded(max(now + 1, math.floor(now * float(factor or 1) + 0.5)))

    def _sizes(self, request: Request) -> dict[Width, int]:
        expression, units = request.expression, request.units
        free = growable(expression)
        if units is None:
            return {w: self._factored(int(w.size or 0), request.factor) for w in free}
        sizes, possible = sizes_for(expression, units)
        if sizes is None:
            near = " or ".join(map(str, possible)) or "another number of"
            raise SizeError(
                f"Layer {label(request.facts)} can't be widened to {units} units",
                (
                    f"its units are made of {expression!r}, of which "
                    f"{', '.join(repr(width) for width in free)} can grow"
                ),
                f"Pass {near} units",
            )
        return sizes

    def _notes(self, fills: dict[Width, str | None]) -> tuple[str, ...]:
        notes = []
        for width, fill in fills.items():
            if fill is None and self.new_units == "replicate":
                continue
            held = (
                "copies" if fill is None else "the mean of the others" if fill == "mean" else "zero"
            )
            notes.append(f"a normalization sees all of {width!r}: its new units hold {held}")
        if self.new_units == "random":
            notes.append(
                "not exact: random units (the paper's baseline) change what the model computes"
            )
        elif self.noise:
            notes.append(f"not exact: noise of {self.noise:g} on the copies' incoming weights")
        return tuple(notes)
