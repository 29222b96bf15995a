"""Names of vLLM that it does not promise, all in one place, and the releases that have them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter

CHECKED = ("0.32.0",)
"""The releases of vLLM this was run with."""

READ = ("0.33.0",)
"""Releases whose files have the names of LLaVA, InternVL and Qwen to 3-VL; not run with them."""

INTERNALS = {
    "model_executor.models.config": ("MODELS_CONFIG_MAP",),
    "model_executor.models.llava": (
        "LlavaForConditionalGeneration.embed_multimodal",
        "LlavaForConditionalGeneration._parse_and_validate_image_input",
        "LlavaForConditionalGeneration._process_image_input",
        "LlavaProcessingInfo.get_max_image_tokens",
        "LlavaProcessingInfo.get_num_image_tokens",
        "LlavaMultiModalProcessor._get_prompt_updates",
        "LlavaDummyInputsBuilder.get_dummy_mm_data",
        "PixtralHFMultiModalProcessor._postprocess_hf_mm_data",
        "PixtralHFProcessingInfo.get_image_size_with_most_features",
        "PixtralHFProcessingInfo.get_vision_encoder_info",
    ),
    "model_executor.models.llava_next": (
        "LlavaNextForConditionalGeneration._process_image_input",
        "LlavaNextProcessingInfo.get_num_image_tokens",
        "LlavaNextMultiModalProcessor",
    ),
    "model_executor.models.llava_onevision": (
        "LlavaOnevisionForConditionalGeneration._merge_image_patch_embeddings",
        "LlavaOnevisionForConditionalGeneration._process_video_pixels",
        "LlavaOnevisionForConditionalGeneration.apply_pooling",
        "LlavaOnevisionProcessingInfo.get_max_image_tokens",
        "LlavaOnevisionProcessingInfo.get_max_video_tokens",
        "LlavaOnevisionProcessingInfo.get_num_video_tokens",
        "LlavaOnevisionProcessingInfo._get_num_frame_tokens",
    ),
    "model_executor.models.interns1": (
        "InternS1ForConditionalGeneration._parse_and_validate_multimodal_inputs",
        "InternS1ForConditionalGeneration.extract_feature",
        "InternS1DummyInputsBuilder",
        "InternS1MultiModalProcessor._get_prompt_updates",
        "InternS1ProcessingInfo.get_max_image_tokens",
        "InternS1ProcessingInfo.get_num_frames_with_most_features",
        "InternS1ProcessingInfo.get_supported_mm_limits",
    ),
    "model_executor.models.idefics3": (
        "Idefics3ForConditionalGeneration._parse_and_validate_image_input",
        "Idefics3ForConditionalGeneration._process_image_pixels",
        "Idefics3ForConditionalGeneration.get_encoder_cudagraph_config",
        "Idefics3Model.embed_input_ids",
        "Idefics3DummyInputsBuilder",
        "Idefics3MultiModalProcessor._get_prompt_updates",
        "Idefics3MultiModalProcessor._postprocess_hf_mm_data",
        "Idefics3ProcessingInfo.get_image_repl",
    ),
    "model_executor.models.smolvlm": (
        "SmolVLMForConditionalGeneration",
        "SmolVLMProcessingInfo.get_image_repl",
    ),
    "model_executor.models.gemma3_mm": (
        "Gemma3ForConditionalGeneration._parse_and_validate_image_input",
        "Gemma3ForConditionalGeneration.get_encoder_cudagraph_config",
        "Gemma3DummyInputsBuilder",
        "Gemma3MultiModalProcessor._get_prompt_updates",
        "Gemma3ProcessingInfo.get_image_repl",
        "Gemma3ProcessingInfo.get_image_size_with_most_features",
        "Gemma3ProcessingInfo.get_num_image_tokens",
    ),
    "model_executor.models.gemma4_mm": (
        "Gemma4ForConditionalGeneration._parse_and_validate_multimodal_inputs",
        "Gemma4ForConditionalGeneration.get_encoder_cudagraph_config",
        "Gemma4DummyInputsBuilder",
        "Gemma4MultiModalProcessor._get_prompt_updates",
        "Gemma4ProcessingInfo.get_image_repl",
        "Gemma4ProcessingInfo.get_mm_max_tokens_per_item",
        "Gemma4ProcessingInfo.get_supported_mm_limits",
    ),
    "model_executor.models.mistral3": (
        "Mistral3ForConditionalGeneration._process_image_input",
        "Mistral3DummyInputsBuilder",
        "Mistral3MultiModalProcessor._get_prompt_updates",
        "Mistral3MultiModalProcessor._postprocess_hf_mm_data",
        "Mistral3ProcessingInfo.get_image_size_with_most_features",
        "Mistral3ProcessingInfo.get_vision_encoder_info",
    ),
    "model_executor.models.glm4_1v": (
        "Glm4vForConditionalGeneration._parse_and_validate_multimodal_inputs",
        "Glm4vForConditionalGeneration._process_image_input",
        "Glm4vForConditionalGeneration._process_video_input",
        "Glm4vForConditionalGeneration.get_mrope_input_positions",
        "Glm4vMoeForConditionalGeneration",
        "Glm4vDummyInputsBuilder",
        "Glm4vMultiModalProcessor._get_prompt_updates",
        "Glm4vProcessingInfo._construct_video_placeholder",
        "Glm4vProcessingInfo._get_video_max_pixels",
        "Glm4vProcessingInfo._get_vision_info",
        "Glm4vProcessingInfo.get_max_image_tokens",
        "Glm4vProcessingInfo.get_num_frames_with_most_features",
        "Glm4vProcessingInfo.get_num_image_tokens",
    ),
    "model_executor.models.qwen2_vl": (
        "Qwen2VLForConditionalGeneration._parse_and_validate_multimodal_inputs",
        "Qwen2VLForConditionalGeneration._process_image_input",
        "Qwen2VLForConditionalGeneration._process_video_input",
        "Qwen2VLForConditionalGeneration.get_encoder_cudagraph_config",
        "Qwen2VLForConditionalGeneration.get_mrope_input_positions",
        "Qwen2VLMultiModalProcessor._get_prompt_updates",
        "Qwen2VLProcessingInfo.get_max_image_tokens",
        "Qwen2VLProcessingInfo.get_max_video_tokens",
        "Qwen2VLProcessingInfo.get_num_image_tokens",
        "Qwen2VisionAttention.split_qkv",
        "Qwen2VisionTransformer.prepare_encoder_metadata",
    ),
    "model_executor.models.qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration._parse_and_validate_multimodal_inputs",
        "Qwen2_5_VLForConditionalGeneration._process_image_input",
        "Qwen2_5_VLForConditionalGeneration._process_video_input",
        "Qwen2_5_VLForConditionalGeneration.recompute_mrope_positions",
        "Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions",
        "Qwen2_5_VisionTransformer.get_window_index_thw",
        "Qwen2_5_VisionTransformer.invert_permutation",
        "Qwen2_5_VisionTransformer.prepare_encoder_metadata",
        "Qwen2_5_VLProcessingInfo.get_max_image_tokens",
        "Qwen2_5_VLProcessingInfo.get_max_video_tokens",
        "Qwen2_5_VLProcessingInfo.get_num_image_tokens",
    ),
    "model_executor.models.qwen3_vl": (
        "Qwen3VLForConditionalGeneration.recompute_mrope_positions",
        "Qwen3VLMultiModalProcessor.get_video_repl",
        "Qwen3VLProcessingInfo.get_num_image_tokens",
        "Qwen3_VisionTransformer.prepare_encoder_metadata",
    ),
    "model_executor.models.qwen3_vl_moe": (
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMoeProcessingInfo",
    ),
    "model_executor.layers.attention.mm_encoder_attention": (
        "MMEncoderAttention.compute_max_seqlen",
        "MMEncoderAttention.maybe_compute_seq_lens",
        "MMEncoderAttention.maybe_recompute_cu_seqlens",
    ),
    "model_executor.models.qwen3_5": (
        "Qwen3_5ForConditionalGeneration.recompute_mrope_positions",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3_5MoeProcessingInfo",
        "Qwen3_5ProcessingInfo",
    ),
    "multimodal.processing": (
        "BaseMultiModalProcessor._apply_hf_processor_main",
        "BaseMultiModalProcessor._get_mm_fields_config",
        "BaseMultiModalProcessor.apply",
        "BaseMultiModalProcessor.get_dummy_inputs",
        "BaseProcessingInfo.get_mm_max_tokens_per_item",
        "BaseProcessingInfo.model_id",
        "BaseProcessingInfo.validate_num_items",
        "PromptReplacement",
        "PromptUpdateDetails.select_token_id",
    ),
    "multimodal.inputs": ("MultiModalFieldConfig.batched",),
    "multimodal.parse": ("ImageProcessorItems.get_image_size",),
    "config.multimodal": (
        "MultiModalConfig.is_multimodal_pruning_enabled",
        "MultiModalConfig.get_video_pruning_spec",
    ),
    "config.scheduler": ("SchedulerConfig",),
    "transformers_utils.processor": ("cached_get_image_processor",),
}
"""The names by module; `missing` looks them up."""


def missing(models: Iterable[str] | None = None) -> list[str]:
    """What the installed vLLM lacks of what the plug-in uses.

    Parameters
    ----------
    models
        The modules of models to look into; all when None.
    """
    gone = []
    for module, names in INTERNALS.items():
        model = module.startswith("model_executor.models.") and not module.endswith(".config")
        if models is not None and model and module not in models:
            continue
        try:
            found = import_module(f"vllm.{module}")
        except ImportError:
            gone.append(f"vllm.{module}")
            continue
        for name in names:
            try:
                attrgetter(name)(found)
            except AttributeError:
                gone.append(f"vllm.{module}.{name}")
    return gone
