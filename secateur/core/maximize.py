"""Greedy maximisation: which operation solves which objective, and certificates.

The algorithms are in `secateur.core.greedy`; what a driver may do faster is an operation here,
looked up by the exact type of the objective.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, ParamSpec, cast

import numpy as np

from secateur.core.arrays import (
    index_dtype,
    like,
    namespace,
    resolve_budget,
    to_numpy,
)
from secateur.core.dispatch import Operation, eager, operation
from secateur.core.dispatch import backend as backend_choice
from secateur.core.greedy import Picks as Picks
from secateur.core.greedy import by_row, incremental, lazy, naive, stochastic, track
from secateur.core.objectives import (
    Dispersion,
    FacilityLocation,
    LogDeterminant,
    MarginalRelevance,
    Objective,
    SalientCoverage,
)
from secateur.core.objectives.base import keeps_track
from secateur.core.parameters import typed
from secateur.core.selection import Selection

P = ParamSpec("P")

Algorithm = Literal["auto", "naive", "lazy", "incremental", "stochastic"]
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
@typed
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
        gain current and is the fastest where an objective brings a tracker, as the built-in
        ones do. ``"stochastic"`` asks N / k log(1 / epsilon) random tokens a pick. ``"auto"``
        is incremental where there is a tracker, else lazy for submodular objectives.
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
    if f.selectable is None and beyond == "cap":
        return budget
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
        algorithm = "lazy" if f.submodular and not keeps_track(f) else "incremental"
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
        if seed is not None and seed < 0:
            raise ValueError(f"seed: expected a whole number of at least 0, got {seed}")
        dice = np.random.default_rng(seed)
        return by_row(f, budget, lambda row, k: stochastic(row, k, dice, share))
    raise ValueError(
        f"algorithm: expected one of auto, naive, lazy, incremental, stochastic; got {algorithm!r}"
    )


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


@solves(FacilityLocation, "kernel")
@operation
def facility_location_kernel(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on `f.kernel`, another similarity of `f.features` (..., N, D)."""
    return by_row(f, k, incremental)


@solves(FacilityLocation, "rows")
@operation
def facility_location_rows(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location over rows that are no square, come in blocks, or with a mask."""
    return by_row(f, k, incremental)


SQUARE = 1 << 24
"""Numbers of the matrix that `by_squares` builds for one image, at most."""


def by_squares(
    f: FacilityLocation, k: Any, solve: Callable[[FacilityLocation, int], Picks]
) -> Picks:
    """`facility_location_rows` by a solver of square matrices, an image at a time.

    `NotImplemented` where a matrix would not fit; the entries are worked out as asked then.
    """
    if max(f.height, f.size) ** 2 > SQUARE:
        return cast(Picks, NotImplemented)

    def run(row: FacilityLocation, budget: int) -> Picks:
        square, places = row.squared()
        found = solve(square, budget)
        return found._replace(indices=namespace(places).take(places, found.indices))

    return by_row(f, k, run)


@solves(SalientCoverage)
@operation
def salient_coverage(f: SalientCoverage, k: Any) -> Picks:
    """Greedy coverage, each gain weighed by the candidate's saliency."""
    return by_row(f, k, incremental)


@solves(MarginalRelevance)
@operation
def marginal_relevance(f: MarginalRelevance, k: Any) -> Picks:
    """Greedy marginal relevance from `f.matrix` (..., N, N) or `f.features` (..., N, D)."""
    return by_row(f, k, incremental)


@solves(LogDeterminant, "factors")
@operation
def determinant_factors(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of I + gamma Y Y^T from `f.factors` (..., N, D): O(k N (D + k))."""
    return by_row(f, k, incremental)


@solves(LogDeterminant, "span")
@operation
def determinant_span(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of Y Y^T from `f.factors` (..., N, D): O(k N D), O(N D) memory."""
    return by_row(f, k, track)


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
    return by_row(f, k, incremental if f.monotone else track)


@solves(Dispersion, "matrix")
@operation
def farthest_first(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first over `f.distance` (..., N, N): O(N^2) for the first pick, then O(N) each.

    The first pick is `start`, or the token whose nearest neighbour is farthest.
    """
    return by_row(f, k, lambda row, budget: track(row, budget, start))


@solves(Dispersion, "features")
@operation
def farthest_first_features(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first under 1 - cos of `f.features` (..., N, D), in O(N D) memory."""
    return by_row(f, k, lambda row, budget: track(row, budget, start))
