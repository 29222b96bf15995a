"""Drivers that tests of what a CPU does run on."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from secateur.backends.host import driver as plain


@pytest.fixture(params=["numpy", "numba"])
def driver(request: pytest.FixtureRequest) -> ModuleType:
    """Whole arrays at a time, or loops."""
    if request.param == "numpy":
        return plain
    pytest.importorskip("numba")
    compiled = importlib.import_module("secateur.backends.host.compiled")
    compiled.wake()
    return compiled
