"""Orders of tokens: who comes first, who is left, who is nearest to whom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log2

from secateur.core.arrays import Array, descending, device, epsilon, index_dtype, namespace
from secateur.core.selection import Selection
from secateur.core.similarity import cosines, unit


def ranks(scores: Array) -> Array:
    """The place (..., N) of every token from high to low score; ties in ascending index order.

    >>> import numpy as np
    >>> ranks(np.array([0.2, 0.9, 0.2]))
    array([1, 0, 2])
    """
    return namespace(scores).argsort(descending(scores), axis=-1, stable=True)


def first_of(rank: Array, k: int) -> Array:
    """The k tokens (..., k) of lowest rank (..., N), lowest first; ties in ascending order."""
    xp = namespace(rank)
    return xp.astype(xp.argsort(rank, axis=-1, stable=True)[..., :k], index_dtype(xp))


def others(indices: Array, n: int) -> Array:
    """The tokens (..., N - K) that are not among `indices` (..., K), in ascending order.

    >>> import numpy as np
    >>> others(np.array([3, 0]), 5)
    array([1, 2, 4])
    """
    xp = namespace(indices)
    taken = xp.astype(Selection.of(indices, n).mask(), index_dtype(xp))
    return first_of(taken, n - int(indices.shape[-1]))


def settled(x: Array) -> Array:
    """Numbers of about 1, rounded to three quarters of the bits of their dtype.

    What was added up in another order, by another backend or for a duplicate, is then equal,
    and ties go to the lowest index everywhere.
    """
    xp = namespace(x)
    step = 2.0 ** round(0.75 * log2(epsilon(x)))
    # Of all pairs of a video's tokens each array counts: what is done with is let go.
    x = x / step
    x = xp.round(x)
    x *= step
    return x


def settled_cosine(x: Array, y: Array) -> Array:
    """Cosines (..., N, M) of x (..., N, D) with y (..., M, D), `settled`."""
    return settled(cosines(x, y))


def nearest(vectors: Array, targets: Array) -> Array:
    """For every vector (..., N, C), the one of `targets` (..., K) of largest cosine to it.

    Targets are indices of vectors; -1 stands for none, and there is at least one. Among equals
    the first target wins.
    """
    xp = namespace(vectors)
    if int(targets.shape[-1]) == 0:  # a batch without images
        return xp.zeros(vectors.shape[:-1], dtype=targets.dtype, device=device(targets))
    aims = Selection.of(targets, int(vectors.shape[-2])).gather(vectors, ordered=True)
    cosines = settled_cosine(vectors, aims)
    absent = xp.full_like(cosines, -xp.inf)
    best = xp.argmax(xp.where((targets >= 0)[..., None, :], cosines, absent), axis=-1)
    return xp.take_along_axis(targets, xp.astype(best, targets.dtype), axis=-1)


def positions_like(indices: Array, n: int) -> Array:
    """0 .. n - 1 in the dtype and on the device of `indices`."""
    return namespace(indices).arange(n, dtype=indices.dtype, device=device(indices))


def nearest_direction(x: Array, centres: Array, ends: Sequence[int]) -> list[Array]:
    """For every row of x (N, D), which of each group of centres has the largest cosine to it.

    Computed in the dtype of `x`; what is equal within three quarters of its bits is equal, and
    goes to the first. O(N K D) time, O(N K) memory.

    Parameters
    ----------
    x
        Vectors (N, D).
    centres
        Vectors (K, D), one group after the other.
    ends
        Where the groups end, the last at K.

    Returns
    -------
    list of Array
        For each group, places (N,) within it.

    Examples
    --------
    >>> import numpy as np
    >>> x, centres = np.array([[1.0, 0.2], [0.0, 3.0]]), np.array([[9.0, 0.0], [0.0, 1.0], [1, 1]])
    >>> nearest_direction(x, centres, [2, 3])
    [array([0, 1]), array([0, 0])]
    """
    xp = namespace(x)
    # The length of a row changes none of its answers: only the centres are scaled to one.
    inner = x @ xp.matrix_transpose(unit(centres))
    largest = xp.max(xp.abs(inner), axis=-1, keepdims=True)
    inner = settled(inner / xp.where(largest > 0, largest, xp.ones_like(largest)))
    return [
        xp.astype(xp.argmax(inner[:, start:stop], axis=-1), index_dtype(xp))
        for start, stop in pairwise([0, *ends])
    ]
