"""Undoing: what a failed growth changed is put back, bit for bit.

The values of variables are never overwritten during a growth (a grown variable
gets a new value, and keeps the old one untouched until the end), so it is enough
to remember attributes, and the contents of the containers they hold.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

from keras_net2net import keras_privates as privates

_CONTAINERS = (list, dict, set)

_around: contextvars.ContextVar[Transaction | None] = contextvars.ContextVar("around", default=None)


class Transaction:
    """Remembers objects before they change.

    Example:

    >>> class Thing:
    ...     pass
    >>> thing = Thing()
    >>> thing.items = [1]
    >>> transaction = Transaction()
    >>> transaction.remember(thing)
    >>> thing.items.append(2)
    >>> transaction.roll_back()
    >>> thing.items
    [1]
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._seen: set[int] = set()

    def remember(self, thing: Any) -> None:
        """Remembers the attributes of an object, and what their containers hold."""
        for part in privates.state_parts(thing):
            if id(part) in self._seen:
                continue
            self._seen.add(id(part))
            attributes = vars(part)
            saved = dict(attributes)
            contents = [(value, _copy(value)) for value in saved.values() if _holds(value)]
            self._undo.append(functools.partial(_restore, attributes, saved, contents))

    def on_roll_back(self, undo: Callable[[], None]) -> None:
        """Adds something to do in a rollback."""
        self._undo.append(undo)

    @classmethod
    @contextlib.contextmanager
    def around(cls) -> Iterator[Transaction]:
        """Makes one of several: whatever fails inside undoes them all."""
        whole = cls()
        token = _around.set(whole)
        try:
            yield whole
        except BaseException:
            whole.roll_back()
            raise
        finally:
            _around.reset(token)

    def commit(self) -> None:
        """Forgets what was before, or leaves it to the transaction around this one."""
        whole = _around.get()
        if whole is not None:
            whole._undo += self._undo
        self._undo = []

    def roll_back(self) -> None:
        """Puts everything back, the last change first."""
        while self._undo:
            self._undo.pop()()


def _holds(value: Any) -> bool:
    return isinstance(value, _CONTAINERS)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        # One level more: a tracker keeps its sets of ids in a dict.
        return {key: (item, _copy(item) if _holds(item) else None) for key, item in value.items()}
    return list(value) if isinstance(value, list) else set(value)


def _restore(
    attributes: dict[str, Any], saved: dict[str, Any], contents: list[tuple[Any, Any]]
) -> None:
    attributes.clear()
    attributes.update(saved)
    for container, content in contents:
        _refill(container, content)


def _refill(container: Any, content: Any) -> None:
    container = privates.unwrapped(container)
    # The built-in methods: Keras's tracked containers override the others.
    if isinstance(container, dict):
        dict.clear(container)
        for key, (item, inner) in content.items():
            dict.__setitem__(container, key, item)
            if inner is not None:
                _refill(item, inner)
    elif isinstance(container, list):
        list.__setitem__(container, slice(None), content)
    else:
        set.clear(container)
        set.update(container, content)
