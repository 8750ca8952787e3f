"""What operations on sizes share: which layers are meant, what is asked, what is in the way."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from keras_net2net.errors import (
    ConflictError,
    FixedWidthError,
    GrowthError,
    SizeError,
    real_number,
    whole_number,
)
from keras_net2net.operations.base import Operation, reasons
from keras_net2net.operations.select import Match, find_each, label
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import Skipped, Step
from keras_net2net.widths.expressions import Product, Width, resolve, widths_of
from keras_net2net.widths.facts import Facts
from keras_net2net.widths.sizes import growable, sizes_for


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


@dataclasses.dataclass(eq=False)
class Asked:
    """What is asked of the widths of a model.

    Attributes:
        sizes: The new size of each width.
        matches: The layers that it is asked of.
        skipped: The layers that can't have it, or have it already.
    """

    sizes: dict[Width, int] = dataclasses.field(default_factory=dict)
    matches: dict[Width, list[Match]] = dataclasses.field(default_factory=dict)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)

    @property
    def paths(self) -> dict[Width, list[str]]:
        """The paths of the layers that each size is asked of."""
        return {w: [match.facts.path for match in self.matches[w]] for w in self.sizes}

    def skip(self, width: Width, why: str) -> None:
        """Takes a width out."""
        self.skipped += [Skipped(match.facts.path, why) for match in self.matches[width]]
        self.sizes.pop(width, None)

    def leave(
        self, width: Width, why: str, problem: str, instead: str, error: type[GrowthError]
    ) -> None:
        """Takes a width out that can't have its size; an error if a layer was named outright.

        Args:
            width: The width.
            why: Why it can't.
            problem: What can't be done, with `{}` for the layer.
            instead: What to do instead.
            error: The class of the error.
        """
        named = next((match for match in self.matches[width] if match.named), None)
        if named is not None:
            raise error(problem.format(label(named.facts)), why, instead)
        self.skip(width, why)


class Resizing(Operation):
    """An operation that gives layers another number of units."""

    layers: Any
    units: Any
    factor: Any
    round_to: int
    _grows: ClassVar[bool] = True
    _do: ClassVar[str] = "widen"
    _done: ClassVar[str] = "widened"
    _change: ClassVar[str] = "grow"
    _only: ClassVar[str] = "only adds units"
    _beyond: ClassVar[str] = "more than {} units"
    _lists: ClassVar[str] = "Wider(factor=2)"

    @property
    def _says_sizes(self) -> int:
        """How many of the arguments that say new sizes are given."""
        given = (isinstance(self.layers, dict), self.units is not None, self.factor is not None)
        return sum(given)

    def _take_sizes(
        self, usual: str, needed: bool, fits: Callable[[float], bool], why: str, instead: str
    ) -> None:
        """Checks what says the new sizes, and puts it into its plain form.

        Args:
            usual: What to pass where not exactly one argument says them.
            needed: Whether one has to.
            fits: Whether a factor changes sizes in the right direction.
            why: What is wrong with one that doesn't.
            instead: What to pass then.

        Raises:
            GrowthError: If the arguments contradict each other, or a number of units has no layer.
            SizeError: If a size isn't possible.
        """
        if self._says_sizes > 1 or (needed and not self._says_sizes):
            raise GrowthError(
                "The new size isn't clear",
                "it comes from exactly one of `units`, `factor` and a dict of layers to units",
                f"Pass {usual}",
            )
        self._set_each("units", "The units", _whole_units)
        if self.units is not None and self.layers is None:
            raise GrowthError(
                "One number of units doesn't fit every layer of a model",
                "`units` needs `layers`",
                "Name the layers, or use `factor`",
            )
        parts = self.factor if isinstance(self.factor, dict) else {"": self.factor}
        factors = {name: real_number(value) for name, value in parts.items()}
        possible = factors and all(f is not None and fits(f) for f in factors.values())
        if self.factor is not None and not possible:
            raise SizeError(f"`factor` can't be {self.factor!r}", why, instead)
        self._set(
            factor=factors if isinstance(self.factor, dict) else factors[""],
            round_to=whole_number(self.round_to, "`round_to`"),
        )

    def _asked(
        self, draft: Draft, sizes_of: Callable[[Request], dict[Width, int]] | None = None
    ) -> Asked:
        """What is asked for.

        Args:
            draft: The draft.
            sizes_of: The sizes that a request asks for. Defaults to `None`: `_sizes`.
        """
        asked = Asked()
        # A layer whose units are a product may be satisfied by what another one needs.
        for request in sorted(self._requests(draft), key=lambda one: len(one.choices) > 1):
            now = int(request.expression.size or 0)
            problem = self._obstacle(draft, request)
            if problem is None and request.units == now:
                problem = f"has {now} units already"
            if problem is not None:
                asked.skipped.append(Skipped(request.facts.path, problem))
                continue
            self._check_direction(request, now)
            changed = [w for w in request.choices if w in asked.sizes and request.units is None]
            wanted = {} if changed else (sizes_of or self._sizes)(request)
            if not wanted and not changed:
                asked.skipped.append(Skipped(request.facts.path, f"has {now} units already"))
            for width, size in wanted.items():
                if asked.sizes.setdefault(width, size) != size:
                    names = ", ".join(repr(match.facts.path) for match in asked.matches[width])
                    raise ConflictError(
                        f"Layer {label(request.facts)} can't be {self._done} to {size} units",
                        f"its units are tied to those of {names} (width {width!r}), "
                        f"for which {asked.sizes[width]} are asked",
                        "Ask for one size",
                    )
            for width in (*wanted, *changed):
                asked.matches.setdefault(width, []).append(request.match)
        return asked

    def _check_direction(self, request: Request, now: int) -> None:
        """Raises an error if there are more, or fewer, units than are asked for."""
        if request.units is not None and (request.units > now) != self._grows:
            raise SizeError(
                f"Layer {label(request.facts)} can't be {self._done} to {request.units} units",
                f"it has {now}, and {self._do}ing {self._only}",
                f"Pass {self._beyond.format(now)}",
            )

    def _requests(self, draft: Draft) -> list[Request]:
        """Each layer that is meant, with what is asked for."""
        if self.layers is None:
            found = [
                (Match(facts, False), None)
                for facts in draft.layers()
                if facts.units or (facts.operation.weights and not facts.has_rule)
            ]
        else:
            found = find_each(draft, self.layers, self.units)
        return [one for match, units in found for one in self._split(match, units)]

    def _split(self, match: Match, units: Any) -> list[Request]:
        """One request for each thing that a layer counts and that is named."""
        if not isinstance(units, dict) and not isinstance(self.factor, dict):
            size = None if units is None else self._rounded(units)
            return [Request(match, match.facts.main, size, self.factor)]
        requests = []
        counted = match.facts.units
        for key, value in (units or self.factor).items():
            part = key if key in counted else key.removeprefix("num_")
            if part in counted:
                asked = (self._rounded(value), None) if units else (None, value)
                requests.append(Request(match, counted[part], *asked))
            elif match.named or counted:
                raise GrowthError(
                    f"Layer {label(match.facts)} has no {key!r} that could {self._change}",
                    f"it counts {', '.join(map(repr, counted)) or 'nothing'}",
                    "Name one of these, or pass a number",
                )
        return requests

    def _rounded(self, units: int) -> int:
        return -(-units // self.round_to) * self.round_to

    @abc.abstractmethod
    def _scaled(self, now: int, factor: float) -> int:
        """The size that a factor makes of one."""

    def _sizes(self, request: Request) -> dict[Width, int]:
        """The new sizes of the widths that a layer's units are made of."""
        expression, units = request.expression, request.units
        free = growable(expression)
        if units is None:
            factor = float(request.factor or 1)
            old = {width: int(width.size or 0) for width in free}
            new = {w: self._rounded(self._scaled(now, factor)) for w, now in old.items()}
            return {w: n for w, n in new.items() if n != old[w] and (n > old[w]) == self._grows}
        sizes, possible = sizes_for(expression, units)
        if sizes is None:
            raise SizeError(
                f"Layer {label(request.facts)} can't be {self._done} to {units} units",
                f"its units are made of {expression!r}, of which "
                f"{', '.join(map(repr, free))} can {self._change}",
                f"Pass {' or '.join(map(str, possible)) or 'another number of'} units",
            )
        return dict(sizes)

    def _obstacle(self, draft: Draft, request: Request) -> str | None:
        """Why a layer can't have another size; an error if it was named outright."""
        match, facts = request.match, request.facts
        if not facts.units:
            if match.named:
                raise self._no_units(draft, facts)
            kind = type(facts.operation).__name__
            return "has no units of its own" if facts.has_rule else f"{kind} has no rule"
        if growable(request.expression):
            return None
        width = next(widths_of(request.expression), None)
        reason = "its size is fixed" if width is None else str(width.obstacle)
        if not match.named:
            return reason
        path = [facts.path] if width is None else draft.path_to_obstacle(facts, width)
        known = {one.path: one.operation for one in reversed(draft.inference.facts.values())}
        instead = self._another
        if "has no rule" in reason and path[-1] in known:
            instead = f"{_register(known[path[-1]])}, or {self._do} another layer"
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
        problem = f"Layer {label(facts)} can't be {self._done}"
        if not facts.has_rule:
            why = f"{kind} has no rule that says which units it makes"
            return FixedWidthError(problem, why, _register(facts.operation))
        owners = draft.owners()
        makers = dict.fromkeys(
            path
            for _, call in draft.calls_of(facts.operation)
            for tensor in call.inputs
            for axis in draft.inference.of(tensor)
            for width in widths_of(axis)
            for path in owners.get(width, ())
        )
        instead = "another layer"
        if makers:
            instead = f"what makes the units that it works on: {', '.join(map(repr, makers))}"
        return FixedWidthError(
            problem, f"a {kind} makes no units of its own", f"{self._do.capitalize()} {instead}"
        )

    def _step(
        self, asked: Asked, changed: tuple[Any, Any] = ((), ()), notes: Iterable[str] = ()
    ) -> list[Step]:
        """What was done: the widths and layers that changed, if any did."""
        skipped = tuple(asked.skipped)
        return [Step(self, *changed, (), skipped, tuple(notes), self.exact)]

    def _nothing(self, draft: Draft, asked: Asked) -> list[Step]:
        """No layer changes: fine if all had their size before, else an error."""
        if not asked.skipped or not all("already" in skip.reason for skip in asked.skipped):
            raise FixedWidthError(
                f"No layer of the model {draft.model.name!r} that was asked for can be "
                f"{self._done}",
                reasons(asked.skipped) or "there is none that makes units",
                self._another,
            )
        return self._step(asked)


def _register(operation: Any) -> str:
    kind = type(operation).__name__
    return f"Register a rule for {kind} with `keras_net2net.rules.register_rule`"


def _whole_units(value: Any, what: str) -> Any:
    """A number of units, or a dict of these."""
    if isinstance(value, dict) and value:
        return {str(key): whole_number(size, f"{what} ({key})") for key, size in value.items()}
    return whole_number(value, what)
