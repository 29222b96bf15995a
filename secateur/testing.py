"""Hold an objective or a method of your own to what ours are held to.

Checkers take an objective, try sets of its tokens and raise `AssertionError` with the first
counterexample; `assert_objective` runs all that the objective's flags promise. The strategies
draw the awkward inputs (zero vectors, duplicates, ties, one token, extreme scales) for tests by
`hypothesis`, which only this module imports: ``pip install 'secateur[test]'``.

>>> import numpy as np, secateur as sc
>>> from secateur.testing import assert_objective
>>> class Words(sc.Objective):
...     '''How many different words the chosen sentences hold.'''
...     submodular = monotone = True
...     def __init__(self, sentences):
...         self.words = [set(sentence.split()) for sentence in sentences]
...         self.size, self.sample = len(sentences), np.zeros(1)
...     def value(self, indices):
...         return float(len(set().union(*(self.words[j] for j in indices))))
>>> f = Words(["a rose is a rose", "a thorn", "is a rose"])
>>> assert_objective(f)
>>> sc.maximize(f, 2).indices
array([0, 1])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from secateur.core.arrays import each_row, to_numpy
from secateur.core.extras import extra
from secateur.core.kernels import KINDS
from secateur.core.maximize import Algorithm, maximize
from secateur.core.objectives import FacilityLocation, Objective
from secateur.core.objectives.base import tracker_of
from secateur.core.selection import Selection

with extra("test", "secateur.testing"):
    from hypothesis import strategies as st

Matrix = np.ndarray[Any, np.dtype[Any]]

SCALES = (1.0, 1e-30, 1e-12, 1e12, 1e30)
"""Factors that the strategies multiply what they draw by."""


def _dice(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _scaled(x: Matrix, scale: float, dtype: Any) -> Matrix:
    return (x * scale).astype(dtype)


_seeds = st.integers(0, 2**32 - 1)


@st.composite
def features(
    draw: Callable[..., Any],
    *,
    min_tokens: int = 1,
    max_tokens: int = 10,
    max_length: int = 8,
    dtype: Any = np.float64,
    scales: Sequence[float] = SCALES,
    ties: bool = True,
) -> Matrix:
    """Feature matrices (N, D): generic ones, and with `ties` degenerate ones as well.

    Degenerate are matrices with zero rows, with duplicate rows, of few whole numbers, of rank
    one, and constant ones.

    Parameters
    ----------
    min_tokens, max_tokens
        Bounds of N.
    max_length
        The largest D.
    dtype
        Any floating dtype of NumPy.
    scales
        Factors to draw from; 1 alone keeps to plain numbers.
    ties
        Whether to draw degenerate matrices.
    """
    n = draw(st.integers(min_tokens, max_tokens))
    d = draw(st.integers(1, max_length))
    dice = _dice(draw(_seeds))
    kinds = ["plain", "zeros", "duplicates", "whole", "rank one", "constant"]
    kind = draw(st.sampled_from(kinds)) if ties else "plain"
    x = dice.normal(size=(n, d))
    if kind == "zeros":
        x[dice.random(n) < 0.4] = 0.0
    elif kind == "duplicates":
        x = x[dice.integers(0, max(1, n // 2), size=n)]
    elif kind == "whole":
        x = dice.integers(-1, 2, size=(n, d)).astype(np.float64)
    elif kind == "rank one":
        x = dice.normal(size=(n, 1)) * dice.normal(size=(1, d))
    elif kind == "constant":
        x = np.ones((n, d))
    return _scaled(x, draw(st.sampled_from(tuple(scales))), dtype)


@st.composite
def similarities(
    draw: Callable[..., Any],
    *,
    min_tokens: int = 1,
    max_tokens: int = 10,
    dtype: Any = np.float64,
    scales: Sequence[float] = SCALES,
    ties: bool = True,
) -> Matrix:
    """Matrices (N, N) of any sign, not symmetric, with zeros and, with `ties`, equal entries."""
    n = draw(st.integers(min_tokens, max_tokens))
    dice = _dice(draw(_seeds))
    kinds = ["plain", "signed", "sparse", "whole", "duplicates"]
    kind = draw(st.sampled_from(kinds)) if ties else "plain"
    s = dice.random((n, n))
    if kind == "signed":
        s -= 0.5
    elif kind == "sparse":
        s *= dice.random((n, n)) < 0.4
    elif kind == "whole":
        s = dice.integers(0, 3, size=(n, n)).astype(np.float64)
    elif kind == "duplicates":
        s = s[:, dice.integers(0, max(1, n // 2), size=n)]
    return _scaled(s, draw(st.sampled_from(tuple(scales))), dtype)


@st.composite
def weights(
    draw: Callable[..., Any],
    n: int,
    *,
    dtype: Any = np.float64,
    scales: Sequence[float] = SCALES,
) -> Matrix | None:
    """Non-negative weights (n,): none at all, equal, random, with zeros, all zero."""
    kind = draw(st.sampled_from(["random", "none", "equal", "zeros", "all zero"]))
    dice = _dice(draw(_seeds))
    if kind == "none":
        return None
    w = dice.random(n)
    if kind == "equal":
        w = np.ones(n)
    elif kind == "zeros":
        w *= dice.random(n) < 0.5
    elif kind == "all zero":
        w = np.zeros(n)
    return _scaled(w, draw(st.sampled_from(tuple(scales))), dtype)


@st.composite
def facility_locations(
    draw: Callable[..., Any],
    *,
    max_tokens: int = 10,
    dtype: Any = np.float64,
    scales: Sequence[float] = SCALES,
    ties: bool = True,
) -> FacilityLocation:
    """Facility locations of one image, from a matrix or from features, weighted or not.

    Features are compared by each of the similarities there are.
    """
    wanted = {"max_tokens": max_tokens, "dtype": dtype, "scales": scales, "ties": ties}
    if draw(st.booleans()):
        s = draw(similarities(**wanted))
        return FacilityLocation(s, draw(weights(len(s), dtype=dtype, scales=scales)))
    kind = draw(st.sampled_from(KINDS))
    x = draw(features(**wanted))
    w = draw(weights(len(x), dtype=dtype, scales=scales))
    return FacilityLocation.from_features(x, w, similarity=kind)


@st.composite
def kernels(
    draw: Callable[..., Any],
    *,
    max_tokens: int = 8,
    dtype: Any = np.float64,
    scales: Sequence[float] = (1.0, 1e-12, 1e12),
    full_rank: bool = False,
) -> Matrix:
    """Symmetric positive semi-definite kernels (N, N), of any rank unless `full_rank`."""
    x = draw(features(max_tokens=max_tokens, scales=(1.0,), ties=not full_rank))
    kernel = x @ x.T
    if full_rank:
        kernel = kernel + np.eye(len(x))
    return _scaled(kernel, draw(st.sampled_from(tuple(scales))), dtype)


@st.composite
def distances(
    draw: Callable[..., Any],
    *,
    min_tokens: int = 1,
    max_tokens: int = 9,
    dtype: Any = np.float64,
    scales: Sequence[float] = SCALES,
) -> Matrix:
    """Euclidean distances (N, N) between points, some of which may coincide."""
    x = draw(features(min_tokens=min_tokens, max_tokens=max_tokens, scales=(1.0,)))
    d = np.linalg.norm(x[:, None] - x, axis=-1)
    return _scaled(d, draw(st.sampled_from(tuple(scales))), dtype)


def optimum(f: Objective, k: int) -> tuple[tuple[int, ...], float]:
    """The best set of k selectable tokens and its value, by trying all of them.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> from secateur.testing import optimum
    >>> optimum(sc.FacilityLocation(np.eye(3), np.array([1.0, 5.0, 2.0])), 2)
    ((1, 2), 7.0)
    """
    sets = combinations([int(j) for j in np.flatnonzero(f.open())], k)
    return max(((s, float(f.value(list(s)))) for s in sets), key=lambda each: each[1])


def assert_objective(
    f: Objective, *, trials: int = 30, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """Everything an objective declares: gains, order, its flags, and greedy when it is small.

    What is checked is what it says of itself: `differences`, whether gains are differences of
    values; `submodular`, `monotone` and `selectable`; and whether sets have a value at all.

    Parameters
    ----------
    f
        The objective. Each row of a batch is checked by itself.
    trials
        How many random sets each check tries; all sets when there are no more than that.
    seed
        Of the random sets.
    rtol, atol
        Rounding allowed: a share of the largest value in play, and a plain number.

    Raises
    ------
    AssertionError
        With the first counterexample.

    See Also
    --------
    assert_gain_consistent, assert_tracker_consistent, assert_order_free, assert_monotone,
    assert_submodular,
    assert_algorithms_agree, assert_greedy_guarantee
    """
    for row in f.rows():
        options = {"trials": trials, "seed": seed, "rtol": rtol, "atol": atol}
        if row.valued:
            assert_order_free(row, **options)  # type: ignore[arg-type]
        if row.differences:
            assert_gain_consistent(row, **options)  # type: ignore[arg-type]
        assert_tracker_consistent(row, **options)  # type: ignore[arg-type]
        if row.submodular:
            assert_submodular(row, **options)  # type: ignore[arg-type]
        if row.monotone:
            assert_monotone(row, **options)  # type: ignore[arg-type]
        k = min(3, int(row.open().sum()))
        assert_algorithms_agree(row, k)
        if row.submodular and row.monotone and row.size <= 12:
            assert_greedy_guarantee(row, k, rtol=rtol, atol=atol)


def assert_gain_consistent(
    f: Objective, *, trials: int = 30, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """gain(S, j) = value(S + j) - value(S), for one j and for many at once."""
    if not f.valued:
        raise AssertionError(
            f"{type(f).__name__} says that gains are differences of values, and sets have none"
        )
    for picks, _, j in _chains(f.size, trials, seed):
        before, after = float(f.value(picks)), float(f.value([*picks, j]))
        gain = float(f.gain(picks, j))
        together = to_numpy(f.gain(picks, np.arange(f.size)))
        if together.shape != (f.size,):
            raise AssertionError(
                f"gain({picks}, all {f.size} tokens) has shape {together.shape}, not ({f.size},)"
            )
        expected = after - before if math.isfinite(before) else gain
        room = _room(rtol, atol, before, after)
        for name, got in ((f"gain({picks}, {j})", gain), ("the same among all", together[j])):
            if not _close(float(got), expected, room):
                raise AssertionError(
                    f"{name} is {float(got)!r}, but value({[*picks, j]}) - value({picks}) = "
                    f"{after!r} - {before!r} = {expected!r}"
                )


def assert_tracker_consistent(
    f: Objective, *, trials: int = 30, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """A tracker led through picks knows the gain of every other token, within its slack."""
    for _, picks, _ in _chains(f.size, trials, seed):
        tracker = tracker_of(f)
        for pick in picks:
            tracker.add(pick)
        others = [j for j in range(f.size) if j not in picks]
        kept, asked = to_numpy(tracker.gains())[others], to_numpy(f.gain(picks, np.asarray(others)))
        for j, one, other in zip(others, kept.tolist(), asked.tolist(), strict=True):
            if not _close(one, other, _room(rtol, atol, one, other) + tracker.slack):
                raise AssertionError(
                    f"after {picks} the tracker says that token {j} adds {one!r}, "
                    f"gain says {other!r}"
                )


def assert_order_free(
    f: Objective, *, trials: int = 30, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """value(S) does not depend on the order of S."""
    dice = _dice(seed)
    for _, picks, j in _chains(f.size, trials, seed):
        listed = [*picks, j]
        turned = [listed[i] for i in dice.permutation(len(listed))]
        one, other = float(f.value(listed)), float(f.value(turned))
        if not _close(one, other, _room(rtol, atol, one, other)):
            raise AssertionError(f"value({listed}) is {one!r}, but value({turned}) is {other!r}")


def assert_monotone(
    f: Objective, *, trials: int = 30, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """value(empty) = 0, and no token lowers the value of any set."""
    empty = float(f.value([]))
    if abs(empty) > atol:
        raise AssertionError(f"not monotone from 0: the empty set has value {empty!r}")
    for _, picks, j in _chains(f.size, trials, seed):
        before, after = float(f.value(picks)), float(f.value([*picks, j]))
        if after < before - _room(rtol, atol, before, after):
            raise AssertionError(
                f"not monotone: token {j} lowers the value of {picks} from {before!r} to {after!r}"
            )


def assert_submodular(
    f: Objective, *, trials: int = 30, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """Diminishing returns: a token adds no more to a set than to any part of it."""
    for part, picks, j in _chains(f.size, trials, seed):
        early, late = float(f.gain(part, j)), float(f.gain(picks, j))
        values = [float(f.value(s)) for s in (picks, [*part, j])] if f.valued else []
        room = _room(rtol, atol, *values, early, late)
        if late > early + room:
            raise AssertionError(
                f"not submodular: token {j} adds {late!r} to {picks}, but only {early!r} to {part}"
            )


def assert_algorithms_agree(
    f: Objective, k: Any, algorithms: Sequence[Algorithm] = ("lazy", "incremental", "auto")
) -> None:
    """The algorithms return the picks of naive greedy; lazy is left out where it may not run."""
    expected = to_numpy(maximize(f, k, "naive").indices)
    if not f.batch_shape and not f.open()[expected].all():
        raise AssertionError(f"naive picks {expected.tolist()}, not all of them selectable")
    for algorithm in algorithms:
        if algorithm == "lazy" and not f.submodular:
            continue
        picks = to_numpy(maximize(f, k, algorithm).indices)
        if not np.array_equal(picks, expected):
            raise AssertionError(
                f"{algorithm} picks {picks.tolist()}, but naive picks {expected.tolist()}"
            )


def assert_greedy_guarantee(
    f: Objective,
    k: int,
    algorithm: Algorithm = "auto",
    *,
    rtol: float = 1e-9,
    atol: float = 1e-12,
) -> None:
    """Greedy against the optimum, by brute force: keep the objective to a dozen tokens.

    For a monotone submodular objective: value >= (1 - (1 - 1/k)^k) optimum, upper_bound >=
    optimum, and 1 - 1/e <= guarantee <= value / optimum.
    """
    chosen = maximize(f, k, algorithm)
    k = min(k, int(f.open().sum()))
    assert_selection(chosen, k)
    bound, share = chosen.upper_bound, chosen.guarantee
    if bound is None or share is None:
        raise AssertionError(f"{type(f).__name__} does not call itself submodular and monotone")
    best_set, best = optimum(f, k)
    value, upper, certain = float(np.asarray(to_numpy(chosen.value))), float(bound), float(share)
    room = _room(rtol, atol, best)
    promise = 1.0 - (1.0 - 1.0 / k) ** k
    if value < promise * best - room:
        raise AssertionError(f"greedy reaches {value!r}, below {promise:.4f} of {best!r}")
    if upper < best - room:
        raise AssertionError(f"upper_bound is {upper!r}, but {best_set} has value {best!r}")
    if certain * best > value + room:
        raise AssertionError(f"guarantee is {certain!r}, but value / optimum is {value / best!r}")
    if certain < 1.0 - 1.0 / math.e:
        raise AssertionError(f"guarantee is {certain!r}, below 1 - 1/e")


def assert_selection(selection: Selection, k: Any = None) -> None:
    """A selection is one: k distinct tokens in every row, padding on the right, shapes agree.

    Parameters
    ----------
    selection
        What a method or `secateur.maximize` returned.
    k
        How many tokens every row keeps, or one number for each row; any when absent.
    """
    indices, count = to_numpy(selection.indices), to_numpy(selection.count)
    batch = selection.batch_shape
    if count.shape != batch:
        raise AssertionError(f"count has shape {count.shape}, the batch {batch}")
    if k is not None and not np.array_equal(count, np.broadcast_to(to_numpy(k), batch)):
        raise AssertionError(f"kept {count.tolist()} tokens, not {k}")
    for position in each_row(batch):
        kept = int(count[position])
        real, padding = indices[position][:kept], indices[position][kept:]
        if not (len(set(real.tolist())) == kept and (padding == -1).all()):
            raise AssertionError(
                f"row {position}: expected {kept} distinct tokens, then -1, got {indices[position]}"
            )
        if kept and not (0 <= real.min() and real.max() < selection.size):
            raise AssertionError(f"row {position}: {real} leave 0 .. {selection.size - 1}")
    for name, shape in (
        ("gains", indices.shape),
        ("value", batch),
        ("upper_bound", batch),
        ("scores", (*batch, selection.size)),
        ("folded", (*batch, selection.size)),
        ("fold_weights", (*batch, selection.size)),
    ):
        x = getattr(selection, name)
        if x is not None and to_numpy(x).shape != shape:
            raise AssertionError(f"{name} has shape {to_numpy(x).shape}, expected {shape}")


def _chains(n: int, trials: int, seed: int) -> Iterator[tuple[list[int], list[int], int]]:
    """A part of a set, the set, and a token outside it: all of them if few, else random ones."""
    if 3 ** (n - 1) * n <= trials:
        for j in range(n):
            others = [i for i in range(n) if i != j]
            for r in range(n):
                for picks in combinations(others, r):
                    for fewer in range(r + 1):
                        for some in combinations(picks, fewer):
                            yield list(some), list(picks), j
        return
    dice = _dice(seed)
    for _ in range(trials):
        order = [int(i) for i in dice.permutation(n)]
        size = int(dice.integers(0, n))
        part = int(dice.integers(0, size + 1))
        yield order[:part], order[:size], order[size]


def _room(rtol: float, atol: float, *values: float) -> float:
    return atol + rtol * max((abs(v) for v in values if math.isfinite(v)), default=0.0)


def _close(x: float, y: float, room: float) -> bool:
    return x == y or abs(x - y) <= room
