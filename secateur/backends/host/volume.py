"""Greedy log-determinant from factors: rows of the kernel are worked out when they are picked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from secateur.backends.host.greedy import EPSILON, Floats, Indices
from secateur.core.arrays import each_row
from secateur.core.maximize import Picks
from secateur.core.objectives import LogDeterminant
from secateur.core.tolerances import SUM


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
    total, bound = 0.0, math.inf
    for step in range(k):
        bound = min(bound, total + _largest(left, selectable, k))
        best = float(left[opened].max())
        pick = int(np.argmax(opened & (left >= best * level)))
        opened[pick] = False
        picks[step], gains[step] = pick, math.log(max(left[pick], 1.0))
        row = factor[step]
        row[:] = gamma * (y @ y[pick])
        row[pick] += 1.0
        row -= factor[:step, pick] @ factor[:step]
        row /= math.sqrt(max(left[pick], 1.0))
        # What is left of I + M is at least 1 whatever was explained; rounding may say less.
        left = np.maximum(left - row * row, 1.0)
        total += float(gains[step])
    return picks, gains, min(bound, total + _largest(left, selectable, k))


def _largest(left: Floats, selectable: np.ndarray[Any, Any], k: int) -> float:
    """The sum of the k largest gains among selectable tokens."""
    inside = left[selectable]
    top = inside if k >= len(inside) else np.partition(inside, len(inside) - k)[-k:]
    return float(np.log(np.maximum(top, 1.0)).sum())
