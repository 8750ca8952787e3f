"""Growing a model in place, as a transaction: plan, build, check, commit."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_net2net import internals
from keras_net2net.errors import CodeError, GrowthError
from keras_net2net.graph.reading import check_is_model
from keras_net2net.growth.apply import apply_plan, changed_variables, containers
from keras_net2net.growth.best_weights import BestWeights, callbacks_of, concerned, own_weights
from keras_net2net.growth.compiled import update_compiled
from keras_net2net.growth.copying import copy_model
from keras_net2net.growth.freezing import Changes, check_freeze, freeze_old
from keras_net2net.growth.optimizers import OPTIMIZER_STATES, OptimizerUpdate, Trained
from keras_net2net.growth.probe import Probe, probe, training_probe
from keras_net2net.growth.rates import check_policy
from keras_net2net.growth.report import GrowthReport
from keras_net2net.growth.transaction import Transaction
from keras_net2net.operations.base import Operation, as_operations
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import Plan
from keras_net2net.planning.remaps import generator


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


def as_seed(seed: int | None, model: Any) -> int:
    """Checks a seed; `None` becomes a random one.

    Processes that train a model together have to draw the same: theirs comes from what
    all of them share, how far the model and its training are.
    """
    if seed is None and internals.process_count(model) > 1:
        optimizer = getattr(model, "optimizer", None)
        steps = 0 if optimizer is None else internals.steps_done(optimizer)
        shapes = [tuple(variable.shape) for variable in model.variables]
        return int(generator(0, "seed", steps, shapes).integers(2**32))
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise GrowthError(
            "The seed can't be used",
            "it is an integer",
            "Pass an integer",
            received=f"seed={seed!r}",
        )
    return int(seed)


def draft_growth(
    model: Any,
    operations: Any,
    seed: int | None,
    stuck: dict[str, tuple[str, int]] | None = None,
    calibration: Any = None,
    loss_of: Any = None,
) -> Draft:
    """Plans a growth, and returns the draft that knows the plan and the graph."""
    wanted = as_operations(operations)
    draft = Draft(model, as_seed(seed, model), stuck, calibration, loss_of)
    for operation in wanted:
        draft.steps.extend(operation.steps(draft))
    return draft


def stages(operations: Any) -> list[list[Operation]]:
    """Operations in groups, each planned on the model as the groups before have left it.

    Most are planned together. One that looks at weights or activations needs those of
    a model that all operations before it have already been done to; and what one inserts
    that copies whole parts of a model is known to those behind it only once it is there.
    """
    groups: list[list[Operation]] = []
    for operation in as_operations(operations):
        if not groups or operation.looks_at_model or groups[-1][-1].ends_stage:
            groups.append([])
        groups[-1].append(operation)
    return groups


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
    while True:
        try:
            with own_weights(held):
                report = _grow(model, operations, options, loss_of, stuck, held)
        except CodeError as error:
            # What the code of an opened layer does at other sizes shows once it has them.
            # Its own sizes then stay, and, if that isn't enough, all that it works on.
            tried = stuck.get(error.path, ("", 0))[1] + 1
            if tried > 2 or not error.path:
                raise
            stuck[error.path] = (error.reason, tried)
        else:
            return dataclasses.replace(report, seconds=time.perf_counter() - started)


def _grow(
    model: Any,
    operations: Any,
    options: Options,
    loss_of: Any,
    stuck: dict[str, tuple[str, int]],
    callbacks: Sequence[Any],
) -> GrowthReport:
    started = time.perf_counter()
    verify = options.verify
    transaction = Transaction()
    before: Probe | None = None
    in_training: Probe | None = None
    difference = training_difference = None
    notes: tuple[str, ...] = ()
    plans: list[Plan] = []
    inserted: list[Any] = []
    changes = Changes()
    changed: dict[str, Any] = {}
    internals.sync_state(model)
    held = [Trained(model, one) for one in internals.held_optimizers(model)]
    optimizers = [OptimizerUpdate(one) for one in (model, *held)]
    best = BestWeights(callbacks, transaction)
    try:
        for group in stages(operations):
            draft = draft_growth(model, group, options.seed, stuck, options.calibration, loss_of)
            planned = draft.plan()
            plans.append(planned)
            notes += _notes(draft, planned)
            if planned.empty:
                continue
            if before is None:
                for holder in (model, *containers(draft.graph)):
                    transaction.remember(holder)
                if verify is not False:
                    # No growth changes the inputs, so that the planned graph tells a probe
                    # what to make.
                    before = probe(model, draft.graph, None if verify is True else verify)
            if before is not None and in_training is None and planned.normalizes:
                data = before.batch if draft.training_data is None else draft.training_data
                in_training = training_probe(model, data)
            more, seen = apply_plan(planned, draft, transaction)
            inserted += more
            notes += seen
            variables = changed_variables(planned, draft)
            changes.add(planned, variables)
            changed.update(variables)
        whole = Plan.joined(plans)
        if not whole.empty:
            with internals.variable_scope(model):
                thawed, seen = freeze_old(
                    model, changes, inserted, options.freeze == "teacher", transaction
                )
            notes += seen
            for optimizer in optimizers:
                notes += optimizer.slots(
                    whole, changed, [*inserted, *thawed], options.optimizer_state, transaction
                )
            if whole.outputs:
                shapes = [tensor.shape for tensor in draft.graph.flat_outputs]
                notes += update_compiled(model, whole.outputs, shapes, transaction)
            internals.forget_functions(model)
            best.grow(model, whole, stuck)
        if before is not None:
            compare = before.check if whole.exact else before.difference
            difference = compare(model, whole.outputs)
        if before is not None and in_training is not None:
            training_difference = in_training.difference(model, whole.outputs)
            where = "the probe batch" if in_training.batch is before.batch else "that data"
            if training_difference is not None:
                notes += (
                    f"in training mode the outputs on {where} differ by up to "
                    f"{training_difference:.1e} from those before",
                )
        report = GrowthReport(
            plan=whole,
            operations=tuple(step.operation for step in whole.steps),
            parameters_before=whole.parameters_before,
            parameters_after=whole.parameters_after,
            seconds=time.perf_counter() - started,
            difference=difference,
            notes=tuple(dict.fromkeys(notes)),
            step=optimizers[0].step,
            training_difference=training_difference,
        )
        if not whole.empty:
            for optimizer in optimizers:
                optimizer.rate(options.learning_rate, report, transaction)
    except BaseException:
        transaction.roll_back()
        raise
    transaction.commit()
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


def _notes(draft: Draft, planned: Plan) -> tuple[str, ...]:
    notes = [note for step in planned.steps for note in step.notes]
    if _has_penalties(draft, planned):
        notes.append(
            "what grows has penalties (regularizers), which depend on the number of weights and "
            "units: the loss changes by them"
        )
    adding = [graph for graph in draft.graph.subgraphs() if graph.adds_loss]
    if adding and not planned.empty:
        names = ", ".join(dict.fromkeys(graph.path or graph.model.name for graph in adding))
        notes.append(
            f"the code of {names} adds to the loss: if that depends on the number of weights or "
            "units, the loss changes by it"
        )
    return tuple(notes)


def _has_penalties(draft: Draft, planned: Plan) -> bool:
    """Whether a layer that changes or is inserted has one, or any on its activations."""
    grown = {layer.path for step in planned.steps for layer in step.layers}
    grown |= {insertion.path for step in planned.steps for insertion in step.insertions}
    for _, call in draft.graph.all_calls():
        for name, value in vars(call.operation).items():
            concerned = call.path in grown or name == "activity_regularizer"
            if grown and concerned and name.endswith("regularizer") and value is not None:
                return True
    return False
