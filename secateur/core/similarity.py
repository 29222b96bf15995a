"""Similarities of tokens: a matrix, or entries worked out when they are asked for.

The three classes below answer the same questions (`size`, `columns`, `rows`), so that an
algorithm is written once and runs from a matrix, from features, and from sparse rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from secateur.core.arrays import Array, Namespace, checked, device, like, namespace, wide
from secateur.core.dispatch import operation

BLOCK = 1 << 22
"""Numbers that a block of similarities may hold while it is worked on."""


@operation
def unit(x: Array) -> Array:
    """Vectors (..., D) scaled to length one; a zero vector stays zero.

    Scaled by the largest entry first, so that neither huge nor tiny vectors leave the range
    of their dtype.
    """
    xp = namespace(x)
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    scaled = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    length = xp.sqrt(xp.sum(scaled * scaled, axis=-1, keepdims=True))
    return scaled / xp.where(length > 0, length, xp.ones_like(length))


class Similarity(Protocol):
    """Pairwise similarities s_ij of `size` tokens: row i is served by column j."""

    size: int
    sample: Array
    """An array of the library, dtype and device that answers come in."""

    def columns(self, indices: Array) -> Array:
        """Entries (N, M) of the columns at `indices` (M,)."""

    def rows(self, indices: Array) -> Array:
        """Entries (M, N) of the rows at `indices` (M,)."""


class MatrixSimilarity:
    """A dense matrix (N, N)."""

    def __init__(self, matrix: Array) -> None:
        self.sample = matrix
        self.size = int(matrix.shape[-1])

    def columns(self, indices: Array) -> Array:
        """Of all tokens to those of `indices`: (N, m)."""
        return namespace(self.sample).take(self.sample, indices, axis=1)

    def rows(self, indices: Array) -> Array:
        """Of those of `indices` to all tokens: (m, N)."""
        return namespace(self.sample).take(self.sample, indices, axis=0)


class CosineSimilarity:
    """(1 + cos(x_i, x_j)) / 2 from features (N, D), never the whole matrix.

    A cosine is a sum that decides a pick, so it is taken in the dtype of sums.
    """

    def __init__(self, features: Array) -> None:
        xp = namespace(features)
        self.sample = unit(xp.astype(features, wide(xp)))
        self.size = int(features.shape[-2])

    def columns(self, indices: Array) -> Array:
        """Of all tokens to those of `indices`: (N, m)."""
        return shifted(self.sample @ namespace(self.sample).take(self.sample, indices, axis=0).T)

    def rows(self, indices: Array) -> Array:
        """Of those of `indices` to all tokens: (m, N)."""
        return shifted(namespace(self.sample).take(self.sample, indices, axis=0) @ self.sample.T)


class SparseSimilarity:
    """A SciPy CSR matrix (N, N); only the rows and columns asked for become dense."""

    def __init__(self, matrix: Array) -> None:
        self._rows = matrix.tocsr()
        self._columns = matrix.tocsc()
        self.sample = self._rows.data
        self.size = int(matrix.shape[-1])

    def columns(self, indices: Array) -> Array:
        """Of all tokens to those of `indices`: (N, m)."""
        return self._columns[:, indices].toarray()

    def rows(self, indices: Array) -> Array:
        """Of those of `indices` to all tokens: (m, N)."""
        return self._rows[indices, :].toarray()


def blocks(similarity: Similarity, count: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover `count` columns or rows, each small enough to work on at once."""
    step = max(1, BLOCK // similarity.size)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def shifted(cosine: Array) -> Array:
    """(1 + cos) / 2, held within [0, 1] against rounding."""
    xp: Namespace = namespace(cosine)
    return xp.clip(0.5 * cosine + 0.5, 0.0, 1.0)


def cosine(x: Array, y: Array | None = None, *, check_finite: bool = True) -> Array:
    """Cosines (..., N, M) of vectors (..., N, D) with vectors (..., M, D).

    Zero vectors have cosine 0 with everything, themselves included. O(N M D) time.

    Parameters
    ----------
    x
        Vectors (..., N, D).
    y
        Vectors (..., M, D), or None for `x` with itself.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.similarity import cosine
    >>> cosine(np.array([[2.0, 0.0], [0.0, 0.0]]))
    array([[1., 0.],
           [0., 0.]])
    """
    x = unit(checked(x, "x", "(..., N, D)", check_finite=check_finite))
    other = x if y is None else unit(checked(y, "y", "(..., M, D)", check_finite=check_finite))
    if x.shape[-1] != other.shape[-1]:
        raise ValueError(f"y: expected vectors of length {x.shape[-1]}, got {other.shape[-1]}")
    return x @ namespace(x).matrix_transpose(other)


@operation
def cosine_similarity(features: Array) -> Array:
    r"""Similarities of features with each other.

    .. math:: s_{ij} = (1 + \cos(x_i, x_j)) / 2 \in [0, 1]

    Parameters
    ----------
    features
        Features (..., N, D); zero vectors have similarity 1/2 with everything.

    Returns
    -------
    Array
        Similarities (..., N, N).

    Notes
    -----
    O(N^2 D) time, O(N^2) memory.

    References
    ----------
    EADP, ECCV 2026, arXiv 2607.02484, second stage.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.similarity import cosine_similarity
    >>> cosine_similarity(np.array([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    array([[1. , 0.5, 0. ],
           [0.5, 1. , 0.5],
           [0. , 0.5, 1. ]])
    """
    return shifted(cosine(features, check_finite=False))


def row_positions(n: int, sample: Array) -> Array:
    """Indices 0 .. n - 1 beside `sample`."""
    return namespace(sample).arange(n, device=device(sample))


def at(index: int, sample: Array) -> Array:
    """One index as an array (1,) beside `sample`."""
    return like([index], sample, dtype=row_positions(1, sample).dtype)
