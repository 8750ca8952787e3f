"""New weights from old ones, in numbers worked out by hand and as properties."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_net2net.planning.changes import Addition, AxisChange, NewUnits, VariableChange
from keras_net2net.planning.remaps import REMOVED, Remap, draw, removal
from keras_net2net.widths.facts import FOLLOWS, MAKES, READS

pytestmark = pytest.mark.pure

# Units 0, 1, 2 grow by copies of 1, 2 and 1: one unit alone, one of three, one of two.
GROWN = Remap(np.array([0, 1, 2, 1, 2, 1]), np.arange(6) >= 3, 3)
COPIES = [[0], [1, 3, 5], [2, 4]]
EVEN = NewUnits(shares="even")
FRESH = NewUnits("fresh")


REPLICATE = NewUnits()


def change(*axes, how=REPLICATE, name="layer/kernel"):
    """The change of a variable: a role and remap for each axis, or `None`."""
    return VariableChange(name, tuple(axis and AxisChange(*axis) for axis in axes), how)


def random(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def summed(new, axis=0):
    """Adds up what reads the copies of each old unit."""
    return np.stack([np.take(new, copies, axis).sum(axis) for copies in COPIES], axis)


# -- by hand ---------------------------------------------------------------------


def test_units_that_are_made_are_copied_with_their_biases():
    kernel = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "float32")
    new = change(None, (MAKES, GROWN)).apply(kernel, 0)
    assert new.tolist() == [[1, 2, 3, 2, 3, 2], [4, 5, 6, 5, 6, 5]]
    bias = np.array([7.0, 8.0, 9.0], "float32")
    assert change((MAKES, GROWN)).apply(bias, 0).tolist() == [7, 8, 9, 8, 9, 8]


@pytest.mark.parametrize("kind", ["replicate", "fresh", "random"])
def test_biases_are_copied_however_units_start(kind):
    bias = np.array([7.0, 8.0, 9.0], "float32")
    new = change((MAKES, GROWN), how=NewUnits(kind, noise=0.5)).apply(bias, 0)
    assert new.tolist() == [7, 8, 9, 8, 9, 8]


def test_what_follows_units_is_copied():
    gamma = np.array([7.0, 8.0, 9.0], "float32")
    for how in (NewUnits(), FRESH, NewUnits("random")):
        assert change((FOLLOWS, GROWN), how=how).apply(gamma, 0).tolist() == [7, 8, 9, 8, 9, 8]


def test_even_shares_are_one_part_of_each_copy():
    kernel = np.array([[6.0, 60.0], [12.0, 120.0], [8.0, 80.0]], "float32")
    new = change((READS, GROWN), None, how=EVEN).apply(kernel, 0)
    expected = [[6, 60], [4, 40], [4, 40], [4, 40], [4, 40], [4, 40]]
    np.testing.assert_allclose(new, expected, rtol=1e-6)


def test_even_shares_of_a_flattened_image_are_one_part_at_each_place():
    # Two places with channels 0, 1, of which 1 is copied once.
    flat = Remap(np.array([0, 1, 1, 2, 3, 3]), np.array([False, False, True] * 2), 4)
    kernel = np.array([[1.0], [2.0], [3.0], [4.0]], "float32")
    new = change((READS, flat), None, how=EVEN).apply(kernel, 0)
    np.testing.assert_allclose(new.ravel(), [1, 1, 1, 3, 2, 2], rtol=1e-6)


def test_a_kernel_that_makes_and_reads_is_copied_and_shared():
    kernel = np.array([[1.0, 2.0], [6.0, 8.0]], "float32")
    outgoing = Remap(np.array([0, 1, 0]), np.arange(3) >= 2, 2)
    incoming = Remap(np.array([0, 1, 1]), np.arange(3) >= 2, 2)
    new = change((READS, incoming), (MAKES, outgoing), how=EVEN).apply(kernel, 0)
    np.testing.assert_allclose(new, [[1, 2, 1], [3, 4, 3], [3, 4, 3]], rtol=1e-6)


def test_axes_that_stay_are_left_alone():
    kernel = random(3, 3, 2, 4)
    same = change(None, None, None, None).apply(kernel, 0)
    np.testing.assert_array_equal(same, kernel)
    assert same is not kernel
    assert change(None, None, (READS, GROWN), None).new_shape((3, 3, 3, 4)) == (3, 3, 6, 4)


def test_the_old_value_is_never_written_to():
    kernel = random(3, 3)
    before = kernel.copy()
    kernel.flags.writeable = False
    for how in (NewUnits(), EVEN, FRESH, NewUnits("random"), NewUnits(noise=0.1)):
        change((READS, GROWN), (MAKES, GROWN), how=how).apply(kernel, 0)
    np.testing.assert_array_equal(kernel, before)


# -- random shares -----------------------------------------------------------------


def test_random_shares_sum_to_the_weight_for_each_unit_and_outgoing_weight():
    kernel = random(3, 50)
    new = change((READS, GROWN), None).apply(kernel, 0)
    np.testing.assert_allclose(summed(new), kernel, rtol=2e-7)
    shares = new / kernel[GROWN.index]
    assert (shares > 0).all()
    np.testing.assert_array_equal(shares[0], 1.0)


def test_random_shares_differ_for_each_copy_and_outgoing_weight():
    new = change((READS, GROWN), None).apply(np.ones((3, 50), "float32"), 0)
    for copies in COPIES[1:]:
        shares = new[copies]
        assert len(np.unique(shares)) > 0.9 * shares.size
        assert shares.std() > 0.05


def test_random_shares_favour_no_copy_by_much():
    # A share is the relative weight of 1/2 to 3/2 among that of the others: none comes near zero.
    new = change((READS, GROWN), None).apply(np.ones((3, 2000), "float32"), 0)
    for copies in COPIES[1:]:
        even = 1 / len(copies)
        assert np.abs(new[copies].mean(1) - even).max() < 0.15 * even
        assert new[copies].min() > 0.25 * even
        assert new[copies].max() < 2 * even


def test_what_is_drawn_depends_on_the_seed_and_the_name_alone():
    kernel = random(3, 5)
    first = change((READS, GROWN), None).apply(kernel, 0)
    np.testing.assert_array_equal(change((READS, GROWN), None).apply(kernel, 0), first)
    assert not np.array_equal(change((READS, GROWN), None).apply(kernel, 1), first)
    other = change((READS, GROWN), None, name="other/kernel")
    assert not np.array_equal(other.apply(kernel, 0), first)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5), st.integers(1, 12), st.integers(0, 999), st.sampled_from(["random", "even"])
)
def test_a_layer_reads_the_copies_as_it_read_the_units(old, extra, seed, shares):
    remap = draw(seed, "w", old, old + extra)
    kernel, x = random(old, 3, seed=seed), random(7, old, seed=seed + 1)
    new = change((READS, remap), None, how=NewUnits(shares=shares)).apply(kernel, seed)
    np.testing.assert_allclose(x[:, remap.index] @ new, x @ kernel, atol=2e-6)


# -- two axes that read ---------------------------------------------------------------


@pytest.mark.parametrize("how", [NewUnits(), EVEN, FRESH], ids=["random", "even", "fresh"])
def test_a_bilinear_sum_over_two_growing_axes_stays(how):
    # sum over i, j of x_i W_ij y_j, both axes reading: no share of one may undo the other's.
    other = draw(3, "other", 4, 9)
    kernel, x, y = random(3, 4), random(3, seed=1), random(4, seed=2)
    new = change((READS, GROWN), (READS, other), how=how).apply(kernel, 0)
    assert new.shape == (6, 9)
    grown = x[GROWN.index] @ new @ y[other.index]
    np.testing.assert_allclose(grown, x @ kernel @ y, rtol=1e-5)


def test_a_trilinear_sum_stays():
    remaps = [draw(i, "w", 3, 5 + i) for i in range(3)]
    kernel = random(3, 3, 3)
    vectors = [random(3, seed=i) for i in range(3)]
    new = change(*((READS, remap) for remap in remaps)).apply(kernel, 0)
    grown = [v[remap.index] for v, remap in zip(vectors, remaps, strict=True)]
    expected = np.einsum("ijk,i,j,k", kernel, *vectors)
    np.testing.assert_allclose(np.einsum("ijk,i,j,k", new, *grown), expected, rtol=1e-4)


@pytest.mark.parametrize("how", [NewUnits(), EVEN], ids=["random", "even"])
def test_a_recurrent_kernel_reads_and_makes_the_same_units(how):
    kernel, state = random(3, 3), random(3, seed=1)
    new = change((READS, GROWN), (MAKES, GROWN), how=how).apply(kernel, 0)
    np.testing.assert_allclose(
        state[GROWN.index] @ new, (state @ kernel)[GROWN.index], rtol=1e-5, atol=1e-6
    )


# -- fresh and random units --------------------------------------------------------------


def test_fresh_units_start_at_the_norm_of_their_sources():
    kernel = random(3, 3, 2, 3)  # a convolution's: the last axis makes units
    new = change(None, None, None, (MAKES, GROWN), how=FRESH).apply(kernel, 0)
    np.testing.assert_array_equal(new[..., :3], kernel)
    norms = np.sqrt(np.square(new).sum((0, 1, 2)))
    np.testing.assert_allclose(norms, norms[GROWN.index], rtol=1e-5)
    for added in (3, 4, 5):
        assert not np.allclose(new[..., added], kernel[..., GROWN.index[added]], atol=0.1)


def test_old_units_do_not_read_fresh_ones():
    kernel = random(3, 4)
    new = change((READS, GROWN), None, how=FRESH).apply(kernel, 0)
    np.testing.assert_array_equal(new[:3], kernel)
    np.testing.assert_array_equal(new[3:], 0.0)


def test_fresh_units_read_fresh_units_at_random():
    # Nothing that was there before sees it, and zeros would have no gradient at first.
    outgoing = draw(5, "out", 4, 6)
    new = change((READS, GROWN), (MAKES, outgoing), how=FRESH).apply(random(3, 4), 0)
    np.testing.assert_array_equal(new[3:, :4], 0.0)
    assert np.all(new[3:, 4:] != 0)


def test_fresh_units_of_a_transposed_convolution_are_found_on_its_other_axis():
    kernel = random(3, 3, 3, 2)  # makes units on the third axis, reads channels on the last
    new = change(None, None, (MAKES, GROWN), None, how=FRESH).apply(kernel, 0)
    norms = np.sqrt(np.square(new).sum((0, 1, 3)))
    np.testing.assert_allclose(norms, norms[GROWN.index], rtol=1e-5)


def test_a_fresh_unit_like_a_unit_of_zeros_is_of_zeros():
    kernel = np.zeros((2, 3), "float32")
    new = change(None, (MAKES, GROWN), how=FRESH).apply(kernel, 0)
    np.testing.assert_array_equal(new, 0.0)


def test_random_units_are_random_on_both_sides():
    how = NewUnits("random")
    incoming = change(None, (MAKES, GROWN), how=how).apply(random(4, 3), 0)
    outgoing = change((READS, GROWN), None, how=how).apply(random(3, 4), 0)
    for new, old in ((incoming.T, random(4, 3).T), (outgoing, random(3, 4))):
        np.testing.assert_array_equal(new[:3], old)
        norms = np.linalg.norm(new, axis=1)
        np.testing.assert_allclose(norms, norms[GROWN.index], rtol=1e-5)
        assert not np.allclose(new[3:], old[GROWN.index[3:]], atol=0.1)


# -- noise ---------------------------------------------------------------------------------


def test_noise_moves_the_copies_by_its_share_of_the_weights_deviation():
    kernel = 3.0 * random(400, 3) + 7.0
    new = change(None, (MAKES, GROWN), how=NewUnits(noise=0.1)).apply(kernel, 0)
    np.testing.assert_array_equal(new[:, :3], kernel)
    moved = new[:, 3:] - kernel[:, GROWN.index[3:]]
    assert moved.std() == pytest.approx(0.1 * kernel.std(), rel=0.1)
    assert abs(moved.mean()) < 0.1 * moved.std() + 0.05


def test_noise_leaves_what_reads_the_copies_as_it_is():
    kernel = random(3, 4)
    quiet = change((READS, GROWN), None).apply(kernel, 0)
    noisy = change((READS, GROWN), None, how=NewUnits(noise=0.5)).apply(kernel, 0)
    np.testing.assert_array_equal(noisy, quiet)


def test_what_is_exact_says_so():
    assert NewUnits().exact
    assert EVEN.exact
    assert FRESH.exact
    assert not NewUnits("random").exact
    assert not NewUnits(noise=0.01).exact


# -- dtypes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (np.float64, 1e-15),
        (np.float32, 3e-7),
        (np.float16, 2e-3),
        (ml_dtypes.bfloat16, 2e-2),
    ],
)
@pytest.mark.parametrize("how", [NewUnits(), EVEN], ids=["random", "even"])
def test_a_value_keeps_its_dtype_and_its_precision(dtype, tolerance, how):
    kernel = random(3, 40, dtype=dtype)
    new = change((READS, GROWN), None, how=how).apply(kernel, 0)
    assert new.dtype == dtype
    total = summed(new.astype("float64"))
    np.testing.assert_allclose(total, kernel.astype("float64"), rtol=tolerance, atol=tolerance / 10)
    made = change(None, (MAKES, Remap(np.r_[:40, 5], np.arange(41) >= 40, 40))).apply(kernel, 0)
    assert made.dtype == dtype
    np.testing.assert_array_equal(made[:, 40], kernel[:, 5])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_fresh_and_noisy_units_keep_the_dtype(dtype):
    kernel = random(5, 3, dtype=dtype)
    for how in (FRESH, NewUnits("random"), NewUnits(noise=0.1)):
        new = change(None, (MAKES, GROWN), how=how).apply(kernel, 0)
        assert new.dtype == dtype
        assert np.isfinite(new.astype("float32")).all()


def test_what_reads_removed_units_is_added_to_what_reads_those_that_take_over():
    remap = removal(np.array([0, 2]), np.array([0, 0, 2, REMOVED]))
    old = np.arange(8, dtype="float32").reshape(4, 2)
    reads = VariableChange("w", (AxisChange(READS, remap), None))
    assert reads.apply(old, 0).tolist() == [[0 + 2, 1 + 3], [4, 5]]
    makes = VariableChange("w", (AxisChange(MAKES, remap), None), scale=2.0)
    assert makes.apply(old, 0).tolist() == [[0, 2], [8, 10]]
    assert old[0, 0] == 0
    assert reads.new_shape((4, 2)) == (2, 2)


def test_numbers_that_were_worked_out_are_added_at_their_units():
    grown = Remap(np.array([0, 1, 0]), np.array([False, False, True]), 2)
    addition = Addition(1, np.array([2]), np.array([[5.0, 6.0]], "float32"))
    change = VariableChange(
        "w", (None, AxisChange(MAKES, grown)), NewUnits("zero"), additions=(addition,)
    )
    old = np.ones((2, 2), "float32")
    assert change.apply(old, 0).tolist() == [[1, 1, 5], [1, 1, 6]]
    other = Addition(1, np.array([2]), np.array([[5.0, 7.0]], "float32"))
    assert addition == Addition(1, np.array([2]), np.array([[5.0, 6.0]], "float32"))
    assert addition != other
    assert hash(addition) == hash(other)
