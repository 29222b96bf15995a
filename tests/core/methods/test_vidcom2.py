"""The least ordinary tokens, more of them in unlike frames."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.vidcom2 import least_varying


def clip(times=6, n=10, width=8, odd=4, seed=0):
    """Frames that are alike, but for one."""
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(1, n, width)) + 0.05 * dice.normal(size=(times, n, width))
    x[odd] = dice.normal(size=(n, width))
    return x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_unlike_frame_keeps_more(to_xp, to_numpy, dtype):
    x = clip().astype(dtype)
    tokens = sc.Tokens(features=to_xp(x.reshape(60, 8)), frames=6)
    counts = to_numpy(sc.VidCom2(keep=0.35).select(tokens).per_frame(6))
    # 0.35 (2 - 1/6) of ten tokens for it, 0.35 (1 - 1/6) for the others.
    assert counts.tolist() == [3, 3, 3, 3, 6, 3]


def test_exactly_as_many_as_asked(to_xp, to_numpy):
    x = to_xp(clip().reshape(60, 8))
    tokens = sc.Tokens(features=x, frames=6)
    for keep in (1, 3, 5, 0.31, 0.02):
        method = sc.VidCom2(keep=keep, exact=True)
        count = max(6, 6 * keep if isinstance(keep, int) else int(60 * keep + 1e-9))
        assert int(method.select(tokens).count) == method.budget(60, 6) == count


def test_what_is_missing_comes_from_the_least_ordinary(to_xp, to_numpy):
    tokens = sc.Tokens(features=to_xp(clip().reshape(60, 8)), frames=6)
    for keep in (2, 3, 4, 6):
        loose = sc.VidCom2(keep=keep).select(tokens)
        exact = sc.VidCom2(keep=keep, exact=True).select(tokens)
        first, second = (set(to_numpy(each.indices).tolist()) for each in (loose, exact))
        assert first <= second or second <= first
        scores = to_numpy(exact.scores)
        changed = [scores[i] for i in first ^ second]
        unchanged = [scores[i] for i in (second if second <= first else set(range(60)) - second)]
        # Scores are high where a token is unlike the rest.
        if changed and second <= first:
            assert max(changed) <= min(unchanged)
        elif changed:
            assert min(changed) >= max(unchanged)


def test_channels_that_vary_alike_are_a_tie(to_xp, to_numpy):
    for seed in range(20):
        dice = np.random.default_rng(seed)
        values = 100.0 * dice.normal(size=37)  # added up in two orders
        alike = to_xp(np.stack([values, dice.permutation(values)], axis=-1))
        assert to_numpy(least_varying(alike, 1)).tolist() == [0]


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="channels: expected a share"):
        sc.VidCom2(channels=0.0)
    with pytest.raises(ValueError, match="temperature: expected"):
        sc.VidCom2(temperature=0.0)
