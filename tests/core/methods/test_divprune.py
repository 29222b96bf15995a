"""Max-min diversity."""

from __future__ import annotations

from itertools import combinations

import numpy as np

import secateur as sc


def distances(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return 1.0 - x @ x.T


def slow(x, k):
    d = distances(x)
    itself = np.where(np.eye(len(x), dtype=bool), np.inf, d)
    kept = [int(np.argmax(itself.min(axis=1)))]
    while len(kept) < k:
        nearest = d[:, kept].min(axis=1)
        nearest[kept] = -1.0
        kept.append(int(np.argmax(nearest)))
    return kept


def test_it_is_its_definition(image, to_xp, to_numpy):
    host = image(n=60, batch=(2, 2))
    chosen = sc.DivPrune(keep=20).select(image(n=60, batch=(2, 2), convert=to_xp))
    for b in np.ndindex(2, 2):
        assert to_numpy(chosen.indices)[b].tolist() == slow(host.features[b], 20)


def test_half_of_the_best_chord_at_least(image):
    for seed in range(20):
        x = image(n=9, d=3, seed=seed).features
        d = distances(x)
        best = max(min(d[i, j] for i, j in combinations(s, 2)) for s in combinations(range(9), 3))
        value = float(sc.DivPrune(keep=3).select(sc.Tokens(features=x)).value)
        # 1 - cos is half the squared chord: half a chord is a quarter of it.
        assert value >= best / 4
        assert value <= best + 1e-12


def test_scaling_tokens_changes_nothing(image):
    tokens = image(n=60)
    lengths = np.random.default_rng(1).uniform(0.1, 10.0, size=(60, 1))
    scaled = tokens.with_(features=tokens.features * lengths)
    method = sc.DivPrune(keep=20)
    assert method.select(tokens).indices.tolist() == method.select(scaled).indices.tolist()


def test_equal_tokens_are_kept_in_ascending_order():
    chosen = sc.DivPrune(keep=3).select(sc.Tokens(features=np.ones((5, 4))))
    assert chosen.indices.tolist() == [0, 1, 2]
    assert float(chosen.value) == 0.0
