"""A plug-in for vLLM: every image costs `keep` tokens.

vLLM finds `register` through the entry-point group ``vllm.general_plugins``. It adds models under
names of their own and changes none of vLLM's, so nothing happens until one of them is asked for:

    LLM(model, hf_overrides=secateur.integrations.vllm.overrides(sc.DivPrune(keep=64)))

or, with the same as JSON, ``vllm serve MODEL --hf-overrides '{"architectures":
["SecateurLlavaForConditionalGeneration"], "secateur": {"method": "divprune", "keep": 64}}'``.
Batching, caching and parallelism stay vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from operator import attrgetter
from typing import Any

from secateur.core.complexity import RunningCalibration
from secateur.core.methods import Method, methods
from secateur.integrations.encoded import TEXT
from secateur.integrations.families.base import Family
from secateur.integrations.families.llava import LLAVA
from secateur.integrations.families.llava_next import LLAVA_NEXT
from secateur.integrations.families.llava_onevision import LLAVA_ONEVISION
from secateur.integrations.families.qwen import QWEN2_5_VL, QWEN3_VL

CHECKED = ("0.32.0",)
"""The releases of vLLM this was run with."""

SUPPORTED = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
"""The classes that are served, by the type of a model: vLLM and transformers call them alike."""

FAMILIES: dict[str, Family] = {
    "llava": LLAVA,
    "llava_next": LLAVA_NEXT,
    "llava_onevision": LLAVA_ONEVISION,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
}

KEY = "secateur"
"""The key of the configuration that holds the method."""


INTERNALS = {
    "model_executor.models.llava": (
        "LlavaForConditionalGeneration.embed_multimodal",
        "LlavaForConditionalGeneration._parse_and_validate_image_input",
        "LlavaForConditionalGeneration._process_image_input",
        "LlavaProcessingInfo.get_num_image_tokens",
        "LlavaMultiModalProcessor._get_prompt_updates",
        "LlavaDummyInputsBuilder.get_dummy_mm_data",
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
        "LlavaOnevisionProcessingInfo.get_num_video_tokens",
        "LlavaOnevisionProcessingInfo._get_num_frame_tokens",
    ),
    "model_executor.models.qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration._process_image_input",
        "Qwen2_5_VLForConditionalGeneration._process_video_input",
        "Qwen2_5_VLForConditionalGeneration.recompute_mrope_positions",
        "Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions",
        "Qwen2_5_VisionTransformer.get_window_index_thw",
        "Qwen2_5_VLProcessingInfo.get_num_image_tokens",
    ),
    "model_executor.models.qwen3_vl": (
        "Qwen3VLForConditionalGeneration.recompute_mrope_positions",
        "Qwen3VLMultiModalProcessor.get_video_repl",
        "Qwen3VLProcessingInfo.get_num_image_tokens",
    ),
    "multimodal.processing": (
        "BaseMultiModalProcessor._apply_hf_processor_main",
        "BaseMultiModalProcessor._get_mm_fields_config",
        "BaseMultiModalProcessor.get_dummy_inputs",
        "PromptReplacement",
    ),
    "config.multimodal": ("MultiModalConfig.is_multimodal_pruning_enabled",),
    "transformers_utils.processor": ("cached_get_image_processor",),
}
"""Names of vLLM that it does not promise, by module; `missing` looks them up."""


def missing() -> list[str]:
    """What the installed vLLM lacks of what the plug-in uses."""
    gone = []
    for module, names in INTERNALS.items():
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


def register() -> None:
    """Make the models known to vLLM; their code is imported when one is asked for."""
    from vllm import ModelRegistry

    for model_type, served in SUPPORTED.items():
        module = "qwen" if model_type.startswith("qwen") else "llava"
        name = architecture(served)
        ModelRegistry.register_model(name, f"secateur.integrations.vllm.{module}:{name}")


def architecture(served: str) -> str:
    """What to write as "architectures" in a model's configuration for a class of `SUPPORTED`."""
    return f"Secateur{served}"


def overrides(method: Method, model_type: str = "llava") -> dict[str, Any]:
    """What to pass as ``hf_overrides``, checked.

    Parameters
    ----------
    method
        What chooses the tokens of every image.
    model_type
        That of the model's configuration: one of `SUPPORTED`.

    Returns
    -------
    dict
        Of plain values: as JSON it is the argument of ``vllm serve --hf-overrides``.

    Examples
    --------
    >>> import json, secateur as sc
    >>> from secateur.integrations.vllm import overrides
    >>> json.dumps(overrides(sc.TopK(keep=64)))
    '{"architectures": ["SecateurLlavaForConditionalGeneration"], "secateur": {"method": "topk", "keep": 64}}'
    """  # noqa: E501
    if model_type not in SUPPORTED:
        raise ValueError(
            f"secateur: no plug-in for vLLM's {model_type!r} yet; there is one for "
            f"{', '.join(SUPPORTED)}"
        )
    stored = method.to_dict()
    method_of(stored, model_type)
    return {"architectures": [architecture(SUPPORTED[model_type])], KEY: stored}


def method_of(stored: Any, model_type: str) -> Method:
    """The method that a configuration asks for, or an error of one line."""
    if not isinstance(stored, Mapping) or "method" not in stored:
        raise ValueError(
            'secateur: expected {"method": name, "keep": count} under "secateur" in hf_overrides, '
            f"got {stored!r}"
        )
    try:
        method = Method.from_dict(stored)
    except (TypeError, ValueError) as error:
        raise ValueError(f"secateur: {error}") from None
    offers = FAMILIES[model_type].offers | TEXT
    missing = sorted(method.needs - offers)
    if not method.prunes_before or missing:
        serves = sorted(
            name
            for name, kind in methods().items()
            if kind.prunes_before and name != "mixture" and kind().needs <= offers
        )
        why = (
            f"needs {', '.join(missing)}, which vLLM's {model_type} does not give"
            if method.prunes_before
            else "acts inside the language model, whose attention vLLM does not show"
        )
        raise ValueError(f"secateur: {stored['method']} {why}; take one of {', '.join(serves)}")
    for each in _within(method):
        _check(each)
    return method


def _within(method: Method) -> Iterator[Method]:
    """A method and those it is made of."""
    yield method
    for item in fields(method):
        if isinstance(inner := getattr(method, item.name), Method):
            yield from _within(inner)


def _check(method: Method) -> None:
    if getattr(method, "count", "fixed") != "fixed" or getattr(method, "adaptive", False):
        raise ValueError(
            f"secateur: {method.name} with a count that depends on the features; vLLM makes room "
            "for tokens before it encodes an image, so take a fixed count"
        )
    if getattr(method, "crops", None) not in (None, "importance"):
        raise ValueError(f"secateur: crops={method.crops!r}; crops share by importance here")  # type: ignore[attr-defined]
    if isinstance(getattr(method, "mean_erank", None), RunningCalibration):
        raise ValueError(
            "secateur: mean_erank: a running mean makes answers depend on other requests; take a "
            "number or a Calibration"
        )
