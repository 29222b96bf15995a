"""Choosing by other rules than coverage, beside libraries and the authors' formulas in plain torch.

    OMP_NUM_THREADS=1 python benchmarks/rivals.py --write

writes docs/benchmarks/rivals.md. Of libraries torch-quickfps, torch-fps and scikit-image are looked
for; what is not installed is left out. Everybody begins with the same arrays, one thread each;
contestants take turns, and the table gives medians and how many picks are the same.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from machine import DOCS, described, interleaved, medians, spelled
from suite.images import photo_like

import secateur as sc

Run = Callable[[], Any]
SIZES = ((576, 64, 1024), (2304, 256, 1024))
OURS = "ours, arrays"
TENSORS = "ours, tensors"


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


def farthest(x: torch.Tensor, k: int) -> list[int]:
    """The token farthest from those kept, from token 0 on."""
    nearest = torch.full((len(x),), math.inf)
    picks = [0]
    while len(picks) < k:
        nearest = torch.minimum(nearest, 1 - x @ x[picks[-1]])
        nearest[picks] = -math.inf
        picks.append(int(nearest.argmax()))
    return picks


def max_min(x: torch.Tensor, k: int) -> list[int]:
    """DivPrune: all distances, the token of farthest neighbour first."""
    apart = 1 - x @ x.T
    picks = [int((apart + 9 * torch.eye(len(x))).min(dim=0).values.argmax())]
    nearest = apart[picks[0]].clone()
    while len(picks) < k:
        nearest[picks] = -math.inf
        picks.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, apart[picks[-1]])
    return picks


def determinant(kernel: torch.Tensor, k: int) -> list[int]:
    """CDPruner: a row of the Cholesky factor a pick (Chen, Zhang and Zhou 2018)."""
    left, rows = kernel.diagonal().clone(), torch.zeros(k, len(kernel))
    picks: list[int] = []
    for step in range(k):
        pick = int(left.argmax())
        row = (kernel[pick] - rows[:step, pick] @ rows[:step]) / left[pick].sqrt()
        rows[step], left = row, left - row**2
        left[pick] = -math.inf
        picks.append(pick)
    return picks


def scan(x: torch.Tensor, attention: torch.Tensor, k: int, step: float) -> list[int]:
    """AgilePruner: down the attention, past what is near to a kept token."""
    apart = 1 - x @ x.T
    order = attention.argsort(descending=True, stable=True).tolist()
    free = torch.ones(len(x), dtype=torch.bool)
    picks: list[int] = []
    for token in order:
        if free[token]:
            picks.append(token)
            free &= apart[token] >= step * len(picks)
        if len(picks) == k:
            return picks
    rest = [token for token in order if token not in picks]
    return picks + rest[: k - len(picks)]


def pairing(x: torch.Tensor, attention: torch.Tensor, k: int) -> list[int]:
    """VisPruner: half by attention, the rest by rounds of pairing, in float64."""
    order = attention.argsort(descending=True, stable=True)
    half = int(k * 0.5)
    left, x = order[half:], unit(x.double())
    while len(left) > k - half:
        drop = min(8, len(left) - (k - half))
        even, odd = left[::2], left[1::2]
        nearest = (x[even] @ x[odd].T).max(dim=1).values
        stay = nearest.argsort(descending=True, stable=True)[drop:]
        left = torch.cat([even[stay], odd])
    return torch.cat([order[:half], left]).tolist()


def anchors(middle: torch.Tensor, deep: torch.Tensor, side: int, k: int) -> list[int]:
    """HiPrune: anchors of a middle layer with their neighbours, then a deep layer's attention."""
    first = middle.argsort(descending=True, stable=True)[: round(k * 0.1 / 5)]
    steps = torch.tensor([0, -1, 1, -side, side])
    near = (first[:, None] + steps).clamp(0, len(deep) - 1).flatten().unique()
    ranked = deep.clone()
    ranked[near] = math.inf
    return ranked.argsort(descending=True, stable=True)[:k].tolist()


def pivots(x: torch.Tensor, keys: torch.Tensor, k: int, count: int) -> list[int]:
    """DART: pivots of largest norm; each takes what is least like it."""
    chosen = keys.abs().sum(dim=1).argsort(descending=True, stable=True)[:count].tolist()
    likeness = unit(x) @ unit(x)[chosen].T
    for pivot in range(count):
        share = (k - count + count - 1 - pivot) // count
        own = likeness[:, pivot].clone()
        own[chosen] = math.inf
        chosen += own.argsort(stable=True)[:share].tolist()
    return chosen


def found(name: str) -> Any:
    """A library, where it is installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


def choosing(n: int, k: int, d: int) -> dict[str, dict[str, Run]]:
    """Every rule, and who chooses by it; the picks of each, in the order of the first."""
    random, side = np.random.default_rng(0), math.isqrt(n)
    x = photo_like(n, d)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    attention, middle = random.random((2, n), dtype=np.float32) ** 4
    keys = random.normal(size=(n, 64)).astype(np.float32)
    r = random.random(n, dtype=np.float32)
    given = {
        "features": x,
        "attention": attention,
        "attention_shallow": middle,
        "keys": keys,
    }
    lent = {name: torch.from_numpy(array) for name, array in given.items()}
    arrays = sc.Tokens(**given, grid=(side, n // side))
    tensors = sc.Tokens(**lent, grid=(side, n // side))
    xt, at = lent["features"], lent["attention"]
    kernel = r[:, None] * (x @ x.T) * r
    tall = torch.from_numpy(kernel)

    def ours(method: sc.Method) -> dict[str, Run]:
        return {
            OURS: lambda: method.select(arrays).indices,
            TENSORS: lambda: method.select(tensors).indices,
        }

    fps: dict[str, Run] = {**ours(sc.FPS(keep=k)), "plain torch": lambda: farthest(xt, k)}
    quick, plain = found("torch_quickfps"), found("torch_fps")
    if quick is not None:
        fps["torch-quickfps, vanilla"] = lambda: quick.sample_idx_baseline(xt, k, start_idx=0)
    if plain is not None:
        every, zero = torch.ones(1, n, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
        fps["torch-fps"] = lambda: plain.farthest_point_sampling(
            xt[None], every, k, start_idx=zero
        )[0]
    volume, lent_volume = sc.LogDeterminant(kernel), sc.LogDeterminant(tall)
    step = 0.01
    return {
        "farthest first, from token 0 (`FPS`)": fps,
        "max-min distances (`DivPrune`)": {
            **ours(sc.DivPrune(keep=k)),
            "the program's loop": lambda: max_min(xt, k),
        },
        "determinant of a kernel (`LogDeterminant`)": {
            OURS: lambda: sc.maximize(volume, k).indices,
            TENSORS: lambda: sc.maximize(lent_volume, k).indices,
            "CDPruner's loop": lambda: determinant(tall, k),
        },
        "threshold scan (`greedy_threshold`)": {
            OURS: lambda: sc.greedy_threshold(x, attention, k, step).indices,
            TENSORS: lambda: sc.greedy_threshold(xt, at, k, step).indices,
            "plain torch": lambda: scan(xt, at, k, step),
        },
        "pairing (`VisPruner`)": {
            **ours(sc.VisPruner(keep=k)),
            "plain torch": lambda: pairing(xt, at, k),
        },
        "anchors (`HiPrune`)": {
            **ours(sc.HiPrune(keep=k)),
            "plain torch": lambda: anchors(lent["attention_shallow"], at, side, k),
        },
        "pivots (`DART`)": {
            **ours(sc.DART(keep=k)),
            "plain torch": lambda: pivots(xt, lent["keys"], k, sc.DART().pivots),
        },
    }


def entropies(side: int, patch: int) -> dict[str, Run]:
    """The entropy of grey values in every patch of a picture."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    lent = torch.from_numpy(image)
    runs: dict[str, Run] = {
        OURS: lambda: sc.patch_entropy(image, patch),
        TENSORS: lambda: sc.patch_entropy(lent, patch),
    }
    measure = found("skimage.measure")
    if measure is not None:
        weights = np.array([0.299, 0.587, 0.114])
        places = range(0, side, patch)

        def each() -> np.ndarray:
            grey = np.floor(image @ weights)
            parts = [grey[i : i + patch, j : j + patch] for i in places for j in places]
            return np.array([measure.shannon_entropy(part, math.e) for part in parts])

        runs["scikit-image, patch by patch"] = each
    return runs


def same(runs: dict[str, Run]) -> str:
    """What others pick of what we do: "all", or how many."""
    answers = [np.asarray(run()).ravel() for run in runs.values()]
    whole = answers[0].dtype.kind in "iu"
    if not whole:
        worst = max(float(np.abs(each - answers[0]).max()) for each in answers)
        return f"within {worst:.0e}"
    shared = min(len(set(each.tolist()) & set(answers[0].tolist())) for each in answers)
    return "all" if shared == len(answers[0]) else f"{shared} of {len(answers[0])}"


def rows(what: str, size: str, runs: dict[str, Run], rounds: int) -> list[str]:
    """A line for everybody but us."""
    agreed = same(runs)
    times = medians(interleaved(runs, rounds))
    lines = []
    for name, seconds in times.items():
        if name in (OURS, TENSORS):
            continue
        cells = [what, size, name, spelled(seconds)]
        for mine in (OURS, TENSORS):
            cells += [spelled(times[mine]), f"{seconds / times[mine]:.1f}"]
        lines.append("| " + " | ".join([*cells, agreed]) + " |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    head = ("", "N, k", "who", "takes", OURS, "times faster", TENSORS, "times faster", "same picks")
    lines = [
        "| " + " | ".join(head) + " |",
        "| --- | --- | --- |" + " ---: |" * 5 + " --- |",
    ]
    for n, k, d in SIZES:
        for what, runs in choosing(n, k, d).items():
            lines += rows(what, f"{n}, {k}", runs, given.rounds)
    for side, patch in ((336, 14), (1008, 28)):
        runs = entropies(side, patch)
        if len(runs) > 2:
            size = f"{side} x {side} pixels"
            lines += rows("entropy of patches (`patch_entropy`)", size, runs, given.rounds)
    if given.write:
        optional = ("torch-quickfps", "torch-fps", "scikit-image")
        modules = ("torch_quickfps", "torch_fps", "skimage")
        there = [name for name, module in zip(optional, modules, strict=True) if found(module)]
        beside = ", ".join(f"{name} {version(name)}" for name in there)
        page = [
            "# Beside others, by other rules",
            "",
            "Picks by rules other than coverage, which has [a page of its own](peers.md): beside",
            "libraries, and beside the authors' formulas in plain torch. One thread, float32 unit",
            f"vectors of {SIZES[0][2]} channels, medians of {given.rounds} rounds in turns, from",
            "features unless a kernel is named. Measured by",
            "`OMP_NUM_THREADS=1 python benchmarks/rivals.py --write`:",
            described("secateur", "numpy", "numba", "torch"),
            f"Beside: {beside or 'no library was installed'}.",
            "",
            *lines,
            "",
            "Below 1 they are faster. A formula in plain torch checks nothing, keeps ties as they",
            "fall and serves one image; ours checks its arguments, which a row of less than 0.2 ms",
            "is mostly made of, and settles ties. Libraries for point clouds are made for three",
            "dimensions; their fast forms end at eight, so that the vanilla form is timed.",
            "",
        ]
        (DOCS / "benchmarks" / "rivals.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
