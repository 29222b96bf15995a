"""Asking a model the same question with all of an image's tokens and with fewer."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from secateur.app.pictures import opened
from secateur.app.progress import progress, saying
from secateur.app.sheets import Panel, heat, sheet
from secateur.core.methods import Method
from secateur.integrations.attach import attach
from secateur.integrations.report import Report
from secateur.lab.bench import Lab, fitted, usual

SIDE = 336
"""Longer side of the pictures on a sheet."""


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it saw.

    Attributes
    ----------
    method
        Which tokens were kept; None for all of them.
    text
        The answer.
    milliseconds
        Wall time of `generate`, choosing included.
    report
        The attachment's report; None for all tokens.
    """

    method: Method | None
    text: str
    milliseconds: float
    report: Report | None

    @property
    def title(self) -> str:
        """The method's name."""
        return "all tokens" if self.method is None else type(self.method).__name__

    @property
    def tokens(self) -> int | None:
        """How many visual tokens were there in the end; None for all of them."""
        if self.report is None:
            return None
        kept = sum(len(each) for each in self.report.kept)
        inside = [len(columns) for cuts in self.report.inside for _, columns in cuts]
        return min([kept, *inside])

    @property
    def left(self) -> str:
        """In words, how many tokens of the first grid were left at each stage."""
        if self.report is None:
            return "all"
        first, *cuts = self.report.stages()
        whose = "tokens"
        if len(self.report.pictures[0]) > 1:
            whose = f"the first of {len(self.report.pictures[0])} grids"
        told = [f"{first.kept.sum()} of {first.kept.size} {whose}"]
        return ", ".join(told + [f"{cut.kept.sum()} after layer {cut.after}" for cut in cuts])

    def told(self) -> dict[str, Any]:
        """The answer as plain values."""
        report = self.report
        return {
            "method": self.title,
            "answer": self.text,
            "tokens": self.tokens,
            "prompt": None if report is None else report.prompt_length[1],
            "milliseconds": round(self.milliseconds, 1),
            "choosing": None if report is None else round(report.milliseconds["choose"], 1),
            "kept": None if report is None else [kept.tolist() for kept in report.kept],
        }


Loaded = tuple[Any, Any, Any]
"""Model, processor and text encoder."""


def loaded(
    model: str | None,
    text_encoder: str | None,
    *,
    device: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
) -> Loaded:
    """Model, processor and text encoder: the lab's without names, else by `from_pretrained`.

    A checkpoint that leaves weights of its class unset is refused: these would be random.
    """
    from transformers.utils import logging

    _check_placing(device, dtype)
    logging.set_verbosity_error()
    if model is None:
        from secateur import lab

        logging.disable_progress_bar()
        where = None if device == "auto" else device
        kind = "float32" if dtype == "auto" else dtype
        return (*lab.load(kind, where), lab.text_encoder(kind, where))
    from transformers import AutoModelForImageTextToText, AutoProcessor

    options: dict[str, Any] = {"dtype": dtype, "revision": revision or "main"}
    if device is not None:
        options["device_map"] = device
    saying(f"loading {model}")
    found = _whole(AutoModelForImageTextToText, model, options)
    pair = None if text_encoder is None else _pair(text_encoder, device, dtype)
    return found, AutoProcessor.from_pretrained(model, revision=options["revision"]), pair


def _check_placing(device: str | None, dtype: str) -> None:
    kinds = ("auto", "float32", "bfloat16", "float16")
    if dtype not in kinds:
        raise ValueError(f"--dtype: expected one of {', '.join(kinds)}; got {dtype!r}")
    if device in (None, "auto"):
        return
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"--device: expected cpu, cuda, cuda:1 or auto, got {device!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: {device}, but PyTorch sees no GPU")


def _whole(kind: Any, name: str, options: dict[str, Any]) -> Any:
    """A checkpoint as `kind`, all of whose weights it has."""
    found, told = kind.from_pretrained(
        name, output_loading_info=True, use_safetensors=True, **options
    )
    lacks = sorted([*told["missing_keys"], *map(str, told.get("mismatched_keys", ()))])
    if lacks:
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        raise ValueError(
            f"{name}: no checkpoint of {type(found).__name__}, it lacks "
            f"{', '.join(lacks[:3])}{more}, which would be random"
        )
    return found.eval()


def _pair(name: str, device: str | None, dtype: str) -> tuple[Any, Any]:
    """A text encoder and its tokenizer, of whatever class its checkpoint says."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(name)
    if not (hasattr(config, "text_config") and config.model_type.startswith(("clip", "siglip"))):
        raise ValueError(
            f"--text-encoder: expected a CLIP or SigLIP checkpoint with both sides, {name} is a "
            f"{config.model_type}"
        )
    options: dict[str, Any] = {"dtype": dtype}
    if device is not None:
        options["device_map"] = device
    return _whole(AutoModel, name, options), AutoTokenizer.from_pretrained(name)


def ask(
    image: Path | Image.Image,
    question: str,
    methods: Sequence[Method],
    *,
    model: str | None = None,
    text_encoder: str | None = None,
    network: Loaded | None = None,
    own: bool | None = None,
    tokens: int = 64,
    label: str = "asking",
) -> list[Answer]:
    """Ask one question of one picture: with all tokens, then with those each method keeps.

    `network` is what `loaded` made, to load once for several calls; `own` says that it is the
    lab's. Times are without what a first call starts: kernels, caches. A terminal shows how far
    it is, after `label`.
    """
    picture = opened(image)
    own = model is None and network is None if own is None else own
    net, processor, pair = loaded(model, text_encoder) if network is None else network
    inputs = inputs_of(processor, picture, question, own=own).to(net.device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(net.dtype)
    lab = Lab(net, processor, pair) if own else None
    answers: list[Answer] = []
    started: set[type[Method]] = set()
    with progress(1 + len(methods), label) as done:
        _answer(net, processor, inputs, None, None, 1)
        answers.append(_answer(net, processor, inputs, None, None, tokens))
        done()
        for method in methods:
            suited = _fitted(method, lab)
            if type(method) not in started:
                started.add(type(method))
                # Apart from what is measured, which may remember what it saw.
                first = deepcopy(suited)
                with attach(net, first, processor, pair, instruction=question) as attached:
                    _answer(net, processor, inputs, suited, attached, 1)
            with attach(net, suited, processor, pair, instruction=question) as attachment:
                answers.append(_answer(net, processor, inputs, suited, attachment, tokens))
            done()
    return answers


def inputs_of(processor: Any, picture: Image.Image, question: str, *, own: bool) -> Any:
    """A prompt with one image, as the lab's model (`own`) or a chat template has it."""
    if own:
        from secateur.lab import prompt

        text = prompt(question)
    else:
        turn = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": turn}], add_generation_prompt=True
        )
    return processor(images=[picture], text=[text], return_tensors="pt")


def _fitted(method: Method, lab: Lab | None) -> Method:
    """The lab's settings for the lab's model; elsewhere what the user said."""
    return method if lab is None else fitted(method, lambda: usual(lab))


def _answer(
    network: Any, processor: Any, inputs: Any, method: Method | None, attachment: Any, tokens: int
) -> Answer:
    start = perf_counter()
    with torch.inference_mode():
        out = network.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    spent = 1e3 * (perf_counter() - start)
    told = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    report = None if attachment is None else attachment.last
    return Answer(method, told[0].strip(), spent, report)


LEGEND = (
    "Framed: kept to the end. Dark: dropped before the language model. "
    "Less dark: dropped inside it. Times: generate, choosing included, after a first call."
)


def drawn(image: Path | Image.Image, answers: Sequence[Answer], question: str = "") -> Image.Image:
    """A sheet: the picture with the full answer, then what each method kept, and its scores."""
    picture = opened(image)
    share = SIDE / max(picture.size)
    small = picture.resize([max(1, round(share * side)) for side in picture.size])
    panels = []
    for answer in answers:
        said = f"says: {answer.text or '(nothing)'}"
        spent = f"{answer.milliseconds:.0f} ms"
        if answer.report is None:
            panels.append(Panel(small, answer.title, [said, "every token", spent]))
            continue
        part = answer.report.pictures[0][0]
        shown = answer.report.overlay(small)
        panels.append(Panel(shown, answer.title, [said, answer.left, spent]))
        if part.scores is not None and len(answers) == 2:
            panels.append(Panel(heat(part.scores, part.grid, small.size), "its scores"))
    return sheet(panels, heading=question, legend=LEGEND)
