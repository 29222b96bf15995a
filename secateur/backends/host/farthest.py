"""Farthest-first in whole-array steps: how far every token is from those picked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import numpy as np

from secateur.backends.host.greedy import EPSILON, PRODUCT, Floats, Indices, shifted, spans
from secateur.backends.lending import answer, budgets, flat, in_parts, over_batch, product
from secateur.core.maximize import Picks

Unit = Callable[[Floats], Floats]
"""Scales vectors (..., D) to length one."""


class Distances(Protocol):
    """Distances d_ij of `size` tokens."""

    size: int
    margin: float
    """Distances that differ by less than this count as equal."""

    def to(self, j: int) -> Floats:
        """Distances (N,) of all tokens to one."""

    def nearest(self) -> Floats:
        """Distance (N,) of every token to the nearest other one."""

    def among(self, picks: Indices) -> Floats:
        """Distances (M, M) of the picks to each other."""


class GivenDistances:
    """A matrix (N, N)."""

    margin = 0.0

    def __init__(self, matrix: Floats) -> None:
        self._matrix = matrix
        self.size = len(matrix)

    def to(self, j: int) -> Floats:
        column: Floats = self._matrix[:, j]
        return column

    def nearest(self) -> Floats:
        nearest = np.full(self.size, math.inf, dtype=self._matrix.dtype)
        for part in spans(self.size, self.size):
            d = self._matrix[part].copy()
            d[np.arange(len(d)), np.arange(part.start, part.stop)] = math.inf
            np.minimum(nearest, d.min(axis=0), out=nearest)
        return nearest

    def among(self, picks: Indices) -> Floats:
        block: Floats = self._matrix[np.ix_(picks, picks)]
        return block


class CosineDistances:
    """1 - cos of unit vectors (N, D), in float64: cosines decide picks."""

    margin = 16 * EPSILON

    def __init__(self, directions: Floats) -> None:
        self._x = directions
        self.size = len(directions)

    def to(self, j: int) -> Floats:
        return apart(product(self._x, self._x[j]))

    def nearest(self) -> Floats:
        if self.size == 1:
            return np.full(1, math.inf)
        # Half of the products: every block with itself and with what follows. The largest
        # cosine belongs to the smallest distance.
        largest = np.full(self.size, -math.inf, dtype=self._x.dtype)
        for part in spans(self.size, self.size, PRODUCT):
            cosine = product(self._x[part], self._x[part.start :].T)
            own = np.arange(len(cosine))
            cosine[own, own] = -math.inf
            np.maximum(largest[part], cosine.max(axis=1), out=largest[part])
            rest = largest[part.start :]
            np.maximum(rest, cosine.max(axis=0), out=rest)
        return apart(largest)

    def among(self, picks: Indices) -> Floats:
        return apart(product(self._x[picks], self._x[picks].T))

    def rows(self, part: slice) -> Floats:
        """The vectors of a part of the tokens."""
        return self._x[part]


def apart(cosine: Floats) -> Floats:
    """1 - cos within [0, 2], written over the cosines, rounded as 2 (1 - (1 + cos) / 2)."""
    s = shifted(cosine)
    np.subtract(1.0, s, out=s)
    s *= 2.0
    return s


def farthest(distances: Distances, k: int, start: int | None) -> tuple[Indices, Floats, float]:
    """Farthest-first: picks, their gains, and the smallest distance between two of them."""
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    nearest = distances.nearest() if start is None else distances.to(start)
    _go_on(distances, picks, gains, 0, start, nearest)
    return picks, gains, smallest_between(distances, picks)


def _go_on(
    distances: Distances,
    picks: Indices,
    gains: Floats,
    begun: int,
    start: int | None,
    nearest: Floats,
) -> None:
    """Write picks and gains behind those begun, of which `nearest` (N,) says how far all are."""
    opened = np.ones(distances.size, dtype=bool)
    opened[picks[:begun]] = False
    for step in range(begun, len(picks)):
        if step == 0 and start is not None:
            pick = start
            gains[0] = np.delete(nearest, start).min(initial=math.inf)
        else:
            masked = np.where(opened, nearest, -math.inf)
            best = masked.max()
            if math.isnan(best):
                refuse_distances("distance" if distances.margin == 0.0 else "features")
            least = best if math.isinf(best) else best - distances.margin
            pick = int(np.argmax(masked >= least))
            gains[step] = nearest[pick]
        picks[step] = pick
        opened[pick] = False
        d = distances.to(pick)
        nearest = d if step == 0 else np.minimum(nearest, d)


def together(directions: Floats, k: int, start: int | None) -> tuple[Indices, Floats]:
    """Farthest-first of several images of unit vectors (B, N, D), all cosines of each at hand.

    Picks and gains are (B, K): those that each image has alone.
    """
    images, size = directions.shape[:2]
    cosines = np.empty((images, size, size), dtype=directions.dtype)
    for image, x in enumerate(directions):
        product(x, x.T, out=cosines[image])
    every, own = np.arange(images), np.arange(size)
    cosines[:, own, own] = -math.inf
    picks = np.empty((images, k), dtype=np.int64)
    gains = np.empty((images, k))
    # The largest cosine belongs to the smallest distance.
    nearest = apart(cosines.max(axis=1) if start is None else cosines[:, start].copy())
    if size == 1:
        nearest[:] = math.inf
    for step in range(k):
        if step == 0 and start is not None:
            pick = np.full(images, start)
            gains[:, 0] = np.delete(nearest, start, axis=1).min(axis=1, initial=math.inf)
        else:
            best = nearest.max(axis=1, keepdims=True)
            if np.isnan(best).any():
                refuse_distances("features")
            pick = np.argmax(nearest >= best - CosineDistances.margin, axis=1)
            gains[:, step] = nearest[every, pick]
        picks[:, step] = pick
        row = apart(cosines[every, pick])
        nearest = row if step == 0 else np.minimum(nearest, row, out=nearest)
        nearest[every[:, None], picks[:, : step + 1]] = -math.inf
    return picks, gains


DOUBT = 24
"""Tokens that single precision may leave in doubt before all of them are told apart in double."""
ROWS = 8
"""A matrix of cosines takes as long as the rows of one in so many tokens, one at a time."""


STEP = 2_000_000
"""Multiplications that double precision does more while a pick is looked at in Python."""


class Doubtful:
    """Farthest-first of features (N, D) by single precision, and by double where that is in doubt.

    The picks are those of `CosineDistances`: what is within twice the error of single precision
    of the farthest is told apart by it. Where too much is in doubt, everything is from then on.
    """

    def __init__(self, features: Floats, unit: Callable[[Floats], Floats], matrix: bool) -> None:
        self._features, self._unit = features, unit
        self._x = unit(features.astype(np.float32, copy=False))
        count = features.shape[1]
        # Sums of D rounded products of entries that a rounded length has divided, and 1 - cos.
        self.error = (2 * count + 16) * float(np.finfo(np.float32).eps) / 2
        self._apart = apart(product(self._x, self._x.T)) if matrix else None

    def picks(self, k: int, start: int | None) -> tuple[Indices, Floats, float]:
        """As `farthest`."""
        picks, gains = np.empty(k, dtype=np.int64), np.empty(k)
        picked = np.empty((k, self._x.shape[1]))
        nearest = self._to(start) if start is not None else self._nearest()
        for step in range(k):
            doubted = self._doubted(nearest) if step or start is None else np.asarray([start])
            if len(doubted) > DOUBT:
                return self._surely(picks, gains, step, picked[:step])
            directions = self._exactly(doubted)
            if step == 0:
                exact = np.asarray([self._neighbour(int(each)) for each in doubted])
            else:
                exact = apart(product(directions, picked[:step].T)).min(axis=1)
            place = int(np.argmax(exact >= exact.max() - CosineDistances.margin))
            pick = int(doubted[place])
            picks[step], gains[step], picked[step] = pick, exact[place], directions[place]
            row = self._to(pick)
            nearest = row if step == 0 else np.minimum(nearest, row, out=nearest)
            nearest[pick] = -math.inf
        return picks, gains, smallest_between(CosineDistances(picked), np.arange(k))

    def _doubted(self, nearest: Floats) -> Indices:
        """Ascending tokens of which one is the farthest."""
        best = nearest.max()
        if math.isnan(best):
            refuse_distances("features")
        return np.flatnonzero(nearest >= best - 2 * self.error - CosineDistances.margin)

    def _exactly(self, tokens: Indices) -> Floats:
        directions: Floats = self._unit(self._features[tokens].astype(np.float64))
        return directions

    def _to(self, token: int) -> Floats:
        """Distances (N,) to a token, in single precision; a copy."""
        if self._apart is not None:
            row: Floats = self._apart[token].copy()
            return row
        return apart(product(self._x, self._x[token]))

    def _nearest(self) -> Floats:
        if self._apart is None:
            return CosineDistances(self._x).nearest()
        np.fill_diagonal(self._apart, math.inf)
        nearest: Floats = self._apart.min(axis=0)
        return nearest

    def _neighbour(self, token: int) -> float:
        """How far the nearest other token is from one."""
        near = self._to(token)
        near[token] = math.inf
        others = np.flatnonzero(near <= near.min(initial=math.inf) + 2 * self.error)
        if not len(others) or math.isinf(near[others[0]]):
            return math.inf
        row = product(self._exactly(others), self._exactly(np.asarray([token]))[0])
        return float(apart(row).min())

    def _surely(
        self, picks: Indices, gains: Floats, begun: int, picked: Floats
    ) -> tuple[Indices, Floats, float]:
        """Go on in double precision behind the picks begun."""
        distances = CosineDistances(self._unit(self._features.astype(np.float64)))
        if not begun:
            return farthest(distances, len(picks), None)
        nearest = np.full(distances.size, math.inf)
        for part in spans(distances.size, begun, PRODUCT):
            nearest[part] = apart(product(distances.rows(part), picked.T)).min(axis=1)
        _go_on(distances, picks, gains, begun, None, nearest)
        return picks, gains, smallest_between(distances, picks)


def worth_doubting(features: Floats, k: int) -> bool:
    """Whether single precision first is faster than double at once, for features (..., N, D)."""
    size, width = features.shape[-2:]
    work = size * size * width
    return features.dtype != np.float64 and work >= STEP * k


def doubting(
    features: Floats, unit: Callable[[Floats], Floats], k: int, start: int | None, *, matrix: bool
) -> tuple[Indices, Floats, float]:
    """Farthest-first of features (N, D) under 1 - cos; `matrix` says if N x N may be built."""
    few = start is not None and ROWS * k <= len(features)
    return Doubtful(features, unit, matrix and not few).picks(k, start)


def refuse_distances(name: str) -> NoReturn:
    """Say why no token is the farthest."""
    raise ValueError(f"{name}: contains NaN or infinity, so that no token is the farthest")


def smallest_between(distances: Distances, picks: Indices) -> float:
    """The smallest distance between two picks."""
    if len(picks) < 2:
        return math.inf
    d = distances.among(picks)
    np.fill_diagonal(d, math.inf)
    return float(np.fmin.reduce(d, axis=None))


def of_features(features: Floats, k: Any, start: int | None, unit: Unit, *, matrix: bool) -> Picks:
    """Farthest-first of features (..., N, D), with a `matrix` of cosines or without."""
    if matrix and not worth_doubting(features, int(np.min(k))):
        room = max(1, PRODUCT // features.shape[-2] ** 2)
        return in_parts(features, None, k, room, lambda x, _, k: _each(x, k, start, unit))

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        x = features[at]
        if worth_doubting(x, budget):
            found = doubting(x, unit, budget, start, matrix=matrix)
        else:
            found = farthest(CosineDistances(unit(x.astype(np.float64, copy=False))), budget, start)
        return *found, math.inf

    return over_batch(features.shape[:-2], k, solve)


def _each(features: Floats, k: Any, start: int | None, unit: Unit) -> Picks:
    """The same of as many images as there is room for the matrices of."""
    x = flat(features, 2)
    each, longest = budgets(k, (len(x),))
    picks, gains = together(unit(x.astype(np.float64, copy=False)), longest, start)
    # A pick's gain is its distance to those before it.
    behind = np.arange(longest) >= each[:, None]
    value = np.where(behind, math.inf, gains)[:, 1:].min(axis=1, initial=math.inf)
    picks[behind], gains[behind] = -1, 0.0
    return answer(features.shape[:-2], picks, gains, value)
