"""Growth inside `model.fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import GrowthError, LogError, receiving, whole_number
from keras_net2net.growth.freezing import check_freeze
from keras_net2net.growth.grow import check_arguments, grow
from keras_net2net.growth.report import GrowthReport
from keras_net2net.operations.base import as_operations
from keras_net2net.training.resume.backup import Recorder
from keras_net2net.training.resume.log import LoggedGrowth, Watch

Schedule = Mapping[int, Any] | Callable[[int, Any], Any]


class _GrowingCallback(keras.callbacks.Callback):
    """What callbacks that grow the model have in common: growing, and telling of it.

    Args:
        seed: See `grow`.
        optimizer_state: See `grow`.
        learning_rate: See `grow`.
        verify: See `grow`.
        calibration: See `grow`.
        freeze: See `grow`.
        log: The path of the growth log, or `None`.
        verbose: `0` is silent, `1` prints a line for each growth.
    """

    def __init__(
        self,
        seed: int | None,
        optimizer_state: str,
        learning_rate: Any,
        verify: Any,
        calibration: Any,
        freeze: str | None,
        log: Any,
        verbose: int,
    ) -> None:
        super().__init__()
        check_arguments(optimizer_state, learning_rate)
        check_freeze(freeze)
        self.seed = seed
        self.optimizer_state = optimizer_state
        self.learning_rate = learning_rate
        self.verify = verify
        self.calibration = calibration
        self.freeze = freeze
        self.verbose = verbose
        self.history: list[GrowthReport] = []
        self._event = 0
        self._headlines: list[str] = []
        self._recorder = None if log is None else Recorder(log)

    def set_model(self, model: Any) -> None:
        """Takes the model; one that is built anew to go on gets its growths again."""
        super().set_model(model)
        if self._recorder is None or model is None:
            return
        sharing = self._sharing(self._recorder)
        for one in sharing:
            one._recorder = self._recorder
        if sharing[-1] is self:  # now each of them has the model
            self._recorder.attach(sharing)

    def _sharing(self, recorder: Recorder) -> list[_GrowingCallback]:
        """The growing callbacks of the `fit`: what one of them does must be in the log of all.

        Raises:
            LogError: If one of them has another log, or none.
        """
        beside = internals.callbacks_beside(self)
        growing = [one for one in beside if isinstance(one, _GrowingCallback)] or [self]
        paths = [one._recorder and one._recorder.path.absolute() for one in growing]
        if any(path != recorder.path.absolute() for path in paths):
            raise LogError(
                f"The growths of {self.model.name!r} can't be recorded",
                (
                    "several callbacks grow it, and a log in which the growths of some are "
                    "missing leads nowhere"
                ),
                "Pass the same `log` to all of them, or to none",
                received=(
                    ", ".join(
                        f"{type(one).__name__}(..., log={path and str(path)!r})"
                        for one, path in zip(growing, paths, strict=True)
                    )
                ),
            )
        return growing

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Begins the log."""
        if self._recorder is not None:
            self._recorder.begin()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Ends the log."""
        if self._recorder is not None:
            self._recorder.end()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Grows the model if it is time to."""
        self._event, self._headlines = 0, []
        if self._recorder is not None:
            self._recorder.begin_epoch(epoch)
        self._begin(epoch)
        if self._recorder is not None:
            self._recorder.begun(epoch)
        for callback in internals.running_callbacks():
            if isinstance(callback, keras.callbacks.TensorBoard):
                told = "\n\n".join(self._headlines)
                internals.write_growth(callback, epoch, self.model.count_params(), told or None)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Adds the number of parameters, and whether the model has grown, to the logs."""
        if logs is None:
            return
        told = {"params": self.model.count_params(), "growth": self._event or logs.get("growth", 0)}
        # A `History` that stands before this one has its row of the epoch already.
        for callback in internals.running_callbacks():
            if callback is self:
                break
            if isinstance(callback, keras.callbacks.History):
                for key, value in told.items():
                    column = callback.history.setdefault(key, [])
                    column[len(column) - (key in logs) :] = [value]
        logs.update(told)

    def _begin(self, epoch: int) -> None:
        """Grows the model if it is time to."""
        raise NotImplementedError

    def _watch(self) -> Watch | None:
        """What the callback decides by, beside the epoch; `None` if there is nothing."""
        return None

    def _go_on(self, watch: Watch, trial: Any) -> None:
        """Decides by what `_watch` was once."""

    def _already(self, epoch: int) -> bool:
        """Whether the model was given with this epoch's growth behind it."""
        if self._recorder is None:
            return False
        self._event = self._recorder.already(self, epoch)
        return self._event != 0  # in the process that was killed within this epoch

    def _grow(self, operations: Any, epoch: int) -> GrowthReport:
        """Grows the model, and tells of it.

        Args:
            operations: The operations.
            epoch: The epoch that begins, as this callback counts.

        Returns:
            The report.
        """
        seed = self.seed
        if self._recorder is not None:
            operations = self._recorder.prepare(self.model, operations)
            seed = self._recorder.seed(self, epoch, seed)
        report = self._grown(operations, epoch, seed, self.verify)
        if self._recorder is not None:
            self._recorder.record(self, operations, report)
        self.history.append(report)
        self._event = int(not report.plan.empty)
        self._tell(f"Growth before epoch {epoch + 1}: {report.headline()}", report.notes)
        return report

    def _grown(
        self, operations: Any, epoch: int, seed: int | None, verify: Any, callbacks: Any = None
    ) -> GrowthReport:
        """Grows the model in silence, and returns the report."""
        report = grow(
            self.model,
            operations,
            seed=seed,
            optimizer_state=self.optimizer_state,
            learning_rate=_told(self.learning_rate, epoch),
            verify=verify,
            calibration=self._data,
            freeze=self.freeze,
            callbacks=callbacks,
        )
        return dataclasses.replace(report, epoch=epoch)

    def _grow_again(self, growth: LoggedGrowth) -> GrowthReport:
        """Does a logged growth to a model whose weights are loaded afterwards."""
        # The other callbacks begin anew, and may hold weights of another model till then.
        return self._grown(
            list(growth.operations), growth.epoch or 0, growth.seed, verify=False, callbacks=()
        )

    @property
    def _data(self) -> Any:
        """The data for operations that want some: what was given, or that of the `fit`."""
        return _FitData(self.model) if self.calibration is None else self.calibration

    def _tell(self, headline: str, notes: tuple[str, ...] = ()) -> None:
        self._headlines.append(headline)
        if self.verbose:
            # Keras prints "Epoch ..." after this, and its bar later: no line breaks.
            print(headline, flush=True)
            for note in notes:
                print(f"  note: {note}", flush=True)


class GrowthScheduler(_GrowingCallback):
    """Grows the model at the epochs of a schedule, while `fit` runs.

    A growth happens before the first batch of its epoch. The function that the
    model computes doesn't change at that moment, and training goes on.

    What the other callbacks of the `fit` hold of the model grows with it: the best
    weights of `EarlyStopping`, for one. The logs of each epoch get `params`, the number
    of parameters, and `growth`, `1` if the model has grown before that epoch and `0`
    if not, for `History` and all callbacks that stand behind this one; a `TensorBoard`
    gets a scalar `params` and a text `growth`.

    Args:
        schedule: A dict from epochs, counted from 0 as Keras does, to an
            operation or a list of operations; or a callable that takes the epoch
            and the model, and returns operations or `None`.
        seed: Integer, the seed of all that is drawn. Defaults to `None`.
        optimizer_state: See `grow`. Defaults to `"reset"`.
        learning_rate: See `grow`. Defaults to `None`.
        verify: See `grow`. Defaults to `True`.
        calibration: See `grow`. Defaults to `None`: the first batches of the running
            `fit` (256 samples, 8 batches at most), where its data can be read twice.
        freeze: See `grow`. Defaults to `None`.
        across_fits: Whether epochs are counted on over all the `fit`s that the
            callback takes part in, so that each epoch's growth happens once: for
            data that arrives in parts. Defaults to `False`: each `fit` counts as
            Keras does.
        log: Path of a JSON file in which the growths are recorded. With it, and with
            `keras.callbacks.BackupAndRestore` anywhere in the list, a script whose process
            was killed goes on where it was when it is run again: the model that it builds
            gets the growths that the backup has behind it. `replay` and `upgrade_weights`
            read the file, too. Where several callbacks grow the model, all of them need the
            same path. Defaults to `None`: nothing is recorded.
        verbose: `0` is silent, `1` prints a line for each growth. Defaults to `1`.

    Attributes:
        history: The `GrowthReport`s of all growths, in their order.

    Raises:
        GrowthError: If an epoch is negative, or something isn't an operation.
        LogError: When `fit` begins, if the log can't be read, isn't of this model, or
            isn't that of all callbacks that grow it.

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
        freeze: str | None = None,
        across_fits: bool = False,
        log: Any = None,
        verbose: int = 1,
    ) -> None:
        super().__init__(
            seed, optimizer_state, learning_rate, verify, calibration, freeze, log, verbose
        )
        self.schedule = _checked(schedule)
        self.across_fits = across_fits
        self.epochs_seen = 0

    def _begin(self, epoch: int) -> None:
        recorder = self._recorder
        if recorder is not None and recorder.first_epoch == epoch and not self.epochs_seen:
            self.epochs_seen = epoch
        now = self.epochs_seen if self.across_fits else epoch
        self.epochs_seen += 1
        if self._already(now):
            return
        operations = self._operations(now)
        if operations is not None:
            self._grow(operations, now)

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


class _FitData:
    """The first batches of a running `fit`, read when an operation wants them."""

    label = "the first batches of this `fit`"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._read = False
        self._data: Any = None

    def __call__(self) -> Any:
        """The batches as one, or `None`."""
        if not self._read:
            self._read = True
            batches = internals.fit_batches(self._model, samples=256)
            if batches:
                self._data = keras.tree.map_structure(lambda *x: np.concatenate(x), *batches)
        return self._data


def _checked(schedule: Schedule) -> Schedule:
    if not isinstance(schedule, Mapping):
        if callable(schedule):
            return schedule
        raise GrowthError(
            "The schedule can't be read",
            "it is a dict from epochs to operations, or a callable",
            "Pass for example `{4: Wider('conv1', units=64)}`",
            received=f"{schedule!r} (of type {type(schedule).__name__})",
        )
    checked = {}
    for epoch, operations in schedule.items():
        with receiving(f"{dict(schedule)!r}"):
            number = whole_number(epoch, "An epoch of the schedule", 0, "counted from 0")
        checked[number] = as_operations(operations)
    return checked
