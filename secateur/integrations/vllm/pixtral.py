"""Pixtral 12B on vLLM, in checkpoints as transformers has them: LLaVA's class with Pixtral's tower.

All else is that of Mistral 3, without merging.
"""

from __future__ import annotations

from vllm.model_executor.models import llava
from vllm.multimodal import MULTIMODAL_REGISTRY

from secateur.integrations.vllm.mistral3 import InRows, Rows, RowsLaidOut


class Info(InRows, llava.PixtralHFProcessingInfo):
    """For Pixtral 12B."""

    kind = "pixtral"
    unpruned = llava.PixtralHFProcessingInfo


class Processor(RowsLaidOut, llava.PixtralHFMultiModalProcessor):
    """Makes room for what Pixtral 12B keeps."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class SecateurPixtralForConditionalGeneration(Rows, llava.LlavaForConditionalGeneration):
    """Pixtral 12B: each patch a token."""

    kind = "pixtral"
