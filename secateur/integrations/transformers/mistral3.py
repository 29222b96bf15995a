"""Mistral 3 (Mistral Small 3.1 and on): Pixtral's tower, whose 2 x 2 patches merge into a token.

Pixtral 12B, which has LLaVA's class in transformers, is the same without merging.

The tower reads all images of a batch in one sequence, each of which sees itself only. Attention is
that of the layer whose states become features, the last: what a patch receives on average from its
image, averaged, as keys are, over the patches that merge. Behind each row of an image the prompt
has a mark: a break stays as long as its row keeps a token, unless the configuration's
`secateur_newlines` says otherwise, the image's end always. `positions=None` means ``"original"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from secateur.core.inputs import REQUESTS, Request
from secateur.integrations.encoded import Indices, Modality, Tensor, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.families.newlines import newlines_of
from secateur.integrations.families.pixtral import (
    MISTRAL3,
    check_rows,
    merged,
    rows_visual,
    with_marks,
)
from secateur.integrations.observing import (
    Watch,
    by_frame,
    heads,
    keys_of,
    layer_of,
    rotate,
    watching,
)
from secateur.integrations.transformers.internals import device_of
from secateur.integrations.transformers.models import Adapter, UnsupportedModelError

if TYPE_CHECKING:
    from secateur.integrations.text import Flags, TextEncoder


class Mistral3(Adapter):
    """Where Mistral 3 keeps what pruning needs."""

    family: ClassVar[Family] = MISTRAL3
    visual_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
    )

    def check(self, model: Any) -> None:
        """Pixtral's tower, all of its patches."""
        config = model.config
        kind = config.vision_config.model_type
        if kind != "pixtral":
            raise UnsupportedModelError(model, f"its vision tower is a {kind}, we know Pixtral's")
        if getattr(config, "vision_feature_select_strategy", "full") != "full":
            raise UnsupportedModelError(
                model, "vision_feature_select_strategy: the features must be all patches"
            )

    def standing(self, model: Any, ids: Indices) -> dict[Modality, Flags]:
        """Placeholders and the mark behind each row of them."""
        return {name: with_marks(own) for name, own in super().standing(model, ids).items()}

    def encode(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        encoder: TextEncoder | None,
        pixels: Any,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """One grid an image; see `Adapter.encode`."""
        if inputs.get("image_sizes") is None:
            raise ValueError("image_sizes: expected beside pixel_values")
        config, tower = model.config, model.model.vision_tower
        given = {name: inputs[name] for name in self.visual_inputs if inputs.get(name) is not None}
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        merge = getattr(config, "spatial_merge_size", 1)
        patch = config.vision_config.patch_size
        patches = [(height // patch, width // patch) for height, width in sizes]
        grids = [(height // merge, width // merge) for height, width in patches]
        ids = inputs["input_ids"]
        placeholder = (ids == config.image_token_id).cpu().numpy()
        check_rows(placeholder, grids)
        deepest = given.get("vision_feature_layer", config.vision_feature_layer)
        with watching() as watch:
            seen = self._watch(watch, tower.transformer.layers, deepest, wants, requests)
            out = model.model.get_image_features(**given, return_dict=True).pooler_output
        observed = self._observed(seen, patches, merge, requests)
        behind = torch.from_numpy(with_marks(placeholder) & ~placeholder).to(ids.device)
        embedding = model.get_input_embeddings()
        marks = embedding(ids[behind].to(device_of(embedding))).to(out[0])
        found, row = [], 0
        for number, (features, grid) in enumerate(zip(out, grids, strict=True)):
            own = marks[row : row + grid[0]]
            visual = rows_visual(features, own, grid, newlines_of(config) or "rows")
            for name, x in observed.items():
                setattr(visual.parts[0], name, x[number])
            if "pixels" in wants:
                height, width = sizes[number]
                shown = inputs["pixel_values"][number, :, :height, :width]
                visual.parts[0].pixels = pixels.restore(shown)
            found.append(visual)
            row += grid[0]
        return found

    def _watch(
        self,
        watch: Watch,
        layers: Any,
        deepest: int | list[int],
        wants: frozenset[str],
        requests: Mapping[str, Request],
    ) -> dict[str, Any]:
        depth = len(layers)
        picks = [deepest] if isinstance(deepest, int) else deepest
        features = max(max(1, pick % (depth + 1)) - 1 for pick in picks)
        return {
            name: (
                watch.output(attention.q_proj),
                watch.output(attention.k_proj),
                watch.arguments(attention),
                attention.head_dim,
            )
            for name, request in requests.items()
            if name in wants
            for attention in (layers[layer_of(request, features, depth)].attention,)
        }

    @torch.no_grad()
    def _observed(
        self,
        seen: Mapping[str, Any],
        patches: list[tuple[int, int]],
        merge: int,
        requests: Mapping[str, Request],
    ) -> dict[str, list[Tensor]]:
        """Attention (n,) and keys (n, C) of the tokens of each image."""
        found = {}
        grids = torch.tensor([(1, *each) for each in patches])
        for name, (asking, asked, called, size) in seen.items():
            queries, keys = (heads(x[0][0].detach(), size) for x in (asking, asked))
            if requests[name].what == "keys":
                x = keys_of(keys, requests[name])
            else:
                cos, sin = called[0][1]["position_embeddings"]
                queries, keys = (rotate(x.float(), cos, sin) for x in (queries, keys))
                x = by_frame(queries, keys, grids, requests[name])
            own = x.split([height * width for height, width in patches])
            found[name] = [merged(y, grid, merge) for y, grid in zip(own, patches, strict=True)]
        return found
