"""The NumPy driver: the core's hot operations in whole-array steps, on the host.

It serves every NumPy array and SciPy sparse matrix, with or without Numba, whose driver asks
this one for what it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from secateur.core.arrays import checked, each_row, is_sparse, widened
from secateur.core.maximize import Picks
from secateur.core.measures import check_image, grey_levels
from secateur.core.relevance import Aggregate, sharpest, softmax

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Solve = Callable[[tuple[int, ...], int], tuple[Indices, Floats, float, float]]

EPSILON = float(np.finfo(np.float64).eps)
BLOCK = 1 << 18
"""Numbers worked on at once, so that temporaries stay in the processor's cache."""
NEAR_BYTES = 96 << 20
"""What facility location from features may note down about near pairs."""


def unit(x: Floats) -> Floats:
    """Vectors (..., D) scaled to length one; a zero vector stays zero."""
    largest = np.maximum(x.max(axis=-1), -x.min(axis=-1))[..., None]
    largest[largest == 0] = 1
    out = x / largest
    length = np.sqrt(np.einsum("...d,...d->...", out, out))[..., None]
    length[length == 0] = 1
    out /= length
    return out


def shifted(cosine: Floats) -> Floats:
    """(1 + cos) / 2 within [0, 1], written over the cosines."""
    cosine *= 0.5
    cosine += 0.5
    np.maximum(cosine, 0.0, out=cosine)
    return np.minimum(cosine, 1.0, out=cosine)


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


class Source(Protocol):
    """Similarities s_ij of `size` tokens, by columns j and rows i."""

    size: int
    reach: float
    """How far one entry asked for twice may differ."""

    def gains(self, w: Floats) -> Floats:
        """The gains (N,) of all tokens on top of none."""

    def columns(self, j: Indices) -> Floats:
        """Entries (M, N) of the columns at `j` (M,)."""

    def rows(self, i: Indices) -> Floats:
        """Entries (M, N) of the rows at `i` (M,), to be overwritten at will."""


class Dense:
    """A matrix (N, N)."""

    reach = 0.0

    def __init__(self, matrix: Floats) -> None:
        self._matrix = matrix
        self.size = len(matrix)

    def gains(self, w: Floats) -> Floats:
        g = np.zeros(self.size)
        for part in spans(self.size, self.size):
            g += w[part] @ np.maximum(self._matrix[part], 0.0).astype(np.float64, copy=False)
        return g

    def columns(self, j: Indices) -> Floats:
        return self._matrix[:, j].T

    def rows(self, i: Indices) -> Floats:
        return self._matrix[i]


class Cosine:
    """(1 + cos) / 2 of features (N, D)."""

    def __init__(self, features: Floats) -> None:
        self.directions = unit(features)
        self.size = len(features)
        self.reach = 8 * float(np.finfo(features.dtype).eps)

    def gains(self, w: Floats) -> Floats:
        # sum_i w_i (1 + x_i x_j) / 2: no pair of tokens has to be looked at.
        mean = np.zeros(self.directions.shape[1])
        for part in spans(self.size, len(mean)):
            mean += w[part] @ self.directions[part]
        g = np.empty(self.size)
        for part in spans(self.size, len(mean)):
            g[part] = self.directions[part] @ mean
        return 0.5 * (g + w.sum())

    def columns(self, j: Indices) -> Floats:
        return shifted(self.directions[j] @ self.directions.T)

    rows = columns


def spans(count: int, width: int) -> Iterator[slice]:
    """Slices that cover `count` rows of `width` numbers, each small enough to work on."""
    step = max(1, BLOCK // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


class Served:
    r"""How well tokens are served, and what every candidate would add: greedy's whole state.

    Coverage :math:`m_i = \max_{j \in S} s_{ij}` (at least 0), gains
    :math:`g_j = \sum_i w_i \max(0, s_{ij} - m_i)`. A pick raises some m_i, and only those rows
    change gains: about five times N rows over all picks of a photograph, not k N.
    """

    def __init__(self, source: Source, weights: Floats | None) -> None:
        n = source.size
        self.source = source
        self.w = np.ones(n) if weights is None else weights.astype(np.float64, copy=False)
        self.m = np.zeros(n)
        self.g = source.gains(self.w)
        # The gains last worked out exactly; one that still equals its g_j needs no second look.
        self._exact = self.g.copy() if source.reach == 0.0 else np.full(n, np.nan)
        self._largest = float(self.g.max())
        self._terms = n
        self._reach = source.reach * float(self.w.sum())

    @property
    def slack(self) -> float:
        """How far a g_j may be from exact: every term added to it was rounded."""
        return 4 * EPSILON * self._terms * self._largest + self._reach

    def largest(self, k: int) -> float:
        """The sum of the k largest gains."""
        n = len(self.g)
        top = self.g if k == n else np.partition(self.g, n - k)[n - k :]
        return float(np.maximum(top, 0.0).sum())

    def take(self) -> tuple[int, float]:
        """Pick the token of largest gain, ties to the lowest index; its gain, exactly."""
        g, n = self.g, len(self.g)
        best = float(g.max())
        hopeful = np.flatnonzero(g >= best - 2.0 * self.slack - 4.0 * n * EPSILON * abs(best))
        stale = hopeful[g[hopeful] != self._exact[hopeful]]
        column = None
        for part in spans(len(stale), n):
            entries = self.source.columns(stale[part])
            g[stale[part]] = self._gains(entries)
            if len(stale) == 1:
                column = entries[0]
        self._exact[stale] = g[stale]
        exact = g[hopeful]
        best = float(exact.max())
        place = int(np.argmax(exact >= best - 4.0 * n * EPSILON * abs(best)))
        pick, gain = int(hopeful[place]), float(exact[place])
        if column is None:
            column = self.source.columns(hopeful[place : place + 1])[0]
        improved = np.flatnonzero(column > self.m)
        self._terms += len(improved)
        low = self.m[improved]
        self.m[improved] = column[improved]
        g[pick] = -math.inf
        self.lower(improved, low)
        return pick, gain

    def _gains(self, columns: Floats) -> Floats:
        return np.maximum(columns - self.m, 0.0) @ self.w

    def lower(self, i: Indices, low: Floats) -> None:
        """Take from all gains what rows `i` no longer give, served by `low` until now."""
        n = len(self.g)
        for part in spans(len(i), n):
            s = self.source.rows(i[part])
            self.lower_by(s, i[part], low[part])

    def lower_by(self, s: Floats, i: Indices, low: Floats) -> None:
        """The same for rows whose entries s (M, N) are at hand, and overwritten."""
        # max(0, s - low) - max(0, s - high) = min(max(s, low), high) - low, and neither
        # bound is rounded in the dtype of s, where both come from.
        np.maximum(s, low.astype(s.dtype)[:, None], out=s)
        np.minimum(s, self.m[i].astype(s.dtype)[:, None], out=s)
        w = self.w[i]
        self.g -= w @ s.astype(np.float64, copy=False) - float(w @ low)


class NearlyServed(Served):
    """The same, noting down rows that few candidates could still serve better.

    As m_i rises, the candidates with s_ij > m_i, the only ones whose gains row i will ever
    change again, become few. Once they fit, they are listed, and the row is never computed
    again: about half of the rows touched, and nearly all after the first few picks.
    """

    def __init__(self, source: Source, weights: Floats | None) -> None:
        super().__init__(source, weights)
        n = source.size
        room = max(1, min(n, NEAR_BYTES // (n * 8)))
        self.near = np.empty((n, room), dtype=np.int32)
        self.level = np.empty((n, room), dtype=np.float32 if source.reach > 1e-12 else np.float64)
        self.count = np.full(n, -1, dtype=np.int64)

    def lower(self, i: Indices, low: Floats) -> None:
        listed = self.count[i] >= 0
        for part in spans(len(i), len(self.g) // 16 + 1):
            known = listed[part]
            self.lower_listed(i[part][known], low[part][known])
        super().lower(i[~listed], low[~listed])

    def lower_listed(self, i: Indices, low: Floats) -> None:
        """Take what listed rows no longer give."""
        ranges, count = self.near.shape[1] * i, self.count[i]
        lower_by_lists(self.g, self.near, self.level, ranges, count, self.w[i], low, self.m[i])

    def lower_by(self, s: Floats, i: Indices, low: Floats) -> None:
        room = self.near.shape[1]
        high = self.m[i].astype(s.dtype)[:, None]
        # A sample of the candidates tells which rows are worth counting.
        sample = s[:, :: max(1, s.shape[1] // 256)] > high
        few = np.flatnonzero(sample.mean(axis=1) <= 1.5 * room / s.shape[1])
        better = s[few] > high[few]
        count = np.count_nonzero(better, axis=1)
        fits = count <= room
        few, better, count = few[fits], better[fits], count[fits]
        row, near = np.nonzero(better)
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        self.near[i[few][row], place] = near
        self.level[i[few][row], place] = s[few[row], near]
        self.count[i[few]] = count
        super().lower_by(s, i, low)


def lower_by_lists(
    g: Floats,
    near: Indices,
    level: Floats,
    starts: Indices,
    count: Indices,
    w: Floats,
    low: Floats,
    high: Floats,
) -> None:
    """Take from gains what rows, listed at `starts` in flat arrays, no longer give."""
    total = int(count.sum())
    at = np.repeat(starts - (np.cumsum(count) - count), count) + np.arange(total)
    lost = np.maximum(level.reshape(-1)[at].astype(np.float64), np.repeat(low, count))
    np.minimum(lost, np.repeat(high, count), out=lost)
    lost -= np.repeat(low, count)
    lost *= np.repeat(w, count)
    g -= np.bincount(near.reshape(-1)[at], lost, minlength=len(g))


class Listed(Served):
    """The same from a CSR matrix: its rows are lists already."""

    def __init__(self, matrix: Any, weights: Floats | None) -> None:
        self._rows = matrix
        super().__init__(Sparse(matrix), weights)

    def lower(self, i: Indices, low: Floats) -> None:
        rows = self._rows
        starts = rows.indptr[i].astype(np.int64)
        count = rows.indptr[i + 1] - starts
        # Entries at or below the old coverage are clipped away like absent ones.
        lower_by_lists(self.g, rows.indices, rows.data, starts, count, self.w[i], low, self.m[i])


class Sparse:
    """A SciPy CSR matrix (N, N) in canonical form; absent entries are 0."""

    reach = 0.0

    def __init__(self, matrix: Any) -> None:
        self._rows = matrix
        self._columns = matrix.tocsc()
        self.size = int(matrix.shape[0])

    def gains(self, w: Floats) -> Floats:
        rows = self._rows
        w = np.repeat(w, np.diff(rows.indptr))
        gains = np.bincount(rows.indices, w * np.maximum(rows.data, 0.0), minlength=self.size)
        return gains.astype(np.float64, copy=False)

    def columns(self, j: Indices) -> Floats:
        dense: Floats = self._columns[:, j].T.toarray()
        return dense

    def rows(self, i: Indices) -> Floats:
        dense: Floats = self._rows[i].toarray()
        return dense


def greedy(state: Served, k: int) -> tuple[Indices, Floats, float, float]:
    """k picks with their gains, the value, and the smallest bound on the best value."""
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    total, bound = 0.0, math.inf
    for step in range(k):
        bound = min(bound, total + k * state.slack + state.largest(k))
        picks[step], gains[step] = state.take()
        total += float(gains[step])
    bound = min(bound, total + k * state.slack + state.largest(k))
    return picks, gains, float(state.w @ state.m), bound


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


def facility_location(similarity: Any, weights: Floats | None, k: Any) -> Picks:
    """Greedy facility location from a matrix (..., N, N), dense or CSR."""
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
    return features.shape[-2] <= 4 * features.shape[-1]


def facility_location_features(features: Floats, weights: Floats | None, k: Any) -> Picks:
    """Greedy facility location on (1 + cos) / 2 of features (..., N, D), in O(N D) memory."""

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        w = weights_at(weights, at)
        if small_enough(features):
            return greedy(Served(Dense(cosine_similarity(features[at])), w), budget)
        return greedy(NearlyServed(Cosine(features[at]), w), budget)

    return over_batch(features.shape[:-2], k, solve)


def determinant(kernel: Floats, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N) by incremental Cholesky."""

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        picks, gains = _explain(kernel[at], budget)
        return picks, gains, float(gains.sum()), math.inf

    return over_batch(kernel.shape[:-2], k, solve)


def _explain(kernel: Floats, k: int) -> tuple[Indices, Floats]:
    n = len(kernel)
    left = np.diagonal(kernel).astype(np.float64)
    noise = 16 * float(np.finfo(kernel.dtype).eps) * left
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
    """Distances that differ by less than this share of the larger count as equal."""

    def to(self, j: Indices) -> Floats:
        """Distances (M, N) of all tokens i to tokens `j` (M,), to be overwritten at will."""


class GivenDistances:
    """A matrix (N, N)."""

    margin = 0.0

    def __init__(self, matrix: Floats) -> None:
        self._matrix = matrix
        self.size = len(matrix)

    def to(self, j: Indices) -> Floats:
        return self._matrix[:, j].T


class CosineDistances:
    """1 - cos of features (N, D)."""

    def __init__(self, features: Floats) -> None:
        self._source = Cosine(features)
        self.size = len(features)
        self.margin = self._source.reach

    def to(self, j: Indices) -> Floats:
        s = self._source.columns(j)
        np.subtract(1.0, s, out=s)
        s *= 2.0
        return s


def nearest_neighbour(distances: Distances) -> Floats:
    """Distance of every token to the nearest other one."""
    n = distances.size
    nearest = []
    for part in spans(n, n):
        j = np.arange(part.start, part.stop)
        d = distances.to(j)
        d[j - part.start, j] = math.inf
        nearest.append(d.min(axis=1))
    return np.concatenate(nearest)


def farthest(distances: Distances, k: int, start: int | None) -> tuple[Indices, Floats, float]:
    """Farthest-first: picks, their gains, and the smallest distance between two of them."""
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    opened = np.ones(distances.size, dtype=bool)
    nearest = nearest_neighbour(distances)
    for step in range(k):
        if step == 0 and start is not None:
            pick = start
        else:
            masked = np.where(opened, nearest, -math.inf)
            best = float(masked.max())
            least = best if math.isinf(best) else best - distances.margin * best
            pick = int(np.argmax(masked >= least))
        picks[step], gains[step] = pick, nearest[pick]
        opened[pick] = False
        d = distances.to(np.asarray([pick]))[0]
        nearest = d if step == 0 else np.minimum(nearest, d)
    return picks, gains, smallest_between(distances, picks)


def smallest_between(distances: Distances, picks: Indices) -> float:
    """The smallest distance between two picks."""
    if len(picks) < 2:
        return math.inf
    smallest = math.inf
    for part in spans(len(picks), distances.size):
        d = distances.to(picks[part])[:, picks]
        d[np.arange(len(d)), np.arange(part.start, part.stop)] = math.inf
        smallest = min(smallest, float(d.min()))
    return smallest


def farthest_first(distance: Floats, k: Any, start: int | None = None) -> Picks:
    """Farthest-first over distances (..., N, N)."""
    return over_batch(
        distance.shape[:-2],
        k,
        lambda at, budget: (*farthest(GivenDistances(distance[at]), budget, start), math.inf),
    )


def farthest_first_features(features: Floats, k: Any, start: int | None = None) -> Picks:
    """Farthest-first under 1 - cos of features (..., N, D), in O(N D) memory."""
    return over_batch(
        features.shape[:-2],
        k,
        lambda at, budget: (*farthest(CosineDistances(features[at]), budget, start), math.inf),
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
    kept = np.empty(0, dtype=np.int64)
    start = 0
    while start < len(order) and len(kept) < k:
        part = order[start : start + max(32, k - len(kept))]
        start += len(part)
        tau = np.minimum(tau_max, np.arange(1, len(kept) + 1) * step)
        near = distances_between(x[part], x[kept]) < tau
        part = part[~near.any(axis=1)]
        among = distances_between(x[part], x[part])
        remains = np.ones(len(part), dtype=bool)
        chosen = []
        for place in range(len(part)):
            if remains[place] and len(kept) + len(chosen) < k:
                chosen.append(place)
                remains &= among[place] >= min(tau_max, (len(kept) + len(chosen)) * step)
        kept = np.concatenate([kept, part[chosen]])
    return kept


def distances_between(x: Floats, y: Floats) -> Floats:
    """1 - cos of unit vectors (N, D) and (M, D), never negative."""
    cosine = x @ y.T
    np.subtract(1.0, cosine, out=cosine)
    return np.maximum(cosine, 0.0, out=cosine)


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
    return np.sqrt(np.maximum(squares, 0.0)).astype(features.dtype, copy=False)


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
        return NotImplemented
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
        return NotImplemented
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
