"""HoliTom against the authors' program: windows, kept and merged tokens, the fold inside."""

from __future__ import annotations

import json

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.holitom import fold_into_attended
from secateur.core.segments import cosine_in_time, spans, still_windows

from . import calls

CASES = [f"new_holitom_{name}" for name in ("all", "grid", "none", "windows")]
DRAWN = "new_holitom_capped"


def asked(stem, case, to_xp):
    name, settings, given = calls.call(stem, case)
    given |= {key: to_xp(given[key]) for key in ("features", "attention")}
    return sc.published(name, **settings), sc.Tokens(**given)


def check(stem, case, chosen, to_numpy):
    calls.check(stem, case, chosen)
    np.testing.assert_allclose(chosen.info["share"], case["effective_ratio"], rtol=1e-12)
    per_frame = to_numpy(chosen.per_frame(len(case["features"])))
    ours = [int(per_frame[first : last + 1].sum()) for first, last in case["windows"]]
    assert sum(ours) == len(case["merged"]) - int((case["merged"] == 7).all(axis=1).sum())
    if not (case["merged"] == 7).all(axis=1).any():
        assert ours == case["per_window"].tolist()


@pytest.mark.parametrize("stem", [*CASES, DRAWN])
def test_windows(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    told = json.loads(str(case["params"]))
    still = cosine_in_time(to_xp(case["features"])) > told["tau"]
    cut, saved = still_windows(still, told["window"])
    assert saved == int(case["saved"])
    assert spans(cut) == [(first, last + 1) for first, last in case["windows"].tolist()]


@pytest.mark.parametrize("stem", CASES)
def test_selection(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    assert not calls.drawn(case)
    method, tokens = asked(stem, case, to_xp)
    check(stem, case, method.select(tokens), to_numpy)


def test_selection_with_recorded_noise(recorded, to_xp, to_numpy):
    case = recorded(DRAWN)
    assert calls.drawn(case)
    method, tokens = asked(DRAWN, case, to_xp)
    noise = [to_xp(case[name][0]) for name in sorted(case) if name.startswith("noise")]
    check(DRAWN, case, method.choose_video(tokens, 1, noise=noise), to_numpy)


def test_the_fold_inside(recorded, to_xp, to_numpy):
    case = recorded("new_holitom_inner")
    told = json.loads(str(case["params"]))
    start, stop = told["start"], told["start"] + told["length"]
    states, visual = to_xp(case["states"]), to_xp(np.arange(start, stop))
    received = case["attention"].mean(axis=0)[-1, start:stop]
    keep = round(told["length"] * (1 - told["drop"]))
    kept, folded = fold_into_attended(states, to_xp(received), visual, keep)
    assert to_numpy(kept).tolist() == sorted(case["picked"].tolist())
    around = np.setdiff1d(case["kept"], case["picked"])
    expected = dict(zip(case["kept"].tolist(), case["merged"], strict=True))
    for place, row in zip(to_numpy(kept).tolist(), to_numpy(folded), strict=True):
        np.testing.assert_allclose(row, expected[place], rtol=1e-8)
    for place in around.tolist():
        np.testing.assert_allclose(case["states"][place], expected[place], rtol=1e-8)
