"""Similarities of features other than cosines: by their formulas, and greedy on them."""

import numpy as np
import pytest

import secateur as sc
from secateur.core.kernels import KINDS, compared
from secateur.testing import assert_objective

OTHERS = ("exemplar", "gaussian", "softmax")


def some(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) + 0.4


def by_hand(kind, x):
    """The whole matrix, from differences and norms."""
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    lengths = np.linalg.norm(x, axis=-1)
    if kind == "exemplar":
        return np.maximum(0.0, lengths[:, None] ** 2 - apart)
    if kind == "gaussian":
        others = np.sort(apart[~np.eye(len(x), dtype=bool)])
        return np.exp(-apart / others[len(others) // 2])
    cosines = x @ x.T / np.outer(lengths, lengths)
    if kind == "softmax":
        powers = np.exp(cosines / 0.2)
        return powers / powers.sum(-1, keepdims=True)
    heavy = lengths[:, None] if kind == "norms" else 1.0
    return heavy * (1 + cosines) / 2


@pytest.mark.parametrize("kind", OTHERS)
def test_entries_are_those_of_the_formula(to_xp, to_numpy, kind):
    x = some(0, 12, 5)
    kernel, expected = compared(kind, to_xp(x)), by_hand(kind, x)
    index = lambda i: to_xp(np.asarray(i, dtype=np.int64))  # noqa: E731
    rows, columns = [7, 0, 3], [11, 4]
    np.testing.assert_allclose(to_numpy(kernel.rows(index(rows))), expected[rows], atol=1e-13)
    found = to_numpy(kernel.columns(index(columns)))
    np.testing.assert_allclose(found, expected[:, columns], atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(60, 40), (60, 4)])  # From a matrix, and without one.
def test_picks_are_those_of_the_matrix(to_xp, to_numpy, kind, shape):
    x, w = some(1, 2, *shape), np.random.default_rng(2).random((2, shape[0]))
    matrix = np.stack([by_hand(kind, each) for each in x])
    wanted = sc.maximize(sc.FacilityLocation(matrix, w), 9, "naive")
    f = sc.FacilityLocation.from_features(to_xp(x), to_xp(w), similarity=kind)
    for backend in ("auto", "reference"):
        found = sc.maximize(f, 9, backend=backend)
        np.testing.assert_array_equal(to_numpy(found.indices), wanted.indices)
        np.testing.assert_allclose(to_numpy(found.value), wanted.value, rtol=1e-10)
        assert (to_numpy(found.upper_bound) >= to_numpy(found.value)).all()
        assert (to_numpy(found.guarantee) > 1 - 1 / np.e).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_objective_promises(kind):
    x = some(3, 10, 4)
    x[4], x[7] = x[2], 0.0
    free = np.arange(10) % 3 != 0
    assert_objective(sc.FacilityLocation.from_features(x, similarity=kind))
    assert_objective(sc.FacilityLocation.from_features(x, similarity=kind, selectable=free))


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_images(to_xp, to_numpy, kind):
    for x in (np.ones((5, 3)), np.zeros((4, 3)), np.ones((1, 2)), np.repeat(some(4, 3, 2), 4, 0)):
        f = sc.FacilityLocation.from_features(to_xp(x), similarity=kind)
        picks = to_numpy(sc.maximize(f, len(x)).indices)
        assert sorted(picks.tolist()) == list(range(len(x)))
        assert np.isfinite(float(f.value([0])))


def test_what_exemplars_take_away_is_the_squared_error():
    x = some(5, 30, 6)
    f = sc.FacilityLocation.from_features(x, similarity="exemplar")
    kept = sc.maximize(f, 4).indices
    apart = ((x[:, None] - x[kept][None]) ** 2).sum(-1).min(1)
    left = np.minimum(apart, (x**2).sum(-1))
    assert float(f.value(kept)) == pytest.approx((x**2).sum() - left.sum())


def test_scale_and_place_of_features():
    """Gaussians know neither; exemplars no scale; norms weigh."""
    x = some(6, 40, 5)
    picks = lambda x, kind: sc.maximize(  # noqa: E731
        sc.FacilityLocation.from_features(x, similarity=kind), 8
    ).indices.tolist()
    assert picks(x, "gaussian") == picks(3e20 * x, "gaussian") == picks(x + 7.0, "gaussian")
    assert picks(x, "exemplar") == picks(3e20 * x, "exemplar") != picks(x + 7.0, "exemplar")
    x[3] *= 1e6
    assert picks(x, "norms")[0] == 3


def test_squares_beyond_the_range_and_unknown_names_are_refused():
    for shape in ((6, 3), (40, 3)):
        x = 1e200 * some(7, *shape)
        f = sc.FacilityLocation.from_features(x, similarity="exemplar")
        for backend in ("auto", "reference"):
            with pytest.raises(ValueError, match="features: contain NaN or infinity, or their squ"):
                sc.maximize(f, 2, backend=backend)
    with pytest.raises(ValueError, match="similarity: expected one of cosine, norms, exemplar, ga"):
        sc.FacilityLocation.from_features(x, similarity="cosines")
