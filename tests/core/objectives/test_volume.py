"""Log-determinants of kernels above the identity: monotone, certified, from factors."""

import numpy as np
import pytest

import secateur as sc
from secateur.testing import assert_objective

ALGORITHMS = ("naive", "lazy", "incremental", "auto")


def factors(seed, *shape):
    y = np.random.default_rng(seed).normal(size=shape)
    y[..., 3, :] = y[..., 1, :]
    y[..., 5, :] = 0.0
    return y


def kernel_of(y, gamma):
    return np.eye(y.shape[-2]) + gamma * y @ np.swapaxes(y, -1, -2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_factors_are_their_kernel(to_xp, to_numpy, algorithm):
    y = factors(0, 2, 12, 4)
    f = sc.LogDeterminant.from_factors(to_xp(y), 0.3)
    dense = sc.LogDeterminant(kernel_of(y, 0.3), above_identity=True)
    assert f.monotone
    assert dense.monotone
    found, wanted = sc.maximize(f, 12, algorithm), sc.maximize(dense, 12, "naive")
    np.testing.assert_array_equal(to_numpy(found.indices), wanted.indices)
    np.testing.assert_allclose(to_numpy(found.gains), wanted.gains, rtol=1e-9, atol=1e-12)
    values = np.linalg.slogdet(kernel_of(y, 0.3))[1]
    np.testing.assert_allclose(to_numpy(found.value), values, rtol=1e-12)


def test_gains_go_on_beyond_the_rank(to_xp, to_numpy):
    y = factors(1, 30, 3)
    picks = sc.maximize(sc.LogDeterminant.from_factors(to_xp(y)), 30)
    gains = to_numpy(picks.gains)
    assert (gains[:29] > 0).all()
    assert (to_numpy(picks.indices)[-1], gains[-1]) == (5, 0.0)  # Its row is zero.
    assert float(picks.guarantee) == pytest.approx(1.0)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "stochastic"])
def test_the_certificate(to_xp, algorithm):
    y = factors(2, 40, 6)
    picks = sc.maximize(sc.LogDeterminant.from_factors(to_xp(y), 0.1), 5, algorithm, seed=1)
    assert float(picks.upper_bound) >= float(picks.value)
    assert 0.7 < float(picks.guarantee) <= 1.0


def test_a_mask_and_budgets_of_their_own(to_xp, to_numpy):
    y, free = factors(3, 2, 9, 3), np.arange(18).reshape(2, 9) % 3 > 0
    for f in (
        sc.LogDeterminant.from_factors(to_xp(y), selectable=to_xp(free, "bool")),
        sc.LogDeterminant(to_xp(kernel_of(y, 1.0)), selectable=to_xp(free, "bool")),
    ):
        picks = sc.maximize(f, [9, 2])
        assert to_numpy(picks.count).tolist() == [6, 2]
        kept = to_numpy(picks.indices)
        assert sorted(kept[0].tolist()) == np.flatnonzero(free[0]).tolist()
        assert free[1][kept[1][:2]].all()


@pytest.mark.parametrize("kernel", [np.eye(3) * 0.5, np.eye(3) + 0.9 * (1 - np.eye(3))])
def test_above_the_identity_is_checked(to_xp, kernel):
    with pytest.raises(ValueError, match="kernel: expected K - I positive semi-definite"):
        sc.LogDeterminant(to_xp(kernel), above_identity=True)
    assert not sc.LogDeterminant(to_xp(kernel)).monotone
    assert sc.maximize(sc.LogDeterminant(to_xp(kernel)), 2).upper_bound is None


def test_the_declaration_holds_for_each_of_a_batch_and_at_the_edge():
    sc.LogDeterminant(np.eye(4), above_identity=True)
    fine = kernel_of(factors(4, 8, 2), 1e3)
    sc.LogDeterminant(np.stack([fine, fine]), above_identity=True)
    with pytest.raises(ValueError, match=r"its smallest eigenvalue is -0\.5"):
        sc.LogDeterminant(np.stack([np.eye(8), 0.5 * np.eye(8)]), above_identity=True)


@pytest.mark.parametrize(
    "f",
    [
        sc.LogDeterminant.from_factors(factors(5, 8, 3), 0.5),
        sc.LogDeterminant.from_factors(factors(6, 2, 7, 9), 0.01),
        sc.LogDeterminant(kernel_of(factors(7, 8, 3), 2.0), above_identity=True),
        sc.LogDeterminant.from_factors(factors(8, 8, 3), selectable=np.arange(8) != 0),
        sc.LogDeterminant.from_factors(np.zeros((6, 2))),
    ],
)
def test_they_keep_the_laws(f):
    assert_objective(f, atol=1e-10)


def test_float32_factors_sum_in_float64(to_xp, to_numpy):
    y = factors(9, 20, 4).astype(np.float32)
    single = sc.maximize(sc.LogDeterminant.from_factors(to_xp(y, "float32")), 10)
    double = sc.maximize(sc.LogDeterminant.from_factors(y.astype(np.float64)), 10)
    assert to_numpy(single.indices).tolist() == double.indices.tolist()


def test_gamma_is_no_negative_number():
    for gamma in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gamma: expected a finite number of at least 0"):
            sc.LogDeterminant.from_factors(np.eye(2), gamma)


@pytest.mark.parametrize("width", [3, 8, 20])
@pytest.mark.parametrize("seed", range(3))
def test_a_span_is_its_kernel(to_xp, to_numpy, width, seed):
    dice = np.random.default_rng(seed)
    y = dice.normal(size=(30, width))
    y[7], y[11] = y[2], 0.0  # a duplicate, and what spans nothing
    kernel = sc.maximize(sc.LogDeterminant(y @ y.T), 14, backend="reference")
    f = sc.LogDeterminant.from_span(to_xp(y))
    assert not f.monotone
    span = sc.maximize(f, 14)
    assert to_numpy(span.indices).tolist() == kernel.indices.tolist()
    np.testing.assert_allclose(to_numpy(span.gains), kernel.gains, atol=1e-9)
    slow = sc.maximize(f, 14, "naive")
    assert to_numpy(slow.indices).tolist() == kernel.indices.tolist()
    # Past the rank, lowest places follow, as they do of the kernel.
    assert np.isneginf(kernel.gains).sum() == max(0, 14 - width)
