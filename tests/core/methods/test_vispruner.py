"""Attention, then pairing."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def slow(x, attention, k, important=0.5):
    x = x.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    order = sorted(range(len(x)), key=lambda i: (-attention[i], i))
    count = int(k * important + 1e-9)
    kept, left = order[:count], order[count:]
    while len(left) > k - count and k > count:
        even, odd = left[::2], left[1::2]
        score = {i: max(round(float(x[i] @ x[j]), 12) for j in odd) for i in even}
        even = sorted(even, key=lambda i: -score[i])
        left = even[min(8, len(left) - (k - count)) :] + odd
    return kept + left[: k - count]


@pytest.mark.parametrize("n", [1, 2, 7, 36, 61])
@pytest.mark.parametrize("important", [0.0, 0.5, 1.0])
def test_it_is_its_definition_for_odd_and_even_sizes(image, to_xp, to_numpy, n, important):
    host = image(n=n, batch=(2,))
    tokens = image(n=n, batch=(2,), convert=to_xp)
    for k in sorted({1, (n + 2) // 3, n // 2 + 1, n}):
        k = min(k, n)
        chosen = sc.VisPruner(keep=k, important=important).select(tokens)
        for b in range(2):
            expected = slow(host.features[b], host.attention[b], k, important)
            assert to_numpy(chosen.indices)[b].tolist() == expected
            assert len(set(expected)) == k


def test_more_tokens_than_neighbours_are_looked_through(image):
    tokens = image(n=251, d=3)
    chosen = sc.VisPruner(keep=9).select(tokens)
    assert chosen.indices.tolist() == slow(tokens.features, tokens.attention, 9)


def test_half_precision_is_paired_in_float64(image):
    tokens = image(n=61)
    half = tokens.with_(features=tokens.features.astype(np.float16))
    chosen = sc.VisPruner(keep=20).select(half)
    assert chosen.indices.tolist() == slow(half.features, half.attention, 20)


def test_duplicates_go_before_what_differs():
    x = np.concatenate([np.eye(6), np.eye(6)[:5]])[[0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5]]
    tokens = sc.Tokens(features=x, attention=np.linspace(1.0, 0.5, 11))
    kept = sc.VisPruner(keep=6, important=0.0).select(tokens).indices
    assert sorted(np.argmax(x[kept], axis=1).tolist()) == [0, 1, 2, 3, 4, 5]


def test_parameters_are_checked(image):
    with pytest.raises(ValueError, match="important: expected a share"):
        sc.VisPruner(important=-0.1)
    with pytest.raises(sc.MissingInputError, match=r"VisPruner needs tokens\.attention"):
        sc.VisPruner().select(image().with_(attention=None))
