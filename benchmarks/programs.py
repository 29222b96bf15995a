"""MMTok and OTPrune beside their programs' own greedy, on the same arrays.

    OMP_NUM_THREADS=1 python benchmarks/programs.py --write

writes docs/benchmarks/programs.md. The programs' greedy is written here in plain torch from its
formulas: MMTok works out all gains from the whole matrices at every pick, OTPrune builds the whole
kernel and goes on by incremental Cholesky. Everybody begins with features and ends with picks;
contestants take turns, one thread each, and the table gives medians of processor time. It stops if
the values of the sets differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from machine import DOCS, described, interleaved, keep_temporaries, medians, spelled
from suite.images import photo_like

import secateur as sc

SIZES = ((576, 64), (2304, 256))
WIDTH, WORDS = 1024, 24
THEIRS = "the program's greedy"
MMTOK = sc.MMTok()
GAMMA = sc.OTPrune().gamma


def tokens_of(n: int) -> sc.Tokens:
    """Tokens of a picture, and words that are like some of them."""
    random = np.random.default_rng(1)
    features = photo_like(n, WIDTH).astype(np.float32)
    named = features[random.integers(0, n, WORDS)]
    noise = random.normal(size=named.shape) * named.std()
    return sc.Tokens(features=features, states=features, text=(named + noise).astype(np.float32))


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-8)


def likenesses(features: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """MMTok's two matrices: words over tokens, and tokens over tokens."""
    x, t = unit(features), unit(text)
    words = (t @ x.T / MMTOK.text_temperature).softmax(dim=1)
    return words, (x @ x.T / MMTOK.temperature).softmax(dim=1)


def covering(words: torch.Tensor, image: torch.Tensor, k: int) -> list[int]:
    """MMTok's greedy: the gains of all candidates from both matrices at every pick."""
    best = torch.zeros(len(words)), torch.zeros(len(image))
    picks: list[int] = []
    for _ in range(k):
        gains = (words - best[0][:, None]).clamp(min=0).mean(dim=0)
        gains = gains + MMTOK.alpha * (image - best[1][:, None]).clamp(min=0).mean(dim=0)
        gains[picks] = -torch.inf
        pick = int(gains.argmax())
        best = torch.maximum(best[0], words[:, pick]), torch.maximum(best[1], image[:, pick])
        picks.append(pick)
    return picks


def otprune(features: torch.Tensor, k: int) -> list[int]:
    """The whole kernel, then one row of its Cholesky factor a pick."""
    z = features / features.norm(dim=0, keepdim=True)
    likeness = z @ z.T
    kernel = torch.eye(len(z)) + GAMMA * likeness @ likeness.T
    left = kernel.diagonal().clone()
    rows = torch.zeros(k, len(z))
    picks: list[int] = []
    for step in range(k):
        pick = int(left.argmax())
        row = kernel[pick] - rows[:step, pick] @ rows[:step]
        rows[step] = row / left[pick].sqrt()
        left = left - rows[step] ** 2
        left[pick] = -torch.inf
        picks.append(pick)
    return picks


Run = Callable[[], Sequence[int]]


def contestants(name: str, n: int, k: int) -> tuple[Any, dict[str, Run]]:
    """What is maximised, and who does it."""
    tokens = tokens_of(n)
    features, text = torch.from_numpy(tokens.features), torch.from_numpy(tokens.text)
    if name == "MMTok, from its matrices":
        words, image = likenesses(features, text)
        weights = [1 / WORDS, MMTOK.alpha / n]
        objective = sc.FacilityLocation.of_blocks([words.numpy(), image.numpy()], weights)
        return objective, {
            THEIRS: lambda: covering(words, image, k),
            "numba": lambda: sc.maximize(objective, k, backend="numba").indices,
            "numpy": lambda: sc.maximize(objective, k, backend="numpy").indices,
        }
    method: Any = sc.method(name.lower(), keep=k)
    program: Run = lambda: otprune(features, k)  # noqa: E731
    if name == "MMTok":
        program = lambda: covering(*likenesses(features, text), k)  # noqa: E731
    return method.objective(tokens), {
        THEIRS: program,
        "numba": lambda: method.select(tokens, backend="numba").indices,
        "numpy": lambda: method.select(tokens, backend="numpy").indices,
    }


def contest(name: str, n: int, k: int, rounds: int) -> dict[str, float]:
    """Median seconds of everybody, by name."""
    objective, runs = contestants(name, n, k)
    values = {who: float(objective.value(list(run()))) for who, run in runs.items()}
    if max(abs(value / values[THEIRS] - 1.0) for value in values.values()) > 1e-4:
        raise SystemExit(f"{name}, N = {n}: the sets are worth different amounts: {values}")
    return medians(interleaved(runs, rounds, clock=time.process_time))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_temporaries()
    head = ("", "N, k", THEIRS, "ours, numba", "times faster", "ours, numpy", "times faster")
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * 5]
    for name in ("MMTok, from its matrices", "MMTok", "OTPrune"):
        for n, k in SIZES:
            times = contest(name, n, k, given.rounds)
            theirs = times[THEIRS]
            cells = [name, f"{n}, {k}", spelled(theirs)]
            for who in ("numba", "numpy"):
                cells += [spelled(times[who]), f"{theirs / times[who]:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if given.write:
        page = [
            "# Beside the programs' own greedy",
            "",
            "MMTok and OTPrune as their programs solve them, written in plain torch from their",
            "formulas, and as `sc.MMTok` and `sc.OTPrune` do: from features to picks, whatever has",
            "to be built included; and MMTok's greedy alone, where everybody is given matrices.",
            f"{WIDTH} channels, {WORDS} words, float32 given, one thread, medians of the processor",
            f"time of {given.rounds} rounds in turns.",
            "The sets have the same value. The allocator keeps what it frees. Measured by",
            f"`OMP_NUM_THREADS=1 python benchmarks/programs.py --rounds {given.rounds} --write`:",
            described("secateur", "numpy", "numba", "torch"),
            "",
            *lines,
            "",
            "MMTok's program works out all gains from whole matrices at every pick, O(N^2) each;",
            "ours touch what a pick changes. From features, both begin with the likenesses of all",
            "tokens, the programs in float32, ours in float64, where a product takes twice as",
            "long; of likenesses of tokens with themselves ours take half a product. At N = 576",
            "that is nearly all there is to do, so no greedy can be many times faster.",
            "",
            "OTPrune's program builds an N x N kernel as a product of two, O(N^3), and then needs",
            "O(k N) a pick. Ours has factors instead of the kernel, Z (Z^T Z)^(1/2) by Cholesky",
            "where there are more tokens than channels, works out together the rows of tokens that",
            "are likely to be picked soon, and certifies what it picked.",
            "",
        ]
        (DOCS / "benchmarks" / "programs.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
