"""Many questions on one picture or clip at once, as if each were the only one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from secateur.lab.training.batches import NOT_ASKED, Asked, Batch, prompt_start

POINTING = (1, 2)
"""Layers of the language model whose first head is taught to look at what is asked."""
LATE = -2
"""One more such layer, counted from the end, which looks beside what is named if that is asked."""


@contextmanager
def _watched(layers: Any, pointing: Sequence[int]) -> Iterator[list[tuple[Any, Any]]]:
    """Collect the queries and keys of the pointing layers, ``(B, T, D)`` each, as they run."""
    seen: dict[tuple[int, str], Any] = {}
    pairs: list[tuple[Any, Any]] = []

    def note(key: tuple[int, str]) -> Any:
        return lambda module, inputs, output: seen.__setitem__(key, output)

    handles = [
        getattr(layers[layer].self_attn, name).register_forward_hook(note((layer, name)))
        for layer in pointing
        for name in ("q_proj", "k_proj")
    ]
    try:
        yield pairs
    finally:
        for handle in handles:
            handle.remove()
    pairs += [(seen[layer, "q_proj"], seen[layer, "k_proj"]) for layer in pointing]


@dataclass
class Read:
    """What the language model makes of a batch.

    Attributes
    ----------
    logits, wanted
        ``(M, V)`` and ``(M,)`` at the tokens before an answer's.
    pointing
        A loss: minus the log of the share of the visual tokens' attention that one head of each
        of some layers gives to what the token to follow speaks of.
    words
        After each layer, ``(B, T, D)`` at the words of questions and answers.
    states
        After each layer, ``(B, N, D)`` at the visual tokens; those put in come first.
    """

    logits: Any
    wanted: Any
    pointing: Any
    words: list[Any]
    states: list[Any]


def read(model: Any, features: Any, target: Batch) -> Read:
    """Read every question for the features of a tower's patches."""
    late = len(model.model.language_model.layers) + LATE
    pointing = dict.fromkeys(POINTING, target.looks)
    if late not in pointing:
        searched = target.aside.any(dim=-1, keepdim=True)
        pointing[late] = torch.where(searched, target.aside, target.looks)
    return read_visuals(model, model.model.multi_modal_projector(features), target, pointing)


def read_visuals(
    model: Any, visuals: Any, target: Asked, pointing: Mapping[int, Any] | None = None
) -> Read:
    """Read visual tokens ``(B, N, D)`` as the language model takes them, and every question.

    Every question sees the visual tokens and itself, at the positions it would have were it the
    only one. In the layers of `pointing` one head is taught to look at the places given, those of
    `target` in the layers `POINTING` by default.
    """
    pointing = dict.fromkeys(POINTING, target.looks) if pointing is None else pointing
    size, words = target.tokens.shape
    before = 1 + visuals.shape[1]
    language = model.model.language_model
    start = torch.full((size, 1), prompt_start(), device=visuals.device)
    embeds = torch.cat(
        [language.embed_tokens(start), visuals, language.embed_tokens(target.tokens)], dim=1
    )
    positions = torch.cat(
        [torch.arange(before, device=start.device).expand(size, -1), before + target.offsets], dim=1
    )
    length = before + words
    turns = torch.cat([torch.full((size, before), -2, device=start.device), target.turns], dim=1)
    causal = torch.ones(length, length, dtype=torch.bool, device=start.device).tril()
    same = turns[:, :, None] == turns[:, None, :]
    mask = causal & (same | (turns[:, None, :] == -2))
    bias = torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill(~mask, -1e4)
    with _watched(language.layers, [*pointing]) as pairs:
        out = language(
            inputs_embeds=embeds,
            attention_mask=bias[:, None],
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
    states = out.last_hidden_state[:, before:]
    asked = target.targets != NOT_ASKED
    cos, sin = language.rotary_emb(embeds, positions)
    loss = visuals.new_zeros(())
    for looks, (queries, keys) in zip(pointing.values(), pairs, strict=True):
        speaks = looks.any(dim=-1)
        row, _ = speaks.nonzero(as_tuple=True)
        region = (looks[speaks][:, :, None] & target.cover[row]).any(dim=1)
        query = _rotated(queries, cos, sin)[:, before:][speaks]
        key = _rotated(keys, cos, sin)[:, 1:before][row]
        share = torch.einsum("md,mpd->mp", query, key).float() / math.sqrt(query.shape[-1])
        inside = share.log_softmax(dim=-1).masked_fill(~region, -math.inf)
        loss = loss - inside.logsumexp(dim=-1).mean()
    return Read(
        logits=model.lm_head(states[asked]).float(),
        wanted=target.targets[asked],
        pointing=loss,
        words=[each[:, before:] for each in out.hidden_states],
        states=[each[:, 1:before] for each in out.hidden_states],
    )


def _rotated(x: Any, cos: Any, sin: Any) -> Any:
    """Queries or keys of the first head as Llama rotates them."""
    head = x[..., : cos.shape[-1]]
    first, second = head.chunk(2, dim=-1)
    return head * cos + torch.cat([-second, first], dim=-1) * sin


def score(logits: Any, target: Asked, kinds: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Count the questions of each kind whose every token is the likeliest, and all of them."""
    asked = target.targets != NOT_ASKED
    right = logits.argmax(dim=-1) == target.targets[asked]
    row = torch.arange(len(asked), device=asked.device)[:, None].expand_as(asked)[asked]
    questions = target.kinds.shape[1]
    question = row * questions + target.turns[asked]
    whole = torch.ones(target.kinds.numel(), dtype=torch.long, device=asked.device)
    whole.scatter_reduce_(0, question, right.long(), "amin")
    asked_kinds = target.kinds.flatten()
    return {
        kind: (int(whole[asked_kinds == index].sum()), int((asked_kinds == index).sum()))
        for index, kind in enumerate(kinds)
    }
