"""Turns of a conversation that go on, through `generate`, from the cache of a pruned prompt.

`generate` is given the whole conversation, that cache, and the pixels of the new turn if it has
images. The answer is that to one long prompt, pruned alike; a method that cuts between layers goes
on with text only, from what its cuts left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from secateur.integrations.transformers.cache import Trace
from secateur.integrations.transformers.encode import has_visuals
from secateur.integrations.transformers.internals import (
    attends,
    cache_in,
    cache_name,
    cached_length,
    window_of,
)
from secateur.integrations.transformers.models import Adapter
from secateur.integrations.transformers.shorten import Prompt, as_arguments

WIDE = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""Arguments as wide as the conversation."""


@dataclass(frozen=True, eq=False)
class Turn:
    """What a conversation adds to what a cache holds of it.

    Attributes
    ----------
    prompt
        The new columns, shortened, at the positions where the cache goes on.
    trace
        What the cache will hold when the language model has read them.
    shown
        Whether there are images among them.
    call
        The arguments of `generate`, as long as cache and turn together.
    """

    prompt: Prompt
    trace: Trace
    shown: bool
    call: dict[str, Any]


def read_turn(
    model: Any,
    family: Adapter,
    trace: Trace,
    given: Mapping[str, Any],
    shortened: Callable[[dict[str, Any], bool], Prompt],
) -> Turn:
    """The turn that follows what a cache holds.

    Parameters
    ----------
    given
        The arguments of `generate`: the whole conversation, and the pixels of the new turn.
    shortened
        Encodes, chooses and shortens inputs, told whether there are images among them.

    Raises
    ------
    ValueError
        When the conversation does not go on from the cache.
    """
    held = cached_length(cache_in(given))
    start = trace.before[0] + held - trace.length
    part = _new_columns(trace, given, start)
    ids = part["input_ids"].detach().cpu().numpy()
    shown = any(bool(marked.any()) for marked in family.standing(model, ids).values())
    if shown and not has_visuals(given):
        raise ValueError("pixel_values: expected, since the new turn has placeholders of images")
    if shown:
        part |= {name: given[name] for name in family.visual_inputs if name in given}
    prompt = shortened(part, shown)

    device = prompt.embeds.device
    mask = torch.from_numpy(prompt.mask).to(device).long()
    rows = len(mask)
    old = mask.new_ones(rows, trace.length) if trace.mask is None else trace.mask.to(mask)
    between = mask.new_ones(rows, held - trace.length)
    if given.get("attention_mask") is not None:
        between = given["attention_mask"][:, trace.before[0] : start].to(mask)
    whole = torch.cat([old, between, mask], dim=1)
    decoder = family.language_model(model)
    attending = all(map(attends, decoder.layers)) and window_of(decoder.config) is None
    padded = not bool(whole[:, trace.length :].all())
    if padded and (trace.stretches or not attending):
        raise ValueError(
            "attention_mask: what goes on from linear attention, from sliding windows or from "
            "caches of several lengths can have no padding; continue each conversation by itself"
        )
    following = trace.following.to(device)
    planes = len(following) if following.ndim == 2 else prompt.positions.shape[0]
    positions = prompt.positions[-planes:] + (following + held - trace.length)[..., None]
    prompt = replace(prompt, positions=positions)
    call = as_arguments(family, prompt, {**given, **part})
    if call.get(family.types) is not None:
        # Read by position; new tokens see all that the cache holds, so it may count as text.
        call[family.types] = torch.nn.functional.pad(call[family.types], (held, 0))
    call["input_ids"] = given["input_ids"]
    call["attention_mask"] = whole
    call["position_ids"] = torch.nn.functional.pad(positions, (held, 0))
    call["inputs_embeds"] = torch.nn.functional.pad(prompt.embeds, (0, 0, held, 0))
    after = Trace(
        owner=trace.owner,
        before=(int(given["input_ids"].shape[1]), whole.shape[1]),
        mask=None if bool(whole.all()) else whole,
        length=whole.shape[1],
        following=positions.amax(dim=-1) + 1,
        stretches=trace.stretches,
    )
    return Turn(prompt, after, shown, call)


def _new_columns(trace: Trace, given: Mapping[str, Any], start: int) -> dict[str, Any]:
    """What is as wide as the conversation, from column `start` on."""
    ids, rows = given.get("input_ids"), int(trace.following.shape[-1])
    if ids is None or len(ids) != rows or ids.shape[1] <= start:
        got = "none" if ids is None else f"shape {tuple(ids.shape)}"
        raise ValueError(
            f"{cache_name()}: holds a pruned prompt and what followed, {start} tokens of "
            f"{rows} conversations; input_ids: expected these and more, got {got}"
        )
    if given.get("position_ids") is not None:
        raise ValueError(f"position_ids: those of a pruned prompt are known to {cache_name()}")
    part = {name: given[name] for name in WIDE if given.get(name) is not None}
    for name, x in part.items():
        if x.shape != ids.shape:
            raise ValueError(f"{name}: expected shape {tuple(ids.shape)}, got {tuple(x.shape)}")
    return {name: x[:, start:] for name, x in part.items()}
