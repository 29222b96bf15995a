"""How far apart the tokens of a set are."""

from __future__ import annotations

import math
from typing import Self

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    like,
    namespace,
    shape_of,
    spell,
)
from secateur.core.objectives.base import ByRow, Tracker
from secateur.core.parameters import typed
from secateur.core.similarity import (
    CosineSimilarity,
    MatrixSimilarity,
    Similarity,
    at,
    row_positions,
)
from secateur.core.tolerances import DISTANCE


class Dispersion(ByRow):
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

    differences = False
    arrays = (*ByRow.arrays, "distance", "features")

    @typed
    def __init__(self, distance: Array, *, check_finite: bool = True) -> None:
        distance = checked(
            distance, "distance", "(..., N, N)", check_finite=check_finite, non_negative=True
        )
        shape = shape_of(distance)
        if shape[-1] != shape[-2]:
            raise ValueError(f"distance: expected shape (..., N, N), got {spell(shape)}")
        self._begin(distance, None, shape)

    @classmethod
    @typed
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
        self.size = shape[-2]
        self.batch_shape = shape[:-2]
        self._settle()

    def _settle(self) -> None:
        self.sample = self.features if self.distance is None else self.distance
        self._entries: Similarity | None = None

    @property
    def form(self) -> str:
        """``"matrix"`` or ``"features"``, as it was given."""
        return "matrix" if self.features is None else "features"

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
        return 0.0 if math.isinf(best) or self.features is None else DISTANCE * self._rounding

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
