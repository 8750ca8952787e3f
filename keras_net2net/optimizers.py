"""The optimizer after a growth: its progress stays, its slots start again."""

from __future__ import annotations

from typing import Any

import keras

from keras_net2net import keras_privates as privates
from keras_net2net.errors import GrowthError, explain
from keras_net2net.transaction import Transaction

# The sizes of a schedule that are learning rates, by the names that Keras gives
# them; `alpha` and `decay_rate` are relative to these.
_RATES = ("initial_learning_rate", "end_learning_rate", "warmup_target", "values")


def update_optimizer(
    model: Any, inserted: list[Any], factor: float | None, transaction: Transaction
) -> None:
    """Fits the optimizer of a compiled model to its new variables.

    The optimizer stays the same object, with its number of iterations, its loss
    scale, and its learning rate or schedule. Its slots (moments and averages)
    start again.

    Args:
        model: The grown model.
        inserted: The variables of inserted layers.
        factor: What the learning rate is multiplied by; `None` keeps it.
        transaction: Remembers what is changed.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return
    parts = privates.optimizer_parts(optimizer)
    for part in parts:
        transaction.remember(part)
    known = privates.optimizer_variables(optimizer)
    if known is not None:
        wanted = {id(variable) for variable in (*known, *inserted)}
        with privates.variable_scope(model):
            privates.reset_optimizer(
                optimizer, [v for v in model.trainable_variables if id(v) in wanted]
            )
    if factor is not None:
        # One that holds others leaves the rate to them.
        for part in parts:
            if len(privates.optimizer_parts(part)) == 1:
                scale_learning_rate(part, factor, transaction)


def scale_learning_rate(optimizer: Any, factor: float, transaction: Transaction) -> None:
    """Multiplies the learning rate, be it a number or a schedule.

    Args:
        optimizer: The optimizer.
        factor: The factor; Chen et al. (2016, section 3) advise a tenth of the
            teacher's initial rate.
        transaction: Remembers the old rate.

    Raises:
        GrowthError: If the learning rate is a callable, or a schedule of an
            unknown form.
    """
    rate = privates.learning_rate_of(optimizer)
    if isinstance(rate, keras.Variable):
        before = keras.ops.convert_to_numpy(rate).copy()
        transaction.on_roll_back(lambda: rate.assign(before))
        rate.assign(before * factor)
        return
    privates.set_schedule(optimizer, scaled_schedule(rate, factor))


def scaled_schedule(schedule: Any, factor: float) -> Any:
    """The same schedule with all its learning rates multiplied.

    It is of the same class, so that a model saved with it loads anywhere.

    Args:
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`.
        factor: The factor.

    Returns:
        The new schedule.

    Raises:
        GrowthError: If it can't be scaled by its configuration.
    """
    problem = "it isn't a `LearningRateSchedule`"
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        config = dict(schedule.get_config())
        for key in _RATES:
            value = config.get(key)
            if isinstance(value, (list, tuple)):
                config[key] = [rate * factor for rate in value]
            elif value is not None:
                config[key] = value * factor
        scaled = type(schedule).from_config(config)
        steps = (0, 1, 7, 100, 5000)
        if all(_close(float(scaled(s)), factor * float(schedule(s))) for s in steps):
            return scaled
        problem = f"its rates aren't among {', '.join(_RATES)}"
    raise GrowthError(
        explain(
            f"The optimizer's learning rate ({type(schedule).__name__}) can't be scaled",
            problem,
            f"learning_rate={factor!r}",
            "Pass `learning_rate=None`, and compile the grown model with a schedule of its own",
        )
    )


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-5 * max(abs(a), abs(b)) + 1e-12
