"""Ask a model of the lab, and count how often it is right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from secateur.lab.objects import KINDS, Kind, Question
from secateur.lab.scene import Scene, scenes

HELD_OUT = 1
"""Seed of the scenes for evaluation; the model was trained on those of seed 0."""

LONGEST = 64
"""Tokens of the longest answer, the caption of nine objects and its end."""


def prompt(question: str) -> str:
    """Return the prompt that the lab's model was trained with: the image, then the question."""
    return f"<image>{question}"


def answer(model: Any, processor: Any, image: Any, question: str) -> str:
    """Ask one question of one image, greedily.

    Parameters
    ----------
    model, processor
        From `secateur.lab.load`; the model may have a pruning method attached.
    image
        An array ``(H, W, 3)`` of uint8, or a PIL image, of any size.
    question
        Such as ``"what colour is the star?"``.

    Returns
    -------
    str
        Such as ``"red"``.
    """
    return answers(model, processor, [image], [question])[0]


def answers(
    model: Any, processor: Any, images: Sequence[Any], questions: Sequence[str]
) -> list[str]:
    """Ask one question of each image, all in one batch; see `answer`."""
    import torch

    inputs = processor(
        images=list(images),
        text=[prompt(question) for question in questions],
        padding=True,
        return_tensors="pt",
    ).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    told = out[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(told, skip_special_tokens=True)]


def ask_all(
    model: Any, processor: Any, over: Iterable[Scene], batch_size: int = 32
) -> Iterator[tuple[Scene, Question, str]]:
    """Ask every question of every scene.

    Yields
    ------
    scene, question, said
        In order of the scenes and their questions. Right is what equals `Question.answer`.
    """
    waiting: list[tuple[Scene, Question]] = []

    def flush() -> Iterator[tuple[Scene, Question, str]]:
        # Short answers do not wait for a caption: what is asked together takes about as long.
        order = sorted(range(len(waiting)), key=lambda i: len(waiting[i][1].answer))
        said: dict[int, str] = {}
        for first in range(0, len(order), batch_size):
            part = order[first : first + batch_size]
            images = [waiting[i][0].image for i in part]
            questions = [waiting[i][1].text for i in part]
            said.update(zip(part, answers(model, processor, images, questions), strict=True))
        for i, (scene, question) in enumerate(waiting):
            yield scene, question, said[i]
        waiting.clear()

    for scene in over:
        waiting += [(scene, question) for question in scene.questions]
        if len(waiting) >= 8 * batch_size:
            yield from flush()
    yield from flush()


def evaluate(
    model: Any,
    processor: Any,
    n: int = 200,
    seed: int = HELD_OUT,
    kind: Kind | None = None,
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[Kind, float]:
    """Return the share of questions of each kind answered exactly, greedily.

    Parameters
    ----------
    model, processor
        From `secateur.lab.load`; with all tokens unless a method is attached.
    n, seed, kind
        The scenes, as for `secateur.lab.scenes`.
    batch_size
        Questions at a time.
    progress
        Show a bar.

    Returns
    -------
    dict
        From kind to accuracy, kinds that were not asked left out.
    """
    over: Iterable[Scene] = scenes(n, seed, kind)
    if progress:
        from tqdm import tqdm

        over = tqdm(over, total=n, unit="scene")
    right = dict.fromkeys(KINDS, 0)
    asked = dict.fromkeys(KINDS, 0)
    for _, question, said in ask_all(model, processor, over, batch_size):
        asked[question.kind] += 1
        right[question.kind] += said == question.answer
    return {name: right[name] / asked[name] for name in KINDS if asked[name]}
