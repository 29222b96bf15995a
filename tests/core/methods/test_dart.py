"""Pivots and what duplicates them least."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def slow(x, source, k, pivots):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    count = min(pivots, k)
    kept = np.argsort(-np.abs(source).sum(axis=1), kind="stable")[:count].tolist()
    shares = [(k - count) // count + (p < (k - count) % count) for p in range(count)]
    for pivot, share in zip(list(kept), shares, strict=True):
        left = [i for i in range(len(x)) if i not in kept]
        kept += sorted(left, key=lambda i: round(float(x[pivot] @ x[i]), 12))[:share]
    return kept


@pytest.mark.parametrize("norm", ["keys", "features"])
@pytest.mark.parametrize(("k", "pivots"), [(1, 4), (4, 4), (5, 4), (18, 4), (17, 1), (36, 20)])
def test_it_is_its_definition(image, to_xp, to_numpy, k, pivots, norm):
    host = image(batch=(2,))
    method = sc.DART(keep=k, pivots=pivots, norm=norm)
    chosen = method.select(image(batch=(2,), convert=to_xp))
    for b in range(2):
        expected = slow(host.features[b], getattr(host, norm)[b], k, pivots)
        assert to_numpy(chosen.indices)[b].tolist() == expected
        assert len(set(expected)) == k


def test_copies_of_a_pivot_are_dropped():
    dice = np.random.default_rng(0)
    x = dice.normal(size=(12, 16))
    x[4:8] = x[0]
    keys = np.ones((12, 3))
    keys[0] = 2.0
    kept = sc.DART(keep=8, pivots=1).select(sc.Tokens(features=x, keys=keys)).indices
    assert sorted(kept.tolist()) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_it_needs_keys_unless_features_choose_the_pivots(image):
    tokens = image().with_(keys=None)
    with pytest.raises(sc.MissingInputError, match=r"DART needs tokens\.keys"):
        sc.DART(keep=6).select(tokens)
    assert int(sc.DART(keep=6, norm="features").select(tokens).count) == 6
    with pytest.raises(ValueError, match="norm: expected one of keys, features; got 'l1'"):
        sc.DART(norm="l1")
    with pytest.raises(ValueError, match="pivots: expected a whole number of at least 1"):
        sc.DART(pivots=0)
