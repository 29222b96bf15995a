"""What kept tokens take in: plain means, and tokens that go into several."""

from __future__ import annotations

from dataclasses import replace

from secateur.core.arrays import Array, device, namespace, wide
from secateur.core.selection import Selection, Shares, folding


def averaging(chosen: Selection, joined: Array) -> Selection:
    r"""A selection whose kept tokens become plain means of themselves and what joined them.

    .. math:: X_p' = \frac{1}{1 + |M_p|} \Big(X_p + \sum_{i \in M_p} X_i\Big)

    Parameters
    ----------
    chosen
        What is kept.
    joined
        For every token (..., N) the kept one it joins, -1 for none; read for dropped ones only.

    Notes
    -----
    O(N K) time and memory.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.selection import Selection
    >>> both = averaging(Selection.of(np.array([2, 0]), 4), np.array([0, 2, 2, -1]))
    >>> both.folded, both.fold_weights
    (array([ 0,  2,  2, -1]), array([1. , 0.5, 0.5, 0. ]))
    """
    xp = namespace(joined)
    summed = folding(chosen, joined, xp.ones_like(joined))
    folded: Array = summed.folded
    kept = chosen.indices[..., :, None]
    together = (folded[..., None, :] == kept) & (kept >= 0)
    share = xp.astype(together, wide(xp))
    members = xp.sum(share, axis=-1, keepdims=True)
    weights = xp.sum(share / xp.where(members > 0, members, xp.ones_like(members)), axis=-2)
    return replace(summed, fold_weights=weights)


def also(merged: Selection, source: Array, target: Array, weight: Array) -> Selection:
    """A merging selection with contributions beside those of `folded`.

    Parameters
    ----------
    merged
        What `folding` or `averaging` made.
    source
        Tokens (..., M) that go into another one besides.
    target
        The kept tokens (..., M) that they go into, -1 for none.
    weight
        Their weights (..., M) there.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.selection import Selection
    >>> both = averaging(Selection.of(np.array([0, 1]), 3), np.array([0, 1, 0]))
    >>> more = also(both, np.array([2]), np.array([1]), np.array([4.0]))
    >>> more.merge(np.array([[1.0], [10.0], [3.0]]))
    array([[ 2.],
           [22.]])
    """
    folded: Array = merged.folded
    xp = namespace(folded)
    tokens = xp.arange(merged.size, dtype=folded.dtype, device=device(folded))
    tokens = xp.broadcast_to(tokens, folded.shape)
    return replace(
        merged,
        shares=Shares(
            xp.concat([tokens, source], axis=-1),
            xp.concat([folded, target], axis=-1),
            xp.concat([merged.fold_weights, weight], axis=-1),
        ),
    )
