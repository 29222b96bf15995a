"""Time this tree beside another commit, in a pair of processes that take turns.

python benchmarks/against.py               # ten operations against the parent commit
python benchmarks/against.py 7bea2d5 --all # every case of the suite that both have

Both processes run the cases of this tree's `benchmarks/suite`, each with its own secateur, on one
thread. What is compared is processor time, the median of paired rounds. An operation that takes
more than `--limit` times as long is measured again, longer and in up to three fresh pairs, before
it counts.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
AGAIN = 3
"""Fresh pairs of processes in all of which an operation must be slower before it counts."""
SUITE = ("operations", "selecting", "inside")
USUAL = """
operations.FacilityLocation.time_maximize('numba', (576, 64, 1), 'float32')
operations.FacilityLocationFeatures.time_maximize('numba', (2304, 320, 1))
operations.Diversity.time_determinant('numba', (576, 64, 1))
operations.Diversity.time_farthest_first_from_features('numba', (576, 64, 1))
operations.Tokens.time_dense_relevance('numba', (576, 1024))
operations.Tokens.time_threshold_scan('torch', (576, 1024))
operations.PatchEntropy.time_patch_entropy('numba', 'uint8')
selecting.Select.time_select('eadp',)
selecting.Select.time_select('hiprune',)
selecting.Select.time_select('cdpruner',)
""".split("\n")[1:-1]


def cases() -> Iterator[tuple[str, Callable[[], Callable[[], None]]]]:
    """Names of the suite's cases, and what sets each up."""
    for module in SUITE:
        for kind in vars(importlib.import_module(f"benchmarks.suite.{module}")).values():
            times = [name for name in dir(kind) if name.startswith("time_")]
            if not isinstance(kind, type) or not times:
                continue
            for args in itertools.product(*kind.params):
                for name in times:
                    told = f"{module}.{kind.__name__}.{name}{args}"
                    yield told, lambda kind=kind, name=name, args=args: ready(kind, name, args)


def ready(kind: type, name: str, args: tuple[Any, ...]) -> Callable[[], None]:
    """One case, set up and run once."""
    case = kind()
    case.setup(*args)
    run = getattr(case, name)
    run(*args)
    return lambda: run(*args)


def work() -> None:
    """Answer on standard output what standard input asks: a case to set up, or how often to run."""
    known, run = dict(cases()), None
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, str):
            try:
                run = known[asked]()
                answer: Any = None
            except Exception as error:  # a case that this commit does not have
                answer = f"{type(error).__name__}: {error}"
        else:
            start = time.process_time()
            for _ in range(asked):
                run()
            answer = (time.process_time() - start) / asked
        print(json.dumps(answer), flush=True)


class EndedError(Exception):
    """A process that is no more: its secateur cannot be imported."""


class Worker:
    """A process that runs cases with the secateur of one tree."""

    def __init__(self, tree: Path) -> None:
        path = os.pathsep.join([str(tree), str(ROOT)])
        one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--work"],
            env=os.environ | one | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, what: str | int) -> Any:
        self.tell(what)
        return self.hear()

    def tell(self, what: str | int) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(what), file=self.process.stdin, flush=True)

    def hear(self) -> Any:
        answer = self.process.stdout.readline()
        if not answer:
            raise EndedError
        return json.loads(answer)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compared(case: str, new: Worker, old: Worker, rounds: int) -> tuple[float, float, float] | None:
    """Seconds now and then and the median of their paired ratios; None where one cannot run it."""
    # Both at once: each may have something to compile.
    for each in (new, old):
        each.tell(case)
    refused = [each.hear() for each in (new, old)]
    if refused != [None, None]:
        return None
    often = max(1, min(200, round(0.02 / max(new.ask(1), 1e-6))))
    now, then = [], []
    for turn in range(rounds):
        pair = [(new, now), (old, then)]
        for worker, seconds in pair if turn % 2 else pair[::-1]:
            seconds.append(worker.ask(often))
    ratio = np.median(np.array(now) / np.array(then))
    return float(np.median(now)), float(np.median(then)), float(ratio)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default="HEAD^")
    parser.add_argument("--all", action="store_true", help="every case of the suite")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.25)
    asked = parser.parse_args()
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", f"{asked.commit}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        print(f"There is no commit {asked.commit} here to compare with.")
        return 0 if asked.commit == parser.get_default("commit") else 2
    names = [name for name, _ in cases()] if asked.all else USUAL
    slower = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "other"
        subprocess.run(
            [*git, "worktree", "add", "--quiet", "--detach", tree, asked.commit], check=True
        )
        try:
            new, old = Worker(ROOT), Worker(tree)
            print(f"{'now':>10} {asked.commit[:12]:>12} {'ratio':>6}")
            for name in names:
                seen = compared(name, new, old, asked.rounds)
                for _ in range(AGAIN):
                    if seen is None or seen[2] <= asked.limit:
                        break
                    # Where memory lies otherwise, two processes of one program differ by a third;
                    # what became slower is slower in every pair of them.
                    fresh = Worker(ROOT), Worker(tree)
                    seen = compared(name, *fresh, 3 * asked.rounds)
                    for worker in fresh:
                        worker.end()
                if seen is None:
                    print(f"{'':>10} {'':>12} {'':>6}  {name}: not in both")
                    continue
                print(
                    f"{seen[0] * 1e3:7.2f} ms {seen[1] * 1e3:9.2f} ms {seen[2]:6.2f}  {name}",
                    flush=True,
                )
                if seen[2] > asked.limit:
                    slower.append(name)
            for worker in (new, old):
                worker.end()
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)
    print("\n".join(["", "Slower than allowed:", *slower]) if slower else "Nothing is slower.")
    return bool(slower)


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        work()
    else:
        raise SystemExit(main())
