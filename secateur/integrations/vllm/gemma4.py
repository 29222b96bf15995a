"""Gemma 4 on vLLM: images of any size, of whose patches squares are averaged into a token.

The tower is transformers' own. vLLM lets the tokens of an image see each other both ways where a
model does, wherever tokens of an image stand without a gap. So do kept ones. Images only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.models import gemma4_mm
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptUpdateDetails

from secateur.integrations.averaged import Averaged
from secateur.integrations.encoded import Visual
from secateur.integrations.observing import requests_of, watching
from secateur.integrations.vllm.counting import Sized
from secateur.integrations.vllm.pruning import Pruned
from secateur.integrations.vllm.requests import Instructed
from secateur.integrations.vllm.towers import Ungraphed


class Info(Sized, gemma4_mm.Gemma4ProcessingInfo):
    """Sizes of images, in kept tokens."""

    kind = "gemma4"
    unpruned = gemma4_mm.Gemma4ProcessingInfo

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images."""
        return {"image": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens before pruning of the largest image."""
        return {"image": self.stock.get_mm_max_tokens_per_item(seq_len, mm_counts)["image"]}

    def get_image_repl(self, **given: Any) -> Any:
        """What stands for an image in a prompt, with its kept tokens."""
        before, *image, behind = super().get_image_repl(**given).full
        kept = image[: self.method.budget(len(image))]
        return PromptUpdateDetails.select_token_id([before, *kept, behind], image[0])


class Processor(Instructed, gemma4_mm.Gemma4MultiModalProcessor):
    """Makes room for what Gemma 4 keeps."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=gemma4_mm.Gemma4DummyInputsBuilder
)
class SecateurGemma4ForConditionalGeneration(
    Ungraphed, Pruned, gemma4_mm.Gemma4ForConditionalGeneration
):
    """Gemma 4: one grid an image."""

    kind = "gemma4"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.prepare(vllm_config)

    def loads(self, name: str, kwargs: Any) -> list[int]:
        """What the tower is given of each image, padding included."""
        fold = self.config.vision_config.pooling_kernel_size
        return [len(each) // fold**2 for each in kwargs[name]]

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """One grid an image; those with as many patches, as they usually have, together."""
        values, positions = list(inputs["pixel_values"]), list(inputs["pixel_position_ids"])
        alike = len({len(each) for each in values}) == 1
        together = [range(len(values))] if alike else [[n] for n in range(len(values))]
        found: list[Visual] = []
        for group in together:
            of = torch.stack([values[n] for n in group])
            found += self._encoded(of, torch.stack([positions[n] for n in group]))
        return found

    def _encoded(self, values: Any, positions: Any) -> list[Visual]:
        asked = {
            name: request
            for name, request in requests_of(self.method).items()
            if name in self.wants
        }
        positions = positions.to(values.device)
        with watching() as watch:
            seen = Averaged(watch, self.vision_tower, asked)
            states = self.vision_tower(values.to(self.model_dtype), positions).last_hidden_state
        features = self.embed_vision(inputs_embeds=states.to(self.model_dtype)[None])[0]
        patches = (positions >= 0).all(dim=-1).sum(dim=-1) // seen.fold**2
        return seen.visuals(features.split(patches.tolist()), positions)
