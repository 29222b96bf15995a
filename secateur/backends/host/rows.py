"""Facility location over rows that are no square, come in blocks or with a mask.

From a matrix where one fits; of more tokens from entries that are worked out when they are asked
for, and listed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from secateur.backends.host.greedy import (
    EPSILON,
    PRODUCT,
    Dense,
    Entries,
    Floats,
    Indices,
    Scratch,
    Source,
    greedy,
    spans,
)
from secateur.backends.host.nearly import NearlyServed
from secateur.backends.lending import product
from secateur.core import maximize
from secateur.core.greedy import by_row
from secateur.core.maximize import Picks
from secateur.core.objectives import FacilityLocation, SoftmaxBlock
from secateur.core.objectives.blocks import shape_of_block
from secateur.core.similarity import unit

Solve = Callable[[Floats, Floats, int, float], tuple[Indices, Floats, float, float]]
"""Greedy on a matrix (H, M) by weights (H,), a budget, and the rounding of its entries."""


def of_rows(
    f: FacilityLocation, k: Any, solve: Solve, served: type[NearlyServed] = NearlyServed
) -> Picks:
    """Greedy facility location of each image: from a matrix, or as `served`, if that is too large.

    `NotImplemented` for large sparse matrices.
    """
    large = f.height * f.size > maximize.SQUARE and not isinstance(f.matrix, np.ndarray)
    if large and f.matrix is not None:
        return cast(Picks, NotImplemented)

    def run(row: FacilityLocation, budget: int) -> Picks:
        weights: Any = row.row_weights()
        total = float(weights.sum())
        rounding = row.noise / total if total > 0 else 0.0
        if large:
            source = Stacked(row, rounding)
            picks, gains, value, bound = greedy(served(source, weights), budget)
            return Picks(source.places[picks], gains, np.asarray(value), np.asarray(bound))
        matrix, places = matrix_of(row)
        picks, gains, value, bound = solve(matrix, weights, budget, rounding)
        return Picks(places[picks], gains, np.asarray(value), np.asarray(bound))

    return by_row(f, k, run)


class Softmax(Scratch):
    """Rows (H, N), each a softmax over all candidates: see `SoftmaxBlock`."""

    room = PRODUCT
    name = "blocks"
    rounding = 0.0

    def __init__(self, block: SoftmaxBlock) -> None:
        super().__init__(np.dtype(np.float64))
        self.given = block.candidates
        self._x, self._y = directions(block)
        self.height, self.size = len(self._x), len(self._y)
        self.width = self._x.shape[1]
        self._share = 1.0 / block.temperature
        self.reach = 8 * EPSILON * max(1.0, self._share)
        self._log_total = np.empty(self.height)

    def gains(self, w: Floats) -> Floats:
        """See `Source.gains`; what rows are divided by is found on the way."""
        g = np.zeros(self.size)
        for part in spans(self.height, self.size, self.room):
            s = self._logits(self._x[part], self._y)
            most = s.max(axis=1)
            s -= most[:, None]
            np.exp(s, out=s)
            total = s.sum(axis=1)
            g += (w[part] / total) @ s
            self._log_total[part] = most + np.log(total)
        return g

    def _logits(self, x: Floats, y: Floats) -> Floats:
        logits = product(x, y.T, self.scratch(len(x), len(y)))
        logits *= self._share
        return logits

    def rows(self, i: Indices) -> Floats:
        """See `Source.rows`."""
        s = self._logits(self._x[i], self._y)
        s -= self._log_total[i, None]
        return np.exp(s, out=s)

    def columns(self, j: Indices) -> Floats:
        """See `Source.columns`."""
        s = self._logits(self._y[j], self._x)
        s -= self._log_total
        return np.exp(s, out=s)


class Stacked:
    """The rows of one image's blocks, or of its features, at the tokens that may be picked."""

    room = PRODUCT

    def __init__(self, f: FacilityLocation, rounding: float) -> None:
        self._parts: list[Source] = [
            Softmax(x) if isinstance(x, SoftmaxBlock) else Dense(x) for x in f.blocks
        ] or [Entries(f.kind, f.features)]
        self.places = np.flatnonzero(f.open())
        self._all = len(self.places) == f.size
        self.name = "similarity" if f.blocks else "features"
        self.height, self.size, self.rounding = f.height, len(self.places), rounding
        self.width = max(part.width for part in self._parts)
        self.reach = max(part.reach for part in self._parts)

    @property
    def given(self) -> Any:
        """What the entries come from: of several, the first that is no number somewhere."""
        given = [part.given for part in self._parts]
        return next((x for x in given if not np.isfinite(x).all()), given[0])

    def gains(self, w: Floats) -> Floats:
        """See `Source.gains`."""
        g, start = np.zeros(self._parts[0].size), 0
        for part in self._parts:
            g += part.gains(w[start : start + part.height])
            start += part.height
        return g[self.places]

    def columns(self, j: Indices) -> Floats:
        """See `Source.columns`."""
        found = [part.columns(self.places[j]) for part in self._parts]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1, dtype=np.float64)

    def rows(self, i: Indices) -> Floats:
        """See `Source.rows`; the rows ascend."""
        found, start = [], 0
        for part in self._parts:
            own = i[np.searchsorted(i, start) : np.searchsorted(i, start + part.height)]
            if len(own):
                s = part.rows(own - start)
                found.append(s if self._all else s[:, self.places])
            start += part.height
        if not found:
            return np.empty((0, self.size))
        entries = found[0] if len(found) == 1 else np.concatenate(found)
        return entries.astype(np.float64, copy=False)


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
    x, y = directions(block)
    cosines = product(x, y.T)
    for part in spans(*cosines.shape):
        s = cosines[part]
        s -= s.max(axis=1, keepdims=True)
        s /= block.temperature
        np.exp(s, out=s)
        np.divide(s[:, some], s.sum(axis=1, keepdims=True), out=out[part])


def directions(block: SoftmaxBlock) -> tuple[Floats, Floats]:
    """Rows (H, D) and candidates (N, D) of length one, the same ones where they are."""
    x: Any = unit(block.rows.astype(np.float64))
    same = block.rows is block.candidates
    return x, x if same else unit(block.candidates.astype(np.float64))
