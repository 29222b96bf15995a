"""Time of whole methods, from the tokens of an image to a selection."""

from __future__ import annotations

from typing import Any

import numpy as np

import secateur as sc

from .images import photo_like, relevance_like

SIDE, WIDTH, KEEP = 24, 1024, 64
NAMES = sorted(sc.methods())
PARAMETERS = {"agilepruner": {"mean_erank": 100.0}, "erase": {"patch": 14}}


class Select:
    """576 tokens of 1024 numbers, an instruction of 77 tokens, 64 tokens kept."""

    params = (NAMES,)
    param_names = ("method",)
    width = WIDTH

    def setup(self, name: str) -> None:
        n = SIDE * SIDE
        dice = np.random.default_rng(0)
        words = photo_like(77, self.width, seed=1)
        self.tokens = sc.Tokens(
            features=photo_like(n, self.width),
            grid=(SIDE, SIDE),
            text=words,
            text_global=words.mean(0),
            attention=relevance_like(n),
            attention_shallow=relevance_like(n, seed=1),
            keys=photo_like(n, 64, seed=2),
            pixels=dice.integers(0, 256, (SIDE * 14, SIDE * 14, 3), dtype=np.uint8),
        )
        try:
            self.method = sc.method(name, keep=KEEP, **PARAMETERS.get(name, {}))
            self.method.select(self.tokens)
        except (TypeError, ValueError) as error:
            # Methods that have no defaults, or prune inside the language model.
            raise NotImplementedError(str(error)) from error

    def time_select(self, _: Any) -> None:
        self.method.select(self.tokens)
