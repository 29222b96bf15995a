"""HiPrune: objects by a middle layer's attention, the whole by a deep layer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from secateur.core.arrays import (
    Array,
    constant,
    descending,
    index_dtype,
    like,
    namespace,
    top,
    widened,
)
from secateur.core.inputs import Request, Tokens
from secateur.core.methods.base import Method, Program, require_share
from secateur.core.order import positions_like
from secateur.core.selection import Selection

OBJECTS = 9 / 24
"""Depth of the middle layer: the ninth of CLIP's 24 layers."""


@dataclass(frozen=True)
class HiPrune(Method):
    r"""Anchors, their neighbours, and registers.

    - *Anchors*: the :math:`m = \operatorname{round}(k \alpha / 5)` tokens of highest attention
      in a middle layer, where objects stand out.
    - *Buffers*: their neighbours on the grid, :math:`i \pm 1` and :math:`i \pm w`, against the
      noise of single tokens.
    - *Registers*: the tokens of highest attention in a deep layer, until there are k.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    alpha
        Share of the budget for anchors and buffers, in [0, 1]; the authors' default is 0.1.

    Notes
    -----
    O(N log N + m N) time. Picks come in the order anchors, buffers, registers; `scores` holds
    the deep layer's attention. In a model the deep layer is the one whose states become features,
    the middle layer the ninth of 24 (LLaVA) or the sixteenth of 32 (Qwen2.5-VL), and attention
    is the mean over heads and all queries, a class token's included, as in the authors' program.

    Neighbours are those of the authors' program: indices are clamped to 0 .. N - 1, so that at
    the end of a row :math:`i + 1` is the beginning of the next. Where anchors and buffers are
    more than k, the last buffers are left out, and equal attention goes to the lowest index;
    the program needs a square grid, ours takes any.

    References
    ----------
    J. Liu, F. Du, G. Zhu, N. Lian, J. Li and B. Chen, "HiPrune: Hierarchical Attention for
    Efficient Token Pruning in Vision-Language Models", Findings of ACL 2026, arXiv 2508.00553.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> middle, deep = np.zeros(16), np.zeros(16)
    >>> middle[5], deep[15] = 1.0, 1.0
    >>> tokens = sc.Tokens(features=np.ones((16, 8)), grid=(4, 4), attention=deep,
    ...                    attention_shallow=middle)
    >>> sc.HiPrune(keep=6, alpha=0.8).select(tokens).indices
    array([ 5,  4,  6,  1,  9, 15])
    """

    alpha: float = 0.1

    name: ClassVar[str] = "hiprune"
    complexity: ClassVar[str] = "N log N + k N"
    reference: ClassVar[str] = "Liu et al., Findings of ACL 2026, arXiv 2508.00553"
    parity: ClassVar[str] = "the authors' program: kept set, on arrays and in a model"
    program: ClassVar[Program] = Program("Danielement321/HiPrune", "6e83a1240874")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("alpha", self.alpha)

    @property
    def needs(self) -> frozenset[str]:
        """The grid, and attention in two layers."""
        return frozenset({"grid", "attention", "attention_shallow"})

    @property
    def requests(self) -> Mapping[str, Request]:
        """Attention of all queries, a class token's included, as the authors' program takes it."""
        return {
            "attention": Request("attention", by="all"),
            "attention_shallow": Request("attention", layer=OBJECTS, by="all"),
        }

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Anchors, buffers, registers; see `Method.choose`."""
        assert tokens.grid is not None
        deep = self.weigh(tokens)
        order = descending(deep)
        count = round(k * self.alpha / 5)
        if count:
            xp = namespace(deep)
            anchors = top(constant(widened(tokens.attention_shallow)), count)
            first = _first_place(_with_neighbours(anchors, tokens.grid), tokens.size)
            # All others come last, in their order.
            places = xp.argsort(xp.take_along_axis(first, order, axis=-1), axis=-1, stable=True)
            order = xp.take_along_axis(order, places, axis=-1)
        return Selection.of(order[..., :k], tokens.size, scores=deep)


def _with_neighbours(anchors: Array, grid: tuple[int, int]) -> Array:
    """All anchors (..., m), then the four neighbours of each: (..., 5 m)."""
    xp = namespace(anchors)
    h, w = grid
    steps = like([-1, 1, -w, w], anchors, dtype=anchors.dtype)
    buffers = xp.clip(anchors[..., :, None] + steps, 0, h * w - 1)
    buffers = xp.reshape(buffers, (*anchors.shape[:-1], 4 * anchors.shape[-1]))
    return xp.concat([anchors, buffers], axis=-1)


def _first_place(listed: Array, n: int) -> Array:
    """Where each of n tokens first stands (..., n) in a list (..., M); M where it does not."""
    xp = namespace(listed)
    listed = xp.astype(listed, index_dtype(xp))
    length = int(listed.shape[-1])
    here = listed[..., None, :] == positions_like(listed, n)[:, None]
    place = positions_like(listed, length)
    return xp.min(xp.where(here, place, xp.full_like(place, length)), axis=-1)
