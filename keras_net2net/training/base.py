"""What callbacks that grow the model have in common."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_net2net import internals
from keras_net2net.errors import LogError
from keras_net2net.growth.freezing import check_freeze
from keras_net2net.growth.grow import Options, check_arguments, grow_model
from keras_net2net.growth.report import GrowthReport
from keras_net2net.training.resume.log import LoggedGrowth, Watch
from keras_net2net.training.resume.recorder import Recorder


class GrowingCallback(keras.callbacks.Callback):
    """A callback that grows the model, and tells of it; `_begin` says when.

    Args:
        options: How the model grows, `seed` to `freeze` of `grow`.
        log: The path of the growth log, or `None`.
        verbose: `0` is silent, `1` prints a line for each growth.
    """

    def __init__(self, options: Options, log: Any, verbose: int) -> None:
        super().__init__()
        check_arguments(options.optimizer_state, options.learning_rate)
        check_freeze(options.freeze)
        self.options = options
        self.verbose = verbose
        self.history: list[GrowthReport] = []
        self._event = 0
        self._headlines: list[str] = []
        self._recorder = Recorder(log)

    def set_model(self, model: Any) -> None:
        """Takes the model; one that is built anew to go on gets its growths again."""
        super().set_model(model)
        if self._recorder.path is None or model is None:
            return
        sharing = self._sharing()
        for one in sharing:
            one._recorder = self._recorder
        if sharing[-1] is self:  # now each of them has the model
            self._recorder.attach(sharing)

    def _sharing(self) -> list[GrowingCallback]:
        """The growing callbacks of the `fit`: what one of them does must be in the log of all.

        Raises:
            LogError: If one of them has another log, or none.
        """
        beside = internals.callbacks_beside(self)
        growing = [one for one in beside if isinstance(one, GrowingCallback)] or [self]
        paths = [one._recorder.path for one in growing]
        if len({path and path.absolute() for path in paths}) > 1:
            raise LogError(
                f"The growths of {self.model.name!r} can't be recorded",
                "several callbacks grow it, and a log in which the growths of some are missing "
                "leads nowhere",
                "Pass the same `log` to all of them, or to none",
                received=", ".join(
                    f"{type(one).__name__}(..., log={path and str(path)!r})"
                    for one, path in zip(growing, paths, strict=True)
                ),
            )
        return growing

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Begins the log."""
        self._recorder.write()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Ends the log."""
        self._recorder.end()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Grows the model if it is time to."""
        self._event, self._headlines = 0, []
        self._recorder.begin_epoch(epoch)
        self._begin(epoch)
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
        operations = self._recorder.prepare(self.model, operations)
        seed = self._recorder.seed(self, epoch, self.options.seed)
        report = self._grown(operations, epoch, seed=seed)
        self._recorder.record(self, operations, report)
        self.history.append(report)
        self._event = int(not report.plan.empty)
        self._tell(f"Growth before epoch {epoch + 1}: {report.headline()}", report.notes)
        return report

    def _grown(
        self, operations: Any, epoch: int, callbacks: Any = None, **changed: Any
    ) -> GrowthReport:
        """Grows the model in silence, and returns the report."""
        rate = _told(self.options.learning_rate, epoch)
        options = dataclasses.replace(
            self.options, learning_rate=rate, calibration=self._data, **changed
        )
        report = grow_model(self.model, operations, options, callbacks=callbacks)
        return dataclasses.replace(report, epoch=epoch)

    def _grow_again(self, growth: LoggedGrowth) -> GrowthReport:
        """Does a logged growth to a model whose weights are loaded afterwards."""
        # The other callbacks begin anew, and may hold weights of another model till then.
        changed = {"seed": growth.seed, "verify": False}
        return self._grown(list(growth.operations), growth.epoch or 0, (), **changed)

    @property
    def _data(self) -> Any:
        """The data for operations that want some: what was given, or that of the `fit`."""
        given = self.options.calibration
        return _FitData(self.model) if given is None else given

    def _tell(self, headline: str, notes: tuple[str, ...] = ()) -> None:
        self._headlines.append(headline)
        if self.verbose:
            # Keras prints "Epoch ..." after this, and its bar later: no line breaks.
            print(headline, flush=True)
            for note in notes:
                print(f"  note: {note}", flush=True)


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

    def __call__(self) -> Any:
        """The batches as one, or `None`."""
        return self._batches

    @functools.cached_property
    def _batches(self) -> Any:
        batches = internals.fit_batches(self._model, samples=256)
        return keras.tree.map_structure(lambda *x: np.concatenate(x), *batches) if batches else None
