"""Saved weights, and the callback that backs them up."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

# `save_weights` decides the paths in its file while it walks over a model; that walk is
# the only one who knows them.
from keras.src.saving import saving_lib
from keras.src.saving.saving_lib import H5IOStore


class _Shapes(H5IOStore):
    """Takes the place of a weights file, and keeps the shapes alone."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._path = ""

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> _Shapes:
        self._path = str(path)
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self.shapes[f"{self._path}/vars/{key}".lstrip("/")] = tuple(value.shape)


def saved_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of what `model.save_weights` would write, by their paths in the file.

    Keras decides these paths while it saves, from classes and order; saving to a file
    to see them would copy all weights. The optimizer is left out.
    """
    store = _Shapes()
    optimizer = getattr(model, "optimizer", None)
    saving_lib._save_state(
        model,
        weights_store=store,
        assets_store=None,
        inner_path="",
        visited_saveables=set() if optimizer is None else {id(optimizer)},
    )
    return store.shapes


_BACKUP_FILES = ("_weights_path", "_training_metadata_path")


def backup_files(backup: Any, before: bool = False) -> list[pathlib.Path]:
    """The files of a `BackupAndRestore`: weights and metadata (there is no public name).

    Args:
        backup: The callback.
        before: Whether those of the backup before are meant, which `double_checkpoint` keeps.
    """
    names = (f"_prev{name}" if before else name for name in _BACKUP_FILES)
    return [pathlib.Path(getattr(backup, name)) for name in names]


def resumes_at(backup: Any, epoch: int) -> None:
    """Tells a `BackupAndRestore` the epoch that a resumed `fit` begins with.

    It only learns it when that epoch ends, and would write 0 into backups within it.
    """
    backup._current_epoch = max(backup._current_epoch, epoch)


def save_backups_with(backup: Any, save: Callable[[Callable[[], None]], None]) -> None:
    """Lets `save` do the saving of a `BackupAndRestore`.

    Keras overwrites the last backup in place, so that a process that is killed while it
    saves leaves none. There is no public way to save elsewhere and rename.

    Args:
        backup: The callback.
        save: Is given the callback's own way to save.
    """
    held = vars(backup).get("_save_model")  # of an earlier `fit`
    own = held.args[0] if isinstance(held, functools.partial) else backup._save_model
    vars(backup)["_save_model"] = functools.partial(save, own)


def epoch_to_save(backup: Any) -> int:
    """The epoch that a `BackupAndRestore` would have a resumed `fit` begin with."""
    return int(backup._current_epoch)


@contextlib.contextmanager
def backing_up_to(backup: Any, folder: pathlib.Path) -> Iterator[None]:
    """Lets a `BackupAndRestore` write its files into another folder."""
    names = ("backup_dir", *_BACKUP_FILES)
    held = {name: getattr(backup, name) for name in names}
    backup.backup_dir = str(folder)
    for name in _BACKUP_FILES:
        setattr(backup, name, str(folder / pathlib.Path(held[name]).name))
    try:
        yield
    finally:
        vars(backup).update(held)
