"""What methods share that only prune inside the language model."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from secateur.core.acts import Cut, Cuts, Layout, Sight, Stay
from secateur.core.arrays import Array, resolve_keep, shape_of, to_numpy
from secateur.core.dispatch import whole
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method
from secateur.core.selection import Selection


@dataclass(frozen=True)
class InsideMethod(Method, Cuts):
    """A method that drops visual tokens between layers of the language model."""

    prunes_before: ClassVar[bool] = False
    parity: ClassVar[str] = "its formulas on the whole attention matrix"

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of `Tokens`: queries and keys come from the language model's layers."""
        return frozenset()

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """`cuts` for the prompt as a whole; see `Cuts.plan`."""
        return self.cuts(layout.depth, layout.size, earliest=layout.earliest)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """`keep_visual` from what is seen, for methods that give that; see `Cuts.decide`."""
        if type(self).keep_visual is InsideMethod.keep_visual:
            raise NotImplementedError(f"{type(self).__name__} gives neither decide nor keep_visual")
        return Stay(
            self.keep_visual(
                cut,
                sight.queries,
                sight.keys,
                visual=sight.visual,
                text=sight.text,
                mask=sight.mask,
                hidden=sight.entered,
            )
        )

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Refuse: there is nothing to choose from before the language model runs."""
        raise ValueError(
            f"{type(self).__name__} prunes inside the language model: attach it to a model, or "
            f"call cuts() for the schedule and keep_visual() with a layer's queries and keys"
        )

    @abstractmethod
    def cuts(
        self, depth: int, size: int, *, level: int | None = None, earliest: int = 1
    ) -> tuple[Cut, ...]:
        """When to drop, and how many visual tokens remain.

        Parameters
        ----------
        depth
            Decoder layers of the language model.
        size
            Visual tokens of the prompt before any pruning, all its images together.
        level
            How complex the images are, for methods that ask: `ERASE`.
        earliest
            The first allowed `Cut.after`: 1, or the last layer that adds visual features.

        Returns
        -------
        tuple of Cut
            Ascending in `after`, descending in `keep`; cuts that drop nothing are left out.
        """

    def keep_visual(
        self,
        cut: Cut,
        queries: Array,
        keys: Array,
        *,
        visual: Array,
        text: Array,
        mask: Array | None = None,
        hidden: Array | None = None,
    ) -> Array:
        """Which visual tokens stay at a cut.

        Parameters
        ----------
        cut
            One of `cuts`.
        queries
            (H, T, d), rotated, of the layer that has just run; T is the current length.
        keys
            (G, T, d), rotated; H is a multiple of G.
        visual
            Ascending positions (N,) of the visual tokens that are left.
        text
            Ascending positions (L,) of the instruction's tokens, after the system prompt.
        mask
            True (T,) at real tokens; None when all are.
        hidden
            Hidden states (T, C) that entered the layer, where `looks` has "entered".

        Returns
        -------
        Array
            Ascending places within `visual` of those that stay.

        Notes
        -----
        What `decide` keeps where it sees this much.
        """
        sight = Sight(
            length=int(queries.shape[-2]),
            visual=visual,
            text=text,
            mask=mask,
            queries=queries,
            keys=keys,
            entered=hidden,
        )
        shapes = (shape_of(x) for x in (queries, text, visual))
        asked = math.prod(map(math.prod, shapes)) // max(1, sight.length)
        with whole(queries, asked):
            return self.decide(cut, sight).kept


def entered(method: Method, layout: Layout) -> int:
    """Visual tokens that enter the language model: what was chosen, or as many as are to be."""
    chosen = sum(int(to_numpy(each.count).sum()) for each in layout.chosen)
    return chosen or sum(method.budget(size) for size in layout.images)


def halfway(method: Method, layout: Layout, keep: int | float | None) -> tuple[Cut, ...]:
    """One cut after half of the layers, to `keep` of what entered; none without a budget."""
    began = entered(method, layout)
    if keep is None or began == layout.size:
        return ()
    place = max(round(layout.depth / 2), layout.earliest)
    return descending_cuts([place], [resolve_keep(keep, began)], layout.depth, began)


def descending_cuts(
    after: Sequence[int], keep: Sequence[int], depth: int, size: int
) -> tuple[Cut, ...]:
    """Cuts at ascending depths; those that drop nothing or come after the last layer left out.

    Of several at one depth, the last counts.
    """
    found: list[Cut] = []
    left = size
    for layers, tokens in sorted(dict(zip(after, keep, strict=True)).items()):
        if layers < depth and tokens < left:
            found.append(Cut(layers, tokens))
            left = tokens
    return tuple(found)
