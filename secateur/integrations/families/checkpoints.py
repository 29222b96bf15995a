"""Published checkpoints of the models: what goes with them. None has been run here.

Settings are those that a method's authors publish for the family; the command line sets them where
nobody says otherwise.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from secateur.core.methods import Method
from secateur.core.methods.erase import PRESETS

CLIP = "openai/clip-vit-large-patch14-336"
SIGLIP = "google/siglip-so400m-patch14-384"

EADP_LLAVA = {"beta": 1.0, "sign": -1}
EADP_QWEN = {"beta": 2.0, "sign": -1}


class Checkpoint(NamedTuple):
    """A checkpoint of a class of transformers."""

    name: str
    """As for `from_pretrained`."""
    text_encoder: str | None = None
    """The checkpoint of the pair that its vision tower is one side of, where it is."""
    settings: Mapping[str, Mapping[str, Any]] = {}
    """By a method's name, what its authors set for the family."""


CHECKPOINTS = {
    "Gemma3ForConditionalGeneration": Checkpoint("google/gemma-3-4b-it"),
    "Gemma4ForConditionalGeneration": Checkpoint("google/gemma-4-E2B-it"),
    "Glm4vForConditionalGeneration": Checkpoint("zai-org/GLM-4.1V-9B-Thinking"),
    "Glm4vMoeForConditionalGeneration": Checkpoint("zai-org/GLM-4.5V"),
    "Idefics3ForConditionalGeneration": Checkpoint("HuggingFaceM4/Idefics3-8B-Llama3"),
    "InternVLForConditionalGeneration": Checkpoint("OpenGVLab/InternVL3-8B-hf"),
    "LlavaForConditionalGeneration": Checkpoint(
        "llava-hf/llava-1.5-7b-hf", CLIP, {"eadp": EADP_LLAVA}
    ),
    "LlavaNextForConditionalGeneration": Checkpoint(
        "llava-hf/llava-v1.6-mistral-7b-hf", CLIP, {"eadp": EADP_LLAVA}
    ),
    "LlavaOnevisionForConditionalGeneration": Checkpoint(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", SIGLIP, {"eadp": EADP_LLAVA}
    ),
    "Mistral3ForConditionalGeneration": Checkpoint("mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
    "Qwen2VLForConditionalGeneration": Checkpoint(
        "Qwen/Qwen2-VL-7B-Instruct", None, {"eadp": EADP_QWEN}
    ),
    "Qwen2_5_VLForConditionalGeneration": Checkpoint(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        None,
        {"eadp": EADP_QWEN, "erase": PRESETS["qwen2.5-vl-7b"]._asdict()},
    ),
    "Qwen3VLForConditionalGeneration": Checkpoint(
        "Qwen/Qwen3-VL-8B-Instruct",
        None,
        {"eadp": EADP_QWEN, "erase": PRESETS["qwen3-vl-8b"]._asdict()},
    ),
    "Qwen3VLMoeForConditionalGeneration": Checkpoint("Qwen/Qwen3-VL-30B-A3B-Instruct"),
    "Qwen3_5ForConditionalGeneration": Checkpoint("Qwen/Qwen3.5-27B"),
    "Qwen3_5MoeForConditionalGeneration": Checkpoint("Qwen/Qwen3.5-35B-A3B"),
    "SmolVLMForConditionalGeneration": Checkpoint("HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
}
"""By the class of transformers, the checkpoint that most people mean."""


def suited(method: Method, kind: str, said: Container[str] = ()) -> Method:
    """A method with its authors' settings for a class of models, but for those that were `said`.

    >>> import secateur as sc
    >>> suited(sc.EADP(keep=64), "Qwen2VLForConditionalGeneration").beta
    2.0
    >>> suited(sc.EADP(keep=64, beta=3.0), "Qwen2VLForConditionalGeneration", {"beta"}).beta
    3.0
    """
    known = CHECKPOINTS.get(kind)
    settings = {} if known is None else known.settings.get(method.name, {})
    return replace(method, **{name: x for name, x in settings.items() if name not in said})
