"""Score maps: brought to one scale, smoothed on their grid, deepened."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    like,
    namespace,
    shape_of,
    spell,
    whole,
)
from secateur.core.parameters import typed

Grid = Any
"""(h, w): two whole numbers in whatever holds two."""


@typed
def min_max(scores: Array, axis: int | tuple[int, ...] = -1, *, check_finite: bool = True) -> Array:
    r"""Scores stretched onto (0, 1].

    .. math:: (R - \min R + 10^{-6}) / (\max R - \min R + 10^{-6})

    Parameters
    ----------
    scores
        Any finite scores (..., N).
    axis
        The axis, or axes, normalised together: ``(-2, -1)`` takes all crops of an image.

    Returns
    -------
    Array
        The same shape. Equal scores all become 1.

    Notes
    -----
    O(N) time and memory.

    References
    ----------
    EADP, ECCV 2026, arXiv 2607.02484, first stage.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> sc.min_max(np.array([2.0, 3.0, 4.0])).round(3)
    array([0. , 0.5, 1. ])
    """
    scores = checked(scores, "scores", "(..., N)", check_finite=check_finite)
    axes = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    places = {int(each) % scores.ndim for each in axes if -scores.ndim <= each < scores.ndim}
    if not len(axes) == len(places) > 0:
        raise ValueError(f"axis: expected one or several of {spell(scores.shape)}, got {axis!r}")
    if 0 in shape_of(scores):
        return scores
    axis, xp = tuple(sorted(places)), namespace(scores)
    low = xp.min(scores, axis=axis, keepdims=True)
    high = xp.max(scores, axis=axis, keepdims=True)
    return (scores - low + 1e-6) / (high - low + 1e-6)


@typed
def smooth(
    scores: Array,
    grid: Grid,
    size: int = 3,
    sigma: float = 1.0,
    *,
    check_finite: bool = True,
) -> Array:
    r"""Scores blurred over their grid by a Gaussian window.

    .. math:: \tilde R_{yx} = \sum_{u, v} g_u g_v R_{y + u, x + v}, \qquad
        g_u \propto e^{-u^2 / 2 \sigma^2}, \quad \textstyle\sum_u g_u = 1

    Parameters
    ----------
    scores
        Maps (..., h * w), row by row.
    grid
        (h, w).
    size
        Side of the square window, odd.
    sigma
        Standard deviation of the Gaussian in tokens; the window sums to one.

    Returns
    -------
    Array
        The same shape, each entry within the range of its map.

    Notes
    -----
    The border reflects (the edge token is not repeated); a side of one token repeats itself.
    Two passes of one dimension each, O(N size) time, O(N) memory.

    References
    ----------
    EADP, ECCV 2026, arXiv 2607.02484, first stage: size 3, sigma 1.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> sc.smooth(np.array([0.0, 0, 0, 0, 1, 0, 0, 0, 0]), (3, 3)).round(3).reshape(3, 3)
    array([[0.3  , 0.248, 0.3  ],
           [0.248, 0.204, 0.248],
           [0.3  , 0.248, 0.3  ]])
    """
    scores = checked(scores, "scores", "(..., N)", check_finite=check_finite)
    h, w = checked_grid(grid, int(scores.shape[-1]))
    if whole(size) < 1 or size % 2 == 0:
        raise ValueError(f"size: expected an odd window of at least 1, got {size}")
    if not sigma > 0:
        raise ValueError(f"sigma: expected a positive width, got {sigma}")
    xp = namespace(scores)
    image = xp.reshape(scores, (*scores.shape[:-1], h, w))
    low = xp.min(scores, axis=-1, keepdims=True)
    high = xp.max(scores, axis=-1, keepdims=True)
    for axis in (-2, -1):
        image = _blur(image, axis, size // 2, sigma)
    return xp.clip(xp.reshape(image, scores.shape), low, high)


def _blur(image: Array, axis: int, reach: int, sigma: float) -> Array:
    xp = namespace(image)
    n = int(image.shape[axis])
    offsets = range(-reach, reach + 1)
    window = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets]
    total = sum(window)
    out = xp.zeros_like(image)
    for offset, weight in zip(offsets, window, strict=True):
        source = like(_reflected(n, offset), image)
        out = out + (weight / total) * xp.take(image, source, axis=axis)
    return out


def _reflected(n: int, offset: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Positions i + offset for i in 0 .. n - 1, folded back at both ends."""
    if n == 1:
        return np.zeros(1, dtype=np.int64)
    period = 2 * (n - 1)
    folded = (np.arange(n) + offset) % period
    return np.minimum(folded, period - folded).astype(np.int64)


@typed
def polarize(scores: Array, beta: float, *, check_finite: bool = True) -> Array:
    r"""Scores raised to a power: above 1 it deepens the contrast, below 1 it flattens it.

    .. math:: R_i \mapsto R_i^{\beta}

    Parameters
    ----------
    scores
        Non-negative scores (..., N), in [0, 1] as `min_max` leaves them.
    beta
        The power, at least 0; 0 makes all scores equal.

    Returns
    -------
    Array
        The same shape, in the same order.

    Notes
    -----
    O(N) time and memory.

    References
    ----------
    EADP, ECCV 2026, arXiv 2607.02484, first stage: 1 for LLaVA, 2 for Qwen-VL and video.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> sc.polarize(np.array([0.1, 0.5, 1.0]), 2.0).round(2)
    array([0.01, 0.25, 1.  ])
    """
    scores = checked(
        scores, "scores", "(..., N)", check_finite=check_finite, non_negative=check_finite
    )
    if not (beta >= 0 and math.isfinite(beta)):
        raise ValueError(f"beta: expected a finite power of at least 0, got {beta}")
    xp, beta = namespace(scores), float(beta)
    if check_finite and beta > 1 and 0 not in shape_of(scores):
        largest, most = float(constant(xp.max(scores))), float(xp.finfo(scores.dtype).max)
        if largest > 1 and beta * math.log(largest) > math.log(most):
            raise ValueError(
                f"scores: {largest:g} to the power beta = {beta:g} leaves the range of "
                f"{scores.dtype}; bring scores into [0, 1], as min_max does"
            )
    return scores if beta == 1 else scores**beta


def checked_grid(grid: Any, n: int | None = None) -> tuple[int, int]:
    """A grid (h, w) that holds n tokens, where that is known, or refuse it."""
    several = isinstance(grid, Iterable) and getattr(grid, "ndim", 1) == 1
    sides = [whole(side) for side in grid] if several else []
    if len(sides) != 2 or any(side < 1 for side in sides):
        raise ValueError(f"grid: expected (h, w), two positive whole numbers, got {grid!r}")
    h, w = sides
    if n is not None and h * w != n:
        raise ValueError(f"grid: {h} x {w} = {h * w} places for {n} tokens")
    return h, w
