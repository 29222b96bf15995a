"""How important the tokens of a set are, and how unlike those before them."""

from __future__ import annotations

import math
from typing import Any, Self

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    namespace,
    shape_of,
    spell,
    wide,
)
from secateur.core.objectives.base import ByRow, Tracker, checked_selectable
from secateur.core.parameters import typed
from secateur.core.similarity import MatrixSimilarity, PlainCosine, Similarity, at
from secateur.core.tolerances import COSINE


class MarginalRelevance(ByRow):
    r"""Maximal marginal relevance: importance, less the likeness to what was picked already.

    .. math:: \text{gain}(S, j) = \lambda w_j - (1 - \lambda) \max_{i \in S} s_{ij},
        \qquad \text{gain}(\emptyset, j) = w_j

    With rounds of q picks the best q are taken at once: S is what was picked before the round.

    Parameters
    ----------
    similarity
        Similarities (..., N, N) of the tokens.
    importance
        Importance w (..., N) of the tokens, higher is better.
    balance
        How much importance counts beside likeness, lambda in [0, 1].
    step
        How many tokens a round picks, q.
    selectable
        False (..., N) at tokens that may not be picked.
    check_finite
        Whether to refuse NaN and infinity.

    Notes
    -----
    An order of picks rather than a function of sets: gains depend on who came in which round,
    and sets have no value. The penalty is a maximum, not a sum, so there is no guarantee.
    O(N) a pick from a matrix, O(N D) from features.

    References
    ----------
    J. Carbonell and J. Goldstein, "The use of MMR, diversity-based reranking for reordering
    documents and producing summaries", SIGIR 1998.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> alike = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> f = sc.MarginalRelevance(alike, np.array([1.0, 0.9, 0.3]))
    >>> sc.maximize(f, 2).indices
    array([0, 2])
    """

    differences = False
    arrays = (*ByRow.arrays, "matrix", "features", "importance")

    @typed
    def __init__(
        self,
        similarity: Array,
        importance: Array,
        balance: float = 0.5,
        step: int = 1,
        *,
        selectable: Any = None,
        check_finite: bool = True,
    ) -> None:
        matrix = checked(similarity, "similarity", "(..., N, N)", check_finite=check_finite)
        shape = shape_of(matrix)
        if shape[-1] != shape[-2]:
            raise ValueError(f"similarity: expected shape (..., N, N), got {spell(shape)}")
        self.matrix: Any = constant(matrix)
        self.features: Any = None
        self._begin(importance, balance, step, selectable, check_finite)

    @classmethod
    @typed
    def from_features(
        cls,
        features: Array,
        importance: Array,
        balance: float = 0.5,
        step: int = 1,
        *,
        selectable: Any = None,
        check_finite: bool = True,
    ) -> Self:
        """Maximal marginal relevance under the cosines of features, in O(N D) memory.

        Parameters
        ----------
        features
            Features (..., N, D) of the tokens.
        importance, balance, step, selectable, check_finite
            As for the class.

        Examples
        --------
        >>> import numpy as np, secateur as sc
        >>> x = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
        >>> f = sc.MarginalRelevance.from_features(x, np.array([1.0, 0.9, 0.3]))
        >>> sc.maximize(f, 2).indices
        array([0, 2])
        """
        features = checked(features, "features", "(..., N, D)", check_finite=check_finite)
        self = cls.__new__(cls)
        self.matrix, self.features = None, constant(features)
        self._begin(importance, balance, step, selectable, check_finite)
        return self

    def _begin(
        self, importance: Any, balance: float, step: int, selectable: Any, check_finite: bool
    ) -> None:
        if not 0.0 <= balance <= 1.0:
            raise ValueError(f"balance: expected a share in [0, 1], got {balance!r}")
        if isinstance(step, bool) or int(step) != step or step < 1:
            raise ValueError(f"step: expected a whole number of at least 1, got {step!r}")
        self.balance, self.step = float(balance), int(step)
        self._settle()
        shape = shape_of(self.sample)
        self.batch_shape, self.size = shape[:-2], shape[-2]
        w = checked(
            importance, "importance", "(..., N)", check_finite=check_finite, beside=self.sample
        )
        if shape_of(w) not in (shape[:-1], shape[-2:-1]):
            raise ValueError(
                f"importance: expected shape {spell(shape[:-1])}, got {spell(shape_of(w))}"
            )
        xp = namespace(w, self.sample)
        self.importance = constant(xp.broadcast_to(w, shape[:-1]))
        """The importance w (..., N) given."""
        self.selectable = checked_selectable(selectable, self)

    def _settle(self) -> None:
        self.sample = self.matrix if self.features is None else self.features

    def similarity(self) -> Similarity:
        """The similarities of one image, entry by entry."""
        if self.features is None:
            return MatrixSimilarity(self.matrix)
        return PlainCosine(self.features)

    def _value(self, picks: Array) -> Array:
        raise ValueError("MarginalRelevance has gains, but sets have no value")

    def _gain(self, picks: Array, candidates: Array) -> Array:
        tracker = self.tracker()
        for pick in picks:
            tracker.add(int(pick))
        return namespace(self.sample).take(tracker.gains(), candidates)

    def margin(self, best: float) -> float:
        """Entries given are exact; cosines are known to their rounding."""
        if math.isinf(best) or self.features is None:
            return 0.0
        return (1.0 - self.balance) * COSINE * self._rounding

    @property
    def valued(self) -> bool:
        """Sets have no value: what a token gives depends on the order."""
        return False

    def tracker(self) -> Tracker:
        """Every token's likeness to the nearest pick, brought up to date after each round."""
        return _Penalised(self)


class _Penalised:
    slack = 0.0

    def __init__(self, f: MarginalRelevance) -> None:
        xp = namespace(f.sample)
        self._f = f
        self._entries = f.similarity()
        self._importance = xp.astype(f.importance, wide(xp))
        self._likeness: Array | None = None
        self._round: list[int] = []

    def gains(self) -> Array:
        if self._likeness is None:
            return self._importance
        share = self._f.balance
        return share * self._importance - (1.0 - share) * self._likeness

    def add(self, pick: int) -> None:
        self._round.append(pick)
        if len(self._round) < self._f.step:
            return
        xp = namespace(self._importance)
        for each in self._round:
            column = self._entries.columns(at(each, self._f.sample))[:, 0]
            column = xp.astype(column, self._importance.dtype)
            known = self._likeness
            self._likeness = column if known is None else xp.maximum(known, column)
        self._round = []
