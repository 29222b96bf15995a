"""How much an image says: entropies and effective rank."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    device,
    epsilon,
    lent,
    like,
    namespace,
    spell,
    to_numpy,
    whole,
    wide,
    widened,
)
from secateur.core.dispatch import operation
from secateur.core.parameters import typed

Floats = np.ndarray[Any, np.dtype[np.float64]]


@typed
def entropy(
    p: Array, axis: int = -1, normalize: bool = False, *, check_finite: bool = True
) -> Array:
    r"""Shannon entropy of a distribution, in nats.

    .. math:: H(p) = -\sum_i p_i \log p_i, \qquad 0 \log 0 = 0

    Parameters
    ----------
    p
        Non-negative numbers (..., N); scaled to sum to one along `axis`.
    axis
        The axis that holds a distribution.
    normalize
        Divide by log N, the entropy of the uniform distribution, so that the answer lies in
        [0, 1]; a distribution over one outcome gives 0.

    Returns
    -------
    Array
        Entropies (...), in [0, log N]. A row of zeros has entropy 0.

    Notes
    -----
    O(N) time and memory.

    References
    ----------
    C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal, 1948.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> sc.entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(4)
    array([0.6931, 0.    ])
    """
    p = checked(p, "p", "(..., N)", check_finite=check_finite, non_negative=True)
    if not -p.ndim <= axis < p.ndim or not p.shape[axis]:
        raise ValueError(f"axis: expected one that holds numbers in {spell(p.shape)}, got {axis}")
    return _entropy(p, axis, normalize)


def _entropy(p: Array, axis: int, normalize: bool) -> Array:
    xp = namespace(p)
    one = xp.ones_like(p)
    largest = xp.max(p, axis=axis, keepdims=True)
    p = p / xp.where(largest > 0, largest, xp.ones_like(largest))
    total = xp.sum(p, axis=axis, keepdims=True)
    p = p / xp.where(total > 0, total, xp.ones_like(total))
    h = 0.0 - xp.sum(p * xp.log(xp.where(p > 0, p, one)), axis=axis)
    n = int(p.shape[axis])
    h = xp.clip(h, 0.0, math.log(n))
    return h / math.log(n) if normalize and n > 1 else h


@typed
def attention_entropy(
    attention: Array, normalize: bool = False, *, check_finite: bool = True
) -> Array:
    """Entropy of the attention that visual tokens receive.

    Low: the evidence sits in few places. High: it is spread over the image.

    Parameters
    ----------
    attention
        Non-negative attention (..., N), of any scale.
    normalize
        Divide by log N.

    Returns
    -------
    Array
        Entropies (...), in nats. O(N).

    References
    ----------
    AgilePruner, ICLR 2026, arXiv 2603.01236, uses it as a measure of an image's complexity.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> float(sc.attention_entropy(np.ones(8), normalize=True))
    1.0
    """
    attention = checked(
        attention, "attention", "(..., N)", check_finite=check_finite, non_negative=True
    )
    return _entropy(attention, -1, normalize)


@operation
def largest_eigenvectors(x: Array, count: int) -> tuple[Array, Array]:
    """The largest eigenvalues (..., G) of symmetric x (..., N, N), falling; vectors (..., N, G).

    >>> import numpy as np
    >>> from secateur.core.measures import largest_eigenvectors
    >>> largest_eigenvectors(np.diag([1.0, 3.0, 2.0]), 2)[0]
    array([3., 2.])
    """
    xp = namespace(x)
    values, vectors = xp.linalg.eigh(x)
    return xp.flip(values, axis=-1)[..., :count], xp.flip(vectors, axis=-1)[..., :count]


@operation
def singular_values(features: Array) -> Array:
    """Singular values (..., min(N, D)) of matrices (..., N, D), largest first."""
    return namespace(features).linalg.svdvals(features)


@operation
def singular_entropy(features: Array) -> Array:
    """Entropies (...) of the singular values of matrices (..., N, D), as shares of their sum."""
    return _entropy(singular_values(features), -1, False)


@typed
def effective_rank(features: Array, *, check_finite: bool = True) -> Array:
    r"""How many directions a set of vectors really uses.

    .. math:: \operatorname{erank}(X) = e^{H(p)}, \qquad p = s / \textstyle\sum_i s_i

    for the singular values s of X. It lies between 1 and the rank, and scaling X, permuting
    its rows or rotating its columns does not change it.

    Parameters
    ----------
    features
        Matrices (..., N, D).

    Returns
    -------
    Array
        Effective ranks (...). Features that are all zero give 1.

    Notes
    -----
    O(N D min(N, D)) time. A driver may take the eigenvalues of the smaller Gram matrix where
    these are accurate enough; on a CUDA device Cholesky factors of it take their place.

    References
    ----------
    O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality",
    EUSIPCO 2007.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> float(sc.effective_rank(np.eye(5)[:3]).round(6))
    3.0
    """
    features = checked(features, "features", "(..., N, D)", check_finite=check_finite)
    # A derivative is taken through the tensor itself.
    x = features if getattr(features, "requires_grad", False) else lent(features)
    xp = namespace(x)
    largest = xp.max(xp.abs(x), axis=(-2, -1), keepdims=True)
    if not check_finite and not bool(xp.all(xp.isfinite(largest))):
        raise ValueError("features: contains NaN or infinity, so that they have no rank")
    scaled = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    if x is not features:
        scaled = like(scaled, features)
    h = singular_entropy(scaled)
    return namespace(h).exp(h)


class Estimate(NamedTuple):
    """An estimated number and its standard error."""

    value: float
    error: float


@typed
def effective_rank_estimate(
    features: Array,
    probes: int = 16,
    steps: int = 32,
    seed: int | None = 0,
    *,
    check_finite: bool = True,
) -> Estimate:
    r"""Estimate the effective rank of large features without their singular values.

    With the singular values s of X, :math:`Z = \sum s` and :math:`L = \sum s \log s`,
    :math:`\operatorname{erank} = \exp(\log Z - L / Z)`. Both sums are traces of functions of a
    Gram matrix A: exact over a few orthonormal vectors q that hold most of A, as
    :math:`\sum q^T f(A) q`, and the rest from random signs v made orthogonal to them, as the
    mean of :math:`v^T f(A) v`. Lanczos quadrature takes these from a few products with A.

    Parameters
    ----------
    features
        One matrix (N, D).
    probes
        How many vectors q, and how many vectors v; at least 2.
    steps
        Products of the Gram matrix with each; at least 2.
    seed
        The same seed gives the same estimate.

    Returns
    -------
    Estimate
        `value` and `error`: the standard error over the random vectors, together with what the
        second half of the Lanczos steps changed.

    Notes
    -----
    O(probes steps N D) time where `effective_rank` takes O(N D min(N, D)): it pays from some
    thousands of tokens and channels on. O(probes steps min(N, D)) memory.

    References
    ----------
    S. Ubaru, J. Chen and Y. Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature", SIAM Journal on Matrix Analysis and Applications, 2017. R. Meyer, C. Musco,
    C. Musco and D. Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.measures import effective_rank_estimate
    >>> x = np.random.default_rng(0).standard_normal((300, 200))
    >>> estimate = effective_rank_estimate(x)
    >>> abs(estimate.value - 178.99) < 2 * estimate.error < 4
    True
    """
    features = checked(features, "features", "(N, D)", check_finite=check_finite)
    if whole(probes) < 2:
        raise ValueError(f"probes: expected a whole number of at least 2, got {probes!r}")
    if whole(steps) < 2:
        raise ValueError(f"steps: expected a whole number of at least 2, got {steps!r}")
    xp = namespace(features)
    largest = float(xp.max(xp.abs(features)))
    if largest == 0.0:
        return Estimate(1.0, 0.0)
    x = features / largest
    if x.shape[0] < x.shape[1]:
        x = xp.matrix_transpose(x)
    size = int(x.shape[1])
    steps, held = min(steps, size), min(probes, size)
    dice = np.random.default_rng(seed)
    held_vectors = like(dice.standard_normal((size, held)), x, dtype=x.dtype)
    for _ in range(2):
        held_vectors = xp.linalg.qr(xp.matrix_transpose(x) @ (x @ held_vectors)).Q
    signs = like(dice.choice([-1.0, 1.0], (size, probes)), x, dtype=x.dtype)
    rest = signs - held_vectors @ (xp.matrix_transpose(held_vectors) @ signs)
    length = xp.sqrt(xp.sum(rest * rest, axis=0))
    start = xp.concat(
        [held_vectors, rest / xp.where(length > 0, length, xp.ones_like(length))], axis=1
    )
    scale = np.concatenate([np.ones(held), to_numpy(length).astype(np.float64) ** 2])
    diagonal, beside = _lanczos(x, start, steps)
    half, _ = _from_quadrature(diagonal[: (steps + 1) // 2], beside, scale, held, epsilon(x))
    value, deviation = _from_quadrature(diagonal, beside, scale, held, epsilon(x))
    most = float(size)
    value, half = min(max(value, 1.0), most), min(max(half, 1.0), most)
    return Estimate(value, math.hypot(value * deviation / math.sqrt(probes), value - half))


def _from_quadrature(
    diagonal: Floats, beside: Floats, scale: Floats, held: int, tiny: float
) -> tuple[float, float]:
    """The effective rank, and the relative deviation of what one random vector makes of it."""
    steps = len(diagonal)
    sums = np.empty((2, len(scale)))
    for column, weight in enumerate(scale):
        off = beside[: steps - 1, column]
        tridiagonal = np.diag(diagonal[:, column]) + np.diag(off, 1) + np.diag(off, -1)
        squares, vectors = np.linalg.eigh(tridiagonal)
        # Singular values below rounding are zeros that noise has lifted.
        s = np.sqrt(np.where(squares > 4 * tiny * squares[-1], squares, 0.0))
        share = weight * vectors[0] ** 2
        sums[:, column] = share @ s, share @ (s * np.log(np.where(s > 0, s, 1.0)))
    z, entropic = sums[:, :held].sum(axis=1) + sums[:, held:].mean(axis=1)
    spread = sums[:, held:] - sums[:, held:].mean(axis=1)[:, None]
    deviation = (1.0 / z + entropic / z**2) * spread[0] - spread[1] / z
    return math.exp(math.log(z) - entropic / z), float(deviation.std(ddof=1))


def _lanczos(x: Array, start: Array, steps: int) -> tuple[Floats, Floats]:
    """Diagonals (steps, P) of X^T X in the Krylov bases of P unit vectors (D, P)."""
    xp = namespace(x)
    basis = [start]
    diagonal = np.zeros((steps, int(start.shape[1])))
    beside = np.zeros_like(diagonal)
    for step in range(steps):
        ahead = xp.matrix_transpose(x) @ (x @ basis[-1])
        diagonal[step] = to_numpy(xp.sum(basis[-1] * ahead, axis=0))
        # Against all earlier vectors, twice: rounding would let them come back.
        for vector in (*basis, *basis):
            ahead = ahead - vector * xp.sum(vector * ahead, axis=0)
        length = xp.sqrt(xp.sum(ahead * ahead, axis=0))
        spent = length <= 16 * epsilon(x) * like(diagonal[: step + 1].max(axis=0), length)
        length = xp.where(spent, xp.zeros_like(length), length)
        beside[step] = to_numpy(length)
        basis.append(
            xp.where(
                spent, xp.zeros_like(ahead), ahead / xp.where(spent, xp.ones_like(length), length)
            )
        )
    return diagonal, beside


@operation
def patch_entropy(image: Array, patch: int) -> Array:
    r"""Entropy of the grey values within each patch of an image, in nats.

    Grey is floor(0.299 R + 0.587 G + 0.114 B), one of 256 values; a patch's entropy is that of
    their histogram within the patch. Rows and columns past the last whole patch do not count.

    Parameters
    ----------
    image
        Images (..., H, W, 3) with values 0..255, of any dtype.
    patch
        Side of the square patches in pixels.

    Returns
    -------
    Array
        Entropies (..., H // patch * W // patch), patches row by row.

    Notes
    -----
    O(256 H W) time for the reference, O(H W) for drivers. The weighted sum is taken in
    float32, in the order written and without fused steps, on every backend: one bit decides
    on which side of a whole number a grey value falls, and so it falls where the authors'
    program puts it.

    References
    ----------
    ERASE, arXiv 2026, first stage.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> image = np.zeros((28, 56, 3), dtype=np.uint8)
    >>> image[:, 28:, :] = np.arange(28, dtype=np.uint8)[:, None, None]
    >>> sc.patch_entropy(image, 28).round(4)
    array([0.    , 3.3322])
    """
    image = checked(image, "image", "(..., H, W, 3)")
    rows, columns = check_image(image, patch)
    xp = namespace(image)
    pixels = image[..., : rows * patch, : columns * patch, :]
    levels = grey_levels(pixels)
    batch = levels.shape[:-2]
    levels = xp.reshape(levels, (*batch, rows, patch, columns, patch))
    area = float(patch * patch)
    levels = xp.astype(levels, wide(xp))
    h = xp.zeros((*batch, rows, columns), dtype=levels.dtype, device=device(levels))
    for level in range(256):
        share = xp.sum(xp.astype(levels == level, h.dtype), axis=(-3, -1)) / area
        h = h - share * xp.log(xp.where(share > 0, share, xp.ones_like(share)))
    return xp.reshape(h, (*batch, rows * columns))


def check_image(image: Array, patch: int) -> tuple[int, int]:
    """Rows and columns of whole patches in an image (..., H, W, 3), or refuse it."""
    if int(image.shape[-1]) != 3:
        raise ValueError(f"image: expected shape (..., H, W, 3), got {spell(image.shape)}")
    given: Any = patch
    if not isinstance(given, int | np.integer) or whole(given) < 1:
        raise ValueError(f"patch: expected a positive whole number of pixels, got {patch!r}")
    height, width = int(image.shape[-3]), int(image.shape[-2])
    if height < patch or width < patch:
        raise ValueError(f"image: {height} x {width} pixels hold no patch of {patch} x {patch}")
    return height // patch, width // patch


def grey_levels(pixels: Array) -> Array:
    """Grey values 0..255 (..., H, W), whole numbers in float32."""
    xp = namespace(pixels)
    pixels = xp.astype(pixels, xp.float32)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return xp.clip(xp.floor((0.299 * red + 0.587 * green) + 0.114 * blue), 0.0, 255.0)


def median(x: Array) -> Array:
    """Median of the last axis, the lower of the two middle values when there are two."""
    xp = namespace(x)
    return xp.sort(widened(x), axis=-1)[..., (int(x.shape[-1]) - 1) // 2]
