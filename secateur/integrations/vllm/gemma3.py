"""Gemma 3 on vLLM: pictures of one size, of whose patches squares are averaged into a token.

vLLM lets the tokens of an image see each other both ways, wherever tokens of an image stand without
a gap. So do kept ones. A crop that the processor adds (pan and scan) has a budget of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from vllm.model_executor.models import gemma3_mm
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptUpdateDetails

from secateur.integrations.encoded import BY_TOKEN, Visual
from secateur.integrations.families.tiles import folded, tiles_visuals
from secateur.integrations.vllm.counting import Sized
from secateur.integrations.vllm.pruning import Pruned
from secateur.integrations.vllm.requests import Instructed
from secateur.integrations.vllm.towers import Ungraphed, watched


class Info(Sized, gemma3_mm.Gemma3ProcessingInfo):
    """Sizes of images, in kept tokens."""

    kind = "gemma3"
    unpruned = gemma3_mm.Gemma3ProcessingInfo

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens before pruning of an image with as many crops as any."""
        size = self.get_image_size_with_most_features()
        most = self.stock.get_num_image_tokens(
            image_width=size.width,
            image_height=size.height,
            processor=self.get_hf_processor(),
            mm_kwargs={},
        )
        return {"image": most}

    def get_image_repl(self, **given: Any) -> Any:
        """What stands for an image in a prompt, with the kept tokens of each crop."""
        token = self.get_hf_config().image_token_index
        kept = self.method.budget(given["processor"].image_seq_length)
        ids: list[int] = []
        for own, run in groupby(super().get_image_repl(**given).full):
            ids += [token] * kept if own == token else run
        return PromptUpdateDetails.select_token_id(ids, token)


class Processor(Instructed, gemma3_mm.Gemma3MultiModalProcessor):
    """Makes room for what Gemma 3 keeps."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=gemma3_mm.Gemma3DummyInputsBuilder
)
class SecateurGemma3ForConditionalGeneration(
    Ungraphed, Pruned, gemma3_mm.Gemma3ForConditionalGeneration
):
    """Gemma 3: one grid a picture."""

    kind = "gemma3"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.prepare(vllm_config)

    def loads(self, name: str, kwargs: Any) -> list[int]:
        """What the projector makes of an image and its crops."""
        return [int(n) * self.config.mm_tokens_per_image for n in kwargs["num_patches"]]

    def flat(self, name: str, kwargs: Any) -> Mapping[str, Sequence[int]]:
        """Pictures of all images follow one another."""
        return {name: np.cumsum([0, *map(int, kwargs["num_patches"])]).tolist()}

    def inputs_of(self, kwargs: Any) -> list[tuple[str, Any]]:
        """Images."""
        parsed = self._parse_and_validate_image_input(**kwargs)
        return [] if parsed is None else [("image", parsed)]

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """One grid a picture, each with a budget of its own."""
        layers, vision = self.vision_tower.vision_model.encoder.layers, self.config.vision_config
        with watched(self, layers, vision) as seen:
            states = self.vision_tower(inputs["pixel_values"])
        features = self.multi_modal_projector(states)
        fold = self.multi_modal_projector.kernel_size
        observed = {
            name: folded(x, fold) for name in BY_TOKEN if (x := getattr(seen, name)) is not None
        }
        counts = [int(n) for n in inputs["num_patches"]]
        return [replace(each, crops=0) for each in tiles_visuals(features, counts, observed)]
