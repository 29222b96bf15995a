"""Of four frames one stays whole; a cache that moves."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.dycoke import moving_cache


@pytest.mark.parametrize("times", range(1, 10))
def test_every_frame_has_its_turn(to_xp, to_numpy, times):
    x = np.random.default_rng(times).normal(size=(times, 10, 4))
    tokens = sc.Tokens(features=to_xp(x.reshape(-1, 4)), frames=times)
    method = sc.DyCoke(drop=0.7)
    chosen = method.select(tokens)
    expected = [10 if t % 4 == 0 else 3 for t in range(times)]
    assert to_numpy(chosen.per_frame(times)).tolist() == expected
    assert method.budget(10 * times, times) == sum(expected)
    kept = to_numpy(chosen.sorted())
    u = x / np.linalg.norm(x, axis=-1, keepdims=True)
    for t in range(times):
        if t % 4:
            alike = (u[t] * u[t - 1 if t % 2 else t - 2]).sum(-1)
            own = kept[(kept >= 10 * t) & (kept < 10 * t + 10)] - 10 * t
            assert own.tolist() == sorted(np.argsort(alike)[:3].tolist())


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (4, [10, 3, 10, 3]),
        (5, [10, 3, 10, 3, 0]),
        (6, [10, 3, 3, 3, 10, 3]),
        (8, [10, 3, 3, 3, 10, 3, 10, 3]),
        (1, [10]),
    ],
)
def test_the_program_ends_otherwise(times, expected):
    assert sc.published("dycoke").per_frame(10, times) == expected


def test_a_share_of_the_whole():
    method = sc.DyCoke(keep=0.5)
    # 80 whole beside 240 in reduced frames, of which 80 are left of the half.
    assert method.per_frame(20, 16) == [20 if t % 4 == 0 else 6 for t in range(16)]
    assert sc.DyCoke(keep=0.1).per_frame(20, 4) == [20, 1, 1, 1]
    assert sc.DyCoke(drop=0.9).per_frame(10, 2) == [10, 1]
    assert sc.published("dycoke", drop=0.9).per_frame(10, 2) == [10, 0]


def test_the_cache_shows_all_while_attention_stays(to_xp, to_numpy):
    before = to_xp(np.array([0.1, 0.2, 0.3, 0.4]))
    seen, likeness = moving_cache(to_xp(np.array([0.1, 0.2, 0.3, 0.39])), before, keep=0.5)
    assert to_numpy(seen).all()
    assert float(likeness) > 0.99
    seen, likeness = moving_cache(to_xp(np.array([0.9, 0.0, 0.05, 0.05])), before, keep=0.5)
    assert to_numpy(seen).tolist() == [True, False, True, False]
    assert float(likeness) < 0.9
    both, _ = moving_cache(to_xp(np.array([[0.9, 0.0], [0.1, 0.2]])), keep=0.5)
    assert to_numpy(both).tolist() == [[True, False], [False, True]]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="before: expected shape"):
        moving_cache(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="drop: expected a share"):
        sc.DyCoke(drop=1.5)
