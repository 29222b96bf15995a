"""The PyTorch driver against the reference: on the host, in whole-tensor steps, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import secateur as sc
from secateur.core.attention import attention_received
from secateur.core.maximize import (
    Picks,
    determinant,
    determinant_span,
    facility_location,
    facility_location_features,
    farthest_first,
    farthest_first_features,
)
from secateur.core.measures import patch_entropy, singular_entropy, singular_values
from secateur.core.relevance import text_relevance
from secateur.core.similarity import cosine_similarity
from secateur.core.similarity import unit as unit_operation
from secateur.core.threshold import threshold_scan

torch = pytest.importorskip("torch")

from secateur.backends.lending import in_parts  # noqa: E402
from secateur.backends.torch import driver, greedy  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def features(n: int, d: int = 24, seed: int = 0) -> np.ndarray:
    dice = np.random.default_rng(seed)
    return dice.standard_normal((n, d)) + dice.standard_normal(d)


def weights(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) ** 2


def similar(n: int, seed: int = 0) -> np.ndarray:
    return cosine_similarity.reference(features(n, seed=seed))


def places(n: int) -> np.ndarray:
    x = np.random.default_rng(8).standard_normal((n, 3))
    return np.linalg.norm(x[:, None] - x, axis=-1)


def kernel(n: int, rank: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, rank))
    return x @ x.T


MATRICES: dict[str, Callable[[int], np.ndarray]] = {
    "cosine": similar,
    "integers": lambda n: np.random.default_rng(5).integers(0, 4, (n, n)).astype(np.float64),
    "signed": lambda n: np.random.default_rng(6).standard_normal((n, n)),
    "duplicates": lambda n: similar(7)[np.arange(n) % 7][:, np.arange(n) % 7],
    "identity": np.eye,
    "zero": lambda n: np.zeros((n, n)),
    "equal": lambda n: np.full((n, n), 0.7),
    "asymmetric": lambda n: similar(n) * np.linspace(0.5, 1.5, n),
}
KERNELS = {
    "full": kernel(40, 60),
    "low rank": kernel(30, 8),
    "identity": np.eye(12),
    "zero": np.zeros((5, 5)),
    "diagonal": np.diag(np.arange(9.0)),
    "single": np.asarray([[3.0]]),
    "duplicates": np.tile(np.diag([4.0, 2.0, 1.0]), (3, 3)),
}
DISTANCES = {
    "places": places(50),
    "equal": np.ones((9, 9)) - np.eye(9),
    "zero": np.zeros((6, 6)),
    "asymmetric": np.random.default_rng(1).integers(0, 3, (20, 20)).astype(np.float64),
    "single": np.asarray([[0.0]]),
}


def tensor(x: Any, device: str = "cpu", dtype: Any = None) -> Any:
    return torch.tensor(np.asarray(x), device=device, dtype=dtype)


def same(fast: Picks, slow: Picks, rtol: float = 1e-9) -> None:
    for x in fast:
        assert isinstance(x, torch.Tensor)
    assert fast.indices.dtype == torch.int64
    np.testing.assert_array_equal(fast.indices.cpu(), np.asarray(slow.indices))
    for name in ("gains", "value", "bound"):
        answer = getattr(fast, name)
        assert answer.dtype == torch.float64
        expected = np.asarray(getattr(slow, name))
        np.testing.assert_allclose(answer.cpu(), expected, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 3), (41, 12), (41, 41)])
def test_facility_location(kind: str, dtype: str, n: int, k: int, device: str) -> None:
    s = MATRICES[kind](n).astype(dtype)
    for w in (None, weights(n), np.where(np.arange(n) % 3, 0.0, 1.0)):
        slow = facility_location.reference(sc.FacilityLocation(s, w), k)
        at = tensor(s, device), None if w is None else tensor(w, device)
        same(driver.facility_location(sc.FacilityLocation(*at), k), slow)
        same(greedy.facility_location(*at, k, 0.0), slow)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_have_budgets_of_their_own(device: str) -> None:
    x = np.stack([features(30, 6, seed) for seed in range(6)]).reshape(2, 3, 30, 6)
    w = np.stack([weights(30, seed) for seed in range(6)]).reshape(2, 3, 30)
    k = np.asarray([[1, 30, 7], [8, 2, 15]])
    s = cosine_similarity.reference(x)
    slow = facility_location.reference(sc.FacilityLocation(s, w), k)
    same(
        driver.facility_location(sc.FacilityLocation(tensor(s, device), tensor(w, device)), k), slow
    )
    same(greedy.facility_location(tensor(s, device), tensor(w, device), k, 0.0), slow)
    slow = facility_location_features.reference(sc.FacilityLocation.from_features(x, w), k)
    same(
        driver.facility_location_features(
            sc.FacilityLocation.from_features(tensor(x, device), tensor(w, device)), k
        ),
        slow,
    )


def test_features_go_in_parts_where_their_matrices_take_too_much() -> None:
    x = np.stack([features(20, 6, seed) for seed in range(6)]).reshape(2, 3, 20, 6)
    w = np.stack([weights(20, seed) for seed in range(6)]).reshape(2, 3, 20)
    seen = []

    def solve(x: Any, w: Any, k: Any) -> Picks:
        seen.append(tuple(x.shape))
        s = driver.cosine_similarity(x)
        return greedy.facility_location(s, w, k, 8 * greedy.EPSILON)

    for k in (5, np.asarray([[1, 20, 7], [8, 2, 4]])):
        seen.clear()
        answer = in_parts(tensor(x), tensor(w), k, 4, solve)
        assert seen == [(4, 20, 6), (2, 20, 6)]
        same(
            answer, facility_location_features.reference(sc.FacilityLocation.from_features(x, w), k)
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KERNELS)
def test_determinant(kind: str, dtype: str, device: str) -> None:
    x = KERNELS[kind].astype(dtype)
    for k in {1, min(7, len(x)), len(x)}:
        slow = determinant.reference(sc.LogDeterminant(x), k)
        same(driver.determinant(sc.LogDeterminant(tensor(x, device)), k), slow)
        same(greedy.determinant(tensor(x, device), k), slow)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [4, 9, 40])
def test_determinant_of_a_span(width: int, masked: bool, device: str) -> None:
    y = np.stack([features(30, width, seed) for seed in range(4)]).reshape(2, 2, 30, width)
    y[0, 1, 12], y[0, 1, 13], y[1, 0] = y[0, 1, 3], 0.0, 0.0
    free = np.arange(120).reshape(2, 2, 30) % 4 > 0 if masked else None
    for k in (1, 7, 20, np.asarray([[3, 20], [1, 9]])):
        slow = determinant_span.reference(sc.LogDeterminant.from_span(y, selectable=free), k)
        mask = None if free is None else tensor(free, device)
        f = sc.LogDeterminant.from_span(tensor(y, device), selectable=mask)
        same(driver.determinant_span(f, k), slow)
        same(greedy.determinant_span(f.factors, mask, k), slow)


@pytest.mark.parametrize("device", DEVICES)
def test_determinant_of_a_span_in_single_precision(device: str) -> None:
    y = features(60, 40).astype(np.float32)
    slow = determinant_span.reference(sc.LogDeterminant.from_span(y), 15)
    f = sc.LogDeterminant.from_span(tensor(y, device))
    for found in (driver.determinant_span(f, 15), greedy.determinant_span(f.factors, None, 15)):
        assert found.indices.tolist() == slow.indices.tolist()
        np.testing.assert_allclose(found.gains.cpu(), slow.gains, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", DISTANCES)
def test_farthest_first(kind: str, dtype: str, start: int | None, device: str) -> None:
    d = DISTANCES[kind].astype(dtype)
    for k in {1, min(5, len(d)), len(d)}:
        slow = farthest_first.reference(sc.Dispersion(d), k, start)
        same(driver.farthest_first(sc.Dispersion(tensor(d, device)), k, start), slow)
        same(greedy.farthest_first(tensor(d, device), k, start), slow)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("start", [None, 2])
def test_farthest_first_from_features(start: int | None, device: str) -> None:
    x = np.stack([features(70, 9, seed) for seed in range(3)])
    x[1, 20:30] = x[1, 20]
    k = np.asarray([12, 70, 1])
    slow = farthest_first_features.reference(sc.Dispersion.from_features(x), k, start)
    same(
        driver.farthest_first_features(sc.Dispersion.from_features(tensor(x, device)), k, start),
        slow,
    )
    directions = driver.unit(tensor(x, device))
    same(greedy.farthest_first_features(directions, k, start), slow)


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_in_batches(device: str) -> None:
    k = np.asarray([[3, 20], [1, 9]])
    kernels = np.stack([kernel(20, 30, seed) for seed in range(4)]).reshape(2, 2, 20, 20)
    slow = determinant.reference(sc.LogDeterminant(kernels), k)
    same(driver.determinant(sc.LogDeterminant(tensor(kernels, device)), k), slow)
    same(greedy.determinant(tensor(kernels, device), k), slow)
    d = (
        np.stack([places(20)] * 4).reshape(2, 2, 20, 20)
        ** np.asarray([[1, 2], [3, 4]])[..., None, None]
    )
    slow = farthest_first.reference(sc.Dispersion(d), k)
    same(driver.farthest_first(sc.Dispersion(tensor(d, device)), k), slow)
    same(greedy.farthest_first(tensor(d, device), k, None), slow)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tau_max", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("step", [0.0, 0.01, 0.2])
def test_threshold_scan(step: float, tau_max: float, device: str) -> None:
    x = np.stack([features(90, 6, seed) for seed in range(4)]).reshape(2, 2, 90, 6)
    x[0, 0, 10:20] = x[0, 0, 10]
    x[0, 1, ::7] = 0.0
    a = np.random.default_rng(3).integers(0, 20, (2, 2, 90)) / 20.0
    k = np.asarray([[40, 90], [1, 13]])
    steps = step * np.asarray([[1.0, 0.5], [2.0, 1.0]])
    indices, filled = threshold_scan.reference(x, a, k, steps, tau_max)
    unit = driver.unit(tensor(x, device))
    for scan in (
        driver.threshold_scan(tensor(x, device), tensor(a, device), k, steps, tau_max),
        greedy.threshold_scan(unit, tensor(a, device), k, steps, tau_max),
    ):
        np.testing.assert_array_equal(scan[0].cpu(), indices)
        np.testing.assert_array_equal(scan[1].cpu(), filled)


@pytest.mark.parametrize("device", DEVICES)
def test_no_images_and_one_budget_for_all(device: str) -> None:
    none = torch.zeros(0, 5, 5, dtype=torch.float64, device=device)
    picks = greedy.facility_location(none, None, 3, 0.0)
    assert picks.indices.shape == (0, 3)
    assert picks.value.shape == (0,)
    picks = sc.maximize(sc.FacilityLocation(none), 3)
    assert tuple(picks.indices.shape) == (0, 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_measures_equal_the_reference(dtype: str, device: str) -> None:
    rtol = 1e-12 if dtype == "float64" else 2e-6
    x = np.stack([features(30, 12, seed) for seed in range(4)]).reshape(2, 2, 30, 12)
    x[0, 0, 3] = 0.0
    x = x.astype(dtype)
    for operation, scale in (
        (unit_operation, 1.0),
        (cosine_similarity, 1.0),
        (singular_values, 20.0),
    ):
        fast = getattr(driver, operation.reference.__name__)(tensor(x, device))
        assert fast.dtype == getattr(torch, dtype)
        np.testing.assert_allclose(fast.cpu(), operation.reference(x), rtol=rtol, atol=scale * rtol)
    for own, operation in (
        (driver._unit, unit_operation),
        (driver._cosine_similarity, cosine_similarity),
    ):
        fast = own(tensor(x, device))
        np.testing.assert_allclose(fast.cpu(), operation.reference(x), rtol=rtol, atol=rtol)
    wide = np.swapaxes(x, -1, -2)
    np.testing.assert_allclose(
        driver.singular_values(tensor(wide, device)).cpu(),
        singular_values.reference(wide),
        rtol=rtol,
        atol=20 * rtol,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_patch_entropy(dtype: Any) -> None:
    dice = np.random.default_rng(4)
    image = dice.integers(0, 256, (2, 30, 45, 3)) // dice.integers(1, 60, (2, 30, 45, 1))
    given = tensor(image).to(dtype)
    expected = patch_entropy.reference(given.float().numpy().astype(np.float64), 7)
    fast = driver.patch_entropy(given, 7)
    np.testing.assert_allclose(fast, expected, rtol=1e-13)
    tabled = driver._patch_entropy(given, 7, 4, 6)
    np.testing.assert_allclose(tabled, expected, rtol=1e-13)
    assert tabled.shape == (2, 24)
    same_patches = np.tile(image[:1, :7, :7], (1, 2, 3, 1))
    ties = driver._patch_entropy(tensor(same_patches), 7, 2, 3)
    assert len(set(ties.flatten().tolist())) == 1


@pytest.mark.gpu
def test_patch_entropy_on_a_gpu() -> None:
    image = np.random.default_rng(4).random((2, 60, 45, 3)) * 255.0
    fast = driver.patch_entropy(tensor(image, "cuda"), 7)
    np.testing.assert_allclose(fast.cpu(), patch_entropy.reference(image, 7), rtol=1e-13)
    with pytest.raises(ValueError, match="image: contains NaN"):
        driver.patch_entropy(tensor(image * np.nan, "cuda"), 7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aggregate", ["entropy", "tempered", "topk"])
def test_text_relevance(aggregate: str, device: str) -> None:
    dice = np.random.default_rng(2)
    unit = unit_operation.reference
    visual, text, whole = (
        unit(dice.standard_normal(shape)) for shape in ((2, 40, 8), (2, 9, 8), (2, 8))
    )
    mask = dice.random((2, 9)) < 0.7
    parameters = (100.0, 0.4, 0.01, 0.5, aggregate, -1)
    expected = text_relevance.reference(visual, text, whole, mask, *parameters)
    given = (tensor(x, device) for x in (visual, text, whole, mask))
    fast = driver.text_relevance(*given, *parameters)
    np.testing.assert_allclose(fast.cpu(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", [driver.BLOCK, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_received(
    masked: bool, block: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BLOCK", block)
    dice = np.random.default_rng(7)
    queries, keys = dice.standard_normal((2, 4, 11, 8)), dice.standard_normal((2, 2, 15, 8))
    more: dict[str, Any] = {}
    if masked:
        more["key_mask"] = dice.random((2, 15)) < 0.6
        more["key_mask"][1] = False
        more["positions"] = dice.integers(-1, 15, (2, 11))
        more["query_weights"] = dice.random((2, 11))
        more["scale"] = 0.7
    expected = attention_received.reference(queries, keys, **more)
    given = {key: x if key == "scale" else tensor(x, device) for key, x in more.items()}
    at = tensor(queries, device), tensor(keys, device)
    fast = driver.attention_received(*at, **given)
    np.testing.assert_allclose(fast.cpu(), expected, rtol=1e-12, atol=1e-14)
    names = ("scale", "query_weights", "key_mask", "positions")
    blocks = driver._attention_received(*at, *(given.get(name) for name in names))
    np.testing.assert_allclose(blocks.cpu(), expected, rtol=1e-12, atol=1e-14)
    half = driver.attention_received(
        tensor(queries, device, torch.bfloat16), tensor(keys, device, torch.bfloat16), **given
    )
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half.cpu(), expected, rtol=0.1, atol=0.02)


def test_the_way_to_a_device_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_cuda", lambda _: True)
    monkeypatch.setattr(driver, "kernels", lambda _: None)
    x = np.stack([features(25, 6, seed) for seed in range(4)]).reshape(2, 2, 25, 6)
    x[0, 1, 7:12] = x[0, 1, 7]
    w = np.stack([weights(25, seed) for seed in range(4)]).reshape(2, 2, 25)
    k = np.asarray([[25, 6], [1, 9]])
    s, d = cosine_similarity.reference(x), 1.0 - cosine_similarity.reference(x)
    steps = np.full((2, 2), 0.05)
    for _ in range(2):
        same(
            facility_location(sc.FacilityLocation(tensor(s), tensor(w)), k),
            facility_location.reference(sc.FacilityLocation(s, w), k),
        )
        slow = facility_location_features.reference(sc.FacilityLocation.from_features(x, w), k)
        same(
            facility_location_features(sc.FacilityLocation.from_features(tensor(x), tensor(w)), k),
            slow,
        )
        slow = determinant.reference(sc.LogDeterminant(s + np.eye(25)), k)
        same(determinant(sc.LogDeterminant(tensor(s + np.eye(25))), k), slow)
        same(
            farthest_first(sc.Dispersion(tensor(d)), k),
            farthest_first.reference(sc.Dispersion(d), k),
        )
        slow = farthest_first_features.reference(sc.Dispersion.from_features(x), k)
        same(farthest_first_features(sc.Dispersion.from_features(tensor(x)), k), slow)
        fast = threshold_scan(tensor(x), tensor(w), k, steps, 0.5)
        for answer, expected in zip(
            fast, threshold_scan.reference(x, w, k, steps, 0.5), strict=True
        ):
            np.testing.assert_array_equal(answer, expected)
        # Once more, with no room for a matrix.
        monkeypatch.setattr(driver, "MATRIX", 8 * 25 * 25 - 1)
    narrow = singular_values(tensor(x.astype(np.float32)))
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow, singular_values.reference(x), rtol=1e-6, atol=1e-5)
    h = singular_entropy(tensor(x.astype(np.float32)))
    assert h.dtype == torch.float32
    np.testing.assert_allclose(h, singular_entropy.reference(x), rtol=1e-6)
    exact = singular_entropy.reference(tensor(x))
    np.testing.assert_array_equal(singular_entropy(tensor(x)), exact)
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3))
    np.testing.assert_allclose(
        patch_entropy(tensor(image), 4), patch_entropy.reference(image, 4), rtol=1e-13
    )
    with pytest.raises(ValueError, match="image: contains NaN"):
        patch_entropy(tensor(image * np.nan), 4)


def test_memory_is_shared_with_numpy() -> None:
    x = torch.ones(3, 3)
    seen = driver._to_host(x)
    assert seen.ctypes.data == x.data_ptr()
    assert driver._to_device(seen, x.device).data_ptr() == x.data_ptr()
    grown = torch.ones(3, 3, requires_grad=True)
    assert driver._to_host(grown).ctypes.data == grown.data_ptr()
    assert driver._to_host(x.bfloat16()).dtype == np.float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half: Any, device: str) -> None:
    x = tensor(features(40), device).to(half)
    w = tensor(weights(40), device).to(half)
    wide = sc.maximize(
        sc.FacilityLocation.from_features(x.float().cpu().numpy(), w.float().cpu().numpy()), 9
    )
    narrow = sc.maximize(sc.FacilityLocation.from_features(x, w), 9)
    assert narrow.indices.tolist() == wide.indices.tolist()
    assert narrow.indices.device.type == device
    s = sc.maximize(sc.FacilityLocation(cosine_similarity(x.float()).to(half)), 9)
    assert len(set(s.indices.tolist())) == 9


@pytest.mark.parametrize("device", DEVICES)
def test_kept_features_keep_their_gradients(device: str) -> None:
    x = tensor(features(20), device).requires_grad_()
    w = tensor(weights(20), device).requires_grad_()
    for f in (sc.FacilityLocation(cosine_similarity(x), w), sc.FacilityLocation.from_features(x)):
        picks = sc.maximize(f, 4)
        assert not picks.gains.requires_grad
        kept = picks.gather(x)
        assert kept.requires_grad
        (gradient,) = torch.autograd.grad(kept.sum(), x)
        assert set(torch.nonzero(gradient[:, 0])[:, 0].tolist()) == set(picks.indices.tolist())


@pytest.mark.parametrize("device", DEVICES)
def test_measures_are_differentiable(device: str) -> None:
    x = tensor(features(10, 4), device).requires_grad_()
    (gradient,) = torch.autograd.grad(sc.effective_rank(x), x)
    step = 1e-6 * torch.ones_like(x[0]).cumsum(0)
    with torch.no_grad():
        moved = x.clone()
        moved[3] += step
        slope = (sc.effective_rank(moved) - sc.effective_rank(x)) / 1e-6
    assert float((gradient[3] * step).sum() / 1e-6) == pytest.approx(float(slope), rel=1e-3)
    for measure in (cosine_similarity, unit_operation):
        assert measure(x).requires_grad
    with torch.no_grad():
        assert not cosine_similarity(x).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_inference_mode(device: str) -> None:
    with torch.inference_mode():
        x = tensor(features(30), device)
        picks = sc.maximize(sc.FacilityLocation(cosine_similarity(x), x[:, 0].abs()), 5)
        scan = sc.greedy_threshold(x, x[:, 0], 5, step=0.1)
        rank = sc.effective_rank(x)
    host = features(30)
    expected = sc.maximize(sc.FacilityLocation(cosine_similarity(host), abs(host[:, 0])), 5)
    assert picks.indices.tolist() == expected.indices.tolist()
    assert len(set(scan.indices.tolist())) == 5
    assert float(rank) == pytest.approx(float(sc.effective_rank(host)), rel=1e-6)


def test_products_stay_in_full_precision_where_models_use_less() -> None:
    setting = torch.backends.cuda.matmul
    before = setting.allow_tf32
    try:
        setting.allow_tf32 = True
        with driver.full_precision():
            assert setting.fp32_precision == "ieee"
        assert setting.allow_tf32 is True
        with pytest.raises(RuntimeError, match="inside"), driver.full_precision():
            raise RuntimeError("inside")
        assert setting.fp32_precision == "tf32"
        setting.allow_tf32 = False
        with driver.full_precision():
            assert setting.allow_tf32 is False
    finally:
        setting.allow_tf32 = before


@pytest.mark.gpu
def test_no_pick_waits_for_the_device() -> None:
    x = tensor(features(200), "cuda")
    s, d = driver.cosine_similarity(x), tensor(places(200), "cuda")
    driver.facility_location(sc.FacilityLocation(s), 3)
    torch.cuda.synchronize()
    k = np.asarray(20)
    torch.cuda.set_sync_debug_mode("error")
    try:
        driver.facility_location(sc.FacilityLocation(s), k)
        driver.facility_location_features(sc.FacilityLocation.from_features(x), k)
        driver.determinant(sc.LogDeterminant(s), k)
        driver.farthest_first(sc.Dispersion(d), k)
        driver.farthest_first_features(sc.Dispersion.from_features(x), k)
        driver.threshold_scan(x, x[:, 0], k, np.asarray(0.01), 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Dynamo detected", "ignore:The .grad attribute")
@pytest.mark.parametrize("device", DEVICES)
def test_selection_breaks_a_compiled_graph_once(device: str) -> None:
    x, a = tensor(features(30), device), tensor(weights(30), device)
    objective, method = sc.FacilityLocation(cosine_similarity(x), a), sc.TopK(keep=4)

    def maximized(x: Any) -> Any:
        x = 2.0 * x
        return sc.maximize(objective, 4).gather(x) + 1.0

    def scanned(x: Any) -> Any:
        x = 2.0 * x
        return sc.greedy_threshold(x, a, 4).gather(x) + 1.0

    def selected(x: Any) -> Any:
        x = 2.0 * x
        return method.select(sc.Tokens(features=x, attention=a)).gather(x) + 1.0

    for run in (maximized, scanned, selected):
        torch._dynamo.reset()
        graphs: list[str] = []

        def compiler(graph: Any, _: Any, graphs: list[str] = graphs) -> Any:
            graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
            return graph

        x.requires_grad_()
        kept = torch.compile(run, backend=compiler)(x)
        assert len(graphs) == 2, graphs
        assert "mul" in graphs[0]
        assert "add" in graphs[1]
        torch.testing.assert_close(kept, run(x), rtol=0, atol=0)
        (gradient,) = torch.autograd.grad(kept.sum(), x)
        assert float(gradient.sum()) == 2.0 * kept.numel()
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:Dynamo detected", "ignore:The .grad attribute")
def test_measures_in_compiled_code_are_those_outside() -> None:
    x = tensor(features(20, 8))

    def measured(x: Any) -> Any:
        return sc.effective_rank(2.0 * x) + cosine_similarity(x) + 1.0

    torch._dynamo.reset()
    compiled = torch.compile(measured, backend="eager")
    torch.testing.assert_close(compiled(x), measured(x), rtol=0, atol=0)
    torch._dynamo.reset()
