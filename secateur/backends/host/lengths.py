"""Vectors of length one, and where memory for them begins."""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import numpy as np

from secateur.backends.host.sources import BLOCK, Floats

LINE = 64
"""Bytes of a line of the processor's cache."""


def lined(shape: tuple[int, ...], dtype: Any) -> Floats:
    """An array to be filled that begins where a line of the cache does.

    Loops over its rows are a third faster than over one that begins within a line, which NumPy's
    own arrays do as memory comes.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + LINE, dtype=np.uint8)
    start = -room.ctypes.data % LINE
    found: Floats = room[start : start + size].view(dtype).reshape(shape)
    return found


@functools.cache
def _squarable(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Between which sums of squares lengths are as exact as the dtype."""
    known = np.finfo(dtype)
    return float(known.tiny / known.eps**2), float(known.max * known.eps)


def squarable(x: Floats) -> Floats | None:
    """Lengths (...,) of vectors (..., D); None where one is zero or out of the range of squares."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares, (low, high) = np.vecdot(x, x), _squarable(x.dtype)
    if low < np.min(squares) and np.max(squares) < high:
        lengths: Floats = np.sqrt(squares)
        return lengths
    return None


def unit(x: Floats) -> Floats:
    """Vectors (..., D) scaled to length one; a zero vector stays zero."""
    lengths = squarable(x)
    if lengths is not None:
        directions: Floats = x / lengths[..., None]
        return directions
    # Zeros, what is no number, or out of the range of squares: by the largest entry first.
    largest = np.maximum(x.max(axis=-1), -x.min(axis=-1))[..., None]
    largest[largest == 0] = 1
    with np.errstate(invalid="ignore"):
        out = x / largest
    length = np.sqrt(np.einsum("...d,...d->...", out, out))[..., None]
    length[length == 0] = 1
    out /= length
    return cast("Floats", out)


def rounded_once(x: Floats) -> Floats:
    """As `unit`, of lengths that are rounded once: squares are summed in float64.

    Numba's loop gives the same to the last bit.
    """
    rows = x.reshape(-1, x.shape[-1])
    out = lined(rows.shape, rows.dtype)
    step = max(1, BLOCK // (8 * rows.shape[-1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        out[part] = _unit(rows[part])
    return out.reshape(x.shape)


def _unit(rows: Floats) -> Floats:
    """The same of a few rows (M, D)."""
    wide = rows.astype(np.float64, copy=False)
    squares = np.einsum("md,md->m", wide, wide)
    inside = (squares > 1e-200) & (squares < 1e200)
    length = np.sqrt(np.where(inside, squares, 1.0)).astype(rows.dtype)
    out: Floats = rows / length[:, None]
    if not inside.all():
        # Out of the range of squares: by the largest entry first.
        far = rows[~inside]
        largest = np.maximum(far.max(axis=-1), -far.min(axis=-1))[:, None]
        largest[largest == 0] = 1
        with np.errstate(invalid="ignore"):
            far = far / largest
            length = np.sqrt(np.einsum("md,md->m", far, far))[:, None]
        length[length == 0] = 1
        out[~inside] = far / length
    return out
