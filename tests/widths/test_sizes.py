"""Which widths grow, and to what, for an axis to have a size."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_net2net.widths.expressions import (
    Concat,
    Fixed,
    Obstacle,
    Product,
    Width,
    concat,
    fix,
    product,
)
from keras_net2net.widths.sizes import evaluate, growable, sizes_for

pytestmark = pytest.mark.pure

WHY = Obstacle("sum", "needs both sizes to agree")


def widths(*sizes: int) -> list[Width]:
    return [Width("abcdefgh"[i], size, i) for i, size in enumerate(sizes)]


def test_an_expression_is_evaluated_with_other_sizes():
    a, b = widths(4, 3)
    expression = Concat((Product((Fixed(2), a)), Fixed(5), b))
    assert evaluate(expression, {}) == 16
    assert evaluate(expression, {a: 6}) == 20
    assert evaluate(expression, {a: 6, b: 4}) == 21
    assert evaluate(Fixed(None), {}) == 0


def test_a_width_grows_to_the_size_itself():
    (a,) = widths(4)
    assert sizes_for(a, 9) == ({a: 9}, [])


def test_the_parts_of_a_concatenation_grow_in_proportion():
    a, b = widths(4, 8)
    assert sizes_for(Concat((a, b)), 18) == ({a: 6, b: 12}, [])


def test_the_first_part_takes_the_unit_that_is_left():
    a, b = widths(4, 4)
    sizes, _ = sizes_for(Concat((a, b)), 11)
    assert (sizes.get(a), sizes.get(b)) == (6, 5)


def test_what_is_fixed_stays():
    a, b = widths(4, 4)
    fix(a, WHY)
    assert sizes_for(Concat((a, Fixed(3), b)), 13) == ({b: 6}, [])
    assert growable(Concat((a, Fixed(3), b))) == [b]


def test_flattened_space_grows_by_whole_channels():
    (a,) = widths(4)
    assert sizes_for(Product((Fixed(6), a)), 36) == ({a: 6}, [])
    assert sizes_for(Product((Fixed(6), a)), 34) == (None, [30, 36])
    assert sizes_for(Product((Fixed(6), a)), 25) == (None, [30])


def test_of_a_product_the_last_free_factor_grows():
    a, b, c = widths(2, 3, 4)
    assert growable(Product((a, b))) == [b]
    assert sizes_for(Product((a, b)), 10) == ({b: 5}, [])
    fix(b, WHY)
    assert growable(Product((a, b))) == [a]
    assert growable(Concat((Product((a, b)), c, a))) == [a, c]


def test_a_width_that_comes_twice_counts_twice():
    a, b = widths(2, 3)
    assert sizes_for(Concat((a, b, a)), 9) == ({a: 3}, [])
    assert sizes_for(Concat((a, a)), 7) == (None, [6, 8])


def test_nothing_grows_where_all_is_fixed():
    (a,) = widths(4)
    fix(a, WHY)
    assert growable(a) == growable(Fixed(3)) == []


def test_a_size_is_found_where_the_first_parts_alone_do_not_fit():
    # 3 a + 2 b from 10 to 14: one more `a` leaves a unit over, two more `b` don't.
    a, b = widths(2, 2)
    expression = Concat((Product((Fixed(3), a)), Product((Fixed(2), b))))
    assert sizes_for(expression, 14) == ({b: 4}, [])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(0, 3),
    st.integers(1, 9),
)
def test_a_size_is_found_if_there_is_one_and_the_nearest_are_told_if_not(parts, fixed, more):
    free = widths(*(size for _, size in parts))
    repeats = [repeat for repeat, _ in parts]
    pieces = [product([Fixed(n), w]) for n, w in zip(repeats, free, strict=True)]
    expression = concat([*pieces, Fixed(fixed)])
    start = evaluate(expression, {})
    # Oracle: try all numbers of units that could be added.
    possible = {
        start + sum(n * extra for n, extra in zip(repeats, added, strict=True))
        for added in itertools.product(range(14), repeat=len(parts))
    }
    sizes, near = sizes_for(expression, start + more)
    if start + more in possible:
        assert evaluate(expression, sizes) == start + more
        assert all(size > width.size for width, size in sizes.items())
        assert near == []
    else:
        assert sizes is None
        below = [size for size in possible if start < size < start + more]
        above = [size for size in possible if size > start + more]
        assert near == [*([max(below)] if below else []), min(above)]


def test_a_concatenation_shrinks_in_proportion_and_leaves_a_unit_of_each_part():
    a, b = widths(4, 8)
    assert sizes_for(a, 1) == ({a: 1}, [])
    assert sizes_for(Concat((a, b)), 6) == ({a: 2, b: 4}, [])
    assert sizes_for(Concat((a, b)), 11) == ({a: 3}, [])
    assert sizes_for(Concat((a, b)), 2) == ({a: 1, b: 1}, [])
    sizes, possible = sizes_for(Concat((a, b)), 1)
    assert sizes is None
    assert possible == [2]


def test_a_product_shrinks_by_whole_multiples():
    (a,) = widths(5)
    assert sizes_for(Product((Fixed(4), a)), 12) == ({a: 3}, [])
    assert sizes_for(Product((Fixed(4), a)), 10) == (None, [8, 12])
