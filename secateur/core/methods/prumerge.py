"""PruMerge+: attention's outliers, an even spread, and the rest merged into both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.arrays import Array, constant, index_dtype, namespace, widened
from secateur.core.inputs import Tokens
from secateur.core.methods.base import CountedFrom, Method
from secateur.core.order import nearest, ranks
from secateur.core.selection import Selection, folding, from_mask

EXTRAS = 3
"""Evenly spread tokens for each outlier, when outliers decide how many are kept."""


@dataclass(frozen=True)
class PruMergePlus(Method):
    r"""Tokens whose attention is an outlier, evenly spread ones, the rest merged into them.

    The outliers are the m tokens with :math:`a_i > Q_3 + 1.5 (Q_3 - Q_1)`, the quartiles being
    those of the attention a. They are kept (the k highest, where m > k); the tokens still to
    keep, e of the n others in their order, stand at places :math:`\lfloor i n / e \rfloor`,
    :math:`i = 0 \dots e - 1`. Every dropped token joins the kept one whose key is most similar,
    and with :math:`M_p` those that joined p

    .. math:: X_p' = X_p + \sum_{i \in M_p} a_i X_i

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share. With `adaptive`, the most an image keeps.
    adaptive
        Let outliers decide how many: m and three evenly spread ones for each, at least 1 and at
        most `keep`. This is the published rule; ``keep=1.0`` leaves it free.

    Notes
    -----
    O(N log N + k N C) time for keys of length C. Counts of a batch differ with `adaptive`;
    ``info["outliers"]`` says how many outliers were kept. ``selection.merge(features)`` gives
    :math:`X'` of the kept tokens in ascending order. The attention is taken as given: weights
    are those of the paper when it is a distribution over the image's tokens.

    The authors' program lets every kept token take in its 32 nearest tokens, kept ones
    included, so that clusters overlap, and adds one more token, the attention-weighted sum of
    all that were dropped; here every dropped token goes to one kept token, as the paper has it.
    The program spreads its extras from step lengths rounded down and drops those that are
    outliers, so that their number varies; here it is exact.

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

    adaptive: bool = False

    name: ClassVar[str] = "prumerge_plus"
    complexity: ClassVar[str] = "N log N + k N C"
    reference: ClassVar[str] = "Shang et al., ICCV 2025, arXiv 2403.15388"
    parity: ClassVar[str] = "its formulas, token by token"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.adaptive, bool):
            raise ValueError(f"adaptive: expected True or False, got {self.adaptive!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The attention each token receives, and the keys that decide who joins whom."""
        return frozenset({"features", "attention", "keys"})

    @property
    def counted_from(self) -> CountedFrom:
        """The outliers of its attention with `adaptive`; see `Method.counted_from`."""
        return "features" if self.adaptive else "size"

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Outliers, an even spread, then the merge; see `Method.choose`."""
        attention = constant(widened(tokens.attention))
        xp = namespace(attention)
        size = tokens.size
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
        chosen = from_mask(
            important | spread,
            xp.astype(-order, attention.dtype),
            scores=attention,
            info={"outliers": count},
        )
        joined = nearest(constant(widened(tokens.keys)), chosen.sorted())
        return folding(chosen, joined, attention)


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
