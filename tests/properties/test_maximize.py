"""What greedy promises: against brute force, against itself, and under symmetry."""

import math

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.backends.host import driver
from secateur.testing import (
    assert_algorithms_agree,
    assert_greedy_guarantee,
    assert_selection,
    distances,
    facility_locations,
    features,
    kernels,
    optimum,
    similarities,
    weights,
)


@pytest.fixture(scope="module", autouse=True)
def row_by_row():
    """Of narrow features no matrix is built here, though few tokens would have room for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "MATRIX", 0)
        yield


backends = st.sampled_from(["reference", "auto"])
budgets = st.integers(1, 12)
algorithms = st.sampled_from(["naive", "lazy", "incremental", "auto"])
seeds = st.integers(0, 2**32 - 1)


@given(facility_locations(max_tokens=8), budgets, algorithms, backends)
def test_greedy_keeps_its_promise_and_its_certificate_is_true(f, k, algorithm, backend):
    with sc.backend(backend):
        assert_greedy_guarantee(f, k, algorithm, atol=0.0)


@given(
    facility_locations(max_tokens=8, dtype=np.float32, scales=(1.0, 1e-12, 1e12)),
    budgets,
    algorithms,
    backends,
)
def test_greedy_keeps_its_promise_in_float32(f, k, algorithm, backend):
    with sc.backend(backend):
        assert_greedy_guarantee(f, k, algorithm, rtol=1e-5, atol=0.0)


@given(facility_locations(), budgets, backends)
def test_all_algorithms_pick_the_same_in_float64(f, k, backend):
    note(f"matrix={f.matrix!r}, features={f.features!r}, weights={f.weights!r}")
    with sc.backend(backend):
        assert_algorithms_agree(f, k)


@given(kernels(), budgets, backends)
def test_all_algorithms_pick_the_same_of_a_kernel(kernel, k, backend):
    with sc.backend(backend):
        assert_algorithms_agree(sc.LogDeterminant(kernel), k)


@given(st.one_of(distances().map(sc.Dispersion), features().map(sc.Dispersion.from_features)))
@settings(print_blob=True)
def test_all_algorithms_pick_the_same_of_distances(f):
    for backend in ("reference", "auto"):
        with sc.backend(backend):
            assert_algorithms_agree(f, f.size)


@given(facility_locations(), budgets, algorithms, backends)
def test_gains_add_up_to_the_value_and_shrink(f, k, algorithm, backend):
    with sc.backend(backend):
        picks = sc.maximize(f, k, algorithm)
    assert_selection(picks, min(k, f.size))
    largest = max(float(picks.value), float(picks.gains[0]))
    assert math.isclose(picks.gains.sum(), float(picks.value), rel_tol=1e-9, abs_tol=0.0)
    assert (np.diff(picks.gains) <= 1e-9 * largest).all()
    assert float(picks.value) <= float(picks.upper_bound) * (1 + 1e-12)
    assert 1 - 1 / math.e <= float(picks.guarantee) <= 1.0


@given(
    st.integers(2, 10).flatmap(
        lambda n: st.tuples(
            similarities(min_tokens=n, max_tokens=n, ties=False), weights(n, scales=(1.0, 1e12))
        )
    ),
    seeds,
    algorithms,
    backends,
)
def test_picks_follow_a_permutation_of_the_tokens(instance, seed, algorithm, backend):
    s, w = instance
    n = len(s)
    order = np.random.default_rng(seed).permutation(n)
    turned_weights = None if w is None else w[order]
    with sc.backend(backend):
        one = sc.maximize(sc.FacilityLocation(s, w), n, algorithm)
        other = sc.maximize(
            sc.FacilityLocation(s[np.ix_(order, order)], turned_weights), n, algorithm
        )
    # Tokens that add nothing tie with one another; up to them there are no ties.
    decided = int((one.gains > 1e-9 * one.gains[0]).sum())
    assert order[other.indices[:decided]].tolist() == one.indices[:decided].tolist()


@given(
    st.integers(2, 10).flatmap(
        lambda n: st.tuples(similarities(min_tokens=n, max_tokens=n), weights(n))
    ),
    st.sampled_from([1e-30, 0.1, 3.0, 1e30]),
    algorithms,
    backends,
)
def test_picks_do_not_depend_on_the_scale_of_weights(instance, factor, algorithm, backend):
    s, w = instance
    w = np.ones(len(s)) if w is None else w
    with sc.backend(backend):
        one = sc.maximize(sc.FacilityLocation(s, w), len(s), algorithm)
        other = sc.maximize(sc.FacilityLocation(s, factor * w), len(s), algorithm)
    assert one.indices.tolist() == other.indices.tolist()
    assert math.isclose(float(one.guarantee), float(other.guarantee), rel_tol=1e-6)


@given(facility_locations(max_tokens=9), budgets, seeds)
def test_stochastic_greedy_is_valid_seeded_and_bounded(f, k, seed):
    picks = sc.maximize(f, k, "stochastic", seed=seed)
    again = sc.maximize(f, k, "stochastic", seed=seed)
    assert_selection(picks, min(k, f.size))
    assert picks.indices.tolist() == again.indices.tolist()
    best = optimum(f, min(k, f.size))[1]
    assert float(picks.upper_bound) >= best * (1 - 1e-9)
    assert float(picks.guarantee) * best <= float(picks.value) * (1 + 1e-9)


@given(features(min_tokens=2), st.data(), algorithms, backends)
def test_features_and_their_matrix_reach_the_same(x, data, algorithm, backend):
    w = data.draw(weights(len(x)))
    k = data.draw(st.integers(1, len(x)))
    u = x / np.maximum(abs(x).max(axis=-1, keepdims=True), np.finfo(float).tiny)
    u = u / np.maximum(np.linalg.norm(u, axis=-1, keepdims=True), np.finfo(float).tiny)
    matrix = sc.FacilityLocation(np.clip((1 + u @ u.T) / 2, 0, 1), w)
    with sc.backend(backend):
        one = sc.maximize(matrix, k, algorithm)
        other = sc.maximize(sc.FacilityLocation.from_features(x, w), k, algorithm)
    np.testing.assert_allclose(one.gains, other.gains, rtol=1e-9, atol=1e-12 * one.gains[0])


@given(kernels(), backends)
def test_determinant_greedy_always_picks_distinct_tokens(kernel, backend):
    f = sc.LogDeterminant(kernel)
    with sc.backend(backend):
        picks = sc.maximize(f, f.size)
    assert_selection(picks, f.size)
    assert picks.gains[0] == np.log(kernel.diagonal().max()) if kernel.any() else True


@given(kernels(full_rank=True), st.integers(1, 8), backends)
def test_determinant_greedy_takes_the_largest_ratio(kernel, k, backend):
    with sc.backend(backend):
        picks = sc.maximize(sc.LogDeterminant(kernel), k)
    volume = 0.0
    for t, pick in enumerate(picks.indices):
        ratios = [
            np.linalg.slogdet(kernel[np.ix_(s, s)])[1] - volume
            for j in range(len(kernel))
            if j not in picks.indices[:t]
            for s in [[*picks.indices[:t], j]]
        ]
        assert math.isclose(picks.gains[t], max(ratios), rel_tol=1e-9, abs_tol=1e-9)
        volume = np.linalg.slogdet(
            kernel[np.ix_([*picks.indices[:t], pick], [*picks.indices[:t], pick])]
        )[1]
    assert math.isclose(float(picks.value), volume, rel_tol=1e-9, abs_tol=1e-9)


@given(distances(min_tokens=2, max_tokens=8), st.integers(2, 8), backends)
def test_farthest_first_reaches_half_of_the_best(d, k, backend):
    f = sc.Dispersion(d)
    k = min(k, f.size)
    with sc.backend(backend):
        picks = sc.maximize(f, k)
    assert_selection(picks, k)
    best = optimum(f, k)[1]
    assert best / 2 * (1 - 1e-9) <= float(picks.value) <= best
    assert float(picks.value) == picks.gains[1:].min()


@given(features(min_tokens=2, max_tokens=7, scales=(1.0,)), st.integers(2, 7), backends)
def test_farthest_first_of_features_reaches_a_quarter(x, k, backend):
    f = sc.Dispersion.from_features(x)
    k = min(k, f.size)
    with sc.backend(backend):
        picks = sc.maximize(f, k)
    if x.any(axis=-1).all():
        assert float(picks.value) >= optimum(f, k)[1] / 4 - 1e-12
