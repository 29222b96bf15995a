"""Facility location from features by few similarities: the same as by all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secateur.backends import lending
from secateur.backends.host import greedy as host
from secateur.backends.host import nearly, sources, turned
from secateur.backends.host.driver import rounded_once

Floats = np.ndarray[Any, Any]

DRIVERS = ["numpy", "numba"]


def _classes(driver: str) -> tuple[Any, Any, Any]:
    """The source, what spares similarities, and what does not."""
    if driver == "numpy":
        return sources.Cosine, turned.TurnedServed, nearly.NearlyServed
    pytest.importorskip("numba")
    from secateur.backends.host import compiled

    return compiled._Cosine, compiled._Turned, nearly.NearlyServed


def _grouped(n: int, d: int, dtype: str = "float64", seed: int = 0) -> Floats:
    """Unit vectors around eight centres, every seventh one a copy of another."""
    dice = np.random.default_rng(seed)
    x = dice.standard_normal((8, d))[dice.integers(0, 8, n)] + 0.5 * dice.standard_normal((n, d))
    x[::7] = x[3]
    return rounded_once(x.astype(dtype))


@pytest.fixture(params=[100, 300, 800])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of lists a row, few, and small blocks, so that everything happens to few tokens."""
    room: int = request.param
    monkeypatch.setattr(nearly, "LISTED", room)
    monkeypatch.setattr(turned, "PRODUCT", 9000)
    monkeypatch.setattr(sources, "BLOCK", 2000)
    monkeypatch.setattr(turned, "TURN", 4)
    return room


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many that share every step, however small it is."""
    count: int = request.param
    for place in (host, lending):
        monkeypatch.setattr(place, "hands", lambda work: count)
    return count


def _naive(x: Floats, w: Floats, k: int) -> list[int]:
    """The definition, on the matrix."""
    s = np.clip((1.0 + x @ x.T) / 2.0, 0.0, 1.0)
    m = np.zeros(len(x))
    picks: list[int] = []
    for _ in range(k):
        g = w @ np.maximum(s - m[:, None], 0.0)
        g[picks] = -np.inf
        # Copies tie but for rounding, and the first of them is picked.
        picks.append(int(np.argmax(g >= g.max() - 1e-10)))
        m = np.maximum(m, s[:, picks[-1]])
    return picks


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("k", [1, 2, 9, 120])
@pytest.mark.usefixtures("threads")
def test_the_same_is_picked(narrow: int, driver: str, seed: int, k: int) -> None:
    source, sparing, eager = _classes(driver)
    x = _grouped(300, 6, seed=seed)
    w = np.random.default_rng(seed).random(300)
    state = sparing(source(x), w)
    found, expected = host.greedy(state, k), host.greedy(eager(source(x), w), k)
    assert found[0].tolist() == expected[0].tolist() == _naive(x, w, k)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9)
    np.testing.assert_allclose(found[2:], expected[2:], rtol=1e-9)
    assert (state._columns is not None) == (k == 120 and narrow > 300)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gains_stay_within_what_they_may_be_off(narrow: int, driver: str, dtype: str) -> None:
    source, sparing, _ = _classes(driver)
    x = _grouped(300, 6, dtype, seed=4)
    w = np.random.default_rng(4).random(300)
    wide = x.astype(np.float64)
    s = np.clip((1.0 + wide @ wide.T) / 2.0, 0.0, 1.0)
    state = sparing(source(x), w)
    before, picks = state.slack, []
    for _ in range(120):
        picks.append(state.take()[0])
        exact = w @ np.maximum(s - s[:, picks].max(axis=1)[:, None], 0.0)
        others = np.setdiff1d(np.arange(300), picks)
        # The coverage itself is rounded to the dtype.
        rounded = float(w.sum()) * np.finfo(dtype).eps
        np.testing.assert_allclose(state.g[others], exact[others], atol=state.slack + rounded)
    # With less room lists may never be few enough to be turned round.
    assert state._columns is not None or narrow < 800
    assert state.slack < before / 2 or state._columns is None


def _counting(kind: Any) -> Any:
    """A source that counts the entries it computes."""

    class Counting(kind):  # type: ignore[misc]
        asked = 0

        def between(self, i: Any, j: Any, out: Any = None) -> Floats:
            found: Floats = super().between(i, j, out)
            self.asked += found.size
            return found

        def columns(self, j: Any) -> Floats:
            before = self.asked
            found: Floats = super().columns(j)
            self.asked = before + found.size
            return found

        def rows(self, i: Any) -> Floats:
            before = self.asked
            found: Floats = super().rows(i)
            self.asked = before + found.size
            return found

        def entries(self, i: Any, j: int) -> Floats:
            self.asked += len(i)
            found: Floats = super().entries(i, j)
            return found

    return Counting


@pytest.mark.parametrize("driver", DRIVERS)
def test_fewer_similarities_are_computed(driver: str) -> None:
    kind, sparing, eager = _classes(driver)
    x = _grouped(9000, 4, "float32")
    many, few = _counting(kind)(x), _counting(kind)(x)
    expected = host.greedy(eager(many, None), 300)
    found = host.greedy(sparing(few, None), 300)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-6)
    # Nearly half of one product at the first pick; rows that it could have listed are made up for.
    assert few.asked < many.asked - 0.3 * 9000**2
    assert few.asked < 1.9 * 9000**2
