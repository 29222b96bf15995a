"""Pooling against LLaVA-NeXT's, run in float64."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.pool import pooled


@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
@pytest.mark.parametrize("stem", ["new_pool_even", "new_pool_odd"])
def test_by_a_stride(stem, mode, recorded, to_xp, to_numpy):
    case = recorded(stem)
    side = case.params["side"]
    ours = pooled(to_xp(case["features"]), (side, side), stride=case.params["stride"], mode=mode)
    np.testing.assert_allclose(to_numpy(ours), case[mode], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("stem", "mode"),
    [("new_pool_even", "average"), ("new_pool_even", "bilinear"), ("new_pool_odd", "bilinear")],
)
def test_as_a_method(stem, mode, recorded, to_xp, to_numpy):
    case = recorded(stem)
    side = case.params["side"]
    x = to_xp(case["features"])
    chosen = sc.Pool(keep=case[mode].shape[1], mode=mode).select(
        sc.Tokens(features=x, grid=(side, side))
    )
    np.testing.assert_allclose(to_numpy(chosen.merge(x)), case[mode], rtol=1e-8, atol=1e-12)
