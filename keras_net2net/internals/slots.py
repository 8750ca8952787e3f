"""The slots of optimizers: what each of them holds for a weight."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_net2net.internals.optimizers import progress_of

WEIGHT = "weight"  # a slot that is a weight itself: an average of weights, say
DERIVED = "derived"  # one that follows from other slots


@dataclasses.dataclass(frozen=True)
class SlotKind:
    """What a slot holds.

    Args:
        power: The power of the gradient that it goes with: 1 for a mean of gradients,
            2 for one of their squares, 0 for one of updates, which don't depend on the
            gradients' scale. Or `WEIGHT`, or `DERIVED`.
        start: The optimizer's attribute that says what it starts at. Defaults to
            `None`: zero.
    """

    power: int | str
    start: str | None = None


@dataclasses.dataclass(frozen=True)
class Slot:
    """A variable that an optimizer keeps for a variable of the model.

    Args:
        owner: The variable of the model; `None` for a number for all of them.
        name: What it is called, the same for all variables.
        variable: The optimizer's variable.
        kind: What it holds; `None` if that isn't known.
    """

    owner: Any
    name: str
    variable: Any
    kind: SlotKind | None


_FIRST, _SECOND, _UPDATE = SlotKind(1), SlotKind(2), SlotKind(0)
_SUM = SlotKind(2, "initial_accumulator_value")

# By the names of Keras's classes and of their attributes, which are lists in the order
# of the model's variables. What is in them is nowhere said but in `update_step`.
_KINDS: dict[str, dict[str, SlotKind]] = {
    "BaseOptimizer": {
        "_model_variables_moving_average": SlotKind(WEIGHT),
        "_accumulated_gradients": _FIRST,
    },
    "SGD": {"momentums": _FIRST},
    "RMSprop": {"_velocities": _SECOND, "_momentums": _UPDATE, "_average_gradients": _FIRST},
    "Adam": {"_momentums": _FIRST, "_velocities": _SECOND, "_velocity_hats": _SECOND},
    "Adamax": {"_m": _FIRST, "_u": _FIRST},
    "Adagrad": {"_accumulators": _SUM},
    "Adadelta": {"_accumulated_grads": _SECOND, "_accumulated_delta_vars": _UPDATE},
    "Nadam": {"_momentums": _FIRST, "_velocities": _SECOND},
    "Ftrl": {"_accumulators": _SUM, "_linears": _FIRST},
    "Lion": {"_momentums": _FIRST},
    "Adafactor": {"_v": _SECOND, "_r": SlotKind(DERIVED), "_c": SlotKind(DERIVED)},
    "Lamb": {"_momentums": _FIRST, "_velocities": _SECOND},
    "Muon": {"momentums": _FIRST, "adam_velocities": _SECOND},
    "ScheduleFreeAdamW": {"_momentums": SlotKind(WEIGHT), "_velocities": _SECOND},
}

_NUMBERS = {"Nadam": ("_u_product",)}

# Slots of other optimizers, by the names that Keras gives such ones.
_BY_NAME = {
    "momentum": _FIRST,
    "average_gradient": _FIRST,
    "velocity": _SECOND,
    "velocity_hat": _SECOND,
}


def slots_of(optimizer: Any) -> list[Slot]:
    """All variables that an optimizer keeps beside its progress, with what they hold.

    No optimizer offers which variable belongs to which. For Keras's own classes and
    those derived from them the table says where they are. Another one's are found by
    their paths, which begin with that of the model's variable.
    """
    owners = optimizer._trainable_variables
    found: list[Slot] = []
    known = set(map(id, progress_of(optimizer)))
    for cls in reversed(type(optimizer).__mro__):
        if not cls.__module__.startswith("keras.src.optimizers."):
            continue
        for name, kind in _KINDS.get(cls.__name__, {}).items():
            held = getattr(optimizer, name, None) or ()
            for owner, variable in zip(owners, held, strict=False):
                known.add(id(variable))
                if variable is not None and (variable.ndim or not owner.ndim):
                    found.append(Slot(owner, name, variable, kind))
        for name in _NUMBERS.get(cls.__name__, ()):
            number = getattr(optimizer, name)
            known.add(id(number))
            found.append(Slot(None, name, number, None))
    prefixes = [(f"{v.path.replace('/', '_')}_", v) for v in owners]
    prefixes.sort(key=lambda entry: -len(entry[0]))  # a path may begin with another one
    for variable in optimizer._variables:
        if id(variable) in known:
            continue
        for prefix, owner in prefixes:
            if variable.name.startswith(prefix):
                name = variable.name.removeprefix(prefix)
                found.append(Slot(owner, name, variable, _BY_NAME.get(name)))
                break
        else:
            found.append(Slot(None, variable.path, variable, None))
    return found
