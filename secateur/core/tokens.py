"""What a method may be given."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from secateur.core.arrays import Array, shape_of, spell
from secateur.core.relevance import checked_grid


class MissingInputError(ValueError):
    """A method was not given what it works from."""

    def __init__(self, method: str, missing: str) -> None:
        self.method = method
        self.missing = missing
        super().__init__(f"{method} needs tokens.{missing}: {SOURCES[missing]}")


SOURCES = {
    "features": "visual features (..., N, D) in the language model's space; an attachment takes "
    "them from the projector's output",
    "grid": "the tokens' grid (h, w), row by row; an attachment takes it from the image processor",
    "embeds": "the visual tokens (..., N, C) in a space shared with text; an attachment takes "
    "them from the vision tower's projection (pass text_encoder=)",
    "text": "instruction token embeddings (..., L, C); an attachment takes them from the text "
    "encoder (text_encoder=) or from the language model's input embeddings of the prompt",
    "text_global": "one embedding (..., C) of the instruction; an attachment takes it from the "
    "text encoder's pooled output or from the mean of the prompt's embeddings",
    "text_mask": "True (..., L) at the instruction tokens that count; an attachment masks special "
    "and padding tokens",
    "attention": "the attention (..., N) each visual token receives; an attachment observes it in "
    "the vision tower's penultimate layer",
    "attention_shallow": "the same (..., N) from a middle layer; an attachment observes it there",
    "pixels": "the image (..., H, W, 3), 0..255, as the model receives it before normalisation; "
    "an attachment recovers it from pixel_values",
    "keys": "attention keys (..., N, C) of the visual tokens; an attachment observes them in the "
    "vision tower's penultimate layer",
}
"""Where each input of a method comes from."""

_PER_TOKEN = {"features": 2, "embeds": 2, "keys": 2, "attention": 1, "attention_shallow": 1}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Tokens:
    """The visual tokens of an image, or of a batch of images, and what is known about them.

    Only `features` is always there; each method says in `needs` what else it works from.
    Leading axes are batches. Images of different sizes go into a list of `Tokens`.

    Attributes
    ----------
    features
        The tokens (..., N, D) in the language model's space.
    grid
        (h, w) with h * w = N, row by row, the same for every image of the batch.
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
        The same (..., N) in a middle layer.
    pixels
        The image (..., H, W, 3), 0..255.
    keys
        Attention keys (..., N, C) of the tokens.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> sc.Tokens(features=np.ones((576, 16)), grid=(24, 24))
    Tokens(features=(576, 16), grid=(24, 24))
    """

    features: Array
    grid: tuple[int, int] | None = None
    embeds: Array | None = None
    text: Any = None
    text_global: Any = None
    text_mask: Any = None
    attention: Array | None = None
    attention_shallow: Array | None = None
    pixels: Array | None = None
    keys: Array | None = None

    def __post_init__(self) -> None:
        for name, axes in _PER_TOKEN.items():
            x = getattr(self, name)
            if x is None and name != "features":
                continue
            if isinstance(x, (list, tuple)):
                x = np.asarray(x)
                object.__setattr__(self, name, x)
            layout = "(..., N, D)" if axes == 2 else "(..., N)"
            if not compat.is_array_api_obj(x) or x.ndim < axes:
                came = spell(shape_of(x)) if hasattr(x, "shape") else type(x).__name__
                raise ValueError(f"{name}: expected an array of shape {layout}, got {came}")
            expected = (*self.batch_shape, self.size)
            if shape_of(x)[: x.ndim - axes + 1] != expected:
                raise ValueError(
                    f"{name}: expected shape {spell(expected)[:-1].rstrip(',')}"
                    f"{', D)' if axes == 2 else ')'} "
                    f"beside features {spell(shape_of(self.features))}, got {spell(shape_of(x))}"
                )
        if self.size == 0:
            raise ValueError(
                f"features: expected at least one token, got shape {spell(self.features.shape)}"
            )
        if self.grid is not None:
            object.__setattr__(self, "grid", checked_grid(self.grid, self.size))

    @property
    def size(self) -> int:
        """How many tokens an image has, N."""
        return int(self.features.shape[-2])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes."""
        return shape_of(self.features)[:-2]

    @property
    def space(self) -> Array:
        """The tokens where they can be compared with text: `embeds`, else `features`."""
        return self.features if self.embeds is None else self.embeds

    def require(self, method: str, *names: str) -> None:
        """Raise `MissingInputError` for the first of the named inputs that is absent."""
        for name in names:
            if getattr(self, name) is None:
                raise MissingInputError(method, name)

    def with_(self, **changes: Any) -> Tokens:
        """A copy with some inputs replaced."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        parts = []
        for item in fields(self):
            x = getattr(self, item.name)
            if x is None:
                continue
            shown = x if item.name == "grid" else _spelt(x)
            parts.append(f"{item.name}={shown}")
        return f"Tokens({', '.join(parts)})"


def _spelt(x: Any) -> str:
    if isinstance(x, (list, tuple)):
        return "[" + ", ".join(_spelt(each) for each in x) + "]"
    return spell(shape_of(x))
