"""Greedy facility location that lists, for each row, the candidates that could serve it better.

Their entries are worked out once and kept until coverage has overtaken them: of features a row is
rarely computed again after the first few picks.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from secateur.backends.host.greedy import Served, lower_by_lists
from secateur.backends.host.sources import Floats, Indices, Source, spans

LISTED = 6 << 10
"""Bytes of lists for each row, on average."""
LONGEST = 4
"""How many times as long as the average one list may be."""
FREED = 0.1
"""The part of the room that must come free for the lists to be looked through again soon."""


class Lists:
    """For some rows, the candidates whose entries exceed a limit, and these entries.

    Lists of any length lie one behind the other in one piece of memory. When that is full, what
    limits have overtaken since is dropped. Threads may list rows at the same time.
    """

    def __init__(self, height: int, size: int, dtype: Any) -> None:
        index = np.dtype(np.uint16 if size <= 1 << 16 else np.int32)
        share = max(1, LISTED // (index.itemsize + np.dtype(dtype).itemsize))
        self.longest = min(size, LONGEST * share)
        self.near = np.empty(height * min(size, share), dtype=index)
        self.level = np.empty(len(self.near), dtype=dtype)
        self.start = np.zeros(height, dtype=np.int64)
        self.count = np.full(height, -1, dtype=np.int64)
        self.used = 0
        self.full = False
        self._lock = threading.Lock()

    def reserve(self, i: Indices, count: Indices) -> Indices:
        """Where lists of so many candidates of rows `i` begin; -1 where one has no room."""
        wanted = count <= self.longest
        with self._lock:
            ends = self.used + np.cumsum(np.where(wanted, count, 0))
            fits = wanted & (ends <= len(self.near))
            self.full = self.full or bool((wanted & ~fits).any())
            self.used = int(ends[fits].max(initial=self.used))
        starts = np.where(fits, ends - count, -1)
        self.start[i[fits]], self.count[i[fits]] = starts[fits], count[fits]
        return starts

    def note(self, s: Floats, i: Indices, limit: Floats) -> None:
        """List for each of rows `i`, if there is room, the candidates with entries s above."""
        better = s > limit.astype(s.dtype)[:, None]
        count = np.count_nonzero(better, axis=1)
        starts = self.reserve(i, count)
        listed = np.flatnonzero(starts >= 0)
        if len(listed) < len(i):
            better, s, starts, count = better[listed], s[listed], starts[listed], count[listed]
        # In one row: NumPy finds what is true there several times as fast as in many.
        at = np.flatnonzero(better)
        place = np.repeat(starts - (np.cumsum(count) - count), count) + np.arange(len(at))
        self.level[place] = s.reshape(-1)[at]
        self.near[place] = at - np.repeat(np.arange(len(count)) * better.shape[1], count)

    def tidy(self, limit: Floats) -> None:
        """Drop entries that do not exceed their row's limit (H,) any more."""
        self.used = self.dropped(self._in_order(), limit.astype(self.level.dtype))
        self.full = False

    def _in_order(self) -> Indices:
        """The listed rows as their lists lie in memory."""
        listed = np.flatnonzero(self.count >= 0)
        return listed[np.argsort(self.start[listed], kind="stable")]

    def dropped(self, rows: Indices, limit: Floats) -> int:
        """Move what exceeds limits to the front, list by list; how much that is."""
        used = 0
        for part in spans(len(rows), self.used // max(1, len(rows)) + 1):
            i = rows[part]
            count = self.count[i]
            first, last = self.start[i[0]], self.start[i[-1]] + count[-1]
            alive = self.level[first:last] > np.repeat(limit[i], count)
            before = np.concatenate([[0], np.cumsum(alive)])
            ends = np.cumsum(count)
            self.count[i] = before[ends] - before[ends - count]
            self.start[i] = used + before[ends - count]
            total = int(before[-1])
            self.near[used : used + total] = self.near[first:last][alive]
            self.level[used : used + total] = self.level[first:last][alive]
            used += total
        return used

    def turned(self, m: Floats, w: Floats, size: int) -> tuple[Indices, Indices, Floats, Floats]:
        """The same by candidate: where each one's begin, and the rows, ascending, that list it.

        And its gain (N,) on top of coverage m, from these rows alone, and what they weigh (N,).
        """
        # Only here, and late: SciPy takes longer to load than small choices take.
        from scipy.sparse import csr_array

        count = self.count
        starts = np.concatenate([[0], np.cumsum(count)])
        place = np.repeat(self.start - starts[:-1], count) + np.arange(starts[-1])
        near, level = self.near[place], self.level[place]
        columns = csr_array((level, near, starts), shape=(len(count), size)).tocsc()
        heavy = np.repeat(w, count)
        gains = heavy * np.maximum(level - np.repeat(m, count), 0.0)
        sums: list[Any] = [np.bincount(near, each, minlength=size) for each in (gains, heavy)]
        return columns.indptr, columns.indices, sums[0], sums[1]

    def lower(self, g: Floats, i: Indices, w: Floats, low: Floats, high: Floats) -> None:
        """Take from gains what rows `i`, all of them listed, no longer give."""
        for part in spans(len(i), self.used // len(self.count) + 1):
            at = i[part]
            args = self.start[at], self.count[at], w[part], low[part], high[part]
            lower_by_lists(g, self.near, self.level, *args)


class NearlyServed(Served):
    """As `Served`, noting down rows that few candidates could still serve better.

    As m_i rises, the candidates with s_ij > m_i, the only ones whose gains row i will ever
    change again, become few. Once there is room they are listed, and the row is never computed
    again: nearly all rows after the first two or three picks.
    """

    lists = Lists

    def __init__(self, source: Source, weights: Floats | None) -> None:
        super().__init__(source, weights)
        self.listed = self.lists(source.height, source.size, source.dtype)
        self._rows, self._later = 0, 0

    def lower(self, i: Indices, low: Floats) -> None:
        """As `Served.lower`."""
        listed = self.listed
        self._rows += len(i)
        if listed.full and self._rows >= self._later:
            before = listed.used
            # What rows `i` lose now is read from their lists, down to where they were.
            m = self.m.copy()
            m[i] = low
            listed.tidy(self._limits(m))
            if before - listed.used < FREED * len(listed.near):
                self._later = 2 * self._rows
        known = listed.count[i] >= 0
        at = i[known]
        listed.lower(self.g, at, self.w[at], low[known], self.m[at])
        self.compute(i[~known], low[~known])

    def _limits(self, m: Floats) -> Floats:
        """What entries exceed that could exceed the coverage of rows, asked another time."""
        apart = 2.0 * self.source.reach
        return m * (1.0 - apart) if self.source.shares else m - apart

    def lower_by(self, s: Floats, i: Indices, low: Floats, g: Floats) -> None:
        """As `Served.lower_by`."""
        self.listed.note(s, i, self._limits(self.m[i]))
        super().lower_by(s, i, low, g)
