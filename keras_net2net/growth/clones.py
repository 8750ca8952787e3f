"""Copies of a model, grown or not, that share nothing with it."""

from __future__ import annotations

from typing import Any

from keras_net2net import internals
from keras_net2net.errors import GrowthError
from keras_net2net.growth.copying import copy_model
from keras_net2net.growth.grow import Options, check_arguments, copy_for, grow_model
from keras_net2net.operations.deeper.deeper import Deeper
from keras_net2net.operations.wider.wider import Wider


def clone(model: Any) -> Any:
    """A model with the same function and weights of its own.

    Args:
        model: A built `keras.Model`.

    Returns:
        A new model of the same class and name, uncompiled: weights are copied, the
        optimizer and its state are not.

    Raises:
        GrowthError: If the model isn't built, or isn't a graph of layers.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> twin = n2n.clone(model)
    >>> bool((twin.get_weights()[0] == model.get_weights()[0]).all())
    True
    """
    return copy_model(model)


def clone_and_grow(
    teacher: Any,
    operations: Any,
    *,
    seed: int | None = None,
    optimizer_state: str | None = None,
    learning_rate: Any = None,
    verify: Any = True,
    calibration: Any = None,
    freeze: str | None = None,
) -> Any:
    """A larger student that computes what its teacher computes.

    Args:
        teacher: A built `keras.Model`. It isn't changed.
        operations: An operation, or a list of operations.
        seed: See `grow`. Defaults to `None`.
        optimizer_state: `"carry"` or `"reset"`: the student is compiled as the teacher
            is, and its optimizer goes on from where the teacher's is, as in `grow`.
            Defaults to `None`: it is left uncompiled.
        learning_rate: See `grow`; for a student that is compiled. Defaults to `None`.
        verify: See `grow`. Defaults to `True`.
        calibration: See `grow`. Defaults to `None`.
        freeze: See `grow`. Defaults to `None`.

    Returns:
        The student. It shares nothing with the teacher.

    Raises:
        GrowthError: If the growth can't be done.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> teacher = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(2, name="out")]
    ... )
    >>> student = n2n.clone_and_grow(teacher, [n2n.Wider("fc", units=16), n2n.Deeper("fc")], seed=0)
    >>> teacher.count_params(), student.count_params()
    (58, 386)
    """
    options = Options(seed, optimizer_state or "reset", learning_rate, verify, calibration, freeze)
    return _student(teacher, operations, options, optimizer_state is not None)


def _student(teacher: Any, operations: Any, options: Options, compiled: bool) -> Any:
    """The student of `clone_and_grow`, compiled as its teacher is or not at all."""
    check_arguments(options.optimizer_state, options.learning_rate)
    student, named = copy_for(teacher, operations, options.calibration)
    if compiled:
        compile_like(student, teacher)
    grow_model(student, named, options, loss_of=teacher)
    return student


def compile_like(student: Any, teacher: Any) -> None:
    """Compiles a copy of a model as the model is, its optimizer's state included.

    Args:
        student: The copy.
        teacher: The model.

    Raises:
        GrowthError: If the model isn't compiled, or with something that can't be copied.
    """
    problem: Any = "it isn't compiled" if getattr(teacher, "optimizer", None) is None else None
    if problem is None:
        try:
            student.compile_from_config(teacher.get_compile_config())
        except Exception as error:
            problem = error
    if problem is not None or getattr(student, "optimizer", None) is None:
        raise GrowthError(
            f"The student can't be compiled as {teacher.name!r} is",
            f"{problem or 'its `compile` is its own'}",
            "Pass `optimizer_state=None` and compile the student, or register what the "
            "teacher was compiled with by `keras.saving.register_keras_serializable`",
            received="an `optimizer_state`",
        ) from (problem if isinstance(problem, Exception) else None)
    pairs = list(zip(teacher.variables, student.variables, strict=True))
    internals.copy_optimizer_state(teacher.optimizer, student.optimizer, pairs)


def net2wider(
    teacher: Any,
    layers: Any = None,
    units: int | None = None,
    *,
    seed: int | None = None,
    optimizer_state: str | None = None,
    learning_rate: Any = None,
    verify: Any = True,
    **options: Any,
) -> Any:
    """Net2WiderNet: a wider student that computes what its teacher computes.

    Args:
        teacher: The model to start from. It isn't changed.
        layers: Which layers, as in `Wider`; a dict from layers to units, say.
        units: The new number of units. Defaults to `None`.
        seed: See `grow`. Defaults to `None`.
        optimizer_state: See `clone_and_grow`. Defaults to `None`.
        learning_rate: See `clone_and_grow`. Defaults to `None`.
        verify: See `grow`. Defaults to `True`.
        **options: The other arguments of `Wider`: `factor`, `new_units`, ...

    Returns:
        The student, uncompiled unless `optimizer_state` says otherwise.

    Raises:
        GrowthError: If the growth can't be done.

    Source: Chen, Goodfellow, Shlens: Net2Net (ICLR 2016), section 2.2.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> teacher = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(2, name="out")]
    ... )
    >>> n2n.net2wider(teacher, {"fc": 32}, seed=0).get_layer("fc").units
    32
    """
    operation = Wider(layers, units, **options)
    how = Options(seed, optimizer_state or "reset", learning_rate, verify)
    return _student(teacher, operation, how, optimizer_state is not None)


def net2deeper(
    teacher: Any,
    layers: Any,
    count: int = 1,
    *,
    seed: int | None = None,
    optimizer_state: str | None = None,
    learning_rate: Any = None,
    verify: Any = True,
    **options: Any,
) -> Any:
    """Net2DeeperNet: a deeper student that computes what its teacher computes.

    Args:
        teacher: The model to start from. It isn't changed.
        layers: After which layers to insert, as in `Deeper`.
        count: How many layers to insert after each. Defaults to `1`.
        seed: See `grow`. Defaults to `None`.
        optimizer_state: See `clone_and_grow`. Defaults to `None`.
        learning_rate: See `clone_and_grow`. Defaults to `None`.
        verify: See `grow`. Defaults to `True`.
        **options: The other arguments of `Deeper`.

    Returns:
        The student, uncompiled unless `optimizer_state` says otherwise.

    Raises:
        GrowthError: If the growth can't be done.

    Source: Chen, Goodfellow, Shlens: Net2Net (ICLR 2016), section 2.3.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> teacher = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(2, name="out")]
    ... )
    >>> [layer.name for layer in n2n.net2deeper(teacher, "fc").layers]
    ['fc', 'fc_deeper_1', 'out']
    """
    operation = Deeper(layers, count, **options)
    how = Options(seed, optimizer_state or "reset", learning_rate, verify)
    return _student(teacher, operation, how, optimizer_state is not None)
