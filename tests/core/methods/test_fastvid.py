"""Salient tokens, and density peaks of segments that take in the rest."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def clip(times, n, seed=0, **more):
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(times, n, 6))
    return sc.Tokens(
        features=x.reshape(-1, 6), attention=dice.random(times * n), frames=times, **more
    )


@pytest.mark.parametrize("variant", ["parallel", "plain"])
@pytest.mark.parametrize(("times", "n", "keep"), [(7, 9, 4), (12, 20, 0.3), (1, 8, 3), (5, 10, 9)])
def test_all_of_the_budget_is_spent(variant, times, n, keep):
    for stride in (1, 2, 4):
        method = sc.FastVID(keep=keep, segments=3, cut=-1.0, variant=variant, stride=stride)
        chosen = method.select(clip(times, n))
        count = keep if isinstance(keep, int) else int(n * keep)
        assert int(chosen.count) == times * count == method.budget(times * n, times)


def test_anchors_are_counted_back_from_the_last():
    method = sc.FastVID(keep=10, context=0.4, stride=3)
    salient, context = method.shares_of_frames(7, 60, np.zeros(6, dtype=bool))
    assert salient == [6] * 7
    assert context == [9, 0, 0, 9, 0, 0, 10]
    told = sc.published("fastvid", keep=10, context=0.4, stride=3)
    assert told.shares_of_frames(7, 60, np.zeros(6, dtype=bool))[1] == [9, 0, 0, 9, 0, 0, 9]


def test_plain_shares_go_evenly_over_a_segment():
    method = sc.FastVID(keep=5, context=0.3, stride=4, variant="plain")
    salient, context = method.shares_of_frames(6, 60, np.zeros(5, dtype=bool))
    # 30 tokens, 9 of context in the last and the second frame, 21 salient.
    assert salient == [4, 4, 4, 3, 3, 3]
    assert context == [0, 4, 0, 0, 0, 5]


def test_what_an_anchor_has_no_room_for_goes_on():
    method = sc.FastVID(keep=8, context=0.5, stride=4)
    salient, context = method.shares_of_frames(4, 10, np.zeros(3, dtype=bool))
    assert salient == [4] * 4
    assert context == [3, 3, 4, 6]


def test_qwens_variant_skips_runs_and_caps():
    method = sc.FastVID(keep=4, context=0.5, stride=2, variant="qwen")
    run = np.array([True, True, False, False])
    # Of five frames the third, fourth and fifth may keep: anchors are the fifth and the third.
    salient, context = method.shares_of_frames(5, 10, run)
    assert context == [0, 0, 5, 0, 5]
    assert salient == [0, 0, 4, 3, 3]
    salient, context = method.shares_of_frames(5, 6, run)
    assert context == [0, 0, 3, 0, 3]
    assert salient == [0, 0, 3, 4, 3]
    least = sc.FastVID(keep=1, context=0.1, variant="qwen")
    assert least.shares_of_frames(2, 10, np.zeros(1, dtype=bool)) == ([1, 0], [0, 1])
    video = clip(6, 12)
    chosen = sc.FastVID(keep=4, variant="qwen", segments=2, same=0.5).select(video)
    assert 0 < int(chosen.count) <= 24


def test_a_token_goes_once_into_each_anchor_frame():
    video = clip(8, 10)
    chosen = sc.FastVID(keep=3, segments=1, cut=-1.0, stride=4, context=0.5).select(video)
    source, target, _ = chosen.shares
    kept_whole = source[(source == target)]
    for t in (3, 7):
        own = source[(target >= 10 * t) & (target < 10 * t + 10)]
        beside = own[~np.isin(own, kept_whole)]
        # Every dropped token of the segment joins a centre of this frame, and only one.
        dropped = np.setdiff1d(np.arange(80), chosen.indices)
        assert sorted(beside.tolist()) == dropped.tolist()


def test_centres_weigh_beta_at_least():
    video = clip(4, 12)
    ones = np.zeros((48, 48))
    np.fill_diagonal(ones, 1.0)
    for beta in (0.0, 0.6, 1.0):
        chosen = sc.FastVID(keep=3, segments=1, cut=-1.0, context=0.7, beta=beta).select(video)
        own = chosen.merge(ones)[np.arange(12), chosen.indices]
        assert (own >= beta).all()
        if beta == 1.0:
            np.testing.assert_array_equal(
                chosen.merge(video.features), chosen.gather(video.features)
            )


def test_frames_are_compared_by_their_features_or_their_means():
    video = clip(6, 9)
    means = video.features.reshape(6, 9, 6).mean(axis=1)
    method = sc.FastVID(keep=4, segments=3, cut=-1.0)
    one, same = (method.select(video.with_(frame_features=g)) for g in (None, means))
    assert one.indices.tolist() == same.indices.tolist()
