"""New classes: a head whose outputs the model has more of."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import keras

from keras_net2net.errors import (
    ConflictError,
    FixedWidthError,
    GrowthError,
    SizeError,
    check_choice,
    real_number,
    whole_number,
)
from keras_net2net.operations.base import Operation, reasons
from keras_net2net.operations.resizing import Asked
from keras_net2net.operations.select import Match, find_each, label
from keras_net2net.planning.changes import NewUnits
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.evaluating import Start
from keras_net2net.planning.plan import OutputChange, Skipped, Step
from keras_net2net.planning.remaps import appended, remap_of
from keras_net2net.widths.expressions import Concat, Expression, Product, Width, resolve, widths_of
from keras_net2net.widths.facts import Facts, HeadOutput
from keras_net2net.widths.inferred import Inferred
from keras_net2net.widths.sizes import growable, sizes_for

STARTS = ("zeros", "mean", "suppressed")


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True, repr=False)
class NewClasses(Operation):
    """Adds classes to a head: its new logits join the outputs of the model.

    The logits of the old classes are what they were: their weights don't change by a
    bit. (What multiplies matrices may add up in another order where a matrix is wider,
    and so round the last bit of a logit another way.) The new ones stand behind them. In
    a softmax they take their part from all old classes alike, so that the old
    probabilities keep their ratios: they are multiplied by what is left,
    1 - (the probability of the new classes). Sigmoids stay as they are.

    What lies between the head and the outputs grows with it: activations, `Reshape`,
    a concatenation of several heads, in the middle of which the new logits then stand.
    Compiled losses and metrics follow; metrics that count classes are made anew.

    How the new classes start, for a softmax over n old and k new classes:

    - `"zeros"`: kernel and bias are zero, and so are the logits.
    - `"mean"`: kernel and bias are the means of those of the old classes: a new logit is
      the mean of the old ones, and the new classes get k / (n + k) of the probability at
      most.
    - `"suppressed"`: as `"mean"`, with log(mass n / (k (1 - mass))) added to the bias.
      By Jensen's inequality the sum of exp(logit) over the old classes is at least n
      times the exp of their mean logit. So all new classes together get at most `mass` of
      the probability, for every input whatsoever, and each old probability changes by the
      factor 1 - `mass` at least. Between the head and the softmax there may be a scale
      (a temperature), by which the number is divided. With sigmoids, kernels are zero and
      the bias is that with which each new class has the probability mass / k, for every
      input.

    Args:
        layers: The head: a name, a path, a glob pattern, a layer object, a list of
            these, or a dict from these to numbers of classes.
        classes: Integer, how many classes to add. Defaults to `None`: the numbers stand
            in the dict.
        start: How the new classes start: `"zeros"`, `"mean"` or `"suppressed"`.
            Defaults to `"zeros"`.
        mass: Float between 0 and 1: the probability that `"suppressed"` leaves to all
            new classes together. Defaults to `1e-4`.

    Raises:
        GrowthError: If the arguments contradict each other.
        SizeError: If a number of classes isn't possible.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(10, activation="softmax", name="predictions"),
    ... ])
    >>> report = n2n.grow(model, n2n.NewClasses("predictions", 5), seed=0)
    >>> model.output_shape
    (None, 15)
    """

    layers: Any
    classes: int | None = None
    _: dataclasses.KW_ONLY
    start: str = "zeros"
    mass: float = 1e-4

    def _check(self) -> None:
        if isinstance(self.layers, dict) == (self.classes is not None) or self.layers is None:
            raise GrowthError(
                "The new classes aren't clear",
                "a head is named, and their number comes from either `classes` or a dict",
                "Pass `NewClasses('predictions', 5)` or `NewClasses({'predictions': 5})`",
            )
        count = functools.partial(whole_number, kind="a number of new classes")
        self._set_each("classes", "The classes", count)
        check_choice("start", self.start, STARTS)
        mass = real_number(self.mass)
        if mass is None or not 0 < mass < 1:
            raise GrowthError(
                f"`mass` can't be {self.mass!r}",
                "it is the probability that is left to the new classes, between 0 and 1",
                "Pass for example `mass=1e-4`",
            )
        self._set(mass=mass)

    @property
    def exact(self) -> bool:
        """Whether the operation preserves the function, as far as the old classes go: always."""
        return True

    def draft(self, draft: Draft) -> list[Step]:
        """Adds the classes to a draft."""
        found = find_each(draft, self.layers, self.classes)
        with draft.open_heads(match.facts.operation for match, _ in found):
            asked, offsets, notes = self._asked(draft, found)
            sizes = asked.sizes
            if not sizes:
                raise FixedWidthError(
                    "No layer that was asked for can get new classes",
                    reasons(asked.skipped),
                    "Name the layer that makes the logits of the model",
                )
            outputs = tuple(_output_changes(draft.inference, sizes))
            zero = frozenset(
                width
                for width in sizes
                if self.start == "zeros"
                or (self.start == "suppressed" and _squashed(draft.inference, width))
            )
            start = Start(zero, offsets)
            widths, changed = draft.widen(sizes, NewUnits(), asked.paths, start=start)
        return [
            Step(
                self,
                widths=widths,
                layers=changed,
                skipped=tuple(asked.skipped),
                notes=(*notes, *map(_note, outputs)),
                outputs=outputs,
            )
        ]

    def _asked(
        self, draft: Draft, found: list[tuple[Match, int]]
    ) -> tuple[Asked, dict[str, float], list[str]]:
        """What is asked for, what is added to biases, by path, and what that means."""
        asked = Asked()
        offsets: dict[str, float] = {}
        notes: list[str] = []
        for match, count in found:
            facts = draft.inference.facts[id(match.facts.operation)]
            problem = self._problem(draft, facts, match.named)
            if problem is not None:
                asked.skipped.append(Skipped(facts.path, problem))
                continue
            grown = self._sizes(draft.inference, facts, count)
            for width, size in grown.items():
                if asked.sizes.setdefault(width, size) != size:
                    raise self._error(
                        facts,
                        f"its units are tied to those of {asked.paths[width][0]!r}, which get "
                        "another number of classes",
                        "Ask for one number of classes",
                        ConflictError,
                    )
                asked.matches.setdefault(width, []).append(match)
            more = self._offset(draft.inference, facts, grown)
            if more is not None and not any(len(asked.matches[width]) > 1 for width in grown):
                offsets[f"{facts.path}/bias"], note = more
                notes.append(note)
        return asked, offsets, notes

    def _problem(self, draft: Draft, facts: Facts, named: bool) -> str | None:
        """Why a layer gets no classes; an error if it was named outright."""
        problem, instead = None, "Name the layer that makes the logits of the model"
        units = _classes_of(draft.inference, facts)
        if not facts.units:
            problem = f"a {type(facts.operation).__name__} makes no units of its own"
        elif not growable(facts.main if units is None else units):
            width = next(widths_of(facts.main if units is None else units), None)
            path = [facts.path] if width is None else draft.path_to_obstacle(facts, width)
            reason = "its size doesn't change" if width is None else width.obstacle
            problem = f"its width is fixed: {reason} (path: {' -> '.join(path)})"
            instead = "Take that out of the way, or build a model with more classes"
        elif units is None:
            problem = "its units aren't among the outputs of the model"
            instead = "Name the layer that makes the logits, or use `Wider`"
        if problem is not None and named:
            raise self._error(facts, problem, instead)
        return problem

    def _error(
        self, facts: Facts, why: str, instead: str, kind: type[GrowthError] = FixedWidthError
    ) -> GrowthError:
        return kind(
            f"Layer {label(facts)} can't get new classes",
            why,
            instead,
        )

    def _sizes(self, inference: Inferred, facts: Facts, count: int) -> dict[Width, int]:
        units = _classes_of(inference, facts) or facts.main
        wanted = int(units.size or 0) + count
        sizes, possible = sizes_for(units, wanted)
        if sizes is None:
            near = [str(size - int(units.size or 0)) for size in possible]
            free = ", ".join(repr(width) for width in growable(units))
            raise self._error(
                facts,
                f"its units are made of {units!r}, of which {free} can grow",
                f"Pass {' or '.join(near) or 'another number of'} classes",
                SizeError,
            )
        return sizes

    def _offset(
        self, inference: Inferred, facts: Facts, grown: dict[Width, int]
    ) -> tuple[float, str] | None:
        """What is added to the biases of new classes, and what that means."""
        if self.start != "suppressed":
            return None
        if "bias" not in facts.weights or len(grown) != 1:
            raise self._error(
                facts,
                "a start that is suppressed needs a bias, and one set of classes",
                "Pass `start='mean'` or `start='zeros'`",
                GrowthError,
            )
        ((width, size),) = grown.items()
        shown = [one.shown for one in _holding(inference, width)]
        old = int(width.size or 0)
        new = size - old
        scales = {one.scale for one in shown}
        scale = scales.pop() if len(scales) == 1 else None
        if scale is None or scale <= 0 or len({one.squashed for one in shown}) > 1:
            raise self._error(
                facts,
                "what lies between its logits and the probabilities isn't known to keep the "
                "differences between logits, up to a factor",
                "Pass `start='mean'` or `start='zeros'`",
                GrowthError,
            )
        if shown[0].squashed:
            each = self.mass / new
            bias = math.log(each / (1 - each)) / scale
            return bias, (
                f"{facts.path}: each new class starts with the probability {each:.3g}, for every "
                f"input: kernel 0, bias {bias:.4g}"
            )
        bias = math.log(self.mass * old / (new * (1 - self.mass))) / scale
        return bias, (
            f"{facts.path}: in a softmax, the new classes together get at most {self.mass:g} of "
            "the probability, for every input: kernels and biases are the means of the old ones, "
            f"plus {bias:.4g} on the bias"
        )


def _note(change: OutputChange) -> str:
    """What becomes of the entries of an output."""
    at = change.remap.new.nonzero()[0]
    where = "new ones at the end"
    if at[-1] < change.remap.size - 1 or len(at) != at[-1] - at[0] + 1:
        listed = f"{', '.join(map(str, at[:8]))}{', ...' if len(at) > 8 else ''}"
        where = f"new ones at {listed}, and the old ones behind these move"
    divided = "the old probabilities are compared after dividing them by their sum"
    what = {
        "values": "the old entries are compared, and are what they were",
        "softmax": divided,
        "log_softmax": divided,
        "mixed": "the old entries change with the new probabilities, and aren't compared",
    }[change.kind]
    sizes = f"{change.remap.old_size} -> {change.remap.size}"
    return f"output {change.output}: {sizes} entries, {where}; {what}"


def _classes_of(inference: Inferred, facts: Facts) -> Expression | None:
    """Those units of a layer that the outputs of the model hold; the last of several."""
    tensors = inference.graph.flat_outputs
    shown = {w for x in tensors for axis in inference.of(x) for w in widths_of(axis)}
    found = [
        resolve(units)
        for units in facts.units.values()
        if any(width in shown for width in widths_of(units))
    ]
    return found[-1] if found else None


def _holding(inference: Inferred, width: Width) -> list[HeadOutput]:
    """The outputs that hold a width."""
    outputs = inference.graph.flat_outputs
    return [
        one
        for one in inference.head_outputs
        if width in widths_of(inference.of(outputs[one.output])[one.axis])
    ]


def _squashed(inference: Inferred, width: Width) -> bool:
    return all(one.shown.squashed for one in _holding(inference, width))


def _output_changes(inference: Inferred, sizes: dict[Width, int]) -> Iterator[OutputChange]:
    remaps = {width: appended(int(width.size or 0), size) for width, size in sizes.items()}
    tensors = inference.graph.flat_outputs
    for one in inference.head_outputs:
        axis = inference.of(tensors[one.output])[one.axis]
        remap = remap_of(axis, remaps)
        if remap is None:
            continue
        parts: list[tuple[int, int]] = []
        kind = one.shown.kind
        for over in one.shown.over:
            if not any(width in sizes for width in widths_of(over)):
                continue
            spans = _spans(axis, over)
            if spans is None:
                kind = "mixed"
            else:
                parts += spans
        yield OutputChange(one.output, one.axis, remap, kind, tuple(parts))


def _spans(axis: Expression, part: Expression) -> list[tuple[int, int]] | None:
    """Where an expression stands in one that is made of it."""
    whole, wanted = _parts(axis), _parts(part)
    found = []
    at = 0
    for i, piece in enumerate(whole):
        if whole[i : i + len(wanted)] == wanted:
            found.append((at, at + int(resolve(part).size or 0)))
        at += int(piece.size or 0)
    if found:
        return found
    if isinstance(resolve(axis), Product):
        factors = list(resolve(axis).factors)  # type: ignore[union-attr]
        own = resolve(part)
        inner = list(own.factors) if isinstance(own, Product) else [own]
        if factors[-len(inner) :] == inner:  # one softmax after the other along the axis
            size = int(own.size or 1)
            return [(at, at + size) for at in range(0, int(resolve(axis).size or 0), size)]
    return None


def _parts(expression: Expression) -> list[Expression]:
    expression = resolve(expression)
    return list(expression.parts) if isinstance(expression, Concat) else [expression]
