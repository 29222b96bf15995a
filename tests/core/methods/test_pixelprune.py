"""Cells that their neighbours predict, dropped before anything is encoded."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.pixelprune import scan_cells
from secateur.testing import assert_selection

METRICS = {
    "max": lambda x, y: np.abs(x - y).max(),
    "mae": lambda x, y: np.abs(x - y).mean(),
    "rmse": lambda x, y: np.sqrt(((x - y) ** 2).mean()),
}


def cells_of(pixels, grid):
    h, w = grid
    down, across = pixels.shape[0] // h, pixels.shape[1] // w
    return {
        (r, c): pixels[r * down : (r + 1) * down, c * across : (c + 1) * across] / 255
        for r in range(h)
        for c in range(w)
    }


def slow(pixels, grid, threshold, metric, anchored):
    """Kept cells and distances, cell by cell."""
    distance = METRICS[metric]
    own = cells_of(pixels, grid)
    stands, kept, apart = dict(own), [0], {(0, 0): 1.0}
    for r in range(grid[0]):
        for c in range(grid[1]):
            if (r, c) == (0, 0):
                continue
            if r == 0 or c == 0:
                prediction = stands[(r, c - 1) if r == 0 else (r - 1, c)]
            else:
                left, above, corner = stands[r, c - 1], stands[r - 1, c], stands[r - 1, c - 1]
                vertical = distance(corner, left) <= threshold < distance(corner, above)
                prediction = above if vertical else left
            apart[r, c] = distance(own[r, c], prediction)
            if apart[r, c] > threshold:
                kept.append(r * grid[1] + c)
            elif anchored:
                stands[r, c] = prediction
    return kept, [apart[key] for key in sorted(apart)]


def runs(pixels, grid, threshold, turning):
    own = cells_of(pixels, grid)
    path = [
        (r, c)
        for r in range(grid[0])
        for c in (range(grid[1])[::-1] if turning and r % 2 else range(grid[1]))
    ]
    first, kept = own[0, 0], [(0, 0)]
    for cell in path[1:]:
        if np.abs(own[cell] - first).max() > threshold:
            first = own[cell]
            kept.append(cell)
    return sorted(r * grid[1] + c for r, c in kept)


def picture(seed=0, shape=(20, 28, 3)):
    """Steps of a few grey levels, so that much is alike and much is nearly so."""
    dice = np.random.default_rng(seed)
    rough = dice.integers(0, 4, (shape[0] // 4, shape[1] // 4, 3)) * 9
    fine = dice.integers(0, 3, shape)
    return (np.repeat(np.repeat(rough, 4, 0), 4, 1) // 9 * 9 + fine).astype(np.uint8)


@pytest.mark.parametrize("grid", [(5, 7), (1, 7), (5, 1), (10, 4), (1, 1)])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("anchored", [False, True])
def test_it_is_its_definition(to_xp, to_numpy, grid, metric, anchored):
    host = np.stack([picture(0), picture(1)])
    for threshold in (0.0, 0.02, 0.05):
        method = sc.PixelPrune(threshold=threshold, metric=metric, anchored=anchored)
        chosen = method.select(sc.Tokens(pixels=to_xp(host), grid=grid))
        assert_selection(chosen)
        for b in range(2):
            kept, apart = slow(host[b], grid, threshold, metric, anchored)
            assert to_numpy(chosen.row(b).indices).tolist() == kept
            np.testing.assert_allclose(to_numpy(chosen.scores)[b], apart, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scan", ["raster", "serpentine"])
@pytest.mark.parametrize("threshold", [0.0, 0.03])
def test_runs(to_xp, to_numpy, scan, threshold):
    host = picture()
    tokens = sc.Tokens(pixels=to_xp(host), grid=(5, 7))
    chosen = sc.PixelPrune(threshold=threshold, scan=scan).select(tokens)
    expected = runs(host, (5, 7), threshold, turning=scan == "serpentine")
    assert to_numpy(chosen.indices).tolist() == expected


def test_every_dropped_cell_is_near_a_kept_one():
    for seed in range(5):
        host = picture(seed)
        found = scan_cells(host, (5, 7), threshold=0.04)
        own = [cell for _, cell in sorted(cells_of(host, (5, 7)).items())]
        kept = [own[i] for i in np.flatnonzero(found.kept)]
        assert all(min(np.abs(cell - each).max() for each in kept) <= 0.04 for cell in own)


def test_flat_images_keep_one_cell_and_floats_are_as_good(to_xp, to_numpy):
    flat = to_xp(np.full((4, 8, 3), 90.0, dtype=np.float32))
    chosen = sc.PixelPrune().select(sc.Tokens(pixels=flat, grid=(2, 4)))
    assert to_numpy(chosen.indices).tolist() == [0]
    host = picture()
    both = [
        sc.PixelPrune(threshold=0.02).select(sc.Tokens(pixels=to_xp(x), grid=(5, 7)))
        for x in (host, host.astype(np.float32))
    ]
    assert to_numpy(both[0].indices).tolist() == to_numpy(both[1].indices).tolist()


def test_a_limit_keeps_what_is_least_predicted():
    tokens = sc.Tokens(pixels=picture(), grid=(5, 7))
    free = sc.PixelPrune().select(tokens)
    few = sc.PixelPrune(keep=6).select(tokens)
    best = np.argsort(-free.scores, kind="stable")[:6]
    assert few.indices.tolist() == sorted(best.tolist())
    assert 0 in few.indices


def test_exact_is_the_largest_difference_without_a_threshold():
    tokens = sc.Tokens(pixels=picture(), grid=(5, 7))
    exact = sc.PixelPrune(metric="exact", threshold=0.5).select(tokens)
    assert exact.indices.tolist() == sc.PixelPrune().select(tokens).indices.tolist()


def test_what_is_refused():
    pixels = picture()
    with pytest.raises(ValueError, match=r"grid: 3 x 7 cells do not divide an image of 20 x 28"):
        sc.PixelPrune().select(sc.Tokens(pixels=pixels, grid=(3, 7)))
    with pytest.raises(ValueError, match=r"pixels: expected one image for each of the rows \(5,\)"):
        sc.PixelPrune().select(
            sc.Tokens(pixels=pixels, features=np.ones((35, 2)), grid=(1, 7), frames=5)
        )
    with pytest.raises(ValueError, match="pixels: expected one image for each of the rows"):
        sc.PixelPrune().select(sc.Tokens(pixels=pixels, features=np.ones((2, 35, 2)), grid=(5, 7)))
    with pytest.raises(sc.MissingInputError, match=r"PixelPrune needs tokens\.grid"):
        sc.PixelPrune().select(sc.Tokens(pixels=pixels, features=np.ones((35, 2))))
    for settings, words in (
        ({"threshold": -1.0}, "threshold: expected a finite number of at least 0"),
        ({"metric": "l2"}, "metric: expected one of max, mae, rmse, exact"),
        ({"scan": "spiral"}, "scan: expected one of pred_2d, raster, serpentine"),
        ({"anchored": "yes"}, "anchored: expected True, False or None"),
    ):
        with pytest.raises(ValueError, match=words):
            sc.PixelPrune(**settings)


def test_the_count_comes_from_the_pixels():
    assert sc.PixelPrune().counted_from == "pixels"
    assert sc.PixelPrune().budget(35) == 35
    assert sc.PixelPrune(keep=0.2).budget(35) == 7
