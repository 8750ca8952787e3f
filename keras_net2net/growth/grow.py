"""Growing a model in place, as a transaction: plan, build, check, commit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from keras_net2net import internals
from keras_net2net.errors import CodeError, GrowthError
from keras_net2net.graph.reading import check_is_model
from keras_net2net.growth.apply import apply, containers
from keras_net2net.growth.best_weights import BestWeights, callbacks_of, concerned, own_weights
from keras_net2net.growth.compiled import CompiledParts
from keras_net2net.growth.copying import copy_model
from keras_net2net.growth.freezing import Freezing, check_freeze
from keras_net2net.growth.history import Follower, Growth
from keras_net2net.growth.opened import OpenedLayers
from keras_net2net.growth.optimizers import OPTIMIZER_STATES, optimizers_of
from keras_net2net.growth.probe import Verification
from keras_net2net.growth.rates import check_policy
from keras_net2net.growth.report import GrowthReport
from keras_net2net.growth.transaction import Transaction
from keras_net2net.operations.base import Operation, as_operations
from keras_net2net.operations.drafting import as_seed, draft_growth, stages
from keras_net2net.planning.plan import Plan


def plan(model: Any, operations: Any, *, seed: int | None = None, calibration: Any = None) -> Plan:
    """Plans a growth without doing it.

    Args:
        model: A built `keras.Model`.
        operations: An operation, or a list of operations, done one after the
            other.
        seed: Integer, the seed of all that is drawn. Defaults to `None`: a random
            one, which the plan names.
        calibration: See `grow`. Defaults to `None`.

    Returns:
        The plan. `print(plan(...).summary())` shows what would grow, what would
        be inserted, and which layers would stay, with the reason.

    Raises:
        GrowthError: If an operation can't be done.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(2, name="out")]
    ... )
    >>> growth = n2n.plan(model, n2n.Wider("fc", units=12), seed=0)
    >>> growth.parameters_before, growth.parameters_after
    (58, 86)
    """
    groups = stages(operations)
    if len(groups) == 1:
        return draft_growth(model, operations, seed, calibration=calibration).plan()
    # What later stages look at is there only once the earlier ones are done: on a copy.
    copy, named = copy_for(model, operations, calibration)
    options = Options(seed, verify=False, calibration=calibration)
    return grow_model(copy, named, options, loss_of=model).plan


def copy_for(model: Any, operations: Any, calibration: Any = None) -> tuple[Any, list[Operation]]:
    """A copy of a model, and operations that name its layers by their paths."""
    wanted = as_operations(operations)
    # Fail before anything is copied.
    draft = draft_growth(model, stages(wanted)[0], 0, calibration=calibration)
    return copy_model(model), [one.by_path(draft) for one in wanted]


def grow(
    model: Any,
    operations: Any,
    *,
    seed: int | None = None,
    optimizer_state: str = "reset",
    learning_rate: Any = None,
    verify: Any = True,
    calibration: Any = None,
    freeze: str | None = None,
    callbacks: Any = None,
) -> GrowthReport:
    """Grows a model in place, so that it computes what it computed before.

    The model stays the same object, and so does every layer of it, those that
    grow included. A compiled model stays compiled: loss, metrics, optimizer,
    number of iterations, learning rate, and all other settings. It can be called
    between two `fit`s, between two `train_on_batch`es, or from a callback.

    If anything fails, the model and its training are as they were before.

    Args:
        model: A built `keras.Model`: Sequential, Functional or subclassed, nested ones
            and those with a `train_step` of their own included.
        operations: An operation, or a list of operations, done one after the
            other: `Wider`, `Deeper`, `LargerKernel`, `NewClasses`, `Narrower`, ....
        seed: Integer, the seed of all that is drawn: the same seed gives the same
            weights on every backend and machine. Defaults to `None`: a random one,
            which the report names.
        optimizer_state: `"reset"`: the optimizer's slots (moments, averages) start
            again; gradients that are being accumulated are lost. `"carry"`: they grow as
            the gradients do: a copy's moments are those of its unit, times the share with
            which it is read (squared for second moments); what reads it keeps them as they
            are; where copies are merged, they are added up (the roots of second moments).
            Fresh units, new places of kernels and inserted layers start again, and so do
            weights that factors replace. Exact where shares are even and the function
            stays; an estimate for random shares, for units that fill a layer
            normalization, in front of an inserted BatchNormalization, and where the
            function or the loss changes (noise, random units, new classes, removed units
            that are no copies). The report says so. Averages of weights grow as weights.
            Defaults to `"reset"`.
        learning_rate: Float, what the learning rate is multiplied by, schedules
            included. Chen et al. (2016, section 3) advise a tenth of the teacher's
            initial rate. Or a callable `(old, report) -> new` from the rate (a float or
            a schedule) and the `GrowthReport` to the new rate; `Rewind()` and `Rewarm()`
            are such. Or a list of these, done one after the other. Defaults to `None`:
            it stays.
        verify: Whether outputs before and after are compared, at inference, before
            the growth is final: `True` on a random batch made from the model's
            input shapes, or a batch of inputs to use instead. For operations that
            aren't exact, the difference is reported and not judged. Defaults to `True`.
        calibration: Data for the operations that look at activations or gradients: a
            batch of inputs `x`, or `(x, y)` with targets, as the model's `fit` takes them;
            or a function that returns it, called when an operation wants it. Defaults to
            `None`: there is none.
        freeze: `"teacher"`: only what is new is trained from now on. Layers that were
            there before are no longer trainable (a BatchNormalization then runs in
            inference mode); where a layer holds old and new units, the old entries of
            its weights are put back after each update. What old units share with their
            copies is shared at the growth, and frozen then. A saved model is a plain one:
            loaded, it is trainable where a layer holds anything new. Weights that are
            assigned or loaded later are put back to those of now by the next step of
            training. `unfreeze` ends it; a further growth takes it along. For progressive
            networks (Rusu et al. 2016, arXiv:1606.04671) and students that keep their
            trunk (NetTailor, Morgado and Vasconcelos, CVPR 2019). Defaults to `None`:
            everything is trained as before.
        callbacks: The callbacks of a training loop of your own, or its `CallbackList`: the
            best weights that an `EarlyStopping` holds grow as the model does. Defaults to
            `None`: those of the `fit` that `grow` is called in, if it is.

    Returns:
        A `GrowthReport`.

    Raises:
        GrowthError: If the growth can't be done; its subclasses say why.
        VerificationError: If the outputs differ by more than rounding.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(2, name="out")]
    ... )
    >>> report = n2n.grow(model, n2n.Wider("fc", factor=2), seed=0)
    >>> report.difference < 1e-6
    True
    """
    options = Options(seed, optimizer_state, learning_rate, verify, calibration, freeze)
    return grow_model(model, operations, options, callbacks=callbacks)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model grows, whatever the operations: the arguments of `grow`."""

    seed: int | None = None
    optimizer_state: str = "reset"
    learning_rate: Any = None
    verify: Any = True
    calibration: Any = None
    freeze: str | None = None


def grow_model(
    model: Any,
    operations: Any,
    options: Options,
    *,
    callbacks: Any = None,
    loss_of: Any = None,
) -> GrowthReport:
    """Grows a model as `grow` does; a copy by the loss of the model that it is a copy of."""
    started = time.perf_counter()
    check_is_model(model)
    check_arguments(options.optimizer_state, options.learning_rate)
    check_freeze(options.freeze, model)
    options = dataclasses.replace(options, seed=as_seed(options.seed, model))
    held = concerned(callbacks_of(callbacks), model)
    stuck: dict[str, tuple[str, int]] = {}

    def draft(group: list[Operation]) -> Any:
        return draft_growth(model, group, options.seed, stuck, options.calibration, loss_of)

    while True:
        try:
            with own_weights(held):
                return _grow(model, operations, options, held, draft, started)
        except CodeError as error:
            # What the code of an opened layer does at other sizes shows once it has them.
            # Its own sizes then stay, and, if that isn't enough, all that it works on.
            tried = stuck.get(error.path, ("", 0))[1] + 1
            if tried > 2 or not error.path:
                raise
            stuck[error.path] = (error.reason, tried)


def _grow(
    model: Any,
    operations: Any,
    options: Options,
    callbacks: Sequence[Any],
    draft: Callable[[list[Operation]], Any],
    started: float,
) -> GrowthReport:
    """Plan, apply, follow, verify, commit: whatever fails on the way undoes it all."""
    internals.sync_state(model)
    with Transaction() as transaction:
        optimizers = optimizers_of(model, options.optimizer_state, transaction)
        followers: list[Follower] = [
            # What is frozen has no slots, so that the optimizers come behind it.
            Freezing(model, options.freeze == "teacher", transaction),
            *optimizers,
            CompiledParts(model, transaction),
            BestWeights(callbacks, transaction),
        ]
        opened = OpenedLayers(transaction)
        verification = Verification(model, options.verify)
        growth, notes = Growth(), []
        for group in stages(operations):
            blueprint = draft(group).finish()
            notes += blueprint.notes
            made: dict[str, Any] = {}
            if not blueprint.plan.empty:
                transaction.remember(model, *containers(blueprint.graph))
                verification.before(blueprint)
                made = apply(blueprint, transaction)
            growth = growth.then(blueprint, made)
            notes += opened.follow(growth)
        plan = growth.plan
        for follower in followers if not plan.empty else ():
            notes += follower.follow(growth)
        difference, in_training, seen = verification.after(plan)
        report = GrowthReport.of(
            plan,
            seconds=time.perf_counter() - started,
            difference=difference,
            notes=tuple(dict.fromkeys([*notes, *seen])),
            step=optimizers[0].step,
            training_difference=in_training,
        )
        for optimizer in optimizers if not plan.empty else ():
            optimizer.rate(options.learning_rate, report)
    return report


def check_arguments(optimizer_state: str, learning_rate: Any) -> None:
    """Checks what is to become of the optimizer."""
    if optimizer_state not in OPTIMIZER_STATES:
        raise GrowthError(
            "The optimizer's state can't be treated like that",
            f"it is one of {', '.join(map(repr, OPTIMIZER_STATES))}",
            "Pass `optimizer_state='reset'` or `optimizer_state='carry'`",
            received=f"optimizer_state={optimizer_state!r}",
        )
    check_policy(learning_rate)
