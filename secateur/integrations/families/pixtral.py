"""The tower of Pixtral 12B and Mistral 3: images of any size, whose rows end in marks.

In a prompt a mark stands behind each row of an image: a break, and the image's end behind the last.
Marks count in no budget. Breaks stay as the setting of `newlines` says, the end always does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.integrations.encoded import Indices, Part, Tensor, Visual
from secateur.integrations.families.base import OBSERVED, Family
from secateur.integrations.families.newlines import Newlines, with_newlines

MISTRAL3 = Family(
    "Pixtral and Mistral 3",
    OBSERVED | {"pixels"},
    joins="a merger joins 2 x 2 patches to a token, and marks stand behind rows of them",
)

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def with_marks(placeholder: Flags) -> Flags:
    """Placeholders (B, T), and what stands behind each row of them."""
    behind = np.zeros_like(placeholder)
    behind[:, 1:] = placeholder[:, :-1]
    return placeholder | behind


def check_rows(placeholder: Flags, grids: Sequence[tuple[int, int]]) -> None:
    """Refuse prompts (B, T) whose rows of placeholders are not those of images of these grids."""
    shown = placeholder[with_marks(placeholder)]
    rows = [np.tile(np.arange(width + 1) < width, height) for height, width in grids]
    if not np.array_equal(shown, np.concatenate(rows)):
        listed = ", ".join(f"{height} x {width}" for height, width in grids[:8])
        raise ValueError(
            f"image placeholders and features disagree: the images have rows of {listed} "
            f"features, with a mark behind each, the prompts have {int(placeholder.sum())} "
            "placeholder tokens in other rows"
        )


def rows_visual(
    features: Tensor, marks: Tensor, grid: tuple[int, int], newlines: Newlines
) -> Visual:
    """An image of features (h * w, D), and of marks (h, D) as the language model embeds them."""
    height, width = grid
    laid = features.new_empty((height, width + 1, features.shape[-1]))
    laid[:, :-1], laid[:, -1] = features.unflatten(0, grid), marks
    at: Indices = np.arange(height)[:, None] * (width + 1) + np.arange(width)
    breaks = [(int(row[-1]) + 1, row) for row in at[:-1]]
    part = Part(index=at.ravel(), grid=grid)
    visual = Visual(modality="image", features=laid.flatten(0, 1), parts=[part], separators=breaks)
    visual = with_newlines(visual, newlines)
    visual.separators.append((int(at[-1, -1]) + 1, at.ravel()))
    return visual


def merged(x: Tensor, patches: tuple[int, int], merge: int) -> Tensor:
    """Means (h * w, ...) over the `merge` x `merge` patches, of (n, ...), that become a token.

    Patches that fill no square are left out, as the model leaves them.
    """
    height, width = (side // merge for side in patches)
    x = x.unflatten(0, patches)[: height * merge, : width * merge]
    x = x.unflatten(1, (width, merge)).unflatten(0, (height, merge))
    return x.mean(dim=(1, 3)).flatten(0, 1)
