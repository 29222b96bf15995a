"""Qwen2.5-VL: a windowed tower whose 2 x 2 patches merge into a token, M-RoPE, videos by frame.

Qwen2-VL is the same with full attention in every layer of its tower.

Attention is that of the tower's last full-attention layer: what a patch receives on average from
its image (or frame), averaged over the patches that merge, with the window order undone.
States, what the merger takes, are averaged alike, and given to methods alone that need them.
`positions=None` means ``"original"``: kept tokens keep time, row and column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from secateur.core.inputs import REQUESTS, Request, Tokens
from secateur.core.selection import Selection
from secateur.integrations.encoded import Modality, Part, Tensor, Visual, spread
from secateur.integrations.families.base import Family
from secateur.integrations.families.qwen import QWEN2_5_VL, QWEN2_VL, frame_parts, unpatched
from secateur.integrations.observing import (
    Watch,
    by_frame,
    keys_of,
    layer_of,
    rotate,
    watching,
)
from secateur.integrations.transformers.internals import rope_index, told_of, window_index
from secateur.integrations.transformers.models import Adapter

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class Qwen25VL(Adapter):
    """Where Qwen2.5-VL keeps what pruning needs."""

    family: ClassVar[Family] = QWEN2_5_VL
    visual_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "pixel_values_videos",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
    )

    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """One grid an image, one a frame of a video; see `Adapter.encode`."""
        found: list[Visual] = []
        for modality, patches, grids in self._given(inputs):
            encode = getattr(model.model, f"get_{modality}_features")
            with watching() as watch:
                seen = self._watch(watch, model.model.visual, wants, requests)
                out = encode(patches, grids, return_dict=True)
            observed = self._observed(model.model.visual, seen, grids, requests)
            shown = pixels if "pixels" in wants else None
            parts = self._parts(model, patches, grids, observed, shown)
            planes = getattr(out, "deepstack_features", None) or ()
            found += _visuals(modality, parts, out.pooler_output, planes)
        return found

    def encode_some(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        choose: Callable[[Sequence[Tokens]], list[Selection]],
        pixels: Any,
    ) -> list[Visual]:
        """The tower gets the patches of chosen cells alone; see `Adapter.encode_some`."""
        tower = model.model.visual
        found: list[Visual] = []
        for modality, patches, grids in self._given(inputs):
            parts = self._parts(model, patches, grids, {}, pixels)
            each = [part for own in parts for part in own]
            chosen = choose([Tokens(pixels=part.pixels, grid=part.grid) for part in each])
            kept = torch.cat([selection.mask() for selection in chosen]).to(grids.device)
            stay = kept.repeat_interleave(tower.spatial_merge_size**2).to(patches.device)
            out = tower(
                patches[stay].type(tower.dtype),
                grid_thw=grids,
                return_dict=True,
                **told_of(tower, grids, kept),
            )
            planes = getattr(out, "deepstack_features", None) or ()
            features, *planes = (spread(x, kept, len(kept)) for x in (out.pooler_output, *planes))
            found += _visuals(modality, parts, features, planes, chosen)
        return found

    def _given(self, inputs: Mapping[str, Any]) -> Iterator[tuple[Modality, Tensor, Tensor]]:
        """Patches and grids of the images, and of the videos."""
        for modality in self.family.modalities:
            values = "pixel_values" if modality == "image" else "pixel_values_videos"
            patches, grids = inputs.get(values), inputs.get(f"{modality}_grid_thw")
            if patches is None:
                continue
            if grids is None:
                raise ValueError(f"{modality}_grid_thw: expected beside {values}")
            yield modality, patches, grids

    def full_attention(self, tower: Any) -> Sequence[int]:
        """Layers of the tower in which every patch of a frame sees every other."""
        return sorted(tower.fullatt_block_indexes)

    def order(self, tower: Any, grids: Tensor) -> Tensor | None:
        """The order in which the tower runs its merged tokens, None for the prompt's."""
        return window_index(grids, tower)

    def position_ids(
        self, model: Any, inputs: Mapping[str, Any], mask: Tensor | None, *, generating: bool
    ) -> Tensor:
        """Time, row and column; before them, in `generate`, the count of real tokens."""
        if inputs.get("position_ids") is not None:
            return inputs["position_ids"]
        counted = super().position_ids(model, inputs, mask, generating=generating)
        placed = rope_index(model, inputs, mask)
        if placed is None:
            placed = counted.expand(3, *counted.shape)
        return torch.cat([counted[None].to(placed.device), placed]) if generating else placed

    def _watch(
        self, watch: Watch, tower: Any, wants: frozenset[str], requests: Mapping[str, Request]
    ) -> dict[str, Any]:
        full = self.full_attention(tower)
        depth = len(tower.blocks)
        seen: dict[str, Any] = {}
        for name, request in requests.items():
            if name not in wants:
                continue
            if request.what == "states":
                seen[name] = watch.inputs(tower.merger)
                continue
            attention = tower.blocks[layer_of(request, full[-1], depth, full)].attn
            called = watch.arguments(attention)
            seen[name] = (watch.output(attention.qkv), called, attention.num_heads)
        return seen

    @torch.no_grad()
    def _observed(
        self, tower: Any, seen: Mapping[str, Any], grids: Tensor, requests: Mapping[str, Request]
    ) -> dict[str, Tensor]:
        """Attention (n,), keys and states (n, C) of all merged tokens, in the prompt's order."""
        order = self.order(tower, grids) if seen else None
        found = {}
        for name, of_layer in seen.items():
            if requests[name].what == "states":
                per_patch = of_layer[0].detach()
            else:
                projected, called, heads = of_layer
                per_patch = _of_patches(projected[0].detach(), heads, called, grids, requests[name])
            merged = per_patch.unflatten(0, (-1, tower.spatial_merge_size**2)).mean(dim=1)
            if order is not None:
                merged = merged[torch.argsort(order).to(merged.device)]
            found[name] = merged
        return found

    def _parts(
        self,
        model: Any,
        patches: Tensor,
        grids: Tensor,
        observed: Mapping[str, Tensor],
        pixels: Any,
    ) -> list[list[Part]]:
        """The frames of each image or video, with their pixels where it is said how."""
        merge = model.model.visual.spatial_merge_size
        found, start, patch_start = [], 0, 0
        for frames, height, width in grids.tolist():
            h, w = height // merge, width // merge
            images = None
            if pixels is not None:
                own = patches[patch_start : patch_start + frames * height * width]
                images = pixels.restore(
                    unpatched(own, (frames, height, width), model.config.vision_config)
                )
            found.append(frame_parts(frames, (h, w), observed, start, images))
            start += frames * h * w
            patch_start += frames * height * width
        return found


def _of_patches(packed: Tensor, heads: int, called: Any, grids: Tensor, request: Request) -> Tensor:
    """Attention or keys of all patches, from what a layer projects them to."""
    queries, keys, _ = packed.unflatten(-1, (3, heads, -1)).transpose(0, 2).unbind(1)
    if request.what == "keys":
        return keys_of(keys, request)
    cos, sin = called[0][1]["position_embeddings"]
    queries, keys = (rotate(x.float(), cos, sin) for x in (queries, keys))
    return by_frame(queries, keys, grids, request)


def _visuals(
    modality: Modality,
    parts: Sequence[Sequence[Part]],
    features: Any,
    planes: Sequence[Any],
    chosen: Sequence[Selection] = (),
) -> list[Visual]:
    """One an image or video, of the features of all, in one tensor or split."""
    sizes = [sum(len(part.index) for part in own) for own in parts]
    features, *planes = (
        x if isinstance(x, (tuple, list)) else torch.split(x, sizes) for x in (features, *planes)
    )
    found, first = [], 0
    for number, own in enumerate(parts):
        found.append(
            Visual(
                modality=modality,
                features=features[number],
                parts=list(own),
                planes=[plane[number] for plane in planes],
                chosen=chosen[first : first + len(own)],
            )
        )
        first += len(own)
    return found


class Qwen2VL(Qwen25VL):
    """Where Qwen2-VL keeps what pruning needs: as Qwen2.5-VL, without windows in the tower."""

    family: ClassVar[Family] = QWEN2_VL

    def full_attention(self, tower: Any) -> Sequence[int]:
        """All of them."""
        return range(len(tower.blocks))

    def order(self, tower: Any, grids: Tensor) -> Tensor | None:
        """The prompt's."""
        return None
