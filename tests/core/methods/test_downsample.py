"""Smaller pictures, and how small they must be."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.acts import Shrinks
from secateur.core.methods.downsample import downsampled, largest_grid, resized


@pytest.mark.parametrize(("h", "w"), [(24, 24), (7, 12), (12, 5), (1, 9)])
def test_no_larger_grid_of_that_shape_fits(h, w):
    scales = np.unique([i / h for i in range(1, h + 1)] + [j / w for j in range(1, w + 1)])
    grids = [
        (max(1, int(s * h + 1e-9)), max(1, int(s * w + 1e-9))) for s in np.append(scales, 1e-9)
    ]
    for k in range(1, h * w + 2):
        rows, columns = largest_grid(h, w, k)
        assert rows * columns == max(a * b for a, b in grids if a * b <= k)
        assert (rows, columns) in grids


def test_the_grid_of_a_budget():
    assert sc.Downsample(keep=64).shrunken_grid((24, 24)) == (8, 8)
    assert sc.Downsample(keep=0.25).shrunken_grid((24, 24)) == (12, 12)
    assert sc.Downsample(keep=1000).shrunken_grid((24, 24)) == (24, 24)
    assert sc.Downsample(keep=65).shrunken_grid((24, 24)) == (8, 8)
    with pytest.raises(ValueError, match="grid: expected"):
        sc.Downsample().shrunken_grid((0, 3))


@pytest.mark.parametrize("size", [(17, 30), (9, 11), (40, 70), (34, 20)])
def test_it_is_pillows_filter(to_xp, to_numpy, size):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (34, 61, 3)).astype(np.uint8)
    theirs = np.asarray(image.fromarray(pixels).resize(size[::-1], image.Resampling.BICUBIC))
    ours = to_numpy(resized(to_xp(np.stack([pixels, pixels[::-1]])), size))
    assert np.abs(ours[0].astype(int) - theirs.astype(int)).max() <= 1
    np.testing.assert_array_equal(ours[1], to_numpy(resized(to_xp(pixels[::-1].copy()), size)))


def test_a_picture_of_floats_is_not_rounded(to_xp, to_numpy):
    pixels = np.random.default_rng(0).random((8, 12, 3)) * 255
    small = to_numpy(downsampled(to_xp(pixels), 2))
    levels = to_numpy(downsampled(to_xp(np.round(pixels).astype(np.uint8)), 2))
    assert small.dtype == np.float64
    assert 0 < np.abs(small - levels).max() < 2.1
    np.testing.assert_allclose(to_numpy(resized(to_xp(pixels), (8, 12))), pixels, atol=1e-9)


def test_tokens_cover_as_many_pixels_as_before(to_xp):
    method = sc.Downsample(keep=6)
    assert isinstance(method, Shrinks)
    pixels = to_xp(np.zeros((2, 56, 84, 3), dtype=np.uint8))
    assert method.shrunken_grid((4, 6)) == (2, 3)
    assert method.shrink(pixels, (4, 6)).shape == (2, 28, 42, 3)


def test_there_is_nothing_to_select(image):
    tokens = image().with_(pixels=np.zeros((12, 12, 3)))
    with pytest.raises(ValueError, match="Downsample makes the picture smaller before it is"):
        sc.Downsample().select(tokens)


def test_what_is_refused():
    pixels = np.zeros((4, 6, 3))
    with pytest.raises(ValueError, match="ratio: 5 leaves nothing of a picture of 4 x 6"):
        downsampled(pixels, 5)
    with pytest.raises(ValueError, match="ratio: expected a whole number of at least 1"):
        downsampled(pixels, 0)
    with pytest.raises(ValueError, match="size: expected"):
        resized(pixels, (0, 3))
    with pytest.raises(ValueError, match=r"pixels: expected shape \(\.\.\., H, W, 3\)"):
        resized(pixels[0], (1, 1))
