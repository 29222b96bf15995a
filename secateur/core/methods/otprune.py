"""OTPrune: a log-determinant that never stops growing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from secateur.core.arrays import constant
from secateur.core.inputs import Tokens
from secateur.core.maximize import maximize
from secateur.core.methods.base import Method, Program, require_positive
from secateur.core.objectives import LogDeterminant
from secateur.core.selection import Selection
from secateur.core.similarity import likeness_factors


@dataclass(frozen=True)
class OTPrune(Method):
    r"""Optimal-transport pruning: tokens whose covariance resembles that of all of them.

    .. math::
        Z_{ic} &= X_{ic} \Big/ \sqrt{\textstyle\sum_i X_{ic}^2}, \qquad G = Z Z^T \\
        f(S) &= \log \det K_S, \qquad K = I + \gamma G G^T

    and f is maximised greedily.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share; the authors keep 9.8 %.
    gamma
        How much likeness counts beside the identity.

    Notes
    -----
    K - I is positive semi-definite, so every gain is at least 0 and f is monotone as well as
    submodular: greedy reaches 1 - 1/e of the best set, which a plain log-determinant
    (`CDPruner`) does not promise, and `Selection.guarantee` says how much for the set at hand.
    More tokens may be picked than G has rank.

    Channels are scaled, tokens are not: picks begin with long tokens. O(N D min(N, D) + k N D)
    time. Where D < N nothing N x N is built: with Z = Q R, K = I + gamma Y Y^T for Y = Z R^T,
    (N, D).

    A channel that is zero on all tokens counts for nothing; in the authors' program it makes
    everything NaN, and the first k tokens are kept. Theirs goes on in the order in which Python
    lists a set of integers. As published, a share of the tokens is rounded to the nearest
    count.

    References
    ----------
    Chen et al., OTPrune, CVPR 2026, arXiv 2602.20205.
    L. Chen, G. Zhang and E. Zhou, "Fast greedy MAP inference for
    determinantal point process to improve recommendation diversity", NeurIPS 2018.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[3.0, 0.0], [3.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    >>> chosen = sc.OTPrune(keep=2).select(sc.Tokens(features=x))
    >>> chosen.indices, round(float(chosen.guarantee), 2)
    (array([2, 1]), 1.0)
    """

    gamma: float = 0.01

    name: ClassVar[str] = "otprune"
    complexity: ClassVar[str] = "N D min(N, D) + k N D"
    reference: ClassVar[str] = "Chen et al., CVPR 2026, arXiv 2602.20205"
    guarantee: ClassVar[str] = "1 - 1/e of the best value, and a certificate for every set"
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = "the authors' program: picks in order, values"
    program: ClassVar[Program | None] = Program(
        "xiwenc1/OTPrune", "3414730", "a channel of zeros makes everything NaN"
    )
    as_published: ClassVar[dict[str, Any]] = {"keep": 0.098}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("gamma", self.gamma, zero=True)

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    def budget(self, size: int, frames: int = 1) -> int:
        """A share is rounded down, as published to the nearest count; see `Method.budget`."""
        if self.published and isinstance(self.keep, float):
            return frames * max(1, round(self.keep * (size // frames)))
        return super().budget(size, frames)

    def objective(self, tokens: Tokens) -> LogDeterminant:
        """What is maximised: log det of I + gamma G G^T, from factors."""
        factors = likeness_factors(constant(tokens.features))
        return LogDeterminant.from_factors(factors, self.gamma, check_finite=False)

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Greedy log-determinant; see `Method.choose`."""
        return maximize(self.objective(tokens), k)
