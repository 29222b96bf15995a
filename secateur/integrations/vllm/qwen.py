"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL on vLLM: kept tokens keep time, row and column.

An image keeps `keep` tokens, so does every frame of a video, unless a method shares out a budget
over all of them. vLLM asks for the positions of a prompt before anything is encoded; text is
numbered then, by the sizes of the images, and the positions of kept tokens travel with their
embeddings, as those of vLLM's own video pruning do. So does the text between the frames of
Qwen3-VL where how many tokens each keeps is known only once the video is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl, qwen3_vl_moe
from vllm.multimodal import MULTIMODAL_REGISTRY

from secateur.core.inputs import Tokens
from secateur.core.selection import Selection
from secateur.integrations.choosing import skips
from secateur.integrations.encoded import Part, Visual
from secateur.integrations.families.qwen import frame_parts, unpatched
from secateur.integrations.observing import (
    by_frame,
    keys_of,
    layer_of,
    requests_of,
    rotate,
    watching,
)
from secateur.integrations.vllm.counting import restored
from secateur.integrations.vllm.models import ROWS
from secateur.integrations.vllm.pruning import Pruned, all_heads, over_heads
from secateur.integrations.vllm.qwen_room import (
    Dummies2,
    Dummies3,
    Dummies25,
    Info2,
    Info3,
    Info3Moe,
    Info25,
    Processor2,
    Processor3,
    Processor25,
    between,
)
from secateur.integrations.vllm.requests import PIXELS
from secateur.integrations.vllm.skipping import encoded_some

DIGIT = 128
"""Positions travel as two digits, which bfloat16 holds exactly."""
GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
CHANNELS = 6
"""Two digits each of time, row and column."""


class Positioned(Pruned):
    """A model whose kept tokens keep their places in three dimensions."""

    visual: Any
    tower_width: ClassVar[str] = "hidden_size"
    """What the tower's configuration calls the width of its states."""
    width: ClassVar[str] = "out_hidden_size"
    """What it calls that of its features."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.prepare(vllm_config)

    def loads(self, name: str, kwargs: Any) -> list[int]:
        """Merged patches."""
        merge = self.visual.spatial_merge_size
        return [int(grid.prod()) // merge**2 for grid in kwargs[GRIDS[name]]]

    def flat(self, name: str, kwargs: Any) -> Mapping[str, Sequence[int]]:
        """Patches of all images follow one another."""
        counts = [int(grid.prod()) for grid in kwargs[GRIDS[name]]]
        return {name: np.cumsum([0, *counts]).tolist()}

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """A grid an image, one a frame of a video."""
        grids, values = inputs[f"{modality}_grid_thw"], inputs[PIXELS[modality]]
        if skips(self.method, ROWS[self.kind].family):
            parts = self._parts(values, grids, {})
            cells = [Tokens(pixels=part.pixels, grid=part.grid) for own in parts for part in own]
            chosen = self.method.select(cells)
            embeds = encoded_some(self.visual, values, grids, chosen)
            return list(self._visuals(modality, parts, embeds, chosen))
        full, blocks = self.full_attention(), len(self.visual.blocks)
        depths = {
            name: layer_of(request, full[-1], blocks, full)
            for name, request in requests_of(self.method).items()
            if name in self.wants
        }
        with watching() as watch:
            seen = {
                name: (
                    watch.output(self.visual.blocks[depth].attn.qkv),
                    watch.arguments(self.visual.blocks[depth].attn),
                    self.visual.blocks[depth].attn,
                )
                for name, depth in depths.items()
            }
            embeds = getattr(self, f"_process_{modality}_input")(inputs)
        parts = self._parts(values, grids, self._observed(seen, grids))
        return list(self._visuals(modality, parts, embeds))

    def full_attention(self) -> Sequence[int]:
        """Layers of the tower in which every patch of a frame sees every other."""
        raise NotImplementedError

    def order(self, grids: Any) -> Any:
        """The order in which the tower runs its merged tokens, None for the prompt's."""
        return None

    def rate(self, inputs: Any, modality: str, place: int) -> float:
        """Steps of time from a frame to the next."""
        return 1.0

    def projected(self, attention: Any, packed: Any) -> tuple[Any, Any]:
        """Queries and keys (n, heads, d) of this rank's heads, from (n, 1, 3 * heads * d)."""
        size = attention.hidden_size_per_attention_head
        queries, keys, _ = packed.flatten(0, 1).unflatten(-1, (3, -1, size)).unbind(1)
        return queries, keys

    @torch.no_grad()
    def _observed(self, seen: Mapping[str, Any], grids: Any) -> dict[str, Any]:
        """Attention (n,) and keys (n, C) of all merged tokens, in the prompt's order."""
        order = self.order(grids) if seen else None
        found = {}
        vision = self.config.vision_config
        size = getattr(vision, self.tower_width) // vision.num_heads
        requests = requests_of(self.method)
        for name, (packed, called, attention) in seen.items():
            queries, keys = self.projected(attention, packed[0].detach())
            request = requests[name]
            if request.what == "keys":
                every = all_heads(keys.flatten(1), size * vision.num_heads)
                per_patch = keys_of(every.unflatten(-1, (-1, size)).transpose(0, 1), request)
            else:
                given = called[0][1]
                cos, sin = (
                    torch.cat([given[f"rotary_pos_emb_{each}"]] * 2, dim=-1).float()
                    for each in ("cos", "sin")
                )
                queries, keys = (
                    rotate(x.transpose(0, 1).float(), cos, sin) for x in (queries, keys)
                )
                per_patch = over_heads(
                    by_frame(queries, keys, grids, request), vision.num_heads // keys.shape[0]
                )
            merged = per_patch.unflatten(0, (-1, self.visual.spatial_merge_size**2)).mean(dim=1)
            if order is not None:
                merged = merged[torch.argsort(order).to(merged.device)]
            found[name] = merged
        return found

    def _parts(self, values: Any, grids: Any, observed: Mapping[str, Any]) -> list[list[Part]]:
        """The frames of each image or video, with their pixels where these are looked at."""
        merge = self.visual.spatial_merge_size
        found, start, patch_start = [], 0, 0
        for frames, tall, wide in grids.tolist():
            h, w = tall // merge, wide // merge
            images = None
            if self.pixels is not None:
                own = values[patch_start : patch_start + frames * tall * wide]
                channels = unpatched(own, (frames, tall, wide), self.config.vision_config)
                images = restored(self.pixels, channels)
            found.append(frame_parts(frames, (h, w), observed, start, images))
            start += frames * h * w
            patch_start += frames * tall * wide
        return found

    def _visuals(
        self,
        modality: str,
        parts: Sequence[list[Part]],
        embeds: Any,
        chosen: Sequence[Selection] = (),
    ) -> Iterator[Visual]:
        width, first = getattr(self.config.vision_config, self.width), 0
        for own, features in zip(parts, embeds, strict=True):
            yield Visual(
                modality="image" if modality == "image" else "video",
                features=features[:, :width],
                parts=own,
                # Deepstack features stand beside the others.
                planes=[features[:, width:]] if features.shape[1] > width else (),
                chosen=chosen[first : first + len(own)],
            )
            first += len(own)

    def finished(
        self,
        modality: str,
        inputs: Any,
        visuals: Sequence[Visual],
        kept: Sequence[tuple[Any, Any]],
    ) -> list[Any]:
        """With deepstack features, and positions relative to the image's first."""
        found = []
        for place, (visual, (index, features)) in enumerate(zip(visuals, kept, strict=True)):
            chosen = torch.from_numpy(index).to(features.device)
            planes = [plane[chosen] for plane in visual.planes]
            rows = torch.cat([features, *planes], dim=1)
            where = self._places(visual.parts[0].grid, index, self.rate(inputs, modality, place))
            if modality == "video" and self.method.over != "frame":
                rows, where = self.with_text(inputs, visual, place, index, rows, where)
            found.append(torch.cat([rows, _digits(where).to(rows)], dim=1))
        return found

    def with_text(
        self, inputs: Any, visual: Visual, number: int, index: Any, rows: Any, where: Any
    ) -> tuple[Any, Any]:
        """The rows of a video and their positions with what stands between its frames."""
        return rows, where

    def given(self, modality: str, inputs: Any) -> list[Any]:
        """Embeddings that came with the request, all of them, with positions."""
        merge = self.visual.spatial_merge_size
        found = []
        for place, (features, grid) in enumerate(
            zip(
                super().given(modality, inputs),
                inputs[f"{modality}_grid_thw"].tolist(),
                strict=True,
            )
        ):
            index = np.arange(len(features))
            rate = self.rate(inputs, modality, place)
            where = _digits(self._places((grid[1] // merge, grid[2] // merge), index, rate))
            found.append(torch.cat([features, where.to(features)], dim=1))
        return found

    def _places(self, grid: tuple[int, int], index: Any, rate: float) -> Any:
        """Time, row and column (n, 3)."""
        frame, inside = np.divmod(index, grid[0] * grid[1])
        row, column = np.divmod(inside, grid[1])
        return np.stack([self.time(frame, rate), row, column], axis=1)

    def time(self, frame: Any, rate: float) -> Any:
        """Positions in time of frames."""
        return (frame * rate).astype(np.int64)

    def runs(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> Any:
        """Where visual tokens stand in a prompt, and how many positions they take.

        Yields (first, count, extent) for every run of them.
        """
        merge = self.visual.spatial_merge_size
        for feature in sorted(mm_features, key=lambda each: each.mm_position.offset):
            frames, tall, wide = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
            seconds = feature.data.get("second_per_grid_ts")
            rate = self.seconds(1.0 if seconds is None else float(seconds.data))
            last = 0 if feature.modality == "image" else int(self.time(np.int64(frames - 1), rate))
            extent = max(last + 1, tall // merge, wide // merge)
            yield feature.mm_position.offset, feature.mm_position.length, extent

    def seconds(self, between: float) -> float:
        """Steps of time for the seconds between frames."""
        return 1.0

    def get_mrope_input_positions(
        self, input_tokens: Sequence[int], mm_features: Sequence[Any]
    ) -> tuple[Any, int]:
        """Positions (3, L) of the text, and of visual tokens where their image begins."""
        flat = np.arange(len(input_tokens))
        for first, count, extent in self.runs(input_tokens, mm_features):
            flat[first + count :] += extent - count
            flat[first : first + count] = flat[first]
        positions = torch.from_numpy(np.broadcast_to(flat, (3, len(flat))).copy())
        return positions, int(flat.max()) + 1 - len(flat)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Any],
        mrope_positions: Any,
        num_computed_tokens: int,
    ) -> tuple[Any, Any, int]:
        """Put kept tokens where they were; text stays as it was numbered."""
        if not multimodal_embeddings:
            # So it is at every step of decoding, on the runner that asks at every step.
            return [], mrope_positions, int(mrope_positions.max()) + 1 - mrope_positions.shape[1]
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        positions = mrope_positions.clone()
        visual = (ids == self.config.image_token_id) | (ids == self.config.video_token_id)
        here = torch.arange(len(ids), device=ids.device)
        before = torch.where(visual, -1, here).cummax(dim=0).values
        places = here[visual & (here >= num_computed_tokens)]
        embeds = [each[:, :-CHANNELS] for each in multimodal_embeddings]
        digits = torch.cat([each[:, -CHANNELS:] for each in multimodal_embeddings])
        digits = digits.to(torch.int64).to(positions.device)
        offsets = digits[:, :3] * DIGIT + digits[:, 3:]
        places = places[: len(offsets)]
        text = before[places]
        base = torch.where(text < 0, -1, positions[0, text.clamp(min=0)])
        positions[:, places] = (base + 1 + offsets.T).to(positions.dtype)
        return embeds, positions, int(positions.max()) + 1 - positions.shape[1]


def _digits(where: Any) -> Any:
    """Two digits (n, 6) each of time, row and column (n, 3)."""
    return torch.from_numpy(np.concatenate(np.divmod(where, DIGIT), axis=1))


class Stamped(Positioned):
    """A model that reads when a frame was before or behind the frame; each begins anew in time."""

    def full_attention(self) -> Sequence[int]:
        """All of them."""
        return range(len(self.visual.blocks))

    def time(self, frame: Any, rate: float) -> Any:
        """Timestamps tell the time; every frame begins anew."""
        return frame * 0

    def frame_marks(self) -> tuple[int, int]:
        """What stands for each token of a frame in a prompt, and what ends the frame."""
        return self.config.video_token_id, self.config.vision_end_token_id

    def written(self, inputs: Any, number: int, counts: Sequence[int]) -> Sequence[int]:
        """The prompt of a video whose frames keep so many tokens each."""
        raise NotImplementedError

    def with_text(
        self, inputs: Any, visual: Visual, number: int, index: Any, rows: Any, where: Any
    ) -> tuple[Any, Any]:
        """With timestamps and marks, which stand apart from the frames they tell."""
        (h, w), frames = visual.parts[0].grid, len(visual.parts)
        if frames == 1:  # how many it keeps is known, and its text is written out
            return rows, where
        counts = np.bincount(index // (h * w), minlength=frames).tolist()
        told = self.written(inputs, number, counts)
        ids = torch.tensor(told, device=rows.device)
        words = self.language_model.embed_input_ids(ids).detach()
        token, end = self.frame_marks()
        own = ids == token
        full = rows.new_zeros((len(told), rows.shape[1]))
        full[:, : words.shape[1]] = words.to(rows)
        full[own] = rows
        # A frame ends with its mark; its tokens take the room of all, however many are left.
        ends = np.asarray(told) == end
        frame = np.cumsum(ends) - ends
        text = ~own.cpu().numpy()
        before = np.cumsum(text) - text + max(h, w) * (frame + ends)
        places = np.repeat(before[:, None], 3, axis=1)
        places[~text] += where
        return full, places

    def runs(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> Any:
        """As for images; frames of a video stand apart."""
        merge = self.visual.spatial_merge_size
        for feature in sorted(mm_features, key=lambda each: each.mm_position.offset):
            offset, length = feature.mm_position.offset, feature.mm_position.length
            frames, tall, wide = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
            extent = max(tall // merge, wide // merge)
            if feature.modality == "image":
                yield offset, length, extent
                continue
            own = np.asarray(input_tokens[offset : offset + length]) == self.frame_marks()[0]
            edges = np.flatnonzero(np.diff(np.concatenate([[0], own.astype(np.int8), [0]])))
            for first, stop in edges.reshape(-1, 2):
                room = extent
                if len(edges) < 2 * frames:
                    # Text between frames is among these, and all but the kept tokens counts one.
                    kept = self.method.budget(frames * tall * wide // merge**2, frames)
                    room = int(stop - first) - kept + frames * extent
                yield offset + int(first), int(stop - first), room


@MULTIMODAL_REGISTRY.register_processor(Processor2, info=Info2, dummy_inputs=Dummies2)
class SecateurQwen2VLForConditionalGeneration(Positioned, qwen2_vl.Qwen2VLForConditionalGeneration):
    """Qwen2-VL: full attention in every layer of the tower."""

    kind = "qwen2_vl"
    tower_width = "embed_dim"
    width = "hidden_size"
    # vLLM's own class has no pruning; these have its runners ask where kept tokens were.
    supports_multimodal_pruning = True
    supported_video_pruning_methods = ("evs",)

    def full_attention(self) -> Sequence[int]:
        """All of them."""
        return range(len(self.visual.blocks))

    def projected(self, attention: Any, packed: Any) -> tuple[Any, Any]:
        """As `Positioned.projected`; ranks share the projection by columns, not by heads."""
        queries, keys, _ = attention.split_qkv(packed)
        return queries.flatten(0, 1), keys.flatten(0, 1)

    def get_encoder_cudagraph_config(self) -> Any:
        """For no modality, as vLLM's later Qwen models have it where they prune."""
        return replace(super().get_encoder_cudagraph_config(), modalities=[])


@MULTIMODAL_REGISTRY.register_processor(Processor25, info=Info25, dummy_inputs=Dummies25)
class SecateurQwen2_5_VLForConditionalGeneration(  # noqa: N801
    Positioned, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration
):
    """Qwen2.5-VL."""

    kind = "qwen2_5_vl"

    def full_attention(self) -> Sequence[int]:
        """Those without windows."""
        return sorted(self.config.vision_config.fullatt_block_indexes)

    def order(self, grids: Any) -> Any:
        """By windows."""
        found, start = [], 0
        for frames, height, width in grids.tolist():
            index = self.visual.get_window_index_thw(frames, height, width)[0]
            found.append(torch.as_tensor(index) + start)
            start += int(frames * height * width // self.visual.spatial_merge_size**2)
        return torch.cat(found)

    def seconds(self, between: float) -> float:
        """By the model's clock."""
        return between * float(getattr(self.config.vision_config, "tokens_per_second", 1.0))

    def rate(self, inputs: Any, modality: str, place: int) -> float:
        """By the seconds between a video's frames."""
        if modality == "image":
            return 1.0
        seconds = inputs.get("second_per_grid_ts")
        return self.seconds(1.0 if seconds is None else float(seconds[place]))


@MULTIMODAL_REGISTRY.register_processor(Processor3, info=Info3, dummy_inputs=Dummies3)
class SecateurQwen3VLForConditionalGeneration(Stamped, qwen3_vl.Qwen3VLForConditionalGeneration):
    """Qwen3-VL."""

    kind = "qwen3_vl"

    def written(self, inputs: Any, number: int, counts: Sequence[int]) -> Sequence[int]:
        """Timestamps stand before frames."""
        times = inputs.timestamps[number]
        told: Sequence[int] = between(counts, times, self._tokenizer, self.config).full
        return told


@MULTIMODAL_REGISTRY.register_processor(Processor3, info=Info3Moe, dummy_inputs=Dummies3)
class SecateurQwen3VLMoeForConditionalGeneration(
    SecateurQwen3VLForConditionalGeneration, qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration
):
    """Qwen3-VL's mixtures of experts."""

    kind = "qwen3_vl_moe"
