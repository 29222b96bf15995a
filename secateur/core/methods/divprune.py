"""DivPrune: tokens as far apart as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.inputs import Tokens
from secateur.core.maximize import maximize
from secateur.core.methods.base import Method, Program
from secateur.core.objectives import Dispersion
from secateur.core.selection import Selection


@dataclass(frozen=True)
class DivPrune(Method):
    r"""Max-min diversity: keep tokens whose two nearest are as far apart as possible.

    .. math:: \max_{|S| = k} \; \min_{i \ne j \in S} \, (1 - \cos(X_i, X_j))

    greedily: first the token whose nearest neighbour is farthest, then always the token whose
    smallest distance to the kept ones is largest.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.

    Notes
    -----
    At most O(N^2 D) time for the first pick and O(k N D) for the others, O(N D) memory: distances
    are worked out when they are asked for. `gains` are the distances at which tokens were picked,
    `value` the smallest distance within the kept set.

    Distances equal but for rounding go to the lowest index; in the authors' program rounding
    decides between them. Half-precision features are compared in float32.

    References
    ----------
    S. Ranjbar Alvar, G. Singh, M. Akbari and Y. Zhang, "DivPrune: Diversity-based Visual Token
    Pruning for Large Multimodal Models", CVPR 2025, arXiv 2503.02175.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> features = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [-1.0, 0.0]])
    >>> sc.DivPrune(keep=2).select(sc.Tokens(features=features)).indices
    array([3, 0])
    """

    name: ClassVar[str] = "divprune"
    complexity: ClassVar[str] = "N^2 D"
    reference: ClassVar[str] = "Ranjbar Alvar et al., CVPR 2025, arXiv 2503.02175"
    guarantee: ClassVar[str] = "1/4 of the largest smallest distance 1 - cos (1/2 of the chord)"
    parity: ClassVar[str] = "the authors' program: picks in order on arrays, kept set in a model"
    program: ClassVar[Program] = Program("vbdi/divprune", "799e2d950aa0")

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Farthest-first on the features; see `Method.choose`."""
        return maximize(Dispersion.from_features(tokens.features, check_finite=False), k)
