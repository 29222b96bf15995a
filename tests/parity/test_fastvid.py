"""FastVID against the authors' programs: segments, density, salient, kept and merged tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest

import secateur as sc
from secateur.core.density import density_peaks
from secateur.core.segments import counted, cuts, likeness

from . import calls

CASES = ["new_fastvid_cuts", "new_fastvid_plain", "new_fastvid_uneven"]


def asked(stem, case, to_xp):
    name, settings, given = calls.call(stem, case)
    given |= {key: to_xp(given[key]) for key in ("features", "attention", "frame_features")}
    return sc.published(name, **settings), sc.Tokens(**given)


@pytest.mark.parametrize("stem", CASES)
def test_segments(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    told = json.loads(str(case["params"]))
    cut = cuts(likeness(to_xp(case["frame_features"])), told["c"], told["tau"])
    assert to_numpy(counted(cut)).tolist() == case["segment_sizes"].tolist()


@pytest.mark.parametrize("stem", ["new_fastvid_cuts", "new_fastvid_uneven"])
def test_density(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    rest = [np.setdiff1d(np.arange(case["features"].shape[1]), own) for own in case["salient"]]
    x = np.stack([frame[own] for frame, own in zip(case["features"], rest, strict=True)])
    score = density_peaks(to_xp(x), 4, noise=to_xp(case["noise"]))
    np.testing.assert_allclose(to_numpy(score), case["density_score"], rtol=1e-8)


@pytest.mark.parametrize("stem", [stem for stem in CASES if not stem.endswith("uneven")])
def test_selection(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    assert not calls.drawn(case)
    method, tokens = asked(stem, case, to_xp)
    chosen = method.select(tokens)
    calls.check(stem, case, chosen)
    assert to_numpy(chosen.per_frame(tokens.frames)).tolist() == case["per_frame"].tolist()


def test_selection_with_recorded_noise(recorded, to_xp, to_numpy):
    case = recorded("new_fastvid_uneven")
    assert calls.drawn(case)
    method, tokens = asked("new_fastvid_uneven", case, to_xp)
    k = method.budget(tokens.size, tokens.frames)
    chosen = method.choose_video(tokens, k, noise=to_xp(case["noise"]))
    calls.check("new_fastvid_uneven", case, chosen)
    assert to_numpy(chosen.per_frame(tokens.frames)).tolist() == case["per_frame"].tolist()
