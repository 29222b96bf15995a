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

from secateur.app.pictures import Shown, opened
from secateur.app.progress import progress, saying
from secateur.app.sheets import Panel, heat, sheet
from secateur.core.methods import Method
from secateur.integrations.attach import attach
from secateur.integrations.choosing import wanted
from secateur.integrations.report import Report
from secateur.integrations.transformers.models import FAMILIES, adapter_of
from secateur.lab.bench import Lab, fitted, usual

SIDE, FRAME = 336, 192
"""Longer side of the pictures on a sheet, and of a video's frames, in pixels."""


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
        """In words, how many tokens of what is shown were left at each stage."""
        if self.report is None:
            return "all"
        (_, kept, of), *cuts = self.stages
        whose, parts = "tokens", len(self.report.pictures[0])
        if parts > 1:
            whose = f"in {parts} frames" if self.frames > 1 else f"the first of {parts} grids"
        told = [f"{kept} of {of} {whose}"]
        return ", ".join(told + [f"{kept} after layer {after}" for after, kept, _ in cuts])

    @property
    def frames(self) -> int:
        """How many grids of the report are shown: all frames of a video, the first of an image."""
        assert self.report is not None
        return len(self.report.pictures[0]) if self.report.modalities[0] == "video" else 1

    @property
    def stages(self) -> list[tuple[int, int, int]]:
        """Of what is shown: after which layer, how many tokens were left, of how many."""
        assert self.report is not None
        of = [self.report.stages(part=part) for part in range(self.frames)]
        return [
            (each[0].after, sum(int(x.kept.sum()) for x in each), sum(x.kept.size for x in each))
            for each in zip(*of, strict=True)
        ]

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
        saying("loading the lab's small model")
        where = None if device == "auto" else device
        kind = "float32" if dtype == "auto" else dtype
        return (*lab.load(kind, where), lab.text_encoder(kind, where))
    from transformers import AutoModelForImageTextToText, AutoProcessor

    options: dict[str, Any] = {"dtype": dtype, "revision": revision or "main"}
    if device is not None:
        options["device_map"] = device
    saying(f"loading {model}")
    # The smaller first: what is wrong with it is said the sooner.
    pair = None if text_encoder is None else _pair(text_encoder, device, dtype)
    found = _whole(AutoModelForImageTextToText, model, options)
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


def readable(
    model: str | None,
    revision: str | None = None,
    *,
    video: bool = False,
    methods: Sequence[Method] = (),
    paired: bool = False,
) -> None:
    """Refuse, before it is loaded, a model that lacks what is asked for.

    That a method attaches to it, each of `methods`, with a text encoder where it is `paired`, and
    that it reads videos.
    """
    if model is None:
        if video:
            raise ValueError("the lab's small model reads no videos: --model names one that does")
        kind, paired = "LlavaForConditionalGeneration", True
    else:
        kind = _kind(model, revision)
    family = adapter_of(kind).family
    if video and "video" not in family.modalities:
        raise ValueError(f"--model: {kind} reads no videos; 'secateur models' names those that do")
    for method in methods:
        wanted(method, family, paired or None)


def _kind(model: str, revision: str | None) -> str:
    """The class of a checkpoint, by its configuration alone."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as MODELS
    from transformers import AutoConfig

    config = type(AutoConfig.from_pretrained(model, revision=revision or "main"))
    if config not in MODELS:
        raise ValueError(f"--model: {model} is no model that answers about pictures")
    kind: str = MODELS[config].__name__
    if kind not in FAMILIES:
        raise ValueError(f"--model: {kind} is not among those of 'secateur models'")
    return kind


def ask(
    image: Path | Shown,
    question: str,
    methods: Sequence[Method],
    *,
    model: str | None = None,
    text_encoder: str | None = None,
    network: Loaded | None = None,
    own: bool | None = None,
    tokens: int = 64,
    label: str = "asking",
    fps: float = 1.0,
) -> list[Answer]:
    """Ask one question of one picture: with all tokens, then with those each method keeps.

    Frames are one video, `fps` of them a second.

    `network` is what `loaded` made, to load once for several calls; `own` says that it is the
    lab's. Times are without what a first call starts: kernels, caches. A terminal shows how far
    it is, after `label`.
    """
    picture = image if isinstance(image, Sequence) else opened(image)
    own = model is None and network is None if own is None else own
    net, processor, pair = loaded(model, text_encoder) if network is None else network
    inputs = inputs_of(processor, picture, question, own=own, fps=fps).to(net.device)
    for pixels in {"pixel_values", "pixel_values_videos"} & inputs.keys():
        inputs[pixels] = inputs[pixels].to(net.dtype)
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


def inputs_of(processor: Any, picture: Shown, question: str, *, own: bool, fps: float = 1.0) -> Any:
    """A prompt with one image or video, as the lab's model (`own`) or a chat template has it."""
    if own:
        from secateur.lab import prompt

        text = prompt(question)
    else:
        kind = "image" if isinstance(picture, Image.Image) else "video"
        turn = [{"type": kind}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": turn}], add_generation_prompt=True
        )
    if isinstance(picture, Image.Image):
        return processor(images=[picture], text=[text], return_tensors="pt")
    count = len(picture)
    facts = {"fps": fps, "total_num_frames": count, "frames_indices": list(range(count))}
    return processor(
        videos=[list(picture)],
        text=[text],
        return_tensors="pt",
        do_sample_frames=False,
        video_metadata=[facts],
    )


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


def drawn(image: Path | Shown, answers: Sequence[Answer], question: str = "") -> Image.Image:
    """A sheet: the picture with the full answer, then what each method kept, and its scores.

    Of a video strips of frames, one under the other.
    """
    if isinstance(image, Sequence):
        return _strips(image, answers, question)
    picture = opened(image)
    small = _small(picture, SIDE)
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


def _strips(frames: Sequence[Image.Image], answers: Sequence[Answer], question: str) -> Image.Image:
    """What each method kept of a video."""
    panels = []
    for answer in answers:
        said = f"says: {answer.text or '(nothing)'}"
        spent = f"{answer.milliseconds:.0f} ms"
        if answer.report is None:
            continue
        shown = [_small(frame, FRAME) for frame in read(frames, answer.frames)]
        title = f"{answer.title} {said}"
        panels.append(Panel(answer.report.overlay(shown), title, [f"{answer.left}, {spent}"]))
    whole = f"{question} With all tokens: {answers[0].text or '(nothing)'}"
    return sheet(panels, 1, heading=whole, legend=LEGEND)


def read(frames: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """The first frame of each of `count` groups that a model reads as one; the last may be less."""
    together = -(-len(frames) // count)
    return [frames[min(together * place, len(frames) - 1)] for place in range(count)]


def _small(picture: Image.Image, side: int) -> Image.Image:
    share = side / max(picture.size)
    return picture.resize([max(1, round(share * each)) for each in picture.size])
