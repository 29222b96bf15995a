"""Pruning a corpus on Ray, and picking from a million points: python benchmarks/corpus.py

Prints two tables. The first: images a second with one worker and with two, what a worker makes
while it prunes, and its memory over the run; and with a worker that passes everything on, which
is what Ray and the making of features leave. The second: two-round greedy against plain greedy
where both run, and at a million points. Features are made by tasks on the same machine, seeded.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import resource
import time
from datetime import date

import numpy as np
import pyarrow as pa
import ray
import ray.data

import secateur as sc
from secateur.integrations.corpus import Pruner
from secateur.integrations.ray import PruneBatch, maximize

TOKENS, SIZE, CLUMPS = 576, 64, 40


def made_up(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An image for every number: tokens in clumps, as features of photographs are."""
    images = []
    for seed in batch["id"]:
        rng = np.random.default_rng(int(seed))
        centres = rng.standard_normal((CLUMPS, SIZE), dtype=np.float32)
        noise = rng.standard_normal((TOKENS, SIZE), dtype=np.float32)
        images.append(centres[rng.integers(0, CLUMPS, TOKENS)] + 0.5 * noise)
    return {"id": batch["id"], "features": np.stack(images)}


class Watched:
    """Notes the time that a batch takes in a worker and the memory of it; prunes if it may."""

    def __init__(self, method: sc.Method | None) -> None:
        self._prune = None if method is None else PruneBatch(Pruner(method), None)

    def __call__(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        out = self._prune(table) if self._prune else table.select(["id"])
        seconds = (time.perf_counter() - start) / len(out)
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        megabytes = pages * resource.getpagesize() / 2**20
        out = out.append_column("seconds", pa.array([seconds] * len(out)))
        return out.append_column("megabytes", pa.array([megabytes] * len(out)))


def corpus(images: int, workers: int, method: sc.Method | None) -> str:
    dataset = ray.data.range(images, override_num_blocks=max(4, images // 500))
    dataset = dataset.map_batches(made_up, batch_size=50)
    dataset = dataset.map_batches(
        Watched,
        fn_constructor_args=(method,),
        batch_format="pyarrow",
        batch_size=50,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0.5,  # so that two workers leave room for the tasks that feed them
    )
    start = time.perf_counter()
    count, memory, kept, spent = 0, [], 0, 0.0
    columns = ["id", "seconds", "megabytes", *(["kept"] if method else [])]
    for batch in dataset.select_columns(columns).iter_batches(batch_size=100):
        count += len(batch["id"])
        kept += sum(len(row) for row in batch.get("kept", ()))
        spent += float(np.sum(batch["seconds"]))
        memory.append(float(np.max(batch["megabytes"])))
    seconds = time.perf_counter() - start
    assert count == images
    assert kept == (images * method.budget(TOKENS) if method else 0)
    half, rate = len(memory) // 2, images / seconds
    return (
        f"| {images:,} | {workers if method else '1, passing on'} | {rate:,.0f} "
        f"| {f'{images / spent:,.0f}' if method else '-'} | {1e6 / rate / 3600:.1f} "
        f"| {max(memory[:half]):.0f} | {max(memory[half:]):.0f} |"
    )


def points(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((500, SIZE), dtype=np.float32)
    noise = rng.standard_normal((n, SIZE), dtype=np.float32)
    return centres[rng.integers(0, 500, n)] + 0.5 * noise


def greedy(n: int, k: int, **options: int) -> str:
    x = points(n)
    start = time.perf_counter()
    found = maximize(x, k, fits=1, **options)
    seconds = time.perf_counter() - start
    plain, share = "-", "-"
    if n <= 20_000:
        start = time.perf_counter()
        alone = sc.maximize(sc.FacilityLocation.from_features(x), k)
        plain = f"{time.perf_counter() - start:.1f}"
        share = f"{found.value / float(alone.value):.4f}"
    told = ", ".join(f"{name} = {value:,}" for name, value in options.items()) or "all"
    error = f" +- {found.error:,.0f}" if found.error else ""
    return (
        f"| {n:,} | {k:,} | {found.partitions} | {told} | {found.value:,.0f}{error} "
        f"| {share} | {seconds:.1f} | {plain} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--keep", type=int, default=64)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    method = sc.method(options.method, keep=options.keep)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {date.today()}\n")
    print(f"{method!r}, {TOKENS} tokens of {SIZE} numbers an image\n")
    print(
        "| images | workers | images a second | of a worker while it prunes | hours a million "
        "| MB of a worker, first half | second half |\n|---|---|---|---|---|---|---|"
    )
    for workers, each in ((1, method), (2, method), (1, None)):
        print(corpus(options.images, workers, each), flush=True)
    print(
        "\n| points | k | partitions | gains and value on | value | share of plain greedy "
        "| seconds | seconds, plain |\n|---|---|---|---|---|---|---|---|"
    )
    print(greedy(10_000, 200), flush=True)
    print(greedy(20_000, 500), flush=True)
    print(greedy(20_000, 500, rows=5_000), flush=True)
    if options.points > 20_000:
        print(
            greedy(options.points, 1000, rows=50_000, evaluate=100_000, partitions=32), flush=True
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
