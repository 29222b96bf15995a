"""Similarities from a matrix, from features and from sparse rows are the same numbers."""

import numpy as np
import pytest

from secateur.core import similarity
from secateur.core.similarity import (
    CosineSimilarity,
    MatrixSimilarity,
    SoftmaxSimilarity,
    SparseSimilarity,
    blocks,
    cosine,
    cosine_similarity,
    shifted,
)

pytestmark = pytest.mark.usefixtures("computed_by")


def by_hand(x, y):
    lengths = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(y, axis=-1)
    return np.where(lengths > 0, x @ y.T / np.where(lengths > 0, lengths, 1), 0.0)


def test_cosine_by_hand(to_xp, to_numpy):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 4, 3))
    x[0, 1] = 0.0
    got = to_numpy(cosine(to_xp(x), to_xp(y)))
    assert got.shape == (2, 5, 4)
    for b in range(2):
        np.testing.assert_allclose(got[b], by_hand(x[b], y[b]), atol=1e-15)
    itself = to_numpy(cosine(to_xp(x)))
    np.testing.assert_allclose(itself[1], by_hand(x[1], x[1]), atol=1e-15)
    assert itself[0, 1, 1] == 0.0


def test_cosine_refuses_vectors_of_other_lengths(to_xp):
    with pytest.raises(ValueError, match="y: expected vectors of length 3, got 2"):
        cosine(to_xp(np.ones((2, 3))), to_xp(np.ones((2, 2))))


def test_similarity_lies_between_0_and_1(to_xp, to_numpy):
    x = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    expected = [[1, 0, 0.5, 0.5], [0, 1, 0.5, 0.5], [0.5, 0.5, 1, 0.5], [0.5] * 4]
    np.testing.assert_allclose(to_numpy(cosine_similarity(to_xp(x))), expected)
    assert to_numpy(shifted(to_xp([1 + 1e-9, -1 - 1e-9]))).tolist() == [1.0, 0.0]


def test_entries_on_demand_are_those_of_the_matrix(xp, to_xp, to_numpy):
    x = np.random.default_rng(1).normal(size=(6, 3))
    matrix = (1 + by_hand(x, x)) / 2
    places = to_xp(np.array([4, 0]))
    for source in (CosineSimilarity(to_xp(x)), MatrixSimilarity(to_xp(matrix))):
        assert source.size == 6
        np.testing.assert_allclose(to_numpy(source.columns(places)), matrix[:, [4, 0]], atol=1e-15)
        np.testing.assert_allclose(to_numpy(source.rows(places)), matrix[[4, 0]], atol=1e-15)


def test_softmax_entries_are_the_same_however_many_are_asked_for(to_xp, to_numpy):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    powers = np.exp(by_hand(x, y) / 0.1)
    matrix = powers / powers.sum(axis=1, keepdims=True)
    for places in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 1, 1], [2, 0]):
        source = SoftmaxSimilarity(to_xp(x), to_xp(y), 0.1)
        found = to_numpy(source.columns(to_xp(np.array(places))))
        np.testing.assert_allclose(found, matrix[:, places], rtol=1e-13)
    np.testing.assert_allclose(to_numpy(source.rows(to_xp(np.array([4])))), matrix[[4]], rtol=1e-13)


def test_rows_and_columns_of_an_unsymmetric_matrix(to_xp, to_numpy):
    source = MatrixSimilarity(to_xp([[1.0, 2.0], [3.0, 4.0]]))
    one = to_xp(np.array([1]))
    assert to_numpy(source.columns(one)).tolist() == [[2.0], [4.0]]
    assert to_numpy(source.rows(one)).tolist() == [[3.0, 4.0]]


def test_sparse_entries():
    sparse = pytest.importorskip("scipy.sparse")
    source = SparseSimilarity(sparse.csr_array(np.array([[1.0, 2.0], [0.0, 4.0]])))
    one = np.array([1])
    assert source.size == 2
    assert source.columns(one).tolist() == [[2.0], [4.0]]
    assert source.rows(one).tolist() == [[0.0, 4.0]]


def test_cosines_of_float32_features_are_taken_in_float64(xp, to_xp):
    source = CosineSimilarity(to_xp(np.ones((2, 3)), "float32"))
    assert source.rows(to_xp(np.array([0]))).dtype == xp.float64


def test_blocks_cover_everything_once(monkeypatch):
    source = MatrixSimilarity(np.ones((10, 10)))
    assert list(blocks(source, 10)) == [(0, 10)]
    monkeypatch.setattr(similarity, "BLOCK", 35)
    assert list(blocks(source, 10)) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert list(blocks(source, 0)) == []
    monkeypatch.setattr(similarity, "BLOCK", 1)
    assert list(blocks(source, 2)) == [(0, 1), (1, 2)]
