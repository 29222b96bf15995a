"""Density peaks against their definition, written out."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.density import distances, smallest


def slow_scores(x, k, noise=None):
    n, width = x.shape
    d = np.array([[np.linalg.norm(a - b) / np.sqrt(width) for b in x] for a in x])
    rho = np.array([np.exp(-np.mean(np.sort(row)[:k] ** 2)) for row in d])
    if noise is not None:
        rho = rho + 1e-6 * noise
    delta = [min((d[i, j] if rho[j] > rho[i] else d.max()) for j in range(n)) for i in range(n)]
    return rho * np.array(delta)


@pytest.mark.parametrize("n", [1, 2, 9, 30])
@pytest.mark.parametrize("k", [1, 4, 50])
def test_scores_are_their_definition(to_xp, to_numpy, n, k):
    dice = np.random.default_rng(n)
    x, noise = dice.normal(size=(2, n, 5)), dice.random((2, n))
    for draw in (None, noise):
        own = None if draw is None else to_xp(draw)
        scores = to_numpy(sc.density_peaks(to_xp(x), k, noise=own))
        for b in range(2):
            expected = slow_scores(x[b], min(k, n), None if draw is None else draw[b])
            np.testing.assert_allclose(scores[b], expected, rtol=1e-9, atol=1e-11)


def test_two_heaps_have_two_peaks(to_xp, to_numpy):
    dice = np.random.default_rng(0)
    x = np.concatenate([dice.normal(size=(20, 3)), 30 + dice.normal(size=(10, 3))])
    centres, cluster = sc.density_clusters(to_xp(x), 2, 4)
    first = int(to_numpy(centres)[0] >= 20)
    assert sorted(to_numpy(centres) >= 20) == [False, True]
    expected = np.where(np.arange(30) >= 20, 1 - first, first)
    assert to_numpy(cluster).tolist() == expected.tolist()


def test_every_centre_is_its_own_even_among_duplicates(to_xp, to_numpy):
    x = np.ones((2, 6, 4))
    centres, cluster = (to_numpy(a) for a in sc.density_clusters(to_xp(x), 3, 2))
    assert centres.tolist() == [[0, 1, 2]] * 2
    assert cluster.tolist() == [[0, 1, 2, 0, 0, 0]] * 2


def test_the_nearest_centre_takes(to_xp, to_numpy):
    dice = np.random.default_rng(1)
    x = dice.normal(size=(40, 6))
    centres, cluster = (to_numpy(a) for a in sc.density_clusters(to_xp(x), 7, 7))
    assert len(set(centres.tolist())) == 7
    scores = to_numpy(sc.density_peaks(to_xp(x), 7))
    assert centres.tolist() == np.argsort(-scores, kind="stable")[:7].tolist()
    d = np.linalg.norm(x[:, None] - x[centres][None], axis=-1)
    assert cluster.tolist() == d.argmin(axis=1).tolist()


def test_duplicates_have_no_distance(to_xp, to_numpy):
    x = np.random.default_rng(2).normal(size=(5, 64)).astype(np.float32)[[0, 1, 0, 2, 1]]
    d = to_numpy(distances(to_xp(x)))
    assert d.dtype == np.float32
    for i, j in ((0, 2), (1, 4), (3, 3)):
        assert d[i, j] == 0
    np.testing.assert_allclose(d[0, 1], np.linalg.norm(x[0] - x[1]) / 8, rtol=1e-5)


def test_smallest_by_every_backend(to_xp, to_numpy, computed_by):
    x = np.random.default_rng(3).normal(size=(3, 4, 9))
    for k in (1, 4, 9):
        assert np.array_equal(to_numpy(smallest(to_xp(x), k)), np.sort(x, axis=-1)[..., :k])


def test_bad_input_is_refused():
    x = np.ones((4, 2))
    with pytest.raises(ValueError, match="neighbours: expected"):
        sc.density_peaks(x, 0)
    with pytest.raises(ValueError, match="count: expected 1 to 4"):
        sc.density_clusters(x, 5, 2)
    with pytest.raises(ValueError, match="noise: expected shape"):
        sc.density_peaks(x, 2, noise=np.ones(3))
    with pytest.raises(ValueError, match="x: contains NaN"):
        sc.density_peaks(x * np.nan, 2)
