"""The instruction: where it stands in a prompt, and what it means to an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from secateur.core.methods.base import Reading
from secateur.integrations.encoded import Indices, Tensor

SENTINEL = "secateur"
"""What stands for the user's words when a chat template is taken apart."""

Flags = np.ndarray[Any, np.dtype[np.bool_]]


class Structured(Protocol):
    """Who knows which tokens of a model's prompts are no words."""

    def structure_tokens(self, model: Any) -> frozenset[int]:
        """Tokens around images and turns."""


@dataclass(frozen=True, eq=False)
class Text:
    """The instruction of one prompt as methods take it; see `Tokens`."""

    tokens: Any
    whole: Any
    mask: Any = None


class TextEncoder:
    """The text side of the encoder whose vision side is the model's tower.

    Parameters
    ----------
    encoder
        A `CLIPModel` or `SiglipModel`, whose projections lead both sides into one space.
    tokenizer
        Its tokenizer, or its processor.
    reads
        ``"words"`` or ``"window"``: see `Method.reads`.
    """

    def __init__(self, encoder: Any, tokenizer: Any, reads: Reading = "words") -> None:
        if not hasattr(encoder, "text_model"):
            raise ValueError(
                f"text_encoder: expected a CLIPModel or a SiglipModel, got {type(encoder).__name__}"
            )
        self.encoder = encoder
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.reads = reads
        self.limit = int(encoder.config.text_config.max_position_embeddings)

    @classmethod
    def of(cls, given: Any, reads: Reading = "words") -> TextEncoder | None:
        """What `attach(text_encoder=)` was given, checked."""
        if given is None:
            return None
        if isinstance(given, cls):
            return cls(given.encoder, given.tokenizer, reads)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ValueError(
                "text_encoder: expected (model, tokenizer), such as (CLIPModel.from_pretrained("
                f"name), AutoTokenizer.from_pretrained(name)), got {type(given).__name__}"
            )
        encoder, tokenizer = given
        return cls(encoder, tokenizer, reads)

    def check(self, tower: Any, family: str) -> None:
        """Refuse an encoder whose vision side is not shaped like the model's tower."""
        if tower is None:
            raise ValueError(
                f"text_encoder: the vision tower of {family} was not trained beside a text "
                "encoder; leave it out, tokens are compared in the language model's space"
            )
        ours, theirs = tower.config, self.encoder.config.vision_config
        same = ("model_type", "hidden_size")
        if any(getattr(ours, name) != getattr(theirs, name) for name in same):
            raise ValueError(
                f"text_encoder: its vision side is a {theirs.model_type} of width "
                f"{theirs.hidden_size}, the model's tower a {ours.model_type} of width "
                f"{ours.hidden_size}; take the checkpoint the tower comes from"
            )

    def project(self, tower: Any, states: Tensor) -> Tensor:
        """Patch states (..., C) of the tower in the space shared with text."""
        states = tower.post_layernorm(states)
        projection = getattr(self.encoder, "visual_projection", None)
        if projection is None:
            return states
        return projection(states.to(projection.weight.device, projection.weight.dtype)).to(states)

    @torch.no_grad()
    def encode(self, text: str) -> Text:
        """An instruction, in as many windows as the encoder's context needs."""
        if self.reads == "window":
            return self._encode_windows(text)
        tokens, whole, masks = [], [], []
        text_model = self.encoder.text_model
        project = getattr(self.encoder, "text_projection", None)
        for window in self._windows(text):
            padding = "max_length" if project is None else False
            inputs = self.tokenizer(
                window,
                return_tensors="pt",
                padding=padding,
                truncation=True,
                max_length=self.limit,
                return_special_tokens_mask=True,
            )
            ids = inputs["input_ids"].to(text_model.device)
            special = inputs["special_tokens_mask"][0].bool()
            out = text_model(input_ids=ids)
            head = text_model.head if project is None else project
            tokens.append(head(out.last_hidden_state)[0])
            whole.append(out.pooler_output[0] if project is None else project(out.pooler_output)[0])
            masks.append((~special if not special.all() else special).to(ids.device))
        return Text(tokens, whole, masks)

    def _encode_windows(self, text: str) -> Text:
        """Whole windows, of which every position counts, as the authors' programs cut them.

        CLIP: tokens with their start and end, padded with 0 to full windows; padding is attended
        to by nobody, but its states count. SigLIP: one window of states without the head, which
        only pools.
        """
        text_model = self.encoder.text_model
        project = getattr(self.encoder, "text_projection", None)
        if project is None:
            full = {"padding": "max_length", "truncation": True, "max_length": self.limit}
            ids, mask = self.tokenizer(text, return_tensors="pt", **full)["input_ids"], None
        else:
            listed = list(self.tokenizer(text)["input_ids"])
            missing = -len(listed) % self.limit
            ids = torch.tensor(listed + [0] * missing).view(-1, self.limit)
            mask = torch.ones_like(ids)
            mask.view(-1)[len(listed) :] = 0
            mask = mask.to(text_model.device)
        out = text_model(input_ids=ids.to(text_model.device), attention_mask=mask)
        states, pooled = out.last_hidden_state, out.pooler_output
        if project is not None:
            states, pooled = project(states), project(pooled)
        return Text(list(states), list(pooled), [None] * len(ids))

    def _windows(self, text: str) -> list[str]:
        words = text.split()
        if len(words) < 2 or len(self.tokenizer(text)["input_ids"]) <= self.limit:
            return [text]
        half = len(words) // 2
        return self._windows(" ".join(words[:half])) + self._windows(" ".join(words[half:]))


class Guidance:
    """Finds the instruction of each prompt and gives it to methods in the space they compare in.

    What belongs to the instruction: the words of the user. Images, padding and special tokens
    never do. With a processor that has a chat template, what the template puts before and after
    the user's words does not either. Without one, text before the first image counts as the
    system prompt when more text follows.
    """

    def __init__(
        self,
        model: Any,
        family: Structured,
        processor: Any,
        encoder: TextEncoder | None,
        given: Any,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.given = given
        self.special = frozenset(_special(model, self.tokenizer)) | family.structure_tokens(model)
        self.before, self.after = _template(processor, self.tokenizer)
        if given is not None and self.tokenizer is None and encoder is None:
            raise ValueError("instruction: pass processor= too, whose tokenizer reads it")
        if encoder is not None and given is None and self.tokenizer is None:
            raise ValueError(
                "text_encoder: pass processor= too, to read the prompt, or instruction="
            )

    def find(self, ids: Indices, real: Flags, visual: Flags) -> Flags:
        """True (B, T) at the instruction's tokens."""
        found = real & ~visual & ~np.isin(ids, list(self.special))
        for row in range(len(ids)):
            places = np.flatnonzero(real[row])
            own = found[row].copy()
            if self.before or self.after:
                words = ids[row, places]
                head = self._matched(words, self.before)
                tail = self._matched(words[::-1], self.after[::-1])
                own[places[:head]] = False
                own[places[len(places) - tail :]] = False
            first = np.flatnonzero(visual[row])
            if first.size and not self.before and own[first[0] :].any():
                own[: first[0]] = False
            if own.any():
                found[row] = own
        return found

    def _matched(self, words: Indices, pattern: Sequence[int]) -> int:
        """How many tokens at the start of `words` are those of the pattern.

        Special tokens that the tokenizer puts before the template are passed over.
        """
        start = 0
        while start < len(words) and words[start] in self.special and pattern[:1] != [words[start]]:
            start += 1
        n = 0
        while n < min(len(words) - start, len(pattern)) and words[start + n] == pattern[n]:
            n += 1
        return start + n if n else 0

    def texts(self, ids: Tensor, found: Flags) -> list[Text]:
        """The instruction of each prompt, or what `instruction=` says."""
        rows = len(found)
        if self.given is None:
            chosen = [ids[row, torch.from_numpy(found[row]).to(ids.device)] for row in range(rows)]
        else:
            said = [self.given] * rows if isinstance(self.given, str) else list(self.given)
            if len(said) != rows:
                raise ValueError(f"instruction: expected one for each of {rows} prompts")
            if self.encoder is not None:
                return [self.encoder.encode(each) for each in said]
            chosen = [
                ids.new_tensor(self.tokenizer(each, add_special_tokens=False)["input_ids"])
                for each in said
            ]
        for row, own in enumerate(chosen):
            if own.shape[0] == 0:
                raise ValueError(
                    f"prompt {row} has no words besides its images and template; pass instruction="
                )
        if self.encoder is not None:
            return [self.encoder.encode(self.tokenizer.decode(own)) for own in chosen]
        with torch.no_grad():
            embedded = [self.model.get_input_embeddings()(own) for own in chosen]
        return [Text(own, own.mean(dim=0)) for own in embedded]


def _special(model: Any, tokenizer: Any) -> Sequence[int]:
    found = set(getattr(tokenizer, "all_special_ids", ()) or ())
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [value])
    found.discard(None)
    return sorted(found)


def _template(processor: Any, tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the chat template puts before and after the words of a single user turn."""
    if tokenizer is None or getattr(processor, "chat_template", None) is None:
        return [], []
    content: Any = SENTINEL
    if processor is not tokenizer:
        content = [{"type": "text", "text": SENTINEL}]
    message = [{"role": "user", "content": content}]
    told = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    before, found, after = told.partition(SENTINEL)
    if not found:
        return [], []
    read = [tokenizer(x, add_special_tokens=False)["input_ids"] for x in (before, after)]
    return read[0], read[1]
