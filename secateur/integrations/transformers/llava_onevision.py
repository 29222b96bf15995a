"""LLaVA-OneVision and LLaVA-Video: a SigLIP tower, crops or frames, newline tokens.

A single image is an overview and a grid of crops, unpadded and, beyond nine crops' worth of
tokens, shrunk; several images of a prompt are one grid each. Crops share a budget as in
LLaVA-NeXT, but all of them are one part, since shrinking mixes tokens across crops. Frames of a
video are pooled to half the side and end in one newline token; each keeps `keep` tokens. Maps of
attention are shrunk and pooled as the features are. Tokens may fold inside the encoder as in
LLaVA-NeXT, where nothing is shrunk or pooled. `positions=None` means ``"original"``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from secateur.core.acts import Folds
from secateur.core.inputs import REQUESTS, Request
from secateur.core.selection import Selection
from secateur.integrations.encoded import Tensor, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.families.llava_next import crop_layout, shown_of
from secateur.integrations.families.llava_onevision import (
    LLAVA_ONEVISION,
    by_token,
    image_visual,
    most_crops,
    shrunk,
    unpadded,
    video_visual,
)
from secateur.integrations.families.newlines import newlines_of, with_newlines
from secateur.integrations.transformers.models import Adapter
from secateur.integrations.transformers.towers import Tower, folded_pictures, stacked

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class LlavaOneVision(Adapter):
    """Where LLaVA-OneVision keeps what pruning needs."""

    family: ClassVar[Family] = LLAVA_ONEVISION
    visual_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "pixel_values_videos",
        "image_sizes_videos",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "vision_aspect_ratio",
        "batch_num_images",
    )

    def check(self, model: Any) -> None:
        """CLIP and SigLIP towers."""
        Tower.check(model)

    def tower(self, model: Any) -> Any:
        """The SigLIP tower."""
        return model.model.vision_tower

    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """Crops of an image, frames of a video; see `Adapter.encode`."""
        return [
            *self._images(model, inputs, wants, encoder, requests),
            *self._videos(model, inputs, wants, encoder, requests),
        ]

    def _images(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        requests: Mapping[str, Request],
    ) -> list[Visual]:
        if inputs.get("pixel_values") is None:
            return []
        if inputs.get("image_sizes") is None:
            raise ValueError("image_sizes: expected beside pixel_values")
        tower = Tower(model, inputs)
        # forward() of the model does not pass vision_aspect_ratio on, so neither do we.
        names = set(self.visual_inputs) - {"vision_aspect_ratio"}
        names -= {name for name in names if name.endswith("videos")}
        given = {name: inputs[name] for name in names if inputs.get(name) is not None}
        with tower.watch(wants, encoder, requests) as seen:
            out = model.model.get_image_features(**given, return_dict=True)
        sizes, found, first = inputs["image_sizes"], [], 0
        for features, size, alone in zip(out.pooler_output, sizes, _alone(inputs), strict=True):
            layout = crop_layout(model.config, size, tower.side) if alone else None
            crops = 0 if layout is None else layout[0] * layout[1]
            most = most_crops(model.config)
            packed = partial(_packed, model, size=size)
            visual = image_visual(features, layout, most, tower.side, seen, first, packed)
            found.append(with_newlines(visual, newlines_of(model.config) or "rows"))
            first += 1 + crops
        return found

    def encode_folding(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        method: Folds,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """The overview and each crop folded by itself; see `Adapter.encode_folding`."""
        name = type(method).__name__
        if inputs.get("pixel_values_videos") is not None:
            raise ValueError(
                f"pixel_values_videos: {name} folds tokens inside the encoder, and frames are "
                "pooled behind it, which takes neighbours of every token; give images"
            )
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise ValueError("image_sizes: expected beside pixel_values")
        tower = Tower(model, inputs)
        layouts = [
            crop_layout(model.config, size, tower.side) if alone else None
            for size, alone in zip(sizes, _alone(inputs), strict=True)
        ]
        most = most_crops(model.config)
        for layout in layouts:
            if layout is not None and shrunk(layout, tower.side, most) != unpadded(
                layout, tower.side
            ):
                raise ValueError(
                    f"pixel_values: {name} folds tokens inside the encoder, and an image of more "
                    f"than {most} crops' worth of tokens is shrunk behind it, which mixes "
                    "neighbours; give a smaller image"
                )
        whole = torch.ones(1, tower.side**2, dtype=torch.bool)
        shown = [
            whole if layout is None else torch.from_numpy(shown_of(layout, tower.side))
            for layout in layouts
        ]
        counts = [len(own) for own in shown]
        pictures = stacked(inputs["pixel_values"], counts)
        together = torch.cat(shown).to(pictures.device)
        folded = folded_pictures(tower, pictures, wants, method, requests, together)
        packed, _ = model.model.pack_image_features(
            folded.features.split(counts),
            sizes,
            image_newline=model.model.image_newline,
            vision_aspect_ratio=model.config.vision_aspect_ratio,
        )
        found, first = [], 0
        for features, layout, size, count in zip(packed, layouts, sizes, counts, strict=True):
            pack = partial(_packed, model, size=size)
            visual = image_visual(features, layout, most, tower.side, folded.seen, first, pack)
            left = pack(folded.left[first : first + count]).split(
                [len(part.index) for part in visual.parts]
            )
            visual.chosen = [Selection.of(own.nonzero()[:, 0], len(own)) for own in left]
            found.append(with_newlines(visual, newlines_of(model.config) or "rows"))
            first += count
        return found

    def _videos(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        requests: Mapping[str, Request],
    ) -> list[Visual]:
        pictures = inputs.get("pixel_values_videos")
        if pictures is None:
            return []
        tower = Tower(model, inputs)
        names = ("vision_feature_layer", "vision_feature_select_strategy")
        given = {name: inputs[name] for name in names if inputs.get(name) is not None}
        with tower.watch(wants, encoder, requests) as seen:
            out = model.model.get_video_features(pictures, **given, return_dict=True)
        videos, frames = pictures.shape[:2]
        side = math.ceil(tower.side / 2)
        features = out.pooler_output
        if features.shape[1] == frames * side * side:
            # transformers 5.17 adds the newline after this step, later releases within it.
            newline = model.model.image_newline.to(features)[None, None].expand(videos, -1, -1)
            features = torch.cat((features, newline), dim=1)
        found = []
        for video in range(videos):
            own = slice(video * frames, (video + 1) * frames)
            observed = {
                name: by_token(x, model.model.apply_pooling) for name, x in seen.of(own).items()
            }
            found.append(video_visual(features[video], frames, side, observed))
        return found


def _alone(inputs: Mapping[str, Any]) -> list[bool]:
    """Whether each image is the only one of its prompt, and so is cut into crops."""
    counts = inputs.get("batch_num_images")
    if counts is None:
        return [True] * len(inputs["image_sizes"])
    return [int(n) == 1 for n in counts for _ in range(int(n))]


def _packed(model: Any, x: Tensor, size: Any) -> Tensor:
    """What the model does to the features of an image's pictures, done to x (P, N[, C])."""
    flat = x if x.ndim == 3 else x[..., None]
    packed, _ = model.model.pack_image_features(
        [flat.float()], size[None], vision_aspect_ratio=model.config.vision_aspect_ratio
    )
    return packed[0].to(x.dtype) if x.ndim == 3 else packed[0][..., 0].to(x.dtype)
