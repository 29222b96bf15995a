"""LLaVA-NeXT (1.6): an overview and crops of each image, unpadded, with newline tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.integrations.encoded import Indices, Part, Seen, Tensor, Visual, whole
from secateur.integrations.families.base import TOWERED, Family

if TYPE_CHECKING:
    pass


Flags = np.ndarray[Any, np.dtype[np.bool_]]

LLAVA_NEXT = Family("LLaVA-NeXT", TOWERED, projects=True, folds=True, lays_out=True)


def crop_layout(config: Any, size: Any, side: int) -> tuple[int, int, int, int]:
    """Rows and columns of crops, then the tokens cut off at the top and at the left as padding."""
    height, width = (int(x) for x in size)
    best = best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = (int(x) // config.vision_config.image_size for x in best)
    tall, wide = rows * side, columns * side
    # As the model unpads: the picture was scaled to fit, and centred.
    if width / height > wide / tall:
        return rows, columns, (tall - int(round(height * (wide / width), 7))) // 2, 0
    return rows, columns, 0, (wide - int(round(width * (tall / height), 7))) // 2


def shown_of(layout: tuple[int, int, int, int], side: int) -> Flags:
    """True (P, side * side) at what is no padding, of the overview and the crops of a layout."""
    rows, columns, top, left = layout
    inside = np.zeros((rows * side, columns * side), dtype=bool)
    inside[top : rows * side - top, left : columns * side - left] = True
    crops = inside.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side * side)
    return np.concatenate([np.ones((1, side * side), dtype=bool), crops])


def best_resolution(size: tuple[int, int], choices: Iterable[Sequence[int]]) -> Sequence[int]:
    """The (height, width) among the choices that loses least of a picture, then pads least."""

    def fit(choice: Sequence[int]) -> tuple[int, int]:
        scale = min(choice[0] / size[0], choice[1] / size[1])
        shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return shown, shown - choice[0] * choice[1]

    return max(choices, key=fit)


def crops_visual(
    features: Tensor,
    layout: tuple[int, int, int, int],
    side: int,
    seen: Seen,
    first: int,
    pictures: Tensor = None,
) -> Visual:
    """An image of `crop_layout`, whose overview is the picture `first` of those seen.

    With the features of all `pictures` (P, N, D) that were seen it also has its padded crops.
    """
    rows, columns, top, left = layout
    overview = _observed(whole((side, side)), seen, first, np.arange(side * side))
    tall, wide = rows * side - 2 * top, columns * side - 2 * left
    start = side * side
    parts, padded, separators = [overview], [overview], []
    at = start + np.arange(tall)[:, None] * (wide + 1) + np.arange(wide)
    for crop, (down, across) in enumerate(np.ndindex(rows, columns)):
        ys = _within(down, side, top, tall)
        xs = _within(across, side, left, wide)
        index = at[np.ix_(ys, xs)].ravel()
        inside = (((ys + top) % side)[:, None] * side + (xs + left) % side).ravel()
        picture = first + 1 + crop
        if index.size:
            part = Part(index=index, grid=(len(ys), len(xs)))
            parts.append(_observed(part, seen, picture, inside))
        if pictures is not None:
            placed = np.full(side * side, -1)
            placed[inside] = index
            part = Part(index=placed, grid=(side, side), features=pictures[picture])
            padded.append(_observed(part, seen, picture, np.arange(side * side)))
    for row in range(tall):
        separators.append((start + row * (wide + 1) + wide, at[row]))
    expected = start + tall * (wide + 1)
    if int(features.shape[0]) != expected:
        raise ValueError(
            f"image_sizes: an overview and {rows} x {columns} crops of {side} x {side} tokens make "
            f"{expected} features, the model returned {int(features.shape[0])}"
        )
    return Visual(
        modality="image",
        features=features,
        parts=parts,
        separators=separators,
        crops=1 + rows * columns,
        padded=padded if pictures is not None and (top or left) else [],
    )


def _within(crop: int, side: int, cut: int, length: int) -> Indices:
    """The rows (or columns) of the unpadded grid that come from one row of crops."""
    edges = np.clip(np.array([crop * side, (crop + 1) * side]) - cut, 0, length)
    return np.arange(*next(pairwise(edges)))


def _observed(part: Part, seen: Seen, picture: int, tokens: Indices) -> Part:
    """The part, with what was observed at some tokens of a picture."""
    for name, x in seen.of(picture).items():
        setattr(part, name, x[tokens])
    part.class_state = None if seen.class_state is None else seen.class_state[picture]
    return part
