"""DUET-VLM: VisionZip within a small pool, then tokens that the question asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur.core.acts import Cut, Cuts, Layout, Sight, Stay
from secateur.core.arrays import (
    Array,
    checked,
    constant,
    descending,
    index_dtype,
    namespace,
    widened,
)
from secateur.core.attention import attention_received, best, check_attention
from secateur.core.inputs import Request, Tokens
from secateur.core.methods.base import Method, Program, require_one_of, require_share, require_whole
from secateur.core.methods.inside import descending_cuts, entered
from secateur.core.methods.visionzip import mean_shares
from secateur.core.order import nearest, ranks
from secateur.core.selection import Selection, folding


def pooled_merge(
    attention: Array, keys: Array, *, dominant: int, contextual: int, width: int = 4
) -> Selection:
    r"""DUET's first stage: dominant tokens, and anchors that take in a pool of the next best.

    The `dominant` tokens of highest attention are kept. Of the others, in falling attention,
    the first :math:`P = \min(\max(1, w c), M)` of M are the pool; its numbers
    :math:`0, g, 2 g, \dots` with :math:`g = \max(1, \lfloor P / c \rfloor)` are the c anchors.
    The rest of the pool joins the anchor whose key is most similar, and

    .. math:: X_a' = X_a + \frac{1}{|M_a|} \sum_{i \in M_a} X_i

    Parameters
    ----------
    attention
        What each token (..., N) receives.
    keys
        Keys (..., N, C) of the tokens.
    dominant
        How many are kept by attention.
    contextual
        How many anchors, the c.
    width
        How many tokens of the pool there are for each anchor, the w.

    Returns
    -------
    Selection
        Dominant tokens, then anchors, each in falling attention. `Selection.merge` gives what
        stands at them, in place order. What was in no pool is dropped.

    Notes
    -----
    O(N log N + P c C) for keys of length C; ours compares all N. Ties go to the lowest index,
    those of similarity to the first anchor.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.duet import pooled_merge
    >>> x = np.array([[4.0, 0.0], [0.0, 1.0], [0.0, 2.0], [9.0, 9.0]])
    >>> attention = np.array([0.4, 0.3, 0.2, 0.1])
    >>> chosen = pooled_merge(attention, x, dominant=1, contextual=1, width=2)
    >>> chosen.indices, chosen.folded
    (array([0, 1]), array([ 0,  1,  1, -1]))
    >>> chosen.merge(x)
    array([[4., 0.],
           [0., 3.]])
    """
    attention = constant(checked(attention, "attention", "(..., N)"))
    keys = constant(checked(keys, "keys", "(..., N, C)"))
    xp = namespace(attention)
    n = int(attention.shape[-1])
    for name, count in (("dominant", dominant), ("contextual", contextual), ("width", width)):
        require_whole(name, count, least=int(name == "width"))
    if not 1 <= dominant + contextual <= n:
        raise ValueError(
            f"dominant and contextual: expected 1 to {n} tokens in all, "
            f"got {dominant} + {contextual}"
        )
    order = xp.astype(descending(attention), index_dtype(xp))
    pool = min(max(1, width * contextual), n - dominant) if contextual else 0
    step = max(1, pool // max(1, contextual))
    anchors = order[..., dominant : dominant + step * contextual : step]
    indices = xp.concat([order[..., :dominant], anchors], axis=-1)
    chosen = Selection.of(indices, n, scores=attention)
    nobody = xp.full_like(order, -1)
    if not contextual:
        return folding(chosen, nobody, xp.zeros_like(attention))
    pooled = xp.astype(ranks(attention), order.dtype) < dominant + pool
    joined = xp.where(pooled, nearest(keys, anchors), nobody)
    return folding(chosen, joined, mean_shares(joined, anchors, chosen))


def asked_tokens(
    queries: Array,
    keys: Array,
    *,
    visual: Array,
    asking: Array,
    keep: int,
    mask: Array | None = None,
    causal: bool = True,
) -> Array:
    """DUET's second stage: the visual tokens that the asking tokens attend to most.

    Parameters
    ----------
    queries
        (H, T, d), rotated.
    keys
        (G, T, d), rotated; H is a multiple of G.
    visual
        Ascending positions (N,) of the visual tokens.
    asking
        Positions (Q,) of the tokens whose attention, averaged over them and the heads, counts:
        all behind the image, or the salient words among them.
    keep
        How many visual tokens stay, 0 included.
    mask
        True (T,) at real tokens; None when all are.
    causal
        Whether an asking token attends only to what stands before it, as the program for LLaVA
        has it; the one for Qwen2.5-VL has no mask.

    Returns
    -------
    Array
        Ascending places (K,) within `visual`; ties go to the lowest.

    Notes
    -----
    O(H Q T d) time.
    """
    check_attention(queries, keys, visual, asking)
    xp = namespace(queries)
    received = attention_received(
        xp.take(queries, asking, axis=-2),
        keys,
        key_mask=mask,
        positions=asking if causal else None,
    )
    return best(xp.take(received, visual, axis=-1), keep)


@dataclass(frozen=True)
class DUET(Method, Cuts):
    r"""DUET-VLM: merge within a pool before the language model, drop by the text inside it.

    First `pooled_merge`: of k tokens, :math:`\lfloor k \cdot \text{contextual} \rfloor` are
    anchors. Then, after each of the layers `after`, the share in `shares` of these k that
    the text behind the image attends to most (`asked_tokens`).

    Parameters
    ----------
    keep
        How many tokens of each image enter the language model: a count or a share. All of them
        switches the second stage off too.
    contextual
        Share of them that are anchors. The default gives the 65 % and 5 % of the authors'
        program for Qwen2.5-VL with ``keep=0.7``.
    width
        Tokens of the pool for each anchor.
    after
        Where the second stage cuts, as shares of the number of layers.
    shares
        What stays after each cut, as shares of what entered the language model, falling; 0 drops
        the whole image.
    model
        Whose program: ``"llava"`` asks with a causal mask, ``"qwen"`` without one.

    Notes
    -----
    O(N log N + k N C) time before, O(H L T d) a cut for L text tokens.

    An anchor becomes a *sum* of itself and the mean of what joined it, about twice as long as
    other tokens: that is the method, though its page speaks of averaging. The class token that
    the program for LLaVA keeps among the dominant ones is none of the patches here. The program
    for Qwen2.5-VL takes the shares of its second stage of what the first one left, though it
    means to take them of the whole, so that text counts as image from the second cut on; here
    they are of what entered, at every cut.

    Scores come from the queries and keys of the layer that has just run; with ``published=True``,
    as in the authors' program, from those of the layer that comes next, and positions count on
    anew on LLaVA. Its finder of salient words is not part of it.

    References
    ----------
    A. K. Singh, H. Kandala, P. P. Brahma, Z. Liu and E. Barsoum, "DUET-VLM: Dual Stage Unified
    Efficient Token Reduction for VLM Training and Inference", CVPR 2026, arXiv 2602.18846.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> from secateur.core.methods.duet import DUET
    >>> x = np.array([[4.0, 0.0], [0.0, 1.0], [0.0, 2.0], [9.0, 9.0]])
    >>> tokens = sc.Tokens(features=x, keys=x, attention=np.array([0.4, 0.3, 0.2, 0.1]))
    >>> DUET(keep=2, contextual=0.5, width=2).select(tokens).merge(x)
    array([[4., 0.],
           [0., 3.]])
    >>> from secateur.core.acts import Layout
    >>> DUET(keep=64).plan(Layout(depth=32, images=(576,)))
    (Cut(after=16, keep=32), Cut(after=24, keep=0))
    """

    contextual: float = 1 / 14
    width: int = 4
    after: tuple[float, ...] = (0.5, 0.75)
    shares: tuple[float, ...] = (0.5, 0.0)
    model: Literal["llava", "qwen"] = "llava"

    name: ClassVar[str] = "duet"
    complexity: ClassVar[str] = "N log N + k N C, then H L T d a cut"
    reference: ClassVar[str] = "Singh et al., CVPR 2026, arXiv 2602.18846"
    parity: ClassVar[str] = "the authors' program: kept and merged tokens, both stages"
    program: ClassVar[Program | None] = Program("AMD-AGI/DUET-VLM", "cd69e48")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("contextual", self.contextual)
        require_whole("width", self.width, least=1)
        require_one_of("model", self.model, ("llava", "qwen"))
        if len(self.after) != len(self.shares):
            raise ValueError(f"shares: expected one for each of after={self.after}")
        for name, values, rising in (("after", self.after, 1), ("shares", self.shares, -1)):
            for value in values:
                require_share(name, value, zero=name == "shares")
            if list(values) != sorted(set(values), reverse=rising < 0):
                told = "ascending" if rising > 0 else "descending"
                raise ValueError(f"{name}: expected {told} shares, got {values}")

    @property
    def needs(self) -> frozenset[str]:
        """The attention each token receives, and the keys that decide who joins whom."""
        return frozenset({"features", "attention", "keys"})

    @property
    def requests(self) -> Mapping[str, Request]:
        """Keys averaged over the heads."""
        return {"keys": Request("keys", heads="mean")}

    @property
    def looks_ahead(self) -> bool:
        """The authors' program scores with the layer that comes next."""
        return self.published

    @property
    def renumbers(self) -> bool:
        """The authors' program for LLaVA does; the one for Qwen2.5-VL keeps positions."""
        return self.published and self.model == "llava"

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Dominant tokens and anchors; see `Method.choose`."""
        anchors = int(k * self.contextual + 1e-9)
        return pooled_merge(
            self.weigh(tokens),
            tokens.keys,
            dominant=k - anchors,
            contextual=anchors,
            width=self.width,
        )

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """One cut for each of `after`; see `Cuts.plan`."""
        began = entered(self, layout)
        if began >= layout.size:
            return ()
        places = [max(round(place * layout.depth), layout.earliest) for place in self.after]
        keeps = [int(began * share + 1e-9) for share in self.shares]
        return descending_cuts(places, keeps, layout.depth, began)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Those that the text behind the image attends to; see `Cuts.decide`."""
        asking = sight.behind()
        if int(asking.shape[0]) == 0:
            asking = sight.others()
        return Stay(
            asked_tokens(
                sight.queries,
                sight.keys,
                visual=sight.visual,
                asking=asking,
                keep=cut.keep,
                mask=sight.mask,
                causal=self.model == "llava",
            )
        )
