"""Rows that are a softmax over all candidates: as a matrix, or worked out when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from secateur.backends.host.greedy import in_turn
from secateur.backends.host.sources import EPSILON, PRODUCT, Floats, Indices, Scratch, Twins, spans
from secateur.backends.lending import product
from secateur.core.objectives import SoftmaxBlock
from secateur.core.similarity import unit
from secateur.core.tolerances import COSINE

ROOM = PRODUCT // 4
"""Numbers at once in a pass over all pairs: each thread has room for so many."""
WARM = 64.0
"""1 / temperature below which no power that counts leaves the range of single precision."""


def directions(block: SoftmaxBlock) -> tuple[Floats, Floats]:
    """Rows (H, D) and candidates (N, D) of length one, the same ones where they are."""
    x: Any = unit(block.rows.astype(np.float64))
    same = block.rows is block.candidates
    return x, x if same else unit(block.candidates.astype(np.float64))


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


def softmax_source(block: SoftmaxBlock) -> Softmax:
    """The rows (H, N) of a block, worked out when they are asked for."""
    own = block.rows is block.candidates and 1.0 / block.temperature < WARM
    return OwnSoftmax(block) if own else Softmax(block)


class Softmax(Scratch):
    """Rows (H, N), each a softmax over all candidates: see `SoftmaxBlock`."""

    room = PRODUCT
    name = "features"
    rounding = 0.0
    shares, doubt = True, 0.0

    def __init__(self, block: SoftmaxBlock) -> None:
        super().__init__()
        self.given = block.candidates
        self._x, self._y = directions(block)
        self.height, self.size = len(self._x), len(self._y)
        self.width = self._x.shape[1]
        self._share = 1.0 / block.temperature
        self.reach = COSINE * EPSILON * max(1.0, self._share)
        self.dtype = self._x.dtype
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
        # A gain falls from here, and so does what it may be off.
        self.doubt = self.reach * float(g.max())
        return g

    def _logits(self, x: Floats, y: Floats) -> Floats:
        logits = product(x, y.T, self.scratch(len(x), len(y), x.dtype))
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

    def entries(self, i: Indices, j: int) -> Floats:
        """See `Source.entries`."""
        # Few numbers, and often: BLAS would be told each time to leave them to one thread.
        s: Floats = np.einsum("md,d->m", self._x[i], self._y[j])
        s *= self._share
        s -= self._log_total[i]
        return np.exp(s, out=s)


class OwnSoftmax(Softmax):
    r"""The same of rows that are the candidates.

    With :math:`e_{ij} = e^{(\cos(x_i, x_j) - 1) / \tau}`, which is the same in both directions, row
    i is :math:`e_{ij} / \sum_l e_{il}`: half of all pairs are looked at. Sums, columns and single
    entries are in float64. Rows, which say who may be picked next, are in single precision, and so
    are the first gains.
    """

    def __init__(self, block: SoftmaxBlock) -> None:
        super().__init__(block)
        self._rough = self._x.astype(np.float32)
        rough, logit = float(np.finfo(np.float32).eps), max(1.0, self._share) + math.log(self.size)
        self.dtype, self.reach = self._rough.dtype, COSINE * rough * logit

    def gains(self, w: Floats) -> Floats:
        """See `Source.gains`; what rows are divided by is found first."""
        total = self._summed(self._x, np.ones(self.size))
        self._log_total = self._share + np.log(total)
        g = self._summed(self._rough, w / total)
        self.doubt = self.reach * float(g.max())
        return g

    def _summed(self, x: Floats, heavy: Floats) -> Floats:
        """All e_ij of directions x (N, D), times numbers (N,): e @ heavy."""
        n = self.size

        def change(g: Floats, parts: Iterator[slice]) -> None:
            for part in parts:
                rest, above = slice(part.start, n), slice(part.stop, n)
                count = part.stop - part.start
                e = self._powers(x[part], x[rest], self.scratch(count, n - part.start, x.dtype))
                for piece in spans(*e.shape):
                    some = e[piece].astype(np.float64, copy=False)
                    g[part][piece] += some[:, count:] @ heavy[above]
                    g[rest] += heavy[part][piece] @ some

        g = np.zeros(n)
        in_turn(change, g, spans(n, n, ROOM), n * n * self.width // 2)
        return g

    def _powers(self, x: Floats, y: Floats, out: Floats | None) -> Floats:
        e = product(x, y.T, out)
        e -= 1.0
        e *= self._share
        return np.exp(e, out=e)

    @property
    def twins(self) -> Sequence[tuple[int, Twins]]:
        """See `Source.twins`."""
        return ((0, self),)

    def evenly(self, m: Floats, w: Floats) -> tuple[Floats, Floats]:
        """See `Twins.evenly`."""
        total = np.exp(self._log_total - self._share)
        return m * total, w / total

    def between(self, i: Indices | slice, j: Indices | slice, out: Floats | None = None) -> Floats:
        """See `Twins.between`."""
        return self._powers(self._rough[i], self._rough[j], out)

    def rows(self, i: Indices) -> Floats:
        """See `Source.rows`."""
        s = self._logits(self._rough[i], self._rough)
        s -= self._log_total[i, None].astype(s.dtype)
        return np.exp(s, out=s)
