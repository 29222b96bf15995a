"""Qwen2.5-VL: a windowed tower whose 2 x 2 patches merge into a token, M-RoPE, videos by frame.

Attention is that of the tower's last full-attention layer: what a patch receives on average from
its image (or frame), averaged over the patches that merge, with the window order undone.
`positions=None` means ``"original"``: kept tokens keep time, row and column.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from secateur.integrations.family import Family, Modality, Part, Tensor, Visual, whole
from secateur.integrations.internals import window_index
from secateur.integrations.observation import SHALLOW, Watch, mean_attention, rotate, watching

if TYPE_CHECKING:
    from secateur.integrations.guidance import TextEncoder


class Qwen25VL(Family):
    """Where Qwen2.5-VL keeps what pruning needs."""

    name: ClassVar[str] = "Qwen2.5-VL"
    visual_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "pixel_values_videos",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
    )
    offers: ClassVar[frozenset[str]] = frozenset(
        {"features", "grid", "attention", "attention_shallow", "keys", "pixels"}
    )
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "video")

    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
    ) -> list[Visual]:
        """One grid an image, one a frame of a video; see `Family.encode`."""
        found: list[Visual] = []
        for modality in self.modalities:
            values = "pixel_values" if modality == "image" else "pixel_values_videos"
            patches, grids = inputs.get(values), inputs.get(f"{modality}_grid_thw")
            if patches is None:
                continue
            if grids is None:
                raise ValueError(f"{modality}_grid_thw: expected beside {values}")
            encode = getattr(model.model, f"get_{modality}_features")
            with watching() as watch:
                seen = self._watch(watch, model.model.visual, wants)
                out = encode(patches, grids, return_dict=True)
            observed = self._observed(model.model.visual, seen, grids, wants)
            found += self._visuals(model, modality, patches, grids, out, observed, wants, pixels)
        return found

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
        given = {"attention_mask": mask}
        for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids"):
            given[name] = inputs.get(name)
        if inputs.get("position_ids") is not None:
            return inputs["position_ids"]
        counted = super().position_ids(model, inputs, mask, generating=generating)
        flat = counted.expand(3, *counted.shape)
        if not generating:
            compute = model.model.compute_3d_position_ids
            given |= {"past_key_values": None, "inputs_embeds": None}
            given = {k: x for k, x in given.items() if k in inspect.signature(compute).parameters}
            positions = compute(input_ids=inputs["input_ids"], **given)
            return flat if positions is None else positions
        if given["mm_token_type_ids"] is not None:
            flat, _ = model.model.get_rope_index(inputs["input_ids"], **given)
        return torch.cat([counted[None].to(flat.device), flat], dim=0)

    def remember(self, model: Any, positions: Tensor, mask: Tensor) -> None:
        """How much further the positions are than the count of cached tokens."""
        reached = positions[-3:].amax(dim=(0, 2)) + 1
        model.model.rope_deltas = (reached - mask.sum(dim=-1))[:, None]

    def _watch(self, watch: Watch, tower: Any, wants: frozenset[str]) -> dict[str, Any]:
        layers = watched_layers(self.full_attention(tower), len(tower.blocks))
        return {
            name: (watch.output(block.attn.qkv), watch.arguments(block.attn), block.attn.num_heads)
            for name, layer in layers.items()
            if name in wants
            for block in (tower.blocks[layer],)
        }

    @torch.no_grad()
    def _observed(
        self, tower: Any, seen: Mapping[str, Any], grids: Tensor, wants: frozenset[str]
    ) -> dict[str, Tensor]:
        """Attention (n,) and keys (n, C) of all merged tokens, in the prompt's order."""
        order = self.order(tower, grids) if seen else None
        found = {}
        for name, (projected, called, heads) in seen.items():
            packed = projected[0].detach()
            queries, keys, _ = packed.unflatten(-1, (3, heads, -1)).unbind(1)
            if name == "keys":
                per_patch = keys.flatten(1)
            else:
                cos, sin = called[0][1]["position_embeddings"]
                queries, keys = (
                    rotate(x.transpose(0, 1).float(), cos, sin) for x in (queries, keys)
                )
                per_patch = by_frame(queries, keys, grids)
            merged = per_patch.unflatten(0, (-1, tower.spatial_merge_size**2)).mean(dim=1)
            if order is not None:
                merged = merged[torch.argsort(order).to(merged.device)]
            found[name] = merged
        return found

    def _visuals(
        self,
        model: Any,
        modality: Modality,
        patches: Tensor,
        grids: Tensor,
        out: Any,
        observed: Mapping[str, Tensor],
        wants: frozenset[str],
        pixels: Any,
    ) -> list[Visual]:
        merge = model.model.visual.spatial_merge_size
        sizes = [int(x.shape[0]) for x in out.pooler_output]
        planes = [
            plane if isinstance(plane, (tuple, list)) else torch.split(plane, sizes)
            for plane in getattr(out, "deepstack_features", None) or ()
        ]
        found, start, patch_start = [], 0, 0
        for number, (frames, height, width) in enumerate(grids.tolist()):
            h, w = height // merge, width // merge
            images = None
            if "pixels" in wants:
                own = patches[patch_start : patch_start + frames * height * width]
                images = pixels.restore(
                    unpatched(own, (frames, height, width), model.config.vision_config)
                )
            parts = frame_parts(frames, (h, w), observed, start, images)
            found.append(
                Visual(
                    modality=modality,
                    features=out.pooler_output[number],
                    parts=parts,
                    planes=[plane[number] for plane in planes],
                )
            )
            start += frames * h * w
            patch_start += frames * height * width
        return found


def frame_parts(
    frames: int,
    grid: tuple[int, int],
    observed: Mapping[str, Tensor],
    start: int,
    images: Tensor | None,
) -> list[Part]:
    """The frames of a video, or the one of an image, which begins at `start` of the observed."""
    size, parts = grid[0] * grid[1], []
    for frame in range(frames):
        part = whole(grid, frame * size)
        for name, x in observed.items():
            setattr(part, name, x[start + frame * size : start + (frame + 1) * size])
        part.pixels = None if images is None else images[frame]
        parts.append(part)
    return parts


def watched_layers(full: Sequence[int], depth: int) -> dict[str, int]:
    """In which of `depth` layers to observe what, given those of `full` attention."""
    target = round(SHALLOW * depth) - 1
    shallow = next((layer for layer in full if layer >= target), full[-1])
    return {"attention": full[-1], "attention_shallow": shallow, "keys": full[-1]}


def by_frame(queries: Tensor, keys: Tensor, grids: Tensor) -> Tensor:
    """Mean attention (n,) that patches receive within their own image or frame."""
    received, start = [], 0
    for frames, height, width in grids.tolist():
        stop = start + frames * height * width
        own = (x[:, start:stop].unflatten(1, (frames, -1)).transpose(0, 1) for x in (queries, keys))
        received.append(mean_attention(*own).flatten())
        start = stop
    return torch.cat(received)


def unpatched(patches: Tensor, grid: Sequence[int], config: Any) -> Tensor:
    """Channels (t, 3, H, W) from patches (t * h * w, 3 * 2 * p * p) in the order they merge.

    Of the frames that a patch spans, the first.
    """
    frames, height, width = grid
    merge, patch = config.spatial_merge_size, config.patch_size
    blocks = (frames, height // merge, width // merge, merge, merge)
    x = patches.view(*blocks, config.in_channels, config.temporal_patch_size, patch, patch)
    x = x[:, :, :, :, :, :, 0].permute(0, 5, 1, 3, 6, 2, 4, 7)
    return x.reshape(frames, config.in_channels, height * patch, width * patch)
