"""Farthest-point sampling from a given token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.inputs import Tokens
from secateur.core.maximize import farthest_first_features
from secateur.core.methods.base import Method, require_whole
from secateur.core.objectives import Dispersion
from secateur.core.selection import Selection


@dataclass(frozen=True)
class FPS(Method):
    r"""Farthest-point sampling: always the token farthest from those kept.

    .. math:: i_1 = \text{start}, \qquad
        i_{t+1} = \arg\max_j \min_{s \le t} \, (1 - \cos(X_j, X_{i_s}))

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    start
        The first token kept.

    Notes
    -----
    O(k N D) time, O(N D) memory. `gains` are the distances at which tokens were picked, `value`
    the smallest distance within the kept set. `DivPrune` is the same from a start it finds
    itself.

    References
    ----------
    T. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical
    Computer Science, 1985. Y. Eldar, M. Lindenbaum, M. Porat and Y. Zeevi, "The farthest point
    strategy for progressive image sampling", IEEE Transactions on Image Processing, 1997.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> features = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [-1.0, 0.0]])
    >>> sc.FPS(keep=3).select(sc.Tokens(features=features)).indices
    array([0, 3, 2])
    """

    start: int = 0

    name: ClassVar[str] = "fps"
    complexity: ClassVar[str] = "k N D"
    reference: ClassVar[str] = "Gonzalez, Theoretical Computer Science, 1985"
    guarantee: ClassVar[str] = "1/4 of the largest smallest distance 1 - cos (1/2 of the chord)"
    parity: ClassVar[str] = "its definition, step by step"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("start", self.start)

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Farthest-first from `start`; see `Method.choose`."""
        if self.start >= tokens.size:
            raise ValueError(f"start: expected one of {tokens.size} tokens, got {self.start}")
        f = Dispersion.from_features(tokens.features, check_finite=False)
        picks = farthest_first_features(f, k, start=self.start)
        return Selection.of(picks.indices, tokens.size, gains=picks.gains, value=picks.value)
