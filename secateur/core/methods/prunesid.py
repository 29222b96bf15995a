"""PruneSID: groups by principal directions, thinned out within, shared budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from secateur.core.arrays import (
    Array,
    constant,
    each_row,
    index_dtype,
    like,
    namespace,
    shape_of,
    to_numpy,
    wide,
    widened,
)
from secateur.core.inputs import Tokens
from secateur.core.measures import largest_eigenvectors
from secateur.core.methods.base import (
    Method,
    Program,
    require_one_of,
    require_positive,
    require_whole,
)
from secateur.core.order import settled, settled_cosine
from secateur.core.selection import Selection

Model = Literal["llava", "qwen"]
Numbers = np.ndarray[Any, np.dtype[Any]]

ASKED_OF = 576
"""Of how many tokens the Qwen program's count is asked for."""
LEAST = 16
"""The fewest tokens the Qwen program keeps."""


class Groups(NamedTuple):
    """The tokens of one image in groups."""

    members: list[Numbers]
    """Of each group: the tokens taken, in order, then the suppressed ones."""
    taken: Numbers
    """How many of each group were taken, (G,)."""


@dataclass(frozen=True)
class PruneSID(Method):
    r"""Groups by principal directions; the least redundant tokens of each.

    The rows of sigmoid(X), each less its own mean, have left singular vectors :math:`u_1, \dots,
    u_G`, G a quarter of the budget. Token i belongs to the group g of largest
    :math:`|u_{gi}|`. Within a group, from the highest score down, a token is *taken* unless one
    taken before has a cosine above :math:`\theta` with it. The budget is shared over the groups
    in proportion to how many were taken; of each group those come first, then the others by
    score.

    ``"llava"``: scores are attention, :math:`\theta` is :math:`K / 32` times the mean cosine of
    two tokens, :math:`K = k + 1`. ``"qwen"``: no attention, scores are the loadings
    :math:`|u_{gi}|` themselves, :math:`\theta` is :math:`\max(18 k / N, 1)` times the sum of
    cosines over :math:`i \le j`, divided by :math:`N^2`.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    model
        Whose form, ``"llava"`` or ``"qwen"``.
    group
        Tokens of the budget for each group: 4.
    scale
        Factor on the threshold, above 0.

    Notes
    -----
    O(N C min(N, C)) time for the singular vectors, O(N^2 C) for cosines. Picks come group
    after group. ``info["threshold"]``, ``info["taken"]`` and ``info["budget"]`` say what each
    image and group got. Where ``"llava"`` has `states`, the tokens before the projector, it
    works from these, as its program does. Equal loadings (to rounding) go to the first
    direction, equal scores to the lowest index, and directions that carry nothing to no group.

    The program takes the singular vectors from a randomised decomposition without a seed, so
    that its runs differ, in up to 71 % of the labels on random arrays; here they are exact.
    `grouped_tokens` lets others be given. LLaVA's program counts the class token among K and
    never takes a patch of zero attention; here k patches are kept and any may be taken. Qwen's
    program keeps ``max(16, round(N keep / 576))`` where `keep` is a count: so does `published`.
    It hands tokens over group after group; language models behind an attachment get them in
    place order.

    References
    ----------
    Z. Fang, P. Lyu, C. Zhang, G. Lu, J. Yu and W. Pei, "Prune Redundancy, Preserve Essence:
    Vision Token Compression in VLMs via Synergistic Importance-Diversity", ICLR 2026, arXiv
    2603.09480.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[3.0, -3.0, 0.0], [2.9, -3.0, 0.0], [0.0, 3.0, -3.0], [0.0, 2.0, -3.0]])
    >>> tokens = sc.Tokens(features=x, attention=np.array([0.4, 0.3, 0.2, 0.1]))
    >>> sc.PruneSID(keep=2, group=1).select(tokens).indices
    array([0, 2])
    """

    model: Model = "llava"
    group: int = 4
    scale: float = 1.0

    name: ClassVar[str] = "prunesid"
    complexity: ClassVar[str] = "N C min(N, C) + N^2 C"
    reference: ClassVar[str] = "Fang et al., ICLR 2026, arXiv 2603.09480"
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = (
        "the authors' program in float64, given its singular vectors: thresholds, groups, picks"
    )
    program: ClassVar[Program | None] = Program(
        "ZhengyaoFang/PruneSID", "4ef17d9", "its singular vectors are drawn at random"
    )
    as_published: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("model", self.model, ("llava", "qwen"))
        require_whole("group", self.group, least=1)
        require_positive("scale", self.scale)

    @property
    def needs(self) -> frozenset[str]:
        """The features, and the attention that LLaVA's form ranks by."""
        return frozenset({"features", "attention"} if self.model == "llava" else {"features"})

    @property
    def optional(self) -> frozenset[str]:
        """The tokens before the projector, where LLaVA's form looks."""
        return frozenset({"states"} if self.model == "llava" else ())

    def budget(self, size: int, frames: int = 1) -> int:
        """How many it keeps; as Qwen's program counts them where `published`."""
        if not (self.published and self.model == "qwen" and isinstance(self.keep, int)):
            return super().budget(size, frames)
        each = size // frames
        return frames * min(each, max(LEAST, round(each * self.keep / ASKED_OF)))

    def weigh(self, tokens: Tokens) -> Array | None:
        """The attention, in LLaVA's form; see `Method.weigh`."""
        return constant(widened(tokens.attention)) if self.model == "llava" else None

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Groups, thinned out, each with its share; see `Method.choose`."""
        llava = self.model == "llava"
        x = tokens.states if llava and tokens.states is not None else tokens.features
        return grouped_tokens(
            constant(widened(x)),
            k,
            self.weigh(tokens),
            model=self.model,
            group=self.group,
            scale=self.scale,
        )


def grouped_tokens(
    features: Array,
    k: int,
    attention: Array | None = None,
    *,
    model: Model = "llava",
    group: int = 4,
    scale: float = 1.0,
    components: Array | None = None,
    fill_order: Array | None = None,
) -> Selection:
    """What `PruneSID` chooses, with singular vectors of one's own if need be.

    Parameters
    ----------
    features
        Tokens (..., N, C).
    k
        How many to keep.
    attention
        Scores (..., N) for ``"llava"``.
    model, group, scale
        As in `PruneSID`.
    components
        Absolute loadings (..., N, G) instead of `principal_loadings`.
    fill_order
        The order (..., G) in which groups are filled up; by how many were taken, descending,
        when absent.

    Returns
    -------
    Selection
        The picks group after group.
    """
    xp = namespace(features)
    size, batch = int(features.shape[-2]), shape_of(features)[:-2]
    class_token = int(model == "llava")
    total = k + class_token
    if components is None:
        least = 1 if model == "llava" else 4
        components = principal_loadings(features, min(k, max(least, total // group)))
    loadings = settled(xp.astype(components, wide(xp)))
    labels = xp.argmax(loadings, axis=-1)
    cosines = settled_cosine(features, features)
    if model == "llava":
        pairs = max(1, size * (size - 1) // 2)
        # In this order, here and below, no scale makes 0 of infinity.
        threshold = scale * (_above_diagonal(cosines, 1) / pairs) * (total / 32)
        scores = attention
    else:
        threshold = scale * (_above_diagonal(cosines, 0) / size**2) * max(18 * total / size, 1.0)
        scores = xp.max(loadings, axis=-1)
    alike = to_numpy(cosines > threshold[..., None, None])
    host_labels, host_scores = to_numpy(labels), to_numpy(scores)
    orders = None if fill_order is None else to_numpy(fill_order)
    count = int(components.shape[-1])
    picks = np.zeros((*batch, k), dtype=np.int64)
    taken, shares = (np.zeros((*batch, count), dtype=np.int64) for _ in range(2))
    for row in each_row(batch):
        groups = thinned(host_labels[row], host_scores[row], alike[row], count)
        sizes = np.asarray([len(members) for members in groups.members])
        order = None if orders is None else orders[row]
        budget = group_budgets(groups.taken, sizes, k, class_token=class_token, fill_order=order)
        picks[row] = np.concatenate(
            [members[:own] for members, own in zip(groups.members, budget, strict=True)]
        )
        taken[row], shares[row] = groups.taken, budget
    whole = index_dtype(xp)
    return Selection.of(
        like(picks, features, dtype=whole),
        size,
        scores=scores,
        info={
            "threshold": threshold,
            "taken": like(taken, features, dtype=whole),
            "budget": like(shares, features, dtype=whole),
        },
    )


def principal_loadings(features: Array, count: int) -> Array:
    r"""How much each token has of the directions that most of the tokens' variation lies in.

    .. math:: \sigma(X) - \text{row means} = U S V^\top, \qquad |U_{ig}|, \; g < \text{count}

    Parameters
    ----------
    features
        Tokens (..., N, C).
    count
        How many directions; fewer where the matrix has fewer.

    Returns
    -------
    Array
        Loadings (..., N, G), 0 in directions whose singular value is rounding.

    Notes
    -----
    O(N C min(N, C)) time, by the eigenvectors of the smaller of the two Gram matrices; a
    singular value below the root of rounding, beside the largest, counts as rounding. Those
    that are equal to rounding have no directions of their own: theirs are turned, one after the
    other, to the token that has most of what is left, where LAPACK's would depend on its version.

    Examples
    --------
    >>> import numpy as np
    >>> principal_loadings(np.array([[8.0, -8.0], [-8.0, 8.0], [0.0, 0.0]]), 2).round(4)
    array([[0.7071, 0.    ],
           [0.7071, 0.    ],
           [0.    , 0.    ]])
    """
    xp = namespace(features)
    # LAPACK may go on for ever with what is no number; infinity is one to a sigmoid.
    if bool(xp.any(xp.isnan(features))):
        raise ValueError("features: contains NaN, so that they have no directions")
    x = 0.5 * xp.tanh(0.5 * xp.astype(features, wide(xp)))  # sigmoid, but for 1/2
    x = x - xp.mean(x, axis=-1, keepdims=True)
    rows, columns = shape_of(x)[-2:]
    across = xp.matrix_transpose(x)
    gram = x @ across if rows <= columns else across @ x
    count = min(count, rows, columns)
    floor = max(rows, columns) * float(xp.finfo(x.dtype).eps)
    # Those behind the last that is asked for matter where they are equal to it.
    for wanted in (min(count + 1, rows, columns), min(rows, columns)):
        squares, vectors = largest_eigenvectors(gram, wanted)
        # No larger than rounding where there is nothing.
        real = (squares > floor * squares[..., :1]) & (squares > floor)
        equal = real[..., 1:] & (squares[..., :-1] - squares[..., 1:] <= floor * squares[..., :1])
        if not bool(xp.any(equal[..., count - 1 :])):
            break
    if rows > columns:
        lengths = xp.sqrt(xp.where(real, squares, xp.ones_like(squares)))
        vectors = (x @ vectors) / lengths[..., None, :]
    vectors = xp.where(real[..., None, :], vectors, xp.zeros_like(vectors))
    if bool(xp.any(equal)):
        vectors = like(_turned(to_numpy(vectors), to_numpy(equal)), vectors, dtype=vectors.dtype)
    return xp.abs(vectors[..., :count])


def _turned(vectors: Numbers, equal: Numbers) -> Numbers:
    """Directions (..., N, G), those of equal singular values turned to be the same everywhere.

    `equal` (..., G - 1) says which have the value of the one before. In the space of such, each
    lies as near as can be to the token that has most of what is left of it, the first of equals.
    """
    turned = vectors.copy()
    for row in each_row(vectors.shape[:-2]):
        start = 0
        while start < vectors.shape[-1]:
            stop = start + 1
            while stop < vectors.shape[-1] and equal[row][stop - 1]:
                stop += 1
            if stop - start > 1:
                space = vectors[row][:, start:stop]
                left = space @ space.T
                for place in range(start, stop):
                    most = int(np.argmax(settled(np.diagonal(left).copy())))
                    direction = left[:, most] / np.sqrt(left[most, most])
                    turned[row][:, place] = direction
                    left = left - np.outer(direction, direction)
            start = stop
    return turned


def thinned(labels: Numbers, scores: Numbers, alike: Numbers, count: int) -> Groups:
    """The tokens of each group: those taken, then the suppressed ones, each by score.

    From the highest score down, a token that is alike to none taken before is taken.

    Parameters
    ----------
    labels
        The group (N,) of every token.
    scores
        Its score (N,).
    alike
        True (N, N) for tokens too alike to be both taken.
    count
        How many groups there are.

    Notes
    -----
    O(N^2) time at most.

    Examples
    --------
    >>> import numpy as np
    >>> alike = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    >>> found = thinned(np.array([0, 0, 0]), np.array([3.0, 2.0, 1.0]), alike, 1)
    >>> found.members, found.taken
    ([array([0, 2, 1])], array([2]))
    """
    members, taken = [], np.zeros(count, dtype=np.int64)
    order = np.argsort(-scores, kind="stable")
    for each in range(count):
        own = order[labels[order] == each]
        free = np.ones(len(own), dtype=bool)
        first = np.zeros(len(own), dtype=bool)
        for place, token in enumerate(own):
            if free[place]:
                first[place] = True
                free &= ~alike[token, own]
        taken[each] = first.sum()
        members.append(np.concatenate([own[first], own[~first]]))
    return Groups(members, taken)


def group_budgets(
    taken: Numbers,
    sizes: Numbers,
    k: int,
    *,
    class_token: int = 0,
    fill_order: Numbers | None = None,
) -> Numbers:
    r"""How many tokens each group gives: in proportion to how many of it were taken.

    With :math:`K = k + \text{class token}`, group g gets between :math:`l_g = \min(1, n_g)` and
    :math:`h_g = \min(5 \lceil K / 64 \rceil, n_g, t_g)`, all :math:`h_g` raised one by one, up
    to :math:`n_g`, until they sum to K. Of the :math:`o = k - \sum l_g` others, group g gets
    its share of :math:`t_g` by differences of rounded cumulative sums, cut at :math:`h_g`; what
    that leaves fills groups up to :math:`h_g`.

    Parameters
    ----------
    taken
        How many tokens (G,) of each group were taken, t.
    sizes
        How many (G,) it has, n; k in all at least.
    k
        How many to keep.
    class_token
        1 where the authors' program counts a class token besides.
    fill_order
        Groups (G,) in the order of filling; descending by `taken` when absent.

    Examples
    --------
    >>> import numpy as np
    >>> group_budgets(np.array([4, 1, 2]), np.array([5, 3, 2]), 6)
    array([3, 1, 2])
    """
    total = k + class_token
    low = np.minimum(1, sizes)
    if int(low.sum()) > k:  # more groups than tokens to keep
        low = np.where(np.cumsum(low) <= k, low, 0)
    high = np.minimum(np.minimum(5 * math.ceil(total / 64), sizes), taken)
    while int(high.sum()) < total and bool(np.any(high < sizes)):
        high = np.minimum(high + 1, sizes)
    spare = k - int(low.sum())
    shares = np.cumsum(taken) / max(1, int(taken.sum()))
    steps = np.round(spare * shares).astype(np.int64)
    budget = np.minimum(low + np.diff(steps, prepend=0), high)
    if fill_order is None:
        fill_order = np.argsort(-taken, kind="stable")
    for each in fill_order:
        more = min(int(high[each] - budget[each]), k - int(budget.sum()))
        budget[each] += max(0, more)
    return np.asarray(budget, dtype=np.int64)


def _above_diagonal(matrix: Array, offset: int) -> Array:
    """Sums (...) of the entries of matrices (..., N, N) on the diagonal given and above it."""
    xp = namespace(matrix)
    return xp.sum(xp.triu(matrix, k=offset), axis=(-2, -1))
