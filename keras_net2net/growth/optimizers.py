"""The optimizer after a growth: its progress stays, its slots start again or are carried."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.growth.history import ESTIMATES, Growth
from keras_net2net.growth.rates import new_rate
from keras_net2net.growth.report import GrowthReport
from keras_net2net.growth.slots import REPLACED, UNKNOWN, carry, settle
from keras_net2net.growth.transaction import Transaction

OPTIMIZER_STATES = ("reset", "carry")


class Trained:
    """A model as one of several optimizers sees it: with the variables that it updates.

    Args:
        model: The model.
        optimizer: The optimizer.
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.distribute_strategy = getattr(model, "distribute_strategy", None)
        self._model = model
        known = {id(v) for v in internals.optimizer_variables(optimizer) or ()}
        self._parts = [
            layer
            for layer in internals.sublayers(model)
            if any(id(v) in known for v in layer.trainable_variables)
        ]

    @property
    def trainable_variables(self) -> list[Any]:
        """The variables of those parts of the model that the optimizer updates some of."""
        found = {id(v): v for part in self._parts for v in part.trainable_variables}
        own = {id(v): v for v in self._model.trainable_variables if id(v) in found}
        return list(own.values())


class OptimizerUpdate:
    """Fits the optimizer of a compiled model to what a growth makes of its variables.

    The optimizer stays the same object, with its number of iterations, its loss
    scale, its exclusions from weight decay, and its learning rate or schedule.

    It is made before the growth.

    Args:
        model: The model. One that isn't compiled has no optimizer: nothing happens.
        state: `"reset"` or `"carry"`: what becomes of the slots.
        transaction: Remembers what is changed.
    """

    def __init__(self, model: Any, state: str, transaction: Transaction) -> None:
        self._model = model
        self._carries = state == "carry"
        self._transaction = transaction
        self._optimizer = getattr(model, "optimizer", None)
        self._parts = [] if self._optimizer is None else internals.optimizer_parts(self._optimizer)
        self._trained = model.trainable_variables
        self._excluded = [internals.without_decay(part, self._trained) for part in self._parts]

    @property
    def step(self) -> int | None:
        """The number of steps done, as a schedule counts them."""
        return None if not self._parts else internals.steps_of(self._parts[-1])

    def follow(self, growth: Growth) -> tuple[str, ...]:
        """Gives the optimizer slots for the grown variables, and for those trained from now on."""
        for part, variables in zip(self._parts, self._excluded, strict=True):
            self._transaction.remember(part)
            internals.exclude_from_decay(part, variables)
        known = internals.optimizer_variables(self._optimizer) if self._parts else None
        if known is None:
            return ()
        # What was trainable all along, but isn't known to the optimizer, stays unknown to it.
        left_out = set(map(id, self._trained)) - set(map(id, known))
        trained = [v for v in self._model.trainable_variables if id(v) not in left_out]
        before = [internals.slots_of(part) for part in self._parts if self._carries]
        with internals.variable_scope(self._model):
            internals.reset_optimizer(self._optimizer, trained)
            if not self._carries:
                return ()
            pairs = zip(self._parts, before, strict=True)
            lost = [one for part, slots in pairs for one in carry(part, slots, growth)]
        return _notes([slot for slots in before for slot in slots], growth, lost)

    def rate(self, policy: Any, report: GrowthReport) -> None:
        """Changes the learning rate, and what depends on it.

        Args:
            policy: What to do, as `grow` takes it.
            report: What the growth did.
        """
        for part in self._parts:
            self._transaction.remember(part)
            # One that holds others leaves the rate to them.
            if policy is not None and len(internals.optimizer_parts(part)) == 1:
                self._change_rate(part, policy, report)
        with internals.variable_scope(self._model):
            for part in self._parts:
                settle(part)

    def _change_rate(self, part: Any, policy: Any, report: GrowthReport) -> None:
        held = internals.learning_rate_of(part)
        old = held
        if isinstance(held, keras.Variable):
            before = keras.ops.convert_to_numpy(held).copy()
            self._transaction.on_roll_back(lambda: held.assign(before))
            old = float(before)
        told = dataclasses.replace(report, step=internals.steps_of(part))
        new = new_rate(policy, old, told)
        if new is not old:
            with internals.variable_scope(self._model):
                internals.set_learning_rate(part, new)


def optimizers_of(model: Any, state: str, transaction: Transaction) -> list[OptimizerUpdate]:
    """The update of a model's own optimizer, and of others that it holds, as a GAN does."""
    held = [Trained(model, optimizer) for optimizer in internals.held_optimizers(model)]
    return [OptimizerUpdate(one, state, transaction) for one in (model, *held)]


def _notes(
    slots: list[internals.Slot], growth: Growth, lost: list[tuple[str, str]]
) -> tuple[str, ...]:
    plan, histories = growth.plan, growth.histories
    moments = [s for s in slots if s.kind is not None and s.kind.power in (1, 2)]
    reasons: set[str] = set()
    if moments and any(not step.exact or step.outputs for step in plan.steps):
        reasons.add("function")
    if moments and plan.normalizes:
        reasons.add("normalized")
    for slot in moments:
        if slot.kind is not None and id(slot.owner) in histories:
            unsure = histories[id(slot.owner)].estimates
            reasons |= unsure if slot.kind.power == 2 else unsure - {"merged"}
    notes = [text for reason, text in ESTIMATES.items() if reason in reasons]
    if any(s.kind is not None and s.kind.power == internals.DERIVED for s in slots):
        notes.append(
            "Adafactor's second moments are carried as their factors' product, and factored anew"
        )
    for why in (REPLACED, UNKNOWN):
        paths = [path for path, reason in lost if reason == why]
        if paths:
            shown = ", ".join(paths[:4]) + (f", and {len(paths) - 4} more" if paths[4:] else "")
            note = f"the optimizer's {shown} start again: {why}"
            warnings.warn(note, stacklevel=2)
            notes.append(note)
    return tuple(notes)
