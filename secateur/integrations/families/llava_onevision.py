"""LLaVA-OneVision and LLaVA-Video: crops of an image, pooled frames of a video."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.integrations.encoded import Indices, Part, Seen, Tensor, Visual, whole
from secateur.integrations.families.base import HALVES, TOWERED, Family

if TYPE_CHECKING:
    pass


LLAVA_ONEVISION = Family(
    "LLaVA-OneVision",
    TOWERED,
    folds=True,
    lays_out=True,
    modalities=("image", "video"),
    normalisation=HALVES,
)


def video_visual(
    features: Tensor, frames: int, side: int, observed: Mapping[str, Tensor]
) -> Visual:
    """A video of pooled frames and their newline, with what was observed (frames, side * side)."""
    parts, size = [], side * side
    for frame in range(frames):
        part = whole((side, side), frame * size)
        for name, x in observed.items():
            setattr(part, name, x[frame])
        parts.append(part)
    newline = (frames * size, np.arange(frames * size))
    return Visual(modality="video", features=features, parts=parts, separators=[newline])


def by_token(x: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """What the model does to features (P, N, C), done to x (P, N) or (P, N, C)."""
    if x.ndim == 3:
        return pool(x)
    return pool(x[..., None])[..., 0]


def unpadded(layout: tuple[int, int, int, int], side: int) -> tuple[int, int]:
    """Rows and columns of the grid of crops without its padding."""
    rows, columns, top, left = layout
    return rows * side - 2 * top, columns * side - 2 * left


def shrunk(layout: tuple[int, int, int, int], side: int, most: int) -> tuple[int, int]:
    """Rows and columns of the grid of crops that the language model sees."""
    tall, wide = unpadded(layout, side)
    ratio = math.sqrt(tall * wide / (most * side**2))
    if ratio > 1.1:
        tall, wide = int(tall // ratio), int(wide // ratio)
    return tall, wide


def image_visual(
    features: Tensor,
    layout: tuple[int, int, int, int] | None,
    most: int,
    side: int,
    seen: Seen,
    first: int,
    packed: Callable[[Tensor], Tensor],
) -> Visual:
    """An image whose overview is the picture `first` of those seen.

    `packed` does to maps (P, N[, C]) of its pictures what the model does to their features;
    `most` is how many crops' worth of tokens an image may have.
    """
    overview = whole((side, side))
    for name, x in seen.of(first).items():
        setattr(overview, name, x)
    start = side * side
    if layout is None:
        return Visual(
            modality="image",
            features=features,
            parts=[overview],
            separators=[(start, np.arange(start))],
        )
    rows, columns, _, _ = layout
    tall, wide = shrunk(layout, side, most)
    at: Indices = start + np.arange(tall)[:, None] * (wide + 1) + np.arange(wide)
    expected = start + tall * (wide + 1)
    if int(features.shape[0]) != expected:
        raise ValueError(
            f"image_sizes: an overview and {rows} x {columns} crops of {side} x {side} tokens make "
            f"{expected} features, the model returned {int(features.shape[0])}"
        )
    crops = Part(index=at.ravel(), grid=(tall, wide))
    pictures = slice(first, first + 1 + rows * columns)
    for name, x in seen.of(pictures).items():
        setattr(crops, name, packed(x)[start:])
    return Visual(
        modality="image",
        features=features,
        parts=[overview, crops],
        separators=[(start + row * (wide + 1) + wide, at[row]) for row in range(tall)],
        crops=1 + rows * columns,
    )


def most_crops(config: Any) -> int:
    """How many crops' worth of tokens an image may have."""
    return int(str(config.vision_aspect_ratio).removeprefix("anyres_max_"))
