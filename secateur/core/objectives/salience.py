"""How well a set of salient tokens stands for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    namespace,
    shape_of,
    spell,
    wide,
)
from secateur.core.objectives.base import ByRow, Tracker, checked_selectable, tracker_of
from secateur.core.objectives.coverage import FacilityLocation
from secateur.core.parameters import typed

Combine = Literal["multi", "add"]


class SalientCoverage(ByRow):
    r"""Coverage whose gains are weighed by the saliency of the *candidate*.

    .. math::
        c_S(j) &= \sum_i \max(0, s_{ij} - m_i), \qquad m_i = \max(0, \max_{j \in S} s_{ij}) \\
        \text{gain}(S, j) &= c_S(j) \, w_j \quad (\text{multi}), \qquad
        c_S(j) + w_j \quad (\text{add})

    where `FacilityLocation` weighs the tokens i that are covered.

    Parameters
    ----------
    similarity
        Similarities (..., H, N), as `FacilityLocation` takes them; negative ones count as 0.
    saliency
        Non-negative saliency w (..., N) of the tokens to pick from.
    combine
        ``"multi"``: the gain times the saliency; ``"add"``: plus it.
    selectable
        False (..., N) at tokens that may not be picked.
    check_finite
        Whether to refuse NaN and infinity.

    Notes
    -----
    ``"add"`` is facility location plus a sum of non-negative weights: monotone and submodular,
    so greedy reaches 1 - 1/e and comes with a certificate. The gains of ``"multi"`` shrink as
    the set grows, which lazy greedy needs, but they are no differences of values: what a token
    adds depends on who came before it, sets have no value beside their coverage, and nothing
    is certified. `value` is the coverage then, without saliency.

    References
    ----------
    Deng, Li, Zhou and He, SCOPE, NeurIPS 2025, arXiv 2510.24214.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> f = sc.SalientCoverage(np.eye(3), np.array([0.2, 0.5, 0.3]))
    >>> sc.maximize(f, 2).indices
    array([1, 2])
    """

    submodular = True
    arrays = (*ByRow.arrays, "saliency")

    @typed
    def __init__(
        self,
        similarity: Any,
        saliency: Array,
        combine: Combine = "multi",
        *,
        selectable: Any = None,
        check_finite: bool = True,
    ) -> None:
        cover = FacilityLocation(similarity, selectable=selectable, check_finite=check_finite)
        self.combine = combine
        """How coverage and saliency come together."""
        self.differences = self.monotone = combine == "add"
        self.cover = cover
        """What is covered, whoever covers it."""
        self.batch_shape = cover.batch_shape
        self.size = cover.size
        saliency = checked(
            saliency,
            "saliency",
            "(..., N)",
            check_finite=check_finite,
            non_negative=check_finite,
            beside=cover.sample,
        )
        wanted = (*self.batch_shape, self.size)
        if shape_of(saliency) not in (wanted, wanted[-1:]):
            raise ValueError(
                f"saliency: expected shape {spell(wanted)}, got {spell(shape_of(saliency))}"
            )
        xp = namespace(saliency, cover.sample)
        self.saliency = constant(xp.broadcast_to(saliency, wanted))
        """The saliency w (..., N) given."""
        self.selectable = checked_selectable(selectable, cover)
        self._settle()

    def _settle(self) -> None:
        self.sample = self.cover.sample
        self._strongest: float | None = None

    def row(self, position: tuple[int, ...]) -> Self:
        """The objective of one image of the batch; see `ByRow.row`."""
        one = super().row(position)
        one.cover.batch_shape = ()
        return one

    def with_arrays(self, change: Callable[[Any], Any]) -> Self:
        """A copy whose arrays, and those of its coverage, went through `change`."""
        one = super().with_arrays(change)
        one.cover = self.cover.with_arrays(change)
        one._settle()
        return one

    def weighed(self, gains: Array, saliency: Array) -> Array:
        """Gains of coverage with the saliency of the candidates."""
        return gains * saliency if self.combine == "multi" else gains + saliency

    def wide_saliency(self) -> Array:
        """The saliency (N,) of one image in the dtype of sums."""
        xp = namespace(self.saliency)
        return xp.astype(self.saliency, wide(xp))

    def strongest(self) -> float:
        """The largest factor that a gain of coverage is multiplied by."""
        if self._strongest is None:
            self._strongest = 1.0
            if self.combine == "multi":
                self._strongest = float(namespace(self.saliency).max(self.saliency))
        return self._strongest

    def _value(self, picks: Array) -> Array:
        xp = namespace(self.saliency)
        value = self.cover._value(picks)
        if self.combine == "multi":
            return value
        return value + xp.sum(xp.take(self.wide_saliency(), picks))

    def _gain(self, picks: Array, candidates: Array) -> Array:
        xp = namespace(self.saliency)
        taken = xp.any(picks[None, :] == candidates[:, None], axis=-1)
        w = xp.take(self.wide_saliency(), candidates)
        if self.combine == "add":
            w = xp.where(taken, xp.zeros_like(w), w)
        return self.weighed(self.cover._gain(picks, candidates), w)

    def tracker(self) -> Tracker:
        """The coverage's tracker, and the saliency of the candidates beside it."""
        return _Weighed(self)


class _Weighed:
    def __init__(self, f: SalientCoverage) -> None:
        self._f = f
        self._served = tracker_of(f.cover)
        self._saliency = f.wide_saliency()

    @property
    def slack(self) -> float:
        return self._served.slack * self._f.strongest()

    def gains(self) -> Array:
        return self._f.weighed(self._served.gains(), self._saliency)

    def add(self, pick: int) -> None:
        self._served.add(pick)
        if self._f.combine == "add":
            xp = namespace(self._saliency)
            itself = xp.arange(self._f.size, device=device(self._saliency)) == pick
            self._saliency = xp.where(itself, xp.zeros_like(self._saliency), self._saliency)
