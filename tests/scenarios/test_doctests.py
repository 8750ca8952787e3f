"""The examples in the docstrings run, and show what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import keras_net2net as n2n

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(n2n.__path__, "keras_net2net.")
    if not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", ["keras_net2net", *MODULES])
def test_the_examples_of_a_module_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_every_function_and_operation_that_is_public_shows_an_example():
    missing = []
    for name in n2n.__all__:
        thing = getattr(n2n, name)
        has_arguments = "Args:" in (inspect.getdoc(thing) or "")
        shown = not inspect.isclass(thing) or issubclass(thing, (n2n.Wider, n2n.Deeper))
        if shown and has_arguments and ">>>" not in inspect.getdoc(thing):
            missing.append(name)
    assert missing == []
