"""What operations on sizes share: which layers are meant, what is asked, what is in the way."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from keras_net2net.errors import (
    ConflictError,
    FixedWidthError,
    GrowthError,
    SizeError,
    real_number,
    whole_number,
)
from keras_net2net.operations.base import Match, Operation, find_layers, fixed_request, label, plain
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import Skipped
from keras_net2net.widths.expressions import Product, Width, resolve, widths_of
from keras_net2net.widths.facts import Facts
from keras_net2net.widths.sizes import growable


class Resizing(Operation):
    """An operation that gives layers another number of units."""

    layers: Any
    units: Any
    factor: Any
    round_to: int
    _do: ClassVar[str] = "widen"
    _done: ClassVar[str] = "widened"
    _change: ClassVar[str] = "grow"
    _lists: ClassVar[str] = "Wider(factor=2)"

    def _take_sizes(self, fits: Callable[[float], bool], why: str, instead: str) -> None:
        """Checks what says the new sizes, and puts it into its plain form.

        Args:
            fits: Whether a factor changes sizes in the right direction.
            why: What is wrong with one that doesn't.
            instead: What to pass then.

        Raises:
            GrowthError: If a number of units has no layer.
            SizeError: If a size isn't possible.
        """
        if isinstance(self.layers, dict):
            sizes = {
                name: whole_units(units, f"The units of {plain(name)!r}")
                for name, units in self.layers.items()
            }
            self._set(layers=sizes)
        if self.units is not None:
            self._set(units=whole_units(self.units, "`units`"))
            if self.layers is None:
                raise GrowthError(
                    "One number of units doesn't fit every layer of a model",
                    "`units` needs `layers`",
                    "Name the layers, or use `factor`",
                )
        parts = self.factor if isinstance(self.factor, dict) else {"": self.factor}
        factors = {name: real_number(value) for name, value in parts.items()}
        if self.factor is not None and (
            not factors or any(f is None or not fits(f) for f in factors.values())
        ):
            raise SizeError(
                f"`factor` can't be {self.factor!r}",
                why,
                instead,
            )
        self._set(
            layers=fixed_request(self.layers),
            factor=factors if isinstance(self.factor, dict) else factors[""],
            round_to=whole_number(self.round_to, "`round_to`"),
        )

    def _asked(
        self,
        draft: Draft,
        skipped: list[Skipped],
        sizes_of: Callable[[Request], dict[Width, int]],
    ) -> tuple[dict[Width, int], dict[Width, list[Match]]]:
        """The new size of each width that is asked for, and the layers that it is asked of."""
        sizes: dict[Width, int] = {}
        asked: dict[Width, list[Match]] = {}
        # A layer whose units are a product may be satisfied by what another one needs.
        for request in sorted(self._requests(draft), key=lambda one: len(one.choices) > 1):
            problem = self._obstacle(draft, request)
            if problem is not None:
                skipped.append(Skipped(request.facts.path, problem))
                continue
            now = int(request.expression.size or 0)
            if request.units == now:
                skipped.append(Skipped(request.facts.path, f"has {now} units already"))
                continue
            self._check_direction(request, now)
            changed = [w for w in request.choices if w in sizes and request.units is None]
            wanted = {} if changed else sizes_of(request)
            if not wanted and not changed:
                skipped.append(Skipped(request.facts.path, f"has {now} units already"))
            for width, size in wanted.items():
                if sizes.setdefault(width, size) != size:
                    raise self._conflict(request, width, size, sizes[width], asked[width])
                asked.setdefault(width, []).append(request.match)
            for width in changed:
                asked[width].append(request.match)
        return sizes, asked

    @abc.abstractmethod
    def _check_direction(self, request: Request, now: int) -> None:
        """Raises an error if there are more, or fewer, units than are asked for."""

    def _requests(self, draft: Draft) -> list[Request]:
        """Each layer that is meant, with what is asked for."""
        if self.layers is None:
            found = [
                Match(facts, False)
                for facts in draft.layers()
                if facts.units or (facts.operation.weights and not facts.has_rule)
            ]
            return [one for match in found for one in self._split(match, None)]
        if isinstance(self.layers, dict):
            return [
                one
                for name, units in self.layers.items()
                for match in find_layers(draft, name)
                for one in self._split(match, units)
            ]
        return [
            one
            for match in find_layers(draft, self.layers)
            for one in self._split(match, self.units)
        ]

    def _split(self, match: Match, units: Any) -> list[Request]:
        """One request for each thing that a layer counts and that is named."""
        if isinstance(units, dict):
            parts: list[Any] = [(key, self._rounded(size), None) for key, size in units.items()]
        elif isinstance(self.factor, dict):
            parts = [(key, None, factor) for key, factor in self.factor.items()]
        else:
            size = None if units is None else self._rounded(units)
            return [Request(match, match.facts.main, size, self.factor)]
        requests = []
        for key, size, factor in parts:
            counted = match.facts.units
            part = key if key in counted else key.removeprefix("num_")
            if part not in counted and not match.named and not counted:
                continue
            if part not in counted:
                raise GrowthError(
                    f"Layer {label(match.facts)} has no {key!r} that could {self._change}",
                    f"it counts {', '.join(map(repr, counted)) or 'nothing'}",
                    "Name one of these, or pass a number",
                )
            requests.append(Request(match, counted[part], size, factor))
        return requests

    def _rounded(self, units: int) -> int:
        return -(-units // self.round_to) * self.round_to

    def _obstacle(self, draft: Draft, request: Request) -> str | None:
        """Why a layer can't have another size; an error if it was named outright."""
        match, facts = request.match, request.facts
        if not facts.units:
            if not match.named and facts.has_rule:
                return "has no units of its own"
            if not match.named:
                return f"{type(facts.operation).__name__} has no rule"
            raise self._no_units(draft, facts)
        widths = list(widths_of(request.expression))
        if any(width.obstacle is None for width in widths):
            return None
        width = widths[0] if widths else None
        reason = str(width.obstacle) if width is not None else "its size is fixed"
        if not match.named:
            return reason
        path = draft.path_to_obstacle(facts, width) if width is not None else [facts.path]
        cause = draft_operation(draft, path[-1])
        instead = (
            f"Register a rule for {type(cause).__name__} with `keras_net2net.rules.register_rule`, "
            f"or {self._do} another layer"
            if "has no rule" in reason and cause is not None
            else self._another
        )
        raise FixedWidthError(
            f"Layer {label(facts)} can't be {self._done}",
            f"its width is fixed: {reason} (path: {' -> '.join(path)})",
            instead,
        )

    @property
    def _another(self) -> str:
        return (
            f"{self._do.capitalize()} another layer: `print(plan(model, {self._lists}))` lists "
            "those that can"
        )

    def _no_units(self, draft: Draft, facts: Facts) -> FixedWidthError:
        kind = type(facts.operation).__name__
        makers: list[str] = []
        owners = draft.owners()
        for _, call in draft.calls_of(facts.operation):
            for tensor in call.inputs:
                for axis in draft.inference.of(tensor):
                    for width in widths_of(axis):
                        makers += [p for p in owners.get(width, []) if p not in makers]
        return FixedWidthError(
            f"Layer {label(facts)} can't be {self._done}",
            (
                f"a {kind} makes no units of its own"
                if facts.has_rule
                else f"{kind} has no rule that says which units it makes"
            ),
            (
                f"{self._do.capitalize()} what makes the units that it works on: "
                f"{', '.join(map(repr, makers))}"
                if makers and facts.has_rule
                else f"Register a rule for {kind} with `keras_net2net.rules.register_rule`"
                if not facts.has_rule
                else f"{self._do.capitalize()} another layer"
            ),
        )

    def _conflict(
        self, request: Request, width: Width, size: int, other: int, asked: list[Match]
    ) -> ConflictError:
        names = ", ".join(repr(match.facts.path) for match in asked)
        return ConflictError(
            f"Layer {label(request.facts)} can't be {self._done} to {size} units",
            (
                f"its units are tied to those of {names} (width {width!r}), "
                f"for which {other} are asked"
            ),
            "Ask for one size",
        )

    def _nothing(self, draft: Draft, skipped: list[Skipped]) -> None:
        """No layer grows: fine if all had their size before, else an error."""
        if all("already" in skip.reason for skip in skipped) and skipped:
            return
        reasons = "; ".join(f"{skip.path}: {skip.reason}" for skip in skipped[:8])
        raise FixedWidthError(
            (f"No layer of the model {draft.model.name!r} that was asked for can be {self._done}"),
            reasons or "there is none that makes units",
            self._another,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing that a layer counts, and what is asked for it."""

    match: Match
    expression: Any
    units: int | None
    factor: Any

    @property
    def facts(self) -> Facts:
        """What is known of the layer."""
        return self.match.facts

    @property
    def choices(self) -> list[Width]:
        """The widths of which one has to grow, where there are several."""
        expression = resolve(self.expression)
        if not isinstance(expression, Product):
            return []
        return [width for factor in expression.factors for width in growable(factor)]


def whole_units(value: Any, what: str) -> Any:
    """A number of units, or a dict of these."""
    if isinstance(value, dict) and value:
        return {str(key): whole_number(size, f"{what} ({key})") for key, size in value.items()}
    return whole_number(value, what)


def draft_operation(draft: Draft, path: str) -> Any | None:
    """The operation at a path of the draft."""
    for facts in draft.inference.facts.values():
        if facts.path == path:
            return facts.operation
    return None
