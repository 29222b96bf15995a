"""More layers for a language model that has learnt: at first they change nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

_LAYER = re.compile(r"(?<=language_model\.layers\.)\d+")
_WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def grow(model: Any, after: Sequence[int]) -> Any:
    """Return a model with a copy of each of some decoder layers right after it.

    The copies write nothing yet: the matrices by which they would are zero, so that the model
    answers as before, and learns from there.

    Parameters
    ----------
    model
        A `LlavaForConditionalGeneration`.
    after
        Layers of its language model, a number as often as copies are wanted.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    origin = sorted([*range(config.text_config.num_hidden_layers), *after])
    config.text_config.num_hidden_layers = len(origin)
    grown = type(model)(config)
    old = model.state_dict()
    weights = {}
    for name in grown.state_dict():
        found = _LAYER.search(name)
        if found is None:
            weights[name] = old[name]
            continue
        layer = int(found[0])
        value = old[_LAYER.sub(str(origin[layer]), name)]
        copied = origin[layer] in origin[:layer]
        weights[name] = torch.zeros_like(value) if copied and name.endswith(_WRITES) else value
    grown.load_state_dict(weights)
    return grown
