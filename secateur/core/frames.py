"""Frames of a video: how much each differs from those before, and what follows for budgets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur.core.arrays import (
    Array,
    checked,
    device,
    namespace,
    shape_of,
    shaped,
    to_numpy,
    whole,
)
from secateur.core.budget import allocate
from secateur.core.parameters import typed
from secateur.core.segments import cosine_in_time, in_time
from secateur.core.selection import Selection, Shares


@typed
def change(features: Array, frames: int, *, memory: int = 1, check_finite: bool = True) -> Array:
    r"""How much each frame differs from those before.

    .. math:: c_t = \frac 1 n \sum_i \Bigl( 1 - \max_{t - \text{memory} \le s < t}
        \cos(x_{ti}, x_{si}) \Bigr), \qquad c_0 = 1

    A token is compared with those at its own place; one that was seen before, within the
    memory, is not new.

    Parameters
    ----------
    features
        Tokens (..., T n, D), frame after frame.
    frames
        How many frames, T.
    memory
        How many frames before count.

    Returns
    -------
    Array
        Numbers (..., T) in [0, 2], in the dtype of sums. The first frame has 1: nothing was
        before it.

    Notes
    -----
    O(memory N D) time, O(N) memory beside a few frames.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.frames import change
    >>> change(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), 4)
    array([1., 0., 1., 0.])
    """
    features = checked(features, "features", "(..., N, D)", check_finite=check_finite)
    if whole(memory) < 1:
        raise ValueError(f"memory: expected a whole number of at least 1, got {memory!r}")
    video = in_time(features, frames)
    xp = namespace(video)
    alike = cosine_in_time(video)
    for lag in range(2, min(memory, frames - 1) + 1):
        further = xp.maximum(alike[..., lag - 1 :, :], cosine_in_time(video, lag))
        alike = xp.concat([alike[..., : lag - 1, :], further], axis=-2)
    return first_everywhere(1.0 - xp.mean(alike, axis=-1)[..., None], 1.0)[..., 0]


def first_everywhere(x: Array, value: float) -> Array:
    """Numbers (..., T - 1, n) of the frames but the first, with `value` for that: (..., T, n).

    >>> import numpy as np
    >>> first_everywhere(np.array([[0.5, 0.0]]), 1.0)
    array([[1. , 1. ],
           [0.5, 0. ]])
    """
    xp = namespace(x)
    *batch, _, n = shape_of(x)
    first = xp.full((*batch, 1, n), value, dtype=x.dtype, device=device(x))
    return xp.concat([first, x], axis=-2)


@typed
def allocate_in_time(
    features: Array,
    frames: int,
    total: int,
    *,
    least: int = 1,
    memory: int = 1,
    check_finite: bool = True,
) -> Array:
    """A budget of tokens shared out over time: more for frames unlike those before.

    Parameters
    ----------
    features
        Tokens (..., T n, D), frame after frame.
    frames
        How many frames, T.
    total
        How many tokens there are to share; all are spent.
    least
        What every frame gets, however little it differs; less where the total is less.
    memory
        How many frames before count, see `secateur.core.frames.change`.

    Returns
    -------
    Array
        Whole numbers (..., T) whose sum is `total`, none above n.

    Notes
    -----
    `secateur.allocate` in proportion to how much frames differ. In a still video the first
    frame gets all it can take beyond the floors; where it is full, the others share evenly.
    O(memory N D + T^2) time.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> video = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    >>> sc.allocate_in_time(video, 4, 5)
    array([2, 1, 1, 1])
    """
    features = shaped(features, "features", "(..., N, D)")
    scores = change(features, frames, memory=memory, check_finite=check_finite)
    size = int(features.shape[-2])
    if not 1 <= whole(total) <= size:
        raise ValueError(f"total: expected 1 to {size} tokens, got {total!r}")
    if whole(least) < 0:
        raise ValueError(f"least: expected a whole number of at least 0, got {least!r}")
    xp = namespace(scores)
    scores = xp.clip(scores, min=0.0)  # rounding may leave a still frame just below
    floor = min(least, total // frames)
    return allocate(scores, total, minimum=floor, maximum=size // frames, check_finite=False)


def joined(frames: Selection) -> Selection:
    """One selection from those (..., T) of the frames of a video, counted over the video.

    Picks are listed frame after frame, as each frame listed them. What a frame has one number
    of, such as `value`, stands in `info`, (..., T).

    >>> import numpy as np
    >>> from secateur.core.frames import joined
    >>> from secateur.core.selection import Selection
    >>> joined(Selection.of(np.array([[2, 0], [1, 2]]), 3)).indices
    array([2, 0, 4, 5])
    """
    xp = namespace(frames.indices)
    *batch, times, _ = shape_of(frames.indices)
    n = frames.size
    where = device(frames.indices)
    start = xp.arange(times, dtype=frames.indices.dtype, device=where)[:, None] * n

    def over_video(x: Array) -> Array:
        return xp.reshape(x, (*batch, times * int(x.shape[-1])))

    def moved(x: Array) -> Array:
        return over_video(xp.where(x < 0, x, x + xp.astype(start, x.dtype)))

    indices, count = moved(frames.indices), xp.sum(frames.count, axis=-1)
    longest = int(to_numpy(count).max(initial=0))
    padding = xp.astype(indices < 0, frames.indices.dtype)
    order = xp.argsort(padding, axis=-1, stable=True)[..., :longest]
    changes: dict[str, Any] = {
        "indices": xp.take_along_axis(indices, order, axis=-1),
        "count": xp.astype(count, frames.count.dtype),
        "size": times * n,
        "value": None,
        "upper_bound": None,
    }
    if frames.gains is not None:
        changes["gains"] = xp.take_along_axis(over_video(frames.gains), order, axis=-1)
    for name in ("scores", "fold_weights"):
        x = getattr(frames, name)
        changes[name] = None if x is None else over_video(x)
    if frames.folded is not None:
        changes["folded"] = moved(frames.folded)
    if frames.shares is not None:
        source, target, weight = frames.shares
        changes["shares"] = Shares(moved(source), moved(target), over_video(weight))
    info = dict(frames.info)
    for name in ("value", "upper_bound"):
        if getattr(frames, name) is not None:
            info[name] = getattr(frames, name)
    return replace(frames, **changes, info=info)
