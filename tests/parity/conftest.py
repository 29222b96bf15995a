"""The golden numbers, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
