"""Rows that are a softmax, worked out when they are asked for: what they say, and how roughly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secateur.backends import lending
from secateur.backends.host import greedy as host
from secateur.backends.host import nearly, rows, softmax, sources, turned
from secateur.core.objectives import FacilityLocation, SoftmaxBlock

Floats = np.ndarray[Any, Any]
N = 200


def vectors(n: int = N, d: int = 24, seed: int = 0) -> Floats:
    """Vectors around eight centres, a copy and a zero among them."""
    dice = np.random.default_rng(seed)
    x = dice.standard_normal((n, d)) + 2.0 * dice.standard_normal((8, d))[np.arange(n) % 8]
    x[5], x[9] = x[2], 0.0
    return x


def exact(x: Floats, y: Floats, temperature: float) -> Floats:
    """The definition."""
    x, y = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for v in (x, y))
    s = x @ y.T / temperature
    s = np.exp(s - s.max(axis=1, keepdims=True))
    return s / s.sum(axis=1, keepdims=True)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many that share every step, however small it is."""
    count: int = request.param
    for place in (host, lending):
        monkeypatch.setattr(place, "hands", lambda work: count)
    monkeypatch.setattr(softmax, "ROOM", 3000)
    monkeypatch.setattr(sources, "BLOCK", 2000)
    return count


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("temperature", [0.02, 0.2, 3.0])
def test_own_rows(temperature: float) -> None:
    x = vectors()
    s, w = exact(x, x, temperature), np.random.default_rng(1).random(N)
    source = softmax.softmax_source(SoftmaxBlock(x, x, temperature))
    assert isinstance(source, softmax.OwnSoftmax)
    g = source.gains(w)
    assert source.reach < 1e-4
    assert source.doubt == source.reach * g.max()
    np.testing.assert_allclose(g, w @ s, atol=source.doubt, rtol=0)
    # Nothing below the tolerance would do for rows in single precision; columns are exact.
    i = np.asarray([3, 9, 2])
    np.testing.assert_allclose(source.rows(i), s[i], rtol=source.reach)
    assert source.rows(i).dtype == source.dtype == np.float32
    np.testing.assert_allclose(source.columns(i), s[:, i].T, rtol=1e-12)
    np.testing.assert_allclose(source.entries(i, 5), s[i, 5], rtol=1e-12)


@pytest.mark.parametrize("temperature", [1e-4, 1e-2])
def test_a_cold_softmax_stays_within_numbers(temperature: float) -> None:
    x = vectors()
    source = softmax.softmax_source(SoftmaxBlock(x, x, temperature))
    s, w = exact(x, x, temperature), np.ones(N)
    np.testing.assert_allclose(source.gains(w), s.sum(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(source.rows(np.arange(N)), s, rtol=1e-9, atol=1e-12)
    assert source.dtype == np.float64


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("some", ["all", "masked"])
def test_gains_stay_within_what_they_may_be_off(some: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turned, "TURN", 4)
    monkeypatch.setattr(turned, "PRODUCT", 3000)
    monkeypatch.setattr(nearly, "LISTED", 800)
    x, words = vectors(), vectors(12, seed=4)
    heavy = np.random.default_rng(2).random(12)
    free = np.arange(N) % 5 > 0 if some == "masked" else None
    blocks = [SoftmaxBlock(words, x, 0.05), SoftmaxBlock(x, x, 0.2), SoftmaxBlock(x, x, 0.5)]
    f = FacilityLocation.of_blocks(blocks, [heavy, 1.0 / N, 0.3 / N], selectable=free)
    source = rows.Stacked(f, 0.0, rows.cosine_source)
    assert [start for start, _ in source.twins] == [12, 12 + N]
    s = np.concatenate([exact(*block) for block in blocks])[:, source.places]
    w, m = f.row_weights(), np.zeros(12 + 2 * N)
    state, picks = turned.TurnedServed(source, w), []
    for _ in range(90):
        assert state.slack < 1e-4 * state.w.sum()
        pick, gain = state.take()
        assert gain == pytest.approx(float(w @ np.maximum(s[:, pick] - m, 0.0)), rel=1e-9)
        m = np.maximum(m, s[:, pick])
        picks.append(pick)
        others = np.setdiff1d(np.arange(source.size), picks)
        gains = w @ np.maximum(s - m[:, None], 0.0)
        np.testing.assert_allclose(state.g[others], gains[others], atol=state.slack, rtol=0)
    assert state._columns is not None


def test_single_precision_is_not_mixed_with_numbers_that_have_more() -> None:
    x = vectors()
    given, own, words = np.eye(N)[:3], SoftmaxBlock(x, x, 0.2), SoftmaxBlock(vectors(12), x, 0.2)

    def dtype(*blocks: Any) -> Any:
        f = FacilityLocation.of_blocks(blocks)
        source = rows.Stacked(f, 0.0, rows.cosine_source)
        assert source.rows(np.arange(2)).dtype == source.rows(np.arange(0)).dtype == source.dtype
        assert source.rows(np.arange(source.height)).dtype == source.dtype
        return source.dtype

    assert dtype(own) == dtype(words, own) == dtype(own, given.astype(np.float32)) == np.float32
    assert dtype(given.astype(np.float16)) == dtype(given.astype(np.float16), own) == np.float32
    assert dtype(words) == dtype(given, own) == dtype(given) == np.float64
    assert dtype(given.astype(np.longdouble), own) == np.float64
