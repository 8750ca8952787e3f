"""Random models under random operations: the function stays, or an error changes nothing.

The models and the check are in `tests/support/random_models/`; `benchmarks/fuzz.py` runs
thousands of them.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.support.helpers import BACKEND
from tests.support.random_models import (
    OLDER,
    Outcome,
    Seeded,
    check,
    double_precision,
    quick_initializers,
)

# An older Keras runs a few: what differs there is Keras's, and the rules are the same.
EXAMPLES = int(os.environ.get("RANDOM_GRAPHS", 25 if OLDER else 200))
FEW = 25 if BACKEND != "jax" else 10  # it compiles each


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    """A mistake can't hide behind rounding."""
    with double_precision(), quick_initializers():
        yield


class Drawn:
    """Choices that Hypothesis draws, and shrinks."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def below(self, limit: int) -> int:
        return self.draw(st.integers(0, limit - 1))


def runs(examples: int) -> Any:
    """How many examples Hypothesis draws, always the same ones."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=slow
    )


def grow_randomly(data: Any) -> None:
    # Models are built in the test, not in a strategy: Keras draws seeds with `random`.
    for kind in check(Drawn(data.draw), Outcome()).kinds:
        event(kind.split(":")[0])


# Layers that don't know masks say that they drop them, and that is all they do.
drops_masks = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")


@drops_masks
@runs(FEW)
@given(st.data())
def test_a_random_growth_preserves_a_random_model_or_changes_nothing(data):
    grow_randomly(data)


@pytest.mark.long
@drops_masks
@runs(EXAMPLES)
@given(st.data())
def test_many_random_growths_preserve_random_models_or_change_nothing(data):
    grow_randomly(data)


def test_the_same_seed_makes_the_same_example():
    first, second = Outcome(), Outcome()
    check(Seeded(3), first)
    check(Seeded(3), second)
    assert first.lines == second.lines
    assert first.kinds == second.kinds
