"""FastVID: salient tokens of every frame, and centres that take in the rest of a segment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.core.arrays import (
    Array,
    constant,
    descending,
    index_dtype,
    like,
    namespace,
    resolve_keep,
    shape_of,
    to_numpy,
    top,
    wide,
    widened,
)
from secateur.core.budget import spread
from secateur.core.density import density_peaks
from secateur.core.inputs import Tokens
from secateur.core.methods.base import (
    CountedFrom,
    Program,
    require_one_of,
    require_share,
    require_whole,
)
from secateur.core.methods.video import VideoMethod
from secateur.core.order import nearest_direction
from secateur.core.segments import cuts, frame_means, in_time, likeness, spans
from secateur.core.selection import Selection, Shares, sharing

Variant = Literal["parallel", "plain", "qwen"]
VARIANTS = ("parallel", "plain", "qwen")
NEIGHBOURS = 4
TOGETHER = 1 << 21
"""Cosines of a segment's tokens with centres that are worked out at once, about."""

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class FastVID(VideoMethod):
    r"""Dynamic density pruning: segments of like frames, salient tokens, and density peaks.

    The video is cut into segments by `secateur.core.segments.cuts` of neighbouring frames'
    cosines. Of k tokens a frame, :math:`m = \lfloor k \cdot \text{context} \rfloor` are context
    and the rest salient: those of highest attention in each frame, kept as they are. The context
    tokens of a segment of L frames stand in its anchor frames, every `stride`-th counted back
    from its last: the density peaks (`secateur.density_peaks`, 4 neighbours) of what is not
    salient there. For each anchor frame, every non-salient token of the whole segment joins the
    peak c of largest cosine, and

    .. math:: x_c' = w x_c + \frac{1 - w}{q} \sum_{i \text{ joined } c} x_i, \qquad
        w = \max \Bigl( \frac 1 {q + 1}, \beta \Bigr)

    where q tokens joined. So a token goes once into each anchor frame of its segment.

    Parameters
    ----------
    keep
        How many tokens to keep: a share of every frame's, or a count for each frame.
    segments
        How many segments there are at least.
    cut
        Cosine of neighbouring frames below which they belong to different segments.
    context
        Share of the context tokens.
    stride
        Every how many frames of a segment is an anchor.
    beta
        The least weight of a centre in what it becomes.
    variant
        ``"parallel"``, as for LLaVA-OneVision: k and m for every frame, a centre joins itself
        too. ``"plain"``, as for LLaVA-Video: k L and m L for a segment, spread evenly, remainders
        to the first frames of salient and to the last of context tokens; no centre joins any of
        its own frame's. ``"qwen"``, as for Qwen2.5-VL: as plain, and of frames more alike than
        `same` to the next, only the last of a run keeps tokens, at most n / 2 of context and n
        in all; what is beyond that is lost.
    same
        Cosine of neighbouring frames above which they are one run; for ``"qwen"``.

    Notes
    -----
    O(N n D / stride) time for density, O(N m L D) for merging, N = T n tokens; no more than a
    segment's tokens by an anchor's centres are in memory. Frames are compared by their
    `frame_features`, by their mean token where there are none. Scores and cosines are worked
    out in the tokens' precision, at least float32. Picks are listed in place order.
    ``selection.merge(features)`` gives what the kept tokens became; a joined token's weights
    over all anchors of its segment sum to less than one, so norms are not kept.

    Published: shares are rounded down (n r, then k d, then m L by the number of anchors), so up
    to an anchor's worth of tokens a segment is lost, and a segment whose anchors get m each by
    chance is merged frame by frame; by default all of k T are spent, and what an anchor frame
    has no room for goes to the other frames. The program draws noise against equal densities;
    here equals go to the lower index.

    References
    ----------
    L. Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models",
    NeurIPS 2025, arXiv 2503.11187.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[4.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [4.0, 0.0], [0.0, 3.0]])
    >>> video = sc.Tokens(features=x, frames=2, attention=np.array([9, 1, 1, 1, 9, 1.0]))
    >>> kept = sc.FastVID(keep=2, segments=1, cut=0.0, context=0.5).select(video)
    >>> kept.indices
    array([0, 3, 4, 5])
    >>> kept.merge(x)
    array([[4. , 0. ],
           [0.1, 1.1],
           [4. , 0. ],
           [0. , 3. ]])
    """

    keep: int | float = 0.1
    segments: int = 8
    cut: float = 0.9
    context: float = 0.4
    stride: int = 4
    beta: float = 0.6
    variant: Variant = "parallel"
    same: float = 0.95

    name: ClassVar[str] = "fastvid"
    complexity: ClassVar[str] = "N n D + k N D"
    reference: ClassVar[str] = "Shen et al., NeurIPS 2025, arXiv 2503.11187"
    parity: ClassVar[str] = (
        "the authors' programs for LLaVA: segments, density, kept and merged tokens; Qwen's "
        "variant: its definition"
    )
    program: ClassVar[Program | None] = Program("LunarShen/FastVID", "a40a109")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("segments", self.segments, least=1)
        require_share("context", self.context)
        require_whole("stride", self.stride, least=1)
        require_share("beta", self.beta)
        require_one_of("variant", self.variant, VARIANTS)
        for name in ("cut", "same"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"{name}: expected a cosine, got nan")

    @property
    def needs(self) -> frozenset[str]:
        """The tokens and their attention."""
        return frozenset({"features", "attention"})

    @property
    def optional(self) -> frozenset[str]:
        """What frames are compared by."""
        return frozenset({"frame_features"})

    @property
    def counted_from(self) -> CountedFrom:
        """The size, but where rounding or runs of frames lose tokens."""
        loses = self.variant == "qwen" or (self.published and self.variant == "parallel")
        return "features" if loses else "size"

    def budget(self, size: int, frames: int = 1) -> int:
        """The same for every frame, at most; see `Method.budget`."""
        return frames * self._of_frame(size // frames)

    def _of_frame(self, n: int) -> int:
        if self.published and isinstance(self.keep, float):
            return max(1, int(n * self.keep))
        return resolve_keep(self.keep, n)

    def choose_video(self, tokens: Tokens, k: int, noise: Array | None = None) -> Selection:
        """Segment by segment; `noise` (T, n - salient) is drawn for densities, times 1e-6."""
        video = in_time(constant(widened(tokens.features)), tokens.times)
        xp, (times, n, _) = namespace(video), shape_of(video)
        attention = to_numpy(descending(xp.reshape(widened(tokens.attention), (times, n))))
        frames = tokens.frame_features
        alike = likeness(frame_means(video) if frames is None else widened(frames))
        kept, shares = [], []
        for start, stop in spans(cuts(alike, self.segments, self.cut)):
            run = to_numpy(alike)[start : stop - 1] > self.same
            salient, context = self.shares_of_frames(stop - start, n, run)
            segment = video[start:stop, ...]
            chosen = [
                np.sort(row[:c]) for row, c in zip(attention[start:stop], salient, strict=True)
            ]
            own = None if noise is None else noise[start:stop, ...]
            centres = _peaks(segment, chosen, context, own)
            merged = self._merged(segment, chosen, centres, context)
            salients = np.concatenate([t * n + each for t, each in enumerate(chosen)])
            taking = np.concatenate([t * n + each for t, each in enumerate(centres)])
            kept.append(start * n + np.concatenate([salients, taking]))
            itself = np.stack([salients, salients, np.ones(len(salients))])
            shares.append(
                np.concatenate((itself, *merged), axis=-1)
                + np.array([start * n, start * n, 0])[:, None]
            )
        indices = np.sort(np.concatenate(kept))
        source, target, weight = np.concatenate(shares, axis=-1)
        whole = index_dtype(xp)
        chosen_all = Selection.of(like(indices, video, dtype=whole), tokens.size)
        return sharing(
            chosen_all,
            Shares(
                like(source.astype(np.int64), video, dtype=whole),
                like(target.astype(np.int64), video, dtype=whole),
                like(weight, video, dtype=wide(xp)),
            ),
        )

    def shares_of_frames(self, length: int, n: int, run: Numbers) -> tuple[list[int], list[int]]:
        """Salient and context tokens of each frame of a segment.

        Parameters
        ----------
        length
            How many frames it has, L.
        n
            How many tokens each has.
        run
            True (L - 1,) where a frame is more alike than `same` to the next.
        """
        k = self._of_frame(n)
        slack = 0.0 if self.published else 1e-9
        open_frames = list(range(length))
        if self.variant == "qwen":
            open_frames = [t for t in open_frames if t == length - 1 or not run[t]]
        last_first = open_frames[::-1]
        anchors = last_first[:: self.stride]
        if self.variant == "parallel":
            m = int(k * self.context + slack)
            salient = [k - m] * length
            total = m * length
            if self.published:
                total = total // len(anchors) * len(anchors)
        else:
            total = int(k * length * self.context + slack)
            if self.variant == "qwen":
                total = max(1, total)
            salient = [0] * length
        context = [0] * length
        room = n // 2 if self.variant == "qwen" else n
        for among in (anchors, [t for t in last_first if t not in anchors]):
            left = total - sum(context)
            if self.variant == "qwen" and among is not anchors:
                break
            most = [room - salient[t] for t in among]
            for t, count in zip(among, spread(left, most), strict=True):
                context[t] = count
        if self.variant != "parallel":
            most = [n - context[t] for t in open_frames]
            for t, count in zip(open_frames, spread(k * length - total, most), strict=True):
                salient[t] = count
        return salient, context

    def _merged(
        self, segment: Array, salient: list[Numbers], centres: list[Numbers], context: list[int]
    ) -> list[Numbers]:
        """Contributions (3, M) to the centres of each frame: source, target, weight."""
        length, n, _ = shape_of(segment)
        free = np.ones((length, n), dtype=bool)
        for t, each in enumerate(salient):
            free[t, each] = False
        m = int(self._of_frame(n) * self.context)
        parts = []
        joining = self._joining(segment, centres)
        for t, own in enumerate(centres):
            if not len(own):
                continue
            alone = self.published and self.variant == "parallel" and context[t] == m
            members = free & (np.arange(length) == t)[:, None] if alone else free.copy()
            if self.variant != "parallel":
                members[t, own] = False
            places = np.flatnonzero(members)
            joins = joining[t][places]
            q = np.bincount(joins, minlength=len(own))
            itself = np.where(q > 0, np.maximum(1.0 / (q + 1), self.beta), 1.0)
            each = (1.0 - itself) / np.maximum(q, 1)
            parts.append(np.stack([t * n + own, t * n + own, itself]))
            parts.append(np.stack([places, t * n + own[joins], each[joins]]))
        return parts

    def _joining(self, segment: Array, centres: list[Numbers]) -> dict[int, Numbers]:
        """For each frame with centres, the one of them that every token (L n,) is nearest to."""
        xp, (length, n, width) = namespace(segment), shape_of(segment)
        tokens = xp.reshape(segment, (length * n, width))
        found: dict[int, Numbers] = {}
        group: list[int] = []
        for t, own in enumerate(centres):
            group += [t] if len(own) else []
            several = sum(len(centres[each]) for each in group)
            if group and (several * length * n > TOGETHER or t == length - 1):
                places = np.concatenate([each * n + centres[each] for each in group])
                peaks = xp.take(tokens, like(places, segment), axis=0)
                ends = np.cumsum([len(centres[each]) for each in group]).tolist()
                nearest = nearest_direction(tokens, peaks, ends)
                found |= {t: to_numpy(each) for t, each in zip(group, nearest, strict=True)}
                group = []
        return found


def _peaks(
    segment: Array, salient: list[Numbers], context: list[int], noise: Array | None
) -> list[Numbers]:
    """Of each frame of a segment (L, n, D), so many density peaks of what is not salient."""
    xp, n = namespace(segment), int(segment.shape[-2])
    found = []
    for t, count in enumerate(context):
        free = np.ones(n, dtype=bool)
        free[salient[t]] = False
        rest = np.flatnonzero(free)
        if count:
            own = xp.take(segment[t, ...], like(rest, segment), axis=0)
            score = density_peaks(
                own,
                NEIGHBOURS,
                noise=None if noise is None else noise[t, ...],
                check_finite=False,
            )
            rest = rest[np.sort(to_numpy(top(score, count)))]
        found.append(rest[:count])
    return found
