"""Where a video is cut: between frames that differ, or so that most of it may stand still."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    index_dtype,
    like,
    namespace,
    shape_of,
    to_numpy,
    top,
    whole,
    wide,
)
from secateur.core.order import settled
from secateur.core.similarity import unit

BLOCK = 1 << 18
"""Numbers that frames may hold while they are compared in the dtype of sums: what a cache holds."""


def in_time(x: Array, frames: int) -> Array:
    """Tokens (..., T n, D), or scores (..., T n), with an axis of the frames: (..., T, n, D).

    >>> import numpy as np
    >>> in_time(np.zeros((6, 4)), 3).shape
    (3, 2, 4)
    """
    if x.ndim < 1 or frames < 1 or int(x.shape[-2 if x.ndim > 1 else -1]) % frames:
        raise ValueError(f"frames: expected a divisor of the tokens, got {frames!r}")
    batch, (size, width) = shape_of(x)[:-2], shape_of(x)[-2:]
    return namespace(x).reshape(x, (*batch, frames, size // frames, width))


def cosine_in_time(video: Array, lag: int = 1) -> Array:
    r"""How alike each token is to that at its place `lag` frames before.

    .. math:: c_{ti} = \cos(x_{t + \text{lag}, i}, x_{ti})

    Parameters
    ----------
    video
        Tokens (..., T, n, D) of T frames; a zero vector has cosine 0 with everything.
    lag
        How many frames lie between, at least 1.

    Returns
    -------
    Array
        Cosines (..., T - lag, n) in the dtype of sums, rounded to three quarters of its bits.

    Notes
    -----
    O(T n D) time; a few frames at a time are in memory in the dtype of sums.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.segments import cosine_in_time
    >>> cosine_in_time(np.array([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]]]))
    array([[1.],
           [0.]])
    """
    xp = namespace(video)
    times = shape_of(video)[-3]
    if whole(lag) < 1:
        raise ValueError(f"lag: expected a whole number of at least 1, got {lag!r}")
    if times <= lag:
        return xp.astype(video[..., :0, :, 0], wide(xp))
    parts = []
    for start, stop in few_frames(video, times - lag):
        few = safely_wide(video[..., start : stop + lag, :, :])
        length = xp.sqrt(xp.vecdot(few, few))
        both = length[..., lag:, :] * length[..., :-lag, :]
        inner = xp.vecdot(few[..., lag:, :, :], few[..., :-lag, :, :])
        parts.append(inner / xp.where(both > 0, both, xp.ones_like(both)))
    return settled(xp.concat(parts, axis=-2))


def few_frames(video: Array, times: int) -> Iterator[tuple[int, int]]:
    """Ranges of the first `times` frames of a video (..., T, n, D), within `BLOCK`."""
    step = max(1, BLOCK // math.prod(shape_of(video)[-2:]))
    for start in range(0, times, step):
        yield start, min(start + step, times)


def safely_wide(x: Array) -> Array:
    """Vectors in the dtype of sums whose squares stay within its range."""
    xp = namespace(x)
    return unit(x) if x.dtype == wide(xp) else xp.astype(x, wide(xp))


def cuts(alike: Array, least: int = 8, below: float | None = 0.9) -> Array:
    r"""Where segments end: after frames that the next is unlike, and after as many as are asked.

    A video is cut between frames t and t + 1 where :math:`s_t < \text{below}`; where that gives
    fewer than `least` segments, also at the lowest others.

    Parameters
    ----------
    alike
        How alike s (..., T - 1) each frame and the next are.
    least
        How many segments there are at least; at most T.
    below
        Likeness under which two frames belong apart; None: only `least` decides.

    Returns
    -------
    Array
        True (..., T - 1) where a segment ends after frame t. Ties: the earlier.

    References
    ----------
    L. Shen et al., "FastVID", NeurIPS 2025, arXiv 2503.11187; Z. Fan et al., "FlashVID", ICLR
    2026, arXiv 2602.08024. The two say it differently and mean the same.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.segments import cuts
    >>> cuts(np.array([0.95, 0.2, 0.99, 0.93]), least=3, below=0.9)
    array([False,  True, False,  True])
    """
    xp = namespace(alike)
    if whole(least) < 1:
        raise ValueError(f"least: expected a whole number of at least 1, got {least!r}")
    gaps = int(alike.shape[-1])
    lowest = top(-alike, min(least - 1, gaps))
    places = xp.arange(gaps, dtype=lowest.dtype, device=lowest.device)
    cut = xp.any(lowest[..., :, None] == places, axis=-2)
    return cut if below is None else cut | (alike < below)


def spans(cut: Array) -> list[tuple[int, int]]:
    """The segments of one video as ranges of frames, from its `cuts` (T - 1,).

    >>> import numpy as np
    >>> spans(np.array([False, True, False]))
    [(0, 2), (2, 4)]
    """
    ends = [0, *(np.flatnonzero(to_numpy(cut)) + 1).tolist(), int(cut.shape[-1]) + 1]
    return list(pairwise(ends))


def still_windows(still: Array, most: int = 1024) -> tuple[Array, int]:
    r"""Windows of a video within which the most tokens stand still throughout.

    A window of frames b..e saves

    .. math:: (e - b) \cdot \bigl| \{ i : \text{still}_{ti} \text{ for all } b \le t < e \} \bigr|

    tokens, if each place that stands still is said once. Of all ways to cut the video, one of
    largest total saving is found.

    Parameters
    ----------
    still
        True (T - 1, n) where token i of frame t + 1 is like that of frame t.
    most
        How many frames a window may have.

    Returns
    -------
    cut : Array
        True (T - 1,) where a window ends after frame t. Among cuts of equal saving, the last
        window is the shortest; so is, given that, the one before, and so on.
    saved : int
        The total saving.

    Notes
    -----
    Dynamic programming over the last frame, O(T min(T, most) n) time and O(T n) memory, on the
    host.

    References
    ----------
    K. Shao et al., "HoliTom", NeurIPS 2025, arXiv 2505.21334.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.segments import still_windows
    >>> still_windows(np.array([[True, True], [True, False], [False, False]]))
    (array([False,  True,  True]), 2)
    """
    if whole(most) < 1:
        raise ValueError(f"most: expected at least one frame a window, got {most!r}")
    host = to_numpy(still).astype(bool)
    times, n = len(host) + 1, host.shape[-1]
    best = np.zeros(times + 1, dtype=np.int64)
    start = np.zeros(times + 1, dtype=np.int64)
    # Row b of `alive`: the places that stood still from frame b up to the frame looked at.
    alive = np.zeros((times, n), dtype=bool)
    for last in range(times):
        first = max(0, last - most + 1)
        if last:
            alive[first:last] &= host[last - 1]
        alive[last] = True
        length = last - np.arange(first, last + 1)
        total = best[first : last + 1] + length * alive[first : last + 1].sum(axis=-1)
        # The shortest window first, and only a larger saving replaces.
        found = len(total) - 1 - int(np.argmax(total[::-1]))
        best[last + 1], start[last + 1] = total[found], first + found
    cut = np.zeros(times - 1, dtype=bool)
    place = int(start[times])
    while place > 0:
        cut[place - 1] = True
        place = int(start[place])
    return like(cut, still), int(best[times])


def likeness(frames: Array, *, check_finite: bool = True) -> Array:
    """How alike each of `frames` (..., T, C) and the next are: cosines (..., T - 1).

    >>> import numpy as np
    >>> likeness(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    array([1., 0.])
    """
    frames = checked(frames, "frames", "(..., T, C)", check_finite=check_finite)
    return cosine_in_time(frames[..., None, :])[..., 0]


def frame_means(video: Array) -> Array:
    """The mean token (..., T, D) of each frame of a video (..., T, n, D), in the dtype of sums."""
    xp, (times, n, _) = namespace(video), shape_of(video)[-3:]
    sums = [
        xp.sum(xp.astype(video[..., start:stop, :, :], wide(xp)), axis=-2)
        for start, stop in few_frames(video, times)
    ]
    return xp.concat(sums, axis=-2) / n


def counted(cut: Array) -> Array:
    """How many frames each of the segments of one video has, from its `cuts` (T - 1,)."""
    lengths = [stop - start for start, stop in spans(cut)]
    return like(np.asarray(lengths), cut, dtype=index_dtype(namespace(cut)))
