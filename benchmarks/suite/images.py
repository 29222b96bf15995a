"""Inputs that look like what a vision encoder makes of a photograph."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_filter


def photo_like(n: int, d: int, seed: int = 0, fields: int = 48, noise: float = 0.35) -> np.ndarray:
    """Features (n, d), float32, of tokens on a square grid.

    A common mean, smooth fields of several scales, every third of them cut into regions, mixed
    into d channels, and noise. Cosines of neighbours are near 0.9, of others near 0.3.
    """
    dice = np.random.default_rng(seed)
    side = math.ceil(math.sqrt(n))
    maps = []
    for field in range(fields):
        sigma = side / 2.0 ** (2 + 4 * dice.random())
        z = gaussian_filter(dice.standard_normal((side, side)), sigma, mode="wrap")
        z = (z - z.mean()) / z.std()
        maps.append(1.5 * (z > 0.3) if field % 3 == 0 else z)
    scene = np.stack(maps, axis=-1).reshape(side * side, fields)
    x = scene @ dice.standard_normal((fields, d)) / math.sqrt(fields)
    x += 0.6 * dice.standard_normal(d) + noise * dice.standard_normal(x.shape)
    return x[:n].astype(np.float32)


def relevance_like(n: int, seed: int = 0) -> np.ndarray:
    """Weights (n,) in (0, 1], most of them small."""
    return np.random.default_rng(seed).random(n) ** 2
