"""A scan of windows, a global one, and the merge."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.vscan import scan_windows
from secateur.testing import assert_selection


def slow(tokens, k, window, model):
    """Picks in order, and the merged tokens in ascending order."""
    h, w = tokens.grid
    down, across = max(1, h // window), max(1, w // window)
    owner = [
        min(i // w // window, down - 1) * across + min(i % w // window, across - 1)
        for i in range(h * w)
    ]
    half, windows = k // 2, down * across
    most = half // windows if model == "llava" else -(-half // windows)
    local, used = [], [0] * windows
    for i in np.argsort(-tokens.attention_shallow, kind="stable").tolist():
        if used[owner[i]] < most and len(local) < half:
            local.append(i)
            used[owner[i]] += 1
    order = np.argsort(-tokens.attention, kind="stable").tolist()
    picks = local + [i for i in order if i not in local][: k - len(local)]
    kept = sorted(picks)
    x = tokens.features
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    joined = {i: [i] for i in kept}
    for i in range(len(x)):
        if i not in joined:
            joined[kept[int(np.argmax(unit[kept] @ unit[i]))]].append(i)
    return picks, np.stack([x[joined[i]].mean(axis=0) for i in kept])


@pytest.mark.parametrize("grid", [(6, 6), (5, 7), (2, 9), (1, 1)])
@pytest.mark.parametrize("model", ["llava", "qwen"])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_it_is_its_definition(image, row, to_xp, to_numpy, grid, model, share):
    n = grid[0] * grid[1]
    host = image(n=n, grid=grid, batch=(2,))
    tokens = image(n=n, grid=grid, batch=(2,), convert=to_xp)
    k = max(1, int(n * share))
    chosen = sc.VScan(keep=k, window=3, model=model).select(tokens)
    assert_selection(chosen, k)
    merged = to_numpy(chosen.merge(tokens.features))
    for b in range(2):
        picks, means = slow(row(host, b), k, 3, model)
        assert to_numpy(chosen.indices)[b].tolist() == picks
        np.testing.assert_allclose(merged[b], means, rtol=1e-12, atol=1e-13)


def test_windows_of_a_grid(to_xp, to_numpy):
    scores = to_xp(np.array([[9.0, 8.0, 7.0, 6.0, 5.0, 9.0], [1.0, 2.0, 3.0, 1.0, 3.0, 3.0]]))
    assert to_numpy(scan_windows(scores, (2, 3), 1, 1)).shape == (2, 6)
    assert to_numpy(scan_windows(scores, (1, 6), 2, 1)).tolist() == [[0, 5, 2], [2, 4, 1]]
    assert to_numpy(scan_windows(scores, (2, 3), 2, 0)).tolist() == [[], []]


def test_frames_of_a_video_each_by_themselves(image):
    tokens = image(batch=(3,))
    video = tokens.with_(
        features=tokens.features.reshape(108, 8),
        attention=tokens.attention.reshape(108),
        attention_shallow=tokens.attention_shallow.reshape(108),
        keys=None,
        frames=3,
    )
    method = sc.VScan(keep=8)
    chosen = method.select(video)
    expected = method.select(tokens)
    assert chosen.indices.tolist() == np.add(expected.indices, [[0], [36], [72]]).ravel().tolist()
    merged = expected.merge(tokens.features).reshape(24, 8)
    np.testing.assert_allclose(chosen.merge(video.features), merged)


def test_without_merging_the_rest_is_dropped(image):
    chosen = sc.VScan(keep=9, merge=False).select(image())
    assert chosen.folded is None
    assert int(chosen.count) == 9


def test_no_token_is_picked_twice_where_attention_is_zero(image):
    tokens = image().with_(attention=np.zeros(36))
    for model in ("llava", "qwen"):
        assert_selection(sc.VScan(keep=20, model=model).select(tokens), 20)


def test_what_is_observed_depends_on_the_model():
    assert sc.VScan().requests["attention_shallow"].layer == 0.25
    assert sc.VScan(model="qwen").requests["attention"].by == "all"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0}, "window: expected a whole number of at least 1"),
        ({"model": "clip"}, "model: expected one of llava, qwen"),
        ({"merge": 1}, "merge: expected True or False"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        sc.VScan(**settings)
