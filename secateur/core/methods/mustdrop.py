"""MustDrop: alike windows merge early, what nobody asks for is dropped between layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    constant,
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
from secateur.core.merging import Merged
from secateur.core.methods.base import require_share, require_whole
from secateur.core.order import first_of, settled
from secateur.core.relevance import checked_grid
from secateur.core.selection import Selection
from secateur.core.similarity import unit


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
    """The tokens (..., K) that MustDrop never drops, ascending: its second stage.

    Parameters
    ----------
    attention
        What the class token pays each token left (..., N) in the encoder's last layer.
    share
        Share of them that are key, rounded up.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.mustdrop import key_tokens
    >>> key_tokens(np.array([0.1, 0.5, 0.2, 0.2]), share=0.3)
    array([1, 2])
    """
    attention = constant(checked(attention, "attention", "(..., N)"))
    require_share("share", share)
    xp = namespace(attention)
    count = math.ceil(int(attention.shape[-1]) * share - 1e-9)
    return xp.astype(xp.sort(top(attention, count), axis=-1), index_dtype(xp))


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
        Tokens (..., K) that stay whatever is paid; -1 stands for none.

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
    >>> asked_for(paid, overall=0.05, single=0.02, key=np.array([2]))
    array([ True, False,  True,  True])
    """
    attention = constant(checked(attention, "attention", "(..., L, N)", non_negative=True))
    xp = namespace(attention)
    total = xp.sum(attention, axis=-2, dtype=wide(xp))
    little = total < overall * xp.sum(total, axis=-1, keepdims=True)
    stay = xp.logical_not(little & (xp.max(attention, axis=-2) < single))
    if key is not None:
        stay = stay | Selection.of(key, int(attention.shape[-1])).mask()
    return stay


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
