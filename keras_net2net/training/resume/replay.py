"""Bringing models and weight files to an architecture on record."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_net2net.errors import GrowthError, LogError, receiving, whole_number
from keras_net2net.growth.grow import grow
from keras_net2net.growth.report import GrowthReport
from keras_net2net.growth.transaction import Transaction
from keras_net2net.operations.base import Operation, as_operations
from keras_net2net.operations.drafting import by_path
from keras_net2net.training.resume.architecture import architecture, digest_of_file
from keras_net2net.training.resume.log import GrowthLog, LoggedGrowth, as_config


def lasting(model: Any, operations: Any) -> list[Operation]:
    """Operations as a log can hold them: layer objects become the paths of layers."""
    wanted = as_operations(operations)
    if any(_holds_layers(vars(one)) for one in wanted):
        wanted = by_path(model, wanted)
    for one in wanted:
        as_config(one)
    return wanted


def _holds_layers(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_layers(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return any(map(_holds_layers, value))
    return isinstance(value, keras.Layer)


def replay(
    model: Any,
    log: Any,
    *,
    epoch: int | None = None,
    verify: Any = True,
    calibration: Any = None,
) -> list[GrowthReport]:
    """Does the growths of a log to a model that hasn't had them.

    The model may be a freshly built one, or one from between two growths: those that
    are left are done, with the seeds of the log. The operations and seeds are those
    of the first time, the weights are grown from what the model has. So a checkpoint
    from before a growth gives the very weights that the growth gave then. For a model
    that has all growths behind it nothing happens. Growths that were undone are left
    out.

    If anything fails, the model is as it was before.

    Args:
        model: A built `keras.Model`. If it is compiled, its optimizer is treated as it
            was then.
        log: The path of a log that `GrowthScheduler(..., log=path)` or
            `GrowOnPlateau(..., log=path)` wrote.
        epoch: Integer, the epoch, counted from 0, at whose end the model was as it is
            wanted: later growths are left out, and one that was on trial then isn't.
            For a checkpoint from the middle of a run. Defaults to `None`: the end of
            the log.
        verify: See `grow`. Defaults to `True`.
        calibration: See `grow`. A log holds no data, so operations that look at some
            need it again. Defaults to `None`.

    Returns:
        The `GrowthReport`s of the growths that were done.

    Raises:
        LogError: If the log can't be read, isn't of this model, or the growths lead to
            another architecture than they did then; or if the model has a growth behind
            it that was undone, or a later one than is asked for.
        GrowthError: If a growth can't be done.

    Example:

    >>> import keras, numpy as np, os, tempfile
    >>> import keras_net2net as n2n
    >>> def build():
    ...     return keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(1)]
    ...     )
    >>> path = os.path.join(tempfile.mkdtemp(), "growth.json")
    >>> growth = n2n.GrowthScheduler({1: n2n.Wider("fc", 12)}, log=path, verbose=0)
    >>> model = build()
    >>> model.compile("sgd", "mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0, callbacks=[growth])
    >>> twin = build()
    >>> [report.epoch for report in n2n.replay(twin, path)]
    [1]
    >>> twin.set_weights(model.get_weights())
    """
    read = log if isinstance(log, GrowthLog) else GrowthLog.read(log)

    def redo(place: int, growth: LoggedGrowth, done: Transaction) -> GrowthReport:
        return grow(
            model,
            list(growth.operations),
            seed=growth.seed,
            optimizer_state=growth.optimizer_state,
            learning_rate=growth.learning_rate,
            verify=verify,
            calibration=calibration,
        )

    stage = len(read.growths)
    if epoch is not None:
        with receiving(f"epoch={epoch!r}"):
            last = whole_number(epoch, "The epoch", least=0, kind="counted from 0")
        stage = next((i for i, one in enumerate(read.growths) if (one.epoch or 0) > last), stage)
    return [*bring(model, read, stage, redo).values()]


def bring(
    model: Any,
    log: GrowthLog,
    stage: int,
    redo: Callable[[int, LoggedGrowth, Transaction], GrowthReport],
) -> dict[int, GrowthReport]:
    """Brings a model to a stage of a log, or leaves it as it is.

    Args:
        model: The model.
        log: The log.
        stage: How many entries the model is to have behind it.
        redo: Does the growth at a place of the log to the model; it may keep the
            transaction that undoes it.

    Returns:
        The reports of what was done, by the places of the growths.
    """
    wanted = log.behind(stage)
    begun = log.behind(log.until(stage).stage_of(model))
    undone = [place for place in begun if place not in wanted]
    if undone:
        raise LogError(
            f"The model {model.name!r} can't be brought to that place of the log",
            f"it has growth {undone[0] + 1} of the log behind it, which was undone later, and "
            "only the run itself could do that",
            "Build the model as it was before the first growth, or take weights from before "
            "that growth or after its undoing",
            received=f"a model with {model.count_params():,} parameters",
        )
    reports = {}
    left = {place: growth for place, growth in wanted.items() if place not in begun}
    with Transaction.around() as whole:
        for place, growth in left.items():
            with Transaction.around() as one:
                report = redo(place, growth, one)
                reports[place] = dataclasses.replace(report, epoch=growth.epoch)
                _check_architecture(model, place, growth)
            whole.on_roll_back(one.roll_back)
    return reports


def _check_architecture(model: Any, place: int, growth: LoggedGrowth) -> None:
    """Checks that a growth that was done again has led to where it led then."""
    now = architecture(model)
    if now.layers != growth.after.layers:
        raise LogError(
            f"Growth {place + 1} of the log can't be done again to {model.name!r}",
            f"it led to {growth.after.parameters:,} parameters then, and leads to "
            f"{now.parameters:,} and other layers now: it depends on the weights, or on code that "
            "has changed",
            "Load the weights from before the growth first, or build the model as it was then",
            received=f"{list(growth.operations)!r}",
        )


def upgrade_weights(
    path: Any,
    build: Callable[[], Any],
    log: Any,
    output: Any,
    *,
    verify: Any = True,
    calibration: Any = None,
) -> Any:
    """Grows the weights in a file from before a growth.

    Args:
        path: A `.weights.h5` file that was saved at any stage of the log.
        build: A function without arguments that builds the model that the log begins
            with. If it compiles the model, the state of its optimizer is read, grown
            and written, too.
        log: The path of the log.
        output: The `.weights.h5` file to write. It may be `path`.
        verify: See `grow`. Defaults to `True`.
        calibration: See `replay`. Defaults to `None`.

    Returns:
        The grown model, with the weights that were written.

    Raises:
        LogError: If the log can't be read, or isn't of this model or this file.
        GrowthError: If a growth can't be done.

    Example:

    >>> import keras, numpy as np, os, tempfile
    >>> import keras_net2net as n2n
    >>> def build():
    ...     return keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(1)]
    ...     )
    >>> folder = tempfile.mkdtemp()
    >>> old, new, log = (os.path.join(folder, f) for f in ("a.weights.h5", "b.weights.h5", "log"))
    >>> model = build()
    >>> model.save_weights(old)
    >>> model.compile("sgd", "mse")
    >>> growth = n2n.GrowthScheduler({1: n2n.Wider("fc", 12)}, log=log, verbose=0)
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0, callbacks=[growth])
    >>> n2n.upgrade_weights(old, build, log, new).get_layer("fc").units
    12
    >>> n2n.clone(model).load_weights(new)
    """
    output = pathlib.Path(output)
    if not output.name.endswith(".weights.h5"):
        raise GrowthError(
            "The weights can't be written",
            "Keras reads weights from files whose names end in '.weights.h5'",
            "Pass a name such as 'grown.weights.h5'",
            received=f"output={str(output)!r}",
        )
    read = GrowthLog.read(log)
    model = build()
    stage = _stage_of_file(path, read, read.stage_of(model), received=f"log={str(log)!r}")
    replay(model, read.until(stage), verify=False, calibration=calibration)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)  # or what the file has of it is passed over
    model.load_weights(path)
    replay(model, read, verify=verify, calibration=calibration)
    part = output.with_name(f"part.{output.name}")
    model.save_weights(part)
    os.replace(part, output)
    return model


def _stage_of_file(path: Any, log: GrowthLog, least: int, received: str) -> int:
    """The last stage of a log, from one on, whose architecture has weights as in a file."""
    try:
        digest = digest_of_file(path)
    except OSError as error:
        raise GrowthError(
            f"The weights {str(path)!r} can't be read",
            str(error),
            "Pass a file that `model.save_weights` wrote",
            received=f"path={str(path)!r}",
        ) from error
    stages = [i for i, one in enumerate(log.stages) if one.weights == digest and i >= least]
    if not stages:
        raise LogError(
            f"The weights {str(path)!r} aren't of a model of the growth log",
            "no architecture that it knows has weights of these shapes",
            "Pass weights that were saved in a run with this log",
            received=f"path={str(path)!r}, {received}",
        )
    return stages[-1]
