"""OTPrune's factors: Y with Y Y^T = (Z Z^T)^2, where Z are features of unit channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.backends.lending import LINKED, WHOLE, Floats, alone, product
from secateur.core.arrays import each_row

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


def _rooted(z: Floats, zero: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
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
