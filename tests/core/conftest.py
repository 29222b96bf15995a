"""Who computes: the reference and, where a library has drivers, these."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import secateur as sc


@pytest.fixture(params=["reference", "auto"])
def computed_by(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test once by the reference and once by whatever is fastest."""
    with sc.backend(request.param):
        yield request.param
