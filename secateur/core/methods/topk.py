"""The tokens of highest attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.arrays import Array, constant, top, widened
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method
from secateur.core.selection import Selection


@dataclass(frozen=True)
class TopK(Method):
    r"""The k tokens that receive the most attention.

    .. math:: S = \{i_1, \dots, i_k\}, \qquad a_{i_1} \ge a_{i_2} \ge \dots

    With the attention of the class token this is FasterVLM.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.

    Notes
    -----
    O(N log N) time. Equal attention: the lowest index first. The authors' program keeps
    whichever of the equal ones PyTorch's ``topk`` returns.

    References
    ----------
    Q. Zhang, A. Cheng, M. Lu et al., "[CLS] Attention is All You Need for Training-Free Visual
    Token Pruning: Make VLM Inference Faster", 2024, arXiv 2412.01818v1 (FasterVLM; the paper's
    later versions describe VisPruner).

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> attention = np.array([0.1, 0.4, 0.2, 0.3])
    >>> sc.TopK(keep=2).select(sc.Tokens(features=np.ones((4, 8)), attention=attention)).indices
    array([1, 3])
    """

    name: ClassVar[str] = "topk"
    complexity: ClassVar[str] = "N log N"
    reference: ClassVar[str] = "Zhang et al., 2024, arXiv 2412.01818v1 (FasterVLM)"
    guarantee: ClassVar[str] = "the largest sum of attention of any k tokens"
    parity: ClassVar[str] = "a sort"

    @property
    def needs(self) -> frozenset[str]:
        """The attention each token receives."""
        return frozenset({"attention"})

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The k of highest attention; see `Method.choose`."""
        attention = self.weigh(tokens)
        return Selection.of(top(attention, k), tokens.size, scores=attention)
