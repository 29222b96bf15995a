"""LLaVA-NeXT (1.6): an overview and crops of each image, unpadded, with newline tokens.

The language model sees the overview's grid, then one grid of all crops side by side, without the
rows or columns that were padding, with a newline token at the end of each row. A method chooses
within the overview and within each crop; together they share K times `keep` tokens, K the
overview and its crops. A newline stays as long as its row keeps a token, and counts in no budget.
`positions=None` means ``"original"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from secateur.integrations.family import Family, Indices, Part, Tensor, Visual, whole
from secateur.integrations.tower import Seen, Tower

if TYPE_CHECKING:
    from secateur.integrations.guidance import TextEncoder


class LlavaNext(Family):
    """Where LLaVA-NeXT keeps what pruning needs."""

    name: ClassVar[str] = "LLaVA-NeXT"
    visual_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )
    offers: ClassVar[frozenset[str]] = frozenset(
        {"features", "grid", "attention", "attention_shallow", "keys"}
    )

    def check(self, model: Any) -> None:
        """CLIP and SigLIP towers."""
        Tower.check(model)

    def tower(self, model: Any) -> Any:
        """The CLIP or SigLIP tower."""
        return model.model.vision_tower

    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
    ) -> list[Visual]:
        """An overview and crops each image; see `Family.encode`."""
        if inputs.get("image_sizes") is None:
            raise ValueError("image_sizes: expected beside pixel_values")
        tower = Tower(model, inputs)
        given = {name: inputs[name] for name in self.visual_inputs if inputs.get(name) is not None}
        with tower.watch(wants, encoder) as seen:
            out = model.model.get_image_features(**given, return_dict=True)
        found, first = [], 0
        for features, size in zip(out.pooler_output, inputs["image_sizes"], strict=True):
            layout = crop_layout(model.config, size, tower.side)
            found.append(crops_visual(features, layout, tower.side, seen, first))
            first += 1 + layout[0] * layout[1]
        return found


def crop_layout(config: Any, size: Any, side: int) -> tuple[int, int, int, int]:
    """Rows and columns of crops, then the tokens cut off at the top and at the left as padding."""
    from transformers.image_processing_utils import select_best_resolution

    height, width = (int(x) for x in size)
    best = select_best_resolution([height, width], config.image_grid_pinpoints)
    rows, columns = (int(x) // config.vision_config.image_size for x in best)
    tall, wide = rows * side, columns * side
    # As the model unpads: the picture was scaled to fit, and centred.
    if width / height > wide / tall:
        return rows, columns, (tall - int(round(height * (wide / width), 7))) // 2, 0
    return rows, columns, 0, (wide - int(round(width * (tall / height), 7))) // 2


def crops_visual(
    features: Tensor, layout: tuple[int, int, int, int], side: int, seen: Seen, first: int
) -> Visual:
    """An image of `crop_layout`, whose overview is the picture `first` of those seen."""
    rows, columns, top, left = layout
    overview = _observed(whole((side, side)), seen, first, np.arange(side * side))
    tall, wide = rows * side - 2 * top, columns * side - 2 * left
    start = side * side
    parts, separators = [overview], []
    at = start + np.arange(tall)[:, None] * (wide + 1) + np.arange(wide)
    for crop, (down, across) in enumerate(np.ndindex(rows, columns)):
        ys = _within(down, side, top, tall)
        xs = _within(across, side, left, wide)
        index = at[np.ix_(ys, xs)]
        if index.size == 0:
            continue
        inside = ((ys + top) % side)[:, None] * side + (xs + left) % side
        part = Part(index=index.ravel(), grid=(len(ys), len(xs)))
        parts.append(_observed(part, seen, first + 1 + crop, inside.ravel()))
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
    )


def _within(crop: int, side: int, cut: int, length: int) -> Indices:
    """The rows (or columns) of the unpadded grid that come from one row of crops."""
    edges = np.clip(np.array([crop * side, (crop + 1) * side]) - cut, 0, length)
    return np.arange(*next(pairwise(edges)))


def _observed(part: Part, seen: Seen, picture: int, tokens: Indices) -> Part:
    """The part, with what was observed at some tokens of a picture."""
    for name, x in seen.of(picture).items():
        setattr(part, name, x[tokens])
    return part
