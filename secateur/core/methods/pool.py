"""Pooling: an even grid of tokens, each the mean of those around it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.core.arrays import Array, checked, index_dtype, like, namespace, shape_of, wide
from secateur.core.inputs import Tokens
from secateur.core.maps import checked_grid
from secateur.core.methods.base import Method, require_one_of, require_whole
from secateur.core.methods.uniform import bands
from secateur.core.selection import Selection, Shares

Numbers = np.ndarray[Any, np.dtype[Any]]
Mode = Literal["average", "bilinear"]


@dataclass(frozen=True)
class Pool(Method):
    r"""Exactly k tokens at even steps, each the mean of its part of the image.

    The grid is cut as by `UniformGrid`: bands, and each band in as many columns as it has
    tokens. ``"average"``: every token goes to the place of its part, which becomes their plain
    mean. ``"bilinear"``: what stands in the middle of a part, between the four nearest tokens.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    mode
        ``"average"`` or ``"bilinear"``. The largest number of each channel comes from another
        token for every channel, which no selection can say: `pooled` has it as ``"max"``.

    Notes
    -----
    O(N) time beside the mean. ``selection.merge(features)`` gives the pooled tokens; without
    merging this is `UniformGrid`. Where k is the grid of a stride that divides the sides, this
    is pooling by that stride; `pooled` is what other programs do with a stride that does not.

    References
    ----------
    None; LLaVA-NeXT pools the frames of videos so, and it is the baseline that a method for
    choosing tokens must beat.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.arange(16.0)[:, None]
    >>> chosen = sc.Pool(keep=4).select(sc.Tokens(features=x, grid=(4, 4)))
    >>> chosen.merge(x)[:, 0]
    array([ 2.5,  4.5, 10.5, 12.5])
    """

    mode: Mode = "average"

    name: ClassVar[str] = "pool"
    complexity: ClassVar[str] = "N"
    reference: ClassVar[str] = "none: the mean of each part of the image"
    guarantee: ClassVar[str] = "bands, and parts of a band, differ by at most one row or column"
    parity: ClassVar[str] = "LLaVA-NeXT's pooling by a stride in float64"

    def __post_init__(self) -> None:
        if str(self.mode) == "max":
            raise ValueError(
                "mode: 'max' takes each channel from another token, which no selection can say; "
                "secateur.core.methods.pool.pooled has it"
            )
        super().__post_init__()
        require_one_of("mode", self.mode, ("average", "bilinear"))

    @property
    def needs(self) -> frozenset[str]:
        """The features, and the grid that is cut."""
        return frozenset({"features", "grid"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The even grid of k places, and what goes into each; see `Method.choose`."""
        h, w = checked_grid(tokens.grid, tokens.size)
        picks, owner = _parts(h, w, k)
        xp = namespace(tokens.features)
        whole, batch = index_dtype(xp), tokens.batch_shape

        def each(x: Numbers, dtype: Any) -> Array:
            return like(np.broadcast_to(x, (*batch, *x.shape)).copy(), tokens.features, dtype)

        chosen = Selection.of(each(picks, whole), tokens.size)
        if self.mode == "average":
            sizes = np.bincount(owner, minlength=tokens.size)
            folded, weights = each(owner, whole), each(1.0 / sizes[owner], wide(xp))
            return replace(chosen, folded=folded, fold_weights=weights)
        source, target, weight = _between(h, w, k, picks)
        largest = np.zeros(tokens.size)
        into = np.full(tokens.size, -1)
        for token, place, share in zip(source, target, weight, strict=True):
            if share > largest[token]:
                largest[token], into[token] = share, place
        return replace(
            chosen,
            folded=each(into, whole),
            fold_weights=each(largest, wide(xp)),
            shares=Shares(each(source, whole), each(target, whole), each(weight, wide(xp))),
        )


def pooled(
    features: Array,
    grid: tuple[int, int],
    *,
    stride: int = 2,
    mode: Literal["average", "max", "bilinear"] = "average",
    check_finite: bool = True,
) -> Array:
    r"""Tokens of a grid, pooled by a stride.

    ``"average"`` and ``"max"``: over blocks of stride x stride, what is left over at the lower
    and right border is dropped. ``"bilinear"``: to :math:`h' = \lceil h / \text{stride} \rceil`
    rows, row i from between the two next to :math:`\max(0, (i + 1/2) h / h' - 1/2)`, columns
    alike.

    Parameters
    ----------
    features
        Tokens (..., N, D); frames of a video are a batch.
    grid
        (h, w) with h * w = N.
    stride
        At most the shorter side for blocks.
    mode
        What becomes of a block.

    Returns
    -------
    Array
        (..., N', D), row by row.

    Notes
    -----
    O(N D) time for blocks, O(N D (h' + w')) for bilinear. For even sides and stride 2 bilinear
    is the average.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9.0)[:, None]
    >>> pooled(x, (3, 3), mode="max")[:, 0], pooled(x, (3, 3), mode="bilinear")[:, 0]
    (array([4.]), array([1. , 2.5, 5.5, 7. ]))
    """
    x = checked(features, "features", "(..., N, D)", check_finite=check_finite)
    h, w = checked_grid(grid, int(x.shape[-2]))
    require_whole("stride", stride, least=1)
    require_one_of("mode", mode, ("average", "max", "bilinear"))
    xp = namespace(x)
    *batch, _, width = shape_of(x)
    table = xp.reshape(x, (*batch, h, w, width))
    if mode == "bilinear":
        down, across = (like(_lines(side, math.ceil(side / stride)), x, x.dtype) for side in (h, w))
        rows = xp.reshape(down @ xp.reshape(table, (*batch, h, w * width)), (*batch, -1, w, width))
        return xp.reshape(across @ rows, (*batch, -1, width))
    if stride > min(h, w):
        raise ValueError(f"stride: expected at most the shorter side of {h} x {w}, got {stride}")
    down, across = h // stride, w // stride
    table = table[..., : down * stride, : across * stride, :]
    blocks = xp.reshape(table, (*batch, down, stride, across, stride, width))
    best = xp.max if mode == "max" else xp.mean
    return xp.reshape(best(blocks, axis=(-4, -2)), (*batch, down * across, width))


def _lines(size: int, count: int) -> Numbers:
    """Weights (count, size) of the lines that each line of a shorter grid lies between."""
    weights = np.zeros((count, size))
    for line in range(count):
        below, above, share = _neighbours((line + 0.5) * size / count - 0.5, size)
        weights[line, below] += 1.0 - share
        weights[line, above] += share
    return weights


def _neighbours(place: float, size: int) -> tuple[int, int, float]:
    """The two lines next to a place, and the share of the second."""
    place = max(0.0, place)
    below = min(int(place), size - 1)
    return below, min(below + 1, size - 1), place - below


def _parts(h: int, w: int, k: int) -> tuple[Numbers, Numbers]:
    """The places (k,) that are kept, and the place (N,) that each token goes to."""
    shares = bands(h, w, k)
    picks, owner = [], np.zeros((h, w), dtype=np.int64)
    for band, count in enumerate(shares):
        top, bottom = band * h // len(shares), (band + 1) * h // len(shares)
        row = (2 * band + 1) * h // (2 * len(shares))
        for i in range(count):
            picks.append(row * w + (2 * i + 1) * w // (2 * count))
            owner[top:bottom, i * w // count : (i + 1) * w // count] = picks[-1]
    return np.asarray(picks, dtype=np.int64), owner.reshape(-1)


def _between(h: int, w: int, k: int, picks: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Four tokens, the place they go to and their weights there, (4 k,) each."""
    shares = bands(h, w, k)
    middles = [
        ((band + 0.5) * h / len(shares) - 0.5, (i + 0.5) * w / count - 0.5)
        for band, count in enumerate(shares)
        for i in range(count)
    ]
    source, target, weight = [], [], []
    for place, (y, x) in zip(picks.tolist(), middles, strict=True):
        up, low, down = _neighbours(y, h)
        left, right, across = _neighbours(x, w)
        for row, of_row in ((up, 1.0 - down), (low, down)):
            for column, of_column in ((left, 1.0 - across), (right, across)):
                source.append(row * w + column)
                target.append(place)
                weight.append(of_row * of_column)
    return np.asarray(source), np.asarray(target), np.asarray(weight)
