"""GLM-4.1V to 4.6V on vLLM: Qwen2-VL's patches and M-RoPE. Images only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm.model_executor.models import glm4_1v
from vllm.multimodal import MULTIMODAL_REGISTRY

from secateur.integrations.vllm.qwen import Positioned
from secateur.integrations.vllm.qwen_room import Info, Unbroken


class InfoGlm(Info, glm4_1v.Glm4vProcessingInfo):
    """For GLM-4.1V."""

    kind = "glm4v"
    unpruned = glm4_1v.Glm4vProcessingInfo

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images."""
        return {"image": None}


class InfoGlmMoe(InfoGlm):
    """For GLM-4.5V."""

    kind = "glm4v_moe"


class Processor(Unbroken, glm4_1v.Glm4vMultiModalProcessor):
    """Makes room for what GLM-4V keeps."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=InfoGlm, dummy_inputs=glm4_1v.Glm4vDummyInputsBuilder
)
class SecateurGlm4vForConditionalGeneration(Positioned, glm4_1v.Glm4vForConditionalGeneration):
    """GLM-4.1V: full attention in every layer of the tower."""

    kind = "glm4v"
    # vLLM's own class has no pruning; these have its runners ask where kept tokens were.
    supports_multimodal_pruning = True
    supported_video_pruning_methods = ("evs",)

    def full_attention(self) -> Sequence[int]:
        """All of them."""
        return range(len(self.visual.blocks))


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=InfoGlmMoe, dummy_inputs=glm4_1v.Glm4vDummyInputsBuilder
)
class SecateurGlm4vMoeForConditionalGeneration(
    SecateurGlm4vForConditionalGeneration, glm4_1v.Glm4vMoeForConditionalGeneration
):
    """GLM-4.5V and 4.6V: mixtures of experts."""

    kind = "glm4v_moe"
