"""Entropies and effective rank, against numbers worked out by hand."""

import math

import numpy as np
import pytest

import secateur as sc
from secateur.core.measures import check_image, grey_levels, median, singular_values

pytestmark = pytest.mark.usefixtures("computed_by")


def test_entropy_of_known_distributions(to_xp, to_numpy):
    p = to_xp([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(to_numpy(sc.entropy(p)), [1.5 * math.log(2), 0.0, 0.0], atol=1e-15)


def test_entropy_scales_its_input_to_one(to_xp, to_numpy):
    p = to_xp([1.0, 2.0, 3.0, 4.0])
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(to_numpy(sc.entropy(p)), -(shares * np.log(shares)).sum())


def test_entropy_normalised_by_the_number_of_outcomes(to_xp, to_numpy):
    assert float(sc.entropy(to_xp([1.0, 1.0, 0.0, 0.0]), normalize=True)) == pytest.approx(0.5)
    assert float(sc.entropy(to_xp([7.0]), normalize=True)) == 0.0


def test_entropy_along_another_axis(to_xp, to_numpy):
    p = to_xp([[1.0, 1.0], [1.0, 3.0]])
    expected = [math.log(2), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    np.testing.assert_allclose(to_numpy(sc.entropy(p, axis=0)), expected)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_entropy_of_float32_survives_extreme_scales(to_xp, to_numpy, scale):
    p = to_xp(np.full(8, scale, dtype=np.float32))
    h = sc.entropy(p)
    assert to_numpy(h).dtype == np.float32
    assert float(h) == pytest.approx(math.log(8), rel=1e-6)


def test_entropy_of_numbers_whose_sum_overflows(to_xp):
    p = to_xp(np.full(100, 1e37, dtype=np.float32))
    assert float(sc.entropy(p)) == pytest.approx(math.log(100), rel=1e-6)


def test_entropy_never_exceeds_log_n_by_rounding(to_xp, to_numpy):
    for n in range(2, 60):
        p = to_xp(np.full(n, 0.1))
        assert float(sc.entropy(p)) <= math.log(n)
        assert float(sc.entropy(p, normalize=True)) <= 1.0


def test_entropy_of_negative_zero_is_zero(to_xp):
    assert float(sc.entropy(to_xp([-0.0, 1.0]))) == 0.0


@pytest.mark.parametrize("axis", [2, -3])
def test_entropy_refuses_an_axis_that_is_not_there(to_xp, axis):
    with pytest.raises(ValueError, match=r"axis: expected one that holds numbers in \(1, 2\)"):
        sc.entropy(to_xp([[1.0, 2.0]]), axis=axis)


def test_entropy_refuses_an_empty_axis(to_xp):
    with pytest.raises(ValueError, match=r"axis: .* in \(0, 2\), got 0"):
        sc.entropy(to_xp(np.ones((0, 2))), axis=0)


def test_attention_entropy_is_low_where_attention_sits_in_one_place(to_xp):
    assert float(sc.attention_entropy(to_xp([0.0, 9.0, 0.0]))) == 0.0
    assert float(sc.attention_entropy(to_xp([3.0, 3.0, 3.0]), normalize=True)) == pytest.approx(1)


def test_attention_entropy_refuses_negative_attention(to_xp):
    with pytest.raises(ValueError, match=r"attention: expected no negative numbers, .* -1"):
        sc.attention_entropy(to_xp([0.5, -1.0]))


def test_effective_rank_of_known_singular_values(to_xp, to_numpy):
    x = np.zeros((4, 3))
    x[0, 0], x[1, 1] = 3.0, 1.0
    h = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    ranks = sc.effective_rank(to_xp(np.stack([x, np.eye(4, 3), np.zeros((4, 3))])))
    np.testing.assert_allclose(to_numpy(ranks), [math.exp(h), 3.0, 1.0])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_effective_rank_of_float32_survives_extreme_scales(to_xp, scale):
    x = to_xp((np.eye(4)[:3] * scale).astype(np.float32))
    assert float(sc.effective_rank(x)) == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
def test_an_image_of_a_batch_has_the_rank_that_it_has_alone(shape):
    x = np.random.default_rng(0).standard_normal((2, 2, *shape))
    # Of one the Gram matrix is not exact enough in float64.
    x[1, 0] = np.outer(x[1, 0, :, 0], x[1, 0, 0])
    together = sc.effective_rank(x)
    for at in np.ndindex(2, 2):
        assert together[at] == sc.effective_rank(x[at])
    assert together[1, 0] == pytest.approx(1.0, abs=1e-9)


def test_singular_values_largest_first(to_xp, to_numpy):
    x = np.diag([1.0, 4.0, 2.0])[:2]
    np.testing.assert_allclose(to_numpy(singular_values(to_xp(x))), [4.0, 1.0])


def grey(rng, *shape):
    """Images whose channels are equal, so that the grey value is known without rounding."""
    return np.repeat(rng.integers(0, 256, size=(*shape, 1), dtype=np.uint8), 3, axis=-1)


def test_patch_entropy_against_counting(to_xp, to_numpy):
    image = np.random.default_rng(0).integers(0, 256, size=(2, 9, 13, 3), dtype=np.uint8)
    h = to_numpy(sc.patch_entropy(to_xp(image), 4))
    assert h.shape == (2, 2 * 3)
    single = image.astype(np.float32)
    level = np.floor(
        np.float32(0.299) * single[..., 0]
        + np.float32(0.587) * single[..., 1]
        + np.float32(0.114) * single[..., 2]
    )
    for b in range(2):
        for row in range(2):
            for column in range(3):
                part = level[b, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                share = np.unique(part, return_counts=True)[1] / 16
                expected = -(share * np.log(share)).sum()
                assert h[b, 3 * row + column] == pytest.approx(expected, rel=1e-6)


def test_patch_entropy_of_flat_and_of_all_different_patches(to_xp, to_numpy):
    image = np.zeros((4, 8, 3))
    image[:, 4:] = (np.arange(16.0) * 3).reshape(4, 4, 1)
    np.testing.assert_allclose(
        to_numpy(sc.patch_entropy(to_xp(image), 4)), [0.0, math.log(16)], atol=1e-6
    )


def test_patch_entropy_takes_its_arguments_by_name(to_xp):
    assert sc.patch_entropy(image=to_xp(np.zeros((4, 4, 3))), patch=2).shape == (4,)


def test_grey_weighs_the_channels_and_stays_within_0_to_255(to_xp, to_numpy):
    pixels = to_xp([[100.0, 0, 0], [0, 100, 0], [0, 0, 100], [300, 300, 300], [-5, 0, 0]])
    assert to_numpy(grey_levels(pixels)).tolist() == [29, 58, 11, 255, 0]


def test_patch_entropy_refuses_what_is_no_image(to_xp):
    with pytest.raises(
        ValueError, match=r"image: expected shape \(\.\.\., H, W, 3\), got \(4, 4\)"
    ):
        sc.patch_entropy(to_xp(np.zeros((4, 4))), 2)
    with pytest.raises(ValueError, match=r"image: expected shape .* got \(3, 4, 4\)"):
        sc.patch_entropy(to_xp(np.zeros((3, 4, 4))), 2)
    with pytest.raises(ValueError, match="image: 4 x 4 pixels hold no patch of 5 x 5"):
        sc.patch_entropy(to_xp(np.zeros((4, 4, 3))), 5)
    with pytest.raises(ValueError, match="image: contains NaN"):
        sc.patch_entropy(to_xp(np.full((4, 4, 3), np.nan)), 2)


@pytest.mark.parametrize("patch", [0, -1, 2.5, True, "2"])
def test_patch_entropy_refuses_what_is_no_side(to_xp, patch):
    with pytest.raises(ValueError, match="patch: expected a positive whole number of pixels"):
        sc.patch_entropy(to_xp(np.zeros((4, 4, 3))), patch)


def test_check_image_counts_whole_patches():
    assert check_image(np.zeros((2, 29, 57, 3)), 28) == (1, 2)


def test_median_is_the_lower_of_two_middles(to_xp, to_numpy):
    assert to_numpy(median(to_xp([[4.0, 1, 3, 2], [9, 9, 0, 0]]))).tolist() == [2.0, 0.0]
    assert float(median(to_xp([5, 1, 3]))) == 3.0


def test_no_images_give_no_numbers(to_xp):
    assert sc.entropy(to_xp(np.zeros((0, 4)))).shape == (0,)
    assert sc.effective_rank(to_xp(np.zeros((0, 4, 3)))).shape == (0,)
    assert sc.patch_entropy(to_xp(np.zeros((0, 4, 4, 3))), 2).shape == (0, 4)
