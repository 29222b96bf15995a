"""The log of a training run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Journal:
    """Running means of what was measured, one line of JSON every fifty steps."""

    def __init__(self, path: Path, **first: Any) -> None:
        self.path = path
        self._write(first)
        self._clear()

    def note(self, losses: dict[str, float], counts: dict[str, tuple[int, int]]) -> None:
        """Take the losses of a step and how many answers of each kind were right."""
        self.steps += 1
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss
        for kind, (right, asked) in counts.items():
            before = self.counts.get(kind, (0, 0))
            self.counts[kind] = (before[0] + right, before[1] + asked)

    def write(self, step: int) -> dict[str, Any]:
        """Write the means since the last line."""
        line = {
            "step": step,
            "minutes": round((time.perf_counter() - self.began) / 60, 2),
            **{name: round(total / self.steps, 4) for name, total in self.losses.items()},
            **{k: round(right / asked, 3) for k, (right, asked) in self.counts.items() if asked},
        }
        self._write(line)
        self._clear()
        return line

    def _clear(self) -> None:
        self.steps = 0
        self.losses: dict[str, float] = {}
        self.counts: dict[str, tuple[int, int]] = {}
        self.began = time.perf_counter()

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
