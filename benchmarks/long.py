"""Every method that chooses from arrays, on a video of eight thousand tokens.

    python benchmarks/long.py --write

writes docs/benchmarks/long.md: 42 frames of 196 tokens, a sixteenth of which is kept,
frame by frame and of all frames as one pool of tokens (`over="video"`), as arrays and as tensors
of the CPU, in turns; and the memory that a choice takes above its inputs.
"""

from __future__ import annotations

import argparse
import tracemalloc

import numpy as np
import torch
from machine import DOCS, described, interleaved, medians, spelled
from suite.images import photo_like, relevance_like
from suite.selecting import PARAMETERS
from video import TOKENS, WIDTH, clip

import secateur as sc

FRAMES, SIDE, WORDS = 42, 14, 20
SHARE, EACH = 1 / 16, 12
"""What is kept: a share of the video, or so many tokens of each frame."""
N = FRAMES * TOKENS


def inputs() -> dict[str, np.ndarray]:
    """One video's."""
    dice = np.random.default_rng(0)
    words = photo_like(WORDS, WIDTH, seed=900)
    return {
        **clip(FRAMES),
        "embeds": clip(FRAMES, 1)["features"],
        "states": clip(FRAMES, 2)["features"],
        "keys": photo_like(N, 64, seed=300),
        "attention_shallow": relevance_like(N, seed=500),
        "importance": relevance_like(N, seed=600),
        "text": words,
        "text_global": words.mean(axis=0),
        "class_state": dice.standard_normal(WIDTH).astype(np.float32),
    }


class Choice:
    """One method's choice from the video, frame by frame or as one pool."""

    def __init__(self, name: str, given: dict[str, np.ndarray], over: str, rounds: int) -> None:
        keep = SHARE if over == "video" else EACH
        method = sc.method(name, keep=keep, over=over, **PARAMETERS.get(name, {}))
        wanted = (method.needs | method.optional | {"features"}) & set(given)
        own = {key: x for key, x in given.items() if key in wanted}
        place = {"grid": (SIDE, SIDE), "frames": FRAMES}
        arrays = sc.Tokens(**own, **place)
        tensors = sc.Tokens(**{key: torch.from_numpy(x) for key, x in own.items()}, **place)
        one, other = method.select(arrays), method.select(tensors)
        self.same = np.array_equal(np.sort(one.indices), np.sort(np.asarray(other.indices)))
        runs = {"arrays": lambda: method.select(arrays), "tensors": lambda: method.select(tensors)}
        # What takes milliseconds is done more often: a pause of another process is as long.
        once = min(medians(interleaved(runs, 1)).values())
        times = medians(interleaved(runs, max(rounds, min(25, int(0.5 / once)))))
        tracemalloc.start()
        method.select(arrays)
        self.memory = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        self.seconds, self.ratio = times["arrays"], times["tensors"] / times["arrays"]

    def __str__(self) -> str:
        """Its cells."""
        others = "" if self.same else ", others kept"
        return f"{spelled(self.seconds)}, {self.memory:.0f} MiB | {self.ratio:.2f}{others}"


def line(name: str, given: dict[str, np.ndarray], rounds: int) -> str | None:
    """A row of the table; None of a method that does not choose from these."""
    cells = []
    for over in ("frame", "video"):
        try:
            cells.append(str(Choice(name, given, over, rounds)))
        except ValueError:
            cells.append("- | -")
    return f"| {name} | {' | '.join(cells)} |" if any("s, " in cell for cell in cells) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("methods", nargs="*", default=sorted(sc.methods()))
    asked = parser.parse_args()
    sc.warm_up(shapes=[(N, WIDTH)])
    given = inputs()
    x = given["features"]
    product = medians(interleaved({"product": lambda: x @ x.T}, 5))["product"]
    lines = [
        "| method | by frame | tensors | as one | tensors |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    print(f"one product: {spelled(product)}", *lines, sep="\n")
    for name in asked.methods:
        found = line(name, given, asked.rounds)
        if found is not None:
            lines.append(found)
            print(found, flush=True)
    if asked.write:
        page = [
            "# A video of eight thousand tokens",
            "",
            "Measured by `python benchmarks/long.py --write`:",
            described("secateur", "numpy", "numba", "scipy", "torch"),
            "",
            f"{FRAMES} frames of {TOKENS} tokens of {WIDTH} numbers, one instruction of {WORDS}",
            f"tokens, float32; {EACH} tokens of each frame kept, and {SHARE:.1%} of all frames'",
            'tokens as one pool (`over="video"`): medians, all threads, of arrays, and as how many',
            "times as long tensors take. Memory is what a choice takes above its inputs, as",
            "`tracemalloc` sees it. A product of all tokens with themselves in float32, of which",
            f"the library that multiplies takes half, is {spelled(product)} here, and a matrix of",
            f"all pairs {4 * N * N / 2**20:.0f} MiB. Without a time is who takes whole videos,",
            "or works from the grid of a frame.",
            "",
            *lines,
            "",
        ]
        (DOCS / "benchmarks" / "long.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
