"""Density peaks: tokens that many others are near to, and no denser one is."""

from __future__ import annotations

import math

from secateur.core.arrays import (
    Array,
    checked,
    device,
    epsilon,
    index_dtype,
    namespace,
    shape_of,
    spell,
    top,
    whole,
)
from secateur.core.dispatch import operation
from secateur.core.order import settled
from secateur.core.parameters import typed

NOISE = 1e-6
"""What the published programs scale their noise with."""


@operation
def smallest(x: Array, k: int) -> Array:
    """The k smallest entries (..., k) of the last axis, ascending.

    >>> import numpy as np
    >>> smallest(np.array([3.0, 1.0, 2.0]), 2)
    array([1., 2.])
    """
    return namespace(x).sort(x, axis=-1)[..., :k]


def distances(x: Array) -> Array:
    r"""Distances :math:`|x_i - x_j| / \sqrt D` of the rows of x (..., N, D): (..., N, N).

    What is within rounding of the lengths themselves counts as no distance, so that duplicates
    have none.
    """
    xp = namespace(x)
    length = xp.sum(x * x, axis=-1)
    both = length[..., :, None] + length[..., None, :]
    squared = both - 2.0 * (x @ xp.matrix_transpose(x))
    apart = squared > 8.0 * epsilon(x) * both
    squared = xp.where(apart, squared, xp.zeros_like(squared))
    return xp.sqrt(squared) / math.sqrt(int(x.shape[-1]))


@typed
def density_peaks(
    x: Array, neighbours: int, *, noise: Array | None = None, check_finite: bool = True
) -> Array:
    r"""How much each token is a centre: its density times its distance from a denser one.

    With :math:`d_{ij} = |x_i - x_j| / \sqrt D`,

    .. math::
        \rho_i &= \exp \Bigl( -\frac 1 k \sum_{j \in \text{the } k \text{ nearest of } i}
            d_{ij}^2 \Bigr) \\
        \delta_i &= \min_j \begin{cases} d_{ij} & \rho_j > \rho_i \\
            \max d & \text{otherwise} \end{cases} \\
        \text{score}_i &= \rho_i \delta_i

    A token counts among its own nearest.

    Parameters
    ----------
    x
        Tokens (..., N, D).
    neighbours
        k, at most N of them count.
    noise
        Numbers (..., N) in [0, 1) that are added to the densities, times 1e-6, as the published
        programs draw them against ties. Without them nothing is drawn: equal densities are
        equal, and equal scores go to the lowest index when centres are taken.

    Returns
    -------
    Array
        Scores (..., N).

    Notes
    -----
    O(N^2 D) time, O(N^2) memory for each set of tokens. Densities and distances are rounded to
    three quarters of their bits, so that what is equal but for the order of a sum is equal.

    References
    ----------
    A. Rodriguez and A. Laio, "Clustering by fast search and find of density peaks", Science 344,
    2014; with k neighbours: M. Du, S. Ding and H. Jia, Knowledge-Based Systems 99, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.density import density_peaks
    >>> x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.3]])
    >>> density_peaks(x, 3).round(2)
    array([0.1 , 5.26, 0.1 , 0.1 , 4.92, 0.19])
    """
    x = checked(x, "x", "(..., N, D)", check_finite=check_finite)
    noise = _checked_noise(noise, x, check_finite)
    return peak_scores(distances(x), neighbours, noise)


def _checked_noise(noise: Array | None, x: Array, check_finite: bool) -> Array | None:
    if noise is None:
        return None
    noise = checked(noise, "noise", "(..., N)", check_finite=check_finite, beside=x)
    namespace(noise, x)
    if shape_of(noise) != shape_of(x)[:-1]:
        raise ValueError(
            f"noise: expected shape {spell(shape_of(x)[:-1])}, got {spell(shape_of(noise))}"
        )
    return noise


def peak_scores(d: Array, neighbours: int, noise: Array | None = None) -> Array:
    """`density_peaks` (..., N) from the `distances` (..., N, N)."""
    if whole(neighbours) < 1:
        raise ValueError(f"neighbours: expected a whole number of at least 1, got {neighbours!r}")
    xp = namespace(d)
    near = smallest(d, min(neighbours, int(d.shape[-1])))
    density = settled(xp.exp(-xp.mean(near * near, axis=-1)))
    if noise is not None:
        density = density + NOISE * noise
    farthest = xp.max(d, axis=(-2, -1), keepdims=True)
    denser = density[..., None, :] > density[..., :, None]
    apart = xp.min(xp.where(denser, d, farthest), axis=-1)
    scale = xp.where(farthest > 0, farthest, xp.ones_like(farthest))[..., 0]
    return settled(density * apart / scale) * scale


@typed
def density_clusters(
    x: Array,
    count: int,
    neighbours: int,
    *,
    noise: Array | None = None,
    check_finite: bool = True,
) -> tuple[Array, Array]:
    """Centres of `density_peaks`, and which of them every token is nearest to.

    Parameters
    ----------
    x
        Tokens (..., N, D).
    count
        How many clusters, at most N.
    neighbours, noise
        As for `density_peaks`.

    Returns
    -------
    centres : Array
        The tokens (..., count) of highest score, highest first; ties: the lowest index.
    cluster : Array
        For every token (..., N) the place of its centre among `centres`, by distance; a centre's
        is its own; ties: the earlier centre.

    Notes
    -----
    O(N^2 D) time, O(N^2) memory for each set of tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.density import density_clusters
    >>> density_clusters(np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.3]]), 2, 3)
    (array([1, 4]), array([0, 0, 0, 1, 1, 1]))
    """
    x = checked(x, "x", "(..., N, D)", check_finite=check_finite)
    xp, n = namespace(x), int(x.shape[-2])
    if not 1 <= whole(count) <= n:
        raise ValueError(f"count: expected 1 to {n} clusters, got {count!r}")
    noise = _checked_noise(noise, x, check_finite)
    d = distances(x)
    centres = xp.astype(top(peak_scores(d, neighbours, noise), count), index_dtype(xp))
    where = xp.broadcast_to(centres[..., None, :], (*shape_of(x)[:-1], count))
    to_centres = xp.take_along_axis(d, where, axis=-1)
    largest = xp.max(to_centres, axis=(-2, -1), keepdims=True)
    to_centres = settled(to_centres / xp.where(largest > 0, largest, xp.ones_like(largest)))
    # A centre is its own even where a duplicate of it came first.
    places = xp.arange(n, dtype=centres.dtype, device=device(x))
    own = places[:, None] == centres[..., None, :]
    to_centres = xp.where(own, -xp.ones_like(to_centres), to_centres)
    return centres, xp.astype(xp.argmin(to_centres, axis=-1), centres.dtype)
