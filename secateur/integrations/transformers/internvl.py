"""InternVL 2.5 to 3.5: tiles and a thumbnail, of whose patches each four become a token.

Attention is that of the class token in InternViT's layer whose states become features, the last;
attention and keys are averaged over the patches that become one token. An image is a row of
placeholders without a gap; its tiles share K times `keep` tokens, K their number, thumbnail
included. The processor makes a video into frames with text between, which are images of one tile.
`positions=None` means ``"original"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from secateur.core.inputs import REQUESTS, Request
from secateur.integrations.encoded import BY_TOKEN, Tensor, Visual
from secateur.integrations.families.base import Family
from secateur.integrations.families.tiles import INTERNVL, folded, runs, tiles_of, tiles_visuals
from secateur.integrations.transformers.models import Adapter, UnsupportedModelError
from secateur.integrations.transformers.towers import Tower

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class InternTower(Tower):
    """InternViT, of which `fold` x `fold` patches become a token."""

    def __init__(self, model: Any, inputs: Any) -> None:
        config = model.config
        vision = config.vision_config
        self.module = model.model.vision_tower
        self.layers = self.module.encoder.layer
        self.head_size = vision.hidden_size // vision.num_attention_heads
        self.class_token = True
        self.fold = round(1 / config.downsample_ratio)
        chosen = inputs.get("vision_feature_layer")
        chosen = config.vision_feature_layer if chosen is None else chosen
        self.picks = [max(1, chosen % (len(self.layers) + 1)) - 1]
        self.layer = self.picks[0]
        self.projector = model.model.multi_modal_projector

    def projections(self, layer: Any) -> tuple[Any, Any]:
        """After their norm, which is the identity where the tower has none."""
        return layer.attention.q_norm, layer.attention.k_norm

    def _answer(self, request: Request, seen: list[Tensor]) -> Tensor:
        return folded(super()._answer(request, seen), self.fold)


class InternVL(Adapter):
    """Where InternVL keeps what pruning needs."""

    family: ClassVar[Family] = INTERNVL
    visual_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )

    def check(self, model: Any) -> None:
        """InternViT, one layer of it, without its class token."""
        config = model.config
        kind = config.vision_config.model_type
        if kind != "internvl_vision":
            raise UnsupportedModelError(model, f"its vision tower is a {kind}, we know InternViT")
        if not isinstance(config.vision_feature_layer, int):
            raise UnsupportedModelError(model, "vision_feature_layer: we know one layer")
        if config.vision_feature_select_strategy != "default":
            raise UnsupportedModelError(
                model, "vision_feature_select_strategy: the features must be the patches only"
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
        """One grid a tile; see `Adapter.encode`."""
        tower = InternTower(model, inputs)
        given = {name: inputs[name] for name in self.visual_inputs if inputs.get(name) is not None}
        with tower.watch(wants, encoder, requests) as seen:
            features = model.model.get_image_features(**given, return_dict=True).pooler_output
        ids = inputs["input_ids"].detach().cpu().numpy()
        placed = runs(ids == model.config.image_token_id)
        observed = {n: x for n in BY_TOKEN if (x := getattr(seen, n)) is not None}
        if "pixels" in wants:
            observed["pixels"] = pixels.restore(inputs["pixel_values"])
        counts = [tiles_of(run, features.shape[1]) for run in placed]
        return tiles_visuals(features, counts, observed)
