"""The CuPy driver: the core's hot operations on CuPy arrays, in kernels of its own.

Greedy makes all picks of a batch on the device, a block of threads an image, without waiting for
the host between picks. The forms that start from features build float64 matrices of as many
images at a time as `MATRIX` has room for. An image without room, attention and relevance go to the
PyTorch driver, on the same memory, where PyTorch sees the device too; else to the reference.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import cupy as cp
import numpy as np

from secateur.backends.cupy.kernels import SOURCE, THREADS
from secateur.backends.lending import answer, blank, budgets, flat, handed, in_parts
from secateur.core import arrays, measures
from secateur.core.maximize import Picks, by_squares
from secateur.core.objectives import ByRow, Dispersion, FacilityLocation, LogDeterminant
from secateur.core.similarity import unit

__all__ = [
    "attention_received",
    "cosine_similarity",
    "determinant",
    "determinant_span",
    "facility_location",
    "facility_location_features",
    "facility_location_kernel",
    "facility_location_rows",
    "farthest_first",
    "farthest_first_features",
    "patch_entropy",
    "singular_entropy",
    "singular_values",
    "text_relevance",
    "threshold_scan",
]
"""The operations it offers."""

MATRIX = 1 << 31
"""Bytes of the float64 matrices that may be built from features at once."""
HISTORY = 1 << 28
"""Bytes of the gains that are kept for the upper bound."""
EPSILON = float(np.finfo(np.float64).eps)

_ENTRIES = {"f4": "float", "f8": "double", "u1": "unsigned char"}


@functools.cache
def _module(entry: str) -> Any:
    source = f"typedef {_ENTRIES[entry]} Entry;\n{SOURCE}"
    return cp.RawModule(code=source, options=("--std=c++17",))


def _launch(name: str, grid: tuple[int, ...], entries: Any, *args: Any) -> None:
    """Run a kernel for the dtype of `entries`, its first argument; ints are C's int."""
    numbers = {int: np.int32, float: np.float64}
    given = tuple(numbers.get(type(x), lambda x: x)(x) for x in args)
    kernel = _module(entries.dtype.str[1:]).get_function(name)
    kernel(grid, (THREADS,), (entries, *given))


def _tiles(n: int) -> int:
    return -(-n // THREADS)


def _entries(x: Any, axes: int) -> Any:
    """The leading axes in one, rows without gaps, in float32 or float64."""
    x = flat(x, axes)
    dtype = cp.float64 if x.dtype == cp.float64 else cp.float32
    return cp.ascontiguousarray(x, dtype=dtype)


@functools.cache
def _torch() -> ModuleType | None:
    """The PyTorch driver, if PyTorch is installed and sees a device."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    from secateur.backends.torch import driver as driver

    return driver


def _by_torch(name: str, shared: Sequence[Any], *args: Any, **more: Any) -> Any:
    """What the PyTorch driver answers about `shared` arrays, none of them copied."""
    driver = _torch()
    if driver is None:
        return NotImplemented
    return _taken(getattr(driver, name)(*handed(tuple(shared), _lent), *args, **more))


def _lent(x: Any) -> Any:
    """The tensor on the memory of an array. Each library waits for what the other has queued."""
    import torch

    if isinstance(x, ByRow):
        return x.with_arrays(_lent)
    if x.dtype == cp.bool_:
        return torch.from_dlpack(x.view(cp.uint8)).view(torch.bool)
    return torch.from_dlpack(x)


def _taken(found: Any) -> Any:
    """The arrays on the memory of the tensors in an answer."""
    return handed(found, cp.from_dlpack)


def facility_location(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location from matrices (..., N, N): about 4 N rows of N in all."""
    return _facility_location(f.matrix, f.weights, k, f.rounding)


def _facility_location(similarity: Any, weights: Any, k: Any, rounding: float) -> Picks:
    batch, n = similarity.shape[:-2], int(similarity.shape[-1])
    s = _entries(similarity, 2)
    images = len(s)
    w = cp.ones((images, n))
    if weights is not None:
        w = cp.ascontiguousarray(cp.broadcast_to(weights, (*batch, n)), dtype=cp.float64)
        w = w.reshape(images, n)
    host, longest = budgets(k, batch)
    budget = cp.asarray(host)
    indices, gains = blank(images, longest, s)
    g, m = cp.empty((images, n)), cp.zeros((images, n))
    fresh, exact = cp.empty((images, n)), cp.empty((images, n))
    listed = cp.empty((images, n), dtype=cp.int32)
    opened = cp.ones((images, n), dtype=cp.uint8)
    terms, largest = cp.zeros(images, dtype=cp.int64), cp.zeros(images)
    bound = cp.full(images, math.inf)
    _launch("first_gains", (images, _tiles(n)), s, w, g, n)
    stride = max(1, HISTORY // (8 * images * n) - 1)
    for begin in range(0, longest, stride):
        end = min(begin + stride, longest)
        history = cp.empty((images, end - begin + 1, n))
        state = (g, m, fresh, exact, listed, opened, terms, largest, history, indices, gains)
        _launch("facility_steps", (images,), s, w, budget, *state, rounding, n, longest, begin, end)
        bound = cp.minimum(bound, _certificate(history, gains, budget, begin))
    # What a running gain may be off, for each of the gains that a bound adds up.
    slack = 4.0 * EPSILON * terms * largest
    value, bound = cp.sum(w * m, axis=-1), bound + 2 * budget * slack
    # Nothing is certain where sums overflowed.
    known = cp.isfinite(value) & ~cp.isnan(bound)
    return answer(
        batch, indices, gains, cp.where(known, value, 0.0), cp.where(known, bound, math.inf)
    )


def _certificate(history: Any, gains: Any, budget: Any, begin: int) -> Any:
    """The least (B,) over the prefixes of `history` (B, T, N) of value and largest gains."""
    longest = gains.shape[1]
    ranked = cp.sort(cp.clip(history, 0.0, None), axis=-1)[..., ::-1][..., :longest]
    counted = cp.arange(longest)[None, :] < budget[:, None]
    largest = cp.sum(ranked * counted[:, None, :], axis=-1)
    value = cp.concatenate([cp.zeros((len(gains), 1)), cp.cumsum(gains, axis=1)], axis=1)
    prefixes = value[:, begin : begin + history.shape[1]]
    return cp.min(prefixes + largest, axis=-1)


def facility_location_features(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on (1 + cos) / 2 of features (..., N, D).

    In float64 matrices; in O(N D) memory by the PyTorch driver or the reference, which waits for
    the device at each pick, where a matrix exceeds `MATRIX`.
    """

    # Entries carry the rounding of a cosine: whatever the gain, ties are that wide.
    def solve(x: Any, w: Any, budget: Any) -> Picks:
        s = cosine_similarity(x.astype(cp.float64))
        return _facility_location(s, w, budget, 8 * EPSILON)

    if _room(f.features):
        return in_parts(f.features, f.weights, k, _room(f.features), solve)
    return cast(Picks, _by_torch("facility_location_features", (f,), k))


def _room(features: Any) -> int:
    """How many images' float64 matrices there may be at once."""
    return MATRIX // (8 * int(features.shape[-2]) ** 2)


def facility_location_kernel(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on another similarity of features, from a matrix where it fits."""
    return by_squares(f, k, facility_location)


def facility_location_rows(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location over rectangular, stacked or masked rows, from a square matrix."""
    return by_squares(f, k, facility_location)


def farthest_first(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first over distances (..., N, N): O(N^2), then O(N) a pick."""
    return _farthest_first(f.distance, k, start, 0.0)


def _farthest_first(distance: Any, k: Any, start: int | None, margin: float) -> Picks:
    batch, n = distance.shape[:-2], int(distance.shape[-1])
    d = _entries(distance, 2)
    images = len(d)
    host, longest = budgets(k, batch)
    indices, gains = blank(images, longest, d)
    nearest, value = cp.empty((images, n)), cp.empty(images)
    opened = cp.ones((images, n), dtype=cp.uint8)
    first = -1 if start is None else int(start)
    _launch("nearest_other", (images, _tiles(n)), d, nearest, n)
    state = (cp.asarray(host), nearest, opened, indices, gains, value)
    _launch("farthest_steps", (images,), d, *state, margin, n, longest, first)
    return answer(batch, indices, gains, value)


def farthest_first_features(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first under 1 - cos of features (..., N, D), from float64 matrices.

    In O(N D) memory by the PyTorch driver or the reference where a matrix exceeds `MATRIX`.
    """

    def solve(x: Any, _: None, budget: Any) -> Picks:
        s = cosine_similarity(x.astype(cp.float64))
        return _farthest_first(2.0 * (1.0 - s), budget, start, 16 * EPSILON)

    if _room(f.features):
        return in_parts(f.features, None, k, _room(f.features), solve)
    return cast(Picks, _by_torch("farthest_first_features", (f,), k, start))


def determinant(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N) by incremental Cholesky: O(N k^2)."""
    if f.monotone or f.selectable is not None:
        return cast(Picks, NotImplemented)
    kernel: Any = f.kernel
    batch, n = kernel.shape[:-2], int(kernel.shape[-1])
    x = _entries(kernel, 2)
    images = len(x)
    host, longest = budgets(k, batch)
    indices, gains = blank(images, longest, x)
    left = cp.diagonal(x, axis1=-2, axis2=-1).astype(cp.float64, order="C")
    noise = 128 * float(np.finfo(x.dtype).eps) * left
    logs, factor = cp.empty((images, n)), cp.empty((images, longest, n))
    opened = cp.ones((images, n), dtype=cp.uint8)
    state = (cp.asarray(host), left, noise, logs, factor, opened, indices, gains)
    _launch("cholesky_steps", (images,), x, *state, n, longest)
    return answer(batch, indices, gains, cp.sum(gains, axis=-1))


def determinant_span(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of Y Y^T from vectors (..., N, D), by the PyTorch driver."""
    return cast(Picks, _by_torch("determinant_span", (f,), k))


def threshold_scan(
    features: Any, attention: Any, k: Any, step: np.ndarray[Any, Any], tau_max: float
) -> tuple[Any, Any]:
    """AgilePruner's scan from matrices of cosines; by PyTorch where they exceed `MATRIX`."""
    batch, n = features.shape[:-2], int(features.shape[-2])
    x = _entries(unit(features), 2)
    images = len(x)
    if 8 * images * n * n > MATRIX:
        shared = _by_torch("threshold_scan", (features, attention), k, step, tau_max)
        return cast("tuple[Any, Any]", shared)
    host, longest = budgets(k, batch)
    order = cp.argsort(-attention.reshape(images, n), axis=-1, kind="stable")
    slope = cp.asarray(np.ascontiguousarray(step, dtype=np.float64).reshape(-1))
    indices, _ = blank(images, longest, x)
    filled = cp.zeros(images, dtype=cp.int64)
    remains, kept = cp.ones((images, n), dtype=cp.uint8), cp.zeros((images, n), dtype=cp.uint8)
    state = (order.astype(cp.int64), cp.asarray(host), slope, remains, kept, indices, filled)
    rounding = 8 * float(np.finfo(x.dtype).eps)
    cosine = cp.ascontiguousarray(x @ x.transpose(0, 2, 1))
    _launch("scan_steps", (images,), cosine, *state, float(tau_max), rounding, n, longest)
    return indices.reshape(*batch, longest), filled.reshape(batch)


def patch_entropy(image: Any, patch: int) -> Any:
    """Entropy of the grey values within each patch: a block of threads and a histogram each."""
    if image.dtype != cp.uint8:
        image = arrays.checked(image, "image", "(..., H, W, 3)").astype(cp.float32)
    rows, columns = measures.check_image(image, patch)
    batch, (height, width) = image.shape[:-3], image.shape[-3:-1]
    h = cp.empty((*batch, rows * columns))
    pixels = cp.ascontiguousarray(image)
    sizes = (int(height), int(width), int(patch), rows, columns)
    _launch("entropy", (int(h.size),), pixels, h, *sizes)
    return h


def cosine_similarity(features: Any) -> Any:
    """Similarities (1 + cos) / 2, shape (..., N, N), in one product of matrices."""
    x = unit(features)
    return cp.clip(0.5 * (x @ cp.swapaxes(x, -1, -2)) + 0.5, 0.0, 1.0)


def singular_values(features: Any) -> Any:
    """Singular values (..., min(N, D)), from the smaller Gram matrix in float64.

    Good to 3e-8 of the largest, as well as an SVD in float32 knows them. Float64 input is left
    to the SVD of the reference.
    """
    if features.dtype == cp.float64:
        return NotImplemented
    x = features.astype(cp.float64)
    turned = cp.swapaxes(x, -1, -2)
    gram = turned @ x if x.shape[-2] > x.shape[-1] else x @ turned
    squares = cp.linalg.eigvalsh(gram)[..., ::-1]
    return cp.sqrt(cp.clip(squares, 0.0, None)).astype(features.dtype)


def singular_entropy(features: Any) -> Any:
    """As the PyTorch driver computes it; without PyTorch from the singular values."""
    return _by_torch("singular_entropy", (features,))


def text_relevance(visual: Any, text: Any, text_global: Any, mask: Any, *more: Any) -> Any:
    """As the PyTorch driver computes it."""
    return _by_torch("text_relevance", (visual, text, text_global, mask), *more)


def attention_received(
    queries: Any,
    keys: Any,
    *,
    scale: float | None = None,
    query_weights: Any = None,
    key_mask: Any = None,
    positions: Any = None,
) -> Any:
    """As the PyTorch driver computes it, in blocks of queries."""
    if _torch() is None:
        return NotImplemented
    lent = {"query_weights": query_weights, "key_mask": key_mask, "positions": positions}
    return _by_torch(
        "attention_received",
        (queries, keys),
        scale=scale,
        **{name: handed(x, _lent) for name, x in lent.items()},
    )
