"""Greedy maximisation: the definition, three faster ways to the same picks, certificates.

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
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, ParamSpec

import numpy as np

from secateur.core.arrays import (
    Array,
    device,
    each_row,
    index_dtype,
    like,
    namespace,
    resolve_budget,
    to_numpy,
    wide,
)
from secateur.core.dispatch import Operation, eager, operation
from secateur.core.dispatch import backend as backend_choice
from secateur.core.objectives import Dispersion, FacilityLocation, LogDeterminant, Objective
from secateur.core.objectives.base import tracker_of
from secateur.core.selection import Selection
from secateur.core.similarity import row_positions

P = ParamSpec("P")

Algorithm = Literal["auto", "naive", "lazy", "incremental", "stochastic"]


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


_SOLVERS: dict[tuple[type[Objective], str], Operation[..., Picks]] = {}


def solves(
    kind: type[Objective], form: str = ""
) -> Callable[[Operation[P, Picks]], Operation[P, Picks]]:
    """Declare the operation that solves objectives of exactly this type, given in this form.

    The operation takes the objective whole and the budget, ``f`` and ``k``. An objective of any
    other type, a subclass's too, goes to the algorithms below.
    """

    def declare(solver: Operation[P, Picks]) -> Operation[P, Picks]:
        _SOLVERS[kind, form] = solver
        return solver

    return declare


@eager
def maximize(
    f: Objective,
    k: Any,
    algorithm: Algorithm = "auto",
    seed: int | None = None,
    *,
    epsilon: float = 0.1,
    beyond: Literal["cap", "refuse"] = "cap",
    backend: str | None = None,
) -> Selection:
    r"""Pick k tokens greedily, each the one that adds most.

    Parameters
    ----------
    f
        What to maximise: `FacilityLocation`, `SalientCoverage`, `LogDeterminant`, `Dispersion`,
        `MarginalRelevance`, or an `Objective` of your own.
    k
        How many tokens: a count, a share of them (float), or one count for each row of a batch.
    algorithm
        ``"naive"``, the definition, k N gains. ``"lazy"`` asks again only those tokens whose
        last known gain could still win (submodular objectives). ``"incremental"`` keeps every
        gain current and is the fastest for the built-in objectives. ``"stochastic"`` asks
        N / k log(1 / epsilon) random tokens a pick. ``"auto"`` is incremental for the
        built-in objectives, lazy for submodular ones, naive for the rest.
    seed
        For ``"stochastic"``: the same seed gives the same picks on every backend.
    epsilon
        For ``"stochastic"``: the expected value is within 1 - 1/e - epsilon of the best.
    beyond
        What becomes of a count above the tokens that may be picked: ``"cap"`` picks all of
        those, ``"refuse"`` raises ValueError.
    backend
        Overrides who computes, as `secateur.backend` does.

    Returns
    -------
    Selection
        k distinct picks in order with their gains, the value, and for monotone submodular
        objectives an upper bound on the best value of any k tokens.

    Notes
    -----
    Greedy reaches 1 - (1 - 1/k)^k > 1 - 1/e of the best value of a monotone submodular
    function with f(empty) = 0. The set at hand is usually certified much better: for every
    prefix S_t of the picks, the best value is at most f(S_t) plus the k largest gains at S_t;
    `upper_bound` is the smallest of these and of what greedy promises. ``"lazy"`` and
    ``"stochastic"`` look at the first and the last prefix only, since the others would cost
    them what they save.

    References
    ----------
    G. Nemhauser, L. Wolsey and M. Fisher, "An analysis of approximations for maximizing
    submodular set functions", Mathematical Programming, 1978. M. Minoux, "Accelerated greedy
    algorithms for maximizing submodular set functions", 1978. B. Mirzasoleiman et al., "Lazier
    than lazy greedy", AAAI 2015.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> f = sc.FacilityLocation(np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]]))
    >>> picks = sc.maximize(f, 2)
    >>> picks.indices, picks.gains.round(3), round(float(picks.guarantee), 3)
    (array([0, 2]), array([2. , 0.9]), 0.967)
    """
    if not isinstance(f, Objective):
        raise ValueError(
            f"f: expected an objective such as FacilityLocation(similarity), got {type(f).__name__}"
        )
    budget = _budget(f, k, beyond)
    with nullcontext() if backend is None else backend_choice(backend):
        picks = _solve(f, budget, algorithm, seed, epsilon)
    budgets = np.broadcast_to(np.asarray(budget, dtype=np.int64), f.batch_shape)
    bound = None
    if f.submodular and f.monotone:
        bound = picks.bound
        if algorithm != "stochastic":
            # What Nemhauser, Wolsey and Fisher promise for the picks of exact greedy.
            promise = 1.0 - (1.0 - 1.0 / budgets) ** budgets
            most = picks.value / like(promise, picks.value, dtype=picks.value.dtype)
            bound = namespace(bound).minimum(bound, most)
    return Selection(
        picks.indices,
        like(budgets, picks.indices, dtype=index_dtype(namespace(picks.indices))),
        f.size,
        gains=picks.gains,
        value=picks.value if f.valued else None,
        upper_bound=bound,
    )


def _budget(f: Objective, k: Any, beyond: str) -> Any:
    """How many tokens to pick, of those that may be: an int, or an array of one a row."""
    budget = resolve_budget(k, f.size, f.batch_shape)
    if beyond not in ("cap", "refuse"):
        raise ValueError(f"beyond: expected cap or refuse; got {beyond!r}")
    most = f.open().sum(axis=-1)
    asked = to_numpy(k)
    asked = np.asarray(budget) if asked.dtype.kind == "f" else asked
    if beyond == "refuse" and np.any(asked > most):
        raise ValueError(f"k: expected at most the {most.tolist()} selectable tokens, got {k!r}")
    if f.selectable is None:
        return budget
    budgets = np.minimum(np.broadcast_to(budget, f.batch_shape), most).astype(np.int64)
    return budgets if f.batch_shape else int(budgets)


def _solve(
    f: Objective, budget: Any, algorithm: Algorithm, seed: int | None, share: float
) -> Picks:
    solver = _SOLVERS.get((type(f), f.form))
    if solver is not None and algorithm in ("auto", "incremental"):
        return solver(f, budget)
    if algorithm == "auto":
        algorithm = "lazy" if f.submodular else "incremental"
    if algorithm == "naive":
        return by_row(f, budget, naive)
    if algorithm == "incremental":
        return by_row(f, budget, incremental)
    if algorithm == "lazy":
        if not f.submodular:
            raise ValueError(
                f"algorithm: 'lazy' relies on gains that only shrink, and "
                f"{type(f).__name__} does not promise that; use 'naive' or 'incremental'"
            )
        return by_row(f, budget, lazy)
    if algorithm == "stochastic":
        if not 0.0 < share < 1.0:
            raise ValueError(f"epsilon: expected a number in (0, 1), got {share}")
        dice = np.random.default_rng(seed)
        return by_row(f, budget, lambda row, k: stochastic(row, k, dice, share))
    raise ValueError(
        f"algorithm: expected one of auto, naive, lazy, incremental, stochastic; got {algorithm!r}"
    )


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
    hopeful = xp.nonzero(opened & (current >= best - 2.0 * slack - f.margin(best)))[0]
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
    sample_size = math.ceil(len(everybody) / k * math.log(1.0 / share))
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


@solves(FacilityLocation, "matrix")
@operation
def facility_location(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location from `f.matrix` (..., N, N), dense or CSR, by `incremental`.

    `f.weights` (..., N) or None; `k` an int or an int64 NumPy array of one budget a row. All
    is checked already.
    """
    return by_row(f, k, incremental)


@solves(FacilityLocation, "features")
@operation
def facility_location_features(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on (1 + cos) / 2 of `f.features` (..., N, D), in O(N D) memory."""
    return by_row(f, k, incremental)


@solves(LogDeterminant, "kernel")
@operation
def determinant(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of `f.kernel` (..., N, N) by incremental Cholesky: O(N k^2).

    Once the kernel's rank is spent every gain is minus infinity, and the lowest open indices
    follow: always k distinct picks.

    References
    ----------
    L. Chen, G. Zhang and E. Zhou, "Fast greedy MAP inference for determinantal point process
    to improve recommendation diversity", NeurIPS 2018.
    """
    return by_row(f, k, _track)


@solves(Dispersion, "matrix")
@operation
def farthest_first(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first over `f.distance` (..., N, N): O(N^2) for the first pick, then O(N) each.

    The first pick is `start`, or the token whose nearest neighbour is farthest.
    """
    return by_row(f, k, lambda row, budget: _track(row, budget, start))


@solves(Dispersion, "features")
@operation
def farthest_first_features(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first under 1 - cos of `f.features` (..., N, D), in O(N D) memory."""
    return by_row(f, k, lambda row, budget: _track(row, budget, start))


def _track(f: Objective, k: int, start: int | None = None) -> Picks:
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
