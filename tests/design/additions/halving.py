"""Half way through the language model, every second visual token moves into the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.acts import Cut, Cuts, Layout, Look, Sight, Stay
from secateur.core.arrays import namespace
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method
from secateur.core.selection import Selection


@dataclass(frozen=True)
class Halving(Method, Cuts):
    """Pairs of neighbours become their mean, half way through the layers."""

    name: ClassVar[str] = "halving"
    complexity: ClassVar[str] = "N D"
    reference: ClassVar[str] = "an example"
    prunes_before: ClassVar[bool] = False
    looks: ClassVar[frozenset[Look]] = frozenset({"hidden"})

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of `Tokens`."""
        return frozenset()

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Nothing is chosen before the language model."""
        raise ValueError("Halving acts inside the language model")

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """One cut, half way; see `Cuts.plan`."""
        return (Cut(max(layout.depth // 2, layout.earliest), (layout.size + 1) // 2),)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Every first of two, with the mean of both; see `Cuts.decide`."""
        xp, n = namespace(sight.hidden), int(sight.visual.shape[0])
        first = xp.arange(0, n, 2)
        second = xp.clip(first + 1, max=n - 1)
        states = xp.take(sight.hidden, sight.visual, axis=0)
        return Stay(first, states=(states[first] + states[second]) / 2)
