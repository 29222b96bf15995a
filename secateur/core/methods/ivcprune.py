"""IVC-Prune: the tokens that tell where things are, and those the text's values meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from secateur.core.acts import Cut, Cuts, Layout, Look, Sight, Stay
from secateur.core.arrays import (
    Array,
    checked,
    constant,
    index_dtype,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
    top,
    wide,
)
from secateur.core.attention import attention_rows
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method, Program, require_share
from secateur.core.methods.inside import descending_cuts
from secateur.core.order import settled
from secateur.core.selection import Selection


class Parts(NamedTuple):
    """What a choice of `value_and_place` is made of: ascending places among the visual tokens."""

    kept: Array
    """Those that stay."""
    seeds: Array
    """Those that the text's values meet most."""
    foreground: Array
    """Those that the values of seeds and text meet most."""
    coordinates: Array
    """Those of the largest rotary cosine, then those of the largest rotary sine."""
    scores: Array
    """How much the values of seeds and text meet each (N,)."""


def coordinate_tokens(cosine: Array, sine: Array, count: int) -> Array:
    r"""Tokens whose rotary tables are extreme: they anchor the space that positions span.

    .. math::
        \text{the } n \text{ of largest } \frac{1}{d} \sum_c \cos_{ic}
        \quad\text{and the } n \text{ of largest } \frac{1}{d} \sum_c \sin_{ic}

    Parameters
    ----------
    cosine, sine
        The rotary tables (N, d) of the visual tokens, or (A, N, d) of several position axes,
        of which the mean is taken.
    count
        The n.

    Returns
    -------
    Array
        Those of the cosine (n,), ascending, then those of the sine; a token may be in both.
        Ties, which grids have (places (i, j) and (j, i) have equal means), go to the lowest
        index.

    Notes
    -----
    O(A N d) time.
    """
    found = []
    for name, table in (("cosine", cosine), ("sine", sine)):
        table = checked(table, name, "(..., N, d)")
        xp = namespace(table)
        if table.ndim > 3:
            raise ValueError(
                f"{name}: expected shape (N, d) or (A, N, d), got {spell(shape_of(table))}"
            )
        mean = xp.mean(xp.astype(table, wide(xp)), axis=-1)
        if mean.ndim == 2:
            mean = xp.mean(mean, axis=0)
        found.append(xp.sort(top(settled(mean), count)))
    return xp.astype(xp.concat(found), index_dtype(xp))


def value_rows(values: Array, asking: Array, *, among: Array | None = None) -> Array:
    r"""How much the value states of some tokens meet those of others, like an attention.

    .. math::
        W_{ij} = \frac{1}{H} \sum_h
        \operatorname{softmax}_j(\langle v_{hi}, v_{hj} \rangle / \sqrt{d})

    Parameters
    ----------
    values
        Value states (H, T, d) of a layer; H key-value heads.
    asking
        Positions (Q,) of the rows i.
    among
        Positions (M,) of the columns j, over which the softmax goes; all T when absent. There is
        no causal mask.

    Returns
    -------
    Array
        (Q, M).

    Notes
    -----
    O(H Q M d) time.
    """
    xp = namespace(values)
    columns = values if among is None else xp.take(values, among, axis=-2)
    return attention_rows(xp.take(values, asking, axis=-2), columns)


def value_and_place(
    values: Array,
    cosine: Array,
    sine: Array,
    *,
    visual: Array,
    text: Array,
    keep: int,
    seeds: int,
    coordinates: int,
    foreground: int | None = None,
) -> Parts:
    """Foreground tokens by value states, and coordinate tokens by rotary tables.

    The seeds are the visual tokens that the text's values meet most, the mean of `value_rows`
    over the text; the scores those that text and seeds together meet. `coordinates` tokens are
    taken by cosine and as many by sine (`coordinate_tokens`).

    Parameters
    ----------
    values
        Value states (H, T, d) of the layer that has just run.
    cosine, sine
        Rotary tables (T, d) or (A, T, d) of all positions.
    visual
        Ascending positions (N,) of the visual tokens.
    text
        Positions (L,) of the text behind the image.
    keep
        How many visual tokens stay; the most that do, with `foreground`.
    seeds
        How many seeds.
    coordinates
        How many coordinate tokens by each table.
    foreground
        None, the authors' program for Qwen2.5-VL: the softmax goes over the visual tokens, and
        coordinate tokens are joined by the best scored of the others until `keep` are there. A
        count, their program for LLaVA: the softmax goes over all positions; seeds, coordinate
        tokens and that many best scored stay, a number that varies with how far they overlap.

    Returns
    -------
    Parts
        Ties go to the lowest index.

    Notes
    -----
    O(H (L + seeds) T d) time. Where `keep` leaves no room for all of them, coordinate tokens
    stay before seeds, and seeds before the best scored.
    """
    values = constant(checked(values, "values", "(H, T, d)"))
    xp = namespace(values)
    n = int(visual.shape[0])
    if n == 0 or int(text.shape[0]) == 0:
        raise ValueError("visual and text: expected the position of at least one token of each")
    among = visual if foreground is None else None

    def met(asking: Array) -> Array:
        rows = value_rows(values, asking, among=among)
        mean = xp.mean(xp.astype(rows, wide(xp)), axis=0)
        return mean if among is not None else xp.take(mean, visual)

    # Means of shares are about 1 / n: times n they can be settled.
    seed = xp.sort(top(settled(met(text) * n), min(seeds, n)))
    scores = met(xp.concat([xp.take(visual, seed), text]))
    places = xp.take(cosine, visual, axis=-2), xp.take(sine, visual, axis=-2)
    anchors = coordinate_tokens(*places, min(coordinates, n))
    best = top(settled(scores * n), n if foreground is None else min(foreground, n))
    order = [anchors, best] if foreground is None else [anchors, seed, best]
    listed = to_numpy(xp.concat([xp.astype(part, anchors.dtype) for part in order]))
    distinct = listed[np.sort(np.unique(listed, return_index=True)[1])]
    kept = like(np.sort(distinct[:keep]), visual, dtype=index_dtype(xp))
    return Parts(kept, seed, xp.sort(best[: foreground or 0]), anchors, scores)


@dataclass(frozen=True)
class IVCPrune(Method, Cuts):
    r"""IVC-Prune: once, in the middle of the language model, by values and by rotary tables.

    Kept are the coordinate tokens, whose rotary cosine or sine is extreme, and those that the
    value states of the text, and of the seeds it meets most, meet most themselves; see
    `value_and_place`.

    Parameters
    ----------
    keep
        How many visual tokens of the prompt remain: a count or a share; the most that do, with
        `foreground`.
    after
        After which share of the layers: 1/2 for LLaVA-1.5-7B and Qwen2.5-VL-7B (layer 16 of 32
        and 14 of 28 here; the authors' program has 16 for both).
    seeds
        Share of the visual tokens that are seeds, one at least.
    coordinates
        Share that is taken by cosine, and again by sine; together at most half of `keep`.
    foreground
        None for the form of the authors' program for Qwen2.5-VL, whose count is exact. A share
        for its form for LLaVA: ``IVCPrune(keep=1.0, coordinates=0.05, foreground=0.2)``.

    Notes
    -----
    O(H L T d) time for L text tokens behind the image.

    The program asks with all text from the second position behind its one image on; ours with
    all behind the last image, and takes the images of a prompt together. Counts are rounded
    down; with ``published=True`` to the nearest, as there. Position numbers and rotary tables of
    the kept stay, and the layers before forget the others too, both as there. Models with
    positions on three axes hand their layers one table that mixes them, so that attached to
    one the mean goes over that table; on arrays, `value_and_place` takes the three tables, as the
    program does.

    References
    ----------
    Z. Sun, Y. Ma, G. Liu, Y. Chen, X. Tang, Y. Hu and Y. Xu, "IVC-Prune: Revealing the Implicit
    Visual Coordinates in LVLMs for Vision Token Pruning", ICLR 2026, arXiv 2602.03060.

    Examples
    --------
    >>> from secateur.core.acts import Layout
    >>> from secateur.core.methods.ivcprune import IVCPrune
    >>> IVCPrune().plan(Layout(depth=32, images=(576,)))
    (Cut(after=16, keep=288),)
    """

    keep: int | float = 0.5
    after: float = 0.5
    seeds: float = 0.01
    coordinates: float = 0.1
    foreground: float | None = None

    name: ClassVar[str] = "ivcprune"
    complexity: ClassVar[str] = "H L T d"
    reference: ClassVar[str] = "Sun et al., ICLR 2026, arXiv 2602.03060"
    parity: ClassVar[str] = "the authors' programs: seeds, foreground, coordinates, kept set"
    prunes_before: ClassVar[bool] = False
    looks: ClassVar[frozenset[Look]] = frozenset({"values", "rotary"})
    program: ClassVar[Program | None] = Program("FireRedTeam/IVC-Prune", "03afd9c")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("after", self.after, zero=False)
        require_share("seeds", self.seeds)
        require_share("coordinates", self.coordinates)
        if self.foreground is not None:
            require_share("foreground", self.foreground)

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of `Tokens`: values come from the language model's layers."""
        return frozenset()

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Refuse: there is nothing to choose from before the language model runs."""
        raise ValueError(
            "IVCPrune prunes inside the language model: attach it to a model, or call "
            "value_and_place() with a layer's values and rotary tables"
        )

    def budget(self, size: int, frames: int = 1) -> int:
        """How many of `size` tokens remain, at most; see `Method.budget`."""
        if self.published and isinstance(self.keep, float):
            return max(1, round(self.keep * size))
        return super().budget(size, frames)

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """One cut; see `Cuts.plan`."""
        size = layout.size
        keep = self.budget(size)
        if self.foreground is not None:
            counts = self._counts(size, keep)
            most = counts["seeds"] + 2 * counts["coordinates"] + round(self.foreground * size)
            keep = min(keep, max(1, most))
        place = max(round(self.after * layout.depth), layout.earliest)
        return descending_cuts([place], [keep], layout.depth, size)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Coordinate tokens and foreground; see `Cuts.decide`."""
        if sight.values is None or sight.rotary is None:
            raise ValueError("sight: IVCPrune works from values and rotary tables")
        size = int(sight.visual.shape[0])
        text = sight.behind()
        if int(text.shape[0]) == 0:
            text = sight.others()
        parts = value_and_place(
            sight.values,
            *sight.rotary,
            visual=sight.visual,
            text=text,
            keep=cut.keep,
            foreground=None if self.foreground is None else round(self.foreground * size),
            **self._counts(size, cut.keep),
        )
        return Stay(parts.kept)

    def _counts(self, size: int, keep: int) -> dict[str, int]:
        """Seeds, and coordinate tokens by each table, of which `keep` holds four times as many."""
        return {
            "seeds": max(1, round(self.seeds * size)),
            "coordinates": min(round(self.coordinates * size), keep // 4),
        }
