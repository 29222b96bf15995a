"""What holds for every method on a video, whatever is in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.core.methods.video import VideoMethod
from secateur.testing import assert_selection

VIDEO = sorted(name for name, kind in sc.methods().items() if issubclass(kind, VideoMethod))
MERGING = ["fastvid", "flashvid", "holitom"]
EXACT = {
    "evs": {},
    "dycoke": {},
    "fastvid": {},
    "vidcom2": {"exact": True},
}


@st.composite
def videos(draw: st.DrawFn, *, still: bool = False) -> sc.Tokens:
    """Random tokens of a few frames; coarse ones are full of ties, slow ones hardly move."""
    times, n = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    width = draw(st.integers(2, 6))
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = dice.normal(size=(times, n, width))
    kind = "still" if still else draw(st.sampled_from(["random", "coarse", "slow", "still"]))
    if kind == "coarse":
        x = np.round(x)
    elif kind != "random":
        pace = 0.0 if kind == "still" else 0.3
        x = x[:1] + pace * x
    attention = dice.gamma(0.5, size=(times, n))
    if still:
        attention[:] = attention[:1]
    return sc.Tokens(
        features=x.reshape(-1, width),
        attention=attention.ravel(),
        frames=times,
        frame_features=draw(st.sampled_from([None, x.mean(axis=1)])),
    )


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("published", [False, True])
@given(tokens=videos(), share=st.floats(0.02, 1.0))
@settings(max_examples=25)
def test_a_selection_of_the_whole_video(name, published, tokens, share):
    make = sc.published if published else sc.method
    method = make(name, keep=share)
    chosen = method.select(tokens)
    assert_selection(chosen, None)
    assert chosen.size == tokens.size
    assert int(chosen.per_frame(tokens.frames).sum()) == int(chosen.count)
    # HoliTom's program may round a window to nothing.
    assert int(chosen.count) >= 1 or (name == "holitom" and published)
    if method.counted_from == "size":
        assert int(chosen.count) == method.budget(tokens.size, tokens.frames)
    merged = chosen.merge(tokens.features)
    assert merged.shape == (int(chosen.count), tokens.features.shape[-1])
    assert np.isfinite(merged).all()


@pytest.mark.parametrize("name", EXACT)
@given(tokens=videos(), data=st.data())
@settings(max_examples=25)
def test_budgets_are_exact_where_the_method_says_so(name, tokens, data):
    n = tokens.size // tokens.frames
    keep = data.draw(st.integers(1, n), label="keep")
    method = sc.method(name, keep=keep, **EXACT[name])
    assert method.counted_from == "size"
    count = int(method.select(tokens).count)
    assert count == method.budget(tokens.size, tokens.frames)
    if name in ("fastvid", "vidcom2"):
        assert count == keep * tokens.frames
    elif name == "evs":
        assert count == max(n, keep * tokens.frames)


@pytest.mark.parametrize("name", MERGING)
@given(tokens=videos(), share=st.floats(0.05, 1.0))
@settings(max_examples=25)
def test_what_a_kept_token_holds_is_a_mean(name, tokens, share):
    chosen = sc.method(name, keep=share).select(tokens)
    ones = chosen.merge(np.ones((tokens.size, 1)))
    np.testing.assert_allclose(ones, 1.0, rtol=1e-12)
    if chosen.folded is not None:
        assert set(chosen.folded.tolist()) - {-1} == set(chosen.indices.tolist())
        kept = chosen.indices
        assert chosen.folded[kept].tolist() == kept.tolist()


@pytest.mark.parametrize("name", [each for each in VIDEO if each not in MERGING])
@given(tokens=videos(still=True), share=st.floats(0.05, 1.0), data=st.data())
@settings(max_examples=25)
def test_permuting_the_frames_of_a_still_video_changes_nothing(name, tokens, share, data):
    # A frame that is another, but for its length, is that frame to a cosine.
    times = tokens.frames
    order = data.draw(st.permutations(range(times)))
    x = tokens.features.reshape(times, -1, tokens.features.shape[-1])
    scaled = x * 2.0 ** np.arange(times)[:, None, None]
    method = sc.method(name, keep=share)
    one, other = (
        method.select(tokens.with_(features=each.reshape(tokens.features.shape)))
        for each in (scaled, scaled[order])
    )
    assert one.indices.tolist() == other.indices.tolist()
    budgets = [
        sc.allocate_in_time(each.reshape(tokens.features.shape), times, times).tolist()
        for each in (scaled, scaled[order])
    ]
    assert budgets[0] == budgets[1]


@pytest.mark.parametrize("name", VIDEO)
@given(tokens=videos(), share=st.floats(0.05, 1.0))
@settings(max_examples=10)
def test_numpy_and_torch_agree_in_float64(name, tokens, share):
    torch = pytest.importorskip("torch")
    given_ = {
        key: torch.asarray(np.copy(getattr(tokens, key)))
        for key in ("features", "attention", "frame_features")
        if getattr(tokens, key) is not None
    }
    method = sc.method(name, keep=share)
    chosen = method.select(sc.Tokens(**given_, frames=tokens.frames))
    here = method.select(tokens)
    assert chosen.indices.tolist() == here.indices.tolist()
    np.testing.assert_allclose(
        chosen.merge(given_["features"]).numpy(), here.merge(tokens.features), atol=1e-12
    )


@pytest.mark.parametrize("name", VIDEO)
@given(tokens=videos(), share=st.floats(0.05, 1.0))
@settings(max_examples=10)
def test_a_batch_is_its_videos_one_by_one(name, tokens, share):
    other = tokens.with_(
        features=np.flip(tokens.features, axis=0), attention=tokens.attention[::-1]
    )
    both = tokens.with_(
        **{
            key: np.stack([getattr(tokens, key), getattr(other, key)])
            for key in ("features", "attention", "frame_features")
            if getattr(tokens, key) is not None
        }
    )
    method = sc.method(name, keep=share)
    together = method.select(both)
    merged = together.merge(both.features)
    for row, one in enumerate((tokens, other)):
        alone = method.select(one)
        assert together.row(row).indices.tolist() == alone.indices.tolist()
        np.testing.assert_allclose(
            merged[row][: int(alone.count)], alone.merge(one.features), atol=1e-12
        )


@pytest.mark.parametrize("over", ["frame", "change", "video"])
@pytest.mark.parametrize("name", ["topk", "divprune", "fps", "dart"])
@given(tokens=videos(), data=st.data())
@settings(max_examples=10)
def test_a_video_of_one_frame_is_an_image(name, over, tokens, data):
    n = tokens.size // tokens.frames
    keep = data.draw(st.integers(1, n))
    image = sc.Tokens(
        features=tokens.features[:n], attention=tokens.attention[:n], keys=tokens.features[:n]
    )
    one = sc.method(name, keep=keep).select(image)
    other = sc.method(name, keep=keep, over=over).select(image.with_(frames=1))
    assert one.indices.tolist() == other.indices.tolist()


@given(tokens=videos(), data=st.data())
@settings(max_examples=15)
def test_of_one_frame_those_by_attention_keep_the_most_attended(tokens, data):
    n = tokens.size // tokens.frames
    keep = data.draw(st.integers(1, n))
    image = sc.Tokens(features=tokens.features[:n], attention=tokens.attention[:n])
    expected = sc.TopK(keep=keep).select(image).sorted().tolist()
    for method in (
        sc.HoliTom(keep=keep),
        sc.FlashVID(keep=keep, alpha=1.0, selection="attn"),
        sc.FastVID(keep=keep, context=0.0),
    ):
        assert method.select(image).sorted().tolist() == expected


@pytest.mark.parametrize("name", ["topk", "divprune", "fps"])
@given(tokens=videos(), data=st.data())
@settings(max_examples=15)
def test_over_the_video_all_frames_are_one_image(name, tokens, data):
    keep = data.draw(st.integers(1, tokens.size // tokens.frames))
    image = sc.Tokens(features=tokens.features, attention=tokens.attention)
    whole = sc.method(name, keep=keep * tokens.frames).select(image)
    video = sc.method(name, keep=keep, over="video").select(image.with_(frames=tokens.frames))
    assert video.indices.tolist() == whole.indices.tolist()


@pytest.mark.parametrize("name", ["evs", "dycoke"])
@given(tokens=videos(), share=st.floats(0.02, 1.0))
@settings(max_examples=10)
def test_what_is_dropped_where_it_stands_still_keeps_an_image_whole(name, tokens, share):
    n = tokens.size // tokens.frames
    image = sc.Tokens(features=tokens.features[:n])
    assert sc.method(name, keep=share).select(image).sorted().tolist() == list(range(n))
