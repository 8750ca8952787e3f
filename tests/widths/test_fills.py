"""How widths grow that normalizations see: which new units fill, and with what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from keras_net2net.planning.remaps import COPY, ZERO, draw_bound
from keras_net2net.widths.expressions import Concat, Fixed, Obstacle, Product, Width
from keras_net2net.widths.facts import Normalized
from keras_net2net.widths.fills import fills_for
from keras_net2net.widths.treatments import MADE, Content

pytestmark = pytest.mark.pure

NORM = Obstacle("norm", "(LayerNormalization) normalizes over its units")


@dataclasses.dataclass
class Seen:
    """What is needed of an inference here: the normalizations."""

    normalized: list[Normalized]


def norm(expression, fill="mean", copies=True, content=MADE):
    return Normalized(expression, fill, copies, content, NORM)


def width(size=6, name="w"):
    return Width(name, size)


@pytest.mark.parametrize(
    ("size", "fill", "content", "chosen"),
    [
        (12, "mean", MADE, None),  # whole multiples are copied
        (9, "mean", MADE, "mean"),
        (9, "zero", MADE, "zero"),
        (13, "mean", MADE, "mean"),
        (12, "mean", Content(), None),
        (9, "zero", Content(None, "zero"), "zero"),
    ],
)
def test_units_are_copied_where_the_size_allows_and_fill_elsewhere(size, fill, content, chosen):
    w = width()
    fills, problems = fills_for(Seen([norm(w, fill, content=content)]), {w: size})
    assert (fills, problems) == ({w: chosen}, {})


@pytest.mark.parametrize(
    ("fill", "content"),
    [("mean", Content()), ("mean", Content(None, "zero")), ("zero", Content()), (None, MADE)],
    ids=["anything", "zeros where the mean is needed", "anything for zeros", "no fill at all"],
)
def test_a_size_that_is_not_possible_is_a_problem_that_names_those_that_are(fill, content):
    w = width()
    fills, problems = fills_for(Seen([norm(w, fill, content=content)]), {w: 9})
    assert fills == {}
    assert "whole multiples of its 6 units (12, 18, ...)" in problems[w]
    assert "norm (LayerNormalization)" in problems[w]


def test_a_width_that_no_normalization_sees_grows_freely():
    w, other = width(), width(4, "other")
    assert fills_for(Seen([norm(other)]), {w: 9}) == ({}, {})


def test_where_several_normalizations_see_a_width_they_have_to_agree():
    w = width()
    assert fills_for(Seen([norm(w, "mean"), norm(w, "zero")]), {w: 12}) == ({w: None}, {})
    fills, problems = fills_for(Seen([norm(w, "mean"), norm(w, "zero")]), {w: 9})
    assert fills == {}
    assert list(problems) == [w]


def test_a_norm_of_which_copies_would_be_part_takes_zeros_alone():
    w = width()
    for size in (9, 12):
        fills, problems = fills_for(Seen([norm(w, "zero", copies=False)]), {w: size})
        assert (fills, problems) == ({w: "only zero"}, {})
    _, problems = fills_for(Seen([norm(w, "zero", False, Content())]), {w: 12})
    assert "copies would add to the norm" in problems[w]


def test_parts_that_are_seen_together_grow_by_the_same_multiple():
    a, b = width(6, "a"), width(4, "b")
    seen = Seen([norm(Concat((a, b)))])
    assert fills_for(seen, {a: 12, b: 8}) == ({a: None, b: None}, {})
    for sizes in ({a: 12}, {a: 12, b: 12}, {a: 9, b: 6}):
        fills, problems = fills_for(seen, sizes)
        assert fills == {}
        assert set(problems) == set(sizes)
        assert "have to grow by the same whole multiple" in problems[a]


def test_factors_that_are_seen_together_grow_by_any_multiples():
    a, b = width(6, "a"), width(4, "b")
    seen = Seen([norm(Product((Fixed(3), a, b)))])
    assert fills_for(seen, {a: 12, b: 12}) == ({a: None, b: None}, {})
    assert set(fills_for(seen, {a: 9, b: 8})[1]) == {a, b}


@pytest.mark.parametrize(("old", "new"), [(6, 9), (6, 13), (4, 5), (1, 3), (5, 24)])
@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_as_many_units_are_copied_as_can_be_equally_often_and_the_others_fill(old, new, fill):
    remap = draw_bound(0, "w", old, new, fill)
    assert remap.size == new
    filled = remap.fill != COPY if remap.fill is not None else np.zeros(new, bool)
    copies = np.bincount(remap.index[~filled], minlength=old)
    assert set(copies) == {new // old}
    assert filled.sum() == new % old
    assert remap.kept == pytest.approx(1 - (new % old) / new)
    if fill == "zero" and new % old:
        assert set(remap.fill[filled]) == {ZERO}
    np.testing.assert_array_equal(remap.index[:old], np.arange(old))
    assert not remap.new[:old].any()


def test_where_copies_count_all_new_units_are_zero():
    remap = draw_bound(0, "w", 6, 18, "only zero")
    np.testing.assert_array_equal(remap.fill[6:], np.full(12, ZERO))
    np.testing.assert_array_equal(remap.fill[:6], np.full(6, COPY))
