"""What changed since the frame before."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def slow(x, k):
    d = np.full(x.shape[:2], 255.0)
    for t in range(1, len(x)):
        for i in range(x.shape[1]):
            lengths = np.linalg.norm(x[t, i]) * np.linalg.norm(x[t - 1, i])
            d[t, i] = 1 - (x[t, i] @ x[t - 1, i] / lengths if lengths else 0.0)
    return np.sort(np.argsort(-d.ravel().round(11), kind="stable")[:k])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 3, 9])
def test_it_is_its_definition(xp, to_xp, to_numpy, keep, dtype):
    if not hasattr(xp, dtype):
        pytest.skip("the library has no 16-bit floats")
    x = np.random.default_rng(0).normal(size=(2, 5, 9, 6)).astype(dtype)
    x[1, 2, 3] = 0
    tokens = sc.Tokens(features=to_xp(x.reshape(2, 45, 6)), frames=5)
    method = sc.EVS(keep=keep)
    k = max(9, int(45 * keep + 1e-9) if isinstance(keep, float) else 5 * keep)
    assert method.budget(45, 5) == k
    chosen = method.select(tokens)
    for b in range(2):
        expected = slow(x[b].astype(float), k)
        assert to_numpy(chosen.indices)[b].tolist() == expected.tolist()


def test_the_share_is_cut_as_it_stands_where_published():
    share = 1 - 0.9
    assert sc.EVS(keep=share).budget(1000, 100) == 100
    assert sc.published("evs", keep=share).budget(1000, 100) == 99


def test_frames_may_lose_all_their_tokens(to_xp, to_numpy):
    x = np.random.default_rng(1).normal(size=(1, 4, 3)).repeat(3, axis=0)
    x[2] = -x[2]
    tokens = sc.Tokens(features=to_xp(x.reshape(12, 3)), frames=3)
    chosen = sc.EVS(keep=0.5).select(tokens)
    assert to_numpy(chosen.per_frame(3)).tolist() == [4, 0, 2]
    assert to_numpy(chosen.indices).tolist() == [0, 1, 2, 3, 8, 9]
