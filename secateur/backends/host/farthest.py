"""Farthest-first in whole-array steps: how far every token is from those picked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NoReturn, Protocol

import numpy as np

from secateur.backends.host.lengths import lined, rounded_once, unit
from secateur.backends.host.sources import EPSILON, PRODUCT, Floats, Indices, shifted, spans
from secateur.backends.lending import alone, product


class Distances(Protocol):
    """Distances d_ij of `size` tokens."""

    size: int
    margin: float
    """Distances that differ by less than this count as equal."""

    def to(self, j: int) -> Floats:
        """Distances (N,) of all tokens to one."""

    def nearest(self) -> Floats:
        """Distance (N,) of every token to the nearest other one."""


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
        """Distances (M, M) of the picks to each other."""
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
        return np.full(1, math.inf) if self.size == 1 else apart(self.largest())

    def largest(self) -> Floats:
        """The largest cosine (N,) of every token with another one."""
        # Half of the products: every block with itself and with what follows.
        largest = np.full(self.size, -math.inf, dtype=self._x.dtype)
        for part in spans(self.size, self.size, PRODUCT):
            cosine = product(self._x[part], self._x[part.start :].T)
            own = np.arange(len(cosine))
            cosine[own, own] = -math.inf
            np.maximum(largest[part], cosine.max(axis=1), out=largest[part])
            rest = largest[part.start :]
            np.maximum(rest, cosine.max(axis=0), out=rest)
        return largest

    def rows(self, part: slice) -> Floats:
        """The vectors of a part of the tokens."""
        return self._x[part]


def apart(cosine: Floats) -> Floats:
    """1 - cos within [0, 2], written over the cosines, rounded as 2 (1 - (1 + cos) / 2)."""
    s = shifted(cosine)
    np.subtract(1.0, s, out=s)
    s *= 2.0
    return s


def farthest(distances: GivenDistances, k: int, start: int | None) -> tuple[Indices, Floats, float]:
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


DOUBT = 24
"""Tokens that single precision may leave in doubt before all of them are told apart in double."""
STEP = 2_000_000
"""Multiplications that double precision would do while one pick in doubt is looked at."""

Run = Callable[[Floats, Floats, Indices, int, float, float], int]
"""Goes on with an image from a step on: by cosines (N, N), the largest (N,) of each token with
those picked, and picks (K,), while the smallest is smaller than all others by so much, and smaller
than a limit by so much. Returns the step that is in doubt or comes near to the limit, K where none
does."""


class Doubtful(ABC):
    """Farthest-first of images (B, N, D) by single precision, by double where that is in doubt.

    The picks are those of `CosineDistances`: what is within twice the error of single precision
    of the farthest is told apart by it. An image of which too much is in doubt goes on in double
    precision from then on. This much is the same whoever is looked at; see `ByMatrix` and
    `candidates.ByCandidates`.
    """

    def __init__(
        self, features: Floats, rounded: Callable[[Floats], Floats] = rounded_once
    ) -> None:
        self._features = features
        self._images, self._size, count = features.shape
        wide = features.dtype.itemsize > 4
        x = unit(features) if wide else rounded(features.astype(np.float32, copy=False))
        self._x = x.astype(np.float32, copy=False)
        # Sums of D rounded products of entries that were rounded twice.
        self.error = (count + 16) * float(np.finfo(np.float32).eps) / 2
        self._width = 2 * self.error + CosineDistances.margin
        self.patience = self._size * self._size * count // STEP

    def _begin(self, k: int) -> Floats:
        """Make room for so many picks of each image; for their gains (B, K)."""
        self._picks = np.empty((self._images, k), dtype=np.int64)
        self._picked = np.empty((self._images, k, self._x.shape[-1]))
        self._known, self._doubts = np.zeros((2, self._images), dtype=np.int64)
        self._sure = np.zeros(self._images, dtype=bool)
        return np.empty((self._images, k))

    def _go_through(
        self,
        image: int,
        run: Run,
        cosines: Floats,
        nearest: Floats,
        tokens: Indices,
        begun: int,
        gains: Floats,
        limit: float = math.inf,
    ) -> int:
        """Pick among tokens (M,), whose cosines (M, M) are known, from a step on.

        `nearest` (M,) are their largest cosines with picks. The step at which one of the others,
        whose cosines are at least the limit, could be the farthest; K where all are made.
        """
        picks, step = self._picks[image], begun
        places = np.empty_like(picks)
        while True:
            behind = step
            step = run(cosines, nearest, places, step, self._width, limit)
            picks[behind:step] = tokens[places[behind:step]]
            if step == len(picks):
                return step
            level = nearest.min() + self._width
            if level >= limit:
                return step
            pick = self._told_apart(image, tokens[nearest <= level], step, gains)
            if self._sure[image]:
                return len(picks)
            picks[step] = pick
            place = np.searchsorted(tokens, pick)
            if step == 0:
                nearest[:] = cosines[place]
            else:
                np.maximum(nearest, cosines[place], out=nearest)
            nearest[place] = math.inf
            step += 1

    def _told_apart(self, image: int, tokens: Indices, step: int, gains: Floats) -> int:
        """Which of the ascending tokens, of which one is the farthest, is that."""
        self._doubts[image] += 1
        if len(tokens) > DOUBT or self._doubts[image] > self.patience:
            return self._surely(image, step, gains)
        # Once for some small products.
        with alone(0):
            return self._few_told_apart(image, tokens, step)

    def _few_told_apart(self, image: int, tokens: Indices, step: int) -> int:
        if step == 0:
            exact = np.asarray([self._neighbour(image, int(each)) for each in tokens])
        else:
            picked = self._directions_of_picks(image, step)
            # Only of the picks that are nearest but for the error of single precision.
            cosines = self._with_picks(image, tokens, step)
            near = cosines >= cosines.max(axis=1, keepdims=True) - 2 * self.error
            picked = picked[near.any(axis=0)]
            exact = apart(product(self._exactly(image, tokens), picked.T)).min(axis=1)
        return int(tokens[np.argmax(exact >= exact.max() - CosineDistances.margin)])

    @abstractmethod
    def picks(self, k: int, start: int | None) -> tuple[Indices, Floats]:
        """Picks and gains (B, K), as `farthest` has them."""

    @abstractmethod
    def _with_picks(self, image: int, tokens: Indices, count: int) -> Floats:
        """Cosines (M, count) of tokens with the first picks, in single precision."""

    def _exactly(self, image: int, tokens: Indices) -> Floats:
        directions: Floats = unit(self._features[image, tokens].astype(np.float64))
        return directions

    def _directions_of_picks(self, image: int, count: int) -> Floats:
        """Those (count, D) of the first picks of an image, in double precision."""
        known = self._known[image]
        if known < count:
            new = self._exactly(image, self._picks[image, known:count])
            self._picked[image, known:count] = new
            self._known[image] = count
        directions: Floats = self._picked[image, :count]
        return directions

    def _neighbour(self, image: int, token: int) -> float:
        """How far the nearest other token is from one."""
        x = self._x[image]
        near = product(x, x[token])
        near[token] = -math.inf
        best = near.max()
        if math.isinf(best):
            return math.inf
        others = np.flatnonzero(near >= best - 2 * self.error)
        one = self._exactly(image, np.asarray([token]))[0]
        return float(apart(product(self._exactly(image, others), one)).min())

    def _gained(self, images: Indices, gains: Floats, count: int) -> None:
        """Write how far each of the first picks of some images is from those before it."""
        if not count:
            return
        for image in images:
            picked = self._directions_of_picks(int(image), count)
            for part in spans(count, count, PRODUCT):
                away = apart(product(picked[part], picked[: part.stop].T))
                behind = np.arange(part.stop) >= np.arange(part.start, part.stop)[:, None]
                away[behind] = math.inf
                gains[image, part] = away.min(axis=1)
            gains[image, 0] = self._neighbour(int(image), int(self._picks[image, 0]))

    def _surely(self, image: int, begun: int, gains: Floats) -> int:
        """Pick the others in double precision behind those begun; the next one of them."""
        self._sure[image] = True
        distances = CosineDistances(unit(self._features[image].astype(np.float64)))
        picks, gained = self._picks[image], gains[image]
        if not begun:
            nearest = distances.nearest()
        else:
            picked = self._directions_of_picks(image, begun)
            self._gained(np.asarray([image]), gains, begun)
            nearest = np.full(self._size, math.inf)
            for part in spans(self._size, begun, PRODUCT):
                nearest[part] = apart(product(distances.rows(part), picked.T)).min(axis=1)
        _go_on(distances, picks, gained, begun, None, nearest)
        return int(picks[begun])


class ByMatrix(Doubtful):
    """All cosines at once. Images take their steps together, or alone where there is a `run`."""

    def __init__(
        self,
        features: Floats,
        run: Run | None = None,
        rounded: Callable[[Floats], Floats] = rounded_once,
    ) -> None:
        super().__init__(features, rounded)
        self._run = run
        # Of a token with itself less than any.
        self._cosines = lined((self._images, self._size, self._size), np.float32)
        for image, x in enumerate(self._x):
            product(x, x.T, out=self._cosines[image])
        own = np.arange(self._size)
        self._cosines[:, own, own] = -math.inf

    def picks(self, k: int, start: int | None) -> tuple[Indices, Floats]:
        gains = self._begin(k)
        # The largest cosine belongs to the smallest distance.
        if start is None:
            nearest = self._cosines.max(axis=1)
        else:
            nearest = np.full_like(self._x[..., 0], -math.inf)
        begun = 0
        if start is not None and k:
            self._lower(nearest, 0, np.full(self._images, start))
            begun = 1
        if np.isnan(nearest).any():
            refuse_distances("features")
        if self._run is not None:
            all_of_them = np.arange(self._size)
            for image, cosines in enumerate(self._cosines):
                self._go_through(
                    image, self._run, cosines, nearest[image], all_of_them, begun, gains
                )
        else:
            for step in range(begun, k):
                self._lower(nearest, step, self._farthest(nearest, step, gains))
        self._gained(np.flatnonzero(~self._sure), gains, k)
        return self._picks, gains

    def _lower(self, nearest: Floats, step: int, pick: Indices) -> None:
        """Note a pick (B,), and the cosines with it."""
        self._picks[:, step] = pick
        row = self._cosines[np.arange(self._images), pick]
        if step == 0:
            nearest[:] = row
        else:
            np.maximum(nearest, row, out=nearest)
        nearest[np.arange(self._images), pick] = math.inf

    def _farthest(self, nearest: Floats, step: int, gains: Floats) -> Indices:
        """The next pick (B,) of each image, whose tokens' largest cosines are (B, N)."""
        near = nearest <= nearest.min(axis=1, keepdims=True) + self._width
        pick: Indices = near.argmax(axis=1)
        pick[self._sure] = self._picks[self._sure, step]
        for image in np.flatnonzero((np.count_nonzero(near, axis=1) > 1) & ~self._sure):
            pick[image] = self._told_apart(int(image), np.flatnonzero(near[image]), step, gains)
        return pick

    def _with_picks(self, image: int, tokens: Indices, count: int) -> Floats:
        found: Floats = self._cosines[image][np.ix_(tokens, self._picks[image, :count])]
        return found


def refuse_distances(name: str) -> NoReturn:
    """Say why no token is the farthest."""
    raise ValueError(f"{name}: contains NaN or infinity, so that no token is the farthest")


def smallest_between(distances: GivenDistances, picks: Indices) -> float:
    """The smallest distance between two picks."""
    if len(picks) < 2:
        return math.inf
    d = distances.among(picks)
    np.fill_diagonal(d, math.inf)
    return float(np.fmin.reduce(d, axis=None))
