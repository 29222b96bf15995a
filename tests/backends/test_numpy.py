"""The drivers of NumPy arrays against the reference, operation by operation."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import secateur as sc
from secateur.backends.host import driver as plain
from secateur.backends.host import lengths, nearly, received
from secateur.core.attention import attention_received
from secateur.core.maximize import (
    Picks,
    determinant,
    facility_location,
    facility_location_features,
    facility_location_rows,
    farthest_first,
    farthest_first_features,
    naive,
    salient_coverage,
)
from secateur.core.measures import largest_eigenvectors, patch_entropy, singular_values
from secateur.core.objectives import FacilityLocation, SoftmaxBlock
from secateur.core.relevance import dense_relevance, text_relevance
from secateur.core.similarity import (
    cosine_similarity,
    cosines,
    likeness_factors,
    squared_distances,
    unit,
)
from secateur.core.threshold import threshold_scan

MODULES = {"numpy": "driver", "numba": "compiled"}


@pytest.fixture(params=["numpy", "numba"], scope="module")
def driver(request: pytest.FixtureRequest) -> ModuleType:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return importlib.import_module(f"secateur.backends.host.{MODULES[request.param]}")


@pytest.fixture(scope="module", autouse=True)
def row_by_row() -> Iterator[None]:
    """Of narrow features no matrix is built here, though few tokens would have room for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "MATRIX", 0)
        yield


def features(n: int, d: int = 24, seed: int = 0) -> np.ndarray:
    dice = np.random.default_rng(seed)
    return dice.standard_normal((n, d)) + dice.standard_normal(d)


def weights(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) ** 2


def similar(n: int, seed: int = 0) -> np.ndarray:
    return cosine_similarity.reference(features(n, seed=seed))


def same(fast: Picks, slow: Picks, rtol: float = 1e-9) -> None:
    np.testing.assert_array_equal(fast.indices, slow.indices)
    assert fast.indices.dtype == slow.indices.dtype
    np.testing.assert_allclose(fast.gains, slow.gains, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(fast.value, slow.value, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(fast.bound, slow.bound, rtol=rtol)
    for name in ("gains", "value", "bound"):
        assert np.asarray(getattr(fast, name)).dtype == np.float64


def _integers(n: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 4, (n, n)).astype(np.float64)


def _signed(n: int) -> np.ndarray:
    return np.random.default_rng(6).standard_normal((n, n))


def _duplicates(n: int) -> np.ndarray:
    few = features(7, seed=2)
    return cosine_similarity.reference(few[np.arange(n) % 7])


def _low(n: int) -> np.ndarray:
    low = similar(n)
    low[:, n // 2 :] = 0.0
    return low


MATRICES: dict[str, Callable[[int], np.ndarray]] = {
    "cosine": similar,
    "integers": _integers,
    "signed": _signed,
    "duplicates": _duplicates,
    "identity": np.eye,
    "zero": lambda n: np.zeros((n, n)),
    "negative": lambda n: -similar(n),
    "equal": lambda n: np.full((n, n), 0.7),
    "asymmetric": lambda n: similar(n) * np.linspace(0.5, 1.5, n),
    "half zero": _low,
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (3, 3), (41, 12), (41, 41)])
def test_facility_location(driver: ModuleType, kind: str, dtype: str, n: int, k: int) -> None:
    s = MATRICES[kind](n).astype(dtype)
    for w in (None, weights(n), np.zeros(n), np.where(np.arange(n) % 3, 0.0, 1.0)):
        same(
            driver.facility_location(sc.FacilityLocation(s, w), k),
            facility_location.reference(sc.FacilityLocation(s, w), k),
        )


@pytest.mark.parametrize("kind", ["cosine", "integers", "signed", "asymmetric", "duplicates"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_picks_are_those_of_the_definition(driver: ModuleType, kind: str, dtype: str) -> None:
    s, w = MATRICES[kind](90).astype(dtype), weights(90)
    picks = driver.facility_location(sc.FacilityLocation(s, w), 40)
    wide = naive(FacilityLocation(s.astype(np.float64), w), 40)
    np.testing.assert_array_equal(picks.indices, wide.indices)
    np.testing.assert_allclose(picks.gains, wide.gains, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(picks.bound, wide.bound, rtol=1e-9)


def test_facility_location_is_exact_where_many_updates_add_up(driver: ModuleType) -> None:
    s, w = similar(700, seed=3).astype(np.float32), weights(700)
    same(
        driver.facility_location(sc.FacilityLocation(s, w), 350),
        facility_location.reference(sc.FacilityLocation(s, w), 350),
    )


def test_weights_of_very_different_size(driver: ModuleType) -> None:
    s, w = similar(60), 10.0 ** np.linspace(-12, 12, 60)
    same(
        driver.facility_location(sc.FacilityLocation(s, w), 30),
        facility_location.reference(sc.FacilityLocation(s, w), 30),
    )


@pytest.mark.parametrize("operate", ["dense", "features"])
def test_batches_have_budgets_of_their_own(driver: ModuleType, operate: str) -> None:
    x = np.stack([features(30, 6, seed) for seed in range(6)]).reshape(2, 3, 30, 6)
    w = np.stack([weights(30, seed) for seed in range(6)]).reshape(2, 3, 30)
    k = np.asarray([[1, 30, 7], [8, 2, 15]])
    if operate == "dense":
        s = cosine_similarity.reference(x)
        fast, slow = (
            driver.facility_location(sc.FacilityLocation(s, w), k),
            facility_location.reference(sc.FacilityLocation(s, w), k),
        )
    else:
        fast = driver.facility_location_features(sc.FacilityLocation.from_features(x, w), k)
        slow = facility_location_features.reference(sc.FacilityLocation.from_features(x, w), k)
    same(fast, slow)
    assert fast.indices.shape == (2, 3, 30)
    assert (fast.indices[0, 0, 1:] == -1).all()
    assert (fast.gains[0, 0, 1:] == 0).all()


def test_large_batches_equal_their_rows(driver: ModuleType) -> None:
    s = np.stack([similar(400, seed) for seed in range(8)])
    together = driver.facility_location(sc.FacilityLocation(s), 20)
    for row in range(8):
        alone = driver.facility_location(sc.FacilityLocation(s[row]), 20)
        np.testing.assert_array_equal(together.indices[row], alone.indices)
        np.testing.assert_array_equal(together.gains[row], alone.gains)


def test_layouts_that_are_not_contiguous(driver: ModuleType) -> None:
    s, w = similar(40), weights(40)
    expected = facility_location.reference(sc.FacilityLocation(s, w), 10)
    doubled = np.repeat(np.repeat(s, 2, 0), 2, 1)[::2, ::2]
    same(driver.facility_location(sc.FacilityLocation(doubled, np.repeat(w, 2)[::2]), 10), expected)
    same(
        driver.facility_location(sc.FacilityLocation(np.asfortranarray(s), w[::-1][::-1]), 10),
        expected,
    )
    wide = np.broadcast_to(np.asarray(0.5), 40)
    same(
        driver.facility_location(sc.FacilityLocation(s, wide), 10),
        facility_location.reference(sc.FacilityLocation(s, wide.copy()), 10),
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_sparse_rows(driver: ModuleType, dtype: str, index: str) -> None:
    dice = np.random.default_rng(9)
    dense = np.where(dice.random((80, 80)) < 0.15, dice.integers(-2, 9, (80, 80)), 0)
    matrix = scipy.sparse.csr_matrix(dense.astype(dtype))
    matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
    w = weights(80)
    fast = driver.facility_location(sc.FacilityLocation(matrix, w), 60)
    same(fast, facility_location.reference(sc.FacilityLocation(matrix, w), 60))
    same(fast, facility_location.reference(sc.FacilityLocation(dense.astype(np.float64), w), 60))


def test_sparse_entries_stored_twice_add_up(driver: ModuleType) -> None:
    parts = scipy.sparse.csr_matrix(
        (np.asarray([1.0, 2.0, 1.5]), np.asarray([0, 0, 1]), np.asarray([0, 2, 3])), shape=(2, 2)
    )
    picks = driver.facility_location(sc.FacilityLocation(parts), 1)
    assert picks.indices.tolist() == [0]
    assert picks.gains.tolist() == [3.0]
    assert parts.nnz == 3


def test_sparse_is_never_made_dense(driver: ModuleType) -> None:
    n = 20_000
    dice = np.random.default_rng(1)
    near = np.concatenate([np.arange(n), dice.integers(0, n, 4 * n)])
    matrix = scipy.sparse.coo_matrix(
        (dice.random(5 * n), (np.tile(np.arange(n), 5), near)), shape=(n, n)
    ).tocsr()
    driver.facility_location(sc.FacilityLocation(matrix), 2)
    tracemalloc.start()
    driver.facility_location(sc.FacilityLocation(matrix), 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 1), (50, 30, 20), (300, 4, 300), (500, 8, 120)])
def test_from_features(driver: ModuleType, n: int, d: int, k: int) -> None:
    x, w = features(n, d), weights(n)
    same(
        driver.facility_location_features(sc.FacilityLocation.from_features(x, w), k),
        facility_location_features.reference(sc.FacilityLocation.from_features(x, w), k),
    )


@pytest.mark.parametrize("shape", [(0, 3), (5, 7), (2, 3, 64)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
def test_arrays_that_loops_fill_begin_with_a_line_of_the_cache(
    shape: tuple[int, ...], dtype: str
) -> None:
    for _ in range(9):
        found = lengths.lined(shape, dtype)
        assert (found.shape, found.dtype) == (shape, np.dtype(dtype))
        assert found.flags.c_contiguous
        assert found.flags.writeable
        assert found.ctypes.data % lengths.LINE == 0 or not found.size


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("rows", [20, 1 << 16])
def test_cosines(
    monkeypatch: pytest.MonkeyPatch, dtype: str, batch: tuple[int, ...], rows: int
) -> None:
    monkeypatch.setattr(plain, "BLOCK", rows)
    dice = np.random.default_rng(0)
    x = dice.standard_normal((*batch, 40, 6)).astype(dtype)
    y = dice.standard_normal((*batch[1:], 5, 6)).astype(dtype)
    x[..., 3, :], y[..., 1, :] = 0, 0
    given = x.copy()
    for one, other in ((x, y), (x, x), (x, x.copy())):
        found, slow = plain.cosines(one, other), cosines.reference(one, other)
        assert found.dtype == slow.dtype == np.float64
        assert found.shape == slow.shape
        np.testing.assert_allclose(found, slow, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(x, given)
    if dtype == "float64":
        # Out of the range of squares.
        found, slow = (f(1e200 * x, 1e-200 * y) for f in (plain.cosines, cosines.reference))
        np.testing.assert_allclose(found, slow, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("many", [False, True])
def test_squared_distances(
    monkeypatch: pytest.MonkeyPatch, dtype: str, batch: tuple[int, ...], many: bool
) -> None:
    monkeypatch.setattr(plain, "BLOCK", 200)
    dice = np.random.default_rng(0)
    x = dice.standard_normal((*batch, 40, 7)).astype(dtype)
    y = dice.standard_normal((*batch, 40 if many else 1, 7)).astype(dtype)
    found, slow = plain.squared_distances(x, y), squared_distances.reference(x, y)
    assert found.dtype == slow.dtype
    np.testing.assert_array_equal(found, slow)


@pytest.mark.parametrize("combine", ["multi", "add"])
@pytest.mark.parametrize("make", [similar, _integers, _signed, _duplicates, _low])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_salient_coverage(combine: str, make: Callable[[int], np.ndarray], dtype: str) -> None:
    n = 40
    s = np.stack([make(n), make(n)[::-1, ::-1]]).astype(dtype)
    w = np.random.default_rng(2).gamma(0.5, size=(2, n))
    w[:, 5:15], w[:, 20] = w[:, 4:5], 0.0
    f = sc.SalientCoverage(s, w, combine)
    k = np.asarray([7, n])
    same(plain.salient_coverage(f, k), salient_coverage.reference(f, k))


def test_salient_coverage_leaves_to_the_definition_what_it_does_not_take() -> None:
    s, w = similar(9), weights(9)
    for f in (
        sc.SalientCoverage(s, w, selectable=np.arange(9) > 2),
        sc.SalientCoverage(s[:5], w),
        sc.SalientCoverage(scipy.sparse.csr_array(s), w),
        sc.SalientCoverage(s, w * 1e305),
        sc.SalientCoverage(s, np.where(w > 0.5, np.nan, w), check_finite=False),
    ):
        assert plain.salient_coverage(f, 3) is NotImplemented


@pytest.mark.parametrize("n", [1, 2, 90, 700])
def test_few_narrow_tokens_are_compared_in_a_matrix(
    driver: ModuleType, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr(plain, "MATRIX", 1024)
    x, w, k = features(n, 6), weights(n), min(n, 70)
    x[n // 2] = x[0]
    assert plain.small_enough(x)
    near, far = sc.FacilityLocation.from_features(x, w), sc.Dispersion.from_features(x)
    same(driver.facility_location_features(near, k), facility_location_features.reference(near, k))
    for start in (None, n - 1):
        same(
            driver.farthest_first_features(far, k, start),
            farthest_first_features.reference(far, k, start),
        )
    monkeypatch.setattr(plain, "MATRIX", n - 1)
    assert n < 25 or not plain.small_enough(x)


@pytest.mark.parametrize("room", [1, 400])
def test_from_features_with_little_room_to_note_neighbours(
    driver: ModuleType, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    x, w = features(260, 5, seed=4), weights(260)
    monkeypatch.setattr(nearly, "LISTED", room)
    same(
        driver.facility_location_features(sc.FacilityLocation.from_features(x, w), 90),
        facility_location_features.reference(sc.FacilityLocation.from_features(x, w), 90),
    )


def test_from_features_in_single_precision(driver: ModuleType) -> None:
    x, w = features(900, 16).astype(np.float32), weights(900)
    fast = driver.facility_location_features(sc.FacilityLocation.from_features(x, w), 60)
    s = cosine_similarity.reference(x.astype(np.float64))
    f = FacilityLocation(s, w)
    slow = facility_location.reference(sc.FacilityLocation(s, w), 60)
    assert len(set(fast.indices.tolist())) == 60
    # Picks may differ where gains tie to single precision; what they are worth may not.
    np.testing.assert_allclose(f.value(fast.indices), slow.value, rtol=1e-5)
    np.testing.assert_allclose(fast.value, f.value(fast.indices), rtol=1e-6)
    np.testing.assert_allclose(fast.bound, slow.bound, rtol=1e-4)
    assert fast.bound >= slow.value


def _kernel(n: int, rank: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, rank))
    return x @ x.T


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("kernel", "k"),
    [
        (_kernel(60, 80), 25),
        (_kernel(60, 80), 60),
        (np.eye(12), 12),
        (np.zeros((5, 5)), 5),
        (np.ones((6, 6)), 4),
        (np.diag(np.arange(9.0)), 9),
        (np.asarray([[3.0]]), 1),
        (np.tile(np.diag([4.0, 2.0, 1.0]), (3, 3)), 7),
    ],
    ids=["full", "all", "identity", "zero", "ones", "diagonal", "single", "duplicates"],
)
def test_determinant(driver: ModuleType, kernel: np.ndarray, k: int, dtype: str) -> None:
    kernel = kernel.astype(dtype)
    same(
        driver.determinant(sc.LogDeterminant(kernel), k),
        determinant.reference(sc.LogDeterminant(kernel), k),
    )


def test_determinant_in_batches(driver: ModuleType) -> None:
    kernels = np.stack([_kernel(200, 240, seed) for seed in range(4)]).reshape(2, 2, 200, 200)
    k = np.asarray([[5, 60], [1, 17]])
    same(
        driver.determinant(sc.LogDeterminant(kernels), k),
        determinant.reference(sc.LogDeterminant(kernels), k),
    )


def _places(n: int) -> np.ndarray:
    x = np.random.default_rng(8).standard_normal((n, 3))
    return np.linalg.norm(x[:, None] - x, axis=-1)


@pytest.mark.parametrize("start", [None, 0, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "distance",
    [
        _places(50),
        np.ones((9, 9)) - np.eye(9),
        np.zeros((6, 6)),
        np.random.default_rng(1).integers(0, 3, (20, 20)).astype(np.float64),
    ],
    ids=["places", "equal", "zero", "asymmetric"],
)
def test_farthest_first(
    driver: ModuleType, distance: np.ndarray, dtype: str, start: int | None
) -> None:
    distance = distance.astype(dtype)
    for k in (1, 5, len(distance)):
        slow = farthest_first.reference(sc.Dispersion(distance), k, start)
        same(driver.farthest_first(sc.Dispersion(distance), k, start), slow, rtol=1e-12)


def test_farthest_first_in_batches(driver: ModuleType) -> None:
    distance = np.stack([_places(400)] * 8) * np.arange(1.0, 9.0)[:, None, None]
    k = np.asarray([3, 1, 9, 20, 2, 2, 2, 7])
    same(
        driver.farthest_first(sc.Dispersion(distance), k),
        farthest_first.reference(sc.Dispersion(distance), k),
    )
    alone = np.asarray([[0.0]])
    same(
        driver.farthest_first(sc.Dispersion(alone), 1),
        farthest_first.reference(sc.Dispersion(alone), 1),
    )


@pytest.mark.parametrize("start", [None, 2])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_farthest_first_from_features(driver: ModuleType, dtype: str, start: int | None) -> None:
    x = np.stack([features(70, 9, seed) for seed in range(3)]).astype(dtype)
    k = np.asarray([12, 70, 1])
    rtol = 1e-9 if dtype == "float64" else 1e-5
    for width in (9, 3):
        part = x[..., :width]
        same(
            driver.farthest_first_features(sc.Dispersion.from_features(part), k, start),
            farthest_first_features.reference(sc.Dispersion.from_features(part), k, start),
            rtol,
        )
    # The matrix is built where it is no larger than four times the features.
    wide = np.stack([features(40, 60, seed) for seed in range(3)]).astype(dtype)
    k = np.asarray([12, 40, 1])
    slow = farthest_first_features.reference(sc.Dispersion.from_features(wide), k, start)
    same(driver.farthest_first_features(sc.Dispersion.from_features(wide), k, start), slow, rtol)


@pytest.mark.parametrize("tau_max", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("step", [0.0, 0.01, 0.2])
def test_threshold_scan(driver: ModuleType, step: float, tau_max: float) -> None:
    x = np.stack([features(90, 6, seed) for seed in range(4)]).reshape(2, 2, 90, 6)
    x[0, 0, 10:20] = x[0, 0, 10]
    x[0, 1, ::7] = 0.0
    attention = np.random.default_rng(3).integers(0, 20, (2, 2, 90)) / 20.0
    k = np.asarray([[40, 90], [1, 13]])
    steps = step * np.asarray([[1.0, 0.5], [2.0, 1.0]])
    fast = driver.threshold_scan(x, attention, k, steps, tau_max)
    slow = threshold_scan.reference(x, attention, k, steps, tau_max)
    np.testing.assert_array_equal(fast[0], slow[0])
    np.testing.assert_array_equal(fast[1], slow[1])


def _picture(height: int, width: int, dtype: str) -> np.ndarray:
    dice = np.random.default_rng(4)
    base = dice.integers(0, 256, (height, width, 3))
    base[: height // 2] //= 16
    base[:, : width // 3] = 77
    return base.astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64", "float16"])
@pytest.mark.parametrize("patch", [1, 7, 14])
def test_patch_entropy(driver: ModuleType, dtype: str, patch: int) -> None:
    image = _picture(45, 60, dtype)
    expected = patch_entropy.reference(image, patch)
    np.testing.assert_allclose(driver.patch_entropy(image, patch), expected, atol=1e-13)
    batch = np.stack([image, image[::-1], image[:, ::-1]])
    fast = driver.patch_entropy(batch, patch)
    np.testing.assert_allclose(fast, patch_entropy.reference(batch, patch), atol=1e-13)
    assert fast.shape == (3, (45 // patch) * (60 // patch))


def test_patch_entropy_of_every_colour_on_the_edge_of_a_grey(driver: ModuleType) -> None:
    # Near-grey colours, whose weighted sum is a whole number but for rounding.
    level = np.arange(256)
    colours = np.stack(np.broadcast_arrays(level, level, level), -1)[None].astype(np.uint8)
    image = np.repeat(colours, 2, axis=0)
    np.testing.assert_array_equal(driver.patch_entropy(image, 2), patch_entropy.reference(image, 2))
    odd = np.random.default_rng(0).uniform(-20, 280, (32, 64, 3))
    np.testing.assert_allclose(
        driver.patch_entropy(odd, 8), patch_entropy.reference(odd, 8), atol=1e-13
    )


def test_patches_that_tie_stay_tied(driver: ModuleType) -> None:
    patch = np.random.default_rng(2).integers(0, 9, (6, 6, 3), dtype=np.uint8)
    shuffled = np.random.default_rng(3).permutation(patch.reshape(36, 3)).reshape(6, 6, 3)
    h = driver.patch_entropy(np.concatenate([patch, shuffled], axis=1), 6)
    assert h[0] == h[1]


def test_patch_entropy_refuses_what_the_reference_refuses(driver: ModuleType) -> None:
    image = np.zeros((8, 8, 3))
    image[0, 0, 0] = np.nan
    for bad, patch in ((image, 4), (np.zeros((8, 8, 4)), 4), (np.zeros((8, 3)), 4)):
        with pytest.raises(ValueError, match="image"):
            driver.patch_entropy(bad, patch)
    with pytest.raises(ValueError, match="patch"):
        driver.patch_entropy(np.zeros((8, 8, 3), dtype=np.uint8), 0)
    with pytest.raises(ValueError, match="hold no patch"):
        driver.patch_entropy(np.zeros((8, 8, 3), dtype=np.uint8), 9)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (30, 30), (1, 5), (5, 1), (2, 3, 20, 8)])
def test_singular_values(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    expected = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(plain.singular_values(x), expected, rtol=1e-11)
    single = plain.singular_values(x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5)
    np.testing.assert_allclose(plain.singular_values(x), singular_values.reference(x), rtol=1e-11)


def test_singular_values_of_nearly_dependent_columns_come_from_the_svd() -> None:
    dice = np.random.default_rng(0)
    left, _ = np.linalg.qr(dice.standard_normal((50, 20)))
    right, _ = np.linalg.qr(dice.standard_normal((20, 20)))
    s = 10.0 ** -np.linspace(0, 12, 20)
    x = (left * s) @ right.T
    np.testing.assert_allclose(plain.singular_values(x), s, rtol=1e-2, atol=1e-15)
    # In single precision the Gram matrix in float64 is closer than the SVD of the library.
    single = x.astype(np.float32)
    true = np.linalg.svd(single.astype(np.float64), compute_uv=False)
    gram = np.abs(plain.singular_values(single) - true).max()
    library = np.abs(np.linalg.svd(single, compute_uv=False) - true).max()
    assert gram <= library
    assert gram < 1e-7


def test_effective_rank_is_that_of_the_reference() -> None:
    for shape in ((30, 50), (120, 16), (1, 4)):
        for x in (np.random.default_rng(1).standard_normal(shape), np.ones(shape)):
            with sc.backend("reference"):
                expected = sc.effective_rank(x)
            np.testing.assert_allclose(sc.effective_rank(x), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cosine_similarity(driver: ModuleType, dtype: str) -> None:
    x = np.stack([features(50, 12, seed) for seed in range(3)]).astype(dtype)
    x[0, 4] = 0.0
    x[1, 5] *= 1e30
    x[1, 6] *= 1e-30
    fast, slow = driver.cosine_similarity(x), cosine_similarity.reference(x)
    assert fast.dtype == slow.dtype
    rtol = 1e-12 if dtype == "float64" else 2e-6
    np.testing.assert_allclose(fast, slow, rtol=rtol, atol=rtol)
    assert fast.min() >= 0.0
    assert fast.max() <= 1.0
    np.testing.assert_allclose(driver.unit(x), unit.reference(x), rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("aggregate", ["entropy", "tempered", "topk"])
def test_text_relevance(sign: int, aggregate: Any) -> None:
    dice = np.random.default_rng(0)
    visual = dice.standard_normal((2, 5, 49, 32))
    text = dice.standard_normal((5, 21, 32))
    mask = dice.random((5, 21)) < 0.7
    given = {"aggregate": aggregate, "sign": sign, "text_mask": mask, "keep_ratio": 0.3}
    with sc.backend("reference"):
        expected = dense_relevance(visual, text, **given)
    np.testing.assert_allclose(dense_relevance(visual, text, **given), expected, rtol=1e-10)
    single = dense_relevance(visual[0, 0].astype(np.float32), text[0].astype(np.float32))
    assert single.dtype == np.float32
    assert single.shape == (49,)


def test_text_relevance_leaves_other_aggregates_to_the_reference() -> None:
    x = unit(features(4, 3))
    arguments = (x, x, x[0], np.ones(4, dtype=bool), 100.0, 0.5, 0.01, 0.5, "topk", 1)
    assert plain.text_relevance(*arguments) is NotImplemented
    assert text_relevance(*arguments).shape == (4,)


@pytest.mark.parametrize("block", [1, 1 << 18])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_attention_received(monkeypatch: pytest.MonkeyPatch, block: int, dtype: str) -> None:
    for name in ("BLOCK", "OF_A_HEAD"):
        monkeypatch.setattr(received, name, block)
    dice = np.random.default_rng(0)
    q = dice.standard_normal((2, 3, 6, 7, 8)).astype(dtype)
    k = dice.standard_normal((2, 3, 2, 19, 8)).astype(dtype)
    mask = dice.random((2, 3, 19)) < 0.7
    mask[0, 0] = False
    places = dice.integers(0, 19, (2, 3, 7))
    rtol = 1e-11 if dtype == "float64" else 1e-4
    for given in (
        {},
        {"scale": 0.7},
        {"key_mask": mask},
        {"positions": places},
        {"positions": places, "key_mask": mask, "query_weights": dice.random((2, 3, 7))},
    ):
        fast = plain.attention_received(q, k, **given)
        slow = attention_received.reference(q, k, **given)
        assert fast.dtype == slow.dtype
        np.testing.assert_allclose(fast, slow, rtol=rtol, atol=rtol)


def test_attention_received_refuses_heads_that_do_not_fit() -> None:
    q, k = np.ones((3, 4, 8)), np.ones((2, 5, 8))
    with pytest.raises(ValueError, match="3 heads are no multiple of the keys' 2"):
        attention_received(q, k)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_facility_location_needs_no_second_matrix(driver: ModuleType, dtype: str) -> None:
    n = 1200
    s = similar(n).astype(dtype)
    driver.facility_location(sc.FacilityLocation(s), 3)
    tracemalloc.start()
    driver.facility_location(sc.FacilityLocation(s), 200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n * 4


def test_inputs_stay_as_they_were(driver: ModuleType) -> None:
    x, w = features(40, 6), weights(40)
    s = cosine_similarity.reference(x)
    picture = _picture(30, 30, "float64")
    copies = [each.copy() for each in (x, w, s, picture)]
    driver.facility_location(sc.FacilityLocation(s, w), 9)
    driver.facility_location_features(sc.FacilityLocation.from_features(x, w), 9)
    driver.determinant(sc.LogDeterminant(s), 9)
    driver.farthest_first(sc.Dispersion(1.0 - s), 9)
    driver.threshold_scan(x, w, 9, np.asarray(0.01), 1.0)
    driver.cosine_similarity(x)
    driver.patch_entropy(picture, 5)
    plain.singular_values(x)
    for now, before in zip((x, w, s, picture), copies, strict=True):
        np.testing.assert_array_equal(now, before)


def rows_of(kind: str) -> FacilityLocation:
    """Rows that are no square, come in blocks, have a mask, or all of that."""
    x, text = features(90).astype(np.float32), features(5, seed=1)
    image = SoftmaxBlock(x, x, 0.2)
    open_ones = np.arange(90) % 3 > 0
    if kind == "rectangle":
        return FacilityLocation(similar(90)[:37])
    if kind == "masked":
        return FacilityLocation(similar(90), weights(90), selectable=open_ones)
    if kind == "softmax":
        blocks = [SoftmaxBlock(text, x, 0.02), image]
        return FacilityLocation.of_blocks(blocks, [0.2, weights(90) / 90])
    if kind == "masked softmax":
        blocks = [SoftmaxBlock(text, x, 0.02), image]
        return FacilityLocation.of_blocks(blocks, [0.2, 0.5 / 90], selectable=open_ones)
    copied = SoftmaxBlock(x.copy(), x, 0.2)
    mixed = [similar(90)[:7].astype(np.float32), copied, similar(90)[20:41]]
    return FacilityLocation.of_blocks(mixed, [None, 2.0, 0.5])


@pytest.mark.parametrize("kind", ["rectangle", "masked", "softmax", "masked softmax", "mixed"])
def test_rows(driver: ModuleType, kind: str) -> None:
    f = rows_of(kind)
    for k in (1, 20, 60):
        same(driver.facility_location_rows(f, k), facility_location_rows.reference(f, k))


def test_rows_that_are_the_candidates_need_not_be_worked_out_twice(driver: ModuleType) -> None:
    x = np.stack([features(60, seed=seed) for seed in range(3)])
    own = FacilityLocation.of_blocks([SoftmaxBlock(x, x, 0.1)])
    apart = FacilityLocation.of_blocks([SoftmaxBlock(x.copy(), x, 0.1)])
    for f, expected in ((own, True), (apart, False)):
        for block in (f.blocks[0], f.rows()[1].blocks[0]):
            assert (block.rows is block.candidates) == expected
    same(
        driver.facility_location_rows(own, np.array([3, 9, 5])),
        driver.facility_location_rows(apart, np.array([3, 9, 5])),
    )


@pytest.mark.parametrize("shape", [(40, 9), (9, 40), (12, 12), (2, 30, 7), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-180, 1e200])
def test_likeness_factors(driver: ModuleType, shape: tuple[int, ...], scale: float) -> None:
    x = np.random.default_rng(0).standard_normal(shape) * scale
    if shape[-1] > 2:
        x[..., 1] = 0.0
    y, slow = driver.likeness_factors(x), likeness_factors.reference(x)
    assert y.shape == slow.shape
    squares, wanted = (z @ np.swapaxes(z, -1, -2) for z in (y, slow))
    np.testing.assert_allclose(squares, wanted, rtol=1e-12, atol=1e-13)


def test_likeness_factors_without_full_rank(driver: ModuleType) -> None:
    x = np.random.default_rng(0).standard_normal((50, 8))
    for twice in (np.tile(x, 3), np.tile(x, 3) + 1e-9 * np.random.default_rng(1).random((50, 24))):
        y, slow = driver.likeness_factors(twice), likeness_factors.reference(twice)
        np.testing.assert_allclose(y @ y.T, slow @ slow.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (2,), (2, 0)])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_largest_eigenvectors(batch: tuple[int, ...], count: int) -> None:
    x = np.random.default_rng(0).standard_normal((*batch, 40, 60))
    gram = x @ np.swapaxes(x, -1, -2)
    with sc.backend("numpy"):
        values, vectors = largest_eigenvectors(gram, count)
    slow, directions = largest_eigenvectors.reference(gram, count)
    assert vectors.shape == directions.shape == (*batch, 40, count)
    np.testing.assert_allclose(values, slow, rtol=1e-12)
    np.testing.assert_allclose(np.abs(vectors), np.abs(directions), atol=1e-9)


def test_few_eigenvectors_are_asked_of_scipy_once_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    gram = np.diag(np.arange(64.0))
    monkeypatch.delitem(sys.modules, "scipy.linalg", raising=False)
    monkeypatch.setattr(plain, "_asked", 0)
    monkeypatch.setattr(plain, "PAYS", 2 * 64**3)
    asked = [plain.largest_eigenvectors(gram, 3) is NotImplemented for _ in range(4)]
    assert asked == [True, True, False, False]
    assert plain.largest_eigenvectors(gram, 17) is NotImplemented
