"""The names of transformers we rely on that it does not document, each in one function here.

Each function says in which releases its names were seen. `missing` names what a later version no
longer has; a test fails with its words.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cache as once
from typing import Any

import torch

from secateur.integrations.encoded import Tensor

CHECKED = ("5.17", "5.24")
"""The oldest and the newest release these names were checked against."""

CACHES = ("cache", "past_key_values")
"""What a call may name its cache: from 5.24 on the first, before it the second."""


TOLD_BEFORE = (
    "get_vision_position_ids",
    "get_vision_cu_seqlens",
    "get_vision_window_index",
    "get_vision_interpolation_indices_and_weights",
)
"""What Qwen's towers work out from grids, unless they are told it."""


def missing() -> list[str]:
    """What the installed transformers lacks of what this file and the families use."""
    from transformers import cache_utils, generation, masking_utils
    from transformers import vision_utils as vision
    from transformers.models.gemma3 import modeling_gemma3 as gemma3
    from transformers.models.gemma4 import modeling_gemma4 as gemma4
    from transformers.models.glm4v import modeling_glm4v as glm
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.llava_onevision import modeling_llava_onevision as onevision
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen25
    from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen35
    from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3

    static = cache_utils.StaticLayer(max_cache_len=1)
    window = cache_utils.DynamicSlidingWindowLayer(sliding_window=1)
    grids = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    wanted = {
        "Cache(layers=)": _takes(cache_utils.Cache, "layers"),
        "DynamicLayer.update": hasattr(cache_utils.DynamicLayer, "update"),
        "StaticLayer.cumulative_length": hasattr(static, "cumulative_length"),
        "create_causal_mask(layer_idx=, block_sequence_ids=)": _takes(
            masking_utils.create_causal_mask, "layer_idx", "block_sequence_ids"
        ),
        "DynamicSlidingWindowLayer.cumulative_length": hasattr(window, "cumulative_length"),
        "Gemma4TextModel.get_per_layer_inputs": hasattr(
            gemma4.Gemma4TextModel, "get_per_layer_inputs"
        ),
        "Gemma4TextDecoderLayer.forward(shared_kv_states=)": _takes(
            gemma4.Gemma4TextDecoderLayer.forward, "shared_kv_states", "per_layer_input"
        ),
        "Gemma3RotaryEmbedding.forward(layer_type=)": _takes(
            gemma3.Gemma3RotaryEmbedding.forward, "layer_type"
        ),
        "create_causal_mask(cache= or past_key_values=)": any(
            _takes(masking_utils.create_causal_mask, name) for name in CACHES
        ),
        **{
            f"{name}(kwargs=)": _takes(getattr(vision, name, missing), "kwargs")
            for name in TOLD_BEFORE
        },
        "GenerationMixin.prepare_inputs_for_generation(next_sequence_length=)": _takes(
            generation.GenerationMixin.prepare_inputs_for_generation, "next_sequence_length"
        ),
        "Glm4vModel.get_rope_index": _takes(glm.Glm4vModel.get_rope_index, *grids),
        "LinearAttentionLayer": hasattr(cache_utils, "LinearAttentionLayer"),
        "LlamaDecoderLayer.forward(position_embeddings=)": _takes(
            llama.LlamaDecoderLayer.forward, "position_embeddings"
        ),
        "LlavaOnevisionModel.pack_image_features": hasattr(
            onevision.LlavaOnevisionModel, "pack_image_features"
        ),
        "LlavaOnevisionModel.apply_pooling": hasattr(
            onevision.LlavaOnevisionModel, "apply_pooling"
        ),
        "Qwen2_5_VLModel.get_rope_index": _takes(
            qwen25.Qwen2_5_VLModel.get_rope_index, *grids, "second_per_grid_ts"
        ),
        "Qwen3_5Model.get_rope_index": _takes(qwen35.Qwen3_5Model.get_rope_index, *grids),
        "Qwen3VLModel.get_rope_index": _takes(qwen3.Qwen3VLModel.get_rope_index, *grids),
        "Qwen3VLTextModel.forward(visual_pos_masks=, deepstack_visual_embeds=)": _takes(
            qwen3.Qwen3VLTextModel.forward, "visual_pos_masks", "deepstack_visual_embeds"
        ),
    }
    return [name for name, there in wanted.items() if not there]


def _takes(function: Any, *names: str) -> bool:
    return all(name in inspect.signature(function).parameters for name in names)


@once
def check_release() -> None:
    """Say once that the installed transformers is newer than what was checked."""
    import transformers

    installed = tuple(int(x) for x in transformers.__version__.split(".")[:2])
    if installed > tuple(int(x) for x in CHECKED[1].split(".")):
        warnings.warn(
            f"transformers {transformers.__version__} is newer than {CHECKED[1]}, the newest that "
            "secateur was checked with; if a pruned model fails, tell us or install that one",
            stacklevel=2,
        )


@once
def cache_name() -> str:
    """What calls and outputs of this release name the cache, one of `CACHES`."""
    from transformers.masking_utils import create_causal_mask

    return CACHES[0] if _takes(create_causal_mask, CACHES[0]) else CACHES[1]


def cache_in(call: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call or in its output, None where there is none."""
    return call.get(cache_name())


def naming_the_cache(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with the cache under the name of this release, by whichever it was given.

    Raises
    ------
    ValueError
        When both names hold a cache, and not the same one.
    """
    given = [call[name] for name in CACHES if call.get(name) is not None]
    if len(given) == 2 and given[0] is not given[1]:
        raise ValueError("cache: another one was given as past_key_values; pass one of the two")
    named = {name: x for name, x in call.items() if name not in CACHES}
    if given or any(name in call for name in CACHES):
        named[cache_name()] = given[0] if given else None
    return named


def naming_the_embeds(prepare: Callable[..., Any]) -> inspect.Signature:
    """The signature of a `prepare_inputs_for_generation`, with `inputs_embeds` among its names.

    `generate` looks for the name before it takes them; Gemma 3's has it in its `kwargs` only
    (5.17 to 5.24).
    """
    signature = inspect.signature(prepare)
    if "inputs_embeds" in signature.parameters:
        return signature
    named = inspect.Parameter("inputs_embeds", inspect.Parameter.KEYWORD_ONLY, default=None)
    *others, kwargs = signature.parameters.values()
    return signature.replace(parameters=[*others, named, kwargs])


def rope_index(model: Any, inputs: Mapping[str, Any], mask: Tensor | None) -> Tensor | None:
    """Time, row and column (3, B, T) of Qwen and GLM; None where types of tokens are missing.

    `get_rope_index` of the model is asked (5.17 to 5.24), which writes nothing: how videos are
    spaced has changed between releases, and no public argument makes a model tell its positions.
    """
    kinds = inputs.get("mm_token_type_ids")
    if kinds is None:
        return None
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    given = {name: inputs.get(name) for name in names}
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], mm_token_type_ids=kinds, attention_mask=mask, **given
    )
    return positions


def per_layer_inputs(model: Any, ids: Tensor) -> Tensor | None:
    """What each layer of Gemma 4 reads of each token (B, T, layers, C); None where it does not.

    Images, videos and audio count as padding. `get_per_layer_inputs`: 5.17 to 5.24.
    """
    decoder, config = model.model.language_model, model.config
    if not decoder.config.hidden_size_per_layer_input:
        return None
    names = ("image_token_id", "video_token_id", "audio_token_id")
    other = torch.isin(ids, ids.new_tensor([getattr(config, name) for name in names]))
    words = ids.masked_fill(other, decoder.config.pad_token_id)
    found: Tensor = decoder.get_per_layer_inputs(words, None)
    return found


def check_cache(cache: Any, *, static: bool = True) -> None:
    """Refuse a cache whose layers we cannot shorten, or, without `static`, leave unequal.

    `layers` and `offloading` of a cache: 5.17 to 5.24. The states of linear attention, which
    count no tokens, are left as they are, and never shortened; layers that read what others hold
    may have a `DummyLayer` (5.23 and 5.24).
    """
    from transformers.cache_utils import (
        DynamicLayer,
        DynamicSlidingWindowLayer,
        StaticLayer,
        StaticSlidingWindowLayer,
    )

    if cache is None:
        return
    known = {DynamicLayer.__name__, "LinearAttentionLayer"}
    if static:
        windows = (DynamicSlidingWindowLayer, StaticSlidingWindowLayer)
        known = {kind.__name__ for kind in (DynamicLayer, StaticLayer, *windows)} | {"DummyLayer"}
    odd = {type(layer).__name__ for layer in cache.layers} - known
    if odd or getattr(cache, "offloading", False):
        what = ", ".join(sorted(odd)) or "offloaded layers"
        raise ValueError(
            f"{cache_name()}: pruning inside the language model shortens dynamic "
            f"{'and static caches' if static else 'caches here'}, not {what}"
        )


def shorten_cache(cache: Any, layers: int, index: Tensor) -> None:
    """Keep the entries `index` (B, T), -1 at padding, in the first layers of a cache.

    Dynamic layers get new tensors, static ones keep their storage and forget their tail (`keys`,
    `values`, `cumulative_length` and, of sliding windows, `cumulative_length_int`: 5.17 to 5.24).
    """
    from transformers.cache_utils import StaticLayer

    for layer in cache.layers[:layers]:
        if layer.keys is None:  # a layer that reads what an earlier one holds
            continue
        length = index.shape[1]
        for name in ("keys", "values"):
            held = getattr(layer, name)
            taken = _entries(held, index)
            if isinstance(layer, StaticLayer):
                held[:, :, :length] = taken
                held[:, :, length:] = 0
            else:
                setattr(layer, name, taken)
        if isinstance(layer, StaticLayer):
            layer.cumulative_length.fill_(length)
        for name in ("cumulative_length", "cumulative_length_int"):
            if isinstance(getattr(layer, name, None), int):
                setattr(layer, name, length)


def reuses(layer: Any) -> bool:
    """Whether a decoder layer reads keys and values that an earlier one of its kind made.

    `is_kv_shared_layer` of Gemma 4: 5.17 to 5.24.
    """
    return bool(getattr(getattr(layer, "self_attn", None), "is_kv_shared_layer", False))


def read_of_earlier(attention: Any, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The keys and values that such a layer is called with, normed and rotated.

    `shared_kv_states` by `layer_type`: 5.17 to 5.24.
    """
    keys, values = call["shared_kv_states"][attention.layer_type]
    return keys, values


def shorten_read(call: Mapping[str, Any], index: Tensor) -> None:
    """Keep of what later layers will read of earlier ones, where there is such, `index` (B, T).

    -1 is padding. Caches hold the same tensors, so this comes before `shorten_cache`.
    """
    made = call.get("shared_kv_states") or {}
    for kind, held in list(made.items()):
        made[kind] = tuple(_entries(x, index) for x in held)


def _entries(held: Tensor, index: Tensor) -> Tensor:
    """Entries `index` (B, T) of keys or values (B, H, S, d)."""
    gather = index.to(held.device).clamp(min=0)[:, None, :, None]
    return held.gather(2, gather.expand(-1, held.shape[1], -1, held.shape[3]))


def cached_length(cache: Any, layer: int = 0) -> int:
    """How many tokens a layer of a cache holds."""
    return int(cache.get_seq_length(layer))


def rotary(decoder: Any, hidden: Tensor, positions: Tensor, kind: str) -> Any:
    """Cosine and sine (B, T, d) at positions (B, T), alike in every plane a model has.

    `kind` is of the layers that read them; `rotary_emb`, its `layer_type` and `rope_parameters`:
    5.17 to 5.24.
    """
    if _takes(decoder.rotary_emb.forward, "layer_type"):
        return decoder.rotary_emb(hidden, positions, kind)
    sections = getattr(decoder.config, "rope_parameters", None) or {}
    if "mrope_section" in sections:
        positions = positions[None].expand(3, -1, -1)
    return decoder.rotary_emb(hidden, positions)


def causal_mask(
    config: Any, hidden: Tensor, mask: Tensor, cache: Any, layer: int, blocks: Tensor | None = None
) -> Any:
    """The mask that layers of the kind of `layer` expect for the prompt `hidden` (B, T, C).

    Tokens that share a number, not -1, in `blocks` (B, T) see each other both ways.
    `masking_utils` is not documented; `layer_idx` and `block_sequence_ids` are there from 5.17 to
    5.24.
    """
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=mask,
        layer_idx=layer,
        block_sequence_ids=blocks,
        **{cache_name(): cache},
    )


def compiled_part(model: Any, *, itself: bool = True) -> str | None:
    """The name of a module of the model that was compiled, "" for the model `itself`.

    Compiled code sees no hooks. `_compiled_call_impl` and `_torchdynamo_orig_callable` are
    PyTorch's (2.4 to 2.13): what `module.compile()` and `torch.compile(function)` leave behind.
    """
    for name, module in model.named_modules():
        if not name and not itself:
            continue
        own = vars(module)
        forward = getattr(own.get("forward"), "_torchdynamo_orig_callable", None)
        if own.get("_compiled_call_impl") is not None or forward is not None:
            return str(name)
    return None


def attends(layer: Any) -> bool:
    """Whether a decoder layer has keys and values of every token; linear attention has not."""
    return hasattr(layer, "self_attn")


def kind_of(config: Any, layer: int) -> str:
    """The kind of a decoder layer, whose mask and rotary embedding may be its own."""
    kinds = getattr(config, "layer_types", None)
    return str(kinds[layer]) if kinds else ""


def window_of(config: Any) -> int | None:
    """How many tokens the sliding-window layers of a decoder see; None where there are none."""
    kinds = getattr(config, "layer_types", None) or ("sliding",)
    window: int | None = getattr(config, "sliding_window", None)
    return window if any("sliding" in kind for kind in kinds) else None


def device_of(module: Any) -> torch.device:
    """Where a module with weights computes.

    Offloaded weights are nowhere ("meta") until accelerate brings them: `_hf_hook` and its
    `execution_device` are accelerate's (1.15).
    """
    device: torch.device = module.weight.device
    return torch.device(module._hf_hook.execution_device) if device.type == "meta" else device


def window_index(grids: Tensor, tower: Any) -> Tensor:
    """The order in which Qwen2.5-VL's tower runs its merged tokens (5.17 to 5.24)."""
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(
        grids,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return order.to(torch.int64)


def told_of(tower: Any, grids: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """What a Qwen tower has to be told that gets the patches of some merged tokens only.

    Each keeps its position, its window and its frame of the whole grids; `kept` (n,) says of
    which tokens they are. Towers take these arguments where they else work them out from grids
    (5.17 to 5.24).
    """
    from transformers import vision_utils as vision

    merge = tower.spatial_merge_size
    patches = kept.repeat_interleave(merge**2)
    told = {
        "position_ids": vision.get_vision_position_ids(grids, merge)[patches],
        "cu_seqlens": _ends(vision.get_vision_cu_seqlens(grids), patches),
    }
    if hasattr(tower, "window_size"):
        order, ends = vision.get_vision_window_index(
            grids,
            spatial_merge_size=merge,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        order = order.to(kept.device)
        number = kept.long().cumsum(0) - 1
        told["window_index"] = number[order[kept[order]]]
        ends = _ends(ends, kept[order].repeat_interleave(merge**2))
        told["cu_window_seqlens"] = torch.unique_consecutive(ends)
    if hasattr(tower, "pos_embed"):
        taps, weights = vision.get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        told |= {"interp_indices": taps[patches], "interp_weights": weights[patches]}
    return told


def _ends(ends: Tensor, kept: Tensor) -> Tensor:
    """Where stretches of patches end, those that are not kept left out."""
    counted = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    return counted[ends.to(kept.device).long()].to(ends.dtype)
