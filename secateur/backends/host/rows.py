"""Facility location over rows that are no square, come in blocks or with a mask: from a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from secateur.backends.host.greedy import Floats, Indices, spans
from secateur.backends.lending import product
from secateur.core import maximize
from secateur.core.greedy import by_row
from secateur.core.maximize import Picks
from secateur.core.objectives import FacilityLocation, SoftmaxBlock
from secateur.core.objectives.blocks import shape_of_block
from secateur.core.similarity import unit

Solve = Callable[[Floats, Floats, int, float], tuple[Indices, Floats, float, float]]
"""Greedy on a matrix (H, M) by weights (H,), a budget, and the rounding of its entries."""


def from_matrices(f: FacilityLocation, k: Any, solve: Solve) -> Picks:
    """Greedy facility location from the matrix of each image.

    `NotImplemented` where one would not fit; the entries are worked out as asked then.
    """
    if f.height * f.size > maximize.SQUARE:
        return cast(Picks, NotImplemented)

    def run(row: FacilityLocation, budget: int) -> Picks:
        matrix, places = matrix_of(row)
        weights: Any = row.row_weights()
        total = float(weights.sum())
        rounding = row.noise / total if total > 0 else 0.0
        picks, gains, value, bound = solve(matrix, weights, budget, rounding)
        return Picks(places[picks], gains, np.asarray(value), np.asarray(bound))

    return by_row(f, k, run)


def matrix_of(f: FacilityLocation) -> tuple[Any, Indices]:
    """The entries (H, M) of one image's selectable tokens, and which those are, ascending."""
    places = np.flatnonzero(f.open())
    some: Any = slice(None) if len(places) == f.size else places
    if isinstance(f.matrix, np.ndarray):
        return f.matrix[:, some], places
    if not f.blocks:
        return f.similarity.columns(places), places
    dtypes = {np.dtype(np.float64 if isinstance(x, SoftmaxBlock) else x.dtype) for x in f.blocks}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float64)
    matrix = np.empty((f.height, len(places)), dtype=dtype)
    start = 0
    for block in f.blocks:
        stop = start + shape_of_block(block)[-2]
        if isinstance(block, SoftmaxBlock):
            softmax_rows(block, some, matrix[start:stop])
        else:
            matrix[start:stop] = block[:, some]
        start = stop
    return matrix, places


def softmax_rows(block: SoftmaxBlock, some: Any, out: Floats) -> None:
    """Write the rows of a block, each a softmax over all candidates, at some of these.

    Rows that are the candidates themselves take half of a product: BLAS is given one matrix.
    """
    x: Any = unit(block.rows.astype(np.float64))
    same = block.rows is block.candidates
    y: Any = x if same else unit(block.candidates.astype(np.float64))
    cosines = product(x, y.T)
    for part in spans(*cosines.shape):
        s = cosines[part]
        s -= s.max(axis=1, keepdims=True)
        s /= block.temperature
        np.exp(s, out=s)
        np.divide(s[:, some], s.sum(axis=1, keepdims=True), out=out[part])
