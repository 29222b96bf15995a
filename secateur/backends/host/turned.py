"""Greedy facility location that computes few similarities.

`NearlyServed` computes the row of every token that a pick serves better until its list has room.
Two parts of that can be spared:

- The first pick touches all rows. Of tokens with each other, an entry of one is an entry of the
  other token's row as well, so half of the products will do.
- Once all rows are listed, the lists are turned round. A candidate's exact gain is a sum over the
  few rows that it could still serve better, and no column is computed any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from secateur.backends.host.greedy import in_turn
from secateur.backends.host.nearly import NearlyServed
from secateur.backends.host.sources import PRODUCT, Floats, Indices, Source, Twins, spans

TURN = 16
"""Picks after which it is looked at whether the lists can be turned round, and after twice as many
again, and so on."""


class TurnedServed(NearlyServed):
    """As `NearlyServed`, until lists are turned; see the module."""

    def __init__(self, source: Source, weights: Floats | None) -> None:
        super().__init__(source, weights)
        self._picks, self._next = 0, TURN
        self._columns: tuple[Indices, Indices] | None = None
        self._whose = -1
        self._own: tuple[Indices, Floats] = np.empty(0, dtype=np.int64), np.empty(0)

    def take(self) -> tuple[int, float]:
        """As `Served.take`."""
        if self._picks >= self._next:
            self._turn()
            # Lists grow shorter all the time, but less and less.
            self._next = 2 * self._picks
        pick, gain = super().take()
        self._picks += 1
        return pick, gain

    def lower(self, i: Indices, low: Floats) -> None:
        """Take from all gains what rows `i` no longer give, served by `low` until now."""
        if self._picks == 0:
            # Rows that the first pick does not serve have a coverage of 0 still, and lose nothing.
            other = np.ones(len(i), dtype=np.bool_)
            for start, own in self.source.twins:
                self._lower_twins(start, own)
                other &= (i < start) | (i >= start + own.size)
            i, low = i[other], low[other]
        super().lower(i, low)

    def _lower_twins(self, start: int, own: Twins) -> None:
        """The same of all rows from `start` on that are twins, after the first pick."""
        n, rows = own.size, slice(start, start + own.size)
        m, w = own.evenly(self.m[rows], self.w[rows])

        def change(g: Floats, parts: Iterator[slice]) -> None:
            for part in parts:
                rest = slice(part.start, n)
                out = own.scratch(part.stop - part.start, n - part.start, own.dtype)
                self._lower_both(own.between(part, rest, out), m[rest], w[rest], g[rest])

        lost = np.zeros(n)
        # In sixteen parts at least: within one, both halves are computed.
        parts = spans(n, n, min(PRODUCT, max(n, n * n // 16)))
        in_turn(change, lost, parts, n * n * own.width)
        self.g += lost[self.source.places]

    def _lower_both(self, s: Floats, high: Floats, w: Floats, g: Floats) -> None:
        """Take from gains what rows served by none before no longer give.

        Entries s (M, N) are those of the first M rows; what they say of the other rows and the
        first M candidates is taken as well.
        """
        count, limit = len(s), high.astype(s.dtype)
        for piece in spans(*s.shape):
            rows = s[piece]
            rest = np.minimum(rows[:, count:], limit[count:]).astype(np.float64, copy=False)
            g[piece] -= rest @ w[count:]
            np.minimum(rows, limit[piece, None], out=rows)
            g -= w[piece] @ rows.astype(np.float64, copy=False)

    def _turn(self) -> None:
        """Turn the lists round, once every row has one and few candidates are left on them."""
        source, listed = self.source, self.listed
        open_rows = np.flatnonzero(listed.count < 0)
        if len(open_rows) > source.height // TURN:
            return
        listed.tidy(self._limits(self.m))
        # They lose nothing: what they give is known. But they may be listed.
        self.compute(open_rows, self.m[open_rows])
        if (listed.count < 0).any() or listed.used > len(listed.near) // 4:
            return
        starts, rows, gains, heavy = listed.turned(self.m, self.w, source.size)
        self._columns = starts, rows
        # The gains anew from the lists alone: what is off in rows that serve nobody is gone.
        self.g[:] = np.where(np.isneginf(self.g), -math.inf, gains)
        self._terms = int(np.diff(starts).max())
        self._largest = float(self.g.max())
        self._reach = self._off(float(heavy.max()))

    def _look(self, candidates: Indices) -> Floats:
        """The exact gains of candidates, from what they are listed for where that is known."""
        if self._columns is None:
            return super()._look(candidates)
        gains = np.empty(len(candidates))
        for place, candidate in enumerate(candidates.tolist()):
            # The last one is often the pick; what it is listed for is then at hand.
            i, s = self._own = self._listed(candidate)
            self._whose = candidate
            gains[place] = float(np.maximum(s - self.m[i], 0.0) @ self.w[i])
        return gains

    def _improved(self, pick: int) -> tuple[Indices, Floats]:
        """The rows that a pick serves better, ascending, and how well."""
        if self._columns is None:
            return super()._improved(pick)
        i, s = self._own if self._whose == pick else self._listed(pick)
        better = s > self.m[i]
        return i[better], s[better]

    def _listed(self, candidate: int) -> tuple[Indices, Floats]:
        """The rows (M,) that list a candidate, ascending, and its entries there."""
        assert self._columns is not None
        starts, rows = self._columns
        i = rows[starts[candidate] : starts[candidate + 1]]
        return i, self.source.entries(i, candidate)
