"""VidCom2: the least ordinary tokens of every frame, and more of them in unlike frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.core.arrays import (
    Array,
    constant,
    index_dtype,
    like,
    namespace,
    to_numpy,
    wide,
    widened,
)
from secateur.core.inputs import Tokens
from secateur.core.methods.base import (
    CountedFrom,
    Program,
    require_positive,
    require_share,
)
from secateur.core.methods.video import VideoMethod
from secateur.core.order import first_of, settled
from secateur.core.segments import few_frames, in_time, safely_wide
from secateur.core.selection import Selection

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Of the Gaussians that are summed to say how near a token is to a mean."""

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class VidCom2(VideoMethod):
    r"""Video compression commander: what is unlike the video and unlike its frame stays.

    On the half of the channels that vary least over the video, tokens of length one u and
    means :math:`\bar u` of the video, :math:`\bar u_t` of each frame,

    .. math::
        g(u, c) &= \sum_{a \in \{1/8, 1/4, 1/2, 1, 2\}} \exp(-|u - c|^2 / 2a) \\
        V_{ti} &= g(u_{ti}, \bar u), \quad F_{ti} = g(u_{ti}, \bar u_t) \\
        p &= \operatorname{softmax}_t \bigl( -\operatorname{mean}_i V_{ti} / \text{temperature}
            \bigr) \\
        k_t &= \max \bigl( 1, \operatorname{round} (n \min(1, r (1 + p_t - 1/T))) \bigr)

    and each frame keeps the :math:`k_t` tokens of lowest V + F, r being the share to keep.

    Parameters
    ----------
    keep
        How many tokens to keep: a share r of the video's, or a count for each frame.
    exact
        Whether exactly T times the tokens of `keep` stay, as vLLM has it: of too many, those of
        largest V + F go, and of too few, the dropped ones of smallest V + F return, wherever in
        the video they are; a frame may then lose all. Otherwise, as the authors have it, the
        number follows from the frames: about that, never below one a frame. On Qwen3-VL vLLM
        also joins the features of the first layers to those of the input, and the authors do not.
    channels
        Share of the channels that count, those of lowest variance.
    temperature
        Sharpness of the softmax over frames.

    Notes
    -----
    O(N D) time for N = T n tokens; sums are taken in float64. Picks are listed in the order of
    their places, ties go to the earlier token. The mean of p is 1 / T, so in a long video one
    frame may get up to twice its share and the others lose little.

    Published: a share of the tokens is cut to a whole number as it stands in floating point, at
    least a token a frame. The authors' layout with a newline token after each row moves the
    newlines behind their frame, which no selection of visual tokens can say.

    References
    ----------
    X. Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video
    Large Language Models", EMNLP 2025, arXiv 2505.14454.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.eye(4)[[0, 0, 0, 1, 0, 0, 2, 3]]
    >>> method = sc.VidCom2(keep=0.5, channels=1.0, exact=True)
    >>> method.select(sc.Tokens(features=x, frames=2)).indices
    array([3, 4, 6, 7])
    """

    keep: int | float = 0.25
    exact: bool = False
    channels: float = 0.5
    temperature: float = 0.01

    name: ClassVar[str] = "vidcom2"
    complexity: ClassVar[str] = "N D"
    reference: ClassVar[str] = "Liu et al., EMNLP 2025, arXiv 2505.14454"
    parity: ClassVar[str] = "the authors' program and vLLM's: scores, shares of frames, kept tokens"
    program: ClassVar[Program | None] = Program(
        "xuyang-liu16/VidCom2", "944a17d", "exact=True: vLLM 0.32.0's vidcom2.py"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("channels", self.channels, zero=False)
        require_positive("temperature", self.temperature)

    @property
    def needs(self) -> frozenset[str]:
        """The tokens alone."""
        return frozenset({"features"})

    @property
    def looks_deep(self) -> bool:
        """As vLLM does."""
        return self.exact

    @property
    def positions(self) -> Literal["original", "compact"] | None:
        """As vLLM has it they stay, the authors' program counts anew; see `Method.positions`."""
        return "original" if self.published and self.exact else super().positions

    @property
    def counted_from(self) -> CountedFrom:
        """The size where it is exact; else the features say how many each frame keeps."""
        return "size" if self.exact else "features"

    def budget(self, size: int, frames: int = 1) -> int:
        """What `exact` spends, otherwise about what is kept; see `Method.budget`."""
        if self.published and isinstance(self.keep, float):
            # vLLM is told what to drop, and takes that from 1 again.
            spent = int(size * (1.0 - (1.0 - self.keep)))
            return min(size, max(frames, spent))
        return max(frames, super().budget(size, frames))

    def choose_video(self, tokens: Tokens, k: int) -> Selection:
        """The least ordinary of each frame; see `VideoMethod.choose`."""
        features = constant(widened(tokens.features))
        low = least_varying(features, int(self.channels * int(features.shape[-1])))
        over_video, in_frame = ordinariness(features, tokens.times, low)
        share = min(1.0, self.share(tokens.size // tokens.times))
        scales = frame_scales(over_video, share, self.temperature)
        ordinary = over_video + in_frame
        kept = self._kept(to_numpy(settled(ordinary)), to_numpy(scales), k)
        xp = namespace(features)
        return Selection.of(
            like(np.flatnonzero(kept), features, dtype=index_dtype(xp)),
            tokens.size,
            scores=xp.reshape(-ordinary, (tokens.size,)),
            info={"scales": scales},
        )

    def _kept(self, score: Numbers, scales: Numbers, k: int) -> Numbers:
        """True (N,) at what stays, from V + F (T, n) and the frames' shares (T,)."""
        n = score.shape[-1]
        # A half goes to the even count, in whatever order its parts were added.
        counts = np.clip(np.rint(np.round(scales * n, 9)), 1, n)
        rank = np.argsort(np.argsort(score, axis=-1, kind="stable"), axis=-1, kind="stable")
        kept: Numbers = (rank < counts[:, None]).ravel()
        if not self.exact:
            return kept
        # What the frames chose comes first, each by its score: the first k are the answer.
        exact: Numbers = np.zeros_like(kept)
        exact[np.lexsort((score.ravel(), ~kept))[:k]] = True
        return exact


def least_varying(features: Array, count: int) -> Array:
    """The `count` channels (C,) of lowest variance over the tokens (N, D) of a video, ascending.

    At least one; ties to the lowest channel. O(N D) time.

    >>> import numpy as np
    >>> least_varying(np.array([[1.0, 0.0, 5.0], [2.0, 0.0, 1.0]]), 2)
    array([0, 1])
    """
    xp, size = namespace(features), int(features.shape[0])
    ranges = list(few_frames(features[:, None, :], size))

    def rows(start: int, stop: int) -> Array:
        return xp.astype(features[start:stop, :], wide(xp))

    def squares(apart: Array) -> Array:
        return xp.sum(apart * apart, axis=0)

    mean = xp.sum(xp.stack([xp.sum(rows(a, b), axis=0) for a, b in ranges]), axis=0) / size
    variance = xp.sum(xp.stack([squares(rows(a, b) - mean) for a, b in ranges]), axis=0)
    largest = xp.max(variance)
    relative = variance / xp.where(largest > 0, largest, xp.ones_like(largest))
    return xp.sort(first_of(settled(relative), max(1, count)), axis=-1)


def ordinariness(features: Array, frames: int, channels: Array) -> tuple[Array, Array]:
    r"""How near each token is to the mean of the video, and to that of its frame.

    Parameters
    ----------
    features
        Tokens (T n, D) of one video.
    frames
        T.
    channels
        Which channels (C,) count.

    Returns
    -------
    over_video, in_frame : Array
        V and F (T, n) of `VidCom2`, in (0, 5] each.

    Notes
    -----
    O(N C) time, O(N) memory beside a few frames. Tokens of length one are not built: their inner
    products with a mean are those of the tokens, over their lengths.
    """
    xp, video = namespace(features), in_time(features, frames)
    ranges = list(few_frames(video[..., : int(channels.shape[0])], frames))

    def counting(start: int, stop: int) -> Array:
        return safely_wide(xp.take(video[start:stop, ...], channels, axis=-1))

    one_over, of_frame = [], []
    for start, stop in ranges:
        few = counting(start, stop)
        length = xp.sqrt(xp.vecdot(few, few))
        there = length > 0
        inverse = xp.where(there, 1.0 / xp.where(there, length, xp.ones_like(length)), 0.0 * length)
        one_over.append(inverse)
        of_frame.append((inverse[:, None, :] @ few)[:, 0, :] / int(few.shape[1]))
    frame_centres = xp.concat(of_frame, axis=0)
    centre = xp.mean(frame_centres, axis=0)
    to_video, to_frame = [], []
    for (start, stop), inverse in zip(ranges, one_over, strict=True):
        few = counting(start, stop)
        own = xp.matrix_transpose(frame_centres[start:stop, None, :])
        to_video.append((few @ centre) * inverse)
        to_frame.append((few @ own)[..., 0] * inverse)
    square = xp.astype(xp.concat(one_over, axis=0) > 0, wide(xp))  # of a token of length one, or 0
    return (
        _nearness(square - 2.0 * xp.concat(to_video, axis=0) + xp.vecdot(centre, centre)),
        _nearness(
            square
            - 2.0 * xp.concat(to_frame, axis=0)
            + xp.vecdot(frame_centres, frame_centres)[:, None]
        ),
    )


def _nearness(squared: Array) -> Array:
    """The sum of Gaussians of squared distances, which rounding may have left below zero."""
    xp = namespace(squared)
    squared = xp.clip(squared, min=0.0)
    near = xp.zeros_like(squared)
    for width in BANDWIDTHS:
        near = near + xp.exp(-squared / (2.0 * width))
    return near


def frame_scales(over_video: Array, share: float, temperature: float = 0.01) -> Array:
    """The share of its tokens that each frame keeps (..., T), from V (..., T, n)."""
    xp = namespace(over_video)
    unlike = -xp.mean(over_video, axis=-1)
    weight = xp.exp((unlike - xp.max(unlike, axis=-1, keepdims=True)) / temperature)
    p = weight / xp.sum(weight, axis=-1, keepdims=True)
    return xp.clip(share * (1.0 + p - xp.mean(p, axis=-1, keepdims=True)), max=1.0)
