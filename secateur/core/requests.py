"""What methods want to see of a model's encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Request:
    """What a method wants to see of a model's encoder: (what, layer, of whom).

    Attributes
    ----------
    what
        ``"attention"`` that tokens receive; ``"keys"``; ``"states"``, the tokens before the
        projector; ``"class"``, the class token there.
    layer
        ``"features"``, the layer whose states become features; ``"last"``; a share of the
        layers, as 9/24 for the ninth of 24; or a number, counted from 0, or from the end when
        negative. Of attention and keys; states are always those that the projector takes.
    by
        Who pays the attention: ``"class"``, the class token where there is one, else all;
        ``"all"``, the mean over every query, a class token's included.
    heads
        ``"mean"`` over the heads. ``"one"``: queries and keys as one head of full width.
        ``"each"``: of keys, those of all heads one beside the other.
    """

    what: Literal["attention", "keys", "states", "class"]
    layer: Literal["features", "last"] | float | int = "features"
    by: Literal["class", "all"] = "class"
    heads: Literal["mean", "one", "each"] = "mean"

    def __post_init__(self) -> None:
        if self.what == "attention" and self.heads == "each":
            raise ValueError("heads: expected mean or one for attention, got 'each'")


REQUESTS = {
    "attention": Request("attention"),
    "attention_shallow": Request("attention", layer=9 / 24),
    "keys": Request("keys", heads="each"),
    "states": Request("states"),
    "class_state": Request("class"),
}
"""What is observed for an input unless a method asks for something else."""
