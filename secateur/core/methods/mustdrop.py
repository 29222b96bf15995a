"""MustDrop: alike windows merge early, what nobody asks for is dropped between layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from secateur.core.acts import Cut, Cuts, Folds, Layer, Layout, Sight, Stay
from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    index_dtype,
    like,
    namespace,
    resolve_keep,
    shape_of,
    spell,
    to_numpy,
    top,
    wide,
    widened,
)
from secateur.core.attention import attention_rows, check_attention
from secateur.core.inputs import Request, Tokens
from secateur.core.maps import checked_grid
from secateur.core.merging import Merged
from secateur.core.methods.base import (
    Method,
    Program,
    require_positive,
    require_share,
    require_whole,
)
from secateur.core.methods.inside import descending_cuts
from secateur.core.order import first_of, settled
from secateur.core.selection import Selection
from secateur.core.similarity import unit

DEPTH = 32
"""Decoder layers of the model that the cuts were published for."""


def window_likeness(
    states: Array, grid: tuple[int, int], window: tuple[int, int] = (3, 3)
) -> Array:
    r"""How alike the tokens of each window of a grid are.

    .. math::
        m = \frac{1}{n (n - 1)} \sum_{i \neq j} \cos(x_i, x_j)
          = \frac{|\sum_i \hat x_i|^2 - \sum_i |\hat x_i|^2}{n (n - 1)}

    over the n tokens of a window.

    Parameters
    ----------
    states
        The patches (..., N, D), row by row.
    grid
        (h, w) with h w = N.
    window
        Rows and columns of a window.

    Returns
    -------
    Array
        (..., W), windows row by row; rows and columns beyond the last whole window are in none.

    Notes
    -----
    O(N D) time: the pairs are never written out.
    """
    states = constant(checked(states, "states", "(..., N, D)", check_finite=False))
    places = _windows(grid, window, int(states.shape[-2]))
    xp = namespace(states)
    x = _rows(unit(xp.astype(states, wide(xp))), places)
    size = places.shape[1]
    both = xp.sum(xp.sum(x, axis=-2) ** 2, axis=-1) - xp.sum(x * x, axis=(-2, -1))
    return settled(both / (size * (size - 1)))


def merge_windows(
    states: Array,
    grid: tuple[int, int] | None = None,
    *,
    window: tuple[int, int] = (3, 3),
    threshold: float = 0.8,
    class_token: bool = True,
) -> Merged:
    """MustDrop's first stage: windows whose tokens are alike become their mean.

    Parameters
    ----------
    states
        What an early layer of the encoder gives (..., 1 + N, D), the class token first.
    grid
        (h, w) of the N patches; a square when absent.
    window
        Rows and columns of a window.
    threshold
        The least `window_likeness` of a window that merges.
    class_token
        Whether there is a class token, which stays as it is.

    Returns
    -------
    Merged
        The class token, the merged windows from most to least alike, then the untouched tokens
        in place order.

    Notes
    -----
    O(N D) time.

    In a batch every image merges as many windows, its most alike ones, as the image with the
    fewest alike windows has: so the authors' program does it, and an array has no other choice.
    What becomes of an image then depends on its company; give images one by one where it should
    not.

    The program takes square grids that the window divides; here rows and columns beyond the last
    whole window stay untouched. Ties go to the first window.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.mustdrop import merge_windows
    >>> x = np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> merged = merge_windows(x, (2, 2), window=(1, 2), class_token=False)
    >>> merged.states, merged.sizes, merged.group
    (array([[2., 0.],
           [1., 0.],
           [0., 2.]]), array([2., 1., 1.]), array([0, 0, 1, 2]))
    """
    states = checked(states, "states", "(..., N, D)", check_finite=False)
    first, n = int(class_token), int(states.shape[-2]) - int(class_token)
    grid = _square(n) if grid is None else grid
    places = _windows(grid, window, n)
    xp = namespace(states)
    patches = states[..., first:, :]
    alike = window_likeness(patches, grid, window)
    counts = to_numpy(xp.sum(xp.astype(alike >= threshold, index_dtype(xp)), axis=-1))
    r = int(counts.min(initial=len(places)))
    chosen = xp.astype(top(alike, r), index_dtype(xp))
    means = Selection.of(chosen, len(places)).gather(
        xp.mean(_rows(widened(patches), places), axis=-2), ordered=True
    )
    # For every window the number it merges as, r where it does not; likewise for its tokens.
    number = xp.argsort(xp.argsort(-alike, axis=-1, stable=True), axis=-1, stable=True)
    number = xp.astype(xp.where(number < r, number, xp.full_like(number, r)), index_dtype(xp))
    owner = _owners(places, n)
    inside = xp.take(number, like(np.maximum(owner, 0), number), axis=-1)
    outside = like(owner < 0, number)
    joined = xp.where(outside, xp.full_like(inside, r), inside)
    merged = xp.astype(joined < r, index_dtype(xp))
    untouched = first_of(merged, n - r * places.shape[1])
    alone = Selection.of(untouched, n).gather(patches, ordered=True)
    states = xp.concat([states[..., :first, :], xp.astype(means, states.dtype), alone], axis=-2)
    place = xp.cumulative_sum(1 - merged, axis=-1) - 1 + r
    group = xp.where(joined < r, joined, xp.astype(place, joined.dtype)) + first
    group = xp.concat([xp.zeros_like(group[..., :first]), group], axis=-1)
    sizes = np.ones(int(states.shape[-2]))
    sizes[first : first + r] = places.shape[1]
    sizes = xp.broadcast_to(like(sizes, states, dtype=widened(states).dtype), shape_of(states)[:-1])
    return Merged(states, sizes, group)


def key_tokens(attention: Array, share: float = 0.08) -> Array:
    """The tokens that MustDrop never drops: its second stage.

    Parameters
    ----------
    attention
        What the class token pays each token left (..., N) in the encoder's last layer.
    share
        Share of them that are key, rounded up.

    Returns
    -------
    Array
        True (..., N) at the key tokens; ties go to the lowest index.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.mustdrop import key_tokens
    >>> key_tokens(np.array([0.1, 0.5, 0.2, 0.2]), share=0.3)
    array([False,  True,  True, False])
    """
    attention = constant(checked(attention, "attention", "(..., N)"))
    require_share("share", share)
    n = int(attention.shape[-1])
    return Selection.of(top(attention, math.ceil(n * share - 1e-9)), n).mask()


def asked_for(
    attention: Array,
    *,
    overall: float = 0.001,
    single: float = 0.001,
    key: Array | None = None,
) -> Array:
    r"""Which tokens stay between layers, by what the text pays them: MustDrop's third stage.

    Token j is dropped if both

    .. math::
        \sum_l A_{lj} < \tau_g \sum_{l, i} A_{li}
        \qquad\text{and}\qquad \max_l A_{lj} < \tau_i

    unless it is a key token.

    Parameters
    ----------
    attention
        A, what each of L text tokens pays each visual token (..., L, N), averaged over heads.
    overall
        :math:`\tau_g`, the least share of all that is paid to visual tokens.
    single
        :math:`\tau_i`, the least that some text token pays.
    key
        True (..., N) at tokens that stay whatever is paid, those of `key_tokens`.

    Returns
    -------
    Array
        True (..., N) at those that stay; how many the text decides, and there may be none.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.mustdrop import asked_for
    >>> paid = np.array([[0.5, 0.01, 0.0, 0.02], [0.1, 0.01, 0.0, 0.0]])
    >>> asked_for(paid, overall=0.05, single=0.02)
    array([ True, False, False,  True])
    >>> asked_for(paid, overall=0.05, single=0.02, key=np.arange(4) == 2)
    array([ True, False,  True,  True])
    """
    attention = constant(checked(attention, "attention", "(..., L, N)", non_negative=True))
    xp = namespace(attention)
    total = xp.sum(attention, axis=-2, dtype=wide(xp))
    little = total < overall * xp.sum(total, axis=-1, keepdims=True)
    stay = xp.logical_not(little & (xp.max(attention, axis=-2) < single))
    return stay if key is None else stay | key


@dataclass(frozen=True)
class MustDrop(Method, Cuts, Folds):
    r"""MustDrop: what neither the encoder nor any text token asks for goes, at four depths.

    Behind the encoder's first layer alike windows become one token each (`merge_windows`), where
    `window` says so.

    Key tokens, the share `key` that the class token attends to most in the encoder's last layer
    (`key_tokens`), are never dropped. After each of the layers `after`, visual tokens go to which
    the text behind the image pays little, all together and each (`asked_for`).

    Parameters
    ----------
    keep
        The most visual tokens of the prompt that remain after the last cut: a count or a share.
        Earlier cuts have limits too, each the same fraction of the one before; over a limit, key
        tokens stay first, then those that the text pays most. With ``published=True`` there is
        no limit, and the thresholds alone decide.
    overall, single
        The two thresholds. The defaults are the authors' for 192 of LLaVA-1.5's 576 tokens; for
        128 they have 0.0012 and 0.001, for 64 0.011 and 0.01, set for each benchmark.
    key
        Share of the tokens that are key.
    after
        Where the cuts come, in a model of 32 layers; other depths scale them.
    window
        Side of the windows that merge inside the encoder, 3 in the authors' program, each picture
        of an image by itself; None for none, as in models whose encoder does not let tokens go.
    likeness
        The least `window_likeness` of a window that merges.

    Notes
    -----
    O(N log N) time before, O(H L T d) a cut for L text tokens.

    A merged window stands where its first token stood, and each image merges by itself. In the
    authors' program merged windows come before the other tokens, numbered on from there, which
    `published` does too; and of several images each merges as many windows as the one that has
    the fewest alike, which it does not.

    Position numbers of the kept tokens stay, and all layers forget what a later one drops; the
    authors' program cuts position numbers to the new length, and its first two layers forget
    nothing while decoding.

    References
    ----------
    T. Liu, L. Shi, R. Hong, Y. Hu, Q. Yin and L. Zhang, "Multi-Stage Vision Token Dropping:
    Towards Efficient Multimodal Large Language Model", 2024, arXiv 2411.10803.

    Examples
    --------
    >>> from secateur.core.acts import Layout
    >>> from secateur.core.methods.mustdrop import MustDrop
    >>> [cut.keep for cut in MustDrop(keep=36).plan(Layout(depth=32, images=(576,)))]
    [288, 144, 72, 36]
    """

    keep: int | float = 192
    overall: float = 0.001
    single: float = 0.001
    key: float = 0.08
    after: tuple[int, ...] = (2, 6, 10, 14)
    window: int | None = None
    likeness: float = 0.8

    name: ClassVar[str] = "mustdrop"
    complexity: ClassVar[str] = "N log N, then H L T d a cut"
    reference: ClassVar[str] = "Liu et al., 2024, arXiv 2411.10803"
    parity: ClassVar[str] = "the authors' program: merged windows, what the filter keeps"
    program: ClassVar[Program | None] = Program("liuting20/MustDrop", "909afa5")
    as_published: ClassVar[Mapping[str, Any]] = {"window": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("overall", "single"):
            require_positive(name, getattr(self, name), zero=True)
        require_share("key", self.key)
        if not self.after or list(self.after) != sorted(set(self.after)) or self.after[0] < 1:
            raise ValueError(f"after: expected ascending numbers of layers, got {self.after}")
        if self.window is not None:
            require_whole("window", self.window, least=2)

    @property
    def needs(self) -> frozenset[str]:
        """The attention that says which tokens are key."""
        return frozenset({"features", "attention"})

    @property
    def requests(self) -> Mapping[str, Request]:
        """Attention of the encoder's last layer."""
        return {"attention": Request("attention", layer="last")}

    @property
    def folds(self) -> bool:
        """Where it has windows."""
        return self.window is not None

    @property
    def in_place(self) -> bool:
        """The authors' program keeps the encoder's order."""
        return not self.published

    def fold(self, layer: Layer) -> Merged | None:
        """Merge windows behind the first layer; see `Folds.fold`."""
        size = layer.grid[0] * layer.grid[1]
        if layer.number or self.window is None or resolve_keep(self.keep, size) >= size:
            return None
        return merge_windows(
            layer.states,
            layer.grid,
            window=(self.window, self.window),
            threshold=self.likeness,
            class_token=layer.class_token,
        )

    def budget(self, size: int, frames: int = 1) -> int:
        """All tokens enter the language model; see `Method.budget`."""
        return size

    def weigh(self, tokens: Tokens) -> Array:
        """The attention; see `Method.weigh`."""
        return constant(widened(tokens.attention))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """All tokens, and which are key; see `Method.choose`."""
        attention = self.weigh(tokens)
        xp = namespace(attention)
        every = xp.arange(tokens.size, dtype=index_dtype(xp), device=device(attention))
        return Selection.of(
            xp.broadcast_to(every, shape_of(attention)),
            tokens.size,
            scores=attention,
            info={"key": key_tokens(attention, self.key)},
        )

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """A cut at each depth; see `Cuts.plan`."""
        size, depth = layout.size, layout.depth
        limit = resolve_keep(self.keep, size)
        if limit >= size:
            return ()
        scaled = (max(round(layers * depth / DEPTH), layout.earliest) for layers in self.after)
        places = sorted({layers for layers in scaled if layers < depth})
        if self.published:
            return tuple(Cut(layers, size) for layers in places)
        shares = [(limit / size) ** (cut / len(places)) for cut in range(1, len(places))]
        keeps = [*(resolve_keep(share, size) for share in shares), limit]
        return descending_cuts(places, keeps, depth, size)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Key tokens and those that the text asks for; see `Cuts.decide`."""
        asking = sight.behind()
        if int(asking.shape[0]) == 0:
            asking = sight.others()
        check_attention(sight.queries, sight.keys, sight.visual, asking)
        xp = namespace(sight.queries)
        queries = xp.take(sight.queries, asking, axis=-2)
        rows = attention_rows(queries, sight.keys, key_mask=sight.mask, positions=asking)
        rows = xp.take(rows, sight.visual, axis=-1)
        key = like(sight.told("key"), sight.visual)
        stay = asked_for(rows, overall=self.overall, single=self.single, key=key)
        places = np.flatnonzero(to_numpy(stay))
        if len(places) > cut.keep:
            paid = to_numpy(xp.sum(rows, axis=-2, dtype=wide(xp)))[places]
            order = np.lexsort((-paid, ~to_numpy(key)[places]))
            places = np.sort(places[order[: cut.keep]])
        return Stay(like(places, sight.visual))


def _square(n: int) -> tuple[int, int]:
    side = math.isqrt(n)
    if side * side != n:
        raise ValueError(f"grid: {n} tokens are no square, so (h, w) must be given")
    return side, side


def _windows(grid: tuple[int, int], window: tuple[int, int], n: int) -> np.ndarray[Any, Any]:
    """The tokens (W, size) of each whole window, row by row."""
    h, w = checked_grid(grid, n)
    high, across = window
    for side in window:
        require_whole("window", side, least=1)
    if high * across < 2:
        raise ValueError(f"window: expected more than one token in it, got {spell(window)}")
    places = np.arange(n).reshape(h, w)[: h // high * high, : w // across * across]
    split = places.reshape(h // high, high, w // across, across)
    return split.transpose(0, 2, 1, 3).reshape(-1, high * across)


def _owners(places: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """The window (n,) of every token, -1 for none."""
    owner = np.full(n, -1)
    owner[places] = np.arange(len(places))[:, None]
    return owner


def _rows(x: Array, places: np.ndarray[Any, Any]) -> Array:
    """Tokens (..., W, size, D) at the places (W, size)."""
    xp = namespace(x)
    taken = xp.take(x, like(places.ravel(), x), axis=-2)
    return xp.reshape(taken, (*shape_of(x)[:-2], *places.shape, int(x.shape[-1])))
