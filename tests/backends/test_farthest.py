"""Farthest-first by single precision first: the picks are those of double precision."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.backends.host import driver, farthest
from secateur.core.maximize import farthest_first_features

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
    }


@pytest.mark.parametrize("name", DRIVERS)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 9),
    seed=st.integers(0, 99),
    kind=st.sampled_from(list(kinds(2, 1, 0))),
    share=st.floats(0.0, 1.0),
    start=st.sampled_from([None, 0, -1]),
    matrix=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_what_single_precision_cannot_tell_is_told_in_double(
    name, n, d, seed, kind, share, start, matrix
):
    x = kinds(n, d, seed)[kind]
    k = max(1, round(share * n))
    first = None if start is None else start % n
    unit = driver.unit
    if name == "numba":
        from secateur.backends.host import compiled

        unit = compiled.unit
    picks, gains, value = farthest.Doubtful(x, unit, matrix).picks(k, first)
    slow = farthest_first_features.reference(sc.Dispersion.from_features(x), k, first)
    assert picks.tolist() == slow.indices.tolist()
    np.testing.assert_allclose(gains, slow.gains, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(value, float(slow.value), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("start", [None, 3])
def test_drivers_doubt_where_it_is_worth_it(name, start, monkeypatch):
    asked = []
    picks = farthest.Doubtful.picks
    monkeypatch.setattr(
        farthest.Doubtful, "picks", lambda self, *given: asked.append(1) or picks(self, *given)
    )
    x = np.random.default_rng(0).standard_normal((2, 260, 512)).astype(np.float32)
    f = sc.Dispersion.from_features(x)
    with sc.backend(name):
        found = farthest_first_features(f, 12, start=start)
    assert len(asked) == 2
    with sc.backend(name):
        wide = farthest_first_features(
            sc.Dispersion.from_features(x.astype(np.float64)), 12, start=start
        )
    assert len(asked) == 2
    np.testing.assert_array_equal(found.indices, wide.indices)
    np.testing.assert_allclose(found.gains, wide.gains, rtol=1e-12)


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("start", [None, 0])
def test_what_is_no_number_is_refused(name, start, monkeypatch):
    monkeypatch.setattr(farthest, "STEP", 0)
    x = np.ones((5, 3), dtype=np.float32)
    x[2, 1] = np.nan
    f = sc.Dispersion.from_features(x, check_finite=False)
    with sc.backend(name), pytest.raises(ValueError, match=r"^features: contains NaN or infinity"):
        farthest_first_features(f, 2, start=start)


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
