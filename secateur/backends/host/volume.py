"""Greedy log-determinant from factors, and OTPrune's factors.

Rows of the kernel are worked out when one of them is picked, for several tokens at once: a
product with one vector takes as long as reading the factors does, one with many hardly longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from secateur.backends.host.greedy import EPSILON, Floats, Indices
from secateur.backends.lending import LINKED, WHOLE, alone, product
from secateur.core.arrays import each_row
from secateur.core.maximize import Picks
from secateur.core.objectives import LogDeterminant
from secateur.core.tolerances import SUM

Flags = np.ndarray[Any, np.dtype[np.bool_]]

AHEAD = 64
"""Tokens whose rows are worked out together at most: those with most left, soon to be picked."""
KEPT = 8 * AHEAD
"""Rows of tokens not picked yet that are kept at most."""
LEAST, MOST = 1e-100, 1e100
"""Between these the squares of float64 numbers, and sums of many, are numbers."""


def likeness_factors(x: Floats) -> Floats:
    """Y (..., N, min(N, D)) with Y Y^T = (Z Z^T)^2, where Z are features of unit channels."""
    x = x.astype(np.float64, copy=False)
    largest = np.maximum(x.max(axis=-2), -x.min(axis=-2))[..., None, :]
    zero = largest == 0
    if not ((LEAST < largest) & (largest < MOST) | zero).all():
        x = x / np.where(zero, 1.0, largest)
    length = np.sqrt(np.einsum("...nd,...nd->...d", x, x))[..., None, :]
    z: Floats = x / np.where(zero, 1.0, length)
    n, d = z.shape[-2:]
    if d >= n:
        return product(z, np.swapaxes(z, -1, -2))
    y = np.empty_like(z)
    for at in each_row(z.shape[:-2]):
        y[at] = _rooted(z[at], zero[at][0])
    return y


def _rooted(z: Floats, zero: Flags) -> Floats:
    """Z L, where L L^T is Z^T Z; `zero` (D,) says which channels are nothing but zeros."""
    squares = product(z.T, z)
    squares[zero, zero] = 1.0  # a pivot for them; it multiplies zeros
    try:
        # As of eigenvalues: threads meet at every block.
        with alone(len(squares) ** 3 * WHOLE // LINKED):
            lower = np.linalg.cholesky(squares)
    except np.linalg.LinAlgError:
        # No full rank, as far as rounding lets one see.
        triangle: Any = np.linalg.qr(z, mode="r")
        return product(z, triangle.T)
    # SciPy takes a tenth of a second to load, which no other choice waits for.
    from scipy.linalg.blas import dtrmm

    rooted: Floats = dtrmm(1.0, lower.T, z.T).T
    return rooted


class Steps(NamedTuple):
    """What is done at every pick, whole arrays at a time or in loops."""

    most_left: Callable[[Floats, Flags, float], int]
    """The lowest open place of the largest number, those of a share of it included."""
    explain: Callable[[Floats, int, int, Floats], None]
    """Of a factor whose row `rank` is the kernel's, of a pick, make that row the factor's, and
    take from what is left what it explains; 1 never is."""


def most_left(left: Floats, opened: Flags, level: float) -> int:
    """See `Steps.most_left`."""
    return int(np.argmax(opened & (left >= float(left[opened].max()) * level)))


def explain(factor: Floats, rank: int, pick: int, left: Floats) -> None:
    """See `Steps.explain`."""
    row = factor[rank]
    row -= factor[:rank, pick] @ factor[:rank]
    row /= math.sqrt(max(left[pick], 1.0))
    # What is left of I + M is at least 1 whatever was explained; rounding may say less, or nothing
    # where squares leave the range.
    with np.errstate(over="ignore", invalid="ignore"):
        np.fmax(left - row * row, 1.0, out=left)


ARRAYS = Steps(most_left, explain)


def determinant_factors(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of I + gamma Y Y^T from factors (..., N, D): O(k N (D + k))."""
    return by_steps(f, k, ARRAYS)


def by_steps(f: LogDeterminant, k: Any, steps: Steps) -> Picks:
    """Greedy log-determinant of each image of a batch."""
    factors: Any = f.factors
    batch, opened = f.batch_shape, f.open()
    budgets = np.broadcast_to(np.asarray(k, dtype=np.int64), batch)
    longest = int(budgets.max())
    indices = np.full((*batch, longest), -1, dtype=np.int64)
    gains = np.zeros((*batch, longest))
    bound = np.empty(batch)
    for position in each_row(batch):
        budget = int(budgets[position])
        y = factors[position].astype(np.float64, copy=False)
        picks, gained, limit = _greedy(y, f.gamma, opened[position].copy(), budget, steps)
        indices[position][:budget], gains[position][:budget] = picks, gained
        bound[position] = limit
    return Picks(indices, gains, gains.sum(axis=-1), bound)


def _greedy(
    y: Floats, gamma: float, opened: Flags, k: int, steps: Steps
) -> tuple[Indices, Floats, float]:
    """k picks of one image with their gains, and the smallest bound on the best value."""
    n = len(y)
    left = 1.0 + gamma * np.einsum("ij,ij->i", y, y)
    if np.isnan(left).any():
        raise ValueError(
            "features or factors: contain NaN or infinity, so that no volume is largest"
        )
    selectable, level = opened.copy(), math.exp(-SUM * n * EPSILON)
    factor = np.empty((k, n))
    picks, gains = np.empty(k, dtype=np.int64), np.empty(k)
    known: dict[int, Floats] = {}
    ahead = min(AHEAD, 1 + k // 4, n)
    total, bound = 0.0, math.inf
    for step in range(k):
        bound = min(bound, total + _largest(left, selectable, k))
        pick = steps.most_left(left, opened, level)
        if pick not in known:
            _look_ahead(known, y, pick, np.where(opened, left, 0.0), ahead)
        opened[pick] = False
        picks[step], gains[step] = pick, math.log(max(left[pick], 1.0))
        row = factor[step]
        np.multiply(known.pop(pick), gamma, out=row)
        row[pick] += 1.0
        steps.explain(factor, step, pick, left)
        total += float(gains[step])
    return picks, gains, min(bound, total + _largest(left, selectable, k))


def _look_ahead(known: dict[int, Floats], y: Floats, pick: int, left: Floats, count: int) -> None:
    """Add the rows of Y Y^T of a pick, and of the tokens that have most left beside it."""
    if len(known) > KEPT - AHEAD:
        known.clear()
    most = np.argpartition(left, -count)[-count:]
    ahead = [pick, *(int(j) for j in most if left[j] > 0.0 and j != pick and int(j) not in known)]
    known.update(zip(ahead, product(y[ahead], y.T), strict=True))


def _largest(left: Floats, selectable: Flags, k: int) -> float:
    """The sum of the k largest gains among selectable tokens."""
    inside = left[selectable]
    top = inside if k >= len(inside) else np.partition(inside, len(inside) - k)[-k:]
    return float(np.log(np.maximum(top, 1.0)).sum())
