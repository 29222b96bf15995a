"""LLaVA-1.5: a CLIP tower, a two-layer projector, one grid of tokens an image."""

from __future__ import annotations

from secateur.integrations.families.base import TOWERED, Family

LLAVA = Family("LLaVA-1.5", TOWERED | {"pixels"}, projects=True, folds=True)

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""The kinds of vision towers that LLaVA's families have."""
