"""Qwen-VL: patches that merge two by two, frames of a video, windows of a tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from secateur.integrations.encoded import Part, Tensor, whole
from secateur.integrations.families.base import HALVES, OBSERVED, Family

if TYPE_CHECKING:
    pass


OFFERED = OBSERVED | {"pixels"}
MERGER = "a merger joins 2 x 2 patches to a token"
"""See `Family.joins`."""

STATES = frozenset({"states"})
"""What the merger takes, averaged over the patches of a token."""

QWEN2_VL = Family(
    "Qwen2-VL",
    OFFERED,
    when_needed=STATES,
    skips=True,
    joins=MERGER,
    modalities=("image", "video"),
)
QWEN2_5_VL = replace(QWEN2_VL, name="Qwen2.5-VL")
QWEN3_VL = replace(QWEN2_VL, name="Qwen3-VL", normalisation=HALVES)
QWEN3_5 = replace(QWEN3_VL, name="Qwen3.5")


def frame_parts(
    frames: int,
    grid: tuple[int, int],
    observed: Mapping[str, Tensor],
    start: int,
    images: Tensor | None,
) -> list[Part]:
    """The frames of a video, or the one of an image, which begins at `start` of the observed."""
    size, parts = grid[0] * grid[1], []
    for frame in range(frames):
        part = whole(grid, frame * size)
        for name, x in observed.items():
            setattr(part, name, x[start + frame * size : start + (frame + 1) * size])
        part.pixels = None if images is None else images[frame]
        parts.append(part)
    return parts


def unpatched(patches: Tensor, grid: Sequence[int], config: Any) -> Tensor:
    """Channels (t, 3, H, W) from patches (t * h * w, 3 * 2 * p * p) in the order they merge.

    Of the frames that a patch spans, the first.
    """
    frames, height, width = grid
    merge, patch = config.spatial_merge_size, config.patch_size
    blocks = (frames, height // merge, width // merge, merge, merge)
    x = patches.view(*blocks, config.in_channels, config.temporal_patch_size, patch, patch)
    x = x[:, :, :, :, :, :, 0].permute(0, 5, 1, 3, 6, 2, 4, 7)
    return x.reshape(frames, config.in_channels, height * patch, width * patch)
