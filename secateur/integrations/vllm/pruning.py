"""What the plug-ins for all families share: counts before encoding, choices after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce
from vllm.multimodal.inputs import MultiModalFieldConfig

from secateur.core.inputs import Tokens
from secateur.core.methods import Method
from secateur.integrations.choosing import choose, wanted
from secateur.integrations.encoded import TEXT, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.pixels import Pixels
from secateur.integrations.text import Text
from secateur.integrations.vllm import FAMILIES, KEY, method_of

IDS = "secateur_instruction_"
OBSERVED = frozenset({"attention", "attention_shallow", "keys"})
"""What hooks on the tower collect."""


class Sized:
    """What a processor has to know: how many tokens a method keeps."""

    kind = ""
    """The model type whose method is served."""

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)  # type: ignore[call-arg]
        self.method = configured(self.get_hf_config(), self.kind)  # type: ignore[attr-defined]

    def at_most(self, size: int) -> int:
        """How many of an image's tokens may stay; only pixels tell how many do where they count."""
        return size if "pixels" in self.method.needs else self.method.budget(size)

    def counted(self, grid: tuple[int, int], channels: Any) -> int:
        """How many tokens of a grid a method keeps that decides by pixels, from (3, H, W)."""
        pixels = pixels_of(self.kind, self.get_hf_processor())  # type: ignore[attr-defined]
        tokens = Tokens(
            features=torch.zeros(grid[0] * grid[1], 1),
            grid=grid,
            pixels=restored(pixels, channels),
        )
        return int(self.method.select(tokens).count)


def configured(config: Any, kind: str) -> Method:
    """The method in a model's configuration, if vLLM can serve it."""
    return method_of(getattr(config, KEY, None), kind)


def pixels_of(kind: str, processor: Any) -> Pixels:
    """How to undo what a processor does to 8-bit values."""
    return Pixels.of(FAMILIES[kind], processor)


def restored(pixels: Pixels, channels: Any) -> Any:
    """Pixels (..., H, W, 3) from what a model of vLLM is given, which may not be normalised yet."""
    if channels.is_floating_point():
        return pixels.restore(channels)
    return channels.movedim(-3, -1).float()


def over_heads(share: Any, ranks: int) -> Any:
    """The mean over all heads, of which each of the `ranks` of a tensor-parallel tower has some."""
    if ranks == 1:
        return share
    return tensor_model_parallel_all_reduce(share.contiguous()) / ranks


def all_heads(keys: Any, width: int) -> Any:
    """Keys (..., width) of all heads."""
    if keys.shape[-1] == width:
        return keys
    return tensor_model_parallel_all_gather(keys.contiguous())


def _seen_by_hooks(method: Method, family: Family) -> Family:
    """The family, without what vLLM's towers do not show."""
    for name, request in method.requests.items():
        if name in method.needs and (request.layer == "last" or request.heads == "one"):
            raise ValueError(
                f"secateur: {type(method).__name__} looks at the last layer of the tower or at all "
                "heads as one, which vLLM's towers do not have; take transformers for it"
            )
    return replace(family, offers=family.offers - {"states", "class_state"}, projects=False)


class Instructed:
    """A processor that lets the instruction of a request travel with its images.

    vLLM caches what it encodes by the image and by the arguments of its processor. The instruction
    is one of those, so the same image under another instruction is another entry.
    """

    info: Any

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """With an instruction, for methods that need one."""
        made = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        if self.info.method.needs & TEXT:
            made = replace(made, hf_processor_mm_kwargs={"instruction": "what is there?"})
        return made

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        given = dict(hf_kwargs)
        instruction = given.pop("instruction", None)
        output = super()._apply_hf_processor_main(mm_items, given)  # type: ignore[misc]
        if self.info.method.needs & TEXT:
            ids = self._instruction(instruction)
            for modality, count in mm_items.get_all_counts().items():
                output[IDS + modality] = [ids] * count
        return output

    def _instruction(self, instruction: object) -> Any:
        if not isinstance(instruction, str) or not instruction.strip():
            name = type(self.info.method).__name__
            raise ValueError(
                f"secateur: {name} chooses by the instruction; send it with the request as "
                'mm_processor_kwargs={"instruction": "..."}'
            )
        tokenizer = self.info.get_tokenizer()
        ids = torch.tensor(tokenizer.encode(instruction, add_special_tokens=False))
        ids = ids[~torch.isin(ids, torch.tensor(sorted(tokenizer.all_special_ids)))]
        if len(ids) == 0:
            raise ValueError(f"secateur: no words in the instruction {instruction!r}")
        return ids

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        known = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))  # type: ignore[misc]
        for modality in ("image", "video"):
            if IDS + modality in hf_inputs:
                known[IDS + modality] = MultiModalFieldConfig.batched(modality)
        return known


class Pruned:
    """A model of vLLM with a method between its vision side and its language model."""

    config: Any
    language_model: Any
    kind = ""
    """The model type whose method is served."""

    def prepare(self, vllm_config: Any) -> None:
        """Read the method and what it wants to see; called once the model is built."""
        if vllm_config.model_config.multimodal_config.mm_encoder_tp_mode == "data":
            raise ValueError(
                "secateur: mm_encoder_tp_mode='data' spreads images over ranks, and what the tower "
                "attends to is not seen; leave it at 'weights'"
            )
        self.method = configured(self.config, self.kind)
        self.wants = wanted(self.method, _seen_by_hooks(self.method, FAMILIES[self.kind]), None)
        if vllm_config.compilation_config.compile_mm_encoder and self.wants & OBSERVED:
            raise ValueError(
                f"secateur: {type(self.method).__name__} watches the tower, which "
                "compile_mm_encoder hides; leave that off, or take a method such as divprune"
            )
        self.pixels = None
        if "pixels" in self.wants:
            from vllm.transformers_utils.processor import cached_get_image_processor

            # Every rank counts as the processor did that made room for the tokens.
            model = vllm_config.model_config
            worker = cached_get_image_processor(
                model.model, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
            self.pixels = pixels_of(self.kind, worker)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Kept embeddings, a tensor an image or video, in vLLM's order."""
        ids = {name: kwargs.pop(IDS + name, None) for name in ("image", "video")}
        found: list[Any] = []
        for modality, inputs in self.inputs_of(kwargs):
            if inputs["type"].endswith("_embeds"):
                # What a user encoded has no encoder to look at, and is as long as it is.
                found += self.given(modality, inputs)
                continue
            visuals = self.encoded(modality, inputs)
            texts = self._texts(ids[modality])
            found += self.finished(modality, inputs, visuals, self.kept(visuals, texts))
        return found

    def inputs_of(self, kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """vLLM's parsed inputs by modality."""
        parsed = self._parse_and_validate_multimodal_inputs(**kwargs)  # type: ignore[attr-defined]
        return [(name, each) for name, each in parsed.items() if each is not None]

    def given(self, modality: str, inputs: Any) -> list[Any]:
        """Embeddings that came with the request."""
        return list(getattr(self, f"_process_{modality}_input")(inputs))

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """Run the vision side once and say what is where."""
        raise NotImplementedError

    def finished(
        self,
        modality: str,
        inputs: Any,
        visuals: Sequence[Visual],
        kept: Sequence[tuple[Any, Any]],
    ) -> list[Any]:
        """What goes to the language model, from places and features that were kept."""
        return [features for _, features in kept]

    def _texts(self, ids: Any) -> list[Text] | None:
        if not self.method.needs & TEXT:
            return None
        device = next(self.parameters()).device  # type: ignore[attr-defined]
        words = [
            self.language_model.embed_input_ids(each.reshape(-1).to(device)).detach()
            for each in ids
        ]
        return [Text(each, each.mean(dim=0)) for each in words]

    @torch.no_grad()
    def kept(
        self, visuals: Sequence[Visual], texts: Sequence[Text] | None
    ) -> list[tuple[Any, Any]]:
        """Places (n,) and features (n, D) of the tokens of each image that stay."""
        several = len(visuals) > 1 and any(each.modality == "video" for each in visuals)
        plain = not several and not any(each.crops for each in visuals)
        if plain and (texts is None or all(len(each.parts) == 1 for each in visuals)):
            return self._together(visuals, texts)
        kept = []
        for number, visual in enumerate(visuals):
            chosen = choose(
                self.method, visual, self.wants, None if texts is None else texts[number]
            )
            kept.append((chosen.kept, chosen.features[torch.from_numpy(chosen.kept)]))
        return kept

    def _together(
        self, visuals: Sequence[Visual], texts: Sequence[Text] | None
    ) -> list[tuple[Any, Any]]:
        """The images of a step in one call, batched where their grids agree."""
        starts = np.cumsum([0, *(each.size for each in visuals)])
        parts, separators = [], []
        for start, visual in zip(starts, visuals, strict=False):
            parts += [replace(part, index=part.index + start) for part in visual.parts]
            separators += [(place + start, marked + start) for place, marked in visual.separators]
        whole = Visual(
            modality=visuals[0].modality,
            features=torch.cat([each.features for each in visuals]),
            parts=parts,
            separators=separators,
        )
        chosen = choose(self.method, whole, self.wants, texts)
        ends = np.searchsorted(chosen.kept, starts)
        kept = []
        for start, low, high in zip(starts, ends, ends[1:], strict=False):
            own = chosen.kept[low:high]
            kept.append((own - start, chosen.features[torch.from_numpy(own)]))
        return kept
