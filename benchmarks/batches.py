"""Many images in one call beside as many calls, for every method that chooses from arrays.

    python benchmarks/batches.py --write

writes docs/benchmarks/batches.md: 64 images of 576 tokens in one call, as arrays and as tensors of
the CPU, and in 64 calls, in turns; how many picks are the same; and the memory that one call takes
above its inputs.
"""

from __future__ import annotations

import argparse
import tracemalloc
from typing import Any

import numpy as np
import torch
from machine import DOCS, described, interleaved, medians, spelled
from suite.images import photo_like, relevance_like
from suite.selecting import PARAMETERS

import secateur as sc

IMAGES, SIDE, WIDTH, KEEP, WORDS = 64, 24, 384, 64, 20
N = SIDE * SIDE


def inputs() -> dict[str, np.ndarray]:
    """What every image has its own of."""
    dice = np.random.default_rng(0)

    def features(width: int, first: int) -> np.ndarray:
        return np.stack([photo_like(N, width, seed=first + image) for image in range(IMAGES)])

    def scores(first: int) -> np.ndarray:
        return np.stack([relevance_like(N, seed=first + image) for image in range(IMAGES)])

    words = np.stack([photo_like(WORDS, WIDTH, seed=900 + image) for image in range(IMAGES)])
    return {
        "features": features(WIDTH, 0),
        "embeds": features(WIDTH, 100),
        "states": features(WIDTH, 200),
        "keys": features(64, 300),
        "attention": scores(400),
        "attention_shallow": scores(500),
        "importance": scores(600),
        "text": words,
        "text_global": words.mean(axis=1),
        "class_state": dice.standard_normal((IMAGES, WIDTH)).astype(np.float32),
        "pixels": dice.integers(0, 256, (IMAGES, SIDE * 14, SIDE * 14, 3), dtype=np.uint8),
    }


def same(batch: Any, alone: list[Any]) -> str:
    """How many images have the same picks in both ways."""
    equal = sum(
        np.array_equal(np.asarray(row)[: int(one.count)], np.asarray(one.indices))
        for row, one in zip(batch.indices, alone, strict=True)
    )
    return "all" if equal == len(alone) else f"{equal} of {len(alone)}"


def line(name: str, given: dict[str, np.ndarray], rounds: int) -> str | None:
    """A row of the table; None of a method that does not choose from these."""
    try:
        method = sc.method(name, keep=KEEP, **PARAMETERS.get(name, {}))
    except ValueError:
        return None
    wanted = (method.needs | method.optional | {"features"}) & set(given)
    own = {key: x for key, x in given.items() if key in wanted}
    batch = sc.Tokens(**own, grid=(SIDE, SIDE))
    lent = sc.Tokens(**{k: torch.from_numpy(x) for k, x in own.items()}, grid=(SIDE, SIDE))
    each = [
        sc.Tokens(**{key: x[image] for key, x in own.items()}, grid=(SIDE, SIDE))
        for image in range(IMAGES)
    ]
    try:
        alone = [method.select(one) for one in each]
    except ValueError:
        return None
    times = medians(
        interleaved(
            {
                "call": lambda: method.select(batch),
                "calls": lambda: [method.select(one) for one in each],
                "tensors": lambda: method.select(lent),
            },
            rounds,
        )
    )
    tracemalloc.start()
    chosen = method.select(batch)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    one, many, tensors = (times[key] / IMAGES for key in ("call", "calls", "tensors"))
    return (
        f"| {name} | {spelled(one)} | {spelled(many)} | {one / many:.2f} | {tensors / one:.2f} "
        f"| {peak:.0f} MiB | {same(chosen, alone)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("methods", nargs="*", default=sorted(sc.methods()))
    asked = parser.parse_args()
    sc.warm_up(shapes=[(N, WIDTH)])
    given = inputs()
    lines = [
        "| method | one call | 64 calls | ratio | tensors by arrays | memory | same picks |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    print("\n".join(lines))
    for name in asked.methods:
        found = line(name, given, asked.rounds)
        if found is not None:
            lines.append(found)
            print(found, flush=True)
    if asked.write:
        page = [
            "# Many images in one call",
            "",
            "Measured by `python benchmarks/batches.py --write`:",
            described("secateur", "numpy", "numba", "scipy", "torch"),
            "",
            f"{IMAGES} images of {N} tokens of {WIDTH} numbers, an instruction of {WORDS} tokens",
            f"each, {KEEP} tokens kept, float32, in one call and in {IMAGES}, in turns: medians",
            "for an image, all threads. Memory is what one call takes above its inputs, as",
            "`tracemalloc` sees it.",
            "",
            *lines,
            "",
            "Where all pairs of tokens are worked out, a call takes a few images at a time",
            "(`Method.in_parts`): arrays of all pairs of all images at once fit no cache, and",
            "memory for them is found anew at each step.",
            "",
        ]
        (DOCS / "benchmarks" / "batches.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
