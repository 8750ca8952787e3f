"""The two runs: a network that grows inside one `fit`, and its final architecture from scratch."""

from __future__ import annotations

import dataclasses
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import keras

import keras_net2net as n2n
from keras_net2net.demo import network
from keras_net2net.demo.data import Data

# The filters of the network that is grown, from the image up.
FILTERS = (16, 32)
# The same batches wherever the validation loss is measured: the same network has the same loss.
VALIDATION_BATCH_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Growth:
    """A growth, and the validation loss right before and right after it.

    Args:
        epoch: Integer, after how many epochs the network grew: the schedule's epoch, from 0.
        kind: String, `"wider"`, `"deeper"` or both.
        parameters_before: Integer, the parameters it grew from.
        parameters_after: Integer, the parameters it grew to.
        loss_before: Float, the validation loss right before: at the end of the last epoch.
        loss_after: Float, the validation loss measured again right after.
    """

    epoch: int
    kind: str
    parameters_before: int
    parameters_after: int
    loss_before: float
    loss_after: float


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Args:
        model: The trained network.
        parameters: Integers, the parameters of the network that was trained in each epoch.
        loss: Floats, the validation loss at the end of each epoch.
        accuracy: Floats, the validation accuracy at the end of each epoch.
        seconds: Floats, how long each epoch took, its growth, compilation and validation included.
        growths: The `Growth`s, in order; none for a run from scratch.
    """

    model: keras.Model
    parameters: list[int]
    loss: list[float]
    accuracy: list[float]
    seconds: list[float]
    growths: list[Growth] = dataclasses.field(default_factory=list)


def run_grown(options: Namespace, data: Data) -> Run:
    """Trains a small network that grows wider and deeper on the way, in one `fit`."""
    schedule: dict[int, list[Any]] = {options.widen_at: [n2n.Wider(factor=options.factor)]}
    schedule.setdefault(options.deepen_at, []).append(n2n.Deeper(f"conv{len(FILTERS)}"))
    growth = n2n.GrowthScheduler(schedule, seed=options.seed, learning_rate=options.rate_at_growth)
    losses: dict[int, float] = {}

    def measure(epoch: int, logs: Any) -> None:
        if epoch in schedule:
            losses[epoch] = growth.model.evaluate(*data.test, VALIDATION_BATCH_SIZE, verbose=0)[0]
            # Else the epoch that begins would count these images as its own.
            growth.model.reset_metrics()

    # It stands behind the growth in the list: the loss right after it.
    probe = keras.callbacks.LambdaCallback(on_epoch_begin=measure)
    run = _train(FILTERS, options, data, growth, probe)
    for epoch, report in zip(sorted(schedule), growth.history, strict=True):
        run.seconds[epoch] += report.seconds
        kind = " and ".join(type(operation).__name__.lower() for operation in schedule[epoch])
        parameters = report.parameters_before, report.parameters_after
        run.growths.append(Growth(epoch, kind, *parameters, run.loss[epoch - 1], losses[epoch]))
    return run


def run_from_scratch(options: Namespace, data: Data, grown: keras.Model) -> Run:
    """Trains the architecture that `grown` has in the end from new weights, for as many steps."""
    filters = [layer.filters for layer in grown.layers if isinstance(layer, keras.layers.Conv2D)]
    return _train(filters, options, data)


def _train(filters: Sequence[int], options: Namespace, data: Data, *callbacks: Any) -> Run:
    keras.utils.set_random_seed(options.seed)
    model = network.build(data.train[0].shape[1:], data.classes, filters)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(options.learning_rate), loss, metrics=["accuracy"])
    seconds: list[float] = []
    # Last in the list: so the probe, which stands before it, doesn't count.
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seconds.append(-time.perf_counter()),
        on_epoch_end=lambda epoch, logs: seconds.append(seconds.pop() + time.perf_counter()),
    )
    history = model.fit(
        *data.train,
        batch_size=options.batch_size,
        epochs=options.epochs,
        validation_data=data.test,
        validation_batch_size=VALIDATION_BATCH_SIZE,
        callbacks=[*callbacks, clock],
    ).history
    parameters = history.get("params", [model.count_params()] * options.epochs)
    return Run(model, parameters, history["val_loss"], history["val_accuracy"], seconds)
