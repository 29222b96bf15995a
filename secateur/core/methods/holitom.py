"""HoliTom: windows that stand still are said once; the rest by attention; a fold inside."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from secateur.core.acts import Cut, Look, Sight, Stay
from secateur.core.arrays import (
    Array,
    checked,
    constant,
    descending,
    index_dtype,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
    top,
    wide,
    widened,
)
from secateur.core.density import density_clusters
from secateur.core.inputs import Tokens
from secateur.core.methods.base import (
    CountedFrom,
    Program,
    require_share,
    require_whole,
)
from secateur.core.methods.video import TwoStages
from secateur.core.order import nearest_direction
from secateur.core.segments import cosine_in_time, in_time, spans, still_windows
from secateur.core.selection import Selection

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class HoliTom(TwoStages):
    r"""Holistic token merging: what stands still within a window is one token.

    A token stands still from a frame to the next where its cosine to the one at its place
    exceeds `tau`. The video is cut into windows so that the most tokens S are saved by saying
    each place that stands still throughout its window once
    (`secateur.core.segments.still_windows`), and the share to keep grows to

    .. math:: r' = \min \Bigl( 1, r \frac{N}{N - S} \Bigr)

    In a window of several frames, the f still places become their means over the window. Of
    those means round(f r') are kept, density peaks (`secateur.density_clusters`, so many
    neighbours); every other joins its nearest peak c, and

    .. math:: x_c' = \beta x_c + (1 - \beta) \operatorname{mean}_{i \text{ joined } c} x_i

    Of the other places, and of all in a window of one frame, each frame keeps those of highest
    attention, ceil(f' r') of f', unchanged. Inside the language model, where `inside` says so, the
    less attended tokens fold into the more attended (`fold_into_attended`).

    Parameters
    ----------
    keep
        How many tokens to keep: a share r of the video's, or a count for each frame.
    tau
        Cosine above which a token stands still; the authors take 0.65 to keep a tenth.
    beta
        Weight of a peak in what it becomes; None: the plain mean of it and what joined.
    neighbours
        How many neighbours say a density, at most as many as there are peaks.
    window
        How many frames a window may have.
    inside
        Share of the visual tokens that the fold inside leaves; None: there is none.
        The authors offer 0.5.
    after
        How many layers run before that fold, as a share of them; the authors' 18 of 28.

    Notes
    -----
    O(N D) time for likeness, O(T^2 n) for the windows, O(f^2 D) for a window's peaks; N = T n.
    A window's means stand in its first frame. The number kept follows from the features: about
    the share, and more, since each frame rounds up. Cosines are in float64, densities in the
    tokens' precision, at least float32. Picks are listed in place order; what a kept mean holds
    is in ``selection.merge(features)``, whose weights sum to one for every kept token.

    Published: a window of few still places may round to none of them; by default one stays at
    least. The program lists a window's means before its frames, and has newlines after
    rows, which no selection of visual tokens says. Equal densities, where it draws noise, go to
    the lower index here.

    References
    ----------
    K. Shao, K. Tao, C. Qin, H. You, Y. Sui and H. Wang, "HoliTom: Holistic Token Merging for
    Fast Video Large Language Models", NeurIPS 2025, arXiv 2505.21334.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [1.0, 1.0]])
    >>> video = sc.Tokens(features=x, frames=2, attention=np.array([1.0, 2.0, 1.0, 3.0]))
    >>> kept = sc.HoliTom(keep=0.75).select(video)
    >>> kept.indices, kept.merge(x)
    (array([0, 1, 3]), array([[2., 0.],
           [0., 1.],
           [1., 1.]]))
    """

    keep: int | float = 0.15
    tau: float = 0.8
    beta: float | None = 0.6
    neighbours: int = 7
    window: int = 1024
    after: float = field(default=18 / 28, kw_only=True)

    looks: ClassVar[frozenset[Look]] = frozenset({"queries", "keys", "hidden"})
    name: ClassVar[str] = "holitom"
    complexity: ClassVar[str] = "N D + T N + n^2 D a window"
    reference: ClassVar[str] = "Shao et al., NeurIPS 2025, arXiv 2505.21334"
    parity: ClassVar[str] = "the authors' program: windows, kept and merged tokens; its inner fold"
    program: ClassVar[Program | None] = Program("cokeshao/HoliTom", "e9b2972")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1.0 <= self.tau <= 1.0:
            raise ValueError(f"tau: expected a cosine in [-1, 1], got {self.tau!r}")
        if self.beta is not None:
            require_share("beta", self.beta)
        require_whole("neighbours", self.neighbours, least=1)
        require_whole("window", self.window, least=1)

    @property
    def needs(self) -> frozenset[str]:
        """The tokens and their attention."""
        return frozenset({"features", "attention"})

    @property
    def counted_from(self) -> CountedFrom:
        """The features: what stands still decides."""
        return "features"

    def left(self, size: int, share: float) -> int:
        """As many, rounded."""
        return round(size * share)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Fold into those that the last token attends to; see `Cuts.decide`."""
        states = widened(sight.hidden)
        kept, folded = fold_into_attended(states, sight.from_last(), sight.visual, cut.keep)
        places = np.searchsorted(to_numpy(sight.visual), to_numpy(kept))
        return Stay(like(places, sight.visual), folded)

    def choose_video(self, tokens: Tokens, k: int, noise: list[Array] | None = None) -> Selection:
        """Window by window; `noise`, an array a window with means, is for its densities."""
        video = in_time(constant(widened(tokens.features)), tokens.times)
        xp, (times, n, _) = namespace(video), shape_of(video)
        attention = xp.reshape(widened(tokens.attention), (times, n))
        still = cosine_in_time(video) > self.tau
        cut, saved = still_windows(still, self.window)
        share = min(1.0, self.share(n) / ((times * n - saved) / (times * n)))
        host, draws = to_numpy(still), iter(noise or ())
        folded = np.full((times, n), -1, dtype=np.int64)
        weights = np.zeros((times, n))
        for start, stop in spans(cut):
            own = host[start : stop - 1].all(axis=0) & (stop - start > 1)
            places = np.flatnonzero(own)
            count = round(len(places) * share)
            if len(places) and not self.published:
                count = max(1, count)
            if count:
                means = xp.mean(
                    xp.take(video[start:stop, ...], like(places, video), axis=1), axis=0
                )
                centres, cluster = density_clusters(
                    means,
                    count,
                    min(self.neighbours, count),
                    noise=next(draws, None),
                    check_finite=False,
                )
                goes, weight = self._weights(to_numpy(centres), to_numpy(cluster))
                folded[start:stop, places] = start * n + places[goes]
                weights[start:stop, places] = weight / (stop - start)
            rest = np.flatnonzero(~own)
            most = math.ceil(len(rest) * share - (0.0 if self.published else 1e-9))
            _keep_attended(attention, rest, most, (start, stop), folded, weights)
        kept = np.flatnonzero(folded.ravel() == np.arange(times * n))
        whole = index_dtype(xp)
        return Selection.of(
            like(kept, video, dtype=whole),
            tokens.size,
            folded=like(folded.ravel(), video, dtype=whole),
            fold_weights=like(weights.ravel(), video, dtype=wide(xp)),
            info={"saved": saved, "share": share},
        )

    def _weights(self, centres: Numbers, cluster: Numbers) -> tuple[Numbers, Numbers]:
        """For every mean (f,), the place it goes to and its weight there."""
        joined = np.bincount(cluster, minlength=len(centres)) - 1
        goes = centres[cluster]
        itself = goes == np.arange(len(cluster))
        others = joined[cluster]
        if self.beta is None:
            return goes, 1.0 / (1.0 + others)
        alone = np.where(others > 0, self.beta, 1.0)
        return goes, np.where(itself, alone, (1.0 - self.beta) / np.maximum(others, 1))


def _keep_attended(
    attention: Array,
    rest: Numbers,
    count: int,
    span: tuple[int, int],
    folded: Numbers,
    weights: Numbers,
) -> None:
    """Mark, in each frame of a span, the most attended of the places in `rest` as their own."""
    n = int(attention.shape[-1])
    if not count:
        return
    frames = np.arange(*span)
    own = namespace(attention).take(
        attention[span[0] : span[1], ...], like(rest, attention), axis=1
    )
    chosen = rest[to_numpy(descending(own))[:, :count]]
    folded[frames[:, None], chosen] = frames[:, None] * n + chosen
    weights[frames[:, None], chosen] = 1.0


def fold_into_attended(
    states: Array, attention: Array, visual: Array, keep: int
) -> tuple[Array, Array]:
    r"""Fold the less attended visual tokens of a layer into the more attended, inside a model.

    Kept are the tokens of highest attention. Each other one i, in the order of their places,
    goes to the kept one j of largest cosine to it (of the states as they came):

    .. math:: h_j \leftarrow (h_j + h_i) / 2

    so later ones weigh more.

    Parameters
    ----------
    states
        Hidden states (L, D) before the layer.
    attention
        The last token's attention (V,) to each visual token in the layer before, mean over heads.
    visual
        Ascending positions (V,) of the visual tokens.
    keep
        How many of them stay; the authors keep round(V / 2), before layer 18.

    Returns
    -------
    kept : Array
        Ascending positions (K,) of the visual tokens that stay. Ties in attention: the lower.
    folded : Array
        Their states (K, D).

    Notes
    -----
    O(V K D) time.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.holitom import fold_into_attended
    >>> x = np.array([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> fold_into_attended(x, np.array([0.6, 0.3, 0.1]), np.array([1, 2, 3]), 2)
    (array([1, 2]), array([[2., 0.],
           [0., 1.]]))
    """
    states = checked(states, "states", "(L, D)")
    xp, size = namespace(states), int(visual.shape[-1])
    if shape_of(attention) != (size,):
        raise ValueError(
            f"attention: expected shape {spell((size,))}, got {spell(attention.shape)}"
        )
    require_whole("keep", keep, least=1)
    kept = xp.sort(top(attention, min(keep, size)))
    own = to_numpy(kept)
    dropped = np.setdiff1d(np.arange(size), own)
    x = xp.take(states, visual, axis=0)
    mix = np.zeros((len(own), size))
    mix[np.arange(len(own)), own] = 1.0
    if len(dropped):
        away = xp.take(x, like(dropped, visual, dtype=visual.dtype), axis=0)
        (nearest,) = nearest_direction(away, xp.take(x, kept, axis=0), [len(own)])
        joins = to_numpy(nearest)
        for place, target in zip(dropped.tolist(), joins.tolist(), strict=True):
            mix[target] *= 0.5
            mix[target, place] = 0.5
    folded = like(mix, states, dtype=states.dtype) @ x
    return xp.take(visual, xp.astype(kept, visual.dtype), axis=0), folded
