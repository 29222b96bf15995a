"""Entropies of singular values by determinants, against those of an SVD in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secateur.core.measures import singular_entropy

torch = pytest.importorskip("torch")
from secateur.backends.torch import spectrum  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def matrix(n: int, d: int, s: np.ndarray, seed: int = 0) -> np.ndarray:
    """One (N, D) of these singular values, in float32."""
    dice = np.random.default_rng(seed)
    u, _ = np.linalg.qr(dice.standard_normal((n, len(s))))
    v, _ = np.linalg.qr(dice.standard_normal((d, len(s))))
    return ((u * s) @ v.T).astype(np.float32)


def entropy(x: np.ndarray, device: str = "cpu") -> np.ndarray:
    """That of float32 input, before it is itself rounded to float32."""
    wide = torch.tensor(x, device=device).double()
    return spectrum.singular_entropy(wide).cpu().numpy()


FLAT = [
    (1, 1, [3.0]),
    (30, 12, [1.0] * 12),
    (12, 30, [1.0] * 12),
    (40, 90, np.linspace(1.0, 2.0, 40)),
    (100, 300, np.geomspace(1.0, 1e-3, 100)),
    (150, 70, np.geomspace(1.0, 1e-5, 70)),
    (300, 310, np.r_[50.0, np.geomspace(1.0, 1e-2, 299)]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("n", "d", "s"), FLAT)
def test_as_an_svd_knows_them(n: int, d: int, s: np.ndarray, scale: float, device: str) -> None:
    x = matrix(n, d, scale * np.asarray(s))
    expected = singular_entropy.reference(x.astype(np.float64))
    np.testing.assert_allclose(entropy(x, device), expected, rtol=0, atol=2e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rank", [1, 2, 40])
@pytest.mark.parametrize("n", [60, 200])
def test_of_fewer_directions_than_tokens(n: int, rank: int, device: str) -> None:
    dice = np.random.default_rng(n)
    x = dice.integers(-4, 5, (rank, 220)).astype(np.float32)[np.arange(n) % rank]
    expected = singular_entropy.reference(x.astype(np.float64))
    found = entropy(x, device)
    assert 0.0 <= found <= math.log(n)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_most_of_them_smaller_than_can_be_told_in_float32(device: str) -> None:
    x = matrix(300, 300, np.r_[50.0, np.geomspace(1.0, 1e-7, 299)])
    expected = singular_entropy.reference(x.astype(np.float64))
    np.testing.assert_allclose(entropy(x, device), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_in_any_blocks(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    s = [np.geomspace(1.0, 10.0 ** -(i + 1), 20) for i in range(6)]
    x = np.stack([matrix(70, 20, each, i) for i, each in enumerate(s)]).reshape(2, 3, 70, 20)
    x[0, 1] = 0.0
    expected = singular_entropy.reference(x.astype(np.float64))
    assert expected[0, 1] == 0.0
    whole = entropy(x, device)
    assert whole.shape == (2, 3)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-6)
    wide = entropy(np.swapaxes(x, -1, -2), device)
    np.testing.assert_allclose(wide, expected, rtol=0, atol=1e-6)
    monkeypatch.setattr(spectrum, "PANEL", 7)
    for block in (1, 20 * 20 * 6 * 5):
        monkeypatch.setattr(spectrum, "BLOCK", block)
        np.testing.assert_allclose(entropy(x, device), whole, rtol=0, atol=1e-9)
    assert entropy(x[:0], device).shape == (0, 3)
    assert entropy(x[:, :, :0], device).tolist() == [[0.0] * 3] * 2


def test_where_rounding_leaves_no_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logarithms that are missing grow as those beside them."""
    x = np.diag(np.float32([1.0, 0.5, 0.25]))
    whole, determinants = entropy(x), spectrum._log_determinants

    def failing(a):
        found = determinants(a)
        found[:4] = math.nan
        return found

    monkeypatch.setattr(spectrum, "_log_determinants", failing)
    np.testing.assert_allclose(entropy(x), whole, rtol=0, atol=1e-9)


def test_a_matrix_that_is_not_positive_has_no_logarithm() -> None:
    a = torch.zeros(2, 1, 100, 100, dtype=torch.float64)
    a[1, 0, 80, 80] = -2.0
    found = spectrum._log_determinants(a)
    assert found[0, 0] == 0.0
    assert found[1, 0].isnan()


def test_half_precision_is_widened() -> None:
    x = torch.tensor(matrix(30, 50, np.geomspace(1.0, 0.1, 30))).bfloat16()
    found = spectrum.singular_entropy(x)
    assert found.dtype == torch.bfloat16
    assert float(found) == pytest.approx(float(entropy(x.float().numpy())), rel=1e-2)
