"""EVS against vLLM's program, by the authors' company: kept tokens and their number."""

from __future__ import annotations

import pytest

import secateur as sc

from . import calls

CASES = ["new_evs_drift", "new_evs_floor", "new_evs_ties"]


@pytest.mark.parametrize("stem", CASES)
def test_selection(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    name, settings, given = calls.call(stem, case)
    given["features"] = to_xp(given["features"])
    chosen = sc.published(name, **settings).select(sc.Tokens(**given))
    calls.check(stem, case, chosen)
    assert to_numpy(chosen.per_frame(given["frames"])).tolist() == case["per_frame"].tolist()
    frames, n, _ = case["features"].shape
    assert sc.published(name, **settings).budget(frames * n, frames) == int(case["count"])
