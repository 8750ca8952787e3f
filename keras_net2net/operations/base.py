"""What all operations share: their interface, and how they name layers."""

from __future__ import annotations

import abc
import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.errors import FixedWidthError, GrowthError, UnknownLayerError, receiving
from keras_net2net.graph.structure import Graph
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import Step
from keras_net2net.widths.expressions import widths_of
from keras_net2net.widths.facts import Facts


class Operation(abc.ABC):
    """One thing to do to a model."""

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether the operation preserves the function of the model."""

    @property
    def looks_at_model(self) -> bool:
        """Whether planning it takes the weights or activations of the model.

        All operations before it are then done before it is planned, so that the layers
        of its draft, and their weights, are those that it will change.
        """
        return False

    @property
    def ends_stage(self) -> bool:
        """Whether it is carried out before the operations behind it are planned.

        They then find the layers that it inserts as they are, whatever these are made of.
        """
        return False

    def __post_init__(self) -> None:
        with receiving(repr(self)):
            self._check()

    def _check(self) -> None:  # noqa: B027 - most have something to check
        """Checks the arguments, and puts them into their plain form."""

    def steps(self, draft: Draft) -> list[Step]:
        """Does the operation to a draft, as `draft` does; errors say what was received."""
        with receiving(repr(self)):
            return self.draft(draft)

    @abc.abstractmethod
    def draft(self, draft: Draft) -> list[Step]:
        """Does the operation to a draft.

        Args:
            draft: The draft; it is changed.

        Returns:
            What was done.

        Raises:
            GrowthError: If it can't be done.
        """

    def by_path(self, draft: Draft) -> Operation:
        """The same operation with paths in the place of the layer objects of a draft."""
        paths = {id(facts.operation): facts.path for facts in draft.layers()}
        return type(self).from_config({**vars(self), "layers": plain(vars(self)["layers"], paths)})

    def _set(self, **arguments: Any) -> None:
        """Puts arguments into their plain form, once they have been checked."""
        for name, value in arguments.items():
            object.__setattr__(self, name, value)  # the dataclasses are frozen

    def get_config(self) -> dict[str, Any]:
        """The arguments but for data, ready to be written as JSON; layers become names."""
        return {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if field.repr  # data isn't part of a configuration
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Operation:
        """The operation with these arguments."""
        return cls(**config)

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        shown = []
        for field in fields:
            value = getattr(self, field.name)
            if not field.repr:  # data
                continue
            if field.name == "layers":
                if value is not None:
                    shown.append(repr(plain(value)))
            elif type(value) is not type(field.default) or value != field.default:
                named = plain(value)
                named = tuple(named) if isinstance(value, tuple) else named
                shown.append(f"{field.name}={named!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def plain(value: Any, paths: Mapping[int, str] | None = None) -> Any:
    """A value with the names of layers, or given paths, in the place of layers and tensors."""
    if isinstance(value, keras.Operation):
        return (paths or {}).get(id(value), value.name)
    if isinstance(value, keras.KerasTensor):
        return plain(internals.maker_of(value), paths)
    if isinstance(value, dict):
        return {plain(key, paths): plain(item, paths) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, paths) for item in value]
    return value


def fixed_request(layers: Any) -> Any:
    """What names the layers, as a value of its own that no one else can change."""
    if isinstance(layers, dict):
        return dict(layers)
    return tuple(layers) if _is_sequence(layers) else layers


def as_operations(operations: Any) -> list[Operation]:
    """Checks and flattens what a user gives as operation(s).

    Args:
        operations: An operation, or a (nested) list of operations.

    Returns:
        A flat list.

    Raises:
        GrowthError: If something in it isn't an operation.
    """
    if isinstance(operations, Operation):
        return [operations]
    if isinstance(operations, (list, tuple)) and operations:
        return [one for item in operations for one in as_operations(item)]
    raise GrowthError(
        "There is nothing that the model could be grown by",
        "an operation, or a list of operations, is needed",
        "Pass for example `Wider('conv1', units=64)` or `[Wider(factor=1.5), Deeper('conv2')]`",
        received=f"{operations!r} (of type {type(operations).__name__})",
    )


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


@dataclasses.dataclass(frozen=True)
class Match:
    """A layer that a request found, and whether it was named outright."""

    facts: Facts
    named: bool


def find_layers(draft: Draft, wanted: Any) -> list[Match]:
    """The layers that a request names.

    Args:
        draft: The draft.
        wanted: A layer's name or path, a glob pattern of these, a layer object, or
            a sequence of these.

    Returns:
        The layers in the order of the request, each once.

    Raises:
        UnknownLayerError: If a name or pattern matches nothing, or a name more
            than one layer.
    """
    found: dict[int, Match] = {}
    items = wanted if _is_sequence(wanted) else [wanted]
    if not items:
        raise UnknownLayerError(
            "No layer was named",
            "the list is empty",
            "Name a layer",
        )
    for item in items:
        for match in _find(draft, item):
            found.setdefault(id(match.facts), match)
    return list(found.values())


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _find(draft: Draft, item: Any) -> Iterable[Match]:
    layers = draft.layers()
    if isinstance(item, keras.Layer):
        same = [facts for facts in layers if facts.operation is item]
        if not same:
            raise UnknownLayerError(
                (
                    f"The layer {item.name!r} ({type(item).__name__}) isn't part of "
                    f"the model {draft.model.name!r}"
                ),
                "only layers that the model calls can grow",
                _suggest(draft, item.name),
            )
        return [Match(same[0], True)]
    if not isinstance(item, str):
        raise UnknownLayerError(
            "A layer is named by a string or given as a layer object",
            "nothing else tells which layer is meant",
            "Pass names such as 'conv1', patterns such as 'conv*', or layers",
        )
    by_path = [facts for facts in layers if facts.path == item]
    by_name = by_path or [facts for facts in layers if facts.operation.name == item]
    if len(by_name) > 1:
        paths = ", ".join(repr(facts.path) for facts in by_name)
        raise UnknownLayerError(
            f"The name {item!r} doesn't tell which layer is meant",
            f"{len(by_name)} layers of nested models have it",
            f"Use a path: {paths}",
        )
    if by_name:
        return [Match(by_name[0], True)]
    if any(character in item for character in "*?["):
        matches = [
            Match(facts, False)
            for facts in layers
            if fnmatch.fnmatchcase(facts.path, item)
            or fnmatch.fnmatchcase(facts.operation.name, item)
        ]
        if matches:
            return matches
    kind = "pattern" if any(character in item for character in "*?[") else "name"
    nested = [g for g in draft.graph.subgraphs() if g.path and item in (g.path, g.model.name)]
    if nested and not isinstance(nested[0].model, keras.Model):
        raise _opened(draft, nested[0])
    if nested:
        raise UnknownLayerError(
            f"{item!r} is a model ({type(nested[0].model).__name__}), not a layer",
            "its layers grow, each by its own width",
            f"Name the layers inside, such as '{nested[0].path}/*'",
        )
    raise UnknownLayerError(
        f"The {kind} {item!r} matches no layer of the model {draft.model.name!r}",
        f"its layers are {_listed([facts.path for facts in layers])}",
        _suggest(draft, item),
    )


def _opened(draft: Draft, graph: Graph) -> FixedWidthError:
    """Why a layer that was looked into has no units that go by its own name."""
    kind = type(graph.model).__name__
    facts = draft.inference.facts.get(id(graph.model))
    axes = [axis for axes in facts.weights.values() for axis in axes] if facts else []
    widths = [width for axis in reversed(axes) for width in widths_of(axis.expression)]
    reasons = [f"{width.obstacle}" for width in widths if width.obstacle is not None]
    inside = [one.path for one in draft.layers() if one.path.startswith(f"{graph.path}/")]
    return FixedWidthError(
        f"Layer {graph.path!r} ({kind}) can't be widened",
        reasons[0] if reasons else "it makes no units of its own",
        (
            f"Name a layer inside it: {_listed(inside)}"
            if inside
            else f"Register a rule for {kind} with `keras_net2net.rules.register_rule`"
        ),
    )


def _listed(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, and {len(names) - most} more" if len(names) > most else shown


def _suggest(draft: Draft, name: str) -> str:
    names = {facts.path for facts in draft.layers()}
    names |= {facts.operation.name for facts in draft.layers()}
    close = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    if not close:
        return "Use a name from `[layer.name for layer in model.layers]`"
    return f"Did you mean {' or '.join(map(repr, close))}?"


def label(facts: Facts) -> str:
    """A layer for an error message: its path, class and sizes."""
    sizes = ", ".join(
        f"{expression.size} {'units' if key == 'output_dim' else key}"
        for key, expression in facts.units.items()
    )
    kind = type(facts.operation).__name__
    return f"{facts.path!r} ({kind}{', ' + sizes if sizes else ''})"
