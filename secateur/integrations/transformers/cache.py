"""What caches hold of pruned prompts, and the lengths that `generate` counts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from secateur.integrations.encoded import Tensor
from secateur.integrations.text import Flags
from secateur.integrations.transformers.forgetting import Memory
from secateur.integrations.transformers.internals import (
    CACHES,
    cache_in,
    cache_name,
    cached_length,
)
from secateur.integrations.transformers.layers import Stretch
from secateur.integrations.transformers.shorten import Prompt

MARK = "_secateur_trace"
"""The attribute of a cache that holds its trace, so that the trace goes where the cache goes."""

UNSPLITTABLE = ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_early_exit")
"""Settings of `generate` that cut a prompt up, or compare its tokens."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What a cache filled by an attachment holds of its prompts.

    Attributes
    ----------
    owner
        The attachment that filled it.
    before
        Lengths the prompts had: unpruned, and as the language model started them.
    mask
        1 (B, T) at the entries that are real tokens, None when all are.
    length
        T.
    following
        Position (P, B) that the next token of each prompt gets.
    stretches
        Layers whose caches hold fewer tokens of the prompts than those before.
    memory
        What steps remember for a method that hides tokens; None for others.
    """

    owner: str
    before: tuple[int, int]
    mask: Tensor
    length: int
    following: Tensor
    stretches: tuple[Stretch, ...] = ()
    memory: Memory | None = None

    @classmethod
    def of(
        cls, owner: str, prompt: Prompt, mask: Flags, times: int, stretches: Sequence[Stretch] = ()
    ) -> Trace:
        """What the cache of a prompt holds, each row `times` times, where `mask` is left."""
        device = prompt.embeds.device
        left = None if mask.all() else torch.from_numpy(mask).to(device).long()
        last = prompt.positions.amax(dim=-1) + 1
        following = last.repeat_interleave(times, dim=-1)
        lengths = (prompt.before, prompt.length)
        return cls(owner, lengths, left, mask.shape[1], following, tuple(stretches))

    def fitted(self, held: int, new: int, mask: Any) -> Any:
        """A mask over the `held` tokens of the cache and `new` ones, from one over the prompt."""
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            return mask
        grown = held + new - self.length
        if mask is None:
            if self.mask is None:
                return None
            return torch.cat([self.mask, self.mask.new_ones((len(self.mask), grown))], dim=1)
        for before in (self.length, *self.before):
            if mask.shape[1] == before + grown:
                rest = mask[:, before:]
                start = self.mask
                if start is None:
                    start = rest.new_ones((len(rest), self.length))
                return torch.cat([start.to(rest), rest], dim=1)
        return mask

    def continued(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a step, with a mask and positions that know what was dropped."""
        shown = given.get("input_ids")
        shown = given.get("inputs_embeds") if shown is None else shown
        if shown is None:
            return given
        held, new = cached_length(cache_in(given)), int(shown.shape[1])
        call = {**given, "attention_mask": self.fitted(held, new, given.get("attention_mask"))}
        if given.get("position_ids") is None:
            steps = torch.arange(held - self.length, held - self.length + new)
            steps = steps.to(shown.device)
            call["position_ids"] = self.following.to(shown.device)[..., None] + steps
        return call


def trace_in(call: Mapping[str, Any], owner: str) -> Trace | None:
    """What an attachment knows of the cache of a call; None of a cache that others filled."""
    for name in CACHES:
        trace: Trace | None = getattr(call.get(name), MARK, None)
        if trace is not None and trace.owner == owner:
            return trace
    return None


def lengths_as_new_tokens(
    model: Any, lengths: tuple[int, int], call: dict[str, Any]
) -> dict[str, Any]:
    """Limits on the whole sequence as limits on new tokens, and a static cache of the right size.

    `generate` subtracts the length of `inputs_embeds` from `max_length` and adds it to the size of
    static caches when `input_ids` are of another length; `lengths` are theirs and its own.
    What the user said in a `generation_config` is changed in a copy of it, everything else in the
    arguments.
    """
    before, length = lengths
    if length == before:
        return call
    call = dict(call)
    config = call.get("generation_config")
    if config is not None:
        config = call["generation_config"] = copy.deepcopy(config)
    said: dict[str, Any] = {}
    for name in ("max_length", "max_new_tokens", "min_length", "min_new_tokens"):
        stored = (getattr(x, name, None) for x in (config, model.generation_config))
        said[name] = next((x for x in (call.get(name), *stored) if x is not None), None)
    for most, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if said[new] is None and said[most]:
            said[new] = max(int(said[most]) - before, 0)
            _say(call, config, most, None)
            _say(call, config, new, said[new])
    if said["max_new_tokens"] == 0:
        raise ValueError(
            f"max_length: the prompt has {before} tokens already, raise it or use max_new_tokens"
        )
    kinds = (call.get("cache_implementation"), getattr(config, "cache_implementation", None))
    if "static" in kinds and cache_in(call) is None:
        from transformers import StaticCache

        _say(call, config, "cache_implementation", None)
        call[cache_name()] = StaticCache(
            config=model.config.get_text_config(decoder=True),
            max_cache_len=length + (said["max_new_tokens"] or 20),
        )
    return call


def _say(call: dict[str, Any], config: Any, name: str, value: Any) -> None:
    """Set a generation parameter where the user sets them."""
    call.pop(name, None)
    if config is not None:
        setattr(config, name, value)
    elif value is not None:
        call[name] = value


def refuse_splitting(given: Mapping[str, Any]) -> None:
    """Refuse ways to generate that cut prompts up, or count their tokens."""
    config = given.get("generation_config")
    for name in UNSPLITTABLE:
        value = given.get(name)
        value = getattr(config, name, None) if value is None else value
        if value is not None:
            raise ValueError(f"{name}: not possible with a pruned prompt; leave it out")
    if given.get("assistant_model") is not None:
        raise ValueError("assistant_model: not possible with a pruned prompt; leave it out")
