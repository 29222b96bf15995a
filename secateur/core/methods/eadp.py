"""EADP: entropy-aware dense pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.core.acts import ChoosesParts
from secateur.core.arrays import (
    Array,
    each_row,
    index_dtype,
    like,
    namespace,
    shape_of,
    to_numpy,
    wide,
    widened,
)
from secateur.core.budget import Rounding, allocate
from secateur.core.inputs import Tokens
from secateur.core.kernels import KINDS, Kind
from secateur.core.maps import min_max, polarize, smooth
from secateur.core.maximize import maximize
from secateur.core.methods.base import (
    CountedFrom,
    Method,
    Program,
    Reading,
    require_one_of,
    require_positive,
    require_share,
    require_whole,
)
from secateur.core.objectives import FacilityLocation
from secateur.core.relevance import AGGREGATES, Aggregate, check_temperatures, dense_relevance
from secateur.core.selection import Selection
from secateur.core.similarity import cosine_similarity

Crops = Literal["importance", "guided", "joint"]

OVERVIEW_SHARE = 0.2
"""What the overview crop gets of the budget under ``crops="guided"``."""

VIDEO_KEEPS = 0.5
"""Share of the text tokens that survive in the authors' program for video."""

ENTROPY_FLOOR = 1e-6
"""What the authors' program adds to entropies it divides by."""

MATRIX_UP_TO = 8192
"""Up to so many tokens in a pool, their similarities are kept as a matrix."""


@dataclass(frozen=True)
class EADP(Method, ChoosesParts):
    r"""Entropy-aware dense pruning: the tokens that best cover what the instruction asks for.

    With :math:`S_{il} = \text{sign} \, \cos(E_i, T_l)`, :math:`G_i = \text{sign} \, \cos(E_i, g)`
    and the share `keep_ratio` of text tokens l whose similarities over the image have the lowest
    entropy H_l:

    .. math::
        D_i &= \sum_l \operatorname{softmax}_l(-H_l / \text{entropy\_temperature}) \, S_{il} \\
        R &= \operatorname{smooth}(\operatorname{minmax}(\alpha G + (1 - \alpha) D)) ^ \beta \\
        f(S) &= \sum_i R_i \max_{j \in S} \tfrac12 (1 + \cos(X_i, X_j))

    and f is maximised greedily. X are the `features`, E the `embeds` (the `features` where there
    are none), T the `text`, g the `text_global` (the mean of the text tokens where there is none).

    Parameters
    ----------
    keep
        How many tokens to keep of each image, frame or crop: a count or a share.
    alpha
        Share of the global similarity G in the relevance.
    beta
        Power that deepens the contrast of the relevance: 1 for LLaVA, 2 for Qwen-VL and video.
    temperature
        Sharpness of the softmax over the image from which H_l is taken.
    keep_ratio
        Share of the text tokens that survive the entropy filter, at least one.
    entropy_temperature
        Temperature of the weights over those.
    aggregate
        ``"entropy"`` as above, ``"tempered"`` or ``"topk"``: see `secateur.dense_relevance`.
    sign
        -1 for encoders trained like CLIP, whose relevant patches score low; +1 otherwise.
    smoothing
        Standard deviation in tokens of the 3 x 3 Gaussian; 0 for none. Without a `grid` there
        is no smoothing.
    crops
        What the axis before the tokens means: None, images or video frames, each by itself; a
        name, the crops of one image, the overview first, which share K times `keep` tokens.
        ``"importance"``, the authors' choice: in proportion to the sums of R. ``"guided"``: a
        fifth for the overview, the rest in proportion to R within that part of the overview
        which each crop enlarges. ``"joint"``: all crops are one pool of tokens.
    rounding
        How crops share the budget: ``"exact"`` spends all of it, ``"floor"`` rounds down as
        published.
    layout
        Rows and columns of the crops beside the overview, for ``"guided"``.
    similarity
        How tokens stand for each other: ``"cosine"`` as above and as published, or another of
        `secateur.FacilityLocation.from_features`. On features of real encoders (1 + cos) / 2 is
        nearly flat: see ``docs/evidence``.

    Notes
    -----
    O(N L C + N^2 D + N^2) time and O(N^2) memory (O(N D) beyond 8192 tokens in a pool); with
    ``crops="joint"`` N counts the tokens of all crops.

    Several texts (a list) count with the mean of their relevances. Text tokens that `text_mask`
    leaves out play no part. With crops, every crop filters the text by itself and is smoothed by
    itself, min-max runs over all crops together, and texts of a batch of images come without
    the crop axis, `text` (..., L, C) beside `features` (..., K, N, D).

    Greedy is within 1 - 1/e of the best value; `Selection.guarantee` is what the set at hand is
    certain of, usually far more.

    From the authors' program it differs in this. Only unmasked text tokens score; there, every
    position does, padding included, though the paper leaves out even the end token. A budget
    shared by crops is spent to the last token by default, because rounding down loses up to
    K - 1 tokens of K k and then compares unequal budgets with other methods; ``"floor"``
    restores it. `secateur.published` does all of this as the program, and for the frames of a
    video, where `frames` and `states` are there, as its program for video: half of the text
    tokens survive, ``aggregate="tempered"``, and relevance and coverage are measured between
    tokens before the projector. Entropies have no 1e-12 within their logarithm. Grids need not
    be squares, and a grid with a side of one token is smoothed along the other.

    A video with ``over="video"`` is one pool: every frame is smoothed by itself, and a token is
    covered by kept ones of any frame.

    References
    ----------
    X. Wang, X. Yang and W. Shen, "Combating Textual Noise and Redundancy: Entropy-Aware Dense
    Visual Token Pruning", ECCV 2026, arXiv 2607.02484. G. Nemhauser, L. Wolsey and M. Fisher,
    "An analysis of approximations for maximizing submodular set functions", 1978.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> tokens = sc.Tokens(features=features, text=np.array([[0.0, 1.0]]))
    >>> sc.EADP(keep=2, sign=1).select(tokens).indices
    array([3, 1])
    """

    alpha: float = 0.5
    beta: float = 1.0
    temperature: float = 100.0
    keep_ratio: float = 0.2
    entropy_temperature: float = 0.01
    aggregate: Aggregate = "entropy"
    sign: int = -1
    smoothing: float = 1.0
    crops: Crops | None = None
    rounding: Rounding = "exact"
    layout: tuple[int, int] = (2, 2)
    similarity: Kind = "cosine"

    name: ClassVar[str] = "eadp"
    complexity: ClassVar[str] = "N L C + N^2 D"
    reference: ClassVar[str] = "Wang, Yang, Shen, ECCV 2026, arXiv 2607.02484"
    guarantee: ClassVar[str] = "1 - 1/e of the best coverage, and a certificate for each set"
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = (
        "the authors' program: relevance maps, picks in order, crop budgets, on arrays; in models "
        "maps, kept tokens, answers"
    )
    program: ClassVar[Program] = Program("SJTU-DeepVisionLab/EADP", "e1a08801461c")
    as_published: ClassVar[Mapping[str, Any]] = {"rounding": "floor"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("alpha", self.alpha)
        require_positive("beta", self.beta, zero=True)
        require_positive("temperature", self.temperature)
        require_positive("entropy_temperature", self.entropy_temperature)
        check_temperatures(self.temperature, self.entropy_temperature)
        require_share("keep_ratio", self.keep_ratio, zero=False)
        require_one_of("aggregate", self.aggregate, AGGREGATES)
        if self.sign not in (-1, 1):
            raise ValueError(f"sign: expected -1 or 1, got {self.sign!r}")
        require_positive("smoothing", self.smoothing, zero=True)
        if self.crops is not None:
            require_one_of("crops", self.crops, ("importance", "guided", "joint"))
        require_one_of("rounding", self.rounding, ("exact", "floor"))
        if len(self.layout) != 2:
            raise ValueError(f"layout: expected (rows, columns) of crops, got {self.layout!r}")
        for side in self.layout:
            require_whole("layout", side, least=1)
        require_one_of("similarity", self.similarity, KINDS)

    @property
    def needs(self) -> frozenset[str]:
        """The tokens and the instruction."""
        return frozenset({"features", "text"})

    @property
    def optional(self) -> frozenset[str]:
        """The vision-text space, the whole instruction, its mask, and the grid.

        As published, of a video also the tokens before the projector.
        """
        video = {"frames", "states"} if self.published else set()
        return frozenset({"embeds", "grid", "text_global", "text_mask", *video})

    @property
    def alone(self) -> EADP:
        """Without `crops`; see `ChoosesParts.alone`."""
        return self if self.crops is None else replace(self, crops=None)

    @property
    def parts_counted_from(self) -> CountedFrom:
        """Where shares are rounded down, the crops decide; see `Method.parts_counted_from`."""
        return "features" if self.rounding == "floor" else self.counted_from

    @property
    def sees_padding(self) -> bool:
        """The authors' program keeps it; see `ChoosesParts.sees_padding`."""
        return self.published

    def check_attached(self) -> None:
        """Crops share by importance there; see `Method.check_attached`."""
        if self.crops not in (None, "importance"):
            raise ValueError(
                f"EADP: crops={self.crops!r} needs crops of equal grids, which a model does not "
                "keep once it removes padding; crops share by importance here"
            )

    @property
    def reads(self) -> Reading:
        """As published, every position of the text encoder's windows."""
        return "window" if self.published else "words"

    def relevance(self, tokens: Tokens) -> Array:
        """The weights R (..., N): relevance after min-max, smoothing and polarisation."""
        r = self._similarity(tokens)
        r = min_max(r, -1 if self.crops is None else (-2, -1), check_finite=False)
        return self._shaped(r, tokens)

    def _similarity(self, tokens: Tokens) -> Array:
        """Relevance (..., N) as it is before min-max."""
        text, whole, mask = tokens.text, tokens.text_global, tokens.text_mask
        if self.crops is not None:
            text, whole, mask = (
                _beside_crops(text, 2),
                _beside_crops(whole, 1),
                _beside_crops(mask, 1),
            )
        return dense_relevance(
            tokens.space,
            text,
            whole,
            text_mask=mask,
            temperature=self.temperature,
            keep_ratio=self.keep_ratio,
            entropy_temperature=self.entropy_temperature,
            alpha=self.alpha,
            aggregate=self.aggregate,
            sign=self.sign,
            entropy_floor=ENTROPY_FLOOR if self.published else 0.0,
            check_finite=False,
        )

    def _shaped(self, r: Array, tokens: Tokens) -> Array:
        """Smoothed, each frame by itself, and polarised."""
        if tokens.grid is not None and self.smoothing > 0:
            by_frame = (*shape_of(r)[:-1], tokens.times, tokens.size // tokens.times)
            xp = namespace(r)
            smoothed = smooth(
                xp.reshape(r, by_frame), tokens.grid, sigma=self.smoothing, check_finite=False
            )
            r = xp.reshape(smoothed, shape_of(r))
        return polarize(r, self.beta, check_finite=False)

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Greedy facility location under the relevance; see `Method.choose`."""
        if self.crops is not None and not tokens.batch_shape:
            raise ValueError(
                f"features: crops={self.crops!r} expects shape (..., K, N, D), "
                f"got {shape_of(tokens.features)}"
            )
        r = self.relevance(tokens)
        features = widened(tokens.features)
        if shape_of(r) != (*tokens.batch_shape, tokens.size):
            raise ValueError(
                f"text: its leading axes are not those of features {shape_of(tokens.features)}"
            )
        if self.crops == "joint" and tokens.batch_shape[-1]:
            return _from_one_pool(features, r, k, self.similarity)
        budget = k if self.crops is None else self._crop_budgets(r, k, tokens.grid)
        chosen = maximize(coverage(features, r, self.similarity), budget)
        return replace(chosen, scores=r)

    def _choose_in_time(self, images: Sequence[Tokens]) -> list[Selection]:
        """Frames are no crops; as published, videos by the rules of the program for video."""
        chosen = []
        for each in images:
            told = self if each.frames is None else self.alone
            if self.published and each.frames is not None and each.states is not None:
                told = replace(told, keep_ratio=VIDEO_KEEPS, aggregate="tempered")
                each = each.with_(features=each.states, embeds=each.states)
            chosen += super(EADP, told)._choose_in_time([each])
        return chosen

    def select_parts(self, parts: Sequence[Tokens], pictures: int) -> list[Selection]:
        """Crops that share `pictures` times `keep`, by importance; see `ChoosesParts`.

        Min-max runs over all crops together; each is smoothed and covered by itself.
        """
        for each in parts:
            each.require("EADP", *sorted(self.needs))
            self._check(each, check_finite=False)
        raw = [self.alone._similarity(each) for each in parts]
        for r, each in zip(raw, parts, strict=True):
            if shape_of(r) != (each.size,):
                raise ValueError(
                    f"text: its leading axes are not those of features {shape_of(each.features)}"
                )
        xp = namespace(raw[0])
        joined = min_max(xp.concat(raw, axis=-1), check_finite=False)
        sizes = np.array([each.size for each in parts])
        ends = np.cumsum(sizes).tolist()
        maps = [
            self._shaped(joined[..., end - each.size : end], each)
            for each, end in zip(parts, ends, strict=True)
        ]
        total = self.budget_of_parts(int(sizes.sum()), len(parts), pictures)
        sums = np.array([to_numpy(r).sum(dtype=np.float64) for r in maps])
        budgets = np.minimum(sizes, total)
        if len(parts) > 1 and total < sizes.sum():
            budgets = self._share(sums, total, sizes)
        return [
            replace(
                maximize(coverage(widened(each.features), r, self.similarity), int(k)), scores=r
            )
            for each, r, k in zip(parts, maps, budgets, strict=True)
        ]

    def _share(self, sums: Any, total: int, sizes: Any) -> Any:
        """A budget shared out by relevance."""
        if not np.all(np.isfinite(sums)):
            raise ValueError(
                "features, text: contain NaN or infinity, so that crops have no relevance"
            )
        return allocate(sums, total, maximum=sizes, rounding=self.rounding)

    def _crop_budgets(self, r: Array, k: int, grid: tuple[int, int] | None) -> Any:
        """Tokens of each crop (..., K), which hold K k together."""
        crops, size = shape_of(r)[-2:]
        total = k * crops
        if k == size or crops == 0:
            return k
        if self.crops == "importance":
            scores = to_numpy(r).sum(axis=-1, dtype=np.float64)
            return self._share(scores, total, size)
        down, across = self.layout
        if crops != 1 + down * across:
            raise ValueError(
                f"features: crops='guided' with layout {self.layout} expects an overview and "
                f"{down * across} crops, got {crops} in all"
            )
        if grid is None:
            raise ValueError("grid: crops='guided' needs the tokens' grid (h, w)")
        # What the overview leaves must fit into the other crops, and give each of them one.
        overview = int(total * OVERVIEW_SHARE + 1e-9)
        overview = max(overview, 1, total - (crops - 1) * size)
        overview = min(overview, size, total - (crops - 1))
        scores = _parts(to_numpy(r)[..., 0, :].astype(np.float64), grid, self.layout)
        shared = self._share(scores, total - overview, size)
        first = np.full((*shared.shape[:-1], 1), overview, dtype=np.int64)
        return np.concatenate([first, shared], axis=-1)


def coverage(
    features: Array, weights: Array | None = None, similarity: Kind = "cosine"
) -> FacilityLocation:
    """Facility location on tokens (..., N, D); of cosines a matrix, for so many tokens."""
    if similarity != "cosine" or int(features.shape[-2]) > MATRIX_UP_TO:
        return FacilityLocation.from_features(
            features, weights, similarity=similarity, check_finite=False
        )
    return FacilityLocation(cosine_similarity(features), weights, check_finite=False)


def _from_one_pool(features: Array, r: Array, k: int, similarity: Kind) -> Selection:
    """Choose among the tokens of all crops, and tell each crop which of its own were chosen."""
    xp = namespace(features)
    *batch, crops, size, width = shape_of(features)
    pool = xp.reshape(features, (*batch, crops * size, width))
    weights = xp.reshape(r, (*batch, crops * size))
    chosen = maximize(coverage(pool, weights, similarity), k * crops)
    picks, gains = to_numpy(chosen.indices), to_numpy(chosen.gains)
    counts = np.stack([(picks // size == crop).sum(axis=-1) for crop in range(crops)], axis=-1)
    longest = int(counts.max(initial=0))
    indices = np.full((*batch, crops, longest), -1, dtype=np.int64)
    added = np.zeros((*batch, crops, longest), dtype=gains.dtype)
    for position in each_row((*batch, crops)):
        own = picks[position[:-1]] // size == position[-1]
        count = int(counts[position])
        indices[position][:count] = picks[position[:-1]][own] % size
        added[position][:count] = gains[position[:-1]][own]
    whole = index_dtype(xp)
    return Selection(
        like(indices, r, dtype=whole),
        like(counts, r, dtype=whole),
        size,
        gains=like(added, r, dtype=wide(xp)),
        value=like(added.sum(axis=-1), r, dtype=wide(xp)),
        scores=r,
        info={"pool_value": chosen.value, "pool_upper_bound": chosen.upper_bound},
    )


def _parts(
    overview: np.ndarray[Any, Any], grid: tuple[int, int], layout: tuple[int, int]
) -> np.ndarray[Any, Any]:
    """Sums of a map (..., h * w) over the parts of its grid that the crops enlarge."""
    image = overview.reshape(*overview.shape[:-1], *grid)
    rows, columns = (
        [side * place // count for place in range(count + 1)]
        for side, count in zip(grid, layout, strict=True)
    )
    sums = [
        image[..., top:bottom, left:right].sum(axis=(-2, -1))
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    return np.stack(sums, axis=-1)


def _beside_crops(x: Any, axes: int) -> Any:
    """What each image has once, with an axis that stretches over its crops."""
    if x is None:
        return None
    if isinstance(x, (list, tuple)):
        return [_beside_crops(each, axes) for each in x]
    if getattr(x, "ndim", 0) <= axes:
        return x
    return x[(..., None, *(slice(None),) * axes)]
