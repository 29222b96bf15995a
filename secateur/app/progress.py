"""How far something is that takes longer than a moment: one line on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[], None]]:
    """Count steps: what is yielded is called after each. Into files and pipes nothing is written.

    The time that is left is told once two seconds have passed, by the steps made so far.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    start, made = perf_counter(), 0

    def say() -> None:
        spent = perf_counter() - start
        left = ""
        if 0 < made < total and spent > 2:
            seconds = spent / made * (total - made)
            left = f", {seconds:.0f} s left" if seconds < 90 else f", {seconds / 60:.0f} min left"
        print(f"\r\033[K{label}: {made} of {total}{left}", end="", file=sys.stderr, flush=True)

    def done() -> None:
        nonlocal made
        made += 1
        say()

    say()
    try:
        yield done
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def saying(what: str) -> None:
    """Say on a terminal what is begun."""
    if sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
