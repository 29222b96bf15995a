"""VisPruner: half by attention, half by removing duplicates in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from secateur.core.arrays import (
    Array,
    constant,
    descending,
    each_row,
    index_dtype,
    like,
    namespace,
    shape_of,
    to_numpy,
    wide,
    widened,
)
from secateur.core.dispatch import operation
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method, Program, require_share
from secateur.core.order import settled
from secateur.core.selection import Selection
from secateur.core.similarity import unit

DROPPED_AT_ONCE = 8
"""How many tokens a round of pairing drops at most."""

NEIGHBOURS = 32
"""How many nearest neighbours of each token are looked through before all are."""

BLOCK = 1 << 20
"""Cosines whose order is looked at together."""

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class VisPruner(Method):
    r"""Important tokens by attention, diverse ones by removing duplicates.

    The floor(k * important) tokens of highest attention are kept. The others stand in
    attention order; while there are more than needed, a round splits them into even and odd
    places and scores every even one,

    .. math:: c_i = \max_{j \text{ odd}} \cos(X_i, X_j), \qquad i \text{ even}

    drops the min(8, surplus) even ones of highest c, and goes on with the even ones that are
    left, in descending order of c, followed by the odd ones.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    important
        Share of the budget that attention decides, in [0, 1]; the authors' default is 0.5.

    Notes
    -----
    O(N^2 D) time, O(N^2) memory: the N / 8 rounds look through lists of nearest neighbours,
    which takes less than the cosines do. Picks come in the order of attention, then in that of
    the last round.

    Each round orders by the scores of the one before, so that rounding anywhere changes
    everything after: cosines are taken in float64 whatever the features' dtype, and compared
    after rounding to 39 binary places. The authors' program runs in the model's dtype, so the two
    agree when it is run in float64 on features cast up. It fails where a round has an odd number
    of tokens; here the even places are then one more. In a model the program removes duplicates
    among the tokens before the projector, ours among the features; `secateur.published` does as
    the program.

    References
    ----------
    Q. Zhang, A. Cheng, M. Lu, R. Zhang, Z. Zhuo, J. Cao, S. Guo, Q. She and S. Zhang, "Beyond
    Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV
    2025, arXiv 2412.01818. Pairing alternate tokens is that of D. Bolya et al., "Token Merging:
    Your ViT But Faster", ICLR 2023.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> features = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 1.0]])
    >>> tokens = sc.Tokens(features=features, attention=np.array([0.4, 0.3, 0.2, 0.1]))
    >>> sc.VisPruner(keep=3).select(tokens).indices
    array([0, 3, 2])
    """

    important: float = 0.5

    name: ClassVar[str] = "vispruner"
    complexity: ClassVar[str] = "N^2 D"
    reference: ClassVar[str] = "Zhang et al., ICCV 2025, arXiv 2412.01818"
    parity: ClassVar[str] = "the authors' program in float64: kept set, on arrays and in a model"
    program: ClassVar[Program] = Program("Theia-4869/VisPruner", "aefa01adc7c7")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("important", self.important)

    @property
    def needs(self) -> frozenset[str]:
        """The features and the attention each token receives."""
        return frozenset({"features", "attention"})

    @property
    def optional(self) -> frozenset[str]:
        """As published, the tokens before the projector, whose duplicates the program removes."""
        return frozenset({"states"}) if self.published else frozenset()

    @property
    def needs_in_model(self) -> frozenset[str]:
        """As published, states too."""
        return self.needs | self.optional

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """By attention, then by pairing; see `Method.choose`."""
        attention = self.weigh(tokens)
        order = descending(attention)
        count = int(k * self.important + 1e-9)
        xp = namespace(order)
        picks = order[..., :count]
        if k > count:
            given = tokens.states if self.published else None
            x = constant(widened(tokens.features if given is None else given))
            diverse = unpaired(x, order[..., count:], k - count)
            picks = xp.concat([xp.astype(picks, diverse.dtype), diverse], axis=-1)
        return Selection.of(picks, tokens.size, scores=attention)


@operation
def unpaired(features: Array, order: Array, k: int) -> Array:
    """The k tokens (..., k) that rounds of pairing leave of those in `order` (..., M).

    `features` (..., N, D); M >= k >= 1.
    """
    xp = namespace(features)
    batch = shape_of(order)[:-1]
    left = np.empty((*batch, k), dtype=np.int64)
    for position in each_row(batch):
        row = order[(*position, ...)]
        x = xp.take(features[(*position, ...)], row, axis=0)
        x = unit(xp.astype(x, wide(xp)))
        kept = _rounds(to_numpy(x @ xp.matrix_transpose(x)), k)
        left[position] = to_numpy(row)[kept]
    return like(left, features, dtype=index_dtype(xp))


def _rounds(cosines: Numbers, k: int) -> Indices:
    n = len(cosines)
    near = np.empty((n, min(NEIGHBOURS, n)), dtype=np.int64)
    step = max(1, BLOCK // n)
    for start in range(0, n, step):
        part = slice(start, start + step)
        near[part] = np.argpartition(-cosines[part], near.shape[1] - 1, axis=-1)[:, :NEIGHBOURS]
    closeness = np.take_along_axis(cosines, near, axis=-1)
    order = np.argsort(-closeness, axis=-1)
    near = np.take_along_axis(near, order, axis=-1)
    closeness = np.take_along_axis(closeness, order, axis=-1)
    places = np.arange(len(cosines))
    is_odd = np.zeros(len(cosines), dtype=bool)
    while len(places) > k:
        even, odd = places[::2], places[1::2]
        is_odd[:] = False
        is_odd[odd] = True
        # The largest cosine to an odd token is that of the nearest neighbour which is odd.
        hits = is_odd[near[even]]
        first = hits.argmax(axis=-1)
        scores = closeness[even, first]
        missed = ~hits[np.arange(len(even)), first]
        scores[missed] = cosines[np.ix_(even[missed], odd)].max(axis=-1)
        surplus = min(DROPPED_AT_ONCE, len(places) - k)
        places = np.concatenate([even[descending(settled(scores))[surplus:]], odd])
    return places
