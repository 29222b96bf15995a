"""What needs little memory: facility location without its matrix, methods for videos."""

import math
import tracemalloc

import numpy as np
import pytest

import secateur as sc
from secateur.testing import assert_selection


@pytest.mark.slow
def test_fifty_thousand_tokens_within_a_gigabyte():
    resource = pytest.importorskip("resource", reason="reads the peak memory as Linux counts it")
    x = np.random.default_rng(0).normal(size=(50_000, 64)).astype(np.float32)
    sc.maximize(sc.FacilityLocation.from_features(x[:100]), 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    picks = sc.maximize(sc.FacilityLocation.from_features(x), 100)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
    assert_selection(picks, 100)
    assert float(picks.guarantee) >= 1 - 1 / math.e


def scenes(times, n=16, width=256):
    """A video whose scenes are eight frames long."""
    dice = np.random.default_rng(0)
    x = np.repeat(dice.normal(size=(times // 8, n, width)), 8, axis=0).astype(np.float32)
    x[:, : n // 2] += 0.3 * dice.normal(size=(times, n // 2, width)).astype(np.float32)
    return sc.Tokens(
        features=x.reshape(-1, width), attention=dice.gamma(0.5, size=times * n), frames=times
    )


VIDEOS = {
    "evs": sc.EVS(keep=0.25),
    "vidcom2": sc.VidCom2(keep=0.25),
    "dycoke": sc.DyCoke(keep=0.4),
    "fastvid": sc.FastVID(keep=0.25),
    "holitom": sc.HoliTom(keep=0.25),
    "flashvid": sc.FlashVID(keep=0.25),
    "topk by change": sc.TopK(keep=0.25, over="change"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_longer_videos_are_worked_on_a_few_frames_at_a_time(monkeypatch, name):
    for module in ("segments.BLOCK", "methods.flashvid.TOGETHER", "methods.fastvid.TOGETHER"):
        monkeypatch.setattr(f"secateur.core.{module}", 1 << 14)
    peaks, method = [], VIDEOS[name]
    method.select(scenes(16))
    short, long = scenes(128), scenes(384)
    for video in (short, long):
        tracemalloc.start()
        try:
            method.select(video)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # What grows are a few numbers a token, such as where it goes, and none of its features.
    more = long.features.nbytes - short.features.nbytes
    assert peaks[1] - peaks[0] < more / 3
