"""How many tokens an image keeps, which vLLM asks before the image is encoded, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch

from secateur.core.inputs import Tokens
from secateur.core.methods import Method
from secateur.integrations.families.newlines import SETTING, Newlines, newlines_of
from secateur.integrations.pixels import Pixels
from secateur.integrations.vllm.checking import KEY, method_of, sees_sizes_alone
from secateur.integrations.vllm.identity import digest
from secateur.integrations.vllm.models import ROWS


class Sized:
    """What a processor has to know: how many tokens a method keeps."""

    kind = ""
    """The model type whose method is served."""
    unpruned: ClassVar[type[Any]]
    """vLLM's class of the same sizes without a method."""

    @cached_property
    def method(self) -> Method:
        """The method that the model's configuration asks for."""
        return configured(self.get_hf_config(), self.kind)  # type: ignore[attr-defined]

    @cached_property
    def stock(self) -> Any:
        """Sizes before pruning."""
        return self.unpruned(self.ctx)  # type: ignore[attr-defined]

    @property
    def model_id(self) -> str:
        """The model and the method: vLLM hashes an image with it, wherever caches are shared."""
        return f"{super().model_id}#{self.identity}"  # type: ignore[misc]

    @cached_property
    def identity(self) -> str:
        """What tells this method's images from another's."""
        newlines = getattr(self.get_hf_config(), SETTING, None)  # type: ignore[attr-defined]
        return f"secateur-{digest(self.method, newlines)}"

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens before pruning: memory is measured with as many images as the tower takes."""
        most = {"image": self.stock.get_max_image_tokens()}
        if "video" in ROWS[self.kind].family.modalities:
            most["video"] = self.stock.get_max_video_tokens(seq_len, mm_counts)
        return most

    def at_most(self, size: int) -> int:
        """How many of an image's tokens may stay; only pixels tell how many do where they count."""
        return size if self.method.counted_from == "pixels" else self.method.budget(size)

    def counted(self, grid: tuple[int, int], channels: Any) -> int:
        """How many tokens of a grid a method keeps that decides by pixels, from (3, H, W)."""
        pixels = pixels_of(self.kind, self.get_hf_processor())  # type: ignore[attr-defined]
        tokens = Tokens(
            features=torch.zeros(grid[0] * grid[1], 1),
            grid=grid,
            pixels=restored(pixels, channels),
        )
        return int(self.method.select(tokens).count)


def configured(config: Any, kind: str) -> Method:
    """The method in a model's configuration, if vLLM can serve it."""
    return method_of(getattr(config, KEY, None), kind)


def newlines_left(config: Any, method: Method, *, whole: bool) -> Newlines:
    """Which newline tokens stay of an image that is kept `whole`, or is not.

    Where nobody says, those of rows that keep a token, if it is known in time which those are.
    """
    newlines = newlines_of(config)
    if newlines is None:
        newlines = "rows" if whole or sees_sizes_alone(method) else "none"
    return newlines


def pixels_of(kind: str, processor: Any) -> Pixels:
    """How to undo what a processor does to 8-bit values."""
    return Pixels.of(ROWS[kind].family, processor)


def restored(pixels: Pixels, channels: Any) -> Any:
    """Pixels (..., H, W, 3) from what a model of vLLM is given, which may not be normalised yet."""
    if channels.is_floating_point():
        return pixels.restore(channels)
    return channels.movedim(-3, -1).float()
