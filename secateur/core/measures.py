"""How much an image says: entropies and effective rank."""

from __future__ import annotations

import math

from secateur.core.arrays import (
    Array,
    checked,
    device,
    namespace,
    operation,
    spell,
    whole,
    wide,
    widened,
)


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
def singular_values(features: Array) -> Array:
    """Singular values (..., min(N, D)) of matrices (..., N, D), largest first."""
    return namespace(features).linalg.svdvals(features)


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
    these are accurate enough.

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
    xp = namespace(features)
    largest = xp.max(xp.abs(features), axis=(-2, -1), keepdims=True)
    scaled = features / xp.where(largest > 0, largest, xp.ones_like(largest))
    return xp.exp(_entropy(singular_values(scaled), -1, False))


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
    if whole(patch) < 1:
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
