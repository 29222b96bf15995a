"""GLM-4.1V to 4.6V: as Qwen-VL, but frames of a video are images between the marks of a video."""

from __future__ import annotations

import numpy as np

from secateur.integrations.encoded import Indices
from secateur.integrations.families.base import OBSERVED, Family

GLM_4V = Family(
    "GLM-4V",
    OBSERVED | {"pixels"},
    modalities=("image", "video"),
    joins="a convolution joins 2 x 2 patches to a token",
)


def in_videos(
    ids: Indices, start: int, end: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """True (B, T) between the tokens that `start` a video and `end` it."""
    return np.cumsum(ids == start, axis=-1) > np.cumsum(ids == end, axis=-1)
