"""Blocks of rows that facility location stands for: similarities, or what they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from secateur.core.arrays import Array, checked, constant, namespace, shape_of, spell
from secateur.core.parameters import check_type
from secateur.core.similarity import MatrixSimilarity, Similarity, SoftmaxSimilarity


class SoftmaxBlock(NamedTuple):
    """Rows whose similarities are their softmax over the candidates, worked out when asked for.

    A block of `FacilityLocation.of_blocks`: rows (..., H, D), candidates (..., N, D), compared
    by cosine over a temperature. See `secateur.core.similarity.SoftmaxSimilarity`. Rows that are
    the candidates, the same array, stay that.
    """

    rows: Array
    candidates: Array
    temperature: float

    def with_arrays(self, change: Callable[[Any], Any]) -> SoftmaxBlock:
        """The block of arrays that went through `change`."""
        candidates = change(self.candidates)
        rows = candidates if self.rows is self.candidates else change(self.rows)
        return SoftmaxBlock(rows, candidates, self.temperature)


def checked_block(block: Any, check_finite: bool) -> Array | SoftmaxBlock:
    """A block of finite numbers (..., H, N), without its history of gradients, or refuse it."""
    if not isinstance(block, SoftmaxBlock):
        return constant(checked(block, "blocks", "(..., H, N)", check_finite=check_finite))
    check_type("temperature", block.temperature, float)
    if not block.temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {block.temperature!r}")
    candidates = rows = constant(
        checked(block.candidates, "blocks", "(..., N, D)", check_finite=check_finite)
    )
    if block.rows is not block.candidates:
        rows = constant(checked(block.rows, "blocks", "(..., H, D)", check_finite=check_finite))
    xp, batch = namespace(rows, candidates), shape_of(candidates)[:-2]
    axes = zip(shape_of(rows)[-3::-1], batch[::-1], strict=False)
    fits = rows.ndim <= candidates.ndim and all(n in (1, m) for n, m in axes)
    if not fits or int(rows.shape[-1]) != int(candidates.shape[-1]):
        raise ValueError(
            "blocks: expected rows and candidates of one length and batch, "
            f"got {spell(shape_of(rows))} and {spell(shape_of(candidates))}"
        )
    # Rows without the axes of the batch, such as a text, are the same for all its images.
    if rows is not candidates:
        rows = xp.broadcast_to(rows, (*batch, *shape_of(rows)[-2:]))
    return SoftmaxBlock(rows, candidates, float(block.temperature))


def shape_of_block(block: Any) -> tuple[int, ...]:
    """(..., H, N): rows to stand for and tokens to pick from."""
    if isinstance(block, SoftmaxBlock):
        return (*shape_of(block.rows)[:-1], int(block.candidates.shape[-2]))
    return shape_of(block)


def entries_of(block: Any) -> Similarity:
    """The similarities of a block of one image, entry by entry."""
    if isinstance(block, SoftmaxBlock):
        return SoftmaxSimilarity(*block)
    return MatrixSimilarity(block)
