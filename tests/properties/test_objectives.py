"""What the objectives promise, and that the checkers notice when a promise is broken."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import secateur as sc
from secateur.testing import (
    assert_algorithms_agree,
    assert_gain_consistent,
    assert_greedy_guarantee,
    assert_monotone,
    assert_objective,
    assert_order_free,
    assert_selection,
    assert_submodular,
    distances,
    facility_locations,
    kernels,
    optimum,
    similarities,
    weights,
)

seeds = st.integers(0, 2**32 - 1)


def entry_rounding(f):
    """What the rounding of entries can do to a value; those of a matrix are exact."""
    if f.features is None:
        return 0.0
    return 1e-15 * f.kernel.error * float(f.row_weights().sum())


@given(facility_locations(), seeds)
def test_facility_location_is_monotone_submodular_and_consistent(f, seed):
    for holds in (assert_monotone, assert_submodular, assert_gain_consistent, assert_order_free):
        holds(f, trials=10, seed=seed, atol=entry_rounding(f))


@given(facility_locations(dtype=np.float32, scales=(1.0, 1e-12, 1e12)), seeds)
def test_facility_location_of_float32_too(f, seed):
    for holds in (assert_monotone, assert_submodular, assert_gain_consistent):
        holds(f, trials=10, seed=seed, atol=entry_rounding(f))


@given(kernels(full_rank=True), seeds)
def test_log_determinant_is_submodular_and_consistent(kernel, seed):
    f = sc.LogDeterminant(kernel)
    for holds in (assert_submodular, assert_gain_consistent, assert_order_free):
        holds(f, trials=10, seed=seed, atol=1e-9)


@given(kernels(full_rank=True), seeds)
def test_log_determinant_gains_are_ratios_of_determinants(kernel, seed):
    f = sc.LogDeterminant(kernel)
    order = np.random.default_rng(seed).permutation(f.size)
    for t in range(f.size):
        before, after = order[:t], order[: t + 1]
        ratio = (
            np.linalg.slogdet(kernel[np.ix_(after, after)])[1]
            - np.linalg.slogdet(kernel[np.ix_(before, before)])[1]
        )
        assert math.isclose(float(f.gain(before, order[t])), ratio, rel_tol=1e-9, abs_tol=1e-9)


@given(distances(), seeds)
def test_dispersion_is_the_smallest_distance(d, seed):
    f = sc.Dispersion(d)
    order = np.random.default_rng(seed).permutation(f.size)
    assert_order_free(f, trials=5, seed=seed, atol=0.0)
    for t in range(2, f.size + 1):
        pairs = [d[i, j] for i in order[:t] for j in order[:t] if i != j]
        assert float(f.value(order[:t])) == min(pairs)
        assert float(f.gain(order[: t - 1], order[t - 1])) == d[order[t - 1], order[: t - 1]].min()


@given(st.data(), similarities(max_tokens=6, scales=(1.0,)))
def test_objectives_of_rows_are_those_of_the_batch(data, s):
    w = data.draw(weights(len(s), scales=(1.0,)))
    f = sc.FacilityLocation(np.stack([s, 2 * s]), None if w is None else np.stack([w, 3 * w]))
    one = float(sc.FacilityLocation(s, w).value([0]))
    np.testing.assert_allclose(f.value([0]), [one, (2 if w is None else 6) * one], rtol=1e-12)


class Broken(sc.Objective):
    """An objective over five tokens that calls itself what it is not."""

    submodular = True
    monotone = True

    def __init__(self, value):
        self.size, self.sample, self._value = 5, np.zeros(1), value

    def value(self, indices):
        return float(self._value(list(indices)))


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        (assert_monotone, lambda s: 1.0, "not monotone from 0: the empty set has value 1.0"),
        (assert_monotone, lambda s: -len(s), r"not monotone: token \d lowers the value of \[\]"),
        (assert_submodular, lambda s: len(s) ** 2, r"not submodular: token \d adds \d.0 to \["),
        (assert_order_free, lambda s: sum(s[:1]), r"value\(\[.*\]\) is \d.0, but value"),
        (assert_objective, lambda s: len(s) ** 2, "not submodular"),
        (
            assert_greedy_guarantee,
            lambda s: len(s) + 9 * ({3, 4} <= set(s)),
            "greedy reaches 2.0, below 0.7500 of 11.0",
        ),
    ],
)
def test_checkers_notice_broken_promises(check, value, words):
    arguments = (2,) if check is assert_greedy_guarantee else ()
    with pytest.raises(AssertionError, match=words):
        check(Broken(value), *arguments)


def test_checkers_notice_gains_that_are_none():
    class Doubled(Broken):
        def gain(self, indices, j):
            return 2.0 * super().gain(indices, j)

    with pytest.raises(AssertionError, match=r"gain\(.*\) is 2.0, but value\(.*\) - value\(.*\) ="):
        assert_gain_consistent(Doubled(len))

    class Flat(Broken):
        def gain(self, indices, j):
            return super().gain(indices, j) if np.ndim(j) == 0 else np.ones(2)

    with pytest.raises(AssertionError, match=r"all 5 tokens\) has shape \(2,\), not \(5,\)"):
        assert_gain_consistent(Flat(len))


def growing(s):
    """After token 0 token 2 is worth more than lazy greedy believes."""
    return 3 * (0 in s) + 2 * (1 in s) + (2 in s) + 9 * ({0, 2} <= set(s))


def test_checkers_notice_algorithms_that_disagree():
    with pytest.raises(AssertionError, match=r"lazy picks \[.*\], but naive picks \[.*\]"):
        assert_algorithms_agree(Broken(growing), 3)


def test_checkers_notice_what_is_no_selection():
    def kept(indices, count, **more):
        return sc.Selection(np.array(indices), np.array(count), 5, **more)

    assert_selection(kept([[0, 4], [2, -1]], [2, 1]), [2, 1])
    for bad, words in (
        (kept([0, 0], 2), r"expected 2 distinct tokens, then -1, got \[0 0\]"),
        (kept([0, 5], 2), r"\[0 5\] leave 0 .. 4"),
        (kept([0, 1], 1), "expected 1 distinct tokens"),
        (kept([0, 1], [2]), r"count has shape \(1,\), the batch \(\)"),
        (kept([0, 1], 2, gains=np.ones(3)), r"gains has shape \(3,\), expected \(2,\)"),
        (kept([0, 1], 2, scores=np.ones(2)), r"scores has shape \(2,\), expected \(5,\)"),
    ):
        with pytest.raises(AssertionError, match=words):
            assert_selection(bad)
    with pytest.raises(AssertionError, match="kept 2 tokens, not 3"):
        assert_selection(kept([0, 1], 2), 3)


def test_a_bound_is_asked_of_monotone_submodular_objectives_only():
    with pytest.raises(AssertionError, match="LogDeterminant does not call itself submodular and"):
        assert_greedy_guarantee(sc.LogDeterminant(np.eye(3)), 2)


@pytest.mark.parametrize(
    "f",
    [
        sc.FacilityLocation(np.eye(3)),
        sc.FacilityLocation.from_features(np.random.default_rng(0).normal(size=(2, 8, 3))),
        sc.LogDeterminant(np.eye(4) + 1),
        sc.Dispersion(1 - np.eye(4)),
        sc.FacilityLocation(np.ones((1, 1))),
    ],
)
def test_assert_objective_takes_ours(f):
    assert_objective(f)


@given(facility_locations(max_tokens=5), st.integers(1, 5))
def test_the_optimum_is_the_best_of_all(f, k):
    assume(k <= f.size)
    best, value = optimum(f, k)
    assert len(set(best)) == k
    assert value == float(f.value(list(best)))
    # Ascending, as sets are tried: softmax similarities are rounded by where a column stands.
    other = np.sort(np.random.default_rng(0).permutation(f.size)[:k])
    assert float(f.value(other)) <= value
