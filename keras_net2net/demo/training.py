"""The two runs: a network that grows inside one `fit`, and its final architecture from scratch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from typing import Any

import keras

import keras_net2net as n2n
from keras_net2net.demo import network
from keras_net2net.demo.data import Data
from keras_net2net.demo.options import Options

# The filters of the network that is grown, from the image up.
FILTERS = (16, 32)
# The same batches wherever the validation loss is measured: the same network has the same loss.
VALIDATION_BATCH_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Args:
        parameters: Integer, the parameters of the network that was trained in it.
        loss: Float, the validation loss at its end.
        accuracy: Float, the validation accuracy at its end.
        seconds: Float, how long it took, its growth, compilation and validation included.
    """

    parameters: int
    loss: float
    accuracy: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Growth:
    """A growth, and the validation loss measured right before and right after it.

    Args:
        epoch: Integer, after how many epochs the network grew: the schedule's epoch, from 0.
        kind: String, `"wider"`, `"deeper"` or both.
        parameters: Integer, the parameters it grew to.
        loss_before: Float, the validation loss right before.
        loss_after: Float, the validation loss right after.
    """

    epoch: int
    kind: str
    parameters: int
    loss_before: float
    loss_after: float


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Args:
        model: The trained network.
        epochs: One `Epoch` for each.
        growths: The `Growth`s, in order; none for a run from scratch.
    """

    model: keras.Model
    epochs: tuple[Epoch, ...]
    growths: tuple[Growth, ...] = ()

    @property
    def steps(self) -> int:
        """The number of optimizer steps."""
        return int(self.model.optimizer.iterations)

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return sum(epoch.seconds for epoch in self.epochs)


class _Probe(keras.callbacks.Callback):
    """Measures the validation loss at the start of some epochs, where it stands in the list."""

    def __init__(self, epochs: Collection[int], data: Data) -> None:
        super().__init__()
        self.epochs = epochs
        self.data = data
        self.losses: dict[int, float] = {}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch in self.epochs:
            self.losses[epoch] = self.model.evaluate(
                self.data.x_test,
                self.data.y_test,
                batch_size=VALIDATION_BATCH_SIZE,
                verbose=0,
                return_dict=True,
            )["loss"]
            # Else the epoch that begins would count these images as its own.
            self.model.reset_metrics()


class _Log(keras.callbacks.Callback):
    """Notes what each epoch came to.

    Stands last among the callbacks, so that its clock leaves the probes out.
    """

    def __init__(self, growth: n2n.GrowthScheduler | None) -> None:
        super().__init__()
        self.growth = growth
        self.epochs: list[Epoch] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        reports = self.growth.history if self.growth else ()
        growing = sum(report.seconds for report in reports if report.epoch == epoch)
        self.epochs.append(
            Epoch(
                parameters=self.model.count_params(),
                loss=float(logs["val_loss"]),
                accuracy=float(logs["val_accuracy"]),
                seconds=time.perf_counter() - self.start + growing,
            )
        )


def run_grown(options: Options, data: Data) -> Run:
    """Trains a small network that grows wider and deeper on the way, in one `fit`."""
    schedule: dict[int, list[n2n.Wider | n2n.Deeper]] = {}
    schedule.setdefault(options.widen_at, []).append(n2n.Wider(factor=options.factor))
    schedule.setdefault(options.deepen_at, []).append(n2n.Deeper(f"conv{len(FILTERS)}"))
    growth = n2n.GrowthScheduler(schedule, seed=options.seed, learning_rate=options.rate_at_growth)
    before, after = _Probe(schedule, data), _Probe(schedule, data)
    run = _train(FILTERS, options, data, growth=growth, callbacks=[before, growth, after])
    growths = tuple(
        Growth(
            epoch=epoch,
            kind=" and ".join(
                "wider" if isinstance(operation, n2n.Wider) else "deeper"
                for operation in operations
            ),
            parameters=report.parameters_after,
            loss_before=before.losses[epoch],
            loss_after=after.losses[epoch],
        )
        for (epoch, operations), report in zip(
            sorted(schedule.items()), growth.history, strict=True
        )
    )
    return dataclasses.replace(run, growths=growths)


def run_from_scratch(options: Options, data: Data, grown: keras.Model) -> Run:
    """Trains the architecture that `grown` has in the end from new weights, for as many steps."""
    filters = [layer.filters for layer in grown.layers if isinstance(layer, keras.layers.Conv2D)]
    return _train(filters, options, data)


def _train(
    filters: Sequence[int],
    options: Options,
    data: Data,
    growth: n2n.GrowthScheduler | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Run:
    keras.utils.set_random_seed(options.seed)
    model = network.build(data.x_train.shape[1:], data.classes, filters)
    model.compile(
        optimizer=keras.optimizers.Adam(options.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    log = _Log(growth)
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=options.batch_size,
        epochs=options.epochs,
        validation_data=(data.x_test, data.y_test),
        validation_batch_size=VALIDATION_BATCH_SIZE,
        callbacks=[*callbacks, log],
    )
    return Run(model, tuple(log.epochs))
