"""Greedy marginal relevance of features that looks again only at tokens that could be picked next.

A token is as like the picks as it is like the likest of the first of them, if not more. So what is
known of it from earlier picks says what its score is at most. Only those who could be the next are
compared with the picks that they have not seen.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from secateur.backends.host.candidates import between, smallest
from secateur.backends.host.sources import Flags, Indices
from secateur.backends.lending import alone
from secateur.core.greedy import by_row
from secateur.core.maximize import Picks
from secateur.core.objectives import MarginalRelevance

MANY = 1024
"""Tokens from which a row for each pick takes longer in any case."""
ROOM = 32
"""Tokens that are brought up to date at once."""
UNKNOWN = -1.0 - 1e-9
"""Below all cosines."""


class Scores:
    """Of one image: the score of each token beside the picks that it has seen."""

    def __init__(self, f: MarginalRelevance, k: int) -> None:
        self._f, self._x = f, f.similarity().sample
        self._picked = np.empty((k, self._x.shape[1]))
        self._picks = self._count = 0
        self.largest = f.importance.astype(np.float64)
        self._own = f.balance * self.largest
        self._likeness = np.full(f.size, UNKNOWN)
        self._seen = np.zeros(f.size, dtype=np.int64)

    def add(self, pick: int) -> None:
        """A token is picked, and counts once its round is over."""
        self._picked[self._picks] = self._x[pick]
        self._picks += 1
        if self._picks % self._f.step == 0:
            if self._count == 0:
                # Now that there are picks to be like, a score is at most that of one unlike any.
                self.largest[:] = self._own - (1.0 - self._f.balance) * UNKNOWN
            self._count = self._picks

    def best(self, opened: Flags) -> int:
        """The lowest open token whose score beside all picks that count is the largest."""
        scores = np.where(opened, self.largest, -math.inf)
        behind = opened & (self._seen < self._count)
        while True:
            known = np.where(behind, -math.inf, scores)
            most = float(known.max())
            level = most - self._f.margin(most)
            waiting = np.flatnonzero(behind & (scores >= level))
            if len(waiting) == 0:
                return int((known >= level).argmax())
            some = waiting[smallest(-scores[waiting], ROOM)]
            self._see(some)
            scores[some], behind[some] = self.largest[some], False

    def _see(self, tokens: Indices) -> None:
        """Bring tokens up to date, those who have seen most with the fewest products."""
        seen, count = self._seen[tokens], self._count
        for half in (seen >= count // 2, seen < count // 2):
            some = tokens[half]
            if len(some):
                since = int(seen[half].min())
                cosines = between(self._x[some], self._picked[since:count])
                self._likeness[some] = np.maximum(self._likeness[some], cosines.max(axis=1))
        self._seen[tokens] = count
        share = 1.0 - self._f.balance
        self.largest[tokens] = self._own[tokens] - share * self._likeness[tokens]


def marginal_relevance(f: MarginalRelevance, k: Any) -> Picks:
    """Greedy marginal relevance from many features (..., N, D)."""
    # Whoever gives no numbers is told by the definition.
    many = f.features is not None and f.size >= MANY
    if not (many and np.isfinite(f.features).all() and np.isfinite(f.importance).all()):
        return cast(Picks, NotImplemented)
    return by_row(f, k, greedy)


def greedy(f: MarginalRelevance, k: int) -> Picks:
    """k picks of one image."""
    scores, opened = Scores(f, k), f.open().copy()
    picks, gains = np.empty(k, dtype=np.int64), np.empty(k)
    # All products are small.
    with alone(0):
        for step in range(k):
            picks[step] = pick = scores.best(opened)
            gains[step], opened[pick] = scores.largest[pick], False
            scores.add(pick)
    return Picks(picks, gains, np.asarray(math.nan), np.asarray(math.inf))
