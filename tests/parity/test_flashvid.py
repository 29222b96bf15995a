"""FlashVID against the authors' program: segments, picks, kept and merged tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.flashvid import picks_of_frames
from secateur.core.segments import counted, cuts, frame_means, likeness, spans

from . import calls

CASES = [f"new_flashvid_{name}" for name in ("single", "soft0", "v1", "v2")]


def asked(stem, case, to_xp):
    name, settings, given = calls.call(stem, case)
    given |= {key: to_xp(given[key]) for key in ("features", "attention")}
    return sc.published(name, **settings), sc.Tokens(**given)


def segments(case, to_xp):
    told = json.loads(str(case["params"]))
    alike = likeness(frame_means(to_xp(case["features"])))
    return cuts(alike, told["min_segment_num"], told["segment_threshold"])


@pytest.mark.parametrize("stem", CASES)
def test_segments(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    cut = segments(case, to_xp)
    assert to_numpy(counted(cut)).tolist() == case["segment_sizes"].tolist()


@pytest.mark.parametrize("stem", CASES)
def test_picks(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    method, _ = asked(stem, case, to_xp)
    for start, stop in spans(segments(case, to_xp)):
        frames = to_xp(case["features"][start:stop])
        about = case["features"][start:stop].mean(axis=(0, 1))
        about = to_xp(np.repeat(about[None], stop - start, axis=0))
        picks = picks_of_frames(
            frames,
            to_xp(case["attention"][start:stop]),
            about,
            case["picked"].shape[-1],
            method.selection,
        )
        ours = np.sort(to_numpy(picks), axis=-1)
        assert ours.tolist() == np.sort(case["picked"][start:stop], axis=-1).tolist()


@pytest.mark.parametrize("stem", ["new_flashvid_soft0"])
def test_selection(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    assert not calls.drawn(case)
    method, tokens = asked(stem, case, to_xp)
    chosen = method.select(tokens)
    calls.check(stem, case, chosen)
    assert to_numpy(chosen.per_frame(tokens.frames)).tolist() == case["per_frame"].tolist()


@pytest.mark.parametrize("stem", ["new_flashvid_v1", "new_flashvid_v2"])
def test_with_recorded_noise(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    assert calls.drawn(case)
    method, tokens = asked(stem, case, to_xp)
    names = sorted((name for name in case if name.startswith("noise")), key=lambda n: int(n[6:]))
    noise = [to_xp(case[name][0]) for name in names]
    check_but_twice(case, method.choose_video(tokens, 1, noise=noise), to_numpy)


def test_segments_of_one_frame(recorded, to_xp, to_numpy):
    case = recorded("new_flashvid_single")
    method, tokens = asked("new_flashvid_single", case, to_xp)
    check_but_twice(case, method.select(tokens), to_numpy)


def check_but_twice(case, chosen, to_numpy):
    """Places that the program keeps twice are kept once, as they were picked."""
    places, times = np.unique(case["kept"], return_counts=True)
    assert to_numpy(chosen.sorted()).tolist() == places.tolist()
    flat = case["features"].reshape(-1, case["features"].shape[-1])
    merged = to_numpy(chosen.merge(flat))
    for place, many, row in zip(places.tolist(), times.tolist(), merged, strict=True):
        theirs = case["merged"][case["kept"] == place]
        expected = theirs[0] if many == 1 else flat[place]
        np.testing.assert_allclose(row, expected, rtol=1e-8, atol=1e-10)
        assert any(np.allclose(row, one, rtol=1e-8) for one in theirs)
