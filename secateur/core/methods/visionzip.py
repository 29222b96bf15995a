"""VisionZip: dominant tokens, and contextual ones that take in the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from secateur.core.acts import Makes
from secateur.core.arrays import (
    Array,
    constant,
    index_dtype,
    like,
    namespace,
    to_numpy,
    top,
    wide,
    widened,
)
from secateur.core.inputs import Request, Tokens
from secateur.core.methods.base import Method, Program, require_share
from secateur.core.order import nearest, others
from secateur.core.selection import Selection, folding


@dataclass(frozen=True)
class VisionZip(Method, Makes):
    r"""Dominant tokens by attention, contextual tokens by merging everything else.

    Of k tokens, :math:`c = \lfloor k \cdot \text{contextual} \rfloor` are contextual. The k - c
    of highest attention are kept as they are. Of the n others, in their order, those at places
    :math:`0, s, 2s, \dots` with :math:`s = \lfloor n / c \rfloor` are the targets; every one
    left joins the target whose key is most similar, and

    .. math:: X_t' = X_t + \frac{1}{|M_t|} \sum_{i \in M_t} X_i

    for the tokens :math:`M_t` that joined target t.

    Parameters
    ----------
    keep
        How many tokens to keep, contextual ones included: a count or a share.
    contextual
        Share of contextual tokens, in [0, 1]. The default, 10 / 64, gives the paper's 54 + 10.

    Notes
    -----
    O(N log N + N c C) time for keys of length C. The selection says what was merged:
    ``selection.merge(features)`` gives :math:`X'` of the kept tokens in ascending order,
    ``selection.gather(features)`` the kept tokens as they were. Where c is 0 the others are
    dropped. Works from the `keys`; there is no falling back on features, whose similarities are
    others.

    In a model the authors' program merges before the projector and hands the class token on as
    one of the dominant ones, ahead of all patches; contextual tokens come last.
    `secateur.published` does so where `states` and `class_state` are there. By default all k are
    patches, in their own places, merged after the projector. Equal attention and equal
    similarity go to the lowest index.

    References
    ----------
    S. Yang, Y. Chen, Z. Tian, C. Wang, J. Li, B. Yu and J. Jia, "VisionZip: Longer is Better but
    Not Necessary in Vision Language Models", CVPR 2025, arXiv 2412.04467.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[4.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> tokens = sc.Tokens(features=x, keys=x, attention=np.array([0.7, 0.1, 0.1, 0.1]))
    >>> zipped = sc.VisionZip(keep=3, contextual=0.7).select(tokens)
    >>> zipped.indices, zipped.folded
    (array([0, 1, 2]), array([0, 1, 2, 2]))
    >>> zipped.merge(x)
    array([[4., 0.],
           [1., 0.],
           [0., 4.]])
    """

    contextual: float = 10 / 64

    name: ClassVar[str] = "visionzip"
    complexity: ClassVar[str] = "N log N + k N C"
    reference: ClassVar[str] = "Yang et al., CVPR 2025, arXiv 2412.04467"
    parity: ClassVar[str] = "the authors' program in a model: what goes in and comes out"
    program: ClassVar[Program] = Program("dvlab-research/VisionZip", "3151f6df4fca")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("contextual", self.contextual)

    @property
    def needs(self) -> frozenset[str]:
        """The attention each token receives, and the keys that decide who joins whom."""
        return frozenset({"features", "attention", "keys"})

    @property
    def optional(self) -> frozenset[str]:
        """As published, the tokens and the class token before the projector."""
        return frozenset({"states", "class_state"}) if self.published else frozenset()

    @property
    def needs_in_model(self) -> frozenset[str]:
        """As published, states too."""
        return self.needs | self.optional

    @property
    def requests(self) -> Mapping[str, Request]:
        """Keys are averaged over heads, as in the authors' program."""
        return {"keys": Request("keys")}

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Dominant tokens, then contextual ones; see `Method.choose`."""
        attention = self.weigh(tokens)
        xp = namespace(attention)
        count = self._contextual(k)
        first = k - count - self._hands_class(tokens, k)
        dominant = Selection.of(top(attention, first), tokens.size).indices
        if not count:
            chosen = Selection.of(dominant, tokens.size, scores=attention)
            return folding(chosen, xp.full_like(dominant[..., :1], -1), xp.zeros_like(attention))
        rest = others(dominant, tokens.size)
        step = int(rest.shape[-1]) // count
        targets = rest[..., : step * count : step]
        indices = xp.concat([dominant, targets], axis=-1)
        chosen = Selection.of(indices, tokens.size, scores=attention)
        joined = nearest(constant(widened(tokens.keys)), targets)
        return folding(chosen, joined, mean_shares(joined, targets, chosen))

    def _contextual(self, k: int) -> int:
        return int(k * self.contextual + 1e-9)

    def _hands_class(self, tokens: Tokens, k: int) -> bool:
        """Whether the class token stands for a dominant one, of which another must be left."""
        known = self.published and tokens.class_state is not None and k < tokens.size
        return known and k - self._contextual(k) > 1

    @property
    def makes(self) -> bool:
        """As published, tokens fold before the projector."""
        return self.published

    def make(self, tokens: Tokens, chosen: Selection) -> Array:
        """The class token, dominant tokens, then contextual ones; see `Makes.make`."""
        states = constant(widened(tokens.states))
        xp = namespace(states)
        k = self.budget(tokens.size)
        count = self._contextual(k)
        contextual = to_numpy(chosen.indices)[int(chosen.count) - count :]
        late = np.isin(to_numpy(chosen.sorted()), contextual)
        order = like(np.argsort(late, kind="stable"), states, dtype=index_dtype(xp))
        made = xp.take(chosen.merge(states), order, axis=0)
        if self._hands_class(tokens, k):
            made = xp.concat([widened(tokens.class_state)[None, :], made], axis=0)
        return made


def mean_shares(joined: Array, targets: Array, chosen: Selection) -> Array:
    """For every dropped token (..., N), one over how many dropped tokens joined its target."""
    xp = namespace(joined)
    dropped = xp.logical_not(chosen.mask())
    members = (joined[..., None, :] == targets[..., :, None]) & dropped[..., None, :]
    share = xp.astype(members, wide(xp))
    total = xp.sum(share, axis=-1, keepdims=True)
    return xp.sum(share / xp.where(total > 0, total, xp.ones_like(total)), axis=-2)
