"""Folding dropped tokens into kept ones."""

from __future__ import annotations

import numpy as np

from secateur.core.folding import also, averaging
from secateur.core.selection import Selection, folding


def test_kept_tokens_count_themselves_once_and_the_dropped_their_weight(to_xp, to_numpy):
    kept = Selection.of(to_xp(np.array([[3, 1], [0, 2]])), 4)
    joined = to_xp(np.array([[1, 3, 3, 1], [2, -1, 0, 2]]))
    both = folding(kept, joined, to_xp(np.full((2, 4), 0.5)))
    assert to_numpy(both.folded).tolist() == [[1, 1, 3, 3], [0, -1, 2, 2]]
    assert to_numpy(both.fold_weights).tolist() == [[0.5, 1.0, 0.5, 1.0], [1.0, 0.0, 1.0, 0.5]]
    x = np.arange(16.0).reshape(2, 4, 2)
    merged = to_numpy(both.merge(to_xp(x)))
    np.testing.assert_array_equal(merged[0], [x[0, 1] + 0.5 * x[0, 0], x[0, 3] + 0.5 * x[0, 2]])
    np.testing.assert_array_equal(merged[1], [x[1, 0], x[1, 2] + 0.5 * x[1, 3]])


def test_what_a_row_keeps_may_be_padded(to_xp, to_numpy):
    kept = Selection(to_xp(np.array([[1, 0], [2, -1]])), to_xp(np.array([2, 1])), 3)
    both = folding(kept, to_xp(np.array([[0, 0, 0], [2, 2, 2]])), to_xp(np.ones((2, 3))))
    merged = to_numpy(both.merge(to_xp(np.eye(3)[None] * np.array([1.0, 2.0])[:, None, None])))
    np.testing.assert_array_equal(merged[0], [[1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(merged[1], [[2, 2, 2], [0, 0, 0]])


def test_plain_means_of_what_joined(to_xp, to_numpy):
    kept = Selection(to_xp(np.array([[3, 1], [2, -1]])), to_xp(np.array([2, 1])), 4)
    both = averaging(kept, to_xp(np.array([[3, 3, 3, 3], [2, 2, 2, -1]])))
    x = np.arange(16.0).reshape(2, 4, 2)
    merged = to_numpy(both.merge(to_xp(x)))
    np.testing.assert_allclose(merged[0], [x[0, 1], x[0, [0, 2, 3]].mean(axis=0)])
    np.testing.assert_allclose(merged[1], [x[1, :3].mean(axis=0), [0, 0]])


def test_a_token_may_go_into_another_one_besides(to_xp, to_numpy):
    kept = Selection.of(to_xp(np.array([[1, 0], [2, 0]])), 3)
    both = averaging(kept, to_xp(np.array([[-1, -1, 0], [-1, 2, -1]])))
    more = [to_xp(np.array(x)) for x in ([[2, 1], [1, 2]], [[1, -1], [0, 0]])]
    more = also(both, *more, to_xp(np.array([[0.5, 9.0], [2.0, 3.0]])))
    x = np.array([[[1.0], [10.0], [100.0]]] * 2)
    merged = to_numpy(more.merge(to_xp(x)))
    assert merged[..., 0].tolist() == [[50.5, 60.0], [321.0, 55.0]]
    assert to_numpy(more.row(1).merge(to_xp(x[1])))[..., 0].tolist() == [321.0, 55.0]
