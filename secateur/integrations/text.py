"""The instruction: where it stands in a prompt, and what it means to an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from secateur.core.methods.base import Reading
from secateur.integrations.encoded import Indices, Tensor
from secateur.integrations.turns import PUT_IN, Turns, squeezed

PAIRS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""The checkpoints with a vision tower and its text encoder, and the classes that load them."""

ANOTHER = 0.5
"""From this relative distance on, weights are another tower's.

Weights of two checkpoints that were trained apart lie at about sqrt(2) of their norm. Towers that a
vision-language model trained on, as LLaVA-NeXT and LLaVA-OneVision did, stay much nearer.
"""

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
    def of(cls, given: Any, reads: Reading = "words", device: Any = None) -> TextEncoder | None:
        """What `attach(text_encoder=)` was given, checked; a name is loaded to the device."""
        if given is None:
            return None
        if isinstance(given, (str, Path)):
            return cls(*load_text_encoder(given, device=device), reads)
        if isinstance(given, cls):
            return cls(given.encoder, given.tokenizer, reads)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ValueError(
                "text_encoder: expected (model, tokenizer) or the name of a checkpoint, as "
                f"load_text_encoder(name) takes it, got {type(given).__name__}"
            )
        encoder, tokenizer = given
        return cls(encoder, tokenizer, reads)

    def check(self, tower: Any, family: str) -> None:
        """Refuse an encoder whose vision side is not the model's tower, or whose text is untrained.

        Weights are compared where the encoder comes from a checkpoint: the first 256 numbers of
        each weight that both have.
        """
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
        for name in ("image_size", "patch_size"):
            if getattr(ours, name) != getattr(theirs, name):
                raise ValueError(
                    f"text_encoder: its vision side has {name}={getattr(theirs, name)}, the "
                    f"model's tower {getattr(ours, name)}; take the checkpoint the tower comes from"
                )
        checkpoint = getattr(self.encoder, "name_or_path", "")
        if not checkpoint:
            return
        stored = _stored(checkpoint)
        untrained = _untrained(self.encoder.text_model) and not _untrained(
            self.encoder.vision_model
        )
        if untrained or (stored and not any("text_model." in name for name in stored)):
            raise ValueError(
                f"text_encoder: the weights of text_model were missing from {checkpoint} and are "
                "random; take a checkpoint with both sides, load_text_encoder(name) tells what one "
                "lacks"
            )
        far = _another(tower, self.encoder.vision_model)
        if far:
            raise ValueError(
                f"text_encoder: the vision side of {checkpoint} has the shape of the model's tower "
                f"but other weights ({_some(far)}); take the checkpoint the tower comes from"
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


def load_text_encoder(name: str | Path, dtype: Any = "auto", device: Any = None) -> tuple[Any, Any]:
    """Load the pair that `attach(text_encoder=)` takes, by the checkpoint's own class.

    Parameters
    ----------
    name
        Name or folder of the CLIP or SigLIP checkpoint that the vision tower comes from, such as
        ``"openai/clip-vit-large-patch14-336"``.
    dtype
        As `from_pretrained` takes it.
    device
        Where the model goes; None for the processor's memory.

    Returns
    -------
    model : transformers.CLIPModel or transformers.SiglipModel
        In evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase

    Raises
    ------
    ValueError
        For a checkpoint of another kind, and for one that lacks weights, such as a vision tower
        alone: `from_pretrained` would fill them in at random.

    Examples
    --------
    >>> pair = load_text_encoder("openai/clip-vit-large-patch14-336")   # doctest: +SKIP
    >>> sc.attach(model, sc.EADP(keep=64), processor, pair)             # doctest: +SKIP
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    kind = PAIRS.get(config.model_type)
    if kind is None:
        raise ValueError(
            f"text_encoder: {name} is a {config.model_type} "
            f"({', '.join(config.architectures or ['of no class'])}), expected a checkpoint of "
            f"{' or '.join(PAIRS.values())}"
        )
    model, told = getattr(transformers, kind).from_pretrained(
        name, dtype=dtype, output_loading_info=True, use_safetensors=True
    )
    missing = sorted(told["missing_keys"])
    missing += sorted(
        each[0] if isinstance(each, tuple) else each for each in told["mismatched_keys"]
    )
    if missing:
        raise ValueError(
            f"text_encoder: {name} lacks {len(missing)} weights of a {kind}: {_some(missing)}"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    return model.to(device or "cpu").eval(), tokenizer


def _stored(checkpoint: str) -> list[str]:
    """The weights in a checkpoint of one file that lies on this machine; empty for others."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    try:
        file = cached_file(checkpoint, "model.safetensors", local_files_only=True)
    except OSError:
        return []
    with safe_open(file, "pt") as weights:
        return list(weights.keys())


def _untrained(side: Any) -> bool:
    """Whether every norm of one side of a pair scales by one and shifts by nothing."""
    norms = [each for each in side.modules() if isinstance(each, torch.nn.LayerNorm)]
    return len(norms) > 0 and all(
        bool((norm.weight == 1).all()) and (norm.bias is None or not bool(norm.bias.any()))
        for norm in norms
    )


@torch.no_grad()
def _another(tower: Any, side: Any) -> list[str]:
    """The weights, of two or more dimensions, by which a tower is another than a pair's side."""
    theirs = {name.removeprefix("vision_model."): x for name, x in side.named_parameters()}
    far = []
    for name, own in tower.named_parameters():
        own_name = name.removeprefix("vision_model.")
        other = theirs.get(own_name)
        stored = own.is_floating_point() and own.device.type != "meta"
        if other is None or own.ndim < 2 or not stored or other.device.type == "meta":
            continue
        if own.shape != other.shape:
            far.append(own_name)
            continue
        a, b = (x.flatten()[:256].to("cpu", torch.float32) for x in (own, other))
        if float((a - b).norm()) > ANOTHER * float(b.norm()):
            far.append(own_name)
    return far


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


Said = str | Sequence[str]
"""An instruction for all prompts of a batch, or one for each."""

_ASKED: ContextVar[tuple[tuple[Any, Said], ...]] = ContextVar("secateur_asked", default=())


class Guidance:
    """Finds the instruction of each prompt and gives it to methods in the space they compare in.

    What belongs to the instruction: the words of the user. Images, padding and special tokens
    never do. With a processor that has a chat template, it is the last turn in which the user says
    something: no system prompt, earlier turn, tool or answer begun. Without one, and where a prompt
    does not follow its template, text before the first image counts as the system prompt when more
    text follows.
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
        self.turns = Turns.of(processor, self.tokenizer)
        self._pieces: dict[int, str] = {}
        _check_said(given)
        if given is not None and self.tokenizer is None and encoder is None:
            raise ValueError("instruction: pass processor= too, whose tokenizer reads it")
        if encoder is not None and given is None and self.tokenizer is None:
            raise ValueError(
                "text_encoder: pass processor= too, to read the prompt, or instruction="
            )

    @contextmanager
    def asking(self, instruction: Said | None) -> Iterator[None]:
        """Take an instruction instead of all others, for what is read within the block."""
        _check_said(instruction)
        if instruction is None:
            yield
            return
        if self.tokenizer is None and self.encoder is None:
            raise ValueError("instruction: attach with processor=, whose tokenizer reads it")
        token = _ASKED.set((*_ASKED.get(), (self, instruction)))
        try:
            yield
        finally:
            _ASKED.reset(token)

    @property
    def said(self) -> Said | None:
        """The instruction given for this call, else for all."""
        said: Said | None = self.given
        for asked, instruction in _ASKED.get():
            said = instruction if asked is self else said
        return said

    def find(self, ids: Indices, real: Flags, visual: Flags) -> Flags:
        """True (B, T) at the instruction's tokens."""
        found = real & ~visual & ~np.isin(ids, list(self.special))
        for row in range(len(ids)):
            own = self._last_turn(ids[row], real[row] & ~visual[row], found[row])
            if own is None:
                own = found[row].copy()
                first = np.flatnonzero(visual[row])
                if first.size and own[first[0] :].any():
                    own[: first[0]] = False
            if own.any():
                found[row] = own
        return found

    def _last_turn(self, ids: Indices, shown: Flags, words: Flags) -> Flags | None:
        """True (T,) at the last words of the user; None where no turn of the template's is.

        Prompts are compared with the template as text without white space, because the tokens of
        a mark depend on what stands beside it.
        """
        if self.turns is None:
            return None
        pieces = [self._piece(int(i)) if on else "" for i, on in zip(ids, shown, strict=True)]
        lengths = np.array([len(piece) for piece in pieces])
        stops = lengths.cumsum()
        starts = stops - lengths
        text = "".join(pieces)
        told = words.copy()
        for put in PUT_IN.finditer(text):
            told[(starts >= put.start()) & (stops <= put.end()) & (lengths > 0)] = False
        own: Flags | None = None
        for begin, end in self.turns.spans(text):
            own = told & (starts >= begin) & (stops <= end)
            black = np.flatnonzero(own & (lengths > 0))
            if black.size:
                # White space around the words is the template's.
                own[: black[0]] = own[black[-1] + 1 :] = False
                break
        return own

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = squeezed(self.tokenizer.decode([token]))
        return self._pieces[token]

    def texts(self, ids: Tensor, found: Flags) -> list[Text]:
        """The instruction of each prompt, or what `instruction=` says."""
        rows = len(found)
        given = self.said
        if given is None:
            chosen = [ids[row, torch.from_numpy(found[row]).to(ids.device)] for row in range(rows)]
        else:
            said = [given] * rows if isinstance(given, str) else list(given)
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


def _check_said(instruction: Any) -> None:
    listed = isinstance(instruction, (list, tuple))
    texts = instruction if listed else [instruction]
    if instruction is not None and not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"instruction: expected a text, or one for each prompt, got {instruction!r}"
        )
