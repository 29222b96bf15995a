"""Qwen3.5 on vLLM: Qwen3-VL's tower without deepstack, linear attention between full."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_5, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from secateur.integrations.vllm.qwen import SecateurQwen3VLForConditionalGeneration
from secateur.integrations.vllm.qwen_room import Info, Processor3


class Info35(Info, qwen3_5.Qwen3_5ProcessingInfo):
    """For Qwen3.5."""

    kind = "qwen3_5"
    unpruned = qwen3_5.Qwen3_5ProcessingInfo


class Info35Moe(Info, qwen3_5.Qwen3_5MoeProcessingInfo):
    """For Qwen3.5's mixtures of experts."""

    kind = "qwen3_5_moe"
    unpruned = qwen3_5.Qwen3_5MoeProcessingInfo


@MULTIMODAL_REGISTRY.register_processor(
    Processor3, info=Info35, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class SecateurQwen3_5ForConditionalGeneration(  # noqa: N801
    SecateurQwen3VLForConditionalGeneration, qwen3_5.Qwen3_5ForConditionalGeneration
):
    """Qwen3.5."""

    kind = "qwen3_5"


@MULTIMODAL_REGISTRY.register_processor(
    Processor3, info=Info35Moe, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class SecateurQwen3_5MoeForConditionalGeneration(  # noqa: N801
    SecateurQwen3VLForConditionalGeneration, qwen3_5.Qwen3_5MoeForConditionalGeneration
):
    """Qwen3.5's mixtures of experts."""

    kind = "qwen3_5_moe"
