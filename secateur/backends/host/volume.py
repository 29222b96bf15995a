"""Greedy log-determinant of a kernel, of I + gamma Y Y^T, and of Y Y^T.

What is left of a token's variance only shrinks. So the next picks are most likely among the few
tokens with most left: what those leave of each other is worked out at once, and picks are made
among them until another token may have more left. Then what these picks explain of all tokens is
one product, where a pick at a time reads all that was explained before. Each is made if it is the
one with most left when its turn comes, so that which picks were foreseen changes nothing but time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from secateur.backends.host.candidates import between
from secateur.backends.host.sources import EPSILON, Flags, Floats, Indices
from secateur.backends.lending import alone, over_batch, product
from secateur.core.maximize import Picks
from secateur.core.objectives import LogDeterminant
from secateur.core.tolerances import SPENT, SUM

ROOM, MOST_ROOM, SHARE = 64, 256, 24
"""Tokens that picks are foreseen among: at least, at most, and between them one in so many."""
AHEAD = 64
"""Picks foreseen at most."""
FORESEEN = 1 << 18
"""Numbers that picks of a kernel explain, up to which one at a time is the sooner."""


class Steps(NamedTuple):
    """What is done at every pick, whole arrays at a time or in loops."""

    most_left: Callable[[Floats, Flags, float], int]
    """The lowest open place of the largest number, those of a share of it included."""
    explain: Callable[[Floats, int, int, Floats, Floats, float], None]
    """Of covariances (K, N) of picks with all tokens, whose first `rank` rows were explained, make
    the next row, of a pick, what it explains, and take its squares from what is left: of what
    comes down to the noise (N,), the rest stays."""


def most_left(left: Floats, opened: Flags, level: float) -> int:
    """See `Steps.most_left`."""
    free = np.where(opened, left, -1.0)
    return int((free >= free.max() * level).argmax())


def explain(rows: Floats, rank: int, pick: int, left: Floats, noise: Floats, rest: float) -> None:
    """See `Steps.explain`."""
    row = rows[rank]
    row -= rows[:rank, pick] @ rows[:rank]
    row /= math.sqrt(left[pick])
    take(row, left, noise, rest)


def take(row: Floats, left: Floats, noise: Floats, rest: float) -> None:
    """Take squares from what is left."""
    left -= row * row
    np.copyto(left, rest, where=~(left > noise))


ARRAYS = Steps(most_left, explain)


class Volume(Protocol):
    """What is left of the variance of one image's tokens beside what picks explain."""

    left: Floats
    """(N,)."""
    noise: Floats
    """What counts as nothing left (N,)."""
    rest: float
    """What that counts as."""
    spans: int
    """How many picks explain anything at most."""
    certified: bool
    """Whether gains bound what any set adds."""
    ahead: int
    """How many picks to foresee at most."""

    def among(self, tokens: Indices) -> Floats:
        """Covariances (M, M) of tokens beside what the picks explain."""

    def foresee(self, picks: Indices) -> None:
        """Work out what the next picks explain."""

    def explain(self, place: int) -> None:
        """Take from what is left what the next one of those foreseen explains."""


class OfKernel:
    """Of a kernel (N, N); what picks explain is a row of its Cholesky factor each."""

    rest = 0.0
    certified = False

    def __init__(self, kernel: Floats, k: int, steps: Steps) -> None:
        self._kernel, self._steps = kernel, steps
        self._begin(np.diagonal(kernel).astype(np.float64), k)
        self.ahead = AHEAD if self._factor.size > FORESEEN else 1
        self.noise = SPENT * float(np.finfo(kernel.dtype).eps) * self.left
        self.left[~(self.left > self.noise)] = self.rest

    def _begin(self, left: Floats, k: int) -> None:
        self.left, self.spans = left, len(left)
        self._factor, self._rank, self.ahead = np.empty((k, len(left))), 0, AHEAD

    def _rows(self, picks: Indices) -> Floats:
        return self._kernel[picks]

    def _between(self, tokens: Indices) -> Floats:
        return self._kernel[tokens[:, None], tokens]

    def among(self, tokens: Indices) -> Floats:
        """See `Volume.among`."""
        between = self._between(tokens)
        if self._rank == 0:
            return between
        explained = self._factor[: self._rank][:, tokens]
        return between - product(explained.T, explained)

    def foresee(self, picks: Indices) -> None:
        """See `Volume.foresee`."""
        rank = self._rank
        self._picks, self._since = picks, rank
        ahead = self._factor[rank : rank + len(picks)]
        ahead[:] = self._rows(picks)
        if len(picks) == 1:
            self._since = 0
        elif rank:
            explained = self._factor[:rank]
            ahead -= product(explained[:, picks].T, explained)

    def explain(self, place: int) -> None:
        """See `Volume.explain`."""
        pick, since = int(self._picks[place]), self._since
        rows, rank = self._factor[since:], self._rank - since
        self._steps.explain(rows, rank, pick, self.left, self.noise, self.rest)
        self._rank += 1


class AboveIdentity(OfKernel):
    """Of a kernel that stays positive semi-definite when I is taken from it: 1 is left of all."""

    rest = 1.0
    certified = True

    def __init__(self, kernel: Floats, k: int, steps: Steps) -> None:
        super().__init__(kernel, k, steps)
        self.noise = np.ones(len(kernel))
        np.maximum(self.left, self.rest, out=self.left)


class OfFactors(OfKernel):
    """Of I + gamma Y Y^T for factors (N, D) in double precision: 1 is left of all."""

    rest = 1.0
    certified = True

    def __init__(self, y: Floats, gamma: float, k: int, steps: Steps) -> None:
        self._y, self._gamma, self._steps = y, gamma, steps
        self._begin(1.0 + gamma * np.einsum("ij,ij->i", y, y), k)
        if np.isnan(self.left).any():
            raise ValueError(
                "features or factors: contain NaN or infinity, so that no volume is largest"
            )
        self.noise = np.ones(len(y))

    def _rows(self, picks: Indices) -> Floats:
        rows = product(self._y[picks], self._y.T)
        rows *= self._gamma
        rows[np.arange(len(picks)), picks] += 1.0
        return rows

    def _between(self, tokens: Indices) -> Floats:
        own = self._y[tokens]
        return self._gamma * product(own, own.T) + np.eye(len(tokens))


class OfSpan:
    """Of Y Y^T for vectors (N, D): directions that picks span, in double precision.

    What lies along them is multiplied in the precision of the vectors.
    """

    rest = 0.0
    certified = False
    ahead = AHEAD

    def __init__(self, y: Floats, k: int) -> None:
        self._y, self.spans = y, y.shape[-1]
        self.left = np.einsum("ij,ij->i", y, y, dtype=np.float64)
        self.noise = SPENT * float(np.finfo(y.dtype).eps) * self.left
        self.left[~(self.left > self.noise)] = self.rest
        self._basis, self._rank = np.empty((min(k, self.spans), self.spans)), 0

    def among(self, tokens: Indices) -> Floats:
        """See `Volume.among`."""
        own = self._y[tokens].astype(np.float64)
        covariances = product(own, own.T)
        if self._rank:
            along = product(own, self._basis[: self._rank].T)
            covariances -= product(along, along.T)
        return covariances

    def _beside(self, tokens: Indices) -> Floats:
        """What of vectors lies along no direction so far; once leaves what rounding left."""
        new, basis = self._y[tokens].astype(np.float64), self._basis[: self._rank]
        for _ in range(2 if self._rank else 0):
            new -= product(product(new, basis.T), basis)
        return new

    def foresee(self, picks: Indices) -> None:
        """See `Volume.foresee`."""
        new = self._beside(picks)
        with alone(new.size * len(new)):
            new = np.linalg.qr(new.T)[0].T
        self._ahead = between(new.astype(self._y.dtype), self._y)
        self._basis[self._rank : self._rank + len(new)] = new

    def explain(self, place: int) -> None:
        """See `Volume.explain`."""
        take(self._ahead[place].astype(np.float64), self.left, self.noise, self.rest)
        self._rank += 1


def of_kernels(f: LogDeterminant, k: Any, steps: Steps = ARRAYS) -> Picks:
    """Greedy log-determinant of kernels (..., N, N): O(k^2 N)."""
    kernel: Any = f.kernel
    volume = AboveIdentity if f.monotone else OfKernel
    return _each(f, k, lambda at, budget: volume(kernel[at], budget, steps), steps)


def of_factors(f: LogDeterminant, k: Any, steps: Steps = ARRAYS) -> Picks:
    """Greedy log-determinant of I + gamma Y Y^T from factors (..., N, D): O(k N (D + k))."""

    def volume(at: tuple[int, ...], budget: int) -> Volume:
        y: Any = f.factors
        return OfFactors(y[at].astype(np.float64, copy=False), f.gamma, budget, steps)

    return _each(f, k, volume, steps)


def of_span(f: LogDeterminant, k: Any, steps: Steps = ARRAYS) -> Picks:
    """Greedy log-determinant of Y Y^T from vectors (..., N, D): O(k N D), O(N D) memory."""
    vectors: Any = f.factors
    return _each(f, k, lambda at, budget: OfSpan(vectors[at], budget), steps)


def _each(
    f: LogDeterminant,
    k: Any,
    volume: Callable[[tuple[int, ...], int], Volume],
    steps: Steps,
) -> Picks:
    """Greedy of the volume of each image of a batch."""
    opened = f.open()

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        width = budget if f.factors is None else int(f.factors.shape[-1])
        with alone(budget * f.size * width), np.errstate(over="ignore", invalid="ignore"):
            picks, gains, bound = greedy(volume(at, budget), budget, steps, opened[at])
        return picks, gains, float(gains.sum()), bound

    return over_batch(f.batch_shape, k, solve)


def greedy(
    volume: Volume, k: int, steps: Steps, selectable: Flags
) -> tuple[Indices, Floats, float]:
    """k picks with their gains, and the smallest bound on the best value, if there is one."""
    left, certified = volume.left, volume.certified
    opened, level = selectable.copy(), math.exp(-SUM * len(left) * EPSILON)
    picks, gains = np.empty(k, dtype=np.int64), np.full(k, -math.inf)
    step, total, bound = 0, 0.0, math.inf
    while step < k:
        count = min(volume.ahead, k - step, volume.spans - step)
        ahead = _foreseen(volume, opened, level, count, steps)
        if len(ahead) == 0:
            picks[step:] = np.flatnonzero(opened)[: k - step]
            break
        volume.foresee(ahead)
        for place, pick in enumerate(ahead.tolist()):
            if place and (steps.most_left(left, opened, level) != pick or not left[pick] > 0.0):
                break
            if certified:
                bound = min(bound, total + _largest(left, selectable, k))
            opened[pick] = False
            picks[step], gains[step] = pick, math.log(left[pick])
            total += float(gains[step])
            volume.explain(place)
            step += 1
    if certified:
        bound = min(bound, total + _largest(left, selectable, k))
    return picks, gains, bound


def _foreseen(volume: Volume, opened: Flags, level: float, count: int, steps: Steps) -> Indices:
    """The next pick, and those likely to follow, at most `count`; none where all is spent."""
    left, n = volume.left, len(volume.left)
    pick = steps.most_left(left, opened, level)
    if count < 1 or not left[pick] > 0.0:
        return np.empty(0, dtype=np.int64)
    only = np.asarray([pick])
    if count == 1:
        return only
    tokens, limit = np.arange(n), volume.rest
    room = min(max(ROOM, n // SHARE), MOST_ROOM)
    if room < n:
        free = np.where(opened, left, 0.0)
        most = np.argpartition(free, n - room - 1)[n - room - 1 :]
        tokens, limit = np.sort(most[1:]), max(float(free[most[0]]), limit)
    if not left[pick] * level > limit:
        return only
    rows = np.empty((count, len(tokens)))
    covariances, left = volume.among(tokens), left[tokens]
    opened, noise = opened[tokens], volume.noise[tokens]
    found, place = np.empty(count, dtype=np.int64), int(np.searchsorted(tokens, pick))
    for rank in range(count):
        found[rank], opened[place] = tokens[place], False
        rows[rank] = covariances[place]
        steps.explain(rows, rank, place, left, noise, volume.rest)
        place = steps.most_left(left, opened, level) if opened.any() else place
        if not (opened[place] and left[place] * level > limit):
            break
    return found[: rank + 1]


def _largest(left: Floats, selectable: Flags, k: int) -> float:
    """The sum of the k largest gains among selectable tokens."""
    inside = left[selectable]
    top = inside if k >= len(inside) else np.partition(inside, len(inside) - k)[-k:]
    return float(np.log(top).sum())
