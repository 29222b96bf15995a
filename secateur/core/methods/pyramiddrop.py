"""PyramidDrop: drop visual tokens at a few depths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from secateur.core.acts import Cut, Layout, Sight, Stay
from secateur.core.arrays import like, namespace, resolve_keep, to_numpy
from secateur.core.attention import best, real
from secateur.core.methods.base import Program, require_share
from secateur.core.methods.inside import InsideMethod, descending_cuts


@dataclass(frozen=True)
class _Share(Cut):
    """A cut that leaves the same share of every image."""

    share: float


@dataclass(frozen=True)
class PyramidDrop(InsideMethod):
    r"""PyramidDrop: keep a share at each of a few depths, by the last instruction token.

    .. math:: \text{keep}_s = \lfloor N \lambda^s \rfloor, \qquad s = 1, 2, \dots

    after the layers at `stages` of the depth. Tokens are ranked by the attention, averaged over
    heads, that the last token of the instruction pays them in the layer that comes next.

    Parameters
    ----------
    keep
        The share :math:`\lambda` that stays at every stage. A count is what remains after the
        last stage: then :math:`\lambda` is the root that leads there.
    stages
        Depths of the cuts, as shares of the number of layers.
    shares
        What stays after each stage, as a share of each image's tokens, instead of `keep`.

    Notes
    -----
    O(H T d) time a stage, and the projections of the layer that comes next, which are worked out
    ahead as in the authors' program: the layer that has just run may not know yet what is asked.

    Published: there, the last token of the prompt asks, template included; ours is asked by the
    last word. Caches of layers already run keep what later layers drop, and positions start again
    at 0 after every cut; ours cache alike and keep positions. `keep` is a share of each image,
    rounded down, in both, where `shares` says so.

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
    shares: tuple[float, ...] | None = None

    name: ClassVar[str] = "pyramiddrop"
    complexity: ClassVar[str] = "H T d a stage"
    reference: ClassVar[str] = "Xing et al., CVPR 2025, arXiv 2410.17247"
    parity: ClassVar[str] = "the authors' program in a model: cuts, caches, positions, answers"
    program: ClassVar[Program | None] = Program("Cooperx521/PyramidDrop", "6444f304aee4")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"stages: expected ascending shares of the depth, got {self.stages}")
        for share in self.stages:
            require_share("stages", share, zero=False)
        if self.shares is not None:
            if len(self.shares) != len(self.stages):
                raise ValueError(
                    f"shares: expected one for each of {len(self.stages)} stages, got {self.shares}"
                )
            for share in self.shares:
                require_share("shares", share, zero=False)

    @property
    def looks_ahead(self) -> bool:
        """The next layer is asked, as in the authors' program; see `Cuts`."""
        return True

    @property
    def shortens_caches(self) -> bool:
        """Not in the authors' program; see `Cuts`."""
        return not self.published

    @property
    def renumbers(self) -> bool:
        """The authors' program does; see `Cuts`."""
        return self.published

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """One cut a stage, of each image by itself where `shares` say so; see `Cuts.plan`."""
        if self.shares is None and not self.published:
            return super().plan(layout)
        shares = self.shares or self._series(layout.size)
        places = [max(round(place * layout.depth), layout.earliest) for place in self.stages]
        cuts: list[Cut] = []
        for after, share in zip(places, shares, strict=True):
            keep = sum(max(1, int(image * share + 1e-9)) for image in layout.images)
            if after < layout.depth and keep < (cuts[-1].keep if cuts else layout.size):
                cuts.append(_Share(after, keep, share))
        return tuple(cuts)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Those the last word attends to, image by image where a cut says so; see `Cuts.decide`."""
        asking = sight.others() if self.published else real(sight.text, sight.mask)
        scores = sight.attention(asking[-1:])
        if not isinstance(cut, _Share):
            return Stay(best(scores, cut.keep))
        xp = namespace(scores)
        image, sizes = to_numpy(sight.image), sight.layout.images  # type: ignore[union-attr]
        kept = []
        for number, size in enumerate(sizes):
            own = like(np.flatnonzero(image == number), sight.visual)
            if own.shape[0]:
                most = max(1, int(size * cut.share + 1e-9))
                kept.append(xp.take(own, best(xp.take(scores, own), most)))
        return Stay(xp.sort(xp.concat(kept)))

    def _series(self, size: int) -> tuple[float, ...]:
        """The shares that stay after each stage where `keep` says so."""
        last = len(self.stages)
        share = float(self.keep)
        if isinstance(self.keep, int):
            share = (self.budget(size) / size) ** (1.0 / last)
        return tuple(share**stage for stage in range(1, last + 1))

    def cuts(
        self, depth: int, size: int, *, level: int | None = None, earliest: int = 1
    ) -> tuple[Cut, ...]:
        """One cut a stage; see `InsideMethod.cuts`."""
        places = [max(round(place * depth), earliest) for place in self.stages]
        shares = self.shares or self._series(size)
        keeps = [resolve_keep(share, size) for share in shares]
        return descending_cuts(places, keeps, depth, size)
