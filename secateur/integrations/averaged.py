"""What a method wants to see of Gemma 4's tower, whose patches are averaged to tokens.

It is the same module in every host. Attention is what a patch receives on average from its image,
averaged, as normed keys are, over the patches that become one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from secateur.core.inputs import Request
from secateur.integrations.encoded import Part, Tensor, Visual, whole
from secateur.integrations.families.pixtral import merged
from secateur.integrations.observing import Watch, keys_of, layer_of, received, rotate


class Averaged:
    """Notes what `requests` ask of the layers of a tower while it runs once.

    Parameters
    ----------
    watch
        What lasts as long as the tower may run.
    tower
        The vision tower.
    requests
        What to observe for each field of `Tokens` that is wanted.
    """

    def __init__(self, watch: Watch, tower: Any, requests: Mapping[str, Request]) -> None:
        layers, self.requests = tower.encoder.layers, requests
        self.fold = int(tower.config.pooling_kernel_size)
        self.seen: dict[str, Any] = {}
        for name, request in requests.items():
            own = layers[layer_of(request, len(layers) - 1, len(layers))].self_attn
            queries, keys = watch.output(own.q_norm), watch.output(own.k_norm)
            self.seen[name] = (queries, keys, watch.arguments(own), own.scaling)

    def visuals(self, features: Sequence[Tensor], positions: Tensor) -> list[Visual]:
        """One grid a picture, of its features (n, D) and positions (P, N, 2) of patches."""
        found = []
        for picture, own in enumerate(features):
            width, height = (int(n) + 1 for n in positions[picture].amax(dim=0))
            part = whole((height // self.fold, width // self.fold))
            self._observe(part, picture, (height, width))
            found.append(Visual(modality="image", features=own, parts=[part]))
        return found

    def _observe(self, part: Part, picture: int, grid: tuple[int, int]) -> None:
        for name, request in self.requests.items():
            x = self._observed(self.seen[name], picture, grid[0] * grid[1], request)
            setattr(part, name, merged(x, grid, self.fold))

    @torch.no_grad()
    def _observed(self, seen: Any, picture: int, size: int, request: Request) -> Tensor:
        """Attention (n,) or keys (n, C) of the patches of a picture, from (P, N, H, d)."""
        queries, keys = (x[0][picture, :size].detach() for x in seen[:2])
        if request.what == "keys":
            return keys_of(keys.transpose(0, 1), request)
        angles = [x[picture, :size, None].float() for x in seen[2][0][1]["position_embeddings"]]
        queries, keys = (_turned(x.float(), *angles).transpose(0, 1) for x in (queries, keys))
        keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
        # `received` divides by the root of d, this tower by nothing.
        scale = seen[3] * queries.shape[-1] ** 0.5
        return received(queries * scale, keys, request)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotated (n, H, d), one half of the channels by columns, the other by rows."""
    halves = zip(*(each.chunk(2, dim=-1) for each in (x, cos, sin)), strict=True)
    return torch.cat([rotate(*each) for each in halves], dim=-1)
