"""Which arrays may come in: any real numbers in any byte order, and nothing half an array."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import secateur as sc

N, D, K = 30, 8, 7
DICE = np.random.default_rng(5)
X = DICE.standard_normal((N, D)).round(3)
A = DICE.random(N).round(3)
T = DICE.standard_normal((5, D)).round(3)
PIXELS = DICE.integers(0, 256, (12, 12, 3))

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "facility": lambda x, a: sc.maximize(sc.FacilityLocation(x @ x.T, a), K).indices,
    "facility features": lambda x, a: (
        sc.maximize(sc.FacilityLocation.from_features(x, a), K).indices
    ),
    "determinant": lambda x, a: sc.maximize(sc.LogDeterminant(x @ x.T + 0 * a), K).indices,
    "farthest": lambda x, a: sc.maximize(sc.Dispersion(((x[:, None] - x) ** 2).sum(-1)), K).indices,
    "farthest features": lambda x, a: sc.maximize(sc.Dispersion.from_features(x), K).indices,
    "scan": lambda x, a: sc.greedy_threshold(x, a, K, 0.05).indices,
    "rank": lambda x, a: sc.effective_rank(x),
}


@pytest.mark.parametrize("backend", ["auto", "numpy", "reference"])
@pytest.mark.parametrize("dtype", [">f8", "<f8", "longdouble"])
@pytest.mark.parametrize("name", list(CALLS))
def test_dtypes_that_numba_does_not_know(name: str, dtype: str, backend: str) -> None:
    wanted = CALLS[name](X, A)
    with sc.backend(backend):
        found = CALLS[name](X.astype(dtype), A.astype(dtype))
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), wanted, rtol=1e-9)


def test_pixels_of_any_dtype() -> None:
    wanted = sc.patch_entropy(PIXELS.astype(np.uint8), 4)
    for dtype in (">i8", ">f4", "longdouble", "uint16", "float16"):
        found = sc.patch_entropy(PIXELS.astype(dtype), 4)
        np.testing.assert_allclose(np.asarray(found, dtype=np.float64), wanted)


def test_relevance_of_any_dtype() -> None:
    wanted = sc.dense_relevance(X, T)
    for dtype in (">f8", "longdouble"):
        found = sc.dense_relevance(X.astype(dtype), T.astype(dtype))
        np.testing.assert_allclose(np.asarray(found, dtype=np.float64), wanted, rtol=1e-9)


MIXED = [("float32", "float64"), ("float64", "float32"), ("float16", "float64"), ("int64", "f4")]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("of", "beside"), MIXED)
def test_dtypes_may_be_mixed(of: str, beside: str, library: str) -> None:
    torch = pytest.importorskip("torch") if library == "torch" else None
    lift = (lambda x: x) if torch is None else torch.from_numpy
    x, a = (X * 8).round().astype(of), (A * 8).round().astype(beside)
    t = T.round().astype(beside)
    wide = x.astype(np.float64), a.astype(np.float64)
    for name in ("facility", "facility features", "scan"):
        if name == "facility":
            s = x @ x.T
            wanted = sc.maximize(sc.FacilityLocation(s.astype(np.float64), wide[1]), K).indices
            found = sc.maximize(sc.FacilityLocation(lift(s), lift(a)), K).indices
        else:
            wanted, found = CALLS[name](*wide), CALLS[name](lift(x), lift(a))
        np.testing.assert_array_equal(np.asarray(found), wanted)
    found = sc.dense_relevance(lift(x), lift(t))
    np.testing.assert_allclose(found, sc.dense_relevance(wide[0], t.astype(float)), atol=1e-2)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_masked_arrays_and_matrices_are_refused() -> None:
    masked = np.ma.masked_array(X, X > 1)
    for call in (
        lambda: sc.FacilityLocation(np.ma.masked_array(np.eye(4), np.eye(4) > 1)),
        lambda: sc.FacilityLocation.from_features(masked),
        lambda: sc.effective_rank(masked),
        lambda: sc.greedy_threshold(masked, A, K),
        lambda: sc.DivPrune(K).select(sc.Tokens(features=masked)),
    ):
        with pytest.raises(ValueError, match="masked arrays are not supported"):
            call()
    with pytest.raises(ValueError, match=r"similarity: expected an array .* got matrix"):
        sc.FacilityLocation(np.matrix(np.eye(4)))


def test_tensors_without_numbers_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this kind of tensor is in beta
        rows = torch.eye(4).to_sparse_csr()
    for x, said in (
        (torch.eye(4).to_sparse(), "sparse tensors are not supported"),
        (rows, "sparse tensors are not supported"),
        (torch.empty(4, 4, device="meta"), "on the device 'meta'"),
    ):
        with pytest.raises(ValueError, match=f"similarity: .*{said}"):
            sc.FacilityLocation(x)
        with pytest.raises(ValueError, match=f"features: .*{said}"):
            sc.effective_rank(x)
    with pytest.raises(ValueError, match=r"features: cannot be mapped by torch\.vmap"):
        torch.vmap(sc.effective_rank)(torch.ones(2, 3, 3))


def test_libraries_may_not_be_mixed() -> None:
    torch = pytest.importorskip("torch")
    for call in (
        lambda: sc.FacilityLocation(torch.eye(4), np.ones(4)),
        lambda: sc.greedy_threshold(np.eye(4), torch.ones(4), 2),
        lambda: sc.dense_relevance(torch.eye(4), np.eye(4)),
    ):
        with pytest.raises(ValueError, match="arrays of one library are expected"):
            call()
