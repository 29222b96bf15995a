"""How much volume a set of tokens spans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    each_row,
    epsilon,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
    wide,
)
from secateur.core.objectives.base import Tracker, _ByRow


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
