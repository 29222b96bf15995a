"""InternVL on vLLM, in checkpoints as transformers has them: tiles that share a budget.

vLLM's class for those is InternS1's. The frames of a video are images of one tile between words, in
transformers too: each keeps its own tokens, so methods that share a budget over frames get none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from vllm.model_executor.models import interns1
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from secateur.integrations.encoded import Visual
from secateur.integrations.families.tiles import folded, tiles_visuals
from secateur.integrations.observing import (
    heads,
    keys_of,
    layer_of,
    received,
    requests_of,
    watching,
)
from secateur.integrations.vllm.counting import Sized
from secateur.integrations.vllm.layout import shortened
from secateur.integrations.vllm.pruning import Pruned
from secateur.integrations.vllm.requests import Instructed

TILES = {"pixel_values": "image_num_patches", "pixel_values_videos": "video_num_patches"}
"""What tells how many tiles an image, or frames a video, has among these pixels."""


class Info(Sized, interns1.InternS1ProcessingInfo):
    """Sizes of images, in kept tokens."""

    kind = "internvl"
    unpruned = interns1.InternS1ProcessingInfo

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images, and videos where each frame is chosen from by itself."""
        return {"image": None, "video": None} if self.method.over == "frame" else {"image": None}

    def validate_num_items(self, modality: str, num_items: int) -> None:
        """Say why there are no videos."""
        if modality not in self.get_supported_mm_limits():
            raise ValueError(
                f"secateur: {type(self.method).__name__} shares a budget over the frames of a "
                'video, and those of InternVL are images each; take a method with over="frame"'
            )
        super().validate_num_items(modality, num_items)

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """As of images, and of a video with as many frames as a prompt takes."""
        frames = self.stock.get_num_frames_with_most_features(seq_len, mm_counts)
        size = self.get_hf_processor().image_seq_length
        return {**super().get_mm_max_tokens_per_item(seq_len, mm_counts), "video": frames * size}

    def kept(self, tiles: int, size: int) -> int:
        """Kept tokens of an image of so many tiles of `size` tokens."""
        if tiles == 1:
            return self.method.budget(size)
        return self.method.budget_of_parts(tiles * size, tiles, tiles)


class Processor(Instructed, interns1.InternS1MultiModalProcessor):
    """Makes room for what InternVL keeps."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Sequence[Any]:
        stock = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        image, video = stock
        processor = self.info.get_hf_processor()
        token, size = processor.image_token_id, processor.image_seq_length

        def replacement(place: int) -> Any:
            item = out_mm_kwargs["image"][place]
            if "image_num_patches" not in item:
                # What a user encoded is as long as it is.
                return image.replacement(place)
            kept = self.info.kept(int(item["image_num_patches"].data), size)
            ids = [processor.start_image_token_id, *[token] * kept, processor.end_image_token_id]
            return PromptUpdateDetails.select_token_id(ids, token)

        def frames(place: int) -> Any:
            told = video.replacement(place).full
            (mark,) = video.target
            counts = [self.info.method.budget(size)] * told.count(processor.start_image_token_id)
            return PromptUpdateDetails.select_token_id(shortened(told, mark, counts), mark)

        return [
            PromptReplacement(modality="image", target=image.target, replacement=replacement),
            PromptReplacement(modality="video", target=video.target, replacement=frames),
        ]


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=interns1.InternS1DummyInputsBuilder
)
class SecateurInternVLForConditionalGeneration(Pruned, interns1.InternS1ForConditionalGeneration):
    """InternVL: each tile a grid, of whose patches squares become a token."""

    kind = "internvl"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.prepare(vllm_config)

    def loads(self, name: str, kwargs: Any) -> list[int]:
        """What the projector makes of an image's tiles or a video's frames."""
        return [int(tiles) * self.num_image_token for tiles in kwargs[TILES[name]]]

    def flat(self, name: str, kwargs: Any) -> Mapping[str, Sequence[int]]:
        """Tiles of all images follow one another."""
        return {name: np.cumsum([0, *map(int, kwargs[TILES[name]])]).tolist()}

    def given(self, modality: str, inputs: Any) -> list[Any]:
        """Embeddings that came with the request."""
        return list(inputs["data"])

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """One grid a tile."""
        with self.watched() as observed:
            features = self.extract_feature(inputs["pixel_values"])
        counts = [int(tiles) for tiles in inputs["num_patches"]]
        visuals = tiles_visuals(features, counts, observed)
        if modality == "video":
            return [replace(each, modality="video", crops=0) for each in visuals]
        return visuals

    @contextmanager
    def watched(self) -> Iterator[dict[str, Any]]:
        """Collect what the method wants of the tower, (P, n, ...) each; a rank has all heads."""
        layers = self.vision_tower.encoder.layer
        requests = {
            name: request
            for name, request in requests_of(self.method).items()
            if name in self.wants
        }
        found: dict[str, Any] = {}
        with watching() as watch:
            seen = {}
            for name, request in requests.items():
                layer = layers[layer_of(request, len(layers) - 1, len(layers))].attention
                sides = ("q_norm", "k_norm") if layer.qk_normalization else ("q_proj", "k_proj")
                seen[name] = [watch.output(getattr(layer, side)) for side in sides]
            yield found
        for name, outputs in seen.items():
            queries, keys = (
                heads(each[0].detach(), layers[0].attention.head_dim) for each in outputs
            )
            if requests[name].what == "keys":
                own = keys_of(keys[..., 1:, :], requests[name])
            else:
                own = received(queries, keys, requests[name], class_token=True)
            found[name] = folded(own, round(1 / self.downsample_ratio))
