"""Images made of random numbers, on any array library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import secateur as sc


@pytest.fixture(scope="session")
def image() -> Callable[..., sc.Tokens]:
    """Tokens of an image, or of a batch of them, with everything a method may work from."""

    def make(
        n: int = 36,
        d: int = 8,
        batch: tuple[int, ...] = (),
        grid: tuple[int, int] | None = None,
        seed: int = 0,
        convert: Callable[[Any], Any] = np.asarray,
    ) -> sc.Tokens:
        dice = np.random.default_rng(seed)
        side = round(n**0.5)
        whole = (side, side) if side * side == n else (1, n)
        return sc.Tokens(
            features=convert(dice.normal(size=(*batch, n, d))),
            grid=whole if grid is None else grid,
            text=convert(dice.normal(size=(5, d))),
            text_global=convert(dice.normal(size=d)),
            attention=convert(dice.dirichlet(np.full(n, 0.3), size=batch)),
            attention_shallow=convert(dice.dirichlet(np.full(n, 0.3), size=batch)),
            keys=convert(dice.normal(size=(*batch, n, 6))),
        )

    return make


@pytest.fixture(scope="session")
def row() -> Callable[..., sc.Tokens]:
    """One image of a batch."""

    def take(tokens: sc.Tokens, *position: int) -> sc.Tokens:
        per_image = ("features", "attention", "attention_shallow", "keys")
        return tokens.with_(**{name: getattr(tokens, name)[position] for name in per_image})

    return take
