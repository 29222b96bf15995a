"""ViTCoP: clusters of the encoder's keys, folded by the norms of the language model's keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from secateur.core.acts import Cut, Cuts, Layout, Look, Sight, Stay
from secateur.core.arrays import (
    Array,
    checked,
    constant,
    index_dtype,
    like,
    namespace,
    resolve_keep,
    shape_of,
    spell,
    to_numpy,
    top,
    whole,
    wide,
    widened,
)
from secateur.core.attention import best
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method, Program, require_positive, require_share
from secateur.core.methods.inside import descending_cuts, entered
from secateur.core.order import settled
from secateur.core.selection import Selection

DEPTH = 32
"""Decoder layers of the model that the cuts were published for."""

LAST = 5
"""The last cut keeps one in this many of what the first one left."""


def density_clusters(
    keys: Array,
    places: Array,
    *,
    share: float = 0.18,
    scale: float = 8.0,
    radius: float = 0.6,
) -> Array:
    r"""Clusters of tokens that are alike and near: density peaks.

    .. math::
        \rho_i = \sum_j e^{-(d_{ij} / \text{scale})^2}, \qquad
        \delta_i = \min_{j \text{ denser than } i,\ s_{ij} \le \text{radius}} d_{ij}

    with d the distances of keys and s those of places; the j that attains the minimum is the
    parent of i. The :math:`\max(1, \lfloor \text{share} \cdot n \rfloor)` tokens of largest
    :math:`\delta \rho` are centres, every other token is of its parent's cluster.

    Parameters
    ----------
    keys
        (..., n, C), those of all heads side by side.
    places
        Where the tokens stand (..., n, 2), as shares of the grid's sides.
    share
        Centres, as a share of the tokens.
    scale
        The distance of keys at which a token's weight in a density has fallen to 1 / e.
    radius
        How far away a parent may stand.

    Returns
    -------
    Array
        The cluster (..., n) of each token, 0 the one of the largest :math:`\delta \rho`.

    Notes
    -----
    O(n^2 C) time, O(n^2) memory.

    A token without a denser one within the radius has infinite :math:`\delta`; of several, the
    densest comes first. Where there are fewer centres than such tokens, the others are of the
    cluster of the nearest denser token however far; the authors' program puts them with token 0.
    Equal densities, as duplicates have, go by index; there such tokens are each other's parents
    and end in no cluster.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.vitcop import density_clusters
    >>> keys = np.array([[0.0], [0.5], [9.0], [9.5], [9.2]])
    >>> places = np.linspace(0.0, 0.5, 5)[:, None] * np.ones(2)
    >>> density_clusters(keys, places, share=0.4)
    array([1, 1, 0, 0, 0])
    """
    keys = constant(checked(keys, "keys", "(..., n, C)"))
    places = constant(checked(places, "places", "(..., n, 2)"))
    require_share("share", share, zero=False)
    require_positive("scale", scale)
    xp = namespace(keys)
    n = int(keys.shape[-2])
    squares = _squares(xp.astype(keys, wide(xp)))
    itself = like(np.eye(n, dtype=bool), keys)
    squares = xp.where(itself, xp.zeros_like(squares), squares + 1e-8)
    density = settled(xp.mean(xp.exp(-squares / scale / scale), axis=-1))
    order = xp.argsort(-density, axis=-1, stable=True)
    rank = xp.argsort(order, axis=-1, stable=True)
    distance = xp.sqrt(squares)
    largest = xp.max(distance, axis=(-2, -1), keepdims=True)
    distance = settled(distance / xp.where(largest > 0, largest, xp.ones_like(largest)))
    near = _squares(xp.astype(places, wide(xp))) + 1e-8 <= radius * radius
    denser = rank[..., None, :] < rank[..., :, None]
    # Parents within the radius come first, then those however far; the densest has none.
    far = xp.where(near, distance, distance + 2.0)
    far = xp.where(denser, far, xp.full_like(far, xp.inf))
    parent = xp.astype(xp.argmin(far, axis=-1), index_dtype(xp))
    delta = xp.min(far, axis=-1)
    peak = xp.where(delta < 2.0, settled(delta * density), 2.0 + density)
    count = max(1, int(share * n + 1e-9))
    number = xp.argsort(xp.argsort(-peak, axis=-1, stable=True), axis=-1, stable=True)
    own = xp.broadcast_to(like(np.arange(n), parent, dtype=parent.dtype), shape_of(parent))
    root = xp.where(number < count, own, parent)
    for _ in range(n.bit_length()):  # Every step doubles how far a chain of parents is followed.
        root = xp.take_along_axis(root, root, axis=-1)
    return xp.take_along_axis(xp.astype(number, parent.dtype), root, axis=-1)


def key_norms(keys: Array, visual: Array) -> Array:
    """The length (N,) of each visual token's key, averaged over the heads of (G, T, d)."""
    xp = namespace(keys)
    mean = xp.mean(widened(xp.take(keys, visual, axis=-2)), axis=0)
    return xp.sqrt(xp.sum(mean * mean, axis=-1))


def fold_clusters(norms: Array, labels: Array, keep: int) -> Selection:
    r"""Which tokens stay as they are, and which fold into one of their cluster.

    With C clusters of sizes n_c and at most C - 1 tokens to keep, the K - 1 clusters of smallest
    sum of norms become one token each and all others together one. Else cluster c keeps

    .. math::
        q_c = \min\left(\operatorname{round}\left(\frac{n_c - 1}{n - C} (K - C)\right),
        n_c - 1\right)

    tokens of smallest norm as they are, corrected by single steps, from the cluster of smallest
    sum of norms on if too few (from the largest if too many), until they are K - C in all; its
    rest becomes one token.

    A group of g tokens becomes one at its member number floor(g / 2) in place order, m:

    .. math:: X_m' = X_m + \frac{1}{g} \sum_{i \in \text{group}} X_i

    Parameters
    ----------
    norms
        `key_norms` (n,).
    labels
        The cluster (n,) of each token.
    keep
        How many tokens stay, folded ones included; all stay as they are from n on.

    Returns
    -------
    Selection
        `Selection.merge` gives the new states.

    Notes
    -----
    O(n log n + K) time, on the host: one number a token goes there.

    A folded token is the sum of two, so about twice as long, a group of one twice itself: that is
    the method as published. Sums of norms favour small clusters. Equal norms go to the lowest
    index, equal sums to the lowest label.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.vitcop import fold_clusters
    >>> chosen = fold_clusters(np.array([1.0, 3.0, 2.0, 5.0, 9.0]), np.array([0, 0, 0, 0, 1]), 3)
    >>> chosen.indices, chosen.folded
    (array([0, 2, 4]), array([0, 2, 2, 2, 4]))
    >>> chosen.merge(np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]))
    array([[ 1.],
           [ 6.],
           [10.]])
    """
    norms = constant(checked(norms, "norms", "(n,)"))
    if shape_of(labels) != shape_of(norms):
        raise ValueError(
            f"labels: expected one for each of the {spell(shape_of(norms))} norms, "
            f"got {spell(shape_of(labels))}"
        )
    if whole(keep) < 1:
        raise ValueError(f"keep: expected a count of at least 1, got {keep!r}")
    n = int(norms.shape[0])
    xp = namespace(norms)
    longest = xp.max(norms)
    alike = settled(norms / xp.where(longest > 0, longest, xp.ones_like(longest)))
    groups = _groups(to_numpy(alike), to_numpy(labels), keep) if keep < n else []
    folded, weights = np.arange(n), np.ones(n)
    for members in groups:
        middle = members[len(members) // 2]
        folded[members] = middle
        weights[members] = 1.0 / len(members)
        weights[middle] += 1.0
    kept = like(np.unique(folded), norms, dtype=index_dtype(xp))
    return Selection.of(
        kept,
        n,
        folded=like(folded, norms, dtype=index_dtype(xp)),
        fold_weights=like(weights, norms, dtype=wide(xp)),
        scores=norms,
    )


@dataclass(frozen=True)
class ViTCoP(Method, Cuts):
    r"""ViTCoP: half by attention, then clusters that fold, then the shortest keys.

    Before the language model the share `encoder` of the tokens stays that the class token
    attends to most, and `density_clusters` of their keys are found. After s layers
    `fold_clusters` leaves R of these n tokens, after d of L layers round(R / 5) of shortest key,

    .. math::
        R = \operatorname{round}\left(\frac{L k - s n}{d - s + (L - d) / 5}\right)

    so that a layer holds k = `keep` tokens on average.

    Parameters
    ----------
    keep
        How many visual tokens a layer of the language model holds on average: a count or a
        share of the tokens of an image.
    encoder
        Share of the tokens that enter the language model; never fewer than `keep`.
    centres
        Clusters, as a share of these.
    scale, radius
        Of `density_clusters`.
    after
        s and d, in a model of 32 layers; other depths scale them.

    Notes
    -----
    O(n^2 C) time before, O(G n d) a cut.

    R is bounded here: one token at least stays, and where R reaches n nothing folds, and so many
    stay at the second cut that the average comes out. The authors' program lets R exceed n or
    fall below 0. It numbers positions anew after the second cut, as `published` does; else they
    stay. Folded tokens are about twice as long as others, as published; see `fold_clusters`.

    References
    ----------
    W. Luo, P. Chen, X. Huang and L. Huang, "ViTCoP: Accelerating Large Vision-Language Models via
    Visual and Textual Semantic Collaborative Pruning", AAAI 2026, arXiv 2601.17818.

    Examples
    --------
    >>> from secateur.core.acts import Layout
    >>> from secateur.core.methods.vitcop import ViTCoP
    >>> ViTCoP(keep=128).budget(576), ViTCoP(keep=128).plan(Layout(depth=32, images=(576,)))
    (288, (Cut(after=2, keep=160), Cut(after=22, keep=32)))
    """

    keep: int | float = 128
    encoder: float = 0.5
    centres: float = 0.18
    scale: float = 8.0
    radius: float = 0.6
    after: tuple[int, int] = (2, 22)

    name: ClassVar[str] = "vitcop"
    complexity: ClassVar[str] = "N log N + n^2 C, then G n d a cut"
    reference: ClassVar[str] = "Luo et al., AAAI 2026, arXiv 2601.17818"
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = "the authors' program: kept set, clusters, folded tokens"
    looks: ClassVar[frozenset[Look]] = frozenset({"keys", "hidden"})
    program: ClassVar[Program | None] = Program("chaser682/ViTCoP", "627f632")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("encoder", self.encoder, zero=False)
        require_share("centres", self.centres, zero=False)
        require_positive("scale", self.scale)
        require_positive("radius", self.radius)
        after: tuple[int, ...] = self.after
        if len(after) != 2 or not 1 <= after[0] < after[1] < DEPTH:
            raise ValueError(
                f"after: expected two ascending numbers of layers below {DEPTH}, got {self.after}"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Attention that chooses, keys and grid that cluster."""
        return frozenset({"features", "attention", "keys", "grid"})

    def budget(self, size: int, frames: int = 1) -> int:
        """How many of `size` tokens enter the language model; see `Method.budget`."""
        least = int(self.encoder * (size // frames) + 1e-9)
        return max(frames * least, super().budget(size, frames))

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The tokens of highest attention, and their clusters; see `Method.choose`."""
        attention = self.weigh(tokens)
        xp = namespace(attention)
        chosen = Selection.of(top(attention, k), tokens.size, scores=attention)
        h, w = tokens.grid  # type: ignore[misc]
        kept = chosen.sorted()
        places = xp.stack([kept // w, kept % w], axis=-1)
        sides = like([float(h), float(w)], attention, dtype=wide(xp))
        labels = density_clusters(
            chosen.gather(tokens.keys),
            xp.astype(places, wide(xp)) / sides,
            share=self.centres,
            scale=self.scale,
            radius=self.radius,
        )
        return replace(chosen, info={"cluster": _spread(labels, chosen)})

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """A cut that folds and one that drops; see `Cuts.plan`."""
        depth = layout.depth
        began = entered(self, layout)
        mean = sum(resolve_keep(self.keep, size) for size in layout.images)
        first, second = self._places(layout)
        if mean >= began:
            return ()
        left = depth * mean
        if not first < second < depth:  # Too shallow for two: all is done at the first.
            only = round((left - first * began) / max(1, depth - first))
            return descending_cuts([first], [max(1, only)], depth, began)
        folded = round((left - first * began) / (second - first + (depth - second) / LAST))
        if folded < began:
            folded = max(1, folded)
            last = max(1, round(folded / LAST))
        else:
            last = round((left - second * began) / (depth - second))
        return descending_cuts([first, second], [folded, last], depth, began)

    def renumbers_after(self, cut: Cut, layout: Layout) -> bool:
        """The authors' program does after the second cut."""
        return self.published and cut.after != self._places(layout)[0]

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Fold at the first cut, drop at the second; see `Cuts.decide`."""
        norms = key_norms(sight.keys, sight.visual)
        layout = sight.layout
        if layout is None or cut.after != self._places(layout)[0]:
            return Stay(best(-norms, cut.keep))
        xp = namespace(sight.visual)
        # Clusters are of one part each: parts are told apart by where they begin.
        ends = np.cumsum([each.size for each in layout.chosen])
        part = np.searchsorted(ends, to_numpy(sight.place), side="right")
        labels = sight.told("cluster") + part * int(ends[-1])
        chosen = fold_clusters(norms, like(labels, sight.visual), cut.keep)
        states = xp.take(sight.hidden, sight.visual, axis=0)
        return Stay(chosen.indices, chosen.merge(widened(states)))

    def _places(self, layout: Layout) -> list[int]:
        """After how many layers it cuts."""
        scaled = [round(layers * layout.depth / DEPTH) for layers in self.after]
        return [max(layers, layout.earliest) for layers in scaled]


def _spread(labels: Array, chosen: Selection) -> Array:
    """The labels (..., K) of the kept tokens at their places (..., N), -1 at the others."""
    xp = namespace(labels)
    mask = chosen.mask()
    number = xp.cumulative_sum(xp.astype(mask, labels.dtype), axis=-1) - 1
    number = xp.where(mask, number, xp.zeros_like(number))
    full = xp.take_along_axis(labels, number, axis=-1)
    return xp.where(mask, full, xp.full_like(full, -1))


def _groups(
    norms: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], keep: int
) -> list[np.ndarray[Any, Any]]:
    """The tokens, in place order, of each group that becomes one."""
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.bincount(labels, weights=norms)
    ascending = np.argsort(sums, kind="stable")
    if len(sizes) > keep:
        own = ascending[: keep - 1]
        alone = [np.flatnonzero(labels == cluster) for cluster in own]
        return [*alone, np.flatnonzero(~np.isin(labels, own))]
    groups: list[np.ndarray[Any, Any]] = []
    for cluster, quota in enumerate(_quotas(sizes, ascending, keep)):
        members = np.flatnonzero(labels == cluster)
        smallest = members[np.argsort(norms[members], kind="stable")]
        groups.append(np.sort(smallest[quota:]))
    return groups


def _quotas(
    sizes: np.ndarray[Any, Any], ascending: np.ndarray[Any, Any], keep: int
) -> np.ndarray[Any, Any]:
    """How many tokens of each cluster stay as they are, `keep` less the clusters in all."""
    wanted = keep - len(sizes)
    room = sizes - 1
    quotas: np.ndarray[Any, Any] = np.minimum(
        np.round(room / max(1, room.sum()) * wanted).astype(int), room
    )
    missing = wanted - int(quotas.sum())
    step, walk = (1, ascending) if missing > 0 else (-1, ascending[::-1])
    while missing:
        for cluster in walk:
            if missing and 0 <= quotas[cluster] + step <= room[cluster]:
                quotas[cluster] += step
                missing -= step
    return quotas


def _squares(x: Array) -> Array:
    """Squared distances (..., n, n) of the rows of x (..., n, C)."""
    xp = namespace(x)
    x = x - xp.mean(x, axis=-2, keepdims=True)
    length = xp.sum(x * x, axis=-1)
    squares = length[..., :, None] + length[..., None, :] - 2.0 * (x @ xp.matrix_transpose(x))
    return xp.where(squares > 0, squares, xp.zeros_like(squares))
