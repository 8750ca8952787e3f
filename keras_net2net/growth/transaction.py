"""Undoing: what a failed growth changed is put back, bit for bit.

The values of variables are never overwritten during a growth (a grown variable
gets a new value, and keeps the old one untouched until the end), so it is enough
to remember attributes, and the contents of the containers they hold. The same serves
to undo a growth later, once it has not paid.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from keras_net2net import internals

_CONTAINERS = (list, dict, set)

_around: contextvars.ContextVar[Transaction | None] = contextvars.ContextVar("around", default=None)


class Transaction:
    """Remembers objects before they change.

    As a context, it puts them back if anything fails inside, and commits otherwise.

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
        self._undo: list[_Memory | Callable[[], None]] = []
        self._seen: set[int] = set()

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.commit() if kind is None else self.roll_back()

    def remember(self, *things: Any) -> None:
        """Remembers the attributes of objects, and what their containers hold."""
        for part in (part for thing in things for part in internals.state_parts(thing)):
            if id(part) in self._seen:
                continue
            self._seen.add(id(part))
            attributes = vars(part)
            saved = dict(attributes)
            contents = [(value, _copy(value)) for value in saved.values() if _holds(value)]
            self._undo.append(_Memory(attributes, saved, contents))

    def on_roll_back(self, undo: _Memory | Callable[[], None]) -> None:
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
            for undo in self._undo:
                whole.on_roll_back(undo)
        self._undo = []

    def settle(self) -> None:
        """Forgets what has not been changed so far.

        A rollback that comes later then leaves alone what others have changed since.
        """
        for undo in self._undo:
            if isinstance(undo, _Memory):
                undo.settle()

    def roll_back(self) -> None:
        """Puts everything back, the last change first.

        Other orders fail: what is undone by running code (a flag that a setter hands down, a
        value that is assigned) needs its objects as they were when it was done, and those may
        have been remembered again since, by an attempt inside that was given up.
        """
        while self._undo:
            self._undo.pop()()


@dataclasses.dataclass(eq=False)
class _Memory:
    """What the attributes of one object were.

    Args:
        attributes: The object's own dict.
        saved: The attributes to put back.
        contents: Containers among them, and what they held.
        added: The attributes to remove; `None` for all that aren't saved.
    """

    attributes: dict[str, Any]
    saved: dict[str, Any]
    contents: list[tuple[Any, Any]]
    added: list[str] | None = None

    def __call__(self) -> None:
        if self.added is None:
            self.attributes.clear()
        for name in self.added or ():
            self.attributes.pop(name, None)
        self.attributes.update(self.saved)
        for container, content in self.contents:
            _refill(container, content)

    def settle(self) -> None:
        now = self.attributes
        self.added = [name for name in now if name not in self.saved]
        self.saved = {
            name: value
            for name, value in self.saved.items()
            if name not in now or now[name] is not value
        }
        self.contents = [
            (container, content)
            for container, content in self.contents
            if not _same(_copy(container), content)
        ]


def _holds(value: Any) -> bool:
    return isinstance(value, _CONTAINERS)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        # One level more: a tracker keeps its sets of ids in a dict.
        return {key: (item, _copy(item) if _holds(item) else None) for key, item in value.items()}
    return list(value) if isinstance(value, list) else set(value)


def _same(first: Any, second: Any) -> bool:
    """Whether two copies of contents are equal, object for object."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            first[key][0] is second[key][0] and _same(first[key][1], second[key][1])
            for key in first
        )
    if isinstance(first, list) and isinstance(second, list):
        return [*map(id, first)] == [*map(id, second)]
    if isinstance(first, set) and isinstance(second, set):
        return first == second
    return first is second


def _refill(container: Any, content: Any) -> None:
    container = internals.unwrapped(container)
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
