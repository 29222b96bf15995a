"""Cuts and windows against their definitions, written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.segments import (
    cosine_in_time,
    counted,
    cuts,
    frame_means,
    in_time,
    likeness,
    spans,
    still_windows,
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_cosines_in_time(to_xp, to_numpy, dtype, lag, monkeypatch):
    monkeypatch.setattr("secateur.core.segments.BLOCK", 40)
    x = np.random.default_rng(0).normal(size=(2, 8, 5, 4)).astype(dtype)
    x[0, 3, 1] = 0
    found = to_numpy(cosine_in_time(to_xp(x), lag))
    length = np.linalg.norm(x.astype(float), axis=-1)
    inner = (x[:, lag:].astype(float) * x[:, :-lag]).sum(-1)
    both = length[:, lag:] * length[:, :-lag]
    expected = np.divide(inner, both, out=np.zeros_like(inner), where=both > 0)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-11)
    assert to_numpy(cosine_in_time(to_xp(x), 8)).shape == (2, 0, 5)


def test_a_still_video_is_exactly_alike(to_xp, to_numpy):
    frame = np.random.default_rng(1).normal(size=(1, 6, 50)).astype(np.float32)
    found = to_numpy(cosine_in_time(to_xp(np.repeat(frame, 4, axis=0))))
    assert (found == 1).all()


def test_huge_and_tiny_vectors_stay_in_range(to_numpy, to_xp):
    x = np.array([[[1e200, 1e200]], [[1e-200, 1e-200]], [[1e200, -1e200]]])
    assert to_numpy(cosine_in_time(to_xp(x))).tolist() == [[1.0], [0.0]]


def test_cuts_are_low_ones_and_as_many_as_asked(to_xp, to_numpy):
    alike = np.array([[0.95, 0.2, 0.99, 0.93], [0.5, 0.5, 0.5, 0.5]])
    found = cuts(to_xp(alike), least=3, below=0.9)
    assert to_numpy(found).tolist() == [[False, True, False, True], [True] * 4]
    found = cuts(to_xp(alike), least=3, below=None)
    assert to_numpy(found).tolist() == [[False, True, False, True], [True, True, False, False]]
    assert to_numpy(cuts(to_xp(alike), least=9, below=None)).all()
    assert not to_numpy(cuts(to_xp(alike), least=1, below=0.0)).any()


def test_ranges_of_frames(to_xp, to_numpy):
    cut = to_xp(np.array([True, False, True]))
    assert spans(cut) == [(0, 1), (1, 3), (3, 4)]
    assert to_numpy(counted(cut)).tolist() == [1, 2, 1]
    assert spans(to_xp(np.zeros(0, dtype=bool))) == [(0, 1)]


def test_frames(to_xp, to_numpy):
    x = np.random.default_rng(2).normal(size=(2, 12, 3))
    video = in_time(to_xp(x), 4)
    assert to_numpy(video).tolist() == x.reshape(2, 4, 3, 3).tolist()
    means = to_numpy(frame_means(video))
    np.testing.assert_allclose(means, x.reshape(2, 4, 3, 3).mean(axis=2))
    expected = (means[:, 1:] * means[:, :-1]).sum(-1) / (
        np.linalg.norm(means[:, 1:], axis=-1) * np.linalg.norm(means[:, :-1], axis=-1)
    )
    np.testing.assert_allclose(to_numpy(likeness(to_xp(means))), expected, atol=1e-11)
    with pytest.raises(ValueError, match="frames: expected a divisor"):
        in_time(to_xp(x), 5)


def saving(still, cut):
    total = 0
    for start, stop in spans(cut):
        total += (stop - start - 1) * int(still[start : stop - 1].all(axis=0).sum())
    return total if len(still) else 0


@given(data=st.data())
def test_no_other_windows_save_more(data):
    times, n = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 4))
    most = data.draw(st.integers(1, 7))
    dice = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    still = dice.random((times - 1, n)) < data.draw(st.sampled_from([0.2, 0.6, 0.9]))
    cut, saved = still_windows(still, most)
    allowed = [
        np.array(each, dtype=bool)
        for each in itertools.product([False, True], repeat=times - 1)
        if max(b - a for a, b in spans(np.array(each, dtype=bool))) <= most
    ]
    best = max(saving(still, each) for each in allowed)
    assert saved == saving(still, cut) == best
    # Of the best, the last window is the shortest, then the one before, and so on.
    shortest = max(tuple(each[::-1]) for each in allowed if saving(still, each) == best)
    assert tuple(cut[::-1]) == shortest


def test_windows_come_back_as_arrays_of_the_library(to_xp, to_numpy, xp):
    cut, saved = still_windows(to_xp(np.array([[True, True], [False, True]])))
    assert saved == 2
    assert to_numpy(cut).tolist() == [False, True]
    assert cut.dtype == xp.bool


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="lag: expected"):
        cosine_in_time(np.ones((2, 2, 2)), 0)
    with pytest.raises(ValueError, match="least: expected"):
        cuts(np.ones(3), least=0)
    with pytest.raises(ValueError, match="most: expected"):
        still_windows(np.ones((2, 2), dtype=bool), 0)
