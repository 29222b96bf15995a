"""The CuPy driver against the reference: its kernels compiled for the host, and on a GPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.backends.cupy import kernels as cupy_kernels
from secateur.core.attention import attention_received
from secateur.core.maximize import (
    determinant,
    determinant_span,
    facility_location,
    facility_location_features,
    farthest_first,
    farthest_first_features,
)
from secateur.core.measures import patch_entropy, singular_values
from secateur.core.relevance import text_relevance
from secateur.core.similarity import cosine_similarity
from secateur.core.threshold import threshold_scan

HERE = Path(__file__).parent
DTYPES = [np.float32, np.float64]


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the kernels are compiled for the host by g++, which is missing")
    shim = _loaded("cuda_on_host", HERE / "cuda_on_host.py")
    source = Path(cupy_kernels.__file__).with_name("driver.py")
    with pytest.MonkeyPatch.context() as patch:
        fake = shim.host_cupy(tmp_path_factory.mktemp("kernels"), compiler)
        patch.setitem(sys.modules, "cupy", fake)
        return _loaded("cupy_driver_on_host", source)


def features(n: int, d: int = 12, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    """Two images: one of common direction, one with copies and a zero vector."""
    dice = np.random.default_rng(seed)
    x = dice.standard_normal((2, n, d)) + dice.standard_normal(d)
    x[1, n // 2 :] = x[1, : n - n // 2]
    x[1, 1] = 0.0
    return x.astype(dtype)


def same(found: Any, wanted: Any) -> None:
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.gains, wanted.gains, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.value, wanted.value, rtol=1e-6, atol=1e-7)


BUDGETS = [1, 9, np.asarray([4, 23]), np.asarray([23, 5])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", BUDGETS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_facility_location(driver: Any, dtype: Any, k: Any, weighted: bool) -> None:
    x = features(23, dtype=dtype)
    w = np.random.default_rng(1).random((2, 23)).round(1) if weighted else None
    s = cosine_similarity.reference(x)
    s[0] += np.triu(np.full((23, 23), 0.1), 1).astype(dtype)  # Rows are not columns.
    found, wanted = (
        driver.facility_location(sc.FacilityLocation(s, w), k),
        facility_location.reference(sc.FacilityLocation(s, w), k),
    )
    same(found, wanted)
    np.testing.assert_allclose(found.bound, wanted.bound, rtol=1e-9)
    same(
        driver.facility_location_features(sc.FacilityLocation.from_features(x, w), k),
        facility_location_features.reference(sc.FacilityLocation.from_features(x, w), k),
    )


def test_more_tokens_than_threads(driver: Any) -> None:
    x = features(300, dtype=np.float32)[1:]
    s = cosine_similarity.reference(x)
    same(
        driver.facility_location(sc.FacilityLocation(s), 20),
        facility_location.reference(sc.FacilityLocation(s), 20),
    )
    same(
        driver.farthest_first(sc.Dispersion(1 - s), 20),
        farthest_first.reference(sc.Dispersion(1 - s), 20),
    )


@pytest.mark.parametrize("matrix", [np.ones((7, 7)), np.zeros((7, 7)), np.eye(7), -np.eye(7)])
def test_ties_go_to_the_lowest_index(driver: Any, matrix: np.ndarray) -> None:
    found = driver.facility_location(sc.FacilityLocation(matrix), 7)
    assert found.indices.tolist() == list(range(7))
    assert found.value == facility_location.reference(sc.FacilityLocation(matrix), 7).value


def test_gains_kept_in_parts_give_the_same_bound(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = cosine_similarity.reference(features(20))
    whole = driver.facility_location(sc.FacilityLocation(s), np.asarray([12, 7]))
    monkeypatch.setattr(driver, "HISTORY", 8 * 2 * 20 * 4)
    for a, b in zip(
        whole, driver.facility_location(sc.FacilityLocation(s), np.asarray([12, 7])), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("start", [None, 3])
@pytest.mark.parametrize("k", BUDGETS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_farthest_first(driver: Any, dtype: Any, k: Any, start: int | None) -> None:
    x = features(23, dtype=dtype)
    d = (1 - cosine_similarity.reference(x)).round(2)
    d[0, :5] += 1
    same(
        driver.farthest_first(sc.Dispersion(d), k, start),
        farthest_first.reference(sc.Dispersion(d), k, start),
    )
    same(
        driver.farthest_first_features(sc.Dispersion.from_features(x), k, start),
        farthest_first_features.reference(sc.Dispersion.from_features(x), k, start),
    )


@pytest.mark.parametrize("k", BUDGETS, ids=str)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_determinant(driver: Any, k: Any, ridge: float) -> None:
    x = np.random.default_rng(5).integers(-3, 4, (2, 23, 4)).astype(float)
    x[1, 10:] = x[1, :13]
    kernel = x @ x.swapaxes(-1, -2) + ridge * np.eye(23)
    same(
        driver.determinant(sc.LogDeterminant(kernel), k),
        determinant.reference(sc.LogDeterminant(kernel), k),
    )
    masked = sc.LogDeterminant(kernel, selectable=np.arange(23) > 0)
    assert driver.determinant(masked, k) is NotImplemented


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("k", BUDGETS, ids=str)
def test_threshold_scan(driver: Any, dtype: Any, tau: float, k: Any) -> None:
    x = features(23, dtype=dtype)
    scores = np.random.default_rng(2).integers(0, 6, (2, 23)).astype(dtype)
    step = np.asarray([0.02, 0.3])
    found = driver.threshold_scan(x, scores, k, step, tau)
    wanted = threshold_scan.reference(x, scores, k, step, tau)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_patch_entropy(driver: Any, dtype: Any) -> None:
    image = np.random.default_rng(3).integers(0, 256, (2, 17, 25, 3)).astype(dtype)
    image[0, :8, :8] = 7
    found = driver.patch_entropy(image, 8)
    np.testing.assert_allclose(found, patch_entropy.reference(image, 8), atol=1e-12)
    assert found.shape == (2, 6)
    assert found[0, 0] == 0.0


def test_whole_array_operations(driver: Any) -> None:
    x = features(20, dtype=np.float32)
    np.testing.assert_allclose(
        driver.cosine_similarity(x), cosine_similarity.reference(x), atol=1e-6
    )
    for each in (x, x.swapaxes(-1, -2)):
        np.testing.assert_allclose(
            driver.singular_values(each), singular_values.reference(each), atol=2e-5
        )
    assert driver.singular_values(x.astype(float)) is NotImplemented


def test_images_in_parts_and_without_room(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, k = features(15), np.asarray([4, 9])
    whole = driver.facility_location_features(sc.FacilityLocation.from_features(x), k)
    monkeypatch.setattr(driver, "MATRIX", 8 * 15 * 15)
    same(driver.facility_location_features(sc.FacilityLocation.from_features(x), k), whole)
    monkeypatch.setattr(driver, "MATRIX", 8 * 15 * 15 - 1)
    assert (
        driver.facility_location_features(sc.FacilityLocation.from_features(x), k) is NotImplemented
    )
    assert driver.farthest_first_features(sc.Dispersion.from_features(x), k) is NotImplemented
    assert driver.determinant_span(sc.LogDeterminant.from_span(x), k) is NotImplemented
    assert driver.threshold_scan(x, x[..., 0], k, np.zeros(2), 0.5) is NotImplemented


def test_torch_answers_on_the_same_memory(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from secateur.backends.torch import driver as other

    dice = np.random.default_rng(1)
    q, keys = dice.standard_normal((2, 4, 9, 8)), dice.standard_normal((2, 2, 12, 8))
    seen = dice.random((2, 12)) < 0.7
    x, text = features(20), dice.standard_normal((2, 5, 12))
    told = (text, text.mean(axis=1), seen[:, :5] | True, 100.0, 0.4, 1.0, 0.5, "entropy", -1)
    assert driver.attention_received(q, keys, key_mask=seen) is NotImplemented
    assert driver.text_relevance(x, *told) is NotImplemented
    monkeypatch.setattr(driver, "_torch", lambda: other)
    np.testing.assert_allclose(
        driver.attention_received(q, keys, key_mask=seen),
        attention_received.reference(q, keys, key_mask=seen),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        driver.text_relevance(x, *told), text_relevance.reference(x, *told), atol=1e-12
    )
    monkeypatch.setattr(driver, "MATRIX", 8 * 20 * 20 - 1)
    k = np.asarray([4, 9])
    same(
        driver.facility_location_features(sc.FacilityLocation.from_features(x), k),
        facility_location_features.reference(sc.FacilityLocation.from_features(x), k),
    )
    same(
        driver.farthest_first_features(sc.Dispersion.from_features(x), k),
        farthest_first_features.reference(sc.Dispersion.from_features(x), k),
    )
    for free in (None, np.arange(20) % 4 > 0):
        f = sc.LogDeterminant.from_span(x, selectable=free)
        same(driver.determinant_span(f, k), determinant_span.reference(f, k))
    steps = np.asarray([0.05, 0.02])
    attention = np.abs(x[..., 0])
    for got, wanted in zip(
        driver.threshold_scan(x, attention, k, steps, 0.5),
        threshold_scan.reference(x, attention, k, steps, 0.5),
        strict=True,
    ):
        np.testing.assert_array_equal(got, wanted)
    lent = driver._lent(x)
    lent[0, 0, 0] = 7.0
    assert x[0, 0, 0] == 7.0
    back = torch.zeros(3)
    driver._taken(back)[1] = 2.0
    assert back.tolist() == [0.0, 2.0, 0.0]
    assert driver._lent(seen).dtype == torch.bool


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 12), levels=st.integers(1, 4))
def test_matrices_full_of_ties(driver: Any, seed: int, n: int, levels: int) -> None:
    dice = np.random.default_rng(seed)
    s = dice.integers(-1, levels, (2, n, n)) / levels
    w = dice.integers(0, 3, (2, n)) / 2
    k = dice.integers(1, n + 1, 2)
    same(
        driver.facility_location(sc.FacilityLocation(s, w), k),
        facility_location.reference(sc.FacilityLocation(s, w), k),
    )
    d = np.abs(s)
    same(driver.farthest_first(sc.Dispersion(d), k), farthest_first.reference(sc.Dispersion(d), k))


def test_cupy_has_every_function_that_is_called() -> None:
    cp = pytest.importorskip("cupy", reason="CuPy is not installed")
    source = Path(cupy_kernels.__file__).with_name("driver.py").read_text()
    called = set(re.findall(r"\bcp\.([a-z_]\w*)", source)) - {"linalg"}
    assert len(called) > 15
    assert not [name for name in called if not hasattr(cp, name)]
    assert hasattr(cp.linalg, "eigvalsh")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is missing")
def test_the_source_compiles_for_a_device(tmp_path: Path) -> None:
    source = tmp_path / "kernels.cu"
    # The runtime compiler of CUDA may lack the macro that nvcc's own headers define.
    source.write_text("typedef float Entry;\n#undef INFINITY\n" + cupy_kernels.SOURCE)
    target = tmp_path / "kernels.ptx"
    command = ["nvcc", "-ptx", "-arch=sm_90", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert target.read_text().count(".visible .entry") == 7


@pytest.mark.gpu
def test_on_a_device() -> None:
    cp = pytest.importorskip("cupy")
    x, k = features(60), np.asarray([30, 7])
    s = cosine_similarity.reference(x)
    for operation, args in (
        (facility_location, (sc.FacilityLocation(s), k)),
        (facility_location_features, (sc.FacilityLocation.from_features(x), k)),
        (farthest_first, (sc.Dispersion(1 - s), k)),
        (farthest_first_features, (sc.Dispersion.from_features(x), k)),
        (determinant, (sc.LogDeterminant(s + np.eye(60)), k)),
        (determinant_span, (sc.LogDeterminant.from_span(x), k)),
    ):
        found = operation(cp.asarray(args[0]), *args[1:])
        wanted = operation.reference(*args)
        np.testing.assert_array_equal(found.indices.get(), wanted.indices)
        np.testing.assert_allclose(found.gains.get(), wanted.gains, rtol=1e-9, atol=1e-9)
    dice = np.random.default_rng(2)
    q, keys = dice.standard_normal((2, 4, 9, 8)), dice.standard_normal((2, 2, 12, 8))
    received = attention_received(cp.asarray(q), cp.asarray(keys)).get()
    np.testing.assert_allclose(received, attention_received.reference(q, keys), atol=1e-12)
    image = np.random.default_rng(3).integers(0, 256, (2, 56, 84, 3)).astype(np.uint8)
    entropy = patch_entropy(cp.asarray(image), 28).get()
    np.testing.assert_allclose(entropy, patch_entropy.reference(image, 28), atol=1e-12)
