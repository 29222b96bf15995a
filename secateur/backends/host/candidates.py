"""Farthest-first that looks again only at tokens that could be picked next.

A token is as near to the picks as to the nearest of the first of them, if not nearer. So what is
known of it from earlier picks says how far it is at most, and one that is near to some pick waits
until all others have come as near. Steps are taken among few candidates, whose cosines with each
other are computed at once, until somebody who waits could be farther. Then those who could are
compared with the picks that they have not seen, many at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.backends.host.farthest import (
    ByMatrix,
    CosineDistances,
    Doubtful,
    Run,
    refuse_distances,
)
from secateur.backends.host.lengths import rounded_once
from secateur.backends.host.sources import PRODUCT, Floats, Indices
from secateur.backends.lending import (
    alone,
    answer,
    budgets,
    flat,
    hands,
    in_parts,
    over_batch,
    product,
)
from secateur.core.maximize import Picks

ROOM = 64
"""Candidates at least, and tokens looked at together for the first pick."""
SPREAD = 8
"""Candidates per square root of the number of tokens."""
FEW = 8
"""One token in so many may be looked at for the first pick before all are."""
ROWS = 4
"""A matrix takes one thread as long as picks among candidates of one token in so many."""
FEW_TOKENS = 2048
"""Tokens whose matrix is sooner in any case, unless it takes more memory than they may."""


class ByCandidates(Doubtful):
    """Few cosines, of one image (1, N, D); see the module.

    Where the first pick takes looking at all tokens, `whole` says whether all cosines may be kept.
    """

    def __init__(
        self,
        features: Floats,
        run: Run | None = None,
        rounded: Callable[[Floats], Floats] = rounded_once,
        whole: bool = False,
    ) -> None:
        super().__init__(features, rounded)
        self._run = run or surely
        self._whole, self._rounded = whole, rounded
        self._room = max(ROOM, SPREAD * math.isqrt(self._size))

    def picks(self, k: int, start: int | None) -> tuple[Indices, Floats]:
        gains = self._begin(k)
        x, (picks,) = self._x[0], self._picks
        self._directions, self._noted = np.empty((k, x.shape[-1]), dtype=np.float32), 0
        if k and start is None:
            isolated = self._most_isolated()
            if isolated is None:
                return ByMatrix(self._features, self._run, self._rounded).picks(k, None)
            start = int(isolated[0])
            if len(isolated) > 1:
                start = self._told_apart(0, isolated, 0, gains)
        if k and not self._sure[0]:
            picks[0] = start
            self._nearest = product(x, x[start])
            if np.isnan(self._nearest).any():
                refuse_distances("features")
            self._nearest[start] = math.inf
            self._seen = np.ones(self._size, dtype=np.int64)
            self._go(k, gains)
        self._gained(np.flatnonzero(~self._sure), gains, k)
        return self._picks, gains

    def _go(self, k: int, gains: Floats) -> None:
        """All picks but the first."""
        x, step = self._x[0], 1
        while step < k and not self._sure[0]:
            tokens, limit = self._candidates(step)
            nearest = self._nearest[tokens]
            if nearest.min() + self._width >= limit:
                # More are in doubt than there is room for.
                self._surely(0, step, gains)
                return
            own = x[tokens]
            cosines = product(own, own.T)
            step = self._go_through(0, self._run, cosines, nearest, tokens, step, gains, limit)
            self._nearest[tokens], self._seen[tokens] = nearest, step

    def _directions_until(self, step: int) -> Floats:
        """Those (step, D) of the first picks, in single precision."""
        begun = self._noted
        self._directions[begun:step] = self._x[0, self._picks[0, begun:step]]
        self._noted = step
        return self._directions[:step]

    def _candidates(self, step: int) -> tuple[Indices, float]:
        """Tokens (M,), ascending, that know all picks, and a limit to the cosines of all others.

        The others' cosines with some pick are at least the limit, which is larger than the
        smallest one of the candidates and what is in doubt beside it, unless more than there is
        room for are.
        """
        nearest, seen, room = self._nearest, self._seen, self._room
        self._see(smallest(nearest, room), step)
        while True:
            waiting = np.flatnonzero(seen < step)
            limit = float(nearest[waiting].min(initial=math.inf))
            tokens = np.flatnonzero((seen == step) & (nearest < limit))
            enough = len(tokens) >= room // FEW
            if len(waiting) == 0 or (enough and nearest[tokens].min() + self._width < limit):
                break
            self._see(waiting[smallest(nearest[waiting], room)], step)
        if len(tokens) > room:
            limit = float(np.partition(nearest[tokens], room)[room])
            near = nearest[tokens] < limit
            tokens = tokens[near] if near.any() else tokens[:1]
        return tokens, limit

    def _see(self, tokens: Indices, step: int) -> None:
        """Compare tokens with the picks that they have not seen."""
        x, nearest, seen = self._x[0], self._nearest, self._seen
        tokens = tokens[seen[tokens] < step]
        picks = self._directions_until(step)
        with alone(int((step - seen[tokens]).sum()) * x.shape[-1]):
            for since in np.unique(seen[tokens]):
                group = tokens[seen[tokens] == since]
                near = between(x[group], picks[since:]).max(axis=1)
                nearest[group] = np.maximum(nearest[group], near)
        seen[tokens] = step

    def _most_isolated(self) -> Indices | None:
        """The tokens whose nearest other one is the farthest, but for what is in doubt.

        None where that takes looking at all, whose cosines may be kept.
        """
        x, n = self._x[0], self._size
        # Nobody is farther from the nearest other one than from who comes next.
        beside = np.vecdot(x[:-1], x[1:])
        nearest = np.full(n, -math.inf, dtype=np.float32)
        nearest[:-1] = beside
        np.maximum(nearest[1:], beside, out=nearest[1:])
        if np.isnan(nearest).any():
            refuse_distances("features")
        seen, level = np.zeros(n, dtype=bool), math.inf
        while True:
            waiting = np.flatnonzero((nearest <= level) & ~seen)
            if len(waiting) == 0:
                break
            if seen.any() and len(waiting) > n // FEW:
                if self._whole:
                    return None
                nearest, seen = CosineDistances(x).largest(), np.ones(n, dtype=bool)
                level = float(nearest.min()) + self._width
                break
            some = waiting[smallest(nearest[waiting], ROOM)]
            cosines = product(x[some], x.T)
            cosines[np.arange(len(some)), some] = -math.inf
            np.maximum(nearest, cosines.max(axis=0), out=nearest)
            nearest[some], seen[some] = cosines.max(axis=1), True
            level = min(level, float(nearest[some].min()) + self._width)
        return np.flatnonzero(seen & (nearest <= level))

    def _with_picks(self, image: int, tokens: Indices, count: int) -> Floats:
        return between(self._x[image, tokens], self._directions_until(count))


def between(x: Floats, y: Floats) -> Floats:
    """Products (M, N) of vectors (M, D) with others (N, D)."""
    # BLAS copies the right ones first, which should be the fewer.
    return product(y, x.T).T if len(x) < len(y) else product(x, y.T)


def smallest(x: Floats, count: int) -> Indices:
    """The places of the smallest numbers, in any order; all where there are no more than that."""
    if len(x) <= count:
        return np.arange(len(x))
    places: Indices = np.argpartition(x, count)[:count]
    return places


def surely(
    cosines: Floats, nearest: Floats, picks: Indices, begun: int, width: float, limit: float
) -> int:
    """A `Run` in whole-array steps."""
    for step in range(begun, len(picks)):
        level = nearest.min() + width
        if level >= limit:
            return step
        near = nearest <= level
        if np.count_nonzero(near) != 1:
            return step
        place = picks[step] = near.argmax()
        if step == 0:
            nearest[:] = cosines[place]
        else:
            np.maximum(nearest, cosines[place], out=nearest)
        nearest[place] = math.inf
    return len(picks)


def by_matrix(size: int, count: int, k: int) -> bool:
    """Whether all cosines of so many tokens of so many channels are the sooner way to k picks."""
    return size < FEW_TOKENS or ROWS * k * hands(size * size * count // 2) >= size


def of_features(
    features: Floats,
    k: Any,
    start: int | None,
    *,
    matrix: bool,
    run: Run | None = None,
    rounded: Callable[[Floats], Floats] = rounded_once,
    workers: int = 1,
) -> Picks:
    """Farthest-first of features (..., N, D) under 1 - cos; `matrix` if N x N may be built.

    By `run` every image takes its steps alone, some beside each other.
    """
    size, count = features.shape[-2:]
    at_once = matrix and by_matrix(size, count, int(np.max(k, initial=0)))
    if at_once and run is None:
        room = max(1, PRODUCT // size**2)
        return in_parts(features, None, k, room, lambda x, _, k: _each(x, k, start))

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        x = features[at][None]
        way = ByMatrix(x, run, rounded) if at_once else ByCandidates(x, run, rounded, matrix)
        picks, gains = way.picks(budget, start)
        return picks[0], gains[0], float(gains[0, 1:].min(initial=math.inf)), math.inf

    return over_batch(features.shape[:-2], k, solve, workers)


def _each(features: Floats, k: Any, start: int | None) -> Picks:
    """The same of as many images as there is room for the matrices of."""
    x = flat(features, 2)
    each, longest = budgets(k, (len(x),))
    picks, gains = ByMatrix(x).picks(longest, start)
    # A pick's gain is its distance to those before it.
    behind = np.arange(longest) >= each[:, None]
    value = np.where(behind, math.inf, gains)[:, 1:].min(axis=1, initial=math.inf)
    picks[behind], gains[behind] = -1, 0.0
    return answer(features.shape[:-2], picks, gains, value)
