"""The Triton kernels, run by Triton's interpreter on the host, against the reference.

Where there is a GPU the same tests run on it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secateur as sc
from secateur.core.maximize import (
    Picks,
    determinant,
    facility_location,
    farthest_first,
    farthest_first_features,
)
from secateur.core.similarity import cosine_similarity
from secateur.core.threshold import threshold_scan

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed")

from secateur.backends.torch import driver, launch  # noqa: E402
from secateur.backends.torch import greedy as plain  # noqa: E402

DEVICE = torch.device("cpu" if launch.INTERPRETED else "cuda")

pytestmark = pytest.mark.skipif(
    not (launch.INTERPRETED or torch.cuda.is_available()),
    reason="needs a CUDA device, or TRITON_INTERPRET=1 before Triton is imported",
)


def features(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    dice = np.random.default_rng(seed)
    return dice.standard_normal((n, d)) + dice.standard_normal(d)


def similar(n: int, seed: int = 0) -> np.ndarray:
    return cosine_similarity.reference(features(n, seed=seed))


def tensor(x: np.ndarray) -> Any:
    return torch.tensor(x, device=DEVICE)


def same(fast: Picks, slow: Picks) -> None:
    np.testing.assert_array_equal(fast.indices.cpu(), slow.indices)
    for name in ("gains", "value", "bound"):
        expected = np.asarray(getattr(slow, name))
        answer = getattr(fast, name)
        assert answer.dtype == torch.float64
        np.testing.assert_allclose(answer.cpu(), expected, rtol=1e-9, atol=1e-9, err_msg=name)


N = 13
MATRICES: dict[str, Callable[[], np.ndarray]] = {
    "cosine": lambda: similar(N),
    "integers": lambda: np.random.default_rng(5).integers(0, 4, (N, N)).astype(np.float64),
    "signed": lambda: np.random.default_rng(6).standard_normal((N, N)),
    "duplicates": lambda: similar(5)[np.arange(N) % 5][:, np.arange(N) % 5],
    "identity": lambda: np.eye(N),
    "zero": lambda: np.zeros((N, N)),
    "equal": lambda: np.full((N, N), 0.7),
    "asymmetric": lambda: similar(N) * np.linspace(0.5, 1.5, N),
}
BUDGETS = np.asarray([5, 6, 4, N, 2, 4, 2, 1])


@pytest.mark.parametrize(
    ("dtype", "parts", "weighted"),
    [("float64", 1, True), ("float32", 1, False), ("float32", 3, True)],
)
def test_facility_location(dtype: str, parts: int, weighted: bool) -> None:
    s = np.stack([make() for make in MATRICES.values()]).astype(dtype)
    w = np.random.default_rng(3).random((len(s), N)).astype(np.float32) ** 2
    w[1, ::3] = 0.0
    weights = w if weighted else None
    slow = facility_location.reference(sc.FacilityLocation(s, weights), BUDGETS)
    at = None if weights is None else tensor(weights)
    # Tiles smaller than the matrix, so that every loop over tiles goes round.
    fast = launch.facility_location(tensor(s), at, BUDGETS, 0.0, parts, (8, 4, 8))
    same(fast, slow)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (40, 12)])
def test_facility_location_with_the_tiles_it_chooses(n: int, k: int) -> None:
    s = similar(n, seed=2)
    slow = facility_location.reference(sc.FacilityLocation(s), k)
    same(launch.facility_location(tensor(s), None, k, 0.0), slow)


def test_similarities_from_features_tie_within_their_rounding() -> None:
    x = features(17, 3)[np.arange(17) % 6]
    s = cosine_similarity.reference(x)
    noise = np.random.default_rng(0).integers(-2, 3, s.shape) * 2.0**-53
    exact = plain.facility_location(tensor(s), None, 9, 8 * plain.EPSILON)
    noisy = launch.facility_location(tensor(s + noise), None, 9, 8 * plain.EPSILON)
    assert noisy.indices.tolist() == exact.indices.tolist()
    assert exact.indices[6:].tolist() == [6, 7, 8]


def test_the_record_of_gains_goes_on_where_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    s, w = similar(12, seed=4), np.random.default_rng(1).random(12)
    slow = facility_location.reference(sc.FacilityLocation(s, w), 7)
    for rows, parts in ((2, 1), (4, 2)):
        monkeypatch.setattr(launch, "HISTORY", 8 * 12 * rows)
        same(launch.facility_location(tensor(s), tensor(w), 7, 0.0, parts), slow)


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:All-NaN slice")
def test_what_is_no_number_stays_within_the_matrix() -> None:
    s = np.full((9, 9), np.nan)
    picks = launch.facility_location(tensor(s), None, 3, 0.0)
    assert ((picks.indices >= 0) & (picks.indices < 9)).all()


@pytest.mark.parametrize("start", [None, 3])
def test_farthest_first(start: int | None) -> None:
    x = np.random.default_rng(8).standard_normal((15, 3))
    d = np.stack(
        [
            np.linalg.norm(x[:, None] - x, axis=-1),
            np.ones((15, 15)) - np.eye(15),
            np.random.default_rng(1).integers(0, 3, (15, 15)).astype(np.float64),
        ]
    ).astype(np.float32)
    k = np.asarray([15, 4, 6])
    same(
        launch.farthest_first(tensor(d), k, start),
        farthest_first.reference(sc.Dispersion(d), k, start),
    )
    x[5:9] = x[5]
    directions = driver.unit(tensor(x))
    near = 2.0 * (1.0 - driver.cosine_similarity(directions))
    fast = launch.farthest_first(near, 9, start, plain.DISTANCE_ROUNDING)
    same(fast, farthest_first_features.reference(sc.Dispersion.from_features(x), 9, start))
    alone = d[0].astype(np.float64)
    slow = farthest_first.reference(sc.Dispersion(alone), 1, start)
    same(launch.farthest_first(tensor(alone), 1, start), slow)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_determinant(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((12, 20))
    kernel = np.stack(
        [x @ x.T, x[:, :4] @ x[:, :4].T, np.zeros((12, 12)), np.tile(np.diag([4.0, 2, 1]), (4, 4))]
    ).astype(dtype)
    k = np.asarray([12, 7, 3, 6])
    same(launch.determinant(tensor(kernel), k), determinant.reference(sc.LogDeterminant(kernel), k))


@pytest.mark.parametrize(("step", "tau_max"), [(0.0, 0.5), (0.02, 0.5), (0.3, 2.0)])
def test_threshold_scan(step: float, tau_max: float) -> None:
    x = np.stack([features(22, 4, seed) for seed in range(2)])
    x[0, 5:9] = x[0, 5]
    a = np.random.default_rng(3).integers(0, 9, (2, 22)) / 9.0
    k, steps = np.asarray([14, 22]), step * np.asarray([1.0, 0.5])
    slow = threshold_scan.reference(x, a, k, steps, tau_max)
    fast = launch.threshold_scan(driver.unit(tensor(x)), tensor(a), k, steps, tau_max)
    for answer, expected in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(answer.cpu(), expected)


def test_batches_without_images() -> None:
    none = torch.zeros(0, 5, 5, dtype=torch.float64, device=DEVICE)
    for picks in (
        launch.facility_location(none, None, 3, 0.0),
        launch.farthest_first(none, 3, None),
        launch.determinant(none, 3),
    ):
        assert tuple(picks.indices.shape) == (0, 3)
        assert tuple(picks.value.shape) == (0,)


def test_a_device_on_which_they_err_is_served_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(similarity: Any, weights: Any, k: Any, rounding: float, parts: int) -> Picks:
        picks = plain.facility_location(similarity, weights, k, rounding)
        return picks._replace(indices=picks.indices.flip(-1))

    monkeypatch.setattr(launch, "facility_location", wrong)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a device")
    driver.kernels.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="a device .*1 programs an image: wrong indices"):
            assert driver.kernels(DEVICE) is None
        assert driver.kernels(DEVICE) is None
    finally:
        driver.kernels.cache_clear()


@pytest.mark.parametrize(
    ("images", "n", "works", "parts"),
    [
        (1, 576, True, 1),
        (1, 2880, True, 23),
        (8, 4096, True, 16),
        (64, 2880, True, 2),
        (100, 4096, True, 1),
        (1, 2880, False, 1),
    ],
)
def test_large_images_are_shared_where_processors_are_free(
    images: int, n: int, works: bool, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_processors", lambda _: 132)
    monkeypatch.setattr(launch, "_share", lambda _: works)
    assert launch._parts(images, n, torch.device("cuda")) == parts
    assert launch._parts(images, n, torch.device("cpu")) == 1


@pytest.mark.gpu
def test_programs_that_wait_for_each_other() -> None:
    assert launch.disagreement(DEVICE) is None
    assert launch._share(DEVICE)
    s = tensor(similar(1500))
    slow = plain.facility_location(s, None, 60, 0.0)
    for parts in (1, 2, 12):
        fast = launch.facility_location(s, None, 60, 0.0, parts)
        assert fast.indices.tolist() == slow.indices.tolist()
        torch.testing.assert_close(fast.bound, slow.bound, rtol=1e-9, atol=0)


COMPILE = """
    import torch
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from secateur.backends.torch import kernels

    POINTERS = {
        "s": "{x}", "d": "{x}", "k": "{x}", "m": "{x}", "low": "{x}", "nearest": "{x}",
        "cosine": "{x}", "w": "fp32", "budget": "i64", "terms": "i64", "indices": "i64",
        "kept": "i64", "listed": "i32", "counter": "i32", "opened": "i8", "remains": "i8",
    }
    TILES = dict(BLOCK=1024, ROWS=8, COLUMNS=128)
    GREEDY = dict(WEIGHTED=True, ROUNDING=8, PARTS=9, WAIT=True, CACHE=".cg", **TILES)
    for kernel, constants in (
        (kernels.first_gains, dict(WEIGHTED=True, ROWS=64, COLUMNS=32)),
        (kernels.greedy_steps, GREEDY),
        (kernels.greedy_steps, {**GREEDY, "PARTS": 1, "WAIT": False, "CACHE": ""}),
        (kernels.largest_sums, dict(BLOCK=1024)),
        (kernels.certify, dict(WEIGHTED=True, ROUNDING=0, BLOCK=1024)),
        (kernels.nearest_other, dict(ROWS=64, COLUMNS=32)),
        (kernels.farthest_steps, dict(ROUNDING=16, BLOCK=1024)),
        (kernels.cholesky_steps, TILES),
        (kernels.scan_steps, dict(BLOCK=1024)),
    ):
        for dtype in ("fp32", "fp64")[: 1 + (kernel is kernels.greedy_steps)]:
            signature = {}
            for name in kernel.arg_names:
                kind = POINTERS.get(name.removesuffix("_ptr"), "fp64").format(x=dtype)
                pointed = "*" + kind if name.endswith("_ptr") else "i32"
                signature[name] = "constexpr" if name in constants else pointed
            source = ASTSource(
                kernel, signature, {(kernel.arg_names.index(n),): c for n, c in constants.items()}
            )
            binary = compile(
                source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}
            ).asm["cubin"]
            print(kernel.__name__, dtype, len(binary))
"""


def test_all_kernels_compile_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton has no compiler for CUDA")
    script = tmp_path / "compile.py"
    script.write_text(textwrap.dedent(COMPILE))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = [line.split() for line in done.stdout.splitlines()]
    assert len(sizes) == 11
    assert all(int(size) > 1000 for *_, size in sizes)
