"""EADP: entropy-aware dense pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.maximize import maximize
from secateur.core.methods.base import Method
from secateur.core.objectives import FacilityLocation
from secateur.core.relevance import dense_relevance, min_max, polarize, smooth
from secateur.core.selection import Selection
from secateur.core.similarity import cosine_similarity
from secateur.core.tokens import Tokens


@dataclass(frozen=True)
class EADP(Method):
    """placeholder"""

    alpha: float = 0.5
    beta: float = 1.0

    name: ClassVar[str] = "eadp"
    complexity: ClassVar[str] = "N^2 D"
    reference: ClassVar[str] = "ECCV 2026, arXiv 2607.02484"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", "text"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        r = dense_relevance(
            tokens.space,
            tokens.text,
            tokens.text_global,
            text_mask=tokens.text_mask,
            alpha=self.alpha,
        )
        r = min_max(r)
        if tokens.grid is not None:
            r = smooth(r, tokens.grid)
        r = polarize(r, self.beta)
        return maximize(FacilityLocation(cosine_similarity(tokens.features), r), k)
