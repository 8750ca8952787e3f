"""Training that goes on after it was killed: the growth log beside Keras's `BackupAndRestore`.

Keras restores weights into a model of the architecture that they were saved from. Growths
change it, and a process may be killed between any two writes, so that the log may be ahead
of the backup, or without one. What decides is the backup: the model gets as many of the
logged growths as the backup's weights have behind them. Growths that the backup hasn't
seen happen again at their epochs, with their logged seeds.

What a callback has seen of the training, and decides by, isn't in the backup. The log keeps
it for each moment to which a backup may go back. So it has to be on record before the
backup of that moment counts: a backup that is saved earlier waits for that.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.errors import LogError
from keras_net2net.growth.report import GrowthReport
from keras_net2net.growth.transaction import Transaction
from keras_net2net.training.resume.architecture import architecture
from keras_net2net.training.resume.backup import Backup, is_local
from keras_net2net.training.resume.log import GrowthLog, LoggedGrowth, LoggedUndoing, Moment, Watch
from keras_net2net.training.resume.replay import bring, lasting
from keras_net2net.training.resume.trials import (
    Trial,
    Values,
    read_values,
    remove_values,
    signature,
    with_values,
    write_values,
)

# Without a backup, those of so many epochs are kept for who goes on from a checkpoint.
MOMENTS = 100


@dataclasses.dataclass
class Grower:
    """What a recorder knows of a callback that grows the model.

    Args:
        callback: The callback.
        seeds: The seeds of logged growths that are to happen again, by their epochs.
        done: What a backup has behind it of an epoch that begins again, by epochs: `1` for
            a growth, `-1` for the undoing of one.
        seen: How many epochs it has seen to their ends.
        watch: What it goes on with when `fit` begins.
        trial: The growth that it may yet undo then.
    """

    callback: Any
    seeds: dict[int, int] = dataclasses.field(default_factory=dict)
    done: dict[int, int] = dataclasses.field(default_factory=dict)
    seen: int = 0
    watch: Watch | None = None
    trial: Trial | None = None


class Recorder:
    """Keeps the log of the callbacks that grow a model, and resumes by it.

    A callback that shares it has a `model` and a `history`; `_grow_again(growth)` does a
    logged growth, and `_watch()` is what it decides by, or `None`.

    Args:
        path: The path of the log; `None` records nothing.
    """

    def __init__(self, path: Any) -> None:
        if path is not None and (not isinstance(path, (str, os.PathLike)) or "://" in str(path)):
            raise LogError(
                "The growth log can't be kept there",
                "it is a file of this machine's file system",
                "Pass a path such as 'run/growth.json'",
                received=f"log={path!r}",
            )
        self.path: Any = None if path is None else pathlib.Path(path)
        self._log: GrowthLog | None = None
        self._known: weakref.ref | None = None
        self._growers: dict[str, Grower] = {}
        self._backups: list[Backup] = []
        self._goes_on = False
        self.first_epoch: int | None = None

    def attach(self, callbacks: Sequence[Any]) -> None:
        """Brings a model that `fit` has just told its callbacks to where its backup was.

        Args:
            callbacks: The callbacks that share the log; the last is being told.

        Raises:
            LogError: If the log can't be read, or isn't of this model and backup.
        """
        model = callbacks[-1].model
        if not model.built:
            raise LogError(
                f"The growths of {model.name!r} can't be recorded",
                "it isn't built, so that its architecture isn't known",
                "Build it before `fit`, with `keras.Input` or `model.build(shape)`",
                received=f"log={str(self.path)!r}",
            )
        log = GrowthLog.read(self.path) if self.path.exists() else None
        known = model is self._model  # another `fit` of the same process
        self._known = weakref.ref(model)
        self._growers = _named(callbacks)
        self._backups = [
            Backup(one, self._waits)
            for one in internals.callbacks_beside(callbacks[-1])
            if isinstance(one, keras.callbacks.BackupAndRestore) and is_local(one)
        ]
        for backup in self._backups:
            backup.settle()
        self._goes_on, self.first_epoch = False, None
        if log is None:
            self._log = GrowthLog(architecture(model))
            return
        found = next((state for one in self._backups if (state := one.state()) is not None), None)
        if found is None:
            self._log = self._without_backup(log, known)
            self._goes_on = not known
        else:
            self._log = self._with_backup(log, *found)
        for entry in log.growths[len(self._log.growths) :]:
            if isinstance(entry, LoggedGrowth) and entry.epoch is not None:
                self._by(entry).seeds[entry.epoch] = entry.seed

    @property
    def _model(self) -> Any:
        return None if self._known is None else self._known()

    def _by(self, entry: LoggedGrowth | LoggedUndoing) -> Grower:
        """The callback that did a growth, or that does it now."""
        first = next(iter(self._growers.values()))
        return first if entry.by is None else self._growers.get(entry.by, first)

    def _of(self, callback: Any) -> Grower:
        """What is known of a callback."""
        return self._growers.get(self._name_of(callback)) or Grower(callback)

    def _without_backup(self, log: GrowthLog, known: bool) -> GrowthLog:
        """The log as of the architecture that the model is given with."""
        last = log.stages[-1].layers == architecture(self._model).layers
        stage = len(log.growths) if known and last else log.stage_of(self._model)
        moments = () if known else tuple(one for one in log.moments if one.stage <= stage)
        return dataclasses.replace(log.until(stage), moments=moments)

    def _with_backup(self, log: GrowthLog, digest: str, epoch: int) -> GrowthLog:
        """The log as of a backup; the model is brought there."""
        moment = self._moment(log, digest, epoch)
        stage = self._stage(log, digest, epoch) if moment is None else moment.stage
        watches = {} if moment is None else moment.watches
        self._bring(log, stage, watches)
        for name, grower in self._growers.items():
            grower.watch = watches.get(name)
        moments = () if moment is None else log.moments[: log.moments.index(moment) + 1]
        for entry in log.growths[:stage]:
            # A backup from within an epoch has that epoch's growth behind it.
            if entry.epoch is not None and entry.epoch >= epoch:
                event = -1 if isinstance(entry, LoggedUndoing) else 1
                self._by(entry).done[entry.epoch] = event
        self.first_epoch = epoch
        for one in self._backups:
            internals.resumes_at(one.callback, epoch)
            one.epochs.append(epoch)
        return dataclasses.replace(log.until(stage), moments=moments)

    def _bring(self, log: GrowthLog, stage: int, watches: Mapping[str, Watch]) -> None:
        """Brings the model to a stage, its optimizer at the steps at which it was then."""
        model = self._model
        optimizer = getattr(model, "optimizer", None)
        on_trial = {one.trial - 1: name for name, one in watches.items() if one.trial is not None}
        held = {place: read_values(self.path, place + 1) for place in on_trial}
        steps = 0 if optimizer is None else internals.steps_done(optimizer)
        if held and optimizer is not None and not optimizer.built:
            with internals.variable_scope(model):
                optimizer.build(model.trainable_variables)  # as it was when it had values
        trials: dict[str, Trial] = {}

        def again(place: int, growth: LoggedGrowth, done: Transaction) -> GrowthReport:
            if optimizer is not None and growth.step is not None:
                internals.set_steps_done(optimizer, growth.step)
            values: Values = []
            if place in held:
                values = with_values(self.path, place + 1, internals.values_of(model), held[place])
            report: GrowthReport = self._by(growth).callback._grow_again(growth)
            if place in held:
                done.settle()
                trial = Trial(done, values, signature(model), None, logged=place + 1)
                trials[on_trial[place]] = trial
            return report

        try:
            reports = bring(model, log, stage, again)
        except BaseException:
            if optimizer is not None:
                internals.set_steps_done(optimizer, steps)
            raise
        for place, report in reports.items():
            self._by(log.growths[place]).callback.history.append(report)
        for name, grower in self._growers.items():
            grower.trial = trials.get(name)

    def _moment(self, log: GrowthLog, digest: str, epoch: int) -> Moment | None:
        """The moment that a backup is of, if the log knows it."""
        within = any(one.within_epochs for one in self._backups)
        for moment in reversed(log.moments):
            same = moment.epoch == epoch and log.stages[moment.stage].weights == digest
            if same and (within or not moment.begun):
                return moment
        return None

    def _stage(self, log: GrowthLog, digest: str, epoch: int) -> int:
        """How many growths a backup has behind it, of a log that doesn't know its moment."""
        stages = [i for i, one in enumerate(log.stages) if one.weights == digest]
        if not stages:
            raise LogError(
                f"The backup can't be restored by the growth log {str(self.path)!r}",
                "the log knows no architecture with weights of its shapes",
                "Pass the log of the run that the backup is from, or delete both to start again",
                received=f"log={str(self.path)!r}",
            )
        # Where a model has had the same sizes twice, the epoch tells.
        past = [i for i in stages if all((g.epoch or 0) <= epoch for g in log.growths[:i])]
        return max(past or stages[:1])

    def begin_epoch(self, epoch: int) -> None:
        """Goes on without a backup, once the first epoch of a `fit` is known.

        The model and the epoch are the user's then, who may have loaded a checkpoint.
        """
        if not self._goes_on or self._log is None:
            return
        self._goes_on = False
        log = self._log
        behind = log.behind()
        moments = tuple(one for one in log.moments if 0 < one.epoch <= epoch)
        self._log = dataclasses.replace(log, moments=moments)
        if moments and moments[-1].epoch == epoch and log.behind(moments[-1].stage) == behind:
            for name, watch in moments[-1].watches.items():
                if name in self._growers:
                    self._growers[name].callback._go_on(watch, None)

    def state_of(self, callback: Any) -> tuple[Watch | None, Trial | None]:
        """What a callback goes on with when a `fit` that is resumed begins."""
        grower = self._of(callback)
        state, grower.watch, grower.trial = (grower.watch, grower.trial), None, None
        return state

    def _name_of(self, callback: Any) -> str:
        names = (name for name, one in self._growers.items() if one.callback is callback)
        return next(names, type(callback).__name__)

    def already(self, callback: Any, epoch: int) -> int:
        """Whether the restored weights have a callback's growth of an epoch behind them.

        Returns:
            `1` for a growth, `-1` if one was undone and none was done, `0` if nothing happened.
        """
        return self._of(callback).done.pop(epoch, 0)

    def prepare(self, model: Any, operations: Any) -> Any:
        """Operations in the form that the log holds, before they are done.

        Raises:
            LogError: If the log can't hold them, or the model has grown without it.
        """
        if self._log is None:
            return operations
        if architecture(model) != self._log.stages[-1]:
            raise LogError(
                f"The growth of {model.name!r} can't be recorded",
                "the model has changed since the last growth in the log, so that nobody "
                "could do it again",
                "Let callbacks that share one log do all growths, or let none keep a log",
                received=f"log={str(self.path)!r}",
            )
        return lasting(model, operations)

    def seed(self, callback: Any, epoch: int, seed: int | None) -> int | None:
        """The seed of a growth: one that is done again has that of the first time."""
        logged = self._of(callback).seeds.pop(epoch, None)
        if logged is None or seed is not None:
            return seed
        # Each of several processes may have found another log; they agree without it.
        return logged if internals.process_count(self._model) == 1 else None

    def record(self, callback: Any, operations: Any, report: GrowthReport) -> None:
        """Adds a growth to the log.

        Args:
            callback: What did it.
            operations: What was done.
            report: What came of it.
        """
        if self._log is None or report.plan.empty:
            return
        rate, optimizer = callback.options.learning_rate, getattr(callback.model, "optimizer", None)
        self._add(
            self._log,
            LoggedGrowth(
                operations=tuple(operations),
                seed=report.plan.seed,
                after=architecture(callback.model),
                epoch=report.epoch,
                step=None if optimizer is None else internals.steps_done(optimizer),
                optimizer_state=callback.options.optimizer_state,
                learning_rate=float(rate) if isinstance(rate, (int, float)) else None,
                by=self._name_of(callback),
            ),
        )

    def record_undoing(self, callback: Any, epoch: int) -> None:
        """Adds to the log that the last growth was undone."""
        if self._log is not None:
            after = architecture(callback.model)
            self._add(self._log, LoggedUndoing(after, epoch, by=self._name_of(callback)))

    def _add(self, log: GrowthLog, entry: LoggedGrowth | LoggedUndoing) -> None:
        self._log = dataclasses.replace(log, growths=(*log.growths, entry))
        self.write()

    def write(self) -> None:
        """Writes the log as it is: when a `fit` begins, without what didn't happen."""
        if self._log is not None and internals.is_first_process(self._model):
            self._log.write(self.path)

    def keep_values(self, values: Values) -> int | None:
        """Keeps the values from before the last growth in a file, if there is a backup.

        Returns:
            The number of the growth, counted from 1; `None` if nothing was kept.
        """
        if self._log is None or not self._backups:
            return None
        number = len(self._log.growths)
        if internals.is_first_process(self._model):
            write_values(self.path, number, values)
        return number

    # -- moments ---------------------------------------------------------------

    def begun(self, epoch: int) -> None:
        """Keeps what callbacks decide by after the growths of an epoch.

        Only backups from within the epoch go back there.
        """
        within = any(one.within_epochs for one in self._backups)
        if within and self._log is not None and any(e.epoch == epoch for e in self._log.growths):
            self._keep(epoch, True)

    def ended(self, callback: Any, epoch: int) -> None:
        """Keeps what callbacks have seen of an epoch; the backup of it counts from now on."""
        self._of(callback).seen = epoch + 1
        if not self._late(epoch + 1, [one.callback for one in self._growers.values()]):
            self._keep(epoch + 1, False)
            for backup in self._backups:
                backup.commit()

    def _late(self, epoch: int, callbacks: Any) -> bool:
        """Whether some of the callbacks have yet to see what comes before an epoch."""
        return any(
            one.callback._watch() is not None and one.seen < epoch
            for one in self._growers.values()
            if any(one.callback is other for other in callbacks)
        )

    def _waits(self, epoch: int) -> bool:
        """Whether a backup that is saved now has to wait before it counts."""
        return self._late(epoch, internals.running_callbacks())

    def _keep(self, epoch: int, begun: bool) -> None:
        watches = {name: one.callback._watch() for name, one in self._growers.items()}
        watches = {name: watch for name, watch in watches.items() if watch is not None}
        if self._log is None or not watches:
            return
        moment = Moment(epoch, len(self._log.growths), watches, begun)
        kept = [one for one in self._log.moments if (one.epoch, one.begun) < (epoch, begun)]
        oldest = min((one.oldest for one in self._backups), default=epoch - MOMENTS)
        self._keep_moments(self._log, (*(one for one in kept if one.epoch >= oldest), moment))

    def _keep_moments(self, log: GrowthLog, moments: tuple[Moment, ...]) -> None:
        """Writes the moments, and removes the values that none of them needs."""
        self._log = dataclasses.replace(log, moments=moments)
        self.write()
        if internals.is_first_process(self._model):
            watches = [watch for moment in moments for watch in moment.watches.values()]
            remove_values(self.path, [one.trial for one in watches if one.trial is not None])

    def end(self) -> None:
        """Ends a `fit`, and with it what is on trial, unless backups outlast it."""
        backups, self._backups = self._backups, []  # they hold the model
        deleted = backups and all(one.callback.delete_checkpoint for one in backups)
        if self._log is not None and self._log.moments and deleted:
            within = any(one.within_epochs for one in backups)
            moments = self._log.moments if within else self._log.moments[-1:]
            self._keep_moments(self._log, tuple(one.without_trials() for one in moments))


def _named(callbacks: Sequence[Any]) -> dict[str, Grower]:
    """Names for callbacks that share a log, the same each time that a script is run."""
    named: dict[str, Grower] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        number = 1 + sum(type(one.callback).__name__ == kind for one in named.values())
        named[kind if number == 1 else f"{kind} {number}"] = Grower(callback)
    return named
