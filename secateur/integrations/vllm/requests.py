"""What a request may say, and how it travels with its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig

from secateur.integrations.encoded import TEXT

IDS = "secateur_instruction_"
INSTRUCTION = "instruction"
"""The one argument of a processor that a request may give."""
LONGEST = 2048
"""Tokens of an instruction, at most; no more than the model takes either."""
LETTERS = 16
"""Letters that a token may stand for, so that nothing longer is taken apart."""
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class Instructed:
    """A processor that lets the instruction of a request travel with its images.

    vLLM caches what it encodes by the image and by the arguments of its processor. The instruction
    is one of those, so the same image under another instruction is another entry. No other
    argument of a request is taken: some decide how large an image becomes.
    """

    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """With arguments looked at, and with names of images that are this method's own."""
        unknown = sorted(set(inputs.hf_processor_mm_kwargs) - {INSTRUCTION})
        if unknown:
            raise ValueError(
                f"mm_processor_kwargs: {', '.join(unknown)} not taken from a request; this server "
                f"takes {INSTRUCTION} alone"
            )
        instruction = inputs.hf_processor_mm_kwargs.get(INSTRUCTION)
        if isinstance(instruction, str) and len(instruction) > self._longest * LETTERS:
            # Before it is hashed or taken apart.
            raise ValueError(
                f"secateur: an instruction of {len(instruction)} letters; at most "
                f"{self._longest * LETTERS}"
            )
        if inputs.mm_uuid_items:
            # A client's name for an image is taken as it is where nothing else tells them apart.
            named = {
                modality: [each and f"{self.info.identity}-{each}" for each in names]
                for modality, names in inputs.mm_uuid_items.items()
            }
            inputs = replace(inputs, mm_uuid_items=named)
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    @property
    def _longest(self) -> int:
        return min(LONGEST, int(self.info.ctx.model_config.max_model_len))

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """With an instruction, for methods that need one."""
        made = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        if self.info.method.needs & TEXT:
            made = replace(made, hf_processor_mm_kwargs={INSTRUCTION: "what is there?"})
        return made

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        given = dict(hf_kwargs)
        instruction = given.pop(INSTRUCTION, None)
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
        if len(ids) > self._longest:
            raise ValueError(
                f"secateur: an instruction of {len(ids)} tokens; at most {self._longest}"
            )
        return ids

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        known = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))  # type: ignore[misc]
        for name in PIXELS.values():
            if name in known:
                # Pixels go to the device a pass at a time; see `passes`.
                field = replace(known[name].field, keep_on_cpu=True)
                known[name] = MultiModalFieldConfig(field, known[name].modality)
        for modality in PIXELS:
            if IDS + modality in hf_inputs:
                known[IDS + modality] = MultiModalFieldConfig.batched(modality)
        return known
