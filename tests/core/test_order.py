"""Orders, complements, nearest targets."""

from __future__ import annotations

import numpy as np

from secateur.core.order import first_of, nearest, others, ranks, settled, settled_cosine


def test_ranks_put_equals_in_ascending_order(to_xp, to_numpy):
    scores = to_xp(np.array([[0.5, 0.9, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0]]))
    assert to_numpy(ranks(scores)).tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]
    assert to_numpy(first_of(scores, 2)).tolist() == [[3, 0], [0, 1]]


def test_others_are_the_complement(to_xp, to_numpy):
    picks = np.array([[4, 0], [2, 3]])
    assert to_numpy(others(to_xp(picks), 5)).tolist() == [[1, 2, 3], [0, 1, 4]]


def test_settled_numbers_differ_by_more_than_rounding(to_xp, to_numpy):
    x = np.random.default_rng(0).uniform(-1.0, 1.0, size=1000)
    shaken = x + np.random.default_rng(1).uniform(-3e-16, 3e-16, size=1000)
    before, after = to_numpy(settled(to_xp(x))), to_numpy(settled(to_xp(shaken)))
    assert (before == after).mean() > 0.99
    np.testing.assert_allclose(before, x, atol=2.0**-40)


def test_duplicates_have_equal_cosines(to_xp, to_numpy):
    dice = np.random.default_rng(0)
    x = dice.normal(size=(40, 33))
    x[20:] = x[:20] * dice.uniform(0.1, 10.0, size=(20, 1))
    cosines = to_numpy(settled_cosine(to_xp(x), to_xp(x)))
    np.testing.assert_array_equal(cosines[:20], cosines[20:])
    np.testing.assert_array_equal(np.diagonal(cosines), 1.0)
    np.testing.assert_allclose(
        cosines,
        x @ x.T / np.linalg.norm(x, axis=1) / np.linalg.norm(x, axis=1)[:, None],
        atol=1e-12,
    )


def test_nearest_passes_over_absent_targets_and_prefers_the_first(to_xp, to_numpy):
    x = to_xp(np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [-1.0, 0.1]]))
    assert to_numpy(nearest(x, to_xp(np.array([2, 1, -1])))).tolist() == [2, 1, 2, 1]
    assert to_numpy(nearest(x, to_xp(np.array([0, 2])))).tolist() == [0, 0, 0, 0]
