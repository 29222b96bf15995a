"""How much volume a set of tokens spans."""

from __future__ import annotations

import math
from typing import Any, Self

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    epsilon,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
    wide,
)
from secateur.core.objectives.base import ByRow, Tracker, checked_selectable
from secateur.core.parameters import typed
from secateur.core.tolerances import SPENT, SUM


class LogDeterminant(ByRow):
    r"""How much volume a set of tokens spans: the log-determinant of its kernel.

    .. math:: f(S) = \log \det K_S, \qquad f(\emptyset) = 0

    Submodular; not monotone in general, so that greedy has no constant factor. Monotone where
    K - I is positive semi-definite: then greedy reaches 1 - 1/e of the best and comes with a
    certificate.

    Parameters
    ----------
    kernel
        Symmetric positive semi-definite kernels (..., N, N).
    above_identity
        Declares K - I positive semi-definite, which makes f monotone; it is checked.
    selectable
        False (..., N) at tokens that may not be picked.
    check_finite
        Whether to refuse NaN and infinity.

    Notes
    -----
    `gain(S, j)` is the log of what is left of K_jj when the tokens of S have explained what
    they can (the Schur complement). What is left counts as zero, and its log as minus
    infinity, when it is at most 128 rounding errors of K_jj: then j lies in the span of S.

    Where K - I is positive semi-definite, what is left is at least 1 whatever S is (the Schur
    complement of I + M is at least that of I), so that every gain is at least 0 and never runs
    dry, however many tokens are picked beyond the rank of K - I.

    References
    ----------
    A. Kulesza and B. Taskar, "Determinantal Point Processes for Machine Learning", 2012.
    D. Sharma, A. Kapoor and A. Deshpande, "On greedy maximization of entropy", ICML 2015.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> f = sc.LogDeterminant(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> float(f.value([0, 1]).round(4)), float(f.gain([0], 1).round(4))
    (1.0986, 0.4055)
    """

    submodular = True
    arrays = (*ByRow.arrays, "kernel", "factors")

    @typed
    def __init__(
        self,
        kernel: Array,
        *,
        above_identity: bool = False,
        selectable: Any = None,
        check_finite: bool = True,
    ) -> None:
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
        self._begin(constant(kernel), None, 0.0, shape)
        if above_identity:
            self._check_above_identity()
            self.monotone = True
        self.selectable = checked_selectable(selectable, self)

    @classmethod
    @typed
    def from_factors(
        cls,
        factors: Array,
        gamma: float = 1.0,
        *,
        selectable: Any = None,
        check_finite: bool = True,
    ) -> Self:
        r"""The log-determinant of I + gamma Y Y^T, whose N x N kernel is never built.

        K - I = gamma Y Y^T is positive semi-definite by construction, so f is monotone. A pick
        takes O(N D) time for its row of the kernel and O(N t) to explain it by the t picks
        before; memory is O(N (D + k)).

        Parameters
        ----------
        factors
            Y (..., N, D), a row a token.
        gamma
            How much the factors count beside the identity, at least 0.
        selectable
            False (..., N) at tokens that may not be picked.
        check_finite
            Whether to refuse NaN and infinity.

        Examples
        --------
        >>> import numpy as np, secateur as sc
        >>> f = sc.LogDeterminant.from_factors(np.array([[1.0], [2.0], [0.0]]))
        >>> picks = sc.maximize(f, 3)
        >>> picks.indices, picks.gains.round(4)
        (array([1, 0, 2]), array([1.6094, 0.1823, 0.    ]))
        """
        factors = checked(factors, "factors", "(..., N, D)", check_finite=check_finite)
        # So that its square is a number too, multiplied by what factors are; halves are widened.
        most = max(float(namespace(factors).finfo(factors.dtype).max), 3e38) ** 0.25
        if not 0.0 <= gamma <= most:
            raise ValueError(
                f"gamma: expected a finite number of at least 0, got {gamma!r}; at most {most:.3g}"
            )
        shape = shape_of(factors)
        self = cls.__new__(cls)
        self._begin(None, constant(factors), float(gamma), (*shape[:-1], shape[-2]))
        self.monotone = True
        self.selectable = checked_selectable(selectable, self)
        return self

    @classmethod
    @typed
    def from_span(
        cls, vectors: Array, *, selectable: Any = None, check_finite: bool = True
    ) -> Self:
        r"""The log-determinant of Y Y^T, whose N x N kernel is never built.

        The same function as ``LogDeterminant(Y Y^T)``. A pick takes O(N D) time: of what it adds
        to the span of the picks before, the part of every vector along that is explained. Memory
        is O(N + D^2) beside the vectors; no more than D picks add anything.

        Parameters
        ----------
        vectors
            Y (..., N, D), a row a token.
        selectable
            False (..., N) at tokens that may not be picked.
        check_finite
            Whether to refuse NaN and infinity.

        Examples
        --------
        >>> import numpy as np, secateur as sc
        >>> f = sc.LogDeterminant.from_span(np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 1.0]]))
        >>> picks = sc.maximize(f, 2)
        >>> picks.indices, picks.gains.round(4)
        (array([1, 2]), array([2.1972, 0.    ]))
        """
        vectors = checked(vectors, "vectors", "(..., N, D)", check_finite=check_finite)
        self = cls.from_factors(vectors, selectable=selectable, check_finite=False)
        self.identity, self.monotone = 0.0, False
        return self

    def _begin(
        self, kernel: Array | None, factors: Array | None, gamma: float, shape: tuple[int, ...]
    ) -> None:
        self.kernel: Any = kernel
        """The kernels (..., N, N) given; None from factors."""
        self.factors = factors
        """The factors Y (..., N, D) given; None from a kernel."""
        self.identity = 1.0
        """What I is multiplied by beside the factors."""
        self.gamma = gamma
        """What Y Y^T is multiplied by beside the identity."""
        self.size = shape[-1]
        self.batch_shape = shape[:-2]
        self._settle()

    def _settle(self) -> None:
        self.sample = self.kernel if self.factors is None else self.factors

    def _check_above_identity(self) -> None:
        if 0 in self.batch_shape:
            return
        xp = namespace(self.kernel)
        kernel = xp.astype(self.kernel, wide(xp))
        one = xp.eye(self.size, dtype=kernel.dtype, device=device(kernel))
        largest = float(xp.max(xp.abs(kernel)))
        if not math.isfinite(largest):
            raise ValueError("kernel: above_identity is checked, which NaN and infinity cannot be")
        lowest = float(xp.min(xp.linalg.eigvalsh(kernel - one)))
        if lowest < -SUM * self.size * epsilon(self.kernel) * largest:
            raise ValueError(
                "kernel: expected K - I positive semi-definite, as above_identity declares; its "
                f"smallest eigenvalue is {lowest:g}"
            )

    @property
    def form(self) -> str:
        """What it is given as: ``"kernel"``, ``"factors"`` or ``"span"``."""
        if self.factors is None:
            return "kernel"
        return "factors" if self.identity else "span"

    def diagonal(self) -> Array:
        """K_jj (N,) of one image in the dtype of sums."""
        xp = namespace(self.sample)
        if self.factors is None:
            return xp.astype(xp.linalg.diagonal(self.kernel), wide(xp))
        y = xp.astype(self.factors, wide(xp))
        return self.identity + self.gamma * xp.sum(y * y, axis=-1)

    def kernel_row(self, pick: int) -> Array:
        """K_pj (N,) of one image in the dtype of sums."""
        xp = namespace(self.sample)
        if self.factors is None:
            return xp.astype(self.kernel[pick, :], wide(xp))
        y = xp.astype(self.factors, wide(xp))
        places = xp.arange(self.size, device=device(y))
        own = self.identity * xp.astype(places == pick, y.dtype)
        return self.gamma * (y @ y[pick, :]) + own

    def _value(self, picks: Array) -> Array:
        xp = namespace(self.sample)
        total = like(0.0, self.sample, dtype=wide(xp))
        tracker = _Explained(self)
        for pick in to_numpy(picks).tolist():
            total = total + tracker.gains()[pick]
            tracker.add(pick)
        return total

    def _gain(self, picks: Array, candidates: Array) -> Array:
        tracker = _Explained(self)
        for pick in to_numpy(picks).tolist():
            tracker.add(pick)
        return namespace(self.sample).take(tracker.gains(), candidates)

    def margin(self, best: float) -> float:
        """Gains are logs: a share of what is left is a difference here."""
        return 0.0 if math.isinf(best) else SUM * self.size * self._rounding

    def tracker(self) -> Tracker:
        """What is left of every token's variance, by incremental Cholesky: O(N |S|) a pick."""
        return _Spanned(self) if self.form == "span" else _Explained(self)


class _Explained:
    """Rows of the Cholesky factor, one a pick: left_j = K_jj - sum of their squares."""

    slack = 0.0

    def __init__(self, f: LogDeterminant) -> None:
        self._f = f
        self._diagonal = f.diagonal()
        self._left = self._diagonal
        self._noise = SPENT * epsilon(f.sample) * self._diagonal
        self._factor: list[Array] = []

    def gains(self) -> Array:
        xp = namespace(self._left)
        if self._f.monotone:
            return xp.log(xp.clip(self._left, 1.0, None))
        alive = self._left > self._noise
        logs = xp.log(xp.where(alive, self._left, xp.ones_like(self._left)))
        return xp.where(alive, logs, xp.full_like(logs, -xp.inf))

    def add(self, pick: int) -> None:
        left = float(self._left[pick])
        if self._f.monotone:
            left = max(left, 1.0)
        if left <= float(self._noise[pick]):
            return
        self._explain(pick, left)

    def _explain(self, pick: int, left: float) -> None:
        row = self._f.kernel_row(pick)
        for earlier in self._factor:
            row = row - earlier * earlier[pick]
        row = row / left**0.5
        self._factor.append(row)
        self._left = self._left - row * row


class _Spanned(_Explained):
    """Directions of length one, one a pick that adds any: left_j = |y_j|^2 - what lies in them."""

    def _explain(self, pick: int, left: float) -> None:
        xp, y = namespace(self._left), self._f.sample
        new = xp.astype(y[pick, :], wide(xp))
        if self._factor:
            basis = xp.stack(self._factor)
            for _ in range(2):  # once leaves what rounding left
                new = new - (basis @ new) @ basis
        new = new / float(xp.linalg.vector_norm(new))
        self._factor.append(new)
        along = xp.astype(y @ xp.astype(new, y.dtype), new.dtype)
        self._left = self._left - along * along
