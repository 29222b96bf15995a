"""What a method may be given: the one table of inputs, and `Tokens`, which is built from it.

A new input is a row of `INPUTS` and a field of `Tokens`; what observes it in a model says so in
that model's family. Checks, slices of a batch, error messages and documents read the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import array_api_compat as compat

from secateur.core.arrays import (
    Array,
    constant,
    each_row,
    on_host,
    refuse_kind,
    shape_of,
    shaped,
    spell,
    whole,
)
from secateur.core.batches import Given, images_at, texts_of_frames
from secateur.core.maps import checked_grid
from secateur.core.parameters import typed
from secateur.core.requests import REQUESTS as REQUESTS
from secateur.core.requests import Request as Request

Axis = Literal["token", "frame", "image", "text", "fact"]
"""What an input has one entry of: each token, each frame, each image, each text; or a fact that
all images of a batch share."""


@dataclass(frozen=True)
class Input:
    """A row of the table.

    Attributes
    ----------
    axis
        What it has one entry of.
    layout
        Its shape.
    says
        What it is.
    source
        Where an attachment takes it from.
    numbers
        Whether it holds numbers, which must then be finite.
    non_negative
        Whether negative numbers are refused.
    """

    axis: Axis
    layout: str
    says: str
    source: str
    numbers: bool = True
    non_negative: bool = False

    @property
    def own_axes(self) -> int:
        """How many axes follow those of the batch."""
        return self.layout.count(",") if self.layout.startswith("(...") else 0


INPUTS: dict[str, Input] = {
    "features": Input(
        "token",
        "(..., N, D)",
        "visual features (..., N, D) in the language model's space",
        "an attachment takes them from the projector's output",
    ),
    "grid": Input(
        "fact",
        "(h, w)",
        "the tokens' grid (h, w), row by row, of one frame where there are several",
        "an attachment takes it from the image processor",
        numbers=False,
    ),
    "frames": Input(
        "fact",
        "T",
        "how many frames a video has, whose tokens come frame after frame",
        "an attachment takes it from the video's grid",
        numbers=False,
    ),
    "embeds": Input(
        "token",
        "(..., N, C)",
        "the visual tokens (..., N, C) in a space shared with text",
        "an attachment takes them from the vision tower's projection (pass text_encoder=)",
    ),
    "text": Input(
        "text",
        "(..., L, C)",
        "instruction token embeddings (..., L, C), or a list of several texts",
        "an attachment takes them from the text encoder (text_encoder=) or from the language "
        "model's input embeddings of the prompt",
    ),
    "text_global": Input(
        "text",
        "(..., C)",
        "one embedding (..., C) of the instruction, or a list of them",
        "an attachment takes it from the text encoder's pooled output or from the mean of the "
        "prompt's embeddings",
    ),
    "text_mask": Input(
        "text",
        "(..., L)",
        "True (..., L) at the instruction tokens that count, or a list of masks",
        "an attachment masks special and padding tokens",
        numbers=False,
    ),
    "attention": Input(
        "token",
        "(..., N)",
        "the attention (..., N) each visual token receives",
        "an attachment observes it in a deep layer of the vision tower, the one whose states "
        "become features unless the method asks for another",
        non_negative=True,
    ),
    "attention_shallow": Input(
        "token",
        "(..., N)",
        "the same (..., N) from a layer nearer to the image",
        "an attachment observes it in the layer that the method asks for",
        non_negative=True,
    ),
    "pixels": Input(
        "image",
        "(..., H, W, 3)",
        "the image (..., H, W, 3), 0..255, as the model receives it before normalisation",
        "an attachment recovers it from pixel_values",
    ),
    "keys": Input(
        "token",
        "(..., N, C)",
        "attention keys (..., N, C) of the visual tokens",
        "an attachment observes them in the vision tower, in the layer of `attention`",
    ),
    "states": Input(
        "token",
        "(..., N, C)",
        "the visual tokens (..., N, C) before the projector",
        "an attachment takes them from the projector's input",
    ),
    "class_state": Input(
        "image",
        "(..., C)",
        "the class token (..., C) before the projector",
        "an attachment takes it from a vision tower that has one",
    ),
    "importance": Input(
        "token",
        "(..., N)",
        "any score (..., N) of the tokens, higher is better",
        "a scorer of your own gives it; an attachment does not",
    ),
    "selectable": Input(
        "token",
        "(..., N)",
        "False (..., N) at tokens that may not be picked, though they count as ones to stand for",
        "an attachment marks tokens of padded borders",
        numbers=False,
    ),
    "frame_features": Input(
        "frame",
        "(..., T, C)",
        "one vector (..., T, C) a frame",
        "an attachment takes it from the vision tower's pooled output, or the mean of the frame",
    ),
}
"""Every input of every method, by its name in `Tokens`."""

SOURCES = {name: f"{row.says}; {row.source}" for name, row in INPUTS.items()}
"""What each input is and where it comes from, for messages."""

PER_TOKEN = {name: row.own_axes for name, row in INPUTS.items() if row.axis == "token"}
"""The inputs with one entry a token, and how many axes they have beside the batch."""


class MissingInputError(ValueError):
    """A method was not given what it works from."""

    def __init__(self, method: str, missing: str) -> None:
        self.method = method
        self.missing = missing
        super().__init__(f"{method} needs tokens.{missing}: {SOURCES[missing]}")

    def __reduce__(self) -> Any:
        return type(self), (self.method, self.missing)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Tokens:
    """The visual tokens of an image or a video, or of a batch of them, and what is known of them.

    Each method says in `needs` what it works from; mostly that begins with `features`. Leading
    axes are batches. Images of different sizes go into a list of `Tokens`. A video is one set
    of tokens, frame after frame.

    Attributes
    ----------
    features
        The tokens (..., N, D) in the language model's space. May be absent where `pixels` and
        `grid` are there, for methods that choose before anything is encoded.
    grid
        (h, w) with h * w = N, row by row, the same for every image of the batch; of one frame
        where there are `frames`.
    frames
        How many frames T the N = T n tokens belong to, frame after frame; None for images.
    embeds
        The same tokens (..., N, C) in a space shared with text; `features` where there is none.
    text
        Instruction tokens (..., L, C), or a list of several texts.
    text_global
        One embedding (..., C) of the instruction, or a list of them.
    text_mask
        True (..., L) at the instruction tokens that count, or a list of masks.
    attention
        The attention (..., N) that each token receives in a deep layer of the encoder.
    attention_shallow
        The same (..., N) in a layer nearer to the image.
    pixels
        The image (..., H, W, 3), 0..255.
    keys
        Attention keys (..., N, C) of the tokens.
    states
        The tokens (..., N, C) before the projector.
    class_state
        The class token (..., C) before the projector.
    importance
        Any score (..., N) of the tokens, higher is better.
    selectable
        False (..., N) at tokens that may not be picked, but count as something to stand for.
    frame_features
        One vector (..., T, C) a frame.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> sc.Tokens(features=np.ones((576, 16)), grid=(24, 24))
    Tokens(features=(576, 16), grid=(24, 24))
    """

    features: Array = None
    grid: tuple[int, int] | None = None
    frames: int | None = None
    embeds: Array | None = None
    text: Any = None
    text_global: Any = None
    text_mask: Any = None
    attention: Array | None = None
    attention_shallow: Array | None = None
    pixels: Array | None = None
    keys: Array | None = None
    states: Array | None = None
    class_state: Array | None = None
    importance: Array | None = None
    selectable: Array | None = None
    frame_features: Array | None = None

    def __post_init__(self) -> None:
        blind = self.features is None and self.pixels is not None and self.grid is not None
        if blind:
            _image(self.pixels)
            checked_grid(self.grid)
        for name in PER_TOKEN:
            x = getattr(self, name)
            if x is None and (name != "features" or blind):
                continue
            if isinstance(x, (list, tuple)):
                x = on_host(x, name)
                object.__setattr__(self, name, x)
            self._fits(name, x)
        if self.size == 0:
            raise ValueError(
                f"features: expected at least one token, got shape {spell(self.features.shape)}"
            )
        self._check_frames()
        self._check_images()
        if self.grid is not None:
            object.__setattr__(self, "grid", checked_grid(self.grid, self.size // self.times))

    def _fits(self, name: str, x: Any) -> None:
        axes = PER_TOKEN[name]
        layout = "(..., N, D)" if axes == 2 else "(..., N)"
        refuse_kind(x, name)
        if not compat.is_array_api_obj(x) or x.ndim < axes:
            came = spell(shape_of(x)) if hasattr(x, "shape") else type(x).__name__
            raise ValueError(f"{name}: expected an array of shape {layout}, got {came}")
        expected = (*self.batch_shape, self.size)
        if shape_of(x)[: x.ndim - axes + 1] != expected:
            blind = self.features is None
            beside = "grid" if blind else "features"
            known: Any = self.grid if blind else shape_of(self.features)
            raise ValueError(
                f"{name}: expected shape {spell(expected)[:-1].rstrip(',')}"
                f"{', D)' if axes == 2 else ')'} "
                f"beside {beside} {spell(known)}, got {spell(shape_of(x))}"
            )

    def _check_images(self) -> None:
        """What an image has once, each image of the batch has, or each frame of a video."""
        for name, row in INPUTS.items():
            x = getattr(self, name)
            if row.axis != "image" or x is None:
                continue
            batch = self.batch_shape
            x = shaped(x, name, row.layout)
            object.__setattr__(self, name, x)
            if shape_of(x)[: x.ndim - row.own_axes] not in (batch, (*batch, self.frames)):
                raise ValueError(
                    f"{name}: expected one {'image' if name == 'pixels' else 'vector'} for each "
                    f"of the rows {spell(batch)}, got shape {spell(shape_of(x))}"
                )

    def _check_frames(self) -> None:
        if self.frames is not None and (whole(self.frames) < 1 or self.size % self.frames):
            raise ValueError(
                f"frames: expected a whole number that divides the {self.size} tokens, "
                f"got {self.frames!r}"
            )
        if self.frame_features is not None:
            x = self.frame_features
            expected = (*self.batch_shape, self.times)
            if not compat.is_array_api_obj(x) or shape_of(x)[:-1] != expected:
                came = spell(shape_of(x)) if hasattr(x, "shape") else type(x).__name__
                raise ValueError(
                    f"frame_features: expected shape {spell(expected)[:-1].rstrip(',')}, C), "
                    f"got {came}"
                )

    @property
    def size(self) -> int:
        """How many tokens an image or a video has, N."""
        if self.features is None:
            h, w = self.grid  # type: ignore[misc]
            return int(h) * int(w)
        return int(self.features.shape[-2])

    @property
    def times(self) -> int:
        """How many frames the tokens belong to; 1 for an image."""
        return 1 if self.frames is None else int(self.frames)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes."""
        if self.features is None:
            return shape_of(self.pixels)[:-3]
        return shape_of(self.features)[:-2]

    @property
    def sample(self) -> Array:
        """An array of the library and on the device that answers come in."""
        return self.pixels if self.features is None else self.features

    @property
    def space(self) -> Array:
        """The tokens where they can be compared with text: `embeds`, else `features`."""
        return self.features if self.embeds is None else self.embeds

    @typed
    def require(self, method: str, *names: str) -> None:
        """Raise `MissingInputError` for the first of the named inputs that is absent."""
        for name in names:
            if name not in INPUTS:
                raise ValueError(f"names: expected inputs such as features, got {name!r}")
            if getattr(self, name) is None:
                raise MissingInputError(method, name)

    def with_(self, **changes: Any) -> Tokens:
        """A copy with some inputs replaced."""
        return replace(self, **changes)

    def rows(self) -> Iterator[Tokens]:
        """The images of a batch one by one, for methods that think of one image at a time.

        Texts are shared by all, unless each image has its own; join the selections with
        `secateur.core.selection.stack`.
        """
        batch = self.batch_shape
        if not batch:
            yield self
            return
        for position in each_row(batch):
            yield images_of(self, position)

    def each_frame(self) -> Tokens:
        """The frames of a video as a batch of images (..., T), each by itself."""
        if self.frames is None:
            return self
        times, batch = self.times, self.batch_shape
        changes: dict[str, Any] = {"frames": None, "frame_features": None}
        changes |= texts_of_frames(self.batch_shape, _given(self))
        for name in PER_TOKEN:
            x = getattr(self, name)
            if x is not None:
                rest = shape_of(x)[len(batch) + 1 :]
                xp = compat.array_namespace(x)
                changes[name] = xp.reshape(x, (*batch, times, self.size // times, *rest))
        return self.with_(**changes)

    def without_gradients(self) -> Tokens:
        """The same numbers without their history: a choice of tokens has no derivative."""
        changes: dict[str, Any] = {}
        for item in fields(self):
            x = getattr(self, item.name)
            several = isinstance(x, (list, tuple))
            if any(getattr(each, "requires_grad", False) for each in (x if several else [x])):
                changes[item.name] = [constant(each) for each in x] if several else constant(x)
        return self.with_(**changes) if changes else self

    def __repr__(self) -> str:
        parts = []
        for item in fields(self):
            x = getattr(self, item.name)
            if x is None:
                continue
            parts.append(f"{item.name}={x if INPUTS[item.name].axis == 'fact' else _spelt(x)}")
        return f"Tokens({', '.join(parts)})"


def arrays_of(tokens: Tokens) -> Iterator[tuple[str, Any]]:
    """Names and values of the inputs that are arrays, or several texts of them."""
    for name, row in INPUTS.items():
        x = getattr(tokens, name)
        if x is not None and row.axis != "fact":
            yield name, x


def _given(tokens: Tokens) -> dict[str, Given]:
    return {
        name: Given(x, INPUTS[name].own_axes, INPUTS[name].axis == "text")
        for name, x in arrays_of(tokens)
    }


def images_of(tokens: Tokens, place: tuple[Any, ...]) -> Tokens:
    """The images at an index into the axes of a batch."""
    return tokens.with_(**images_at(tokens.batch_shape, _given(tokens), place))


def taken_elsewhere(tokens: Tokens, change: Callable[[Any], Any]) -> Tokens:
    """The same, each array put through `change`: to another library or device."""
    one = copy(tokens)
    for name, x in arrays_of(tokens):
        several = isinstance(x, (list, tuple))
        object.__setattr__(one, name, [*map(change, x)] if several else change(x))
    return one


def _image(pixels: Any) -> None:
    if not compat.is_array_api_obj(pixels) or pixels.ndim < 3 or int(pixels.shape[-1]) != 3:
        came = spell(shape_of(pixels)) if hasattr(pixels, "shape") else type(pixels).__name__
        raise ValueError(f"pixels: expected an array of shape (..., H, W, 3), got {came}")


def _spelt(x: Any) -> str:
    if isinstance(x, (list, tuple)):
        if not any(hasattr(each, "shape") or isinstance(each, (list, tuple)) for each in x):
            return spell((len(x),))
        return "[" + ", ".join(_spelt(each) for each in x) + "]"
    return spell(shape_of(x)) if hasattr(x, "shape") else type(x).__name__
