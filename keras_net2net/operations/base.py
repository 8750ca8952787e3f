"""What all operations share: their interface."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.errors import GrowthError, receiving
from keras_net2net.operations.select import fixed_request
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.plan import Skipped, Step


class Operation(abc.ABC):
    """One thing to do to a model."""

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether the operation preserves the function of the model."""

    @property
    def looks_at_model(self) -> bool:
        """Whether planning it takes the weights or activations of the model.

        All operations before it are then done before it is planned, so that the layers
        of its draft, and their weights, are those that it will change.
        """
        return False

    @property
    def ends_stage(self) -> bool:
        """Whether it is carried out before the operations behind it are planned.

        They then find the layers that it inserts as they are, whatever these are made of.
        """
        return False

    def __post_init__(self) -> None:
        with receiving(repr(self)):
            self._check()

    def _check(self) -> None:  # noqa: B027 - most have something to check
        """Checks the arguments, and puts them into their plain form."""

    def steps(self, draft: Draft) -> list[Step]:
        """Does the operation to a draft, as `draft` does; errors say what was received."""
        with receiving(repr(self)):
            return self.draft(draft)

    @abc.abstractmethod
    def draft(self, draft: Draft) -> list[Step]:
        """Does the operation to a draft.

        Args:
            draft: The draft; it is changed.

        Returns:
            What was done.

        Raises:
            GrowthError: If it can't be done.
        """

    def by_path(self, draft: Draft) -> Operation:
        """The same operation with paths in the place of the layer objects of a draft."""
        paths = {id(facts.operation): facts.path for facts in draft.layers()}
        return type(self).from_config({**vars(self), "layers": plain(vars(self)["layers"], paths)})

    def _set(self, **arguments: Any) -> None:
        """Puts arguments into their plain form, once they have been checked."""
        for name, value in arguments.items():
            object.__setattr__(self, name, value)  # the dataclasses are frozen

    def _set_each(self, name: str, what: str, check: Callable[[Any, str], Any]) -> None:
        """Puts numbers into their plain form: those of a dict of layers, and an argument.

        Args:
            name: The argument that says the number for all layers, if there is no dict.
            what: What the numbers are, for error messages.
            check: From a number, and what it is, to its plain form.
        """
        layers, value = vars(self)["layers"], vars(self)[name]
        if isinstance(layers, dict):
            given = layers.items()
            layers = {layer: check(one, f"{what} of {plain(layer)!r}") for layer, one in given}
        if value is not None:
            value = check(value, f"`{name}`")
        self._set(layers=fixed_request(layers), **{name: value})

    def get_config(self) -> dict[str, Any]:
        """The arguments but for data, ready to be written as JSON; layers become names."""
        return {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if field.repr  # data isn't part of a configuration
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Operation:
        """The operation with these arguments."""
        return cls(**config)

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        shown = []
        for field in fields:
            value = getattr(self, field.name)
            if not field.repr:  # data
                continue
            if field.name == "layers":
                if value is not None:
                    shown.append(repr(plain(value)))
            elif type(value) is not type(field.default) or value != field.default:
                named = plain(value)
                named = tuple(named) if isinstance(value, tuple) else named
                shown.append(f"{field.name}={named!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def plain(value: Any, paths: Mapping[int, str] | None = None) -> Any:
    """A value with the names of layers, or given paths, in the place of layers and tensors."""
    if isinstance(value, keras.Operation):
        return (paths or {}).get(id(value), value.name)
    if isinstance(value, keras.KerasTensor):
        return plain(internals.maker_of(value), paths)
    if isinstance(value, dict):
        return {plain(key, paths): plain(item, paths) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, paths) for item in value]
    return value


def as_operations(operations: Any) -> list[Operation]:
    """Checks and flattens what a user gives as operation(s).

    Args:
        operations: An operation, or a (nested) list of operations.

    Returns:
        A flat list.

    Raises:
        GrowthError: If something in it isn't an operation.
    """
    if isinstance(operations, Operation):
        return [operations]
    if isinstance(operations, (list, tuple)) and operations:
        return [one for item in operations for one in as_operations(item)]
    raise GrowthError(
        "There is nothing that the model could be grown by",
        "an operation, or a list of operations, is needed",
        "Pass for example `Wider('conv1', units=64)` or `[Wider(factor=1.5), Deeper('conv2')]`",
        received=f"{operations!r} (of type {type(operations).__name__})",
    )


def reasons(skipped: list[Skipped]) -> str:
    """Why layers were skipped, for an error message."""
    return "; ".join(f"{skip.path}: {skip.reason}" for skip in skipped[:8])
