"""VScan: a local scan, a global one, and the rest merged into both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from secateur.core.acts import Cut, Cuts, Layout, Sight, Stay
from secateur.core.arrays import (
    Array,
    constant,
    descending,
    index_dtype,
    like,
    namespace,
    top,
    widened,
)
from secateur.core.attention import best
from secateur.core.folding import averaging
from secateur.core.inputs import Request, Tokens
from secateur.core.maps import checked_grid
from secateur.core.methods.base import (
    Method,
    Program,
    require_one_of,
    require_some,
    require_whole,
)
from secateur.core.methods.inside import halfway
from secateur.core.order import nearest
from secateur.core.selection import Selection


class Form(NamedTuple):
    """What differs between the program's two models."""

    window: int
    """Side of its local windows."""
    shallow: Request
    deep: Request


FORMS = {
    "llava": Form(6, Request("attention", layer=6 / 24), Request("attention", layer="features")),
    "qwen": Form(
        4,
        Request("attention", layer=8 / 32, by="all"),
        Request("attention", layer="last", by="all"),
    ),
}
"""LLaVA with CLIP: the sixth of 24 layers, and the one of the features. Qwen2.5-VL: the eighth of
32 blocks, and the last. Towers of other depths are looked at in the same share of their layers."""


@dataclass(frozen=True)
class VScan(Method, Cuts):
    r"""Half by shallow attention within windows, half by deep attention, the rest merged in.

    The grid is cut into W windows. Of k tokens, l are local, :math:`l \le \lfloor k / 2
    \rfloor`, taken by the attention of a shallow layer with a limit for each window:

    - ``"llava"``: :math:`\lfloor \lfloor k / 2 \rfloor / W \rfloor` of every window;
    - ``"qwen"``: the :math:`\lfloor k / 2 \rfloor` highest of all, at most
      :math:`\lceil \lfloor k / 2 \rfloor / W \rceil` of a window.

    The k - l others are those of highest attention in a deep layer. Every token left out goes
    to the kept one of largest cosine, which becomes the plain mean of itself and those that
    came.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    window
        Side of the windows in tokens; 6 for ``"llava"``, 4 for ``"qwen"`` when absent. Rows
        and columns beyond the last whole window belong to it.
    model
        Whose form: ``"llava"`` or ``"qwen"``. It also says which layers' attention an
        attachment observes.
    merge
        Whether what is left out is merged; dropped otherwise.
    inner
        How many of the prompt's tokens go on after half of the language model's layers: a count,
        or a share of those that entered; a third in the authors' program. None for all.

    Notes
    -----
    O(N log N + N k D) time. Local picks come first, each in descending order of attention;
    ``info["local"]`` says how many they are. Equal attention and equal cosines go to the lowest
    index.

    `select` is the first stage, before the language model. The second one, for `inner`, keeps the
    tokens that the prompt's last token attends to, by the layer that has just run; published, by
    the one that comes next. The program for Qwen2.5-VL leaves out the rotation there, which we do
    not.

    Where k / 2 is no multiple of the windows, LLaVA's program keeps fewer than k: its global
    scan takes k / 2 whatever the local one found. Here the global scan takes what is left of k;
    `published` does as the program. The program marks local tokens by setting their deep
    attention to 0 and picks one twice where too few others are above 0; here none is picked
    twice. An image of fewer tokens on a side than a window is one window.

    References
    ----------
    C. Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large
    Vision-Language Models", TMLR 2026, arXiv 2505.22654.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> shallow, deep = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 4.0, 3.0, 2.0])
    >>> tokens = sc.Tokens(
    ...     features=np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]]),
    ...     grid=(2, 2), attention_shallow=shallow, attention=deep)
    >>> chosen = sc.VScan(keep=2, window=2).select(tokens)
    >>> chosen.indices, chosen.folded
    (array([0, 1]), array([0, 1, 0, 1]))
    """

    window: int | None = None
    model: Literal["llava", "qwen"] = "llava"
    merge: bool = True
    inner: int | float | None = None

    name: ClassVar[str] = "vscan"
    complexity: ClassVar[str] = "N log N + N k D"
    reference: ClassVar[str] = "Zhang et al., TMLR 2026, arXiv 2505.22654"
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = "the authors' program in float64: local picks, kept set, merged tokens"
    program: ClassVar[Program | None] = Program("Tencent/SelfEvolvingAgent", "a82450e", "VScan")
    as_published: ClassVar[Mapping[str, Any]] = {"inner": 1 / 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("model", self.model, tuple(FORMS))
        if self.window is not None:
            require_whole("window", self.window, least=1)
        if not isinstance(self.merge, bool):
            raise ValueError(f"merge: expected True or False, got {self.merge!r}")
        if self.inner is not None:
            require_some("inner", self.inner)

    @property
    def needs(self) -> frozenset[str]:
        """The attention of two layers, and the grid whose windows are scanned."""
        return frozenset({"features", "attention", "attention_shallow", "grid"})

    @property
    def requests(self) -> Mapping[str, Request]:
        """The layers that the program looks at."""
        form = FORMS[self.model]
        return {"attention": form.deep, "attention_shallow": form.shallow}

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The local scan, then the global one, then the merge; see `Method.choose`."""
        grid = checked_grid(tokens.grid, tokens.size)
        shallow = constant(widened(tokens.attention_shallow))
        deep = self.weigh(tokens)
        xp = namespace(deep)
        window = FORMS[self.model].window if self.window is None else self.window
        half = k // 2
        windows = math.prod(_windows_across(grid, window))
        each = half // windows if self.model == "llava" else math.ceil(half / windows)
        local = scan_windows(shallow, grid, window, each)
        found = min(half, int(local.shape[-1]))
        local = local[..., :found]
        others = k - half if self.published and k < tokens.size else k - found
        # A local token is not to be picked again: below all that the attention can be.
        taken = Selection.of(local, tokens.size).mask()
        rest = top(xp.where(taken, xp.full_like(deep, -xp.inf), deep), others)
        picks = xp.concat([local, xp.astype(rest, local.dtype)], axis=-1)
        chosen = Selection.of(picks, tokens.size, scores=deep, info={"local": found})
        if not self.merge:
            return chosen
        return averaging(chosen, nearest(constant(widened(tokens.features)), chosen.sorted()))

    @property
    def cuts_inside(self) -> bool:
        """Where `inner` says so."""
        return self.inner is not None

    @property
    def looks_ahead(self) -> bool:
        """The authors' program scores with the layer that comes next."""
        return self.published

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """One cut after half of the layers; see `Cuts.plan`."""
        return halfway(self, layout, self.inner)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Those that the last token attends to; see `Cuts.decide`."""
        return Stay(best(sight.from_last(), cut.keep))


def scan_windows(scores: Array, grid: tuple[int, int], window: int, most: int) -> Array:
    """The tokens of highest score, at most so many of each window.

    Parameters
    ----------
    scores
        Scores (..., N) of the tokens of a grid, row by row.
    grid
        (h, w) with h * w = N.
    window
        Side of the windows. Rows and columns beyond the last whole window belong to it.
    most
        How many of a window at most.

    Returns
    -------
    Array
        Indices (..., K) by descending score, ties to the lowest index.

    Notes
    -----
    O(N log N) time.

    Examples
    --------
    >>> import numpy as np
    >>> scan_windows(np.array([1.0, 5.0, 2.0, 3.0, 4.0]), (1, 5), 1, 1)
    array([1, 4, 3, 2, 0])
    >>> scan_windows(np.array([1.0, 5.0, 2.0, 3.0, 4.0, 0.0]), (1, 6), 3, 1)
    array([1, 4])
    """
    xp = namespace(scores)
    whole = index_dtype(xp)
    listed = xp.astype(descending(scores), whole)
    host = _windows(grid, window)
    owner = xp.take(like(host, scores, dtype=whole), xp.reshape(listed, (-1,)), axis=0)
    # Window by window, each from high to low: which places of that list count is known.
    by_window = xp.argsort(xp.reshape(owner, listed.shape), axis=-1, stable=True)
    sizes = np.bincount(host)
    place = np.arange(len(host)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    allowed = like(np.flatnonzero(place < most), scores, dtype=by_window.dtype)
    ranks = xp.sort(xp.take(by_window, allowed, axis=-1), axis=-1)
    return xp.take_along_axis(listed, ranks, axis=-1)


def _windows_across(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """How many windows a grid has down and across."""
    return max(1, grid[0] // window), max(1, grid[1] // window)


def _windows(grid: tuple[int, int], window: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The window's number (N,) of every token."""
    down, across = _windows_across(grid, window)
    row = np.minimum(np.arange(grid[0]) // window, down - 1)
    column = np.minimum(np.arange(grid[1]) // window, across - 1)
    return np.asarray(row[:, None] * across + column, dtype=np.int64).reshape(-1)
