"""How well a set of tokens stands for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn, Self

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    each_row,
    epsilon,
    is_sparse,
    like,
    namespace,
    shape_of,
    spell,
    wide,
)
from secateur.core.objectives.base import Tracker, _ByRow
from secateur.core.similarity import (
    CosineSimilarity,
    MatrixSimilarity,
    Similarity,
    SparseSimilarity,
    at,
    blocks,
    row_positions,
)


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
        gains = xp.concat(parts)
        # No set is worth more than all gains together, and no bound adds up twice as much.
        if not math.isfinite(4.0 * float(xp.sum(gains))):
            given = self.matrix if self.features is None else self.features
            refuse_sums(given, self.weights, "similarity" if self.features is None else "features")
        return gains

    def tracker(self) -> Tracker:
        """Every candidate's gain, by touching only the rows that a pick improves.

        A pick p raises the coverage m_i only of rows with s_ip > m_i, and only those rows
        change any gain. Over all picks that is a few times N rows where recomputing takes k N.
        """
        return _Served(self)


def refuse_sums(given: Any, weights: Array | None, name: str) -> NoReturn:
    """Say why gains, the sums of columns of `name` times the weights, are no usable numbers."""
    given = given.data if is_sparse(given) else given
    xp = namespace(given)
    if not bool(xp.all(xp.isfinite(given))):
        raise ValueError(f"{name}: contains NaN or infinity, so that no token can be chosen")
    if weights is not None and not bool(xp.all(xp.isfinite(weights))):
        raise ValueError("weights: contain NaN or infinity, so that no token can be chosen")
    largest = str(wide(xp)).rpartition(".")[2].strip("'<>")
    heavy = weights is not None and float(xp.max(weights)) > 1.0
    culprit = "weights" if heavy and float(xp.max(xp.abs(given))) <= 1.0 else name
    raise ValueError(
        f"{culprit}: sums of similarities times weights leave the range of {largest}; "
        f"scale {culprit} down, which changes no pick"
    )


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
