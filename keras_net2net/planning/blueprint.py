"""All that carrying out a plan takes, once the plan is drawn up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from keras_net2net.graph.structure import Graph
from keras_net2net.planning.plan import Plan
from keras_net2net.widths.facts import Facts


@dataclasses.dataclass(frozen=True, eq=False)
class Blueprint:
    """A plan, with what it takes to carry it out on the model that it was made for.

    A `Plan` can be compared, printed and replayed on arrays, and knows no model. This
    goes with one model, and with the state that it was in.

    Args:
        plan: The plan.
        graph: The graph of the model as planned, with its new shapes and calls.
        facts: What is known of the layers of that graph, inserted ones included.
        stand_ins: What stands in the graph for the layers that are inserted, by path.
        makers: What makes these layers, with their weights, by path.
        training_data: The inputs that an operation has made the model's behaviour in
            training mode exact for, if one has; what it is compared on.
    """

    plan: Plan
    graph: Graph
    facts: tuple[Facts, ...]
    stand_ins: Mapping[str, Any]
    makers: Mapping[str, Callable[[], Any]]
    training_data: Any = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the growth before it is done."""
        notes = [note for step in self.plan.steps for note in step.notes]
        if self._has_penalties:
            notes.append(
                "what grows has penalties (regularizers), which depend on the number of weights "
                "and units: the loss changes by them"
            )
        adding = [graph for graph in self.graph.subgraphs() if graph.adds_loss]
        if adding and not self.plan.empty:
            names = ", ".join(dict.fromkeys(graph.path or graph.model.name for graph in adding))
            notes.append(
                f"the code of {names} adds to the loss: if that depends on the number of weights "
                "or units, the loss changes by it"
            )
        return tuple(notes)

    @property
    def _has_penalties(self) -> bool:
        """Whether a layer that changes or is inserted has one, or any on its activations."""
        grown = {layer.path for step in self.plan.steps for layer in step.layers}
        grown |= {insertion.path for step in self.plan.steps for insertion in step.insertions}
        return bool(grown) and any(
            one.get("activity_regularizer") is not None
            or (
                call.path in grown
                and any(n.endswith("regularizer") and x is not None for n, x in one.items())
            )
            for _, call in self.graph.all_calls()
            for one in (vars(call.operation),)
        )
