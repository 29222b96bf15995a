"""The architectures that are served: a row each, by the type of a model's configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secateur.integrations.families.base import Family
from secateur.integrations.families.glm import GLM_4V
from secateur.integrations.families.llava import LLAVA, TOWERS
from secateur.integrations.families.llava_next import LLAVA_NEXT
from secateur.integrations.families.llava_onevision import LLAVA_ONEVISION
from secateur.integrations.families.pixtral import MISTRAL3
from secateur.integrations.families.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_5, QWEN3_VL
from secateur.integrations.families.tiles import GEMMA3, GEMMA4, INTERNVL, SMOLVLM


@dataclass(frozen=True)
class Row:
    """One architecture.

    Attributes
    ----------
    served
        The architecture as vLLM and transformers call it.
    family
        What is true of the model in every host.
    module
        The file here that has our class.
    within
        The modules of `vllm` it rests on.
    placed
        Whether kept tokens keep positions in time, row and column.
    cropped
        Whether images are cut into crops that share a budget.
    towers
        The types of vision towers that are known, where the architecture may have others.
    model_type
        The type of the model's configuration, where it is that of another row too: their towers
        tell them apart.
    ours
        What our architecture is called after, where `served` is another row's too.
    """

    served: str
    family: Family
    module: str
    within: tuple[str, ...]
    placed: bool = False
    cropped: bool = False
    towers: tuple[str, ...] = ()
    model_type: str = ""
    ours: str = ""

    @property
    def architecture(self) -> str:
        """What to write as "architectures" in the model's configuration."""
        return f"Secateur{self.ours or self.served}"


_MODELS = "model_executor.models."


def _hooked(family: Family) -> Family:
    """The family, without what hooks on vLLM's towers do not show."""
    return replace(
        family,
        offers=family.offers - {"states", "class_state"},
        when_needed=frozenset(),
        projects=False,
        folds=False,
    )


def _unseen(family: Family) -> Family:
    """As `_hooked`, without the pixels, by which ERASE counts and PixelPrune drops.

    Tiles that share a budget cannot be counted so, and with Qwen3.5 transformers refuses ERASE.
    """
    return replace(_hooked(family), offers=family.offers - {"pixels"}, skips=False)


ROWS: dict[str, Row] = {
    "llava": Row(
        "LlavaForConditionalGeneration",
        _hooked(LLAVA),
        "llava",
        (f"{_MODELS}llava",),
        towers=TOWERS,
    ),
    "llava_next": Row(
        "LlavaNextForConditionalGeneration",
        _hooked(LLAVA_NEXT),
        "llava",
        (f"{_MODELS}llava", f"{_MODELS}llava_next"),
        cropped=True,
        towers=TOWERS,
    ),
    "llava_onevision": Row(
        "LlavaOnevisionForConditionalGeneration",
        _hooked(LLAVA_ONEVISION),
        "llava",
        (f"{_MODELS}llava", f"{_MODELS}llava_onevision"),
        cropped=True,
        towers=TOWERS,
    ),
    "internvl": Row(
        "InternVLForConditionalGeneration",
        _unseen(INTERNVL),
        "internvl",
        (f"{_MODELS}interns1",),
        cropped=True,
        towers=("internvl_vision",),
    ),
    "idefics3": Row(
        "Idefics3ForConditionalGeneration",
        _unseen(SMOLVLM),
        "smolvlm",
        (f"{_MODELS}idefics3", f"{_MODELS}smolvlm"),
        cropped=True,
    ),
    "smolvlm": Row(
        "SmolVLMForConditionalGeneration",
        _unseen(SMOLVLM),
        "smolvlm",
        (f"{_MODELS}idefics3", f"{_MODELS}smolvlm"),
        cropped=True,
    ),
    "gemma3": Row(
        "Gemma3ForConditionalGeneration",
        _unseen(GEMMA3),
        "gemma3",
        (f"{_MODELS}gemma3_mm",),
        towers=("siglip_vision_model",),
    ),
    "gemma4": Row(
        "Gemma4ForConditionalGeneration",
        _hooked(GEMMA4),
        "gemma4",
        (f"{_MODELS}gemma4_mm",),
        towers=("gemma4_vision",),
    ),
    "mistral3": Row(
        "Mistral3ForConditionalGeneration",
        _hooked(MISTRAL3),
        "mistral3",
        (f"{_MODELS}mistral3",),
        towers=("pixtral",),
    ),
    "pixtral": Row(
        "LlavaForConditionalGeneration",
        _hooked(MISTRAL3),
        "pixtral",
        (f"{_MODELS}llava",),
        towers=("pixtral",),
        model_type="llava",
        ours="PixtralForConditionalGeneration",
    ),
    "qwen2_vl": Row(
        "Qwen2VLForConditionalGeneration",
        _hooked(QWEN2_VL),
        "qwen",
        (f"{_MODELS}qwen2_vl",),
        placed=True,
    ),
    "qwen2_5_vl": Row(
        "Qwen2_5_VLForConditionalGeneration",
        _hooked(QWEN2_5_VL),
        "qwen",
        (f"{_MODELS}qwen2_5_vl",),
        placed=True,
    ),
    "qwen3_vl": Row(
        "Qwen3VLForConditionalGeneration",
        _hooked(QWEN3_VL),
        "qwen",
        (f"{_MODELS}qwen2_5_vl", f"{_MODELS}qwen3_vl"),
        placed=True,
    ),
    "qwen3_vl_moe": Row(
        "Qwen3VLMoeForConditionalGeneration",
        _hooked(QWEN3_VL),
        "qwen",
        (f"{_MODELS}qwen2_5_vl", f"{_MODELS}qwen3_vl", f"{_MODELS}qwen3_vl_moe"),
        placed=True,
    ),
    "qwen3_5": Row(
        "Qwen3_5ForConditionalGeneration",
        _unseen(QWEN3_5),
        "qwen3_5",
        (f"{_MODELS}qwen3_vl", f"{_MODELS}qwen3_5"),
        placed=True,
    ),
    "qwen3_5_moe": Row(
        "Qwen3_5MoeForConditionalGeneration",
        _unseen(QWEN3_5),
        "qwen3_5",
        (f"{_MODELS}qwen3_vl", f"{_MODELS}qwen3_5"),
        placed=True,
    ),
    "glm4v": Row(
        "Glm4vForConditionalGeneration",
        _hooked(GLM_4V),
        "glm",
        (f"{_MODELS}glm4_1v",),
        placed=True,
    ),
    "glm4v_moe": Row(
        "Glm4vMoeForConditionalGeneration",
        _hooked(GLM_4V),
        "glm",
        (f"{_MODELS}glm4_1v",),
        placed=True,
    ),
}

SUPPORTED = {kind: row.ours or row.served for kind, row in ROWS.items()}
"""The classes that are served, by the type of a model: vLLM and transformers call them alike.

But for Pixtral's, which is LLaVA's there.
"""


def kind_of(model_type: str, tower: str) -> str | None:
    """The row of a configuration's type and of its vision tower's; None where nobody has it.

    A tower that none of a type's rows know is left to the first of them, to be refused there.

    >>> kind_of("llava", "clip_vision_model"), kind_of("llava", "pixtral")
    ('llava', 'pixtral')
    """
    found = [kind for kind, row in ROWS.items() if (row.model_type or kind) == model_type]
    known = (kind for kind in found if tower in ROWS[kind].towers)
    return next(known, next(iter(found), None))
