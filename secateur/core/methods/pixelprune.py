"""PixelPrune: drop the cells that their neighbours predict, before anything is encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from secateur.core.acts import Skips
from secateur.core.arrays import (
    Array,
    constant,
    device,
    index_dtype,
    like,
    namespace,
    shape_of,
    spell,
    wide,
)
from secateur.core.inputs import Tokens
from secateur.core.maps import checked_grid
from secateur.core.methods.base import (
    CountedFrom,
    Method,
    Program,
    require_one_of,
    require_positive,
)
from secateur.core.order import ranks
from secateur.core.selection import Selection, from_mask

Scan = Literal["pred_2d", "raster", "serpentine"]
Metric = Literal["max", "mae", "rmse", "exact"]
SCANS, METRICS = ("pred_2d", "raster", "serpentine"), ("max", "mae", "rmse", "exact")


class Cells(NamedTuple):
    """What a scan of an image's cells found."""

    kept: Array
    """True (..., N) at cells that are not like their prediction."""
    distance: Array
    """Distance (..., N) of each cell from its prediction, 1 at the first, which has none."""


@dataclass(frozen=True)
class PixelPrune(Method, Skips):
    r"""Keep the cells of an image that differ from what their neighbours predict.

    A cell is what becomes one token: some 32 x 32 pixels. Going row by row, with A the cell on
    the left, B the one above and C the one above on the left, a cell is predicted to be

    .. math:: P = \begin{cases} B & d(C, A) \le \tau < d(C, B) \\ A & \text{else} \end{cases}

    (A in the first row, B in the first column), and dropped where it is within
    :math:`\tau` of that. The first cell is kept. Distances d are taken over all pixels and
    channels, on 0..1.

    Parameters
    ----------
    keep
        The most cells to keep: a count or a share. By itself the image decides how many; where
        that is more, the cells farthest from their predictions stay.
    threshold
        :math:`\tau`, 0 for cells that are the same.
    metric
        ``"max"``, the largest difference; ``"mae"``, the mean; ``"rmse"``, the root of the mean
        square; ``"exact"``, the same as ``"max"`` with threshold 0.
    scan
        ``"pred_2d"`` as above; ``"raster"`` compares each cell with the first of its run, row
        by row, and starts another run where they differ; ``"serpentine"`` does so with every
        second row from right to left.
    anchored
        Whether a dropped cell is what it was predicted to be when others are compared with it,
        so that errors do not add up: every dropped cell then is within the threshold of one
        that is kept. True where the threshold is above 0 unless given; runs always are.
    before
        Where an attachment drops cells: before the ``"encoder"``, which then never reads them, or
        before the language ``"model"``, when all are encoded. Before the encoder where that can
        do without them (Qwen2-VL to Qwen3.5 in transformers, to Qwen3-VL in vLLM) unless given.

    Notes
    -----
    O(pixels) time. It works on the picture alone, before the encoder: ``sc.Tokens(pixels=...,
    grid=...)`` needs no features. Cells on a diagonal know nothing of each other, so
    ``"pred_2d"`` takes h + w - 1 steps on all cells of a diagonal and all images of a batch;
    runs take N steps. `scores` are the distances.

    The program compares pixels after they were normalised and back again, where equal cells
    stay equal; here they are compared as given. It has no budget; `keep` is ours. It takes no
    video; an attachment has each frame by itself.

    Before the encoder, patches of dropped cells leave its input. Those of the others keep the
    positions and the windows that they have in the whole picture; what they attend to is what is
    left of it.

    References
    ----------
    Wang, Jin, Chen and Lu, "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via
    Predictive Coding", 2026, arXiv 2604.00886.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    >>> pixels[:, 8:] = 200
    >>> sc.PixelPrune().select(sc.Tokens(pixels=pixels, grid=(2, 4))).indices
    array([0, 2])
    """

    keep: int | float = 1.0
    threshold: float = 0.0
    metric: Metric = "max"
    scan: Scan = "pred_2d"
    anchored: bool | None = None
    before: Literal["encoder", "model"] | None = None

    name: ClassVar[str] = "pixelprune"
    complexity: ClassVar[str] = "pixels"
    reference: ClassVar[str] = "Wang et al., 2026, arXiv 2604.00886"
    guarantee: ClassVar[str] = (
        "anchored: a dropped cell is within the threshold of a kept one, unless keep is less"
    )
    parity: ClassVar[str] = "the authors' program: kept cells of every scan, anchored and not"
    program: ClassVar[Program | None] = Program("OPPO-Mente-Lab/PixelPrune", "a870e31")
    as_published: ClassVar[Mapping[str, Any]] = {"before": "encoder"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("threshold", self.threshold, zero=True)
        require_one_of("metric", self.metric, METRICS)
        require_one_of("scan", self.scan, SCANS)
        if self.anchored not in (None, True, False):
            raise ValueError(f"anchored: expected True, False or None, got {self.anchored!r}")
        if self.before is not None:
            require_one_of("before", self.before, ("encoder", "model"))

    @property
    def skips(self) -> bool | None:
        """As `before` says."""
        return None if self.before is None else self.before == "encoder"

    @property
    def needs(self) -> frozenset[str]:
        """The image, and how many cells it has down and across."""
        return frozenset({"pixels", "grid"})

    @property
    def counted_from(self) -> CountedFrom:
        """The image decides how many cells stay."""
        return "pixels"

    def weigh(self, tokens: Tokens) -> Array:
        """How unlike its prediction each cell is; see `Method.weigh`."""
        return self._cells(tokens).distance

    def _cells(self, tokens: Tokens) -> Cells:
        grid = checked_grid(tokens.grid, tokens.size)
        pixels = constant(tokens.pixels)
        if shape_of(pixels)[:-3] != tokens.batch_shape:
            raise ValueError(
                f"pixels: expected one image for each of the rows {spell(tokens.batch_shape)}, "
                f"got shape {spell(shape_of(pixels))}"
            )
        return scan_cells(
            pixels,
            grid,
            threshold=self.threshold,
            metric=self.metric,
            scan=self.scan,
            anchored=self.anchored,
        )

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The cells that are not like their prediction; see `Method.choose`."""
        found = self._cells(tokens)
        xp = namespace(found.distance)
        outside = xp.full_like(found.distance, -1.0)
        place = ranks(xp.where(found.kept, found.distance, outside))
        return from_mask(found.kept & (place < k), scores=found.distance)


def scan_cells(
    pixels: Array,
    grid: tuple[int, int],
    *,
    threshold: float = 0.0,
    metric: Metric = "max",
    scan: Scan = "pred_2d",
    anchored: bool | None = None,
) -> Cells:
    """Which cells of an image are not like what others predict; see `PixelPrune`.

    Parameters
    ----------
    pixels
        Images (..., H, W, 3), 0..255.
    grid
        Cells (h, w) down and across, which divide H and W.
    threshold, metric, scan, anchored
        As in `PixelPrune`.

    Returns
    -------
    Cells
        What is kept, and how far from its prediction each cell is.
    """
    h, w = grid
    *batch, height, width, colours = shape_of(pixels)
    if height % h or width % w:
        raise ValueError(
            f"grid: {h} x {w} cells do not divide an image of {height} x {width} pixels"
        )
    xp = namespace(pixels)
    images, size = math.prod(batch), h * w
    cut = xp.reshape(pixels, (images, h, height // h, w, width // w, colours))
    inside = height // h * (width // w) * colours
    cells = xp.reshape(xp.permute_dims(cut, (0, 1, 3, 2, 4, 5)), (images * size, inside))
    first = np.arange(images, dtype=np.int64)[:, None] * size
    start = like(first, pixels, dtype=index_dtype(xp))

    def look(places: Array) -> Array:
        """The values (B, M, P) of cells (B, M), counted over all images, on 0..1."""
        taken = xp.take(cells, xp.reshape(places, (-1,)), axis=0)
        return xp.reshape(xp.astype(taken, wide(xp)) / 255.0, (*shape_of(places), inside))

    def distance(some: Array, others: Array) -> Array:
        apart = xp.abs(some - others)
        if metric in ("max", "exact"):
            return xp.max(apart, axis=-1)
        mean = xp.mean(apart if metric == "mae" else apart * apart, axis=-1)
        return xp.sqrt(mean) if metric == "rmse" else mean

    limit = 0.0 if metric == "exact" else float(threshold)
    if scan == "pred_2d":
        stands = limit > 0 if anchored is None else anchored
        apart = _by_diagonals(look, distance, start, grid, limit, stands)
    else:
        apart = _by_runs(look, distance, start, grid, limit, turning=scan == "serpentine")
    edge = like(np.arange(size) == 0, pixels)
    kept = edge | (apart > limit)
    apart = xp.where(edge, xp.ones_like(apart), apart)
    return Cells(xp.reshape(kept, (*batch, size)), xp.reshape(apart, (*batch, size)))


def patches_of(cells: Array, merge: int) -> Array:
    """The patches (..., K m m) of cells (..., K), cell by cell as encoders are given them.

    >>> import numpy as np
    >>> patches_of(np.array([0, 2]), 2)
    array([ 0,  1,  2,  3,  8,  9, 10, 11])
    """
    xp = namespace(cells)
    count = merge * merge
    within = xp.arange(count, dtype=cells.dtype, device=device(cells))
    return xp.reshape(cells[..., None] * count + within, (*shape_of(cells)[:-1], -1))


Look = Callable[[Array], Array]
Distance = Callable[[Array, Array], Array]


def _by_diagonals(
    look: Look,
    distance: Distance,
    start: Array,
    grid: tuple[int, int],
    limit: float,
    anchored: bool,
) -> Array:
    """Distances (B, N) of all cells from their predictions by left, upper and upper left cell.

    A cell's neighbours lie on the two diagonals before its own. Each diagonal is a list by row
    of the cells that stand for its cells: themselves, or what a dropped one took over.
    """
    h, w = grid
    xp = namespace(start)
    before = twice_before = start + xp.zeros((1, h), dtype=start.dtype, device=device(start))
    found, order = [], []
    for diagonal in range(h + w - 1):
        low, high = max(0, diagonal - w + 1), min(h, diagonal + 1)
        rows = np.arange(low, high)
        places = rows * w + diagonal - rows
        own = start + like(places, start, dtype=start.dtype)
        left = before[:, low:high]
        above, corner = (
            xp.concat([each[:, :1], each[:, :-1]], axis=1)[:, low:high]
            for each in (before, twice_before)
        )
        top_row, first_column = (like(edge, start) for edge in (rows == 0, rows == diagonal))
        x, a, b, c = look(own), look(left), look(above), look(corner)
        edge_is_vertical = (distance(c, a) <= limit) & (distance(c, b) > limit)
        upward = first_column | (edge_is_vertical & xp.logical_not(top_row))
        prediction = xp.where(upward, above, left)
        apart = distance(x, xp.where(upward[..., None], b, a))
        stands = xp.where(apart <= limit, prediction, own) if anchored else own
        twice_before = before
        before = xp.concat([before[:, :low], stands, before[:, high:]], axis=1)
        found.append(apart)
        order.append(places)
    back = np.argsort(np.concatenate(order))
    return xp.take(xp.concat(found, axis=1), like(back, start, dtype=start.dtype), axis=1)


def _by_runs(
    look: Look,
    distance: Distance,
    start: Array,
    grid: tuple[int, int],
    limit: float,
    *,
    turning: bool,
) -> Array:
    """Distances (B, N) of all cells from the first of their run."""
    xp = namespace(start)
    table = np.arange(grid[0] * grid[1]).reshape(grid)
    if turning:
        table[1::2] = table[1::2, ::-1]
    path = table.reshape(-1)
    first, found = look(start), []
    for place in path.tolist():
        own = look(start + place)
        apart = distance(own, first)
        first = xp.where((apart > limit)[..., None], own, first)
        found.append(apart)
    back = like(np.argsort(path), start, dtype=start.dtype)
    return xp.take(xp.concat(found, axis=1), back, axis=1)
