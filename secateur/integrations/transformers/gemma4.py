"""Gemma 4: images of any size, of whose patches squares are averaged into a token.

The larger models let the tokens of an image see each other both ways in layers with sliding
windows, as `mm_token_type_ids` tell; the smaller ones read an embedding of each token in every
layer. Both are shortened with everything else; windows count the tokens that are left. Attention is
that of the tower's last layer, whose states become features: what a patch receives on average from
its image, averaged, as normed keys are, over the patches that become one token. Videos and audio
are refused. `positions=None` means ``"original"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from secateur.core.inputs import REQUESTS, Request
from secateur.integrations.encoded import Tensor, Visual, whole
from secateur.integrations.families.base import Family
from secateur.integrations.families.pixtral import merged
from secateur.integrations.families.tiles import GEMMA4
from secateur.integrations.observing import (
    Watch,
    keys_of,
    layer_of,
    received,
    rotate,
    watching,
)
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
        layers = model.model.vision_tower.encoder.layers
        with watching() as watch:
            seen = self._watch(watch, layers, wants, requests)
            out = model.model.get_image_features(
                inputs["pixel_values"], positions, return_dict=True
            ).pooler_output
        fold = model.config.vision_config.pooling_kernel_size
        found = []
        for picture, features in enumerate(out):
            width, height = (int(n) + 1 for n in positions[picture].amax(dim=0))
            part = whole((height // fold, width // fold))
            for name, own in seen.items():
                x = self._observed(own, picture, height * width, requests[name])
                setattr(part, name, merged(x, (height, width), fold))
            found.append(Visual(modality="image", features=features, parts=[part]))
        return found

    def _watch(
        self, watch: Watch, layers: Any, wants: frozenset[str], requests: Mapping[str, Request]
    ) -> dict[str, Any]:
        depth = len(layers)
        return {
            name: (
                watch.output(attention.q_norm),
                watch.output(attention.k_norm),
                watch.arguments(attention),
                attention,
            )
            for name, request in requests.items()
            if name in wants
            for attention in (layers[layer_of(request, depth - 1, depth)].self_attn,)
        }

    @torch.no_grad()
    def _observed(self, seen: Any, picture: int, size: int, request: Request) -> Tensor:
        """Attention (n,) or keys (n, C) of the patches of a picture, from (P, N, H, d)."""
        queries, keys = (x[0][picture, :size].detach() for x in seen[:2])
        if request.what == "keys":
            return keys_of(keys.transpose(0, 1), request)
        angles = [x[picture, :size, None].float() for x in seen[2][0][1]["position_embeddings"]]
        queries, keys = (_turned(x.float(), *angles).transpose(0, 1) for x in (queries, keys))
        keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
        # `received` divides by the root of d, this tower by nothing.
        scale = seen[3].scaling * queries.shape[-1] ** 0.5
        return received(queries * scale, keys, request)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotated (n, H, d), one half of the channels by columns, the other by rows."""
    halves = zip(*(each.chunk(2, dim=-1) for each in (x, cos, sin)), strict=True)
    return torch.cat([rotate(*each) for each in halves], dim=-1)
