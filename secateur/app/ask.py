"""Asking a model the same question with all of an image's tokens and with fewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image

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


def loaded(model: str | None, text_encoder: str | None) -> tuple[Any, Any, Any]:
    """Model, processor and text encoder: the lab's without names, else by `from_pretrained`."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if model is None:
        from secateur import lab

        return (*lab.load(), lab.text_encoder())
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, CLIPModel

    found = AutoModelForImageTextToText.from_pretrained(model, dtype="auto").eval()
    pair = None
    if text_encoder is not None:
        clip = CLIPModel.from_pretrained(text_encoder).eval()
        pair = (clip, AutoTokenizer.from_pretrained(text_encoder))
    return found, AutoProcessor.from_pretrained(model), pair


def ask(
    image: Path | Image.Image,
    question: str,
    methods: Sequence[Method],
    *,
    model: str | None = None,
    text_encoder: str | None = None,
    tokens: int = 64,
) -> list[Answer]:
    """Ask one question of one picture: with all tokens, then with those each method keeps."""
    picture = opened(image)
    network, processor, pair = loaded(model, text_encoder)
    inputs = inputs_of(processor, picture, question, own=model is None).to(network.device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(network.dtype)
    lab = Lab(network, processor, pair) if model is None else None
    if lab is not None:
        _answer(network, processor, inputs, None, None, tokens)  # Off the clock: what starts once.
    answers = [_answer(network, processor, inputs, None, None, tokens)]
    for method in methods:
        suited = _fitted(method, lab)
        with attach(network, suited, processor, pair, instruction=question) as attachment:
            answers.append(_answer(network, processor, inputs, suited, attachment, tokens))
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


def opened(image: Path | Image.Image) -> Image.Image:
    """A picture in colour."""
    return (image if isinstance(image, Image.Image) else Image.open(image)).convert("RGB")


def drawn(image: Path | Image.Image, answers: Sequence[Answer]) -> Image.Image:
    """A sheet: the picture with the full answer, then what each method kept, and its scores."""
    picture = opened(image)
    share = SIDE / max(picture.size)
    small = picture.resize([max(1, round(share * side)) for side in picture.size])
    panels = []
    for answer in answers:
        said = f"says: {answer.text or '(nothing)'}"
        if answer.report is None:
            panels.append(Panel(small, answer.title, [said, f"{answer.milliseconds:.0f} ms"]))
            continue
        part = answer.report.pictures[0][0]
        kept = f"{part.budget} of {part.kept.size} tokens"
        if answer.tokens is not None and answer.tokens < part.budget:
            kept += f", then {answer.tokens}"
        kept += f", {answer.milliseconds:.0f} ms"
        panels.append(Panel(answer.report.overlay(small), answer.title, [said, kept]))
        if part.scores is not None and len(answers) == 2:
            panels.append(Panel(heat(part.scores, part.grid, small.size), "its scores"))
    return sheet(panels)
