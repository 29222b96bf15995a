"""Downsampling against the authors' program, which uses Pillow: pixels to within one level."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.methods.downsample import downsampled


@pytest.mark.parametrize("stem", ["new_downsample_half", "new_downsample_third"])
def test_pixels(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    small = to_numpy(downsampled(to_xp(case["image"]), case.params["ratio"]))
    assert small.shape == case["small"].shape
    assert small.dtype == np.uint8
    assert np.abs(small.astype(int) - case["small"].astype(int)).max() <= 1
