"""Call the whole library with arguments of every kind: `python tests/fuzz --seconds 120`.

Each case follows from its seed alone: `python tests/fuzz --replay SEED` runs one in this
process and shows where it ended. Cases run in a child process that writes down which seed it is
at, so that a crash or a case without end is a finding like any other; the next seed goes on.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import faulthandler
import functools
import json
import mmap
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE = 60.0
"""Seconds after which a case counts as one without end, at most; compiling takes some."""
STAY = 30_000
"""Cases of one child."""
MEMORY = 6 << 30
"""Bytes that a child may take beside what it has when it starts."""
BOARD = struct.Struct("qd")
"""What a child writes down: the seed it is at, and since when."""


def child(board_path: str, start: int, stop: int) -> None:
    """Run cases one after the other; a line of JSON for each finding, and a tally now and then."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    warnings.simplefilter("ignore")
    from cases import Case, judge
    from verdict import FaultError

    import secateur.core.methods

    # Reading what is installed anew at each look for a method takes 24 ms.
    secateur.core.methods.entry_points = functools.cache(secateur.core.methods.entry_points)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    tally: collections.Counter[str] = collections.Counter()
    with open(board_path, "r+b") as file:
        board = mmap.mmap(file.fileno(), BOARD.size)
    # Calibrations are saved wherever a case says.
    sys.path[:] = [os.path.abspath(place) for place in sys.path]
    os.chdir(Path(board_path).parent)
    for seed in range(start, stop):
        board[:] = BOARD.pack(seed, time.monotonic())
        try:
            told = judge(seed)
        except FaultError as fault:
            told = "finding"
            say({"seed": seed, "target": name_of(seed), "kind": fault.kind, "told": str(fault)})
        except BaseException:  # also of the harness itself
            told = "finding"
            say({"seed": seed, "target": "?", "kind": "harness", "told": traceback.format_exc()})
        tally[f"{Case(seed).target.name} {told}"] += 1
        if (seed - start) % 500 == 499 or seed == stop - 1:
            say({"tally": tally})
            tally.clear()


def say(line: dict[str, Any]) -> None:
    """One line to the parent."""
    print(json.dumps(line), flush=True)


def name_of(seed: int) -> str:
    """What a seed calls."""
    from cases import Case

    case = Case(seed)
    return f"{case.target.name} ({case.scene.library}, {case.scene.backend})"


class Watch:
    """Children one after the other, and what they said.

    Each is given a file to write down where it is, its first seed, and the one behind its last.
    """

    def __init__(
        self,
        seed: int,
        command: Sequence[str] = (sys.executable, str(HERE), "--child"),
        patience: float = PATIENCE,
        report: Path | None = None,
    ) -> None:
        self.next = seed
        self.report = report
        self.command = command
        self.patience = patience
        self.findings: list[dict[str, Any]] = []
        self.tally: collections.Counter[str] = collections.Counter()

    def until(self, end: float, last: int) -> None:
        """Run cases until a time on the clock, or up to a seed."""
        while time.monotonic() < end and self.next < last:
            self._one_child(end, min(last, self.next + STAY))

    def _one_child(self, end: float, stop: int) -> None:
        with tempfile.TemporaryDirectory() as room, tempfile.TemporaryFile() as errors:
            board = Path(room, "board")
            board.write_bytes(BOARD.pack(self.next, time.monotonic()))
            words = [*self.command, str(board), str(self.next), str(stop)]
            lines: queue.Queue[str | None] = queue.Queue()
            with subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            ) as process:
                threading.Thread(target=self._listen, args=(process, lines), daemon=True).start()
                try:
                    kind = self._wait(process, lines, board, end)
                finally:
                    _kill(process)
            seed, _ = BOARD.unpack(board.read_bytes())
            errors.seek(0)
            told = errors.read().decode(errors="replace")[-2000:]
        self.next = stop if kind is None else seed + 1
        if kind not in (None, "time"):
            self._hear({"seed": seed, "target": "?", "kind": kind, "told": told})

    @staticmethod
    def _listen(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    def _wait(self, process: Any, lines: Any, board: Path, end: float) -> str | None:
        """Why a child ended before its last case; None where it did not."""
        while True:
            try:
                line = lines.get(timeout=0.5)
            except queue.Empty:
                line = ""
            if line is None:
                code = process.wait()
                return None if code == 0 else f"crash: exit status {code}"
            if line:
                self._hear(json.loads(line))
            _, since = BOARD.unpack(board.read_bytes())
            late = time.monotonic() - since > self.patience
            if late or time.monotonic() > end:
                if late:
                    process.send_signal(signal.SIGUSR1)
                    time.sleep(1.0)
                _kill(process)
                while (line := lines.get()) is not None:
                    self._hear(json.loads(line))
                return f"no end within {self.patience:g} s" if late else "time"

    def _hear(self, line: dict[str, Any]) -> None:
        if "tally" in line:
            self.tally.update(line["tally"])
            return
        self.findings.append(line)
        if self.report is not None:
            with self.report.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def summary(self, first: int, seconds: float) -> str:
        """What was done and found, for people."""
        outcomes: collections.Counter[str] = collections.Counter()
        called: collections.Counter[str] = collections.Counter()
        for key, count in self.tally.items():
            name, _, told = key.rpartition(" ")
            outcomes[told] += count
            called[name] += count
        every = ", ".join(f"{name} {count:,}" for name, count in sorted(called.items()))
        done = sum(outcomes.values())
        lines = [
            f"{done:,} cases in {seconds:.0f} s ({done / seconds:.0f} a second), from seed {first}",
            ", ".join(f"{count:,} {told}" for told, count in sorted(outcomes.items())),
            f"by function: {every}",
        ]
        kinds = collections.defaultdict(list)
        for finding in self.findings:
            kinds[finding["kind"]].append(finding)
        for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
            seeds = " ".join(str(each["seed"]) for each in found[:3])
            lines.append(f"{len(found):6} {kind}: {found[0]['target']}: seeds {seeds}")
            lines.append(f"       {found[0]['told'][:200]}")
        lines.append(f"{len(self.findings):,} findings of {len(kinds)} kinds")
        return "\n".join(lines)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a child and whatever a case of it started, which would hold its lines open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def replay(seed: int) -> int:
    """Run one case in this process, and show all of it."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    from cases import Case, judge

    case = Case(seed)
    print(f"{case.target.name}, {case.scene.library}, {case.scene.backend}, {case.scene.dtype}")
    try:
        for name, value in case.arguments().items():
            print(f"  {name} = {value!r}"[:2000])
    except ValueError:
        traceback.print_exc()
    try:
        print(judge(seed), Case(seed).run())
    except AssertionError as fault:
        traceback.print_exc()
        print(f"{getattr(fault, 'kind', 'harness')}: {fault}")
        return 1
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long")
    parser.add_argument("--cases", type=int, default=1 << 60, help="how many at most")
    parser.add_argument("--seed", type=int, help="of the first case; from the date unless given")
    parser.add_argument("--replay", type=int, metavar="SEED", help="one case, in this process")
    parser.add_argument("--report", type=Path, default=Path("build/fuzz.jsonl"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if words.child:
        child(words.child[0], int(words.child[1]), int(words.child[2]))
        return 0
    if words.replay is not None:
        return replay(words.replay)
    first = words.seed
    if first is None:
        first = datetime.date.today().toordinal() * 10_000_000
    words.report.parent.mkdir(parents=True, exist_ok=True)
    words.report.write_text("")
    # Half of a short run: what hangs is then a finding, and no case that time cut off.
    patience = min(PATIENCE, words.seconds / 2)
    watch, start = Watch(first, patience=patience, report=words.report), time.monotonic()
    watch.until(start + words.seconds, first + words.cases)
    print(watch.summary(first, time.monotonic() - start))
    if watch.findings:
        print(f"in {words.report}; one again: python tests/fuzz --replay SEED")
    return 1 if watch.findings else 0


if __name__ == "__main__":
    sys.exit(main())
