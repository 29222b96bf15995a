"""Putting a method inside a vision-language model of transformers, and taking it out again."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from secateur.core.acts import Cuts
from secateur.core.methods.base import Method
from secateur.integrations.choosing import wanted
from secateur.integrations.encoded import Positions, Tensor
from secateur.integrations.pixels import Pixels
from secateur.integrations.report import Report
from secateur.integrations.text import Flags, Guidance, TextEncoder
from secateur.integrations.transformers.internals import (
    cache_in,
    cache_name,
    cached_length,
    check_release,
    has_sliding_layers,
    is_compiled,
    naming_the_cache,
)
from secateur.integrations.transformers.layers import Cutter, Stretch, continuing
from secateur.integrations.transformers.models import Adapter, UnsupportedModelError, family_of
from secateur.integrations.transformers.shorten import Prompt, compact, has_visuals

MARK = "_secateur_attachment"
"""The attribute of an attached model that holds its attachment."""

WRAPPED = ("forward", "generate", "prepare_inputs_for_generation")
"""The methods of the model that an attachment stands in front of."""

_UNSPLITTABLE = ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_early_exit")


@dataclass(frozen=True, eq=False)
class Trace:
    """What a cache filled by an attachment holds of its prompts.

    Attributes
    ----------
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
    """

    before: tuple[int, int]
    mask: Tensor
    length: int
    following: Tensor
    stretches: tuple[Stretch, ...] = ()

    @classmethod
    def of(
        cls, prompt: Prompt, mask: Flags, times: int, stretches: Sequence[Stretch] = ()
    ) -> Trace:
        """What the cache of a prompt holds, each row `times` times, where `mask` is left."""
        device = prompt.embeds.device
        left = None if mask.all() else torch.from_numpy(mask).to(device).long()
        last = prompt.positions.amax(dim=-1) + 1
        following = last.repeat_interleave(times, dim=-1)
        lengths = (prompt.before, prompt.length)
        return cls(lengths, left, mask.shape[1], following, tuple(stretches))

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


class Attachment:
    """A method at work inside a model, from `attach` to `detach`.

    Also a context manager: leaving the block detaches.

    Attributes
    ----------
    model, method
        What is attached to what.
    last
        `Report` of the last prompt with images; None before the first.
    """

    def __init__(
        self,
        model: Any,
        method: Method,
        family: Adapter,
        guidance: Guidance,
        pixels: Pixels,
        positions: Positions,
    ) -> None:
        self.model, self.method, self.family = model, method, family
        self.last: Report | None = None
        self._guidance, self._pixels, self._positions = guidance, pixels, positions
        self._traces: WeakKeyDictionary[Any, Trace] = WeakKeyDictionary()
        self._pending = threading.local()
        self._before: dict[str, Any] = {}
        self._install()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "" if getattr(self.model, MARK, None) is self else ", detached"
        return f"Attachment({self.method!r} in {type(self.model).__name__}{state})"

    @property
    def attached(self) -> bool:
        """Whether the model still prunes."""
        return getattr(self.model, MARK, None) is self

    def detach(self) -> None:
        """Leave the model as it was. Does nothing the second time."""
        if not self.attached:
            return
        own = self.model.__dict__
        for name in WRAPPED:
            if own.get(name) is not self._ours[name]:
                raise RuntimeError(
                    f"{name} of the model was replaced after attaching; undo that first"
                )
        for name in WRAPPED:
            if name in self._before:
                own[name] = self._before[name]
            else:
                del own[name]
        del own[MARK]
        self._traces.clear()

    def _install(self) -> None:
        own = self.model.__dict__
        self._ours: dict[str, Any] = {}
        for name in WRAPPED:
            if name in own:
                self._before[name] = own[name]
            stock = getattr(self.model, name)
            ours = functools.partial(getattr(self, f"_{name}"), stock)
            functools.update_wrapper(ours, stock)
            self._ours[name] = own[name] = ours
        own[MARK] = self

    def _compact(self, inputs: Mapping[str, Any], *, generating: bool) -> Prompt:
        cache = cache_in(inputs)
        if cache is not None and cached_length(cache) > 0:
            raise ValueError(
                f"{cache_name()}: holds {cached_length(cache)} tokens already; a prompt with "
                "images starts from an empty cache when it is pruned"
            )
        prompt = compact(
            self.model,
            self.family,
            self.method,
            inputs,
            guidance=self._guidance,
            pixels=self._pixels,
            positions=self._positions,
            generating=generating,
        )
        self.last = prompt.report
        return prompt

    def _arguments(self, prompt: Prompt, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call with the compacted prompt in place of the given one."""
        dropped = {"mm_token_type_ids", "token_type_ids", *self.family.visual_inputs}
        kept = {name: x for name, x in given.items() if name not in dropped}
        device = prompt.embeds.device
        kept["inputs_embeds"] = prompt.embeds
        kept["attention_mask"] = torch.from_numpy(prompt.mask).to(device).long()
        kept["position_ids"] = prompt.positions
        labels = kept.get("labels")
        if labels is not None:
            columns = torch.from_numpy(prompt.columns).to(labels.device)
            shortened = labels.gather(1, columns.clamp(min=0))
            kept["labels"] = shortened.masked_fill(columns < 0, -100)
        return kept

    def _run(self, stock: Callable[..., Any], prompt: Prompt, call: dict[str, Any]) -> Any:
        """One forward of the language model over a compacted prompt."""
        rows = call["inputs_embeds"].shape[0]
        decoder = self.family.language_model(self.model)
        cutter = None
        with ExitStack() as stack:
            if prompt.planes:
                stack.enter_context(_adding(decoder, prompt, rows))
            if isinstance(self.method, Cuts):
                told = self.family.family.name
                cutter = Cutter(self.method, decoder, prompt, rows, len(prompt.planes) or 1, told)
                cutter.check(cache_in(call))
                stack.enter_context(cutter.running())
            outputs = stock(**call)
        times = rows // len(prompt.mask)
        mask = np.repeat(prompt.mask, times, axis=0)
        stretches: Sequence[Stretch] = ()
        if cutter is not None:
            stretches = cutter.stretches
            mask = mask if stretches else cutter.mask
            self._tell(prompt, cutter)
        cache = cache_in(call)
        cache = cache_in(outputs) if cache is None else cache
        if cache is not None:
            self._traces[cache] = Trace.of(prompt, mask, times, stretches)
        return outputs

    def _tell(self, prompt: Prompt, cutter: Cutter) -> None:
        spent = {**prompt.report.milliseconds, "inside": cutter.milliseconds}
        self.last = replace(
            prompt.report,
            inside=cutter.found,
            final_length=int(cutter.mask.sum(axis=1).max()),
            milliseconds=spent,
        )

    def _forward(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return stock(*args, **kwargs)  # a decoding step of generate(), which needs nothing
        kwargs = naming_the_cache(kwargs)
        if getattr(self._pending, "generating", False):
            prompt, self._pending.prompt = self._pending.prompt, None
            if prompt is None:
                return self._step(stock, args, kwargs)
            return self._run(stock, prompt, kwargs)
        given = _bound(stock, args, kwargs)
        if has_visuals(self.family, given):
            if given.get("labels") is not None and isinstance(self.method, Cuts):
                raise ValueError(
                    f"labels: {type(self.method).__name__} drops tokens between layers, so logits "
                    "do not line up with labels; compute the loss from the logits"
                )
            return_dict = given.pop("return_dict", None)
            prompt = self._compact(given, generating=False)
            call = self._arguments(prompt, given)
            call.pop("input_ids", None)
            outputs = self._run(stock, prompt, {**call, "return_dict": True})
            tuples = return_dict is False or (
                return_dict is None and not self.model.config.return_dict
            )
            return outputs.to_tuple() if tuples else outputs
        cache = cache_in(kwargs)
        if cache is not None and cache in self._traces and len(args) == 0:
            kwargs = self._continued(self._traces[cache], cache, kwargs)
        return self._step(stock, args, kwargs)

    def _step(self, stock: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """A forward without images, on a cache whose layers may differ in length."""
        cache = cache_in(kwargs)
        trace = None if cache is None else self._traces.get(cache)
        if trace is None or not trace.stretches:
            return stock(*args, **kwargs)
        with continuing(self.family.language_model(self.model), trace.stretches, cache):
            return stock(*args, **kwargs)

    def _continued(self, trace: Trace, cache: Any, given: dict[str, Any]) -> dict[str, Any]:
        """A step after a pruned prompt, with a mask and positions that know what was dropped."""
        shown = given.get("input_ids")
        shown = given.get("inputs_embeds") if shown is None else shown
        if shown is None:
            return given
        held, new = cached_length(cache), int(shown.shape[1])
        call = {**given, "attention_mask": trace.fitted(held, new, given.get("attention_mask"))}
        if given.get("position_ids") is None:
            steps = torch.arange(held - trace.length, held - trace.length + new)
            steps = steps.to(shown.device)
            call["position_ids"] = trace.following.to(shown.device)[..., None] + steps
        return call

    def _prepare_inputs_for_generation(
        self, stock: Callable[..., Any], input_ids: Any, *args: Any, **kwargs: Any
    ) -> Any:
        kwargs = naming_the_cache(kwargs)
        cache = cache_in(kwargs)
        trace = None if cache is None else self._traces.get(cache)
        if trace is not None and trace.length != trace.before[1]:
            new = kwargs.get("next_sequence_length") or 1
            mask = kwargs.get("attention_mask")
            kwargs["attention_mask"] = trace.fitted(cached_length(cache), new, mask)
        return stock(input_ids, *args, **kwargs)

    def _generate(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        names = list(inspect.signature(stock).parameters)
        kwargs = naming_the_cache({**dict(zip(names, args, strict=False)), **kwargs})
        if kwargs.get("inputs") is not None and "input_ids" not in kwargs:
            kwargs["input_ids"] = kwargs.pop("inputs")
        cache = cache_in(kwargs)
        if not has_visuals(self.family, kwargs):
            if cache is not None and cache in self._traces:
                raise ValueError(
                    f"{cache_name()}: holds a pruned prompt, which generate() cannot line up with "
                    "input_ids; start from an empty cache, or decode step by step with forward()"
                )
            return stock(**kwargs)
        self._refuse(kwargs)
        prompt = self._compact(kwargs, generating=True)
        call = self._arguments(prompt, kwargs)
        call = _lengths(self.model, prompt, call)
        self._pending.prompt, self._pending.generating = prompt, True
        try:
            return stock(**call)
        finally:
            self._pending.prompt, self._pending.generating = None, False

    def _refuse(self, given: Mapping[str, Any]) -> None:
        config = given.get("generation_config")
        for name in _UNSPLITTABLE:
            value = given.get(name)
            value = getattr(config, name, None) if value is None else value
            if value is not None:
                raise ValueError(f"{name}: not possible with a pruned prompt; leave it out")
        if given.get("assistant_model") is not None:
            raise ValueError("assistant_model: not possible with a pruned prompt; leave it out")


def attach(
    model: Any,
    method: Method,
    processor: Any = None,
    text_encoder: Any = None,
    positions: Positions | None = None,
    *,
    instruction: str | list[str] | None = None,
) -> Attachment:
    """Prune the visual tokens of a model from now on; the user's code does not change.

    `generate`, `forward` and pipelines see fewer visual tokens, until `Attachment.detach`.

    Parameters
    ----------
    model
        A `...ForConditionalGeneration` of transformers; `sc.attach(object(), ...)` names those
        that are known.
    method
        How to choose: before the language model (`EADP`), inside it (`FastV`) or both (`ERASE`).
    processor
        The model's processor or tokenizer. Tells the instruction from system prompt and template,
        and how pixels were normalised. Methods that read neither do without.
    text_encoder
        (model, tokenizer) of the CLIP or SigLIP checkpoint that the vision tower comes from.
        Visual tokens and instruction are then compared in its space, else in that of the
        language model's input embeddings.
    positions
        ``"original"``: kept tokens keep their positions, and decoding goes on after the unpruned
        prompt. ``"compact"``: positions 0, 1, ... None: what a published method's program does,
        else the family's default.
    instruction
        The instruction, or one for each prompt of a batch, instead of what the prompt says.

    Returns
    -------
    Attachment
        With `last`, the report of the last prompt, and `detach`.

    Raises
    ------
    UnsupportedModelError
        For a model nobody taught us, and for one that is wrapped or compiled.
    ValueError
        When the model cannot give what the method needs, or is attached to already.

    Notes
    -----
    The vision encoder runs once and unchanged. With all tokens kept, logits are bit-equal to the
    unattached model's. With fewer, `forward` returns logits of the shortened prompt;
    `last.positions` tells which columns they belong to. `generate` returns the full prompt
    followed by the new tokens.

    Examples
    --------
    >>> att = sc.attach(model, sc.EADP(keep=64), processor)         # doctest: +SKIP
    >>> out = model.generate(**inputs)                              # doctest: +SKIP
    >>> att.last.prompt_length, att.last.kept[0]                    # doctest: +SKIP
    >>> att.detach()                                                # doctest: +SKIP
    """
    present = getattr(model, MARK, None)
    if present is not None:
        raise ValueError(
            f"model: {present.method!r} is attached already; call detach() on its attachment first"
        )
    return Attachment(
        model, method, *_prepared(model, method, processor, text_encoder, positions, instruction)
    )


def prune_inputs(
    model: Any,
    inputs: Mapping[str, Any],
    method: Method,
    processor: Any = None,
    text_encoder: Any = None,
    positions: Positions | None = None,
    *,
    instruction: str | list[str] | None = None,
) -> dict[str, Any]:
    """The same without attaching: inputs for `generate` with the visual tokens that were chosen.

    Parameters
    ----------
    inputs
        What the processor returned.
    model, method, processor, text_encoder, positions, instruction
        As in `attach`.

    Returns
    -------
    dict
        The inputs with `inputs_embeds`, `attention_mask` and `position_ids` of the shortened
        prompt instead of pixels; `input_ids` stay whole, so `generate` returns the full prompt
        and the new tokens. For Qwen3-VL, whose first layers add visual features too,
        `mm_encoder_outputs` and shortened `input_ids` instead of `inputs_embeds`.

    Raises
    ------
    ValueError
        For methods that prune inside the language model: only `attach` can do that.
    """
    if isinstance(method, Cuts):
        raise ValueError(
            f"{type(method).__name__} prunes inside the language model; use attach() for it"
        )
    family, guidance, pixels, chosen = _prepared(
        model, method, processor, text_encoder, positions, instruction
    )
    if not has_visuals(family, inputs):
        return dict(inputs)
    prompt = compact(
        model,
        family,
        method,
        inputs,
        guidance=guidance,
        pixels=pixels,
        positions=chosen,
        generating=True,
    )
    dropped = {"mm_token_type_ids", "token_type_ids", *family.visual_inputs}
    small = {name: x for name, x in inputs.items() if name not in dropped}
    device = prompt.embeds.device
    small["attention_mask"] = torch.from_numpy(prompt.mask).to(device).long()
    small["position_ids"] = prompt.positions
    if not prompt.planes:
        return {**small, "inputs_embeds": prompt.embeds}
    return {**small, **family.encoded(model, inputs["input_ids"], prompt)}


def _prepared(
    model: Any,
    method: Method,
    processor: Any,
    text_encoder: Any,
    positions: Positions | None,
    instruction: Any,
) -> tuple[Adapter, Guidance, Pixels, Positions]:
    if not isinstance(method, Method):
        raise ValueError(f"method: expected a method such as EADP(keep=64), got {method!r}")
    family = family_of(model)
    check_release()
    if is_compiled(model):
        raise UnsupportedModelError(model, "it was compiled; attach first, then compile")
    if positions not in (None, "original", "compact"):
        raise ValueError(f"positions: expected original, compact or None, got {positions!r}")
    encoder = TextEncoder.of(text_encoder, method.reads)
    if encoder is not None:
        encoder.check(family.tower(model), family.family.name)
    wanted(method, family.family, encoder)
    decoder = family.language_model(model)
    if isinstance(method, Cuts) and has_sliding_layers(decoder.config):
        raise UnsupportedModelError(
            model, f"{type(method).__name__} cannot drop tokens from sliding-window layers"
        )
    guidance = Guidance(model, family, processor, encoder, instruction)
    return (
        family,
        guidance,
        Pixels.of(family.family, processor),
        positions or method.positions or family.family.positions,
    )


@contextmanager
def _adding(decoder: Any, prompt: Prompt, rows: int) -> Iterator[None]:
    """Hand the decoder what its first layers add at visual tokens (deepstack)."""
    times = rows // len(prompt.mask)
    masks = torch.from_numpy(np.repeat(prompt.visual, times, axis=0))
    planes = [
        torch.cat([own for own in plane if own is not None for _ in range(times)], dim=0)
        for plane in prompt.planes
    ]

    def add(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        device = kwargs["inputs_embeds"].device
        kwargs = {
            **kwargs,
            "visual_pos_masks": masks.to(device),
            "deepstack_visual_embeds": planes,
        }
        return args, kwargs

    handle = decoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _bound(stock: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The arguments of a call by name."""
    names = list(inspect.signature(stock).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _lengths(model: Any, prompt: Prompt, call: dict[str, Any]) -> dict[str, Any]:
    """Limits on the whole sequence as limits on new tokens, and a static cache of the right size.

    `generate` subtracts the length of `inputs_embeds` from `max_length` and adds it to the size of
    static caches when `input_ids` are of another length. What the user said in a
    `generation_config` is changed in a copy of it, everything else in the arguments.
    """
    if prompt.length == prompt.before:
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
            said[new] = max(int(said[most]) - prompt.before, 0)
            _say(call, config, most, None)
            _say(call, config, new, said[new])
    if said["max_new_tokens"] == 0:
        raise ValueError(
            f"max_length: the prompt has {prompt.before} tokens already, raise it or use "
            "max_new_tokens"
        )
    kinds = (call.get("cache_implementation"), getattr(config, "cache_implementation", None))
    if "static" in kinds and cache_in(call) is None:
        from transformers import StaticCache

        _say(call, config, "cache_implementation", None)
        call[cache_name()] = StaticCache(
            config=model.config.get_text_config(decoder=True),
            max_cache_len=prompt.length + (said["max_new_tokens"] or 20),
        )
    return call


def _say(call: dict[str, Any], config: Any, name: str, value: Any) -> None:
    """Set a generation parameter where the user sets them."""
    call.pop(name, None)
    if config is not None:
        setattr(config, name, value)
    elif value is not None:
        call[name] = value
