"""What an operator reads in /metrics: how many tokens there were, how many stayed, what it took.

Images are encoded in processes that vLLM's API does not share a registry with. Each of those keeps
a few numbers in a file of a folder that the API process made; the API reads them when it is asked.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PLACE = "SECATEUR_COUNTERS"
"""The environment variable that tells processes the folder."""

COUNTED = {
    "pictures": "Images, and frames of videos, that were encoded.",
    "tokens_before": "Visual tokens of those before pruning.",
    "tokens_after": "Visual tokens of those that went on to the language model.",
    "choosing_seconds": "Seconds spent on choosing, after the tower was done.",
}
"""The numbers of a file, in order; what was found in a cache is not encoded again."""


class Counters:
    """The numbers of this process; kept nowhere when no folder was made for them."""

    def __init__(self) -> None:
        folder = os.environ.get(PLACE)
        self._held: Any = None
        if folder is not None and Path(folder).is_dir():
            file = Path(folder) / f"{os.getpid()}.counts"
            if not file.exists():
                np.zeros(len(COUNTED)).tofile(file)
            self._held = np.memmap(file, dtype=np.float64, mode="r+")

    def add(self, pictures: int, before: int, after: int, seconds: float) -> None:
        """What one pass of the tower came to."""
        if self._held is not None:
            self._held += (pictures, before, after, seconds)


class Collector:
    """Sums the numbers of all processes for Prometheus."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.method = ""

    def totals(self) -> dict[str, float]:
        """The sums by name."""
        files = [np.fromfile(each, np.float64) for each in self.folder.glob("*.counts")]
        whole = [each for each in files if len(each) == len(COUNTED)]
        sums = np.sum(whole, axis=0) if whole else np.zeros(len(COUNTED))
        return dict(zip(COUNTED, sums.tolist(), strict=True))

    def collect(self) -> Iterator[Any]:
        """What Prometheus asks a collector for."""
        from prometheus_client.core import CounterMetricFamily

        for name, total in self.totals().items():
            family = CounterMetricFamily(f"secateur_{name}", COUNTED[name], labels=["method"])
            family.add_metric([self.method], total)
            yield family


_offered: list[Collector] = []


def offer(method: str) -> None:
    """Make the folder, once a process, and have /metrics show it under the method's name."""
    if not _offered:
        from prometheus_client import REGISTRY

        if PLACE not in os.environ:
            folder = os.environ[PLACE] = tempfile.mkdtemp(prefix="secateur-counters-")
            atexit.register(_removed, folder, os.getpid())
        _offered.append(Collector(os.environ[PLACE]))
        REGISTRY.register(_offered[0])
    _offered[0].method = method


def _removed(folder: str, maker: int) -> None:
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)
