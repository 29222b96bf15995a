"""An even grid of tokens, blind to what they show."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import ClassVar

import numpy as np

from secateur.core.arrays import index_dtype, like, namespace
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method
from secateur.core.selection import Selection


@dataclass(frozen=True)
class UniformGrid(Method):
    r"""Exactly k tokens spread evenly over the image.

    The h x w grid is cut into :math:`r = \sqrt{k h / w}` bands (rounded, and at least k / w, at
    most h). The k tokens are shared out over the bands as evenly as whole numbers allow, and
    the c tokens of a band stand in its middle row, in the middles of c equal columns.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.

    Notes
    -----
    O(k) time. Where k is the size of a coarser grid that divides h x w, this is that grid.

    References
    ----------
    None; sampling at even steps is a baseline of many papers on visual tokens.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> tokens = sc.Tokens(features=np.ones((36, 8)), grid=(6, 6))
    >>> sc.UniformGrid(keep=4).select(tokens).mask().astype(int).reshape(6, 6)
    array([[0, 0, 0, 0, 0, 0],
           [0, 1, 0, 0, 1, 0],
           [0, 0, 0, 0, 0, 0],
           [0, 0, 0, 0, 0, 0],
           [0, 1, 0, 0, 1, 0],
           [0, 0, 0, 0, 0, 0]])
    """

    name: ClassVar[str] = "uniform"
    complexity: ClassVar[str] = "k"
    reference: ClassVar[str] = "none: the plainest baseline that knows the grid"
    guarantee: ClassVar[str] = "bands, and tokens within a band, differ by at most one"
    parity: ClassVar[str] = "a grid of even steps where k has one"

    @property
    def needs(self) -> frozenset[str]:
        """The grid."""
        return frozenset({"grid"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The even grid of k places; see `Method.choose`."""
        assert tokens.grid is not None
        picks = np.broadcast_to(_spread(*tokens.grid, k), (*tokens.batch_shape, k))
        dtype = index_dtype(namespace(tokens.features))
        return Selection.of(like(picks, tokens.features, dtype=dtype), tokens.size)


def bands(h: int, w: int, k: int) -> list[int]:
    """How many of k tokens stand in each band of an h x w grid, from the first row down.

    >>> bands(6, 6, 4), bands(4, 9, 7)
    ([2, 2], [3, 4])
    """
    count = min(max(round(sqrt(k * h / w)), ceil(k / w), 1), h, k)
    return [(band + 1) * k // count - band * k // count for band in range(count)]


def _spread(h: int, w: int, k: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    shares = bands(h, w, k)
    places: list[int] = []
    for band, count in enumerate(shares):
        row = (2 * band + 1) * h // (2 * len(shares))
        places += [row * w + (2 * i + 1) * w // (2 * count) for i in range(count)]
    return np.asarray(places, dtype=np.int64)
