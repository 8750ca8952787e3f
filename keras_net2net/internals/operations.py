"""Operations: which class belongs to which `keras.ops` function, and their settings."""

from __future__ import annotations

import sys
from typing import Any

import keras


def is_keras_operation(operation: Any) -> bool:
    """Whether an operation is one of Keras's own `keras.ops`.

    Their classes aren't exported; only the functions are. A user's class of the
    same name must not be taken for one.
    """
    return type(operation).__module__.startswith("keras.src.ops.")


# Three classes of operations aren't named as their functions are.
_OTHERWISE_NAMED = {
    "batchnorm": "batchnormalization",
    "layernorm": "layernormalization",
    "rmsnorm": "rmsnormalization",
}


def operation_key(name: str) -> str:
    """What the name of a `keras.ops` function and that of its class have in common.

    A function such as `leaky_relu` records an instance of the class `LeakyRelu`;
    only the names tell that they belong together.
    """
    key = name.replace("_", "").lower()
    return _OTHERWISE_NAMED.get(key, key)


def operation_classes() -> dict[str, type]:
    """The classes of all operations that a `keras.ops` function may record, by key."""
    return {
        operation_key(name): cls
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("keras.src.ops.")
        for name, cls in vars(module).items()
        if isinstance(cls, type)
        and issubclass(cls, keras.Operation)
        and cls.__module__ == module.__name__
    }


def set_setting(operation: Any, key: str, value: Any) -> None:
    """Gives a layer or operation another value of a setting.

    An operation, or a layer without a `get_config` of its own, is saved with what
    its constructor was given, which Keras keeps beside the attributes.
    """
    setattr(operation, key, value)
    given = getattr(operation, "_auto_config", None)
    if given is not None and key in given.config:
        changed = type(given)(**{**given.config, key: value})
        vars(operation)["_auto_config"] = changed


def is_called_once(operation: Any) -> bool:
    """Whether there is one record of a call of the operation."""
    return len(operation._inbound_nodes) == 1
