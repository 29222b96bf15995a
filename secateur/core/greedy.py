"""Greedy on one image after another: the definition, three faster ways to the same picks.

`naive` is the definition: at every step ask for the gain of every token and take the largest.
`lazy` and `incremental` give the same picks with fewer questions. `stochastic` asks a random
sample and says so.

Gains are sums of N rounded terms, so two gains closer than that rounding cannot be told apart:
they count as equal and the lowest index wins. That makes the picks of all algorithms and of all
backends the same, duplicates and ties included.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from secateur.core.arrays import Array, device, each_row, index_dtype, like, namespace, wide
from secateur.core.objectives import Objective
from secateur.core.objectives.base import tracker_of
from secateur.core.similarity import row_positions


class Picks(NamedTuple):
    """What an operation returns: arrays padded to the largest budget of the batch.

    `indices` (..., K) with -1 and `gains` (..., K) with 0 in padding; `value` (...) of the
    set, NaN where sets have none; `bound` (...) on the best set of the same size, infinite
    where none is known.
    """

    indices: Array
    gains: Array
    value: Array
    bound: Array


def by_row(f: Objective, budget: Any, run: Callable[[Any, int], Picks]) -> Picks:
    """Run a single-image algorithm on every row of a batch and pad the answers together."""
    if not f.batch_shape:
        return run(f, int(budget))
    budgets = np.broadcast_to(np.asarray(budget), f.batch_shape)
    answers = [
        run(row, int(budgets[position]))
        for row, position in zip(f.rows(), each_row(f.batch_shape), strict=True)
    ]
    longest = int(np.max(budget, initial=0))
    if not answers:
        return _no_rows(f, longest)
    xp = namespace(answers[0].indices)

    def joined(name: str, fill: float) -> Array:
        parts = []
        for answer in answers:
            x = getattr(answer, name)
            missing = longest - int(x.shape[-1]) if x.ndim else 0
            if missing:
                x = xp.concat([x, xp.full((missing,), fill, dtype=x.dtype, device=device(x))])
            parts.append(x)
        together = xp.stack(parts)
        return xp.reshape(together, (*f.batch_shape, *together.shape[1:]))

    return Picks(joined("indices", -1), joined("gains", 0), joined("value", 0), joined("bound", 0))


def _no_rows(f: Objective, longest: int) -> Picks:
    """The answer for a batch of no images."""
    xp, place = namespace(f.sample), device(f.sample)
    none = xp.zeros(f.batch_shape, dtype=wide(xp), device=place)
    listed = (*f.batch_shape, longest)
    indices = xp.zeros(listed, dtype=index_dtype(xp), device=place)
    return Picks(indices, xp.zeros(listed, dtype=wide(xp), device=place), none, none)


def leader(f: Objective, gains: Array, taken: list[int], slack: float = 0.0) -> int:
    """The lowest open place whose gain equals the best but for rounding."""
    xp = namespace(gains)
    opened = _open(f, gains, taken)
    return _lowest(f, xp.where(opened, gains, xp.full_like(gains, -xp.inf)), opened, slack)


def _lowest(f: Objective, gains: Array, opened: Array, slack: float = 0.0) -> int:
    xp = namespace(gains)
    best = float(xp.max(gains))
    if math.isnan(best):
        raise ValueError("f: gains of its tokens are NaN, so that none can be chosen")
    level = opened & (gains >= best - f.margin(best) - 2.0 * slack)
    return int(xp.argmax(xp.astype(level, index_dtype(xp))))


def _best_of(f: Objective, gains: Array) -> int:
    """The lowest place of the best among gains of tokens that are open."""
    xp = namespace(gains)
    return _lowest(f, gains, xp.ones_like(gains, dtype=xp.bool))


def _open(f: Objective, gains: Array, taken: list[int]) -> Array:
    opened = f.open().copy()
    opened[taken] = False
    return like(opened, gains)


class _Certificate:
    """The smallest of f(S_t) + (sum of the k largest gains at S_t) over the prefixes seen."""

    def __init__(self, k: int, f: Objective) -> None:
        self._k = k
        self._f = f
        self.bound = math.inf

    def see(self, value: float, gains: Array) -> None:
        xp = namespace(gains)
        if self._f.selectable is not None and int(gains.shape[0]) == self._f.size:
            gains = xp.where(_open(self._f, gains, []), gains, xp.zeros_like(gains))
        largest = xp.flip(xp.sort(gains))[: min(self._k, int(gains.shape[0]))]
        self.bound = min(self.bound, value + float(xp.sum(xp.clip(largest, 0.0, None))))


def _answer(f: Objective, picks: list[int], gains: list[float], bound: float) -> Picks:
    xp = namespace(f.sample)
    dtype = wide(xp)
    return Picks(
        like(np.asarray(picks, dtype=np.int64), f.sample, dtype=index_dtype(xp)),
        like(np.asarray(gains, dtype=np.float64), f.sample, dtype=dtype),
        _number(f.value(picks) if f.valued else math.nan, f.sample),
        like(bound, f.sample, dtype=dtype),
    )


def _number(x: Any, sample: Array) -> Array:
    """A value as a number beside `sample` in the dtype of sums; floats are welcome."""
    xp = namespace(sample)
    return like(float(x), sample, dtype=wide(xp))


def naive(f: Objective, k: int) -> Picks:
    """The definition of greedy: k times, the token of largest gain. O(k N) gains."""
    everyone = row_positions(f.size, f.sample)
    picks: list[int] = []
    gains: list[float] = []
    certificate = _Certificate(k, f)
    for _ in range(k):
        current = f.gain(picks, everyone)
        certificate.see(sum(gains), current)
        pick = leader(f, current, picks)
        picks.append(pick)
        gains.append(float(current[pick]))
    certificate.see(sum(gains), f.gain(picks, everyone))
    return _answer(f, picks, gains, certificate.bound)


def incremental(f: Objective, k: int) -> Picks:
    """Greedy on gains that a tracker keeps current; a tracker is all it takes.

    The tracker's gains may have gathered rounding up to its slack. Where there is a value or a
    gain to ask, whoever could still be the best is asked once more, exactly, and that decides:
    the picks are those of `naive`. Otherwise gains that close count as equal.
    """
    tracker = tracker_of(f)
    picks: list[int] = []
    gains: list[float] = []
    certificate = _Certificate(k, f)
    for _ in range(k):
        current = tracker.gains()
        certificate.see(sum(gains) + k * tracker.slack, current)
        pick, gain = _exact_leader(f, current, picks, tracker.slack)
        tracker.add(pick)
        picks.append(pick)
        gains.append(gain)
    certificate.see(sum(gains) + k * tracker.slack, tracker.gains())
    return _answer(f, picks, gains, certificate.bound)


def _exact_leader(
    f: Objective, current: Array, picks: list[int], slack: float
) -> tuple[int, float]:
    xp = namespace(current)
    if slack == 0.0 or (type(f).gain is Objective.gain and not (f.valued and f.differences)):
        pick = leader(f, current, picks, slack)
        return pick, float(current[pick])
    opened = _open(f, current, picks)
    best = float(xp.max(xp.where(opened, current, xp.full_like(current, -xp.inf))))
    # Not "at least": below a level that is no number, for all its slack, nobody is hopeless.
    hopeless = current < best - 2.0 * slack - f.margin(best)
    hopeful = xp.nonzero(opened & xp.logical_not(hopeless))[0]
    exact = f.gain(picks, hopeful)
    place = _best_of(f, exact)
    return int(hopeful[place]), float(exact[place])


def lazy(f: Objective, k: int) -> Picks:
    """Greedy that asks a token again only when its last known gain could still win.

    Gains of a submodular function only shrink, so a gain known from earlier bounds today's.
    """
    first = f.gain([], row_positions(f.size, f.sample))
    certificate = _Certificate(k, f)
    certificate.see(0.0, first)
    bounds = [(-float(first[j]), int(j)) for j in np.flatnonzero(f.open())]
    heapq.heapify(bounds)
    picks: list[int] = []
    gains: list[float] = []
    for _ in range(k):
        asked: list[tuple[float, int]] = []
        best = least = -math.inf
        while bounds and -bounds[0][0] >= least:
            _, j = heapq.heappop(bounds)
            gain = float(f.gain(picks, j))
            asked.append((gain, j))
            best = max(best, gain)
            least = best - f.margin(best)
        gain, pick = min(((g, j) for g, j in asked if g >= least), key=lambda each: each[1])
        for other, j in asked:
            if j != pick:
                heapq.heappush(bounds, (-other, j))
        picks.append(pick)
        gains.append(gain)
    left = like([max(0.0, -bound) for bound, _ in bounds] or [0.0], first, dtype=first.dtype)
    certificate.see(sum(gains), left)
    return _answer(f, picks, gains, certificate.bound)


def stochastic(f: Objective, k: int, dice: np.random.Generator, share: float = 0.1) -> Picks:
    """Greedy over a random sample of the open tokens at every pick.

    A sample of N / k log(1 / epsilon) tokens suffices for 1 - 1/e - epsilon in expectation.
    """
    everyone = row_positions(f.size, f.sample)
    certificate = _Certificate(k, f)
    certificate.see(0.0, f.gain([], everyone))
    everybody = np.flatnonzero(f.open())
    sample_size = math.ceil(len(everybody) / k * -math.log(share))
    picks: list[int] = []
    gains: list[float] = []
    for _ in range(k):
        opened = np.setdiff1d(everybody, picks)
        drawn = np.sort(dice.permutation(opened)[:sample_size])
        current = f.gain(picks, like(drawn, f.sample, dtype=everyone.dtype))
        place = _best_of(f, current)
        picks.append(int(drawn[place]))
        gains.append(float(current[place]))
    certificate.see(sum(gains), f.gain(picks, everyone))
    return _answer(f, picks, gains, certificate.bound)


def track(f: Objective, k: int, start: int | None = None) -> Picks:
    """Greedy on a tracker without slack and without a certificate."""
    tracker = tracker_of(f)
    picks: list[int] = []
    gains: list[float] = []
    for step in range(k):
        current = tracker.gains()
        if step == 0 and start is not None:
            pick = start
        else:
            pick = leader(f, current, picks)
        tracker.add(pick)
        picks.append(pick)
        gains.append(float(current[pick]))
    return _answer(f, picks, gains, math.inf)
