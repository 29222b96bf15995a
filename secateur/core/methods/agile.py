"""AgilePruner: by attention, with a threshold on redundancy that grows with complexity."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.core.arrays import Array, constant, like, namespace, to_numpy, wide, widened
from secateur.core.budget import allocate
from secateur.core.complexity import MEASURES, Mean, Measure, as_mean, relative_complexity
from secateur.core.inputs import Tokens
from secateur.core.methods.base import (
    CountedFrom,
    Method,
    require_one_of,
    require_positive,
    require_share,
)
from secateur.core.selection import Selection
from secateur.core.threshold import greedy_threshold

Count = Literal["fixed", "adaptive", "balanced"]

FINENESS = 1000
"""Into how many parts `AgilePruner.fitting` divides the threshold."""

FILLS = 0.1
"""What attention alone may fill up of what is kept before it is said."""

LOOKS = 32
"""How many calls of a process are looked at: on a device, each look waits for the scan."""

_looks_left = LOOKS
_scanned: ContextVar[list[tuple[Tokens, Selection]] | None] = ContextVar("scanned", default=None)
"""What `AgilePruner.fitting` looks at: all that is scanned, frames of a video too."""


@dataclass(frozen=True)
class AgilePruner(Method):
    r"""Attention first, each kept token driving away its likes, further in complex images.

    Tokens are visited from high to low attention. The i-th kept token (i = 1, 2, ...) removes
    every later token j whose distance :math:`1 - \cos(X_i, X_j)` is below

    .. math::
        \tau_i = \min(\tau_{\max}, \; \text{step} \cdot i \cdot c), \qquad
        c = \operatorname{erank}(X) / \overline{\operatorname{erank}}

    until k are kept. If the tokens run out first, the removed ones of highest attention fill
    up, and ``info["filled"]`` says how many. Where that is more than a tenth of what a call
    keeps, a warning says so once, with the largest `tau_max` that fills up less; see `fitting`.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    mean_erank
        What an image's complexity is compared with: a `secateur.Calibration`, a
        `secateur.RunningCalibration`, or the mean of `measure` as a number.
    tau_max
        The largest threshold, a distance in [0, 2].
    step
        How fast the threshold grows for an image of average complexity.
    measure
        ``"erank"``, the effective rank of the features; ``"entropy"``, the entropy of the
        attention.
    count
        ``"fixed"``: every image keeps k. ``"adaptive"``: image m keeps
        :math:`\operatorname{round}(k (1 + \text{slope} (c_m - 1)))`, k on average over images
        like those of the calibration. ``"balanced"``: the same shares, scaled so that the
        images of one call (a batch, or a list) keep exactly k on average.
    slope
        How strongly the count follows the complexity; 0 not at all.
    least, most
        What an image keeps at least and at most, in multiples of k.

    Notes
    -----
    O(N D min(N, D)) time for the effective rank and O(k N D) for the scan; O(N D) memory.

    The authors published no program, and what we have of their paper gives no tau_max. The
    default comes from made-up features (``benchmarks/tau_max.py``: 576 tokens in 3 to 60
    regions, cosines of about 0.75 within and 0.35 across): there sets of 32, 64 and 128 cover
    the image within 0.2 % of the best over all tau_max. Lower ones keep near-copies; higher
    ones empty the candidates, and attention alone fills up. On the lab's scenes
    (``benchmarks/defaults.py``) answers at 16 of 144 tokens are flat from 0.15 upwards, 70.4 %,
    and 67.7 % at 0.05; at 36 tokens lower is better, 91.0 % at 0.1 against 88.4 %. Features of
    another spread want another value: on a real transformer's (``benchmarks/real``, 75
    photographs, 576 tokens) 0.3 lets attention alone fill up 0.4 of 32, 20 of 64 and 84 of 128
    tokens in the block before the last, and 106 of 128 behind the last norm, where the method is
    nearly `TopK`. There 0.15 to 0.18 at 64 and 0.08 at 128 fill up a tenth; `fitting` finds them.

    Attention is meant to come from the class token in the penultimate layer, averaged over heads,
    or, in encoders without one, to be the mean attention a token receives from all others.

    References
    ----------
    C. Baek, J. Song, S. Kim and K. Kong, "AgilePruner: An Empirical Study of Attention and
    Diversity for Adaptive Visual Token Pruning in Large Vision-Language Models", ICLR 2026,
    arXiv 2603.01236.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> tokens = sc.Tokens(features=features, attention=np.array([0.5, 0.4, 0.1]))
    >>> sc.AgilePruner(keep=2, mean_erank=1.5).select(tokens).indices
    array([0, 2])
    """

    mean_erank: Mean | None = None
    tau_max: float = 0.3
    step: float = 0.01
    measure: Measure = "erank"
    count: Count = "fixed"
    slope: float = 1.0
    least: float = 0.5
    most: float = 2.0

    name: ClassVar[str] = "agilepruner"
    complexity: ClassVar[str] = "N D min(N, D) + k N D"
    reference: ClassVar[str] = "Baek, Song, Kim, Kong, ICLR 2026, arXiv 2603.01236"
    guarantee: ClassVar[str] = "kept tokens lie apart by their thresholds, but for those filled up"
    parity: ClassVar[str] = "its definition, token by token; no program is published"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mean_erank", as_mean(self.mean_erank))
        if not 0.0 <= self.tau_max <= 2.0:
            raise ValueError(f"tau_max: expected a distance in [0, 2], got {self.tau_max!r}")
        require_positive("step", self.step, zero=True)
        require_one_of("measure", self.measure, MEASURES)
        require_one_of("count", self.count, ("fixed", "adaptive", "balanced"))
        require_positive("slope", self.slope, zero=True)
        require_share("least", self.least)
        if not self.most >= 1.0:
            raise ValueError(f"most: expected a multiple of at least 1, got {self.most!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The tokens and their attention."""
        return frozenset({"features", "attention"})

    @property
    def counted_from(self) -> CountedFrom:
        """Other counts than fixed follow the complexity; see `Method.counted_from`."""
        return "size" if self.count == "fixed" else "features"

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The scan with each image's own threshold; see `Method.choose`."""
        chosen = self._scan_each([tokens], [k])
        self._tell([tokens], chosen)
        return chosen[0]

    def choose_each(self, images: Sequence[Tokens]) -> list[Selection]:
        """As `choose`; balanced counts are balanced over all images of the call."""
        budgets = [self.budget(each.size, each.times) for each in images]
        chosen = self._scan_each(images, budgets)
        self._tell(images, chosen)
        return chosen

    def fitting(self, images: Sequence[Tokens], share: float = FILLS) -> AgilePruner:
        """The same with the largest `tau_max` at which attention fills up little.

        Where the threshold outgrows the distances between an encoder's tokens, the scan runs out
        of them and attention alone fills up, so that the method is nearly `TopK`;
        ``info["filled"]`` of every selection says how many tokens that were.

        Parameters
        ----------
        images
            Tokens of images like those to come, each by itself or in batches.
        share
            How much of what is kept of them attention alone may fill up, at most.

        Returns
        -------
        AgilePruner
            With the present `tau_max` if that does, else the largest below it, to a thousandth
            part of it.

        Examples
        --------
        >>> import numpy as np, secateur as sc
        >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [1.0, 0.6], [0.0, 1.0]])
        >>> image = sc.Tokens(features=x, attention=np.array([0.4, 0.3, 0.2, 0.1, 0.0]))
        >>> method = sc.AgilePruner(keep=4, mean_erank=1.5, tau_max=0.2, step=0.2)
        >>> int(method.select(image).info["filled"]), method.fitting([image]).tau_max
        (2, 0.0308)
        """
        require_share("share", share)
        scanned: list[tuple[Tokens, Selection]] = []
        token = _scanned.set(scanned)
        try:
            self.select(list(images))
        finally:
            _scanned.reset(token)
        if _filled([chosen for _, chosen in scanned]) <= share:
            return self
        return replace(self, tau_max=self._largest(scanned, share))

    def _largest(self, scanned: Sequence[tuple[Tokens, Selection]], share: float) -> float:
        """The threshold of `fitting`, where too much was filled up."""

        def fills(tau_max: float) -> bool:
            method = replace(self, tau_max=tau_max)
            scans = [
                method._scan(each, to_numpy(one.count), to_numpy(one.info["relative_complexity"]))
                for each, one in scanned
            ]
            return _filled(scans) > share

        low, high = 0, FINENESS
        while high - low > 1:
            middle = (low + high) // 2
            much = fills(self.tau_max * middle / FINENESS)
            low, high = (low, middle) if much else (middle, high)
        return self.tau_max * low / FINENESS

    def _tell(self, images: Sequence[Tokens], chosen: Sequence[Selection]) -> None:
        """Warn once where attention alone fills up much, and offer what does not."""
        global _looks_left
        pairs = [*zip(images, chosen, strict=True)]
        scanned = _scanned.get()
        if scanned is not None:
            scanned += pairs
            return
        if _looks_left <= 0:
            return
        _looks_left -= 1
        filled = _filled(chosen)
        if filled <= FILLS:
            return
        _looks_left = 0
        warnings.warn(
            f"AgilePruner: attention alone filled up {100 * filled:.0f} % of what was kept, as "
            f"tau_max={self.tau_max:.4g} drives all others away; of what lets it fill up at most "
            f"a tenth here, tau_max={self._largest(pairs, FILLS):.4g} is the largest "
            "(AgilePruner.fitting finds it for images of yours)",
            stacklevel=2,
        )

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def _scan_each(self, images: Sequence[Tokens], budgets: Sequence[int]) -> list[Selection]:
        shares = [relative_complexity(each, self.mean_erank, self.measure) for each in images]
        counts = self._counts(images, budgets, shares)
        return [
            self._scan(tokens, count, share)
            for tokens, count, share in zip(images, counts, shares, strict=True)
        ]

    def _scan(self, tokens: Tokens, count: Any, share: np.ndarray[Any, Any]) -> Selection:
        chosen = greedy_threshold(
            tokens.features,
            tokens.attention,
            count,
            step=self.step * share,
            tau_max=self.tau_max,
            check_finite=False,
        )
        relative = like(share, chosen.scores, dtype=wide(namespace(chosen.scores)))
        return replace(chosen, info={**chosen.info, "relative_complexity": relative})

    def _counts(
        self,
        images: Sequence[Tokens],
        budgets: Sequence[int],
        shares: Sequence[np.ndarray[Any, Any]],
    ) -> list[Any]:
        """How many tokens each image keeps: one number, or one for each row of a batch."""
        if self.count == "fixed" or not any(share.size for share in shares):
            return list(budgets)
        k = np.concatenate([np.full(s.size, b) for b, s in zip(budgets, shares, strict=True)])
        sizes = np.concatenate(
            [np.full(s.size, each.size) for each, s in zip(images, shares, strict=True)]
        )
        share = np.concatenate([np.ravel(s) for s in shares])
        low = np.maximum(1, np.ceil(self.least * k - 1e-9)).astype(np.int64)
        high = np.minimum(sizes, np.floor(self.most * k + 1e-9)).astype(np.int64)
        wanted = np.clip(k * (1.0 + self.slope * (share - 1.0)), low, high)
        if self.count == "balanced":
            flat = allocate(wanted, int(k.sum()), minimum=low, maximum=high)
        else:
            flat = np.floor(wanted + 0.5).astype(np.int64)
        ends = np.cumsum([s.size for s in shares])[:-1]
        return [part.reshape(s.shape) for part, s in zip(np.split(flat, ends), shares, strict=True)]


def _filled(chosen: Sequence[Selection]) -> float:
    """What share of the kept tokens attention filled up."""
    filled = sum(float(np.sum(to_numpy(each.info["filled"]))) for each in chosen)
    return filled / max(1.0, sum(float(np.sum(to_numpy(each.count))) for each in chosen))
