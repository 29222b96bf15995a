"""Farthest-first by single precision first: the picks are those of double precision."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.backends.host import farthest
from secateur.core.maximize import farthest_first_features
from secateur.core.similarity import unit

DRIVERS = ["numpy", *(["numba"] if importlib.util.find_spec("numba") else [])]


def kinds(n: int, d: int, seed: int) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(seed)
    x = dice.standard_normal((n, d)).astype(np.float32)
    some = dice.integers(0, n, n)
    noise = dice.standard_normal((n, d))
    return {
        "apart": x,
        "copies": x[some],
        # Told apart by double precision, and not by single.
        "nearly copies": (x[some] + 1e-4 * noise).astype(np.float32),
        "two places": x[some % 2],
        "one place": x[np.zeros(n, dtype=int)],
        "one line": (x[:1] * dice.uniform(-2, 2, (n, 1))).astype(np.float32),
        "whole numbers": dice.integers(-1, 2, (n, d)).astype(np.float32),
        "nothing": np.zeros((n, d), dtype=np.float32),
        "tiny": (1e-40 * x).astype(np.float32),
        "huge": (1e37 * x).astype(np.float32),
        "halves": x.astype(np.float16),
        # Told apart by double precision alone.
        "wide": 1 + 1e-5 * x[some] + 1e-9 * noise,
        "other bytes": (1 + 1e-5 * x[some] + 1e-9 * noise).astype(">f8"),
    }


@given(
    n=st.integers(1, 40),
    d=st.integers(1, 9),
    seed=st.integers(0, 99),
    kind=st.sampled_from(list(kinds(2, 1, 0))),
    share=st.floats(0.0, 1.0),
    start=st.sampled_from([None, 0, -1]),
    matrix=st.booleans(),
    patient=st.booleans(),
    compiled=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_what_single_precision_cannot_tell_is_told_in_double(
    n, d, seed, kind, share, start, matrix, patient, compiled
):
    x = kinds(n, d, seed)[kind]
    k = max(1, round(share * n))
    first = None if start is None else start % n
    slow = farthest_first_features.reference(sc.Dispersion.from_features(x), k, first)
    # Beside another image, which takes its own steps.
    both = np.stack([x, x[::-1]])
    run = None
    if compiled and "numba" in DRIVERS:
        from secateur.backends.host.kernels import farthest_surely as run
    doubtful = farthest.Doubtful(both, matrix, run)
    doubtful.patience = 1 << 30 if patient else 0
    picks, gains = doubtful.picks(k, first)
    assert picks[0].tolist() == slow.indices.tolist()
    np.testing.assert_allclose(gains[0], slow.gains, rtol=1e-6, atol=1e-7)
    value = gains[0, 1:].min(initial=np.inf)
    np.testing.assert_allclose(value, float(slow.value), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["apart", "nearly copies", "whole numbers"])
@pytest.mark.parametrize("size", [3, 200, 3000])
def test_single_precision_is_off_by_less_than_what_is_looked_at_again(kind, size):
    x = kinds(60, size, 0)[kind]
    exact = unit.reference(x.astype(np.float64))
    for features in (x, x.astype(np.float64)):
        doubtful = farthest.Doubtful(features[None], matrix=True)
        off = doubtful._cosines[0] - exact @ exact.T
        np.fill_diagonal(off, 0)
        assert np.abs(off).max() < doubtful.error


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("start", [None, 3])
def test_single_precision_is_first_and_double_goes_on_where_too_much_is_in_doubt(
    name, start, monkeypatch
):
    surely = []
    go_on = farthest._go_on
    monkeypatch.setattr(farthest, "_go_on", lambda *given: surely.append(given[3]) or go_on(*given))
    x = np.random.default_rng(0).standard_normal((3, 260, 512)).astype(np.float32)
    # All that is left once three are picked of the second image is in one place.
    x[1, 3:] = x[1, 3]
    found = []
    for dtype in (np.float32, np.float64):
        f = sc.Dispersion.from_features(x.astype(dtype))
        with sc.backend(name):
            found.append(farthest_first_features(f, 40, start=start))
        assert len(surely) == 1
        assert surely.pop() <= 4
    one, other = found
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.gains, other.gains, rtol=1e-6, atol=1e-12)
    slow = farthest_first_features.reference(f, 40, start)
    np.testing.assert_array_equal(other.indices, slow.indices)
    np.testing.assert_allclose(other.gains, slow.gains, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize("k", [1, 2])
def test_what_is_no_number_is_refused(name, start, k):
    x = np.ones((5, 3), dtype=np.float32)
    x[2, 1] = np.nan
    f = sc.Dispersion.from_features(x, check_finite=False)
    with sc.backend(name), pytest.raises(ValueError, match=r"^features: contains NaN or infinity"):
        farthest_first_features(f, k, start=start)


@pytest.mark.parametrize("start", [None, 3])
@pytest.mark.parametrize("room", [1, 5000])
def test_images_together_get_what_each_gets_alone(start, room, monkeypatch):
    monkeypatch.setattr(farthest, "PRODUCT", room)
    x = np.random.default_rng(0).integers(-2, 3, (2, 4, 40, 6)).astype(np.float32)
    budgets = np.asarray([[1, 40, 7, 0], [12, 12, 3, 2]])
    with sc.backend("numpy"):
        found = farthest_first_features(sc.Dispersion.from_features(x), budgets, start=start)
        for at in np.ndindex(2, 4):
            f, k = sc.Dispersion.from_features(x[at]), int(budgets[at])
            alone = farthest_first_features(f, k, start=start)
            np.testing.assert_array_equal(found.indices[at][:k], alone.indices)
            np.testing.assert_allclose(found.gains[at][:k], alone.gains, rtol=1e-12, atol=1e-14)
            assert found.value[at] == pytest.approx(float(alone.value), abs=1e-14)
            slow = farthest_first_features.reference(f, k, start)
            np.testing.assert_array_equal(alone.indices, slow.indices)
            assert float(alone.value) == pytest.approx(float(slow.value), abs=1e-12)
    behind = np.arange(40) >= budgets[..., None]
    assert (found.indices[behind] == -1).all()
    assert (found.gains[behind] == 0).all()


@pytest.mark.parametrize("matrix", [False, True])
def test_what_is_in_doubt_is_compared_with_the_nearest_picks_only(
    matrix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 300, 2000)).astype(np.float32)
    asked: list[int] = []

    def watched(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if a.dtype == np.float64:
            asked.append(b.shape[-1])
        return np.matmul(a, b, out=out)

    monkeypatch.setattr(farthest, "product", watched)
    doubtful = farthest.Doubtful(x, matrix=matrix)
    doubtful.picks(100, 0)
    doubts = int(doubtful._doubts[0])
    assert doubts > 20
    # What follows are the gains of all picks.
    assert max(asked[:doubts]) < 20 < max(asked[doubts:])
