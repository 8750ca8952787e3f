"""Training only what is new: what was there before a growth stays, bit for bit.

A layer that is old as a whole isn't trainable any more. Where a layer holds old and
new units, the old entries of each weight are put back after each update, by the
variable's constraint: this needs no class of its own, knows every optimizer, and holds
whatever moves a weight, its decay included. A constraint set like this isn't saved with
the model, so that the file is one of plain Keras.

All that is remembered hangs on the layers and variables themselves, and goes with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.growth.optimizers import OptimizerUpdate
from keras_net2net.growth.transaction import Transaction
from keras_net2net.planning.changes import VariableChange, VariableReplacement
from keras_net2net.planning.plan import Plan

FREEZE = (None, "teacher")
_MARK = "_keras_net2net_frozen"  # of layers that were trainable before


class KeptEntries(keras.constraints.Constraint):
    """A constraint that puts the frozen entries of a weight back after each update.

    Args:
        mask: Boolean array: the frozen entries.
        variable: The weight.
        first: The constraint that the weight had before, applied first.
    """

    def __init__(self, mask: np.ndarray, variable: Any, first: Any) -> None:
        self.mask = mask
        self.first = first
        # Variables, so that they lie where the weight does.
        self._mask = keras.Variable(mask, trainable=False, dtype="bool", name="frozen")
        self._values = keras.Variable(
            np.array(internals.read_variable(variable)),
            trainable=False,
            dtype=variable.dtype,
            name="kept",
        )

    def __call__(self, x: Any) -> Any:
        """The weight with its frozen entries as they were."""
        x = x if self.first is None else self.first(x)
        held = (self._mask, self._values, x)  # variables, which JAX doesn't take as arrays
        return keras.ops.where(*map(keras.ops.convert_to_tensor, held))


def check_freeze(freeze: Any, model: Any = None) -> None:
    """Checks the argument `freeze`."""
    if freeze not in FREEZE:
        raise GrowthError(
            "What is frozen isn't clear",
            f"it is one of {', '.join(map(repr, FREEZE))}",
            "Pass `freeze='teacher'` to train only what is new, or `None`",
            received=f"freeze={freeze!r}",
        )
    optimizer = getattr(model, "optimizer", None)
    if freeze is None or optimizer is None:
        return
    if any(getattr(part, "use_ema", False) for part in internals.optimizer_parts(optimizer)):
        raise GrowthError(
            f"The teacher's weights in {model.name!r} can't be frozen",
            "the optimizer replaces all weights by their moving averages (use_ema=True)",
            "Compile the model with `use_ema=False`",
            received=f"freeze={freeze!r}",
        )


class Changes:
    """How the variables of a model change in a growth, stage by stage."""

    def __init__(self) -> None:
        self.of: dict[int, list[VariableChange | VariableReplacement]] = {}
        self.held: list[Any] = []  # an `id` must stay that of its variable

    def add(self, plan: Plan, changed: Mapping[str, Any]) -> None:
        """Notes what a plan has changed.

        Args:
            plan: The plan.
            changed: The variables that it has changed, by their paths in it.
        """
        for step in plan.steps:
            for layer in step.layers:
                for change in layer.variables:
                    variable = changed.get(f"{layer.path}/{change.label}")
                    if variable is not None:
                        self.of.setdefault(id(variable), []).append(change)
                        self.held.append(variable)


def grown_mask(
    mask: np.ndarray, changes: Sequence[VariableChange | VariableReplacement]
) -> np.ndarray:
    """The mask of the entries that were frozen before, after some changes.

    Args:
        mask: Boolean array, in the shape from before.
        changes: The changes, one after the other.

    Returns:
        Boolean array, in the shape from after: false for all that is new.
    """
    for change in changes:
        if isinstance(change, VariableReplacement):  # each entry is made of many old ones
            mask = np.full(change.shape, mask.all())
        for at, axis in enumerate(change.axes):
            if axis is not None:
                mask = np.take(mask, axis.remap.index, axis=at)
                np.moveaxis(mask, at, 0)[axis.remap.new] = False
    return mask


def freeze_old(
    model: Any,
    changes: Changes,
    inserted: Iterable[Any],
    everything: bool,
    transaction: Transaction,
) -> tuple[list[Any], tuple[str, ...]]:
    """Freezes what was there before a growth, or what of it was frozen before.

    Args:
        model: The grown model.
        changes: How its variables have changed.
        inserted: The variables of inserted layers.
        everything: Whether all that was there before is frozen from now on.
        transaction: Remembers what is changed.

    Returns:
        The variables that are trainable now and weren't; and what a user should know.
    """
    new = set(map(id, inserted))
    thawed: list[Any] = []
    mixed: list[str] = []
    for layer in internals.all_layers(model):
        own = internals.own_trainable(layer)
        marked = _MARK in vars(layer)
        kept = [v for v in own if isinstance(v.constraint, KeptEntries)]
        frozen_by_user = not layer.trainable and not marked
        if not own or frozen_by_user or any(id(v) in new for v in own):
            continue
        if not everything and not marked and not kept:
            continue
        masks = {id(v): _mask(v, everything or marked, changes) for v in own}
        whole = all(mask.all() for mask in masks.values())
        if whole and not any(inner.weights for inner in internals.sublayers(layer)):
            for variable in kept:
                _constrain(variable, None, transaction)
            if not marked:
                _set_trainable(layer, False, transaction)
            continue
        if marked:
            _set_trainable(layer, True, transaction)
            thawed += own
        for variable in own:
            _constrain(variable, masks[id(variable)], transaction)
        if isinstance(layer, keras.layers.BatchNormalization):
            mixed.append(repr(layer.name))
    if not mixed:
        return thawed, ()
    return thawed, (
        f"{', '.join(mixed)}: a batch normalization of old and new units takes the statistics of "
        "batches for all of them while it trains",
    )


def _mask(variable: Any, everything: bool, changes: Changes) -> np.ndarray:
    mine = changes.of.get(id(variable), [])
    shape = list(variable.shape)
    for at in range(len(shape)):
        first = next((one.axes[at] for one in mine if one.axes[at] is not None), None)
        shape[at] = shape[at] if first is None else first.remap.old_size
    kept = variable.constraint
    if everything or not isinstance(kept, KeptEntries):
        return grown_mask(np.full(shape, everything), mine)
    return grown_mask(kept.mask, mine)


def _constrain(variable: Any, mask: np.ndarray | None, transaction: Transaction) -> None:
    transaction.remember(variable)
    constraint = variable.constraint
    first = constraint.first if isinstance(constraint, KeptEntries) else constraint
    frozen = mask is not None and mask.any()
    variable.constraint = KeptEntries(np.asarray(mask), variable, first) if frozen else first


def _set_trainable(layer: Any, trainable: bool, transaction: Transaction) -> None:
    """Sets the flag of a layer that has weights of its own, and marks it while it is off."""
    transaction.remember(layer)
    variables = internals.own_trainable(layer)
    before = [(variable, variable.trainable) for variable in variables]

    def undo() -> None:
        for variable, flag in before:
            variable.trainable = flag

    transaction.on_roll_back(undo)
    layer.trainable = trainable
    if trainable:
        for variable in vars(layer).pop(_MARK)[0]:
            variable.trainable = False  # as the user had it
    else:
        vars(layer)[_MARK] = ([variable for variable, flag in before if not flag],)


def unfreeze(model: Any) -> None:
    """Makes trainable again what `grow(..., freeze="teacher")` froze.

    What was frozen before that, by `trainable = False`, stays so. The slots of the
    optimizer of a compiled model start again.

    Args:
        model: The model.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(2, name="out")]
    ... )
    >>> _ = n2n.grow(model, n2n.Deeper("fc"), freeze="teacher")
    >>> [layer.trainable for layer in model.layers]
    [False, True, False]
    >>> n2n.unfreeze(model)
    >>> [layer.trainable for layer in model.layers]
    [True, True, True]
    """
    transaction = Transaction()
    internals.sync_state(model)
    transaction.remember(model)
    optimizer = OptimizerUpdate(model)
    thawed: list[Any] = []
    changed = False
    try:
        for layer in internals.all_layers(model):
            if _MARK in vars(layer):
                changed = True
                _set_trainable(layer, True, transaction)
                thawed += internals.own_trainable(layer)
            for variable in internals.own_trainable(layer):
                if isinstance(variable.constraint, KeptEntries):
                    changed = True
                    _constrain(variable, None, transaction)
        if changed:
            nothing = Plan(model.name, 0, (), 0, 0)
            optimizer.slots(nothing, {}, thawed, "reset", transaction)
            internals.forget_functions(model)
    except BaseException:
        transaction.roll_back()
        raise


def carry_over(original: Any, copy: Any) -> None:
    """Freezes in a copy what is frozen in the original.

    Args:
        original: The model.
        copy: Its copy: the same layers in the same order.
    """
    pairs = zip(internals.all_layers(original), internals.all_layers(copy), strict=False)
    for one, other in pairs:
        mine, its = internals.own_trainable(one), internals.own_trainable(other)
        if len(mine) != len(its):
            continue
        if _MARK in vars(one):
            was = [v for v, old in zip(its, mine, strict=True) if _is_in(old, vars(one)[_MARK][0])]
            vars(other)[_MARK] = (was,)
        for variable, twin in zip(mine, its, strict=True):
            kept = variable.constraint
            if isinstance(kept, KeptEntries):
                twin.constraint = KeptEntries(kept.mask, twin, twin.constraint)


def _is_in(variable: Any, variables: Iterable[Any]) -> bool:
    return any(variable is other for other in variables)
