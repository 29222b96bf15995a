"""Farthest-point sampling."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def slow(x, k, start):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    kept = [start]
    while len(kept) < k:
        nearest = [
            -1.0 if j in kept else min(1.0 - float(x[j] @ x[i]) for i in kept)
            for j in range(len(x))
        ]
        kept.append(int(np.argmax(nearest)))
    return kept


@pytest.mark.parametrize("start", [0, 17])
def test_it_is_its_definition(image, row, to_xp, to_numpy, start):
    host = image(batch=(2,))
    chosen = sc.FPS(keep=12, start=start).select(image(batch=(2,), convert=to_xp))
    for b in range(2):
        expected = slow(row(host, b).features, 12, start)
        assert to_numpy(chosen.indices)[b].tolist() == expected
        x = host.features[b][expected] / np.linalg.norm(host.features[b][expected], axis=1)[:, None]
        apart = (1.0 - x @ x.T)[~np.eye(12, dtype=bool)].min()
        np.testing.assert_allclose(to_numpy(chosen.value)[b], apart, rtol=1e-9)
        np.testing.assert_allclose(to_numpy(chosen.gains)[b, 1:].min(), apart, rtol=1e-9)


def test_duplicates_come_last_in_ascending_order():
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert sc.FPS(keep=4, start=1).select(sc.Tokens(features=x)).indices.tolist() == [1, 2, 0, 3]


def test_the_start_is_one_of_the_tokens(image):
    with pytest.raises(ValueError, match="start: expected one of 36 tokens, got 36"):
        sc.FPS(keep=3, start=36).select(image())
    with pytest.raises(ValueError, match="start: expected a whole number"):
        sc.FPS(start=-1)
