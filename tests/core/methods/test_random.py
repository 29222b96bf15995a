"""Random tokens."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def test_a_seed_is_the_same_draw_on_every_library_and_in_every_batch(image, to_xp, to_numpy):
    expected = np.random.default_rng(3).permutation(36)[:10]
    for batch in ((), (2,), (2, 3)):
        chosen = sc.Random(keep=10, seed=3).select(image(batch=batch, convert=to_xp))
        assert np.array_equal(to_numpy(chosen.indices), np.broadcast_to(expected, (*batch, 10)))
        assert np.array_equal(to_numpy(chosen.count), np.full(batch, 10))


def test_seeds_differ_and_all_tokens_are_equally_likely(image):
    tokens = image(n=12)
    kept = np.stack([sc.Random(keep=3, seed=s).select(tokens).mask() for s in range(2000)])
    assert (kept.sum(axis=-1) == 3).all()
    # 2000 draws of probability 1/4: within five standard deviations of 500.
    assert np.abs(kept.sum(axis=0) - 500).max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_a_share_and_too_large_a_count(image):
    assert int(sc.Random(keep=0.25).select(image()).count) == 9
    assert sorted(sc.Random(keep=99).select(image()).indices.tolist()) == list(range(36))


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(ValueError, match="seed: expected a whole number"):
        sc.Random(seed=seed)
