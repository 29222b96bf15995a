"""Qwen3-VL: full attention in every layer of the tower, deepstack, timestamps between frames.

The language model's first layers each add features of an earlier tower layer at visual tokens;
they are shortened with everything else. Attention is that of the tower's last layer, as for
Qwen2.5-VL. `positions=None` means ``"original"``: kept tokens keep time, row and column.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from secateur.integrations.encoded import Tensor
from secateur.integrations.families.base import Family
from secateur.integrations.families.qwen import QWEN3_VL
from secateur.integrations.transformers.qwen2_5_vl import Qwen2VL
from secateur.integrations.transformers.shorten import Prompt, short_ids


class Qwen3VL(Qwen2VL):
    """Where Qwen3-VL keeps what pruning needs."""

    family: ClassVar[Family] = QWEN3_VL

    def encoded(self, model: Any, ids: Tensor, prompt: Prompt) -> dict[str, Any]:
        """Shortened `input_ids` and what the tower returned for the kept tokens."""
        short = short_ids(self, model, ids, prompt)
        from transformers.models.qwen3_vl.modeling_qwen3_vl import (
            BaseModelOutputWithDeepstackFeatures,
        )

        device = prompt.embeds.device
        visual = torch.from_numpy(prompt.visual).to(device)
        planes = []
        for plane in prompt.planes:
            kept = torch.cat([own for own in plane if own is not None])
            planes.append(prompt.embeds.new_zeros(prompt.embeds.shape))
            planes[-1][visual] = kept.to(planes[-1])
        outputs = {}
        for name, token in self.placeholders(model).items():
            where = visual & (short.to(device) == token)
            rows = [own for own in where.sum(dim=1).tolist() if own]
            if rows:
                outputs[name] = BaseModelOutputWithDeepstackFeatures(
                    pooler_output=list(prompt.embeds[where].split(rows)),
                    deepstack_features=[list(plane[where].split(rows)) for plane in planes],
                )
        return {"input_ids": short, "mm_encoder_outputs": outputs}
