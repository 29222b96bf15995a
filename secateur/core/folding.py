"""Folding dropped tokens into kept ones."""

from __future__ import annotations

from dataclasses import replace

from secateur.core.arrays import Array, namespace, wide
from secateur.core.order import positions_like
from secateur.core.selection import Selection


def folding(chosen: Selection, joined: Array, weights: Array) -> Selection:
    """A selection that also says where every dropped token went, for `Selection.merge`.

    Parameters
    ----------
    chosen
        What is kept; each kept token counts itself once.
    joined
        For every token (..., N) the kept one it joins, -1 for none; read for dropped ones only.
    weights
        Their weights (..., N) there.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.selection import Selection
    >>> kept = Selection.of(np.array([2, 0]), 4)
    >>> both = folding(kept, np.array([0, 2, 2, -1]), np.array([9.0, 0.5, 9.0, 9.0]))
    >>> both.folded, both.fold_weights
    (array([ 0,  2,  2, -1]), array([1. , 0.5, 1. , 0. ]))
    """
    xp = namespace(chosen.indices)
    kept = chosen.mask()
    places = positions_like(chosen.indices, chosen.size)
    folded = xp.where(kept, places, xp.astype(joined, places.dtype))
    shares = xp.astype(weights, wide(xp))
    shares = xp.where(folded < 0, xp.zeros_like(shares), shares)
    return replace(chosen, folded=folded, fold_weights=xp.where(kept, xp.ones_like(shares), shares))
