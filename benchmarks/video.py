"""How long methods take to choose from a video: 64 frames of 196 tokens, D = 1024, float32.

    python benchmarks/video.py [--frames 64] [--device cuda]

needs `pip install -c constraints.txt -e '.[numba,torch]'`. Methods take turns; the table gives
the median and the 95th percentile of the wall clock, and the median of the processor time of all
threads together, which says how busy the machine was otherwise. The video has scenes: frames
drift from each other within one, tokens stand still or move.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from machine import described

import secateur as sc

TOKENS, WIDTH, SCENES = 196, 1024, 6
GOAL = 150.0
"""Milliseconds."""

METHODS = {
    "evs": sc.EVS(keep=0.25),
    "vidcom2": sc.VidCom2(keep=0.25),
    "vidcom2, exact": sc.VidCom2(keep=0.25, exact=True),
    "dycoke": sc.DyCoke(drop=0.7),
    "fastvid": sc.FastVID(keep=0.1),
    "fastvid, plain": sc.FastVID(keep=0.1, variant="plain"),
    "holitom": sc.HoliTom(keep=0.15),
    "flashvid": sc.FlashVID(keep=0.25),
    "flashvid, published": sc.published("flashvid"),
    "topk by change": sc.TopK(keep=0.25, over="change"),
}


def clip(frames: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A video of a few scenes in which half of the places hardly move."""
    dice = np.random.default_rng(seed)
    cuts = np.sort(dice.choice(np.arange(1, frames), min(SCENES, frames) - 1, replace=False))
    x = np.empty((frames, TOKENS, WIDTH), dtype=np.float32)
    common = dice.normal(size=WIDTH)
    for scene in np.split(np.arange(frames), cuts):
        at = common + 0.7 * dice.normal(size=WIDTH) + dice.normal(size=(TOKENS, WIDTH))
        pace = np.where(dice.random(TOKENS) < 0.5, 0.1, 0.6)[:, None]
        for t in scene:
            x[t] = at + pace * dice.normal(size=(TOKENS, WIDTH))
    return {
        "features": x.reshape(-1, WIDTH),
        "attention": dice.gamma(0.5, size=frames * TOKENS).astype(np.float32),
    }


def measured(run: Callable[[], object], before: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the wall clock, and of processor time."""
    before()
    wall, busy = time.perf_counter(), time.process_time()
    run()
    before()
    return time.perf_counter() - wall, time.process_time() - busy


def nothing() -> None:
    """On the host there is nothing to wait for."""


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default=None, help="measure on PyTorch's device instead")
    parser.add_argument("--only", default="", help="methods whose names begin so")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = arguments()
    host = clip(given.frames)
    arrays: dict[str, object] = dict(host)
    wait, packages = nothing, ["numpy"]
    if given.device:
        import torch

        packages.append("torch")
        arrays = {name: torch.from_numpy(x).to(given.device) for name, x in host.items()}
        if given.device.startswith("cuda"):
            wait = torch.cuda.synchronize
    video = sc.Tokens(**arrays, frames=given.frames)
    methods = {name: each for name, each in METHODS.items() if name.startswith(given.only)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    kept = {name: int(method.select(video).count) for name, method in methods.items()}
    for _ in range(given.rounds):
        for name, method in methods.items():
            times[name].append(measured(partial(method.select, video), wait))
    print(described(*packages))
    print(
        f"{given.frames} frames of {TOKENS} tokens, D = {WIDTH}, float32, "
        f"{given.rounds} rounds on {given.device or 'NumPy'}.\n"
    )
    print("| method | kept | median | p95 | processor | under 150 ms |")
    print("|---|---:|---:|---:|---:|---|")
    for name, spent in times.items():
        wall, busy = (1e3 * np.array(each) for each in zip(*spent, strict=True))
        middle, high = np.median(wall), np.quantile(wall, 0.95)
        print(
            f"| {name} | {kept[name]} | {middle:.1f} ms | {high:.1f} ms "
            f"| {np.median(busy):.1f} ms | {'yes' if middle < GOAL else 'no'} |"
        )


if __name__ == "__main__":
    main()
