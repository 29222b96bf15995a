"""EVS: the tokens of a video that changed most since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur.core.arrays import constant, namespace, widened
from secateur.core.frames import first_everywhere
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Program
from secateur.core.methods.video import VideoMethod
from secateur.core.order import first_of
from secateur.core.segments import cosine_in_time, in_time
from secateur.core.selection import Selection


@dataclass(frozen=True)
class EVS(VideoMethod):
    r"""Efficient video sampling: drop what stands still.

    .. math:: d_{ti} = 1 - \cos(x_{ti}, x_{t-1,i}), \qquad d_{0i} = 255

    and the k tokens of largest d are kept, of the whole video, so the first frame is kept whole
    and k is at least n. A token is compared with the frame before as it was, kept or not. A
    frame may lose all its tokens.

    Parameters
    ----------
    keep
        How many tokens to keep: a share of the video's, or a count for each frame.

    Notes
    -----
    O(N D) time for N = T n tokens. Picks are listed in the order of their places; ties go to the
    earlier token. An image, a video of one frame, is kept whole. On Qwen3-VL, as in the program,
    the features of its first layers are joined to those of the input.

    Published: the share of the tokens is cut to a whole number as it stands in floating point,
    so that 0.1 of 1000, had as 1 - 0.9, are 99; by default numbers within rounding of a whole
    one are that one. The paper works on pixels; the program, and this, on embeddings.

    References
    ----------
    N. Bagrov et al., "Efficient Video Sampling", NVIDIA 2025, arXiv 2510.14624.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.0]])
    >>> kept = sc.EVS(keep=0.75).select(sc.Tokens(features=x, frames=2))
    >>> kept.indices, kept.per_frame(2)
    (array([0, 1, 3]), array([2, 1]))
    """

    name: ClassVar[str] = "evs"
    complexity: ClassVar[str] = "N D"
    reference: ClassVar[str] = "Bagrov et al., 2025, arXiv 2510.14624"
    parity: ClassVar[str] = "vLLM's program, by the authors' company: kept tokens"
    program: ClassVar[Program | None] = Program(
        "vllm-project/vllm", "v0.32.0", "vllm/multimodal/video_prune/evs.py"
    )

    @property
    def needs(self) -> frozenset[str]:
        """The tokens alone."""
        return frozenset({"features"})

    @property
    def looks_deep(self) -> bool:
        """As the program does."""
        return True

    @property
    def positions(self) -> Literal["original", "compact"] | None:
        """The program leaves them; see `Method.positions`."""
        return "original" if self.published else None

    def budget(self, size: int, frames: int = 1) -> int:
        """The share of a video, at least one frame; see `Method.budget`."""
        if self.published and isinstance(self.keep, float):
            return max(size // frames, int(size * self.keep))
        return max(size // frames, super().budget(size, frames))

    def choose_videos(self, tokens: Tokens, k: int) -> Selection:
        """The k most changed; see `VideoMethod.choose`."""
        video = in_time(constant(widened(tokens.features)), tokens.times)
        changed = first_everywhere(1.0 - cosine_in_time(video), 255.0)
        xp = namespace(changed)
        scores = xp.reshape(changed, (*tokens.batch_shape, tokens.size))
        kept = xp.sort(first_of(-scores, k), axis=-1)
        return Selection.of(kept, tokens.size, scores=scores)
