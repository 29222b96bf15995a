"""LLaVA-NeXT (1.6): an overview and crops of each image, unpadded, with newline tokens.

The language model sees the overview's grid, then one grid of all crops side by side, without the
rows or columns that were padding, with a newline token at the end of each row. A method chooses
within the overview and within each crop; together they share K times `keep` tokens, K the
overview and its crops. A newline stays as long as its row keeps a token, and counts in no budget.
Where tokens fold inside the encoder, each picture's do by themselves, and one stands where the
first of those stood that it stands for, padding left aside.
Methods whose `sees_padding` says so choose from the crops as the tower saw them; what they keep of
the padding is not there to go on.
`positions=None` means ``"original"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from secateur.core.acts import Folds
from secateur.core.inputs import REQUESTS, Request
from secateur.core.selection import Selection
from secateur.integrations.encoded import Tensor, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.families.llava_next import (
    LLAVA_NEXT,
    crop_layout,
    crops_visual,
    shown_of,
)
from secateur.integrations.families.newlines import newlines_of, with_newlines
from secateur.integrations.observing import watching
from secateur.integrations.transformers.models import Adapter
from secateur.integrations.transformers.towers import Tower, folded_pictures, stacked

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class LlavaNext(Adapter):
    """Where LLaVA-NeXT keeps what pruning needs."""

    family: ClassVar[Family] = LLAVA_NEXT
    visual_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
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
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """An overview and crops each image; see `Adapter.encode`."""
        if inputs.get("image_sizes") is None:
            raise ValueError("image_sizes: expected beside pixel_values")
        tower = Tower(model, inputs)
        given = {name: inputs[name] for name in self.visual_inputs if inputs.get(name) is not None}
        with tower.watch(wants, encoder, requests) as seen, watching() as watch:
            projected = watch.output(tower.projector)
            out = model.model.get_image_features(**given, return_dict=True)
        found, first = [], 0
        for features, size in zip(out.pooler_output, inputs["image_sizes"], strict=True):
            layout = crop_layout(model.config, size, tower.side)
            visual = crops_visual(features, layout, tower.side, seen, first, projected[0])
            visual.project = model.model.multi_modal_projector
            found.append(with_newlines(visual, newlines_of(model.config) or "rows"))
            first += 1 + layout[0] * layout[1]
        return found

    def encode_folding(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        method: Folds,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """The overview and each crop folded by itself; see `Adapter.encode_folding`."""
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise ValueError("image_sizes: expected beside pixel_values")
        tower = Tower(model, inputs)
        layouts = [crop_layout(model.config, size, tower.side) for size in sizes]
        shown = [torch.from_numpy(shown_of(layout, tower.side)) for layout in layouts]
        counts = [len(own) for own in shown]
        pictures = stacked(inputs["pixel_values"], counts)
        together = torch.cat(shown).to(pictures.device)
        folded = folded_pictures(tower, pictures, wants, method, requests, together)
        packed, _ = model.model.pack_image_features(
            folded.features.split(counts),
            sizes,
            vision_feature_select_strategy="full",
            image_newline=model.model.image_newline,
        )
        found, first = [], 0
        for features, layout, own in zip(packed, layouts, shown, strict=True):
            visual = crops_visual(features, layout, tower.side, folded.seen, first)
            left = folded.left[first : first + len(own)]
            visual.chosen = [
                among(flags, at) for flags, at in zip(left, own, strict=True) if at.any()
            ]
            found.append(with_newlines(visual, newlines_of(model.config) or "rows"))
            first += len(own)
        return found


def among(left: Tensor, shown: Tensor) -> Selection:
    """Which of the tokens that are shown are left."""
    inside = left[shown.to(left.device)]
    return Selection.of(inside.nonzero()[:, 0], len(inside))
