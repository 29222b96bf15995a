"""Parts of an image and their means."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.pool import pooled
from secateur.testing import assert_selection


@pytest.mark.parametrize("grid", [(6, 6), (5, 9), (1, 7), (1, 1)])
@pytest.mark.parametrize("mode", ["average", "bilinear"])
def test_every_budget_is_spent(image, to_xp, to_numpy, grid, mode):
    n = grid[0] * grid[1]
    tokens = image(n=n, grid=grid, batch=(2,), convert=to_xp)
    host = to_numpy(tokens.features)
    for k in range(1, n + 1):
        chosen = sc.Pool(keep=k, mode=mode).select(tokens)
        assert_selection(chosen, k)
        uniform = sc.UniformGrid(keep=k).select(tokens)
        assert to_numpy(chosen.indices).tolist() == to_numpy(uniform.indices).tolist()
        merged = to_numpy(chosen.merge(tokens.features))
        # Weights of each kept token add up to 1: a flat image stays flat.
        flat = to_numpy(chosen.merge(to_xp(np.ones_like(host))))
        np.testing.assert_allclose(flat, 1.0, rtol=1e-12)
        if k == n:
            np.testing.assert_allclose(merged, host, rtol=1e-12)
        if mode == "average":
            sizes = np.bincount(to_numpy(chosen.folded)[0])
            sizes = sizes[sizes > 0]
            np.testing.assert_allclose(sizes @ merged[0], host[0].sum(axis=0), rtol=1e-9, atol=1e-9)


def test_parts_are_blocks():
    x = np.arange(36.0)[:, None]
    tokens = sc.Tokens(features=x, grid=(6, 6))
    for k, stride in ((9, 2), (4, 3), (1, 6)):
        ours = sc.Pool(keep=k).select(tokens).merge(x)
        np.testing.assert_allclose(ours, pooled(x, (6, 6), stride=stride))


def test_a_slope_stays_a_slope_between_tokens():
    # What lies between four tokens of a linear map is the map at that place.
    y, x = np.divmod(np.arange(63), 9)
    slope = (2.0 * y + 3.0 * x)[:, None]
    chosen = sc.Pool(keep=12, mode="bilinear").select(sc.Tokens(features=slope, grid=(7, 9)))
    expected = [
        2.0 * ((band + 0.5) * 7 / 3 - 0.5) + 3.0 * ((i + 0.5) * 9 / 4 - 0.5)
        for band in range(3)
        for i in range(4)
    ]
    np.testing.assert_allclose(chosen.merge(slope)[:, 0], expected)


def test_strides(to_xp, to_numpy):
    x = np.arange(20.0).reshape(1, 20, 1)
    assert to_numpy(pooled(to_xp(x), (4, 5), mode="max"))[0, :, 0].tolist() == [6, 8, 16, 18]
    assert to_numpy(pooled(to_xp(x), (4, 5), stride=4))[0, :, 0].tolist() == [9]
    same = pooled(to_xp(x), (4, 5), stride=1, mode="bilinear")
    np.testing.assert_allclose(to_numpy(same), x)
    half = pooled(to_xp(x.astype(np.float32)), (4, 5), mode="bilinear")
    assert to_numpy(half).dtype == np.float32


def test_what_is_refused(image):
    with pytest.raises(ValueError, match="mode: 'max' takes each channel from another token"):
        sc.Pool(mode="max")
    with pytest.raises(ValueError, match="mode: expected one of average, bilinear"):
        sc.Pool(mode="median")
    with pytest.raises(ValueError, match="stride: expected at most the shorter side of 2 x 3"):
        pooled(np.ones((6, 1)), (2, 3), stride=3)
    with pytest.raises(ValueError, match="stride: expected a whole number of at least 1"):
        pooled(np.ones((6, 1)), (2, 3), stride=0)
    with pytest.raises(ValueError, match="grid: 2 x 2 = 4 places for 6 tokens"):
        pooled(np.ones((6, 1)), (2, 2))
    with pytest.raises(sc.MissingInputError, match=r"Pool needs tokens\.grid"):
        sc.Pool().select(image().with_(grid=None))
