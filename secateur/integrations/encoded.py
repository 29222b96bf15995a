"""What every host hands to choosing: encoded images and videos, and the parts they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from secateur.core.selection import Selection

Tensor = Any
"""A torch.Tensor."""


Indices = np.ndarray[Any, np.dtype[np.int64]]
Modality = Literal["image", "video"]
Positions = Literal["original", "compact"]
TEXT = frozenset({"text", "text_global", "text_mask"})
"""Inputs of methods that tell the instruction."""
PLANES = "planes"
"""Asked for like a field of `Tokens`: `Visual.planes`, which join its features."""


@dataclass(kw_only=True)
class Part:
    """A grid of tokens that a method chooses within: an image, a crop of it or a video frame.

    Attributes
    ----------
    index
        Where its tokens (h * w,) stand among the features of the image or video; -1 at padding
        that the model cuts off, in the parts of `Visual.padded`.
    grid
        (h, w).
    features
        Its features (h * w, D) where those of the image or video lack some of them.
    attention, attention_shallow, keys, embeds, pixels, states, class_state
        What `Tokens` holds under these names, as far as it was asked for.
    """

    index: Indices
    grid: tuple[int, int]
    features: Tensor = None
    attention: Tensor = None
    attention_shallow: Tensor = None
    keys: Tensor = None
    embeds: Tensor = None
    pixels: Tensor = None
    states: Tensor = None
    class_state: Tensor = None


@dataclass(kw_only=True)
class Visual:
    """An image or a video of a prompt, encoded.

    Attributes
    ----------
    modality
        Which placeholders it fills.
    features
        What fills them (n, D), in order.
    parts
        The grids of tokens among them. What no part holds are separators.
    padded
        The parts as the encoder saw them, with the padding that the model cuts off; empty where
        it cuts nothing off, or a host does not say.
    separators
        Tokens that only mark structure, such as the end of a row, each with the places of the
        tokens it marks. It stays as long as one of those does, and counts in no budget.
    planes
        Features (n, D) that the language model adds in its first layers, one a layer.
    crops
        How many pictures the parts were cut from, overview included, when these share a budget;
        0 for parts with one of their own, such as frames.
    project
        The projector, from states (..., C) to features (..., D); None where tokens are mixed
        after it.
    chosen
        What the encoder returned of each part where a method dropped or folded tokens before
        or inside it: the features of others are 0. Empty where it returned all.
    """

    modality: Modality
    features: Tensor
    parts: list[Part]
    separators: list[tuple[int, Indices]] = field(default_factory=list)
    planes: Sequence[Tensor] = ()
    crops: int = 0
    padded: list[Part] = field(default_factory=list)
    project: Callable[[Tensor], Tensor] | None = None
    chosen: Sequence[Selection] = ()

    @property
    def size(self) -> int:
        """How many placeholders it fills."""
        return int(self.features.shape[0])


def whole(grid: tuple[int, int], start: int = 0) -> Part:
    """A part whose tokens stand one after the other, from `start`."""
    return Part(index=np.arange(start, start + grid[0] * grid[1]), grid=grid)


def spread(x: Tensor, places: Tensor, size: int) -> Tensor:
    """The rows of x at their places, as numbers or flags, among `size` rows; others are 0."""
    laid = x.new_zeros(size, *x.shape[1:])
    laid[places.to(x.device)] = x
    return laid


def split(visuals: Sequence[Visual], name: Modality) -> Iterator[Visual]:
    """Those of one modality, in order."""
    return (each for each in visuals if each.modality == name)


BY_TOKEN = ("attention", "attention_shallow", "keys", "embeds", "states")
"""What is observed of each token."""

OF_PARTS = (*BY_TOKEN, "class_state", "pixels")
"""What a part may hold."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoded:
    """A batch of B prompts, T tokens long, whose images and videos went through the encoder.

    Attributes
    ----------
    visuals
        The images in order, then the videos.
    places
        For each of them its prompt, and the columns (n,) of that prompt that it fills.
    real
        True (B, T) at tokens that are no padding.
    text
        True (B, T) at the instruction.
    texts
        The instruction of each prompt as methods take it, a `Text`; None where nobody asked.
    wants
        The fields of `Tokens` that were gathered.
    milliseconds
        What encoding took, and finding the instruction.
    """

    visuals: list[Visual]
    places: list[tuple[int, Indices]]
    real: np.ndarray[Any, np.dtype[np.bool_]]
    text: np.ndarray[Any, np.dtype[np.bool_]]
    texts: list[Any] | None
    wants: frozenset[str]
    milliseconds: dict[str, float]

    def text_of(self, number: int) -> Any:
        """The instruction that goes with an image or video."""
        return None if self.texts is None else self.texts[self.places[number][0]]


@dataclass
class Seen:
    """What was observed of every picture that went through the tower, (P, N, ...).

    `class_state` (P, C) is one a picture.
    """

    attention: Tensor = None
    attention_shallow: Tensor = None
    keys: Tensor = None
    embeds: Tensor = None
    states: Tensor = None
    class_state: Tensor = None

    def of(self, pictures: slice | int) -> dict[str, Tensor]:
        """What was observed of the tokens of some of the pictures."""
        return {name: x[pictures] for name in BY_TOKEN if (x := getattr(self, name)) is not None}

    def whole(self, picture: int) -> dict[str, Tensor]:
        """What was observed of a picture that is a part as it is."""
        found = self.of(picture)
        if self.class_state is not None:
            found["class_state"] = self.class_state[picture]
        return found
