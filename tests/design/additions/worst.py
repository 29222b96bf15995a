"""How well the token that is served worst is served: no sum, and not submodular."""

from __future__ import annotations

from secateur.core.arrays import Array, namespace
from secateur.core.objectives.base import Objective


class WorstServed(Objective):
    """The smallest over all tokens i of how well the set serves it, max_j S_ij."""

    monotone = True

    def __init__(self, matrix: Array) -> None:
        self.sample = matrix
        self.size = int(matrix.shape[-1])

    def value(self, indices: list[int]) -> float:
        """The smallest of what each is served by the set; see `Objective.value`."""
        if not len(indices):
            return 0.0
        xp = namespace(self.sample)
        return float(xp.min(xp.max(self.sample[:, list(indices)], axis=1)))

    def tracker(self) -> _Served:
        """One that remembers how well each token is served."""
        return _Served(self.sample)


class _Served:
    slack = 0.0

    def __init__(self, matrix: Array) -> None:
        self._matrix = matrix
        self._served = 0.0 * matrix[:, 0]

    def gains(self) -> Array:
        xp = namespace(self._matrix)
        after = xp.min(xp.maximum(self._matrix, self._served[:, None]), axis=0)
        return after - xp.min(self._served)

    def add(self, pick: int) -> None:
        xp = namespace(self._matrix)
        self._served = xp.maximum(self._served, self._matrix[:, pick])
