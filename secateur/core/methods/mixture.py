"""Any two methods sharing a budget, the image deciding how."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar

from secateur.core.arrays import Array, device, index_dtype, namespace, to_numpy
from secateur.core.complexity import MEASURES, Mean, Measure, as_mean, relative_complexity
from secateur.core.inputs import PER_TOKEN, Tokens
from secateur.core.methods.base import CountedFrom, Method, require_one_of, require_share
from secateur.core.methods.divprune import DivPrune
from secateur.core.methods.topk import TopK
from secateur.core.order import others
from secateur.core.selection import Selection, stack

_OF_THE_WHOLE = frozenset({"grid", "pixels", "frames", "frame_features"})
"""Inputs that belong to an image or a video, and mean nothing for some of its tokens."""


@dataclass(frozen=True)
class Mixture(Method):
    r"""An attention-first method keeps some tokens, a diversity-first one chooses from the rest.

    Of k tokens :math:`k_a = \lfloor (1 - d) k \rfloor` are chosen by `attention` from all
    tokens, and the :math:`k - k_a` others by `diversity` from those left. The diversity share d
    is `share`, or with a `mean_erank` the image decides:

    .. math::
        d = \operatorname{clip}(\text{share} + \text{slope} \cdot (c - 1), \, 0, \, 1), \qquad
        c = \operatorname{erank}(X) / \overline{\operatorname{erank}}

    An image of average complexity has d = `share`; a complex one gets more diversity when
    `slope` is positive, less when it is negative (the paper's control, which hurts).

    Parameters
    ----------
    keep
        How many tokens to keep in all: a count or a share. The two methods' own are not used.
    attention
        Chooses first.
    diversity
        Chooses from what is left, knowing nothing of what was kept. It may not work from the
        grid or the pixels: what is left of an image has none.
    share
        Diversity's share of the budget, in [0, 1].
    slope
        How fast it grows with the effective rank; counts only with `mean_erank`.
    mean_erank
        What an image's complexity is compared with: a `secateur.Calibration`, a
        `secateur.RunningCalibration`, or the mean of `measure` as a number. None keeps the share
        fixed.
    measure
        ``"erank"``, the effective rank of the features; ``"entropy"``, that of the attention.

    Notes
    -----
    Time of the two methods, and O(N D min(N, D)) for the effective rank. ``info["diverse"]``
    says how many tokens `diversity` chose. Picks come in the order the two made them.

    Choosing from the rest is how VisPruner combines the two and how AgilePruner lifts it and
    FasterVLM + DivPrune (``TopK`` and ``DivPrune``, the defaults). No program is published for
    AgilePruner's mixture, and its line's numbers are not given in what we have: `share` 0.75 and
    `slope` 0.5 are ours. On the lab's scenes (``benchmarks/defaults.py``, 16 and 36 of 144 tokens)
    they answer 75.6 and 92.6 %, without the slope 73.5 and 91.6 %; a share of 0.5 answers 72.6 and
    91.6 %, with slope -0.5 69.8 and 87.4 %. Molecules and photographs
    (``docs/evidence/settings.md``) want as much: 0.75 does better than 0.5 at every budget, and
    diversity alone better yet on all three.

    References
    ----------
    C. Baek, J. Song, S. Kim and K. Kong, "AgilePruner: An Empirical Study of Attention and
    Diversity for Adaptive Visual Token Pruning in Large Vision-Language Models", ICLR 2026,
    arXiv 2603.01236.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> features = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    >>> tokens = sc.Tokens(features=features, attention=np.array([0.4, 0.3, 0.2, 0.1]))
    >>> half = sc.Mixture(keep=2, attention=sc.TopK(), diversity=sc.DivPrune(), share=0.5)
    >>> half.select(tokens).indices
    array([0, 3])
    """

    attention: Method = field(default_factory=TopK)
    diversity: Method = field(default_factory=DivPrune)
    share: float = 0.75
    slope: float = 0.5
    mean_erank: Mean | None = None
    measure: Measure = "erank"

    name: ClassVar[str] = "mixture"
    complexity: ClassVar[str] = "of the two, and N D min(N, D) where adaptive"
    reference: ClassVar[str] = "Baek et al., ICLR 2026, arXiv 2603.01236"
    parity: ClassVar[str] = "its definition, method by method"

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in ("attention", "diversity"):
            given = getattr(self, part)
            if not isinstance(given, Method) or not given.prunes_before:
                raise ValueError(
                    f"{part}: expected a method that prunes before the language model, "
                    f"got {given!r}"
                )
        whole = sorted(self.diversity.needs & _OF_THE_WHOLE)
        if whole:
            raise ValueError(
                f"diversity: {type(self.diversity).__name__} works from the {' and '.join(whole)} "
                "of a whole image, and the tokens that are left have none"
            )
        require_share("share", self.share)
        if not isfinite(self.slope):
            raise ValueError(f"slope: expected a finite number, got {self.slope!r}")
        object.__setattr__(self, "mean_erank", as_mean(self.mean_erank))
        require_one_of("measure", self.measure, MEASURES)

    @property
    def needs(self) -> frozenset[str]:
        """What the two methods need."""
        own = {"attention"} if self.mean_erank is not None and self.measure == "entropy" else set()
        return self.attention.needs | self.diversity.needs | {"features"} | own

    @property
    def optional(self) -> frozenset[str]:
        """What the two methods also work from."""
        return (self.attention.optional | self.diversity.optional) - self.needs

    @property
    def counted_from(self) -> CountedFrom:
        """The size, if the two methods keep what they are asked for."""
        parts = {self.attention.counted_from, self.diversity.counted_from}
        return "size" if parts == {"size"} else "features"

    def weigh(self, tokens: Tokens) -> Array | None:
        """What the method by attention says; see `Method.weigh`."""
        return self.attention.weigh(tokens)

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """One method, then the other on what is left; see `Method.choose`."""
        if self.mean_erank is None or 0 in tokens.batch_shape:
            return self._mixed(tokens, k, self.share)
        relative = relative_complexity(tokens, self.mean_erank, self.measure)
        shares = (self.share + self.slope * (relative - 1.0)).clip(0.0, 1.0)
        mixed = [
            self._mixed(image, k, float(share))
            for image, share in zip(tokens.rows(), shares.reshape(-1), strict=True)
        ]
        return stack(mixed, tokens.batch_shape)

    def _mixed(self, tokens: Tokens, k: int, share: float) -> Selection:
        size = tokens.size
        count = int((1.0 - share) * k + 1e-9)
        xp = namespace(tokens.features)
        diverse = xp.full(
            tokens.batch_shape, k - count, dtype=index_dtype(xp), device=device(tokens.features)
        )
        parts = []
        left = Selection.of(_all(tokens), size)
        first = _exactly(self.attention, tokens, max(count, 1))  # its scores are told in any case
        if count:
            parts.append(first.indices)
            left = Selection.of(others(first.indices, size), size)
        if count < k:
            second = _exactly(self.diversity, _among(tokens, left), k - count)
            parts.append(xp.take_along_axis(left.indices, second.indices, axis=-1))
        return Selection.of(
            xp.concat(parts, axis=-1), size, scores=first.scores, info={"diverse": diverse}
        )


def _all(tokens: Tokens) -> Array:
    xp = namespace(tokens.features)
    places = xp.arange(tokens.size, dtype=index_dtype(xp), device=device(tokens.features))
    return xp.broadcast_to(places, (*tokens.batch_shape, tokens.size))


def _among(tokens: Tokens, left: Selection) -> Tokens:
    """The tokens that are left, without what only a whole image has."""
    changes: dict[str, Any] = dict.fromkeys(_OF_THE_WHOLE)
    for name, axes in PER_TOKEN.items():
        x = getattr(tokens, name)
        if x is not None:
            changes[name] = left.gather(x, -axes)
    return tokens.with_(**changes)


def _exactly(method: Method, tokens: Tokens, k: int) -> Selection:
    chosen = method.choose(tokens, k)
    counts = to_numpy(chosen.count)
    if bool((counts != k).any()):
        raise ValueError(
            f"{type(method).__name__}: asked for {k} tokens it kept {counts.tolist()}; "
            "a mixture takes methods that keep as many as they are asked for"
        )
    return chosen
