"""What the PyTorch driver would launch on a GPU, counted without one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import secateur as sc

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from secateur.backends.torch import driver, greedy  # noqa: E402

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LAUNCHES = {
    "facility location": 5,
    "facility location from features": 16,
    "determinant": 9,
    "farthest-first": 7,
    "farthest-first from features": 21,
    "threshold scan": 16,
    "cosine similarity": 10,
    "attention received, 16 heads": 12,
    "singular values": 7,
    "entropy of singular values": 60,
    "patch entropy, 3840 x 2160, one image": 27,
}
"""Kernels of one call with Triton's. Fewer are better: lower a number here with its kernel."""


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not BENCHMARKS.exists():
        pytest.skip("the benchmarks are not here")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import paper

    return paper


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_of_a_call_are_few_and_none_are_made_for_a_pick(
    paper: ModuleType, name: str
) -> None:
    for k in (8, 64):
        work = paper.counted(paper.operations(576, k, 64, 1)[name])
        assert work.launches == LAUNCHES[name]


@pytest.mark.parametrize("name", LAUNCHES)
def test_whole_tensor_steps_wait_for_nothing_either(paper: ModuleType, name: str) -> None:
    assert paper.counted(paper.operations(100, 8, 64, 2)[name], greedy).launches > 0


def test_a_span_waits_for_nothing(paper: ModuleType) -> None:
    f = sc.LogDeterminant.from_span(torch.zeros(2, 100, 64)).with_arrays(paper.nowhere)
    few, many = (paper.counted(lambda k=k: driver.determinant_span(f, k)).launches for k in (4, 8))
    assert 0 < many - few <= 4 * 47


def test_a_step_that_asks_the_device_is_found(paper: ModuleType) -> None:
    x = paper.nowhere(torch.zeros(3))
    with pytest.raises(RuntimeError, match="meta"):
        paper.counted(lambda: bool(x.sum() > 0))


def test_kernels_bytes_and_products_are_those_of_the_operation(paper: ModuleType) -> None:
    x, y = paper.nowhere(torch.zeros(4, 8)), paper.nowhere(torch.zeros(8, 2))
    work = paper.counted(lambda: x.T.mT[:, :] @ y)
    assert work.launches == 1
    assert work.bytes == 4 * (32 + 16 + 8)
    assert dict(work.operations) == {torch.float32: 2 * 4 * 8 * 2}
    one = paper.counted(lambda: x.new_zeros(1).expand(50).add(1.0))
    assert one.bytes == 4 * (1 + 1 + 50)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_entropies_are_added_one_after_the_other(device: str) -> None:
    dice = np.random.default_rng(0)
    terms = torch.from_numpy(dice.random((256, 300))).to(device)
    total = torch.zeros(300, dtype=torch.float64, device=device)
    for term in terms:
        total += term
    assert torch.equal(terms.cumsum(0)[-1], total)


@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e-300, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_of_any_length(scale: float, dtype: Any) -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 9))).to(dtype)
    x[2] = 0.0
    given = x * scale
    if not given.isfinite().all() or not given.any():
        pytest.skip("no such numbers in this dtype")
    expected = sc.core.similarity.unit.reference(given.double().numpy())
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    rounding = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / abs(scale)
    np.testing.assert_allclose(driver._unit(given), expected, atol=tolerance + 4 * rounding)
