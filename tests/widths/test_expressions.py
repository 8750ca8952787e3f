"""Width expressions: canonical forms and unification, worked out by hand and as properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_net2net.widths.expressions import (
    Concat,
    Expression,
    Fixed,
    Obstacle,
    Product,
    Width,
    concat,
    fix,
    product,
    resolve,
    widths_of,
)
from keras_net2net.widths.unification import regroup, split_factor, split_part, unify

pytestmark = pytest.mark.pure

WHY = Obstacle("sum", "needs both sizes to agree")
OTHER = Obstacle("softmax", "normalizes over its units")


def widths(*sizes: int) -> list[Width]:
    """Widths named a, b, c, ... of these sizes, in this order."""
    return [Width("abcdefgh"[i], size, i) for i, size in enumerate(sizes)]


# -- canonical forms -----------------------------------------------------------


def test_a_concatenation_is_flat_with_neighbouring_fixed_parts_joined():
    a, b = widths(4, 2)
    inner = concat([Fixed(2), b])
    assert concat([a, Fixed(3), inner]) == Concat((a, Fixed(5), b))
    assert concat([a, Fixed(3), inner]).size == 11


def test_a_concatenation_of_one_part_is_that_part():
    (a,) = widths(4)
    assert concat([a]) is a
    assert concat([Fixed(0), a, Fixed(0)]) is a
    assert concat([]) == Fixed(0)


def test_a_product_is_flat_without_ones_and_with_neighbouring_fixed_factors_joined():
    a, b = widths(4, 2)
    inner = product([Fixed(2), b])
    assert product([Fixed(1), a, Fixed(3), inner]) == Product((a, Fixed(6), b))
    assert product([Fixed(1), a, Fixed(3), inner]).size == 48


def test_a_product_of_one_factor_is_that_factor():
    (a,) = widths(4)
    assert product([Fixed(1), a]) is a
    assert product([]) == Fixed(1)


def test_factors_keep_their_order():
    a, b = widths(4, 2)
    assert product([a, b]) != product([b, a])
    assert concat([a, b]) != concat([b, a])


def test_unknown_sizes_stay_unknown():
    (a,) = widths(4)
    assert concat([Fixed(None), Fixed(2)]) == Fixed(None)
    assert product([Fixed(None), Fixed(2)]) == Fixed(None)
    assert concat([Fixed(None), a]).size is None
    assert product([Fixed(None), a]).size is None


def test_a_joined_fixed_part_keeps_a_reason():
    joined = concat([Fixed(2), Fixed(3, OTHER)])
    assert isinstance(joined, Fixed)
    assert joined.obstacle == OTHER


def test_resolving_follows_chains_of_bindings():
    a, b, c, d = widths(4, 4, 4, 4)
    d.bound, c.bound, b.bound = c, b, a
    assert resolve(d) is a
    assert d.bound is c.bound is a  # the path is shorter the next time
    assert resolve(Concat((d, Fixed(2), Fixed(1)))) == Concat((a, Fixed(3)))


def test_resolving_flattens_what_widths_turned_out_to_be():
    a, b, c = widths(5, 3, 2)
    a.bound = Concat((b, c))
    assert resolve(Concat((a, Fixed(1)))) == Concat((b, c, Fixed(1)))
    assert resolve(Product((Fixed(2), a))) == Product((Fixed(2), Concat((b, c))))


def test_widths_are_listed_once_from_left_to_right():
    a, b, c = widths(4, 2, 3)
    expression = Concat((Product((b, Fixed(2))), a, Concat((c, b))))
    assert list(widths_of(expression)) == [b, a, c]


def test_the_first_reason_for_fixing_stays():
    a, b = widths(4, 2)
    fix(a, OTHER)
    fix(Concat((a, b)), WHY)
    assert (a.obstacle, b.obstacle) == (OTHER, WHY)


# -- unification -----------------------------------------------------------------


@pytest.mark.parametrize("swap", [False, True])
def test_the_earlier_width_stands_for_both(swap):
    a, b = widths(4, 4)
    unify(*((b, a) if swap else (a, b)), WHY)
    assert resolve(b) is resolve(a) is a
    assert a.obstacle is None


def test_merged_widths_keep_a_reason_of_either():
    a, b = widths(4, 4)
    fix(b, OTHER)
    unify(a, b, WHY)
    assert resolve(b) is a
    assert a.obstacle == OTHER


def test_bindings_chain_over_several_unifications():
    a, b, c, d = widths(4, 4, 4, 4)
    unify(c, d, WHY)
    unify(a, b, WHY)
    unify(d, b, WHY)
    assert {resolve(x) for x in (a, b, c, d)} == {a}


def test_a_width_that_meets_a_fixed_size_is_fixed_with_the_reason():
    a, b = widths(4, 4)
    unify(a, Fixed(4), WHY)
    unify(Fixed(4, OTHER), b, WHY)
    assert (a.obstacle, b.obstacle) == (WHY, OTHER)


def test_what_is_unified_after_a_width_was_fixed_is_fixed_too():
    a, b, c, d = widths(6, 6, 4, 2)
    unify(a, Fixed(6, OTHER), WHY)
    unify(a, b, WHY)
    unify(b, Concat((c, d)), WHY)
    assert (c.obstacle, d.obstacle) == (OTHER, OTHER)


def test_a_fixed_concatenation_fixes_all_its_parts():
    a, b = widths(4, 2)
    unify(Concat((a, Fixed(3), b)), Fixed(9, OTHER), WHY)
    assert (a.obstacle, b.obstacle) == (OTHER, OTHER)


def test_different_sizes_fix_both_sides():
    a, b, c = widths(4, 5, 2)
    unify(a, b, WHY)
    assert (a.obstacle, b.obstacle) == (WHY, WHY)
    unify(Concat((a, c)), Fixed(7), WHY)
    assert c.obstacle == WHY
    assert resolve(a) is a
    assert resolve(b) is b


def test_unknown_sizes_that_may_differ_in_their_factors_fix_both_sides():
    # T x 3 x a against T x b: b isn't a times something.
    a, b = widths(4, 12)
    unify(Product((Fixed(None), a)), Product((Fixed(None), b)), WHY)
    assert (a.obstacle, b.obstacle) == (WHY, WHY)
    assert resolve(b) is b


def test_the_same_expression_is_left_alone():
    a, b = widths(4, 2)
    unify(a, a, WHY)
    unify(Product((Fixed(2), a)), Product((Fixed(2), a)), WHY)
    unify(Concat((a, b)), Concat((a, b)), WHY)
    unify(Fixed(3), Fixed(3), WHY)
    assert (a.obstacle, b.obstacle) == (None, None)


@pytest.mark.parametrize("swap", [False, True])
def test_a_width_that_meets_a_concatenation_becomes_it(swap):
    a, b, c = widths(6, 4, 2)
    sides = (a, Concat((b, c)))
    unify(*(sides[::-1] if swap else sides), WHY)
    assert resolve(a) == Concat((b, c))
    assert [w.obstacle for w in (a, b, c)] == [None] * 3


def test_a_width_that_meets_a_product_becomes_it():
    a, b = widths(12, 4)
    unify(a, Product((Fixed(3), b)), WHY)
    assert resolve(a) == Product((Fixed(3), b))
    assert b.obstacle is None


def test_a_width_that_meets_a_multiple_of_itself_is_fixed():
    # The sizes agree, since b is one unit; they wouldn't if b grew.
    a, b = widths(4, 1)
    unify(a, Product((a, b)), WHY)
    assert (a.obstacle, b.obstacle) == (WHY, WHY)
    assert resolve(a) is a


def test_concatenations_that_line_up_are_unified_part_by_part():
    a, b, c, d = widths(4, 2, 4, 2)
    unify(Concat((a, b)), Concat((c, d)), WHY)
    assert (resolve(c), resolve(d)) == (a, b)


def test_concatenations_that_do_not_line_up_are_split():
    # a a a a b b
    # c c d d d d
    a, b, c, d = widths(4, 2, 2, 4)
    unify(Concat((a, b)), Concat((c, d)), WHY)
    first, second = resolve(a).parts
    assert (first.size, second.size) == (2, 2)
    assert resolve(c) is first
    assert resolve(d) == Concat((second, b))
    assert [w.obstacle for w in widths_of(Concat((a, b, c, d)))] == [None] * 3


def test_a_part_that_meets_a_piece_of_a_fixed_part_is_fixed():
    # a a a a 3 3
    # b b 4 4 4 4
    a, b = widths(4, 2)
    unify(Concat((a, Fixed(2, OTHER))), Concat((b, Fixed(4, OTHER))), WHY)
    first, second = resolve(a).parts
    assert resolve(b) is first
    assert first.obstacle is None
    assert second.obstacle == OTHER


def test_a_concatenation_in_another_order_ties_all_its_parts():
    # a a a a b b
    # b b a a a a
    a, b = widths(4, 2)
    unify(Concat((a, b)), Concat((b, a)), WHY)
    (only,) = set(widths_of(Concat((a, b))))
    assert only.obstacle is None
    assert resolve(a) == Concat((only, only))
    assert resolve(b) is only


def test_products_that_line_up_are_unified_factor_by_factor():
    a, b, c = widths(4, 4, 2)
    unify(Product((Fixed(6), a)), Product((Fixed(6), b)), WHY)
    assert resolve(b) is a
    assert a.obstacle is None
    unify(Product((a, c)), Product((Fixed(4, OTHER), c)), WHY)
    assert (a.obstacle, c.obstacle) == (OTHER, None)


def test_products_that_do_not_line_up_are_factored():
    # 2 x a, with a of 6 units, against 4 x b, with b of 3: a is 2 x b.
    a, b = widths(6, 3)
    unify(Product((Fixed(2), a)), Product((Fixed(4), b)), WHY)
    outer, inner = resolve(a).factors
    assert (outer.size, inner.size) == (2, 3)
    assert outer.obstacle == WHY
    assert inner is resolve(b)
    assert inner.obstacle is None


def test_products_without_a_common_factor_are_fixed():
    a, b = widths(3, 2)
    unify(Product((Fixed(2), a)), Product((Fixed(3), b)), WHY)
    assert (a.obstacle, b.obstacle) == (WHY, WHY)


def test_a_factor_of_one_unit_that_meets_nothing_is_fixed():
    # 4 x a, with a of one unit, against 2 x b: were `a` two units, nothing would match the second.
    a, b = widths(1, 2)
    unify(Product((Fixed(4), a)), Product((Fixed(2), b)), WHY)
    assert a.obstacle == WHY


def test_a_product_that_meets_a_concatenation_is_split_into_whole_repeats():
    # 3 x a against b + c, where b has as many units as two repeats of a.
    a, b, c = widths(4, 8, 4)
    unify(Product((Fixed(3), a)), Concat((b, c)), WHY)
    assert resolve(b) == Product((Fixed(2), a))
    assert resolve(c) is a
    assert a.obstacle is None


def test_a_product_that_meets_parts_of_a_repeat_is_fixed():
    a, b, c = widths(4, 6, 6)
    unify(Product((Fixed(3), a)), Concat((b, c)), WHY)
    assert [w.obstacle for w in (a, b, c)] == [WHY] * 3


def test_a_product_of_two_widths_that_meets_a_concatenation_is_fixed():
    a, b, c, d = widths(2, 3, 3, 3)
    unify(Product((a, b)), Concat((c, d)), WHY)
    assert [w.obstacle for w in (a, b, c, d)] == [WHY] * 4


# -- splitting and regrouping ------------------------------------------------------


def test_a_width_is_cut_into_two():
    (a,) = widths(5)
    first, second = split_part(a, 2)
    assert (first.size, second.size) == (2, 3)
    assert resolve(a) == Concat((first, second))


@pytest.mark.parametrize("size", [0, 5, 6])
def test_nothing_is_cut_off_where_nothing_would_be_left(size):
    (a,) = widths(5)
    assert split_part(a, size) is None
    assert resolve(a) is a


def test_parts_keep_the_reason_of_the_whole():
    (a,) = widths(6)
    fix(a, OTHER)
    assert [half.obstacle for half in split_part(a, 2)] == [OTHER, OTHER]
    (b,) = widths(6)
    fix(b, OTHER)
    assert [half.obstacle for half in split_factor(b, 2)] == [OTHER, OTHER]


def test_a_concatenation_is_cut_between_and_inside_parts():
    a, b = widths(4, 3)
    assert split_part(Concat((a, b)), 4) == (a, b)
    before, after = split_part(Concat((a, b)), 5)
    assert (before.size, after.size) == (5, 2)
    assert concat([before, after]) == Concat((a, *resolve(b).parts))


def test_a_product_is_cut_after_whole_repeats_only():
    (a,) = widths(4)
    repeats = Product((Fixed(3), a))
    assert split_part(repeats, 4) == (a, Product((Fixed(2), a)))
    assert split_part(repeats, 6) is None


def test_a_width_is_factored_into_two():
    (a,) = widths(6)
    first, second = split_factor(a, 2)
    assert (first.size, second.size) == (2, 3)
    assert resolve(a) == Product((first, second))
    assert split_factor(Fixed(6), 4) is None
    assert split_factor(Concat(tuple(widths(4, 2))), 2) is None


def test_a_reshape_keeps_the_axes_that_stay():
    (a,) = widths(4)
    assert regroup([Fixed(3), Fixed(2), a], [6, 4]) == [Fixed(6), a]
    assert regroup([Fixed(6), a], [3, 2, 4]) == [Fixed(3), Fixed(2), a]
    assert regroup([Fixed(6), a], [3, 8]) == [Fixed(3), Product((Fixed(2), a))]


def test_a_reshape_that_splits_units_factors_them():
    (a,) = widths(6)
    first, second = regroup([a], [2, 3])
    assert resolve(a) == Product((first, second))


def test_a_reshape_there_and_back_gives_the_same_units():
    (a,) = widths(4)
    (flat,) = regroup([Fixed(3), Fixed(2), a], [24])
    assert regroup([flat], [3, 2, 4]) == [Fixed(3), Fixed(2), a]


def test_a_reshape_that_does_not_line_up_is_not_explained():
    (a,) = widths(4)
    assert regroup([Fixed(3), a], [2, 6]) is None
    assert regroup([Fixed(3), a], [None, 6]) is None
    assert regroup([Fixed(None), a], [12]) is None


def test_a_width_of_one_unit_is_not_lost_in_a_reshape():
    (a,) = widths(1)
    assert regroup([Fixed(4), a], [4]) == [Product((Fixed(4), a))]
    assert regroup([Fixed(4), a], [4, 1]) == [Fixed(4), a]
    assert regroup([a, Fixed(4)], [1, 4]) == [a, Fixed(4)]
    assert regroup([a, Fixed(4)], [4]) == [Product((a, Fixed(4)))]
    assert regroup([Fixed(4), a], [2, 2]) == [Fixed(2), Product((Fixed(2), a))]
    assert regroup([a], [1, 1]) == [a, Fixed(1)]


# -- properties ---------------------------------------------------------------------


@st.composite
def expressions(draw, size: int, pool: list[Width], depth: int = 2) -> Expression:
    """An expression of a size, of widths that are drawn and added to a pool."""
    kinds = ["width", "width", "again", "fixed"]
    if depth and size > 1:
        kinds += ["concat", "concat", "product"]
    kind = draw(st.sampled_from(kinds))
    if kind == "again":
        same = [width for width in pool if width.size == size]
        if same:
            return draw(st.sampled_from(same))
    if kind == "fixed":
        return Fixed(size)
    if kind == "concat":
        first = draw(st.integers(1, size - 1))
        parts = [draw(expressions(n, pool, depth - 1)) for n in (first, size - first)]
        return concat(parts)
    if kind == "product":
        factor = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        return product([draw(expressions(n, pool, depth - 1)) for n in (factor, size // factor)])
    pool.append(Width(f"w{len(pool)}", size, len(pool)))
    return pool[-1]


@st.composite
def pairs(draw):
    """The same two expressions of one size, twice, over two pools of widths alike."""
    size = draw(st.integers(1, 12))
    pool: list[Width] = []
    a = draw(expressions(size, pool))
    b = draw(expressions(size, pool))
    twins = {width: Width(width.name, width.size, width.order) for width in pool}

    def twin(x: Expression) -> Expression:
        if isinstance(x, Width):
            return twins[x]
        if isinstance(x, Concat):
            return Concat(tuple(map(twin, x.parts)))
        return Product(tuple(map(twin, x.factors))) if isinstance(x, Product) else x

    return pool, (a, b), list(twins.values()), (twin(a), twin(b))


def free_index(expression: Expression, sizes: dict[Width, int]) -> list[tuple]:
    """What each unit of an axis is, once free widths have grown: `(width, unit)`s and numbers."""
    expression = resolve(expression)
    if isinstance(expression, Concat):
        return [unit for part in expression.parts for unit in free_index(part, sizes)]
    if isinstance(expression, Product):
        units: list[tuple] = [()]
        for factor in expression.factors:
            units = [u + v for u in units for v in free_index(factor, sizes)]
        return units
    if isinstance(expression, Width) and expression.obstacle is None:
        return [((id(expression), i),) for i in range(sizes[expression])]
    return [("fixed",)] * (expression.size or 0)


def free(unit: tuple) -> tuple:
    """The free widths that a unit is made of, without what is fixed."""
    return tuple(part for part in unit if part != "fixed")


@settings(deadline=None, max_examples=300)
@given(pairs(), st.integers(1, 3))
def test_unified_axes_have_the_same_units_however_free_widths_grow(pair, more):
    pool, (a, b), _, _ = pair
    unify(a, b, WHY)
    grown = {w: w.size + more for x in (*pool, a, b) for w in widths_of(x) if w.obstacle is None}
    left, right = free_index(a, grown), free_index(b, grown)
    assert len(left) == len(right)
    assert [free(unit) for unit in left] == [free(unit) for unit in right]


@settings(deadline=None, max_examples=200)
@given(pairs())
def test_unification_changes_no_size(pair):
    pool, (a, b), _, _ = pair
    size = a.size
    before = [width.size for width in pool]
    unify(a, b, WHY)
    assert resolve(a).size == resolve(b).size == size
    assert [resolve(width).size for width in pool] == before


@settings(deadline=None, max_examples=200)
@given(pairs())
def test_unification_is_symmetric_in_what_it_fixes_and_ties(pair):
    pool, (a, b), twins, (c, d) = pair
    unify(a, b, WHY)
    unify(d, c, WHY)

    def effect(widths: list[Width]) -> list[str]:
        seen: dict[Width, int] = {}
        shown = []
        for width in widths:
            now = resolve(width)
            for w in widths_of(now):
                seen.setdefault(w, len(seen))
            shown.append(_shape(now, seen))
        return shown

    assert effect(pool) == effect(twins)


def _shape(expression: Expression, names: dict[Width, int]) -> str:
    if isinstance(expression, Width):
        return f"{names[expression]}[{expression.size}]{'!' if expression.obstacle else ''}"
    if isinstance(expression, Concat):
        return "(" + " + ".join(_shape(part, names) for part in expression.parts) + ")"
    if isinstance(expression, Product):
        return "(" + " x ".join(_shape(factor, names) for factor in expression.factors) + ")"
    return str(expression.size)


@settings(deadline=None, max_examples=200)
@given(pairs())
def test_unifying_again_changes_nothing(pair):
    pool, (a, b), _, _ = pair
    unify(a, b, WHY)
    before = [(resolve(w), [v.obstacle for v in widths_of(w)]) for w in pool]
    unify(a, b, OTHER)
    unify(b, a, OTHER)
    assert [(resolve(w), [v.obstacle for v in widths_of(w)]) for w in pool] == before


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_regrouping_there_and_back_gives_the_same_axes(data):
    pool: list[Width] = []
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    axes = [data.draw(expressions(size, pool, 1)) for size in sizes]
    there = regroup(axes, [math.prod(sizes)])
    assert there is not None
    back = regroup(there, sizes)
    if back is not None:
        # Units that are one may stand on another axis, but none is lost, and the order stays.
        assert product(back) == product(axes)
        assert [x.size for x in back] == sizes


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_regrouping_keeps_all_units_in_their_order(data):
    pool: list[Width] = []
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axes = [data.draw(expressions(size, pool, 1)) for size in sizes]
    total = math.prod(sizes)
    divisor = data.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
    result = regroup(axes, [divisor, total // divisor])
    if result is not None:
        assert [x.size for x in result] == [divisor, total // divisor]
        assert product(result) == product(axes)


def test_a_single_unit_that_has_no_counterpart_in_a_product_is_fixed():
    six, one, other = Width("six", 6, 1), Width("one", 1, 2), Width("other", 1, 3)
    unify(product([six, one]), product([other, six]), WHY)
    assert resolve(six) is six
    assert six.obstacle is None
    assert one.obstacle == other.obstacle == WHY
