"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision on vLLM, with CLIP and SigLIP towers.

vLLM makes room for an image's tokens before it is encoded, so their number follows from the
image's size and the method's budget, or from the pixels where the method counts by them (ERASE).
Of the newline tokens that LLaVA-NeXT and LLaVA-OneVision put at the end of rows of crops, a pruned
image keeps what `families.newlines` says: those of rows that keep a token only where the method
picks by the grid, since else nobody knows in time which rows those are. Kept tokens are numbered
compactly, as vLLM numbers all tokens of these families.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from vllm.model_executor.models import llava, llava_next, llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement

from secateur.integrations.choosing import choose
from secateur.integrations.encoded import Seen, Visual, whole
from secateur.integrations.families.llava_next import crop_layout, crops_visual
from secateur.integrations.families.llava_onevision import (
    by_token,
    image_visual,
    most_crops,
    shrunk,
    video_visual,
)
from secateur.integrations.families.newlines import with_newlines
from secateur.integrations.vllm.counting import Sized, newlines_left, restored
from secateur.integrations.vllm.pruning import Pruned
from secateur.integrations.vllm.requests import Instructed
from secateur.integrations.vllm.towers import watched


def patches_a_side(config: Any) -> int:
    """Tokens along one side of what the tower sees."""
    return int(config.vision_config.image_size // config.vision_config.patch_size)


class Sizes(Sized):
    """Sizes of images, in kept tokens."""

    def whole(self, width: int, height: int) -> int:
        """Tokens of an image before pruning."""
        return int(self.stock.get_num_image_tokens(image_width=width, image_height=height))

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Tokens of an image, at most."""
        return self.at_most(self.whole(image_width, image_height))


class Cut(Sizes):
    """Sizes of images that are cut into crops, which share a budget."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Tokens of the overview and of the crops."""
        config: Any = self.get_hf_config()  # type: ignore[attr-defined]
        side = patches_a_side(config)
        layout = crop_layout(config, (image_height, image_width), side)
        crops = layout[0] * layout[1]
        tall, wide, parts = self.crops(config, layout, side)
        size = side * side + tall * wide
        total = self.method.budget_of_parts(size, parts, 1 + crops)
        newlines = newlines_left(config, self.method, whole=total == size)
        if newlines == "none":
            return total
        if newlines == "all" or total == size:
            return total + tall
        if layout not in self.known:
            features = torch.zeros(size + tall, 1)
            blank = self.blank(features, config, layout, side)
            chosen = choose(self.method, blank, frozenset({"grid"}), None)
            self.known[layout] = len(chosen.kept)
        return self.known[layout]

    @cached_property
    def known(self) -> dict[tuple[int, ...], int]:
        """Tokens and newlines that stay, by the layout of the crops, where those alone tell."""
        return {}

    def blank(
        self, features: Any, config: Any, layout: tuple[int, int, int, int], side: int
    ) -> Visual:
        """An image of a layout of which nothing is known."""
        return crops_visual(features, layout, side, Seen(), 0)

    def crops(
        self, config: Any, layout: tuple[int, int, int, int], side: int
    ) -> tuple[int, int, int]:
        """Rows and columns of all crops together, and among how many parts a method chooses."""
        rows, columns, top, left = layout
        parts = 1 + _filled(rows, side, top) * _filled(columns, side, left)
        return rows * side - 2 * top, columns * side - 2 * left, parts


def _filled(crops: int, side: int, cut: int) -> int:
    """How many of a row of crops are more than padding."""
    return sum((n + 1) * side > cut and n * side < crops * side - cut for n in range(crops))


class LlavaInfo(Sizes, llava.LlavaProcessingInfo):
    """For LLaVA-1.5."""

    kind = "llava"
    unpruned = llava.LlavaProcessingInfo


class NextInfo(Cut, llava_next.LlavaNextProcessingInfo):
    """For LLaVA-NeXT."""

    kind = "llava_next"
    unpruned = llava_next.LlavaNextProcessingInfo


class OneVisionInfo(Cut, llava_onevision.LlavaOnevisionProcessingInfo):
    """For LLaVA-OneVision."""

    kind = "llava_onevision"
    unpruned = llava_onevision.LlavaOnevisionProcessingInfo

    def crops(
        self, config: Any, layout: tuple[int, int, int, int], side: int
    ) -> tuple[int, int, int]:
        """All crops are one part."""
        return *shrunk(layout, side, most_crops(config)), 2

    def blank(
        self, features: Any, config: Any, layout: tuple[int, int, int, int], side: int
    ) -> Visual:
        """As `Cut.blank`, of pooled crops."""
        return image_visual(features, layout, most_crops(config), side, Seen(), 0, lambda x: x)

    def get_num_video_tokens(self, *, image_width: int, image_height: int, num_frames: int) -> int:
        """Kept tokens of all frames, and the newline."""
        size = self._get_num_frame_tokens(image_width=image_width, image_height=image_height)
        return self.method.budget(num_frames * size, num_frames) + 1


class LlavaDummies(llava.LlavaDummyInputsBuilder):
    """What memory is measured on: images that keep as much as any."""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Any, mm_options: Any) -> Any:
        """Noise, of which a method that looks at pixels keeps the most."""
        data = dict(super().get_dummy_mm_data(seq_len, mm_counts, mm_options))
        dice = np.random.default_rng(0)
        data["image"] = [
            dice.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
            for image in data["image"]
        ]
        return data


class LlavaProcessor(Instructed, llava.LlavaMultiModalProcessor):
    """Makes room for what LLaVA-1.5 keeps."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Any:
        if self.info.method.counted_from != "pixels":
            return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        config = self.info.get_hf_config()
        image = config.image_token_index
        patch = config.vision_config.patch_size

        def replacement(place: int) -> list[int]:
            items = mm_items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
            if isinstance(items, ImageEmbeddingItems):
                return [image] * items.get_feature_size(place)
            values = out_mm_kwargs["image"][place]["pixel_values"].data
            grid = (values.shape[-2] // patch, values.shape[-1] // patch)
            return [image] * self.info.counted(grid, values)

        return [PromptReplacement(modality="image", target=[image], replacement=replacement)]


class NextProcessor(Instructed, llava_next.LlavaNextMultiModalProcessor):
    """Makes room for what LLaVA-NeXT keeps."""


class OneVisionProcessor(Instructed, llava_onevision.LlavaOnevisionMultiModalProcessor):
    """Makes room for what LLaVA-OneVision keeps."""


class Towered(Pruned):
    """A model with a CLIP or SigLIP tower."""

    vision_tower: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.prepare(vllm_config)

    def loads(self, name: str, kwargs: Any) -> list[int]:
        """What the tower makes of an image's crops or a video's frames."""
        pictures = (each.shape[:-3].numel() for each in kwargs[name])
        return [count * patches_a_side(self.config) ** 2 for count in pictures]

    def inputs_of(self, kwargs: Any) -> list[tuple[str, Any]]:
        """Images only, unless the family says otherwise."""
        parsed = self._parse_and_validate_image_input(**kwargs)  # type: ignore[attr-defined]
        return [] if parsed is None else [("image", parsed)]

    def watched(self) -> AbstractContextManager[Seen]:
        """Collect what the method wants of the tower, (P, N, ...) each."""
        vision = self.config.vision_config
        layers = self.vision_tower.vision_model.encoder.layers
        return watched(self, layers, vision, class_token=vision.model_type == "clip_vision_model")

    def cut(self, inputs: Any) -> Iterator[tuple[Any, Any, Seen, int]]:
        """Features of each image that is cut into crops, its size, and where its pictures begin."""
        with self.watched() as seen:
            embeds = self._process_image_input(inputs)  # type: ignore[attr-defined]
        first = 0
        for features, size, pictures in zip(
            embeds, inputs["image_sizes"], inputs["pixel_values"], strict=True
        ):
            yield features, size, seen, first
            first += len(pictures)

    def packed(self, visual: Visual) -> Visual:
        """With the newlines that were counted; see `Cut.get_num_image_tokens`."""
        size = sum(len(part.index) for part in visual.parts)
        total = self.method.budget_of_parts(size, len(visual.parts), visual.crops)
        newlines = newlines_left(self.config, self.method, whole=total == size)
        return with_newlines(visual, newlines)


@MULTIMODAL_REGISTRY.register_processor(LlavaProcessor, info=LlavaInfo, dummy_inputs=LlavaDummies)
class SecateurLlavaForConditionalGeneration(Towered, llava.LlavaForConditionalGeneration):
    """LLaVA-1.5."""

    kind = "llava"

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """One grid an image."""
        with self.watched() as seen:
            embeds = self._process_image_input(inputs)
        values = inputs["pixel_values"]
        patch = self.config.vision_config.patch_size
        visuals = []
        for place, features in enumerate(embeds):
            channels = values[place]
            part = whole((channels.shape[-2] // patch, channels.shape[-1] // patch))
            for name, x in seen.of(place).items():
                setattr(part, name, x)
            if self.pixels is not None:
                part.pixels = restored(self.pixels, channels)
            visuals.append(Visual(modality="image", features=features, parts=[part]))
        return visuals


@MULTIMODAL_REGISTRY.register_processor(
    NextProcessor, info=NextInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class SecateurLlavaNextForConditionalGeneration(
    Towered, llava_next.LlavaNextForConditionalGeneration
):
    """LLaVA-NeXT."""

    kind = "llava_next"

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """An overview and crops each image."""
        side, visuals = patches_a_side(self.config), []
        for features, size, seen, first in self.cut(inputs):
            layout = crop_layout(self.config, size, side)
            visuals.append(self.packed(crops_visual(features, layout, side, seen, first)))
        return visuals


@MULTIMODAL_REGISTRY.register_processor(
    OneVisionProcessor,
    info=OneVisionInfo,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class SecateurLlavaOnevisionForConditionalGeneration(
    Towered, llava_onevision.LlavaOnevisionForConditionalGeneration
):
    """LLaVA-OneVision: images, and videos by frame."""

    kind = "llava_onevision"

    def inputs_of(self, kwargs: Any) -> list[tuple[str, Any]]:
        """Images and videos."""
        return Pruned.inputs_of(self, kwargs)

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """An overview and crops each image; a grid each frame of a video."""
        return self._videos(inputs) if modality == "video" else self._images(inputs)

    def _images(self, inputs: Any) -> list[Visual]:
        side, visuals = patches_a_side(self.config), []
        for features, size, seen, first in self.cut(inputs):
            layout = crop_layout(self.config, size, side)

            def packed(x: Any, size: Any = size) -> Any:
                flat = x if x.ndim == 3 else x[..., None]
                merged = self._merge_image_patch_embeddings(
                    size, flat.float(), strategy="spatial_unpad"
                ).to(x.dtype)
                return merged if x.ndim == 3 else merged[..., 0]

            visual = image_visual(
                features, layout, most_crops(self.config), side, seen, first, packed
            )
            visuals.append(self.packed(visual))
        return visuals

    def _videos(self, inputs: Any) -> list[Visual]:
        with self.watched() as seen:
            embeds = self._process_video_pixels(inputs)
        side = math.ceil(patches_a_side(self.config) / 2)
        visuals, first = [], 0
        for features, frames in zip(embeds, inputs["pixel_values_videos"], strict=True):
            own = slice(first, first + len(frames))
            observed = {name: by_token(x, self.apply_pooling) for name, x in seen.of(own).items()}
            visuals.append(
                video_visual(features.reshape(-1, features.shape[-1]), len(frames), side, observed)
            )
            first += len(frames)
        return visuals
