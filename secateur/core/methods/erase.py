"""ERASE: by the entropy of pixels before the language model, by attention inside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from secateur.core.acts import Cut, Layout, Look, Sight, Stay
from secateur.core.arrays import (
    Array,
    descending,
    device,
    index_dtype,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
)
from secateur.core.attention import best
from secateur.core.inputs import Tokens
from secateur.core.measures import median, patch_entropy
from secateur.core.methods.base import CountedFrom, Program, require_share, require_whole
from secateur.core.methods.inside import InsideMethod, descending_cuts
from secateur.core.order import settled
from secateur.core.selection import Selection


class Preset(NamedTuple):
    """Published settings for one model, found for keeping a quarter of the tokens."""

    patch: int
    thresholds: tuple[float, ...]
    ratios: tuple[float, ...]
    deep: float
    shallow: int


PRESETS = {
    "qwen2.5-vl-7b": Preset(
        28,
        (1.6904912034377264, 1.3471717001563197, 1.1718597959685415),
        (0.8267523535511546, 0.751410400727526, 0.49466854974609853, 0.4033912240039451),
        16 / 28,
        1,
    ),
    "qwen3-vl-8b": Preset(
        32,
        (1.6102664561128828, 0.2269265653651543, 0.05622356759744964),
        (0.8450338604820039, 0.7763170296713962, 0.7573556106689442, 0.19399401785935438),
        21 / 36,
        3,
    ),
}
"""The settings published with ERASE, by model."""

_QWEN = PRESETS["qwen2.5-vl-7b"]

# What the authors' program has as constants: the layer after which it cuts, deep and shallow, and
# how many tokens before the image never ask; in Qwen2.5-VL, then in Qwen3-VL, where queries are
# made of the states that left the layer, not of those that entered it.
_OF_STATES_THAT_LEFT = "Qwen3-VL"
_LAYERS = ((16, 1), (21, 3))
_BEFORE_THE_IMAGE = (15, 4)
_DEEP_LEVELS = {2: 2, 3: 2, 4: 3}


@dataclass(frozen=True)
class ERASE(InsideMethod):
    r"""ERASE: keep more of complex images, first by pixels, then by what the text attends to.

    Before the language model, with e the entropies of the grey values of an image's patches and
    m their median,

    .. math::
        r = \begin{cases} r_i & \text{first } i \text{ with } m > t_i \\
        r_n & \text{none} \end{cases}, \qquad
        \text{count} = \lfloor N \max(r, \text{keep}) \rfloor

    patches of highest entropy stay. Inside, after a layer that is deep for complex images and
    shallow for the others, the floor(N keep) visual tokens stay to which the instruction pays
    most attention:

    .. math::
        \text{score}_j = \sum_{q \in \text{text}} \frac{1}{H} \sum_h
        \operatorname{softmax}_{j \le q}(\langle Q_{hq}, K_{hj} \rangle / \sqrt{d})

    Parameters
    ----------
    keep
        What remains in the end: a share of all visual tokens, or a count.
    thresholds
        Median entropies t_0 > t_1 > ... in nats that separate the levels of complexity.
    ratios
        What the first stage keeps at each level, one more than thresholds.
    patch
        Pixels on a side of what becomes one visual token, where the tokens have no grid; with
        one it follows from the grid, and any number but the default has to agree.
    deep
        Where the second stage cuts for complex images, as a share of the layers.
    shallow
        After how many layers it cuts for the others.
    complex_levels
        How many levels count as complex, from the most complex on; half of the thresholds,
        rounded up, when absent: the levels 0 and 1 of the published three thresholds.

    Notes
    -----
    The first stage takes O(H W) time for the pixels and O(N log N) for the patches; the second
    O(H L T d). `select` is the first stage; its ``info["level"]`` goes to `cuts`, where the
    lowest level, that of the most complex image, decides for a prompt of several.

    The defaults are the published settings for Qwen2.5-VL-7B at a quarter of the tokens;
    `ERASE.preset` has all of them and `secateur.calibrate` finds others. The number of patches
    that stay is that of the authors' program; patches of equal entropy stay in order of their
    index, there in any order. A flat patch has entropy 0, there 6e-7, which decides nothing.
    Models of other depths are cut at the same share of their layers.

    Published, the second stage is the authors' program too: fixed layers, one later than its
    index says; queries are what the layer's projection makes, without the norm before it, of the
    states that entered the layer (Qwen2.5-VL) or left it (Qwen3-VL); all tokens but the image's
    and the first 15 (4) ask, template and image marks included. Ours asks with the layer's own
    queries, by the instruction alone. With several images in Qwen3-VL the program adds rows of
    the first image's deepstack to the second; that is not copied. A later revision of that
    program also weighs edges; this is the method as published in May 2026.

    References
    ----------
    Y. Lee, K. Min and Y. Kim, "ERASE: Eliminating Redundant Visual Tokens via Adaptive Two-Stage
    Token Pruning", 2026, arXiv 2605.09982.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> pixels = np.zeros((28, 112, 3))
    >>> pixels[:, 84:] = np.arange(28.0)[:, None, None]
    >>> tokens = sc.Tokens(features=np.ones((4, 2)), pixels=pixels)
    >>> chosen = sc.ERASE(keep=0.25).select(tokens)
    >>> chosen.indices, int(chosen.info["level"])
    (array([3]), 3)
    """

    keep: int | float = 0.25
    thresholds: tuple[float, ...] = _QWEN.thresholds
    ratios: tuple[float, ...] = _QWEN.ratios
    patch: int = _QWEN.patch
    deep: float = _QWEN.deep
    shallow: int = _QWEN.shallow
    complex_levels: int | None = None

    name: ClassVar[str] = "erase"
    program: ClassVar[Program | None] = Program(
        "Tuna-Luna/ERASE", "96bee52f8905b3a243ec3ade7a7e7899eb68dc91"
    )
    looks: ClassVar[frozenset[Look]] = frozenset({"queries", "keys", "entered", "hidden", "ask"})
    complexity: ClassVar[str] = "pixels + N log N, then H L T d"
    reference: ClassVar[str] = "Lee, Min, Kim, 2026, arXiv 2605.09982"
    guarantee: ClassVar[str] = "none; the patches kept have the largest total entropy"
    parity: ClassVar[str] = (
        "the authors' program: entropies, kept patches; in models both stages, caches, answers"
    )
    prunes_before: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = list(self.thresholds)
        if not all(math.isfinite(t) for t in steps) or any(
            high <= low for high, low in pairwise(steps)
        ):
            raise ValueError(f"thresholds: expected descending numbers, got {self.thresholds}")
        if len(self.ratios) != len(steps) + 1:
            raise ValueError(
                f"ratios: expected one more than the {len(steps)} thresholds, got {self.ratios}"
            )
        for ratio in self.ratios:
            require_share("ratios", ratio, zero=False)
        require_whole("patch", self.patch, least=1)
        require_share("deep", self.deep, zero=False)
        require_whole("shallow", self.shallow, least=1)
        if self.complex_levels is not None:
            require_whole("complex_levels", self.complex_levels)

    @classmethod
    def preset(cls, model: str, **changes: Any) -> ERASE:
        """The settings published for a model; keywords replace some of them.

        >>> import secateur as sc
        >>> sc.ERASE.preset("qwen3-vl-8b", keep=0.15).patch
        32
        """
        if model not in PRESETS:
            raise ValueError(f"model: expected one of {', '.join(PRESETS)}; got {model!r}")
        return cls(**{**PRESETS[model]._asdict(), **changes})

    @property
    def needs(self) -> frozenset[str]:
        """The image itself."""
        return frozenset({"pixels"})

    @property
    def counted_from(self) -> CountedFrom:
        """The entropies of the image; see `Method.counted_from`."""
        return "pixels"

    def weigh(self, tokens: Tokens) -> Array:
        """The entropy of its pixels; see `Method.weigh`."""
        return patch_entropy(tokens.pixels, self.patch_of(tokens))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The first stage, on pixels; see `Method.choose`."""
        entropy = self.weigh(tokens)
        complexity = median(entropy)
        level = self.level(to_numpy(complexity))
        shares = np.asarray(self.ratios)[level]
        counts = np.maximum(np.floor(tokens.size * shares + 1e-9).astype(np.int64), k)
        xp = namespace(entropy)
        whole = index_dtype(xp)
        longest = int(counts.max(initial=0))
        # Patches of as many greys in other places: equal, though their sums are rounded otherwise.
        order = xp.astype(descending(settled(entropy))[..., :longest], whole)
        count = like(counts, entropy, dtype=whole)
        real = xp.arange(longest, dtype=whole, device=device(entropy)) < count[..., None]
        return Selection(
            xp.where(real, order, xp.full_like(order, -1)),
            count,
            tokens.size,
            scores=entropy,
            info={"level": like(level, entropy, dtype=whole), "complexity": complexity},
        )

    def patch_of(self, tokens: Tokens) -> int:
        """Pixels on a side of what becomes one of these tokens."""
        height, width = shape_of(tokens.pixels)[-3:-1]
        patch = self.patch
        if tokens.grid is not None and patch == _QWEN.patch:
            patch = max(1, height // tokens.grid[0])
        rows, columns = height // patch, width // patch
        fits = rows * columns == tokens.size and tokens.grid in (None, (rows, columns))
        if not fits or shape_of(tokens.pixels)[:-3] != tokens.batch_shape:
            of = f" in a grid of {tokens.grid[0]} x {tokens.grid[1]}" if tokens.grid else ""
            raise ValueError(
                f"pixels: {spell(shape_of(tokens.pixels))} in patches of {patch} are {rows} x "
                f"{columns} tokens, there are {spell((*tokens.batch_shape, tokens.size))}{of}"
            )
        return patch

    def level(self, complexity: Any) -> np.ndarray[Any, Any]:
        """The first threshold that each complexity exceeds; how many there are when none."""
        exceeded = np.asarray(complexity)[..., None] > np.asarray(self.thresholds)
        return np.asarray(len(self.thresholds) - exceeded.sum(-1))  # thresholds descend

    @property
    def positions(self) -> Literal["original", "compact"] | None:
        """The authors' program leaves them; see `Method.positions`."""
        return "original" if self.published else None

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """One cut, by the most complex of the prompt's images; see `Cuts.plan`."""
        levels = [int(to_numpy(each.info["level"]).min()) for each in layout.chosen]
        level = min(levels) if levels else None
        if not self.published:
            return self.cuts(layout.depth, layout.size, level=level, earliest=layout.earliest)
        complex_levels = _DEEP_LEVELS.get(len(self.thresholds))
        if complex_levels is None:
            known = ", ".join(map(str, _DEEP_LEVELS))
            raise ValueError(
                f"thresholds: the authors' program knows {known} of them, got {self.thresholds}"
            )
        deep, shallow = _LAYERS[layout.family == _OF_STATES_THAT_LEFT]
        if layout.depth > 30:
            deep = max(deep, 21)
        after = 1 + (shallow if level is not None and level >= complex_levels else deep)
        return descending_cuts([after], [self.budget(layout.size)], layout.depth, layout.size)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Those the asking tokens attend to; see `Cuts.decide`."""
        if not self.published:
            return Stay(best(sight.attention(sight.text), cut.keep))
        if sight.ask is None:
            raise ValueError("ERASE as published asks with queries that only a model makes")
        left = sight.layout is not None and sight.layout.family == _OF_STATES_THAT_LEFT
        queries = sight.ask(sight.hidden if left else sight.entered)
        asking = sight.others(skip=_BEFORE_THE_IMAGE[left])
        return Stay(best(sight.attention(asking, queries), cut.keep))

    def cuts(
        self, depth: int, size: int, *, level: int | None = None, earliest: int = 1
    ) -> tuple[Cut, ...]:
        """One cut, deep for complex images and for those of unknown level.

        See `InsideMethod.cuts`.
        """
        levels = self.complex_levels
        if levels is None:
            levels = (len(self.thresholds) + 1) // 2
        simple = level is not None and level >= levels
        after = self.shallow if simple else round(self.deep * depth)
        return descending_cuts([max(after, earliest)], [self.budget(size)], depth, size)
