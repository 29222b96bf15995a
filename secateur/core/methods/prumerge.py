"""PruMerge and PruMerge+: attention's outliers, an even spread, and the rest merged into both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from secateur.core.acts import Makes
from secateur.core.arrays import Array, constant, index_dtype, namespace, widened
from secateur.core.inputs import Request, Tokens
from secateur.core.methods.base import CountedFrom, Method, Program
from secateur.core.order import nearest, positions_like, ranks, settled_cosine
from secateur.core.selection import Selection, folding, from_mask

EXTRAS = 3
"""Evenly spread tokens for each outlier, when outliers decide how many are kept."""

NEAREST = 32
"""How many tokens each kept one takes in, in the authors' program."""


@dataclass(frozen=True)
class PruMerge(Method, Makes):
    r"""Tokens whose attention is an outlier, the rest merged into them.

    The k tokens of highest attention a are kept; with `adaptive` those m of them with
    :math:`a_i > Q_3 + 1.5 (Q_3 - Q_1)`, the quartiles being those of the attention. Every dropped
    token joins the kept one whose key is most similar, and with :math:`M_p` those that joined p

    .. math:: X_p' = X_p + \sum_{i \in M_p} a_i X_i

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share. With `adaptive`, the most an image keeps.
    adaptive
        Let outliers decide how many: m, at least 1 and at most `keep`. This is the published
        rule; ``keep=1.0`` leaves it free.

    Notes
    -----
    O(N log N + k N C) time for keys of length C. Counts of a batch differ with `adaptive`;
    ``info["outliers"]`` says how many outliers were kept. ``selection.merge(features)`` gives
    :math:`X'` of the kept tokens in ascending order. The attention is taken as given: weights
    are those of the paper when it is a distribution over the image's tokens.

    In a model the authors' program looks at the last layer of the tower as one head of full
    width, lets every kept token p take in its 32 nearest tokens by cosine of keys, kept ones
    included, so that clusters overlap, and adds one more token, the sum of all that are not kept,

    .. math:: S_p' = S_p + \sum_{i \in \text{32 nearest of } p} a_i S_i, \qquad
        S_{\text{last}} = \sum_{i \text{ not kept}} a_i S_i

    before the projector. `secateur.published` does so where `states` are there; here every
    dropped token goes to one kept token, as the paper has it.

    References
    ----------
    Y. Shang, M. Cai, B. Xu, Y. J. Lee and Y. Yan, "LLaVA-PruMerge: Adaptive Token Reduction for
    Efficient Large Multimodal Models", ICCV 2025, arXiv 2403.15388.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> attention = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1])
    >>> tokens = sc.Tokens(features=np.eye(8), keys=np.eye(8), attention=attention)
    >>> sc.PruMerge(keep=1.0, adaptive=True).select(tokens).indices
    array([6])
    """

    adaptive: bool = False

    name: ClassVar[str] = "prumerge"
    complexity: ClassVar[str] = "N log N + k N C"
    reference: ClassVar[str] = "Shang et al., ICCV 2025, arXiv 2403.15388"
    parity: ClassVar[str] = "the authors' program in a model: what goes in and comes out"
    program: ClassVar[Program] = Program("42Shawn/LLaVA-PruMerge", "097c04116a58")
    as_published: ClassVar[Mapping[str, Any]] = {"keep": 1.0, "adaptive": True}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.adaptive, bool):
            raise ValueError(f"adaptive: expected True or False, got {self.adaptive!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The attention each token receives, and the keys that decide who joins whom."""
        return frozenset({"features", "attention", "keys"})

    @property
    def optional(self) -> frozenset[str]:
        """As published, the tokens before the projector."""
        return frozenset({"states"}) if self.published else frozenset()

    @property
    def needs_in_model(self) -> frozenset[str]:
        """As published, states too."""
        return self.needs | self.optional

    @property
    def requests(self) -> Mapping[str, Request]:
        """As published, the last layer of the tower as one head."""
        if not self.published:
            return {}
        return {
            "attention": Request("attention", layer="last", heads="one"),
            "keys": Request("keys", layer="last", heads="one"),
        }

    @property
    def counted_from(self) -> CountedFrom:
        """Outliers decide where they do."""
        return "features" if self.adaptive else "size"

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Outliers, what is spread beside them, then the merge; see `Method.choose`."""
        attention = self.weigh(tokens)
        chosen = self._kept(attention, k)
        joined = nearest(constant(widened(tokens.keys)), chosen.sorted())
        return folding(chosen, joined, attention)

    def _kept(self, attention: Array, k: int) -> Selection:
        """The k tokens of highest attention, or those that are outliers."""
        found = _outliers(attention)
        count = namespace(found).full_like(found, k)
        if self.adaptive:
            count = namespace(found).clip(found, 1, k)
        important = ranks(attention) < count[..., None]
        return from_mask(
            important,
            attention,
            scores=attention,
            info={"outliers": namespace(found).minimum(found, count)},
        )

    @property
    def makes(self) -> bool:
        """As published, tokens fold before the projector."""
        return self.published

    def make(self, tokens: Tokens, chosen: Selection) -> Array:
        """Kept tokens, as picked, with their nearest, and one for the rest; see `Makes.make`."""
        states = constant(widened(tokens.states))
        xp = namespace(states)
        kept = chosen.indices
        attention = xp.astype(constant(widened(tokens.attention)), states.dtype)
        keys = constant(widened(tokens.keys))
        own = kept[:, None] == positions_like(kept, chosen.size)
        cosines = settled_cosine(xp.take(keys, kept, axis=0), keys)
        near = ranks(xp.where(own, xp.full_like(cosines, -xp.inf), cosines)) < NEAREST
        near = near & xp.logical_not(own)
        weights = xp.where(near, attention, xp.zeros_like(attention))
        weights = xp.where(own, xp.ones_like(weights), weights)
        dropped = xp.where(chosen.mask(), xp.zeros_like(attention), attention)
        return xp.concat([weights, dropped[None, :]], axis=0) @ states


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    r"""Tokens whose attention is an outlier, evenly spread ones, the rest merged into them.

    The outliers are the m tokens with :math:`a_i > Q_3 + 1.5 (Q_3 - Q_1)`, the quartiles being
    those of the attention a. They are kept (the k highest, where m > k); the tokens still to
    keep, e of the n others in their order, stand at places :math:`\lfloor i n / e \rfloor`,
    :math:`i = 0 \dots e - 1`. The rest merges as in `PruMerge`.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share. With `adaptive`, the most an image keeps.
    adaptive
        Let outliers decide how many: m and three evenly spread ones for each, at least 1 and at
        most `keep`. This is the published rule; ``keep=1.0`` leaves it free.

    Notes
    -----
    As for `PruMerge`. The authors' program spreads its extras from step lengths rounded down,
    tokens :math:`0, s, 2s, \dots` below N - 1 with
    :math:`s = \lfloor \lfloor N / m \rfloor / 3 \rfloor`, and drops those that are outliers, so
    that their number varies; here it is exact. `secateur.published` does as the program, with s
    at least 1 where the program fails.

    References
    ----------
    Y. Shang, M. Cai, B. Xu, Y. J. Lee and Y. Yan, "LLaVA-PruMerge: Adaptive Token Reduction for
    Efficient Large Multimodal Models", ICCV 2025, arXiv 2403.15388.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> attention = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1])
    >>> tokens = sc.Tokens(features=np.eye(8), keys=np.eye(8), attention=attention)
    >>> sc.PruMergePlus(keep=3).select(tokens).indices
    array([6, 0, 3])
    """

    name: ClassVar[str] = "prumerge_plus"

    def _kept(self, attention: Array, k: int) -> Selection:
        """Outliers and an even spread."""
        if self.published:
            return self._kept_as_published(attention, k)
        xp = namespace(attention)
        size = int(attention.shape[-1])
        found = _outliers(attention)
        total = xp.full_like(found, k)
        if self.adaptive:
            total = xp.clip((1 + EXTRAS) * found, 1, k)
        count = xp.minimum(found, total)
        place = xp.astype(ranks(attention), found.dtype)
        important = place < count[..., None]
        # Others by number: floor(i n / e) = t for some i < e, asked of every t.
        other = xp.astype(xp.logical_not(important), found.dtype)
        number = xp.cumulative_sum(other, axis=-1) - 1
        n, e = size - count, total - count
        n, e = xp.where(n > 0, n, xp.ones_like(n))[..., None], e[..., None]
        i = (number * e + n - 1) // n
        spread = (other > 0) & (i * n < (number + 1) * e)
        order = xp.where(important, place, size + number)
        return from_mask(
            important | spread,
            xp.astype(-order, attention.dtype),
            scores=attention,
            info={"outliers": count},
        )

    def _kept_as_published(self, attention: Array, k: int) -> Selection:
        xp = namespace(attention)
        size = int(attention.shape[-1])
        count = xp.clip(_outliers(attention), 1, k)
        place = xp.astype(ranks(attention), count.dtype)
        important = place < count[..., None]
        step = xp.clip((size // count) // EXTRAS, 1, size)[..., None]
        index = xp.broadcast_to(positions_like(place, size), place.shape)
        spread = (index % step == 0) & (index < size - 1) & xp.logical_not(important)
        # What is beyond `keep` is dropped from the end.
        order = xp.where(important, place, size + index)
        order = xp.where(important | spread, order, 2 * size + index)
        total = count + xp.sum(xp.astype(spread, count.dtype), axis=-1)
        kept = ranks(xp.astype(-order, attention.dtype)) < xp.clip(total, 1, k)[..., None]
        return from_mask(
            kept,
            xp.astype(-order, attention.dtype),
            scores=attention,
            info={"outliers": count},
        )


def _outliers(attention: Array) -> Array:
    """How many (...) lie above the third quartile by 1.5 times the quartiles' distance."""
    xp = namespace(attention)
    ascending = xp.sort(attention, axis=-1)
    low, high = (_quantile(ascending, q) for q in (0.25, 0.75))
    far = attention > (high + 1.5 * (high - low))[..., None]
    return xp.sum(xp.astype(far, index_dtype(xp)), axis=-1)


def _quantile(ascending: Array, q: float) -> Array:
    """The quantile of sorted numbers (..., N), linear between its two neighbours."""
    place = q * (int(ascending.shape[-1]) - 1)
    below = int(place)
    above = min(below + 1, int(ascending.shape[-1]) - 1)
    low, high = ascending[..., below], ascending[..., above]
    return low + (place - below) * (high - low)
