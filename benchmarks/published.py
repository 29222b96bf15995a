"""How much it matters what our defaults do otherwise: ``python benchmarks/published.py [FOLDER]``.

Asks the lab's model the same held-out questions with our default and with one thing, or all, as
the authors' program has it, at 36 and 16 of 144 tokens. A difference is paired, question by
question; its interval holds 95 of 100 bootstrap samples of scenes. What was asked is kept in
FOLDER, ``build/published`` unless another is given, and a run that was stopped goes on there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import described

import secateur as sc
from secateur.core.acts import Cut, Sight, Stay
from secateur.core.attention import best
from secateur.integrations.attach import attach
from secateur.lab import HELD_OUT, Scene, ask_all, bench, scenes
from secateur.lab.claims import SCORED, interval

BUDGETS = (36, 16)
SCENES = 60


class LooksBehind(sc.PyramidDrop):
    """Scores of the layer that has just run, as in 0.1."""

    looks_ahead = False


class AskedByTheLast(sc.PyramidDrop):
    """Asked by the last token of the prompt."""

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        return super().decide(cut, replace(sight, text=sight.others()))


class Renumbers(sc.PyramidDrop):
    """Positions start again after every cut."""

    renumbers = True


class LeavesCaches(sc.PyramidDrop):
    """Layers that ran before a cut keep all in their caches."""

    shortens_caches = False


class AllAsk(sc.ERASE):
    """All but the image asks, with queries of the states that entered, without the norm."""

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        asked = sight.attention(sight.others(), sight.ask(sight.entered))
        return Stay(best(asked, cut.keep))


class Form(NamedTuple):
    """A method at work, and where kept tokens stand."""

    method: sc.Method
    positions: str | None = None

    @property
    def label(self) -> str:
        told = f"{self.method!r}, {self.positions}"
        return f"{type(self.method).__name__} {told}"


class Difference(NamedTuple):
    """One thing that two forms of a method do otherwise."""

    name: str
    tokens: str
    what: str
    ours: Form
    theirs: Form


def differences(usually: bench.Usual) -> Iterator[Difference]:
    """Those that the lab's model can tell of, one after the other."""
    for name, kind in (("prumerge", sc.PruMerge), ("prumerge_plus", sc.PruMergePlus)):
        ours, theirs = kind(keep=1.0, adaptive=True), sc.published(name)
        yield Difference(name, "outliers", "positions 0, 1, ...", Form(ours), Form(ours, "compact"))
        merging = "takes in the 32 nearest, before the projector"
        yield Difference(name, "outliers", merging, Form(ours, "compact"), Form(theirs))
    for keep in BUDGETS:
        for row in (*before(keep), *inside(keep)):
            ours, theirs = (
                Form(bench.fitted(form.method, usually), form.positions)
                for form in (row.ours, row.theirs)
            )
            yield row._replace(ours=ours, theirs=theirs)


def before(keep: int) -> Iterator[Difference]:
    """Methods that choose before the language model."""
    rest = {
        "eadp": "every position of the text's window scores",
        "cdpruner": "",
        "divprune": "",
        "hiprune": "",
        "vispruner": "duplicates before the projector",
        "visionzip": "a class token, merging before the projector",
    }
    for name, what in rest.items():
        ours, tokens = Form(sc.method(name, keep=keep)), str(keep)
        compact = ours._replace(positions="compact")
        yield Difference(name, tokens, "positions 0, 1, ...", ours, compact)
        if what:
            yield Difference(name, tokens, what, compact, Form(sc.published(name, keep=keep)))


def inside(keep: int) -> Iterator[Difference]:
    """Methods that drop tokens between layers."""
    tokens = str(keep)
    fastv = Form(sc.FastV(keep=keep))
    published = Form(sc.published("fastv", keep=keep))
    yield Difference("fastv", tokens, "earlier caches stay whole", fastv, published)
    drop = Form(sc.PyramidDrop(keep=keep))
    for what, theirs in (
        ("nobody's: scores of the layer before, as in 0.1", LooksBehind(keep=keep)),
        ("asked by the prompt's last token", AskedByTheLast(keep=keep)),
        ("positions start again", Renumbers(keep=keep)),
        ("earlier caches stay whole", LeavesCaches(keep=keep)),
        ("all of it", sc.published("pyramiddrop", keep=keep)),
    ):
        yield Difference("pyramiddrop", tokens, what, drop, Form(theirs))
    limit = sc.SparseVLM(keep=keep, count="limit")
    yield Difference(
        "sparsevlm", tokens, "limits for counts", Form(sc.SparseVLM(keep=keep)), Form(limit)
    )
    for version, what in (("1.0", "1.0: folds some"), ("2.0", "2.0: heads, rotary norm")):
        other = Form(replace(limit, version=version))
        yield Difference("sparsevlm", tokens, what, Form(limit), other)
    asks = "all but the image asks, without the norm"
    yield Difference("erase", tokens, asks, Form(sc.ERASE(keep=keep)), Form(AllAsk(keep=keep)))


def right(lab: bench.Lab, form: Form, drawn: Sequence[Scene], folder: Path) -> np.ndarray:
    """Right answers and questions of each scene (S, 2)."""
    path = folder / "answers.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if form.label not in known:
        place = {scene.index: n for n, scene in enumerate(drawn)}
        told = np.zeros((len(drawn), 2), dtype=int)
        with attach(lab.model, form.method, lab.processor, lab.encoder, form.positions):
            for scene, question, said in ask_all(lab.model, lab.processor, drawn):
                told[place[scene.index]] += (said == question.answer, 1)
        known[form.label] = told.tolist()
        part = path.with_suffix(".part")
        part.write_text(json.dumps(known) + "\n", "utf-8")
        part.replace(path)
    return np.array(known[form.label], dtype=np.float64)


def main(folder: Path = Path("build/published")) -> None:
    """Print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    lab = bench.Lab.load()
    drawn = [
        replace(scene, questions=tuple(q for q in scene.questions if q.kind in SCORED))
        for scene in scenes(SCENES, HELD_OUT)
    ]
    asked = sum(len(scene.questions) for scene in drawn)
    print(f"{asked} questions about {SCENES} held-out scenes.")
    print(described("secateur", "torch", "transformers"))
    print("\n| method | tokens | theirs | right, ours | theirs less ours |")
    print("| --- | ---: | --- | ---: | ---: |")
    for row in differences(bench.usual(lab)):
        a, b = (right(lab, form, drawn, folder) for form in (row.ours, row.theirs))

        def gained(w: np.ndarray, a: np.ndarray = a, b: np.ndarray = b) -> np.ndarray:
            return 100 * (w @ (b - a)[:, 0]) / (w @ a[:, 1])

        more, low, high = interval(gained, len(drawn))
        share = 100 * a[:, 0].sum() / a[:, 1].sum()
        told = f"{more:+.1f} ({low:+.1f} to {high:+.1f})"
        print(f"| `{row.name}` | {row.tokens} | {row.what} | {share:.1f} | {told} |", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
