"""Greedy log-determinant from factors, and OTPrune's factors.

Rows of the kernel are worked out when one of them is picked, for several tokens at once: a
product with one vector takes as long as reading the factors does, one with many hardly longer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.linalg.blas import dtrmm

from secateur.backends.host.greedy import EPSILON, Floats, Indices
from secateur.backends.lending import product
from secateur.core.arrays import each_row
from secateur.core.maximize import Picks
from secateur.core.objectives import LogDeterminant
from secateur.core.tolerances import SUM

AHEAD = 32
"""Tokens whose rows are worked out together: those with most left, most of which are soon picked."""
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


def _rooted(z: Floats, zero: np.ndarray[Any, Any]) -> Floats:
    """Z L, where L L^T is Z^T Z; `zero` (D,) says which channels are nothing but zeros."""
    squares = product(z.T, z)
    squares[zero, zero] = 1.0  # a pivot for them; it multiplies zeros
    try:
        lower = np.linalg.cholesky(squares)
    except np.linalg.LinAlgError:
        # No full rank, as far as rounding lets one see.
        return product(z, np.linalg.qr(z, mode="r").T)
    rooted: Floats = dtrmm(1.0, lower.T, z.T).T
    return rooted


def determinant_factors(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of I + gamma Y Y^T from factors (..., N, D): O(k N (D + k))."""
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
        picks, gained, limit = _explain(y, f.gamma, opened[position].copy(), budget)
        indices[position][:budget], gains[position][:budget] = picks, gained
        bound[position] = limit
    return Picks(indices, gains, gains.sum(axis=-1), bound)


def _explain(
    y: Floats, gamma: float, opened: np.ndarray[Any, Any], k: int
) -> tuple[Indices, Floats, float]:
    """k picks of one image with their gains, and the smallest bound on the best value."""
    n = len(y)
    left = 1.0 + gamma * np.einsum("ij,ij->i", y, y)
    selectable, level = opened.copy(), math.exp(-SUM * n * EPSILON)
    factor = np.empty((k, n))
    picks, gains = np.empty(k, dtype=np.int64), np.empty(k)
    known: dict[int, Floats] = {}
    total, bound = 0.0, math.inf
    for step in range(k):
        bound = min(bound, total + _largest(left, selectable, k))
        best = float(left[opened].max())
        pick = int(np.argmax(opened & (left >= best * level)))
        if pick not in known:
            _look_ahead(known, y, pick, np.where(opened, left, 0.0))
        opened[pick] = False
        picks[step], gains[step] = pick, math.log(max(left[pick], 1.0))
        row = factor[step]
        np.multiply(known.pop(pick), gamma, out=row)
        row[pick] += 1.0
        row -= factor[:step, pick] @ factor[:step]
        row /= math.sqrt(max(left[pick], 1.0))
        # What is left of I + M is at least 1 whatever was explained; rounding may say less.
        left = np.maximum(left - row * row, 1.0)
        total += float(gains[step])
    return picks, gains, min(bound, total + _largest(left, selectable, k))


def _look_ahead(known: dict[int, Floats], y: Floats, pick: int, left: Floats) -> None:
    """Add the rows of Y Y^T of a pick, and of the tokens that have most left beside it."""
    if len(known) > KEPT - AHEAD:
        known.clear()
    most = np.argpartition(left, -min(AHEAD, len(left)))[-AHEAD:]
    ahead = [pick, *(int(j) for j in most if left[j] > 0.0 and j != pick and int(j) not in known)]
    known.update(zip(ahead, product(y[ahead], y.T), strict=True))


def _largest(left: Floats, selectable: np.ndarray[Any, Any], k: int) -> float:
    """The sum of the k largest gains among selectable tokens."""
    inside = left[selectable]
    top = inside if k >= len(inside) else np.partition(inside, len(inside) - k)[-k:]
    return float(np.log(np.maximum(top, 1.0)).sum())
