"""CLIP and SigLIP towers, as the LLaVA families use them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from secateur.core.inputs import REQUESTS, Request
from secateur.integrations.encoded import Seen, Tensor
from secateur.integrations.families.llava import TOWERS
from secateur.integrations.families.tiles import folded
from secateur.integrations.observing import (
    Watch,
    heads,
    keys_of,
    layer_of,
    received,
    watching,
)
from secateur.integrations.transformers.models import UnsupportedModelError

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class Tower:
    """The vision tower of a LLaVA model.

    Unless a method asks otherwise, attention is observed in the layer whose states become
    features: CLIP's penultimate, SigLIP's last. With a class token it is that token's, else the
    mean over all tokens.
    """

    def __init__(self, model: Any, inputs: Any) -> None:
        config = model.config
        self.module = model.model.vision_tower
        self.layers = self.module.encoder.layers
        self.head_size = (
            config.vision_config.hidden_size // config.vision_config.num_attention_heads
        )
        self.class_token = config.vision_config.model_type == "clip_vision_model"
        strategy = inputs.get("vision_feature_select_strategy")
        self.drops_first = (strategy or config.vision_feature_select_strategy) == "default"
        chosen = inputs.get("vision_feature_layer")
        chosen = config.vision_feature_layer if chosen is None else chosen
        depth = len(self.layers)
        picks = [chosen] if isinstance(chosen, int) else list(chosen)
        self.picks = [max(1, pick % (depth + 1)) - 1 for pick in picks]
        self.layer = max(self.picks)
        self.projector = model.model.multi_modal_projector
        self.side = config.vision_config.image_size // config.vision_config.patch_size

    @staticmethod
    def check(model: Any) -> None:
        """Refuse towers we do not know, and a class token among the features."""
        config = model.config
        kind = config.vision_config.model_type
        if kind not in TOWERS:
            raise UnsupportedModelError(
                model, f"its vision tower is a {kind}, we know {' and '.join(TOWERS)}"
            )
        strategy = config.vision_feature_select_strategy
        if (strategy == "default") != (kind == "clip_vision_model"):
            raise UnsupportedModelError(
                model,
                f"vision_feature_select_strategy={strategy!r} does not fit a {kind}: the features "
                "must be the patches, all of them and nothing else",
            )

    @contextmanager
    def watch(
        self,
        wants: frozenset[str],
        encoder: TextEncoder | None,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> Iterator[Seen]:
        """Observe what goes through the tower and its projector within the block."""
        seen = Seen()
        embeds = "embeds" in wants and encoder is not None
        with watching() as watch:
            asked = {
                name: self._asked(watch, request)
                for name, request in requests.items()
                if name in wants
            }
            states = watch.output(self.layers[self.layer]) if embeds else []
            yield seen
        for name, outputs in asked.items():
            setattr(seen, name, self._answer(requests[name], [x[0] for x in outputs]))
        if states and encoder is not None:
            seen.embeds = encoder.project(self.module, self._patches(states[0].detach()))

    def projections(self, layer: Any) -> tuple[Any, Any]:
        """The modules of a layer that return queries and keys (P, T, C)."""
        return layer.self_attn.q_proj, layer.self_attn.k_proj

    def _asked(self, watch: Watch, request: Request) -> list[list[Any]]:
        if request.what == "states":
            return [watch.inputs(self.projector)]
        if request.what == "class":
            picked = [self.layers[pick] for pick in self.picks] if self.class_token else []
            return [watch.output(layer) for layer in picked]
        layer = self.layers[layer_of(request, self.layer, len(self.layers))]
        queries, keys = self.projections(layer)
        return [
            watch.output(x) for x in ((queries, keys) if request.what == "attention" else (keys,))
        ]

    def _answer(self, request: Request, seen: list[Tensor]) -> Tensor:
        seen = [x.detach() for x in seen]
        if request.what == "states":
            return seen[0]
        if request.what == "class":
            return torch.cat([x[:, 0] for x in seen], dim=-1) if seen else None
        seen = [heads(x, self.head_size) for x in seen]
        if request.what == "keys":
            return self._patches(keys_of(seen[0], request))
        queries, keys = seen
        return received(queries, keys, request, class_token=self.class_token)

    def _patches(self, x: Tensor) -> Tensor:
        return x[:, 1:] if self.class_token else x


class FoldedTower(Tower):
    """A SigLIP tower whose last layer makes the features, `fold` x `fold` patches a token."""

    def __init__(self, module: Any, config: Any, projector: Any, fold: int) -> None:
        self.module, self.projector, self.fold = module, projector, fold
        self.layers = module.encoder.layers
        self.head_size = config.hidden_size // config.num_attention_heads
        self.class_token = False
        self.layer = len(self.layers) - 1
        self.picks = [self.layer]

    def _answer(self, request: Request, seen: list[Tensor]) -> Tensor:
        return folded(super()._answer(request, seen), self.fold)
