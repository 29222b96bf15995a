"""Farthest-first in whole-array steps: how far every token is from those picked."""

from __future__ import annotations

import math
from typing import NoReturn, Protocol

import numpy as np

from secateur.backends.host.greedy import EPSILON, PRODUCT, Floats, Indices, shifted, spans
from secateur.backends.lending import product


class Distances(Protocol):
    """Distances d_ij of `size` tokens."""

    size: int
    margin: float
    """Distances that differ by less than this count as equal."""

    def to(self, j: int) -> Floats:
        """Distances (N,) of all tokens to one."""

    def nearest(self) -> Floats:
        """Distance (N,) of every token to the nearest other one."""

    def among(self, picks: Indices) -> Floats:
        """Distances (M, M) of the picks to each other."""


class GivenDistances:
    """A matrix (N, N)."""

    margin = 0.0

    def __init__(self, matrix: Floats) -> None:
        self._matrix = matrix
        self.size = len(matrix)

    def to(self, j: int) -> Floats:
        column: Floats = self._matrix[:, j]
        return column

    def nearest(self) -> Floats:
        nearest = np.full(self.size, math.inf, dtype=self._matrix.dtype)
        for part in spans(self.size, self.size):
            d = self._matrix[part].copy()
            d[np.arange(len(d)), np.arange(part.start, part.stop)] = math.inf
            np.minimum(nearest, d.min(axis=0), out=nearest)
        return nearest

    def among(self, picks: Indices) -> Floats:
        block: Floats = self._matrix[np.ix_(picks, picks)]
        return block


class CosineDistances:
    """1 - cos of unit vectors (N, D), in float64: cosines decide picks."""

    margin = 16 * EPSILON

    def __init__(self, directions: Floats) -> None:
        self._x = directions
        self.size = len(directions)

    def to(self, j: int) -> Floats:
        return apart(product(self._x, self._x[j]))

    def nearest(self) -> Floats:
        # Half of the products: every block with itself and with what follows. The largest
        # cosine belongs to the smallest distance.
        largest = np.full(self.size, -math.inf, dtype=self._x.dtype)
        for part in spans(self.size, self.size, PRODUCT):
            cosine = product(self._x[part], self._x[part.start :].T)
            own = np.arange(len(cosine))
            cosine[own, own] = -math.inf
            np.maximum(largest[part], cosine.max(axis=1), out=largest[part])
            rest = largest[part.start :]
            np.maximum(rest, cosine.max(axis=0), out=rest)
        return apart(largest)

    def among(self, picks: Indices) -> Floats:
        return apart(product(self._x[picks], self._x[picks].T))


def apart(cosine: Floats) -> Floats:
    """1 - cos within [0, 2], written over the cosines, rounded as 2 (1 - (1 + cos) / 2)."""
    s = shifted(cosine)
    np.subtract(1.0, s, out=s)
    s *= 2.0
    return s


def farthest(distances: Distances, k: int, start: int | None) -> tuple[Indices, Floats, float]:
    """Farthest-first: picks, their gains, and the smallest distance between two of them."""
    picks = np.empty(k, dtype=np.int64)
    gains = np.empty(k)
    opened = np.ones(distances.size, dtype=bool)
    nearest = distances.nearest() if start is None else distances.to(start)
    for step in range(k):
        if step == 0 and start is not None:
            pick = start
            gains[0] = np.delete(nearest, start).min(initial=math.inf)
        else:
            masked = np.where(opened, nearest, -math.inf)
            best = masked.max()
            if math.isnan(best):
                refuse_distances("distance" if distances.margin == 0.0 else "features")
            least = best if math.isinf(best) else best - distances.margin
            pick = int(np.argmax(masked >= least))
            gains[step] = nearest[pick]
        picks[step] = pick
        opened[pick] = False
        d = distances.to(pick)
        nearest = d if step == 0 else np.minimum(nearest, d)
    return picks, gains, smallest_between(distances, picks)


def refuse_distances(name: str) -> NoReturn:
    """Say why no token is the farthest."""
    raise ValueError(f"{name}: contains NaN or infinity, so that no token is the farthest")


def smallest_between(distances: Distances, picks: Indices) -> float:
    """The smallest distance between two picks."""
    if len(picks) < 2:
        return math.inf
    d = distances.among(picks)
    np.fill_diagonal(d, math.inf)
    return float(np.fmin.reduce(d, axis=None))
