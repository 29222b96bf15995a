"""A page to explore what methods keep of a picture: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import secateur
from secateur.app.ask import Answer, Loaded, ask, loaded, read
from secateur.app.pictures import Shown, opened, seen
from secateur.core.arrays import resolve_keep
from secateur.core.methods import Method
from secateur.integrations.report import Picture

SHARES = (1 / 36, 1 / 18, 1 / 12, 1 / 9, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3)
"""Budgets of the slider, as shares of the tokens."""

LONGEST, FRAME = 768, 320
"""Longer side of the picture in the page, and of a video's frames, in pixels."""


def explored(
    image: Path | Shown,
    question: str,
    methods: Sequence[Method],
    *,
    model: str | None = None,
    text_encoder: str | None = None,
    network: Loaded | None = None,
    own: bool | None = None,
    fps: float = 1.0,
) -> str:
    """The page: a question asked with every method at nine budgets, and with all tokens.

    Parameters
    ----------
    image, question
        What is asked.
    methods
        Each appears once; its own budget is where the slider starts.
    model, text_encoder, network, own, fps
        As for `secateur.app.ask.ask`.

    Returns
    -------
    str
        HTML, with the picture and all answers in it. A model that cuts a picture into several
        shows the first of its grids. Of a video all frames are shown that the model reads, and a
        budget is how many tokens of each are kept on average.
    """
    picture = image if isinstance(image, Sequence) else opened(image)
    if network is None:
        own, network = model is None, loaded(model, text_encoder)
    first = ask(picture, question, methods[:1], network=network, own=own, tokens=1, fps=fps)[1]
    part = _parts(first)[0]
    total = part.kept.size
    asked = resolve_keep(methods[0].keep, total)
    budgets = sorted({max(1, round(total * share)) for share in SHARES} | {asked})
    film = first.frames > 1
    # Of a video a share, which is the same to those that choose in frames and in all of it.
    every = [
        replace(method, keep=keep / total if film else keep)
        for method in methods
        for keep in budgets
    ]
    whole, *answers = ask(
        picture, question, every, network=network, own=own, label="asking for the page", fps=fps
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        found.setdefault(answer.title, []).append(_step(answer))
    return page(
        {
            "question": question,
            "images": _embedded(picture, network[1], first.frames),
            "grid": list(part.grid),
            "grids": 1 if first.frames > 1 else _grids(first),
            "budgets": budgets,
            "start": budgets.index(asked),
            "whole": whole.text,
            "methods": found,
            "made": f"secateur {secateur.__version__}",
        }
    )


def page(data: dict[str, Any]) -> str:
    """The HTML around what a page shows."""
    with (resources.files("secateur") / "data" / "explorer.html").open(encoding="utf-8") as file:
        template = file.read()
    # Within a script element only "</" and "<!--" could end or change it.
    return template.replace("__DATA__", json.dumps(data).replace("<", "\\u003c"))


def _parts(answer: Answer) -> list[Picture]:
    """The grids that are shown: the frames of a video, the first of an image."""
    assert answer.report is not None
    return answer.report.pictures[0][: answer.frames]


def _grids(answer: Answer) -> int:
    assert answer.report is not None
    return len(answer.report.pictures[0])


def _step(answer: Answer) -> dict[str, Any]:
    """What a page shows of one answer: for each token how many stages it survived."""
    assert answer.report is not None
    survived = [
        np.sum([stage.kept for stage in answer.report.stages(part=part)], axis=0, dtype=int)
        for part in range(answer.frames)
    ]
    scores = None
    given = [part.scores for part in _parts(answer) if part.scores is not None]
    if len(given) == answer.frames:
        values = np.concatenate([np.asarray(each, dtype=np.float64) for each in given])
        values = np.nan_to_num(values, nan=np.nanmin(values))
        spread = float(np.ptp(values)) or 1.0
        scores = np.round(255 * (values - values.min()) / spread).astype(int).tolist()
    return {
        "stages": [[after, kept] for after, kept, _ in answer.stages],
        "survived": np.concatenate(survived).tolist(),
        "scores": scores,
        "answer": answer.text,
    }


def _embedded(shown: Shown, processor: Any, frames: int) -> list[str]:
    """The picture or the frames that were read as data URIs, no larger than a page needs."""
    if isinstance(shown, Image.Image):
        return [_uri(seen(shown, processor), LONGEST, "PNG", optimize=True)]
    return [_uri(frame, FRAME, "JPEG", quality=90) for frame in read(shown, frames)]


def _uri(picture: Image.Image, longest: int, kind: str, **how: Any) -> str:
    share = min(1.0, longest / max(picture.size))
    if share < 1.0:
        picture = picture.resize([max(1, round(share * side)) for side in picture.size])
    told = io.BytesIO()
    picture.save(told, kind, **how)
    coded = base64.b64encode(told.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{coded}"
