"""Where the time of every method goes: ``python benchmarks/methods.py [--write]``.

One image of 576 tokens, 1024 numbers each, an instruction of 77 tokens, 64 tokens kept, float32.
Times are medians of `select` from tokens to a selection; the shares are those of the functions of
secateur, each without the functions of secateur that it calls, in further runs that are watched.
Every function above a fifth needs its reason in `REASONS`: the script stops where one is missing.
With ``--write`` the page is written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from latency import case
from machine import DOCS, described, interleaved, medians, spelled
from suite.selecting import NAMES

import secateur as sc

HOME = str(Path(sc.__file__).parent)
FIFTH = 0.2
REASONS = {
    "apet.approximation_errors": "the tokens along a few of them, in float64",
    "apet.farthest_tokens": "distances of all tokens to each of a few, one pass over the features "
    "in float64 for each",
    "arrays._finite": "one pass over the 590,000 features, which refuses what is not finite",
    "attention._shares": "queries times keys in blocks, and their softmax",
    "density.distances": "the product of the tokens with themselves, in float64",
    "driver.largest_eigenvectors": "the directions that most of the variation lies in",
    "driver.squared_distances": "distances of all tokens to each of a few, one pass over the "
    "features in float64 for each",
    "driver.cosines": "cosines with a few tokens, a few rows at a time in float64",
    "farthest.ByMatrix._farthest": "looking for the farthest, some calls on short arrays a pick",
    "farthest.ByMatrix._lower": "the distances to each pick, some calls on short arrays",
    "flashvid._spread_picks": "all distances within a frame, and their order",
    "kernels.patch_histograms": "one histogram entry raised for each pixel",
    "lending.eigenvalues": "the eigenvalues of the tokens' matrix, in float64",
    "lending.product": "matrix products",
    "lengths.unit": "scaling to length one",
    "pixelprune.scan_cells.<locals>.look": "one pass over the cells of the picture",
    "prunesid.principal_loadings": "a sigmoid of every feature, in float64",
    "softmax.softmax_rows": "exponentials of all similarities",
    "similarity.PlainCosine.columns": "a column of cosines for each pick, in float64",
    "similarity.cosine": "scaling to length one, and the product of the embeddings with the text",
    "sparsevlm.SparseVLM.raters": "the hidden states of the image times those of the text",
    "vispruner._rounds": "the rounds of pairing, each a few calls on short arrays",
    "vispruner.unpaired": "the product of the tokens with themselves, in float64",
    "vitcop._squares": "all distances within a group",
    "vitcop.density_clusters": "all distances within a group, and the nearest of each",
}
"""Why a function takes what it takes."""


def calls() -> tuple[dict[str, Callable[[], object]], list[str]]:
    """One call of every method, and of which there is none."""
    found: dict[str, Callable[[], object]] = {}
    missing = []
    for name in NAMES:
        try:
            call = case(name, lambda x: x)
            call()
        except ValueError:
            missing.append(name)
        else:
            found[name] = call
    return found, missing


def shares(call: Callable[[], object], rounds: int = 5) -> dict[str, float]:
    """Share of the time that each function of secateur takes itself, the median of some runs."""
    runs = []
    for _ in range(rounds):
        own: Counter[str] = Counter()
        stack: list[str] = []
        last = time.perf_counter()

        def watch(frame: FrameType, event: str, _: Any, own: Any = own, stack: Any = stack) -> None:
            nonlocal last
            if event not in ("call", "return") or not frame.f_code.co_filename.startswith(HOME):
                return
            now = time.perf_counter()
            if stack:
                own[stack[-1]] += now - last
            if event == "call":
                module = Path(frame.f_code.co_filename).stem
                stack.append(f"{module}.{frame.f_code.co_qualname}")
            elif stack:
                stack.pop()
            last = time.perf_counter()

        sys.setprofile(watch)
        call()
        sys.setprofile(None)
        total = sum(own.values())
        runs.append({name: seconds / total for name, seconds in own.items()})
    names = {name for run in runs for name in run}
    return {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}


def table(rounds: int) -> list[str]:
    """A line for each method, slowest last, and which have none."""
    sc.warm_up(shapes=[(576, 1024)])
    found, absent = calls()
    seconds = medians(interleaved(found, rounds))
    lines = ["| method | time | above a fifth | why |", "| --- | ---: | --- | --- |"]
    missing = []
    for name in sorted(found, key=seconds.__getitem__):
        above = {f: share for f, share in shares(found[name]).items() if share > FIFTH}
        missing += [function for function in above if function not in REASONS]
        parts = [f"`{f}` {above[f]:.0%}" for f in sorted(above, key=above.__getitem__)[::-1]]
        why = [REASONS.get(f, "?") for f in sorted(above, key=above.__getitem__)[::-1]]
        cells = (", ".join(parts) or "-", "; ".join(dict.fromkeys(why)) or "-")
        lines.append(f"| {name} | {spelled(seconds[name])} | {cells[0]} | {cells[1]} |")
    if missing:
        print("\n".join(lines))
        raise SystemExit(f"give a reason for: {', '.join(sorted(set(missing)))}")
    none = f"do not choose from arrays or need trained weights: {', '.join(absent)}."
    return [*lines, "", f"Without a row, for they {none}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write the page")
    given = parser.parse_args()
    lines = table(given.rounds)
    print("\n".join(lines))
    if given.write:
        page = [
            "# Where the time of a method goes",
            "",
            "Measured by `OMP_NUM_THREADS=1 python benchmarks/methods.py --write`:",
            described("secateur", "numpy", "numba", "scipy"),
            "",
            "One image of 576 tokens of 1024 numbers, an instruction of 77 tokens, 64 tokens kept,",
            "float32, NumPy arrays, one thread; `fastv`, `pyramiddrop` and `sparsevlm` keep 144 of",
            "576 at one layer shaped as Qwen2.5-VL-7B's. Times are medians, from tokens to a",
            "selection. Named are functions of secateur that take more than a fifth of their",
            "method's time, those of secateur that they call not counted.",
            "",
            *lines,
            "",
            "Over commits the same times are followed by `make bench` (`benchmarks/suite`).",
            "",
        ]
        (DOCS / "benchmarks" / "methods.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
