"""Growth at the epochs of a schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras_net2net.errors import GrowthError, receiving, whole_number
from keras_net2net.growth.grow import Options
from keras_net2net.operations.base import as_operations
from keras_net2net.training.base import GrowingCallback

Schedule = Mapping[int, Any] | Callable[[int, Any], Any]


class GrowthScheduler(GrowingCallback):
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
        options = Options(seed, optimizer_state, learning_rate, verify, calibration, freeze)
        super().__init__(options, log, verbose)
        self.schedule = _checked(schedule)
        self.across_fits = across_fits
        self.epochs_seen = 0

    def _begin(self, epoch: int) -> None:
        if self._recorder.first_epoch == epoch and not self.epochs_seen:
            self.epochs_seen = epoch
        now = self.epochs_seen if self.across_fits else epoch
        self.epochs_seen += 1
        if self._already(now):
            return
        planned = self.schedule
        operations = planned.get(now) if isinstance(planned, Mapping) else planned(now, self.model)
        if operations is not None:
            self._grow(operations, now)


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
