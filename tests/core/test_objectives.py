"""Objectives by numbers worked out by hand."""

import math

import numpy as np
import pytest

import secateur as sc
from secateur.core import similarity
from secateur.core.objectives import Objective

S = np.array([[1.0, 0.2, 0.6], [0.5, 1.0, 0.0], [0.1, 0.3, 0.9]])


def places(to_xp, *numbers):
    return to_xp(np.array(numbers, dtype=np.int64))


def test_facility_location_by_hand(to_xp, to_numpy):
    f = sc.FacilityLocation(to_xp(S), to_xp([2.0, 1.0, 4.0]))
    assert float(f.value([])) == 0.0
    assert float(f.value([0])) == pytest.approx(2 * 1.0 + 0.5 + 4 * 0.1)
    assert float(f.value([0, 2])) == pytest.approx(2 * 1.0 + 0.5 + 4 * 0.9)
    assert float(f.gain([0], 2)) == pytest.approx(4 * 0.8)
    assert float(f.gain([0], 0)) == 0.0
    gains = f.gain(places(to_xp, 0), places(to_xp, 1, 2))
    np.testing.assert_allclose(to_numpy(gains), [0.5 + 4 * 0.2, 4 * 0.8])
    assert f.size == 3
    assert f.batch_shape == ()
    assert f.rows() == (f,)


def test_facility_location_without_weights_counts_every_row_once(to_xp):
    assert float(sc.FacilityLocation(to_xp(S)).value([1])) == pytest.approx(1.5)


def test_negative_similarities_count_as_nothing(to_xp):
    f = sc.FacilityLocation(to_xp([[-1.0, -3.0], [-2.0, 1.0]]))
    assert float(f.value([0])) == 0.0
    assert float(f.value([0, 1])) == 1.0


def test_padding_is_no_token(to_xp):
    f = sc.FacilityLocation(to_xp(S))
    assert float(f.value([2, -1, -1])) == float(f.value([2]))


def test_facility_location_from_features_is_that_of_the_matrix(to_xp, to_numpy):
    x = np.random.default_rng(0).normal(size=(7, 3))
    x[3] = 0.0
    u = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)
    matrix = sc.FacilityLocation(to_xp((1 + u @ u.T) / 2))
    features = sc.FacilityLocation.from_features(to_xp(x))
    everyone = places(to_xp, *range(7))
    for picks in ([], [3], [0, 5]):
        assert float(features.value(picks)) == pytest.approx(float(matrix.value(picks)))
        np.testing.assert_allclose(
            to_numpy(features.gain(picks, everyone)),
            to_numpy(matrix.gain(picks, everyone)),
            atol=1e-14,
        )


def test_facility_location_of_sparse_similarities(to_numpy):
    sparse = pytest.importorskip("scipy.sparse")
    s = np.where(S > 0.4, S, 0.0)
    dense = sc.FacilityLocation(s, np.array([2.0, 1.0, 4.0]))
    for kind in (sparse.csr_array, sparse.coo_array, sparse.csc_matrix):
        f = sc.FacilityLocation(kind(s), [2.0, 1.0, 4.0])
        assert f.size == 3
        for picks in ([], [1], [0, 2]):
            assert float(f.value(picks)) == float(dense.value(picks))
            assert f.gain(picks, [0, 1, 2]).tolist() == dense.gain(picks, [0, 1, 2]).tolist()


def test_sparse_similarities_may_be_whole_numbers_half_or_empty():
    sparse = pytest.importorskip("scipy.sparse")
    whole = sparse.csr_array(np.array([[1, 0], [3, 2]]))
    assert float(sc.FacilityLocation(whole).value([0])) == 4.0
    assert sc.maximize(sc.FacilityLocation(whole), 1).indices.tolist() == [0]
    empty = sc.maximize(sc.FacilityLocation(sparse.csr_array((3, 3))), 2)
    assert empty.indices.tolist() == [0, 1]
    assert float(empty.guarantee) == 1.0


def test_a_batch_is_its_rows(to_xp, to_numpy):
    rng = np.random.default_rng(1)
    s, w = rng.random((2, 3, 4, 4)), rng.random((2, 3, 4))
    f = sc.FacilityLocation(to_xp(s), to_xp(w))
    assert f.batch_shape == (2, 3)
    assert len(f.rows()) == 6
    picks = rng.integers(0, 4, size=(2, 3, 2))
    picks[1, 2, 1] = -1
    values = to_numpy(f.value(to_xp(picks)))
    gains = to_numpy(f.gain(to_xp(picks), places(to_xp, 3, 1)))
    same = to_numpy(f.value([0, 2]))
    assert values.shape == same.shape == (2, 3)
    assert gains.shape == (2, 3, 2)
    for b in np.ndindex(2, 3):
        one = sc.FacilityLocation(s[b], w[b])
        assert values[b] == pytest.approx(float(one.value(picks[b])))
        assert same[b] == pytest.approx(float(one.value([0, 2])))
        np.testing.assert_allclose(gains[b], one.gain(picks[b], [3, 1]), atol=1e-15)
    assert to_numpy(f.gain([0], 1)).shape == (2, 3)


def test_weights_for_all_rows_of_a_batch(to_xp, to_numpy):
    f = sc.FacilityLocation(to_xp(np.stack([S, 2 * S])), to_xp([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(to_numpy(f.value([2])), [0.6, 1.2])


def test_long_columns_are_worked_on_in_blocks(to_xp, to_numpy, monkeypatch):
    x = np.random.default_rng(2).normal(size=(9, 4))
    f = sc.FacilityLocation.from_features(to_xp(x))
    everyone = places(to_xp, *range(9))
    whole = to_numpy(f.gain([1, 2, 3], everyone)), float(f.value([1, 2, 3, 4]))
    picks = to_numpy(sc.maximize(f, 5, backend="reference").indices).tolist()
    monkeypatch.setattr(similarity, "BLOCK", 20)
    np.testing.assert_allclose(to_numpy(f.gain([1, 2, 3], everyone)), whole[0], atol=1e-14)
    assert float(f.value([1, 2, 3, 4])) == pytest.approx(whole[1])
    assert to_numpy(sc.maximize(f, 5, backend="reference").indices).tolist() == picks


def test_log_determinant_by_hand(to_xp, to_numpy):
    kernel = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
    f = sc.LogDeterminant(to_xp(kernel))
    assert float(f.value([])) == 0.0
    assert float(f.value([1])) == pytest.approx(math.log(2))
    assert float(f.value([2, 0, 1])) == pytest.approx(math.log(np.linalg.det(kernel)))
    assert float(f.gain([0], 1)) == pytest.approx(math.log(1.5))
    gains = to_numpy(f.gain([0], places(to_xp, 0, 2)))
    assert gains[0] == -math.inf
    assert gains[1] == pytest.approx(0.0, abs=1e-15)


def test_log_determinant_of_dependent_tokens_is_minus_infinity(to_xp):
    f = sc.LogDeterminant(to_xp(np.ones((3, 3))))
    assert float(f.value([0, 1])) == -math.inf
    assert float(f.gain([0], 2)) == -math.inf
    assert float(sc.LogDeterminant(to_xp(np.zeros((1, 1)))).value([0])) == -math.inf


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_log_determinant_of_float32_at_extreme_scales(to_xp, scale):
    f = sc.LogDeterminant(to_xp((np.array([[2.0, 1.0], [1.0, 2.0]]) * scale).astype(np.float32)))
    assert float(f.value([0, 1])) == pytest.approx(math.log(3) + 2 * math.log(scale), rel=1e-6)


def test_dispersion_by_hand(to_xp, to_numpy):
    at = np.array([0.0, 1.0, 5.0, 7.0])
    f = sc.Dispersion(to_xp(abs(at[:, None] - at)))
    assert float(f.value([])) == float(f.value([2])) == math.inf
    assert float(f.value([0, 2, 3])) == 2.0
    assert to_numpy(f.gain([], places(to_xp, 0, 1, 2, 3))).tolist() == [1, 1, 2, 2]
    assert to_numpy(f.gain([0, 3], places(to_xp, 1, 2, 3))).tolist() == [1, 2, 0]


def test_dispersion_from_features_is_one_minus_cosine(to_xp, to_numpy):
    x = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    f = sc.Dispersion.from_features(to_xp(x))
    everyone = places(to_xp, 0, 1, 2, 3)
    np.testing.assert_allclose(to_numpy(f.gain([0], everyone)), [0, 1, 2, 1], atol=1e-15)
    assert float(f.value([0, 2])) == pytest.approx(2.0)
    assert to_numpy(f.gain([], everyone)).tolist() == [1.0] * 4


def test_batches_of_the_others(to_xp, to_numpy):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 4, 6))
    kernel = x @ x.transpose(0, 2, 1)
    logdet, far = sc.LogDeterminant(to_xp(kernel)), sc.Dispersion.from_features(to_xp(x))
    for b in range(2):
        one = np.linalg.slogdet(kernel[b][np.ix_([3, 1], [3, 1])])[1]
        assert to_numpy(logdet.value([3, 1]))[b] == pytest.approx(one)
        assert to_numpy(far.value([0, 2]))[b] == pytest.approx(
            float(sc.Dispersion.from_features(x[b]).value([0, 2]))
        )
    nothing = sc.Dispersion(to_xp(np.zeros((0, 3, 3))))
    assert nothing.value([0, 1]).shape == (0,)


def test_one_token_alone_has_no_neighbour(to_xp):
    assert float(sc.Dispersion(to_xp([[0.0]])).gain([], 0)) == math.inf


class Counting(Objective):
    """An objective of somebody else: only `size`, `sample` and `value`, a plain float."""

    def __init__(self, sample):
        self.size, self.sample = 5, sample

    def value(self, indices):
        return float(len({j // 2 for j in indices}))


def test_an_objective_needs_only_a_value(to_xp, to_numpy):
    f = Counting(to_xp([0.0]))
    assert float(f.gain([0], 1)) == 0.0
    assert to_numpy(f.gain([0], places(to_xp, 1, 2, 4))).tolist() == [0.0, 1.0, 1.0]
    tracker = f.tracker()
    assert to_numpy(tracker.gains()).tolist() == [1.0] * 5
    tracker.add(3)
    assert to_numpy(tracker.gains()).tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert tracker.slack == 0.0
    assert f.margin(2.0) == pytest.approx(40 * 2.0**-52)
    assert f.margin(-math.inf) == 0.0


def square(to_xp, n=2, value=1.0):
    return to_xp(np.full((n, n), value))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda x: sc.FacilityLocation(x[:0, ...]),
            r"similarity: expected shape \(\.\.\., H, N\) without empty axes, got",
        ),
        (lambda x: sc.FacilityLocation(x[0, ...]), r"similarity: expected shape .* got \(2,\)"),
        (lambda x: sc.FacilityLocation(x * math.nan), "similarity: contains NaN or infinity"),
        (
            lambda x: sc.FacilityLocation(x, x[0, ...] - 2),
            "weights: expected no negative numbers, smallest is -1",
        ),
        (
            lambda x: sc.FacilityLocation(x, x[0, ...] * math.inf),
            "weights: contains NaN or infinity",
        ),
        (
            lambda x: sc.FacilityLocation(x, x[0, :1]),
            r"weights: expected shape \(2,\), got \(1,\)",
        ),
        (lambda x: sc.FacilityLocation(x, x), r"weights: expected shape .* got \(2, 2\)"),
        (
            lambda x: sc.FacilityLocation.from_features(x[:0, ...]),
            r"features: expected shape \(\.\.\., N, D\) without empty axes, got \(0, 2\)",
        ),
        (lambda x: sc.LogDeterminant(x[:1, ...]), r"kernel: expected shape \(\.\.\., N, N\)"),
        (
            lambda x: sc.LogDeterminant(-x),
            "kernel: expected a positive semi-definite matrix, .* -1",
        ),
        (lambda x: sc.LogDeterminant(x * math.inf), "kernel: contains NaN or infinity"),
        (
            lambda x: sc.Dispersion(x[:1, ...]),
            r"distance: expected shape \(\.\.\., N, N\), got \(1, 2",
        ),
        (lambda x: sc.Dispersion(-x), "distance: expected no negative numbers"),
        (
            lambda x: sc.Dispersion.from_features(x[0, ...]),
            r"features: expected shape \(\.\.\., N, D\)",
        ),
        (
            lambda x: sc.FacilityLocation(x).value([2]),
            r"indices: expected tokens 0 \.\. 1, got \[2\]",
        ),
        (lambda x: sc.FacilityLocation(x).value([0.5]), r"indices: expected tokens 0 \.\. 1"),
        (lambda x: sc.FacilityLocation(x).gain([], -1), r"j: expected tokens 0 \.\. 1, got -1"),
        (
            lambda x: sc.FacilityLocation(x).value([[0], [1]]),
            r"indices: expected a set \(T,\) or one for each of the rows \(\), got shape \(2, 1\)",
        ),
    ],
)
def test_objectives_refuse(to_xp, build, words):
    with pytest.raises(ValueError, match=words):
        build(square(to_xp))


def test_sparse_similarities_are_refused_like_dense_ones():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match=r"similarity: expected shape .* got \(0, 0\)"):
        sc.FacilityLocation(sparse.csr_array((0, 0)))
    with pytest.raises(ValueError, match="similarity: contains NaN"):
        sc.FacilityLocation(sparse.csr_array(np.array([[math.nan]])))


def test_weights_of_a_batch_are_refused_with_both_shapes(to_xp):
    with pytest.raises(ValueError, match=r"weights: expected shape \(2, 3\) or \(3,\), got \(3, 3"):
        sc.FacilityLocation(to_xp(np.stack([S, S])), to_xp(S))


def test_weights_of_another_library_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="arrays of one library are expected in one call"):
        sc.FacilityLocation(np.eye(2), torch.ones(2))


def test_check_finite_can_be_switched_off(to_xp):
    x = to_xp([[1.0, math.inf], [0.0, 1.0]])
    assert float(sc.FacilityLocation(x, check_finite=False).value([0])) == 1.0
