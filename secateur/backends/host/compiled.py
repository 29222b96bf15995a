"""The Numba driver: what compiled loops do better than whole-array steps, for NumPy arrays.

It offers an operation where a loop pays, and leaves the rest to the NumPy driver: Numba takes a
hundred megabytes once it is imported. Kernels are compiled when first used and cached on disk.
Images of a batch run in threads; a single image runs in one, so that the same input always takes
the same steps.

Loading Numba takes longer than some choices of NumPy's driver, which picks the same: vectors of
length one are equal to the last bit, and what is compared after them is compared in float64, with
a width for ties. So the first small questions of a process are left to it. `wake`, which
`secateur.warm_up` and a choice of this driver by name call, ends that.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np

from secateur.backends.host import driver as plain
from secateur.backends.host import greedy as greedy_numpy
from secateur.backends.host import sources, volume
from secateur.backends.host.candidates import of_features
from secateur.backends.host.driver import unit
from secateur.backends.host.farthest import (
    GivenDistances,
    refuse_distances,
    smallest_between,
)
from secateur.backends.host.lengths import lined
from secateur.backends.host.likeness import likeness_factors as likeness_factors
from secateur.backends.host.nearly import Lists
from secateur.backends.host.rows import compared_source, of_rows
from secateur.backends.host.sources import Floats, Indices
from secateur.backends.host.turned import TurnedServed
from secateur.backends.lending import over_batch, product, weights_at
from secateur.core.arrays import each_row, is_sparse
from secateur.core.maximize import Picks
from secateur.core.measures import check_image
from secateur.core.objectives import Dispersion, FacilityLocation, LogDeterminant
from secateur.core.objectives.coverage import refuse_sums

__all__ = [
    "cosine_similarity",
    "determinant",
    "determinant_factors",
    "facility_location",
    "facility_location_features",
    "facility_location_kernel",
    "facility_location_rows",
    "farthest_first",
    "farthest_first_features",
    "likeness_factors",
    "patch_entropy",
    "threshold_scan",
    "unit",
]
"""The operations it offers."""

F = TypeVar("F", bound=Callable[..., Any])

available = importlib.util.find_spec("numba") is not None
"""Whether Numba is installed; it is imported when an operation first needs it."""

KNOWN = (np.dtype(np.float32), np.dtype(np.float64))
"""Floating dtypes that Numba compiles for; others, by precision or byte order, go to NumPy."""

ALONE = 1 << 22
"""Numbers in a batch below which starting threads costs loops over them more than they save."""

ALONE_WITH_PRODUCTS = 1 << 20
"""The same of features whose products are taken as well."""

FEW = 4
"""Columns of similarities up to which loops beat a threaded matrix product."""


PAYS = 1 << 23
"""Numbers that NumPy is asked about before Numba is loaded: those of five to ten small images."""

_asked = 0


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("secateur.backends.host.kernels")


def wake() -> None:
    """Load the kernels: Numba and what it reads at its first call take nearly half a second."""
    kernels = _kernels()
    if not kernels.shift.overloads:
        kernels.shift(np.zeros((1, 1), dtype=np.float32))


def _awake(numbers: int) -> bool:
    """Whether the kernels are loaded, or from now on are, for a question about so many numbers.

    Who asks a few small questions has his answers from NumPy before Numba would be loaded.
    """
    global _asked
    if not _kernels.cache_info().currsize:
        _asked += numbers
        if _asked <= PAYS:
            return False
        wake()
    return True


def _for_known(function: F) -> F:
    """The operation, left to NumPy's driver until the kernels are loaded.

    And where an argument's dtype is none of `KNOWN`.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        numbers = 0
        for each in (*args, *kwargs.values()):
            x = getattr(each, "sample", each)
            if isinstance(x, np.ndarray):
                if x.dtype.kind == "f" and x.dtype not in KNOWN:
                    return NotImplemented
                numbers += x.size
        return function(*args, **kwargs) if _awake(numbers) else NotImplemented

    return cast(F, call)


def _workers(x: Floats, products: bool = False) -> int:
    """How many threads share a batch: as many as Numba is configured to use."""
    import numba

    # Not numba.get_num_threads(): that starts threads of Numba's own, which nothing here uses and
    # whose OpenMP slows the one of a PyTorch in the same process by an order of magnitude.
    configured = int(numba.config.NUMBA_NUM_THREADS)
    alone = ALONE_WITH_PRODUCTS if products else ALONE
    return 1 if x.size < alone else min(configured, math.prod(x.shape[:-2]))


def _unit(x: Floats) -> Floats:
    """Vectors (..., D) scaled to length one; a zero vector stays zero."""
    x = np.ascontiguousarray(x)
    out = lined(x.shape, x.dtype)
    _kernels().unit_rows(x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1]))
    return out


@_for_known
def cosine_similarity(features: Floats) -> Floats:
    """Similarities (1 + cos) / 2, shape (..., N, N), of features (..., N, D)."""
    directions = _unit(features)
    cosine = product(directions, np.swapaxes(directions, -1, -2))
    _kernels().shift(cosine)
    return cosine


class _Cosine(sources.Cosine):
    """(1 + cos) / 2 of features (N, D)."""

    def between(self, i: Indices | slice, j: Indices | slice, out: Floats | None = None) -> Floats:
        cosine = product(self.directions[i], self.directions[j].T, out)
        _kernels().shift(cosine)
        return cosine

    def columns(self, j: Indices) -> Floats:
        if len(j) > FEW:
            return self.between(j, slice(None))
        return self._few(j, np.empty((len(j), self.size), dtype=self.dtype))

    def rows(self, i: Indices) -> Floats:
        out = self.scratch(len(i), self.size, self.dtype)
        return self.between(i, slice(None), out) if len(i) > FEW else self._few(i, out)

    def _few(self, i: Indices, out: Floats) -> Floats:
        for row, each in zip(out, i, strict=True):
            _kernels().similarities_to(self.directions, each, row)
        return out

    def entries(self, i: Indices, j: int) -> Floats:
        column = np.empty(len(i), dtype=self.dtype)
        _kernels().similarities_at(self.directions, i, j, column)
        return column


class _Lists(Lists):
    """Lists that loops write and read."""

    def note(self, s: Floats, i: Indices, limit: Floats) -> None:
        kernels, limit = _kernels(), limit.astype(s.dtype)
        count = np.empty(len(i), dtype=np.int64)
        kernels.count_above(s, limit, count)
        kernels.note_above(s, limit, self.reserve(i, count), self.near, self.level)

    def dropped(self, rows: Indices, limit: Floats) -> int:
        lists = self.near, self.level, self.start, self.count
        return int(_kernels().drop_overtaken(rows, limit, *lists))

    def turned(self, m: Floats, w: Floats, size: int) -> tuple[Indices, Indices, Floats, Floats]:
        lists = self.near, self.level, self.start, self.count
        starts = np.zeros(size + 1, dtype=np.int64)
        rows = np.empty(self.used, dtype=np.int32)
        gains, heavy = np.zeros((2, size))
        _kernels().turn_lists(*lists, m, w, starts, rows, gains, heavy)
        return starts, rows, gains, heavy

    def lower(self, g: Floats, i: Indices, w: Floats, low: Floats, high: Floats) -> None:
        lists = self.near, self.level, self.start[i], self.count[i]
        _kernels().lower_by_lists(g, *lists, w, low, high)


class _Turned(TurnedServed):
    """Coverage and gains from features: matrix products by BLAS, the rest in loops."""

    piece = sources.PRODUCT
    lists = _Lists

    def __init__(self, source: sources.Source, weights: Floats | None) -> None:
        super().__init__(source, weights)
        n = len(self.g)
        self._level, self._top = self._largest, np.empty(n)
        self._places = np.empty(n + 1, dtype=np.int64)

    def largest(self, k: int) -> float:
        args = self._level, self._top, self._places
        top, self._level = _kernels().top_sum(self.g, k, *args)
        return float(top)

    def _gains(self, columns: Floats) -> Floats:
        kernels = _kernels()
        return np.asarray(
            [kernels.gain_of(column, self.m, self.w) for column in np.ascontiguousarray(columns)]
        )

    def lower_by(self, s: Floats, i: Indices, low: Floats, g: Floats) -> None:
        self.listed.note(s, i, self._limits(self.m[i]))
        low, high = low.astype(s.dtype), self.m[i].astype(s.dtype)
        _kernels().lower_rows(s, low, high, self.w[i], g)

    def _lower_both(self, s: Floats, high: Floats, w: Floats, g: Floats) -> None:
        _kernels().lower_both(s, high, w, g)


class _Listed(greedy_numpy.Listed):
    """Coverage and gains from a CSR matrix."""

    def lower(self, i: Indices, low: Floats) -> None:
        rows = self._rows
        starts = rows.indptr[i].astype(np.int64)
        count = rows.indptr[i + 1] - starts
        _kernels().lower_by_lists(
            self.g, rows.indices, rows.data, starts, count, self.w[i], low, self.m[i]
        )


def _greedy(
    similarity: Floats,
    weights: Floats | None,
    k: int,
    rounding: float = 0.0,
    name: str = "similarity",
) -> tuple[Any, Any, float, float]:
    w = np.ones(len(similarity)) if weights is None else np.asarray(weights, dtype=np.float64)
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    rows = np.ascontiguousarray(similarity)
    # Of entries that are given, whose weights may add up to more than float64 holds, none.
    ties = rounding * float(w.sum()) if rounding else 0.0
    value, bound = _kernels().greedy_dense(rows, np.ascontiguousarray(w), k, ties, picks, gains)
    if math.isnan(value):
        refuse_sums(rows, weights, name)
    return picks, gains, value, bound


@_for_known
def facility_location(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location from a matrix (..., N, N), dense or CSR."""
    similarity, weights = f.matrix, f.weights
    if is_sparse(similarity):
        matrix = plain.canonical(similarity)
        return over_batch(
            (), k, lambda _, budget: greedy_numpy.greedy(_Listed(matrix, weights), budget)
        )
    return over_batch(
        similarity.shape[:-2],
        k,
        lambda at, budget: _greedy(similarity[at], weights_at(weights, at), budget, f.rounding),
        _workers(similarity),
    )


@_for_known
def facility_location_rows(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location over rectangular, stacked or masked rows."""
    return of_rows(f, k, _greedy, _Turned, lambda x: _Cosine(_unit(x)))


@_for_known
def facility_location_features(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on (1 + cos) / 2 of features (..., N, D), in O(N D) memory."""
    features, weights = f.features, f.weights

    def solve(at: tuple[int, ...], budget: int) -> tuple[Any, Any, float, float]:
        w = weights_at(weights, at)
        if plain.small_enough(features):
            s = cosine_similarity(features[at])
            return _greedy(s, w, budget, sources.COSINE_ROUNDING, "features")
        return greedy_numpy.greedy(_Turned(_Cosine(_unit(features[at])), w), budget)

    return over_batch(features.shape[:-2], k, solve)


@_for_known
def facility_location_kernel(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on another similarity of features (..., N, D): O(N D) memory."""
    features, weights = f.features, f.weights

    def solve(at: tuple[int, ...], budget: int) -> tuple[Any, Any, float, float]:
        w = weights_at(weights, at)
        if plain.small_enough(features):
            entries = sources.Entries(f.kind, features[at])
            matrix = entries.rows(np.arange(entries.size))
            return _greedy(matrix, w, budget, entries.rounding, "features")
        return greedy_numpy.greedy(_Turned(compared_source(f.kind, features[at]), w), budget)

    return over_batch(features.shape[:-2], k, solve)


def _steps() -> volume.Steps:
    return volume.Steps(_kernels().most_left, _kernels().explain_left)


def determinant_factors(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of I + gamma Y Y^T from factors (..., N, D): O(k N (D + k))."""
    return volume.of_factors(f, k, _steps())


@_for_known
def determinant(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N) by incremental Cholesky."""
    kernel: Any = f.kernel
    small = int(np.max(k, initial=0)) * f.size <= volume.FORESEEN
    if not small or f.monotone or f.selectable is not None:
        return volume.of_kernels(f, k, _steps())
    epsilon = float(np.finfo(kernel.dtype).eps)

    def solve(at: tuple[int, ...], budget: int) -> tuple[Any, Any, float, float]:
        picks = np.empty(budget, dtype=np.int64)
        gains = np.empty(budget)
        _kernels().explain(np.ascontiguousarray(kernel[at]), budget, epsilon, picks, gains)
        return picks, gains, float(gains.sum()), math.inf

    # A loop is done before another thread is awake.
    return over_batch(f.batch_shape, k, solve)


def _farthest(distance: Floats, k: int, start: int | None) -> tuple[Any, Any, float, float]:
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    rows = np.ascontiguousarray(distance)
    first = -1 if start is None else start
    if _kernels().farthest(rows, k, first, picks, gains):
        refuse_distances("distance")
    value = smallest_between(GivenDistances(rows), picks)
    return picks, gains, value, math.inf


@_for_known
def farthest_first(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first over distances (..., N, N)."""
    distance: Any = f.distance
    return over_batch(
        distance.shape[:-2],
        k,
        lambda at, budget: _farthest(distance[at], budget, start),
        _workers(distance),
    )


def farthest_first_features(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first under 1 - cos of features (..., N, D), by loops over the cosines.

    It gains little for what loading Numba takes, and so is left to NumPy's driver until something
    else has.
    """
    features: Any = f.features
    if not (_kernels.cache_info().currsize and features.dtype in KNOWN):
        return plain.farthest_first_features(f, k, start)
    return of_features(
        features,
        k,
        start,
        matrix=plain.small_enough(features),
        run=_kernels().farthest_surely,
        rounded=_unit,
        workers=_workers(features, products=True),
    )


@_for_known
def threshold_scan(
    features: Floats, attention: Floats, k: Any, step: Floats, tau_max: float
) -> tuple[Indices, Indices]:
    """AgilePruner's scan over a batch, each token compared with those kept before it only."""

    def scan(x: Floats, order: Indices, budget: int, rise: float, limit: float) -> Indices:
        kept = np.empty(budget, dtype=np.int64)
        rounding = 8 * float(np.finfo(x.dtype).eps)
        return kept[: _kernels().scan(_unit(x), order, budget, rise, limit, rounding, kept)]

    return plain.scan_batch(features, attention, k, step, tau_max, scan)


def patch_entropy(image: Any, patch: int) -> Floats:
    """Entropy of the grey values within each patch, O(H W)."""
    image = plain.checked_image(image)
    if not _awake(image.size):
        return plain.patch_entropy(image, patch)
    rows, columns = check_image(image, patch)
    terms = plain.entropy_terms(patch * patch)
    h = np.empty((*image.shape[:-3], rows, columns))
    for at in each_row(image.shape[:-3]):
        _kernels().patch_histograms(np.ascontiguousarray(image[at]), patch, terms, h[at])
    return h.reshape(*image.shape[:-3], rows * columns)
