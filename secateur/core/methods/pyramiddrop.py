"""PyramidDrop: drop visual tokens at a few depths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.acts import Cut
from secateur.core.arrays import (
    Array,
    resolve_keep,
)
from secateur.core.attention import best, real, text_attention
from secateur.core.methods.base import (
    InsideMethod,
    descending_cuts,
    require_share,
)


@dataclass(frozen=True)
class PyramidDrop(InsideMethod):
    r"""PyramidDrop: keep a share at each of a few depths, by the last instruction token.

    .. math:: \text{keep}_s = \lfloor N \lambda^s \rfloor, \qquad s = 1, 2, \dots

    after the layers at `stages` of the depth. Tokens are ranked by the attention, averaged over
    heads, that the last token of the instruction pays them.

    Parameters
    ----------
    keep
        The share :math:`\lambda` that stays at every stage. A count is what remains after the
        last stage: then :math:`\lambda` is the root that leads there.
    stages
        Depths of the cuts, as shares of the number of layers.

    Notes
    -----
    O(H T d) time a stage.

    The authors' program scores with the queries and keys of the layer that comes next, computed
    ahead from the current hidden states; ours with those of the layer that has just run, which
    are there already and cost nothing. Its shares are of the tokens of each image; ours of the
    prompt's.

    References
    ----------
    L. Xing, Q. Huang, X. Dong, J. Lu, P. Zhang, Y. Zang, Y. Cao, C. He, J. Wang, F. Wu and
    D. Lin, "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
    Redundancy Reduction", CVPR 2025, arXiv 2410.17247.

    Examples
    --------
    >>> import secateur as sc
    >>> sc.PyramidDrop().cuts(depth=32, size=576)
    (Cut(after=8, keep=288), Cut(after=16, keep=144), Cut(after=24, keep=72))
    """

    keep: int | float = 0.5
    stages: tuple[float, ...] = (0.25, 0.5, 0.75)

    name: ClassVar[str] = "pyramiddrop"
    complexity: ClassVar[str] = "H T d a stage"
    reference: ClassVar[str] = "Xing et al., CVPR 2025, arXiv 2410.17247"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"stages: expected ascending shares of the depth, got {self.stages}")
        for share in self.stages:
            require_share("stages", share, zero=False)

    def cuts(
        self, depth: int, size: int, *, level: int | None = None, earliest: int = 1
    ) -> tuple[Cut, ...]:
        """One cut a stage; see `InsideMethod.cuts`."""
        last = len(self.stages)
        if isinstance(self.keep, int):
            share = (self.budget(size) / size) ** (1.0 / last)
        else:
            share = float(self.keep)
        places = [max(round(place * depth), earliest) for place in self.stages]
        keeps = [resolve_keep(share**stage, size) for stage in range(1, last + 1)]
        return descending_cuts(places, keeps, depth, size)

    def keep_visual(
        self,
        cut: Cut,
        queries: Array,
        keys: Array,
        *,
        visual: Array,
        text: Array,
        mask: Array | None = None,
        hidden: Array | None = None,
    ) -> Array:
        """Those the last instruction token attends to; see `InsideMethod.keep_visual`."""
        final = real(text, mask)[-1:]
        return best(text_attention(queries, keys, visual=visual, text=final, mask=mask), cut.keep)
