"""Growth where training has stopped to improve, and undoing what has not paid."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from keras_net2net import internals
from keras_net2net.errors import GrowthError, real_number, receiving, whole_number
from keras_net2net.growth.best_weights import BestWeights, callbacks_of, concerned, own_weights
from keras_net2net.growth.grow import Options, plan
from keras_net2net.growth.transaction import Transaction
from keras_net2net.operations.base import Operation, as_operations
from keras_net2net.training.base import GrowingCallback
from keras_net2net.training.resume.log import Watch
from keras_net2net.training.resume.trials import Trial, signature

Growths = Operation | Sequence[Any] | Callable[[int, Any], Any]


class GrowOnPlateau(GrowingCallback):
    """Grows the model when a metric has stopped improving, as `ReduceLROnPlateau` acts.

    When `monitor` has not improved for `patience` epochs, the model grows at the
    beginning of the next one. The function that it computes doesn't change at that
    moment, and training goes on. What the other callbacks are told is said at
    `GrowthScheduler`; `growth` is `-1` where a growth has been undone and none was done.

    With `revert=True` every growth is on trial: if there is no improvement within
    `patience` epochs, it is undone. Then the model, its optimizer and what
    `EarlyStopping` holds of it are, bit for bit, what they were at the moment of the
    growth (weights, moments, number of steps, learning rate), and the next growth is
    tried. Until then the weights of that moment are kept in memory. A growth that is
    still on trial when `fit` ends stays.

    Args:
        operations: What to grow by: an operation, once; or a list of growths, one for
            each plateau, each of them an operation or a list of operations; or a
            callable that takes the epoch and the model, and returns operations, or
            `None` to let the plateau pass.
        monitor: What is watched. Defaults to `"val_loss"`.
        mode: `"min"`, `"max"`, or `"auto"`: what the metric itself says. Defaults to
            `"auto"`.
        patience: Integer, epochs without improvement after which the model grows.
            Defaults to `3`.
        min_delta: Float, the least change that is an improvement. Defaults to `0`.
        cooldown: Integer, epochs after a growth that don't count as epochs without
            improvement. Defaults to `0`.
        cycle: Whether the list begins again at its end. Defaults to `False`: no more
            growth then.
        max_growths: Integer, growths after which there are no more, those that were
            undone included. Defaults to `None`: no limit.
        max_params: Integer, the largest number of parameters that the model may get.
            The first growth that would make more isn't done, and no more after it.
            Defaults to `None`: no limit.
        revert: Whether a growth that has not paid is undone. Defaults to `False`.
        seed: Integer, the seed of all that is drawn. Defaults to `None`.
        optimizer_state: See `grow`. Defaults to `"reset"`.
        learning_rate: See `grow`. Defaults to `None`.
        verify: See `grow`. Defaults to `True`.
        calibration: See `GrowthScheduler`. Defaults to `None`.
        freeze: See `grow`. Defaults to `None`.
        log: Path of a growth log: see `GrowthScheduler`. With it, and with
            `keras.callbacks.BackupAndRestore`, what the decisions depend on comes back as
            well: best value, waiting, the place in the list. With `revert=True` the values
            from before a growth on trial are kept in a file beside the log, as large as the
            model and its optimizer were, until that is decided. Without a backup, a `fit`
            in a new process whose `initial_epoch` the log knows goes on likewise, but
            undoes nothing from before it. Defaults to `None`: nothing is recorded.
        verbose: `0` is silent, `1` prints a line for each growth. Defaults to `1`.

    Attributes:
        history: The `GrowthReport`s of all growths, in their order; `undone` tells
            those that were undone. Those that were undone in a process that was killed
            since are only in the log.
        finished: Whether there will be no more growth: the list is at its end, or a
            limit is reached.

    Raises:
        GrowthError: If an argument can't be used.
        LogError: See `GrowthScheduler`.

    Example:

    >>> import keras, numpy as np
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(1, name="out")]
    ... )
    >>> model.compile(keras.optimizers.SGD(0.0), "mse")  # which never improves
    >>> growth = n2n.GrowOnPlateau(
    ...     n2n.Wider("fc", factor=1.5), monitor="loss", patience=2, min_delta=1e-4, cycle=True,
    ...     max_params=120, seed=0, verbose=0,
    ... )
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=8, verbose=0, callbacks=[growth])
    >>> [(report.epoch, report.parameters_after) for report in growth.history]
    [(3, 73), (5, 109)]
    """

    def __init__(
        self,
        operations: Growths,
        monitor: str = "val_loss",
        mode: str = "auto",
        patience: int = 3,
        min_delta: float = 0,
        cooldown: int = 0,
        *,
        cycle: bool = False,
        max_growths: int | None = None,
        max_params: int | None = None,
        revert: bool = False,
        seed: int | None = None,
        optimizer_state: str = "reset",
        learning_rate: Any = None,
        verify: Any = True,
        calibration: Any = None,
        freeze: str | None = None,
        log: Any = None,
        verbose: int = 1,
    ) -> None:
        options = Options(seed, optimizer_state, learning_rate, verify, calibration, freeze)
        super().__init__(options, log, verbose)
        self.operations = _checked(operations)
        _check(self.operations, cycle, monitor, mode, min_delta)
        self.monitor = monitor
        self.mode = mode
        self.patience = _whole("patience", patience, 1)
        self.min_delta = float(min_delta)
        self.cooldown = _whole("cooldown", cooldown, 0)
        self.cycle = bool(cycle)
        self.max_growths = None if max_growths is None else _whole("max_growths", max_growths, 1)
        self.max_params = None if max_params is None else _whole("max_params", max_params, 1)
        self.revert = bool(revert)
        self._now = Watch()
        self._trial: Trial | None = None

    @property
    def finished(self) -> bool:
        """Whether there will be no more growth."""
        return self._now.finished

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Forgets the best value and the waiting; the list of growths goes on.

        A `fit` that is resumed goes on with all of it.
        """
        super().on_train_begin(logs)
        now, interrupted = self._now, self._trial  # of an earlier `fit` in this process
        went_on = Watch(position=now.position, growths=now.growths, finished=now.finished)
        self._go_on(went_on, None)
        watch, trial = self._recorder.state_of(self)
        if watch is not None:
            if trial is None and interrupted is not None and interrupted.logged == watch.trial:
                trial = interrupted
            self._go_on(watch, trial)

    def _watch(self) -> Watch:
        return dataclasses.replace(self._now, trial=self._trial.logged if self._trial else None)

    def _go_on(self, watch: Watch, trial: Trial | None) -> None:
        self._now, self._trial = dataclasses.replace(watch), trial

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Lets a growth that is on trial stay."""
        super().on_train_end(logs)
        self._trial = None

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Looks at the metric."""
        super().on_epoch_end(epoch, logs)
        self._look(logs or {})
        self._recorder.ended(self, epoch)

    def _look(self, logs: dict[str, float]) -> None:
        current = logs.get(self.monitor)
        if current is None:
            names = ", ".join(sorted(set(logs) - {"params", "growth"}))
            warnings.warn(
                f"GrowOnPlateau looks at the metric {self.monitor!r}, which there isn't. There "
                f"are: {names or 'none'}.",
                stacklevel=3,
            )
            return
        now = self._now
        counts = now.cooldown_left == 0
        now.cooldown_left = max(0, now.cooldown_left - 1)
        if self._improves(float(current)):
            now.best = float(current)
            now.wait = 0
            self._trial = None  # it has paid
        elif counts:
            now.wait += 1
            now.due = now.wait >= self.patience and not (now.finished and self._trial is None)

    def _improves(self, current: float) -> bool:
        if math.isnan(current):
            return False
        up: bool | None = self.mode == "max"
        if self.mode == "auto":
            up = internals.is_better_upwards(self.model, self.monitor)
        if up is None:
            raise GrowthError(
                f"Nothing tells whether {self.monitor!r} should rise or fall",
                "the metric doesn't say in which direction it improves",
                "Pass `mode='min'` or `mode='max'`",
                received=f"monitor={self.monitor!r}, mode='auto'",
            )
        best = self._now.best
        return best is None or (current - best if up else best - current) > self.min_delta

    def _begin(self, epoch: int) -> None:
        self._already(epoch)
        if self._trial is not None and self._trial.callbacks is None:
            self._trial = self._with_callbacks(self._trial)
        now = self._now
        if not now.due:
            return
        now.due = False
        now.wait = 0
        if self._trial is not None:
            self._undo(self._trial, epoch)
            self._trial = None
        operations = self._next(epoch)
        if operations is None or not self._fits(operations, epoch):
            return
        held = concerned(callbacks_of(), self.model)
        with own_weights(held), Transaction.around() as transaction:
            values = internals.values_of(self.model) if self.revert else []
            report = self._grow(operations, epoch)
        now.position += 1
        now.growths += not report.plan.empty
        exhausted = isinstance(self.operations, tuple) and now.position >= len(self.operations)
        now.finished = now.growths == self.max_growths or (exhausted and not self.cycle)
        now.cooldown_left = self.cooldown
        if self.revert and not report.plan.empty:
            transaction.settle()
            logged = self._recorder.keep_values(values)
            self._trial = Trial(transaction, values, signature(self.model), held, logged)

    def _with_callbacks(self, trial: Trial) -> Trial:
        """A trial from a process that was killed, with the callbacks that have begun by now."""
        held = concerned(callbacks_of(), self.model)
        BestWeights(held, trial.transaction)
        return dataclasses.replace(trial, callbacks=held)

    def _next(self, epoch: int) -> Any:
        if self._now.finished:
            return None
        if callable(self.operations):
            return self.operations(epoch, self.model)
        return self.operations[self._now.position % len(self.operations)]

    def _fits(self, operations: Any, epoch: int) -> bool:
        if self.max_params is None:
            return True
        planned = plan(self.model, operations, seed=self.options.seed, calibration=self._data)
        if planned.empty or planned.parameters_after <= self.max_params:
            return True
        self._now.finished = True
        self._tell(
            f"No growth before epoch {epoch + 1}: {planned.parameters_after:,} parameters would "
            f"be more than {self.max_params:,}"
        )
        return False

    def _undo(self, trial: Trial, epoch: int) -> None:
        report = self.history[-1]
        since = f"the growth before epoch {(report.epoch or 0) + 1}"
        if signature(self.model) != trial.signature:
            warnings.warn(
                f"GrowOnPlateau can't undo {since}: the model has changed since.", stacklevel=2
            )
            return
        with own_weights(trial.callbacks or ()):
            trial.transaction.roll_back()
            internals.set_values(trial.values)
            internals.forget_functions(self.model)
        self._recorder.record_undoing(self, epoch)
        self.history[-1] = dataclasses.replace(report, undone=epoch)
        self._event = -1
        best = "nothing" if self._now.best is None else f"{self._now.best:.4g}"
        self._tell(
            f"Before epoch {epoch + 1}, {since} was undone: {self.monitor} has not improved on "
            f"{best} | {report.parameters_after:,} -> {report.parameters_before:,} parameters"
        )


def _checked(operations: Any) -> Any:
    """The growths as a tuple of lists of operations, or the callable."""
    if callable(operations) and not isinstance(operations, Operation):
        return operations
    if isinstance(operations, (list, tuple)):
        as_operations(operations)
        return tuple(as_operations(growth) for growth in operations)
    return (as_operations(operations),)


def _check(operations: Any, cycle: Any, monitor: Any, mode: Any, min_delta: Any) -> None:
    least = real_number(min_delta)
    for wrong, problem, why, instead, received in (
        (
            cycle and callable(operations),
            "A callable isn't cycled",
            "it is asked at every plateau anyway",
            "Leave `cycle` out, or pass a list of growths",
            f"cycle={cycle!r}",
        ),
        (
            not isinstance(monitor, str),
            "That can't be monitored",
            "what is monitored is the name of a metric in the logs",
            "Pass for example `monitor='val_loss'`",
            f"monitor={monitor!r}",
        ),
        (
            mode not in ("auto", "min", "max"),
            f"There is no mode {mode!r}",
            "a metric improves downwards, upwards, or as it says itself",
            "Pass 'min', 'max' or 'auto'",
            f"mode={mode!r}",
        ),
        (
            least is None or not 0 <= least < math.inf,
            "The least improvement can't be measured so",
            "it is a number of at least 0, whichever way the metric improves",
            "Pass for example `min_delta=0.001`",
            f"min_delta={min_delta!r}",
        ),
    ):
        if wrong:
            raise GrowthError(problem, why, instead, received=received)


def _whole(name: str, value: Any, least: int) -> int:
    with receiving(f"{name}={value!r}"):
        return whole_number(value, f"`{name}`", least, "a number")
