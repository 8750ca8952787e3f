"""Which layers and tensors of a model a user means: names, paths, patterns and objects."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.errors import FixedWidthError, GrowthError, UnknownLayerError
from keras_net2net.graph.structure import Call, Graph, Tensor
from keras_net2net.planning.draft import Draft
from keras_net2net.widths.expressions import widths_of
from keras_net2net.widths.facts import Facts

_ANY_NAME = "Use a name from `[layer.name for layer in model.layers]`"


def fixed_request(layers: Any) -> Any:
    """What names the layers, as a value of its own that no one else can change."""
    if isinstance(layers, dict):
        return dict(layers)
    return tuple(layers) if _is_sequence(layers) else layers


def each_of(wanted: Any) -> list[Any]:
    """What a request names, one by one.

    Raises:
        UnknownLayerError: If there is nothing.
    """
    items = list(wanted) if _is_sequence(wanted) else [wanted]
    if not items:
        raise UnknownLayerError("No layer was named", "the list is empty", "Name a layer")
    return items


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_pattern(item: Any) -> bool:
    """Whether something that names layers is a glob pattern."""
    return isinstance(item, str) and any(character in item for character in "*?[")


def _matches(pattern: str, path: str, operation: Any) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (path, operation.name))


def label(facts: Facts) -> str:
    """A layer for an error message: its path, class and sizes."""
    sizes = ", ".join(
        f"{expression.size} {'units' if key == 'output_dim' else key}"
        for key, expression in facts.units.items()
    )
    kind = type(facts.operation).__name__
    return f"{facts.path!r} ({kind}{', ' + sizes if sizes else ''})"


def _listed(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, and {len(names) - most} more" if len(names) > most else shown


def _meant(item: Any, names: Iterable[str], cutoff: float = 0.6) -> str:
    """What to say of names that are close to one that there isn't."""
    close = []
    if isinstance(item, str):
        close = difflib.get_close_matches(item, sorted(set(names)), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else _ANY_NAME


# -- layers ------------------------------------------------------------------------------


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
    for item in each_of(wanted):
        for match in _find(draft, item):
            found.setdefault(id(match.facts), match)
    return list(found.values())


def find_each(draft: Draft, layers: Any, value: Any) -> list[tuple[Match, Any]]:
    """The layers that a request names, each with what is asked for it.

    Args:
        draft: The draft.
        layers: As `wanted` of `find_layers`, or a dict from these to what is asked.
        value: What is asked where there is no dict.
    """
    asked = layers.items() if isinstance(layers, dict) else [(layers, value)]
    return [(match, one) for wanted, one in asked for match in find_layers(draft, wanted)]


def _find(draft: Draft, item: Any) -> list[Match]:
    layers = draft.layers()
    if isinstance(item, keras.Layer):
        named = [facts for facts in layers if facts.operation is item]
    elif isinstance(item, str):
        named = [facts for facts in layers if facts.path == item]
        named = named or [facts for facts in layers if facts.operation.name == item]
    else:
        raise UnknownLayerError(
            "A layer is named by a string or given as a layer object",
            "nothing else tells which layer is meant",
            "Pass names such as 'conv1', patterns such as 'conv*', or layers",
        )
    if isinstance(item, str) and len(named) > 1:
        paths = ", ".join(repr(facts.path) for facts in named)
        raise UnknownLayerError(
            f"The name {item!r} doesn't tell which layer is meant",
            f"{len(named)} layers of nested models have it",
            f"Use a path: {paths}",
        )
    if named:
        return [Match(named[0], True)]
    found = [
        Match(facts, False)
        for facts in layers
        if is_pattern(item) and _matches(item, facts.path, facts.operation)
    ]
    if not found:
        raise _no_layer(draft, item, layers)
    return found


def _no_layer(draft: Draft, item: Any, layers: list[Facts]) -> GrowthError:
    """The error for a layer, a name or a pattern that finds nothing."""
    name = item if isinstance(item, str) else item.name
    names = [name for facts in layers for name in (facts.path, facts.operation.name)]
    meant = _meant(name, names, cutoff=0.5)
    if not isinstance(item, str):
        return UnknownLayerError(
            f"The layer {name!r} ({type(item).__name__}) isn't part of "
            f"the model {draft.model.name!r}",
            "only layers that the model calls can grow",
            meant,
        )
    nested = [g for g in draft.graph.subgraphs() if g.path and item in (g.path, g.model.name)]
    if nested and not isinstance(nested[0].model, keras.Model):
        return _opened(draft, nested[0])
    if nested:
        return UnknownLayerError(
            f"{item!r} is a model ({type(nested[0].model).__name__}), not a layer",
            "its layers grow, each by its own width",
            f"Name the layers inside, such as '{nested[0].path}/*'",
        )
    return UnknownLayerError(
        f"The {'pattern' if is_pattern(item) else 'name'} {item!r} matches no layer of the model "
        f"{draft.model.name!r}",
        f"its layers are {_listed([facts.path for facts in layers])}",
        meant,
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


# -- tensors -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
    """What a layer makes at one call of it; or an input of a graph, which has no call."""

    graph: Graph
    call: Call | None
    tensor: Tensor

    @classmethod
    def of(cls, graph: Graph, tensor: Tensor) -> Output:
        """A tensor of a graph, with the call that makes it."""
        return cls(graph, graph.maker(tensor), tensor)

    @property
    def operation(self) -> Any:
        """What makes it."""
        if self.call is not None:
            return self.call.operation
        return internals.input_layer(self.tensor.keras_tensor)

    @property
    def path(self) -> str:
        """What to call it."""
        if self.call is not None:
            return self.call.path
        return getattr(self.operation, "name", "the input")


def find_output(draft: Draft, item: Any) -> Output:
    """The output of a layer that is named, or a tensor.

    Args:
        draft: The draft.
        item: A name, a path, a layer, or a symbolic tensor of the model.

    Raises:
        GrowthError: If there is none, or more than one.
    """
    outputs = list(_outputs(draft.graph))
    if isinstance(item, keras.KerasTensor):
        found = [one for one in outputs if one.tensor.keras_tensor is item]
    elif isinstance(item, keras.Operation):
        found = [one for one in outputs if one.operation is item]
    elif isinstance(item, str):
        found = [one for one in outputs if one.path == item]
        found = found or [one for one in outputs if one.path.rsplit("/", 1)[-1] == item]
    else:
        raise UnknownLayerError(
            "A part of the model is named by layers",
            "it is named by strings, layers or symbolic tensors",
            "Pass names such as 'block1_out', layers, or tensors such as `layer.output`",
        )
    name = repr(item if isinstance(item, str) else getattr(item, "name", item))
    if not found:
        raise UnknownLayerError(
            f"{name} is no layer of the model {draft.model.name!r}",
            (
                "none of its layers and tensors has that name"
                if isinstance(item, str)
                else "the model doesn't call it"
            ),
            _meant(item, [one.path for one in outputs]),
        )
    found = _rewirable(found)
    if len(found) > 1:
        paths = ", ".join(repr(path) for path in dict.fromkeys(one.path for one in found))
        raise UnknownLayerError(
            f"{name} doesn't tell which tensor is meant",
            f"there are {len(found)} that it could be, made by {paths}",
            "Use a path, or pass the tensor itself, such as `layer.get_output_at(1)`",
        )
    return found[0]


def outputs_like(draft: Draft, pattern: str) -> list[Output]:
    """The outputs of the layers that a pattern names, each at all of its calls.

    Raises:
        GrowthError: If there are none.
    """
    found = [
        Output(graph, call, call.outputs[0])
        for graph, call in draft.graph.all_calls()
        if _matches(pattern, call.path, call.operation)
    ]
    if not found:
        raise UnknownLayerError(
            f"The pattern {pattern!r} matches no layer of the model {draft.model.name!r}",
            "none of its layers is called like that",
            _ANY_NAME,
        )
    return _rewirable(found)


def _rewirable(outputs: list[Output]) -> list[Output]:
    """Those in graphs that layers can be inserted into; an error if there are none."""
    found = [one for one in outputs if not one.graph.opened]
    if not found:
        raise not_rewired(outputs[0].graph)
    return found


def not_rewired(graph: Graph) -> GrowthError:
    """The error for the inside of a layer or model whose own code decides what it calls."""
    kind = type(graph.model).__name__
    what = f"the layer {graph.path!r}" if graph.path else f"the model {graph.model.name!r}"
    return GrowthError(
        f"Nothing can be inserted into {what} ({kind})",
        "its own code decides which layers it calls",
        (
            "Name a layer outside of it, or the whole layer"
            if graph.path
            else "Build the model from `keras.Input`s as `keras.Model(inputs, outputs)`"
        ),
    )


def _outputs(graph: Graph) -> Iterable[Output]:
    for g in graph.subgraphs():
        if not g.opened:
            for tensor in g.flat_inputs:
                yield Output(g, None, tensor)
        for call in g.calls:
            for tensor in call.outputs:
                yield Output(g, call, tensor)
