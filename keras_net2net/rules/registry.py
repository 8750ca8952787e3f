"""The rule book: which rule says what an operation does with units.

A rule is one plain function. It gets a `RuleCall` and the arguments of the call
with a tuple of width expressions, one for each axis, in the place of each
tensor; it returns the expressions of the outputs, or `None` where it can't say.

Lookup order:

1. the rule registered for the operation's own class;
2. for a subclass that overrides none of the methods that decide what is
   computed, the rule of its nearest base class that has one;
3. for Keras's own operations, the rule registered for the `keras.ops` function;
4. none: the operation fixes every width that reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_net2net import keras_privates as privates

Rule = Callable[..., Any]

_BY_CLASS: dict[type, Rule] = {}
_BY_OPERATION: dict[str, Rule] = {}
_FUNCTIONS: dict[str, str] = {}  # the operations' keys, and the functions' own names

# A subclass that changes one of these may compute something else.
_DECISIVE = ("call", "build", "compute_output_shape", "compute_output_spec", "__call__")


def register_rule(*targets: Any, like: type | None = None) -> Callable[[Rule], Rule]:
    """Registers the rule of a layer class or of a `keras.ops` function.

    Args:
        *targets: Layer classes, or functions of `keras.ops`.
        like: A class that has a rule, which then serves for `targets` too. The
            decorator needs no function in this case.

    Returns:
        A decorator that registers a function and returns it.

    Raises:
        ValueError: If `like` has no rule, or a target is neither a class nor a
            function of `keras.ops`.

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> class Scale(keras.Layer):
    ...     def build(self, input_shape):
    ...         self.gamma = self.add_weight(shape=(input_shape[-1],), name="gamma")
    ...     def call(self, x):
    ...         return x * self.gamma
    >>> @n2n.register_rule(Scale)
    ... def scale(call, x):
    ...     call.weight("gamma", n2n.follows(x[-1]))
    ...     return x
    """
    if like is not None:
        if like not in _BY_CLASS:
            raise ValueError(
                f"{like.__name__} has no rule that others could use. Received: like={like}. "
                "Register a rule for it first."
            )
        _register(_BY_CLASS[like], targets)

    def decorate(rule: Rule) -> Rule:
        _register(rule, targets)
        return rule

    return decorate


def _register(rule: Rule, targets: tuple[Any, ...]) -> None:
    for target in targets:
        name = str(getattr(target, "__name__", ""))
        if isinstance(target, type):
            _BY_CLASS[target] = rule
        elif callable(target) and getattr(keras.ops, name, None) is target:
            _BY_OPERATION[_squash(name)] = rule
            _FUNCTIONS[_squash(name)] = name
        else:
            raise ValueError(
                "A rule is registered for a layer class or for a function of `keras.ops`. "
                f"Received: {target!r}"
            )


def _squash(name: str) -> str:
    """`"leaky_relu"` and `"LeakyRelu"`, the function and its class, as one key."""
    return name.replace("_", "").lower()


def rule_for(operation: Any) -> Rule | None:
    """The rule of a layer or operation, by the lookup order above."""
    cls = type(operation)
    if cls in _BY_CLASS:
        return _BY_CLASS[cls]
    for base in cls.__mro__[1:]:
        if base in _BY_CLASS:
            same = all(getattr(cls, name) is getattr(base, name) for name in _DECISIVE)
            return _BY_CLASS[base] if same else None
    if privates.is_keras_operation(operation):
        return _BY_OPERATION.get(_squash(cls.__name__))
    return None


def rules() -> Iterator[tuple[str, Rule]]:
    """Every registered layer class (by its name) and operation, with its rule."""
    for cls, rule in _BY_CLASS.items():
        yield cls.__name__, rule
    for key, rule in _BY_OPERATION.items():
        yield f"ops.{_FUNCTIONS[key]}", rule
