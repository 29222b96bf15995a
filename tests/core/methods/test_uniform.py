"""The even grid."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (3, 5), (6, 6), (4, 9), (24, 24)])
def test_every_budget_keeps_as_many_tokens_evenly_spread(image, grid):
    h, w = grid
    tokens = image(n=h * w, grid=grid)
    for k in range(1, min(h * w, 60) + 1):
        kept = sc.UniformGrid(keep=k).select(tokens).indices
        assert len(set(kept.tolist())) == k
        assert kept.min() >= 0
        assert kept.max() < h * w
        per_row = np.bincount(kept // w, minlength=h)
        used = per_row[per_row > 0]
        assert used.max() - used.min() <= 1
        rows = np.flatnonzero(per_row)
        even = [np.diff(rows)] + [np.diff(kept[kept // w == r] % w) for r in rows]
        assert all(np.ptp(steps) <= 1 for steps in even if len(steps))


def test_a_budget_that_is_a_coarser_grid_is_that_grid(image, to_xp, to_numpy):
    tokens = image(n=144, grid=(12, 12), batch=(2,), convert=to_xp)
    kept = to_numpy(sc.UniformGrid(keep=16).select(tokens).indices)
    assert kept.tolist() == [[12 * r + c for r in (1, 4, 7, 10) for c in (1, 4, 7, 10)]] * 2


def test_wide_images_get_more_columns_than_rows(image):
    kept = sc.UniformGrid(keep=8).select(image(n=128, grid=(8, 16))).indices
    assert kept.tolist() == [16 * r + c for r in (2, 6) for c in (2, 6, 10, 14)]


def test_it_needs_a_grid():
    with pytest.raises(sc.MissingInputError, match=r"UniformGrid needs tokens\.grid"):
        sc.UniformGrid(keep=2).select(sc.Tokens(features=np.ones((4, 3))))
