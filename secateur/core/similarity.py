"""Similarities of tokens: a matrix, or entries worked out when they are asked for.

The classes below answer the same questions (`size`, `height`, `columns`, `rows`), so that an
algorithm is written once and runs from a matrix, from features, from sparse rows, and from
several of them one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

from secateur.core.arrays import (
    Array,
    Namespace,
    checked,
    device,
    like,
    namespace,
    to_numpy,
    wide,
)
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


@operation
def cosines(x: Array, y: Array) -> Array:
    """Cosines (..., N, M) of x (..., N, D) with y (..., M, D), in the dtype of sums.

    Zero vectors have cosine 0 with everything.
    """
    xp = namespace(x)
    one = unit(xp.astype(x, wide(xp)))
    other = one if y is x else unit(xp.astype(y, wide(xp)))
    return one @ xp.matrix_transpose(other)


@operation
def squared_distances(x: Array, y: Array) -> Array:
    """Squared distances (..., N) of x (..., N, D) to y (..., 1, D), or each to its own of as many.

    >>> import numpy as np
    >>> from secateur.core.similarity import squared_distances
    >>> squared_distances(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[0.0, 0.0]]))
    array([25.,  1.])
    """
    apart = x - y
    return namespace(x).sum(apart * apart, axis=-1)


class Similarity(Protocol):
    """Similarities s_ij: row i, one of `height`, is served by column j, one of `size`."""

    size: int
    height: int
    sample: Array
    """An array of the library, dtype and device that answers come in."""

    def columns(self, indices: Array) -> Array:
        """Entries (H, M) of the columns at `indices` (M,)."""

    def rows(self, indices: Array) -> Array:
        """Entries (M, N) of the rows at `indices` (M,)."""


class MatrixSimilarity:
    """A dense matrix (H, N)."""

    def __init__(self, matrix: Array) -> None:
        self.sample = matrix
        self.height, self.size = (int(n) for n in matrix.shape)

    def columns(self, indices: Array) -> Array:
        """How well those of `indices` serve all rows: (H, m)."""
        return namespace(self.sample).take(self.sample, indices, axis=1)

    def rows(self, indices: Array) -> Array:
        """How well all tokens serve the rows of `indices`: (m, N)."""
        return namespace(self.sample).take(self.sample, indices, axis=0)


class CosineSimilarity:
    """(1 + cos(x_i, x_j)) / 2 from features (N, D), never the whole matrix.

    A cosine is a sum that decides a pick, so it is taken in the dtype of sums.
    """

    def __init__(self, features: Array) -> None:
        xp = namespace(features)
        self.sample = unit(xp.astype(features, wide(xp)))
        self.size = self.height = int(features.shape[-2])

    def columns(self, indices: Array) -> Array:
        """Of all tokens to those of `indices`: (N, m)."""
        return shifted(self.sample @ namespace(self.sample).take(self.sample, indices, axis=0).T)

    def rows(self, indices: Array) -> Array:
        """Of those of `indices` to all tokens: (m, N)."""
        return shifted(namespace(self.sample).take(self.sample, indices, axis=0) @ self.sample.T)


class PlainCosine(CosineSimilarity):
    """cos(x_i, x_j) from features (N, D), never the whole matrix."""

    def columns(self, indices: Array) -> Array:
        """Of all tokens to those of `indices`: (N, m)."""
        return self.sample @ namespace(self.sample).take(self.sample, indices, axis=0).T

    def rows(self, indices: Array) -> Array:
        """Of those of `indices` to all tokens: (m, N)."""
        return namespace(self.sample).take(self.sample, indices, axis=0) @ self.sample.T


class SoftmaxSimilarity:
    r"""Each row's softmax over the candidates, from vectors, never the whole matrix.

    .. math:: s_{ij} = e^{\cos(x_i, y_j) / \tau} \Big/ \sum_{j'} e^{\cos(x_i, y_{j'}) / \tau}

    O(H + N) numbers beside the vectors (H, D) and (N, D); one pass over H N cosines at first,
    unless all columns are asked for at once, whose sums are then theirs.
    """

    def __init__(self, rows: Array, candidates: Array, temperature: float) -> None:
        xp = namespace(rows, candidates)
        self._y = unit(xp.astype(candidates, wide(xp)))
        self._x = self._y if rows is candidates else unit(xp.astype(rows, wide(xp)))
        self._temperature = temperature
        self.sample = self._y
        self.height, self.size = int(rows.shape[-2]), int(candidates.shape[-2])

    @cached_property
    def _log_total(self) -> Array:
        """The logarithm (H,) of what each row's entries are divided by."""
        xp = namespace(self.sample)
        parts = []
        for start, stop in blocks(self, self.height):
            logits = self._x[start:stop, :] @ self._y.T / self._temperature
            top = xp.max(logits, axis=-1, keepdims=True)
            parts.append(top[:, 0] + xp.log(xp.sum(xp.exp(logits - top), axis=-1)))
        return xp.concat(parts)

    def columns(self, indices: Array) -> Array:
        """How well those of `indices` serve all rows: (H, m)."""
        xp = namespace(self.sample)
        logits = self._x @ xp.take(self._y, indices, axis=0).T / self._temperature
        whole = int(indices.shape[0]) == self.size
        if whole and to_numpy(indices).tolist() == list(range(self.size)):
            powers = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
            return powers / xp.sum(powers, axis=-1, keepdims=True)
        return xp.exp(logits - self._log_total[:, None])

    def rows(self, indices: Array) -> Array:
        """How well all tokens serve the rows of `indices`: (m, N)."""
        xp = namespace(self.sample)
        log_total = xp.take(self._log_total, indices)[:, None]
        x = xp.take(self._x, indices, axis=0)
        return xp.exp(x @ self._y.T / self._temperature - log_total)


class StackedSimilarity:
    """Blocks of rows over the same candidates, one below the other."""

    def __init__(self, parts: Sequence[Similarity]) -> None:
        self._parts = parts
        self.sample = parts[0].sample
        self.size = parts[0].size
        self.height = sum(part.height for part in parts)

    def columns(self, indices: Array) -> Array:
        """How well those of `indices` serve all rows: (H, m)."""
        return self._joined([part.columns(indices) for part in self._parts])

    def rows(self, indices: Array) -> Array:
        """How well all tokens serve the rows of `indices` (m, ), which ascend: (m, N)."""
        host, start, found = to_numpy(indices), 0, []
        for part in self._parts:
            own = host[(host >= start) & (host < start + part.height)] - start
            if own.size:
                found.append(part.rows(like(own, indices, dtype=indices.dtype)))
            start += part.height
        return self._joined(found)

    def _joined(self, found: Sequence[Array]) -> Array:
        """One below the other, in the wider dtype where they differ."""
        xp = namespace(self.sample)
        if len({str(x.dtype) for x in found}) > 1:
            found = [xp.astype(x, wide(xp)) for x in found]
        return xp.concat(list(found))


class SparseSimilarity:
    """A SciPy CSR matrix (H, N); only the rows and columns asked for become dense."""

    def __init__(self, matrix: Array) -> None:
        self._rows = matrix.tocsr()
        self._columns = matrix.tocsc()
        self.sample = self._rows.data
        self.height, self.size = (int(n) for n in matrix.shape)

    def columns(self, indices: Array) -> Array:
        """How well those of `indices` serve all rows: (H, m)."""
        return self._columns[:, indices].toarray()

    def rows(self, indices: Array) -> Array:
        """How well all tokens serve the rows of `indices`: (m, N)."""
        return self._rows[indices, :].toarray()


def blocks(similarity: Similarity, count: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover `count` columns or rows, each small enough to work on at once."""
    step = max(1, BLOCK // max(similarity.size, similarity.height))
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


@operation
def likeness_factors(x: Array) -> Array:
    r"""What the likenesses of features by channel are the square of: their squares' factors.

    .. math::
        Z_{ic} = X_{ic} \Big/ \sqrt{\textstyle\sum_i X_{ic}^2}, \qquad
        Y Y^T = (Z Z^T)^2

    Parameters
    ----------
    x
        Features (..., N, D); a channel of zeros stays zero.

    Returns
    -------
    Array
        Y (..., N, min(N, D)) in the dtype of sums: Z Z^T itself, or Z R^T of Z = Q R. Another
        square root of Z^T Z does as well, and a driver may take one.

    Notes
    -----
    O(N D min(N, D)) time.

    Examples
    --------
    >>> import numpy as np
    >>> y = likeness_factors(np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    >>> (y @ y.T).round(6)
    array([[1. , 0. , 0. ],
           [0. , 0.5, 0.5],
           [0. , 0.5, 0.5]])
    """
    xp = namespace(x)
    x = xp.astype(x, wide(xp))
    # Scaled by the largest entry first, so that no square leaves the range of its dtype.
    largest = xp.max(xp.abs(x), axis=-2, keepdims=True)
    x = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    length = xp.sqrt(xp.sum(x * x, axis=-2, keepdims=True))
    z = x / xp.where(length > 0, length, xp.ones_like(length))
    if int(z.shape[-1]) >= int(z.shape[-2]):
        return z @ xp.matrix_transpose(z)
    triangle = xp.linalg.qr(z, mode="reduced")[1]
    return z @ xp.matrix_transpose(triangle)


def row_positions(n: int, sample: Array) -> Array:
    """Indices 0 .. n - 1 beside `sample`."""
    return namespace(sample).arange(n, device=device(sample))


def at(index: int, sample: Array) -> Array:
    """One index as an array (1,) beside `sample`."""
    return like([index], sample, dtype=row_positions(1, sample).dtype)
