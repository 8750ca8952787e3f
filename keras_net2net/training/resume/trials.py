"""Growths on trial: what is needed to undo them, in this process or in one after a kill.

A rollback brings back who the variables were, and training has written into some of them
since: so their values of that moment are kept, too. Beside a growth log they are kept in
a file, for the process that goes on with it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_net2net.errors import LogError
from keras_net2net.growth.transaction import Transaction
from keras_net2net.training.resume.files import replacing

Values = list[tuple[Any, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A growth that may yet be undone: the last that its callback has done.

    Args:
        transaction: Undoes what it changed.
        values: The values of all variables at that moment.
        signature: What the model was right after it.
        callbacks: The callbacks of the `fit`; `None` if they have yet to begin.
        logged: Its number in the growth log, counted from 1, if its values are in a
            file beside that. Defaults to `None`: they aren't.
    """

    transaction: Transaction
    values: Values
    signature: list[tuple[Any, ...]]
    callbacks: list[Any] | None
    logged: int | None = None


def signature(model: Any) -> list[tuple[Any, ...]]:
    """What another growth would change."""
    return [(id(variable), tuple(variable.shape)) for variable in model.weights]


def _file(log: pathlib.Path, number: int) -> pathlib.Path:
    return log.with_name(f"{log.name}.trial-{number}.npz")


def write_values(log: pathlib.Path, number: int, values: Values) -> None:
    """Writes values beside a log, all of them or nothing.

    Args:
        log: The path of the log.
        number: The number of the growth.
        values: The variables and their values.
    """
    # As bytes: NumPy reads a dtype that it doesn't know, such as bfloat16, as another.
    held = {
        f"{i}": np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        for i, (_, value) in enumerate(values)
    }
    with replacing(_file(log, number)) as file:
        np.savez(file, **held)  # type: ignore[arg-type]


def read_values(log: pathlib.Path, number: int) -> list[np.ndarray]:
    """Reads the bytes of what `write_values` has written.

    Raises:
        LogError: If they can't be read.
    """
    try:
        with open(_file(log, number), "rb") as file, np.load(file, allow_pickle=False) as held:
            return [held[f"{i}"] for i in range(len(held.files))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _unusable(log, number, f"{type(error).__name__}: {error}") from error


def with_values(log: pathlib.Path, number: int, values: Values, held: list[np.ndarray]) -> Values:
    """Variables with the values that were read for them.

    Args:
        log: The path of the log.
        number: The number of the growth.
        values: The variables as they are before the growth, and their present values.
        held: What `read_values` has read.

    Raises:
        LogError: If they are of other variables.
    """
    if [value.nbytes for _, value in values] != [part.nbytes for part in held]:
        raise _unusable(log, number, "they are of variables of other sizes")
    return [
        (variable, np.frombuffer(part.tobytes(), value.dtype).reshape(value.shape).copy())
        for (variable, value), part in zip(values, held, strict=True)
    ]


def _unusable(log: pathlib.Path, number: int, why: str) -> LogError:
    return LogError(
        f"Growth {number} of the log, which is on trial, couldn't be undone",
        f"the values from before it can't be read: {why}",
        "Put the file back, or delete the log and the backup to start again",
        received=f"log={str(log)!r}, with {str(_file(log, number))!r} beside it",
    )


def remove_values(log: pathlib.Path, needed: Iterable[int]) -> None:
    """Removes the files of trials that have ended, and what a killed process left of one."""
    names = {_file(log, number).name for number in needed}
    pattern = re.escape(log.name) + r"\.trial-\d+\.npz(\.part)?"
    for path in log.parent.glob("*.trial-*.npz*"):
        if re.fullmatch(pattern, path.name) and path.name not in names:
            path.unlink(missing_ok=True)
