"""Growths on record: a small JSON file that tells how a model came to its architecture.

The log holds what can't be seen in saved weights: which operations were done, with
which seeds, at which epochs. With it a freshly built model, or weights from before a
growth, come to the grown architecture again. It holds no weights, no data and no code.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import keras

from keras_net2net.errors import LogError
from keras_net2net.internals.version import __version__
from keras_net2net.operations.base import Operation
from keras_net2net.training.resume.architecture import Architecture, architecture
from keras_net2net.training.resume.files import replacing

FORMAT = "keras_net2net growth log"
VERSION = 2
# What version 1 hasn't: undone growths, moments, and which callback did a growth.
READABLE = (1, 2)


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


@dataclasses.dataclass
class Watch:
    """What a `GrowOnPlateau` decides by.

    Args:
        best: The best value so far. Defaults to `None`: there is none.
        wait: Epochs without improvement. Defaults to `0`.
        cooldown_left: Epochs that don't count. Defaults to `0`.
        position: The place in the list of growths. Defaults to `0`.
        growths: How many growths it has done, those that were undone included. Defaults to `0`.
        due: Whether the next epoch begins with a growth. Defaults to `False`.
        finished: Whether there will be no more. Defaults to `False`.
        trial: The growth that may yet be undone, as a number of the log, counted from
            1. Defaults to `None`: there is none.
    """

    best: float | None = None
    wait: int = 0
    cooldown_left: int = 0
    position: int = 0
    growths: int = 0
    due: bool = False
    finished: bool = False
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

    def without_trials(self) -> Moment:
        """The same, with no growth that may yet be undone."""
        watches = {name: dataclasses.replace(one, trial=None) for name, one in self.watches.items()}
        return dataclasses.replace(self, watches=watches)


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
                f"The growth log isn't of the model {model.name!r}",
                f"it knows {len(set(self.stages))} architectures, of {known} parameters, and "
                "none is that of this model",
                "Pass the model that the log was begun with, or another path for the log of "
                "this one",
                received=f"a model with {now.parameters:,} parameters",
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
            return _from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            plain = isinstance(error, (OSError, ValueError, TypeError))
            raise LogError(
                f"The growth log {str(path)!r} can't be read",
                str(error) if plain else f"{type(error).__name__}: {error}",
                "Pass the path of a log that `GrowthScheduler(..., log=path)` or "
                "`GrowOnPlateau(..., log=path)` wrote; to begin a new one, delete or rename the "
                "file",
                received=f"log={str(path)!r}",
            ) from error


# -- the file ------------------------------------------------------------------


def _as_json(log: GrowthLog) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "keras": keras.__version__,
        "keras_net2net": __version__,
        "start": dataclasses.asdict(log.start),
        "growths": [_entry_as_json(entry) for entry in log.growths],
        "moments": [_moment_as_json(moment) for moment in log.moments],
    }


def _moment_as_json(moment: Moment) -> dict[str, Any]:
    watches = {name: dataclasses.asdict(watch) for name, watch in moment.watches.items()}
    begun = moment.begun
    return {"epoch": moment.epoch, "begun": begun, "growths": moment.stage, "callbacks": watches}


def _entry_as_json(entry: LoggedGrowth | LoggedUndoing) -> dict[str, Any]:
    content = {**vars(entry), "after": dataclasses.asdict(entry.after)}
    if isinstance(entry, LoggedUndoing):
        return {**content, "undone": True}
    return {**content, "operations": [as_config(operation) for operation in entry.operations]}


def _from_json(content: Any) -> GrowthLog:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("it isn't a growth log")
    version = content.get("version")
    if isinstance(version, bool) or version not in READABLE:
        raise ValueError(
            f"it has version {version!r} of the format, and this release of keras_net2net reads "
            f"versions {' and '.join(map(str, READABLE))}"
        )
    start = _read(Architecture, content["start"])
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
    given = {
        "after": _read(Architecture, content["after"]),
        "by": _checked(content, "by", str, optional=True) if "by" in content else None,
    }
    if "undone" in content:
        if not _checked(content, "undone", bool):
            raise ValueError("an entry is neither a growth nor the undoing of one")
        return _read(LoggedUndoing, content, **given)
    operations = tuple(map(_operation_from, _checked(content, "operations", list)))
    if not operations:
        raise ValueError("a growth has no operations")
    seed = _checked(content, "seed", int)  # which may be negative, too
    return _read(LoggedGrowth, content, operations=operations, seed=seed, **given)


def _moment_from(content: Any, log: GrowthLog) -> Moment:
    stage = _checked(content, "growths", int)
    if not 0 <= stage <= len(log.growths):
        raise ValueError(f"a moment has {stage} growths behind it, of {len(log.growths)}")
    watches = {
        name: _read(Watch, one) for name, one in _checked(content, "callbacks", dict).items()
    }
    for watch in watches.values():
        if watch.trial is not None and watch.trial - 1 not in log.behind(stage):
            raise ValueError(f"growth {watch.trial} is on trial, which there isn't")
    return _read(Moment, content, stage=stage, watches=watches)


_T = TypeVar("_T")


def _read(cls: type[_T], content: Any, **given: Any) -> _T:
    """An object from JSON: what isn't given is read by the types of its fields."""
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in given:
            kind, _, optional = str(field.type).partition(" | ")
            value = _checked(content, field.name, _KINDS[kind], bool(optional))
            if kind == "int" and value is not None and value < 0:
                raise ValueError(f"{field.name!r} is {value}, and has to be at least 0")
            given[field.name] = float(value) if kind == "float" and value is not None else value
    return cls(**given)


_KINDS = {kind.__name__: kind for kind in (bool, int, float, str)}


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
        f"The operation {operation!r} can't be written into a growth log",
        problem,
        "Register its class with `keras.saving.register_keras_serializable(package=...)`, and "
        "give it a `get_config` of what JSON can hold",
        received=repr(operation),
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
