"""The NumPy driver: the core's hot operations in whole-array steps, on the host.

It serves every NumPy array and SciPy sparse matrix, with or without Numba, whose driver asks
this one for what it lacks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from secateur.backends.host import volume
from secateur.backends.host.candidates import of_features
from secateur.backends.host.farthest import GivenDistances, farthest
from secateur.backends.host.greedy import Listed, Served, greedy
from secateur.backends.host.lengths import rounded_once as rounded_once
from secateur.backends.host.lengths import squarable
from secateur.backends.host.lengths import unit as unit
from secateur.backends.host.likeness import likeness_factors as likeness_factors
from secateur.backends.host.marginal import marginal_relevance
from secateur.backends.host.received import attention_received
from secateur.backends.host.rows import compared_source, of_rows
from secateur.backends.host.salience import salient_coverage
from secateur.backends.host.sources import (
    BLOCK,
    COSINE_ROUNDING,
    Cosine,
    Dense,
    Entries,
    Floats,
    Indices,
    shifted,
    spans,
)
from secateur.backends.host.turned import TurnedServed
from secateur.backends.lending import (
    LINKED,
    WHOLE,
    eigenvalues,
    over_batch,
    product,
    weights_at,
)
from secateur.backends.lending import alone as alone
from secateur.backends.lending import images_at_once as images_at_once
from secateur.core.arrays import checked, each_row, is_sparse, refuse_kind
from secateur.core.maximize import Picks
from secateur.core.measures import check_image, grey_levels
from secateur.core.objectives import Dispersion, FacilityLocation, LogDeterminant
from secateur.core.relevance import Aggregate, sharpest, softmax

__all__ = [
    "attention_received",
    "cosine_similarity",
    "cosines",
    "determinant",
    "determinant_factors",
    "determinant_span",
    "facility_location",
    "facility_location_features",
    "facility_location_kernel",
    "facility_location_rows",
    "farthest_first",
    "farthest_first_features",
    "largest_eigenvectors",
    "likeness_factors",
    "marginal_relevance",
    "patch_entropy",
    "salient_coverage",
    "singular_values",
    "smallest",
    "squared_distances",
    "text_relevance",
    "threshold_scan",
    "unit",
]
"""The operations it offers."""


def cosine_similarity(features: Floats) -> Floats:
    """Similarities (1 + cos) / 2, shape (..., N, N), with one N x N array and no other."""
    directions = rounded_once(features)
    return shifted(product(directions, np.swapaxes(directions, -1, -2)))


def cosines(x: Floats, y: Floats) -> Floats:
    """Cosines (..., N, M) of x (..., N, D) with y (..., M, D) in float64, without x in float64.

    A few rows at a time are widened, and what is divided by lengths are cosines. All with all
    others are half a product, which needs all.
    """
    count, size = x.shape[-2:]
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if x is y:
        directions = unit(x.astype(np.float64, copy=False))
        return product(directions, np.swapaxes(directions, -1, -2))
    x, y = (np.broadcast_to(z, (*batch, *z.shape[-2:])) for z in (x, y))
    out = np.empty((*batch, count, y.shape[-2]))
    # Each product reads all others again: more rows for more of them.
    step = max(1, BLOCK // 4 // size, min(2 * y.shape[-2], 128, count))
    wide = np.empty((min(step, count), size))
    with alone(count * size * y.shape[-2]):
        for at in each_row(batch):
            aims = unit(y[at].astype(np.float64, copy=False)).T
            for part in spans(count, 1, step):
                rows = wide[: len(x[at][part])]
                np.copyto(rows, x[at][part])
                lengths = squarable(rows)
                if lengths is None:
                    out[at][part] = product(unit(rows), aims)
                else:
                    product(rows, aims, out[at][part])
                    out[at][part] /= lengths[:, None]
    return out


def squared_distances(x: Floats, y: Floats) -> Floats:
    """Squared distances (..., N) of x (..., N, D) to y (..., 1, D), or each to its own of as many.

    Differences of a few rows at a time, which stay in the cache; bits are those of all at once.
    """
    count, size = x.shape[-2:]
    out = np.empty(x.shape[:-1], dtype=np.result_type(x, y))
    for at in each_row(x.shape[:-2]):
        to = np.broadcast_to(y[at], x.shape[-2:])
        for part in spans(count, size, BLOCK // 4):
            apart = x[at][part] - to[part]
            apart *= apart
            apart.sum(axis=-1, out=out[at][part])
    return out


def canonical(matrix: Any) -> Any:
    """A CSR matrix with floating entries, each stored once."""
    matrix = matrix.tocsr()
    try:
        # Indices beyond the matrix, in one put together by hand, would be read from anywhere.
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"similarity: {error}") from None
    if matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float64)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def facility_location(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location from a matrix (..., N, N), dense or CSR."""
    similarity, weights = f.matrix, f.weights
    if is_sparse(similarity):
        matrix = canonical(similarity)
        return over_batch((), k, lambda _, budget: greedy(Listed(matrix, weights), budget))
    return over_batch(
        similarity.shape[:-2],
        k,
        lambda at, budget: greedy(
            Served(Dense(similarity[at], f.rounding), weights_at(weights, at)), budget
        ),
    )


def facility_location_rows(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location over rectangular, stacked or masked rows."""
    return of_rows(
        f, k, lambda s, w, budget, rounding: greedy(Served(Dense(s, rounding), w), budget)
    )


MATRIX = 1024
"""Tokens of which a matrix is built whatever their width."""


def small_enough(features: Floats) -> bool:
    """Whether a matrix of similarities takes no more than four times the features' memory.

    Or no more than some megabytes, which are worked on sooner than rows one by one.
    """
    return bool(features.shape[-2] <= max(4 * features.shape[-1], MATRIX))


def facility_location_features(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on (1 + cos) / 2 of features (..., N, D), in O(N D) memory."""
    features, weights = f.features, f.weights

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        w = weights_at(weights, at)
        if small_enough(features):
            matrix = cosine_similarity(features[at])
            return greedy(Served(Dense(matrix, COSINE_ROUNDING, "features"), w), budget)
        return greedy(TurnedServed(Cosine(rounded_once(features[at])), w), budget)

    return over_batch(features.shape[:-2], k, solve)


def facility_location_kernel(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on another similarity of features (..., N, D): O(N D) memory."""
    features, weights = f.features, f.weights

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        w = weights_at(weights, at)
        if small_enough(features):
            entries = Entries(f.kind, features[at])
            matrix = entries.rows(np.arange(entries.size))
            return greedy(Served(Dense(matrix, entries.rounding, "features"), w), budget)
        return greedy(TurnedServed(compared_source(f.kind, features[at]), w), budget)

    return over_batch(features.shape[:-2], k, solve)


def determinant(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N): O(k^2 N)."""
    return volume.of_kernels(f, k)


def determinant_factors(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of I + gamma Y Y^T from factors (..., N, D): O(k N (D + k))."""
    return volume.of_factors(f, k)


def determinant_span(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of Y Y^T from vectors (..., N, D): O(k N D), O(N D) memory."""
    return volume.of_span(f, k)


def farthest_first(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first over distances (..., N, N)."""
    distance: Any = f.distance
    return over_batch(
        distance.shape[:-2],
        k,
        lambda at, budget: (*farthest(GivenDistances(distance[at]), budget, start), math.inf),
    )


def farthest_first_features(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first under 1 - cos of features (..., N, D), in O(N D) memory."""
    features: Any = f.features
    return of_features(features, k, start, matrix=small_enough(features))


Scan = Callable[[Floats, Indices, int, float, float], Indices]


def threshold_scan(
    features: Floats, attention: Floats, k: Any, step: Floats, tau_max: float
) -> tuple[Indices, Indices]:
    """AgilePruner's scan over a batch, each token compared with those kept before it only."""
    return scan_batch(features, attention, k, step, tau_max, scan)


def scan_batch(
    features: Floats, attention: Floats, k: Any, step: Floats, tau_max: float, run: Scan
) -> tuple[Indices, Indices]:
    """Picks of `run` for every row of a batch, filled up with the most attended others."""
    batch = features.shape[:-2]
    budgets = np.broadcast_to(np.asarray(k, dtype=np.int64), batch)
    indices = np.full((*batch, int(budgets.max())), -1, dtype=np.int64)
    filled = np.zeros(batch, dtype=np.int64)
    for at in each_row(batch):
        budget = int(budgets[at])
        order = np.argsort(-attention[at], kind="stable")
        kept = run(features[at], order, budget, float(step[at]), tau_max)
        removed = order[~np.isin(order, kept)][: budget - len(kept)]
        indices[at][:budget] = np.concatenate([kept, removed])
        filled[at] = len(removed)
    return indices, filled


def scan(x: Floats, order: Indices, k: int, step: float, tau_max: float) -> Indices:
    """Tokens kept, at most k, in order; as many at a time are compared as may be kept."""
    x = rounded_once(x)
    rounding = 8 * float(np.finfo(x.dtype).eps)
    kept = np.empty(0, dtype=np.int64)
    start = 0
    while start < len(order) and len(kept) < k:
        part = order[start : start + max(32, k - len(kept))]
        start += len(part)
        tau = np.minimum(tau_max, np.arange(1, len(kept) + 1) * step)
        beyond = at_least(distances_between(x[part], x[kept]), tau - rounding, x[part], x[kept])
        part = part[beyond.all(axis=1)]
        among_x = x[part]
        among = distances_between(among_x, among_x)
        remains = np.ones(len(part), dtype=bool)
        chosen: list[int] = []
        for place in range(len(part)):
            if remains[place] and len(kept) + len(chosen) < k:
                chosen.append(place)
                tau = np.asarray([min(tau_max, (len(kept) + len(chosen)) * step)])
                column = among[:, place : place + 1]
                remains &= at_least(column, tau - rounding, among_x, among_x[place, None])[:, 0]
        kept = np.concatenate([kept, part[chosen]])
    return kept


ONE_STEP = float(np.finfo(np.float32).eps)
"""From 1 to the next number of float32."""


def at_least(distance: Floats, limit: Floats, x: Floats, y: Floats) -> np.ndarray[Any, Any]:
    """Whether distances (N, M) between unit vectors reach limits (M,).

    Those so near to it that float32 cannot tell are taken again in float64.
    """
    reached: np.ndarray[Any, Any] = distance >= limit
    if x.dtype == np.float64:
        return reached
    unsure = np.abs(distance - limit) < x.shape[-1] * ONE_STEP
    if unsure.any():
        i, j = np.nonzero(unsure)
        cosine = np.einsum("pd,pd->p", x[i].astype(np.float64), y[j].astype(np.float64))
        reached[i, j] = np.maximum(1.0 - cosine, 0.0) >= limit[j]
    return reached


def distances_between(x: Floats, y: Floats) -> Floats:
    """1 - cos of unit vectors (N, D) and (M, D), never negative."""
    cosine = product(x, y.T)
    np.subtract(1.0, cosine, out=cosine)
    distance: Floats = np.maximum(cosine, 0.0, out=cosine)
    return distance


def patch_entropy(image: Any, patch: int) -> Floats:
    """Entropy of the grey values within each patch, one histogram for each row of patches."""
    image = checked_image(image)
    rows, columns = check_image(image, patch)
    batch = image.shape[:-3]
    terms = entropy_terms(patch * patch)
    h = np.empty((*batch, rows, columns))
    bins = 256 * (np.arange(columns * patch) // patch)
    for at in each_row(batch):
        for row in range(rows):
            pixels = image[at][row * patch : (row + 1) * patch, : columns * patch]
            levels = grey_levels(pixels).astype(np.int64)
            levels += bins
            counts = np.bincount(levels.reshape(-1), minlength=256 * columns)
            # Added level by level, as the reference does: patches that tie there tie here.
            h[at][row] = 0.0 - terms[counts.reshape(columns, 256).T].sum(axis=0)
    return h.reshape(*batch, rows * columns)


def checked_image(image: Any) -> Any:
    """An image as it came if it holds bytes, and otherwise as the reference lets it in."""
    refuse_kind(image, "image")
    if getattr(image, "dtype", None) == np.uint8 and image.ndim >= 3:
        return image
    return checked(image, "image", "(..., H, W, 3)")


def entropy_terms(area: int) -> Floats:
    """p log p for p = 0, 1 / area, ..., 1."""
    p = np.arange(area + 1) / float(area)
    return p * np.log(np.where(p > 0, p, 1.0))


PAYS = 1 << 30
"""N^3 of the matrices whose eigenvectors NumPy is asked for before SciPy is loaded."""

_asked = 0


def largest_eigenvectors(x: Floats, count: int) -> tuple[Floats, Floats]:
    """The largest eigenvalues (..., G) of symmetric matrices, falling, and their vectors.

    Of few, SciPy finds the vectors of no others, in a third of the time. Loading it takes as long
    as five images of 576 tokens save.
    """
    global _asked
    size = x.shape[-1]
    if 4 * count > size:
        return cast("tuple[Floats, Floats]", NotImplemented)
    if "scipy.linalg" not in sys.modules:
        _asked += x.size * size
        if _asked <= PAYS:
            return cast("tuple[Floats, Floats]", NotImplemented)
    from scipy.linalg import eigh

    batch = x.shape[:-2]
    values, vectors = np.empty((*batch, count)), np.empty((*batch, size, count))
    with alone(size**3 * WHOLE // LINKED):
        for at in each_row(batch):
            found = eigh(x[at], subset_by_index=(size - count, size - 1), check_finite=False)
            values[at], vectors[at] = found[0][::-1], found[1][:, ::-1]
    return values, vectors


def singular_values(features: Floats) -> Floats:
    """Singular values (..., min(N, D)) from the smaller Gram matrix where that is accurate.

    The eigenvalues of a Gram matrix in float64 are known to about 1e-15 of the largest, so
    singular values to 1e-15 s_1^2 / (2 s_i), and those below 3e-8 s_1 not at all. That is
    always closer than an SVD in float32, which is uncertain by 1e-7 s_1. For float64 input the
    Gram matrix is used if the smallest singular value exceeds s_1 / 1000.
    """
    batch, sizes = features.shape[:-2], features.shape[-2:]
    values = np.empty((*batch, min(sizes)), dtype=features.dtype)
    # One image after the other: what its numbers are does not depend on the others.
    for at in each_row(batch):
        values[at] = _singular_values(features[at])
    return values


def _singular_values(x: Floats) -> Floats:
    """The same of one matrix (N, D)."""
    wide = x.astype(np.float64, copy=False)
    squares = eigenvalues(product(wide.T, wide) if len(x) > x.shape[1] else product(wide, wide.T))
    if x.dtype == np.float64 and not squares[0] >= 1e-6 * squares[-1]:
        exact: Floats = np.linalg.svd(x, compute_uv=False)
        return exact
    values: Floats = np.sqrt(np.maximum(squares[::-1], 0.0))
    return values


def text_relevance(
    visual: Floats,
    text: Floats,
    text_global: Floats,
    mask: np.ndarray[Any, Any],
    temperature: float,
    keep_ratio: float,
    entropy_temperature: float,
    alpha: float,
    aggregate: Aggregate,
    sign: int,
) -> Floats:
    """Relevance of visual tokens by the "entropy" aggregate; text tokens lie along rows here."""
    if aggregate != "entropy":
        return cast("Floats", NotImplemented)
    s = product(text, np.swapaxes(visual, -1, -2))
    if sign < 0:
        np.negative(s, out=s)
    logits = s - s.max(axis=-1, keepdims=True)
    logits *= temperature
    weight = np.exp(logits)
    # All but the largest, which is 1; see `secateur.core.relevance.text_entropy`.
    np.put_along_axis(weight, logits.argmax(axis=-1)[..., None], 0.0, axis=-1)
    rest = weight.sum(axis=-1)
    h = np.log1p(rest) - np.einsum("...n,...n->...", weight, logits) / (1.0 + rest)
    kept = sharpest(h, mask, keep_ratio)
    share = softmax(np.where(kept, -h / entropy_temperature, -math.inf))
    dense = product(share[..., None, :], s)[..., 0, :]
    whole = product(visual, (sign * text_global)[..., None])[..., 0]
    relevance: Floats = alpha * whole + (1.0 - alpha) * dense
    return relevance


def smallest(x: Floats, k: int) -> Floats:
    """The k smallest entries (..., k) of the last axis, ascending, without sorting the others."""
    if k < x.shape[-1]:
        x = np.partition(x, k - 1, axis=-1)[..., :k]
    found: Floats = np.sort(x, axis=-1)
    return found
