"""What an attachment has to know about a model, and the models that are known.

A new family is one file with a class that derives from `Family`, and one line in `FAMILIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

if TYPE_CHECKING:
    from secateur.integrations.guidance import TextEncoder

Tensor = Any
"""A torch.Tensor."""

Indices = np.ndarray[Any, np.dtype[np.int64]]

Modality = Literal["image", "video"]
Positions = Literal["original", "compact"]

TEXT = frozenset({"text", "text_global", "text_mask"})
"""Inputs of methods that tell the instruction."""

FAMILIES = {
    "LlavaForConditionalGeneration": "llava:Llava",
    "LlavaNextForConditionalGeneration": "llava_next:LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision:LlavaOneVision",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl:Qwen25VL",
    "Qwen3VLForConditionalGeneration": "qwen3_vl:Qwen3VL",
}
"""The model classes of transformers that can be attached to, and the file and class beside this
one that know them."""


class UnsupportedModelError(ValueError):
    """A model nobody taught us."""

    def __init__(self, model: object, why: str = "") -> None:
        known = ", ".join(FAMILIES)
        reason = why or "this class is not among those we know"
        super().__init__(f"cannot attach to {type(model).__name__}: {reason} (known: {known})")


@dataclass(kw_only=True)
class Part:
    """A grid of tokens that a method chooses within: an image, a crop of it or a video frame.

    Attributes
    ----------
    index
        Where its tokens (h * w,) stand among the features of the image or video.
    grid
        (h, w).
    attention, attention_shallow, keys, embeds, pixels
        What `Tokens` holds under these names, as far as it was asked for.
    """

    index: Indices
    grid: tuple[int, int]
    attention: Tensor = None
    attention_shallow: Tensor = None
    keys: Tensor = None
    embeds: Tensor = None
    pixels: Tensor = None


@dataclass(kw_only=True)
class Visual:
    """An image or a video of a prompt, encoded.

    Attributes
    ----------
    modality
        Which placeholders it fills.
    features
        What fills them (n, D), in order.
    parts
        The grids of tokens among them. What no part holds are separators.
    separators
        Tokens that only mark structure, such as the end of a row, each with the places of the
        tokens it marks. It stays as long as one of those does, and counts in no budget.
    planes
        Features (n, D) that the language model adds in its first layers, one a layer.
    crops
        How many pictures the parts were cut from, overview included, when these share a budget;
        0 for parts with one of their own, such as frames.
    """

    modality: Modality
    features: Tensor
    parts: list[Part]
    separators: list[tuple[int, Indices]] = field(default_factory=list)
    planes: Sequence[Tensor] = ()
    crops: int = 0

    @property
    def size(self) -> int:
        """How many placeholders it fills."""
        return int(self.features.shape[0])


def whole(grid: tuple[int, int], start: int = 0) -> Part:
    """A part whose tokens stand one after the other, from `start`."""
    return Part(index=np.arange(start, start + grid[0] * grid[1]), grid=grid)


class Family(ABC):
    """Where one family of models keeps what pruning needs."""

    name: ClassVar[str]
    """What people call it."""
    visual_inputs: ClassVar[tuple[str, ...]]
    """Arguments of `forward` that only the vision side reads."""
    offers: ClassVar[frozenset[str]] = frozenset({"features", "grid", "attention"})
    """Inputs of methods that need no text; see `Tokens`."""
    positions: ClassVar[Positions] = "original"
    """The default of `attach(positions=)`."""
    modalities: ClassVar[tuple[Modality, ...]] = ("image",)
    normalisation: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]] = (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    )
    """Mean and deviation of the pixels where no processor tells: CLIP's."""

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
        """

    def placeholders(self, model: Any) -> dict[Modality, int]:
        """The token that stands for each visual token in the prompt."""
        config = model.config
        return {name: int(getattr(config, f"{name}_token_id")) for name in self.modalities}

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

    def remember(self, model: Any, positions: Tensor, mask: Tensor) -> None:
        """Tell the model where decoding goes on, if it keeps such a thing."""

    def tower(self, model: Any) -> Any:
        """The vision tower, where it is one half of a CLIP or SigLIP pair; None elsewhere."""
        return None

    def encoded(self, model: Any, ids: Tensor, prompt: Any) -> dict[str, Any]:
        """A compacted prompt as public arguments, where `inputs_embeds` cannot carry it all."""
        raise NotImplementedError

    def language_model(self, model: Any) -> Any:
        """The decoder, with `layers`."""
        return model.model.language_model

    def structure_tokens(self, model: Any) -> frozenset[int]:
        """Tokens around images and turns, which are no part of an instruction."""
        config = model.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return frozenset(int(x) for name in names if (x := getattr(config, name, None)) is not None)


def family_named(name: str) -> Family:
    """Who knows the models of a class in `FAMILIES`."""
    module, _, kind = FAMILIES[name].partition(":")
    known: Family = getattr(import_module(f"secateur.integrations.{module}"), kind)()
    return known


def family_of(model: Any) -> Family:
    """Who knows this model.

    Raises
    ------
    UnsupportedModelError
        When nobody does, with the list of those that are known.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in FAMILIES and kind.__module__.partition(".")[0] == "transformers":
            known = family_named(kind.__name__)
            known.check(model)
            return known
    inner = _wrapped(model)
    if inner is not None:
        raise UnsupportedModelError(
            model, f"it wraps another model; attach to model.{inner}, then wrap or compile it"
        )
    raise UnsupportedModelError(model)


def _wrapped(model: Any) -> str | None:
    """The attribute under which a wrapper keeps a model we know."""
    for name in ("_orig_mod", "module", "base_model.model", "_fsdp_wrapped_module", "model"):
        inner = model
        for step in name.split("."):
            inner = getattr(inner, step, None)
        if inner is not None and type(inner).__name__ in FAMILIES:
            return name
    return None


def split(visuals: Sequence[Visual], name: Modality) -> Iterator[Visual]:
    """Those of one modality, in order."""
    return (each for each in visuals if each.modality == name)
