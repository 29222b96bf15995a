"""Farthest-first by single precision first: the picks are those of double precision."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.backends.host import candidates, farthest
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
        # Told apart by double precision alone, copies by none: of 1e-9 the noise would move
        # distances by about the margin within which they count as equal.
        "wide": 1 + 1e-5 * x[some] + 1e-12 * noise,
        "other bytes": (1 + 1e-5 * x[some] + 1e-12 * noise).astype(">f8"),
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
    room=st.sampled_from([8, 64]),
)
@settings(max_examples=300, deadline=None)
def test_what_single_precision_cannot_tell_is_told_in_double(
    n, d, seed, kind, share, start, matrix, patient, compiled, room
):
    x = kinds(n, d, seed)[kind]
    k = max(1, round(share * n))
    first = None if start is None else start % n
    slow = farthest_first_features.reference(sc.Dispersion.from_features(x), k, first)
    # Beside another image, which takes its own steps; candidates are one image's.
    images = np.stack([x, x[::-1]]) if matrix else x[None]
    run = None
    if compiled and "numba" in DRIVERS:
        from secateur.backends.host.kernels import farthest_surely as run
    way = farthest.ByMatrix if matrix else candidates.ByCandidates
    doubtful = way(images, run)
    doubtful.patience = 1 << 30 if patient else 0
    doubtful._room = room
    picks, gains = doubtful.picks(k, first)
    assert picks[0].tolist() == slow.indices.tolist()
    np.testing.assert_allclose(gains[0], slow.gains, rtol=1e-6, atol=1e-7)
    value = gains[0, 1:].min(initial=np.inf)
    np.testing.assert_allclose(value, float(slow.value), rtol=1e-6, atol=1e-7)


@given(
    n=st.integers(20, 300),
    d=st.sampled_from([2, 3, 16, 64]),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["apart", "nearly copies", "copies", "in groups", "on a path"]),
    share=st.floats(0.02, 1.0),
    start=st.sampled_from([None, 5]),
    room=st.sampled_from([8, 20]),
    few=st.sampled_from([1, 8]),
    whole=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_candidates_are_the_only_tokens_that_could_be_picked(
    n, d, seed, kind, share, start, room, few, whole
):
    dice = np.random.default_rng(seed)
    if kind == "in groups":
        x = dice.standard_normal((4, d))[dice.integers(0, 4, n)] + 0.1 * dice.standard_normal(
            (n, d)
        )
    elif kind == "on a path":
        x = 3 + np.cumsum(0.3 * dice.standard_normal((n, d)), axis=0)
    else:
        x = kinds(n, d, seed)[kind]
    x = x.astype(np.float32)
    k = max(1, round(share * n))
    slow = farthest_first_features.reference(sc.Dispersion.from_features(x), k, start)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(candidates, "ROOM", room)
        patched.setattr(candidates, "FEW", few)
        doubtful = candidates.ByCandidates(x[None], whole=whole)
        doubtful._room = room
        picks, gains = doubtful.picks(k, start)
    assert picks[0].tolist() == slow.indices.tolist()
    np.testing.assert_allclose(gains[0], slow.gains, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["apart", "nearly copies", "whole numbers"])
@pytest.mark.parametrize("size", [3, 200, 3000])
def test_single_precision_is_off_by_less_than_what_is_looked_at_again(kind, size):
    x = kinds(60, size, 0)[kind]
    exact = unit.reference(x.astype(np.float64))
    for features in (x, x.astype(np.float64)):
        doubtful = farthest.ByMatrix(features[None])
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
    monkeypatch.setattr(candidates, "PRODUCT", room)
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


@pytest.mark.parametrize("way", [farthest.ByMatrix, candidates.ByCandidates])
def test_what_is_in_doubt_is_compared_with_the_nearest_picks_only(
    way: type[farthest.Doubtful], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 300, 2000)).astype(np.float32)
    asked: list[int] = []

    def watched(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if a.dtype == np.float64:
            asked.append(b.shape[-1])
        return np.matmul(a, b, out=out)

    monkeypatch.setattr(farthest, "product", watched)
    doubtful = way(x)
    doubtful.picks(100, 0)
    doubts = int(doubtful._doubts[0])
    assert doubts > 20
    # What follows are the gains of all picks.
    assert max(asked[:doubts]) < 20 < max(asked[doubts:])


def multiplied(x: np.ndarray, k: int, start: int | None, monkeypatch: pytest.MonkeyPatch) -> float:
    """Entries of cosines in single precision that picks take, by tokens times picks."""
    taken = 0

    def watched(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        nonlocal taken
        if a.dtype == np.float32:
            taken += len(a) * (b.shape[-1] if b.ndim > 1 else 1)
        return np.matmul(a, b, out=out)

    with monkeypatch.context() as patched:
        for module in (candidates, farthest):
            patched.setattr(module, "product", watched)
        candidates.ByCandidates(x[None]).picks(k, start)
    return taken / (k * len(x))


def test_candidates_take_fewer_cosines_than_rows_or_a_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice = np.random.default_rng(0)
    n, k = 6000, 300
    # Forty things of a few shades each, neighbours of one thing: what tokens of images are like.
    things = dice.standard_normal((40, 64))[np.arange(n) * 40 // n]
    noise = dice.standard_normal((n, 64))
    x = (things + 0.5 * noise).astype(np.float32)
    assert multiplied(x, k, 0, monkeypatch) < 0.85
    # Without any likeness, too.
    assert multiplied(noise.astype(np.float32), k, 0, monkeypatch) < 0.85
    # The first pick by distance takes no half of all, which would be 10 here.
    assert multiplied(x, k, None, monkeypatch) < 1.2


def test_large_images_are_chosen_from_by_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("ByMatrix", "ByCandidates"):
        way = getattr(candidates, name)

        def noted(*given: object, name: str = name, way: type = way) -> object:
            used.append(name)
            return way(*given)

        monkeypatch.setattr(candidates, name, noted)
    dice = np.random.default_rng(0)
    for n, d, k, expected in (
        (300, 64, 30, ["ByMatrix"]),
        (2100, 600, 20, ["ByCandidates"]),
        (2100, 600, 2000, ["ByMatrix"]),
        # All cosines at once would take more than four times the memory of the features.
        (2100, 32, 2000, ["ByCandidates"]),
    ):
        x = dice.standard_normal((n, d)).astype(np.float32)
        with sc.backend("numpy"):
            farthest_first_features(sc.Dispersion.from_features(x), k, start=0)
        assert used == expected
        used.clear()
    # Without neighbours in the order of tokens the first pick takes all cosines, which are kept.
    with sc.backend("numpy"):
        x = dice.standard_normal((2100, 600)).astype(np.float32)
        farthest_first_features(sc.Dispersion.from_features(x), 20)
    assert used == ["ByCandidates", "ByMatrix"]
