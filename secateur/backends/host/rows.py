"""Facility location over rows that are no square, come in blocks or with a mask.

From a matrix where one fits; of more tokens from entries that are worked out when they are asked
for, and listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from secateur.backends.host.greedy import greedy
from secateur.backends.host.lengths import rounded_once
from secateur.backends.host.softmax import softmax_rows, softmax_source
from secateur.backends.host.sources import (
    PRODUCT,
    Cosine,
    Dense,
    Entries,
    Floats,
    Indices,
    Source,
    Twins,
)
from secateur.backends.host.turned import TurnedServed
from secateur.core import maximize
from secateur.core.greedy import by_row
from secateur.core.kernels import TEMPERATURE, Kind
from secateur.core.maximize import Picks
from secateur.core.objectives import FacilityLocation, SoftmaxBlock
from secateur.core.objectives.blocks import shape_of_block

Solve = Callable[[Floats, Floats, int, float], tuple[Indices, Floats, float, float]]
"""Greedy on a matrix (H, M) by weights (H,), a budget, and the rounding of its entries."""


def cosine_source(features: Floats) -> Cosine:
    """(1 + cos) / 2 of features (N, D)."""
    return Cosine(rounded_once(features))


def compared_source(kind: Kind, features: Floats) -> Source:
    """The similarities of features (N, D) by another kind than cosines."""
    if kind == "softmax":
        return softmax_source(SoftmaxBlock(features, features, TEMPERATURE))
    return Entries(kind, features)


def of_rows(
    f: FacilityLocation,
    k: Any,
    solve: Solve,
    served: type[TurnedServed] = TurnedServed,
    cosines: Callable[[Floats], Cosine] = cosine_source,
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
            source = Stacked(row, rounding, cosines)
            picks, gains, value, bound = greedy(served(source, weights), budget)
            return Picks(source.places[picks], gains, np.asarray(value), np.asarray(bound))
        matrix, places = matrix_of(row)
        picks, gains, value, bound = solve(matrix, weights, budget, rounding)
        return Picks(places[picks], gains, np.asarray(value), np.asarray(bound))

    return by_row(f, k, run)


class Stacked:
    """The rows of one image's blocks, or of its features, at the tokens that may be picked."""

    room = PRODUCT

    def __init__(
        self, f: FacilityLocation, rounding: float, cosines: Callable[[Floats], Cosine]
    ) -> None:
        self._parts: list[Source] = [
            softmax_source(x) if isinstance(x, SoftmaxBlock) else Dense(x) for x in f.blocks
        ] or [cosines(f.features) if f.kind == "cosine" else compared_source(f.kind, f.features)]
        self.places = np.flatnonzero(f.open())
        self._all = len(self.places) == f.size
        self.name = "similarity" if f.blocks else "features"
        self.height, self.size, self.rounding = f.height, len(self.places), rounding
        self.width = max(part.width for part in self._parts)
        self.reach = max(part.reach for part in self._parts)
        self.shares, self.doubt = any(part.shares for part in self._parts), 0.0
        # What is known to more than others' single precision is held in it, too.
        least = [part.dtype for part in self._parts if part.reach == self.reach or not part.shares]
        single = max(dtype.itemsize for dtype in least) <= 4
        self.dtype = np.dtype(np.float32 if single else np.float64)

    @property
    def twins(self) -> Sequence[tuple[int, Twins]]:
        """See `Source.twins`."""
        found, start = [], 0
        for part in self._parts:
            found += [(start + place, own) for place, own in part.twins]
            start += part.height
        return found

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
        self.doubt = sum(part.doubt for part in self._parts)
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
            return np.empty((0, self.size), dtype=self.dtype)
        if len(found) == 1:
            return found[0].astype(self.dtype, copy=False)
        return np.concatenate(found, dtype=self.dtype, casting="same_kind")

    def entries(self, i: Indices, j: int) -> Floats:
        """See `Source.entries`; the rows ascend."""
        found, start, place = [], 0, int(self.places[j])
        for part in self._parts:
            own = i[np.searchsorted(i, start) : np.searchsorted(i, start + part.height)]
            found.append(part.entries(own - start, place))
            start += part.height
        return found[0] if len(found) == 1 else np.concatenate(found, dtype=np.float64)


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
