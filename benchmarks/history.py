"""Follow speed from commit to commit: ``python benchmarks/history.py [--steps 24] [--write]``.

Times the usual cases of `against.py` on commits since 0.1 that changed the library, each beside one
that stays the same, the newest when the first was measured, in a pair of processes that take turns:
processor time on one thread, so that other work on the machine weighs little. First `--steps`
commits spread evenly; then, wherever a case changed by more than `--change` between neighbours,
those in between, until the commit that did it is known. What is measured is kept in
`benchmarks/history.json`: a run that was stopped goes on, a longer or later one adds, and
machines are named. `--write` makes the page and the picture.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from against import ROOT, USUAL, EndedError, Worker, compared
from machine import DOCS, described

FIRST = "7bea2d5"
"""The last commit of 0.1 before the next version was begun."""
STORE = ROOT / "benchmarks" / "history.json"
PAGE, PICTURE = DOCS / "benchmarks" / "history.md", DOCS / "benchmarks" / "history.svg"
AGAIN = 3
"""In so many more pairs of processes a change must show, the commit beside the one before it."""

INTRODUCTION = """# From commit to commit

Printed by `python benchmarks/history.py --write`: {cases} cases of the suite on {measured} of the
{all} commits since 0.1 that changed the library ({broken} of them cannot be imported, being half of
a change), each beside {beside} in two processes that took turns, processor time on one thread,
the median of {rounds} pairs. Where a case changed by more than
{percent:g} % and stayed so, commits between were measured until the one was found that did it; it
is named below if it shows in {again} more pairs of processes, too, in which it runs beside the
commit before it: two processes of one program may differ by a third where memory lies otherwise.
Numbers above 1 were slower than {beside}.

{machine}

![How long each case took, as a share of what it takes now](history.svg)

"""


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def commits() -> list[str]:
    """Those that changed the library, the oldest first."""
    later = git("log", "--reverse", "--format=%h", "--abbrev=8", f"{FIRST}..HEAD", "--", "secateur")
    return [git("rev-parse", "--short=8", FIRST), *later.split()]


class Trees:
    """Two trees that commits are checked out in, one after the other.

    A file that stays the same keeps its date, and what Numba compiled of it stands.
    """

    def __init__(self, folder: str) -> None:
        self.trees = [Path(folder) / name for name in ("beside", "other")]
        for tree in self.trees:
            git("worktree", "add", "--quiet", "--detach", str(tree), FIRST)

    def workers(self, beside: str, commit: str) -> list[Worker]:
        for tree, wanted in zip(self.trees, (beside, commit), strict=True):
            git("-C", str(tree), "checkout", "--quiet", "--detach", wanted)
        return [Worker(tree) for tree in self.trees]

    def end(self) -> None:
        for tree in self.trees:
            git("worktree", "remove", "--force", str(tree))


@contextmanager
def checked_out() -> Iterator[Trees]:
    """Trees that are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        trees = Trees(folder)
        try:
            yield trees
        finally:
            trees.end()


def measured(
    trees: Trees, commit: str, beside: str, rounds: int, cases: Sequence[str] = USUAL
) -> dict[str, float | None]:
    """How long each case takes there, as a multiple of what it takes beside; None: not there.

    Nothing where secateur cannot be imported.
    """
    workers = trees.workers(beside, commit)
    try:
        found: dict[str, float | None] = {}
        for case in cases:
            seen = compared(case, workers[0], workers[1], rounds)
            found[case] = None if seen is None else 1 / seen[2]
        return found
    except EndedError:
        return {}
    finally:
        for each in workers:
            each.process.kill()
            each.process.wait()


def spread(line: list[str], steps: int) -> list[str]:
    """So many of a line, the first and the last among them."""
    steps = max(2, min(steps, len(line)))
    return [line[round(i * (len(line) - 1) / (steps - 1))] for i in range(steps)]


Known = dict[str, dict[str, float | None]]


AROUND = 3
"""Commits before and after a change whose medians must differ too: one may have been disturbed."""


def changes(line: list[str], known: Known, change: float) -> list[tuple[str, str, str, float]]:
    """Neighbours among those measured, a case, and how many times as long it lasts from then on."""
    seen = [commit for commit in line if commit in known]
    found = []
    for place in range(1, len(seen)):
        before, after = seen[max(0, place - AROUND) : place], seen[place : place + AROUND]
        for case in USUAL:
            then = [x for commit in before if (x := known[commit].get(case))]
            now = [x for commit in after if (x := known[commit].get(case))]
            if then and now:
                ratio = float(np.median(now) / np.median(then))
                least = min(ratio, now[0] / then[-1]), max(ratio, now[0] / then[-1])
                if least[0] > 1 + change or least[1] < 1 / (1 + change):
                    found.append((before[-1], after[0], case, ratio))
    return found


class Store:
    """What is known, in a file that grows with every commit measured."""

    def __init__(self, newest: str) -> None:
        self.beside, self.machines, self.known = newest, list[str](), Known()
        if STORE.exists():
            kept = json.loads(STORE.read_text())
            self.beside, self.machines = kept["beside"], kept["machines"]
            for commit, row in kept["ratios"].items():
                cells = dict(zip(kept["cases"], row, strict=True)) if row else {}
                self.known[commit] = {case: cells.get(case) for case in USUAL} if row else {}

    def add(self, commit: str, found: dict[str, float | None]) -> None:
        self.known[commit] = found
        machine = described("numpy", "torch", "numba")
        if machine not in self.machines:
            self.machines.append(machine)
        rows = {
            name: [None if x is None else round(x, 3) for x in map(cells.get, USUAL)]
            if cells
            else []
            for name, cells in self.known.items()
        }
        lines = [f'  "{name}": {json.dumps(row)}' for name, row in rows.items()]
        head = {"beside": self.beside, "machines": self.machines, "cases": USUAL}
        text = json.dumps(head, indent=1)[:-2] + ',\n "ratios": {\n'
        STORE.write_text(text + ",\n".join(lines) + "\n }\n}\n")


@functools.cache
def stands(trees: Trees, before: str, after: str, case: str, rounds: int, change: float) -> bool:
    """Whether a case takes that much longer, or less, in every one of some pairs of processes."""
    ratios: list[float] = []
    for _ in range(AGAIN):
        ratio = measured(trees, after, before, rounds, (case,)).get(case)
        ratios.append(1.0 if ratio is None else ratio)
        if min(ratios) <= 1 + change and max(ratios) >= 1 / (1 + change):
            break
    print(f"{after} {short(case)}: {ratios}", file=sys.stderr, flush=True)
    return min(ratios) > 1 + change or max(ratios) < 1 / (1 + change)


def doubtful(trees: Trees, line: list[str], known: Known, rounds: int, change: float) -> str | None:
    """A commit not measured, half-way between two neighbours of whom one differs."""
    for before, after, case, _ in changes(line, known, change):
        low, high = line.index(before), line.index(after)
        if high - low > 1 and stands(trees, before, after, case, rounds, change):
            return line[(low + high) // 2]
    return None


def short(case: str) -> str:
    """A case as a reader may have it named."""
    kind, name = case.split("(", 1)[0].split(".")[-2:]
    given = case.split("(", 1)[1].removesuffix(")").removesuffix(",")
    return f"{kind}.{name.removeprefix('time_')}({given})"


def draw(line: list[str], known: Known) -> None:
    """Every case over the commits measured, as a share of now."""
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "history"
    seen = [(place, commit) for place, commit in enumerate(line) if commit in known]
    rows = -(-len(USUAL) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 1.5 * rows), sharex=True, sharey=True)
    for axis, case in zip(axes.flat, USUAL, strict=False):
        points = [(place, known[commit].get(case)) for place, commit in seen]
        there = [(x, y) for x, y in points if y]
        axis.plot(*zip(*there, strict=True), marker=".", linewidth=1, color="#2f6f4f")
        axis.axhline(1, linewidth=0.6, color="#999999")
        axis.set_title(short(case), fontsize=7)
        axis.set_yscale("log")
        axis.tick_params(labelsize=7)
    axes.flat[0].set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    axes.flat[0].minorticks_off()
    for axis in axes[-1]:
        axis.set_xlabel("commits since 0.1", fontsize=7)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def page(trees: Trees, line: list[str], store: Store, rounds: int, change: float) -> str:
    """The page."""
    known = store.known
    count = sum(commit in known for commit in line)
    text = INTRODUCTION.format(
        cases=len(USUAL),
        measured=count,
        broken=sum(commit in known and not known[commit] for commit in line),
        all=len(line),
        beside=store.beside,
        rounds=rounds,
        percent=100 * change,
        again=AGAIN,
        machine="\n\n".join(store.machines),
    )
    text += "| case | 0.1 | slowest | fastest |\n| --- | ---: | ---: | ---: |\n"
    for case in USUAL:
        seen = [x for commit in line if commit in known and (x := known[commit].get(case))]
        first = known[line[0]].get(case)
        began = f"{first:.2f}" if first else "not there"
        text += f"| `{short(case)}` | {began} | {max(seen):.2f} | {min(seen):.2f} |\n"
    text += f"\n## Commits that changed a case by more than {100 * change:g} %\n\n"
    found = [
        each for each in changes(line, known, change) if stands(trees, *each[:3], rounds, change)
    ]
    if not found:
        return text + "None.\n"
    text += "| commit | case | ratio | what it says |\n| --- | --- | ---: | --- |\n"
    for _, commit, case, ratio in found:
        says = git("log", "-1", "--format=%s", commit).replace("|", "\\|")
        text += f"| {commit} | `{short(case)}` | {ratio:.2f} | {says} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--change", type=float, default=0.25)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    line = commits()
    store = Store(line[-1])
    todo = [commit for commit in spread(line, asked.steps) if commit not in store.known]
    with checked_out() as trees:
        while todo or (more := doubtful(trees, line, store.known, asked.rounds, asked.change)):
            commit = todo.pop(0) if todo else more
            print(f"{line.index(commit) + 1} of {len(line)}: {commit}", file=sys.stderr, flush=True)
            store.add(commit, measured(trees, commit, store.beside, asked.rounds))
        text = page(trees, line, store, asked.rounds, asked.change)
    print(text)
    if asked.write:
        PAGE.write_text(text)
        draw(line, store.known)


if __name__ == "__main__":
    main()
