"""The golden numbers, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"
Golden = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Load the arrays of one file, such as ``single_qwen``."""

    def load(name: str) -> Golden:
        with np.load(DATA / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


class Recorded(Golden):
    """The arrays of one case, as `calls` reads them."""

    @property
    def files(self) -> list[str]:
        """Their names."""
        return list(self)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters the program was run with."""
        return json.loads(str(self["params"]))


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Recorded]:
    """Load one case of the programs that `calls` knows, such as ``new_apet_qwen``."""

    def load(stem: str) -> Recorded:
        with np.load(DATA / f"{stem}.npz") as arrays:
            return Recorded(arrays)

    return load
