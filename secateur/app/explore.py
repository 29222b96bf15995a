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
from secateur.app.ask import Answer, Loaded, ask, loaded
from secateur.app.pictures import opened, seen
from secateur.core.methods import Method

SHARES = (1 / 36, 1 / 18, 1 / 12, 1 / 9, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3)
"""Budgets of the slider, as shares of the tokens."""

LONGEST = 768
"""Longer side of the picture in the page, in pixels."""


def explored(
    image: Path | Image.Image,
    question: str,
    methods: Sequence[Method],
    *,
    model: str | None = None,
    text_encoder: str | None = None,
    network: Loaded | None = None,
    own: bool | None = None,
) -> str:
    """The page: a question asked with every method at nine budgets, and with all tokens.

    Parameters
    ----------
    image, question
        What is asked.
    methods
        Each appears once; its own budget is where the slider starts.
    model, text_encoder, network, own
        As for `secateur.app.ask.ask`.

    Returns
    -------
    str
        HTML, with the picture and all answers in it. A model that cuts a picture into several
        shows the first of its grids.
    """
    picture = opened(image)
    if network is None:
        own, network = model is None, loaded(model, text_encoder)
    first = ask(picture, question, methods[:1], network=network, own=own, tokens=1)[1]
    part = _part(first)
    total = part.kept.size
    budgets = sorted(
        {max(1, round(total * share)) for share in SHARES} | {methods[0].budget(total)}
    )
    every = [replace(method, keep=keep) for method in methods for keep in budgets]
    whole, *answers = ask(
        picture, question, every, network=network, own=own, label="asking for the page"
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        found.setdefault(answer.title, []).append(_step(answer))
    return page(
        {
            "question": question,
            "image": _embedded(seen(picture, network[1])),
            "grid": list(part.grid),
            "grids": _grids(first),
            "budgets": budgets,
            "start": budgets.index(methods[0].budget(total)),
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


def _part(answer: Answer) -> Any:
    assert answer.report is not None
    return answer.report.pictures[0][0]


def _grids(answer: Answer) -> int:
    assert answer.report is not None
    return len(answer.report.pictures[0])


def _step(answer: Answer) -> dict[str, Any]:
    """What a page shows of one answer: for each token how many stages it survived."""
    assert answer.report is not None
    part, stages = _part(answer), answer.report.stages()
    scores = None
    if part.scores is not None:
        values = np.nan_to_num(
            np.asarray(part.scores, dtype=np.float64), nan=np.nanmin(part.scores)
        )
        spread = float(np.ptp(values)) or 1.0
        scores = np.round(255 * (values - values.min()) / spread).astype(int).tolist()
    return {
        "stages": [[stage.after, int(stage.kept.sum())] for stage in stages],
        "survived": np.sum([stage.kept for stage in stages], axis=0, dtype=int).tolist(),
        "scores": scores,
        "answer": answer.text,
    }


def _embedded(picture: Image.Image) -> str:
    """The picture as a data URI, no larger than a page needs."""
    share = min(1.0, LONGEST / max(picture.size))
    if share < 1.0:
        picture = picture.resize([max(1, round(share * side)) for side in picture.size])
    told = io.BytesIO()
    picture.save(told, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(told.getvalue()).decode("ascii")
