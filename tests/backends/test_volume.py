"""Greedy log-determinant on a CPU: the picks of the reference, however many are foreseen."""

from __future__ import annotations

import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import secateur as sc
from secateur.backends.host import driver as plain
from secateur.backends.host import volume
from secateur.core.maximize import Picks, determinant, determinant_factors, determinant_span

N = 150


@pytest.fixture(params=[(64, 64), (5, 8), (40, 12), (1, 64)], ids=str)
def foreseen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many picks are foreseen at most, and among how many tokens."""
    ahead, room = request.param
    monkeypatch.setattr(volume, "AHEAD", ahead)
    monkeypatch.setattr(volume.OfSpan, "ahead", ahead)
    monkeypatch.setattr(volume, "ROOM", room)
    monkeypatch.setattr(volume, "FORESEEN", 0)


def vectors(kind: str) -> np.ndarray:
    dice = np.random.default_rng(4)
    y = dice.standard_normal((N, 90))
    if kind == "groups":
        y = y[dice.integers(0, 12, N)] + 0.1 * y
    elif kind == "twice":
        y = np.repeat(y[: N // 2], 2, axis=0)
    elif kind == "few channels":
        y = y[:, :20]
    elif kind == "whole numbers":
        y = dice.integers(-1, 2, (N, 90)).astype(np.float64)
    elif kind == "one length":
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
    elif kind == "far apart":
        y = y * 10.0 ** dice.integers(-3, 4, (N, 1))
    y[3] = 0.0
    return y


KINDS = (
    "normal",
    "groups",
    "twice",
    "few channels",
    "whole numbers",
    "one length",
    "far apart",
)


def same(found: Picks, wanted: Picks, rtol: float = 1e-7) -> None:
    np.testing.assert_array_equal(found.indices, wanted.indices)
    for name in ("gains", "value", "bound"):
        fast, slow = np.asarray(getattr(found, name)), np.asarray(getattr(wanted, name))
        assert fast.dtype == np.float64
        np.testing.assert_allclose(fast, slow, rtol=rtol, atol=rtol)


@pytest.mark.usefixtures("foreseen")
@pytest.mark.parametrize("k", [1, 15, 60, N])
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_kernel(driver: ModuleType, kind: str, k: int) -> None:
    y = vectors(kind)
    f = sc.LogDeterminant(y @ y.T)
    same(driver.determinant(f, k), determinant.reference(f, k))


@pytest.mark.usefixtures("foreseen")
@pytest.mark.parametrize("k", [15, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_kernel_with_a_mask(driver: ModuleType, kind: str, k: int) -> None:
    y, some = vectors(kind), np.arange(N) % 5 > 0
    f = sc.LogDeterminant(y @ y.T, selectable=some)
    found = driver.determinant(f, k)
    assert some[found.indices].all()
    same(found, determinant.reference(f, k))


@pytest.mark.usefixtures("foreseen")
@pytest.mark.parametrize("k", [15, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_kernel_above_the_identity(driver: ModuleType, kind: str, k: int) -> None:
    y = vectors(kind)
    for some in (None, np.arange(N) % 5 > 0):
        f = sc.LogDeterminant(np.eye(N) + y @ y.T, above_identity=True, selectable=some)
        found = driver.determinant(f, k)
        assert np.isfinite(found.bound)
        same(found, determinant.reference(f, k))


def test_masks_and_certificates_on_a_device_are_the_reference_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    from secateur.backends.torch import driver as tensors

    monkeypatch.setattr(tensors, "_cuda", lambda _: True)
    y = vectors("normal")
    for f in (
        sc.LogDeterminant(y @ y.T, selectable=np.arange(N) % 5 > 0),
        sc.LogDeterminant(np.eye(N) + y @ y.T, above_identity=True),
    ):
        given = f.with_arrays(torch.tensor)
        assert tensors.determinant(given, 9) is NotImplemented
        same(determinant(given, 9), determinant.reference(f, 9))


@pytest.mark.usefixtures("foreseen")
@pytest.mark.parametrize("k", [1, 15, 60, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_of_factors(driver: ModuleType, kind: str, k: int) -> None:
    f = sc.LogDeterminant.from_factors(vectors(kind), 0.5, selectable=np.arange(N) % 5 > 0)
    same(driver.determinant_factors(f, k), determinant_factors.reference(f, k))


@pytest.mark.usefixtures("foreseen")
@pytest.mark.parametrize("k", [1, 15, 60, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_span(kind: str, k: int) -> None:
    for selectable in (None, np.arange(N) % 5 > 0):
        f = sc.LogDeterminant.from_span(vectors(kind), selectable=selectable)
        same(plain.determinant_span(f, k), determinant_span.reference(f, k))


@pytest.mark.usefixtures("foreseen")
@pytest.mark.parametrize("kind", ["normal", "groups", "few channels"])
def test_single_precision(driver: ModuleType, kind: str) -> None:
    y = vectors(kind).astype(np.float32)
    for f, run, slow in (
        (sc.LogDeterminant(y @ y.T), driver.determinant, determinant),
        (sc.LogDeterminant.from_factors(y), driver.determinant_factors, determinant_factors),
        (sc.LogDeterminant.from_span(y), plain.determinant_span, determinant_span),
    ):
        same(run(f, 18), slow.reference(f, 18), 1e-4)


@pytest.mark.usefixtures("foreseen")
def test_images_with_budgets_of_their_own(driver: ModuleType) -> None:
    y = np.stack([vectors(kind) for kind in ("normal", "groups", "whole numbers")])[:, None]
    k = np.asarray([[50], [1], [31]])
    for f, run, slow in (
        (sc.LogDeterminant(y @ np.swapaxes(y, -1, -2)), driver.determinant, determinant),
        (sc.LogDeterminant.from_factors(y), driver.determinant_factors, determinant_factors),
        (sc.LogDeterminant.from_span(y), plain.determinant_span, determinant_span),
    ):
        same(run(f, k), slow.reference(f, k))


@pytest.mark.parametrize("kind", ["normal", "groups", "twice"])
def test_what_is_foreseen_changes_no_pick(
    driver: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The next pick, and then whoever comes along."""
    dice, y = np.random.default_rng(1), vectors(kind)

    def anybody(given: Any, opened: Any, level: float, count: int, steps: Any) -> np.ndarray:
        left = np.where(opened, given.left, 0.0)
        if count < 1 or not left.max() > 0.0:
            return np.empty(0, dtype=np.int64)
        first = int(np.argmax(left >= left.max() * level))
        likely = np.argsort(-left)[:6]
        rest = dice.permutation([j for j in likely if j != first and opened[j] and left[j] > 0.0])
        return np.asarray([first, *rest], dtype=np.int64)[:count]

    monkeypatch.setattr(volume, "FORESEEN", 0)
    monkeypatch.setattr(volume, "_foreseen", anybody)
    for f, run, slow in (
        (sc.LogDeterminant(y @ y.T), driver.determinant, determinant),
        (sc.LogDeterminant.from_factors(y), driver.determinant_factors, determinant_factors),
        (sc.LogDeterminant.from_span(y), plain.determinant_span, determinant_span),
    ):
        same(run(f, 60), slow.reference(f, 60))


def test_most_picks_are_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "FORESEEN", 0)
    dice, products = np.random.default_rng(0), []
    y = dice.random((1024, 1)) * dice.standard_normal((1024, 256))
    for kind in (volume.OfKernel, volume.OfSpan):

        def counted(self: Any, picks: Any, foresee: Any = kind.foresee) -> None:
            products.append(len(picks))
            foresee(self, picks)

        monkeypatch.setattr(kind, "foresee", counted)
    for f, run in (
        (sc.LogDeterminant(y @ y.T), plain.determinant),
        (sc.LogDeterminant.from_factors(y, 1e-3), plain.determinant_factors),
        (sc.LogDeterminant.from_span(y), plain.determinant_span),
    ):
        for seen in (150, 257):
            products.clear()
            run(f, seen)
            wasted = sum(products) - min(seen, 256 if f.form == "span" else seen)
            assert len(products) <= seen / 8
            assert wasted <= seen / 20


@pytest.mark.usefixtures("foreseen")
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_no_number_counts_as_spent(driver: ModuleType, value: float) -> None:
    y = vectors("normal")
    kernel = y @ y.T
    kernel[7, 9] = kernel[9, 7] = value
    f = sc.LogDeterminant(kernel, check_finite=False)
    with np.errstate(all="ignore"):
        slow = determinant.reference(f, 50)
    np.testing.assert_array_equal(driver.determinant(f, 50).indices, slow.indices)
    y[9, 2] = value
    f = sc.LogDeterminant.from_span(y, check_finite=False)
    found = plain.determinant_span(f, 50)
    assert len(set(found.indices.tolist())) == 50
    assert 9 not in found.indices
    assert np.isfinite(found.gains).all()


def test_a_video_takes_no_square_of_memory() -> None:
    dice = np.random.default_rng(2)
    y = dice.standard_normal((6000, 128)).astype(np.float32)
    f = sc.LogDeterminant.from_span(y, check_finite=False)
    plain.determinant_span(f, 4)
    tracemalloc.start()
    plain.determinant_span(f, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * y.nbytes
