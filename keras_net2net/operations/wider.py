"""Net2WiderNet: more units in a layer (Chen et al., ICLR 2016, section 2.2)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from keras_net2net.draft import Draft
from keras_net2net.errors import ConflictError, FixedWidthError, GrowthError, SizeError, explain
from keras_net2net.inference import Facts
from keras_net2net.operations.base import (
    Match,
    Operation,
    find_layers,
    fixed_request,
    label,
    plain,
    real_number,
    whole_number,
)
from keras_net2net.plan import Skipped, Step
from keras_net2net.sizes import growable, sizes_for
from keras_net2net.weights import NewUnits
from keras_net2net.widths import Width, widths_of

NEW_UNITS = ("replicate", "fresh", "random")
SHARES = ("random", "even")


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True, repr=False)
class Wider(Operation):
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
            (units, filters, output dimension). Defaults to `None`.
        factor: Float above 1, the new size relative to the old one, rounded to
            the nearest integer, and at least one unit more. Defaults to `None`.
        round_to: Integer. New sizes are rounded up to a multiple of it. Defaults
            to `1`.
        new_units: How the new units start. `"replicate"`: as copies of randomly
            chosen units (Net2WiderNet). `"fresh"`: with random incoming weights
            at the norm of the existing units', and zero outgoing ones; exact
            too. `"random"`: random both ways, the "random pad" baseline of the
            paper (section 3.1); *not* exact. Defaults to `"replicate"`.
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
    units: int | None = None
    _: dataclasses.KW_ONLY
    factor: float | None = None
    round_to: int = 1
    new_units: str = "replicate"
    shares: str = "random"
    noise: float = 0.0

    def __post_init__(self) -> None:
        received = repr(self)
        given = [isinstance(self.layers, dict), self.units is not None, self.factor is not None]
        if sum(given) != 1:
            raise GrowthError(
                explain(
                    "The new size isn't clear",
                    "it comes from exactly one of `units`, `factor` and a dict of layers to units",
                    received,
                    "Pass `Wider('conv1', units=64)`, `Wider('conv1', factor=2)` or "
                    "`Wider({'conv1': 64})`",
                )
            )
        if isinstance(self.layers, dict):
            sizes = {
                name: whole_number(units, f"The units of {plain(name)!r}", received)
                for name, units in self.layers.items()
            }
            self._set(layers=sizes)
        if self.units is not None:
            self._set(units=whole_number(self.units, "`units`", received))
            if self.layers is None:
                raise GrowthError(
                    explain(
                        "One number of units doesn't fit every layer of a model",
                        "`units` needs `layers`",
                        received,
                        "Name the layers, or use `factor`",
                    )
                )
        factor, noise = real_number(self.factor), real_number(self.noise)
        if self.factor is not None and (factor is None or not 1 < factor < math.inf):
            raise SizeError(
                explain(
                    f"`factor` can't be {self.factor!r}",
                    "a wider layer has more units than before",
                    received,
                    "Pass a factor above 1",
                )
            )
        round_to = whole_number(self.round_to, "`round_to`", received)
        for name, allowed in (("new_units", NEW_UNITS), ("shares", SHARES)):
            if getattr(self, name) not in allowed:
                raise GrowthError(
                    explain(
                        f"`{name}` can't be {getattr(self, name)!r}",
                        f"it is one of {', '.join(map(repr, allowed))}",
                        received,
                        f"Pass `{name}={allowed[0]!r}`",
                    )
                )
        if noise is None or not 0 <= noise < math.inf:
            raise GrowthError(
                explain(
                    f"`noise` can't be {self.noise!r}",
                    "it is a standard deviation, relative to that of the weights",
                    received,
                    "Pass a number of at least 0, such as 0.05",
                )
            )
        layers = fixed_request(self.layers)
        self._set(layers=layers, factor=factor, round_to=round_to, noise=noise)

    @property
    def exact(self) -> bool:
        """Whether the operation preserves the function: not with random units or noise."""
        return self._how.exact

    @property
    def _how(self) -> NewUnits:
        return NewUnits(self.new_units, self.shares, float(self.noise))

    def draft(self, draft: Draft) -> list[Step]:
        """Widens the layers of a draft."""
        skipped: list[Skipped] = []
        sizes: dict[Width, int] = {}
        asked: dict[Width, list[str]] = {}
        for match, units in self._requests(draft):
            problem = self._obstacle(draft, match)
            if problem is not None:
                skipped.append(Skipped(match.facts.path, problem))
                continue
            expression = next(iter(match.facts.units.values()))
            now = int(expression.size or 0)
            if units == now:
                skipped.append(Skipped(match.facts.path, f"has {now} units already"))
                continue
            if units is not None and units < now:
                raise SizeError(
                    explain(
                        f"Layer {label(match.facts)} can't be widened to {units} units",
                        f"it has {now}, and widening only adds units",
                        repr(self),
                        f"Pass more than {now} units",
                    )
                )
            wanted = self._sizes(match.facts, units)
            for width, size in wanted.items():
                if sizes.setdefault(width, size) != size:
                    raise self._conflict(match.facts, width, size, sizes[width], asked[width])
                asked.setdefault(width, []).append(match.facts.path)
        if not sizes:
            self._nothing(draft, skipped)
            return [Step(self, skipped=tuple(skipped), exact=self.exact)]
        widths, layers = draft.widen(sizes, self._how, asked)
        notes = self._notes(draft)
        return [
            Step(
                self,
                widths=widths,
                layers=layers,
                skipped=tuple(skipped),
                notes=notes,
                exact=self.exact,
            )
        ]

    def _requests(self, draft: Draft) -> list[tuple[Match, int | None]]:
        """Each layer that is meant, with the units asked for (`None`: by factor)."""
        if self.layers is None:
            return [
                (Match(facts, False), None)
                for facts in draft.layers()
                if facts.units or (facts.operation.weights and not facts.has_rule)
            ]
        if isinstance(self.layers, dict):
            return [
                (match, self._rounded(units))
                for name, units in self.layers.items()
                for match in find_layers(draft, name, repr(self))
            ]
        units = None if self.units is None else self._rounded(self.units)
        return [(match, units) for match in find_layers(draft, self.layers, repr(self))]

    def _rounded(self, units: int) -> int:
        return -(-units // self.round_to) * self.round_to

    def _factored(self, now: int) -> int:
        return self._rounded(max(now + 1, math.floor(now * float(self.factor or 1) + 0.5)))

    def _sizes(self, facts: Facts, units: int | None) -> dict[Width, int]:
        expression = next(iter(facts.units.values()))
        free = growable(expression)
        if units is None:
            return {width: self._factored(int(width.size or 0)) for width in free}
        sizes, possible = sizes_for(expression, units)
        if sizes is None:
            near = " or ".join(map(str, possible)) or "another number of"
            raise SizeError(
                explain(
                    f"Layer {label(facts)} can't be widened to {units} units",
                    f"its units are made of {expression!r}, of which "
                    f"{', '.join(repr(width) for width in free)} can grow",
                    repr(self),
                    f"Pass {near} units",
                )
            )
        return sizes

    def _obstacle(self, draft: Draft, match: Match) -> str | None:
        """Why a layer can't be widened; an error if it was named outright."""
        facts = match.facts
        if not facts.units:
            if not match.named and facts.has_rule:
                return "has no units of its own"
            if not match.named:
                return f"{type(facts.operation).__name__} has no rule"
            raise FixedWidthError(self._no_units(draft, facts))
        expression = next(iter(facts.units.values()))
        widths = list(widths_of(expression))
        if any(width.obstacle is None for width in widths):
            return None
        width = widths[0] if widths else None
        reason = str(width.obstacle) if width is not None else "its size is fixed"
        if not match.named:
            return reason
        path = draft.path_to_obstacle(facts, width) if width is not None else [facts.path]
        cause = draft_operation(draft, path[-1])
        instead = (
            f"Register a rule for {type(cause).__name__} with `keras_net2net.register_rule`, "
            "or widen another layer"
            if "has no rule" in reason and cause is not None
            else "Widen another layer: `print(plan(model, Wider(factor=2)))` lists those that can"
        )
        raise FixedWidthError(
            explain(
                f"Layer {label(facts)} can't be widened",
                f"its width is fixed: {reason} (path: {' -> '.join(path)})",
                repr(self),
                instead,
            )
        )

    def _no_units(self, draft: Draft, facts: Facts) -> str:
        kind = type(facts.operation).__name__
        makers: list[str] = []
        owners = draft.owners()
        for _, call in draft.calls_of(facts.operation):
            for tensor in call.inputs:
                for axis in draft.inference.of(tensor):
                    for width in widths_of(axis):
                        makers += [p for p in owners.get(width, []) if p not in makers]
        return explain(
            f"Layer {label(facts)} can't be widened",
            f"a {kind} makes no units of its own"
            if facts.has_rule
            else f"{kind} has no rule that says which units it makes",
            repr(self),
            f"Widen what makes the units that it works on: {', '.join(map(repr, makers))}"
            if makers and facts.has_rule
            else f"Register a rule for {kind} with `keras_net2net.register_rule`"
            if not facts.has_rule
            else "Widen another layer",
        )

    def _conflict(
        self, facts: Facts, width: Width, size: int, other: int, asked: list[str]
    ) -> ConflictError:
        return ConflictError(
            explain(
                f"Layer {label(facts)} can't be widened to {size} units",
                f"its units are tied to those of {', '.join(map(repr, asked))} (width {width!r}), "
                f"for which {other} are asked",
                repr(self),
                "Ask for one size",
            )
        )

    def _nothing(self, draft: Draft, skipped: list[Skipped]) -> None:
        """No layer grows: fine if all had their size before, else an error."""
        if all("already" in skip.reason for skip in skipped) and skipped:
            return
        reasons = "; ".join(f"{skip.path}: {skip.reason}" for skip in skipped[:8])
        raise FixedWidthError(
            explain(
                f"No layer of the model {draft.model.name!r} that was asked for can be widened",
                reasons or "there is none that makes units",
                repr(self),
                "Widen another layer: `print(plan(model, Wider(factor=2)))` lists those that can",
            )
        )

    def _notes(self, draft: Draft) -> tuple[str, ...]:
        notes = []
        if self.new_units == "random":
            notes.append(
                "not exact: random units (the paper's baseline) change what the model computes"
            )
        elif self.noise:
            notes.append(f"not exact: noise of {self.noise:g} on the copies' incoming weights")
        return tuple(notes)


def draft_operation(draft: Draft, path: str) -> Any | None:
    """The operation at a path of the draft."""
    for facts in draft.inference.facts.values():
        if facts.path == path:
            return facts.operation
    return None
