"""Remaps: what is drawn, and what follows for axes made of several widths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_net2net.planning.remaps import (
    REMOVED,
    Remap,
    draw,
    generator,
    identity,
    remap_of,
    removal,
)
from keras_net2net.widths.expressions import Concat, Fixed, Product, Width, resolve

pytestmark = pytest.mark.pure


def size_of(expression, remaps):
    """The size of an axis once the widths have been remapped."""
    remap = remap_of(expression, remaps)
    return resolve(expression).size if remap is None else remap.size


def remap(index: list[int], old: int) -> Remap:
    return Remap(np.array(index), np.arange(len(index)) >= old, old)


def test_the_same_seed_and_name_draw_the_same_numbers_on_every_machine():
    # These are pinned: a change means that a seed no longer gives the student it gave before.
    rng = generator(0, "remap", "conv1", 4, 6)
    assert rng.integers(0, 1000, 6).tolist() == [832, 450, 682, 952, 190, 63]
    assert draw(0, "conv1", 4, 10).index.tolist() == [0, 1, 2, 3, 2, 1, 0, 3, 0, 1]
    assert draw(1, "conv1", 4, 10).index.tolist() == [0, 1, 2, 3, 3, 1, 2, 0, 2, 1]
    assert generator(7).random() == 0.0982520503869111


def test_numbers_depend_on_the_seed_and_on_each_name():
    drawn = {
        tuple(generator(*names).integers(0, 2**60, 2))
        for names in [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "a", 1)]
    }
    assert len(drawn) == 7


def test_numbers_do_not_depend_on_what_was_drawn_before():
    first = generator(0, "a").random(3)
    generator(0, "b").random(100)
    np.random.default_rng().random()
    np.testing.assert_array_equal(generator(0, "a").random(3), first)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**64), st.integers(1, 40), st.integers(0, 100))
def test_units_stay_and_the_added_ones_copy_all_units_as_often(seed, old, extra):
    drawn = draw(seed, "width", old, old + extra)
    assert drawn.index[:old].tolist() == list(range(old))
    assert drawn.new.tolist() == [False] * old + [True] * extra
    assert (drawn.old_size, drawn.size) == (old, old + extra)
    counts = np.bincount(drawn.index, minlength=old)
    assert len(counts) == old
    assert counts.max() - counts.min() <= 1
    assert drawn == draw(seed, "width", old, old + extra)


def test_a_whole_multiple_copies_all_units_equally_often():
    assert np.bincount(draw(0, "w", 5, 15).index).tolist() == [3] * 5


def test_which_units_are_copied_is_random():
    assert len({tuple(draw(seed, "w", 6, 9).index) for seed in range(20)}) > 10
    assert len({tuple(draw(0, name, 6, 9).index) for name in "abcdefghij"}) > 5


def test_remaps_are_equal_by_value():
    assert remap([0, 1, 1], 2) == remap([0, 1, 1], 2)
    assert hash(remap([0, 1, 1], 2)) == hash(remap([0, 1, 1], 2))
    assert remap([0, 1, 1], 2) != remap([0, 1, 0], 2)
    assert remap([0, 1, 1], 2) != remap([0, 1, 1], 3)
    assert remap([0, 1, 1], 2) != "a remap"
    assert repr(remap([0, 1, 1], 2)) == "2 -> 3"
    assert identity(3) == remap([0, 1, 2], 3)


def test_an_axis_that_holds_no_growing_width_has_no_remap():
    a, b = Width("a", 2), Width("b", 3)
    remaps = {a: remap([0, 1, 1], 2)}
    for axis in (b, Fixed(2), Fixed(None), Concat((b, Fixed(1))), Product((Fixed(2), b))):
        assert remap_of(axis, remaps) is None
        assert size_of(axis, remaps) == axis.size


def test_a_concatenation_offsets_and_joins():
    # Axis: a0 a1 | x | b0 b1 b2, at 0 1 | 2 | 3 4 5. a gets a copy of a1, b one of b0.
    a, b = Width("a", 2), Width("b", 3)
    remaps = {a: remap([0, 1, 1], 2), b: remap([0, 1, 2, 0], 3)}
    found = remap_of(Concat((a, Fixed(1), b)), remaps)
    assert found.index.tolist() == [0, 1, 1, 2, 3, 4, 5, 3]
    assert found.new.tolist() == [False, False, True, False, False, False, False, True]
    assert found.old_size == 6
    assert size_of(Concat((a, Fixed(1), b)), remaps) == 8


def test_a_product_of_space_and_channels_repeats_for_each_place():
    # Flatten of 2 places with channels a0 a1: at 0 1 | 2 3.
    a = Width("a", 2)
    found = remap_of(Product((Fixed(2), a)), {a: remap([0, 1, 0], 2)})
    assert found.index.tolist() == [0, 1, 0, 2, 3, 2]
    assert found.new.tolist() == [False, False, True] * 2
    assert found.old_size == 4


def test_a_product_of_channels_and_space_copies_blocks():
    # Channels first: a0 a1 with 2 places each, at 0 1 | 2 3.
    a = Width("a", 2)
    found = remap_of(Product((a, Fixed(2))), {a: remap([0, 1, 1], 2)})
    assert found.index.tolist() == [0, 1, 2, 3, 2, 3]
    assert found.new.tolist() == [False] * 4 + [True] * 2


def test_a_product_of_two_growing_widths_is_an_outer_grid():
    # a0 a1 x b0 b1 at 0 1 | 2 3; a copies a0, b copies b1.
    a, b = Width("a", 2), Width("b", 2)
    remaps = {a: remap([0, 1, 0], 2), b: remap([0, 1, 1], 2)}
    found = remap_of(Product((a, b)), remaps)
    assert found.index.tolist() == [0, 1, 1, 2, 3, 3, 0, 1, 1]
    assert found.new.tolist() == [False, False, True, False, False, True, True, True, True]


def test_expressions_nest():
    # (a0 a1 x) for each of 2 places, at 0 1 2 | 3 4 5.
    a = Width("a", 2)
    found = remap_of(Product((Fixed(2), Concat((a, Fixed(1))))), {a: remap([0, 1, 1], 2)})
    assert found.index.tolist() == [0, 1, 1, 2, 3, 4, 4, 5]


def test_a_bound_width_has_the_remap_of_what_it_became():
    a, b, c = Width("a", 3), Width("b", 2), Width("c", 1)
    a.bound = Concat((b, c))
    found = remap_of(a, {b: remap([0, 1, 0], 2)})
    assert found.index.tolist() == [0, 1, 0, 2]


def test_an_unknown_size_beside_a_growing_width_is_an_error():
    a = Width("a", 2)
    with pytest.raises(ValueError, match="unknown size"):
        remap_of(Product((Fixed(None), a)), {a: remap([0, 1, 1], 2)})


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_an_axis_gathers_what_gathering_along_its_factors_gathers(data):
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    widths = [Width(str(i), size) for i, size in enumerate(sizes)]
    grows = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    remaps = {
        w: draw(0, w.name, w.size, w.size + 2)
        for w, grow in zip(widths, grows, strict=True)
        if grow
    }
    array = np.arange(np.prod(sizes)).reshape(sizes)
    expected = array
    for axis, width in enumerate(widths):
        if width in remaps:
            expected = np.take(expected, remaps[width].index, axis)
    found = remap_of(Product(tuple(widths)), remaps)
    if not remaps:
        assert found is None
        return
    np.testing.assert_array_equal(array.ravel()[found.index], expected.ravel())
    # Each unit that was there is there once.
    kept = found.index[~found.new]
    assert kept.tolist() == sorted(kept) == list(range(array.size))


def test_a_removal_says_who_takes_over():
    # Of a0 a1 a2 a3, a1 goes into a0, and a2 goes without a trace.
    found = removal(np.array([0, 3]), np.array([0, 0, REMOVED, 3]))
    assert found.index.tolist() == [0, 3]
    assert found.into.tolist() == [0, 0, REMOVED, 1]
    assert not found.new.any()
    assert (found.old_size, found.size, found.kept) == (4, 2, 1.0)
    assert removal(np.array([0]), np.array([0, 0, REMOVED]), left=0.5).kept == 1.5
    assert found != removal(np.array([0, 3]), np.array([0, 3, REMOVED, 3]))


def test_removals_join_and_multiply():
    a, b = Width("a", 3), Width("b", 2)
    remaps = {a: removal(np.array([0, 2]), np.array([0, 0, 2]))}
    found = remap_of(Concat((b, a)), remaps)
    assert found.index.tolist() == [0, 1, 2, 4]
    assert found.into.tolist() == [0, 1, 2, 2, 3]
    found = remap_of(Product((Fixed(2), a)), remaps)
    assert found.index.tolist() == [0, 2, 3, 5]
    assert found.into.tolist() == [0, 0, 1, 2, 2, 3]
    remaps[b] = removal(np.array([1]), np.array([REMOVED, 1]))
    found = remap_of(Product((b, a)), remaps)
    assert found.index.tolist() == [3, 5]
    assert found.into.tolist() == [REMOVED] * 3 + [0, 0, 1]
