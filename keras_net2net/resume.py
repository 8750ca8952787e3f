"""Training that goes on after it was killed: the growth log beside Keras's `BackupAndRestore`.

Keras restores weights into a model of the architecture that they were saved from. Growths
change it, and a process may be killed between any two writes, so that the log may be ahead
of the backup, or without one. What decides is the backup: the model gets as many of the
logged growths as the backup's weights have behind them. Growths that the backup hasn't
seen happen again at their epochs, with their logged seeds.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import weakref
from collections.abc import Callable
from typing import Any

import keras

from keras_net2net import keras_privates as privates
from keras_net2net.errors import LogError, explain
from keras_net2net.growth_log import (
    GrowthLog,
    LoggedGrowth,
    architecture,
    bring,
    digest_of_file,
    lasting,
    sync_folder,
)
from keras_net2net.operations.base import Operation
from keras_net2net.report import GrowthReport


class Recorder:
    """Keeps the log of a callback that grows a model, and resumes by it.

    Args:
        path: The path of the log.
    """

    def __init__(self, path: Any) -> None:
        if not isinstance(path, (str, os.PathLike)) or "://" in str(path):
            raise LogError(
                explain(
                    "The growth log can't be kept there",
                    "it is a file of this machine's file system",
                    f"log={path!r}",
                    "Pass a path such as 'run/growth.json'",
                )
            )
        self.path = pathlib.Path(path)
        self._log: GrowthLog | None = None
        self._known: weakref.ref | None = None
        self._seeds: dict[int, int] = {}
        self._done: set[int] = set()
        self._before: Any = None
        self.first_epoch: int | None = None

    def attach(
        self, callback: Any, redo: Callable[[LoggedGrowth], GrowthReport]
    ) -> list[GrowthReport]:
        """Brings a model that `fit` has just told its callbacks to where its backup was.

        Args:
            callback: The callback that is being told.
            redo: Does a growth of the log to the model.

        Returns:
            The reports of the growths that were done again.

        Raises:
            LogError: If the log can't be read, or isn't of this model and backup.
        """
        model = callback.model
        if not model.built:
            raise LogError(
                explain(
                    f"The growths of {model.name!r} can't be recorded",
                    "it isn't built, so that its architecture isn't known",
                    f"log={str(self.path)!r}",
                    "Build it before `fit`, with `keras.Input` or `model.build(shape)`",
                )
            )
        log = GrowthLog.read(self.path) if self.path.exists() else None
        known = model is self._model  # another `fit` of the same process
        self._known = weakref.ref(model)
        backups = [
            Backup(one)
            for one in privates.callbacks_beside(callback)
            if isinstance(one, keras.callbacks.BackupAndRestore) and is_local(one)
        ]
        for backup in backups:
            backup.settle()
        self._seeds, self._done, self.first_epoch = {}, set(), None
        if log is None:
            self._log = GrowthLog(architecture(model))
            return []
        found = next((state for one in backups if (state := one.state()) is not None), None)
        if found is None:
            stage, epoch = log.stage_of(model), None
        else:
            digest, epoch = found
            stage = self._stage(log, digest, epoch)
        reports = [] if known and found is None else self._bring(log, stage, redo)
        self._log = GrowthLog(log.start, log.growths[:stage])
        left = [growth for growth in log.growths[stage:] if growth.epoch is not None]
        self._seeds = {int(growth.epoch or 0): growth.seed for growth in left}
        if epoch is not None:
            # A backup from within an epoch has that epoch's growth behind it.
            done = (growth.epoch for growth in self._log.growths)
            self._done = {one for one in done if one is not None and one >= epoch}
            self.first_epoch = epoch
            for backup in backups:
                privates.resumes_at(backup.callback, epoch)
        return reports

    @property
    def _model(self) -> Any:
        return None if self._known is None else self._known()

    def _bring(
        self, log: GrowthLog, stage: int, redo: Callable[[LoggedGrowth], GrowthReport]
    ) -> list[GrowthReport]:
        """Brings the model to a stage, its optimizer at the steps at which it was then."""
        optimizer = getattr(self._model, "optimizer", None)
        if optimizer is None:
            return bring(self._model, log, stage, redo)
        steps = privates.steps_done(optimizer)

        def again(growth: LoggedGrowth) -> GrowthReport:
            if growth.step is not None:
                privates.set_steps_done(optimizer, growth.step)
            return redo(growth)

        try:
            return bring(self._model, log, stage, again)
        except BaseException:
            privates.set_steps_done(optimizer, steps)
            raise

    def _stage(self, log: GrowthLog, digest: str, epoch: int) -> int:
        """How many growths a backup has behind it."""
        stages = [i for i, one in enumerate(log.stages) if one.weights == digest]
        if not stages:
            raise LogError(
                explain(
                    f"The backup can't be restored by the growth log {str(self.path)!r}",
                    "the log knows no architecture with weights of its shapes",
                    f"log={str(self.path)!r}",
                    "Pass the log of the run that the backup is from, or delete both to start "
                    "again",
                )
            )
        # Where a model has had the same sizes twice, the epoch tells.
        past = [i for i in stages if all((g.epoch or 0) <= epoch for g in log.growths[:i])]
        return max(past or stages[:1])

    def begin(self) -> None:
        """Writes the log as it is when a `fit` begins: without what didn't happen."""
        if self._log is not None and privates.is_first_process(self._model):
            self._log.write(self.path)

    def already(self, epoch: int) -> bool:
        """Whether the restored weights have the growth of an epoch behind them."""
        done = epoch in self._done
        self._done.discard(epoch)
        return done

    def prepare(self, model: Any, operations: Any) -> list[Operation]:
        """Operations in the form that the log holds, before they are done.

        Raises:
            LogError: If the log can't hold them, or the model has grown without it.
        """
        if self._log is not None and architecture(model) != self._log.stages[-1]:
            raise LogError(
                explain(
                    f"The growth of {model.name!r} can't be recorded",
                    "the model has changed since the last growth in the log, so that nobody "
                    "could do it again",
                    f"log={str(self.path)!r}",
                    "Let one callback do all growths, or let none of them keep a log",
                )
            )
        return lasting(model, operations)

    def seed(self, epoch: int, seed: int | None) -> int | None:
        """The seed of a growth: one that is done again has that of the first time."""
        logged = self._seeds.pop(epoch, None)
        # Each of several processes may have found another log; they agree without it.
        alone = privates.process_count(self._model) == 1
        return logged if seed is None and alone else seed

    def record(
        self, model: Any, operations: list[Operation], report: GrowthReport, **how: Any
    ) -> None:
        """Adds a growth to the log.

        Args:
            model: The grown model.
            operations: What was done.
            report: What came of it.
            **how: The arguments of `grow`.
        """
        if self._log is None or report.plan.empty:
            return
        rate = how.get("learning_rate")
        optimizer = getattr(model, "optimizer", None)
        growth = LoggedGrowth(
            operations=tuple(operations),
            seed=report.plan.seed,
            after=architecture(model),
            epoch=report.epoch,
            step=None if optimizer is None else privates.steps_done(optimizer),
            optimizer_state=how.get("optimizer_state", "reset"),
            learning_rate=float(rate) if isinstance(rate, (int, float)) else None,
        )
        self._log = GrowthLog(self._log.start, (*self._log.growths, growth))
        if privates.is_first_process(self._model):
            self._log.write(self.path)


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
    """

    def __init__(self, callback: Any) -> None:
        self.callback = callback
        self.folder = pathlib.Path(callback.backup_dir)
        self._part = self.folder / "next.part"
        self._next = self.folder / "next"
        privates.save_backups_with(callback, self._save)

    def _save(self, save: Callable[[], None]) -> None:
        self._finish()
        self._part.mkdir(parents=True)
        with privates.backing_up_to(self.callback, self._part):
            save()
        for file in self._part.iterdir():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        sync_folder(self._part)
        os.rename(self._part, self._next)
        self._move()

    def _move(self) -> None:
        files = privates.backup_files(self.callback)
        earlier = privates.earlier_backup_files(self.callback)
        for file, before in zip(files, earlier, strict=True):
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
        files = privates.backup_files(self.callback)
        if sum(file.exists() for file in files) == 1:
            # Of a backup that was being deleted, as Keras does when `fit` has ended.
            shutil.rmtree(self.folder)

    def state(self) -> tuple[str, int] | None:
        """The digest of the weights, and the epoch to go on with; `None` without a backup."""
        for weights, metadata in (
            privates.backup_files(self.callback),
            privates.earlier_backup_files(self.callback),
        ):
            try:
                return digest_of_file(weights), int(json.loads(metadata.read_text())["epoch"])
            except (OSError, ValueError, KeyError):
                continue
        return None
