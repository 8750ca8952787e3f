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

What can't be followed is registered, too, with the reason: `refuse`. Layers that
only put other layers together are opened instead: `opened`. So every layer of
Keras is in one of three states, and a new one that is in none is noticed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.widths.expressions import EXPRESSIONS, Expression, Fixed

Rule = Callable[..., Any]

FOLLOWED = "follows"  # a rule follows units through it
REFUSED = "refused"  # it fixes the units that reach it, for a reason that is known
OPENED = "opened"  # the layers and operations inside it are followed

_BY_CLASS: dict[type, Rule] = {}
_BY_OPERATION: dict[str, Rule] = {}
_FUNCTIONS: dict[str, str] = {}  # the operations' keys, and the functions' own names
_OPENED: dict[type, str] = {}  # what is opened, with what is inside
_SETTINGS: dict[type, Callable[..., None]] = {}  # what says which settings of these follow units

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
    >>> @n2n.rules.register_rule(Scale)
    ... def scale(call, x):
    ...     call.weight("gamma", n2n.rules.follows(x[-1]))
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
        if isinstance(target, type):
            _BY_CLASS[target] = rule
            continue
        name = function_name(target)
        if name is None:
            raise ValueError(
                "A rule is registered for a layer class or for a function of `keras.ops`. "
                f"Received: {target!r}"
            )
        key = internals.operation_key(target.__name__)
        _BY_OPERATION[key] = rule
        _FUNCTIONS[key] = name


def function_name(target: Any) -> str | None:
    """The name of a public operation below `keras.ops`: `"relu"`, `"image.resize"`."""
    name = str(getattr(target, "__name__", ""))
    if callable(target) and getattr(keras.ops, name, None) is target:
        return name
    if callable(target) and getattr(keras.ops.image, name, None) is target:
        return f"image.{name}"
    return None


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The rule of what can't be followed: it fixes all units, and says why.

    Args:
        why: What it does with them, to complete the sentence `"the layer ..."`.
    """

    why: str

    def __call__(self, call: Any, *args: Any, **kwargs: Any) -> list[tuple[Expression, ...]]:
        """Fixes the axes of all inputs; those of the outputs have fixed sizes."""
        call.fix(_axes_in((args, kwargs)), self.why)
        obstacle = call.obstacle(self.why)
        return [tuple(Fixed(size, obstacle) for size in shape) for shape in call.output_shapes]


def _axes_in(nested: Any) -> list[Expression]:
    """All width expressions in the arguments of a rule."""
    if isinstance(nested, EXPRESSIONS):
        return [nested]
    if isinstance(nested, dict):
        nested = nested.values()
    elif not isinstance(nested, (list, tuple)):
        return []
    return [axis for part in nested for axis in _axes_in(part)]


def refuse(why: str, *targets: Any) -> None:
    """Registers that what some layers or operations do to units can't be followed.

    Args:
        why: What they do, to complete the sentence `"the layer ..."`, e.g. `"sorts
            units by their value"`. It is shown to who asks to widen these units.
        *targets: Layer classes, or functions of `keras.ops`.
    """
    _register(Refusal(why), targets)


def opened(what: str, *targets: type, settings: Callable[..., None] | None = None) -> None:
    """Registers layer classes that are followed through what is inside them.

    Args:
        what: What they are made of, shown in the table of supported layers.
        *targets: Layer classes that compute nothing beside what their layers do.
        settings: Says which of their settings follow from widths: a function of the
            `RuleCall` and of the axes of each output. Defaults to `None`: none does.
    """
    for target in targets:
        _OPENED[target] = what
        if settings is not None:
            _SETTINGS[target] = settings


def settings_of(layer: Any) -> Callable[..., None] | None:
    """What says which settings of an opened layer follow from widths, if anything does."""
    return _SETTINGS.get(type(layer))


@dataclasses.dataclass(frozen=True)
class State:
    """What growth does with a layer class or operation.

    Args:
        kind: `"follows"`, `"refused"` or `"opened"`.
        summary: What happens to units, or the reason why it is refused.
    """

    kind: str
    summary: str


def state_of(target: Any) -> State | None:
    """The state of a layer class or of a `keras.ops` function.

    Args:
        target: The class, or the function.

    Returns:
        Its state, or `None` where nothing is registered for it.
    """
    if isinstance(target, type):
        if target in _OPENED:
            return State(OPENED, _OPENED[target])
        rule = _BY_CLASS.get(target)
    else:
        rule = _BY_OPERATION.get(internals.operation_key(str(getattr(target, "__name__", ""))))
    return None if rule is None else describe(rule)


def describe(rule: Rule) -> State:
    """The state that a rule stands for."""
    if isinstance(rule, Refusal):
        return State(REFUSED, rule.why)
    return State(FOLLOWED, (rule.__doc__ or "a rule without a docstring").strip().splitlines()[0])


def needs_opening(layer: Any) -> bool:
    """Whether only what is inside a layer tells what it does.

    So it is without a rule; and with one for a wrapper that does to units what the layer
    in it does, if that one, a model say, has to be opened.
    """
    rule = rule_for(layer)
    if rule is None or not isinstance(layer, keras.layers.Wrapper):
        return rule is None
    return not isinstance(rule, Refusal) and needs_opening(layer.layer)


def rule_for(operation: Any) -> Rule | None:
    """The rule of a layer or operation, by the lookup order above."""
    cls = type(operation)
    if cls in _BY_CLASS:
        return _BY_CLASS[cls]
    for base in cls.__mro__[1:]:
        if base in _BY_CLASS:
            same = all(getattr(cls, name) is getattr(base, name) for name in _DECISIVE)
            return _BY_CLASS[base] if same else None
    if internals.is_keras_operation(operation):
        return _BY_OPERATION.get(internals.operation_key(cls.__name__))
    return None


def rules() -> Iterator[tuple[str, Rule]]:
    """Every registered layer class (by its name) and operation, with its rule."""
    for cls, rule in _BY_CLASS.items():
        yield cls.__name__, rule
    for key, rule in _BY_OPERATION.items():
        yield f"ops.{_FUNCTIONS[key]}", rule
