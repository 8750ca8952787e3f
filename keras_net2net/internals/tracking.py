"""What Keras wraps and tracks when an attribute is set, and how to keep it from that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keras.src.utils.tracking import DotNotTrackScope


def keras_untracked() -> contextlib.AbstractContextManager[None]:
    """Keeps Keras from wrapping and tracking attributes that are set inside."""
    scope: contextlib.AbstractContextManager[None] = DotNotTrackScope()
    return scope


@contextlib.contextmanager
def overridden(things: Iterable[Any], name: str, own: Callable[[Any], Any]) -> Iterator[None]:
    """Lets layers, models or optimizers have a method of their own inside.

    Keras calls `self.call` and its like, which an attribute of the instance can stand
    before; there are no hooks. It is set past Keras, which would track it.

    Args:
        things: The objects.
        name: The name of the method.
        own: Makes the method of an object.
    """
    changed = []
    try:
        for thing in things:
            vars(thing)[name] = own(thing)
            changed.append(thing)
        yield
    finally:
        for thing in changed:
            del vars(thing)[name]


def unwrapped(container: Any) -> Any:
    """The built-in list or dict inside one that TensorFlow wraps to track what it holds.

    Such a wrapper passes for a list or dict, but what the built-in methods see of
    it isn't what it holds.
    """
    return getattr(container, "__wrapped__", getattr(container, "_storage", container))
