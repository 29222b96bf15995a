"""CLIP and SigLIP towers, as the LLaVA families use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from secateur.integrations.encoded import Seen, Tensor
from secateur.integrations.families.llava import TOWERS
from secateur.integrations.observing import (
    SHALLOW,
    class_attention,
    heads,
    mean_attention,
    watching,
)
from secateur.integrations.transformers.models import UnsupportedModelError

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class Tower:
    """The vision tower of a LLaVA model.

    Attention is observed in the layer whose states become features: CLIP's penultimate, SigLIP's
    last. With a class token it is that token's, else the mean over all tokens.
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
        self.layer = max(1, max(pick % (depth + 1) for pick in picks)) - 1
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
    def watch(self, wants: frozenset[str], encoder: TextEncoder | None) -> Iterator[Seen]:
        """Observe what goes through the tower within the block."""
        seen = Seen()
        deep = self.layers[self.layer]
        shallow = self.layers[min(max(round(SHALLOW * len(self.layers)), 1) - 1, self.layer)]
        with watching() as watch:
            projections = {
                name: (watch.output(layer.self_attn.q_proj), watch.output(layer.self_attn.k_proj))
                for name, layer in (("attention", deep), ("attention_shallow", shallow))
                if name in wants
            }
            keys = watch.output(deep.self_attn.k_proj) if "keys" in wants else []
            states = watch.output(deep) if "embeds" in wants and encoder is not None else []
            yield seen
        for name, (queries, projected) in projections.items():
            setattr(seen, name, self._received(queries[0].detach(), projected[0].detach()))
        if keys:
            seen.keys = self._patches(keys[0].detach())
        if states and encoder is not None:
            seen.embeds = encoder.project(self.module, self._patches(states[0].detach()))

    def _received(self, queries: Tensor, keys: Tensor) -> Tensor:
        queries, keys = heads(queries, self.head_size), heads(keys, self.head_size)
        if self.class_token:
            return class_attention(queries, keys)
        return mean_attention(queries, keys)

    def _patches(self, x: Tensor) -> Tensor:
        return x[:, 1:] if self.class_token else x
