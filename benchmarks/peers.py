"""Greedy facility location here and elsewhere, on the same matrices in one process.

    python benchmarks/peers.py

needs `pip install -c constraints.txt -e '.[bench,numba,torch]' matplotlib`. Contestants take
turns; the table gives medians. Building the objective from the matrix is outside the clock for
those who separate it (secateur, submodlib). It stops if anybody's set is worth less than another's.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from machine import DOCS, described, interleaved, keep_temporaries, medians, spelled
from suite.images import photo_like, relevance_like

import secateur as sc
from secateur.core.similarity import cosine_similarity

mpl.use("agg")
import matplotlib.pyplot as plt

SIZES = ((576, 64), (2304, 320), (4096, 512))
OURS = "secateur, numba"
PLAIN = "secateur, numpy"
DENSE = "dense greedy, torch"
LAZY = "submodlib-py, lazy"
APRICOT = "apricot-select, lazy"
KEPT = "dense greedy, torch, temporaries kept"
COMPARED = [(ours, theirs) for theirs in (LAZY, DENSE, KEPT) for ours in (OURS, PLAIN)]


def dense_greedy(s: torch.Tensor, w: torch.Tensor, k: int) -> list[int]:
    """Greedy as the papers' programs do it: all gains from the whole matrix at every pick."""
    m = torch.zeros_like(w)
    opened = torch.ones_like(w, dtype=torch.bool)
    picks = []
    for _ in range(k):
        gains = (w[:, None] * (s - m[:, None]).clamp(min=0)).sum(0)
        pick = int(gains.masked_fill(~opened, -torch.inf).argmax())
        picks.append(pick)
        opened[pick] = False
        m = torch.maximum(m, s[:, pick])
    return picks


def submodlib_lazy(s: np.ndarray, k: int) -> Callable[[], list[int]]:
    from submodlib.functions.facilityLocation import FacilityLocationFunction

    # Rows scaled by their weights: the same function, which submodlib has no weights for.
    f = FacilityLocationFunction(n=len(s), mode="dense", sijs=s, separate_rep=True, n_rep=len(s))

    def run() -> list[int]:
        picked = f.maximize(
            budget=k,
            optimizer="LazyGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            verbose=False,
            show_progress=False,
        )
        return [int(index) for index, _ in picked]

    return run


def apricot_lazy(s: np.ndarray, k: int) -> Callable[[], list[int]]:
    from apricot import FacilityLocationSelection

    def run() -> list[int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy").fit(s)
        return [int(index) for index in chosen.ranking]

    return run


def contest(n: int, k: int, weighted: bool, rounds: int) -> dict[str, list[float]]:
    s = cosine_similarity(photo_like(n, 256))
    w = relevance_like(n) if weighted else np.ones(n)
    f = sc.FacilityLocation(s, w)
    st, wt = torch.from_numpy(s), torch.from_numpy(w.astype(np.float32))
    contestants: dict[str, Callable[[], Any]] = {
        OURS: lambda: sc.maximize(f, k, backend="numba").indices,
        PLAIN: lambda: sc.maximize(f, k, backend="numpy").indices,
        LAZY: submodlib_lazy((w[:, None] * s).astype(np.float32), k),
    }
    if n <= 2304:
        contestants[DENSE] = lambda: dense_greedy(st, wt, k)
    if not weighted:
        contestants[APRICOT] = apricot_lazy(s, k)
    values = {name: float(f.value(run())) for name, run in contestants.items()}
    worst = max(abs(value / values[OURS] - 1.0) for value in values.values())
    if worst > 1e-6:
        raise SystemExit(f"N = {n}: the sets are worth different amounts: {values}")
    print(f"N = {n}, k = {k}, {'weighted' if weighted else 'unweighted'}: ", end="")
    print(f"values agree to {worst:.1e}")
    return interleaved(contestants, rounds, before=lambda: s.sum())


def table(results: dict[tuple[int, int, bool], dict[str, float]]) -> list[str]:
    names = [OURS, PLAIN, LAZY, DENSE, KEPT, APRICOT]
    lines = [
        "| N, k | weights | " + " | ".join(names) + " |",
        "| --- | --- |" + " ---: |" * len(names),
    ]
    for (n, k, weighted), times in results.items():
        cells = [spelled(times[name]) if name in times else "-" for name in names]
        lines.append(f"| {n}, {k} | {'yes' if weighted else 'no'} | " + " | ".join(cells) + " |")
    return lines


def ratios(seconds: dict[str, list[float]]) -> list[str]:
    """Lines of a table: how many times faster secateur is."""
    lines = [
        "| N = 2304, k = 320, weighted | times faster, medians | fastest rounds |",
        "| --- | ---: | ---: |",
    ]
    middle, least = medians(seconds), {name: min(times) for name, times in seconds.items()}
    for ours, theirs in COMPARED:
        if theirs not in seconds:
            continue
        shares = [f"{times[theirs] / times[ours]:.0f}" for times in (middle, least)]
        lines.append(f"| {ours}, than {theirs} | {shares[0]} | {shares[1]} |")
    return lines


def plot(results: dict[tuple[int, int, bool], dict[str, float]]) -> None:
    colours = {OURS: "#d84315", PLAIN: "#ffab91", LAZY: "#607d8b", DENSE: "#90a4ae"}
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    weighted = {(n, k): dict(times) for (n, k, w), times in results.items() if w}
    for times in weighted.values():
        if KEPT in times:
            times[DENSE] = times[KEPT]
    for place, name in enumerate(colours):
        at = [group + 0.2 * (place - 1.5) for group, t in enumerate(weighted.values()) if name in t]
        height = [1e3 * times[name] for times in weighted.values() if name in times]
        bars = axes.bar(at, height, 0.19, color=colours[name], label=name)
        axes.bar_label(bars, [f"{h:.2g}" if h < 10 else f"{h:.0f}" for h in height], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds, log scale")
    axes.set_xticks(range(len(weighted)), [f"N = {n}, k = {k}" for n, k in weighted])
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_title("Weighted facility location, two CPU cores", fontsize=10)
    figure.savefig(DOCS / "images" / "peers.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for dense greedy")
    parser.add_argument("--write", action="store_true", help="write the page and the picture")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    seconds = {}
    for n, k in SIZES:
        for weighted in (True, False):
            if weighted or n <= 2304:
                seconds[n, k, weighted] = contest(n, k, weighted, given.rounds)
    keep_temporaries()
    seconds[2304, 320, True][KEPT] = contest(2304, 320, True, given.rounds)[DENSE]
    results = {case: medians(times) for case, times in seconds.items()}
    lines = [*table(results), "", *ratios(seconds[2304, 320, True])]
    print("\n".join(lines))
    if given.write:
        plot(results)
        page = [
            "# Beside other libraries",
            "",
            "Greedy facility location on (1 + cos) / 2 similarities of photo-like features,",
            f"float32, medians of {given.rounds} interleaved rounds in one process. All sets have",
            "the same value. Measured by `python benchmarks/peers.py --write`:",
            described("secateur", "numpy", "numba", "submodlib-py", "apricot-select", "torch"),
            "",
            "![Milliseconds of four programs at three sizes](../images/peers.png)",
            "",
            *lines,
            "",
            "submodlib-py and apricot-select run lazy greedy; submodlib gets rows scaled by their",
            "weights, apricot has no weights and is compared without. Dense greedy works out all",
            "gains from the whole matrix at every pick, as the papers' programs do. Torch has",
            f"{given.threads} of the cores, the others run in one thread. Building the objective",
            "from the matrix is not timed where it is separate (secateur, submodlib). Each starts",
            "with the matrix in cache, as far as it fits, where computing it would leave it.",
            "The two cores were shared with other work: runs differ by a factor of up to two.",
            "",
            "Dense greedy makes temporaries as large as the matrix at every pick. Where the",
            "allocator hands them back to the system each time, as glibc does at this size unless",
            "told not to, that takes longer than the arithmetic; where it keeps them, the times",
            "are those of the column that says so, which the picture shows.",
            "",
        ]
        (DOCS / "benchmarks" / "peers.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
