"""Time of choosing at a cut inside the language model, from a layer's queries and keys."""

from __future__ import annotations

from typing import Any

import numpy as np

import secateur as sc

HEADS, GROUPS, SIZE, WIDTH = 28, 4, 128, 3584
VISUAL, TEXT = np.arange(20, 596), np.arange(596, 640)


class KeepVisual:
    """576 visual and 44 text tokens in a layer shaped as Qwen2.5-VL-7B's, float32."""

    params = (sorted(n for n, kind in sc.methods().items() if issubclass(kind, sc.InsideMethod)),)
    param_names = ("method",)

    def setup(self, name: str) -> None:
        dice = np.random.default_rng(0)
        self.method = sc.method(name)
        self.queries = dice.normal(size=(HEADS, 640, SIZE)).astype(np.float32)
        self.keys = dice.normal(size=(GROUPS, 640, SIZE)).astype(np.float32)
        self.hidden = dice.normal(size=(640, WIDTH)).astype(np.float32)

    def time_keep_visual(self, _: Any) -> None:
        self.method.keep_visual(
            sc.Cut(after=2, keep=144),
            self.queries,
            self.keys,
            visual=VISUAL,
            text=TEXT,
            hidden=self.hidden,
        )
