"""DyCoke: dropping what stands still, four frames at a time; a moving cache while decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from secateur.core.acts import Forgets
from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    index_dtype,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
    top,
    wide,
    widened,
)
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Program, require_share, require_whole
from secateur.core.methods.video import VideoMethod
from secateur.core.order import settled_cosine
from secateur.core.segments import cosine_in_time, in_time
from secateur.core.selection import Selection


@dataclass(frozen=True)
class DyCoke(VideoMethod, Forgets):
    r"""Dynamic compression of tokens: of four frames one stays whole.

    Frames come in fours. The second keeps the

    .. math:: m = \lfloor (1 - \text{drop}) \, n \rfloor

    tokens that are least like those at their places in the first, the fourth those least like
    the third, and the third those least like the first. Despite the published name, "temporal
    merging", nothing is averaged.

    Parameters
    ----------
    keep
        How many tokens to keep: a share of the video's, or a count for each frame; what it
        leaves beside the whole frames is shared evenly by the others, rounded down. Where the
        whole frames are more than that already, they are all that stays, but for a token each
        of the others. Plays no part where `drop` is given.
    drop
        Share of the tokens of a reduced frame to drop; the published 0.7 keeps 0.475 of a video.
    sight
        Share of the visual tokens that the newest token sees, while decoding, where its attention
        has moved (`moving_cache`); None: all, always. The authors have 0.2.
    after
        How many layers see all of them even then.
    moved
        Cosine of the attention at two steps under which it has moved.

    Notes
    -----
    O(N D) time for N = T n tokens. Picks are listed frame after frame, in a reduced frame the
    least alike first. An image, a video of one frame, is kept whole.

    Published: a last frame without its second is lost, and the third frame of the last four is
    kept whole (the program reduces it only where more frames follow); at most four frames,
    which the program fails on, are taken in the same way. By default every frame has its turn.
    While decoding, the last visual token is always in sight.

    References
    ----------
    K. Tao, C. Qin, H. You, Y. Sui and H. Wang, "DyCoke: Dynamic Compression of Tokens for Fast
    Video Large Language Models", CVPR 2025, arXiv 2411.15024.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.0]])
    >>> sc.DyCoke(drop=0.5).select(sc.Tokens(features=x, frames=2)).indices
    array([0, 1, 3])
    """

    drop: float | None = None
    sight: float | None = None
    after: int = 3
    moved: float = 0.9

    name: ClassVar[str] = "dycoke"
    complexity: ClassVar[str] = "N D"
    reference: ClassVar[str] = "Tao et al., CVPR 2025, arXiv 2411.15024"
    parity: ClassVar[str] = "the authors' program: kept tokens, and masks while decoding"
    program: ClassVar[Program | None] = Program("KD-TAO/DyCoke", "dd74634")
    as_published: ClassVar[Mapping[str, Any]] = {"drop": 0.7, "sight": 0.2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop is not None:
            require_share("drop", self.drop)
        if self.sight is not None:
            require_share("sight", self.sight)
        require_whole("after", self.after, least=1)
        if not -1.0 <= self.moved <= 1.0:
            raise ValueError(f"moved: expected a cosine in [-1, 1], got {self.moved!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The tokens alone."""
        return frozenset({"features"})

    def budget(self, size: int, frames: int = 1) -> int:
        """Whole and reduced frames together; see `Method.budget`."""
        return sum(self.per_frame(size // frames, frames))

    def per_frame(self, n: int, frames: int) -> list[int]:
        """How many of its n tokens each frame keeps."""
        turns = [self._turn(t, frames) for t in range(frames)]
        whole, reduced = turns.count("whole"), frames - turns.count("whole") - turns.count("lost")
        if self.drop is not None:
            few = int((1 - self.drop) * n + (0.0 if self.published else 1e-9))
        else:
            left = super().budget(n * frames, frames) - n * whole
            few = min(n, max(1, left // max(1, reduced)))
        counts = {"whole": n, "lost": 0}
        return [counts.get(turn, few) for turn in turns]

    def _turn(self, t: int, frames: int) -> str:
        """Whether a frame stays whole, is lost, or which one before it is compared with."""
        if self.published and t == frames - 1 and frames % 2 and frames > 1:
            return "lost"
        if t % 2:
            return "before"
        last = self.published and t + 2 >= frames - frames % 2
        return "before that" if t % 4 == 2 and not last else "whole"

    @property
    def forgets(self) -> bool:
        """Where `sight` says how much is seen."""
        return self.sight is not None

    @property
    def forgets_after(self) -> int:
        """As `after` says; see `Forgets.forgets_after`."""
        return self.after

    def in_sight(self, attention: Array, before: Array | None) -> Array:
        """By `moving_cache`; see `Forgets.in_sight`."""
        xp, keep = namespace(attention), 1.0 if self.sight is None else self.sight
        if not self.published:
            return moving_cache(attention, before, keep=keep, moved=self.moved)[0]
        last = xp.ones((1,), dtype=xp.bool, device=device(attention))
        if int(attention.shape[0]) == 1:
            return last
        before = None if before is None else before[:-1]
        seen = moving_cache(attention[:-1], before, keep=keep, moved=self.moved)[0]
        return xp.concat([seen, last], axis=-1)

    def choose_videos(self, tokens: Tokens, k: int) -> Selection:
        """Frame by frame; see `VideoMethod.choose`."""
        video = in_time(constant(widened(tokens.features)), tokens.times)
        times, n, _ = shape_of(video)[-3:]
        before, two_before = (to_numpy(cosine_in_time(video, lag)) for lag in (1, 2))
        batch = tokens.batch_shape
        parts = []
        for t, count in enumerate(self.per_frame(n, times)):
            turn = self._turn(t, times)
            alike = np.broadcast_to(np.arange(n), (*batch, n))
            if turn == "before":
                alike = before[..., t - 1, :]
            elif turn == "before that":
                alike = two_before[..., t - 2, :]
            parts.append(t * n + np.argsort(alike, axis=-1, kind="stable")[..., :count])
        indices = np.concatenate(parts, axis=-1)
        kept = like(indices, video, dtype=index_dtype(namespace(video)))
        return Selection.of(kept, tokens.size)


def moving_cache(
    attention: Array,
    before: Array | None = None,
    *,
    keep: float = 0.2,
    moved: float = 0.9,
) -> tuple[Array, Array]:
    """Which visual tokens the newest token may see, in the later layers, at a step of decoding.

    Where attention has moved since the step before, only the tokens of the highest attention
    stay in sight; where it has not, all do. Nothing leaves the cache: a hidden token may return.

    Parameters
    ----------
    attention
        The newest token's attention (..., V) to the V visual tokens, in the layer before, mean
        over the heads.
    before
        The same at the step before; None at the first step.
    keep
        Share of the visual tokens that stay in sight, rounded down; the published share is 0.2,
        its readme's 0.3.
    moved
        Cosine of the two under which attention has moved.

    Returns
    -------
    seen : Array
        True (..., V) at what stays in sight. Ties: the lower index.
    likeness : Array
        The cosine (...) of the two; 0 at the first step.

    Notes
    -----
    O(V log V) time. The published program never hides the last visual token, because it counts
    one token too few: give it all but that one.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.dycoke import moving_cache
    >>> moving_cache(np.array([0.1, 0.5, 0.2, 0.2]), keep=0.25)[0]
    array([False,  True, False, False])
    """
    require_share("keep", keep)
    attention = checked(attention, "attention", "(..., V)")
    xp, size = namespace(attention), int(attention.shape[-1])
    likeness = xp.zeros(shape_of(attention)[:-1], dtype=wide(xp), device=device(attention))
    if before is not None:
        if shape_of(before) != shape_of(attention):
            raise ValueError(
                f"before: expected shape {spell(attention.shape)}, got {spell(before.shape)}"
            )
        likeness = settled_cosine(attention[..., None, :], before[..., None, :])[..., 0, 0]
    places = top(attention, int(size * keep + 1e-9))
    seen = Selection.of(places, size).mask()
    return seen | (likeness >= moved)[..., None], likeness
