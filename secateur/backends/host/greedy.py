"""Greedy facility location in whole-array steps: who is served how well, and by whom better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from secateur.backends.host.sources import (
    BLOCK,
    EPSILON,
    Floats,
    Indices,
    Source,
    Sparse,
    spans,
)
from secateur.backends.lending import hands, side_by_side
from secateur.core.objectives.coverage import refuse_sums


def in_turn(
    change: Callable[[Floats, Iterator[slice]], None],
    g: Floats,
    parts: Iterable[slice],
    work: int,
) -> None:
    """Change sums by parts, which as many threads share as so many multiplications are worth."""
    shared, threads = iter([*parts]), hands(work)
    if threads < 2:
        change(g, shared)
        return

    def one(parts: Iterator[slice]) -> Floats:
        own = np.zeros(len(g))
        change(own, parts)
        return own

    # One iterator: who is done with a part takes the next.
    for each in side_by_side(one, [(shared,)] * threads, work):
        g += each


class Served:
    r"""How well tokens are served, and what every candidate would add: greedy's whole state.

    Coverage :math:`m_i = \max_{j \in S} s_{ij}` (at least 0), gains
    :math:`g_j = \sum_i w_i \max(0, s_{ij} - m_i)`. A pick raises some m_i, and only those rows
    change gains: about five times N rows over all picks of a photograph, not k N.
    """

    piece = BLOCK
    """Entries that `lower_by` takes at once, so that its temporaries stay in cache."""

    def __init__(self, source: Source, weights: Floats | None) -> None:
        self.source = source
        rows = np.ones(source.height) if weights is None else weights
        self.w = rows.astype(np.float64, copy=False)
        self.m = np.zeros(source.height)
        with np.errstate(over="ignore", invalid="ignore"):
            self.g = source.gains(self.w)
            # No set is worth more than all gains together, and no bound adds up twice as much.
            summable = math.isfinite(4.0 * float(self.g.sum()))
        if not summable:
            refuse_sums(source.given, weights, source.name)
        # The gains last worked out exactly; one that still equals its g_j needs no second look.
        self._exact = self.g.copy() if source.reach == 0.0 else np.full(source.size, np.nan)
        self._largest = float(self.g.max())
        self._terms = source.height
        # Where entries are given exactly their weights may add up to more than float64 holds.
        heavy = float(self.w.sum()) if source.reach or source.rounding else 0.0
        self._reach = self._off(heavy)
        self._rounding = source.rounding * heavy
        self._at_hand = -1, np.empty(0)

    def _off(self, heavy: float) -> float:
        """How far gains may be off, as entries of rows that weigh so much are."""
        return self.source.doubt if self.source.shares else self.source.reach * heavy

    @property
    def slack(self) -> float:
        """How far a g_j may be from exact: every term added to it was rounded."""
        return 4 * EPSILON * self._terms * self._largest + self._reach

    def _margin(self, best: float) -> float:
        """How far below the best gain another may lie and still count as equal."""
        terms = max(len(self.g), len(self.m))
        return 4.0 * terms * EPSILON * abs(best) + self._rounding

    def largest(self, k: int) -> float:
        """The sum of the k largest gains."""
        worth = self.worth(slice(None))
        n = len(worth)
        top = worth if k == n else np.partition(worth, n - k)[n - k :]
        return float(np.maximum(top, 0.0).sum())

    def worth(self, at: Indices | slice) -> Floats:
        """What greedy goes by, of some tokens: their gains."""
        return self.g[at]

    def take(self) -> tuple[int, float]:
        """Pick the token of largest gain, ties to the lowest index; its gain, exactly."""
        g, worth = self.g, self.worth(slice(None))
        best = float(worth.max())
        hopeful = np.flatnonzero(worth >= best - 2.0 * self.slack - self._margin(best))
        stale = hopeful[g[hopeful] != self._exact[hopeful]]
        g[stale] = self._look(stale)
        self._exact[stale] = g[stale]
        exact = self.worth(hopeful)
        best = float(exact.max())
        place = int(np.argmax(exact >= best - self._margin(best)))
        pick, gain = int(hopeful[place]), float(exact[place])
        improved, high = self._improved(pick)
        self._terms += len(improved)
        low = self.m[improved]
        self.m[improved] = high
        g[pick] = -math.inf
        self.lower(improved, low)
        return pick, gain

    def _look(self, candidates: Indices) -> Floats:
        """The exact gains of candidates, from their columns."""
        gains = np.empty(len(candidates))
        for part in spans(len(candidates), len(self.m), self.source.room):
            entries = self.source.columns(candidates[part])
            gains[part] = self._gains(entries)
        if len(candidates) == 1:
            # Often it is the pick; its column is then at hand.
            self._at_hand = int(candidates[0]), entries[0]
        return gains

    def _improved(self, pick: int) -> tuple[Indices, Floats]:
        """The rows that a pick serves better, ascending, and how well."""
        last, column = self._at_hand
        if last != pick:
            column = self.source.columns(np.asarray([pick]))[0]
        self._at_hand = -1, column[:0]
        improved = np.flatnonzero(column > self.m)
        return improved, column[improved]

    def _gains(self, columns: Floats) -> Floats:
        return np.maximum(columns - self.m, 0.0) @ self.w

    def lower(self, i: Indices, low: Floats) -> None:
        """Take from all gains what rows `i` no longer give, served by `low` until now."""
        self.compute(i, low)

    def compute(self, i: Indices, low: Floats) -> None:
        """The same of rows that are computed for it."""
        n = len(self.g)

        def change(g: Floats, parts: Iterator[slice]) -> None:
            for part in parts:
                s = self.source.rows(i[part])
                for piece in spans(len(s), n, self.piece):
                    self.lower_by(s[piece], i[part][piece], low[part][piece], g)

        # As many for each thread, and of the same size: nobody waits long for the last one.
        work = len(i) * n * self.source.width
        threads = hands(work)
        count = threads * -(-len(i) * n // (threads * self.source.room))
        in_turn(change, self.g, spans(len(i), 1, -(-len(i) // max(1, count))), work)

    def lower_by(self, s: Floats, i: Indices, low: Floats, g: Floats) -> None:
        """The same, taken from `g`, for rows whose entries s (M, N) are at hand, overwritten."""
        # max(0, s - low) - max(0, s - high) = min(max(s, low), high) - low. Neither bound is
        # rounded in the dtype of s by more than an entry may be off. Taken from each entry, low
        # leaves nothing of those below it: what a light row gave is not lost beside a heavy one.
        low, high = low.astype(s.dtype), self.m[i].astype(s.dtype)
        np.maximum(s, low[:, None], out=s)
        np.minimum(s, high[:, None], out=s)
        # Numbers within a factor of two differ by one of their own dtype.
        if not np.all((0.5 * high <= low) | (low == 0.0)):
            s = s.astype(np.float64, copy=False)
        s -= low[:, None]
        g -= self.w[i] @ s.astype(np.float64, copy=False)


def lower_by_lists(
    g: Floats,
    near: Indices,
    level: Floats,
    starts: Indices,
    count: Indices,
    w: Floats,
    low: Floats,
    high: Floats,
) -> None:
    """Take from gains what rows, listed at `starts` in flat arrays, no longer give."""
    total = int(count.sum())
    at = np.repeat(starts - (np.cumsum(count) - count), count) + np.arange(total)
    lost = np.maximum(level.reshape(-1)[at].astype(np.float64), np.repeat(low, count))
    np.minimum(lost, np.repeat(high, count), out=lost)
    lost -= np.repeat(low, count)
    lost *= np.repeat(w, count)
    g -= np.bincount(near.reshape(-1)[at], lost, minlength=len(g))


class Listed(Served):
    """The same from a CSR matrix: its rows are lists already."""

    def __init__(self, matrix: Any, weights: Floats | None) -> None:
        self._rows = matrix
        super().__init__(Sparse(matrix), weights)

    def lower(self, i: Indices, low: Floats) -> None:
        rows = self._rows
        starts = rows.indptr[i].astype(np.int64)
        count = rows.indptr[i + 1] - starts
        # Entries at or below the old coverage are clipped away like absent ones.
        lower_by_lists(self.g, rows.indices, rows.data, starts, count, self.w[i], low, self.m[i])


def greedy(state: Served, k: int) -> tuple[Indices, Floats, float, float]:
    """k picks with their gains, the value, and the smallest bound on the best value."""
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    total, bound = 0.0, math.inf
    for step in range(k):
        bound = min(bound, total + k * state.slack + state.largest(k))
        picks[step], gains[step] = state.take()
        total += float(gains[step])
    bound = min(bound, total + k * state.slack + state.largest(k))
    return picks, gains, float(state.w @ state.m), bound
