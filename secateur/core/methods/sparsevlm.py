"""SparseVLM: text tokens that look at the image rate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.core.acts import Cut, Layout, Look, Sight, Stay
from secateur.core.arrays import (
    Array,
    epsilon,
    like,
    namespace,
    resolve_keep,
    shape_of,
    to_numpy,
    top,
    widened,
)
from secateur.core.attention import attention_rows, best, check_attention, real
from secateur.core.density import density_clusters
from secateur.core.measures import singular_values
from secateur.core.methods.base import (
    CountedFrom,
    Program,
    require_one_of,
    require_positive,
    require_whole,
)
from secateur.core.methods.inside import InsideMethod, descending_cuts
from secateur.core.order import others
from secateur.core.relevance import softmax

TABLES: dict[str, dict[int, tuple[int, ...]]] = {
    "1.0": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
"""What the authors' releases leave after each cut, by the average over the layers."""

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
    version
        None for the rules above. ``"1.0"`` and ``"2.0"`` are those of the authors' releases of
        that number: 1.0 clusters the best of the dropped tokens and puts the clusters' means
        behind the kept ones, where they compete at the next cut; 2.0 folds nothing, divides
        attention by that of equal vectors at the same distance, and hears only the heads in
        which the raters look at the image most. Both keep exactly the limits.
    heads
        How many heads 2.0 hears; 14 of 32 when absent.

    Notes
    -----
    O(N L C + H L T d + L^2 N) time a cut.

    The count is that of the authors' program; the paper writes it as N - lambda (N - rank P)
    tokens kept. The paper folds some of the dropped tokens into new ones (recycling); these
    would stand at no position of the prompt, so that ours drops them unless `version` is "1.0".
    Raters are found from the hidden states that enter the layer of each cut. Where all text
    tokens are equally relevant, all rate.

    Published: raters are found once, from the input embeddings of everything behind the image,
    template included; limits come from the program's tables (for 192, 128, 96 and 64 tokens on
    average); caches of layers already run keep what later layers drop; in 1.0 positions start
    again after every cut. The program adds noise of 1e-6 to densities; ours breaks ties by index.

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
    version: Literal["1.0", "2.0"] | None = None
    heads: int | None = None

    name: ClassVar[str] = "sparsevlm"
    complexity: ClassVar[str] = "N L C + H L T d + L^2 N a cut"
    reference: ClassVar[str] = "Zhang et al., ICML 2025, arXiv 2410.04417"
    parity: ClassVar[str] = "the authors' program in a model: cuts, caches, positions, answers"
    program: ClassVar[Program | None] = Program("Gumpest/SparseVLMs", "26a5f48813c4")
    as_published: ClassVar[Mapping[str, Any]] = {"count": "limit", "version": "1.0"}
    looks: ClassVar[frozenset[Look]] = frozenset(
        {"queries", "keys", "entered", "hidden", "embeddings", "rotary"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.after or list(self.after) != sorted(set(self.after)):
            raise ValueError(f"after: expected ascending numbers of layers, got {self.after}")
        for layers in self.after:
            require_whole("after", layers, least=1)
        require_positive("scale", self.scale)
        require_one_of("count", self.count, ("rank", "limit"))
        if self.version is not None:
            require_one_of("version", self.version, tuple(TABLES))
        elif self.published:
            raise ValueError(f"version: expected one of {', '.join(TABLES)}, got None")
        if self.heads is not None:
            require_whole("heads", self.heads, least=1)
        if self.published and self.keep not in TABLES[str(self.version)]:
            known = ", ".join(map(str, TABLES[str(self.version)]))
            raise ValueError(
                f"keep: the authors' program has tables for {known} tokens, got {self.keep!r}"
            )

    @property
    def positions(self) -> Literal["original", "compact"] | None:
        """Those of the authors' release; see `Method.positions`."""
        if not self.published:
            return None
        return "compact" if self.version == "1.0" else "original"

    @property
    def shortens_caches(self) -> bool:
        """Not where tokens are made, which earlier layers know nothing of; see `Cuts`."""
        return not self.published and self.version != "1.0"

    @property
    def renumbers(self) -> bool:
        """Where tokens are made, which stand at no position; see `Cuts`."""
        return self.version == "1.0"

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """The program's layers and counts, or `cuts`; see `Cuts.plan`."""
        if not self.published:
            return super().plan(layout)
        cuts: list[Cut] = []
        left = layout.size
        for after, most in zip(self.after, TABLES[str(self.version)][int(self.keep)], strict=True):
            keep = min(most, left - 1)
            if keep < 1 or not layout.earliest <= after < layout.depth:
                continue
            cuts.append(Cut(after, keep))
            left = keep + (clusters_of(left - keep)[1] if self.version == "1.0" else 0)
        return tuple(cuts)

    def prepare(self, sight: Sight) -> Any:
        """Who rates, as places among what stands behind the image; see `Cuts.prepare`."""
        if not self.published:
            return None
        text = sight.behind()
        raters = self.raters(sight.embeddings, sight.visual, text)
        return np.flatnonzero(np.isin(to_numpy(text), to_numpy(raters)))

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Those that the raters attend to; see `Cuts.decide`."""
        if sight.entered is None:
            raise ValueError("hidden: SparseVLM finds its raters in the hidden states (T, C)")
        if self.version is None:
            return Stay(self._by_rank(cut, sight))
        if sight.prepared is None:
            raters = self.raters(sight.entered, sight.visual, real(sight.text, sight.mask))
        else:
            raters = like(to_numpy(sight.behind())[sight.prepared], sight.visual)
        heads = [self._ratings(sight, raters, head) for head in range(sight.queries.shape[0])]  # type: ignore[union-attr]
        if self.version == "2.0":
            heads = self._heard(heads)
        scores = sum(heads[1:], heads[0]) / len(heads)
        keep = min(cut.keep, int(scores.shape[0]))
        kept = best(scores, keep)
        if self.version == "2.0" or keep == int(scores.shape[0]):
            return Stay(kept)
        return Stay(kept, made=self._recycled(sight, scores, kept))

    def _by_rank(self, cut: Cut, sight: Sight) -> Array:
        """Those of highest mean rating, as many as the rank of the ratings says."""
        check_attention(sight.queries, sight.keys, sight.visual, sight.text)
        xp = namespace(sight.queries)
        raters = self.raters(sight.entered, sight.visual, real(sight.text, sight.mask))
        rows = attention_rows(
            xp.take(sight.queries, raters, axis=-2),
            sight.keys,
            key_mask=sight.mask,
            positions=raters,
        )
        ratings = xp.take(rows, sight.visual, axis=-1)
        keep = cut.keep
        if self.count == "rank":
            keep = min(keep, max(1, int(self.scale * matrix_rank(ratings))))
        return best(xp.mean(ratings, axis=-2), keep)

    def _ratings(self, sight: Sight, raters: Array, head: int) -> Array:
        """The mean attention (N,) that one head pays each visual token, over the raters."""
        xp = namespace(sight.queries)
        group = head * int(sight.keys.shape[0]) // int(sight.queries.shape[0])  # type: ignore[union-attr]
        rows = attention_rows(
            xp.take(sight.queries[head : head + 1], raters, axis=-2),  # type: ignore[index]
            sight.keys[group : group + 1],  # type: ignore[index]
            key_mask=sight.mask,
            positions=raters,
        )
        ratings = xp.take(rows, sight.visual, axis=-1)
        if self.version == "2.0":
            ratings = ratings / self._of_equals(sight, raters)
        return xp.mean(ratings, axis=-2)

    @staticmethod
    def _of_equals(sight: Sight, raters: Array) -> Array:
        """What rotary attention (L, N) makes of vectors of ones, unnormalised."""
        cos, sin = (widened(x) for x in sight.rotary)  # type: ignore[union-attr]
        xp = namespace(cos)
        half = int(cos.shape[-1]) // 2
        ones = xp.concat([(cos - sin)[:, :half], (cos + sin)[:, half:]], axis=-1)
        asked, seen = xp.take(ones, raters, axis=0), xp.take(ones, sight.visual, axis=0)
        return asked @ xp.matrix_transpose(seen) / (2 * half) ** 0.5

    def _heard(self, heads: list[Array]) -> list[Array]:
        """The ratings of the heads in which the raters look at the image most."""
        count = self.heads or max(1, len(heads) * 14 // DEPTH)
        sums = [float(to_numpy(each).sum(dtype=np.float64)) for each in heads]
        order = sorted(range(len(heads)), key=lambda head: (-sums[head], head))
        return [heads[head] for head in order[:count]]

    @staticmethod
    def _recycled(sight: Sight, scores: Array, kept: Array) -> Array:
        """Means (M, C) of the clusters of the best tokens that do not stay."""
        xp = namespace(sight.hidden)
        dropped = others(kept, int(scores.shape[0]))
        candidates, clusters = clusters_of(int(dropped.shape[0]))
        first = top(xp.take(scores, dropped), candidates)
        places = xp.take(sight.visual, xp.take(dropped, xp.astype(first, dropped.dtype)))
        states = widened(xp.take(sight.hidden, places, axis=0))
        _, cluster = density_clusters(states, clusters, clusters, check_finite=False)
        belongs = to_numpy(cluster) == np.arange(clusters)[:, None]
        shares = belongs / belongs.sum(axis=1, keepdims=True)
        return like(shares, states, dtype=states.dtype) @ states

    @property
    def counted_from(self) -> CountedFrom:
        """The rank of the attention, unless counts are limits; see `Method.counted_from`."""
        return "features" if self.count == "rank" and self.version is None else "size"

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

    @staticmethod
    def raters(hidden: Array, visual: Array, text: Array) -> Array:
        """Positions of the text tokens that look at the image more than the average one does."""
        xp = namespace(hidden)
        states = widened(hidden)
        image, words = (xp.take(states, places, axis=0) for places in (visual, text))
        relevance = to_numpy(xp.mean(softmax(image @ xp.matrix_transpose(words)), axis=0))
        chosen = np.flatnonzero(relevance > relevance.mean())
        return text if chosen.size == 0 else xp.take(text, like(chosen, text))


def clusters_of(dropped: int) -> tuple[int, int]:
    """Of so many dropped tokens, how many are clustered, and into how many."""
    candidates = min(int(0.3 * dropped) + 1, dropped)
    return candidates, min(candidates // 10 + 1, candidates)


def matrix_rank(matrix: Array) -> int:
    """How many singular values of a matrix exceed rounding."""
    s = to_numpy(singular_values(matrix))
    return int((s > s[0] * max(shape_of(matrix)) * epsilon(matrix)).sum())
