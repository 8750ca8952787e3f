"""Messages of errors: their four parts, and that what is refused leaves the model as it was."""

from __future__ import annotations

import re

import keras
import pytest

import keras_net2net as n2n
from keras_net2net.errors import GrowthError
from tests.support.states import assert_state, state

FOUR_PARTS = re.compile(
    r"(?P<what>[^:]+): (?P<why>.+)\. Received: (?P<received>.+)[.?!] (?P<instead>.+[.?!])", re.S
)


def assert_explained(error: Exception, *content: str) -> dict[str, str]:
    """A message has its four parts, and somewhere in them what it must say."""
    parts = FOUR_PARTS.fullmatch(str(error))
    assert parts, f"not of four parts: {error}"
    for text in content:
        assert text in str(error)
    return parts.groupdict()


def refused(model: keras.Model, operation, kind: type[GrowthError], *content: str) -> str:
    """An operation that is refused with a full message, and leaves the model bit-equal."""
    before = state(model)
    with pytest.raises(kind) as caught:
        n2n.grow(model, operation, seed=0)
    assert type(caught.value) is kind
    assert_state(model, before)
    parts = assert_explained(caught.value, *content)
    assert parts["received"] == repr(operation)
    with pytest.raises(kind):
        n2n.plan(model, operation)
    return str(caught.value)
