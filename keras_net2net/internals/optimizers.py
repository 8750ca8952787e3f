"""Optimizers: their parts, progress, learning rate, and weight decay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_net2net.internals.tracking import keras_untracked, overridden


def held_optimizers(model: Any) -> list[Any]:
    """The optimizers that a model holds beside the one that it was compiled with.

    A model with a `train_step` of its own may have one for each of its parts.
    """
    found = {}
    for value in vars(model).values():
        items = value.values() if isinstance(value, dict) else value
        for one in items if isinstance(value, (list, tuple, dict)) else [value]:
            if isinstance(one, keras.optimizers.Optimizer):
                found[id(one)] = one
    main = getattr(model, "optimizer", None)
    inner = [] if main is None else optimizer_parts(main)
    return [one for one in found.values() if not any(one is part for part in inner)]


def optimizer_parts(optimizer: Any) -> list[Any]:
    """An optimizer, and those inside it: `LossScaleOptimizer` and `MultiOptimizer` hold others.

    The one of the first is public, those of the second are so only as a list that
    it doesn't have before Keras 3.13.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    held = [inner] if inner is not None else getattr(optimizer, "_inner_optimizers", ())
    return [optimizer, *(part for one in held for part in optimizer_parts(one))]


def optimizer_variables(optimizer: Any) -> list[Any] | None:
    """The model variables that an optimizer was built for, or `None`.

    An optimizer offers its own variables, not those that it updates. One that holds
    another keeps no list of them up to Keras 3.10 at least: the inner one does.
    """
    if not optimizer.built:
        return None
    known = {id(v): v for part in optimizer_parts(optimizer) for v in part._trainable_variables}
    return list(known.values())


def reset_optimizer(optimizer: Any, variables: list[Any]) -> None:
    """Builds an optimizer again, for other variables, keeping its progress.

    Keras says "recreate a new optimizer instance", but the user holds this one.
    Its own `build` makes the new slots. The step count and the learning rate are
    variables made by the constructor: they stay, all other variables go.
    """
    parts = optimizer_parts(optimizer)
    names = ("step_counter", "dynamic_scale") if hasattr(optimizer, "dynamic_scale") else ()
    kept = {name: getattr(optimizer, name) for name in names}
    for part in parts:  # `build` of the outer one builds the inner ones
        _forget_slots(part)
    with _zeros_uncompiled(parts):
        optimizer.build(variables)
    for name, variable in kept.items():
        getattr(optimizer, name).assign(keras.ops.convert_to_tensor(variable))
    for part in parts:
        if part.built and part.use_ema:
            # They start at zero, and the first step makes them the weights; but it has
            # been. What is left of the zeros would end up in the model.
            for average, variable in zip(
                part._model_variables_moving_average, part._trainable_variables, strict=True
            ):
                if average is not None:
                    average.assign(keras.ops.copy(variable))  # JAX would share the buffer


def _zeros_uncompiled(parts: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
    """Lets slots that start at zero do so without a program of their own.

    JAX compiles one that makes zeros for each shape, and keeps it for good: megabytes,
    and tens of milliseconds, for every growth. On a CPU an array of NumPy costs less; on
    another device, where it would have to be sent there, the program is the lesser evil.
    """

    def adding(optimizer: Any) -> Callable[..., Any]:
        made = optimizer.add_variable

        def add_variable(shape: Any, initializer: Any = "zeros", *args: Any, **kwargs: Any) -> Any:
            return made(shape, _zeros if initializer == "zeros" else initializer, *args, **kwargs)

        return add_variable

    needed = keras.backend.backend() == "jax" and _on_cpu()
    return overridden(parts if needed else (), "add_variable", adding)


def _on_cpu() -> bool:
    import jax

    return bool(jax.default_backend() == "cpu")


def _zeros(shape: Any, dtype: Any = None) -> Any:
    import jax

    # `device_put` compiles nothing, `jax.numpy.asarray` does; its dtypes know bfloat16.
    return jax.device_put(np.zeros(shape, jax.numpy.dtype(dtype)))


def _forget_slots(optimizer: Any) -> None:
    """Leaves an optimizer as its constructor made it, but for the progress."""
    progress = set(map(id, progress_of(optimizer)))
    _track(optimizer, [v for v in optimizer._variables if id(v) in progress])
    optimizer._trainable_variables_indices = {}
    optimizer.built = False


def progress_of(optimizer: Any) -> list[Any]:
    """The variables that an optimizer's constructor makes."""
    rate = optimizer._learning_rate
    return [optimizer._iterations, *([rate] if isinstance(rate, keras.Variable) else [])]


def _track(optimizer: Any, variables: list[Any]) -> None:
    """Gives an optimizer another list of its variables.

    The list is a new one. TensorFlow wraps it, keeps a copy, and refuses to export a
    list from which something was removed.
    """
    tracker = optimizer._tracker
    with keras_untracked():
        optimizer._variables = variables
    is_variable, _ = tracker.config["variables"]
    tracker.config["variables"] = (is_variable, optimizer._variables)
    tracker.stored_ids["variables"] = set(map(id, optimizer._variables))


def steps_done(optimizer: Any) -> int:
    """The number of steps of an optimizer, or of the innermost of several."""
    return steps_of(optimizer_parts(optimizer)[-1])


def set_steps_done(optimizer: Any, steps: int) -> None:
    """Puts an optimizer forward: `iterations` can't be set in public with accumulation."""
    for part in optimizer_parts(optimizer):
        part._iterations.assign(steps)


def learning_rate_of(optimizer: Any) -> Any:
    """The learning rate as the optimizer holds it: a variable, a schedule or a callable.

    `optimizer.learning_rate` evaluates a schedule at the current step.
    """
    return optimizer._learning_rate


def set_learning_rate(optimizer: Any, rate: Any) -> None:
    """Replaces a learning rate by one of any kind.

    Keras's setter refuses a number in the place of a schedule. A number is a variable,
    which is tracked behind the number of iterations, where a loaded optimizer has it.
    """
    held = optimizer._learning_rate
    if not isinstance(rate, float):
        if isinstance(held, keras.Variable):
            _track(optimizer, [v for v in optimizer._variables if v is not held])
        optimizer._learning_rate = rate
        return
    if isinstance(held, keras.Variable):
        held.assign(rate)
        return
    with keras.name_scope(optimizer.name, caller=optimizer):
        made = keras.Variable(
            rate,
            name="learning_rate",
            dtype=keras.config.floatx(),
            trainable=False,
            aggregation="only_first_replica",
        )
    with keras_untracked():
        optimizer._learning_rate = made
    rest = [v for v in optimizer._variables if v is not optimizer._iterations]
    _track(optimizer, [optimizer._iterations, made, *rest])


def steps_of(optimizer: Any) -> int:
    """The number of steps as a schedule is told: with accumulation, of all batches."""
    return int(keras.ops.convert_to_numpy(optimizer._iterations))


def without_decay(optimizer: Any, variables: Iterable[Any]) -> list[Any]:
    """The variables that a user excluded from weight decay, one by one.

    Only their keys are kept, and on TensorFlow that of a grown variable is another.
    """
    keys = getattr(optimizer, "_exclude_from_weight_decay", None)
    return [v for v in variables if optimizer._var_key(v) in keys] if keys else []


def exclude_from_decay(optimizer: Any, variables: Iterable[Any]) -> None:
    """Excludes variables from weight decay, beside those that already are.

    Keras refuses to do so once an optimizer is built, and remembers what it decided.
    """
    known = getattr(optimizer, "_exclude_from_weight_decay", None)
    if known is not None:
        keys = {optimizer._var_key(variable) for variable in variables}
        optimizer._exclude_from_weight_decay = known | keys
    vars(optimizer).pop("_exclude_from_weight_decay_cache", None)


def copy_optimizer_state(source: Any, target: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Gives an optimizer of the same configuration the state of another one.

    Args:
        source: The optimizer.
        target: The one that gets its state.
        pairs: Each variable of the one model, with that of the other.
    """
    others = {id(one): other for one, other in pairs}
    known = optimizer_variables(source)
    if known is not None:
        reset_optimizer(target, [others[id(variable)] for variable in known])
    for one, other in zip(optimizer_parts(source), optimizer_parts(target), strict=True):
        if hasattr(one, "_exclude_from_weight_decay"):
            # Neither is part of the configuration.
            other._exclude_from_weight_decay = set()
            other._exclude_from_weight_decay_pattern = one._exclude_from_weight_decay_pattern
            excluded = without_decay(one, [variable for variable, _ in pairs])
            exclude_from_decay(other, [others[id(variable)] for variable in excluded])
    for one, other in zip(source.variables, target.variables, strict=known is not None):
        other.assign(keras.ops.copy(one))  # JAX would share the buffer
