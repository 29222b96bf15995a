"""Change over time, budgets by it, and frames joined to a video."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from secateur.core.frames import change, joined
from secateur.core.selection import Selection, Shares
from secateur.testing import assert_selection


@pytest.mark.parametrize("memory", [1, 2, 9])
def test_change_is_its_definition(to_xp, to_numpy, memory):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 6))
    found = to_numpy(change(to_xp(x.reshape(2, 20, 6)), 5, memory=memory))
    u = x / np.linalg.norm(x, axis=-1, keepdims=True)
    for b in range(2):
        assert found[b, 0] == 1
        for t in range(1, 5):
            seen = [(u[b, t] * u[b, s]).sum(-1) for s in range(max(0, t - memory), t)]
            np.testing.assert_allclose(found[b, t], np.mean(1 - np.max(seen, axis=0)), atol=1e-10)


def test_what_was_seen_before_is_not_new(to_numpy):
    a, b = np.eye(2)
    video = np.stack([a, b, a])
    assert change(video, 3).tolist() == [1, 1, 1]
    assert change(video, 3, memory=2).tolist() == [1, 1, 0]


@given(data=st.data())
def test_budgets_over_time_are_exact(data):
    times, n = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    total = data.draw(st.integers(1, times * n))
    least = data.draw(st.integers(0, n))
    dice = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    video = dice.integers(-1, 2, size=(2, times * n, 3)).astype(float)
    counts = sc.allocate_in_time(video, times, total, least=least)
    assert counts.shape == (2, times)
    assert (counts.sum(axis=-1) == total).all()
    assert counts.min() >= min(least, total // times)
    assert counts.max() <= n
    for row, own in zip(change(video, times), counts, strict=True):
        assert (np.diff(own[np.lexsort((own, row.clip(0)))]) >= 0).all()


def test_a_frame_that_differs_gets_more(to_xp, to_numpy):
    video = np.repeat(np.eye(3)[[0, 0, 1, 1]], 10, axis=0)
    counts = sc.allocate_in_time(to_xp(video), 4, 16, least=2)
    assert to_numpy(counts).tolist() == [6, 2, 6, 2]


def test_frames_are_joined(to_xp, to_numpy):
    frames = Selection(
        to_xp(np.array([[[2, 0], [1, -1]], [[0, 1], [2, 1]]])),
        to_xp(np.array([[2, 1], [2, 2]])),
        3,
        gains=to_xp(np.array([[[5.0, 4.0], [3.0, 0.0]], [[1.0, 1.0], [2.0, 1.0]]])),
        scores=to_xp(np.arange(12.0).reshape(2, 2, 3)),
        value=to_xp(np.array([[9.0, 3.0], [2.0, 3.0]])),
        folded=to_xp(np.array([[[0, 2, 2], [1, 1, -1]], [[0, 1, 1], [1, 1, 2]]])),
        fold_weights=to_xp(np.ones((2, 2, 3))),
    )
    video = joined(frames)
    assert_selection(video, [3, 4])
    assert to_numpy(video.indices).tolist() == [[2, 0, 4, -1], [0, 1, 5, 4]]
    assert to_numpy(video.gains).tolist() == [[5, 4, 3, 0], [1, 1, 2, 1]]
    assert to_numpy(video.folded).tolist() == [[0, 2, 2, 4, 4, -1], [0, 1, 1, 4, 4, 5]]
    assert to_numpy(video.scores).tolist() == np.arange(12.0).reshape(2, 6).tolist()
    assert to_numpy(video.info["value"]).tolist() == [[9, 3], [2, 3]]
    assert to_numpy(video.per_frame(2)).tolist() == [[2, 1], [2, 2]]
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
    apart = to_numpy(frames.merge(to_xp(x)))
    whole = to_numpy(video.merge(to_xp(x.reshape(2, 6, 5))))
    np.testing.assert_allclose(whole[1], apart[1].reshape(4, 5))
    np.testing.assert_allclose(whole[0, :3], apart[0].reshape(4, 5)[:3])


def test_shares_are_joined(to_xp, to_numpy):
    shares = Shares(
        to_xp(np.array([[0, 1], [1, 0]])),
        to_xp(np.array([[0, 0], [1, -1]])),
        to_xp(np.array([[0.5, 0.5], [2.0, 0.0]])),
    )
    frames = Selection(to_xp(np.array([[0], [1]])), to_xp(np.array([1, 1])), 2, shares=shares)
    x = to_xp(np.array([[1.0], [3.0], [5.0], [7.0]]))
    assert to_numpy(joined(frames).merge(x)).tolist() == [[2.0], [14.0]]


def tokens(times, n, seed=0, **more):
    dice = np.random.default_rng(seed)
    return sc.Tokens(
        features=dice.normal(size=(times * n, 6)),
        attention=dice.random(times * n),
        text=dice.normal(size=(3, 6)),
        frames=times,
        **more,
    )


@pytest.mark.parametrize("name", ["topk", "divprune", "eadp", "hiprune", "uniform", "visionzip"])
def test_a_video_frame_by_frame_is_its_frames(name):
    video = tokens(3, 12, grid=(3, 4))
    video = video.with_(keys=video.features, attention_shallow=video.attention)
    method = sc.method(name, keep=5)
    chosen = method.select(video)
    frames = method.select(video.each_frame())
    assert_selection(chosen, 15)
    assert method.budget(36, 3) == 15
    for t in range(3):
        own = chosen.indices[5 * t : 5 * (t + 1)] - 12 * t
        assert own.tolist() == frames.row(t).indices.tolist()
    x = video.features
    np.testing.assert_allclose(
        chosen.merge(x), frames.merge(x.reshape(3, 12, 6)).reshape(15, 6), atol=1e-12
    )


def test_a_batch_of_videos_beside_an_image():
    one, two = tokens(2, 8), tokens(2, 8, seed=1)
    both = one.with_(
        features=np.stack([one.features, two.features]),
        attention=np.stack([one.attention, two.attention]),
    )
    image = tokens(1, 8, seed=2).with_(frames=None)
    for over in ("frame", "change", "video"):
        method = sc.TopK(keep=0.5, over=over)
        together, alone = method.select([both, image])
        assert alone.indices.tolist() == sc.TopK(keep=0.5).select(image).indices.tolist()
        for row, each in enumerate((one, two)):
            assert together.row(row).indices.tolist() == method.select(each).indices.tolist()


def test_one_pool_of_all_frames():
    video = tokens(4, 9, grid=(3, 3))
    chosen = sc.TopK(keep=2, over="video").select(video)
    assert sorted(chosen.indices.tolist()) == sorted(np.argsort(-video.attention)[:8].tolist())
    chosen = sc.DivPrune(keep=2, over="video").select(video)
    pool = sc.DivPrune(keep=8).select(video.with_(frames=None, grid=None))
    assert chosen.indices.tolist() == pool.indices.tolist()
    assert_selection(sc.EADP(keep=0.25, over="video").select(video), 9)


def test_eadp_smooths_each_frame_by_itself():
    video = tokens(2, 12, grid=(3, 4))
    method = sc.EADP(keep=3, over="video", sign=1)
    relevance = method.relevance(video)
    # Without smoothing the minimum and maximum of the pool are shared; smoothing is linear.
    plain = sc.EADP(keep=3, over="video", sign=1, smoothing=0.0).relevance(video)
    expected = [sc.smooth(frame, (3, 4)) for frame in plain.reshape(2, 12)]
    np.testing.assert_allclose(relevance, np.concatenate(expected))


def test_budgets_follow_change():
    features = np.repeat(np.random.default_rng(0).normal(size=(2, 8, 4)), [3, 1], axis=0)
    video = sc.Tokens(
        features=features.reshape(32, 4), attention=np.random.default_rng(1).random(32), frames=4
    )
    chosen = sc.TopK(keep=4, over="change").select(video)
    expected = sc.allocate_in_time(video.features, 4, 16)
    assert chosen.per_frame(4).tolist() == expected.tolist()
    assert expected[1] == expected[2] == 1
    for t, count in enumerate(expected.tolist()):
        frame = sc.Tokens(
            features=video.features[8 * t : 8 * t + 8], attention=video.attention[8 * t : 8 * t + 8]
        )
        own = chosen.sorted()
        own = own[(own >= 8 * t) & (own < 8 * t + 8)] - 8 * t
        assert own.tolist() == sc.TopK(keep=count).select(frame).sorted().tolist()


def test_methods_that_need_a_grid_refuse_a_pool():
    video = tokens(2, 12, grid=(3, 4)).with_(attention_shallow=np.ones(24))
    with pytest.raises(ValueError, match="over: HiPrune works from grid"):
        sc.HiPrune(keep=3, over="video").select(video)
    with pytest.raises(ValueError, match="over: expected one of frame, change, video"):
        sc.TopK(keep=3, over="time")
    with pytest.raises(ValueError, match="over: EVS sees a video whole"):
        sc.EVS(keep=3, over="frame")


def test_over_is_printed_where_it_says_more():
    assert repr(sc.TopK(keep=3)) == "TopK(keep=3)"
    assert "over" not in repr(sc.EVS(keep=3))
    method = sc.TopK(keep=3, over="video")
    assert sc.Method.from_dict(method.to_dict()) == method
    assert repr(method) == "TopK(keep=3, over='video')"
