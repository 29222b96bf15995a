"""The tokens of largest norm of all crops of an image together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from secateur.core.acts import ChoosesParts
from secateur.core.arrays import like, namespace, to_numpy, top
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method
from secateur.core.selection import Selection


@dataclass(frozen=True)
class LoudestOfAll(Method, ChoosesParts):
    """The tokens of largest norm, wherever they are in the image."""

    name: ClassVar[str] = "loudest_of_all"
    complexity: ClassVar[str] = "N D"
    reference: ClassVar[str] = "an example"

    @property
    def needs(self) -> frozenset[str]:
        """The tokens alone."""
        return frozenset({"features"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The k of largest norm; see `Method.choose`."""
        return Selection.of(top(_norms(tokens), k), tokens.size)

    def select_parts(self, parts: Sequence[Tokens], pictures: int) -> list[Selection]:
        """The loudest of all parts together; see `ChoosesParts`."""
        norms = np.concatenate([to_numpy(_norms(part)) for part in parts])
        k = self.budget_of_parts(len(norms), len(parts), pictures)
        kept = np.sort(np.argsort(-norms, kind="stable")[:k])
        ends = np.cumsum([part.size for part in parts])
        return [
            Selection.of(like(own - (end - part.size), part.features), part.size)
            for part, end, own in zip(
                parts, ends, np.split(kept, np.searchsorted(kept, ends[:-1])), strict=True
            )
        ]


def _norms(tokens: Tokens) -> object:
    xp = namespace(tokens.features)
    return xp.sum(tokens.features * tokens.features, axis=-1)
