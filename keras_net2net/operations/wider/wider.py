"""Net2WiderNet: more units in a layer (Chen et al., ICLR 2016, section 2.2)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from keras_net2net.errors import GrowthError, SizeError, check_choice, real_number
from keras_net2net.operations.resizing import Asked, Resizing
from keras_net2net.operations.wider.gradmax import GradMax, HiddenUnits, find_hidden_units
from keras_net2net.planning.changes import Addition, NewUnits
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import Step
from keras_net2net.planning.remaps import draw
from keras_net2net.widths.expressions import Width
from keras_net2net.widths.fills import fills_for

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
        self._take_sizes(
            "`Wider('conv1', units=64)`, `Wider('conv1', factor=2)` or `Wider({'conv1': 64})`",
            True,
            lambda factor: 1 < factor < math.inf,
            "a wider layer has more units than before",
            "Pass a factor above 1",
        )
        check_choice("new_units", self.new_units, NEW_UNITS)
        check_choice("shares", self.shares, SHARES)
        noise = real_number(self.noise)
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
        asked = self._asked(draft)
        fills = self._fills(draft, asked)
        additions: dict[str, tuple[Addition, ...]] = {}
        notes: list[str] = []
        if self.new_units == "gradmax":
            hidden = self._hidden(draft, asked)
            sizes = asked.sizes.items()
            remaps = {w: draw(draft.seed, w.name, int(w.size or 0), n) for w, n in sizes}
            if hidden:
                additions, notes = GradMax(draft, hidden, remaps).choose()
        if not asked.sizes:
            return self._nothing(draft, asked)
        changed = draft.widen(asked.sizes, self._how, asked.paths, fills, additions)
        return self._step(asked, changed, (*self._notes(fills), *notes))

    def _hidden(self, draft: Draft, asked: Asked) -> list[HiddenUnits]:
        """Where units can be chosen by gradient; takes out the widths where they can't."""
        hidden = []
        problem = "New units of layer {} can't be chosen by gradient"
        instead = "Pass `new_units='fresh'`, or choose another layer"
        for width in list(asked.sizes):
            found = find_hidden_units(draft, width)
            if isinstance(found, HiddenUnits):
                hidden.append(found)
            else:
                asked.leave(width, found, problem, instead, GrowthError)
        return hidden

    def _fills(self, draft: Draft, asked: Asked) -> dict[Width, str | None]:
        """What new units hold that a normalization sees; takes out what can't be."""
        while True:
            fills, problems = fills_for(draft.inference, asked.sizes)
            if not problems:
                return fills
            for width, why in problems.items():
                problem = f"Layer {{}} can't be widened to {asked.sizes[width]} units"
                asked.leave(width, why, problem, f"Pass a multiple of {width.size}", SizeError)

    def _scaled(self, now: int, factor: float) -> int:
        return max(now + 1, math.floor(now * factor + 0.5))

    def _notes(self, fills: dict[Width, str | None]) -> tuple[str, ...]:
        notes = []
        for width, fill in fills.items():
            if fill is None and self.new_units == "replicate":
                continue
            held = {None: "copies", "mean": "the mean of the others"}.get(fill, "zero")
            notes.append(f"a normalization sees all of {width!r}: its new units hold {held}")
        if self.new_units == "random":
            notes.append(
                "not exact: random units (the paper's baseline) change what the model computes"
            )
        elif self.noise:
            notes.append(f"not exact: noise of {self.noise:g} on the copies' incoming weights")
        return tuple(notes)
