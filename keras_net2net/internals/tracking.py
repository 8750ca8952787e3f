"""What Keras wraps and tracks when an attribute is set, and how to keep it from that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def keras_untracked() -> Iterator[None]:
    """Keeps Keras from wrapping and tracking attributes that are set inside."""
    from keras.src.utils.tracking import DotNotTrackScope

    with DotNotTrackScope():
        yield


def unwrapped(container: Any) -> Any:
    """The built-in list or dict inside one that TensorFlow wraps to track what it holds.

    Such a wrapper passes for a list or dict, but what the built-in methods see of
    it isn't what it holds.
    """
    return getattr(container, "__wrapped__", getattr(container, "_storage", container))
