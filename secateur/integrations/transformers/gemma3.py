"""Gemma 3: pictures of one size, of whose patches squares are averaged into a token.

The language model lets the tokens of an image see each other both ways, as `token_type_ids` tell;
these are shortened with everything else. Its sliding windows count the tokens that are left, so a
window reaches further back over a pruned image. Attention is that of the tower's last layer, whose
states become features: what a patch receives on average from its picture, averaged, as keys are,
over the patches that become one token. A crop that the processor adds (pan and scan) is an image
by itself, with a budget of its own. `positions=None` means ``"original"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from secateur.core.inputs import REQUESTS, Request
from secateur.integrations.encoded import BY_TOKEN, Tensor, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.families.tiles import GEMMA3, tiles_visuals
from secateur.integrations.transformers.models import Adapter, UnsupportedModelError
from secateur.integrations.transformers.shorten import Prompt, short_ids
from secateur.integrations.transformers.towers import FoldedTower

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class Gemma3(Adapter):
    """Where Gemma 3 keeps what pruning needs."""

    family: ClassVar[Family] = GEMMA3
    visual_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    types: ClassVar[str] = "token_type_ids"

    def check(self, model: Any) -> None:
        """A SigLIP tower."""
        kind = model.config.vision_config.model_type
        if kind != "siglip_vision_model":
            raise UnsupportedModelError(model, f"its vision tower is a {kind}, we know SigLIP")

    def both_ways(self, model: Any) -> frozenset[str]:
        """All kinds."""
        return frozenset(self.language_model(model).config.layer_types)

    def encoded(self, model: Any, ids: Tensor, prompt: Prompt) -> dict[str, Any]:
        """Shortened `input_ids` and the features that were kept, each as if an image of its own.

        So that `generate` can repeat those of a prompt for beams, whatever each image kept.
        """
        short = short_ids(self, model, ids, prompt)
        visual = torch.from_numpy(prompt.visual).to(prompt.embeds.device)
        kept = BaseModelOutputWithPooling(pooler_output=prompt.embeds[visual][:, None])
        return {"input_ids": short, "mm_encoder_outputs": {"image": kept}}

    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """One grid a picture; see `Adapter.encode`."""
        config, values = model.config, inputs["pixel_values"]
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        fold = side // round(config.mm_tokens_per_image**0.5)
        projector = model.model.multi_modal_projector
        tower = FoldedTower(model.model.vision_tower, vision, projector, fold)
        with tower.watch(wants, encoder, requests) as seen:
            features = model.model.get_image_features(values, return_dict=True).pooler_output
        observed = {n: x for n in BY_TOKEN if (x := getattr(seen, n)) is not None}
        if "pixels" in wants:
            observed["pixels"] = pixels.restore(values)
        return tiles_visuals(features, [1] * len(features), observed)
