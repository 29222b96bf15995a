"""Similarities that greedy facility location asks for: of a matrix, of features, of sparse rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from secateur.backends.lending import product
from secateur.core.kernels import Kind, compared

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Indices = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

EPSILON = float(np.finfo(np.float64).eps)
COSINE_ROUNDING = 8 * EPSILON
"""What counts as equal from features: the rounding of a cosine in float64."""
BLOCK = 1 << 18
"""Numbers worked on at once, so that temporaries stay in the processor's cache."""
PRODUCT = 1 << 23
"""Similarities computed at once from features: enough for the matrix product to be fast."""


def spans(count: int, width: int, room: int | None = None) -> Iterator[slice]:
    """Slices that cover `count` rows of `width` numbers, `room` or a block of numbers in each."""
    step = max(1, (BLOCK if room is None else room) // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def shifted(cosine: Floats) -> Floats:
    """(1 + cos) / 2 within [0, 1], written over the cosines."""
    cosine *= 0.5
    cosine += 0.5
    return np.clip(cosine, 0.0, 1.0, out=cosine)


class Source(Protocol):
    """Similarities s_ij of `size` tokens, by columns j and `height` rows i."""

    size: int
    height: int
    dtype: np.dtype[Any]
    """Of the rows."""
    reach: float
    """How far one entry asked for twice may differ."""
    shares: bool
    """Whether that is a share of the entry."""
    doubt: float
    """How far a gain may be off, of entries that are known to a share, once gains are known."""
    rounding: float
    """How far an entry may be off, as far as ties go; 0 for entries that are given."""
    room: int
    """Entries worth asking for at once."""
    width: int
    """Multiplications that one entry takes."""
    name: str
    """What the user calls what they come from."""

    @property
    def places(self) -> Indices | slice:
        """Which of the candidates they are of."""

    @property
    def twins(self) -> Sequence[tuple[int, Twins]]:
        """Rows, from which one on, whose entries say what others' are."""

    @property
    def given(self) -> Any:
        """What the similarities come from."""

    def gains(self, w: Floats) -> Floats:
        """The gains (N,) of all tokens on top of none."""

    def columns(self, j: Indices) -> Floats:
        """Entries (M, H) of the columns at `j` (M,)."""

    def rows(self, i: Indices) -> Floats:
        """Entries (M, N) of the rows at `i` (M,), the caller's until its thread asks again."""

    def entries(self, i: Indices, j: int) -> Floats:
        """Entries (M,) of column `j` at the rows `i`."""


class Twins(Protocol):
    """Rows (N, N) of entries e_ij / z_i, where e_ij is e_ji."""

    size: int
    dtype: np.dtype[Any]
    width: int

    def between(self, i: Indices | slice, j: Indices | slice, out: Floats | None = None) -> Floats:
        """Such e (M, L) of rows `i` and columns `j`, in `out` where there is one."""

    def scratch(self, rows: int, columns: int, dtype: np.dtype[Any]) -> Floats:
        """See `Scratch.scratch`."""

    def evenly(self, m: Floats, w: Floats) -> tuple[Floats, Floats]:
        """Coverages and weights of rows, as if their entries were e."""


class Whole:
    """What most sources are: of all candidates, and no row says what others' entries are."""

    places: Indices | slice = slice(None)
    shares, doubt = False, 0.0

    @property
    def twins(self) -> Sequence[tuple[int, Twins]]:
        return ()


class Dense(Whole):
    """A matrix (H, N)."""

    reach = 0.0
    room = BLOCK
    width = 1

    def __init__(self, matrix: Floats, rounding: float = 0.0, name: str = "similarity") -> None:
        self.given, self.name = matrix, name
        self._matrix = matrix
        self.dtype = matrix.dtype
        self.height, self.size = matrix.shape
        self.rounding = rounding

    def gains(self, w: Floats) -> Floats:
        g = np.zeros(self.size)
        for part in spans(self.height, self.size):
            g += w[part] @ np.maximum(self._matrix[part], 0.0).astype(np.float64, copy=False)
        return g

    def columns(self, j: Indices) -> Floats:
        return self._matrix[:, j].T

    def rows(self, i: Indices) -> Floats:
        return self._matrix[i]

    def entries(self, i: Indices, j: int) -> Floats:
        entries: Floats = self._matrix[i, j]
        return entries


class Scratch(Whole):
    """Memory for entries, one piece for each thread.

    What the system hands out anew costs a fifth of what a product in it does.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    def scratch(self, rows: int, columns: int, dtype: np.dtype[Any]) -> Floats:
        """Room for entries (rows, columns), the calling thread's until it asks again."""
        room, wanted = getattr(self._mine, "room", None), rows * columns * dtype.itemsize
        if room is None or len(room) < wanted:
            room = self._mine.room = np.empty(wanted, dtype=np.uint8)
        return room[:wanted].view(dtype).reshape(rows, columns)


class Cosine(Scratch):
    """(1 + cos) / 2 of unit vectors (N, D)."""

    room = PRODUCT
    rounding = COSINE_ROUNDING
    name = "features"

    def __init__(self, directions: Floats) -> None:
        super().__init__()
        self.directions = self.given = directions
        self.dtype = directions.dtype
        self.size = self.height = len(directions)
        self.width = directions.shape[1]
        self.reach = 8 * float(np.finfo(directions.dtype).eps)

    def gains(self, w: Floats) -> Floats:
        # sum_i w_i (1 + x_i x_j) / 2: no pair of tokens has to be looked at.
        mean = np.zeros(self.directions.shape[1])
        for part in spans(self.size, len(mean)):
            mean += w[part] @ self.directions[part]
        g = np.empty(self.size)
        for part in spans(self.size, len(mean)):
            g[part] = self.directions[part] @ mean
        gains: Floats = 0.5 * (g + w.sum())
        return gains

    @property
    def twins(self) -> Sequence[tuple[int, Twins]]:
        return ((0, self),)

    def evenly(self, m: Floats, w: Floats) -> tuple[Floats, Floats]:
        return m, w

    def between(self, i: Indices | slice, j: Indices | slice, out: Floats | None = None) -> Floats:
        """Entries (M, L) of rows `i` and columns `j`, in `out` where there is one."""
        return shifted(product(self.directions[i], self.directions[j].T, out))

    def columns(self, j: Indices) -> Floats:
        return self.between(j, slice(None))

    def rows(self, i: Indices) -> Floats:
        return self.between(i, slice(None), self.scratch(len(i), self.size, self.dtype))

    def entries(self, i: Indices, j: int) -> Floats:
        return shifted(product(self.directions[i], self.directions[j]))


class Entries(Whole):
    """Another similarity of features (N, D), in float64."""

    room = PRODUCT
    dtype = np.dtype(np.float64)
    name = "features"

    def __init__(self, kind: Kind, features: Floats) -> None:
        self.given = features
        self.size = self.height = len(features)
        self.width = features.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            self._kernel = compared(kind, features, product)
        self.reach = self.rounding = COSINE_ROUNDING * self._kernel.error

    def gains(self, w: Floats) -> Floats:
        g = np.zeros(self.size)
        for part in spans(self.size, self.size, self.room):
            g += w[part] @ self.rows(np.arange(self.size)[part])
        return g

    def columns(self, j: Indices) -> Floats:
        entries: Floats = self._kernel.columns(j).T
        return entries

    def rows(self, i: Indices) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):
            entries: Floats = self._kernel.rows(i)
        return entries

    def entries(self, i: Indices, j: int) -> Floats:
        column: Floats = self.columns(np.asarray([j]))[0]
        return column[i]


class Sparse(Whole):
    """A SciPy CSR matrix (N, N) in canonical form; absent entries are 0."""

    reach = 0.0
    rounding = 0.0
    room = BLOCK
    width = 1
    name = "similarity"

    def __init__(self, matrix: Any) -> None:
        self._rows = self.given = matrix
        self.dtype = matrix.dtype
        self._columns = matrix.tocsc()
        self.size = self.height = int(matrix.shape[0])

    def gains(self, w: Floats) -> Floats:
        rows = self._rows
        w = np.repeat(w, np.diff(rows.indptr))
        gains = np.bincount(rows.indices, w * np.maximum(rows.data, 0.0), minlength=self.size)
        return gains.astype(np.float64, copy=False)

    def columns(self, j: Indices) -> Floats:
        dense: Floats = self._columns[:, j].T.toarray()
        return dense

    def rows(self, i: Indices) -> Floats:
        dense: Floats = self._rows[i].toarray()
        return dense

    def entries(self, i: Indices, j: int) -> Floats:
        column: Floats = self.columns(np.asarray([j]))[0]
        return column[i]
