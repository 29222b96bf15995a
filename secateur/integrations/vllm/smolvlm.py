"""SmolVLM, SmolVLM2 and Idefics3 on vLLM: tiles that share a budget, with text between them.

How many tokens a tile keeps, and so where the text between stands, is known only once the image is
encoded. An image of several tiles has room for the kept tokens of all and for that text, whose
embeddings come with theirs; the text travels with the image. Images only, as vLLM has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from vllm.model_executor.models import idefics3, smolvlm
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from secateur.integrations.encoded import BY_TOKEN, Seen, Visual
from secateur.integrations.families.tiles import folded, tiles_visuals
from secateur.integrations.vllm.counting import Sized
from secateur.integrations.vllm.layout import LAYOUT, LaidOut
from secateur.integrations.vllm.pruning import Pruned
from secateur.integrations.vllm.towers import Ungraphed, watched


class Info(Sized, idefics3.Idefics3ProcessingInfo):
    """Sizes of images, in kept tokens, for Idefics3."""

    kind = "idefics3"
    unpruned = idefics3.Idefics3ProcessingInfo

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens before pruning of an image as large as the processor lets it be, text included."""
        side = self.get_hf_processor().image_processor.max_image_size["longest_edge"]
        return {"image": len(self.layout(side, side, {}))}

    def layout(self, width: int, height: int, given: Mapping[str, object]) -> list[int]:
        """What stands for an image in a prompt before pruning."""
        processor = self.get_hf_processor(**given)
        text = self.get_image_repl(
            image_width=width, image_height=height, processor=processor, mm_kwargs=given
        )
        return list(self.get_tokenizer().encode(text, add_special_tokens=False))

    def kept(self, tiles: int, size: int) -> int:
        """Kept tokens of an image of so many tiles of `size` tokens."""
        if tiles == 1:
            return self.method.budget(size)
        return self.method.budget_of_parts(tiles * size, tiles, tiles)


class SmolInfo(Info, smolvlm.SmolVLMProcessingInfo):
    """For SmolVLM and SmolVLM2."""

    kind = "smolvlm"
    unpruned = smolvlm.SmolVLMProcessingInfo


class Processor(LaidOut, idefics3.Idefics3MultiModalProcessor):
    """Makes room for what Idefics3 and SmolVLM keep."""

    def layouts(
        self, mm_data: Mapping[str, Any], hf_processor_mm_kwargs: Any, made: Any
    ) -> list[list[int]]:
        """Marks and places of tiles before each, and what is behind."""
        parsed = self.info.parse_mm_data({"image": mm_data["images"]}, validate=False)
        images = parsed.get_items("image", ImageProcessorItems)
        sizes = (images.get_image_size(place) for place in range(len(images)))
        return [self.info.layout(size.width, size.height, hf_processor_mm_kwargs) for size in sizes]

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Sequence[Any]:
        processor = self.info.get_hf_processor(**hf_processor_mm_kwargs)
        token = processor.image_token_id

        def replacement(place: int) -> Any:
            item = out_mm_kwargs["image"][place]
            tiles, layout = int(item["num_patches"].data), item[LAYOUT].data
            kept = self.info.kept(tiles, processor.image_seq_len)
            if tiles > 1:
                return [token] * (kept + int((layout != token).sum()))
            ids = layout.tolist()
            first = ids.index(token)
            ids[first : first + processor.image_seq_len] = [token] * kept
            return PromptUpdateDetails.select_token_id(ids, token)

        return [PromptReplacement(modality="image", target=[token], replacement=replacement)]


class Tiled(Ungraphed, Pruned):
    """A model whose images are tiles with text between."""

    model: Any

    @property
    def language_model(self) -> Any:
        """What reads the prompt."""
        return self.model.text_model

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.prepare(vllm_config)

    def loads(self, name: str, kwargs: Any) -> list[int]:
        """What the connector makes of an image's tiles."""
        return [int(tiles) * self.model.image_seq_len for tiles in kwargs["num_patches"]]

    def flat(self, name: str, kwargs: Any) -> Mapping[str, Sequence[int]]:
        """Tiles of all images follow one another."""
        starts = np.cumsum([0, *map(int, kwargs["num_patches"])]).tolist()
        return dict.fromkeys((name, "pixel_attention_mask"), starts)

    def inputs_of(self, kwargs: Any) -> list[tuple[str, Any]]:
        """Images, with what stood for each in the prompt."""
        parsed = self._parse_and_validate_image_input(**kwargs)  # type: ignore[attr-defined]
        if parsed is None:
            return []
        names = ("type", "data", "pixel_values", "pixel_attention_mask", "num_patches")
        inputs = {name: parsed.get(name) for name in names}
        return [("image", {**inputs, LAYOUT: kwargs.get(LAYOUT)})]

    def given(self, modality: str, inputs: Any) -> list[Any]:
        """Embeddings that came with the request."""
        return list(inputs["data"])

    def watched(self) -> AbstractContextManager[Seen]:
        """Collect what the method wants of the tower, (P, n, ...) each."""
        tower = self.model.vision_model
        return watched(self, tower.encoder.layers, self.config.vision_config)

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """One grid a tile."""
        with self.watched() as seen:
            states = self._process_image_pixels(inputs)  # type: ignore[attr-defined]
        features = self.model.connector(states)
        observed = {
            name: folded(x, self.config.scale_factor)
            for name in BY_TOKEN
            if (x := getattr(seen, name)) is not None
        }
        return tiles_visuals(features, [int(n) for n in inputs["num_patches"]], observed)

    def finished(
        self,
        modality: str,
        inputs: Any,
        visuals: Sequence[Visual],
        kept: Sequence[tuple[Any, Any]],
    ) -> list[Any]:
        """With the text between tiles, where there are several."""
        found = []
        for visual, layout, (index, features) in zip(visuals, inputs[LAYOUT], kept, strict=True):
            if visual.crops == 0:
                found.append(features)
                continue
            ids = layout.to(features.device)
            own = ids == self.config.image_token_id
            stays = ~own
            stays[own.nonzero()[:, 0][torch.from_numpy(index).to(ids.device)]] = True
            rows = self.model.embed_input_ids(ids[stays]).detach().to(features)
            rows[own[stays]] = features
            found.append(rows)
        return found


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=idefics3.Idefics3DummyInputsBuilder
)
class SecateurIdefics3ForConditionalGeneration(Tiled, idefics3.Idefics3ForConditionalGeneration):
    """Idefics3."""

    kind = "idefics3"


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=SmolInfo, dummy_inputs=idefics3.Idefics3DummyInputsBuilder
)
class SecateurSmolVLMForConditionalGeneration(Tiled, smolvlm.SmolVLMForConditionalGeneration):
    """SmolVLM and SmolVLM2."""

    kind = "smolvlm"
