"""GLM-4.1V to 4.6V on vLLM: Qwen2-VL's patches and M-RoPE, frames of a video as images in marks.

Behind each frame its second is told. The text of a video travels with it: where a method shares a
budget over frames, how many each keeps is known only once the video is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.model_executor.models import glm4_1v
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from secateur.integrations.vllm.layout import LAYOUT, shortened
from secateur.integrations.vllm.qwen import Stamped
from secateur.integrations.vllm.qwen_room import Info, Unbroken


class InfoGlm(Info, glm4_1v.Glm4vProcessingInfo):
    """For GLM-4.1V."""

    kind = "glm4v"
    unpruned = glm4_1v.Glm4vProcessingInfo

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens before pruning, of the longest video that a prompt takes with its text."""
        size = self.stock.get_image_size_with_most_features()
        frames = self.stock.get_num_frames_with_most_features(seq_len, mm_counts)
        _, tokens = self.stock._get_vision_info(
            image_width=size.width,
            image_height=size.height,
            num_frames=frames,
            max_image_pixels=self.stock._get_video_max_pixels(),
        )
        second = self.get_tokenizer().encode(f"{frames}.0 seconds", add_special_tokens=False)
        # A frame of two pictures stands between two marks.
        tokens += 2 + (frames + 1) // 2 * (2 + len(second))
        return {"image": self.stock.get_max_image_tokens(), "video": tokens}


class InfoGlmMoe(InfoGlm):
    """For GLM-4.5V."""

    kind = "glm4v_moe"


class Processor(Unbroken, glm4_1v.Glm4vMultiModalProcessor):
    """Makes room for what GLM-4V keeps."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        output = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if "pixel_values_videos" in output:
            written = self.info._construct_video_placeholder
            output[LAYOUT] = [
                torch.tensor(written(*mm_items["video"][number], grid))
                for number, grid in enumerate(output["video_grid_thw"])
            ]
        return output

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        known = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))
        if LAYOUT in hf_inputs:
            known[LAYOUT] = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
        return known

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Sequence[Any]:
        given = mm_items, hf_processor_mm_kwargs, out_mm_kwargs
        image, _ = super()._get_prompt_updates(*given)
        _, stock = glm4_1v.Glm4vMultiModalProcessor._get_prompt_updates(self, *given)
        token = self.info.get_hf_config().image_token_id

        def replacement(place: int) -> Any:
            item = out_mm_kwargs["video"][place]
            if LAYOUT not in item:
                # What a user encoded is as long as it is.
                return stock.replacement(place)
            told, kept = item[LAYOUT].data.tolist(), self.info.kept("video", item)
            frames = int(item["video_grid_thw"].data[0])
            if len(kept) < frames:
                # Room for the kept tokens of all frames and the text between, all of it embedded.
                text = len(shortened(told, token, [0] * frames)) - 2
                told = [told[0], *[token] * (sum(kept) + text), told[-1]]
            else:
                told = shortened(told, token, kept)
            return PromptUpdateDetails.select_token_id(told, token)

        video = PromptReplacement(modality="video", target=stock.target, replacement=replacement)
        return [image, video]


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=InfoGlm, dummy_inputs=glm4_1v.Glm4vDummyInputsBuilder
)
class SecateurGlm4vForConditionalGeneration(Stamped, glm4_1v.Glm4vForConditionalGeneration):
    """GLM-4.1V: full attention in every layer of the tower."""

    kind = "glm4v"
    # vLLM's own class has no pruning; these have its runners ask where kept tokens were.
    supports_multimodal_pruning = True
    supported_video_pruning_methods = ("evs",)

    def inputs_of(self, kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """With the text of each video, which vLLM's own class leaves out."""
        found = super().inputs_of(kwargs)
        for modality, inputs in found:
            if modality == "video":
                setattr(inputs, LAYOUT, kwargs.get(LAYOUT))
        return found

    def frame_marks(self) -> tuple[int, int]:
        """Those of images."""
        return self.config.image_token_id, self.config.image_end_token_id

    def written(self, inputs: Any, number: int, counts: Sequence[int]) -> Sequence[int]:
        """Seconds stand behind frames; the marks of the video stand in the prompt."""
        return shortened(inputs[LAYOUT][number].tolist()[1:-1], self.config.image_token_id, counts)


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=InfoGlmMoe, dummy_inputs=glm4_1v.Glm4vDummyInputsBuilder
)
class SecateurGlm4vMoeForConditionalGeneration(
    SecateurGlm4vForConditionalGeneration, glm4_1v.Glm4vMoeForConditionalGeneration
):
    """GLM-4.5V and 4.6V: mixtures of experts."""

    kind = "glm4v_moe"
