"""What a table of measurements says about where it was made."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def described(*packages: str) -> str:
    """The machine, the date and the versions, in one sentence."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    today = datetime.date.today().isoformat()
    return (
        f"{today}, {model}, {cores} cores, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}."
    )


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every round; the contestants take turns, after one round that does not count.

    `before` runs before each of them, off the clock, and then a pause lets the threads of the
    one before come to rest. On a busy machine `time.process_time` tells what wall time does not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            time.sleep(0.02)
            before()
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in seconds.items()}


def spelled(seconds: float) -> str:
    """A duration with three digits."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (float("inf"), 1.0, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("unreachable")


def keep_temporaries() -> None:
    """Let glibc keep freed memory: returning it to the system at every pick dominates otherwise."""
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)
