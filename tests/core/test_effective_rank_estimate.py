"""The stochastic estimate of the effective rank against the singular values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import secateur as sc
from secateur.core.measures import effective_rank_estimate


def _decaying(n: int, d: int, decades: float) -> np.ndarray:
    dice = np.random.default_rng(1)
    left, _ = np.linalg.qr(dice.standard_normal((n, min(n, d))))
    right, _ = np.linalg.qr(dice.standard_normal((d, min(n, d))))
    return (left * 10.0 ** -np.linspace(0, decades, min(n, d))) @ right.T


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).standard_normal((300, 200)),
        np.random.default_rng(0).standard_normal((120, 260)) + 3.0,
        _decaying(260, 240, 1.0),
        _decaying(200, 240, 3.0),
    ],
    ids=["noise", "common mean", "one decade", "three decades"],
)
def test_the_truth_lies_within_three_errors(x: np.ndarray, seed: int, dtype: str) -> None:
    estimate = effective_rank_estimate(x.astype(dtype), seed=seed)
    truth = float(sc.effective_rank(x))
    assert abs(estimate.value - truth) < 3.0 * estimate.error
    assert estimate.error < 0.1 * truth


def test_more_probes_and_steps_are_closer() -> None:
    x = _decaying(300, 280, 2.0)
    errors = [
        effective_rank_estimate(x, n, steps).error for n, steps in ((4, 8), (16, 32), (64, 96))
    ]
    assert errors[0] > 2.0 * errors[1] > 4.0 * errors[2]


@pytest.mark.parametrize("x", [np.ones((40, 30)), np.eye(1), np.zeros((5, 4)), np.ones((1, 7))])
def test_of_rank_one_it_is_one(x: np.ndarray) -> None:
    estimate = effective_rank_estimate(x)
    assert estimate.value == pytest.approx(1.0, abs=1e-9)
    assert estimate.error == pytest.approx(0.0, abs=1e-9)


def test_every_library_and_the_same_seed(xp: Any, to_xp: Callable[..., Any]) -> None:
    x = _decaying(90, 70, 1.0)
    expected = effective_rank_estimate(x, seed=5)
    estimate = effective_rank_estimate(to_xp(x), seed=5)
    assert estimate.value == pytest.approx(expected.value, rel=1e-8)
    assert estimate.error == pytest.approx(expected.error, rel=1e-4)
    assert effective_rank_estimate(x, seed=5) == expected
    assert effective_rank_estimate(x * 1e-20, seed=5).value == pytest.approx(expected.value)


def test_parameters_are_checked() -> None:
    x = np.eye(4)
    with pytest.raises(ValueError, match="probes: expected a whole number of at least 2, got 1"):
        effective_rank_estimate(x, probes=1)
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 2, got 0"):
        effective_rank_estimate(x, steps=0)
    with pytest.raises(ValueError, match=r"features: expected shape \(N, D\)"):
        effective_rank_estimate(x[None])
