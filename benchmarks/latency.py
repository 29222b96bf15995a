"""How long a choice takes beside other work: ``python benchmarks/latency.py [--write]``.

Takes `--minutes`, 2.5 unless told, after `secateur.warm_up`, and says how far it is; stopped with
Ctrl-C or by a signal to end, it tells what it has by then. Every method of the registry, on arrays
and on tensors on the CPU: the median alone on the machine, then the median, p95 and p99 beside one
busy process a core. Calls of all rows are spread evenly over the time, so that what happens on the
machine meets all alike. A loop in one thread that does nothing of ours shows what the system takes
by itself: a process that is put aside waits for a time slice of others, whatever it computes.
Beside the clock stands the processor time of the process, all threads: what a call takes more of
it than alone is ours, such as threads that spin; the rest of a late answer is waiting.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import DOCS, described
from suite.inside import TEXT, VISUAL, KeepVisual
from suite.selecting import KEEP, NAMES, Select

import secateur as sc

GOAL = 3.0
OURS = 1.5
"""Processor time at p99 beside that of the median alone, above which a miss is ours."""
ALONE, MOST, LEAST = 15, 200, 20
"""Calls of a row alone, and how many at most and at least beside others."""
LOOPS = (1e-3, 5e-3)
"""Seconds of the loops beside which the methods are read."""
WIDE, WIDTH = ("agilepruner", "cdpruner", "divprune", "eadp"), 4096
"""Methods that multiply all tokens, and how many numbers LLaVA-1.5's language model has of each."""
BUSY = "while True: pass"

INTRODUCTION = """# How long a choice takes beside other work

Printed by `python benchmarks/latency.py --write`: one image of 576 tokens of 1024 numbers, or
*wide* ones of 4096, as LLaVA-1.5-7B's language model is given them (those that choose inside the
language model: one layer shaped as Qwen2.5-VL-7B's), 64 tokens kept, float32, after
`secateur.warm_up`. The first time is the median alone on the machine; p50, p95 and
p99 are beside one busy process for every core, all at the same priority, and the ratio is p99 to
the median alone. The goal is a ratio of {goal:g}. A process that is put aside waits for the time
slices of others, some milliseconds each, whatever it computes: the loops, one thread in plain
Python, show what that alone does to calls of their length. *Processor* is the p99 of the processor
time of a call, of all threads, to its median alone: a row that misses the goal with less than
{ours:g} here, or than a loop has, waited for the system. A process that is put aside finds the
caches full of somebody else's numbers, and its core shared: the loop over arrays, which NumPy does
in one thread, shows what that costs whoever reads memory. Each call comes right after one that does
not count: a virtual machine may take away memory that was idle for seconds, and giving it back is
the processor time of whoever reads it. Of fewer than 100 calls, p99 is nearly the slowest.

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


def case(
    name: str, lift: Callable[[np.ndarray], Any], width: int = Select.width
) -> Callable[[], object]:
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
    suite.width = width
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


def steps(seconds: float) -> Callable[[], object]:
    """One thread in NumPy's loops over as many numbers as the tokens have, about as long."""
    x, y = np.random.default_rng(0).random((2, 576, 1024), dtype=np.float32)
    out = np.empty_like(x)

    def run(often: int) -> None:
        for _ in range(often):
            np.multiply(x, y, out=out)
            np.sqrt(out, out=out)
            out.sum()

    start = time.process_time()
    run(20)
    often = max(1, round(20 * seconds / (time.process_time() - start)))
    return lambda: run(often)


class Times(NamedTuple):
    """Milliseconds of every call of a row: by the clock, and of processors."""

    clock: list[float]
    processor: list[float]


def shared(middle: dict[str, float], seconds: float) -> dict[str, int]:
    """How often each row is called: as much time for each, and what some leave for the others."""
    calls: dict[str, int] = {}
    left = seconds
    for place, name in enumerate(sorted(middle, key=middle.__getitem__)):
        fair = left / (len(middle) - place)
        calls[name] = int(np.clip(fair / middle[name], LEAST, MOST))
        left -= calls[name] * middle[name]
    return calls


def taken(
    calls: dict[str, Callable[[], object]], often: dict[str, int], seconds: float, what: str
) -> dict[str, Times]:
    """Times of the calls, spread evenly, for so many seconds at most."""
    turns = sorted(((i + 0.5) / often[name], name) for name in calls for i in range(often[name]))
    times = {name: Times([], []) for name in calls}
    start = told = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for place, (_, name) in enumerate(turns):
            calls[name]()  # another row's memory may have been put out of reach meanwhile
            busy, began = time.process_time(), time.perf_counter()
            calls[name]()
            ended, spent = time.perf_counter(), time.process_time() - busy
            times[name].clock.append(1e3 * (ended - began))
            times[name].processor.append(1e3 * spent)
            if ended - told > 10:
                told = ended
                print(f"{what}: {place} of {len(turns)} calls", file=sys.stderr, flush=True)
                gc.collect()
            if ended - start > seconds and all(len(each.clock) >= 3 for each in times.values()):
                break
    except KeyboardInterrupt:
        print(f"{what}: stopped", file=sys.stderr)
    finally:
        gc.enable()
    return times


def worked(alone: Times, beside: Times) -> float:
    """The p99 of processor time beside others, to the median alone."""
    return float(np.percentile(beside.processor, 99) / max(np.median(alone.processor), 1e-3))


def row(name: str, alone: Times, beside: Times, limit: float) -> tuple[str, bool, bool]:
    """A line of the table; whether the goal is met, and if not, whether the miss is ours."""
    quiet = float(np.median(alone.clock))
    told = [quiet, *np.percentile(beside.clock, (50, 95, 99))]
    late = told[-1] / quiet
    work = worked(alone, beside)
    met = bool(late <= GOAL)
    word = "met" if met else "ours" if work > limit else "waited"
    numbers = " | ".join(f"{each:.2f}" for each in told)
    count = len(beside.clock)
    return (
        f"| {name} | {numbers} | {late:.1f} | {work:.1f} | {word} | {count} |",
        met,
        word == "ours",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.5, help="in all, after warming up")
    parser.add_argument("--method", action="append", help="only these")
    parser.add_argument("--write", action="store_true", help="write the page")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("warming up", file=sys.stderr, flush=True)
    sc.warm_up(shapes=[(64, 32)])
    start = time.perf_counter()
    calls: dict[str, Callable[[], object]] = {
        f"a loop of {1e3 * seconds:g} ms |": loop(seconds) for seconds in LOOPS
    }
    calls[f"a loop of {1e3 * LOOPS[-1]:g} ms over arrays |"] = steps(LOOPS[-1])
    absent: dict[str, str] = {}
    named = given.method or NAMES
    wide = [(f"{name}, wide", name, WIDTH) for name in WIDE if name in named]
    for label, name, width in [*((name, name, Select.width) for name in named), *wide]:
        for library, lift in (("arrays", np.asarray), ("tensors", torch.from_numpy)):
            try:
                calls[f"{label} | {library}"] = case(name, lift, width)
            except (TypeError, ValueError, NotImplementedError) as error:
                absent[name] = f"{name} ({str(error).partition(';')[0]})"
    for run in calls.values():
        run()
    left = 60 * given.minutes - (time.perf_counter() - start)
    alone = taken(calls, dict.fromkeys(calls, ALONE), left / 3, "alone")
    middle = {name: float(np.median(times.clock)) / 1e3 for name, times in alone.items()}
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(cores)]
    try:
        time.sleep(0.5)
        left = 60 * given.minutes - (time.perf_counter() - start)
        # Half of the processors is what is left beside as many others, and half of the calls count.
        beside = taken(calls, shared(middle, left / 4), left, "beside busy processes")
    finally:
        for process in busy:
            process.kill()
    lines = [
        "| method | on | alone, ms | p50 | p95 | p99 | p99 / alone | processor | goal | calls |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    rows = [name for name in calls if not name.startswith("a loop")]
    # What the machine does to plain Python is not ours either.
    loops = [name for name in calls if name not in rows and beside[name].clock]
    limit = max([OURS, *(worked(alone[name], beside[name]) for name in loops)])
    held, ours = [], []
    for name in calls:
        if not beside[name].clock:
            continue
        told, met, mine = row(name, alone[name], beside[name], limit)
        lines.append(told)
        held += [name] * (met and name in rows)
        ours += [name] * (mine and name in rows)
    print("\n".join(lines))
    long = [name for name in rows if middle[name] >= 2e-3]
    held_long = [name for name in held if name in long]
    verdict = (
        f"{len(held)} of {len(rows)} rows stay within {GOAL:g}; of those whose call takes 2 ms or "
        f"more, {len(held_long)} of {len(long)}. Of those that do not, {len(ours)} took more of "
        "the processors than alone, the others waited."
    )
    if absent:
        verdict += f" Without a row: {', '.join(absent.values())}."
    print(verdict)
    if given.write:
        machine = described("secateur", "numpy", "torch", "numba")
        page = INTRODUCTION.format(goal=GOAL, ours=OURS, machine=machine, verdict=verdict)
        path = DOCS / "benchmarks" / "latency.md"
        path.write_text(page + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
