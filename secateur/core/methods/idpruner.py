"""IDPruner: important tokens, less their likeness to those already kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from secateur.core.arrays import Array, constant, namespace, wide
from secateur.core.inputs import Tokens
from secateur.core.maximize import maximize
from secateur.core.methods.base import Method, Program, require_share, require_whole
from secateur.core.objectives import MarginalRelevance
from secateur.core.selection import Selection


@dataclass(frozen=True)
class IDPruner(Method):
    r"""Importance and diversity by maximal marginal relevance.

    .. math::
        w_j &= (s_j - \min s) / (\max s - \min s + 10^{-6}) \\
        \text{score}(j) &= \lambda w_j - (1 - \lambda) \max_{i \in S} \cos(x_i, x_j)

    The first token is the most important one; each round then takes the best by score.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    balance
        How much importance counts beside diversity, lambda in [0, 1].
    step
        How many tokens a round takes at once; the first round goes by importance alone.

    Notes
    -----
    O(k N D) time, O(N D) memory. `scores` hold w. The `importance` s is any score of the
    tokens; the authors' comes from a scorer that they trained. No guarantee: see
    `MarginalRelevance`. As published, a share of the tokens is rounded to the nearest count.

    References
    ----------
    Tencent, AngelSlim, 2026, github.com/Tencent/AngelSlim. J. Carbonell and J. Goldstein, "The
    use of MMR, diversity-based reranking for reordering documents and producing summaries",
    SIGIR 1998.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    >>> tokens = sc.Tokens(features=x, importance=np.array([3.0, 2.9, 1.0, 0.0]))
    >>> sc.IDPruner(keep=3).select(tokens).indices
    array([0, 3, 2])
    """

    balance: float = 0.5
    step: int = 1

    name: ClassVar[str] = "idpruner"
    complexity: ClassVar[str] = "k N D"
    reference: ClassVar[str] = "Tencent, AngelSlim, 2026"
    parity: ClassVar[str] = "the authors' program: picks in order"
    program: ClassVar[Program | None] = Program(
        "Tencent/AngelSlim", "67394ce", "token_compressor/algorithm/idpruner.py"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("balance", self.balance)
        require_whole("step", self.step, least=1)

    @property
    def needs(self) -> frozenset[str]:
        """The features, and any score of the tokens."""
        return frozenset({"features", "importance"})

    def budget(self, size: int, frames: int = 1) -> int:
        """A share is rounded down, as published to the nearest count; see `Method.budget`."""
        if self.published and isinstance(self.keep, float):
            return frames * max(1, round(self.keep * (size // frames)))
        return super().budget(size, frames)

    def weigh(self, tokens: Tokens) -> Array:
        """Importance between 0 and 1; see `Method.weigh`."""
        return scaled(constant(tokens.importance))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Rounds of the best by score; see `Method.choose`."""
        w = self.weigh(tokens)
        f = MarginalRelevance.from_features(
            tokens.features, w, self.balance, self.step, check_finite=False
        )
        return replace(maximize(f, k), scores=w)


def scaled(importance: Array) -> Array:
    """Importance (..., N) between 0 and 1, as the authors scale it."""
    xp = namespace(importance)
    s = xp.astype(importance, wide(xp))
    low, high = (f(s, axis=-1, keepdims=True) for f in (xp.min, xp.max))
    return (s - low) / (high - low + 1e-6)
