"""What a good choice of tokens is, as functions of a set.

An objective answers two questions, `value(S)` and `gain(S, j)`. The built-in ones also keep a
*tracker*, which follows a growing set and knows every candidate's gain at a small cost per pick.
Objectives of your own need `size`, `sample` and `value`; `secateur.testing` checks the rest.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    each_row,
    epsilon,
    is_sparse,
    like,
    namespace,
    rounding,
    shape_of,
    spell,
    to_numpy,
    wide,
)
from secateur.core.similarity import (
    CosineSimilarity,
    MatrixSimilarity,
    Similarity,
    SparseSimilarity,
    at,
    blocks,
    row_positions,
)


class Tracker(Protocol):
    """The gains of all candidates, kept current while picks are added one by one."""

    @property
    def slack(self) -> float:
        """How far `gains()` may be from exact; 0 where they are exact."""

    def gains(self) -> Array:
        """The gain (N,) of every token on top of the picks so far."""

    def add(self, pick: int) -> None:
        """Add a token to the picks."""


class Objective(ABC):
    """A function of sets of tokens 0 .. size - 1, for one image or for a batch.

    Subclass it with `size`, `sample` and `value` for an objective of your own.
    """

    size: int
    """How many tokens there are, N."""
    sample: Array
    """Any array of the library and device that answers should come in."""
    batch_shape: tuple[int, ...] = ()
    submodular: ClassVar[bool] = False
    """Whether gains shrink as the set grows; lazy greedy relies on it."""
    monotone: ClassVar[bool] = False
    """Whether no token ever lowers the value, and the empty set has value 0."""

    @abstractmethod
    def value(self, indices: Any) -> Array:
        """The value (...) of the sets at `indices` (..., T), one a row; -1 stands for no token.

        An objective of your own is given a list of distinct ints and may answer with a float.
        """

    def gain(self, indices: Any, j: Any) -> Array:
        """What `j` adds to the set at `indices`: value(S + j) - value(S).

        `j` is one index, or M of them for M answers.
        """
        picks = [int(p) for p in to_numpy(indices)]
        before = float(self.value(picks))
        asked = to_numpy(j)
        gains = [float(self.value([*picks, int(c)])) - before for c in np.ravel(asked)]
        together = np.asarray(gains).reshape(asked.shape)
        return like(together, self.sample, dtype=wide(namespace(self.sample)))

    def margin(self, best: float) -> float:
        """How far below the best gain another may lie and still count as equal.

        What rounding can do to a sum of N terms; gains that close go to the lowest index.
        """
        return 0.0 if math.isinf(best) else 4.0 * self.size * self._rounding * abs(best)

    @property
    def _rounding(self) -> float:
        return rounding(namespace(self.sample))

    def tracker(self) -> Tracker:
        """A tracker that starts from the empty set; this one asks `gain` anew every time."""
        return _AskAgain(self)

    def rows(self) -> Sequence[Objective]:
        """The objectives of the rows of the batch."""
        return (self,)


class _AskAgain:
    slack = 0.0

    def __init__(self, f: Objective) -> None:
        self._f = f
        self._picks: list[int] = []
        self._all = row_positions(f.size, f.sample)

    def gains(self) -> Array:
        return self._f.gain(self._picks, self._all)

    def add(self, pick: int) -> None:
        self._picks.append(pick)


class _ByRow(Objective):
    """An objective that knows one image and treats a batch as a row of such objectives."""

    def value(self, indices: Any) -> Array:
        return self._each(indices, lambda f, picks: f._value(picks))

    def gain(self, indices: Any, j: Any) -> Array:
        host = _checked_indices(j, self.size, "j", least=0)
        asked = _beside(host.reshape(-1), self.sample)
        answer = self._each(indices, lambda f, picks: f._gain(picks, asked))
        return answer[..., 0] if host.ndim == 0 else answer

    def _each(self, indices: Any, ask: Any) -> Array:
        picks = _checked_indices(indices, self.size, "indices", least=-1)
        if picks.ndim == 0 or picks.shape[:-1] not in ((), self.batch_shape):
            raise ValueError(
                f"indices: expected a set (T,) or one for each of the rows "
                f"{spell(self.batch_shape)}, got shape {spell(picks.shape)}"
            )
        picks = np.broadcast_to(picks, (*self.batch_shape, picks.shape[-1]))
        answers = [
            ask(f, _beside(picks[position][picks[position] >= 0], self.sample))
            for f, position in zip(self.rows(), each_row(self.batch_shape), strict=True)
        ]
        if not self.batch_shape:
            return answers[0]
        if not answers:
            xp = namespace(self.sample)
            return xp.zeros(self.batch_shape, dtype=wide(xp), device=device(self.sample))
        together = namespace(answers[0]).stack(answers)
        return namespace(together).reshape(together, (*self.batch_shape, *together.shape[1:]))

    @abstractmethod
    def rows(self) -> Sequence[Self]: ...

    @abstractmethod
    def _value(self, picks: Array) -> Array: ...

    @abstractmethod
    def _gain(self, picks: Array, candidates: Array) -> Array: ...


def _checked_indices(
    indices: Any, n: int, name: str, least: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    host = to_numpy(indices)
    if host.size and (
        host.dtype.kind not in "iu" or not (least <= int(host.min()) and int(host.max()) < n)
    ):
        raise ValueError(f"{name}: expected tokens {max(0, least)} .. {n - 1}, got {host.tolist()}")
    return host.astype(np.int64)


def _beside(indices: Any, sample: Array) -> Array:
    """Indices on the host as an index array beside `sample`."""
    return like(indices, sample, dtype=row_positions(1, sample).dtype)


class FacilityLocation(_ByRow):
    r"""How well a set of tokens stands for all tokens, each as heavy as its weight.

    .. math:: f(S) = \sum_i w_i \max_{j \in S} s_{ij}, \qquad f(\emptyset) = 0

    Monotone and submodular for any non-negative weights; negative similarities count as 0.

    Parameters
    ----------
    similarity
        Similarities (..., N, N): row i is served by column j. It need not be symmetric. Or a
        SciPy sparse matrix (N, N), never made dense; absent entries are 0.
    weights
        Non-negative weights (..., N) of the rows; all 1 when absent.
    check_finite
        Whether to refuse NaN and infinity.

    Notes
    -----
    `value` and one `gain` take O(N |S|) and O(N) time. Sums are in float64, so picks are those
    of the real-number definition but for gains closer than rounding, which count as equal.

    References
    ----------
    G. Cornuejols, M. Fisher and G. Nemhauser, "Location of bank accounts to optimize float",
    Management Science, 1977.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> f = sc.FacilityLocation(np.array([[1.0, 0.2], [0.5, 1.0]]), weights=np.array([3.0, 1.0]))
    >>> float(f.value([0])), float(f.gain([0], 1))
    (3.5, 0.5)
    """

    submodular = True
    monotone = True

    def __init__(
        self, similarity: Any, weights: Array | None = None, *, check_finite: bool = True
    ) -> None:
        if is_sparse(similarity):
            similarity = similarity.tocsr()
            data = checked(similarity.data, "similarity", "(...)", check_finite=check_finite)
            if data is not similarity.data:
                similarity = similarity.astype(data.dtype)
        else:
            similarity = checked(similarity, "similarity", "(..., N, N)", check_finite=check_finite)
        shape = shape_of(similarity)
        if shape[-1] != shape[-2] or not shape[-1]:
            raise ValueError(f"similarity: expected shape (..., N, N), got {spell(shape)}")
        self._start(similarity, None, shape, weights, check_finite)

    @classmethod
    def from_features(
        cls, features: Array, weights: Array | None = None, *, check_finite: bool = True
    ) -> Self:
        """Facility location on the similarities (1 + cos) / 2 of features.

        The N x N matrix is never built: memory stays O(N D), at the price of working
        similarities out again for the rows that a pick improves.

        Parameters
        ----------
        features
            Features (..., N, D) of the tokens.
        weights
            Non-negative weights (..., N) of the rows; all 1 when absent.
        check_finite
            Whether to refuse NaN and infinity.

        Examples
        --------
        >>> import numpy as np, secateur as sc
        >>> f = sc.FacilityLocation.from_features(np.array([[1.0, 0.0], [0.0, 2.0]]))
        >>> float(f.value([0]))
        1.5
        """
        features = checked(features, "features", "(..., N, D)", check_finite=check_finite)
        self = cls.__new__(cls)
        self._start(None, features, shape_of(features), weights, check_finite)
        return self

    def _start(
        self,
        matrix: Any,
        features: Array | None,
        shape: tuple[int, ...],
        weights: Array | None,
        check_finite: bool,
    ) -> None:
        self.matrix = matrix if matrix is None or is_sparse(matrix) else constant(matrix)
        """The similarities (..., N, N) given, dense or sparse; None from features."""
        self.features = None if features is None else constant(features)
        """The features (..., N, D) given; None from a matrix."""
        self.batch_shape = shape[:-2]
        self.size = shape[-2]
        source: Any = self.matrix if features is None else self.features
        self.sample = source.data if is_sparse(source) else source
        if weights is not None:
            weights = self._checked_weights(weights, check_finite)
        self.weights = weights
        """Weights (..., N) of the rows, or None for equal ones."""
        self._entries: Similarity | None = None
        self._weight_rounding: float | None = None

    def _checked_weights(self, weights: Any, check_finite: bool) -> Array:
        weights = checked(
            weights,
            "weights",
            "(..., N)",
            check_finite=check_finite,
            non_negative=True,
            beside=self.sample,
        )
        xp = namespace(weights, self.sample)
        shape = shape_of(weights)
        if shape[-1] != self.size or shape[:-1] not in ((), self.batch_shape):
            each = f" or {spell((self.size,))}" if self.batch_shape else ""
            raise ValueError(
                f"weights: expected shape {spell((*self.batch_shape, self.size))}{each}, "
                f"got {spell(shape)}"
            )
        return constant(xp.broadcast_to(weights, (*self.batch_shape, self.size)))

    @property
    def similarity(self) -> Similarity:
        """The similarities of one image, entry by entry."""
        if self._entries is None:
            if self.features is not None:
                self._entries = CosineSimilarity(self.features)
            elif is_sparse(self.matrix):
                self._entries = SparseSimilarity(self.matrix)
            else:
                self._entries = MatrixSimilarity(self.matrix)
        return self._entries

    def rows(self) -> Sequence[Self]:
        """One objective an image; see `Objective.rows`."""
        if not self.batch_shape:
            return (self,)
        return [self._row(position) for position in each_row(self.batch_shape)]

    def _row(self, position: tuple[int, ...]) -> Self:
        one = type(self).__new__(type(self))
        matrix = None if self.matrix is None else self.matrix[(*position, ...)]
        features = None if self.features is None else self.features[(*position, ...)]
        weights = None if self.weights is None else self.weights[(*position, ...)]
        one._start(matrix, features, (self.size, self.size), weights, False)
        return one

    def row_weights(self) -> Array:
        """The weights of one image in the dtype of sums."""
        xp = namespace(self.sample)
        if self.weights is None:
            return like(np.ones(self.size), self.sample, dtype=wide(xp))
        return xp.astype(self.weights, wide(xp))

    def margin(self, best: float) -> float:
        """From features, entries also carry the rounding of a cosine, whatever the gain."""
        if self.features is None:
            return super().margin(best)
        if self._weight_rounding is None:
            total = float(namespace(self.sample).sum(self.row_weights()))
            self._weight_rounding = 8 * self._rounding * total
        return super().margin(best) + self._weight_rounding

    def coverage(self, picks: Array) -> Array:
        """How well each row is served: m_i = max(0, max over S of s_ij), shape (N,)."""
        xp = namespace(self.sample)
        m = like(np.zeros(self.size), self.sample, dtype=wide(xp))
        for start, stop in blocks(self.similarity, int(picks.shape[0])):
            served = xp.astype(self.similarity.columns(picks[start:stop]), m.dtype)
            m = xp.maximum(m, xp.max(served, axis=1))
        return m

    def _value(self, picks: Array) -> Array:
        return namespace(self.sample).sum(self.row_weights() * self.coverage(picks))

    def _gain(self, picks: Array, candidates: Array) -> Array:
        return self.gains_over(self.coverage(picks), candidates)

    def gains_over(self, coverage: Array, candidates: Array) -> Array:
        """Gains (M,) of candidates when rows are served as well as `coverage` (N,) says."""
        xp = namespace(self.sample)
        w, m = self.row_weights()[:, None], coverage[:, None]
        parts = []
        for start, stop in blocks(self.similarity, int(candidates.shape[0])):
            s = xp.astype(self.similarity.columns(candidates[start:stop]), m.dtype)
            parts.append(xp.sum(w * xp.clip(s - m, 0.0, None), axis=0))
        return xp.concat(parts)

    def tracker(self) -> Tracker:
        """Every candidate's gain, by touching only the rows that a pick improves.

        A pick p raises the coverage m_i only of rows with s_ip > m_i, and only those rows
        change any gain. Over all picks that is a few times N rows where recomputing takes k N.
        """
        return _Served(self)


class _Served:
    def __init__(self, f: FacilityLocation) -> None:
        xp = namespace(f.sample)
        self._f = f
        self._weights = f.row_weights()
        self._m = xp.zeros_like(self._weights)
        self._g = f.gains_over(self._m, row_positions(f.size, f.sample))
        self._largest = float(xp.max(self._g))
        self._terms = f.size

    @property
    def slack(self) -> float:
        # Each of the terms ever added to a gain was rounded to the precision of the largest,
        # and so was each entry, should it be a cosine: a token serves itself by 1/2 or more.
        return 4 * epsilon(self._g) * self._terms * self._largest

    def gains(self) -> Array:
        return self._g

    def add(self, pick: int) -> None:
        xp = namespace(self._g)
        served = self._f.similarity.columns(at(pick, self._f.sample))[:, 0]
        raised = xp.maximum(self._m, xp.astype(served, self._m.dtype))
        improved = xp.nonzero(raised > self._m)[0]
        self._terms += int(improved.shape[0])
        for start, stop in blocks(self._f.similarity, int(improved.shape[0])):
            i = improved[start:stop]
            s = xp.astype(self._f.similarity.rows(i), self._g.dtype)
            low, high = xp.take(self._m, i)[:, None], xp.take(raised, i)[:, None]
            # max(0, s - low) - max(0, s - high): what row i no longer gives to a candidate.
            lost = xp.minimum(xp.maximum(s, low), high) - low
            self._g = self._g - xp.sum(xp.take(self._weights, i)[:, None] * lost, axis=0)
        self._m = raised


class LogDeterminant(_ByRow):
    r"""How much volume a set of tokens spans: the log-determinant of its kernel.

    .. math:: f(S) = \log \det K_S, \qquad f(\emptyset) = 0

    Submodular; not monotone in general, so that greedy has no constant factor.

    Parameters
    ----------
    kernel
        Symmetric positive semi-definite kernels (..., N, N).
    check_finite
        Whether to refuse NaN and infinity.

    Notes
    -----
    `gain(S, j)` is the log of what is left of K_jj when the tokens of S have explained what
    they can (the Schur complement). What is left counts as zero, and its log as minus
    infinity, when it is at most 16 rounding errors of K_jj: then j lies in the span of S.

    References
    ----------
    A. Kulesza and B. Taskar, "Determinantal Point Processes for Machine Learning", 2012.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> f = sc.LogDeterminant(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> float(f.value([0, 1]).round(4)), float(f.gain([0], 1).round(4))
    (1.0986, 0.4055)
    """

    submodular = True

    def __init__(self, kernel: Array, *, check_finite: bool = True) -> None:
        kernel = checked(kernel, "kernel", "(..., N, N)", check_finite=check_finite)
        shape = shape_of(kernel)
        if shape[-1] != shape[-2]:
            raise ValueError(f"kernel: expected shape (..., N, N), got {spell(shape)}")
        xp = namespace(kernel)
        diagonal = xp.linalg.diagonal(kernel)
        if check_finite and bool(xp.any(diagonal < 0)):
            raise ValueError(
                "kernel: expected a positive semi-definite matrix, its diagonal goes down to "
                f"{float(constant(xp.min(diagonal)))}"
            )
        self.kernel = constant(kernel)
        self.sample = self.kernel
        self.size = shape[-1]
        self.batch_shape = shape[:-2]

    def rows(self) -> Sequence[Self]:
        """One objective an image; see `Objective.rows`."""
        if not self.batch_shape:
            return (self,)
        return [
            type(self)(self.kernel[(*position, ...)], check_finite=False)
            for position in each_row(self.batch_shape)
        ]

    def _value(self, picks: Array) -> Array:
        xp = namespace(self.kernel)
        total = like(0.0, self.kernel, dtype=wide(xp))
        tracker = _Explained(self)
        for pick in to_numpy(picks).tolist():
            total = total + tracker.gains()[pick]
            tracker.add(pick)
        return total

    def _gain(self, picks: Array, candidates: Array) -> Array:
        tracker = _Explained(self)
        for pick in to_numpy(picks).tolist():
            tracker.add(pick)
        return namespace(self.kernel).take(tracker.gains(), candidates)

    def margin(self, best: float) -> float:
        """Gains are logs: a share of what is left is a difference here."""
        return 0.0 if math.isinf(best) else 4.0 * self.size * self._rounding

    def tracker(self) -> Tracker:
        """What is left of every token's variance, by incremental Cholesky: O(N |S|) a pick."""
        return _Explained(self)


class _Explained:
    """Rows of the Cholesky factor, one a pick: left_j = K_jj - sum of their squares."""

    slack = 0.0

    def __init__(self, f: LogDeterminant) -> None:
        xp = namespace(f.kernel)
        self._kernel = f.kernel
        self._diagonal = xp.astype(xp.linalg.diagonal(f.kernel), wide(xp))
        self._left = self._diagonal
        self._noise = 128 * epsilon(f.kernel) * self._diagonal
        self._factor: list[Array] = []

    def gains(self) -> Array:
        xp = namespace(self._left)
        alive = self._left > self._noise
        logs = xp.log(xp.where(alive, self._left, xp.ones_like(self._left)))
        return xp.where(alive, logs, xp.full_like(logs, -xp.inf))

    def add(self, pick: int) -> None:
        xp = namespace(self._left)
        left = float(self._left[pick])
        if left <= float(self._noise[pick]):
            return
        row = xp.astype(self._kernel[pick, :], self._left.dtype)
        for earlier in self._factor:
            row = row - earlier * earlier[pick]
        row = row / left**0.5
        self._factor.append(row)
        self._left = self._left - row * row


class Dispersion(_ByRow):
    r"""How far apart the tokens of a set are: the smallest distance between two of them.

    .. math:: f(S) = \min_{i \ne j \in S} d_{ij}

    For greedy, `gain(S, j)` is the distance from j to the nearest token of S (to its nearest
    neighbour when S is empty), not a difference of values: picking the largest is
    farthest-first. The value of a set is the smallest gain after its first pick; infinite for
    fewer than two tokens.

    Parameters
    ----------
    distance
        Symmetric non-negative distances (..., N, N).
    check_finite
        Whether to refuse NaN and infinity.

    Notes
    -----
    For a metric, farthest-first reaches at least half of the best possible value. 1 - cos is
    no metric, but the square of one up to a factor (the chord), so there it is a quarter.

    References
    ----------
    T. Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    S. Ravi, D. Rosenkrantz and G. Tayi, "Heuristic and special case algorithms for dispersion
    problems", Operations Research, 1994.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> places = np.array([0.0, 1.0, 5.0])
    >>> f = sc.Dispersion(abs(places[:, None] - places))
    >>> float(f.value([0, 1])), float(f.gain([0, 1], 2))
    (1.0, 4.0)
    """

    def __init__(self, distance: Array, *, check_finite: bool = True) -> None:
        distance = checked(
            distance, "distance", "(..., N, N)", check_finite=check_finite, non_negative=True
        )
        shape = shape_of(distance)
        if shape[-1] != shape[-2]:
            raise ValueError(f"distance: expected shape (..., N, N), got {spell(shape)}")
        self._begin(distance, None, shape)

    @classmethod
    def from_features(cls, features: Array, *, check_finite: bool = True) -> Self:
        """Dispersion under 1 - cos of features, in O(N D) memory.

        Parameters
        ----------
        features
            Features (..., N, D) of the tokens.
        check_finite
            Whether to refuse NaN and infinity.

        Examples
        --------
        >>> import numpy as np, secateur as sc
        >>> f = sc.Dispersion.from_features(np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
        >>> float(f.value([0, 2]))
        2.0
        """
        features = checked(features, "features", "(..., N, D)", check_finite=check_finite)
        self = cls.__new__(cls)
        self._begin(None, features, shape_of(features))
        return self

    def _begin(
        self, distance: Array | None, features: Array | None, shape: tuple[int, ...]
    ) -> None:
        self.distance = None if distance is None else constant(distance)
        self.features = None if features is None else constant(features)
        self.sample = self.features if distance is None else self.distance
        self.size = shape[-2]
        self.batch_shape = shape[:-2]
        self._entries: Similarity | None = None

    def rows(self) -> Sequence[Self]:
        """One objective an image; see `Objective.rows`."""
        if not self.batch_shape:
            return (self,)
        return [self._row(position) for position in each_row(self.batch_shape)]

    def _row(self, position: tuple[int, ...]) -> Self:
        one = type(self).__new__(type(self))
        distance = None if self.distance is None else self.distance[(*position, ...)]
        features = None if self.features is None else self.features[(*position, ...)]
        one._begin(distance, features, (self.size, self.size))
        return one

    def distances_to(self, picks: Array) -> Array:
        """Distances (N, M) of all tokens to `picks` (M,)."""
        if self._entries is None:
            known = self.features is None
            self._entries = (
                MatrixSimilarity(self.distance) if known else CosineSimilarity(self.features)
            )
        entries = self._entries.columns(picks)
        # s = (1 + cos) / 2, so that 1 - cos = 2 (1 - s).
        return entries if self.features is None else 2.0 * (1.0 - entries)

    def _nearest_neighbour(self) -> Array:
        xp = namespace(self.sample)
        positions = row_positions(self.size, self.sample)
        parts = []
        step = max(1, (1 << 22) // self.size)
        for start in range(0, self.size, step):
            block = positions[start : min(start + step, self.size)]
            d = self.distances_to(block)
            itself = positions[:, None] == block
            parts.append(xp.min(xp.where(itself, xp.full_like(d, xp.inf), d), axis=0))
        return xp.concat(parts)

    def _value(self, picks: Array) -> Array:
        xp = namespace(self.sample)
        if int(picks.shape[0]) < 2:
            return like(np.inf, self.sample, dtype=self.sample.dtype)
        d = xp.take(self.distances_to(picks), picks, axis=0)
        places = row_positions(int(picks.shape[0]), self.sample)
        itself = places[:, None] == places
        return xp.min(xp.where(itself, xp.full_like(d, xp.inf), d))

    def _gain(self, picks: Array, candidates: Array) -> Array:
        xp = namespace(self.sample)
        if int(picks.shape[0]) == 0:
            return xp.take(self._nearest_neighbour(), candidates)
        nearest = xp.min(self.distances_to(picks), axis=1)
        return xp.take(nearest, candidates)

    def margin(self, best: float) -> float:
        """Distances given are exact; those from features are known to a cosine's rounding."""
        return 0.0 if math.isinf(best) or self.features is None else 16 * self._rounding

    def tracker(self) -> Tracker:
        """Every token's distance to the nearest pick: one row of distances a pick."""
        return _Farthest(self)


class _Farthest:
    slack = 0.0

    def __init__(self, f: Dispersion) -> None:
        self._f = f
        self._first = True
        self._nearest = f._nearest_neighbour()

    def gains(self) -> Array:
        return self._nearest

    def add(self, pick: int) -> None:
        xp = namespace(self._nearest)
        d = self._f.distances_to(at(pick, self._f.sample))[:, 0]
        self._nearest = d if self._first else xp.minimum(self._nearest, d)
        self._first = False
