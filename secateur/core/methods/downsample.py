"""Downsampling: the picture itself made smaller, until its tokens fit the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from secateur.core.acts import Shrinks
from secateur.core.arrays import Array, like, namespace, shape_of, spell, whole, wide
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method, Program
from secateur.core.selection import Selection

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Downsample(Shrinks, Method):
    r"""The whole picture at the largest size whose tokens fit the budget.

    The sides of the grid are scaled alike and rounded down, and at least 1:

    .. math:: h' = \lfloor s h \rfloor, \; w' = \lfloor s w \rfloor
        \quad\text{for the largest } s \le 1 \text{ with } h' w' \le k

    Parameters
    ----------
    keep
        How many tokens the smaller picture may have: a count, or a share of what the whole one
        has.

    Notes
    -----
    It acts on the picture before anything is encoded: `shrink` makes the smaller one, which
    the encoder is given instead. There is nothing to select from, and `select` says so. No
    grid of whole sides need have exactly k tokens: `shrunken_grid` tells how many there are,
    and fewer tokens were spent than a method of k was allowed.

    It is the baseline that a method for choosing tokens must beat. The program behind the
    numbers divides both sides by a whole number, writes the picture as JPEG and reads it back,
    whatever the size, and leaves the count to the processor's rounding; `downsampled` is its
    division alone.

    References
    ----------
    C. Liao, W. Wang, Z. Wen et al., "Are We Using the Right Benchmark: An Evaluation Framework
    for Visual Token Compression Methods", ACL 2026, arXiv 2510.07143.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> sc.Downsample(keep=64).shrunken_grid((24, 24))
    (8, 8)
    >>> sc.Downsample(keep=50).shrunken_grid((12, 20))
    (5, 9)
    """

    name: ClassVar[str] = "downsample"
    complexity: ClassVar[str] = "pixels"
    reference: ClassVar[str] = "Liao et al., ACL 2026, arXiv 2510.07143"
    guarantee: ClassVar[str] = "no larger picture of the same shape fits the budget"
    parity: ClassVar[str] = "the authors' program: pixels to within one level"
    program: ClassVar[Program | None] = Program(
        "Chenfei-Liao/VTC-Bench", "983e443", "its JPEG step is left out"
    )
    prunes_before: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The picture, and how many tokens it has down and across."""
        return frozenset({"pixels", "grid"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Refuse: the picture is made smaller before there are tokens."""
        raise ValueError(
            "Downsample makes the picture smaller before it is encoded and selects no tokens: "
            "give what `shrink(pixels, grid)` makes to the encoder"
        )

    def shrunken_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The smaller picture's tokens (h', w')."""
        sides = [whole(side) for side in grid]
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"grid: expected (h, w), two positive whole numbers, got {grid!r}")
        h, w = sides
        return largest_grid(h, w, self.budget(h * w))

    def shrink(self, pixels: Array, grid: tuple[int, int]) -> Array:
        """The pictures (..., H', W', 3) of pictures (..., H, W, 3) with `grid` tokens.

        A token of the smaller picture covers as many pixels as one of the whole picture.
        """
        height, width = _sides(pixels)
        h, w = self.shrunken_grid(grid)
        return resized(pixels, (height * h // grid[0], width * w // grid[1]))


def largest_grid(h: int, w: int, k: int) -> tuple[int, int]:
    """The largest grid of about the shape of h x w with at most k tokens.

    >>> largest_grid(24, 24, 100), largest_grid(1, 50, 7), largest_grid(3, 4, 100)
    ((10, 10), (1, 7), (3, 4))
    """
    # A side changes where the scale passes one of its fractions, and the other is what it then is.
    sides = {(i, i * w // h) for i in range(1, h + 1)} | {(j * h // w, j) for j in range(1, w + 1)}
    grids = [(max(1, rows), max(1, columns)) for rows, columns in sides]
    fitting = [(rows, columns) for rows, columns in grids if rows * columns <= k]
    return max(fitting, key=lambda grid: (grid[0] * grid[1], grid))


def downsampled(pixels: Array, ratio: int) -> Array:
    """Pictures (..., H // ratio, W // ratio, 3) of pictures (..., H, W, 3); see `resized`."""
    if whole(ratio) < 1:
        raise ValueError(f"ratio: expected a whole number of at least 1, got {ratio!r}")
    height, width = _sides(pixels)
    if ratio > min(height, width):
        raise ValueError(f"ratio: {ratio} leaves nothing of a picture of {height} x {width}")
    return resized(pixels, (height // ratio, width // ratio))


def resized(pixels: Array, size: tuple[int, int]) -> Array:
    r"""Pictures of another size, by Pillow's bicubic filter.

    Each line of the answer is a weighted mean of lines around the place it came from, with
    weights :math:`c(x / r)` for the distance x and the ratio of the sides r, at least 1:

    .. math:: c(x) = \begin{cases} \frac 3 2 |x|^3 - \frac 5 2 |x|^2 + 1 & |x| < 1 \\
        -\frac 1 2 |x|^3 + \frac 5 2 |x|^2 - 4 |x| + 2 & 1 \le |x| < 2 \end{cases}

    across first, then down. Whole numbers are rounded and cut to 0..255 after each.

    Parameters
    ----------
    pixels
        Pictures (..., H, W, 3), 0..255.
    size
        (H', W'), larger or smaller.

    Returns
    -------
    Array
        (..., H', W', 3) in the dtype of `pixels`.

    Notes
    -----
    O(H W W' + H H' W') time as two products of matrices.

    References
    ----------
    R. Keys, "Cubic convolution interpolation for digital image processing", IEEE Transactions
    on Acoustics, Speech, and Signal Processing, 1981.

    Examples
    --------
    >>> import numpy as np
    >>> resized(np.full((4, 6, 3), 7, dtype=np.uint8), (2, 3))[..., 0]
    array([[7, 7, 7],
           [7, 7, 7]], dtype=uint8)
    """
    xp = namespace(pixels)
    height, width = _sides(pixels)
    sides = [whole(side) for side in size]
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"size: expected (H, W), two positive whole numbers, got {size!r}")
    levels = not xp.isdtype(pixels.dtype, "real floating")
    x = xp.astype(pixels, wide(xp))
    *batch, _, _, colours = shape_of(x)
    across = like(_bicubic(width, size[1]), x, x.dtype)
    x = _settled(across @ x, levels)
    down = like(_bicubic(height, size[0]), x, x.dtype)
    x = down @ xp.reshape(x, (*batch, height, size[1] * colours))
    return xp.astype(_settled(xp.reshape(x, (*batch, *size, colours)), levels), pixels.dtype)


def _sides(pixels: Array) -> tuple[int, int]:
    shape = shape_of(pixels)
    if len(shape) < 3 or 0 in shape[-3:]:
        raise ValueError(f"pixels: expected shape (..., H, W, 3), got {spell(shape)}")
    return shape[-3], shape[-2]


def _settled(x: Array, levels: bool) -> Array:
    """Whole levels within 0..255, where the picture has levels."""
    xp = namespace(x)
    # Halves go up, in whatever order their parts were added.
    return xp.clip(xp.floor(x + (0.5 + 1e-9)), 0.0, 255.0) if levels else x


def _bicubic(size: int, count: int) -> Numbers:
    """Weights (count, size) of a picture's lines in each line of another size."""
    ratio = size / count
    reach = max(1.0, ratio)
    middles = (np.arange(count) + 0.5) * ratio
    weights = np.zeros((count, size))
    for line, middle in enumerate(middles.tolist()):
        first = max(0, math.floor(middle - 2 * reach + 0.5))
        last = min(size, math.floor(middle + 2 * reach + 0.5))
        apart = np.abs(np.arange(first, last) + 0.5 - middle) / reach
        near = (1.5 * apart - 2.5) * apart**2 + 1.0
        far = ((-0.5 * apart + 2.5) * apart - 4.0) * apart + 2.0
        own = np.where(apart < 1, near, np.where(apart < 2, far, 0.0))
        weights[line, first:last] = own / own.sum()
    return weights
