"""What becomes of the learning rate at a growth: factors, functions and policies.

Chen et al. (2016, section 3) go on with a tenth of the teacher's initial rate. A
policy is a callable `(old, report) -> new`; those here also serve schedules, whose
place a growth may change.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from keras_net2net.errors import GrowthError, real_number, receiving, whole_number
from keras_net2net.growth.report import GrowthReport

Schedule = keras.optimizers.schedules.LearningRateSchedule

# The sizes of a schedule that are learning rates, by the names that Keras gives
# them; `alpha` and `decay_rate` are relative to these.
_RATES = ("initial_learning_rate", "end_learning_rate", "warmup_target", "values")


class _Policy:
    """What the policies share: they are values, and can be written as JSON."""

    def __post_init__(self) -> None:
        with receiving(repr(self)):
            self._check()

    def _check(self) -> None:
        """Checks the arguments, and puts them into their plain form."""

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The policy with these arguments."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True)
class Rewind(_Policy):
    """Lets a learning rate schedule start again at a growth, or from another step.

    A grown model has new weights to learn, and a schedule that was made for the small
    one may have decayed. From the growth on, the schedule goes on from step `to`.

    Args:
        to: Integer, the step of the schedule from which it goes on. Defaults to `0`,
            its start.

    Raises:
        GrowthError: At the growth, if the learning rate isn't a schedule.

    Source: the restarts of Loshchilov and Hutter: SGDR (ICLR 2017, arXiv:1608.03983), and
        the rewinding of the learning rate of Renda et al. (ICLR 2020, arXiv:2003.02389),
        who do so after pruning.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(1)]
    ... )
    >>> schedule = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=1000)
    >>> model.compile(keras.optimizers.SGD(schedule), "mse")
    >>> _ = model.optimizer.iterations.assign(900)
    >>> _ = n2n.grow(model, n2n.Wider("fc", 12), learning_rate=n2n.Rewind())
    >>> round(float(model.optimizer.learning_rate), 6)
    0.1
    """

    to: int = 0

    def _check(self) -> None:
        number = whole_number(self.to, "`to`", least=0, kind="a step of the schedule")
        object.__setattr__(self, "to", number)

    def __call__(self, old: Any, report: GrowthReport) -> Any:
        """The schedule from its new place on."""
        if not isinstance(old, Schedule):
            raise GrowthError(
                "The learning rate can't be rewound",
                "only a `LearningRateSchedule` has a place to go back to",
                "Compile the model with a schedule, pass a factor, or a callable that "
                "returns the rate to go on with, such as `lambda old, report: 0.1`",
                received=f"{self!r}, and a learning rate of {old!r}",
            )
        shift = (report.step or 0) - self.to
        base = old.schedule if isinstance(old, Rewound) else old
        return Rewound(base, shift) if shift else base


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True)
class Rewarm(_Policy):
    """Warms the learning rate up again after a growth.

    It falls to a fraction of what it would be, and rises in equal steps to the whole of
    it: time for an optimizer whose moments start again to know the new gradients.

    A rate that is a number becomes a schedule by this, which callbacks that set the rate
    (`LearningRateScheduler`, `ReduceLROnPlateau`) can't work with.

    Args:
        steps: Integer, how many steps it takes.
        start: Float, the fraction at the first step. Defaults to `0.1`.

    Raises:
        GrowthError: If an argument isn't possible.

    Source: the gradual warm-up of Goyal et al. (2017, arXiv:1706.02677, section 2.2).

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(1)]
    ... )
    >>> model.compile(keras.optimizers.SGD(0.1), "mse")
    >>> _ = n2n.grow(model, n2n.Wider("fc", 12), learning_rate=n2n.Rewarm(100, start=0.5))
    >>> rate = model.optimizer.get_config()["learning_rate"]
    >>> rate["class_name"], round(float(model.optimizer.learning_rate), 6)
    ('Warming', 0.05)
    """

    steps: int
    start: float = 0.1

    def _check(self) -> None:
        steps = whole_number(self.steps, "`steps`", kind="a number of steps")
        start = real_number(self.start)
        if start is None or not 0 <= start < 1:
            raise GrowthError(
                f"`start` can't be {self.start!r}",
                "it is the fraction of the learning rate to start with",
                "Pass a number of at least 0 and below 1, such as 0.1",
            )
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "start", float(start))

    def __call__(self, old: Any, report: GrowthReport) -> Any:
        """A schedule that rises to the old rate."""
        at = report.step or 0
        if isinstance(old, Warming) and at >= old.begin + old.steps:
            old = old.rate  # that one is done
        if callable(old) and not isinstance(old, Schedule):
            raise GrowthError(
                "The learning rate can't be warmed up",
                f"it is a callable ({old!r}), which isn't told the step",
                "Compile the model with a number or a `LearningRateSchedule`",
                received=repr(self),
            )
        return Warming(old, at, self.steps, self.start)


@keras.saving.register_keras_serializable(package="keras_net2net")
class Rewound(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that counts its steps from another one on.

    Args:
        schedule: The schedule.
        shift: Integer, how many steps it is late. Negative: early.
    """

    def __init__(self, schedule: Any, shift: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.shift = int(shift)

    def __call__(self, step: Any) -> Any:
        """The rate at a step."""
        return self.schedule(step - self.shift)

    def scaled(self, factor: float) -> Rewound:
        """The same with all rates multiplied."""
        return Rewound(scaled_schedule(self.schedule, factor), self.shift)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "shift": self.shift}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Rewound:
        """The schedule with these arguments."""
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["shift"])


@keras.saving.register_keras_serializable(package="keras_net2net")
class Warming(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to what it is, in equal steps.

    Args:
        rate: A float, or a schedule.
        begin: Integer, the step at which it begins.
        steps: Integer, how many steps it takes.
        start: Float, the fraction at the first step.
    """

    def __init__(self, rate: Any, begin: int, steps: int, start: float) -> None:
        super().__init__()
        self.rate = rate
        self.begin = int(begin)
        self.steps = int(steps)
        self.start = float(start)

    def __call__(self, step: Any) -> Any:
        """The rate at a step."""
        done = keras.ops.cast(step - self.begin, "float32") / self.steps
        part = self.start + (1 - self.start) * keras.ops.clip(done, 0.0, 1.0)
        return part * (self.rate(step) if isinstance(self.rate, Schedule) else self.rate)

    def scaled(self, factor: float) -> Warming:
        """The same with all rates multiplied."""
        held = isinstance(self.rate, Schedule)
        rate = scaled_schedule(self.rate, factor) if held else self.rate * factor
        return Warming(rate, self.begin, self.steps, self.start)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        rate = self.rate
        if isinstance(rate, Schedule):
            rate = keras.optimizers.schedules.serialize(rate)
        return {"rate": rate, "begin": self.begin, "steps": self.steps, "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Warming:
        """The schedule with these arguments."""
        rate = config["rate"]
        if isinstance(rate, dict):
            rate = keras.optimizers.schedules.deserialize(rate)
        return cls(rate, config["begin"], config["steps"], config["start"])


def check_policy(policy: Any) -> None:
    """Checks what a user wants done to the learning rate.

    Raises:
        GrowthError: If it is none of what `new_rate` takes.
    """
    if policy is None or (callable(policy) and not isinstance(policy, (type, Schedule))):
        return
    if isinstance(policy, (list, tuple)) and policy:
        for one in policy:
            check_policy(one)
        return
    factor = real_number(policy)
    if factor is None or not 0 < factor < math.inf:
        raise GrowthError(
            "The learning rate can't be changed like that",
            "it is multiplied by a positive factor, or given by a callable of the old rate "
            "and the report, or by several of these",
            "Pass for example `learning_rate=0.1`, `Rewind()`, `lambda old, report: 0.01`, "
            "or `None` to keep the rate",
            received=f"learning_rate={policy!r}",
        )


def new_rate(policy: Any, old: Any, report: GrowthReport) -> Any:
    """The learning rate after a growth.

    Args:
        policy: A factor, a callable `(old, report) -> new`, or a list of these, one
            after the other. `None` keeps the rate.
        old: The rate before: a float, a schedule, or a callable.
        report: What the growth did; its `step` is the optimizer's.

    Returns:
        A float, a schedule, or a callable.

    Raises:
        GrowthError: If the rate can't be changed like that.
    """
    if policy is None:
        return old
    if isinstance(policy, (list, tuple)):
        for one in policy:
            old = new_rate(one, old, report)
        return old
    if not callable(policy):
        factor = float(policy)
        return old * factor if isinstance(old, float) else scaled_schedule(old, factor)
    new = policy(old, report)
    if new is old or callable(new):
        return new
    number = real_number(keras.ops.convert_to_numpy(new).item() if _is_scalar(new) else new)
    if number is None or not 0 <= number < math.inf:
        raise GrowthError(
            "The learning rate can't be what the callable returned",
            "it is a number of at least 0, or a `LearningRateSchedule`",
            "Let it return the new rate",
            received=f"{new!r} (of type {type(new).__name__}), returned by {policy!r}",
        )
    return float(number)


def _is_scalar(value: Any) -> bool:
    return keras.ops.is_tensor(value) and not len(value.shape)


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
    if isinstance(schedule, (Rewound, Warming)):
        return schedule.scaled(factor)
    problem = "it isn't a `LearningRateSchedule`"
    if isinstance(schedule, Schedule):
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
        f"The optimizer's learning rate ({type(schedule).__name__}) can't be scaled",
        problem,
        "Pass `learning_rate=None`, or a callable that returns the new schedule",
        received=f"learning_rate={factor!r}",
    )


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-5 * max(abs(a), abs(b)) + 1e-12
