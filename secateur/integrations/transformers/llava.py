"""LLaVA-1.5: a CLIP tower, a two-layer projector, one grid of tokens an image.

`positions=None` means ``"original"``: kept tokens stay where they were and decoding goes on after
the unpruned prompt. The papers' own LLaVA programs renumber; ``positions="compact"`` does so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from secateur.core.acts import Folds
from secateur.core.inputs import REQUESTS, Request
from secateur.core.selection import Selection
from secateur.integrations.encoded import Visual, whole
from secateur.integrations.families.base import Family
from secateur.integrations.families.llava import LLAVA
from secateur.integrations.transformers.mistral3 import Mistral3
from secateur.integrations.transformers.models import Adapter
from secateur.integrations.transformers.towers import Tower, folded_pictures

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class Llava(Adapter):
    """Where LLaVA-1.5 keeps what pruning needs."""

    family: ClassVar[Family] = LLAVA
    visual_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )

    def suited(self, model: Any) -> Adapter:
        """Pixtral 12B has this class, and all else of Mistral 3."""
        return Mistral3() if model.config.vision_config.model_type == "pixtral" else self

    def check(self, model: Any) -> None:
        """CLIP and SigLIP towers."""
        Tower.check(model)

    def tower(self, model: Any) -> Any:
        """The CLIP or SigLIP tower."""
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
        """One grid an image; see `Adapter.encode`."""
        tower = Tower(model, inputs)
        given = {name: inputs[name] for name in self.visual_inputs if inputs.get(name) is not None}
        with tower.watch(wants, encoder, requests) as seen:
            features = model.model.get_image_features(**given, return_dict=True).pooler_output
        height, width = inputs["pixel_values"].shape[-2:]
        patch, project = model.config.vision_config.patch_size, model.model.multi_modal_projector
        found = []
        for picture, tokens in enumerate(features):
            part = whole((height // patch, width // patch))
            for name, x in seen.whole(picture).items():
                setattr(part, name, x)
            if "pixels" in wants:
                part.pixels = pixels.restore(inputs["pixel_values"][picture])
            found.append(Visual(modality="image", features=tokens, parts=[part], project=project))
        return found

    def encode_folding(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        method: Folds,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> list[Visual]:
        """What the tower folds; see `Adapter.encode_folding`."""
        pictures = inputs["pixel_values"]
        folded = folded_pictures(Tower(model, inputs), pictures, wants, method, requests)
        height, width = pictures.shape[-2:]
        patch = model.config.vision_config.patch_size
        found = []
        for picture, (features, places) in enumerate(
            zip(folded.features, folded.places, strict=True)
        ):
            part = whole((height // patch, width // patch))
            for name, x in folded.seen.of(picture).items():
                setattr(part, name, x)
            chosen = [Selection.of(places, len(features))]
            found.append(Visual(modality="image", features=features, parts=[part], chosen=chosen))
        return found
