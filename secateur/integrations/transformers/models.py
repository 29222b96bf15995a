"""The models of transformers that are known, and what an attachment has to know about one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from secateur.integrations.text import Flags, TextEncoder
from secateur.core.acts import Folds
from secateur.core.inputs import REQUESTS, Request, Tokens
from secateur.core.selection import Selection
from secateur.integrations.encoded import Indices, Modality, Tensor, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.text import Flags

FAMILIES = {
    "Gemma3ForConditionalGeneration": "gemma3:Gemma3",
    "Gemma4ForConditionalGeneration": "gemma4:Gemma4",
    "Glm46VForConditionalGeneration": "glm:GLM4V",
    "Glm4vForConditionalGeneration": "glm:GLM4V",
    "Glm4vMoeForConditionalGeneration": "glm:GLM4V",
    "Idefics3ForConditionalGeneration": "smolvlm:SmolVLM",
    "InternVLForConditionalGeneration": "internvl:InternVL",
    "LlavaForConditionalGeneration": "llava:Llava",
    "LlavaNextForConditionalGeneration": "llava_next:LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision:LlavaOneVision",
    "Mistral3ForConditionalGeneration": "mistral3:Mistral3",
    "Qwen2VLForConditionalGeneration": "qwen2_5_vl:Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl:Qwen25VL",
    "Qwen3VLForConditionalGeneration": "qwen3_vl:Qwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl:Qwen3VL",
    "Qwen3_5ForConditionalGeneration": "qwen3_5:Qwen35",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5:Qwen35",
    "SmolVLMForConditionalGeneration": "smolvlm:SmolVLM",
}
"""The model classes of transformers that can be attached to, and the file and class beside this
one that know them."""


class UnsupportedModelError(ValueError):
    """A model nobody taught us."""

    def __init__(self, model: object, why: str = "") -> None:
        known = ", ".join(FAMILIES)
        reason = why or "this class is not among those we know"
        super().__init__(f"cannot attach to {type(model).__name__}: {reason} (known: {known})")


class Adapter(ABC):
    """Where transformers keeps what pruning needs of one family of models."""

    family: ClassVar[Family]
    """What is true of the family in every host."""
    visual_inputs: ClassVar[tuple[str, ...]]
    """Arguments of `forward` that only the vision side reads."""
    types: ClassVar[str] = ""
    """The argument of `forward` that tells visual tokens from text where the language model lets
    those of an image see each other both ways; empty where it does not."""

    @property
    def offers(self) -> frozenset[str]:
        """The fields of `Tokens` that it can fill, text left aside."""
        return self.family.offers

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the pixels where no processor tells."""
        return self.family.normalisation

    def suited(self, model: Any) -> Adapter:
        """The adapter for this very model, whose tower may be that of another family."""
        return self

    def check(self, model: Any) -> None:
        """Raise `UnsupportedModelError` for a configuration of the family we do not know."""

    @abstractmethod
    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """Run the vision side once: the images in order, then the videos.

        Parameters
        ----------
        inputs
            The arguments of `forward`.
        wants
            The fields of `Tokens` to fill.
        encoder
            Maps states of the tower to a space shared with text, for "embeds".
        pixels
            How to undo the normalisation, for "pixels".
        requests
            What to observe of the tower for each of the fields.
        """

    def encode_some(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        choose: Callable[[Sequence[Tokens]], list[Selection]],
        pixels: Any,
    ) -> list[Visual]:
        """The same, run on those cells alone that `choose` takes, from pixels and grid.

        Of families that say that they skip (`Family.skips`).
        """
        raise NotImplementedError

    def encode_folding(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        method: Folds,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """The same, with what `method` folds on the way.

        Of families that say that tokens may fold (`Family.folds`).
        """
        raise NotImplementedError

    def placeholders(self, model: Any) -> dict[Modality, int]:
        """The token that stands for each visual token in the prompt."""
        config = model.config
        return {name: int(getattr(config, f"{name}_token_id")) for name in self.family.modalities}

    def standing(self, model: Any, ids: Indices) -> dict[Modality, Flags]:
        """True (B, T) at the placeholders of each modality."""
        return {name: ids == token for name, token in self.placeholders(model).items()}

    def position_ids(
        self, model: Any, inputs: Mapping[str, Any], mask: Tensor | None, *, generating: bool
    ) -> Tensor:
        """Positions of the unpruned prompt, as the stock model would number them.

        `generate` counts real tokens; `forward` on its own counts all of them.
        """
        import torch

        if inputs.get("position_ids") is not None:
            return inputs["position_ids"]
        ids = inputs["input_ids"]
        if generating and mask is not None:
            counted = mask.long().cumsum(-1) - 1
            return counted.masked_fill(mask == 0, 0)
        return torch.arange(ids.shape[1], device=ids.device)[None].expand(ids.shape[0], -1)

    def tower(self, model: Any) -> Any:
        """The vision tower, where it is one half of a CLIP or SigLIP pair; None elsewhere."""
        return None

    def beside(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        """Arguments (B, T, ...) of `forward` that the language model reads beside embeddings."""
        return {}

    def both_ways(self, model: Any) -> frozenset[str]:
        """The kinds of layers in which `types` lets the tokens of an image see each other so."""
        return frozenset()

    def encoded(self, model: Any, ids: Tensor, prompt: Any) -> dict[str, Any]:
        """A compacted prompt as public arguments of `generate`, beside mask and positions."""
        return {"inputs_embeds": prompt.embeds}

    def language_model(self, model: Any) -> Any:
        """The decoder, with `layers`."""
        return model.model.language_model

    def neighbours(self, model: Any) -> bool:
        """Whether the decoder turns channels 0 and 1, 2 and 3, ... together, not its halves."""
        return False

    def structure_tokens(self, model: Any) -> frozenset[int]:
        """Tokens around images and turns, which are no part of an instruction."""
        found = [
            getattr(model.config, f"{what}{mark}_token_id", None)
            for what in ("image", "video", "vision")
            for mark in ("", "_start", "_end")
        ]
        found += [getattr(model.config, f"{name}_token_id", None) for name in ("boi", "eoi")]
        return frozenset(int(x) for x in found if x is not None)


def adapter_of(kind: str) -> Adapter:
    """Who knows a class of models, by its name in `FAMILIES`."""
    module, _, name = FAMILIES[kind].partition(":")
    where = import_module(f"secateur.integrations.transformers.{module}")
    known: Adapter = getattr(where, name)()
    return known


def family_of(model: Any) -> Adapter:
    """Who knows this model.

    Raises
    ------
    UnsupportedModelError
        When nobody does, with the list of those that are known.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in FAMILIES and kind.__module__.partition(".")[0] == "transformers":
            known = adapter_of(kind.__name__).suited(model)
            known.check(model)
            return known
    inner = _wrapped(model)
    if inner is not None:
        raise UnsupportedModelError(
            model, f"it wraps another model; attach to model.{inner}, then wrap or compile it"
        )
    raise UnsupportedModelError(model)


def inner_model(model: Any) -> Any:
    """The model that adapters of PEFT, such as LoRA's, were put into; any other as it is.

    `get_base_model` and `active_peft_config` are PEFT's (0.21).

    Raises
    ------
    UnsupportedModelError
        Where the adapter is no part of the model, but tokens before every prompt.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise UnsupportedModelError(
            model, "its adapter puts tokens of its own before every prompt; LoRA's can be attached"
        )
    return model.get_base_model()


def _wrapped(model: Any) -> str | None:
    """The attribute under which a wrapper keeps a model we know."""
    for name in ("_orig_mod", "module", "base_model.model", "_fsdp_wrapped_module", "model"):
        inner = model
        for step in name.split("."):
            inner = getattr(inner, step, None)
        if inner is not None and type(inner).__name__ in FAMILIES:
            return name
    return None
