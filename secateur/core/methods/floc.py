"""FLoC: facility location over all tokens alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.arrays import constant, widened
from secateur.core.inputs import Tokens
from secateur.core.kernels import KINDS, Kind
from secateur.core.maximize import maximize
from secateur.core.methods.base import Method, require_one_of
from secateur.core.methods.eadp import coverage
from secateur.core.selection import Selection


@dataclass(frozen=True)
class FLoC(Method):
    r"""The tokens that stand best for all tokens, each of which weighs the same.

    .. math:: \max_{|S| = k} \; \sum_i \max_{j \in S} \tfrac 1 2 (1 + \cos(X_i, X_j))

    by greedy.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share. Of a video, see `over`: ``"video"`` makes
        one pool of all its frames.
    similarity
        How tokens stand for each other: ``"cosine"`` as above, or another of
        `secateur.FacilityLocation.from_features`.

    Notes
    -----
    O(N^2 D + k N) time by lazy greedy, O(N^2) memory for up to 8192 tokens and O(N D) beyond.
    `gains`, `value` and `upper_bound` come with the selection. Equal gains go to the lowest
    index.

    What is certain of the paper is its abstract: a subset of the visual tokens of a long video
    within a budget, maximising a facility-location function by lazy greedy, without training
    and without the question. What is *not*: the similarity (here cosines, shifted to [0, 1]),
    whether frames, chunks or the whole video are one pool, and any scaling. There is no program
    to compare with.

    Cosines are the default because EADP's program has them, not because they are best: on
    features of real encoders (1 + cos) / 2 is nearly flat, and both a reader of molecules that
    others trained and the lab's model answer better at small budgets from what
    ``similarity="softmax"`` keeps; see ``docs/algorithms/similarities.md``.

    References
    ----------
    J. Cho, J. Lee, M. Hayat, K. Hwang, F. Porikli and S. Choi, "FLoC: Facility Location-Based
    Efficient Visual Token Compression for Long Video Understanding", ICLR 2026, arXiv
    2511.00141.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    >>> sc.FLoC(keep=2).select(sc.Tokens(features=x)).indices
    array([2, 3])
    """

    similarity: Kind = "cosine"

    name: ClassVar[str] = "floc"
    complexity: ClassVar[str] = "N^2 D + k N"
    reference: ClassVar[str] = "Cho et al., ICLR 2026, arXiv 2511.00141"
    guarantee: ClassVar[str] = "1 - 1/e of the best coverage, and a certificate for each set"
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = "its definition, by hand; there is no program"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("similarity", self.similarity, KINDS)

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Greedy facility location; see `Method.choose`."""
        return maximize(coverage(constant(widened(tokens.features)), similarity=self.similarity), k)
