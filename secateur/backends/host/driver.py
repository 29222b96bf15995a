"""The NumPy driver: the core's hot operations in whole-array steps, on the host.

It serves every NumPy array and SciPy sparse matrix, with or without Numba, whose driver asks
this one for what it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np

from secateur.backends.host.greedy import (
    BLOCK,
    COSINE_ROUNDING,
    EPSILON,
    PRODUCT,
    Cosine,
    Dense,
    Floats,
    Indices,
    Listed,
    NearlyServed,
    Served,
    greedy,
    shifted,
    spans,
)
from secateur.core.arrays import checked, each_row, is_sparse, widened
from secateur.core.maximize import Picks
from secateur.core.measures import check_image, grey_levels
from secateur.core.objectives import Dispersion, FacilityLocation, LogDeterminant
from secateur.core.relevance import Aggregate, sharpest, softmax

__all__ = [
    "attention_received",
    "cosine_similarity",
    "determinant",
    "facility_location",
    "facility_location_features",
    "farthest_first",
    "farthest_first_features",
    "patch_entropy",
    "singular_values",
    "text_relevance",
    "threshold_scan",
    "unit",
]
"""The operations it offers."""

Solve = Callable[[tuple[int, ...], int], tuple[Indices, Floats, float, float]]


def unit(x: Floats) -> Floats:
    """Vectors (..., D) scaled to length one; a zero vector stays zero."""
    largest = np.maximum(x.max(axis=-1), -x.min(axis=-1))[..., None]
    largest[largest == 0] = 1
    out: Floats = x / largest
    length = np.sqrt(np.einsum("...d,...d->...", out, out))[..., None]
    length[length == 0] = 1
    out /= length
    return out


def cosine_similarity(features: Floats) -> Floats:
    """Similarities (1 + cos) / 2, shape (..., N, N), with one N x N array and no other."""
    directions = unit(features)
    return shifted(directions @ np.swapaxes(directions, -1, -2))


def over_batch(batch: tuple[int, ...], k: Any, solve: Solve, workers: int = 1) -> Picks:
    """Answers of `solve(position, budget)` for every row of a batch, padded together."""
    budgets = np.broadcast_to(np.asarray(k, dtype=np.int64), batch)
    longest = int(budgets.max())
    indices = np.full((*batch, longest), -1, dtype=np.int64)
    gains = np.zeros((*batch, longest))
    value = np.zeros(batch)
    bound = np.full(batch, math.inf)

    def one(position: tuple[int, ...]) -> None:
        budget = int(budgets[position])
        picks, gained, total, limit = solve(position, budget)
        indices[position][:budget] = picks
        gains[position][:budget] = gained
        value[position] = total
        bound[position] = limit

    if workers > 1 and len(batch) > 0:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, each_row(batch)))
    else:
        for position in each_row(batch):
            one(position)
    return Picks(indices, gains, value, bound)


def weights_at(weights: Floats | None, position: tuple[int, ...]) -> Floats | None:
    """The weights of one image."""
    return None if weights is None else weights[position]


def canonical(matrix: Any) -> Any:
    """A CSR matrix with floating entries, each stored once."""
    matrix = matrix.tocsr()
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
        lambda at, budget: greedy(Served(Dense(similarity[at]), weights_at(weights, at)), budget),
    )


def small_enough(features: Floats) -> bool:
    """Whether a matrix of similarities takes no more than four times the features' memory."""
    return bool(features.shape[-2] <= 4 * features.shape[-1])


def facility_location_features(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on (1 + cos) / 2 of features (..., N, D), in O(N D) memory."""
    features, weights = f.features, f.weights

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        w = weights_at(weights, at)
        if small_enough(features):
            matrix = cosine_similarity(features[at])
            return greedy(Served(Dense(matrix, COSINE_ROUNDING), w), budget)
        return greedy(NearlyServed(Cosine(unit(features[at])), w), budget)

    return over_batch(features.shape[:-2], k, solve)


def determinant(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N) by incremental Cholesky."""
    kernel: Any = f.kernel

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        picks, gains = _explain(kernel[at], budget)
        return picks, gains, float(gains.sum()), math.inf

    return over_batch(kernel.shape[:-2], k, solve)


def _explain(kernel: Floats, k: int) -> tuple[Indices, Floats]:
    n = len(kernel)
    left = np.diagonal(kernel).astype(np.float64)
    noise = 128 * float(np.finfo(kernel.dtype).eps) * left
    opened = np.ones(n, dtype=bool)
    factor = np.empty((k, n))
    rank = 0
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    for step in range(k):
        pick = lowest_of_largest(np.where(left > noise, left, 0.0), opened)
        opened[pick] = False
        picks[step] = pick
        if left[pick] <= noise[pick]:
            gains[step] = -math.inf
            continue
        gains[step] = math.log(left[pick])
        row = factor[rank]
        row[:] = kernel[pick]
        row -= factor[:rank, pick] @ factor[:rank]
        row /= math.sqrt(left[pick])
        left -= row * row
        rank += 1
    return picks, gains


def lowest_of_largest(left: Floats, opened: np.ndarray[Any, Any]) -> int:
    """The lowest open place whose log equals the largest but for rounding."""
    left = np.where(opened, left, -1.0)
    best = float(left.max())
    return int(np.argmax(left >= best * math.exp(-4.0 * len(left) * EPSILON)))


class Distances(Protocol):
    """Distances d_ij of `size` tokens."""

    size: int
    margin: float
    """Distances that differ by less than this count as equal."""

    def to(self, j: int) -> Floats:
        """Distances (N,) of all tokens to one."""

    def nearest(self) -> Floats:
        """Distance (N,) of every token to the nearest other one."""

    def among(self, picks: Indices) -> Floats:
        """Distances (M, M) of the picks to each other."""


class GivenDistances:
    """A matrix (N, N)."""

    margin = 0.0

    def __init__(self, matrix: Floats) -> None:
        self._matrix = matrix
        self.size = len(matrix)

    def to(self, j: int) -> Floats:
        column: Floats = self._matrix[:, j]
        return column

    def nearest(self) -> Floats:
        nearest = np.full(self.size, math.inf, dtype=self._matrix.dtype)
        for part in spans(self.size, self.size):
            d = self._matrix[part].copy()
            d[np.arange(len(d)), np.arange(part.start, part.stop)] = math.inf
            np.minimum(nearest, d.min(axis=0), out=nearest)
        return nearest

    def among(self, picks: Indices) -> Floats:
        block: Floats = self._matrix[np.ix_(picks, picks)]
        return block


class CosineDistances:
    """1 - cos of unit vectors (N, D), in float64: cosines decide picks."""

    margin = 16 * EPSILON

    def __init__(self, directions: Floats) -> None:
        self._x = directions
        self.size = len(directions)

    def to(self, j: int) -> Floats:
        return apart(self._x @ self._x[j])

    def nearest(self) -> Floats:
        # Half of the products: every block with itself and with what follows. The largest
        # cosine belongs to the smallest distance.
        largest = np.full(self.size, -math.inf, dtype=self._x.dtype)
        for part in spans(self.size, self.size, PRODUCT):
            cosine = self._x[part] @ self._x[part.start :].T
            own = np.arange(len(cosine))
            cosine[own, own] = -math.inf
            np.maximum(largest[part], cosine.max(axis=1), out=largest[part])
            rest = largest[part.start :]
            np.maximum(rest, cosine.max(axis=0), out=rest)
        return apart(largest)

    def among(self, picks: Indices) -> Floats:
        return apart(self._x[picks] @ self._x[picks].T)


def apart(cosine: Floats) -> Floats:
    """1 - cos within [0, 2], written over the cosines, rounded as 2 (1 - (1 + cos) / 2)."""
    s = shifted(cosine)
    np.subtract(1.0, s, out=s)
    s *= 2.0
    return s


def farthest(distances: Distances, k: int, start: int | None) -> tuple[Indices, Floats, float]:
    """Farthest-first: picks, their gains, and the smallest distance between two of them."""
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    opened = np.ones(distances.size, dtype=bool)
    nearest = distances.nearest() if start is None else distances.to(start)
    for step in range(k):
        if step == 0 and start is not None:
            pick = start
            gains[0] = np.delete(nearest, start).min(initial=math.inf)
        else:
            masked = np.where(opened, nearest, -math.inf)
            best = float(masked.max())
            least = best if math.isinf(best) else best - distances.margin
            pick = int(np.argmax(masked >= least))
            gains[step] = nearest[pick]
        picks[step] = pick
        opened[pick] = False
        d = distances.to(pick)
        nearest = d if step == 0 else np.minimum(nearest, d)
    return picks, gains, smallest_between(distances, picks)


def smallest_between(distances: Distances, picks: Indices) -> float:
    """The smallest distance between two picks."""
    if len(picks) < 2:
        return math.inf
    d = distances.among(picks)
    np.fill_diagonal(d, math.inf)
    return float(d.min())


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
    return over_batch(
        features.shape[:-2],
        k,
        lambda at, budget: (
            *farthest(CosineDistances(unit(features[at].astype(np.float64))), budget, start),
            math.inf,
        ),
    )


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
    x = unit(x)
    rounding = 8 * float(np.finfo(x.dtype).eps)
    kept = np.empty(0, dtype=np.int64)
    start = 0
    while start < len(order) and len(kept) < k:
        part = order[start : start + max(32, k - len(kept))]
        start += len(part)
        tau = np.minimum(tau_max, np.arange(1, len(kept) + 1) * step)
        near = distances_between(x[part], x[kept]) < tau - rounding
        part = part[~near.any(axis=1)]
        among = distances_between(x[part], x[part])
        remains = np.ones(len(part), dtype=bool)
        chosen: list[int] = []
        for place in range(len(part)):
            if remains[place] and len(kept) + len(chosen) < k:
                chosen.append(place)
                tau_next = min(tau_max, (len(kept) + len(chosen)) * step)
                remains &= among[place] >= tau_next - rounding
        kept = np.concatenate([kept, part[chosen]])
    return kept


def distances_between(x: Floats, y: Floats) -> Floats:
    """1 - cos of unit vectors (N, D) and (M, D), never negative."""
    cosine = x @ y.T
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
    if getattr(image, "dtype", None) == np.uint8 and image.ndim >= 3:
        return image
    return checked(image, "image", "(..., H, W, 3)")


def entropy_terms(area: int) -> Floats:
    """p log p for p = 0, 1 / area, ..., 1."""
    p = np.arange(area + 1) / float(area)
    return p * np.log(np.where(p > 0, p, 1.0))


def singular_values(features: Floats) -> Floats:
    """Singular values (..., min(N, D)) from the smaller Gram matrix where that is accurate.

    The eigenvalues of a Gram matrix in float64 are known to about 1e-15 of the largest, so
    singular values to 1e-15 s_1^2 / (2 s_i), and those below 3e-8 s_1 not at all. That is
    always closer than an SVD in float32, which is uncertain by 1e-7 s_1. For float64 input the
    Gram matrix is used if the smallest singular value exceeds s_1 / 1000.
    """
    wide = features.astype(np.float64, copy=False)
    turned = np.swapaxes(wide, -1, -2)
    tall = features.shape[-2] > features.shape[-1]
    squares = np.linalg.eigvalsh(turned @ wide if tall else wide @ turned)[..., ::-1]
    if features.dtype == np.float64 and not np.all(squares[..., -1] >= 1e-6 * squares[..., 0]):
        exact: Floats = np.linalg.svd(features, compute_uv=False)
        return exact
    values: Floats = np.sqrt(np.maximum(squares, 0.0)).astype(features.dtype, copy=False)
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
    s = text @ np.swapaxes(visual, -1, -2)
    if sign < 0:
        np.negative(s, out=s)
    logits = s - s.max(axis=-1, keepdims=True)
    logits *= temperature
    weight = np.exp(logits)
    total = weight.sum(axis=-1)
    h = np.log(total) - np.einsum("...n,...n->...", weight, logits) / total
    kept = sharpest(h, mask, keep_ratio)
    share = softmax(np.where(kept, -h / entropy_temperature, -math.inf))
    dense = (share[..., None, :] @ s)[..., 0, :]
    whole = (visual @ (sign * text_global)[..., None])[..., 0]
    relevance: Floats = alpha * whole + (1.0 - alpha) * dense
    return relevance


def attention_received(
    queries: Floats,
    keys: Floats,
    *,
    scale: float | None = None,
    query_weights: Floats | None = None,
    key_mask: np.ndarray[Any, Any] | None = None,
    positions: Indices | None = None,
) -> Floats:
    """Attention each key receives; blocks of weights that stay in cache, keys seen only."""
    queries, keys = widened(queries), widened(keys)
    *batch, heads, count, size = queries.shape
    groups, length = keys.shape[-3:-1]
    if heads % groups:
        return cast("Floats", NotImplemented)
    factor = 1.0 / math.sqrt(size) if scale is None else scale
    queries = queries.reshape(*batch, groups, heads // groups, count, size)
    received = np.zeros((*batch, length))
    step = max(1, BLOCK // (heads * length))
    for at in each_row(tuple(batch)):
        turned = np.swapaxes(keys[at], -1, -2)[:, None]
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            last = None if positions is None else positions[at][part]
            seen = length if last is None else min(length, max(0, int(last.max()) + 1))
            logits = (factor * queries[at][..., part, :]) @ turned[..., :seen]
            if last is not None:
                logits[..., np.arange(seen) > last[:, None]] = -math.inf
            if key_mask is not None:
                logits[..., ~key_mask[at][:seen]] = -math.inf
            peak = logits.max(axis=-1, keepdims=True, initial=-math.inf)
            # A query that sees nothing gives nothing.
            peak[peak == -math.inf] = 0.0
            logits -= peak
            weight = np.exp(logits, out=logits)
            total = weight.sum(axis=-1)
            total[total == 0.0] = 1.0
            share = 1.0 / (heads * total)
            if query_weights is not None:
                share = share * query_weights[at][part]
            received[at][:seen] += share.reshape(-1) @ weight.reshape(-1, seen)
    return received.astype(queries.dtype, copy=False)


def smallest(x: Floats, k: int) -> Floats:
    """The k smallest entries (..., k) of the last axis, ascending, without sorting the others."""
    if k < x.shape[-1]:
        x = np.partition(x, k - 1, axis=-1)[..., :k]
    found: Floats = np.sort(x, axis=-1)
    return found
