"""Anchors, buffers, registers."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def slow(shallow, deep, w, k, alpha):
    n = len(deep)
    anchors = np.argsort(-shallow, kind="stable")[: round(k * alpha / 5)].tolist()
    listed = list(anchors)
    for i in anchors:
        listed += [min(max(j, 0), n - 1) for j in (i - 1, i + 1, i - w, i + w)]
    listed += np.argsort(-deep, kind="stable").tolist()
    return list(dict.fromkeys(listed))[:k]


@pytest.mark.parametrize("grid", [(6, 6), (4, 9), (1, 36), (36, 1)])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_it_is_its_definition(image, to_xp, to_numpy, grid, alpha):
    host = image(batch=(3,), grid=grid)
    tokens = image(batch=(3,), grid=grid, convert=to_xp)
    for k in (1, 3, 13, 36):
        chosen = sc.HiPrune(keep=k, alpha=alpha).select(tokens)
        for b in range(3):
            expected = slow(host.attention_shallow[b], host.attention[b], grid[1], k, alpha)
            assert to_numpy(chosen.indices)[b].tolist() == expected
        np.testing.assert_array_equal(to_numpy(chosen.scores), host.attention)


def test_anchors_and_buffers_beyond_the_budget_are_cut():
    # round(3 * 1 / 5) = 1 anchor with 4 buffers are 5 tokens for a budget of 3.
    middle = np.zeros(25)
    middle[12] = 1.0
    tokens = sc.Tokens(
        features=np.ones((25, 2)), grid=(5, 5), attention=np.ones(25), attention_shallow=middle
    )
    assert sc.HiPrune(keep=3, alpha=1.0).select(tokens).indices.tolist() == [12, 11, 13]


def test_it_needs_two_layers_and_a_grid(image):
    tokens = image()
    for name in ("attention", "attention_shallow", "grid"):
        with pytest.raises(sc.MissingInputError, match=rf"HiPrune needs tokens\.{name}:"):
            sc.HiPrune(keep=2).select(tokens.with_(**{name: None}))
    with pytest.raises(ValueError, match="alpha: expected a share"):
        sc.HiPrune(alpha=1.5)
