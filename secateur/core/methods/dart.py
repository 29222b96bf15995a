"""DART: what looks least like a few pivots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur.core.arrays import constant, namespace, top, wide, widened
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method, require_one_of, require_whole
from secateur.core.order import first_of, settled_cosine
from secateur.core.selection import Selection


@dataclass(frozen=True)
class DART(Method):
    r"""Pivots, and for each the tokens that duplicate it least.

    The P tokens of largest :math:`\lVert K_i \rVert_1` are the pivots. The k - P tokens still
    to keep are shared out over the pivots as evenly as whole numbers allow; each pivot in turn,
    the largest first, takes from what is left the tokens of smallest

    .. math:: \cos(X_p, X_i)

    Parameters
    ----------
    keep
        How many tokens to keep, pivots included: a count or a share.
    pivots
        How many pivots; k where that is less.
    norm
        Whose norms choose the pivots: ``"keys"``, as published, or ``"features"``.

    Notes
    -----
    O(N C + P N D + P N log N) time. Picks come pivots first, then what each pivot took.

    The authors' program works inside the language model, behind its second layer, and adds four
    pivots from the instruction to four from the image; here there is only the image. It leaves
    the pivots' turns to the order of a Python set and rounds each share, so that it may keep
    fewer than asked for; here k are kept.

    References
    ----------
    Z. Wen, Y. Gao, S. Wang, J. Zhang, Q. Zhang, W. Li, C. He and L. Zhang, "Stop Looking for
    Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP 2025,
    arXiv 2502.11494.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> features = np.array([[2.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 1.0]])
    >>> sc.DART(keep=2, pivots=1, norm="features").select(sc.Tokens(features=features)).indices
    array([0, 2])
    """

    pivots: int = 4
    norm: Literal["keys", "features"] = "keys"

    name: ClassVar[str] = "dart"
    complexity: ClassVar[str] = "N C + P N (D + log N)"
    reference: ClassVar[str] = "Wen et al., EMNLP 2025, arXiv 2502.11494"
    parity: ClassVar[str] = "its definition, token by token"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("pivots", self.pivots, least=1)
        require_one_of("norm", self.norm, ("keys", "features"))

    @property
    def needs(self) -> frozenset[str]:
        """The features, and the keys unless the features' norms choose the pivots."""
        return frozenset({"features", self.norm})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Pivots, then what each takes; see `Method.choose`."""
        features = constant(widened(tokens.features))
        source = constant(widened(getattr(tokens, self.norm)))
        xp = namespace(features)
        size = tokens.size
        norms = xp.sum(xp.abs(xp.astype(source, wide(xp))), axis=-1)
        count = min(self.pivots, k)
        chosen = Selection.of(top(norms, count), size)
        cosines = settled_cosine(features, chosen.gather(features, ordered=True))
        for pivot in range(count):
            share = (k - count + count - 1 - pivot) // count
            taken = chosen.mask()
            closeness = xp.where(taken, xp.full_like(norms, xp.inf), cosines[..., pivot])
            further = first_of(closeness, share)
            chosen = Selection.of(xp.concat([chosen.indices, further], axis=-1), size)
        return chosen
