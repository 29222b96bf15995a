"""What the Qwen families' processors make room for in a prompt, in kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl, qwen3_vl_moe
from vllm.multimodal.processing import PromptReplacement

from secateur.integrations.families.qwen import unpatched
from secateur.integrations.vllm.counting import Sized
from secateur.integrations.vllm.requests import Instructed


class Info(Sized):
    """Sizes of images and frames, in kept tokens."""

    def get_num_image_tokens(self, **given: Any) -> int:
        """Tokens of an image, at most."""
        return self.at_most(int(super().get_num_image_tokens(**given)))  # type: ignore[misc]

    def kept(self, modality: str, item: Any) -> list[int]:
        """Kept tokens of an image or of each frame of a video."""
        config: Any = self.get_hf_config()  # type: ignore[attr-defined]
        vision = config.vision_config
        frames, height, width = (int(x) for x in item[f"{modality}_grid_thw"].data)
        grid = height // vision.spatial_merge_size, width // vision.spatial_merge_size
        values = "pixel_values" if modality == "image" else "pixel_values_videos"
        if values not in item:
            return [grid[0] * grid[1]] * frames
        if modality == "video" and self.method.over != "frame":
            # Only how many of all frames together is known.
            return [self.method.budget(frames * grid[0] * grid[1], frames)]
        if self.method.counted_from != "pixels":
            return [self.method.budget(grid[0] * grid[1])] * frames
        channels = unpatched(item[values].data, (frames, height, width), vision)
        return [self.counted(grid, own) for own in channels]


class Info2(Info, qwen2_vl.Qwen2VLProcessingInfo):
    """For Qwen2-VL."""

    kind = "qwen2_vl"
    unpruned = qwen2_vl.Qwen2VLProcessingInfo


class Info25(Info, qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    """For Qwen2.5-VL."""

    kind = "qwen2_5_vl"
    unpruned = qwen2_5_vl.Qwen2_5_VLProcessingInfo


class Info3(Info, qwen3_vl.Qwen3VLProcessingInfo):
    """For Qwen3-VL."""

    kind = "qwen3_vl"
    unpruned = qwen3_vl.Qwen3VLProcessingInfo


class Info3Moe(Info, qwen3_vl_moe.Qwen3VLMoeProcessingInfo):
    """For Qwen3-VL's mixtures of experts."""

    kind = "qwen3_vl_moe"
    unpruned = qwen3_vl_moe.Qwen3VLMoeProcessingInfo


class Uneven:
    """What memory is measured with: noise, of which a method that looks at pixels drops nothing."""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Any, mm_options: Any) -> Any:
        """With every picture and frame uneven, where vLLM's are white."""
        data = dict(super().get_dummy_mm_data(seq_len, mm_counts, mm_options))  # type: ignore[misc]
        data["image"] = [Image.fromarray(_noise(np.shape(each))) for each in data["image"]]
        data["video"] = [
            (_noise(each[0].shape), *each[1:]) if isinstance(each, tuple) else _noise(each.shape)
            for each in data["video"]
        ]
        return data


def _noise(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class Dummies2(Uneven, qwen2_vl.Qwen2VLDummyInputsBuilder):
    """For Qwen2-VL."""


class Dummies25(Uneven, qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder):
    """For Qwen2.5-VL."""


class Dummies3(Uneven, qwen3_vl.Qwen3VLDummyInputsBuilder):
    """For Qwen3-VL."""


class Unbroken(Instructed):
    """Makes room for what is kept of a video whose frames stand without text between."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Sequence[Any]:
        config = self.info.get_hf_config()
        tokens = {"image": config.image_token_id, "video": config.video_token_id}

        def replaced(modality: str) -> Any:
            def replacement(place: int) -> list[int]:
                kept = self.info.kept(modality, out_mm_kwargs[modality][place])
                return [tokens[modality]] * sum(kept)

            return PromptReplacement(
                modality=modality, target=[tokens[modality]], replacement=replacement
            )

        return [replaced(modality) for modality in tokens]


class Processor2(Unbroken, qwen2_vl.Qwen2VLMultiModalProcessor):
    """Makes room for what Qwen2-VL keeps."""


class Processor25(Unbroken, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    """Makes room for what Qwen2.5-VL keeps."""


class Processor3(Instructed, qwen3_vl.Qwen3VLMultiModalProcessor):
    """Makes room for what Qwen3-VL keeps; frames of a video stand between timestamps."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Sequence[Any]:
        config = self.info.get_hf_config()
        image, video = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)

        def of_image(place: int) -> list[int]:
            return [config.image_token_id] * sum(
                self.info.kept("image", out_mm_kwargs["image"][place])
            )

        def of_video(place: int) -> Any:
            item = out_mm_kwargs["video"][place]
            kept, frames = self.info.kept("video", item), int(item["video_grid_thw"].data[0])
            if len(kept) == frames:
                return between(kept, item["timestamps"].data, self.info.get_tokenizer(), config)
            # Room for the kept tokens of all frames and the text between, all of it embedded.
            bare = between([0] * frames, item["timestamps"].data, self.info.get_tokenizer(), config)
            return [config.video_token_id] * (sum(kept) + len(bare.full))

        return [
            PromptReplacement(modality="image", target=image.target, replacement=of_image),
            PromptReplacement(modality="video", target=video.target, replacement=of_video),
        ]


def between(kept: Sequence[int], timestamps: Any, tokenizer: Any, config: Any) -> Any:
    """The prompt's tokens of a video of Qwen3-VL whose frames keep so many."""
    return qwen3_vl.Qwen3VLMultiModalProcessor.get_video_repl(
        tokens_per_frame=list(kept),
        timestamps=timestamps,
        tokenizer=tokenizer,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        video_token_id=config.video_token_id,
        select_token_id=True,
    )
