"""The tokens of largest norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.arrays import namespace, top
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method
from secateur.core.selection import Selection


@dataclass(frozen=True)
class Loudest(Method):
    """The tokens of largest norm."""

    name: ClassVar[str] = "loudest"
    complexity: ClassVar[str] = "N D"
    reference: ClassVar[str] = "an example"

    @property
    def needs(self) -> frozenset[str]:
        """The tokens alone."""
        return frozenset({"features"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The k of largest norm; see `Method.choose`."""
        xp = namespace(tokens.features)
        norms = xp.sum(tokens.features * tokens.features, axis=-1)
        return Selection.of(top(norms, k), tokens.size, scores=norms)
