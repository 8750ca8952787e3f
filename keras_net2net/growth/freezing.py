"""Training only what is new: what was there before a growth stays, bit for bit.

A layer that is old as a whole isn't trainable any more. Where a layer holds old and
new units, the old entries of each weight are put back after each update, by the
variable's constraint: this needs no class of its own, knows every optimizer, and holds
whatever moves a weight, its decay included. A constraint set like this isn't saved with
the model, so that the file is one of plain Keras.

All that is remembered hangs on the layers and variables themselves, and goes with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.growth.history import Growth, History
from keras_net2net.growth.optimizers import OptimizerUpdate
from keras_net2net.growth.transaction import Transaction

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


class Freezing:
    """Freezes what was there before a growth, or what of it was frozen before.

    It is made before the growth.

    Args:
        model: The model.
        everything: Whether all that was there before is frozen from now on.
        transaction: Remembers what is changed.
    """

    def __init__(self, model: Any, everything: bool, transaction: Transaction) -> None:
        self._model = model
        self._everything = everything
        self._transaction = transaction
        layers = internals.all_layers(model)
        self._old = [v for layer in layers for v in internals.own_trainable(layer)]

    def follow(self, growth: Growth) -> tuple[str, ...]:
        """Freezes all old layers, and the old entries of what layers hold beside new ones."""
        known = set(map(id, self._old))
        mixed = []
        with internals.variable_scope(self._model):
            for layer in internals.all_layers(self._model):
                own = internals.own_trainable(layer)
                old = own and all(id(variable) in known for variable in own)
                if not old or (not layer.trainable and _MARK not in vars(layer)):
                    continue  # new, or frozen by the user
                if self._freeze(layer, own, growth) and isinstance(
                    layer, keras.layers.BatchNormalization
                ):
                    mixed.append(repr(layer.name))
        if not mixed:
            return ()
        return (
            f"{', '.join(mixed)}: a batch normalization of old and new units takes the statistics "
            "of batches for all of them while it trains",
        )

    def _freeze(self, layer: Any, own: list[Any], growth: Growth) -> bool:
        """Freezes one old layer; whether it holds old and new entries."""
        marked = _MARK in vars(layer)
        kept = [variable for variable in own if isinstance(variable.constraint, KeptEntries)]
        if not (self._everything or marked or kept):
            return False
        everything = self._everything or marked
        masks = [_mask(variable, everything, growth.history_of(variable)) for variable in own]
        whole = all(mask.all() for mask in masks)
        if whole and not any(inner.weights for inner in internals.sublayers(layer)):
            for variable in kept:
                _constrain(variable, None, self._transaction)
            if not marked:
                _set_trainable(layer, False, self._transaction)
            return False
        if marked:
            _set_trainable(layer, True, self._transaction)
        for variable, mask in zip(own, masks, strict=True):
            _constrain(variable, mask, self._transaction)
        return True


def _mask(variable: Any, everything: bool, history: History) -> np.ndarray:
    """Which entries of a variable are frozen after a growth."""
    kept = variable.constraint
    if everything or not isinstance(kept, KeptEntries):
        return history.as_mask(np.full(history.old_shape(variable.shape), everything))
    return history.as_mask(kept.mask)


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
    internals.sync_state(model)
    with Transaction() as transaction:
        transaction.remember(model)
        optimizer = OptimizerUpdate(model, "reset", transaction)
        frozen = False
        for layer in internals.all_layers(model):
            if _MARK in vars(layer):
                frozen = True
                _set_trainable(layer, True, transaction)
            for variable in internals.own_trainable(layer):
                if isinstance(variable.constraint, KeptEntries):
                    frozen = True
                    _constrain(variable, None, transaction)
        if frozen:
            optimizer.follow(Growth())
            internals.forget_functions(model)


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
