"""How many tokens each crop, frame or image gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from secateur.core.arrays import Array, checked, like, namespace, on_host, to_numpy, whole
from secateur.core.parameters import typed

Rounding = Literal["exact", "floor"]
Numbers = np.ndarray[Any, np.dtype[Any]]


@typed
def allocate(
    scores: Array,
    total: int,
    *,
    minimum: Any = 1,
    maximum: Any = None,
    rounding: Rounding = "exact",
    check_finite: bool = True,
) -> Array:
    r"""A budget of tokens shared out in proportion to scores.

    .. math:: k_c \approx \operatorname{clip}(t R_c, \text{minimum}_c, \text{maximum}_c)
        \quad\text{with } t \text{ such that } \textstyle\sum_c k_c = \text{total}

    Parameters
    ----------
    scores
        Non-negative scores (..., C) of crops, frames or images; equal shares where all are 0.
    total
        How many tokens there are to share.
    minimum
        The least each part gets: a number, or one for each part (C,).
    maximum
        The most each part can take, such as the number of tokens it has: a number, one for
        each part (C,), or None.
    rounding
        ``"exact"`` spends the whole budget: shares are rounded down and what is left goes to
        the largest remainders (ties: the larger score, then the lower index). ``"floor"`` is
        the published EADP rule, floor(total * score / (sum + 1e-6)) and at least `minimum`; it
        loses up to a token a part, or, through `minimum`, may exceed `total`.

    Returns
    -------
    Array
        Counts (..., C), whole numbers in the library of `scores`.

    Notes
    -----
    Exact: the sum is `total`; a part with a larger score never gets fewer than another with
    the same bounds. Where a bound bites, the others share what it leaves, in proportion. All
    shares are worked out on the host: O(C^2) time a row.

    References
    ----------
    EADP, ECCV 2026, arXiv 2607.02484, for ``"floor"``; M. Balinski and H. Young, "Fair
    Representation", 1982, for largest remainders.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> sc.allocate(np.array([3.0, 2.0, 1.0]), 10)
    array([5, 3, 2])
    >>> sc.allocate(np.array([3.0, 2.0, 1.0]), 10, rounding="floor")
    array([4, 3, 1])
    """
    scores = checked(
        scores, "scores", "(..., C)", check_finite=check_finite, non_negative=check_finite
    )
    host = to_numpy(scores).astype(np.float64)
    parts = host.shape[-1]
    if whole(total) < 1:
        raise ValueError(f"total: expected a whole number of at least 1, got {total!r}")
    low = _bounds(minimum, parts, "minimum")
    high = _bounds(total if maximum is None else maximum, parts, "maximum")
    if bool(np.any(low > high)):
        raise ValueError(f"minimum: {low.tolist()} exceeds maximum {high.tolist()}")
    if rounding == "exact" and not int(low.sum()) <= total <= int(high.sum()):
        raise ValueError(
            f"total: {total} tokens cannot be shared with at least {int(low.sum())} "
            f"and at most {int(high.sum())} in all"
        )
    rows = host.reshape(-1, parts)
    if rounding == "floor":
        shares = np.floor(total * rows / (rows.sum(axis=-1, keepdims=True) + 1e-6))
        counts = np.clip(shares.astype(np.int64), low, high)
    else:
        counts = np.zeros(rows.shape, dtype=np.int64)
        for count, row in zip(counts, rows, strict=True):
            count[:] = _exact(row, int(total), low, high)
    xp = namespace(scores)
    dtype = xp.arange(1).dtype
    return like(counts.reshape(host.shape), scores, dtype=dtype)


def spread(total: int, most: Sequence[int]) -> list[int]:
    """A budget shared evenly by parts in order, remainders to the first; none above its `most`.

    What does not fit into one goes to those that have room; what fits nowhere is lost.

    >>> spread(8, [4, 4, 4]), spread(8, [1, 4, 4]), spread(8, [1, 2, 3])
    ([3, 3, 2], [1, 4, 3], [1, 2, 3])
    """
    counts = [0] * len(most)
    left = min(total, sum(most))
    while left > 0:
        room = [part for part, count in enumerate(counts) if count < most[part]]
        each = left // len(room)
        for place, part in enumerate(room):
            wanted = each + (1 if each == 0 and place < left else 0)
            counts[part] += min(wanted, most[part] - counts[part])
        left = min(total, sum(most)) - sum(counts)
    return counts


def _bounds(given: Any, parts: int, name: str) -> Numbers:
    values = on_host(given, name)
    if values.shape not in ((), (parts,)):
        raise ValueError(f"{name}: expected a number or one for each of {parts} parts")
    if values.dtype.kind not in "iu" or bool(np.any(values < 0)):
        raise ValueError(f"{name}: expected whole numbers of at least 0, got {values.tolist()}")
    return np.broadcast_to(values.astype(np.int64), (parts,))


def _exact(scores: Numbers, total: int, low: Numbers, high: Numbers) -> Numbers:
    share = _proportional(scores, total, low, high)
    counts = np.floor(share).astype(np.int64)
    left = total - int(counts.sum())
    # Largest remainder first; between equal remainders the larger score, then the lower index.
    order = np.lexsort((np.arange(len(scores)), -scores, -np.round(share - counts, 9)))
    counts[order[:left]] += 1
    return counts


def _proportional(scores: Numbers, total: int, low: Numbers, high: Numbers) -> Numbers:
    """Shares s_c = clip(t * score_c, low_c, high_c) with t such that they sum to the total."""
    scores = np.maximum(np.nan_to_num(scores), 0.0)  # NaN is no score
    if not scores.any():
        scores = np.ones_like(scores)
    scores = scores / scores.max()
    # A share so small that no budget makes a token of it is none; dividing by it could overflow.
    scores = np.where(scores < 1e-250, 0.0, scores)
    # The sum is a piecewise linear, rising function of t: find the piece, solve within it.
    positive = scores > 0
    breaks = np.unique(
        np.concatenate([low[positive] / scores[positive], high[positive] / scores[positive]])
    )
    sums = np.array([np.clip(t * scores, low, high).sum() for t in breaks])
    if sums[-1] <= total:
        # Every part with a score is full: the rest goes to those without one, evenly.
        share: Numbers = np.clip(breaks[-1] * scores, low, high).astype(np.float64)
        spare = np.where(positive, 0.0, high - share)
        missing = total - share.sum()
        if missing > 0 and spare.any():
            share = share + spare * (missing / spare.sum())
        return share
    piece = max(1, int(np.searchsorted(sums, total, side="right")))
    t0, t1, s0, s1 = breaks[piece - 1], breaks[piece], sums[piece - 1], sums[piece]
    t = t0 + (t1 - t0) * (total - s0) / (s1 - s0)
    solved: Numbers = np.clip(t * scores, low, high)
    return solved
