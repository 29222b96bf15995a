"""MustDrop against the authors' program: merged windows, and what the filter keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secateur.core.methods.mustdrop import asked_for, merge_windows


@pytest.mark.parametrize("name", ["new_mustdrop_pool", "new_mustdrop_batch"])
def test_windows(golden, to_xp, to_numpy, name):
    case = golden(name)
    told = json.loads(str(case["params"]))
    merged = merge_windows(
        to_xp(case["features"]), window=tuple(told["window"]), threshold=told["threshold"]
    )
    np.testing.assert_array_equal(to_numpy(merged.group), case["group"])
    np.testing.assert_array_equal(to_numpy(merged.sizes), case["size"])
    np.testing.assert_allclose(to_numpy(merged.states), case["merged"], rtol=1e-8, atol=1e-12)


def test_filter(golden, to_xp, to_numpy):
    case = golden("new_mustdrop_filter")
    told = json.loads(str(case["params"]))
    first, last = told["start"], told["start"] + told["length"]
    rows = case["attention"].mean(0)[last:, first:last]
    stay = asked_for(
        to_xp(rows), overall=told["global_threshold"], single=told["individual_threshold"]
    )
    assert np.flatnonzero(to_numpy(stay)).tolist() == case["kept"].tolist()
