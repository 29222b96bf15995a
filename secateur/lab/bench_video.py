"""Ask the lab's model that watches with every method at every budget, and keep what it said.

Cells, runs that go on and intervals are those of `secateur.lab.bench`. A budget is so many tokens
of each frame; a method spends T times that wherever in the video it likes. Methods for videos see
all frames; methods for images take each frame by itself, or as `over` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.acts import acts_inside
from secateur.core.measures import effective_rank
from secateur.core.methods import Method, methods
from secateur.core.methods.vidcom2 import VidCom2
from secateur.core.methods.video import VideoMethod
from secateur.core.selection import Selection
from secateur.lab.answers import HELD_OUT
from secateur.lab.bench import (
    ALL,
    USUAL_SEED,
    Cell,
    Usual,
    fitted,
    left_of,
    missing,
    open_folder,
    write_cell,
)
from secateur.lab.clip import FRAMES, Clip, clips
from secateur.lab.watched import WATCHED, ClipQuestion
from secateur.lab.watcher import POOLED, watch_all

BUDGETS = (9, 4, 2)
"""Tokens of a frame of 36: 25, 11 and 6 percent, the whole numbers nearest to 25, 10 and 5."""
CLIPS = 60
UNFIT = frozenset({"downsample", "erase", "idpruner", "pixelprune", "tome", "visionselector"})
"""Methods that change or read pixels, fold inside the tower, or need weights the lab has not."""


@dataclass(frozen=True)
class Eyes:
    """The model that watches, its tokeniser, and the twin that reads instructions."""

    model: Any
    reader: Any
    encoder: Any

    @classmethod
    def load(cls) -> Eyes:
        """The lab's own, on the CPU. The twin has the tower of the model for pictures, too."""
        from transformers.utils import logging

        from secateur.lab.packaged import load_watcher, text_encoder

        logging.disable_progress_bar()
        return cls(*load_watcher(), text_encoder())


def usual_frames(eyes: Eyes, count: int = 16) -> Usual:
    """Measure frames of clips that are neither learnt nor asked."""
    import torch

    from secateur.lab.watcher import inputs

    drawn = [clip.images for clip in clips(count, USUAL_SEED)]
    pixels = inputs(eyes.reader, drawn, [""] * count)["pixel_values_videos"]
    with torch.inference_mode():
        found = eyes.model.get_video_features(pixel_values_videos=pixels)
    tokens = found.pooler_output[:, : FRAMES * POOLED].reshape(count * FRAMES, POOLED, -1)
    return Usual(float(effective_rank(tokens).mean()), ())


def named(only: Sequence[str] | None) -> list[str]:
    """The methods to measure, those for videos first.

    Methods that cut inside the language model are left out: they know prompts, not frames.
    """
    known = methods()
    fit = [
        name
        for name in sorted(known)
        if name not in UNFIT and known[name].prunes_before and not acts_inside(known[name]())
    ]
    if unfit := [name for name in only or () if name not in fit]:
        raise ValueError(
            f"methods: {unfit[0]} is not measured on clips; {', '.join(fit)} can be, which choose "
            "before the language model and from what it is given there"
        )
    names = fit if only is None else only
    return sorted(names, key=lambda name: not issubclass(known[name], VideoMethod))


def cells(names: Sequence[str], budgets: Sequence[int], usually: Usual) -> list[Cell]:
    """All tokens, then every method named at every budget of tokens a frame."""
    known = methods()
    return [
        Cell(ALL),
        *(
            Cell(name, fitted(known[name](keep=keep), usually))
            for name in names
            for keep in budgets
        ),
    ]


class _Dropping:
    """What a method keeps, and nothing folded into it."""

    def choose(self, tokens: Any, k: int) -> Selection:
        """As the method chooses, what is folded left out."""
        found: Selection = super().choose(tokens, k)  # type: ignore[misc]
        return replace(found, folded=None, fold_weights=None, shares=None)


def dropping(method: Method) -> Method:
    """The same method, which drops what it would merge."""
    kind = type(method)
    made = type(kind.__name__, (_Dropping, kind), {})
    values = {item.name: getattr(method, item.name) for item in fields(method)}
    return made(**values)  # type: ignore[no-any-return]


MERGING = ("fastvid", "flashvid", "holitom")
SPREAD = ("divprune", "topk")
"""Methods for images whose budgets are spread over time in three ways."""


def variants(budgets: Sequence[int], usually: Usual) -> list[Cell]:
    """Merging methods that drop instead, and budgets that follow a clip's changes or do not."""
    known = methods()
    made = []
    for keep in budgets:
        made += [Cell(f"{name}, dropping", dropping(known[name](keep=keep))) for name in MERGING]
        made.append(Cell("vidcom2, even", VidCom2(keep=keep, temperature=1e6)))
        for name in SPREAD:
            even = fitted(known[name](keep=keep), usually)
            made.append(Cell(f"{name}, by change", replace(even, over="change")))
            made.append(Cell(f"{name}, one pool", replace(even, over="video")))
    return made


def reads(method: Method) -> bool:
    """Whether what it keeps depends on what is asked."""
    return bool({"text", "text_global"} & (method.needs | method.optional))


Said = tuple[Clip, ClipQuestion, str, float | None]


def said_of(eyes: Eyes, method: Method | None, drawn: Sequence[Clip]) -> Iterator[Said]:
    """Every clip, question, what was said, and how many visual tokens were left."""
    from secateur.integrations.attach import attach

    if method is None:
        for clip, question, said in watch_all(eyes.model, eyes.reader, drawn):
            yield clip, question, said, None
    elif reads(method):
        with attach(eyes.model, method, eyes.reader, eyes.encoder) as attachment:
            for clip in drawn:
                for _, question, said in watch_all(eyes.model, eyes.reader, [clip]):
                    left = np.mean(left_of(attachment.last)) - 1  # the newline always stays
                    yield clip, question, said, float(left)
    else:
        for clip in drawn:
            yield from _said_at_once(eyes, method, clip)


def _said_at_once(eyes: Eyes, method: Method, clip: Clip) -> Iterator[Said]:
    """Choose once, and put every question behind what was kept; as if attached."""
    import torch

    from secateur.integrations.attach import prune_inputs
    from secateur.lab.watcher import LONGEST, inputs

    whole = inputs(eyes.reader, [clip.images], [""])
    before = whole["input_ids"].shape[1]
    with torch.no_grad():
        kept = prune_inputs(eyes.model, whole, method, eyes.reader, eyes.encoder)
        texts = [question.text for question in clip.questions]
        words = eyes.reader(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        many, real = len(texts), words["attention_mask"]
        visual, places = kept["inputs_embeds"], kept["position_ids"]
        # Padding stands between what was kept and the question, where nobody looks.
        out = eyes.model.generate(
            inputs_embeds=torch.cat(
                [
                    visual.expand(many, -1, -1),
                    eyes.model.get_input_embeddings()(words["input_ids"]),
                ],
                dim=1,
            ),
            attention_mask=torch.cat(
                [torch.ones(many, visual.shape[1], dtype=real.dtype), real], dim=1
            ),
            position_ids=torch.cat(
                [places.expand(many, -1), before + (real.cumsum(dim=1) - 1).clamp(min=0)], dim=1
            ),
            max_new_tokens=LONGEST,
            do_sample=False,
        )
    told = eyes.reader.batch_decode(out, skip_special_tokens=True)
    for question, said in zip(clip.questions, told, strict=True):
        yield clip, question, said.strip(), float(visual.shape[1] - 2)


def run_cell(eyes: Eyes, cell: Cell, drawn: Sequence[Clip]) -> dict[str, Any]:
    """Everything about a cell, as JSON holds it."""
    told: list[dict[str, Any]] = [
        {"index": clip.index, "right": {}, "asked": {}, "brief": [0, 0], "lasting": [0, 0]}
        for clip in drawn
    ]
    place = {clip.index: n for n, clip in enumerate(drawn)}
    spent: dict[int, float] = {}
    start = time.process_time()
    for clip, question, said, left in said_of(eyes, cell.method, drawn):
        each, kind, right = told[place[clip.index]], question.kind, said == question.answer
        each["asked"][kind] = each["asked"].get(kind, 0) + 1
        each["right"][kind] = each["right"].get(kind, 0) + int(right)
        if kind in ("reading", "when"):
            span = each["brief" if question.brief else "lasting"]
            span[0] += int(right)
            span[1] += 1
        if left is not None:
            spent[clip.index] = left
    return {
        "label": cell.label,
        "keep": cell.keep,
        "method": None if cell.method is None else cell.method.to_dict(),
        "spent": float(np.mean(list(spent.values()))) if spent else None,
        "seconds": time.process_time() - start,
        "scenes": told,
    }


def run(
    folder: Path,
    planned: Sequence[Cell],
    count: int = CLIPS,
    *,
    eyes: Eyes | None = None,
    done: Callable[[Cell], None] = lambda cell: None,
) -> None:
    """Do the cells that are missing in `folder`, one after the other."""
    open_folder(folder, {"clips": count, "seed": HELD_OUT, "kinds": list(WATCHED)})
    todo = missing(folder, planned)
    if not todo:
        return
    eyes = eyes or Eyes.load()
    drawn = list(clips(count, HELD_OUT))
    for cell in todo:
        write_cell(folder, cell, run_cell(eyes, cell, drawn))
        done(cell)
