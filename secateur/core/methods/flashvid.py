"""FlashVID: picked tokens, trees of alike ones over time, clusters of what is left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.core.arrays import (
    Array,
    constant,
    index_dtype,
    like,
    namespace,
    shape_of,
    to_numpy,
    top,
    wide,
    widened,
)
from secateur.core.density import density_clusters, smallest
from secateur.core.inputs import Tokens
from secateur.core.methods.base import (
    CountedFrom,
    Program,
    require_one_of,
    require_positive,
    require_share,
    require_whole,
)
from secateur.core.methods.video import TwoStages
from secateur.core.order import settled
from secateur.core.segments import cuts, few_frames, frame_means, in_time, likeness, spans
from secateur.core.selection import Selection, Shares, sharing
from secateur.core.similarity import unit

Pick = Literal["attn", "div", "attn_div", "attn_div_v2"]
PICKS = ("attn", "div", "attn_div", "attn_div_v2")
NEIGHBOURS = 7
"""At most so many neighbours say a density."""
TOGETHER = 1 << 22
"""Numbers of frames, or distances within them, that are worked on at once."""

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class FlashVID(TwoStages):
    r"""Trees of tokens over time, and clusters of what they leave.

    The video is cut into segments of like frames (`secateur.core.segments.cuts` of neighbouring
    frames' mean tokens). A frame has :math:`b = \lceil n r \cdot \text{expansion} \rceil` tokens
    to spend, :math:`A = \lceil b \alpha \rceil` of them picked and R = b - A merged.

    *Picks* of each frame, unchanged. With

    .. math:: M_{ij} = (1 - \cos(x_i, x_j)) \, a_j \, E_j

    for the attention a and :math:`E_j = \langle x_j, \text{mean token of the segment} \rangle`,
    first the j whose second-smallest :math:`M_{ij}` is largest, then, A - 1 times, the j whose
    smallest :math:`M_{ij}` over the picked i is.

    *Trees*. Of the others of a segment, each joins the one of largest cosine in the frame before
    if that exceeds `temporal`; if fewer than b tokens a frame would be left, only as many as
    may. A tree's tokens become their mean, at its root, the earliest.

    *Clusters*. Of f roots of a frame, :math:`\lceil f R L / \text{roots of the segment} \rceil`
    are density peaks (`secateur.density_clusters`, at most 7 neighbours, L the frames of the
    segment); every other joins the nearest, and the plain mean takes the peak's place.

    *Inside* the language model, of the V tokens that went in, :math:`\lceil V \cdot
    \text{inside} \rceil` stay, those that the prompt's last token attends to most.

    Parameters
    ----------
    keep
        How many tokens to keep: a share r of every frame's, or a count for each frame.
    expansion
        What b is multiplied with; above 1 where a second cut inside the language model makes up
        for it. The authors have 1.25.
    alpha
        Share of the picks.
    temporal
        Cosine above which a token joins a tree.
    segment
        Cosine of neighbouring frames below which they are cut apart; None: one segment.
    least_segments
        How many segments there are at least, where `fill_segments`.
    fill_segments
        Whether to cut where frames are most unlike until there are `least_segments`.
    selection
        ``"attn_div_v2"`` as above; ``"attn_div"`` without E; ``"div"`` without a and E;
        ``"attn"``: the picks are those of highest attention.
    inside
        Share of the visual tokens that the cut inside leaves; None: there is none.
        The authors have 0.3.
    after
        How many layers run before that cut, as a share of them; the authors' 20 of 28.

    Notes
    -----
    O(N n D + A N) time for N = T n tokens; similarities are within frames and between neighbours
    only. They and densities are worked out in the tokens' precision, at least float32. The
    number kept follows from the features, about R a frame beside the picks and at most one more.
    Picks are listed in place order; ``selection.merge(features)`` gives the means, whose weights
    sum to one for every kept token.

    Published: a token that joins a tree counts as one even where others joined it before, so a
    chain of three is summed and halved, and norms grow; where a segment is one frame, all its
    tokens are clustered, picked ones too, and such a place may then occur twice, which no
    selection says: it is kept once, as picked. Never done: with ``"attn_div_v2"`` the program may
    pick a token twice once only tokens with E < 0 are left; it changes its input in place; and
    it draws noise against equal densities, which here go to the lower index.

    References
    ----------
    Z. Fan et al., "FlashVID: Efficient Video Large Language Models via Training-free Tree-based
    Spatiotemporal Token Merging", ICLR 2026, arXiv 2602.08024.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.0, 3.0]])
    >>> video = sc.Tokens(features=x, frames=2, attention=np.array([2.0, 1.0, 2.0, 1.0]))
    >>> kept = sc.FlashVID(keep=1.0, alpha=0.5, segment=None, selection="attn").select(video)
    >>> kept.count
    array(4)
    >>> method = sc.FlashVID(keep=0.75, alpha=0.5, segment=None, selection="attn")
    >>> method.select(video).merge(x)
    array([[1. , 0. ],
           [0. , 1. ],
           [1. , 0.2],
           [0. , 3. ]])
    """

    keep: int | float = 0.25
    expansion: float = 1.0
    alpha: float = 0.7
    temporal: float = 0.8
    segment: float | None = 0.9
    least_segments: int = 8
    fill_segments: bool = True
    selection: Pick = "attn_div_v2"
    after: float = field(default=20 / 28, kw_only=True)

    name: ClassVar[str] = "flashvid"
    complexity: ClassVar[str] = "N n D + k N"
    reference: ClassVar[str] = "Fan et al., ICLR 2026, arXiv 2602.08024"
    parity: ClassVar[str] = "the authors' program: segments, picks, trees and clusters"
    program: ClassVar[Program | None] = Program("Fanziyang-v/FlashVID", "1d37422")
    as_published: ClassVar[dict[str, Any]] = {"expansion": 1.25, "inside": 0.3}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("expansion", self.expansion)
        require_share("alpha", self.alpha)
        for name in ("temporal", "segment"):
            cosine = getattr(self, name)
            if cosine is not None and not -1.0 <= cosine <= 1.0:
                raise ValueError(f"{name}: expected a cosine in [-1, 1], got {cosine!r}")
        require_whole("least_segments", self.least_segments, least=1)
        require_one_of("selection", self.selection, PICKS)

    @property
    def needs(self) -> frozenset[str]:
        """The tokens, and their attention where picks look at it."""
        return frozenset({"features"} if self.selection == "div" else {"features", "attention"})

    @property
    def counted_from(self) -> CountedFrom:
        """The features: trees decide how many roots there are to round."""
        return "features"

    def budget(self, size: int, frames: int = 1) -> int:
        """About how many, frame by frame; see `Method.budget`."""
        return frames * self._of_frame(size // frames)[0]

    def left(self, size: int, share: float) -> int:
        """As many, rounded up."""
        return math.ceil(size * share - (0.0 if self.published else 1e-9))

    def _of_frame(self, n: int) -> tuple[int, int]:
        """Tokens of a frame in all, and those of them that are picked."""
        slack = 0.0 if self.published else 1e-9
        whole = math.ceil(min(float(n), n * self.share(n) * self.expansion - slack))
        return whole, min(whole, math.ceil(whole * self.alpha - slack))

    def choose_video(
        self, tokens: Tokens, k: int, noise: Sequence[Array] | None = None
    ) -> Selection:
        """Segment by segment; `noise`, an array a clustered frame, is for its densities."""
        video = in_time(constant(widened(tokens.features)), tokens.times)
        xp, (times, n, _) = namespace(video), shape_of(video)
        spend, picks = self._of_frame(n)
        means = frame_means(video)
        ranges = [(0, times)]
        if self.segment is not None:
            least = self.least_segments if self.fill_segments else 1
            ranges = spans(cuts(likeness(means), least, self.segment))
        attention = None
        if "attention" in self.needs:
            attention = xp.reshape(widened(tokens.attention), (times, n))
        about = [
            xp.broadcast_to(xp.mean(means[a:b, :], axis=0), (b - a, int(means.shape[-1])))
            for a, b in ranges
        ]
        picked = to_numpy(
            picks_of_frames(video, attention, xp.concat(about, axis=0), picks, self.selection)
        )
        draws = iter(noise or ())
        source, target, weight = [], [], []
        for start, stop in ranges:
            part = _Segment(video[start:stop, ...])
            part.merge(self, picked[start:stop], spend, draws)
            source.append(part.source + start * n)
            target.append(part.target + start * n)
            weight.append(part.weight)
        goes = np.concatenate(target)
        whole = index_dtype(xp)
        return sharing(
            Selection.of(like(np.unique(goes), video, dtype=whole), tokens.size),
            Shares(
                like(np.concatenate(source), video, dtype=whole),
                like(goes, video, dtype=whole),
                like(np.concatenate(weight), video, dtype=wide(xp)),
            ),
        )


def picks_of_frames(
    video: Array, attention: Array | None, about: Array, count: int, selection: Pick
) -> Array:
    """The picks (T, count) of each frame, in the order they are made.

    Parameters
    ----------
    video
        Tokens (T, n, D).
    attention
        (T, n); may be None for ``"div"``.
    about
        The mean token (T, D) of each frame's segment.
    count
        How many of each frame, at most n.
    selection
        See `FlashVID`.
    """
    xp, (times, n, width) = namespace(video), shape_of(video)
    if selection == "attn" or count == 0:
        scores = video[..., 0] if attention is None else attention
        return xp.astype(top(scores, count), index_dtype(xp))
    weight = xp.ones((times, n), dtype=wide(xp), device=video.device)
    if selection != "div":
        weight = weight * xp.astype(attention, wide(xp))
    if selection == "attn_div_v2":
        towards = [
            (xp.astype(video[a:b, ...], wide(xp)) @ about[a:b, :, None])[..., 0]
            for a, b in few_frames(video, times)
        ]
        weight = weight * xp.concat(towards, axis=0)
    # Compared within a frame only: brought to about 1, and rounded, so that ties are ties.
    largest = xp.max(xp.abs(weight), axis=-1, keepdims=True)
    weight = settled(weight / xp.where(largest > 0, largest, xp.ones_like(largest)))
    step = max(1, TOGETHER // (n * max(n, width)))
    ranges = [(low, min(low + step, times)) for low in range(0, times, step)]
    few = [_spread_picks(video[a:b, ...], weight[a:b, :], count) for a, b in ranges]
    return xp.concat(few, axis=0)


def _spread_picks(video: Array, weight: Array, count: int) -> Array:
    """Of each frame, tokens far from each other by (1 - cos) times the taken one's weight."""
    xp, (times, n, _) = namespace(video), shape_of(video)
    directions = unit(video)
    apart = 1.0 - settled(directions @ xp.matrix_transpose(directions))
    # A column of M is one weight times a column of `apart`: its order turns where that is negative.
    second = min(1, n - 1)
    reach = weight * xp.astype(smallest(apart, second + 1)[..., second], weight.dtype)
    if bool(xp.any(weight < 0)):
        far = xp.astype(-smallest(-apart, second + 1)[..., second], weight.dtype)
        reach = xp.where(weight < 0, weight * far, reach)
    places = xp.arange(n, dtype=index_dtype(xp), device=video.device)
    taken = xp.zeros((times, n), dtype=xp.bool, device=video.device)
    frames = xp.arange(times, dtype=places.dtype, device=video.device)
    rows = xp.reshape(apart, (times * n, n))
    picks = []
    for turn in range(count):
        best = xp.argmax(xp.where(taken, xp.full_like(reach, -xp.inf), reach), axis=-1)
        best = xp.astype(best, places.dtype)[:, None]
        picks.append(best)
        taken = taken | (places == best)
        row = xp.take(rows, best[:, 0] + n * frames, axis=0)
        gap = weight * xp.astype(row, weight.dtype)
        reach = gap if turn == 0 else xp.minimum(reach, gap)
    return xp.concat(picks, axis=-1)


@dataclass
class _Segment:
    """A segment's tokens (L, n, D), and what goes into what of them, counted over the segment."""

    tokens: Array
    source: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    target: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    weight: Numbers = field(default_factory=lambda: np.zeros(0))

    def add(self, source: Numbers, target: Numbers, weight: Any) -> None:
        """Let tokens go into others."""
        self.source = np.concatenate([self.source, source])
        self.target = np.concatenate([self.target, target])
        self.weight = np.concatenate([self.weight, np.broadcast_to(weight, source.shape)])

    def merge(self, method: FlashVID, picked: Numbers, spend: int, noise: Iterator[Array]) -> None:
        """Keep the picks (L, A) and merge the others, to about `spend` tokens a frame."""
        length, n, _ = shape_of(self.tokens)
        first = n * np.arange(length)[:, None]
        picks = (first + picked).ravel()
        self.add(picks, picks, 1.0)
        merged = (spend - picked.shape[-1]) * length
        free = np.ones(length * n, dtype=bool)
        free[picks] = False
        if merged == 0 or not free.any():
            return
        if method.published and length == 1:
            free[:] = True
        root, weight = np.arange(length * n), np.ones(length * n)
        if length > 1:
            root, weight = _trees(method, self.tokens, free.reshape(length, n), spend)
        share = merged / int((free & (root == np.arange(length * n))).sum())
        goes, part = np.arange(length * n), np.ones(length * n)
        for own, grown in _grown(self.tokens, free, root, weight) if share < 1 else ():
            count = math.ceil(len(own) * share - (0.0 if method.published else 1e-9))
            centres, cluster = density_clusters(
                grown,
                count,
                min(NEIGHBOURS, count),
                noise=next(noise, None),
                check_finite=False,
            )
            joins = to_numpy(cluster)
            goes[own] = own[to_numpy(centres)[joins]]
            part[own] = 1.0 / np.bincount(joins, minlength=count)[joins]
        source = np.flatnonzero(free)
        target = goes[root[source]]
        told = ~np.isin(target, picks)
        self.add(source[told], target[told], (weight[source] * part[root[source]])[told])


def _grown(
    tokens: Array, free: Numbers, root: Numbers, weight: Numbers
) -> Iterator[tuple[Numbers, Array]]:
    """The roots of each frame that has any, and what becomes of them with all their trees."""
    xp, (length, n, width) = namespace(tokens), shape_of(tokens)
    flat, whole = xp.reshape(tokens, (length * n, width)), index_dtype(xp)
    members = np.flatnonzero(free)
    members = members[np.argsort(root[members], kind="stable")]
    goes = root[members]
    step = max(1, TOGETHER // (n * width))
    for first in range(0, length, step):
        frames = n * np.arange(first, min(first + step, length) + 1)
        own = slice(*np.searchsorted(goes, frames[[0, -1]]).tolist())
        roots = np.unique(goes[own])
        shares = Shares(
            like(members[own], flat, dtype=whole),
            like(goes[own], flat, dtype=whole),
            like(weight[members[own]], flat),
        )
        chosen = Selection.of(like(roots, flat, dtype=whole), length * n)
        grown = sharing(chosen, shares).merge(flat)
        for low, high in pairwise(np.searchsorted(roots, frames).tolist()):
            if high > low:
                yield roots[low:high], grown[low:high, :]


def _trees(method: FlashVID, video: Array, free: Numbers, spend: int) -> tuple[Numbers, Numbers]:
    """For every token (L n,) of a segment, the root of its tree and its weight there."""
    xp, (length, n, width) = namespace(video), shape_of(video)
    # Every frame has as many tokens that are free.
    places = np.nonzero(free)[1].reshape(length, -1)
    tokens = xp.reshape(video, (length * n, width))
    best, parent = np.full((length, n), -1.0), np.zeros((length, n), dtype=np.int64)
    step = max(1, TOGETHER // (places.shape[1] * max(places.shape[1], width)))
    for low in range(1, length, step):
        high = min(low + step, length)
        few = places[low - 1 : high] + n * np.arange(low - 1, high)[:, None]
        rows = xp.take(tokens, like(few.ravel(), video), axis=0)
        directions = xp.reshape(unit(rows), (*few.shape, width))
        cosine = settled(directions[1:, ...] @ xp.matrix_transpose(directions[:-1, ...]))
        nearest = to_numpy(xp.argmax(cosine, axis=-1))
        np.put_along_axis(best[low:high], places[low:high], to_numpy(xp.max(cosine, axis=-1)), -1)
        at = np.take_along_axis(places[low - 1 : high - 1], nearest, axis=-1)
        np.put_along_axis(parent[low:high], places[low:high], at, -1)
    joins = best > method.temporal
    room = length * (n - spend)
    if joins.sum() > room:
        level = np.sort(best.ravel())[::-1][room - 1] if room else np.inf
        joins = best > max(level, -1.0 + 1e-6)
    root = np.arange(length * n).reshape(length, n)
    children = np.zeros(length * n)
    for t in range(1, length):
        above = parent[t] + (t - 1) * n
        np.add.at(children, above[joins[t]], 1.0)
        root[t] = np.where(joins[t], root.ravel()[above], root[t])
    flat = root.ravel()
    # The program counts a token that joins as one, whatever had joined it before.
    size = 1.0 + children if method.published else np.bincount(flat, minlength=length * n)
    return flat, 1.0 / size[flat]
