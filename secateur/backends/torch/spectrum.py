r"""Entropies of singular values without an eigensolver, for which a device would be waited for.

For an eigenvalue x of a Gram matrix A, of a singular value :math:`\sqrt x`,

.. math::

    2\pi \sqrt x = \int \log(1 + x e^{-s}) \, e^{s/2} ds, \qquad
    2\pi \sqrt x \, (\log x - 2) = \int \log(1 + x e^{-s}) \, e^{s/2} s \, ds,

and over all eigenvalues the logarithms add up to that of det(I + A / t), t = e^s, which a Cholesky
factor tells. Sums over equally spaced s come as close to such integrals as
:math:`e^{-2 \pi^2 / \text{step}}`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from secateur.backends.torch.greedy import on_device

Tensor = Any

STEP = 1.0
"""Between two s: what is left out of the integrals is 1e-9 of them."""
FIRST, LAST = -34.0, 8.0
"""The smallest s, at 4e-8 of the largest singular value, and the largest, beyond which two terms of
the logarithm's series do."""
PANEL = 64
"""Columns of a Cholesky factor that are worked out together."""
BLOCK = 1 << 25
"""Numbers in the matrices that are factored at once: 256 MiB."""


class Weights(NamedTuple):
    """What the two integrals are sums of."""

    s: np.ndarray[Any, Any]
    logarithms: np.ndarray[Any, Any]
    """Of log det(I + A e^-s), (2, S)."""
    traces: np.ndarray[Any, Any]
    """Of the traces of A and of A^2, (2, 2)."""


@lru_cache(maxsize=1)
def weights() -> Weights:
    """Those of matrices of eigenvalues up to 1.

    s begins where a singular value cannot be told from rounding. Below it the logarithms grow by
    what they grew last: by as many e-folds as there are eigenvalues above.
    """
    s = np.arange(FIRST, LAST + STEP / 2, STEP)

    def both(s: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        plain = STEP / (2 * math.pi) * np.exp(s / 2)
        return np.stack([plain, plain * s])

    each = both(s)
    steps = np.arange(1, 200)
    below, above = s[0] - STEP * steps, s[-1] + STEP * steps
    each[:, 0] += (both(below) * (1 + steps)).sum(axis=-1)
    each[:, 1] -= (both(below) * steps).sum(axis=-1)
    traces = [both(above) @ np.exp(-above), both(above) @ np.exp(-2 * above) / -2]
    return Weights(s, each, np.stack(traces, axis=-1))


def singular_entropy(x: Tensor) -> Tensor:
    """Entropies (...) of the singular values of matrices (..., N, D) of less than float64."""
    wide = x.double()
    gram = wide.mT @ wide if wide.shape[-2] > wide.shape[-1] else wide @ wide.mT
    batch, size = gram.shape[:-2], gram.shape[-1]
    if gram.numel() == 0:
        return torch.zeros(batch, dtype=x.dtype, device=x.device)
    gram = gram.reshape(-1, size, size)
    # Of all eigenvalues together, so that none is above 1.
    length = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True)
    gram = gram / torch.where(length > 0, length, torch.ones_like(length))
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    square = torch.linalg.vector_norm(gram, dim=(-2, -1)).square()
    using = weights()
    factors = np.concatenate([using.traces, using.logarithms], axis=-1)
    roots, rest = on_device(factors, gram.device).view(2, -1) @ torch.cat(
        [torch.stack([trace, square]), logarithms(gram)]
    )
    # The sum over roots of root log root, where `rest` is of root (2 log root - 2).
    roots = torch.where(roots > 0, roots, torch.ones_like(roots))
    entropy = roots.log() - (rest + 2 * roots) / (2 * roots)
    return entropy.clamp(0.0, math.log(size)).reshape(batch).to(x.dtype)


def logarithms(gram: Tensor) -> Tensor:
    """log det(I + A e^-s) of matrices (B, N, N): (S, B) for all s."""
    images, size = gram.shape[0], gram.shape[-1]
    s = on_device(weights().s, gram.device)
    blocks = s.neg().exp().split(max(1, BLOCK // (images * size * size)))
    found = torch.cat([_log_determinants(gram * each.view(-1, 1, 1, 1)) for each in blocks])
    # Rounding may leave no Cholesky factor where e^s is as small as it: they grow as they grew.
    place = torch.arange(len(s), device=gram.device).unsqueeze(-1)
    first = ((place + 1) * ~found.isfinite()).amax(dim=0, keepdim=True).clamp_(max=len(s) - 2)
    start = found.gather(0, first)
    grown = start + (first - place) * (start - found.gather(0, first + 1))
    return torch.where(place < first, grown, found)


def _log_determinants(a: Tensor) -> Tensor:
    """log det(I + A) (S, B) of matrices A (S, B, N, N), which are overwritten.

    NaN of those that are not positive.
    """
    size = a.shape[-1]
    a.diagonal(dim1=-2, dim2=-1).add_(1.0)
    left = a.view(-1, size, size)
    factors, failed = [], []
    for lo in range(0, size, PANEL):
        hi = min(lo + PANEL, size)
        factor, info = torch.linalg.cholesky_ex(left[:, lo:hi, lo:hi])
        factors.append(factor.diagonal(dim1=-2, dim2=-1))
        failed.append(info)
        if hi < size:
            side = torch.linalg.solve_triangular(factor, left[:, lo:hi, hi:], upper=False)
            left[:, hi:, hi:].baddbmm_(side.mT, side, alpha=-1.0)
    whole = torch.stack(failed).amax(dim=0) == 0
    total = 2 * torch.cat(factors, dim=-1).log().sum(dim=-1)
    return torch.where(whole, total, math.nan).view(a.shape[:2])
