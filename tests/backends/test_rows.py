"""Facility location over blocks, masks and rectangles too large for a matrix, on a CPU."""

from __future__ import annotations

import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import secateur as sc
from secateur.core import maximize
from secateur.core.kernels import KINDS
from secateur.core.maximize import Picks, facility_location_rows
from secateur.core.objectives import FacilityLocation, SoftmaxBlock

N = 120


@pytest.fixture
def no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maximize, "SQUARE", 0)


def vectors(n: int, seed: int = 0) -> np.ndarray:
    dice = np.random.default_rng(seed)
    x = dice.standard_normal((n, 16)) + 2.0 * dice.standard_normal((8, 16))[np.arange(n) % 8]
    x[5], x[9] = x[2], 0.0  # a duplicate, and a zero
    return x


def same(found: Any, wanted: Picks, k: Any = 0, temperature: float = 0.2) -> None:
    """The same picks; where rows are rough, bounds are off by what k gains may be off."""
    np.testing.assert_array_equal(found.indices, wanted.indices)
    for name in ("gains", "value"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9)
    assert (np.asarray(found.bound) >= np.asarray(wanted.value) * (1 - 1e-12)).all()
    share = 8 * np.finfo(np.float32).eps * (1.0 / temperature + np.log(N))
    off = 2.0 * share * k * np.asarray(wanted.gains)[..., 0]
    assert (np.abs(found.bound - np.asarray(wanted.bound)) <= 1e-6 * wanted.value + off).all()


FREE = {"all": None, "some": np.arange(N) % 7 > 1}


@pytest.mark.usefixtures("no_matrix")
@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("k", [1, 20, 70])
def test_blocks(driver: ModuleType, free: str, k: int) -> None:
    x, words = vectors(N), vectors(11, 3)
    given = np.random.default_rng(1).random((14, N)).astype(np.float32)
    blocks = [SoftmaxBlock(words, vectors(N, 4), 0.05), given, SoftmaxBlock(x, x, 0.2)]
    heavy = np.linspace(0.0, 2.0, 11)
    for some, weights in (
        (blocks, [heavy, 0.1, 0.01]),
        (blocks[::-1], None),
        (blocks[::2], [heavy, 0.01]),
        (blocks[:1], [heavy]),
    ):
        f = FacilityLocation.of_blocks(some, weights, selectable=FREE[free])
        rough = k if any(isinstance(each, SoftmaxBlock) for each in some[1:]) else 0
        same(driver.facility_location_rows(f, k), facility_location_rows.reference(f, k), rough)


@pytest.mark.usefixtures("no_matrix")
@pytest.mark.parametrize("kind", KINDS)
def test_masked_features(driver: ModuleType, kind: str) -> None:
    x, w = vectors(N), np.random.default_rng(1).random(N)
    f = FacilityLocation.from_features(x, w, similarity=kind, selectable=FREE["some"])
    rough = 30 if kind == "softmax" else 0
    same(driver.facility_location_rows(f, 30), facility_location_rows.reference(f, 30), rough)


@pytest.mark.usefixtures("no_matrix")
@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rectangle_that_is_given(driver: ModuleType, free: str, dtype: str) -> None:
    s = np.random.default_rng(1).normal(size=(37, N)).round(1).astype(dtype)
    f = FacilityLocation(s, selectable=FREE[free])
    same(driver.facility_location_rows(f, 25), facility_location_rows.reference(f, 25))


@pytest.mark.usefixtures("no_matrix")
def test_images_with_budgets_of_their_own(driver: ModuleType) -> None:
    x = np.stack([vectors(N, seed) for seed in range(4)]).reshape(2, 2, N, 16)
    f = FacilityLocation.of_blocks([SoftmaxBlock(vectors(11, 9), x, 0.05), SoftmaxBlock(x, x, 0.2)])
    k = np.asarray([[3, 40], [1, 17]])
    same(driver.facility_location_rows(f, k), facility_location_rows.reference(f, k), k)


@pytest.mark.usefixtures("no_matrix")
def test_lists_that_run_full(driver: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.backends.host.nearly.LISTED", 100)
    x = vectors(N)
    f = FacilityLocation.of_blocks([SoftmaxBlock(vectors(11, 3), x, 0.05), SoftmaxBlock(x, x, 0.2)])
    same(driver.facility_location_rows(f, 60), facility_location_rows.reference(f, 60), 60)


@pytest.mark.usefixtures("no_matrix")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(driver: ModuleType, value: float) -> None:
    x, words = vectors(N), vectors(11, 3)
    x[7, 3] = value
    blocks = [SoftmaxBlock(words, vectors(N, 4), 0.05), SoftmaxBlock(x, x, 0.2)]
    f = FacilityLocation.of_blocks(blocks, check_finite=False)
    with pytest.raises(ValueError, match=r"^similarity: contains NaN or infinity, or features do"):
        driver.facility_location_rows(f, 5)
    f = FacilityLocation.from_features(x, selectable=FREE["some"], check_finite=False)
    with pytest.raises(ValueError, match=r"^features: contains NaN or infinity"):
        driver.facility_location_rows(f, 5)


@pytest.mark.usefixtures("no_matrix")
def test_a_sparse_rectangle_is_left_to_the_reference(driver: ModuleType) -> None:
    s = scipy.sparse.random(30, N, 0.2, "csr", random_state=np.random.default_rng(0))
    f = FacilityLocation(s)
    assert driver.facility_location_rows(f, 5) is NotImplemented
    wanted = facility_location_rows.reference(f, 5)
    np.testing.assert_array_equal(sc.maximize(f, 5).indices, wanted.indices)


def test_mmtok_of_a_video_builds_no_square() -> None:
    dice = np.random.default_rng(0)
    x = dice.standard_normal((5000, 16)).astype(np.float32)
    tokens = sc.Tokens(features=x, states=x, text=x[:9])
    tracemalloc.start()
    chosen = sc.MMTok(keep=5).select(tokens)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 5000**2
    assert int(chosen.count) == 5
