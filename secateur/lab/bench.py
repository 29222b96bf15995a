"""Ask the lab's model with every method at every budget, and keep what it said.

A cell is one method at one budget: every question of the held-out scenes, and for each scene what
was kept when it was to be described. Cells are files of JSON; a run that was stopped does those
that are missing. `secateur.lab.findings` turns them into tables, pictures and answers to claims.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.acts import Shrinks
from secateur.core.arrays import to_numpy
from secateur.core.inputs import Tokens
from secateur.core.measures import attention_entropy, effective_rank, median, patch_entropy
from secateur.core.methods import Method, methods
from secateur.core.methods.erase import ERASE
from secateur.core.methods.sparsevlm import DEPTH, SparseVLM
from secateur.core.selection import Selection
from secateur.lab.answers import HELD_OUT, ask_all, prompt
from secateur.lab.objects import KINDS
from secateur.lab.questions import DESCRIBE, mentioned
from secateur.lab.scene import PATCH, Scene, scenes

ALL = "all tokens"
BUDGETS = (64, 36, 16)
SCENES = 100
SIDE = 12
"""Tokens of a scene's picture, on a side."""
USUAL_SEED = 2
"""Seed of the scenes whose mean complexity adaptive methods compare with."""

DEEP, LOOKS = 6, 3
"""Layers of the language model, and those after which the instruction looks at what it asks for."""

ROUNDED = ("features", "embeds", "keys", "attention", "attention_shallow")
"""What is rounded to bfloat16 to see which picks stay."""


@dataclass(frozen=True)
class Cell:
    """A method at a budget.

    Attributes
    ----------
    label
        What tables call it; a method's name, or what is different about it.
    method
        None for all tokens.
    """

    label: str
    method: Method | None = None

    @property
    def keep(self) -> int | None:
        """The budget, None for all tokens."""
        return None if self.method is None else int(self.method.keep)

    @property
    def file(self) -> str:
        """Where it is kept, within the folder of a run."""
        name = re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")
        return f"{name}.json" if self.keep is None else f"{name}-{self.keep}.json"


@dataclass(frozen=True)
class Lab:
    """The model that is asked, its processor, and the twin that reads instructions."""

    model: Any
    processor: Any
    encoder: Any

    @classmethod
    def load(cls) -> Lab:
        """The lab's own, on the CPU."""
        from transformers.utils import logging

        from secateur.lab.packaged import load, text_encoder

        logging.disable_progress_bar()
        return cls(*load(), text_encoder())


@dataclass(frozen=True)
class Usual:
    """What the lab's scenes are like on average; see `usual`.

    Attributes
    ----------
    erank
        Mean effective rank of their features.
    thresholds
        Quartiles of their complexity as `ERASE` measures it, highest first.
    """

    erank: float
    thresholds: tuple[float, ...]


def usual(lab: Lab, count: int = 64) -> Usual:
    """Measure scenes that are neither learnt nor asked."""
    import torch

    drawn = list(scenes(count, USUAL_SEED))
    inputs = lab.processor(
        images=[scene.image for scene in drawn], text=[prompt("")] * count, return_tensors="pt"
    )
    with torch.inference_mode():
        found = lab.model.get_image_features(pixel_values=inputs["pixel_values"])
    erank = float(effective_rank(torch.stack(list(found.pooler_output))).mean())
    pixels = np.stack([scene.image for scene in drawn])
    steps = np.quantile(median(patch_entropy(pixels, PATCH)), (0.75, 0.5, 0.25))
    return Usual(erank, tuple(steps.tolist()))


def fitted(method: Method, usually: Usual | Callable[[], Usual]) -> Method:
    """A method as it suits the lab.

    Patches of eight pixels; the scenes' own complexity, where none is given; and patches that
    are like a text where they show it, as the lab's twin was taught, while CLIP's own are like it
    where they do not (``sign=-1``, the default). Of this model's six layers three run before the
    instruction looks at what it asks for: ERASE prunes after three at the earliest, and SparseVLM
    after three, four and five, where its layers 3, 7 and 16 of 32 would come to 1 and 3.
    """
    known = {item.name for item in fields(method)}
    changes: dict[str, Any] = {"patch": PATCH, "sign": 1}
    published = ERASE()
    adapts = "mean_erank" in known and vars(method)["mean_erank"] is None
    erases = isinstance(method, ERASE) and method.thresholds == published.thresholds
    if isinstance(method, SparseVLM) and method.after == SparseVLM().after:
        changes["after"] = tuple(round(DEPTH * layer / DEEP) for layer in range(LOOKS, DEEP))
    if adapts or erases:
        usually = usually() if callable(usually) else usually
        if adapts:
            changes["mean_erank"] = usually.erank
        if erases:
            changes |= {"thresholds": usually.thresholds, "shallow": LOOKS}
    return replace(method, **{name: x for name, x in changes.items() if name in known})


def cells(names: Sequence[str], budgets: Sequence[int], usually: Usual) -> list[Cell]:
    """All tokens, then every method of the registry that is named, at every budget."""
    known = methods()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"methods: no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [
        Cell(ALL),
        *(
            Cell(name, fitted(known[name](keep=keep), usually))
            for name in names
            for keep in budgets
        ),
    ]


class Seen:
    """What a method was given and what it chose, image by image, while it is spied on."""

    def __init__(self) -> None:
        self.images: list[dict[str, float]] = []

    def spy(self, method: Method) -> Method:
        """The same method, which notes each choice here and repeats it on rounded inputs."""
        kind, note = type(method), self._note

        def choose_each(self: Any, images: Sequence[Tokens]) -> list[Selection]:
            chosen = kind.choose_each(self, images)
            again = kind.choose_each(self, [_rounded(each) for each in images])
            for each in zip(images, chosen, again, strict=True):
                note(*each)
            return chosen

        made = type(kind.__name__, (kind,), {"choose_each": choose_each})
        values = {item.name: getattr(method, item.name) for item in fields(method)}
        return made(**values)  # type: ignore[no-any-return]

    def _note(self, tokens: Tokens, chosen: Selection, again: Selection) -> None:
        picks = [_rows_of(each) for each in (chosen, again)]
        for image, one, other in zip(tokens.rows(), *picks, strict=True):
            features = to_numpy(image.features).astype(np.float64)
            attention = image.attention
            told = {
                "erank": float(effective_rank(features)),
                "erank_kept": float(effective_rank(features[one])),
                "stable": len(set(one) & set(other)) / len(one),
                "tokens": float(len(one)),
            }
            if attention is not None:
                told["entropy"] = float(attention_entropy(to_numpy(attention)))
            self.images.append(told)


def _rows_of(selection: Selection) -> list[list[int]]:
    indices = to_numpy(selection.indices)
    flat = indices.reshape(-1, indices.shape[-1]) if indices.ndim > 1 else indices[None]
    return [[int(i) for i in row if i >= 0] for row in flat]


def _rounded(tokens: Tokens) -> Tokens:
    """The same numbers as bfloat16 has them."""
    import torch

    def of(x: Any) -> Any:
        return x.to(torch.bfloat16).to(x.dtype)

    changes = {name: of(x) for name in ROUNDED if (x := getattr(tokens, name)) is not None}
    return tokens.with_(**changes)


def run_cell(lab: Lab, cell: Cell, drawn: Sequence[Scene]) -> dict[str, Any]:
    """Everything about a cell, as JSON holds it."""
    from contextlib import nullcontext

    from torch.utils.flop_counter import FlopCounterMode

    from secateur.integrations.attach import attach

    lab, shrunk = _shrinking(lab, cell.method)

    def attached(method: Method | None) -> Any:
        if shrunk is not None:
            return _at_any_size(lab.model)
        if method is None:
            return nullcontext()
        return attach(lab.model, method, lab.processor, lab.encoder)

    told: list[dict[str, Any]] = [{"right": {}, "asked": {}} for _ in drawn]
    place = {scene.index: n for n, scene in enumerate(drawn)}
    start = time.perf_counter()
    with attached(cell.method):
        for scene, question, said in ask_all(lab.model, lab.processor, drawn):
            kept = told[place[scene.index]]
            kind = question.kind
            kept["asked"][kind] = kept["asked"].get(kind, 0) + 1
            kept["right"][kind] = kept["right"].get(kind, 0) + int(said == question.answer)
            if question.kind == "caption":
                kept["chair"] = chair(said, scene)
        seconds = time.perf_counter() - start
    seen = Seen()
    spied = cell.method
    if spied is not None and spied.prunes_before:
        spied = seen.spy(spied)
    lengths: list[int] = []
    spent: list[int] = [] if shrunk is None else [shrunk]
    with attached(spied) as attachment:
        for first in range(0, len(drawn), 20):
            part = drawn[first : first + 20]
            images = [scene.image for scene in part]
            _prefill(lab, images)
            if attachment is not None:
                lengths.append(attachment.last.final_length)
                spent.extend(left_of(attachment.last))
        with FlopCounterMode(display=False) as counter:
            _prefill(lab, [drawn[0].image])
    for n, image in enumerate(seen.images[: len(drawn)]):
        told[n].update(image)
    return {
        "label": cell.label,
        "keep": cell.keep,
        "method": None if cell.method is None else cell.method.to_dict(),
        "prompt": float(np.mean(lengths)) if lengths else None,
        "spent": float(np.mean(spent)) if spent else None,
        "megaflops": counter.get_total_flops() / 1e6,
        "seconds": seconds,
        "scenes": [
            {**each, "index": scene.index, "complexity": scene.complexity}
            for scene, each in zip(drawn, told, strict=True)
        ],
    }


@dataclass(frozen=True)
class _Smaller:
    """A processor that gets pictures as a method makes them, and leaves them so."""

    processor: Any
    method: Shrinks

    def __call__(self, images: Sequence[Any], **more: Any) -> Any:
        made = [self.method.shrink(np.asarray(image), (SIDE, SIDE)) for image in images]
        return self.processor(images=made, do_resize=False, do_center_crop=False, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


def _shrinking(lab: Lab, method: Method | None) -> tuple[Lab, int | None]:
    """The lab with pictures made smaller, where a method does that, and their tokens then."""
    if not isinstance(method, Shrinks):
        return lab, None
    h, w = method.shrunken_grid((SIDE, SIDE))
    return replace(lab, processor=_Smaller(lab.processor, method)), h * w


@contextmanager
def _at_any_size(model: Any) -> Iterator[None]:
    """Let the tower take pictures of other sizes, with positions between those it knows."""

    def add(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "interpolate_pos_encoding": True}

    from secateur.integrations.observing import watching

    with watching() as watch:
        watch.before(model.model.vision_tower, add)
        yield


def left_of(report: Any) -> list[int]:
    """How many visual tokens each prompt of one image had in the end."""
    counts = [len(kept) for kept in report.kept]
    for prompt_number, cuts in enumerate(report.inside):
        for _, columns in cuts:
            counts[prompt_number] = min(counts[prompt_number], len(columns))
    return counts


def _prefill(lab: Lab, images: Sequence[Any]) -> None:
    import torch

    inputs = lab.processor(
        images=list(images), text=[prompt(DESCRIBE)] * len(images), return_tensors="pt"
    )
    with torch.no_grad():
        lab.model(**inputs, use_cache=True, logits_to_keep=1)


def chair(caption: str, scene: Scene) -> dict[str, int]:
    """Counts for CHAIR: objects named, those of them that are not there, those there and named.

    Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018.
    """
    named = mentioned(caption)
    there = {thing.phrase for thing in scene.objects}
    return {
        "named": len(named),
        "invented": sum(name not in there for name in named),
        "found": len(there & set(named)),
        "there": len(there),
    }


def missing(folder: Path, planned: Sequence[Cell]) -> list[Cell]:
    """The cells that `folder` does not have."""
    return [cell for cell in planned if not (folder / "cells" / cell.file).exists()]


def settings(scene_count: int) -> dict[str, Any]:
    """What every cell of a run has in common."""
    return {"scenes": scene_count, "seed": HELD_OUT, "kinds": list(KINDS)}


def open_run(folder: Path, scene_count: int) -> None:
    """Make the folder of a run, or refuse one that was begun with other scenes."""
    open_folder(folder, settings(scene_count))


def open_folder(folder: Path, mine: Mapping[str, Any]) -> None:
    """Make a folder for cells that have `mine` in common, or refuse one of others."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    if path.exists() and json.loads(path.read_text("utf-8")) != mine:
        raise ValueError(
            f"{folder} holds a run of other scenes; give another folder, or delete this one"
        )
    path.write_text(json.dumps(mine, indent=1) + "\n", "utf-8")


def run(
    folder: Path,
    planned: Sequence[Cell],
    scene_count: int = SCENES,
    *,
    lab: Lab | None = None,
    done: Callable[[Cell], None] = lambda cell: None,
) -> None:
    """Do the cells that are missing in `folder`, one after the other."""
    open_run(folder, scene_count)
    todo = missing(folder, planned)
    if not todo:
        return
    lab = lab or Lab.load()
    drawn = list(scenes(scene_count, HELD_OUT))
    for cell in todo:
        write_cell(folder, cell, run_cell(lab, cell, drawn))
        done(cell)


def run_on_ray(
    folder: Path,
    planned: Sequence[Cell],
    scene_count: int = SCENES,
    *,
    done: Callable[[Cell], None] = lambda cell: None,
) -> None:
    """The same with every missing cell as a task of Ray, one core each.

    Workers send what they found back, so only this process needs `folder`.
    """
    import ray

    open_run(folder, scene_count)
    todo = missing(folder, planned)
    if todo and not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)

    def task(cell: Cell) -> tuple[Cell, dict[str, Any]]:
        import torch

        torch.set_num_threads(1)
        return cell, run_cell(Lab.load(), cell, list(scenes(scene_count, HELD_OUT)))

    spread = ray.remote(num_cpus=1)(task)
    waiting = [spread.remote(cell) for cell in todo]
    while waiting:
        ready, waiting = ray.wait(waiting)
        for cell, found in ray.get(ready):
            write_cell(folder, cell, found)
            done(cell)


def write_cell(folder: Path, cell: Cell, found: Mapping[str, Any]) -> None:
    """Keep what was found; a file that is there is whole."""
    path = folder / "cells" / cell.file
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found) + "\n", "utf-8")
    os.replace(part, path)


def results(folder: Path, planned: Sequence[Cell] | None = None) -> Iterator[dict[str, Any]]:
    """The cells of a run, in the order planned, or all by name."""
    names = (
        sorted(path.name for path in (folder / "cells").glob("*.json"))
        if planned is None
        else [cell.file for cell in planned]
    )
    for name in names:
        yield json.loads((folder / "cells" / name).read_text("utf-8"))
