"""Picks, trees over time, clusters."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.flashvid import picks_of_frames


def slow_picks(x, weight, count):
    """The matrix M of a frame (n, D), written out."""
    u = x / np.linalg.norm(x, axis=-1, keepdims=True)
    m = (1 - u @ u.T).round(11) * weight[None]
    second = np.sort(m, axis=0)[min(1, len(m) - 1)]
    picks = [int(np.argmax(second))]
    while len(picks) < count:
        reach = m[picks].min(axis=0)
        reach[picks] = -np.inf
        picks.append(int(np.argmax(reach)))
    return picks


@pytest.mark.parametrize("selection", ["attn", "div", "attn_div", "attn_div_v2"])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_picks_are_their_definition(to_xp, to_numpy, selection, count, monkeypatch):
    monkeypatch.setattr("secateur.core.methods.flashvid.TOGETHER", 250)
    dice = np.random.default_rng(0)
    x, attention = dice.normal(size=(4, 11, 5)) + 0.5, dice.random((4, 11))
    about = x.mean(axis=(0, 1))
    each = to_xp(np.repeat(about[None], 4, axis=0))
    found = picks_of_frames(to_xp(x), to_xp(attention), each, count, selection)
    for t in range(4):
        weight = np.ones(11) if selection == "div" else attention[t]
        if selection == "attn_div_v2":
            weight = weight * (x[t] @ about)
        expected = slow_picks(x[t], weight, count)
        if selection == "attn":
            expected = np.argsort(-attention[t])[:count].tolist()
        assert to_numpy(found)[t].tolist() == expected


def still(times=3, n=6, seed=1):
    dice = np.random.default_rng(seed)
    x = np.repeat(dice.normal(size=(1, n, 8)), times, axis=0)
    x = x * (1.0 + np.arange(times))[:, None, None]
    return sc.Tokens(features=x.reshape(-1, 8), attention=np.ones(times * n), frames=times)


def test_trees_of_a_still_video_are_means_over_time():
    video = still()
    # Nothing is picked, and of 18 tokens 6 are asked for: all of the first frame.
    method = sc.FlashVID(keep=2, alpha=0.0, segment=None)
    chosen = method.select(video)
    assert chosen.indices.tolist() == list(range(6))
    means = video.features.reshape(3, 6, 8).mean(axis=0)
    np.testing.assert_allclose(chosen.merge(video.features), means)


def test_the_program_halves_a_chain():
    video = still()
    chosen = sc.published("flashvid", keep=2 / 6, expansion=1.0, alpha=0.0, segment=None).select(
        video
    )
    sums = video.features.reshape(3, 6, 8).sum(axis=0)
    np.testing.assert_allclose(chosen.merge(video.features), sums / 2)


def test_a_tree_stops_where_too_few_would_be_left():
    video = still(times=2)
    # All six could join, but ten of the twelve are to be left.
    noisy = video.features.copy()
    noisy[6:] += 0.1 * np.random.default_rng(2).normal(size=(6, 8))
    method = sc.FlashVID(keep=0.75, alpha=0.0, segment=None, temporal=0.5)
    chosen = method.select(video.with_(features=noisy))
    u = noisy / np.linalg.norm(noisy, axis=-1, keepdims=True)
    best = (u[6:] @ u[:6].T).max(axis=1)
    joined = np.setdiff1d(np.arange(6, 12), chosen.indices) - 6
    # Only those more alike than the second do: the published rule leaves one more than asked.
    assert joined.tolist() == [int(np.argmax(best))]


def test_clusters_make_up_the_budget():
    dice = np.random.default_rng(4)
    for times, n, keep, alpha in ((5, 12, 5, 0.5), (8, 9, 0.4, 0.7), (3, 20, 11, 0.2)):
        video = sc.Tokens(
            features=dice.normal(size=(times * n, 16)),
            attention=dice.random(times * n),
            frames=times,
        )
        method = sc.FlashVID(keep=keep, alpha=alpha, least_segments=2, segment=-1.0)
        count = int(method.select(video).count)
        assert method.budget(times * n, times) <= count <= method.budget(times * n, times) + times


def test_one_frame_in_a_segment_clusters_what_was_not_picked():
    dice = np.random.default_rng(6)
    x, attention = dice.normal(size=(20, 6)), dice.random(20)
    image = sc.Tokens(features=x, attention=attention)
    chosen = sc.FlashVID(keep=8, alpha=0.5, selection="attn").select(image)
    picks = np.sort(np.argsort(-attention)[:4])
    rest = np.setdiff1d(np.arange(20), picks)
    centres, cluster = sc.density_clusters(x[rest], 4, 4)
    assert chosen.sorted().tolist() == sorted([*picks.tolist(), *rest[centres].tolist()])
    merged = dict(zip(chosen.sorted().tolist(), chosen.merge(x), strict=True))
    for number, centre in enumerate(rest[centres].tolist()):
        np.testing.assert_allclose(merged[centre], x[rest[cluster == number]].mean(axis=0))
    for pick in picks.tolist():
        np.testing.assert_array_equal(merged[pick], x[pick])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="selection: expected one of"):
        sc.FlashVID(selection="best")
    with pytest.raises(ValueError, match="temporal: expected a cosine"):
        sc.FlashVID(temporal=1.5)
    with pytest.raises(ValueError, match="expansion: expected"):
        sc.FlashVID(expansion=0.0)
