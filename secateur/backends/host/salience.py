"""Greedy coverage whose gains are weighed by the saliency of the candidates."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from secateur.backends.host.greedy import Served, greedy
from secateur.backends.host.sources import Dense, Floats, Indices, Source
from secateur.backends.lending import over_batch
from secateur.core.arrays import is_sparse
from secateur.core.maximize import Picks
from secateur.core.objectives import SalientCoverage

HUGE = 1e300
"""Sums up to which weighed gains stay in the range of float64, with room for a bound."""


class Salient(Served):
    """The same where a gain is weighed by the saliency (N,) of who gives it."""

    def __init__(self, source: Source, saliency: Floats, combine: str) -> None:
        self._saliency = saliency.astype(np.float64, copy=False)
        self._times = combine == "multi"
        self._strongest = float(saliency.max()) if self._times else 1.0
        super().__init__(source, None)

    @property
    def slack(self) -> float:
        """As `Served.slack`."""
        return super().slack * self._strongest

    def worth(self, at: Indices | slice) -> Floats:
        """As `Served.worth`."""
        gains, saliency = self.g[at], self._saliency[at]
        if not self._times:
            return gains + saliency
        # What is picked stays minus infinity, whatever its saliency.
        return np.where(gains == -math.inf, gains, np.maximum(gains, 0.0) * saliency)


def salient_coverage(f: SalientCoverage, k: Any) -> Picks:
    """Greedy coverage from a matrix (..., N, N), weighed by the saliency of the candidates."""
    if f.cover.form != "matrix" or is_sparse(f.cover.matrix):
        return cast(Picks, NotImplemented)
    matrix, saliency = f.cover.matrix, cast(Any, f.saliency)
    # Whoever gives no numbers, or too large ones, is told by the definition.
    with np.errstate(over="ignore", invalid="ignore"):
        most = float(matrix.max(initial=0.0)) * f.size * float(saliency.max(initial=1.0))
    if not most < HUGE:
        return cast(Picks, NotImplemented)

    def solve(at: tuple[int, ...], budget: int) -> tuple[Indices, Floats, float, float]:
        state = Salient(Dense(matrix[at]), saliency[at], f.combine)
        picks, gains, value, bound = greedy(state, budget)
        if f.combine == "add":
            value += float(saliency[at][picks].sum(dtype=np.float64))
        return picks, gains, value, bound

    return over_batch(f.batch_shape, k, solve)
