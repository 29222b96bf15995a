"""Tiles: pictures of one size that an image is cut into, of whose patches squares become a token.

InternVL shows the tiles of an image one after the other, the thumbnail last; Idefics3 and SmolVLM
put their row and column before each. No token joins two tiles, so a method chooses within each.
Gemma 3 has pictures of one size and folds their patches alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import numpy as np

from secateur.integrations.encoded import Tensor, Visual, whole
from secateur.integrations.families.base import HALVES, OBSERVED, Family

SHUFFLE = "a shuffle of pixels joins squares of patches to a token"
"""See `Family.joins`."""

INTERNVL = Family(
    "InternVL",
    OBSERVED | {"pixels"},
    normalisation=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    joins=SHUFFLE,
)

GEMMA3 = Family(
    "Gemma 3",
    OBSERVED | {"pixels"},
    normalisation=HALVES,
    joins="squares of patches are averaged to a token",
)

GEMMA4 = Family(
    "Gemma 4",
    joins="patches are averaged to a token by where they stand",
)

SMOLVLM = Family("SmolVLM and Idefics3", OBSERVED | {"pixels"}, normalisation=HALVES, joins=SHUFFLE)

Run = tuple[int, int, int]
"""A row of placeholders without a gap: its prompt, first column and the column after its last."""


def runs(placeholder: np.ndarray[Any, np.dtype[np.bool_]]) -> list[Run]:
    """The rows of placeholders in prompts (B, T), prompt after prompt."""
    found: list[Run] = []
    for row, own in enumerate(placeholder):
        edges = np.flatnonzero(np.diff(np.pad(own, 1).astype(np.int8)))
        found += [(row, int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return found


def tiles_of(run: Run, size: int) -> int:
    """How many tiles of `size` tokens stand in a row of placeholders."""
    row, start, stop = run
    if (stop - start) % size:
        raise ValueError(
            f"image placeholders and features disagree: prompt {row} has {stop - start} in a row, "
            f"a tile has {size} features"
        )
    return (stop - start) // size


def tiles_by_image(
    ids: np.ndarray[Any, np.dtype[np.int64]], found: Sequence[Run], size: int
) -> list[int]:
    """How many tiles each image of prompts (B, T) has, where text stands between tiles.

    A mark stands before each tile and after an image, so one stands between two tiles of an image
    and two between images. It is what follows a prompt's last tile.
    """
    counts: list[int] = []
    last = {row: stop for row, _, stop in found}
    before = (-1, 0)
    for row, start, stop in found:
        tiles = tiles_of((row, start, stop), size)
        mark = ids[row, last[row]] if last[row] < ids.shape[1] else -1
        if before[0] == row and (ids[row, before[1] : start] == mark).sum() == 1:
            counts[-1] += tiles
        else:
            counts.append(tiles)
        before = (row, stop)
    return counts


def folded(x: Tensor, fold: int) -> Tensor:
    """Means (P, n / fold^2, ...) over squares of the patches (P, n, ...) of square pictures."""
    side = isqrt(x.shape[1]) // fold
    return x.unflatten(1, (side, fold, side, fold)).mean(dim=(2, 4)).flatten(1, 2)


def tiles_visuals(
    features: Tensor, counts: Sequence[int], observed: Mapping[str, Tensor]
) -> list[Visual]:
    """Images of so many tiles each, from all tiles' features (P, n, D) and what was observed.

    The tiles of an image share a budget.
    """
    pictures, size = features.shape[:2]
    if sum(counts) != pictures:
        raise ValueError(
            f"image placeholders and features disagree: the prompts have room for {sum(counts)} "
            f"tiles of {size} features, {pictures} were given"
        )
    found, first = [], 0
    for count in counts:
        parts = []
        for tile in range(count):
            part = whole((isqrt(size), isqrt(size)), tile * size)
            for name, x in observed.items():
                setattr(part, name, x[first + tile])
            parts.append(part)
        own = features[first : first + count].flatten(0, 1)
        crops = count if count > 1 else 0
        found.append(Visual(modality="image", features=own, parts=parts, crops=crops))
        first += count
    return found
