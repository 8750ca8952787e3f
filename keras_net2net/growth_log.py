"""Growths on record: a small JSON file that tells how a model came to its architecture.

The log holds what can't be seen in saved weights: which operations were done, with
which seeds, at which epochs. With it a freshly built model, or weights from before a
growth, come to the grown architecture again. It holds no weights, no data and no code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_net2net import keras_privates as privates
from keras_net2net.draft import Draft
from keras_net2net.errors import GrowthError, LogError, explain
from keras_net2net.files import replacing
from keras_net2net.growth import grow
from keras_net2net.operations.base import Operation, as_operations, whole_number
from keras_net2net.report import GrowthReport
from keras_net2net.transaction import Transaction

FORMAT = "keras_net2net growth log"
VERSION = 2
# What version 1 hasn't: undone growths, moments, and which callback did a growth.
READABLE = (1, 2)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What tells the architecture of a model from others.

    Args:
        layers: Digest of its layers: names, classes, nesting and weight shapes. The
            numbers in names that Keras makes up don't count.
        weights: Digest of the paths and shapes in a weights file of it.
        parameters: Its number of parameters.
    """

    layers: str
    weights: str
    parameters: int


@dataclasses.dataclass(frozen=True)
class LoggedGrowth:
    """One growth of a log.

    Args:
        operations: What was done.
        seed: The seed of all that was drawn.
        after: The architecture that it led to.
        epoch: The epoch before which it happened. Defaults to `None`: outside of `fit`.
        step: How many steps the optimizer had done. Defaults to `None`: there was none.
        optimizer_state: See `grow`. Defaults to `"reset"`.
        learning_rate: The factor of the learning rate. Defaults to `None`: none, or one
            that isn't a number.
        by: The name of the callback that did it, among those that share the log.
            Defaults to `None`: the only one.
    """

    operations: tuple[Operation, ...]
    seed: int
    after: Architecture
    epoch: int | None = None
    step: int | None = None
    optimizer_state: str = "reset"
    learning_rate: float | None = None
    by: str | None = None


@dataclasses.dataclass(frozen=True)
class LoggedUndoing:
    """The undoing of the last growth that hadn't been undone.

    Args:
        after: The architecture that it led to: that of before that growth.
        epoch: The epoch before which it happened. Defaults to `None`: unknown.
        by: See `LoggedGrowth`. Defaults to `None`.
    """

    after: Architecture
    epoch: int | None = None
    by: str | None = None


@dataclasses.dataclass(frozen=True)
class Watch:
    """What a `GrowOnPlateau` decides by.

    Args:
        best: The best value so far; `None` if there is none.
        wait: Epochs without improvement.
        cooldown_left: Epochs that don't count.
        position: The place in the list of growths.
        growths: How many growths it has done, those that were undone included.
        due: Whether the next epoch begins with a growth.
        finished: Whether there will be no more.
        trial: The growth that may yet be undone, as a number of the log, counted from
            1. Defaults to `None`: there is none.
    """

    best: float | None
    wait: int
    cooldown_left: int
    position: int
    growths: int
    due: bool
    finished: bool
    trial: int | None = None


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where a run was between two epochs.

    Args:
        epoch: The next epoch.
        stage: How many entries the log had.
        watches: What the callbacks decide by, by their names.
        begun: Whether the growths of that epoch have happened.
    """

    epoch: int
    stage: int
    watches: Mapping[str, Watch]
    begun: bool = False


@dataclasses.dataclass(frozen=True)
class GrowthLog:
    """All growths of a model, in their order.

    Args:
        start: The architecture before the first growth.
        growths: The growths, and the undoings of those that were undone: the entries.
        moments: The last moments to which training may be set back, in their order.
    """

    start: Architecture
    growths: tuple[LoggedGrowth | LoggedUndoing, ...] = ()
    moments: tuple[Moment, ...] = ()

    @property
    def stages(self) -> list[Architecture]:
        """The architectures: before the first entry, and after each."""
        return [self.start, *(growth.after for growth in self.growths)]

    def until(self, stage: int) -> GrowthLog:
        """The log with as many entries, and without moments."""
        return GrowthLog(self.start, self.growths[:stage])

    def behind(self, stage: int | None = None) -> dict[int, LoggedGrowth]:
        """The growths that a model has behind it: those that weren't undone.

        Args:
            stage: The number of entries. Defaults to `None`: all.

        Returns:
            The growths by their places among the entries, in their order.
        """
        growths: dict[int, LoggedGrowth] = {}
        for place, entry in enumerate(self.growths[:stage]):
            if isinstance(entry, LoggedUndoing):
                growths.popitem()
            else:
                growths[place] = entry
        return growths

    def stage_of(self, model: Any) -> int:
        """How many of the entries a model has behind it.

        It is the stage with the most growths that it can be, of those that have not been
        undone, if there is one. Where nothing but undone growths lies between two
        stages, it is the earlier: the model may have been built just now.

        Raises:
            LogError: If the log knows no such architecture.
        """
        now = architecture(model)
        stages = [i for i, one in enumerate(self.stages) if one.layers == now.layers]
        if not stages:
            known = ", ".join(f"{one.parameters:,}" for one in dict.fromkeys(self.stages))
            raise LogError(
                explain(
                    f"The growth log isn't of the model {model.name!r}",
                    f"it knows {len(set(self.stages))} architectures, of {known} parameters, and "
                    "none is that of this model",
                    f"a model with {now.parameters:,} parameters",
                    "Pass the model that the log was begun with, or another path for the log of "
                    "this one",
                )
            )
        last = tuple(self.behind())

        def rank(stage: int) -> tuple[bool, int, int]:
            behind = tuple(self.behind(stage))
            return behind == last[: len(behind)], len(behind), -stage

        return max(stages, key=rank)

    def write(self, path: Any) -> None:
        """Writes the log, all of it or nothing: a process may be killed at any moment."""
        path = pathlib.Path(path)
        text = json.dumps(_as_json(self), indent=1) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode("utf-8"))

    @classmethod
    def read(cls, path: Any) -> GrowthLog:
        """Reads a log.

        Raises:
            LogError: If there is none, or it can't be read.
        """
        path = pathlib.Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, str(error)) from error
        try:
            return _from_json(json.loads(text))
        except RecursionError as error:
            raise _unreadable(path, "it is nested too deeply") from error
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
            raise _unreadable(path, str(reason)) from error


def _unreadable(path: pathlib.Path, reason: str) -> LogError:
    return LogError(
        explain(
            f"The growth log {str(path)!r} can't be read",
            reason,
            f"log={str(path)!r}",
            "Pass the path of a log that `GrowthScheduler(..., log=path)` or `GrowOnPlateau(..., "
            "log=path)` wrote; to begin a new one, delete or rename the file",
        )
    )


# -- the file ------------------------------------------------------------------


def _as_json(log: GrowthLog) -> dict[str, Any]:
    from keras_net2net import __version__

    return {
        "format": FORMAT,
        "version": VERSION,
        "keras": keras.__version__,
        "keras_net2net": __version__,
        "start": dataclasses.asdict(log.start),
        "growths": [_entry_as_json(entry) for entry in log.growths],
        "moments": [
            {
                "epoch": moment.epoch,
                "begun": moment.begun,
                "growths": moment.stage,
                "callbacks": {
                    name: dataclasses.asdict(watch) for name, watch in moment.watches.items()
                },
            }
            for moment in log.moments
        ],
    }


def _entry_as_json(entry: LoggedGrowth | LoggedUndoing) -> dict[str, Any]:
    common = {"by": entry.by, "after": dataclasses.asdict(entry.after)}
    if isinstance(entry, LoggedUndoing):
        return {"epoch": entry.epoch, "undone": True, **common}
    return {
        "epoch": entry.epoch,
        "step": entry.step,
        "seed": entry.seed,
        "operations": [as_config(operation) for operation in entry.operations],
        "optimizer_state": entry.optimizer_state,
        "learning_rate": entry.learning_rate,
        **common,
    }


def _from_json(content: Any) -> GrowthLog:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("it isn't a growth log")
    version = content.get("version")
    if isinstance(version, bool) or version not in READABLE:
        raise ValueError(
            f"it has version {version!r} of the format, and this release of keras_net2net reads "
            f"versions {' and '.join(map(str, READABLE))}"
        )
    start = _architecture_from(content["start"])
    entries: list[LoggedGrowth | LoggedUndoing] = []
    behind = [start]
    for one in _checked(content, "growths", list):
        entry = _entry_from(one)
        if isinstance(entry, LoggedUndoing):
            behind.pop()
            if not behind or behind[-1] != entry.after:
                raise ValueError(f"entry {len(entries) + 1} undoes a growth that there isn't")
        else:
            behind.append(entry.after)
        entries.append(entry)
    log = GrowthLog(start, tuple(entries))
    moments = _checked(content, "moments", list) if "moments" in content else []
    return dataclasses.replace(log, moments=tuple(_moment_from(one, log) for one in moments))


def _entry_from(content: Any) -> LoggedGrowth | LoggedUndoing:
    by = _checked(content, "by", str, optional=True) if "by" in content else None
    if "undone" not in content:
        return dataclasses.replace(_growth_from(content), by=by)
    if not _checked(content, "undone", bool):
        raise ValueError("an entry is neither a growth nor the undoing of one")
    epoch = _checked(content, "epoch", int, optional=True)
    return LoggedUndoing(_architecture_from(content["after"]), epoch, by)


def _moment_from(content: Any, log: GrowthLog) -> Moment:
    stage = _number(content, "growths", len(log.growths))
    callbacks = _checked(content, "callbacks", dict)
    behind = log.behind(stage)
    return Moment(
        epoch=_number(content, "epoch"),
        stage=stage,
        watches={name: _watch_from(one, behind) for name, one in callbacks.items()},
        begun=_checked(content, "begun", bool),
    )


def _watch_from(content: Any, behind: Mapping[int, LoggedGrowth]) -> Watch:
    trial = _checked(content, "trial", int, optional=True)
    if trial is not None and trial - 1 not in behind:
        raise ValueError(f"growth {trial} is on trial, which there isn't")
    best = _checked(content, "best", float, optional=True)
    return Watch(
        best=None if best is None else float(best),
        wait=_number(content, "wait"),
        cooldown_left=_number(content, "cooldown_left"),
        position=_number(content, "position"),
        growths=_number(content, "growths"),
        due=_checked(content, "due", bool),
        finished=_checked(content, "finished", bool),
        trial=trial,
    )


def _number(content: Any, key: str, most: int | None = None) -> int:
    value = _checked(content, key, int)
    if value < 0 or (most is not None and value > most):
        limit = "" if most is None else f", and at most {most}"
        raise ValueError(f"{key!r} is {value}, and has to be at least 0{limit}")
    return int(value)


def _growth_from(content: Any) -> LoggedGrowth:
    operations = [_operation_from(one) for one in _checked(content, "operations", list)]
    if not operations:
        raise ValueError("a growth has no operations")
    return LoggedGrowth(
        operations=tuple(operations),
        seed=_checked(content, "seed", int),
        after=_architecture_from(content["after"]),
        epoch=_checked(content, "epoch", int, optional=True),
        step=_checked(content, "step", int, optional=True),
        optimizer_state=_checked(content, "optimizer_state", str),
        learning_rate=_checked(content, "learning_rate", float, optional=True),
    )


def _architecture_from(content: Any) -> Architecture:
    return Architecture(
        _checked(content, "layers", str),
        _checked(content, "weights", str),
        _checked(content, "parameters", int),
    )


def _checked(content: Any, key: str, kind: type, optional: bool = False) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"an object was expected that holds {key!r}, found {content!r:.40}")
    value = content[key]
    if value is None and optional:
        return None
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
        raise ValueError(f"{key!r} is {value!r:.40}, not of type {kind.__name__}")
    return value


def as_config(operation: Operation) -> dict[str, Any]:
    """An operation as JSON, in the way of Keras.

    Raises:
        LogError: If it couldn't be read back.
    """
    problem = "its class isn't registered"
    if keras.saving.get_registered_name(type(operation)) != type(operation).__name__:
        try:
            config = json.loads(json.dumps(keras.saving.serialize_keras_object(operation)))
            _operation_from(config)
        except (ValueError, TypeError) as error:
            problem = str(error)
        else:
            return dict(config)
    raise LogError(
        explain(
            f"The operation {operation!r} can't be written into a growth log",
            problem,
            repr(operation),
            "Register its class with `keras.saving.register_keras_serializable(package=...)`, and "
            "give it a `get_config` of what JSON can hold",
        )
    )


def _operation_from(config: Any) -> Operation:
    name = _checked(config, "registered_name", str)
    cls = keras.saving.get_registered_object(name)
    # Looked up before anything is made: a log must not be able to make whatever it names.
    if not (isinstance(cls, type) and issubclass(cls, Operation)):
        raise ValueError(f"it names {name!r}, which isn't a registered operation")
    operation = keras.saving.deserialize_keras_object(config)
    if not isinstance(operation, Operation):
        raise ValueError(f"{name!r} isn't an operation")
    return operation


# -- architectures -------------------------------------------------------------


def architecture(model: Any) -> Architecture:
    """The architecture of a model."""
    layers = privates.all_layers(model)
    made_up = sorted(
        (layer.name for layer in layers if _is_made_up(layer)), key=lambda name: (-len(name), name)
    )
    lines: list[str] = []
    _describe(model, 0, made_up, lines, set())
    shapes = privates.saved_shapes(model)
    return Architecture(_digest(lines), weights_digest(shapes), int(model.count_params()))


def _describe(layer: Any, depth: int, made_up: list[str], lines: list[str], seen: set[int]) -> None:
    if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
        return
    seen.add(id(layer))
    weights = [(v.name, tuple(v.shape)) for v in privates.own_variables(layer)]
    name = _plain_name(layer.name, made_up) if depth else ""
    lines.append(f"{depth} {type(layer).__name__} {name} {sorted(weights)}")
    for inner in privates.sublayers(layer):
        _describe(inner, depth + 1, made_up, lines, seen)


def _snake(kind: str) -> str:
    return re.sub("([a-z0-9])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()


def _is_made_up(layer: Any) -> bool:
    return bool(re.fullmatch(rf"{re.escape(_snake(type(layer).__name__))}_\d+", layer.name))


def _plain_name(name: str, made_up: list[str]) -> str:
    """A name without the number that Keras gives to those it makes up."""
    for one in made_up:
        if name == one or name.startswith(f"{one}_"):
            return re.sub(r"_\d+$", "", one) + name[len(one) :]
    return name


def weights_digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A digest of the shapes in a weights file, optimizers and random seeds left out."""
    lines = []
    for path, shape in sorted(shapes.items()):
        parts = path.split("/")
        if "seed_generator" in parts or any(part.endswith("optimizer") for part in parts):
            continue
        lines.append(f"{path} {tuple(shape)}")
    return _digest(lines)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def digest_of_file(path: Any) -> str:
    """The digest of a `.weights.h5` file, as `weights_digest` makes it.

    Raises:
        OSError: If the file can't be read.
    """
    import h5py

    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = tuple(item.shape)

    with h5py.File(path, "r") as file:
        file.visititems(note)
    return weights_digest(shapes)


# -- writing and replaying -----------------------------------------------------


def lasting(model: Any, operations: Any) -> list[Operation]:
    """Operations as a log can hold them: layer objects become the paths of layers."""
    wanted = as_operations(operations)
    if any(_holds_layers(vars(one)) for one in wanted):
        draft = Draft(model, 0)
        wanted = [one.by_path(draft) for one in wanted]
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
        last = whole_number(epoch, "The epoch", f"epoch={epoch!r}", least=0, kind="counted from 0")
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
            explain(
                f"The model {model.name!r} can't be brought to that place of the log",
                f"it has growth {undone[0] + 1} of the log behind it, which was undone later, and "
                "only the run itself could do that",
                f"a model with {model.count_params():,} parameters",
                "Build the model as it was before the first growth, or take weights from before "
                "that growth or after its undoing",
            )
        )
    reports = {}
    with Transaction.around() as whole:
        for place, growth in wanted.items():
            if place in begun:
                continue
            with Transaction.around() as one:
                report = redo(place, growth, one)
                reports[place] = dataclasses.replace(report, epoch=growth.epoch)
                now = architecture(model)
                if now.layers != growth.after.layers:
                    raise LogError(
                        explain(
                            f"Growth {place + 1} of the log can't be done again to {model.name!r}",
                            f"it led to {growth.after.parameters:,} parameters then, and leads to "
                            f"{now.parameters:,} and other layers now: it depends on the weights, "
                            "or on code that has changed",
                            f"{list(growth.operations)!r}",
                            "Load the weights from before the growth first, or build the model as "
                            "it was then",
                        )
                    )
            whole.on_roll_back(one.roll_back)
    return reports


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
            explain(
                "The weights can't be written",
                "Keras reads weights from files whose names end in '.weights.h5'",
                f"output={str(output)!r}",
                "Pass a name such as 'grown.weights.h5'",
            )
        )
    read = GrowthLog.read(log)
    model = build()
    try:
        digest = digest_of_file(path)
    except OSError as error:
        raise GrowthError(
            explain(
                f"The weights {str(path)!r} can't be read",
                str(error),
                f"path={str(path)!r}",
                "Pass a file that `model.save_weights` wrote",
            )
        ) from error
    begun = read.stage_of(model)
    stages = [i for i, one in enumerate(read.stages) if one.weights == digest and i >= begun]
    if not stages:
        raise LogError(
            explain(
                f"The weights {str(path)!r} aren't of a model of the growth log",
                "no architecture that it knows has weights of these shapes",
                f"path={str(path)!r}, log={str(log)!r}",
                "Pass weights that were saved in a run with this log",
            )
        )
    replay(model, read.until(stages[-1]), verify=False, calibration=calibration)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)  # or what the file has of it is passed over
    model.load_weights(path)
    replay(model, read, verify=verify, calibration=calibration)
    part = output.with_name(f"part.{output.name}")
    model.save_weights(part)
    os.replace(part, output)
    return model
