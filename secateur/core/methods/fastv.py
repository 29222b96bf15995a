"""FastV: drop visual tokens after the second layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur.core.acts import Cut, Sight, Stay
from secateur.core.attention import best
from secateur.core.methods.base import Program, require_whole
from secateur.core.methods.inside import InsideMethod, descending_cuts


@dataclass(frozen=True)
class FastV(InsideMethod):
    r"""FastV: after the second layer, keep what the last token attends to.

    .. math::
        \text{score}_j = \frac{1}{H} \sum_h
        \operatorname{softmax}_{j \le T}(\langle Q_{hT}, K_{hj} \rangle / \sqrt{d})

    for the last token T of the prompt, in the layer that has just run. The `keep` visual tokens
    of highest score stay.

    Parameters
    ----------
    keep
        How many visual tokens of the prompt remain: a count or a share; the paper drops half.
    after
        After how many layers, the paper's K.

    Notes
    -----
    O(H T d) time: one row of attention is worked out, not the T x T matrix.

    The authors' programs rank each prompt's 576 tokens at fixed positions and recompute layer K
    to get its attention; ours takes any prompt and the layer's own queries and keys. Like
    theirs, "the last token" is the last of the prompt: here the last that is no padding.

    References
    ----------
    L. Chen, H. Zhao, T. Liu, S. Bai, J. Lin, C. Zhou and B. Chang, "An Image is Worth 1/2 Tokens
    After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models",
    ECCV 2024, arXiv 2403.06764.

    Examples
    --------
    >>> import secateur as sc
    >>> sc.FastV(keep=0.5).cuts(depth=32, size=576)
    (Cut(after=2, keep=288),)
    """

    keep: int | float = 0.5
    after: int = 2

    name: ClassVar[str] = "fastv"
    complexity: ClassVar[str] = "H T d"
    reference: ClassVar[str] = "Chen et al., ECCV 2024, arXiv 2403.06764"

    parity: ClassVar[str] = "the authors' program in a model: cuts, caches, positions, answers"
    program: ClassVar[Program | None] = Program("pkunlp-icler/FastV", "d1659729b5bf")

    @property
    def positions(self) -> Literal["original", "compact"] | None:
        """The authors' program leaves them; see `Method.positions`."""
        return "original" if self.published else None

    @property
    def shortens_caches(self) -> bool:
        """The authors' program leaves the first layers all tokens; see `Cuts`."""
        return not self.published

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("after", self.after, least=1)

    def cuts(
        self, depth: int, size: int, *, level: int | None = None, earliest: int = 1
    ) -> tuple[Cut, ...]:
        """One cut; see `InsideMethod.cuts`."""
        return descending_cuts([max(self.after, earliest)], [self.budget(size)], depth, size)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Those the last token attends to; see `Cuts.decide`."""
        return Stay(best(sight.from_last(), cut.keep))
