"""SmolVLM, SmolVLM2 and Idefics3: tiles with text between, of whose patches squares become a token.

Attention is that of the tower's last layer, whose states become features: what a patch receives on
average from its tile, averaged, as keys are, over the patches that become one token. The text
between tiles stays. The tiles of an image share K times `keep` tokens, K their number, the whole
picture, which comes last, included. The processor makes a video into frames with text between,
which are images of one tile. `positions=None` means ``"original"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from secateur.core.inputs import REQUESTS, Request
from secateur.integrations.encoded import BY_TOKEN, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.families.tiles import (
    SMOLVLM,
    runs,
    tiles_by_image,
    tiles_visuals,
)
from secateur.integrations.transformers.models import Adapter
from secateur.integrations.transformers.towers import FoldedTower

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class SmolVLM(Adapter):
    """Where SmolVLM and Idefics3 keep what pruning needs."""

    family: ClassVar[Family] = SMOLVLM
    visual_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_attention_mask")

    def language_model(self, model: Any) -> Any:
        """The decoder, with `layers`."""
        return model.model.text_model

    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """One grid a tile; see `Adapter.encode`."""
        given = {name: inputs[name] for name in self.visual_inputs if inputs.get(name) is not None}
        values = given["pixel_values"].flatten(0, 1)
        real = (values != 0).flatten(1).any(dim=1)
        mask = given.get("pixel_attention_mask")
        if mask is not None and not bool(mask.flatten(0, 1)[real].all()):
            raise ValueError(
                "pixel_attention_mask: hides a part of a picture, which the tower then does not "
                "read whole; let the processor resize pictures (do_resize=True)"
            )
        own, vision = model.model, model.config.vision_config
        tower = FoldedTower(own.vision_model, vision, own.connector, model.config.scale_factor)
        with tower.watch(wants, encoder, requests) as seen:
            out = model.model.get_image_features(**given, return_dict=True).pooler_output
        flat = out if isinstance(out, torch.Tensor) else torch.cat(list(out))
        features = flat.reshape(int(real.sum()), -1, flat.shape[-1])
        ids = inputs["input_ids"].detach().cpu().numpy()
        placed = runs(ids == model.config.image_token_id)
        observed = {n: x for n in BY_TOKEN if (x := getattr(seen, n)) is not None}
        if "pixels" in wants:
            observed["pixels"] = pixels.restore(values[real])
        return tiles_visuals(features, tiles_by_image(ids, placed, features.shape[1]), observed)
