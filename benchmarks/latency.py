"""How long a choice takes beside other work: ``python benchmarks/latency.py [--write]``, 3 minutes.

Every method of the registry, on arrays and on tensors on the CPU: the median alone on the machine,
then the median, p95 and p99 beside one busy process a core. Each takes its turn, so that what
happens on the machine meets all alike. A loop in one thread that does nothing of ours shows what
the system takes by itself: a process that is put aside waits for a time slice of others, whatever
it computes. With ``--write`` the page is written.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from machine import DOCS, described
from suite.inside import TEXT, VISUAL, KeepVisual
from suite.selecting import KEEP, NAMES, Select

import secateur as sc

GOAL = 3.0
LOOPS = (1e-3, 5e-3)
"""Seconds of the loops beside which the methods are read."""
BUSY = "while True: pass"

INTRODUCTION = """# How long a choice takes beside other work

Printed by `python benchmarks/latency.py --write`: one image of 576 tokens of 1024 numbers (those
that choose inside the language model: one layer shaped as Qwen2.5-VL-7B's), 64 tokens kept,
float32, after `secateur.warm_up`. The first time is the median alone on the machine; p50, p95 and
p99 are beside one busy process for every core, all at the same priority, and the ratio is p99 to
the median alone. The goal is a ratio of {goal:g}. A process that is put aside waits for the time
slices of others, some milliseconds each, whatever it computes: the loops, one thread in plain
Python, show what that alone does to calls of their length.

{machine}

{verdict}

"""


def lifted(suite: Any, lift: Callable[[np.ndarray], Any]) -> Any:
    """The same case on arrays of another library."""
    for name, x in vars(suite).items():
        if isinstance(x, np.ndarray):
            setattr(suite, name, lift(x))
        elif isinstance(x, sc.Tokens):
            given = {each.name: getattr(x, each.name) for each in fields(x)}
            arrays = {n: lift(v) for n, v in given.items() if isinstance(v, np.ndarray)}
            setattr(suite, name, x.with_(**arrays))
    return suite


def case(name: str, lift: Callable[[np.ndarray], Any]) -> Callable[[], object]:
    """One call of a method: `select`, or `keep_visual` where it acts inside the model.

    ValueError says why there is none.
    """
    if issubclass(sc.methods()[name], sc.InsideMethod) and not sc.method(name).prunes_before:
        inside = KeepVisual()
        inside.setup(name)
        inside = lifted(inside, lift)
        visual, text = lift(VISUAL), lift(TEXT)
        return lambda: inside.method.keep_visual(
            sc.Cut(after=2, keep=144),
            inside.queries,
            inside.keys,
            visual=visual,
            text=text,
            hidden=inside.hidden,
        )
    suite: Any = Select()
    try:
        suite.setup(name)
    except NotImplementedError:
        # It needs what most do not, or does not choose.
        features = suite.tokens.features
        suite.tokens = suite.tokens.with_(states=features, importance=features[:, 0])
        suite.method = sc.method(name, keep=KEEP)
        suite.method.select(suite.tokens)
    suite = lifted(suite, lift)
    return lambda: suite.time_select(None)


def loop(seconds: float) -> Callable[[], object]:
    """One thread in plain Python that takes so much of a processor."""
    start, count = time.process_time(), 1_000_000
    sum(range(count))
    often = max(1, int(count * seconds / (time.process_time() - start)))
    return lambda: sum(range(often))


def taken(calls: dict[str, Callable[[], object]], rounds: dict[str, int]) -> dict[str, np.ndarray]:
    """Seconds of every call; each takes its turn as long as it has rounds left."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    for turn in range(max(rounds.values())):
        for name, run in calls.items():
            if turn < rounds[name]:
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return {name: np.asarray(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.4, help="of calls for each row")
    parser.add_argument("--method", action="append", help="only these")
    parser.add_argument("--write", action="store_true", help="write the page")
    given = parser.parse_args()
    sc.warm_up(shapes=[(64, 32)])
    calls: dict[str, Callable[[], object]] = {
        f"a loop of {1e3 * seconds:g} ms |": loop(seconds) for seconds in LOOPS
    }
    absent: dict[str, str] = {}
    for name in given.method or NAMES:
        for library, lift in (("arrays", np.asarray), ("tensors", torch.from_numpy)):
            try:
                calls[f"{name} | {library}"] = case(name, lift)
            except (TypeError, ValueError, NotImplementedError) as error:
                absent[name] = f"{name} ({str(error).partition(';')[0]})"
    for run in calls.values():
        run()
    alone = taken(calls, dict.fromkeys(calls, 11))
    middle = {name: float(np.median(times)) for name, times in alone.items()}
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(cores)]
    try:
        time.sleep(0.5)
        rounds = {n: int(np.clip(given.seconds / s, 40, 100)) for n, s in middle.items()}
        beside = taken(calls, rounds)
    finally:
        for process in busy:
            process.kill()
    lines = [
        "| method | on | alone, ms | p50 | p95 | p99 | p99 / alone | calls |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ratios = {}
    for name in calls:
        told = [1e3 * middle[name], *(1e3 * np.percentile(beside[name], (50, 95, 99)))]
        ratios[name] = told[-1] / told[0]
        numbers = " | ".join(f"{each:.2f}" for each in told)
        lines.append(f"| {name} | {numbers} | {ratios[name]:.1f} | {rounds[name]} |")
    print("\n".join(lines))
    rows = [name for name in calls if not name.startswith("a loop")]
    held = [name for name in rows if ratios[name] <= GOAL]
    long = [name for name in rows if middle[name] >= 2e-3]
    held_long = [name for name in held if name in long]
    verdict = (
        f"{len(held)} of {len(rows)} rows stay within {GOAL:g}; of those whose call takes 2 ms or "
        f"more, {len(held_long)} of {len(long)}."
    )
    if absent:
        verdict += f" Without a row: {', '.join(absent.values())}."
    print(verdict)
    if given.write:
        machine = described("secateur", "numpy", "torch", "numba")
        page = INTRODUCTION.format(goal=GOAL, machine=machine, verdict=verdict)
        path = DOCS / "benchmarks" / "latency.md"
        path.write_text(page + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
