"""Some images of a batch, what each of them has with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import array_api_compat as compat

from secateur.core.arrays import Array, shape_of

Batch = tuple[int, ...]


class Given(NamedTuple):
    """An input that there is one of, or one of for each image."""

    x: Any
    """An array, or several texts."""
    own_axes: int
    """How many of its axes follow those of the batch."""
    may_be_shared: bool
    """Whether all images have the same one, unless it has axes of the batch."""


def images_at(batch: Batch, inputs: Mapping[str, Given], place: tuple[Any, ...]) -> dict[str, Any]:
    """Inputs of the images at an index into the batch."""

    def of_text(text: Array, lead: int) -> Array:
        xp = compat.array_namespace(text)
        return xp.broadcast_to(text, (*batch, *shape_of(text)[lead:]))[(*place, ...)]

    return {
        name: _text(one, batch, of_text) if one.may_be_shared else one.x[(*place, ...)]
        for name, one in inputs.items()
    }


def texts_of_frames(batch: Batch, inputs: Mapping[str, Given]) -> dict[str, Any]:
    """Texts that videos of a batch have each their own of, shared by the frames of each."""

    def of_text(text: Array, lead: int) -> Array:
        xp, shape = compat.array_namespace(text), shape_of(text)
        own = lead == len(batch)
        return xp.reshape(text, (*shape[:lead], 1, *shape[lead:])) if own else text

    texts = {name: one for name, one in inputs.items() if one.may_be_shared}
    return {name: _text(one, batch, of_text) for name, one in texts.items()}


def _text(one: Given, batch: Batch, change: Callable[[Array, int], Array]) -> Any:
    """A text, or several, changed where they have axes of the batch; `change` is told how many."""

    def changed(x: Any) -> Any:
        lead = len(shape_of(x)) - one.own_axes if hasattr(x, "shape") else 0
        # What does not fit the batch the method refuses, and says why.
        return change(x, lead) if lead > 0 and _fits(shape_of(x)[:lead], batch) else x

    return [changed(x) for x in one.x] if isinstance(one.x, (list, tuple)) else changed(one.x)


def _fits(lead: Batch, batch: Batch) -> bool:
    """Whether axes broadcast with those of a batch to no more than these."""
    behind = batch[len(batch) - len(lead) :]
    return len(lead) <= len(batch) and all(
        one in (1, other) for one, other in zip(lead, behind, strict=True)
    )
