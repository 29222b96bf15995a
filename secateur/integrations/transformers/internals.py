"""The names of transformers we rely on that it does not document, each in one function here.

Checked against transformers 5.17 to 5.23. `missing` names what a later version no longer has; a
test fails with its words.
"""

from __future__ import annotations

from typing import Any

import torch

from secateur.integrations.encoded import Tensor

CHECKED = ("5.17", "5.23")
"""The oldest and the newest release these names were checked against."""


def missing() -> list[str]:
    """What the installed transformers lacks of what this file and the families use."""
    import inspect

    from transformers import cache_utils, generation, masking_utils, vision_utils

    wanted = {
        "cache_utils.DynamicLayer.update": hasattr(cache_utils.DynamicLayer, "update"),
        "cache_utils.StaticLayer.cumulative_length": hasattr(
            cache_utils.StaticLayer(max_cache_len=1), "cumulative_length"
        ),
        "cache_utils.Cache.layers": "layers" in inspect.signature(cache_utils.Cache).parameters,
        "masking_utils.create_causal_mask(layer_idx=)": "layer_idx"
        in inspect.signature(masking_utils.create_causal_mask).parameters,
        "vision_utils.get_vision_window_index": hasattr(vision_utils, "get_vision_window_index"),
        "GenerationMixin.prepare_inputs_for_generation": hasattr(
            generation.GenerationMixin, "prepare_inputs_for_generation"
        ),
    }
    return [name for name, there in wanted.items() if not there]


def check_cache(cache: Any, *, static: bool = True) -> None:
    """Refuse a cache whose layers we cannot shorten, or, without `static`, leave unequal."""
    from transformers.cache_utils import DynamicLayer, StaticLayer

    if cache is None:
        return
    known = {DynamicLayer.__name__, StaticLayer.__name__} if static else {DynamicLayer.__name__}
    odd = {type(layer).__name__ for layer in cache.layers} - known
    if odd or getattr(cache, "offloading", False):
        what = ", ".join(sorted(odd)) or "offloaded layers"
        raise ValueError(
            f"past_key_values: pruning inside the language model works on dynamic "
            f"{'and static caches' if static else 'caches here'}, not {what}"
        )


def shorten_cache(cache: Any, layers: int, index: Tensor) -> None:
    """Keep the entries `index` (B, T), -1 at padding, in the first layers of a cache.

    Dynamic layers get new tensors, static ones keep their storage and forget their tail.
    """
    from transformers.cache_utils import StaticLayer

    for layer in cache.layers[:layers]:
        gather = index.to(layer.keys.device).clamp(min=0)[:, None, :, None]
        length = index.shape[1]
        for name in ("keys", "values"):
            held = getattr(layer, name)
            taken = held.gather(2, gather.expand(-1, held.shape[1], -1, held.shape[3]))
            if isinstance(layer, StaticLayer):
                held[:, :, :length] = taken
                held[:, :, length:] = 0
            else:
                setattr(layer, name, taken)
        if isinstance(layer, StaticLayer):
            layer.cumulative_length.fill_(length)


def cached_length(cache: Any, layer: int = 0) -> int:
    """How many tokens a layer of a cache holds."""
    return int(cache.get_seq_length(layer))


def rotary(decoder: Any, hidden: Tensor, positions: Tensor) -> Any:
    """Cosine and sine (B, T, d) at positions (B, T), alike in every plane a model has."""
    sections = getattr(decoder.config, "rope_parameters", None) or {}
    if "mrope_section" in sections:
        positions = positions[None].expand(3, -1, -1)
    return decoder.rotary_emb(hidden, positions)


def causal_mask(config: Any, hidden: Tensor, mask: Tensor, cache: Any, layer: int) -> Any:
    """The mask that layers from `layer` on expect for the prompt `hidden` (B, T, C)."""
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=mask,
        past_key_values=cache,
        layer_idx=layer,
    )


def is_compiled(model: Any) -> bool:
    """Whether `model.compile()` was called: its compiled forward would not see the attachment."""
    return getattr(model, "_compiled_call_impl", None) is not None


def has_sliding_layers(config: Any) -> bool:
    """Whether some decoder layers see only a window."""
    kinds = getattr(config, "layer_types", None) or ()
    return any("sliding" in kind for kind in kinds)


def window_index(grids: Tensor, tower: Any) -> Tensor:
    """The order in which Qwen2.5-VL's tower runs its merged tokens."""
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(
        grids,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return order.to(torch.int64)
