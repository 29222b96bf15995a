"""VidCom2 against the authors' program and vLLM's: channels, scores, shares, kept tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.vidcom2 import frame_scales, least_varying, ordinariness

from . import calls

CASES = ["new_vidcom2_cuts", "new_vidcom2_drift", "new_vidcom2_full", "new_vidcom2_half"]


@pytest.mark.parametrize("stem", CASES)
def test_selection(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    name, settings, given = calls.call(stem, case)
    given["features"] = to_xp(given["features"])
    chosen = sc.published(name, **settings).select(sc.Tokens(**given))
    calls.check(stem, case, chosen)
    assert to_numpy(chosen.per_frame(given["frames"])).tolist() == case["per_frame"].tolist()


@pytest.mark.parametrize("stem", CASES)
def test_selection_spent_exactly(stem, recorded, to_xp):
    case = recorded(stem)
    name, settings, given = calls.exact(stem, case)
    given["features"] = to_xp(given["features"])
    method = sc.published(name, **settings)
    chosen = method.select(sc.Tokens(**given))
    calls.check(stem, case, chosen, spent_exactly=True)
    assert int(chosen.count) == int(case["exact_count"])
    assert method.budget(chosen.size, given["frames"]) == int(case["exact_count"])
    assert method.counted_from == "size"


@pytest.mark.parametrize("stem", CASES)
def test_scores(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    frames, _, width = case["features"].shape
    x = to_xp(case["features"].reshape(-1, width))
    channels = least_varying(x, width // 2)
    assert to_numpy(channels).tolist() == case["channels"].tolist()
    over_video, in_frame = ordinariness(x, frames, channels)
    np.testing.assert_allclose(to_numpy(over_video), case["video_score"], rtol=1e-8)
    np.testing.assert_allclose(to_numpy(in_frame), case["frame_score"], rtol=1e-8)
    base = json.loads(str(case["params"]))["base"]
    scales = frame_scales(over_video, base)
    np.testing.assert_allclose(to_numpy(scales), case["scales"], rtol=1e-8)
