"""SparseVLM: text tokens that look at the image rate it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from secateur.core.acts import Cut, Look
from secateur.core.arrays import (
    Array,
    epsilon,
    like,
    namespace,
    resolve_keep,
    shape_of,
    to_numpy,
    widened,
)
from secateur.core.attention import attention_rows, best, check_attention, real
from secateur.core.measures import singular_values
from secateur.core.methods.base import (
    CountedFrom,
    InsideMethod,
    descending_cuts,
    require_one_of,
    require_positive,
    require_whole,
)
from secateur.core.relevance import softmax

DEPTH = 32
"""Decoder layers of the models that SparseVLM's cuts were published for."""


@dataclass(frozen=True)
class SparseVLM(InsideMethod):
    r"""SparseVLM: text tokens that look at the image rate it; rank says how many stay.

    Raters are the text tokens whose relevance exceeds the mean of all:

    .. math::
        \rho_l = \frac{1}{N} \sum_i \operatorname{softmax}_l(\langle h_i, h_l \rangle), \qquad
        \text{raters} = \{l : \rho_l > \textstyle\frac1L \sum_m \rho_m\}

    over the hidden states h of visual tokens i and text tokens l. With P (raters x N) their
    causal attention to the visual tokens, averaged over heads, a visual token scores the mean
    of its column, and

    .. math:: \min(\text{limit}, \max(1, \lfloor \text{scale} \cdot \operatorname{rank} P \rfloor))

    tokens stay.

    Parameters
    ----------
    keep
        The most visual tokens of the prompt that remain after the last cut: a count or a share.
        Earlier cuts have limits too, each the same fraction of the one before.
    after
        After how many layers the cuts come, in a model of 32 layers; other depths scale them.
    scale
        Tokens kept for each unit of rank, the authors' ``scale``.
    count
        ``"rank"`` keeps as many as the rank says, up to the limit; ``"limit"`` exactly the
        limit, as the authors' later releases do.

    Notes
    -----
    O(N L C + H L T d + L^2 N) time a cut.

    The count is that of the authors' program; the paper writes it as N - lambda (N - rank P)
    tokens kept. The paper folds some of the dropped tokens into new ones (recycling); these
    would stand at no position of the prompt, so ours drops them. Raters are found from the
    hidden states that enter the layer of each cut; the authors' program finds them once, from
    the embeddings. Where all text tokens are equally relevant, all rate.

    References
    ----------
    Y. Zhang, C.-K. Fan, J. Ma, W. Zheng, T. Huang, K. Cheng, D. Gudovskiy, T. Okuno, Y. Nakata,
    K. Keutzer and S. Zhang, "SparseVLM: Visual Token Sparsification for Efficient
    Vision-Language Model Inference", ICML 2025, arXiv 2410.04417.

    Examples
    --------
    >>> import secateur as sc
    >>> sc.SparseVLM(keep=128).cuts(depth=32, size=576)
    (Cut(after=3, keep=348), Cut(after=7, keep=211), Cut(after=16, keep=128))
    """

    keep: int | float = 128
    after: tuple[int, ...] = (3, 7, 16)
    scale: float = 13.5
    count: Literal["rank", "limit"] = "rank"

    name: ClassVar[str] = "sparsevlm"
    complexity: ClassVar[str] = "N L C + H L T d + L^2 N a cut"
    reference: ClassVar[str] = "Zhang et al., ICML 2025, arXiv 2410.04417"
    looks: ClassVar[frozenset[Look]] = frozenset({"queries", "keys", "entered"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.after or list(self.after) != sorted(set(self.after)):
            raise ValueError(f"after: expected ascending numbers of layers, got {self.after}")
        for layers in self.after:
            require_whole("after", layers, least=1)
        require_positive("scale", self.scale)
        require_one_of("count", self.count, ("rank", "limit"))

    @property
    def counted_from(self) -> CountedFrom:
        """The rank of the attention, unless counts are limits; see `Method.counted_from`."""
        return "features" if self.count == "rank" else "size"

    def cuts(
        self, depth: int, size: int, *, level: int | None = None, earliest: int = 1
    ) -> tuple[Cut, ...]:
        """Cuts at the same relative depths in any model; see `InsideMethod.cuts`."""
        share = self.budget(size) / size
        places = [max(round(layers * depth / DEPTH), earliest) for layers in self.after]
        keeps = [
            resolve_keep(share ** (cut / len(places)), size) for cut in range(1, len(places) + 1)
        ]
        return descending_cuts(places, [*keeps[:-1], self.budget(size)], depth, size)

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
        """Those that the raters attend to; see `InsideMethod.keep_visual`."""
        check_attention(queries, keys, visual, text)
        if hidden is None:
            raise ValueError("hidden: SparseVLM finds its raters in the hidden states (T, C)")
        xp = namespace(queries)
        text = real(text, mask)
        raters = self.raters(hidden, visual, text)
        rows = attention_rows(
            xp.take(queries, raters, axis=-2), keys, key_mask=mask, positions=raters
        )
        ratings = xp.take(rows, visual, axis=-1)
        keep = cut.keep
        if self.count == "rank":
            keep = min(keep, max(1, int(self.scale * matrix_rank(ratings))))
        return best(xp.mean(ratings, axis=-2), keep)

    @staticmethod
    def raters(hidden: Array, visual: Array, text: Array) -> Array:
        """Positions of the text tokens that look at the image more than the average one does."""
        xp = namespace(hidden)
        states = widened(hidden)
        image, words = (xp.take(states, places, axis=0) for places in (visual, text))
        relevance = to_numpy(xp.mean(softmax(image @ xp.matrix_transpose(words)), axis=0))
        chosen = np.flatnonzero(relevance > relevance.mean())
        return text if chosen.size == 0 else xp.take(text, like(chosen, text))


def matrix_rank(matrix: Array) -> int:
    """How many singular values of a matrix exceed rounding."""
    s = to_numpy(singular_values(matrix))
    return int((s > s[0] * max(shape_of(matrix)) * epsilon(matrix)).sum())
