"""Pruning inside the language model: when to drop visual tokens, and which stay.

These methods do not choose from features before the language model runs. They say after which
layers visual tokens are dropped (`cuts`), and which stay, from that layer's own queries and keys
(`keep_visual`). Whoever runs the layers does the dropping.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from secateur.core.arrays import (
    Array,
    device,
    epsilon,
    like,
    namespace,
    resolve_keep,
    shape_of,
    spell,
    to_numpy,
    top,
    widened,
)
from secateur.core.attention import attention_received, attention_rows
from secateur.core.inputs import Tokens
from secateur.core.measures import singular_values
from secateur.core.methods.base import (
    Method,
    require_one_of,
    require_positive,
    require_share,
    require_whole,
)
from secateur.core.relevance import softmax
from secateur.core.selection import Selection

DEPTH = 32
"""Decoder layers of the models that SparseVLM's cuts were published for."""


@dataclass(frozen=True)
class Cut:
    """One dropping of visual tokens.

    Attributes
    ----------
    after
        How many decoder layers have run: 1 .. depth - 1. Tokens are scored with the queries and
        keys of the layer of index `after` - 1.
    keep
        How many visual tokens of the prompt remain, all its images together. An upper limit
        where the method counts by itself.
    """

    after: int
    keep: int


@dataclass(frozen=True)
class InsideMethod(Method):
    """A method that drops visual tokens between layers of the language model."""

    prunes_before: ClassVar[bool] = False
    parity: ClassVar[str] = "its formulas on the whole attention matrix"
    wants_hidden: ClassVar[bool] = False
    """Whether `keep_visual` needs the hidden states."""

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of `Tokens`: queries and keys come from the language model's layers."""
        return frozenset()

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

    @abstractmethod
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
            Hidden states (T, C) that entered the layer, where `wants_hidden`.

        Returns
        -------
        Array
            Ascending places within `visual` of those that stay.
        """


def text_attention(
    queries: Array,
    keys: Array,
    *,
    visual: Array,
    text: Array,
    mask: Array | None = None,
) -> Array:
    r"""Causal attention that visual tokens (N,) receive from text tokens, summed over the text.

    .. math::
        \sum_{q \in \text{text}} \frac{1}{H} \sum_h
        \operatorname{softmax}_{j \le q}(\langle Q_{hq}, K_{hj} \rangle / \sqrt{d})

    Arguments as in `InsideMethod.keep_visual`; masked text tokens neither ask nor are asked.
    O(H L T d) time.
    """
    _check(queries, keys, visual, text)
    xp = namespace(queries)
    weights = None
    if mask is not None:
        weights = xp.astype(xp.take(mask, text), xp.float32)
    received = attention_received(
        xp.take(queries, text, axis=-2),
        keys,
        query_weights=weights,
        key_mask=mask,
        positions=text,
    )
    return xp.take(received, visual, axis=-1)


def best(scores: Array, keep: int) -> Array:
    """Ascending places of the `keep` highest scores, ties to the lowest place."""
    return namespace(scores).sort(top(scores, min(keep, int(scores.shape[-1]))))


def real(positions: Array, mask: Array | None) -> Array:
    """Those of the positions (L,) that hold no padding."""
    if mask is None:
        return positions
    there = np.flatnonzero(to_numpy(namespace(mask).take(mask, positions)))
    if there.size == 0:
        raise ValueError("mask: leaves no token to ask; at least one must be real")
    return namespace(positions).take(positions, like(there, positions))


def _check(queries: Array, keys: Array, visual: Array, text: Array) -> None:
    if queries.ndim != 3 or keys.ndim != 3 or shape_of(queries)[1:] != shape_of(keys)[1:]:
        raise ValueError(
            f"queries and keys: expected shapes (H, T, d) and (G, T, d), "
            f"got {spell(shape_of(queries))} and {spell(shape_of(keys))}"
        )
    if int(visual.shape[0]) == 0:
        raise ValueError("visual: expected the position of at least one visual token, got none")
    if int(text.shape[0]) == 0:
        raise ValueError("text: expected the position of at least one text token, got none")


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


@dataclass(frozen=True)
class FastV(InsideMethod):
    r"""FastV: after the second layer, keep what the last token attends to.

    .. math::
        \text{score}_j = \frac{1}{H} \sum_h
        \operatorname{softmax}_{j \le T}(\langle Q_{hT}, K_{hj} \rangle / \sqrt{d})

    for the last token T of the prompt, in the layer that has just run. The `keep` visual tokens
    of highest score stay.

    Parameters
    ----------
    keep
        How many visual tokens of the prompt remain: a count or a share; the paper drops half.
    after
        After how many layers, the paper's K.

    Notes
    -----
    O(H T d) time: one row of attention is worked out, not the T x T matrix.

    The authors' programs rank each prompt's 576 tokens at fixed positions and recompute layer K
    to get its attention; ours takes any prompt and the layer's own queries and keys. Like
    theirs, "the last token" is the last of the prompt: here the last that is no padding.

    References
    ----------
    L. Chen, H. Zhao, T. Liu, S. Bai, J. Lin, C. Zhou and B. Chang, "An Image is Worth 1/2 Tokens
    After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models",
    ECCV 2024, arXiv 2403.06764.

    Examples
    --------
    >>> import secateur as sc
    >>> sc.FastV(keep=0.5).cuts(depth=32, size=576)
    (Cut(after=2, keep=288),)
    """

    keep: int | float = 0.5
    after: int = 2

    name: ClassVar[str] = "fastv"
    complexity: ClassVar[str] = "H T d"
    reference: ClassVar[str] = "Chen et al., ECCV 2024, arXiv 2403.06764"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("after", self.after, least=1)

    def cuts(
        self, depth: int, size: int, *, level: int | None = None, earliest: int = 1
    ) -> tuple[Cut, ...]:
        """One cut; see `InsideMethod.cuts`."""
        return descending_cuts([max(self.after, earliest)], [self.budget(size)], depth, size)

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
        """Those the last token attends to; see `InsideMethod.keep_visual`."""
        xp = namespace(queries)
        everyone = xp.arange(int(queries.shape[-2]), dtype=visual.dtype, device=device(visual))
        final = real(everyone, mask)[-1:]
        return best(text_attention(queries, keys, visual=visual, text=final, mask=mask), cut.keep)


@dataclass(frozen=True)
class PyramidDrop(InsideMethod):
    r"""PyramidDrop: keep a share at each of a few depths, by the last instruction token.

    .. math:: \text{keep}_s = \lfloor N \lambda^s \rfloor, \qquad s = 1, 2, \dots

    after the layers at `stages` of the depth. Tokens are ranked by the attention, averaged over
    heads, that the last token of the instruction pays them.

    Parameters
    ----------
    keep
        The share :math:`\lambda` that stays at every stage. A count is what remains after the
        last stage: then :math:`\lambda` is the root that leads there.
    stages
        Depths of the cuts, as shares of the number of layers.

    Notes
    -----
    O(H T d) time a stage.

    The authors' program scores with the queries and keys of the layer that comes next, computed
    ahead from the current hidden states; ours with those of the layer that has just run, which
    are there already and cost nothing. Its shares are of the tokens of each image; ours of the
    prompt's.

    References
    ----------
    L. Xing, Q. Huang, X. Dong, J. Lu, P. Zhang, Y. Zang, Y. Cao, C. He, J. Wang, F. Wu and
    D. Lin, "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
    Redundancy Reduction", CVPR 2025, arXiv 2410.17247.

    Examples
    --------
    >>> import secateur as sc
    >>> sc.PyramidDrop().cuts(depth=32, size=576)
    (Cut(after=8, keep=288), Cut(after=16, keep=144), Cut(after=24, keep=72))
    """

    keep: int | float = 0.5
    stages: tuple[float, ...] = (0.25, 0.5, 0.75)

    name: ClassVar[str] = "pyramiddrop"
    complexity: ClassVar[str] = "H T d a stage"
    reference: ClassVar[str] = "Xing et al., CVPR 2025, arXiv 2410.17247"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"stages: expected ascending shares of the depth, got {self.stages}")
        for share in self.stages:
            require_share("stages", share, zero=False)

    def cuts(
        self, depth: int, size: int, *, level: int | None = None, earliest: int = 1
    ) -> tuple[Cut, ...]:
        """One cut a stage; see `InsideMethod.cuts`."""
        last = len(self.stages)
        if isinstance(self.keep, int):
            share = (self.budget(size) / size) ** (1.0 / last)
        else:
            share = float(self.keep)
        places = [max(round(place * depth), earliest) for place in self.stages]
        keeps = [resolve_keep(share**stage, size) for stage in range(1, last + 1)]
        return descending_cuts(places, keeps, depth, size)

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
        """Those the last instruction token attends to; see `InsideMethod.keep_visual`."""
        final = real(text, mask)[-1:]
        return best(text_attention(queries, keys, visual=visual, text=final, mask=mask), cut.keep)


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
    wants_hidden: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.after or list(self.after) != sorted(set(self.after)):
            raise ValueError(f"after: expected ascending numbers of layers, got {self.after}")
        for layers in self.after:
            require_whole("after", layers, least=1)
        require_positive("scale", self.scale)
        require_one_of("count", self.count, ("rank", "limit"))

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
        _check(queries, keys, visual, text)
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
