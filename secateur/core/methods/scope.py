"""SCOPE: salient tokens that cover what is not covered yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from secateur.core.arrays import Array, constant, namespace, wide
from secateur.core.inputs import Tokens
from secateur.core.maximize import maximize
from secateur.core.methods.base import Method, Program, require_one_of, require_positive
from secateur.core.objectives import SalientCoverage
from secateur.core.selection import Selection
from secateur.core.similarity import cosine


@dataclass(frozen=True)
class SCOPE(Method):
    r"""Saliency and coverage: greedy coverage, weighed by the attention of the candidate.

    .. math::
        \text{gain}(S, j) = a_j^\alpha \sum_i \max(0, \cos(x_i, x_j) - m_i), \qquad
        m_i = \max(0, \max_{j \in S} \cos(x_i, x_j))

    or, to ``combine="add"``, the sum plus :math:`a_j^\alpha`. x are the `states` before the
    projector where they are given, else the `features`; a is the `attention`, 1 without one.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    alpha
        The power of the attention.
    combine
        ``"multi"``: coverage times saliency; ``"add"``: plus it.

    Notes
    -----
    O(N^2 D) time, O(N^2) memory. ``"add"`` is monotone and submodular: greedy reaches 1 - 1/e,
    and `Selection.guarantee` says how much for the set at hand. For ``"multi"``, the authors'
    default, nothing is certain: see `SalientCoverage`.

    The authors' program sums attention over heads where ours is the mean: a common factor,
    which changes nothing in ``"multi"`` but shifts the balance in ``"add"``. A zero vector has
    cosine 0 with everything; in their program it makes NaN. Several crops of an image each get
    the same share of the budget there.

    References
    ----------
    Deng, Li, Zhou and He, SCOPE, NeurIPS 2025, arXiv 2510.24214.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [-1.0, 0.0]])
    >>> tokens = sc.Tokens(features=x, attention=np.array([0.1, 0.5, 0.3, 0.1]))
    >>> sc.SCOPE(keep=2).select(tokens).indices
    array([1, 2])
    """

    alpha: float = 1.0
    combine: Literal["multi", "add"] = "multi"

    name: ClassVar[str] = "scope"
    complexity: ClassVar[str] = "N^2 D"
    reference: ClassVar[str] = "Deng et al., NeurIPS 2025, arXiv 2510.24214"
    guarantee: ClassVar[str] = '1 - 1/e with a certificate for "add"; none for "multi"'
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = "the authors' program: picks in order"
    program: ClassVar[Program | None] = Program(
        "kinredon/SCOPE", "6bf7306", "scope/clip_encoder.py"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("alpha", self.alpha, zero=True)
        require_one_of("combine", self.combine, ("multi", "add"))

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    @property
    def optional(self) -> frozenset[str]:
        """The attention each token receives, and the tokens before the projector."""
        return frozenset({"attention", "states"})

    def objective(self, tokens: Tokens) -> SalientCoverage:
        """What greedy goes by: coverage, weighed by the saliency of who covers."""
        x = constant(tokens.features if tokens.states is None else tokens.states)
        similarity = cosine(x, check_finite=False)
        return SalientCoverage(similarity, self.weigh(tokens), self.combine, check_finite=False)

    def weigh(self, tokens: Tokens) -> Array:
        """Saliency; see `Method.weigh`."""
        x = constant(tokens.features)
        xp = namespace(x)
        if tokens.attention is None:
            return xp.ones_like(x[..., 0], dtype=wide(xp))
        return xp.astype(constant(tokens.attention), wide(xp)) ** self.alpha

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Greedy weighed coverage; see `Method.choose`."""
        f = self.objective(tokens)
        return replace(maximize(f, k), scores=f.saliency)
