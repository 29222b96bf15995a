"""Gemma 4: images of any size, of whose patches squares are averaged into a token.

The larger models let the tokens of an image see each other both ways in layers with sliding
windows, as `mm_token_type_ids` tell; the smaller ones read an embedding of each token in every
layer, and in their later layers keys of an earlier one. All are shortened with everything else;
windows count the tokens that are left. Videos and audio are refused. `positions=None` means
``"original"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from secateur.core.inputs import REQUESTS, Request
from secateur.integrations.averaged import Averaged
from secateur.integrations.encoded import Tensor, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.families.tiles import GEMMA4
from secateur.integrations.observing import watching
from secateur.integrations.transformers.gemma3 import Gemma3
from secateur.integrations.transformers.internals import per_layer_inputs
from secateur.integrations.transformers.models import UnsupportedModelError
from secateur.integrations.transformers.shorten import Prompt

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class Gemma4(Gemma3):
    """Where Gemma 4 keeps what pruning needs."""

    family: ClassVar[Family] = GEMMA4
    visual_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_position_ids")
    types: ClassVar[str] = "mm_token_type_ids"

    def check(self, model: Any) -> None:
        """Gemma 4's own tower."""
        vision = model.config.vision_config
        if vision is None or vision.model_type != "gemma4_vision":
            raise UnsupportedModelError(model, "its vision tower is not Gemma 4's own")

    def both_ways(self, model: Any) -> frozenset[str]:
        """Layers with sliding windows, in the larger models."""
        told = self.language_model(model).config.use_bidirectional_attention == "vision"
        return frozenset({"sliding_attention"}) if told else frozenset()

    def beside(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        """What each layer reads of each token, in models where it does."""
        found = per_layer_inputs(model, ids)
        return {} if found is None else {"per_layer_inputs": found}

    def encoded(self, model: Any, ids: Tensor, prompt: Prompt) -> dict[str, Any]:
        """As Gemma 3's, in a list; what each layer reads follows from `input_ids`."""
        outputs = super().encoded(model, ids, prompt)
        kept = outputs["mm_encoder_outputs"]["image"]
        kept.pooler_output = list(kept.pooler_output)
        return {**outputs, **dict.fromkeys(prompt.beside)}

    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """One grid an image; see `Adapter.encode`."""
        for name in ("pixel_values_videos", "input_features"):
            if inputs.get(name) is not None:
                raise ValueError(f"{name}: Gemma 4's prompts are pruned with images and text only")
        positions = inputs.get("image_position_ids")
        if positions is None:
            raise ValueError("image_position_ids: expected beside pixel_values")
        asked = {name: request for name, request in requests.items() if name in wants}
        with watching() as watch:
            seen = Averaged(watch, model.model.vision_tower, asked)
            out = model.model.get_image_features(
                inputs["pixel_values"], positions, return_dict=True
            ).pooler_output
        return seen.visuals(out, positions)
