"""What stands for an image in a prompt before pruning, where marks stand among its tokens.

Which of its tokens stay is known only once the image is encoded, and so is where the marks between
them stand. The prompt then has room for both, the embeddings of the marks come with those of the
tokens, and what they are travels with the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig

from secateur.integrations.vllm.requests import Instructed

LAYOUT = "secateur_layout"
"""The tokens of an image in an unpruned prompt, marks included; of a video, its text included."""


def shortened(ids: Sequence[int], token: int, counts: Sequence[int]) -> list[int]:
    """A prompt of runs of a token, with so many of it in each.

    >>> shortened([7, 1, 1, 1, 8, 7, 1, 1, 1, 8], 1, [2, 0])
    [7, 1, 1, 8, 7, 8]
    """
    left, found, before = iter(counts), [], -1
    for each in ids:
        if each != token:
            found.append(each)
        elif before != token:
            found += [token] * next(left)
        before = each
    return found


class LaidOut(Instructed):
    """A processor whose images travel with their layout."""

    def layouts(
        self, mm_data: Mapping[str, Any], hf_processor_mm_kwargs: Any, made: Any
    ) -> Sequence[Sequence[int]]:
        """The layout of each image that was processed."""
        raise NotImplementedError

    def _postprocess_hf_mm_data(
        self, mm_data: Mapping[str, Any], hf_processor_mm_kwargs: Any, processed_data: Any
    ) -> Any:
        made = super()._postprocess_hf_mm_data(  # type: ignore[misc]
            mm_data, hf_processor_mm_kwargs, processed_data
        )
        if mm_data:
            found = self.layouts(mm_data, hf_processor_mm_kwargs, made)
            made[LAYOUT] = [torch.tensor(ids) for ids in found]
        return made

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        known = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))
        return {**known, LAYOUT: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}
