"""What does not go with what a method does behind the prompt, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.core.acts import acts_inside, forgets
from secateur.core.methods.base import Method
from secateur.integrations.transformers.internals import attends, window_of
from secateur.integrations.transformers.layers import check_layers
from secateur.integrations.transformers.models import UnsupportedModelError


def arguments(method: Method, model: Any, given: Mapping[str, Any], turn: bool) -> None:
    """Refuse arguments of `generate` under which a method would hide other tokens than it should.

    `turn` says whether its cache holds a pruned prompt already.
    """
    if not forgets(method):
        return
    name = type(method).__name__
    if turn:
        raise ValueError(
            f"cache: {name} hides tokens of the prompt it began with; start every turn from an "
            "empty cache"
        )
    configs = (given.get("generation_config"), model.generation_config)
    said = (given.get("num_beams"), *(getattr(config, "num_beams", None) for config in configs))
    if next((beams for beams in said if beams is not None), 1) > 1:
        raise ValueError(
            f"num_beams: {name} remembers what each prompt attended to, and beams change places; "
            "decode greedily or sample"
        )


def unattached(method: Method) -> None:
    """Refuse methods that need more than a shorter prompt."""
    if acts_inside(method):
        raise ValueError(
            f"{type(method).__name__} prunes inside the language model; use attach() for it"
        )
    if forgets(method):
        raise ValueError(
            f"{type(method).__name__} hides tokens while decoding; use attach() for it"
        )


def decoder(method: Method, model: Any, within: Any) -> None:
    """Refuse language models in which a method cannot do its part."""
    if acts_inside(method):
        check_layers(model, within, method)
    if not forgets(method):
        return
    name, layers = type(method).__name__, within.layers
    if window_of(within.config) is not None or not all(map(attends, layers)):
        raise UnsupportedModelError(
            model, f"{name} hides tokens from layers that attend to all of them, and some do not"
        )
    if method.forgets_after >= len(layers):
        raise ValueError(
            f"{name}: layers after {method.forgets_after} do not fit a language model of "
            f"{len(layers)}"
        )
