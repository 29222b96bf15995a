"""PixelPrune against the authors' program: kept cells of every scan, and their patches."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.pixelprune import patches_of

from . import calls

CASES = ["new_pixelprune_exact", "new_pixelprune_near", "new_pixelprune_mae"]
ANSWERS = {
    "kept_pred_2d": {},
    "kept_pred_2d_sliding": {"anchored": False},
    "kept_raster": {"scan": "raster"},
    "kept_serpentine": {"scan": "serpentine"},
}


@pytest.mark.parametrize("stem", CASES)
def test_selection(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    name, settings, given = calls.call(stem, case)
    given["pixels"] = to_xp(given["pixels"])
    chosen = sc.published(name, **settings).select(sc.Tokens(**given))
    calls.check(stem, case, chosen)
    patches = patches_of(chosen.sorted(), case.params["merge"])
    np.testing.assert_array_equal(to_numpy(patches), case["patches_pred_2d"])


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("stem", CASES)
def test_every_scan(stem, answer, recorded, to_xp, to_numpy):
    case = recorded(stem)
    name, settings, given = calls.call(stem, case)
    given["pixels"] = to_xp(given["pixels"])
    chosen = sc.published(name, **settings, **ANSWERS[answer]).select(sc.Tokens(**given))
    np.testing.assert_array_equal(to_numpy(chosen.indices), case[answer])
