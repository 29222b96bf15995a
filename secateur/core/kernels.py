r"""What features are compared by, other than cosines: from features, never the whole matrix.

.. math::
    \text{exemplar: } s_{ij} &= \max(0, \, |x_i|^2 - |x_i - x_j|^2) \\
    \text{gaussian: } s_{ij} &= e^{-|x_i - x_j|^2 / m} \\
    \text{softmax: } s_{ij} &= \operatorname{softmax}_j \cos(x_i, x_j) / 0.2

m is the median of the squared distances. All are at least 0, so that facility location on them is
monotone and submodular. Each takes O(N D) memory and one product of features for the entries asked
for.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Literal, Protocol, get_args

import numpy as np

from secateur.core.arrays import Array, device, epsilon, like, namespace, wide
from secateur.core.similarity import CosineSimilarity, Similarity, SoftmaxSimilarity, row_positions

Kind = Literal["cosine", "norms", "exemplar", "gaussian", "softmax"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Product = Callable[[Array, Array], Array]

TEMPERATURE = 0.2
"""Of the softmax: what MMTok takes for tokens over tokens."""
SAMPLE = 256
"""Tokens, spread evenly, among which the median distance is looked for."""
ALIKE = 64
"""A squared distance is zero up to so many rounding errors of the largest squared norm."""


class Kernel(Similarity, Protocol):
    """Similarities of features with each other, and how well an entry is known."""

    error: float
    """How far an entry may be off, as a multiple of what a cosine is."""


def compared(kind: Kind, features: Array, product: Product = operator.matmul) -> Kernel:
    """The similarities of one image's features (N, D).

    Parameters
    ----------
    kind
        One of `KINDS`; ``"norms"`` is ``"cosine"`` with weights.
    features
        Features (N, D).
    product
        Who multiplies matrices.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> compared("exemplar", x).rows(np.arange(3))
    array([[4., 3., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    if kind == "exemplar":
        return ExemplarSimilarity(features, product)
    if kind == "gaussian":
        return GaussianSimilarity(features, product)
    if kind == "softmax":
        return _SoftmaxKernel(features, features, TEMPERATURE)
    return _CosineKernel(features)


def norms(features: Array) -> Array:
    """Euclidean norms (..., N) of features (..., N, D), in the dtype of sums."""
    xp = namespace(features)
    x = xp.astype(features, wide(xp))
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    scaled = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    return largest[..., 0] * xp.sqrt(xp.sum(scaled * scaled, axis=-1))


class _CosineKernel(CosineSimilarity):
    error = 1.0


class _SoftmaxKernel(SoftmaxSimilarity):
    error = 1.0 / TEMPERATURE


class ExemplarSimilarity:
    r"""How much closer a token is to its exemplar than to the origin.

    .. math:: s_{ij} = \max(0, \, |x_i|^2 - |x_i - x_j|^2) = \max(0, \, 2 x_i x_j - |x_j|^2)

    Facility location on it is exemplar clustering with the origin as the exemplar of last
    resort: the sum of squared distances that the kept tokens take away.

    References
    ----------
    R. Gomes and A. Krause, "Budgeted nonparametric learning from data streams", ICML 2010.
    """

    def __init__(self, features: Array, product: Product = operator.matmul) -> None:
        xp = namespace(features)
        self.sample = xp.astype(features, wide(xp))
        self._product = product
        self.size = self.height = int(features.shape[-2])
        largest = float(xp.max(xp.abs(self.sample)))
        if not math.isfinite(3.0 * largest * largest * self.size * int(features.shape[-1])):
            raise ValueError(
                "features: contain NaN or infinity, or their squares leave the range of numbers; "
                "scaled down they give the same picks"
            )
        self._squares = xp.sum(self.sample * self.sample, axis=-1)
        self.error = 3.0 * float(xp.max(self._squares))

    def columns(self, indices: Array) -> Array:
        """How well those of `indices` serve all tokens: (N, m)."""
        xp = namespace(self.sample)
        products = self._product(self.sample, xp.take(self.sample, indices, axis=0).T)
        return xp.clip(2.0 * products - xp.take(self._squares, indices), 0.0, None)

    def rows(self, indices: Array) -> Array:
        """How well all tokens serve those of `indices`: (m, N)."""
        xp = namespace(self.sample)
        products = self._product(xp.take(self.sample, indices, axis=0), self.sample.T)
        return xp.clip(2.0 * products - self._squares, 0.0, None)


class GaussianSimilarity:
    r"""A Gaussian of the distance, as wide as distances are in this image.

    .. math:: s_{ij} = e^{-|x_i - x_j|^2 / m}

    m is the (upper) median of the squared distances among at most 256 tokens, spread evenly;
    their mean where more than half are zero, 1 where all are.
    """

    def __init__(self, features: Array, product: Product = operator.matmul) -> None:
        xp = namespace(features)
        x = xp.astype(features, wide(xp))
        largest = xp.max(xp.abs(x))
        # Neither a common shift nor a scale changes an entry; without them squares are exact.
        x = x / xp.where(largest > 0, largest, xp.ones_like(largest))
        x = x - xp.mean(x, axis=-2, keepdims=True)
        self.sample = x
        self._product = product
        self.size = self.height = int(features.shape[-2])
        self._squares = xp.sum(x * x, axis=-1)
        most = float(xp.max(self._squares))
        self._width = self._typical(most)
        self.error = max(1.0, 4.0 * most / self._width)

    def _typical(self, most: float) -> float:
        """The median of squared distances, or what stands for it; `most` is the largest square."""
        xp, count = namespace(self.sample), min(self.size, SAMPLE)
        least = ALIKE * epsilon(self.sample) * most
        if count > 1:
            places = like(
                np.arange(count) * self.size // count,
                self.sample,
                dtype=row_positions(1, self.sample).dtype,
            )
            x, squares = (xp.take(each, places, axis=0) for each in (self.sample, self._squares))
            apart = squares[:, None] + squares[None, :] - 2.0 * self._product(x, x.T)
            itself = xp.eye(count, dtype=xp.bool, device=device(apart))
            apart = xp.where(itself, xp.full_like(apart, -xp.inf), apart)
            ordered = xp.sort(xp.reshape(apart, (-1,)))
            median = float(ordered[count + (count * count - count) // 2])
            if median > least:
                return median
        mean = 2.0 * float(xp.mean(self._squares))
        return mean if mean > least else 1.0

    def _powers(self, products: Array, one: Array, other: Array) -> Array:
        xp = namespace(products)
        apart = xp.clip(one[:, None] + other[None, :] - 2.0 * products, 0.0, None)
        return xp.exp(-apart / self._width)

    def columns(self, indices: Array) -> Array:
        """How well those of `indices` serve all tokens: (N, m)."""
        xp = namespace(self.sample)
        products = self._product(self.sample, xp.take(self.sample, indices, axis=0).T)
        return self._powers(products, self._squares, xp.take(self._squares, indices))

    def rows(self, indices: Array) -> Array:
        """How well all tokens serve those of `indices`: (m, N)."""
        xp = namespace(self.sample)
        products = self._product(xp.take(self.sample, indices, axis=0), self.sample.T)
        return self._powers(products, xp.take(self._squares, indices), self._squares)
