"""Ask the lab's model about a scene with all tokens and with few: ``python -m secateur.demo``.

The three papers' methods choose 16 of the 144 tokens. What each kept and what the model then says
is drawn on one sheet; how often each is right on more scenes is counted. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from PIL import Image

import secateur as sc
from secateur import lab
from secateur.app.ask import Answer, ask, drawn, loaded
from secateur.app.progress import progress, saying
from secateur.integrations.attach import attach
from secateur.lab.bench import Lab, fitted, usual

SCENE = 14
"""Which of the held-out scenes: crowded, with a label, on a striped ground."""

COUNTED = ("colour", "shape", "existence", "count", "reading")
"""Kinds of questions counted on further scenes."""


def scene() -> lab.Scene:
    """The scene that is asked about."""
    return next(lab.scenes(1, lab.HELD_OUT, start=SCENE))


def question(of: lab.Scene) -> lab.Question:
    """What to ask of it: to read its label, or the first question there is."""
    return next((each for each in of.questions if each.kind == "reading"), of.questions[0])


def methods(keep: int) -> list[sc.Method]:
    """The three papers' own."""
    return [sc.EADP(keep=keep), sc.AgilePruner(keep=keep), sc.ERASE(keep=keep)]


def right(keep: int, scenes: int) -> list[tuple[str, int, int]]:
    """How many questions on further scenes are answered right: method, right, asked."""
    network, processor, pair = loaded(None, None)
    usually = usual(Lab(network, processor, pair))
    over = list(lab.scenes(scenes, lab.HELD_OUT))
    found = []
    ways = (None, *methods(keep))
    with progress(len(ways) * scenes, f"counting on {scenes} scenes") as done:
        for method in ways:
            within = (
                nullcontext()
                if method is None
                else attach(network, fitted(method, usually), processor, pair)
            )
            told, number = [], -1
            with within:
                for scene, asked, said in lab.ask_all(network, processor, over):
                    if asked.kind in COUNTED:
                        told.append(said == asked.answer)
                    if scene.index != number:
                        number = scene.index
                        done()
            title = "all tokens" if method is None else type(method).__name__
            found.append((title, sum(told), len(told)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, say what was answered, write the picture."""
    parser = argparse.ArgumentParser(prog="python -m secateur.demo", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=Path("demo.png"))
    parser.add_argument("--keep", type=int, default=16, help="tokens to keep (%(default)s)")
    parser.add_argument("--scenes", type=int, default=20, help="scenes to count on (%(default)s)")
    given = parser.parse_args(arguments)
    if not 1 <= given.keep <= 144:
        parser.error(f"--keep: the model has 144 visual tokens, got {given.keep}")

    asked = question(scene())
    picture = Image.fromarray(scene().image)
    saying("loading the model, compiling what is compiled once")
    answers: list[Answer] = ask(picture, asked.text, methods(given.keep))
    print(
        f"secateur {sc.__version__} asks a small LLaVA: {asked.text!r} Right is {asked.answer!r}."
    )
    for answer in answers:
        left = "144 tokens" if answer.report is None else answer.left
        print(f"  {answer.title:12} {left:36} {answer.milliseconds:5.0f} ms  {answer.text!r}")
    drawn(picture, answers, asked.text).save(given.output, optimize=True)
    if given.scenes > 0:
        print(f"Right answers on {given.scenes} scenes it has never seen:")
        for title, hits, count in right(given.keep, given.scenes):
            print(f"  {title:12} {hits:4} of {count}, {hits / count:4.0%}")
    print(f"Wrote {given.output}: the scene, and what each method kept of it.")


if __name__ == "__main__":
    main()
