"""Putting a method inside a vision-language model of transformers, and taking it out again.

Modules are shared by all threads, calls are not: what belongs to one call goes with its arguments,
with the context it runs in, or with the cache it fills; hooks see calls of their own thread only.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from secateur.core.acts import acts_inside, forgets
from secateur.core.methods.base import Method
from secateur.integrations.choosing import choose_each, wanted
from secateur.integrations.encoded import Positions
from secateur.integrations.observing import requests_of
from secateur.integrations.report import Report
from secateur.integrations.transformers import cache, refusing
from secateur.integrations.transformers.cache import (
    Trace,
    lengths_as_new_tokens,
    refuse_splitting,
    trace_in,
)
from secateur.integrations.transformers.chat import read_turn
from secateur.integrations.transformers.encode import PIXELS, Reader, Stopwatch, has_visuals
from secateur.integrations.transformers.forgetting import Memory, stepping
from secateur.integrations.transformers.internals import (
    cache_in,
    cache_name,
    cached_length,
    compiled_part,
    device_of,
    naming_the_cache,
    naming_the_embeds,
)
from secateur.integrations.transformers.layers import Cutter, Stretch, adding, continuing
from secateur.integrations.transformers.models import UnsupportedModelError, inner_model
from secateur.integrations.transformers.shorten import Prompt, as_arguments, shorten

MARK = "_secateur_attachment"
"""The attribute of an attached model that holds its attachment."""

CALL = "secateur_call"
"""The argument of `forward` by which `generate` hands on a `Prompt`, and True at later steps."""

WRAPPED = ("forward", "generate", "prepare_inputs_for_generation", "__reduce_ex__")
"""The methods of the model that an attachment stands in front of."""


@dataclass(eq=False)
class _Generating:
    """A `generate` on its way, and the prompt that its first step takes.

    `trace` is what the cache holds after that step, where it goes on from an earlier prompt.
    """

    owner: str
    prompt: Prompt | None
    trace: Trace | None = None


_GENERATING: ContextVar[_Generating | None] = ContextVar("secateur_generating", default=None)


class Attachment:
    """A method at work inside a model, from `attach` to `detach`.

    Also a context manager: leaving the block detaches. Copies and pickles of the model are
    detached; an attachment itself can be neither copied nor pickled.

    Attributes
    ----------
    model, method
        What is attached to what.
    last
        `Report` of the last prompt with images, of whichever thread; None before the first.
    """

    def __init__(self, model: Any, method: Method, reader: Reader, positions: Positions) -> None:
        self.model, self.method, self.family = model, method, reader.family
        self.last: Report | None = None
        self._reader, self._positions = reader, positions
        self._wants = wanted(method, reader.family.family, reader.guidance.encoder)
        self._name = uuid4().hex
        self._before: dict[str, Any] = {}
        self._install()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def asking(self, instruction: str | Sequence[str]) -> AbstractContextManager[None]:
        """Within the block, take this instruction; `generate(instruction=)` does for one call."""
        return self._reader.guidance.asking(instruction)

    def __repr__(self) -> str:
        state = "" if self.attached else ", detached"
        return f"Attachment({self.method!r} in {type(self.model).__name__}{state})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "an attachment belongs to its model and can be neither copied nor pickled; copy the "
            "model, whose copy is detached, and attach that"
        )

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
        self._restore(own)

    def _restore(self, own: dict[str, Any]) -> None:
        """Take what is ours out of the attributes of the model, or of a copy of it."""
        for name in WRAPPED:
            own.pop(name, None)
            if name in self._before:
                own[name] = self._before[name]
        own.pop(MARK, None)

    def _install(self) -> None:
        own = self.model.__dict__
        self._ours: dict[str, Any] = {}
        self._arguments = list(inspect.signature(self.model.forward).parameters)
        for name in WRAPPED:
            if name in own:
                self._before[name] = own[name]
            stock = getattr(self.model, name)
            ours = functools.partial(getattr(self, f"_{name.strip('_')}"), stock)
            functools.update_wrapper(ours, stock)
            if name == "prepare_inputs_for_generation":
                ours.__dict__["__signature__"] = naming_the_embeds(stock)
            self._ours[name] = own[name] = ours
        own[MARK] = self

    def _reduce_ex(self, stock: Callable[..., Any], protocol: Any) -> Any:
        """How `copy`, `deepcopy` and `pickle` take the model apart: without the attachment."""
        kind, arguments, state, *rest = stock(protocol)
        state = dict(state)
        self._restore(state)
        return (kind, arguments, state, *rest)

    def _shortened(self, inputs: Mapping[str, Any], *, generating: bool) -> Prompt:
        if (held := cache_in(inputs)) is not None and cached_length(held) > 0:
            raise ValueError(
                f"{cache_name()}: holds {cached_length(held)} tokens already; a prompt with "
                "images starts from an empty cache when it is pruned"
            )
        prompt = _pruned(
            self._reader, self.method, self._wants, inputs, self._positions, generating=generating
        )
        self.last = prompt.report
        return prompt

    def _turn(self, inputs: dict[str, Any], shown: bool) -> Prompt:
        """A turn that goes on from a cache."""
        if shown and acts_inside(self.method):
            raise ValueError(
                f"{cache_name()}: {type(self.method).__name__} prunes inside the language model, "
                "where a turn with images starts from an empty cache; a turn of text goes on"
            )
        if shown:
            return self._shortened(inputs, generating=True)
        return _pruned(
            self._reader, self.method, frozenset(), inputs, self._positions, generating=True
        )

    def _run(self, stock: Callable[..., Any], prompt: Prompt, call: dict[str, Any]) -> Any:
        """One forward of the language model over a shortened prompt."""
        rows, family = call["inputs_embeds"].shape[0], self.family
        decoder, turning = family.language_model(self.model), family.neighbours(self.model)
        cutter, turn, generating = None, None, _GENERATING.get()
        if generating is not None and generating.owner == self._name:
            turn = generating.trace
        with ExitStack() as stack:
            if prompt.planes:
                stack.enter_context(adding(decoder, prompt, rows))
            if turn is not None and turn.stretches:
                stack.enter_context(continuing(decoder, turn.stretches, cache_in(call)))
            elif turn is None and acts_inside(self.method):
                first, told = len(prompt.planes) or 1, family.family.name
                cutter = Cutter(self.method, decoder, prompt, rows, first, told, neighbours=turning)
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
        filled = cache_in(outputs) if cache_in(call) is None else cache_in(call)
        if filled is not None:
            trace = turn or Trace.of(self._name, prompt, mask, times, stretches)
            if forgets(self.method):
                trace = replace(trace, memory=Memory.of(filled, prompt, times, turning))
            setattr(filled, cache.MARK, trace)
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
        step, said = kwargs.pop(CALL, None), kwargs.pop("instruction", None)
        if torch.compiler.is_compiling() and not self._concerned(step, args, kwargs):
            return stock(*args, **kwargs)
        return self._called(stock, step, said, args, kwargs)

    def _concerned(self, step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call that is being compiled needs more than the stock model."""
        if isinstance(step, Prompt):
            return True
        given = dict(zip(self._arguments, args, strict=False))
        given.update(kwargs)
        for name in PIXELS:
            if given.get(name) is not None:
                return True
        trace = trace_in(given, self._name)
        if trace is None:
            return False
        return step is None or len(trace.stretches) > 0 or trace.memory is not None

    @torch.compiler.disable(reason="secateur chooses visual tokens outside compiled graphs")
    def _called(
        self, stock: Callable[..., Any], step: Any, said: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        given = naming_the_cache({**dict(zip(self._arguments, args, strict=False)), **kwargs})
        if isinstance(step, Prompt):
            return self._run(stock, step, given)
        if step is None and has_visuals(given):
            with self._reader.guidance.asking(said):
                return self._whole(stock, given)
        trace = trace_in(given, self._name)
        if trace is not None and step is None:
            # A cache that was emptied since holds less than its trace says.
            known = cached_length(cache_in(given)) >= trace.length
            trace = trace if known else None
            given = given if trace is None else trace.continued(given)
        if trace is None:
            return stock(**given)
        decoder = self.family.language_model(self.model)
        with stepping(decoder, self.method, trace.stretches, trace.memory, given):
            return stock(**given)

    def _whole(self, stock: Callable[..., Any], given: dict[str, Any]) -> Any:
        """A forward over a prompt with images that nobody has shortened yet."""
        if given.get("labels") is not None and acts_inside(self.method):
            raise ValueError(
                f"labels: {type(self.method).__name__} drops tokens between layers, so logits "
                "do not line up with labels; compute the loss from the logits"
            )
        return_dict = given.pop("return_dict", None)
        prompt = self._shortened(given, generating=False)
        call = {**as_arguments(self.family, prompt, given), "inputs_embeds": prompt.embeds}
        call.pop("input_ids", None)
        outputs = self._run(stock, prompt, {**call, "return_dict": True})
        tuples = return_dict is False or (return_dict is None and not self.model.config.return_dict)
        return outputs.to_tuple() if tuples else outputs

    def _prepare_inputs_for_generation(
        self, stock: Callable[..., Any], input_ids: Any, *args: Any, **kwargs: Any
    ) -> Any:
        kwargs = naming_the_cache(kwargs)
        trace = trace_in(kwargs, self._name)
        if trace is not None and trace.length != trace.before[1]:
            new = kwargs.get("next_sequence_length") or 1
            held = cached_length(cache_in(kwargs))
            kwargs["attention_mask"] = trace.fitted(held, new, kwargs.get("attention_mask"))
        made = stock(input_ids, *args, **kwargs)
        generating = _GENERATING.get()
        if generating is None or generating.owner != self._name:
            return made
        prompt, generating.prompt = generating.prompt, None
        return {**made, CALL: True if prompt is None else prompt}

    def _generate(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        said = kwargs.pop("instruction", None)
        names = list(inspect.signature(stock).parameters)
        kwargs = naming_the_cache({**dict(zip(names, args, strict=False)), **kwargs})
        if kwargs.get("inputs") is not None and "input_ids" not in kwargs:
            kwargs["input_ids"] = kwargs.pop("inputs")
        trace = trace_in(kwargs, self._name)
        if trace is not None and cached_length(cache_in(kwargs)) >= trace.length:
            refuse_splitting(kwargs)
            refusing.arguments(self.method, self.model, kwargs, turn=True)
            with self._reader.guidance.asking(said):
                turn = read_turn(self.model, self.family, trace, kwargs, self._turn)
            generating, call = _Generating(self._name, turn.prompt, turn.trace), turn.call
            call = lengths_as_new_tokens(self.model, turn.trace.before, call)
        elif has_visuals(kwargs):
            refuse_splitting(kwargs)
            refusing.arguments(self.method, self.model, kwargs, turn=False)
            with self._reader.guidance.asking(said):
                prompt = self._shortened(kwargs, generating=True)
            generating = _Generating(self._name, prompt)
            call = {**as_arguments(self.family, prompt, kwargs), "inputs_embeds": prompt.embeds}
            call = lengths_as_new_tokens(self.model, (prompt.before, prompt.length), call)
        else:
            return stock(**kwargs)
        token = _GENERATING.set(generating)
        try:
            out = stock(**call)
        finally:
            _GENERATING.reset(token)
        if generating.prompt is not None:
            raise RuntimeError(
                "generate() of this model did not ask prepare_inputs_for_generation(), through "
                "which an attachment reaches its first step; was either replaced?"
            )
        return out


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
        A `...ForConditionalGeneration` of transformers, by itself or with LoRA adapters of PEFT;
        `sc.attach(object(), ...)` names those that are known.
    method
        How to choose: before the language model (`EADP`), inside it (`FastV`) or both (`ERASE`).
    processor
        The model's processor or tokenizer. Tells what the user says from the rest of the prompt,
        and how pixels were normalised. Methods that read neither do without.
    text_encoder
        The CLIP or SigLIP checkpoint that the vision tower comes from: its name or folder, or
        (model, tokenizer). Visual tokens and instruction are then compared in its space, else in
        that of the language model's input embeddings.
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
    model = inner_model(model)
    present = getattr(model, MARK, None)
    if present is not None:
        raise ValueError(
            f"model: {present.method!r} is attached already; call detach() on its attachment first"
        )
    reader, chosen = _checked(model, method, processor, text_encoder, positions, instruction)
    part = compiled_part(model)
    if part is not None:
        raise UnsupportedModelError(
            model, f"{part or 'it'} was compiled; attach first, then compile"
        )
    return Attachment(model, method, reader, chosen)


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
        prompt instead of pixels; `input_ids` stay whole, so `generate` returns the full prompt and
        the new tokens. Qwen3-VL and Gemma get `mm_encoder_outputs` and shortened `input_ids`.

    Raises
    ------
    ValueError
        For methods that prune inside the language model: only `attach` can do that.
    """
    model = inner_model(model)
    refusing.unattached(method)
    reader, chosen = _checked(model, method, processor, text_encoder, positions, instruction)
    wants = wanted(method, reader.family.family, reader.guidance.encoder)
    if not has_visuals(inputs):
        return dict(inputs)
    prompt = _pruned(reader, method, wants, inputs, chosen, generating=True)
    small = as_arguments(reader.family, prompt, inputs)
    return {**small, **reader.family.encoded(model, inputs["input_ids"], prompt)}


def _checked(
    model: Any,
    method: Method,
    processor: Any,
    text_encoder: Any,
    positions: Positions | None,
    instruction: Any,
) -> tuple[Reader, Positions]:
    if not isinstance(method, Method):
        raise ValueError(f"method: expected a method such as EADP(keep=64), got {method!r}")
    if positions not in (None, "original", "compact"):
        raise ValueError(f"positions: expected original, compact or None, got {positions!r}")
    reader = Reader.of(model, processor, text_encoder, instruction, method.reads)
    family = reader.family
    wanted(method, family.family, reader.guidance.encoder)
    refusing.decoder(method, model, family.language_model(model))
    return reader, positions or method.positions or family.family.positions


def _pruned(
    reader: Reader,
    method: Method,
    wants: frozenset[str],
    inputs: Mapping[str, Any],
    positions: Positions,
    *,
    generating: bool,
) -> Prompt:
    """Encode, choose, shorten."""
    encoded = reader.read(inputs, wants, requests_of(method), method)
    watch = Stopwatch(device_of(reader.model.get_input_embeddings()))
    chosen = choose_each(method, encoded)
    watch.lap("choose")
    spent = {**encoded.milliseconds}
    spent["choose"] += watch.spent["choose"]
    encoded = replace(encoded, milliseconds=spent)
    return shorten(reader.model, inputs, encoded, chosen, positions, generating=generating)
