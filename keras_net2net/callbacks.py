"""Growth inside `model.fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_net2net.errors import GrowthError, explain
from keras_net2net.growth import check_arguments, grow
from keras_net2net.growth_log import LoggedGrowth
from keras_net2net.operations.base import as_operations, whole_number
from keras_net2net.report import GrowthReport
from keras_net2net.resume import Recorder

Schedule = Mapping[int, Any] | Callable[[int, Any], Any]


class GrowthScheduler(keras.callbacks.Callback):
    """Grows the model at the epochs of a schedule, while `fit` runs.

    A growth happens before the first batch of its epoch. The function that the
    model computes doesn't change at that moment, and training goes on.

    Args:
        schedule: A dict from epochs, counted from 0 as Keras does, to an
            operation or a list of operations; or a callable that takes the epoch
            and the model, and returns operations or `None`.
        seed: Integer, the seed of all that is drawn. Defaults to `None`.
        optimizer_state: See `grow`. Defaults to `"reset"`.
        learning_rate: See `grow`. Defaults to `None`.
        verify: See `grow`. Defaults to `True`.
        calibration: See `grow`. Defaults to `None`.
        across_fits: Whether epochs are counted on over all the `fit`s that the
            callback takes part in, so that each epoch's growth happens once: for
            data that arrives in parts. Defaults to `False`: each `fit` counts as
            Keras does.
        log: Path of a JSON file in which the growths are recorded. With it, and with
            `keras.callbacks.BackupAndRestore` anywhere in the list, a script whose process
            was killed goes on where it was when it is run again: the model that it builds
            gets the growths that the backup has behind it. `replay` and `upgrade_weights`
            read the file, too. Defaults to `None`: nothing is recorded.
        verbose: `0` is silent, `1` prints a line for each growth. Defaults to `1`.

    Attributes:
        history: The `GrowthReport`s of all growths, in their order.

    Raises:
        GrowthError: If an epoch is negative, or something isn't an operation.
        LogError: When `fit` begins, if the log can't be read, or isn't of this model.

    Example:

    >>> import keras, numpy as np
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(1, name="out")]
    ... )
    >>> model.compile("sgd", "mse")
    >>> growth = n2n.GrowthScheduler({1: n2n.Wider("fc", units=12)}, seed=0, verbose=0)
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0, callbacks=[growth])
    >>> [report.parameters_after for report in growth.history]
    [73]
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        seed: int | None = None,
        optimizer_state: str = "reset",
        learning_rate: Any = None,
        verify: Any = True,
        calibration: Any = None,
        across_fits: bool = False,
        log: Any = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        check_arguments(optimizer_state, learning_rate)
        self.schedule = _checked(schedule)
        self.seed = seed
        self.optimizer_state = optimizer_state
        self.learning_rate = learning_rate
        self.verify = verify
        self.calibration = calibration
        self.across_fits = across_fits
        self.verbose = verbose
        self.history: list[GrowthReport] = []
        self.epochs_seen = 0
        self._recorder = None if log is None else Recorder(log)

    def set_model(self, model: Any) -> None:
        """Takes the model; one that is built anew to go on gets its growths again."""
        super().set_model(model)
        if self._recorder is not None and model is not None:
            self.history += self._recorder.attach(self, self._grow_again)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Begins the log."""
        if self._recorder is not None:
            self._recorder.begin()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Grows the model if the schedule says so."""
        recorder = self._recorder
        if recorder is not None and recorder.first_epoch == epoch and not self.epochs_seen:
            self.epochs_seen = epoch
        now = self.epochs_seen if self.across_fits else epoch
        self.epochs_seen += 1
        if recorder is not None and recorder.already(now):
            return
        operations = self._operations(now)
        if operations is None:
            return
        seed = self.seed
        if recorder is not None:
            operations = recorder.prepare(self.model, operations)
            seed = recorder.seed(now, seed)
        report = self._grow(operations, now, seed, self.verify)
        self.history.append(report)
        if recorder is not None:
            recorder.record(
                self.model,
                operations,
                report,
                optimizer_state=self.optimizer_state,
                learning_rate=self.learning_rate,
            )
        if self.verbose:
            # Keras prints "Epoch ..." after this, and its bar later: no line breaks.
            print(f"Growth before epoch {now + 1}: {report.headline()}", flush=True)
            for note in report.notes:
                print(f"  note: {note}", flush=True)

    def _grow(self, operations: Any, epoch: int, seed: int | None, verify: Any) -> GrowthReport:
        report = grow(
            self.model,
            operations,
            seed=seed,
            optimizer_state=self.optimizer_state,
            learning_rate=_told(self.learning_rate, epoch),
            verify=verify,
            calibration=self.calibration,
        )
        return dataclasses.replace(report, epoch=epoch)

    def _grow_again(self, growth: LoggedGrowth) -> GrowthReport:
        """Does a logged growth to a model whose weights are loaded afterwards."""
        return self._grow(list(growth.operations), growth.epoch or 0, growth.seed, verify=False)

    def _operations(self, epoch: int) -> Any:
        if isinstance(self.schedule, Mapping):
            return self.schedule.get(epoch)
        return self.schedule(epoch, self.model)


def _told(policy: Any, epoch: int) -> Any:
    """What becomes of the learning rate, with callables told the epoch by their report."""
    if isinstance(policy, (list, tuple)):
        return [_told(one, epoch) for one in policy]
    if not callable(policy):
        return policy
    return _Told(policy, epoch)


@dataclasses.dataclass(frozen=True)
class _Told:
    policy: Callable[[Any, GrowthReport], Any]
    epoch: int

    def __call__(self, old: Any, report: GrowthReport) -> Any:
        return self.policy(old, dataclasses.replace(report, epoch=self.epoch))

    def __repr__(self) -> str:
        return repr(self.policy)


def _checked(schedule: Schedule) -> Schedule:
    if not isinstance(schedule, Mapping):
        if callable(schedule):
            return schedule
        raise GrowthError(
            explain(
                "The schedule can't be read",
                "it is a dict from epochs to operations, or a callable",
                f"{schedule!r} (of type {type(schedule).__name__})",
                "Pass for example `{4: Wider('conv1', units=64)}`",
            )
        )
    checked = {}
    for epoch, operations in schedule.items():
        number = whole_number(
            epoch, "An epoch of the schedule", f"{dict(schedule)!r}", least=0, kind="counted from 0"
        )
        checked[number] = as_operations(operations)
    return checked
