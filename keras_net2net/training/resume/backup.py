"""The files of Keras's `BackupAndRestore`, kept whole, and the moments at which they count."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from keras_net2net import internals
from keras_net2net.training.resume.architecture import digest_of_file
from keras_net2net.training.resume.files import sync_folder


def is_local(backup: Any) -> bool:
    """Whether a `BackupAndRestore` writes to this machine's file system."""
    return "://" not in str(backup.backup_dir)


class Backup:
    """The files of a `BackupAndRestore`, which change together or not at all.

    Keras writes the weights over the old ones, then the epoch: a process that is killed in
    between leaves no backup, or one whose epoch isn't that of its weights. So both are
    written beside the old ones first. Renaming their folder is the moment at which they
    count; moving them to their places can be repeated.

    Args:
        callback: The callback.
        waits: Whether the backup of an epoch, which has been written, doesn't count before
            `commit`. Defaults to: it never waits.
    """

    def __init__(self, callback: Any, waits: Callable[[int], bool] = lambda _: False) -> None:
        self.callback = callback
        # A process that is killed finds the last or, while one is saved, the one before.
        self.epochs: collections.deque[int] = collections.deque(maxlen=2)
        self._waits = waits
        self._written: int | None = None
        self.folder = pathlib.Path(callback.backup_dir)
        self._part = self.folder / "next.part"
        self._next = self.folder / "next"
        internals.save_backups_with(callback, self._save)

    def _save(self, save: Callable[[], None]) -> None:
        self._finish()
        self._written = None
        self._part.mkdir(parents=True)
        with internals.backing_up_to(self.callback, self._part):
            save()
        for file in self._part.iterdir():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        sync_folder(self._part)
        self._written = internals.epoch_to_save(self.callback)
        if self.within_epochs or not self._waits(self._written):
            self.commit()

    def commit(self) -> None:
        """Makes what has been written the backup."""
        if self._written is None:
            return
        os.rename(self._part, self._next)
        self._move()
        self.epochs.append(self._written)
        self._written = None

    @property
    def within_epochs(self) -> bool:
        """Whether backups are made within epochs, and not at their ends."""
        return bool(self.callback.save_freq != "epoch")

    @property
    def oldest(self) -> int:
        """The oldest epoch that a backup may be of."""
        return min(self.epochs) if len(self.epochs) == 2 else 0

    def _move(self) -> None:
        both = (internals.backup_files(self.callback, before) for before in (False, True))
        for file, before in zip(*both, strict=True):
            new = self._next / file.name
            if not new.exists():
                continue
            if self.callback.double_checkpoint and file.exists():
                os.replace(file, before)
            os.replace(new, file)
        self._next.rmdir()
        sync_folder(self.folder)

    def _finish(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
        if self._next.exists():
            self._move()

    def settle(self) -> None:
        """Ends what a killed process had begun."""
        self._finish()
        files = internals.backup_files(self.callback)
        if sum(file.exists() for file in files) == 1:
            # Of a backup that was being deleted, as Keras does when `fit` has ended.
            shutil.rmtree(self.folder)

    def state(self) -> tuple[str, int] | None:
        """The digest of the weights, and the epoch to go on with; `None` without a backup."""
        for before in (False, True):
            weights, metadata = internals.backup_files(self.callback, before)
            try:
                return digest_of_file(weights), int(json.loads(metadata.read_text())["epoch"])
            except (OSError, ValueError, KeyError):
                continue
        return None
