"""What a method wants to see of the towers of CLIP and SigLIP, and of those laid out alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from secateur.integrations.encoded import Seen
from secateur.integrations.observing import (
    heads,
    keys_of,
    layer_of,
    received,
    requests_of,
    watching,
)
from secateur.integrations.vllm.checking import OBSERVED
from secateur.integrations.vllm.pruning import Pruned, all_heads, over_heads


class Ungraphed:
    """A model whose encoder runs without graphs, which would run the tower around the method."""

    def get_encoder_cudagraph_config(self) -> Any:
        """As vLLM's, for no modality."""
        return replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]


@contextmanager
def watched(
    model: Pruned, layers: Sequence[Any], vision: Any, *, class_token: bool = False
) -> Iterator[Seen]:
    """Collect what the method wants of the tower, (P, N, ...) each.

    Parameters
    ----------
    layers
        Those that vLLM built, of which the last makes the features.
    vision
        The configuration of the tower.
    class_token
        Whether the tower has one, the first.
    """
    seen = Seen()
    requests = {
        name: request
        for name, request in requests_of(model.method).items()
        if name in model.wants and name in OBSERVED
    }
    depths = {
        name: layer_of(request, len(layers) - 1, vision.num_hidden_layers)
        for name, request in requests.items()
    }
    with watching() as watch:
        outputs = {
            name: watch.output(layers[depth].self_attn.qkv_proj) for name, depth in depths.items()
        }
        yield seen
    size = vision.hidden_size // vision.num_attention_heads
    for name, found in outputs.items():
        queries, keys, _ = torch.cat(found).chunk(3, dim=-1)
        if name == "keys":
            every = all_heads(keys[:, int(class_token) :], vision.hidden_size)
            seen.keys = keys_of(heads(every, size), requests[name])
            continue
        queries, keys = heads(queries, size), heads(keys, size)
        share = received(queries, keys, requests[name], class_token=class_token)
        parts = vision.num_attention_heads // queries.shape[-3]
        setattr(seen, name, over_heads(share, parts))
