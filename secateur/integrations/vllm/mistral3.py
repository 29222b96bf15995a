"""Mistral 3 (Mistral Small 3.1 and on) on vLLM: Pixtral's tower, whose 2 x 2 patches merge.

Pixtral 12B, beside this, is the same without merging.

Behind each row of an image the prompt has a mark. A pruned image has room for its kept tokens, for
the breaks that `families.newlines` says stay, those of rows that keep a token only where the method
picks by the grid, and for its end, which always does; the embeddings of marks come with theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from vllm.model_executor.models import mistral3
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement

from secateur.core.methods import Method
from secateur.integrations.choosing import choose
from secateur.integrations.encoded import Tensor, Visual
from secateur.integrations.families.newlines import Newlines
from secateur.integrations.families.pixtral import merged, rows_visual
from secateur.integrations.observing import (
    Watch,
    by_frame,
    heads,
    keys_of,
    layer_of,
    requests_of,
    rotate,
    watching,
)
from secateur.integrations.vllm.checking import OBSERVED
from secateur.integrations.vllm.counting import Sized, newlines_left, restored
from secateur.integrations.vllm.layout import LAYOUT, LaidOut
from secateur.integrations.vllm.pruning import Pruned, all_heads, over_heads


def patches_of(config: Any, image: Any) -> tuple[int, int]:
    """Rows and columns of patches of an image (3, H, W)."""
    patch = config.vision_config.patch_size
    return image.shape[-2] // patch, image.shape[-1] // patch


def merge_of(config: Any) -> int:
    """Patches along a side of a token."""
    return int(getattr(config, "spatial_merge_size", 1))


def grid_of(config: Any, image: Any) -> tuple[int, int]:
    """Rows and columns of tokens of an image (3, H, W)."""
    height, width = patches_of(config, image)
    return height // merge_of(config), width // merge_of(config)


def breaks_left(config: Any, method: Method, size: int) -> Newlines:
    """Which breaks stay of an image of so many tokens."""
    whole = method.counted_from != "pixels" and method.budget(size) == size
    return newlines_left(config, method, whole=whole)


class InRows(Sized):
    """Sizes of images in rows, in kept tokens and marks."""

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens before pruning, marks included, of an image as large as the processor allows."""
        size = self.stock.get_image_size_with_most_features()
        columns, rows = self.stock.get_vision_encoder_info().get_patch_grid_size(
            image_width=size.width, image_height=size.height
        )
        return {"image": rows * (columns + 1)}

    def room(self, image: Any) -> int:
        """Kept tokens and marks of an image (3, H, W)."""
        config: Any = self.get_hf_config()  # type: ignore[attr-defined]
        grid = grid_of(config, image)
        size = grid[0] * grid[1]
        if self.method.counted_from == "pixels":
            kept = self.counted(grid, image)
        else:
            kept = self.method.budget(size)
        newlines = breaks_left(config, self.method, size)
        if newlines == "none":
            return kept + 1
        if newlines == "all" or kept == size:
            return kept + grid[0]
        if grid not in self.known:
            blank = rows_visual(torch.zeros(size, 1), torch.zeros(grid[0], 1), grid, "rows")
            chosen = choose(self.method, blank, frozenset({"grid"}), None)
            self.known[grid] = len(chosen.kept)
        return self.known[grid]

    @cached_property
    def known(self) -> dict[tuple[int, int], int]:
        """Tokens and marks that stay, by the grid, where that alone tells."""
        return {}


class RowsLaidOut(LaidOut):
    """Makes room for what is kept of images in rows."""

    def layouts(
        self, mm_data: Mapping[str, Any], hf_processor_mm_kwargs: Any, made: Any
    ) -> list[list[int]]:
        """Rows of tokens, with a mark behind each."""
        processor, found = self.info.get_hf_processor(**hf_processor_mm_kwargs), []
        for image in made["pixel_values"]:
            rows, columns = grid_of(self.info.get_hf_config(), image)
            row = [processor.image_token_id] * columns + [processor.image_break_token_id]
            found.append([*(row * rows)[:-1], processor.image_end_token_id])
        return found

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> list[Any]:
        token = self.info.get_hf_config().image_token_index

        def replacement(place: int) -> list[int]:
            mm_items.get_items("image", ImageProcessorItems)
            return [token] * self.info.room(out_mm_kwargs["image"][place]["pixel_values"].data)

        return [PromptReplacement(modality="image", target=[token], replacement=replacement)]


class Rows(Pruned):
    """A model with Pixtral's tower: one grid an image, in rows with marks behind."""

    vision_tower: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.prepare(vllm_config)

    def loads(self, name: str, kwargs: Any) -> list[int]:
        """Merged patches."""
        grids = (grid_of(self.config, image) for image in kwargs[name])
        return [height * width for height, width in grids]

    def inputs_of(self, kwargs: Any) -> list[tuple[str, Any]]:
        """Images, with what stood for each in the prompt."""
        images = kwargs.get("pixel_values")
        if images is None:
            return []
        given = {"type": "pixel_values", "pixel_values": images, LAYOUT: kwargs[LAYOUT]}
        return [("image", given)]

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """One grid an image, with a mark behind each row."""
        images = inputs["pixel_values"]
        with watching() as watch:
            seen = self._watch(watch)
            # vLLM looks at no more of its own inputs than their type and their pixels.
            features = self._process_image_input(inputs)  # type: ignore[attr-defined]
        patches = [patches_of(self.config, image) for image in images]
        observed = self._observed(seen, patches)
        visuals = []
        for number, (image, own) in enumerate(zip(images, features, strict=True)):
            ids = inputs[LAYOUT][number].to(own.device)
            marks = ids[ids != self.config.image_token_index]
            marks = self.language_model.embed_input_ids(marks).detach().to(own)
            newlines = breaks_left(self.config, self.method, len(own))
            visual = rows_visual(own, marks, grid_of(self.config, image), newlines)
            for name, x in observed.items():
                setattr(visual.parts[0], name, x[number])
            if self.pixels is not None:
                visual.parts[0].pixels = restored(self.pixels, image)
            visuals.append(visual)
        return visuals

    def _watch(self, watch: Watch) -> dict[str, Any]:
        tower = self.vision_tower.transformer
        depth = self.config.vision_config.num_hidden_layers
        return {
            name: (
                watch.output(tower.layers[at].attention.qkv_proj),
                watch.arguments(tower),
                request,
            )
            for name, request in requests_of(self.method).items()
            if name in self.wants and name in OBSERVED
            for at in (layer_of(request, len(tower.layers) - 1, depth),)
        }

    @torch.no_grad()
    def _observed(
        self, seen: Mapping[str, Any], patches: list[tuple[int, int]]
    ) -> dict[str, list[Tensor]]:
        """Attention (n,) and keys (n, C) of the tokens of each image."""
        vision, merge = self.config.vision_config, merge_of(self.config)
        size = vision.hidden_size // vision.num_attention_heads
        grids = torch.tensor([(1, *each) for each in patches])
        found = {}
        for name, (packed, called, request) in seen.items():
            queries, keys, _ = packed[0][0].detach().chunk(3, dim=-1)
            if request.what == "keys":
                x = keys_of(heads(all_heads(keys, vision.hidden_size), size), request)
            else:
                cos, sin = called[0][0][1]
                queries, keys = (
                    rotate(heads(each, size).float(), cos, sin) for each in (queries, keys)
                )
                ranks = vision.num_attention_heads // len(keys)
                x = over_heads(by_frame(queries, keys, grids, request), ranks)
            own = x.split([height * width for height, width in patches])
            found[name] = [merged(y, grid, merge) for y, grid in zip(own, patches, strict=True)]
        return found


class Info(InRows, mistral3.Mistral3ProcessingInfo):
    """For Mistral 3."""

    kind = "mistral3"
    unpruned = mistral3.Mistral3ProcessingInfo


class Processor(RowsLaidOut, mistral3.Mistral3MultiModalProcessor):
    """Makes room for what Mistral 3 keeps."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=mistral3.Mistral3DummyInputsBuilder
)
class SecateurMistral3ForConditionalGeneration(Rows, mistral3.Mistral3ForConditionalGeneration):
    """Mistral 3: 2 x 2 patches merge into a token."""

    kind = "mistral3"
